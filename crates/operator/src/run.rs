//! Puts the parts together: caches, queues, workers, leadership, server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backlot_api::{DatabaseClass, labels};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::Api;
use kube::client::ClientBuilder;
use kube::runtime::watcher::Config;
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::agents::NetworkAgents;
use crate::cache::{self, Cache, Key};
use crate::class::{self, Inspector};
use crate::database::{self, Operator};
use crate::leadership::{self, Candidate};
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::read::Caches;
use crate::routes;
use crate::server;
use crate::settings::Settings;

/// The queues that news go to.
#[derive(Clone, Default)]
struct Queues {
    databases: Arc<Queue>,
    classes: Arc<Queue>,
    routes: Arc<Queue>,
}

impl Queues {
    fn touch(&self, key: &Key) {
        self.databases.touch(key.clone());
        self.routes.touch(key.clone());
    }
}

/// Runs the operator until it is told to stop, against the cluster that it runs in or that the kubeconfig names.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::default());
    let counted = Arc::clone(&metrics);
    let count = tower::util::MapRequestLayer::new(move |request: http::Request<kube::client::Body>| {
        counted.count_request(&request);
        request
    });
    let client = ClientBuilder::try_from(kube::Config::infer().await?)?.with_layer(&count).build();
    let mut terminate = signal(SignalKind::terminate())?;
    run_with(client, settings, metrics, async move {
        terminate.recv().await;
    })
    .await
}

/// Runs the operator with `client` until `terminated`.
pub async fn run_with(
    client: Client,
    settings: Settings,
    metrics: Arc<Metrics>,
    terminated: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let caches = Caches::default();
    let queues = Queues::default();
    let news = queues.clone();
    let agents = NetworkAgents::new(move |key| news.touch(key));
    let operator = Arc::new(Operator::new(
        client.clone(),
        caches.clone(),
        agents,
        settings.agent_image.clone(),
        settings.cluster_domain.clone(),
    ));
    let candidate = Candidate {
        identity: format!("{}-{:08x}", settings.pod_name, rand::random::<u32>()),
        address: server_address(&settings),
    };
    let observed = server::Observed {
        metrics: Arc::clone(&metrics),
        caches: caches.clone(),
        identity: candidate.identity.clone(),
    };
    let listener = tokio::net::TcpListener::bind(settings.listen).await?;
    tokio::spawn(async move { axum::serve(listener, server::app(observed)).await });
    watch_everything(&client, settings.namespace.as_deref(), &caches, &queues);

    let (epoch_sender, epoch) = watch::channel(None);
    let leases: Api<Lease> = Api::namespaced(client.clone(), &settings.operator_namespace);
    while !caches.are_ready() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::spawn(leadership::run(leases.clone(), candidate.clone(), epoch_sender));
    for _ in 0..settings.workers {
        tokio::spawn(database_worker(Arc::clone(&operator), queues.clone(), epoch.clone(), Arc::clone(&metrics)));
        tokio::spawn(routes_worker(Arc::clone(&operator), queues.clone(), Arc::clone(&metrics)));
    }
    let inspector =
        Inspector { client, namespace: settings.operator_namespace.clone(), agent_image: settings.agent_image.clone() };
    tokio::spawn(class_worker(inspector, caches.clone(), queues.clone(), epoch.clone(), Arc::clone(&metrics)));
    tokio::spawn(keep_gauges(Arc::clone(&operator), epoch, metrics));

    terminated.await;
    tracing::info!("stops; databases go on");
    leadership::release(&leases, &candidate).await;
    Ok(())
}

