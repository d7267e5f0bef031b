//! Deletion of a Database with `deletionPolicy: Delete`: pods, then volumes, then the Secret, then the finalizer.
//!
//! A Database with `Retain` has no finalizer: garbage collection removes what it owns, and volumes and Secret have no owner.

use backlot_api::database::DeletionPolicy;
use backlot_api::labels;
use kube::ResourceExt;
use serde_json::json;

use super::{Plan, Target, Write, working};
use crate::build::Kind;
use crate::snapshot::{Snapshot, belongs_to};

/// Plans one pass for a Database that is being deleted.
pub(super) fn plan_deletion(snapshot: &Snapshot) -> Plan {
    let database = &snapshot.database;
    let mut plan = Plan::untouched(snapshot);
    if !database.finalizers().iter().any(|finalizer| finalizer == labels::FINALIZER) {
        return plan;
    }
    let cluster_uid = database
        .status
        .as_ref()
        .and_then(|status| status.cluster_uid.clone())
        .or_else(|| database.uid())
        .unwrap_or_default();
    let objects = &snapshot.objects;
    // The policy may have changed with the last edit before the deletion.
    super::keep::volumes(snapshot, &cluster_uid, database.spec.deletion_policy, &mut plan);
    if database.spec.deletion_policy == DeletionPolicy::Delete {
        let pods: Vec<_> = objects.pods.iter().filter(|pod| belongs_to(*pod, &cluster_uid)).collect();
        for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            plan.writes.push(Write::Delete { target: Target::of(Kind::Pod, *pod), why: "the Database is deleted" });
        }
        if !pods.is_empty() {
            plan.activities.push(working("Deleting", format!("{} pods stop before their volumes go", pods.len())));
            return plan;
        }
        let claims: Vec<_> = objects.claims.iter().filter(|claim| belongs_to(*claim, &cluster_uid)).collect();
        for claim in &claims {
            if claim.metadata.deletion_timestamp.is_none() {
                let why = "the Database is deleted and its deletionPolicy is Delete";
                plan.writes.push(Write::Delete { target: Target::of(Kind::Claim, *claim), why });
            }
        }
        if !claims.is_empty() {
            plan.activities.push(working("Deleting", format!("{} volumes go", claims.len())));
            return plan;
        }
        if let Some(secret) = objects.secret.as_ref().filter(|secret| belongs_to(*secret, &cluster_uid)) {
            plan.writes.push(Write::Delete {
                target: Target::of(Kind::Secret, secret),
                why: "the Database and its volumes are gone",
            });
        }
    }
    let rest: Vec<_> = database.finalizers().iter().filter(|finalizer| *finalizer != labels::FINALIZER).collect();
    plan.writes.push(Write::Patch {
        target: Target::of(Kind::Database, database),
        patch: json!({"metadata": {"finalizers": rest}}),
    });
    plan
}
