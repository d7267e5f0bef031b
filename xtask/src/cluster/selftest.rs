//! `cargo xtask cluster selftest`: brings up two clusters of its own side by side, checks what dev/README.md promises of them, and
//! removes them again, also when a check fails.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::control_plane::Options;
use super::down::{down, remains};
use super::faults::{heal, kill_node, partition, restore_node};
use super::images::PodImage;
use super::kubectl::Kubectl;
use super::layout::{Layout, checkout};
use super::progress::{note, seconds, step};
use super::up::{is_ready, up, wait_for};

const OPTIONS: Options = Options { fsync: false };
const MINUTE: Duration = Duration::from_mins(1);

/// The names of the test's clusters: nobody else uses them.
const NAMES: [&str; 2] = ["selftest-a", "selftest-b"];

/// Runs all checks.
pub fn run() -> Result<()> {
    let started = Instant::now();
    let [first, second] = [Layout::new(NAMES[0])?, Layout::new(NAMES[1])?];
    // A run that was interrupted may have left something.
    for layout in [&first, &second] {
        if !remains(layout)?.is_empty() {
            down(layout)?;
        }
    }
    let result = check(&first, &second);
    let removed = down(&first).and(down(&second));
    result?;
    removed?;
    step("no trace is left on the machine", || {
        let traces = traces("selftest-");
        ensure!(traces.is_empty(), "these are left:\n{}", traces.join("\n"));
        Ok(())
    })?;
    note(&format!("the local cluster keeps its promises, {}", seconds(started.elapsed())));
    Ok(())
}

fn check(first: &Layout, second: &Layout) -> Result<()> {
    up(first, OPTIONS)?;
    let test = Test { layout: first, kubectl: Kubectl::new(first) };
    println!("Checks");
    test.start_pods()?;
    step("a Service is reached from every node", || test.service_soon())?;
    step("names are resolved, and unknown ones refused at once", || test.names())?;
    step("root is read-only, memory can be written, logs can be read", || test.pod_security())?;
    step("a volume has a size, fills up and grows while in use", || test.volume())?;
    step("a network volume follows its pod to another node", || test.network_volume())?;
    up(second, OPTIONS)?;
    step("two clusters know nothing of each other", || {
        let pods = Kubectl::new(second).run(&["get", "pods", "-A", "--no-headers"])?;
        ensure!(pods.trim().is_empty(), "the second cluster shows pods: {pods}");
        Ok(())
    })?;
    down(second)?;
    step("the first cluster outlives the second one", || test.service())?;
    test.crash_of_programs()?;
    test.dead_node()?;
    test.partition()
}

/// Whatever on the machine carries the name: looked for in the kernel's own tables, not where `down` looks.
fn traces(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for table in ["/proc/mounts", "/proc/net/dev"] {
        let lines = fs::read_to_string(table).unwrap_or_default();
        found.extend(lines.lines().filter(|line| line.contains(name)).map(String::from));
    }
    found.extend(
        super::run::words("losetup", "--list")
            .unwrap_or_default()
            .lines()
            .filter(|line| line.contains(name))
            .map(String::from),
    );
    for process in fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok) {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(name) {
            found.push(format!("process {line}"));
        }
    }
    let folders = ["/run/netns", "/run/backlot", "/var/lib/cni/results", "/var/log/containers", "/sys/fs/cgroup"];
    let mut open: Vec<_> = folders.map(std::path::PathBuf::from).to_vec();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            let target = fs::read_link(&path).unwrap_or_default();
            if format!("{} {}", path.display(), target.display()).contains(name) {
                found.push(path.display().to_string());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            }
        }
    }
    found
}

struct Test<'a> {
    layout: &'a Layout,
    kubectl: Kubectl,
}

