//! What must be remembered, and how it is found again: the cluster's identity, its founding, its members.
//!
//! Everything else is derived from observation in each pass. Founding and identity also live on the cluster's Secret, so
//! that they outlive the Database together with retained volumes.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use backlot_api::database::{Founder, GroupStatus, MemberRecord};
use backlot_api::labels;
use backlot_standard::manifest::{Component, Manifest, MembershipChange, RollOrder, StartOrder};
use backlot_standard::request::MemberState;
use backlot_standard::status::{EnginePhase, MemberStatus};
use backlot_standard::verb::{RunsOn, Verb};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use crate::names;
use crate::plan::Activity;
use crate::snapshot::{Snapshot, annotation, belongs_to, label};
use crate::validate::{Refusal, Wanted, WantedComponent};

/// The founding record on the cluster's Secret (annotation `backlot.dev/founded`). It is there before anybody founds, and
/// brought up to date whenever all members have joined; so it may lag behind status, and whoever reads it must not mind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Founding {
    /// Groups that are founded, or have a founder.
    pub groups: Vec<FoundedGroup>,
    /// Immutable settings that the user gave before the cluster was founded, by component.
    #[serde(default)]
    pub immutable: BTreeMap<String, BTreeMap<String, String>>,
}

/// A group that is founded, or has a founder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FoundedGroup {
    /// Component.
    pub component: String,
    /// Shard.
    pub shard: u32,
    /// The only member that may ever found it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founder: Option<Founder>,
    /// Whether it was founded.
    #[serde(default)]
    pub founded: bool,
    /// Decided leader, for types whose agents elect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Its epoch.
    #[serde(default)]
    pub epoch: u64,
    /// Its members when all had joined.
    #[serde(default)]
    pub members: Vec<MemberRecord>,
}

/// Which cluster a Database is.
pub(crate) struct Identity {
    pub(crate) cluster_uid: String,
    pub(crate) adopted: Option<Founding>,
}

/// The founding record, when the cluster's Secret has one. One that cannot be read is not taken for none.
pub(crate) fn founding(snapshot: &Snapshot) -> Result<Option<Founding>, Refusal> {
    let annotation = snapshot.objects.secret.as_ref().and_then(|secret| annotation(secret, labels::FOUNDED));
    annotation.map(serde_json::from_str).transpose().map_err(|error| Refusal {
        reason: "FoundingRecordUnreadable",
        message: format!(
            "Secret {}: annotation {} cannot be read ({error}). Restore the Secret from a backup",
            names::cluster_secret(&snapshot.database.name_any()),
            labels::FOUNDED
        ),
    })
}

/// Decides which cluster a Database is: its own, or the one whose volumes and Secret a deleted Database of the same name
/// and class left behind.
pub(crate) fn identity(snapshot: &Snapshot) -> Result<Identity, Refusal> {
    let database = &snapshot.database;
    let name = database.name_any();
    let own_uid = database.uid().unwrap_or_default();
    let stored = database.status.as_ref().and_then(|status| status.cluster_uid.clone());
    let secret = snapshot.objects.secret.as_ref();
    let secret_name = names::cluster_secret(&name);
    let cluster_uid = match (&stored, secret) {
        (Some(uid), Some(secret)) if !belongs_to(secret, uid) => {
            return Err(Refusal {
                reason: "SecretOfAnotherCluster",
                message: format!(
                    "Secret {secret_name} does not belong to this cluster ({uid}). Restore the right one from a backup"
                ),
            });
        }
        (Some(uid), _) => uid.clone(),
        (None, Some(secret)) => {
            let class = label(secret, labels::CLASS).unwrap_or("unknown");
            if class != database.spec.class {
                let wanted = &database.spec.class;
                return Err(Refusal {
                    reason: "RetainedDataOfAnotherClass",
                    message: format!(
                        "volumes and Secret {secret_name} of an earlier Database {name} of class {class} are still here, not {wanted}. Choose another name, or delete the Secret and the claims {name}-*"
                    ),
                });
            }
            label(secret, labels::CLUSTER_UID).map(ToOwned::to_owned).ok_or_else(|| Refusal {
                reason: "SecretOfAnotherCluster",
                message: format!(
                    "Secret {secret_name} has no label {}, so whose keys it holds is unknown. Restore the right one from a backup, or delete it",
                    labels::CLUSTER_UID
                ),
            })?
        }
        (None, None) => own_uid.clone(),
    };
    for claim in &snapshot.objects.claims {
        if label(claim, labels::DATABASE) == Some(&name) && !belongs_to(claim, &cluster_uid) {
            let claim = claim.name_any();
            return Err(Refusal {
                reason: "VolumesOfAnotherCluster",
                message: format!(
                    "claim {claim} holds data of another cluster, and its Secret {secret_name} is gone or another. Restore that Secret to take the data back, or delete the claim"
                ),
            });
        }
    }
    // Also a Database whose own status was lost finds its founding again.
    let adopted = if stored.is_none() { founding(snapshot)? } else { None };
    Ok(Identity { cluster_uid, adopted })
}

