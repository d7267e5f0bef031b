//! Objects as they should be: pure functions of the wanted state, written the way a person would write them in YAML.

mod binding;
mod pod;
mod secret;
mod service;
mod volume;

use serde_json::{Value, json};

use crate::validate::Wanted;

pub use binding::binding;
pub use pod::{inspection_pod, pod};
pub use secret::{SecretOrder, cluster_secret, secret_order};
pub(crate) use service::has_leader;
pub use service::{budget, services, slice};
pub use volume::claim;

/// Kinds of objects that the operator writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Pod.
    Pod,
    /// `PersistentVolumeClaim`.
    Claim,
    /// `PersistentVolume`, patched only.
    Volume,
    /// Secret.
    Secret,
    /// Service.
    Service,
    /// EndpointSlice.
    Slice,
    /// `PodDisruptionBudget`.
    Budget,
    /// Database, metadata only.
    Database,
}

impl Kind {
    /// `(apiVersion, kind, plural, namespaced)`.
    pub fn api(self) -> (&'static str, &'static str, &'static str, bool) {
        match self {
            Self::Pod => ("v1", "Pod", "pods", true),
            Self::Claim => ("v1", "PersistentVolumeClaim", "persistentvolumeclaims", true),
            Self::Volume => ("v1", "PersistentVolume", "persistentvolumes", false),
            Self::Secret => ("v1", "Secret", "secrets", true),
            Self::Service => ("v1", "Service", "services", true),
            Self::Slice => ("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", true),
            Self::Budget => ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", true),
            Self::Database => ("backlot.dev/v1alpha1", "Database", "databases", true),
        }
    }
}

/// An object as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Kind.
    pub kind: Kind,
    /// Name.
    pub name: String,
    /// The whole object.
    pub body: Value,
}

impl Object {
    fn new(kind: Kind, name: impl Into<String>, mut body: Value) -> Self {
        let name = name.into();
        let (api_version, kind_name, _, _) = kind.api();
        body["apiVersion"] = json!(api_version);
        body["kind"] = json!(kind_name);
        body["metadata"]["name"] = json!(name);
        Self { kind, name, body }
    }

    /// The same with the UID of the live object, so that an apply can never land on another one.
    #[must_use]
    pub fn at(mut self, live: &Value) -> Self {
        self.body["metadata"]["uid"] = live["metadata"]["uid"].clone();
        self
    }
}

/// Whether every field of `wanted` is in `live` with the same value; lists must have the same length. Fields that only
/// `live` has are defaults or belong to others.
pub fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| live.get(key).is_some_and(|live| covers(live, value)))
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| covers(live, wanted))
        }
        (live, wanted) => live == wanted,
    }
}

fn labels(wanted: &Wanted) -> Value {
    use backlot_api::labels::{CLASS, CLUSTER_UID, DATABASE, INSTANCE, MANAGED_BY, MANAGED_BY_VALUE, NAME};
    json!({
        MANAGED_BY: MANAGED_BY_VALUE,
        NAME: wanted.manifest.engine,
        INSTANCE: wanted.name,
        DATABASE: wanted.name,
        CLASS: wanted.class,
        CLUSTER_UID: wanted.cluster_uid,
    })
}

fn member_labels(wanted: &Wanted, component: &str, shard: u32, ordinal: u32) -> Value {
    use backlot_api::labels::{COMPONENT, ORDINAL, SHARD};
    let mut labels = labels(wanted);
    labels[COMPONENT] = json!(component);
    labels[SHARD] = json!(shard.to_string());
    labels[ORDINAL] = json!(ordinal.to_string());
    labels
}

fn owner(wanted: &Wanted) -> Value {
    json!([{
        "apiVersion": "backlot.dev/v1alpha1",
        "kind": "Database",
        "name": wanted.name,
        "uid": wanted.owner_uid,
        "controller": true,
        "blockOwnerDeletion": false,
    }])
}

fn meta(wanted: &Wanted) -> Value {
    json!({"namespace": wanted.namespace, "labels": labels(wanted), "ownerReferences": owner(wanted)})
}
