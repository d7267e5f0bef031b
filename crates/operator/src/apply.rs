//! The stage that writes. Each write is guarded: creates never overwrite, applies carry the live UID, patches and deletes the
//! UID and resourceVersion, and a delete is preceded by fresh reads of the Database and of its target.

use std::collections::BTreeMap;

use backlot_api::{Database, FIELD_MANAGER};
use backlot_core::build::{self, Kind, Object, SecretOrder};
use backlot_core::plan::{Activity, ActivityKind, Target, Write};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::cache::Key;
use crate::pki::{self, PkiError};

/// Why a write was not done.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server refused or did not answer.
    #[error("{verb} {kind:?} {name}: {source}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// Kind of the object.
        kind: Kind,
        /// Its name.
        name: String,
        /// The error.
        source: Box<kube::Error>,
    },
    /// What was decided on has changed meanwhile; the next pass decides anew.
    #[error("{kind:?} {name} has changed meanwhile")]
    Stale {
        /// Kind of the object.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// An object of this name exists and is not ours.
    #[error("{kind:?} {name} exists and does not belong to this Database. Delete it, or rename the Database")]
    NameTaken {
        /// Kind of the object.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// Keys could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// An object could not be put into words.
    #[error("object: {0}")]
    Object(#[from] serde_json::Error),
}

impl ApplyError {
    /// What a person must know of it, when deciding again may not be enough.
    pub fn trouble(&self) -> Option<Activity> {
        let reason = match self {
            Self::Stale { .. } => return None,
            Self::NameTaken { .. } => "NameTaken",
            Self::Api { source, .. } if matches!(&**source, kube::Error::Api(status) if status.code == 403) => {
                "WriteRefused"
            }
            Self::Api { .. } | Self::Pki(_) | Self::Object(_) => "WriteFailed",
        };
        Some(Activity { kind: ActivityKind::Stuck, reason, message: self.to_string() })
    }

    /// Whether simply deciding again is the remedy.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Stale { .. } => true,
            Self::Api { source, .. } => {
                !matches!(&**source, kube::Error::Api(status) if status.code == 403 || status.code == 422)
            }
            Self::NameTaken { .. } | Self::Pki(_) | Self::Object(_) => false,
        }
    }
}

/// Writes objects of one namespace.
#[derive(Clone)]
pub struct Writer {
    client: Client,
}