/// Whether what a founding record speaks of is still there: a founded group without volumes would never start, and a leader
/// without its data would have the others throw theirs away.
pub(crate) fn check_adopted(snapshot: &Snapshot, manifest: &Manifest, identity: &Identity) -> Vec<Refusal> {
    let database = snapshot.database.name_any();
    let secret = names::cluster_secret(&database);
    let is_here = |claim: &PersistentVolumeClaim| {
        belongs_to(claim, &identity.cluster_uid) && annotation(claim, labels::LEFT).is_none()
    };
    // What only joined may be gone: its members join anew.
    let joins_anew = |group: &FoundedGroup, known: &Component| group.founder.is_none() && known.members.min == 0;
    let stateful = |group: &&FoundedGroup| {
        manifest.component(&group.component).is_some_and(|known| !known.stateless && !joins_anew(group, known))
    };
    let groups = identity.adopted.iter().flat_map(|adopted| &adopted.groups).filter(stateful);
    let missing = groups.filter_map(|group| {
        let claims = snapshot.objects.claims.iter().filter(|claim| is_here(claim));
        let mut claims = claims.filter(|claim| label(*claim, labels::COMPONENT) == Some(&group.component));
        if claims.next().is_none() {
            return Some(Refusal {
                reason: "RetainedVolumesMissing",
                message: format!(
                    "Secret {secret} tells of a founded cluster, but none of its volumes is here. Restore the claims {database}-*, or delete the Secret to begin with an empty database"
                ),
            });
        }
        let leader = group.leader.as_ref()?;
        let volumes = manifest.volumes.iter().enumerate();
        let mut needed = volumes.map(|(index, volume)| names::claim(leader, &volume.name, index == 0));
        let lost = needed.find(|claim| !snapshot.objects.claim(claim).is_some_and(is_here))?;
        Some(Refusal {
            reason: "LeaderVolumeMissing",
            message: format!(
                "claim {lost} of {leader}, which led the cluster, is not here; others that followed an empty leader would lose their data. Restore the claim"
            ),
        })
    });
    missing.collect()
}

/// Whether a member's volume was there before its Database, so that it may hold an earlier one's data.
pub(crate) fn has_older_volume(snapshot: &Snapshot, wanted: &Wanted, member: &str) -> bool {
    let made = |meta: &ObjectMeta| meta.creation_timestamp.as_ref().map(|time| time.0);
    let database = made(&snapshot.database.metadata);
    let claims = crate::plan::claims_of(wanted, member).into_values();
    claims.filter_map(|claim| snapshot.objects.claim(&claim)).any(|claim| made(&claim.metadata) < database)
}

/// A group's record as stored in status or, on the first pass, as found on volumes.
pub(crate) fn stored_group(
    snapshot: &Snapshot,
    wanted: &Wanted,
    component: &WantedComponent,
    shard: u32,
) -> GroupStatus {
    let name = &component.component.name;
    let status = snapshot.database.status.as_ref();
    if let Some(group) =
        status.and_then(|status| status.groups.iter().find(|group| group.component == *name && group.shard == shard))
    {
        return group.clone();
    }
    let recorded = wanted
        .adopted
        .as_ref()
        .and_then(|adopted| adopted.groups.iter().find(|group| group.component == *name && group.shard == shard));
    let is_founded = recorded.is_some_and(|group| group.founded);
    let first_volume = wanted.manifest.volumes.first().map(|volume| volume.name.as_str());
    let mut members: Vec<MemberRecord> = snapshot
        .objects
        .claims
        .iter()
        .filter(|claim| belongs_to(*claim, &wanted.cluster_uid) && annotation(*claim, labels::LEFT).is_none())
        .filter(|claim| label(*claim, labels::COMPONENT) == Some(name) && label(*claim, labels::VOLUME) == first_volume)
        .filter(|claim| label(*claim, labels::SHARD) == Some(shard.to_string().as_str()))
        .filter_map(|claim| label(claim, labels::ORDINAL)?.parse().ok())
        .map(|ordinal| {
            // Others with a volume may have joined or not: they join once more, which changes nothing for a member.
            let known = recorded.and_then(|group| group.members.iter().find(|member| member.ordinal == ordinal));
            known.cloned().unwrap_or_else(|| MemberRecord {
                name: names::member(&wanted.name, &wanted.manifest, name, shard, ordinal),
                ordinal,
                state: MemberState::New,
                incarnation: None,
                engine_id: None,
            })
        })
        .collect();
    members.sort_by_key(|member| member.ordinal);
    GroupStatus {
        component: name.clone(),
        shard,
        founder: recorded.and_then(|group| group.founder.clone()),
        founded: is_founded,
        leader: recorded.and_then(|group| group.leader.clone()),
        epoch: recorded.map_or(0, |group| group.epoch),
        rebalanced_for: None,
        rebalances: 0,
        members,
    }
}

