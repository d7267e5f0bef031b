//! Growing: members that run become part of the engine's membership, then data is spread.

use backlot_standard::manifest::{MembershipChange, StartOrder};
use backlot_standard::operation::{Act, OperationReport, OperationState};
use backlot_standard::request::{MemberState, Reason};
use backlot_standard::result::JoinOutput;
use backlot_standard::verb::Verb;

use super::{Event, Group, Plan, progress, stuck, trouble, working};
use crate::snapshot::Observed;

/// Joins members that come. Busy while there are any.
pub(super) fn join(group: &mut Group<'_>, plan: &mut Plan) -> bool {
    admit(group);
    let coming: Vec<String> = group
        .stored
        .members
        .iter()
        .filter(|member| member.state == MemberState::Joining)
        .map(|member| member.name.clone())
        .collect();
    let is_one_at_a_time = group.wanted.manifest.membership.change == MembershipChange::One;
    let mut is_joining = false;
    for name in in_order(group, coming) {
        if is_joining && is_one_at_a_time {
            break;
        }
        is_joining |= join_one(group, plan, &name) || (is_one_at_a_time && may_be_joining(group, &name));
    }
    let waits: Vec<_> =
        group.next.members.iter().filter(|member| is_coming(member.state)).map(|member| member.name.clone()).collect();
    if !waits.is_empty() && !is_joining {
        plan.activities.push(working("WaitsForMembers", format!("waits for {}", waits.join(", "))));
    }
    !waits.is_empty()
}

/// Members whose join is at work come first, so that no other one is begun beside it; then those that may be joining.
fn in_order(group: &Group<'_>, mut coming: Vec<String>) -> Vec<String> {
    let is_at_work = |name: &String| {
        let begun = format!("join/{name}/");
        let mut operations =
            group.snapshot.agents.values().filter_map(Observed::known).flat_map(|status| &status.operations);
        operations.any(|report| report.id.starts_with(&begun) && report.state == OperationState::Running)
    };
    coming.sort_by_key(|name| (!is_at_work(name), !may_be_joining(group, name)));
    coming
}

/// Whether a member runs and is not heard of just now, so that its join may be at work.
fn may_be_joining(group: &Group<'_>, name: &str) -> bool {
    let is_silent = matches!(group.snapshot.agents.get(name), Some(Observed::Unknown(_)));
    let pod = group.snapshot.objects.pod(name);
    is_silent && pod.is_some_and(|pod| super::keep::pod_trouble(pod).is_none())
}

fn is_coming(state: MemberState) -> bool {
    matches!(state, MemberState::New | MemberState::Joining)
}

/// Lets new members start and join: all of them, or one after the other where the type wants that. A member that is not
/// admitted waits with its volume and image ready.
pub(super) fn admit(group: &mut Group<'_>) {
    let is_serial = group.wanted.manifest.membership.start == StartOrder::Serial;
    let mut may_admit = !(is_serial && group.next.members.iter().any(|member| member.state == MemberState::Joining));
    for member in group.next.members.iter_mut().filter(|member| member.state == MemberState::New) {
        if may_admit {
            member.state = MemberState::Joining;
            may_admit = !is_serial;
        }
    }
}

/// Joins one member if its engine is up; `true` when it is at work.
fn join_one(group: &mut Group<'_>, plan: &mut Plan, name: &str) -> bool {
    if !group.is_running(name) {
        return false;
    }
    let stateless = group.component.component.stateless.then(String::new);
    let reported = group.agent(name).and_then(|status| status.incarnation.clone());
    let Some(incarnation) = reported.or(stateless) else { return false };
    if !group.wanted.has(Verb::Join) {
        if group.is_ready(name) {
            record(group, plan, name, incarnation, None);
        }
        return true;
    }
    let id = format!("join/{name}/{incarnation}");
    let report = group.report(&id).cloned();
    if let Some(report) = report.as_ref().filter(|report| report.state == OperationState::Done) {
        record(group, plan, name, incarnation, engine_id(report));
        return true;
    }
    let Some(place) = group.place(Verb::Join, name) else {
        plan.activities.push(working("JoinWaits", format!("{name} waits for a member to join through")));
        return true;
    };
    match report.as_ref() {
        Some(report) if report.state == OperationState::Failed => {
            plan.activities.push(stuck("JoinFailed", format!("{name}: {}", trouble(report))));
        }
        other => plan.activities.push(working("Joining", format!("{name} joins{}", progress(other)))),
    }
    plan.operations.push(group.operation(&place, id, Act::Verb(Verb::Join), Reason::Create, name));
    true
}

fn record(group: &mut Group<'_>, plan: &mut Plan, name: &str, incarnation: String, engine_id: Option<String>) {
    if let Some(member) = group.next_member(name) {
        member.state = MemberState::Joined;
        member.incarnation = Some(incarnation);
        member.engine_id = engine_id;
    }
    plan.events.push(Event { reason: "MemberJoined", message: format!("{name} joined") });
    plan.activities.push(working("Joining", format!("{name} joined")));
}

/// The engine's own id that `found` or `join` answered.
pub(super) fn engine_id(report: &OperationReport) -> Option<String> {
    let output = report.result.output.clone()?;
    serde_json::from_value::<JoinOutput>(output).ok()?.engine_id
}

/// Spreads data after the set of members has changed, for types that need it.
pub(super) fn rebalance(group: &mut Group<'_>, plan: &mut Plan) -> bool {
    if !group.wanted.has(Verb::Rebalance) {
        return false;
    }
    let names: Vec<_> = group.stored.members.iter().map(|member| member.name.as_str()).collect();
    let members = names.join(",");
    if group.stored.rebalanced_for.as_deref() == Some(&members) {
        return false;
    }
    let subject = names.first().map(ToString::to_string).unwrap_or_default();
    let incarnations: Vec<_> = group.stored.members.iter().filter_map(|member| member.incarnation.as_deref()).collect();
    // Counted, so that the way back to a set that was there before is another operation.
    let number = group.stored.rebalances + 1;
    let id = format!("rebalance/{}/{number}/{}", group.title(), short_hash(&incarnations.join(",")));
    let report = group.report(&id).cloned();
    if report.as_ref().is_some_and(|report| report.state == OperationState::Done) {
        group.next.rebalanced_for = Some(members);
        group.next.rebalances = number;
        plan.activities.push(working("Rebalanced", "data was spread"));
        return true;
    }
    match report.as_ref() {
        Some(report) if report.state == OperationState::Failed => {
            plan.activities.push(stuck("RebalanceFailed", trouble(report)));
        }
        other => plan.activities.push(working("Rebalancing", format!("spreads data{}", progress(other)))),
    }
    if let Some(place) = group.place(Verb::Rebalance, &subject) {
        plan.operations.push(group.operation(&place, id, Act::Verb(Verb::Rebalance), Reason::Create, &place));
    }
    true
}

/// FNV-1a: only names an operation, collisions within one group do not matter.
fn short_hash(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}
