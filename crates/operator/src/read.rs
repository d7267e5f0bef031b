//! The first stage of a pass: what is observed of one Database becomes a snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use backlot_api::{Database, DatabaseClass};
use backlot_core::snapshot::{Answers, Objects, OperatorFacts, Snapshot, belongs_to};
use backlot_core::{class, names};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;

use crate::agents::{Access, Agents};
use crate::cache::{Cache, Grouping, Key};
use crate::connection::Identity;
use crate::pki;

/// Every cache of the operator.
#[derive(Debug, Clone)]
pub struct Caches {
    /// Databases.
    pub databases: Arc<Cache<Database>>,
    /// Classes.
    pub classes: Arc<Cache<DatabaseClass>>,
    /// Pods.
    pub pods: Arc<Cache<Pod>>,
    /// Claims.
    pub claims: Arc<Cache<PersistentVolumeClaim>>,
    /// Volumes of the whole cluster, without all but their policy.
    pub volumes: Arc<Cache<PersistentVolume>>,
    /// Secrets of Backlot, never others.
    pub secrets: Arc<Cache<Secret>>,
    /// Services.
    pub services: Arc<Cache<Service>>,
    /// Endpoint slices.
    pub slices: Arc<Cache<EndpointSlice>>,
    /// Disruption budgets.
    pub budgets: Arc<Cache<PodDisruptionBudget>>,
}

impl Default for Caches {
    fn default() -> Self {
        Self {
            databases: Cache::new(Grouping::Own),
            classes: Cache::new(Grouping::Own),
            pods: Cache::new(Grouping::Database),
            claims: Cache::new(Grouping::Database),
            volumes: Cache::new(Grouping::Own),
            secrets: Cache::new(Grouping::Database),
            services: Cache::new(Grouping::Database),
            slices: Cache::new(Grouping::Database),
            budgets: Cache::new(Grouping::Database),
        }
    }
}

impl Caches {
    /// Whether every first list has arrived; nothing is decided before.
    pub fn are_ready(&self) -> bool {
        self.databases.is_ready()
            && self.classes.is_ready()
            && self.pods.is_ready()
            && self.claims.is_ready()
            && self.volumes.is_ready()
            && self.secrets.is_ready()
            && self.services.is_ready()
            && self.slices.is_ready()
            && self.budgets.is_ready()
    }

    /// The class that a Database names.
    pub fn class_of(&self, database: &Database) -> Option<Arc<DatabaseClass>> {
        self.classes.get(&Key { namespace: String::new(), name: database.spec.class.clone() })
    }

    fn objects(&self, key: &Key) -> Objects {
        fn owned<K: kube::Resource + Clone>(cache: &Cache<K>, key: &Key) -> Vec<K> {
            cache.group(key).into_iter().map(|object| (*object).clone()).collect()
        }
        let secrets = owned(&self.secrets, key);
        let secret = |name: String| secrets.iter().find(|secret| secret.name_any() == name).cloned();
        let claims = owned(&self.claims, key);
        let bound = claims.iter().filter_map(|claim| claim.spec.as_ref()?.volume_name.clone());
        let volumes = bound.filter_map(|name| {
            let volume = self.volumes.get(&Key { namespace: String::new(), name: name.clone() })?;
            Some((name, (*volume).clone()))
        });
        Objects {
            secret: secret(names::cluster_secret(&key.name)),
            binding: secret(names::binding_secret(&key.name)),
            services: owned(&self.services, key),
            slices: owned(&self.slices, key),
            budgets: owned(&self.budgets, key),
            pods: owned(&self.pods, key),
            volumes: volumes.collect(),
            claims,
        }
    }

    /// The snapshot of one Database; `None` when it does not exist. Also points the agents' watches at its members.
    pub fn snapshot<A: Agents>(&self, key: &Key, agents: &A, operator: OperatorFacts) -> Option<Snapshot> {
        let database = (*self.databases.get(key)?).clone();
        let objects = self.objects(key);
        if let Some(access) = access(&objects) {
            agents.follow(key, &access);
        }
        let reports = objects.pods.iter().map(|pod| (pod.name_any(), agents.observe(key, &pod.name_any())));
        let class = self.class_of(&database);
        Some(Snapshot {
            agents: reports.collect::<BTreeMap<_, _>>(),
            image: class::image_of(&database, class.as_deref()),
            running: class::running_image(&database, class.as_deref()),
            database,
            objects,
            answers: Answers::default(),
            operator,
        })
    }
}

/// How to reach the members, once the Secret exists. Only pods of the Secret's own cluster are members.
fn access(objects: &Objects) -> Option<Access> {
    let secret = objects.secret.as_ref()?;
    let cluster_uid = secret.labels().get(backlot_api::labels::CLUSTER_UID)?.clone();
    let data = secret.data.as_ref()?;
    let entry = |key: &str| data.get(key).map(|value| value.0.as_slice());
    let identity = Identity::new(entry(pki::CA_CERTIFICATE)?, entry("operator.crt")?, entry("operator.key")?);
    let identity =
        identity.inspect_err(|error| tracing::warn!(secret = secret.name_any(), %error, "unreadable keys")).ok()?;
    let members = objects
        .pods
        .iter()
        .filter(|pod| belongs_to(*pod, &cluster_uid))
        .filter_map(|pod| Some((pod.name_any(), pod.status.as_ref()?.pod_ip.clone()?)))
        .collect();
    // Only a new CA or operator certificate changes the identity; entries that members add do not.
    let secret_version = entry("operator.crt").map(|pem| String::from_utf8_lossy(pem).into_owned())?;
    Some(Access { cluster_uid, secret_version, identity, members })
}
