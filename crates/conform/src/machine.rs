//! The kit's kubelet: runs the pods of a simulated cluster as containers, with the real agent as their first process.
//!
//! A container sees what a pod gives it and no more: read-only root, no capabilities, a user that the image does not know,
//! volumes of the pod's group, a network that leads nowhere. Invariant: containers and networks carry the run's label, so that
//! whatever was made is found and removed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use backlot_testkit::api_server::ApiServer;
use backlot_testkit::simulated::{Started, Workload};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::Value;

use crate::engine::Engine;
use crate::pod;
use crate::probe::Probe;

/// Label of everything that a run makes.
pub const LABEL: &str = "dev.backlot.conform";
/// Time between two looks at the containers, and between two probes of a member.
const LOOK: Duration = Duration::from_millis(500);
/// Subnets that are tried for a run's network: 10.N.0.0/16.
const SUBNETS: std::ops::RangeInclusive<u8> = 180..=239;
/// Processes of a container.
const PROCESSES: &str = "4096";

type Key = (String, String);

/// Where a run's things lie.
#[derive(Clone, Debug)]
pub struct Places {
    /// In memory where the machine has such a folder: what a pod keeps in memory, secrets among it.
    pub memory: PathBuf,
    /// On disk: volumes.
    pub disk: PathBuf,
    /// Logs, for people.
    pub logs: PathBuf,
}

/// Containers in the place of pods.
pub struct Machine {
    /// The engine.
    pub engine: Engine,
    /// Name of the run: of its network, and first part of its containers' names.
    pub run: String,
    image: String,
    agent: PathBuf,
    places: Places,
    server: ApiServer,
    probe: Probe,
    subnet: String,
    addresses: u32,
    pods: BTreeMap<Key, Running>,
    looked: Instant,
    hosts: String,
    /// Addresses that pods are to get at their next start.
    pub wanted_addresses: BTreeMap<String, String>,
    /// Pods whose containers are not started again for now.
    pub held: Vec<String>,
    /// How members ended: pod, seconds, exit code.
    pub ends: Vec<(String, f64, i32)>,
    /// What the engine refused; the kit cannot go on.
    pub broken: Option<String>,
}

struct Running {
    uid: String,
    container: String,
    address: String,
    hostname: String,
    pod: Pod,
    is_up: bool,
    probed: Option<(Instant, bool)>,
    stopping: Option<(Instant, Child)>,
}

impl Machine {
    /// Makes the run's network and folders.
    pub fn new(
        engine: Engine,
        run: &str,
        image: &str,
        agent: &Path,
        places: &Places,
        server: &ApiServer,
    ) -> Result<Self> {
        for folder in [&places.memory, &places.disk, &places.logs] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let label = format!("{LABEL}={run}");
        let mut refused = None;
        let subnet = SUBNETS.map(|number| format!("10.{number}")).find(|subnet| {
            // Pods have addresses of the kit's choice, clients of the engine's: from a range of their own.
            let (all, clients) = (format!("{subnet}.0.0/16"), format!("{subnet}.250.0/24"));
            let mut create = vec!["network", "create", "--internal", "--label", &label, "--subnet", &all];
            create.extend(["--ip-range", &clients, run]);
            engine.run(create).map_err(|error| refused = Some(error)).is_ok()
        });
        let Some(subnet) = subnet else {
            bail!("cannot make a network: {:#}", refused.unwrap_or_else(|| anyhow::anyhow!("no free subnet")));
        };
        fs::write(places.memory.join("hosts"), "")?;
        Ok(Self {
            engine,
            run: run.to_owned(),
            image: image.to_owned(),
            agent: agent.to_owned(),
            places: places.clone(),
            server: server.clone(),
            probe: Probe::new()?,
            subnet,
            addresses: 0,
            pods: BTreeMap::new(),
            looked: Instant::now(),
            hosts: String::new(),
            wanted_addresses: BTreeMap::new(),
            held: vec![],
            ends: vec![],
            broken: None,
        })
    }

