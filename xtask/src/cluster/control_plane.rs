//! The control plane: etcd, the API server, controllers, scheduler; and, beside them, DNS and the storage controllers, which need no
//! node to run on.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::certificates::{ADMINISTRATORS, Authority};
use super::cgroup::Hierarchies;
use super::kubectl::Kubectl;
use super::layout::{CONTROL_PLANE, Layout, SERVICES};
use super::process::Daemon;
use super::progress::step;
use super::run::{run, write};
use super::slots::Slot;

/// The name under which the control plane's programs run.
pub const OWNER: &str = "control-plane";

/// How the control plane is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether etcd waits for the disk.
    pub fsync: bool,
}

/// What the control plane is made of.
#[derive(Debug)]
pub struct ControlPlane {
    etcd: Daemon,
    api_server: Daemon,
    controllers: [Daemon; 2],
    dns: Daemon,
    storage: [Daemon; 3],
}

impl ControlPlane {
    /// Writes the configuration and describes the programs.
    pub fn configure(layout: &Layout, authority: &Authority, slot: Slot, options: Options) -> Result<Self> {
        Ok(Self {
            etcd: etcd(layout, options),
            api_server: api_server(layout, authority, slot.api_server().into())?,
            controllers: [controller_manager(layout, authority)?, scheduler(layout, authority)?],
            dns: dns(layout, authority)?,
            storage: storage(layout, authority)?,
        })
    }

    /// Starts what the nodes need.
    pub fn start(&self, layout: &Layout, hierarchies: &Hierarchies) -> Result<()> {
        step("etcd", || {
            self.etcd.ensure(layout, hierarchies)?;
            self.etcd.wait_for(layout, "an answer", Duration::from_mins(1), || answers(layout, 2379))
        })?;
        step("kube-apiserver", || {
            self.api_server.ensure(layout, hierarchies)?;
            let kubectl = Kubectl::new(layout);
            let ready = || kubectl.run(&["get", "--raw=/readyz", "--request-timeout=5s"]).is_ok();
            self.api_server.wait_for(layout, "readiness", Duration::from_mins(2), ready)
        })?;
        step("kube-controller-manager and kube-scheduler", || {
            self.controllers.iter().try_for_each(|daemon| daemon.ensure(layout, hierarchies).map(drop))
        })
    }

    /// Starts what makes the cluster whole: DNS and storage.
    pub fn start_addons(&self, layout: &Layout, hierarchies: &Hierarchies) -> Result<()> {
        step("CoreDNS", || {
            self.dns.ensure(layout, hierarchies)?;
            self.dns.wait_for(layout, "an answer", Duration::from_mins(1), || answers(layout, 8181))
        })?;
        step("storage: driver, provisioner and resizer", || {
            for daemon in &self.storage {
                daemon.ensure(layout, hierarchies)?;
                if daemon.name == "csi-controller" {
                    let socket = layout.directory.join("csi/controller.sock");
                    daemon.wait_for(layout, "its socket", Duration::from_secs(20), || socket.exists())?;
                }
            }
            Ok(())
        })
    }

    /// Every program, for the status.
    pub fn daemons(&self) -> Vec<&Daemon> {
        let mut all = vec![&self.etcd, &self.api_server, &self.dns];
        all.extend(&self.controllers);
        all.extend(&self.storage);
        all
    }
}

/// Whether a port of the control plane takes connections. Asked from inside, where these ports are.
fn answers(layout: &Layout, port: u16) -> bool {
    let listening = run(
        "nsenter",
        [&format!("--net=/run/netns/{}", layout.network()), "--", "ss", "-Hltn", &format!("sport = :{port}")],
    );
    listening.is_ok_and(|lines| !lines.trim().is_empty())
}

fn daemon(layout: &Layout, name: &str, program: &str, arguments: Vec<String>) -> Daemon {
    let mut command = vec![layout.program(program).display().to_string()];
    command.extend(arguments);
    Daemon {
        owner: OWNER.to_owned(),
        name: name.to_owned(),
        network: layout.network(),
        command,
        configuration: String::new(),
    }
}

