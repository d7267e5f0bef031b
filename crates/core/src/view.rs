//! The cluster view that members should hold, from stored records and observed addresses.

use std::collections::BTreeMap;

use backlot_api::database::GroupStatus;
use backlot_standard::request::{Member, MemberState, Plan, Resources};
use backlot_standard::view::{ClusterView, ComponentView, GroupView};

use crate::names;
use crate::snapshot::{Observed, Snapshot, belongs_to};
use crate::validate::Wanted;

/// The view without its number (`generation` is 0). It changes only when something changes that members must know.
pub fn view(snapshot: &Snapshot, wanted: &Wanted, groups: &[GroupStatus]) -> ClusterView {
    let members = groups.iter().flat_map(|group| {
        group.members.iter().map(|record| {
            let pod = snapshot.objects.pod(&record.name).filter(|pod| belongs_to(*pod, &wanted.cluster_uid));
            let address = pod.and_then(|pod| pod.status.as_ref()?.pod_ip.clone());
            // A new volume is known by its agent's report before it is recorded.
            let reported = snapshot
                .agents
                .get(&record.name)
                .and_then(Observed::known)
                .and_then(|status| status.incarnation.clone());
            Member {
                id: record.name.clone(),
                numeric_id: wanted.manifest.ids(&group.component).min + record.ordinal,
                name: names::dns(&record.name, &wanted.name, &wanted.namespace, &snapshot.operator.cluster_domain),
                address: address.unwrap_or_default(),
                component: group.component.clone(),
                shard: group.shard,
                ordinal: record.ordinal,
                zone: String::new(),
                state: record.state,
                vote: record.state == MemberState::Joined && wanted.root(&group.component) == group.component,
                incarnation: record.incarnation.clone().or(reported).unwrap_or_default(),
                engine_id: record.engine_id.clone(),
            }
        })
    });
    ClusterView {
        standard: backlot_standard::STANDARD.to_owned(),
        generation: 0,
        operator_epoch: snapshot.operator.epoch,
        cluster_uid: wanted.cluster_uid.clone(),
        cluster_name: wanted.name.clone(),
        engine_name: wanted.engine_name.clone(),
        members: members.collect(),
        groups: groups.iter().map(|group| group_view(wanted, group)).collect(),
        components: components(wanted),
        durability: wanted.durability,
    }
}

fn group_view(wanted: &Wanted, group: &GroupStatus) -> GroupView {
    let target = wanted.components.iter().find(|component| component.component.name == group.component);
    let with = |states: &[MemberState]| -> Vec<String> {
        group.members.iter().filter(|member| states.contains(&member.state)).map(|member| member.name.clone()).collect()
    };
    GroupView {
        component: group.component.clone(),
        shard: group.shard,
        founder: group.founder.as_ref().map(|founder| founder.member.clone()),
        founded: group.founded,
        leader: group.leader.clone(),
        epoch: group.epoch,
        plan: Plan {
            current: u32::try_from(with(&[MemberState::Joined]).len()).unwrap_or(u32::MAX),
            target: target.map_or(0, |target| target.members),
            joining: with(&[MemberState::New, MemberState::Joining]),
            leaving: with(&[MemberState::Leaving]),
        },
    }
}

fn components(wanted: &Wanted) -> BTreeMap<String, ComponentView> {
    wanted
        .components
        .iter()
        .map(|component| {
            let volumes =
                wanted.manifest.volumes.iter().map(|volume| (volume.name.clone(), component.storage_bytes)).collect();
            let resources =
                Resources { memory_bytes: component.memory_bytes, cpu_millis: component.cpu_millis, volumes };
            (component.component.name.clone(), ComponentView { config: component.config.clone(), resources })
        })
        .collect()
}
