//! The cluster's Secret: per-database CA, certificates of operator and members, generated credentials.
//!
//! What is to be in it is decided here; keys and passwords are generated where the write is done. It has no owner, because
//! retained volumes are worth nothing without it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use super::{Kind, Object, labels};
use crate::names;
use crate::validate::Wanted;

/// Entries that the cluster's Secret lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretOrder {
    /// Name of the Secret.
    pub name: String,
    /// Identity in certificates.
    pub cluster_uid: String,
    /// Whether the Secret, its CA and the operator's certificate are to be made.
    pub is_new: bool,
    /// Members that need a certificate.
    pub members: Vec<String>,
    /// Labels of the Secret.
    pub labels: Value,
    /// Passwords to generate: name and length.
    pub passwords: BTreeMap<String, u32>,
}

/// Key of a generated credential.
pub fn password_key(name: &str) -> String {
    format!("secret.{name}")
}

/// What must be added to the Secret, if anything.
pub fn secret_order(live: Option<&Secret>, wanted: &Wanted, members: Vec<String>) -> Option<SecretOrder> {
    let has: BTreeSet<String> =
        live.and_then(|secret| secret.data.as_ref()).map(|data| data.keys().cloned().collect()).unwrap_or_default();
    let members: Vec<_> = members.into_iter().filter(|member| !has.contains(&format!("{member}.crt"))).collect();
    let passwords: BTreeMap<_, _> = wanted
        .manifest
        .secrets
        .iter()
        .filter(|secret| !has.contains(&password_key(&secret.name)))
        .map(|secret| (secret.name.clone(), secret.generate.length))
        .collect();
    let is_new = live.is_none();
    (is_new || !members.is_empty() || !passwords.is_empty()).then(|| SecretOrder {
        name: names::cluster_secret(&wanted.name),
        cluster_uid: wanted.cluster_uid.clone(),
        is_new,
        members,
        labels: labels(wanted),
        passwords,
    })
}

/// The Secret's object around its generated entries (base64).
pub fn cluster_secret(namespace: &str, metadata_labels: &Value, name: &str, data: &BTreeMap<String, String>) -> Object {
    let body = json!({"metadata": {"namespace": namespace, "labels": metadata_labels}, "type": "Opaque", "data": data});
    Object::new(Kind::Secret, name, body)
}