    /// The container of a pod.
    pub fn container(&self, pod: &str) -> Result<&str> {
        let found = self.pods.iter().find(|((_, name), _)| name == pod);
        found.map(|(_, running)| running.container.as_str()).with_context(|| format!("{pod} has no container"))
    }

    /// The present address of a pod.
    pub fn address_of(&self, pod: &str) -> Option<String> {
        self.pods.iter().find(|((_, name), _)| name == pod).map(|(_, running)| running.address.clone())
    }

    /// Folder of a volume.
    pub fn volume(&self, volume: &str) -> PathBuf {
        self.places.disk.join(volume)
    }

    /// Folder of logs.
    pub fn logs(&self) -> &Path {
        &self.places.logs
    }

    /// Folder with what a pod keeps in memory.
    pub fn memory(&self, pod: &str) -> Result<PathBuf> {
        let found = self.pods.iter().find(|((_, name), _)| name == pod);
        let (_, running) = found.with_context(|| format!("{pod} has no container"))?;
        Ok(self.places.memory.join("pods").join(&running.uid))
    }

    /// Starts a container beside the cluster as a pod was once started, with folders in the place of its volumes.
    pub fn start_ghost(&mut self, pod: &Pod, folders: &BTreeMap<String, PathBuf>) -> Result<String> {
        let container = format!("{}-ghost", self.run);
        let spec = serde_json::to_value(&pod.spec)?;
        let address = self.address(pod).unwrap_or_default();
        let arguments = self.run_arguments(&pod.name_any(), &spec, &container, &address, folders)?;
        self.engine.run(arguments)?;
        Ok(container)
    }

    /// File with the names of all members, for `/etc/hosts` of every container.
    pub fn hosts_file(&self) -> PathBuf {
        self.places.memory.join("hosts")
    }

    /// Pods whose container has ended by itself since.
    pub fn ended(&mut self) -> Vec<Key> {
        if self.looked.elapsed() < LOOK {
            return vec![];
        }
        self.looked = Instant::now();
        let filter = format!("label={LABEL}={}", self.run);
        let listed = self.engine.run(["ps", "--filter", &filter, "--format", "{{.Names}}"]);
        let Some(listed) = self.note(listed) else { return vec![] };
        let up: Vec<&str> = listed.lines().collect();
        for running in self.pods.values_mut() {
            running.is_up = up.contains(&running.container.as_str());
        }
        let dead = self.pods.iter().filter(|((_, name), running)| {
            !running.is_up && running.stopping.is_none() && !self.held.contains(name) && is_restarted(&running.pod)
        });
        dead.map(|(key, _)| key.clone()).collect()
    }