/// Brings the number of records to the wanted one: adds ordinals that no volume occupies, marks surplus members as leaving,
/// one at a time unless the type moves sets. The decided or reported leader goes last. Answers what stands in the way.
pub(crate) fn resize(
    snapshot: &Snapshot,
    wanted: &Wanted,
    component: &WantedComponent,
    group: &mut GroupStatus,
    peers: &[GroupStatus],
) -> Option<Activity> {
    let target = component.members as usize;
    let staying = group.members.iter().filter(|member| stays(member)).count();
    let obstacle = match staying.cmp(&target) {
        Ordering::Less => grow(snapshot, wanted, component, group, target - staying),
        Ordering::Equal => None,
        Ordering::Greater => shrink(snapshot, wanted, group, peers, staying - target),
    };
    group.members.sort_by_key(|member| member.ordinal);
    obstacle
}

fn stays(member: &MemberRecord) -> bool {
    matches!(member.state, MemberState::New | MemberState::Joining | MemberState::Joined)
}

fn grow(
    snapshot: &Snapshot,
    wanted: &Wanted,
    component: &WantedComponent,
    group: &mut GroupStatus,
    mut more: usize,
) -> Option<Activity> {
    let ids = wanted.manifest.ids(&component.component.name);
    // Where members come one after the other, a newcomer is the highest: it may be heard by lower ones only.
    let first = match wanted.manifest.membership.start {
        StartOrder::Serial => group.members.iter().map(|member| member.ordinal + 1).max().unwrap_or(0),
        StartOrder::Parallel => 0,
    };
    for ordinal in first..=ids.max.saturating_sub(ids.min) {
        if more == 0 {
            return None;
        }
        let name = names::member(&wanted.name, &wanted.manifest, &component.component.name, group.shard, ordinal);
        let has_volume = || {
            let claims = crate::plan::claims_of(wanted, &name);
            claims.values().any(|claim| snapshot.objects.claim(claim).is_some())
        };
        let is_taken = group.members.iter().any(|member| member.ordinal == ordinal)
            || (!component.component.stateless && has_volume());
        if is_taken {
            continue;
        }
        group.members.push(MemberRecord { name, ordinal, state: MemberState::New, incarnation: None, engine_id: None });
        more -= 1;
    }
    (more > 0).then(|| {
        crate::plan::stuck(
            "NoFreeOrdinal",
            format!(
                "{more} members of {} cannot be added: every number from {first} to {} is a member's or that of a volume left behind. Delete the claims that are not needed",
                component.component.name,
                ids.max.saturating_sub(ids.min)
            ),
        )
    })
}