fn etcd(layout: &Layout, options: Options) -> Daemon {
    let data = layout.directory.join("etcd");
    let mut arguments = vec![
        format!("--data-dir={}", data.display()),
        "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
        "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
        "--initial-cluster=default=http://127.0.0.1:2380".to_owned(),
        "--quota-backend-bytes=8589934592".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    if !options.fsync {
        arguments.push("--unsafe-no-fsync".to_owned());
    }
    daemon(layout, "etcd", "etcd", arguments)
}

fn api_server(layout: &Layout, authority: &Authority, outside: IpAddr) -> Result<Daemon> {
    let server = authority.api_server(outside)?;
    let client = authority.client("kubelet-client", "kube-apiserver", ADMINISTRATORS)?;
    let root = authority.files();
    let (signing, checking) = authority.token_keys()?;
    let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
    let arguments = vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--advertise-address={CONTROL_PLANE}"),
        "--secure-port=6443".to_owned(),
        format!("--service-cluster-ip-range={SERVICES}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        // Webhooks are called at their pods, for there is no kube-proxy here.
        "--enable-aggregator-routing=true".to_owned(),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        file("client-ca-file", &root.certificate),
        file("tls-cert-file", &server.certificate),
        file("tls-private-key-file", &server.key),
        file("kubelet-certificate-authority", &root.certificate),
        file("kubelet-client-certificate", &client.certificate),
        file("kubelet-client-key", &client.key),
        file("service-account-key-file", &checking),
        file("service-account-signing-key-file", &signing),
    ];
    Ok(daemon(layout, "kube-apiserver", "kube-apiserver", arguments))
}

/// The limits on requests are far above the defaults, which would hide how fast an operator is.
const REQUESTS: [&str; 2] = ["--kube-api-qps=300", "--kube-api-burst=600"];

fn controller_manager(layout: &Layout, authority: &Authority) -> Result<Daemon> {
    let config = authority.kubeconfig(
        "system:kube-controller-manager",
        "system:kube-controller-manager",
        CONTROL_PLANE.into(),
    )?;
    let root = authority.files();
    let mut arguments = vec![
        format!("--kubeconfig={}", config.display()),
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
        "--use-service-account-credentials=true".to_owned(),
        "--node-monitor-period=2s".to_owned(),
        "--node-monitor-grace-period=20s".to_owned(),
        format!("--service-account-private-key-file={}", authority.token_keys()?.0.display()),
        format!("--root-ca-file={}", root.certificate.display()),
        format!("--cluster-signing-cert-file={}", root.certificate.display()),
        format!("--cluster-signing-key-file={}", root.key.display()),
    ];
    arguments.extend(REQUESTS.map(String::from));
    Ok(daemon(layout, "kube-controller-manager", "kube-controller-manager", arguments))
}

fn scheduler(layout: &Layout, authority: &Authority) -> Result<Daemon> {
    let config = authority.kubeconfig("system:kube-scheduler", "system:kube-scheduler", CONTROL_PLANE.into())?;
    let mut arguments = vec![
        format!("--kubeconfig={}", config.display()),
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
    ];
    arguments.extend(REQUESTS.map(String::from));
    Ok(daemon(layout, "kube-scheduler", "kube-scheduler", arguments))
}

fn dns(layout: &Layout, authority: &Authority) -> Result<Daemon> {
    let kubeconfig = authority.kubeconfig("backlot:dns", ADMINISTRATORS, CONTROL_PLANE.into())?;
    let corefile = layout.directory.join("Corefile");
    // There is no outside, so every other name does not exist; to refuse the question instead would make clients try again.
    let content = format!(
        ".:53 {{
    bind {CONTROL_PLANE}
    errors
    health {CONTROL_PLANE}:8080
    ready {CONTROL_PLANE}:8181
    cache 5
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {}
        ttl 5
    }}
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
",
        kubeconfig.display()
    );
    write(&corefile, &content)?;
    let dns = daemon(layout, "coredns", "coredns", vec!["-conf".to_owned(), corefile.display().to_string()]);
    Ok(Daemon { configuration: content, ..dns })
}

fn storage(layout: &Layout, authority: &Authority) -> Result<[Daemon; 3]> {
    let socket = layout.directory.join("csi/controller.sock");
    let kubeconfig = authority.kubeconfig("backlot:storage", ADMINISTRATORS, CONTROL_PLANE.into())?;
    let driver = vec![format!("-directory={}", volumes(layout).display()), format!("-socket={}", socket.display())];
    let sidecar = |more: &[&str]| {
        let mut arguments = vec![
            format!("--csi-address={}", socket.display()),
            format!("--kubeconfig={}", kubeconfig.display()),
            "--kube-api-qps=100".to_owned(),
            "--kube-api-burst=200".to_owned(),
            "--retry-interval-start=200ms".to_owned(),
            "--retry-interval-max=10s".to_owned(),
        ];
        arguments.extend(more.iter().map(ToString::to_string));
        arguments
    };
    Ok([
        daemon(layout, "csi-controller", "csi", driver),
        daemon(
            layout,
            "csi-provisioner",
            "csi-provisioner",
            sidecar(&["--strict-topology=true", "--extra-create-metadata=true"]),
        ),
        daemon(layout, "csi-resizer", "csi-resizer", sidecar(&[])),
    ])
}

/// The folder of all volumes.
pub fn volumes(layout: &Layout) -> PathBuf {
    layout.directory.join("volumes")
}
