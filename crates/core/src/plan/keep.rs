//! Objects that must exist: the cluster's Secret, Services, budgets, the binding, and each member's claims and pod.

use std::collections::BTreeMap;

use backlot_api::database::{DeletionPolicy, GroupStatus, MemberRecord};
use backlot_api::labels;
use backlot_standard::config::Apply;
use backlot_standard::request::MemberState;
use serde_json::{Value, json};

use super::{Event, Group, Plan, Target, Write, claims_of, stuck, working};
use crate::build::{self, Kind};
use crate::records::{FoundedGroup, Founding, has_older_volume};
use crate::snapshot::{Snapshot, annotation, belongs_to};
use crate::validate::Wanted;

/// The cluster's Secret: made once, completed for new members, never made again over live data.
pub(super) fn secret(snapshot: &Snapshot, wanted: &Wanted, groups: &[Group<'_>], plan: &mut Plan) {
    let is_founded = groups.iter().any(|group| group.stored.founded || group.stored.founder.is_some());
    if snapshot.objects.secret.is_none() && is_founded {
        plan.activities.push(stuck(
            "SecretMissing",
            format!(
                "Secret {} is gone. Members keep running; keys and passwords of live data are never made anew. Restore it from a backup",
                crate::names::cluster_secret(&wanted.name)
            ),
        ));
        return;
    }
    let members = groups.iter().flat_map(|group| &group.next.members).map(|member| member.name.clone()).collect();
    let Some(mut order) = build::secret_order(snapshot.objects.secret.as_ref(), wanted, members) else { return };
    let mut records = groups.iter().flat_map(|group| &group.stored.members);
    let may_have_data = is_founded || records.any(|member| has_older_volume(snapshot, wanted, &member.name));
    if !order.is_new && may_have_data && !order.passwords.is_empty() {
        let names: Vec<_> = std::mem::take(&mut order.passwords).into_keys().collect();
        plan.activities.push(stuck(
            "CredentialMissing",
            format!(
                "Secret {} lacks {}. Credentials of live data are never made anew. Restore the Secret from a backup",
                order.name,
                names.join(", ")
            ),
        ));
    }
    if !order.members.is_empty() || !order.passwords.is_empty() {
        plan.writes.push(Write::ClusterSecret(order));
    }
}

/// Services, budgets and the binding.
pub(super) fn objects(snapshot: &Snapshot, wanted: &Wanted, groups: &[Group<'_>], plan: &mut Plan) {
    let objects = &snapshot.objects;
    let mut wants = build::services(wanted);
    let present = |group: &&Group<'_>| -> Vec<String> {
        let members = group.next.members.iter().filter(|member| member.state != MemberState::Left);
        members.map(|member| member.name.clone()).collect()
    };
    for group in groups {
        wants.push(build::budget(wanted, group.component, present(&group).len()));
    }
    let bound = groups.iter().filter(|group| group.stored.component == wanted.manifest.bound_component());
    let members: Vec<_> = bound.flat_map(|group| present(&group)).collect();
    let members: Vec<_> = members.iter().map(String::as_str).collect();
    if let Some(secret) = &objects.secret {
        wants.extend(build::binding(wanted, &members, secret, &snapshot.operator.cluster_domain));
    }
    for object in wants {
        let live: Option<Value> = match object.kind {
            Kind::Service => find(&objects.services, &object.name),
            Kind::Budget => find(&objects.budgets, &object.name),
            Kind::Secret => objects.binding.as_ref().and_then(|secret| serde_json::to_value(secret).ok()),
            Kind::Pod | Kind::Claim | Kind::Volume | Kind::Slice | Kind::Database => None,
        };
        match live {
            None => plan.writes.push(Write::Create(object)),
            Some(live) if !build::covers(&live, &object.body) => plan.writes.push(Write::Apply(object.at(&live))),
            Some(_) => {}
        }
    }
}

fn find<K: kube::Resource + serde::Serialize>(objects: &[K], name: &str) -> Option<Value> {
    let object = objects.iter().find(|object| object.meta().name.as_deref() == Some(name))?;
    serde_json::to_value(object).ok()
}

/// Claims and pods of a group's members. Never busy: a member that is stuck holds up nobody else.
pub(super) fn members(group: &mut Group<'_>, plan: &mut Plan) -> bool {
    if group.snapshot.objects.secret.is_none() {
        // Pods mount the Secret; they follow when it exists.
        return true;
    }
    let members = group.next.members.clone();
    for member in members.iter().filter(|member| member.state != MemberState::Left) {
        if let Some(claim) = lost_claim(group, member) {
            plan.activities.push(stuck(
                "VolumeLost",
                format!(
                    "claim {claim} of {} is gone, with its data. An empty volume is not put in its place by itself; the other members go on",
                    member.name
                ),
            ));
            continue;
        }
        if claims(group, member, plan) {
            pod(group, member, plan);
        }
    }
    false
}

/// The claim that a member once had and that is gone now.
pub(super) fn lost_claim(group: &Group<'_>, member: &MemberRecord) -> Option<String> {
    if group.component.component.stateless {
        return None;
    }
    member.incarnation.as_ref()?;
    claims_of(group.wanted, &member.name).into_values().find(|claim| group.snapshot.objects.claim(claim).is_none())
}

/// Claims of a member; `false` when its pod must not be made with what is there.
fn claims(group: &Group<'_>, member: &MemberRecord, plan: &mut Plan) -> bool {
    if group.component.component.stateless {
        return true;
    }
    let mut may_run = true;
    for (volume, name) in claims_of(group.wanted, &member.name) {
        let Some(claim) = group.snapshot.objects.claim(&name) else {
            plan.writes.push(Write::Create(build::claim(
                group.wanted,
                group.component,
                member,
                group.stored.shard,
                &volume,
                &name,
            )));
            // Seen first, then mounted: a claim of this name may exist that is not ours.
            may_run = false;
            continue;
        };
        if !belongs_to(claim, &group.wanted.cluster_uid) {
            may_run = false;
            plan.activities.push(stuck(
                "NameTaken",
                format!("claim {name} exists and is not of this cluster. Delete it, or rename the Database"),
            ));
        } else if claim.metadata.deletion_timestamp.is_some() {
            plan.activities.push(stuck(
                "VolumeTerminating",
                format!(
                    "claim {name} of {} was deleted by somebody and goes as soon as its pod does. Save its data while the member runs",
                    member.name
                ),
            ));
        }
    }
    may_run
}

/// Volumes outlive their claims, or go with them, as `deletionPolicy` says now; those of members that left too.
pub(super) fn volumes(snapshot: &Snapshot, cluster_uid: &str, policy: DeletionPolicy, plan: &mut Plan) {
    let objects = &snapshot.objects;
    for claim in objects.claims.iter().filter(|claim| belongs_to(*claim, cluster_uid)) {
        let volume = claim.spec.as_ref().and_then(|spec| objects.volumes.get(spec.volume_name.as_ref()?));
        let Some(volume) = volume else { continue };
        let has = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        // Only what was set to Retain here is set back: an administrator's own Retain stays.
        let is_ours = annotation(volume, labels::RETAINED).is_some();
        let patch = match policy {
            DeletionPolicy::Retain if has != Some("Retain") => json!({
                "metadata": {"annotations": {labels::RETAINED: "true"}},
                "spec": {"persistentVolumeReclaimPolicy": "Retain"},
            }),
            DeletionPolicy::Delete if has == Some("Retain") && is_ours => json!({
                "metadata": {"annotations": {labels::RETAINED: null}},
                "spec": {"persistentVolumeReclaimPolicy": "Delete"},
            }),
            DeletionPolicy::Retain | DeletionPolicy::Delete => continue,
        };
        plan.writes.push(Write::Patch { target: Target::of(Kind::Volume, volume), patch });
    }
}

fn pod(group: &Group<'_>, member: &MemberRecord, plan: &mut Plan) {
    match group.snapshot.objects.pod(&member.name) {
        None => {
            let body = build::pod(group.wanted, group.component, member, group.stored.shard, &group.snapshot.operator);
            plan.writes.push(Write::Create(body));
            // Volumes that are taken back have no pods at first.
            if member.state == MemberState::Joined && group.snapshot.database.status.is_some() {
                plan.events.push(Event {
                    reason: "PodReplaced",
                    message: format!("pod {} was gone and is made again", member.name),
                });
            }
        }
        Some(pod) if pod.metadata.deletion_timestamp.is_some() => {
            plan.activities.push(working("PodTerminating", format!("pod {} is terminating", member.name)));
        }
        Some(pod) if !belongs_to(pod, &group.wanted.cluster_uid) => {
            plan.activities.push(stuck(
                "NameTaken",
                format!("pod {} exists and is not of this cluster. Delete it, or rename the Database", member.name),
            ));
        }
        Some(pod) => {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            if matches!(phase, Some("Failed" | "Succeeded")) {
                plan.writes.push(Write::Delete {
                    target: Target::of(Kind::Pod, pod),
                    why: "the pod has ended; its volume stays",
                });
            } else if let Some(why) = pod_trouble(pod) {
                plan.activities.push(stuck("PodNotStarting", format!("pod {}: {why}", member.name)));
            }
        }
    }
}

/// What the scheduler or kubelet says stands in the way of a pod.
pub(super) fn pod_trouble(pod: &k8s_openapi::api::core::v1::Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let unscheduled = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    });
    if let Some(condition) = unscheduled {
        return condition.message.clone();
    }
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    containers
        .filter_map(|container| container.state.as_ref()?.waiting.as_ref())
        .find(|waiting| !matches!(waiting.reason.as_deref(), None | Some("ContainerCreating" | "PodInitializing")))
        .map(|waiting| {
            let (reason, message) =
                (waiting.reason.clone().unwrap_or_default(), waiting.message.clone().unwrap_or_default());
            format!("{reason}: {message}")
        })
}

