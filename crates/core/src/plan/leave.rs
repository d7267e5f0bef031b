//! Shrinking: a member's `leave` is proven done before its pod goes, its pod is gone before its volume is touched.

use backlot_api::database::{DeletionPolicy, MemberRecord};
use backlot_api::labels;
use backlot_standard::operation::{Act, OperationState};
use backlot_standard::request::{MemberState, Reason};
use backlot_standard::result::{DataState, EngineMember, MembershipOutput};
use backlot_standard::status::{EnginePhase, MemberStatus};
use backlot_standard::verb::{RunsOn, Verb};
use serde_json::json;

use super::{Event, Group, Plan, Target, Write, claims_of, progress, stuck, trouble, working};
use crate::build::Kind;
use crate::snapshot::{Observed, Question, annotation, belongs_to};

/// Moves leaving members on. Busy while there are any.
pub(super) fn leave(group: &mut Group<'_>, plan: &mut Plan) -> bool {
    let going: Vec<MemberRecord> = group
        .stored
        .members
        .iter()
        .filter(|member| matches!(member.state, MemberState::Leaving | MemberState::Left))
        .cloned()
        .collect();
    for member in &going {
        if member.state == MemberState::Leaving {
            end_membership(group, plan, member);
        } else {
            remove(group, plan, member);
        }
    }
    let is_marking = group.next.members.iter().any(|member| member.state == MemberState::Leaving);
    if is_marking && going.is_empty() {
        plan.activities.push(working("Shrinking", "a member is to leave"));
    }
    is_marking || !going.is_empty()
}

fn end_membership(group: &mut Group<'_>, plan: &mut Plan, member: &MemberRecord) {
    let name = &member.name;
    let membership = match ask_membership(group, plan, name) {
        Some(Observed::Known(membership)) => Some(membership),
        Some(Observed::Unknown(why)) => {
            plan.activities
                .push(stuck("ShrinkWaits", format!("{name} stays: the engine's member list cannot be read ({why})")));
            return;
        }
        // Without the verb, the image's own check in `leave` is the only proof there is.
        Some(Observed::Absent) => None,
        None => return,
    };
    if let Some(list) = membership.as_ref().filter(|list| !contains(list, member)) {
        match why_unproven(group, list, member) {
            None => proven(group, plan, name),
            Some(why) => plan.activities.push(stuck("ShrinkWaits", format!("{name} stays: {why}"))),
        }
        return;
    }
    if let Some(list) = membership.as_ref().filter(|_| group.wanted.manifest.membership.quorum)
        && let Some(why) = breaks_quorum(group, list)
    {
        plan.activities.push(stuck("ShrinkWaits", format!("{name} stays: {why}")));
        return;
    }
    let has_nothing = has_nothing(group, member);
    let can_leave = group.wanted.has(Verb::Leave) && !has_nothing;
    let verb = if group.wanted.has(Verb::Forget) && !can_leave { Verb::Forget } else { Verb::Leave };
    if !group.wanted.has(verb) || (verb == Verb::Leave && has_nothing) {
        if group.wanted.manifest.membership.quorum {
            let engine = &group.wanted.manifest.engine;
            plan.activities.push(stuck(
                "ShrinkNotSupported",
                format!("{name} stays: the image of {engine} has no verb that could remove it. Set the members back"),
            ));
        } else {
            proven(group, plan, name);
        }
        return;
    }
    let id = format!("{}/{name}/{}", verb.name(), member.incarnation.as_deref().unwrap_or("none"));
    let report = group.report(&id).cloned();
    match report.as_ref() {
        Some(report) if report.state == OperationState::Done && membership.is_none() => {
            proven(group, plan, name);
            return;
        }
        Some(report) if report.state == OperationState::Failed => {
            plan.activities.push(stuck("LeaveFailed", format!("{name} is not removed: {}", trouble(report))));
        }
        Some(report) if report.state == OperationState::Done => {
            let verb = verb.name();
            plan.activities
                .push(stuck("ShrinkWaits", format!("{name} stays: its {verb} is done, but the engine still lists it")));
        }
        other => plan.activities.push(working("Leaving", format!("{name} leaves{}", progress(other)))),
    }
    match group.place(verb, name) {
        Some(place) => plan.operations.push(group.operation(&place, id, Act::Verb(verb), Reason::Leave, name)),
        None => plan.activities.push(stuck(
            "ShrinkWaits",
            format!("{name} stays: no member answers that could carry out its {}", verb.name()),
        )),
    }
}

/// Whether a member's engine cannot run any more, and there is nothing that it could move away.
fn has_nothing(group: &Group<'_>, member: &MemberRecord) -> bool {
    let is_fresh = |status: &MemberStatus| status.data == Some(DataState::Fresh);
    let is_volume_lost = member.incarnation.is_some() && super::keep::lost_claim(group, member).is_some();
    let status = group.agent(&member.name);
    is_volume_lost || status.is_some_and(|status| is_fresh(status) && status.engine.phase == EnginePhase::Waiting)
}