    /// Kills a member's container, as a crash of its node would.
    pub fn kill(&self, pod: &str) -> Result<()> {
        self.engine.run(["kill", "--signal", "KILL", self.container(pod)?]).map(drop)
    }

    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.broken.get_or_insert_with(|| format!("{error:#}")).clone()).ok()
    }

    fn start(&mut self, started: &Started) -> Result<()> {
        let pod = &started.pod;
        let key = (pod.namespace().unwrap_or_default(), pod.name_any());
        let uid = pod.uid().unwrap_or_default();
        if let Some(running) = self.pods.get_mut(&key)
            && running.uid == uid
        {
            running.is_up = true;
            running.probed = None;
            let container = running.container.clone();
            return self.engine.run(["start", &container]).map(drop);
        }
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default();
        let pod_name = key.1.clone();
        let container = format!("{}-{}-{}", self.run, key.1, &uid[uid.len().saturating_sub(8)..]);
        let spec = serde_json::to_value(&pod.spec)?;
        let folder = self.places.memory.join("pods").join(&uid);
        let running = Running {
            uid,
            container: container.clone(),
            address,
            hostname: hostname(&spec, &key),
            pod: pod.clone(),
            is_up: true,
            probed: None,
            stopping: None,
        };
        self.pods.insert(key, running);
        self.write_hosts()?;
        let persistent = started.volumes.iter().map(|(name, volume)| (name.clone(), self.volume(volume))).collect();
        let volumes = pod::make_volumes(&spec, &persistent, &folder, &self.agent)?;
        pod::fill_secrets(&self.server, &started.pod.namespace().unwrap_or_default(), &spec, &folder)?;
        let address = self.address_of(&pod_name).unwrap_or_default();
        let arguments = self.run_arguments(&pod_name, &spec, &container, &address, &volumes)?;
        self.engine.run(arguments).map(drop).with_context(|| format!("cannot start the container of {container}"))
    }

    fn run_arguments(
        &self,
        pod: &str,
        spec: &Value,
        container: &str,
        address: &str,
        volumes: &BTreeMap<String, PathBuf>,
    ) -> Result<Vec<String>> {
        let hosts = format!("{}:/etc/hosts", self.hosts_file().display());
        let label = format!("{LABEL}={}", self.run);
        let fixed = ["run", "--detach", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"];
        let named =
            ["--name", container, "--label", &label, "--network", &self.run, "--ip", address, "--hostname", pod];
        let limits = ["--pids-limit", PROCESSES, "--volume", &hosts];
        let all = fixed.iter().chain(self.engine.own_run_options()).chain(&named).chain(&limits);
        let mut arguments: Vec<String> = all.map(|&argument| argument.to_owned()).collect();
        arguments.extend(pod::arguments(spec, address, volumes, &self.image)?);
        Ok(arguments)
    }

    fn write_hosts(&mut self) -> Result<()> {
        let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n".to_owned();
        for ((_, name), running) in &self.pods {
            writeln!(text, "{} {} {name}", running.address, running.hostname)?;
        }
        if text == self.hosts {
            return Ok(());
        }
        // In place: containers have the file mounted, not its name.
        let path = self.hosts_file();
        let mut file = fs::File::options().write(true).create(true).truncate(false).open(&path)?;
        file.rewind()?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        self.hosts = text;
        Ok(())
    }

    /// Keeps the end of a container and its log, and removes it.
    fn remove(&mut self, key: &Key) -> Result<()> {
        let Some(running) = self.pods.remove(key) else { return Ok(()) };
        self.save_log(&running.container);
        self.engine.remove(&[&running.container])?;
        drop(fs::remove_dir_all(self.places.memory.join("pods").join(&running.uid)));
        self.write_hosts()
    }

    /// Appends what a container has printed to the log folder.
    fn save_log(&self, container: &str) {
        let path = self.places.logs.join(format!("{container}.log"));
        if let Ok(file) = fs::File::create(path)
            && let Ok(other) = file.try_clone()
        {
            drop(self.engine.command(["logs", container]).stdout(file).stderr(other).status());
        }
    }

    /// Saves the logs of all containers that exist.
    pub fn save_logs(&self) {
        self.pods.values().for_each(|running| self.save_log(&running.container));
    }

    fn ask_to_stop(&mut self, pod: &Pod) -> Result<bool> {
        let key = (pod.namespace().unwrap_or_default(), pod.name_any());
        let Some(running) = self.pods.get_mut(&key) else { return Ok(true) };
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30).max(0);
        match &mut running.stopping {
            None => {
                let child = self.engine.command(["stop", "--time", &grace.to_string(), &running.container]);
                let mut child = child;
                let child = child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?;
                running.stopping = Some((Instant::now(), child));
                Ok(false)
            }
            Some((since, child)) => {
                if child.try_wait()?.is_none() {
                    return Ok(false);
                }
                let seconds = since.elapsed().as_secs_f64();
                let container = running.container.clone();
                let code = self.engine.run(["inspect", "--format", "{{.State.ExitCode}}", &container])?;
                self.ends.push((key.1.clone(), seconds, code.trim().parse().unwrap_or(-1)));
                Ok(true)
            }
        }
    }
}

