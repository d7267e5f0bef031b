//! Members' agents as the operator sees them: one held watch to each, calls when there is something to say.
//!
//! Invariant: a member whose watch is not open now is [`Observed::Unknown`]; what it said before is not passed on as present.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backlot_core::snapshot::Observed;
use backlot_standard::layout::{self, names};
use backlot_standard::operation::{OperationReport, OperationRequest};
use backlot_standard::status::MemberStatus;
use backlot_standard::view::SignedView;
use hyper::Method;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::cache::Key;
use crate::connection::{CallError, Identity, Peer};

/// First pause after a watch broke; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause between two tries to watch an agent.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How to reach the members of one cluster.
#[derive(Clone, Debug)]
pub struct Access {
    /// Identity of the cluster, part of every name.
    pub cluster_uid: String,
    /// resourceVersion of the Secret that `identity` was made from.
    pub secret_version: String,
    /// TLS identity.
    pub identity: Identity,
    /// Members and their present addresses.
    pub members: Vec<(String, String)>,
}

/// The operator's side of the agents' interface; tests put members in memory behind it.
pub trait Agents: Send + Sync + 'static {
    /// Watches these members of a Database, and no others of it.
    fn follow(&self, key: &Key, access: &Access);
    /// Stops watching a Database's members.
    fn forget(&self, key: &Key);
    /// The last report over the watch that is open now.
    fn observe(&self, key: &Key, member: &str) -> Observed<MemberStatus>;
    /// Gives a member a view.
    fn put_view(
        &self,
        key: &Key,
        member: &str,
        view: &SignedView,
    ) -> impl Future<Output = Result<(), CallError>> + Send;
    /// Asks a member for an operation.
    fn operate(
        &self,
        key: &Key,
        member: &str,
        request: &OperationRequest,
    ) -> impl Future<Output = Result<OperationReport, CallError>> + Send;
}

type News = Arc<dyn Fn(&Key) + Send + Sync>;

/// Agents over the network.
pub struct NetworkAgents {
    clusters: Mutex<HashMap<Key, Cluster>>,
    news: News,
}

struct Cluster {
    secret_version: String,
    members: HashMap<String, Member>,
}

struct Member {
    peer: Peer,
    status: Arc<Mutex<Observed<MemberStatus>>>,
    task: JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl NetworkAgents {
    /// `news` is called whenever a member of a Database reports something new or is lost.
    pub fn new(news: impl Fn(&Key) + Send + Sync + 'static) -> Self {
        Self { clusters: Mutex::default(), news: Arc::new(news) }
    }

    /// Number of members watched.
    pub fn watched(&self) -> usize {
        self.lock().values().map(|cluster| cluster.members.len()).sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Cluster>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer(&self, key: &Key, member: &str) -> Result<Peer, CallError> {
        let clusters = self.lock();
        let known = clusters.get(key).and_then(|cluster| cluster.members.get(member));
        known
            .map(|member| member.peer.clone())
            .ok_or_else(|| CallError::Connect { address: member.to_owned(), why: "it has no address".to_owned() })
    }
}

impl Agents for NetworkAgents {
    fn follow(&self, key: &Key, access: &Access) {
        let mut clusters = self.lock();
        let cluster = clusters
            .entry(key.clone())
            .or_insert_with(|| Cluster { secret_version: access.secret_version.clone(), members: HashMap::new() });
        let is_same_identity = cluster.secret_version == access.secret_version;
        cluster.secret_version.clone_from(&access.secret_version);
        cluster.members.retain(|name, known| {
            access
                .members
                .iter()
                .any(|(member, address)| member == name && is_same_identity && endpoint(address) == known.peer.address)
        });
        for (member, address) in &access.members {
            if cluster.members.contains_key(member) {
                continue;
            }
            let peer = Peer {
                address: endpoint(address),
                name: names::member(member, &access.cluster_uid),
                identity: access.identity.clone(),
            };
            let status = Arc::new(Mutex::new(Observed::Unknown("not connected yet".to_owned())));
            let task = tokio::spawn(watch(peer.clone(), key.clone(), Arc::clone(&status), Arc::clone(&self.news)));
            cluster.members.insert(member.clone(), Member { peer, status, task });
        }
    }

    fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn observe(&self, key: &Key, member: &str) -> Observed<MemberStatus> {
        let clusters = self.lock();
        clusters
            .get(key)
            .and_then(|cluster| cluster.members.get(member))
            .map_or(Observed::Absent, |member| member.status.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn put_view(&self, key: &Key, member: &str, view: &SignedView) -> Result<(), CallError> {
        let body = serde_json::to_vec(view).unwrap_or_default();
        self.peer(key, member)?.call::<Value>(Method::PUT, "/v1/view", body).await.map(|_| ())
    }

    async fn operate(&self, key: &Key, member: &str, request: &OperationRequest) -> Result<OperationReport, CallError> {
        let body = serde_json::to_vec(request).unwrap_or_default();
        self.peer(key, member)?.call(Method::POST, "/v1/operations", body).await
    }
}

/// `address:7443`, bracketed for IPv6.
pub fn endpoint(address: &str) -> String {
    let port = layout::AGENT_PORT;
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

async fn watch(peer: Peer, key: Key, status: Arc<Mutex<Observed<MemberStatus>>>, news: News) {
    let put = |value| {
        let mut present = status.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *present != value;
        *present = value;
        drop(present);
        if is_new {
            news(&key);
        }
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let error = peer
            .watch("/v1/watch", |report: MemberStatus| {
                pause = FIRST_PAUSE;
                put(Observed::Known(report));
            })
            .await;
        tracing::debug!(database = %key, peer = %peer.name, %error, "watch ended");
        put(Observed::Unknown(error.to_string()));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