fn shrink(
    snapshot: &Snapshot,
    wanted: &Wanted,
    group: &mut GroupStatus,
    peers: &[GroupStatus],
    surplus: usize,
) -> Option<Activity> {
    if !group.founded && group.founder.is_some() {
        // The founder may be at work: who goes is decided when it is known what there is.
        return None;
    }
    let at_a_time = match wanted.manifest.membership.change {
        MembershipChange::One => 1,
        MembershipChange::Set => usize::MAX,
    };
    let going = group.members.iter().filter(|member| !stays(member)).count();
    let is_leader = |member: &MemberRecord| {
        group.leader.as_deref() == Some(&member.name) || crate::plan::reports_leader(snapshot, &member.name)
    };
    let mut victims: Vec<_> = group.members.iter().filter(|member| stays(member)).collect();
    victims.sort_by_key(|member| Reverse((!is_leader(member), member.state != MemberState::Joined, member.ordinal)));
    victims.truncate(surplus.min(at_a_time.saturating_sub(going)));
    let is_victim = |name: &str| victims.iter().any(|victim| victim.name == name);
    let is_joined = |member: &MemberRecord| member.state == MemberState::Joined;
    let all = group.members.iter().chain(peers.iter().flat_map(|peer| &peer.members));
    let mut staying = all.filter(|member| is_joined(member) && !is_victim(&member.name));
    let mut leaving = victims.iter().filter(|member| is_joined(member));
    // Once begun, a member's leave is not taken back; so it is begun only when it can be carried out.
    let obstacle = |message| Some(crate::plan::stuck("ShrinkWaits", message));
    if let Some(victim) = leaving.clone().next()
        && let Some(unwell) = staying.find(|member| !is_well(snapshot, member))
    {
        return obstacle(format!("{} stays: {} must be well first", victim.name, unwell.name));
    }
    if let Some(victim) = leaving.find(|victim| !can_leave(snapshot, wanted, victim)) {
        return obstacle(format!("{} stays: it must run to move its data and duties away", victim.name));
    }
    let names: Vec<_> = victims.iter().map(|victim| victim.name.clone()).collect();
    for member in group.members.iter_mut().filter(|member| names.contains(&member.name)) {
        let has_run = group.founded && has_run(snapshot, wanted, member);
        member.state = if has_run { MemberState::Leaving } else { MemberState::Left };
    }
    None
}

/// Whether a member may ever have been part of the engine's membership. One that was never admitted cannot; of one that was
/// admitted the engine tells, or else that its container never started.
fn has_run(snapshot: &Snapshot, wanted: &Wanted, member: &MemberRecord) -> bool {
    let is_up = || {
        let pod = snapshot.objects.pod(&member.name).and_then(|pod| pod.status.as_ref());
        report(snapshot, member).is_some() || pod.is_some_and(|status| status.pod_ip.is_some())
    };
    match member.state {
        MemberState::New => has_older_volume(snapshot, wanted, &member.name),
        MemberState::Joining => wanted.has(Verb::Membership) || is_up(),
        MemberState::Joined | MemberState::Leaving | MemberState::Left | MemberState::Dead => true,
    }
}

/// Whether the verb that makes a member leave can run: on itself it needs the engine, elsewhere it does not.
fn can_leave(snapshot: &Snapshot, wanted: &Wanted, member: &MemberRecord) -> bool {
    let is_lost = || {
        let mut claims = crate::plan::claims_of(wanted, &member.name).into_values();
        claims.any(|claim| snapshot.objects.claim(&claim).is_none())
    };
    !wanted.has(Verb::Leave)
        || wanted.manifest.rule(Verb::Leave).runs_on != RunsOn::Self_
        || report(snapshot, member).is_some_and(|status| status.engine.phase == EnginePhase::Running)
        // A lost member is forgotten by others; an engine whose image cannot forget keeps no membership (SPEC §5.2).
        || ((wanted.has(Verb::Forget) || !wanted.manifest.membership.quorum) && is_lost())
}

/// Whether a member says now, with the volume that is known to be its own, that it can serve its role.
fn is_well(snapshot: &Snapshot, member: &MemberRecord) -> bool {
    report(snapshot, member).is_some_and(|status| {
        status.engine.phase == EnginePhase::Running && status.health.as_ref().is_some_and(|health| health.ready)
    })
}

/// The report of a member's agent, when it is known now and not about another volume than the member's own.
pub(crate) fn report<'a>(snapshot: &'a Snapshot, member: &MemberRecord) -> Option<&'a MemberStatus> {
    let status = snapshot.agents.get(&member.name)?.known()?;
    let is_own = match (&member.incarnation, &status.incarnation) {
        (Some(recorded), Some(reported)) => recorded == reported,
        (None, _) | (_, None) => true,
    };
    is_own.then_some(status)
}

/// The order in which members are disrupted one after the other.
pub(crate) fn roll_order<'a>(
    snapshot: &Snapshot,
    wanted: &Wanted,
    group: &GroupStatus,
    mut members: Vec<&'a MemberRecord>,
) -> Vec<&'a MemberRecord> {
    let leads = |member: &MemberRecord| {
        group.leader.as_deref() == Some(&member.name) || crate::plan::reports_leader(snapshot, &member.name)
    };
    members.sort_by_key(|member| {
        let rank = match wanted.manifest.roll.order {
            RollOrder::LeaderLast => u8::from(leads(member)),
            RollOrder::LeaderFirst => u8::from(!leads(member)),
            RollOrder::Any => 0,
        };
        (rank, member.ordinal)
    });
    members
}