fn server_address(settings: &Settings) -> String {
    let port = settings.listen.port();
    let ip = &settings.pod_ip;
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

fn watch_everything(client: &Client, namespace: Option<&str>, caches: &Caches, queues: &Queues) {
    let ours = Config::default().labels(&format!("{}={}", labels::MANAGED_BY, labels::MANAGED_BY_VALUE));
    watch_kind(client, namespace, Config::default(), &caches.databases, |_| {}, queues);
    watch_kind(client, namespace, ours.clone(), &caches.pods, slim_pod, queues);
    watch_kind(client, namespace, ours.clone(), &caches.claims, |_| {}, queues);
    watch_kind(client, namespace, ours.clone(), &caches.secrets, |_| {}, queues);
    watch_kind(client, namespace, ours.clone(), &caches.services, |_| {}, queues);
    watch_kind(client, namespace, ours.clone(), &caches.slices, |_| {}, queues);
    watch_kind(client, namespace, ours, &caches.budgets, |_| {}, queues);
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    tokio::spawn(cache::keep(volumes, Config::default(), Arc::clone(&caches.volumes), slim_volume, |_| {}));
    let classes: Api<DatabaseClass> = Api::all(client.clone());
    let (queue, databases, own) = (queues.clone(), Arc::clone(&caches.databases), Arc::clone(&caches.classes));
    tokio::spawn(cache::keep(
        classes,
        Config::default(),
        own,
        |_| {},
        move |key: Key| {
            for database in databases.all().iter().filter(|database| database.spec.class == key.name) {
                queue.touch(&Key { namespace: database.namespace().unwrap_or_default(), name: database.name_any() });
            }
            queue.classes.touch(key);
        },
    ));
}

fn watch_kind<K>(
    client: &Client,
    namespace: Option<&str>,
    config: Config,
    cache: &Arc<Cache<K>>,
    slim: fn(&mut K),
    queues: &Queues,
) where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let api: Api<K> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let queues = queues.clone();
    tokio::spawn(cache::keep(api, config, Arc::clone(cache), slim, move |key| queues.touch(&key)));
}

/// Of a pod, decisions read metadata and status only.
fn slim_pod(pod: &mut k8s_openapi::api::core::v1::Pod) {
    pod.spec = None;
}

/// Of a volume, decisions read the reclaim policy and why it is so.
fn slim_volume(volume: &mut PersistentVolume) {
    if let Some(annotations) = volume.metadata.annotations.as_mut() {
        annotations.retain(|key, _| key == labels::RETAINED);
    }
    volume.metadata.labels = None;
    volume.status = None;
    if let Some(spec) = volume.spec.take() {
        let policy = spec.persistent_volume_reclaim_policy;
        volume.spec = Some(k8s_openapi::api::core::v1::PersistentVolumeSpec {
            persistent_volume_reclaim_policy: policy,
            ..Default::default()
        });
    }
}

async fn database_worker(
    operator: Arc<Operator<NetworkAgents>>,
    queues: Queues,
    epoch: watch::Receiver<Option<u64>>,
    metrics: Arc<Metrics>,
) {
    loop {
        let key = queues.databases.next().await;
        let Some(number) = *epoch.borrow() else {
            // Not the leader: routes alone are kept. The key comes again when this replica may lead.
            queues.databases.done(&key, Ok(Some(Duration::from_secs(2))));
            continue;
        };
        let start = Instant::now();
        let outcome = database::pass(&operator, &key, number).await;
        metrics.count("database", outcome.is_ok(), start.elapsed());
        if let Err(error) = &outcome {
            tracing::info!(database = %key, %error, "pass not completed");
        }
        queues.databases.done(&key, outcome.map_err(|_| ()));
    }
}

async fn routes_worker(operator: Arc<Operator<NetworkAgents>>, queues: Queues, metrics: Arc<Metrics>) {
    loop {
        let key = queues.routes.next().await;
        let start = Instant::now();
        let outcome = routes::pass(&operator, &key).await;
        metrics.count("routes", outcome.is_ok(), start.elapsed());
        if let Err(error) = &outcome {
            tracing::warn!(database = %key, %error, "routes not written");
        }
        queues.routes.done(&key, outcome.map_err(|_| ()));
    }
}

async fn class_worker(
    inspector: Inspector,
    caches: Caches,
    queues: Queues,
    epoch: watch::Receiver<Option<u64>>,
    metrics: Arc<Metrics>,
) {
    loop {
        let key = queues.classes.next().await;
        if epoch.borrow().is_none() {
            queues.classes.done(&key, Ok(Some(Duration::from_secs(2))));
            continue;
        }
        let Some(class) = caches.classes.get(&key) else {
            queues.classes.done(&key, Ok(None));
            continue;
        };
        let start = Instant::now();
        let outcome = class::pass(&inspector, &class).await;
        metrics.count("class", outcome.is_ok(), start.elapsed());
        if let Err(error) = &outcome {
            tracing::warn!(class = key.name, %error, "class not looked at");
        }
        queues.classes.done(&key, outcome.map_err(|_| ()));
    }
}

async fn keep_gauges(
    operator: Arc<Operator<NetworkAgents>>,
    epoch: watch::Receiver<Option<u64>>,
    metrics: Arc<Metrics>,
) {
    loop {
        metrics.epoch.set(epoch.borrow().and_then(|epoch| i64::try_from(epoch).ok()).unwrap_or(0));
        metrics.members_watched.set(i64::try_from(operator.agents.watched()).unwrap_or(i64::MAX));
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}