impl Test<'_> {
    fn start_pods(&self) -> Result<()> {
        step("three pods with volumes, one per zone", || {
            let image = PodImage::ensure(self.layout)?;
            let manifest = fs::read_to_string(checkout().join("dev/manifests/selftest.yaml"))?;
            self.kubectl.apply(&manifest.replace("IMAGE", &image.reference))?;
            self.kubectl.run(&["rollout", "status", "statefulset/member", "--timeout=90s"]).map(drop)
        })
    }

    fn pod(&self, pod: &str, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["exec", pod, "--", "/pod"];
        all.extend(arguments);
        Ok(self.kubectl.run(&all)?.trim().to_owned())
    }

    /// Fails unless the command fails, and with these words.
    fn pod_fails(&self, pod: &str, arguments: &[&str], words: &str) -> Result<()> {
        match self.pod(pod, arguments) {
            Ok(output) => bail!("{arguments:?} in {pod} succeeded: {output}"),
            Err(error) if error.to_string().contains(words) => Ok(()),
            Err(error) => Err(error.context(format!("{arguments:?} in {pod} did not fail with {words:?}"))),
        }
    }

    /// Every member asks until it has heard from all three: it is so proven for pods of the same node and of others.
    fn service(&self) -> Result<()> {
        for pod in MEMBERS {
            let mut heard = std::collections::BTreeSet::new();
            for _ in 0..60 {
                heard.insert(self.pod(pod, &["fetch", "http://members/"])?);
                if heard.len() == MEMBERS.len() {
                    break;
                }
            }
            ensure!(heard.iter().eq(MEMBERS.iter()), "{pod} heard only from {heard:?}");
        }
        Ok(())
    }

    /// The nodes learn of new or lost members within seconds, not at once.
    fn service_soon(&self) -> Result<()> {
        wait_for("the Service to lead to all members", MINUTE, || self.service().map(|()| true))
    }

    fn names(&self) -> Result<()> {
        let address = self.kubectl.run(&["get", "pod", "member-1", "-o", "jsonpath={.status.podIP}"])?;
        let resolved = self.pod("member-0", &["resolve", "member-1.member.default.svc.cluster.local"])?;
        ensure!(resolved == address, "member-1 is {address}, its name says {resolved}");
        let started = Instant::now();
        self.pod_fails("member-0", &["resolve", "nowhere.example.com"], "no such host")?;
        ensure!(
            started.elapsed() < Duration::from_secs(3),
            "it took {} s to refuse a name",
            started.elapsed().as_secs()
        );
        Ok(())
    }

    fn pod_security(&self) -> Result<()> {
        self.pod_fails("member-0", &["write", "/file", "x"], "read-only file system")?;
        self.pod("member-0", &["write", "/tmp/file", "x"])?;
        let log = self.kubectl.run(&["logs", "member-0"])?;
        ensure!(log.contains("member-0 serves"), "the log says {log:?}");
        Ok(())
    }

    fn volume(&self) -> Result<()> {
        self.pod("member-0", &["write", "/data/kept", "precious"])?;
        self.pod_fails("member-0", &["fill", "/data/large", "900000000"], "no space left on device")?;
        let patch = r#"{"spec":{"resources":{"requests":{"storage":"1Gi"}}}}"#;
        self.kubectl.run(&["patch", "pvc", "data-member-0", "--patch", patch])?;
        wait_for("the volume to grow", MINUTE, || {
            Ok(self.pod("member-0", &["size", "/data"])?.parse::<u64>()? > 900_000_000)
        })?;
        self.pod("member-0", &["fill", "/data/large", "900000000"])?;
        let content = self.pod("member-0", &["read", "/data/kept"])?;
        ensure!(content == "precious", "the file says {content:?}");
        Ok(())
    }

    /// The first pod writes and is deleted; the second, elsewhere, reads.
    fn network_volume(&self) -> Result<()> {
        let image = PodImage::ensure(self.layout)?.reference;
        let claim = serde_json::json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "wanderer"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "network", "resources": {"requests": {"storage": "300Mi"}},
        }});
        self.kubectl.apply(&claim.to_string())?;
        for (pod, node, arguments) in
            [("writer", "node-1", ["write", "/data/note", "seen"]), ("reader", "node-2", ["read", "/data/note", ""])]
        {
            let manifest = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": {
                "nodeName": node, "restartPolicy": "Never",
                "containers": [{"name": "pod", "image": image, "args": arguments, "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "wanderer"}}],
            }});
            self.kubectl.apply(&manifest.to_string())?;
            self.kubectl.run(&[
                "wait",
                "--for=jsonpath={.status.phase}=Succeeded",
                &format!("pod/{pod}"),
                "--timeout=60s",
            ])?;
            if pod == "writer" {
                self.kubectl.run(&["delete", "pod", pod])?;
            }
        }
        let read = self.kubectl.run(&["logs", "reader"])?;
        ensure!(read == "seen", "the reader saw {read:?}");
        self.kubectl.run(&["delete", "pod/reader", "pvc/wanderer"]).map(drop)
    }

    /// `up` heals: what was killed starts again, and containers that ran go on.
    fn crash_of_programs(&self) -> Result<()> {
        let restarts = self.restarts()?;
        step("kill etcd, API server, a kubelet and a container runtime", || {
            for record in ["control-plane/etcd", "control-plane/kube-apiserver", "node-1/kubelet", "node-1/containerd"]
            {
                let content = fs::read_to_string(self.layout.directory.join("run").join(format!("{record}.json")))?;
                let pid = serde_json::from_str::<serde_json::Value>(&content)?["pid"].to_string();
                super::run::run("kill", ["-KILL", &pid])?;
            }
            Ok(())
        })?;
        up(self.layout, OPTIONS)?;
        step("the pods have not noticed", || {
            self.service()?;
            let now = self.restarts()?;
            ensure!(now == restarts, "restarts were {restarts} and are {now}");
            Ok(())
        })
    }

    fn restarts(&self) -> Result<String> {
        self.kubectl.run(&["get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}"])
    }

    fn dead_node(&self) -> Result<()> {
        let name = self.kubectl.run(&["get", "pod", "member-0", "-o", "jsonpath={.spec.nodeName}"])?;
        let node = self.layout.node(&name)?;
        kill_node(&node)?;
        step("the dead node is not ready", || self.wait_until_ready(&name, false))?;
        step("a Service leaves the dead node out", || {
            wait_for("the Service to do so", MINUTE, || {
                for _ in 0..5 {
                    self.pod("member-1", &["fetch", "http://members/"])?;
                }
                Ok(true)
            })
        })?;
        restore_node(&node, OPTIONS)?;
        step("its pod is back with its volume", || {
            wait_for("the pod", MINUTE, || {
                let content = self.pod("member-0", &["read", "/data/kept"])?;
                ensure!(content == "precious", "the file says {content:?}");
                Ok(true)
            })?;
            self.kubectl.run(&["wait", "--for=condition=Ready", "pod/member-0", "--timeout=60s"])?;
            self.service_soon()
        })
    }

    fn partition(&self) -> Result<()> {
        let node = self.layout.node("node-3")?;
        partition(&node)?;
        step("the node that is cut off is not ready", || self.wait_until_ready(node.name, false))?;
        heal(&node)?;
        step("a Service is reached from every node again", || self.service_soon())
    }

    fn wait_until_ready(&self, node: &str, wanted: bool) -> Result<()> {
        wait_for(&format!("{node} to change"), MINUTE, || {
            Ok(is_ready(&self.kubectl.json(&["get", "nodes"])?, node) == wanted)
        })
    }
}

const MEMBERS: [&str; 3] = ["member-0", "member-1", "member-2"];