impl Workload for Machine {
    fn started(&mut self, started: &Started) {
        let outcome = self.start(started);
        self.note(outcome);
    }

    fn ready(&mut self, pod: &Pod) -> bool {
        let key = (pod.namespace().unwrap_or_default(), pod.name_any());
        let Some(running) = self.pods.get_mut(&key) else { return false };
        if !running.is_up || running.stopping.is_some() {
            return false;
        }
        match running.probed {
            Some((at, ready)) if at.elapsed() < LOOK => ready,
            _ => {
                let ready = self.probe.is_ready(&running.address);
                running.probed = Some((Instant::now(), ready));
                ready
            }
        }
    }

    fn finished(&mut self, pod: &Pod) -> Option<i32> {
        let key = (pod.namespace().unwrap_or_default(), pod.name_any());
        let running = self.pods.get(&key)?;
        if running.is_up || is_restarted(pod) {
            return None;
        }
        let code = self.engine.run(["inspect", "--format", "{{.State.ExitCode}}", &running.container]).ok()?;
        code.trim().parse().ok()
    }

    fn address(&mut self, pod: &Pod) -> Option<String> {
        if let Some(wanted) = self.wanted_addresses.remove(&pod.name_any()) {
            return Some(wanted);
        }
        self.addresses += 1;
        // The first ones are the engine's gateway.
        let number = self.addresses + 9;
        Some(format!("{}.{}.{}", self.subnet, number / 250, number % 250 + 1))
    }

    fn stop(&mut self, pod: &Pod) -> bool {
        let outcome = self.ask_to_stop(pod);
        self.note(outcome).unwrap_or(true)
    }

    fn stopped(&mut self, namespace: &str, pod: &str) {
        let key = (namespace.to_owned(), pod.to_owned());
        let uid = self.pods.get(&key).map(|running| running.uid.clone());
        // Another pod may have its name by now.
        let present = self.server.get::<Pod>(namespace, pod).filter(|pod| pod.uid() == uid);
        let is_gone = present.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
        if is_gone {
            let outcome = self.remove(&key);
            self.note(outcome);
        } else if let Some(running) = self.pods.get_mut(&key) {
            // Its containers start again in the same pod.
            running.is_up = false;
        }
    }

    fn volume_deleted(&mut self, volume: &str) {
        drop(fs::remove_dir_all(self.volume(volume)));
    }

    fn step(&mut self) -> bool {
        let pods: Vec<(Pod, String)> = self.pods.values().map(|one| (one.pod.clone(), one.uid.clone())).collect();
        for (pod, uid) in pods {
            let folder = self.places.memory.join("pods").join(uid);
            let outcome = serde_json::to_value(&pod.spec)
                .map_err(anyhow::Error::from)
                .and_then(|spec| pod::fill_secrets(&self.server, &pod.namespace().unwrap_or_default(), &spec, &folder));
            self.note(outcome);
        }
        false
    }
}

/// Removes every container and network of a run.
pub fn remove_all(engine: &Engine, run: &str) -> Result<()> {
    let filter = format!("label={LABEL}={run}");
    let containers = engine.run(["ps", "--all", "--quiet", "--filter", &filter])?;
    let containers: Vec<&str> = containers.split_whitespace().collect();
    if !containers.is_empty() {
        engine.run(["kill"].iter().chain(&containers)).ok();
        engine.remove(&containers)?;
    }
    // A run that could not begin has none.
    if engine.run(["network", "inspect", run]).is_ok() {
        engine.run(["network", "rm", run])?;
    }
    Ok(())
}

/// Whether the kubelet starts the pod's containers again when they end.
fn is_restarted(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) != Some("Never")
}

/// The name under which a pod is found in DNS.
fn hostname(spec: &Value, (namespace, name): &Key) -> String {
    match (spec["hostname"].as_str(), spec["subdomain"].as_str()) {
        (Some(host), Some(service)) => format!("{host}.{service}.{namespace}.svc.{}", crate::world::DOMAIN),
        _ => name.clone(),
    }
}
