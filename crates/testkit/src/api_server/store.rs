//! The stored objects, their revisions, and the whole history of changes.
//!
//! Invariant: `revision` rises by one with each stored change and never otherwise; every past revision can be read again
//! until it is compacted, so stale reads, watches and continued lists are exact.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::resource::ResourceType;

/// Where an object lies: (`plural.group`, namespace, name). Versions of one resource share their storage.
pub(crate) type Key = (String, String, String);

/// A stored change.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) key: Key,
    pub(crate) before: Option<Arc<Value>>,
    /// The new object; for a removal the last object with the revision of its removal.
    pub(crate) object: Arc<Value>,
    pub(crate) removed: bool,
}

/// The storage.
#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: BTreeMap<Key, Arc<Value>>,
    history: Vec<Change>,
    revision: u64,
    compacted: u64,
}

/// The key of an object.
pub(crate) fn key(resource: &ResourceType, namespace: &str, name: &str) -> Key {
    let namespace = if resource.namespaced { namespace } else { "" };
    (resource.qualified(), namespace.to_owned(), name.to_owned())
}

impl Store {
    /// The newest revision.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Revisions up to this one can no longer be read.
    pub(crate) fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Forgets every past revision.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.objects.get(key).cloned()
    }

    /// The object as it was at `revision`.
    pub(crate) fn get_at(&self, key: &Key, revision: u64) -> Option<Arc<Value>> {
        let later = self.history.iter().find(|change| change.revision > revision && change.key == *key);
        match later {
            Some(change) => change.before.clone(),
            None => self.get(key),
        }
    }

    /// Every object of a resource, in all namespaces or one, by namespace and name.
    pub(crate) fn list(&self, resource: &ResourceType, namespace: &str) -> Vec<(Key, Arc<Value>)> {
        let qualified = resource.qualified();
        let first = (qualified.clone(), namespace.to_owned(), String::new());
        self.objects
            .range(first..)
            .take_while(|(key, _)| key.0 == qualified && (namespace.is_empty() || key.1 == namespace))
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect()
    }

    /// The same at a past revision.
    pub(crate) fn list_at(&self, resource: &ResourceType, namespace: &str, revision: u64) -> Vec<(Key, Arc<Value>)> {
        let mut objects: BTreeMap<Key, Arc<Value>> = self.list(resource, namespace).into_iter().collect();
        let qualified = resource.qualified();
        for change in self.history.iter().rev().take_while(|change| change.revision > revision) {
            if change.key.0 != qualified || !(namespace.is_empty() || change.key.1 == namespace) {
                continue;
            }
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), before.clone()),
                None => objects.remove(&change.key),
            };
        }
        objects.into_iter().collect()
    }

    /// Changes after `revision`, oldest first.
    pub(crate) fn changes_after(&self, revision: u64) -> &[Change] {
        let start = self.history.partition_point(|change| change.revision <= revision);
        &self.history[start..]
    }

    /// Stores `object` under the next revision and returns it as stored.
    pub(crate) fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let object = Arc::new(object);
        let before = self.objects.insert(key.clone(), object.clone());
        self.history.push(Change { revision: self.revision, key, before, object: object.clone(), removed: false });
        object
    }

    /// Removes an object; returns it as it was last, with the revision of its removal.
    pub(crate) fn remove(&mut self, key: &Key, last: Option<Value>) -> Option<Arc<Value>> {
        let before = self.objects.remove(key)?;
        self.revision += 1;
        let mut last = last.unwrap_or_else(|| (*before).clone());
        last["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let object = Arc::new(last);
        self.history.push(Change {
            revision: self.revision,
            key: key.clone(),
            before: Some(before),
            object: object.clone(),
            removed: true,
        });
        Some(object)
    }
}