impl Writer {
    /// A writer.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn api(&self, namespace: &str, kind: Kind) -> Api<DynamicObject> {
        let (api_version, kind_name, plural, namespaced) = kind.api();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: api_version.to_owned(),
            kind: kind_name.to_owned(),
            plural: plural.to_owned(),
        };
        if namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &resource)
        } else {
            Api::all_with(self.client.clone(), &resource)
        }
    }

    /// Carries out one write for `database`.
    pub async fn write(&self, database: &Database, write: &Write) -> Result<(), ApplyError> {
        let key = Key { namespace: database.namespace().unwrap_or_default(), name: database.name_any() };
        match write {
            Write::ClusterSecret(order) => self.cluster_secret(database, order).await,
            Write::Create(object) => self.create(&key, object).await,
            Write::Apply(object) => self.apply(&key, object).await,
            Write::Patch { target, patch } => self.patch(&key, target, patch).await,
            Write::Delete { target, why } => self.delete(database, target, why).await,
        }
    }

    async fn create(&self, key: &Key, object: &Object) -> Result<(), ApplyError> {
        let body: DynamicObject = serde_json::from_value(object.body.clone())?;
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match self.api(&key.namespace, object.kind).create(&parameters, &body).await {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == Some(409) => self.explain_conflict(key, object).await,
            Err(source) => Err(failed("create", object.kind, &object.name, source)),
        }
    }

    /// A create met an object: ours, which a cache did not show yet, or somebody else's.
    async fn explain_conflict(&self, key: &Key, object: &Object) -> Result<(), ApplyError> {
        let live = self.get(&key.namespace, object.kind, &object.name).await?;
        let wanted = object.body["metadata"]["labels"][backlot_api::labels::CLUSTER_UID].as_str();
        let (kind, name) = (object.kind, object.name.clone());
        match live {
            Some(live) if live.labels().get(backlot_api::labels::CLUSTER_UID).map(String::as_str) == wanted => {
                Err(ApplyError::Stale { kind, name })
            }
            Some(_) => Err(ApplyError::NameTaken { kind, name }),
            None => Err(ApplyError::Stale { kind, name }),
        }
    }

    async fn apply(&self, key: &Key, object: &Object) -> Result<(), ApplyError> {
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        self.api(&key.namespace, object.kind)
            .patch(&object.name, &parameters, &Patch::Apply(&object.body))
            .await
            .map(|_| ())
            .map_err(|error| conflict_or("apply", object.kind, &object.name, error))
    }

    async fn patch(&self, key: &Key, target: &Target, patch: &Value) -> Result<(), ApplyError> {
        let mut patch = patch.clone();
        patch["metadata"]["uid"] = json!(target.uid);
        patch["metadata"]["resourceVersion"] = json!(target.resource_version);
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        self.api(&key.namespace, target.kind)
            .patch(&target.name, &parameters, &Patch::Merge(&patch))
            .await
            .map(|_| ())
            .map_err(|error| conflict_or("patch", target.kind, &target.name, error))
    }

    async fn delete(&self, database: &Database, target: &Target, why: &str) -> Result<(), ApplyError> {
        let namespace = database.namespace().unwrap_or_default();
        let stale = |kind, name: &str| ApplyError::Stale { kind, name: name.to_owned() };
        let owner = self.get(&namespace, Kind::Database, &database.name_any()).await?;
        let is_same = owner.is_some_and(|owner| {
            owner.uid() == database.uid() && owner.resource_version() == database.resource_version()
        });
        if !is_same {
            return Err(stale(Kind::Database, &database.name_any()));
        }
        let Some(live) = self.get(&namespace, target.kind, &target.name).await? else { return Ok(()) };
        if live.uid().as_deref() != Some(&target.uid) {
            return Err(stale(target.kind, &target.name));
        }
        tracing::info!(database = database.name_any(), namespace, kind = ?target.kind, name = target.name, why, "delete");
        let preconditions = Preconditions { uid: live.uid(), resource_version: live.resource_version() };
        let parameters = DeleteParams::default().preconditions(preconditions);
        match self.api(&namespace, target.kind).delete(&target.name, &parameters).await {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == Some(404) => Ok(()),
            Err(error) => Err(conflict_or("delete", target.kind, &target.name, error)),
        }
    }

    async fn get(&self, namespace: &str, kind: Kind, name: &str) -> Result<Option<DynamicObject>, ApplyError> {
        self.api(namespace, kind).get_opt(name).await.map_err(|source| failed("get", kind, name, source))
    }

    /// Makes the cluster's Secret, or adds entries to it. Present entries are never replaced.
    async fn cluster_secret(&self, database: &Database, order: &SecretOrder) -> Result<(), ApplyError> {
        let namespace = database.namespace().unwrap_or_default();
        let encode = |entries: BTreeMap<String, Vec<u8>>| -> BTreeMap<String, String> {
            entries.into_iter().map(|(key, value)| (key, BASE64.encode(value))).collect()
        };
        if order.is_new {
            let data = encode(pki::fill(order, &BTreeMap::new())?);
            let object = build::cluster_secret(&namespace, &order.labels, &order.name, &data);
            let key = Key { namespace, name: database.name_any() };
            return self.create(&key, &object).await;
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let live = api.get(&order.name).await.map_err(|source| failed("get", Kind::Secret, &order.name, source))?;
        let present: BTreeMap<_, _> =
            live.data.clone().unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
        let mut data = pki::fill(order, &present)?;
        data.retain(|key, _| !present.contains_key(key));
        let patch = json!({"data": encode(data)});
        let key = Key { namespace, name: database.name_any() };
        self.patch(&key, &Target::of(Kind::Secret, &live), &patch).await
    }
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

fn failed(verb: &'static str, kind: Kind, name: &str, source: kube::Error) -> ApplyError {
    ApplyError::Api { verb, kind, name: name.to_owned(), source: Box::new(source) }
}

fn conflict_or(verb: &'static str, kind: Kind, name: &str, error: kube::Error) -> ApplyError {
    match code(&error) {
        Some(409 | 404) => ApplyError::Stale { kind, name: name.to_owned() },
        _ => failed(verb, kind, name, error),
    }
}
