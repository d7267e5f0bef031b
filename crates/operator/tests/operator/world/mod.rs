//! A world for the operator: an API server, the controllers of a cluster and members in memory around the operator's own code.
//!
//! Invariant: deterministic. One step is: caches are filled, the operator makes a pass over each Database, the cluster and its
//! members take one step, time passes. The laws are checked after each.

mod agents;
pub mod laws;
mod listing;
mod summary;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use backlot_api::database_class::InspectedVersion;
use backlot_api::{Database, DatabaseClass};
use backlot_operator::cache::Key;
use backlot_operator::database::{self, Operator};
use backlot_operator::read::Caches;
use backlot_operator::routes;
use backlot_standard::manifest::Elections;
use backlot_testkit::api_server::{ApiServer, Connection};
use backlot_testkit::fake_agent::{FakeImage, FakeMembers};
use backlot_testkit::simulated::Cluster;
use jiff::SignedDuration;
use kube::CustomResourceExt;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use agents::MemoryAgents;
pub use listing::Listing;

/// Namespace of the tests' Databases.
pub const NAMESPACE: &str = "default";
/// Name of the tests' Database.
pub const NAME: &str = "orders";
/// Time between two steps: longer than the longest pause before a failed operation is asked again.
const STEP: Duration = Duration::from_secs(100);
/// Steps without a change after which a world has settled: with caches that are behind, a refused write and a repeated
/// question come before the next change.
const QUIET_STEPS: usize = 2;
const QUIET_STEPS_BEHIND: usize = 5;
/// Steps in which a world must settle.
const MOST_STEPS: usize = 120;

/// An object from JSON.
pub fn from<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// A Database of the fake type; `spec` is merged over `{"class": "fake"}`.
pub fn database(name: &str, spec: Value) -> Database {
    let mut body = json!({"class": "fake"});
    let Value::Object(spec) = spec else { panic!("a spec is an object") };
    body.as_object_mut().unwrap().extend(spec);
    from(json!({
        "apiVersion": "backlot.dev/v1alpha1",
        "kind": "Database",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": body,
    }))
}

/// Everything around one operator process, and that process.
pub struct World {
    pub server: ApiServer,
    pub cluster: Cluster<FakeMembers>,
    pub members: FakeMembers,
    pub connection: Connection,
    pub operator: Operator<MemoryAgents>,
    pub agents: MemoryAgents,
    pub epoch: u64,
    /// The operator sees the API server's objects as they were one step ago.
    pub is_behind: bool,
    /// Joined members that may be down at the same time.
    pub most_down: usize,
    /// Times that the operator died.
    pub crashes: u32,
    /// What the last passes said, by Database.
    pub errors: Vec<(Key, String)>,
    /// The objects at a revision: as they are, and as the operator saw them last.
    newest: (u64, Arc<Listing>),
    seen: Arc<Listing>,
    known: BTreeSet<Key>,
}

fn operator(connection: &Connection, agents: &MemoryAgents) -> Operator<MemoryAgents> {
    Operator::new(
        connection.client(),
        Caches::default(),
        agents.clone(),
        "registry.example/agent:1".to_owned(),
        "cluster.local".to_owned(),
    )
}

impl World {
    /// An empty world with an inspected class `fake`.
    pub fn new(elections: Elections) -> Self {
        let server = ApiServer::new();
        server.define(&Database::crd()).unwrap();
        server.define(&DatabaseClass::crd()).unwrap();
        let image = FakeImage::new(elections).unwrap();
        make_class(&server, &image);
        let members = FakeMembers::new(image);
        let cluster = Cluster::new(&server, members.clone()).unwrap();
        let connection = server.connect();
        let agents = MemoryAgents::new(&members);
        let operator = operator(&connection, &agents);
        let seen = Arc::new(Listing::of(&server));
        Self {
            newest: (server.revision(), Arc::clone(&seen)),
            seen,
            known: BTreeSet::new(),
            server,
            cluster,
            members,
            connection,
            operator,
            agents,
            epoch: 1,
            is_behind: false,
            most_down: 1,
            crashes: 0,
            errors: vec![],
        }
    }

    /// A world with a Database that is ready and holds a client's write `before=1`.
    pub async fn with_database(elections: Elections, spec: Value) -> Self {
        let mut world = Self::new(elections);
        world.server.create(&database(NAME, spec)).unwrap();
        world.settle().await;
        world.must_be_ready();
        world.members.write(&world.cluster_uid(), "before", "1").unwrap();
        world
    }

    /// The Database.
    pub fn database(&self) -> Database {
        self.server.get(NAMESPACE, NAME).unwrap()
    }

    /// Identity of the Database's cluster.
    pub fn cluster_uid(&self) -> String {
        self.database().status.unwrap().cluster_uid.unwrap()
    }

    /// A user edits the Database.
    pub fn edit(&self, change: impl FnOnce(&mut Database)) {
        self.server.edit(NAMESPACE, NAME, change).unwrap().unwrap();
    }