/// Keeps the founding on the Secret, so that it outlives the Database together with retained volumes. Founding waits for it.
pub(super) fn founding_record(snapshot: &Snapshot, wanted: &Wanted, groups: &[Group<'_>], plan: &mut Plan) {
    let (Some(secret), Ok(before)) = (&snapshot.objects.secret, crate::records::founding(snapshot)) else { return };
    let recorded = |group: &GroupStatus| {
        let mut known = before.iter().flat_map(|record| &record.groups);
        known.find(|known| known.component == group.component && known.shard == group.shard).cloned()
    };
    let of = |group: &GroupStatus| {
        let is_settled = group.members.iter().all(|member| member.state == MemberState::Joined);
        // One write when a change is through, not one for each member of it.
        let known = recorded(group).filter(|known| known.founder == group.founder && !(group.founded && is_settled));
        known.unwrap_or_else(|| FoundedGroup {
            component: group.component.clone(),
            shard: group.shard,
            founder: group.founder.clone(),
            founded: group.founded,
            leader: group.leader.clone(),
            epoch: group.epoch,
            members: if is_settled { group.members.clone() } else { vec![] },
        })
    };
    let begun = groups.iter().map(|group| &group.stored).filter(|group| group.founded || group.founder.is_some());
    let founded: Vec<_> = begun.map(of).collect();
    if founded.is_empty() {
        return;
    }
    let immutable = before.as_ref().map_or_else(|| immutable_settings(wanted), |record| record.immutable.clone());
    let record = Founding { groups: founded, immutable };
    if before.as_ref() != Some(&record)
        && let Ok(text) = serde_json::to_string(&record)
    {
        plan.writes.push(Write::Patch {
            target: Target::of(Kind::Secret, secret),
            patch: json!({"metadata": {"annotations": {labels::FOUNDED: text}}}),
        });
    }
}

fn immutable_settings(wanted: &Wanted) -> BTreeMap<String, BTreeMap<String, String>> {
    let is_immutable =
        |key: &String| wanted.manifest.config.get(key).is_some_and(|setting| setting.apply == Apply::Immutable);
    let of = |config: &BTreeMap<String, String>| -> BTreeMap<_, _> {
        config.iter().filter(|(key, _)| is_immutable(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let components = wanted.components.iter();
    components.map(|component| (component.component.name.clone(), of(&component.config))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_object_covers_a_wanted_one_when_every_wanted_field_is_there() {
        let live = json!({"a": 1, "b": {"c": [1, {"d": 2, "default": true}]}, "extra": 0});
        assert!(build::covers(&live, &json!({"a": 1, "b": {"c": [1, {"d": 2}]}})));
        assert!(!build::covers(&live, &json!({"a": 2})));
        assert!(!build::covers(&live, &json!({"b": {"c": [1]}})));
        let object = build::Object { kind: Kind::Service, name: "x".into(), body: json!({"metadata": {"name": "x"}}) };
        let live = json!({"metadata": {"uid": "u"}});
        assert_eq!(object.at(&live).body["metadata"]["uid"], "u");
    }
}
