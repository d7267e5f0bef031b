//! Routes to a leader: endpoint slices written by every operator replica, guarded by lineage and epoch, only ever upwards.

use backlot_api::labels::ROUTE_EPOCH;
use backlot_standard::result::Role;
use backlot_standard::status::{EnginePhase, MemberStatus};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::build::{self, Kind, Object};
use crate::names;
use crate::plan::Write;
use crate::snapshot::{Observed, Snapshot, annotation};
use crate::validate::Wanted;

/// Writes that bring the slices to what members report. Absence changes nothing: a leader that is not heard of keeps its route
/// until another one of a newer epoch reports, or until it reports itself that it does not lead.
pub fn routes(snapshot: &Snapshot, wanted: &Wanted) -> Vec<Write> {
    if !build::has_leader(wanted) {
        return vec![];
    }
    let members: Vec<_> = snapshot.agents.iter().filter_map(|(name, status)| Some((name, status.known()?))).collect();
    let leader = leader(snapshot);
    let writable = names::service(&wanted.name);
    let read_only = names::read_only_service(&wanted.name);
    let lives = |name: &str| snapshot.objects.slices.iter().find(|slice| slice.metadata.name.as_deref() == Some(name));
    let mut writes = vec![];
    let endpoints = |filter: &dyn Fn(&MemberStatus) -> bool| -> Vec<(String, String, bool)> {
        members
            .iter()
            .filter(|(name, status)| filter(status) && has_address(snapshot, name, &status.address))
            .map(|(name, status)| ((*name).clone(), status.address.clone(), true))
            .collect()
    };
    if let Some(status) = leader {
        let route = format!("0.{}", term(snapshot, status));
        let to_leader = endpoints(&|other| other.member == status.member);
        writes.extend(write(wanted, &writable, &route, &to_leader, lives(&writable)));
        let mut followers = endpoints(&|other| is_readable_follower(other));
        followers.extend(silent_followers(snapshot, lives(&read_only)));
        followers.sort();
        writes.extend(write(wanted, &read_only, &route, &followers, lives(&read_only)));
    } else {
        // The member behind the present route says itself that it takes no writes: take it out of the route.
        let live = lives(&writable);
        let target = live.and_then(|slice| slice.endpoints.first()?.target_ref.as_ref()?.name.clone());
        let denies = target.and_then(|name| snapshot.agents.get(&name).and_then(Observed::known).cloned());
        if let Some(status) = denies.filter(|status| status.role.as_ref().is_some_and(|role| !role.writable)) {
            let route = live.and_then(|slice| annotation(slice, ROUTE_EPOCH)).unwrap_or("0.0").to_owned();
            debug_assert!(!status.member.is_empty());
            writes.extend(write(wanted, &writable, &route, &[], live));
        }
    }
    writes
}

/// The member that takes writes by its own report; of several the one with the newest term.
pub(crate) fn leader(snapshot: &Snapshot) -> Option<&MemberStatus> {
    let leads =
        |status: &&MemberStatus| status.role.as_ref().is_some_and(|role| role.role == Role::Leader && role.writable);
    let members = snapshot.agents.values().filter_map(Observed::known);
    members.filter(leads).max_by_key(|status| term(snapshot, status))
}

/// Whether the member's pod is there and has this address: one that is gone may have left it to a stranger.
fn has_address(snapshot: &Snapshot, member: &str, address: &str) -> bool {
    let pod = snapshot.objects.pod(member).filter(|pod| pod.metadata.deletion_timestamp.is_none());
    pod.and_then(|pod| pod.status.as_ref()).is_some_and(|status| status.pod_ip.as_deref() == Some(address))
}

/// Followers that are not heard of just now keep their place in the route while the kubelet says that they are ready.
fn silent_followers(snapshot: &Snapshot, live: Option<&EndpointSlice>) -> Vec<(String, String, bool)> {
    let endpoints = live.into_iter().flat_map(|slice| &slice.endpoints);
    let known = endpoints.filter_map(|endpoint| {
        let name = endpoint.target_ref.as_ref()?.name.clone()?;
        Some((name, endpoint.addresses.first()?.clone(), true))
    });
    let is_ready = |name: &str| {
        let status = snapshot.objects.pod(name).and_then(|pod| pod.status.as_ref());
        let mut conditions = status.into_iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    known
        .filter(|(name, address, _)| {
            matches!(snapshot.agents.get(name), Some(Observed::Unknown(_)))
                && has_address(snapshot, name, address)
                && is_ready(name)
        })
        .collect()
}

fn term(snapshot: &Snapshot, status: &MemberStatus) -> u64 {
    let decided = || {
        let groups = snapshot.database.status.iter().flat_map(|status| &status.groups);
        groups.filter(|group| group.leader.as_deref() == Some(&status.member)).map(|group| group.epoch).max()
    };
    status.role.as_ref().and_then(|role| role.term).or_else(decided).unwrap_or(0)
}

fn is_readable_follower(status: &MemberStatus) -> bool {
    status.engine.phase == EnginePhase::Running
        && status.role.as_ref().is_some_and(|role| role.role == Role::Follower)
        && status.health.as_ref().is_some_and(|health| health.ready)
}

fn write(
    wanted: &Wanted,
    service: &str,
    route: &str,
    endpoints: &[(String, String, bool)],
    live: Option<&EndpointSlice>,
) -> Option<Write> {
    let object = build::slice(wanted, service, route, endpoints);
    let Some(live) = live else { return Some(Write::Create(object)) };
    let value = serde_json::to_value(live).ok()?;
    if build::covers(&value, &object.body) || (endpoints.is_empty() && live.endpoints.is_empty()) {
        return None;
    }
    let number = |text: &str| text.split('.').map(|part| part.parse::<u64>().unwrap_or(0)).collect::<Vec<_>>();
    let present = annotation(live, ROUTE_EPOCH).map(number).unwrap_or_default();
    if number(route) < present {
        return None;
    }
    let mut object: Object = object.at(&value);
    object.body["metadata"]["resourceVersion"] = value["metadata"]["resourceVersion"].clone();
    debug_assert_eq!(object.kind, Kind::Slice);
    Some(Write::Apply(object))
}
