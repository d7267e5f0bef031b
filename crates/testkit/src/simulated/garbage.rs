//! The garbage collector: ownership, and deletions in the foreground or that leave orphans.
//!
//! Invariant: an owner is found by kind, name and UID in the object's own namespace or cluster-wide; one that is not found is
//! absent, so references across namespaces get their objects deleted, as in a real cluster.

use serde_json::{Value, json};

use super::{Cluster, Workload};
use crate::api_server::{Refused, Stored};

impl<W: Workload> Cluster<W> {
    pub(super) fn collect_garbage(&mut self) -> Result<(), Refused> {
        let all = self.server.stored();
        for object in &all {
            self.collect(object, &all)?;
            self.finish_owner(object, &all)?;
        }
        Ok(())
    }

    /// Deletes an object all of whose owners are gone, or are waiting for it to go.
    fn collect(&self, object: &Stored, all: &[Stored]) -> Result<(), Refused> {
        let metadata = &object.object["metadata"];
        let references = metadata["ownerReferences"].as_array().cloned().unwrap_or_default();
        if references.is_empty() || !metadata["deletionTimestamp"].is_null() {
            return Ok(());
        }
        let holds = |reference: &Value| match owner(reference, object, all) {
            None => false,
            Some(owner) => !(has_finalizer(owner, "foregroundDeletion") && reference["blockOwnerDeletion"] == true),
        };
        if references.iter().any(holds) {
            return Ok(());
        }
        self.delete(
            &object.path,
            metadata["uid"].as_str().unwrap_or_default(),
            &json!({"propagationPolicy": "Background"}),
        )
    }

    /// Ends the deletion of an owner that was to wait for its dependents, or to leave them.
    fn finish_owner(&self, object: &Stored, all: &[Stored]) -> Result<(), Refused> {
        let metadata = &object.object["metadata"];
        if metadata["deletionTimestamp"].is_null() {
            return Ok(());
        }
        let uid = &metadata["uid"];
        let references =
            |other: &Stored| other.object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let finalizers: Vec<String> = serde_json::from_value(metadata["finalizers"].clone()).unwrap_or_default();
        if has_finalizer(object, "orphan") {
            for dependent in all.iter().filter(|other| references(other).iter().any(|one| one["uid"] == *uid)) {
                let left: Vec<Value> = references(dependent).into_iter().filter(|one| one["uid"] != *uid).collect();
                self.patch(&dependent.path, &json!({"metadata": {"ownerReferences": left}}))?;
            }
            return self.drop_finalizer(&object.path, &finalizers, "orphan");
        }
        let blocked = all
            .iter()
            .any(|other| references(other).iter().any(|one| one["uid"] == *uid && one["blockOwnerDeletion"] == true));
        if has_finalizer(object, "foregroundDeletion") && !blocked {
            return self.drop_finalizer(&object.path, &finalizers, "foregroundDeletion");
        }
        Ok(())
    }
}

fn has_finalizer(object: &Stored, finalizer: &str) -> bool {
    object.object["metadata"]["finalizers"].as_array().is_some_and(|list| list.iter().any(|one| one == finalizer))
}

fn owner<'a>(reference: &Value, object: &Stored, all: &'a [Stored]) -> Option<&'a Stored> {
    all.iter().find(|other| {
        (other.namespace.is_empty() || other.namespace == object.namespace)
            && other.object["kind"] == reference["kind"]
            && other.object["metadata"]["name"] == reference["name"]
            && other.object["metadata"]["uid"] == reference["uid"]
    })
}