    /// The Database's condition: `(status, reason, message)`.
    pub fn condition(&self, name: &str, kind: &str) -> (String, String, String) {
        let database: Database = self.server.get(NAMESPACE, name).unwrap();
        let conditions = database.status.map(|status| status.conditions).unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition.type_ == kind);
        found.map(|found| (found.status, found.reason, found.message)).unwrap_or_default()
    }

    /// Fails unless the Database is ready.
    pub fn must_be_ready(&self) {
        let ready = self.condition(NAME, "Ready");
        assert_eq!(ready.0, "True", "{ready:?}; the last passes said {:?}", self.errors);
    }

    /// A new operator process with an empty memory takes over, in the next epoch.
    pub fn restart_operator(&mut self) {
        drop(self.new_operator());
    }

    /// The same; the former process lives on and is answered.
    pub fn new_operator(&mut self) -> Operator<MemoryAgents> {
        self.epoch += 1;
        self.connection = self.server.connect();
        self.agents = MemoryAgents::new(&self.members);
        std::mem::replace(&mut self.operator, operator(&self.connection, &self.agents))
    }

    fn listing(&mut self) -> Arc<Listing> {
        if self.newest.0 != self.server.revision() {
            self.newest = (self.server.revision(), Arc::new(Listing::of(&self.server)));
        }
        Arc::clone(&self.newest.1)
    }

    /// The operator makes a pass over each Database. A dead operator is followed by another one.
    pub async fn pass(&mut self) {
        let before = self.listing();
        let seen = if self.is_behind { Arc::clone(&self.seen) } else { Arc::clone(&before) };
        self.seen = Arc::clone(&before);
        seen.fill(&self.operator.caches);
        self.known.extend(self.operator.caches.databases.keys());
        let recorded = self.connection.recorded().len();
        self.errors.clear();
        let mut is_dead = false;
        for key in self.known.clone() {
            let work = async {
                let outcome = database::pass(&self.operator, &key, self.epoch).await.map_err(|error| error.to_string());
                let routed = routes::pass(&self.operator, &key).await.map_err(|error| error.to_string());
                outcome.map(drop).and(routed.map(drop))
            };
            let outcome = tokio::select! {
                biased;
                outcome = work => Some(outcome),
                () = self.connection.crash() => None,
                () = self.agents.crash() => None,
            };
            match outcome {
                Some(Ok(())) => {}
                Some(Err(error)) => self.errors.push((key, error)),
                None => is_dead = true,
            }
            if is_dead {
                break;
            }
        }
        let writes = self.connection.recorded().split_off(recorded);
        laws::check_writes(&before, &self.listing(), &writes, &self.members);
        if is_dead {
            self.crashes += 1;
            self.restart_operator();
        }
    }

    /// One step; whether anything changed.
    pub async fn step(&mut self) -> bool {
        let (revision, deeds) = (self.server.revision(), self.members.deeds().len());
        self.pass().await;
        let moved = self.cluster.step().unwrap();
        laws::check_members(&self.listing(), &self.members, self.most_down);
        self.server.advance(SignedDuration::try_from(STEP).unwrap());
        tokio::time::advance(STEP).await;
        moved || self.server.revision() != revision || self.members.deeds().len() != deeds
    }

    /// Takes this many steps.
    pub async fn steps(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step().await;
        }
    }

    /// Steps until nothing changes any more; answers the number of steps.
    pub async fn settle(&mut self) -> usize {
        let mut quiet = 0;
        for step in 0..MOST_STEPS {
            // A pass that failed is made again.
            quiet = if self.step().await || !self.errors.is_empty() { 0 } else { quiet + 1 };
            if quiet == if self.is_behind { QUIET_STEPS_BEHIND } else { QUIET_STEPS } {
                return step + 1 - quiet;
            }
        }
        panic!("not settled after {MOST_STEPS} steps: {:?} {:?}", self.errors, self.condition(NAME, "Ready"));
    }
}

/// The class of the fake image, as if it was inspected.
fn make_class(server: &ApiServer, image: &FakeImage) {
    let reference = "registry.example/fake:1";
    let class: DatabaseClass = from(json!({
        "apiVersion": "backlot.dev/v1alpha1",
        "kind": "DatabaseClass",
        "metadata": {"name": "fake"},
        "spec": {"versions": [{"version": "1", "image": reference}]},
    }));
    server.create(&class).unwrap();
    server
        .edit_status::<DatabaseClass>("", "fake", |class| {
            let status = class.status.get_or_insert_default();
            status.versions = vec![InspectedVersion {
                version: "1".to_owned(),
                image: reference.to_owned(),
                pinned_image: Some(format!("registry.example/fake@sha256:{}", "0".repeat(64))),
                manifest: Some(serde_json::to_value(&image.manifest).unwrap()),
                verbs: image.verbs.iter().map(|verb| verb.name().to_owned()).collect(),
                error: None,
            }];
        })
        .unwrap()
        .unwrap();
}
