//! What must be remembered, and how it is found again: the cluster's identity, its founding, its members.
//!
//! Everything else is derived from observation in each pass. Founding and identity also live on the cluster's Secret, so
//! that they outlive the Database together with retained volumes.

use std::collections::BTreeMap;

use backlot_api::database::{Founder, GroupStatus, MemberRecord};
use backlot_api::labels;
use backlot_standard::manifest::{Manifest, MembershipChange, RollOrder};
use backlot_standard::request::MemberState;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use crate::names;
use crate::snapshot::{Snapshot, annotation, belongs_to, label};
use crate::validate::{Refusal, Wanted, WantedComponent};

/// The founding record on the cluster's Secret (annotation `backlot.dev/founded`). It is there before anybody founds.
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
    let stateful = |group: &&FoundedGroup| manifest.component(&group.component).is_some_and(|known| !known.stateless);
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
        .map(|ordinal| MemberRecord {
            name: names::member(&wanted.name, &wanted.manifest, name, shard, ordinal),
            ordinal,
            state: if is_founded { MemberState::Joined } else { MemberState::New },
            incarnation: None,
            engine_id: None,
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
        members,
    }
}

/// Brings the number of records to the wanted one: adds ordinals that no volume occupies, marks surplus members as leaving,
/// one at a time unless the type moves sets. The decided or reported leader goes last.
pub(crate) fn resize(snapshot: &Snapshot, wanted: &Wanted, component: &WantedComponent, group: &mut GroupStatus) {
    let stays =
        |member: &MemberRecord| matches!(member.state, MemberState::New | MemberState::Joining | MemberState::Joined);
    let target = component.members as usize;
    let mut staying = group.members.iter().filter(|member| stays(member)).count();
    let goes = group.members.len() - staying;
    let mut ordinal = 0;
    while staying < target {
        let name = names::member(&wanted.name, &wanted.manifest, &component.component.name, group.shard, ordinal);
        let is_free = !group.members.iter().any(|member| member.ordinal == ordinal)
            && (component.component.stateless || snapshot.objects.claim(&name).is_none());
        if is_free {
            group.members.push(MemberRecord {
                name,
                ordinal,
                state: MemberState::New,
                incarnation: None,
                engine_id: None,
            });
            staying += 1;
        }
        ordinal += 1;
    }
    let at_a_time = match wanted.manifest.membership.change {
        MembershipChange::One => 1,
        MembershipChange::Set => usize::MAX,
    };
    let mut may_go = at_a_time.saturating_sub(goes);
    while staying > target && may_go > 0 {
        let is_leader = |member: &MemberRecord| {
            group.leader.as_deref() == Some(&member.name) || crate::plan::reports_leader(snapshot, &member.name)
        };
        let victim = group
            .members
            .iter()
            .enumerate()
            .filter(|(_, member)| stays(member))
            .max_by_key(|(_, member)| (member.state != MemberState::Joined, !is_leader(member), member.ordinal))
            .map(|(index, _)| index);
        let Some(victim) = victim else { break };
        let is_founded = group.founded;
        let member = &mut group.members[victim];
        member.state = if is_founded { MemberState::Leaving } else { MemberState::Left };
        staying -= 1;
        may_go -= 1;
    }
    group.members.sort_by_key(|member| member.ordinal);
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
