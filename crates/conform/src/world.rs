//! A Kubernetes in this process around the image under test: testkit's API server and controllers, the kit's kubelet, and the
//! real operator (docs/adr/0009).
//!
//! Invariant: the operator is the one that runs in production, with nothing switched off. What it does to the containers is what
//! it would do to pods.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use backlot_api::{Database, DatabaseClass};
use backlot_operator::metrics::Metrics;
use backlot_operator::settings::Settings;
use backlot_testkit::api_server::{ApiServer, Refused};
use backlot_testkit::simulated::Cluster;
use clap::Parser as _;
use jiff::{SignedDuration, Timestamp};
use kube::CustomResourceExt as _;
use tokio::runtime::Runtime;

use crate::machine::Machine;

/// DNS domain of the cluster.
pub const DOMAIN: &str = "cluster.local";
/// Namespace of the operator's own objects.
const SYSTEM: &str = "backlot-system";
/// Namespace of the Database under test.
pub const NAMESPACE: &str = "default";
/// Pause between two steps of the cluster.
const STEP: Duration = Duration::from_millis(100);

/// The running cluster.
pub struct World {
    /// Its API server.
    pub server: ApiServer,
    cluster: Arc<Mutex<Cluster<Machine>>>,
    stop: Arc<AtomicBool>,
    stepper: Option<JoinHandle<()>>,
    runtime: Option<Runtime>,
}

impl World {
    /// Starts a cluster on `machine`, whose API server is `server`, and the operator, whose log goes to `log`.
    pub fn start(server: ApiServer, machine: Machine, log: &Path) -> Result<Self> {
        // Leases, certificates and events are compared with the real clock.
        server.advance(Timestamp::now().duration_since(server.now()));
        server.create_namespace(SYSTEM);
        let defined = [Database::crd(), DatabaseClass::crd()].iter().try_for_each(|crd| server.define(crd));
        defined.map_err(|refused| anyhow!("{refused}"))?;
        let cluster = Cluster::new(&server, machine).map_err(|refused| anyhow!("{refused}"))?;
        let cluster = Arc::new(Mutex::new(cluster));
        let stop = Arc::new(AtomicBool::new(false));
        let stepper = {
            let (cluster, stop, server) = (Arc::clone(&cluster), Arc::clone(&stop), server.clone());
            std::thread::spawn(move || step_until(&cluster, &server, &stop))
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let log = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let filter = tracing_subscriber::EnvFilter::new("info,backlot_operator=debug,kube_client=off,tower=off");
        // Another run in the same process, as in tests, keeps the first one's log.
        let _ = tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(Mutex::new(log)).try_init();
        let settings = Settings::try_parse_from([
            "backlot-operator",
            "--agent-image",
            "backlot/agent:1",
            "--listen",
            "127.0.0.1:0",
        ])?;
        let client = {
            let _inside = runtime.enter();
            server.client()
        };
        runtime.spawn(backlot_operator::run_with(
            client,
            settings,
            Arc::new(Metrics::default()),
            std::future::pending(),
        ));
        Ok(Self { server, cluster, stop, stepper: Some(stepper), runtime: Some(runtime) })
    }

    /// The cluster, which stands still meanwhile.
    pub fn cluster(&self) -> MutexGuard<'_, Cluster<Machine>> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the machine while the cluster stands still.
    pub fn machine<T>(&self, work: impl FnOnce(&mut Machine) -> T) -> T {
        work(self.cluster().workload())
    }

    /// Ends operator and cluster; containers stay.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(stepper) = self.stepper.take() {
            let _ = stepper.join();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
}

fn step_until(cluster: &Mutex<Cluster<Machine>>, server: &ApiServer, stop: &AtomicBool) {
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        {
            let mut cluster = cluster.lock().unwrap_or_else(PoisonError::into_inner);
            server.advance(SignedDuration::try_from(last.elapsed()).unwrap_or_default());
            last = Instant::now();
            for (namespace, pod) in cluster.workload().ended() {
                let restarted = cluster.restart_containers(&namespace, &pod);
                note(&mut cluster, restarted);
            }
            let stepped = cluster.step();
            note(&mut cluster, stepped.map(drop));
        }
        std::thread::sleep(STEP);
    }
}

/// The operator acts beside the controllers: an object that changed or went away meanwhile is looked at again in the next step.
fn note(cluster: &mut Cluster<Machine>, result: Result<(), Refused>) {
    if let Err(refused) = result
        && !matches!(refused.status.as_u16(), 404 | 409)
    {
        cluster.workload().broken.get_or_insert_with(|| format!("the simulated cluster: {refused}"));
    }
}