/// The engine's list as a member that stays sees it; `None` when it was asked now and the pass is planned again, `Absent` when the
/// image cannot tell.
fn ask_membership(group: &Group<'_>, plan: &mut Plan, subject: &str) -> Option<Observed<MembershipOutput>> {
    if !group.wanted.has(Verb::Membership) {
        return Some(Observed::Absent);
    }
    let asked = match group.wanted.manifest.rule(Verb::Membership).runs_on {
        RunsOn::Leader => group.leader().filter(|leader| group.is_running(leader)),
        RunsOn::Self_ | RunsOn::Survivor | RunsOn::Any | RunsOn::Every => {
            group.survivors(subject).first().map(|member| member.name.clone())
        }
    };
    let Some(asked) = asked else { return Some(Observed::Unknown("no other member answers".to_owned())) };
    Some(match group.snapshot.answers.memberships.get(&asked) {
        None => {
            plan.questions.push(Question::Membership { member: asked });
            return None;
        }
        // A list without the member that gave it, an empty one above all, proves nothing about others.
        Some(Observed::Known(list)) if !list.members.iter().any(|known| known.id.as_deref() == Some(&asked)) => {
            Observed::Unknown(format!("{asked} does not list itself"))
        }
        Some(Observed::Absent) => Observed::Unknown(format!("{asked} gave no answer")),
        Some(answer) => answer.clone(),
    })
}

fn contains(list: &MembershipOutput, member: &MemberRecord) -> bool {
    list.members.iter().any(|known| {
        known.id.as_deref() == Some(&member.name) || member.engine_id.as_deref() == Some(known.engine_id.as_str())
    })
}

/// Why a list that does not name the member is no proof that it is gone.
fn why_unproven(group: &Group<'_>, list: &MembershipOutput, member: &MemberRecord) -> Option<String> {
    let ghost = list.members.iter().find(|known| known.id.is_none() && member.engine_id.is_none());
    if let Some(ghost) = ghost {
        return Some(format!("the engine lists {}, and nobody knows which member that is", ghost.engine_id));
    }
    let begun = format!("join/{}/", member.name);
    let mut operations =
        group.snapshot.agents.values().filter_map(Observed::known).flat_map(|status| &status.operations);
    operations
        .any(|report| report.id.starts_with(&begun) && report.state == OperationState::Running)
        .then(|| "its join is still at work".to_owned())
}

/// Why the members that remain could not keep a majority, by the engine's own list. Who is not known to be up is not.
fn breaks_quorum(group: &Group<'_>, list: &MembershipOutput) -> Option<String> {
    let goes = |known: &EngineMember| {
        let mut leaving = group.stored.members.iter().filter(|member| member.state == MemberState::Leaving);
        leaving.any(|member| {
            known.id.as_deref() == Some(&member.name) || member.engine_id.as_deref() == Some(&known.engine_id)
        })
    };
    let remaining: Vec<_> = list.members.iter().filter(|known| known.vote && !goes(known)).collect();
    let is_up = |known: &EngineMember| match &known.id {
        Some(id) => known.up != Some(false) && group.is_running(id),
        None => known.up == Some(true),
    };
    let up = remaining.iter().filter(|known| is_up(known)).count();
    let majority = remaining.len() / 2 + 1;
    (up < majority).then(|| {
        format!(
            "only {up} of the {} voters that remain are up, {majority} are needed. Bring the others back first",
            remaining.len()
        )
    })
}

fn proven(group: &mut Group<'_>, plan: &mut Plan, name: &str) {
    if let Some(member) = group.next_member(name) {
        member.state = MemberState::Left;
    }
    plan.events.push(Event { reason: "MemberLeft", message: format!("{name} left") });
    plan.activities.push(working("Leaving", format!("{name} left; its pod goes next")));
}

fn remove(group: &mut Group<'_>, plan: &mut Plan, member: &MemberRecord) {
    let name = &member.name;
    let objects = &group.snapshot.objects;
    let cluster_uid = &group.wanted.cluster_uid;
    plan.activities.push(working("Leaving", format!("{name} left and is removed")));
    let pod = objects.pod(name).filter(|pod| belongs_to(*pod, cluster_uid));
    let claims: Vec<_> = claims_of(group.wanted, name)
        .values()
        .filter_map(|claim| objects.claim(claim))
        .filter(|claim| belongs_to(*claim, cluster_uid) && annotation(*claim, labels::LEFT).is_none())
        .collect();
    for claim in claims.iter().filter(|claim| claim.metadata.deletion_timestamp.is_none()) {
        let target = Target::of(Kind::Claim, *claim);
        match group.wanted.deletion_policy {
            // Marked before anything goes: a Database that takes the volumes back must not take this one for a member's.
            DeletionPolicy::Retain => plan
                .writes
                .push(Write::Patch { target, patch: json!({"metadata": {"annotations": {labels::LEFT: "true"}}}) }),
            DeletionPolicy::Delete if pod.is_none() => {
                plan.writes.push(Write::Delete { target, why: "the member left and deletionPolicy is Delete" });
            }
            DeletionPolicy::Delete => {}
        }
    }
    if let Some(pod) = pod.filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        plan.writes.push(Write::Delete { target: Target::of(Kind::Pod, pod), why: "the member left" });
    }
    if pod.is_none() && claims.is_empty() {
        group.next.members.retain(|known| known.name != *name);
    }
}
