//! Shrinking: a member's `leave` is proven done before its pod goes, its pod is gone before its volume is touched.

use backlot_api::database::{DeletionPolicy, MemberRecord};
use backlot_api::labels;
use backlot_standard::operation::{Act, OperationState};
use backlot_standard::request::{MemberState, Reason};
use backlot_standard::result::MembershipOutput;
use backlot_standard::verb::Verb;
use serde_json::json;

use super::{Event, Group, Plan, Target, Write, claims_of, progress, stuck, trouble, working};
use crate::build::Kind;
use crate::snapshot::{Observed, Question, annotation};

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
    let is_member = membership.as_ref().is_none_or(|list| contains(list, member));
    if membership.is_some() && !is_member {
        proven(group, plan, name);
        return;
    }
    if let Some(list) = membership.as_ref().filter(|_| group.wanted.manifest.membership.quorum)
        && let Some(why) = breaks_quorum(group, list, member)
    {
        plan.activities.push(stuck("ShrinkWaits", format!("{name} stays: {why}")));
        return;
    }
    let is_volume_lost = member.incarnation.is_some() && super::keep::lost_claim(group, member).is_some();
    let can_forget = group.wanted.has(Verb::Forget);
    let verb =
        if can_forget && (is_volume_lost || !group.wanted.has(Verb::Leave)) { Verb::Forget } else { Verb::Leave };
    if !group.wanted.has(verb) {
        if group.wanted.manifest.membership.quorum {
            let engine = &group.wanted.manifest.engine;
            plan.activities.push(stuck(
                "ShrinkNotSupported",
                format!("{name} stays: the image of {engine} has neither leave nor forget. Set the members back"),
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

/// The engine's list as a survivor sees it; `None` when it was asked now and the pass is planned again, `Absent` when the
/// image cannot tell.
fn ask_membership(group: &Group<'_>, plan: &mut Plan, subject: &str) -> Option<Observed<MembershipOutput>> {
    if !group.wanted.has(Verb::Membership) {
        return Some(Observed::Absent);
    }
    let Some(survivor) = group.survivors(subject).first().map(|member| member.name.clone()) else {
        return Some(Observed::Unknown("no other member answers".to_owned()));
    };
    let answer = group.snapshot.answers.memberships.get(&survivor);
    if answer.is_none() {
        plan.questions.push(Question::Membership { member: survivor });
    }
    answer.map(|answer| match answer {
        Observed::Absent => Observed::Unknown("no answer".to_owned()),
        other => other.clone(),
    })
}

fn contains(list: &MembershipOutput, member: &MemberRecord) -> bool {
    list.members.iter().any(|known| {
        known.id.as_deref() == Some(&member.name) || member.engine_id.as_deref() == Some(known.engine_id.as_str())
    })
}

/// Why the members that remain could not keep a majority, by the engine's own list.
fn breaks_quorum(group: &Group<'_>, list: &MembershipOutput, member: &MemberRecord) -> Option<String> {
    let is_subject =
        |id: Option<&str>, engine_id: &str| id == Some(&member.name) || member.engine_id.as_deref() == Some(engine_id);
    let remaining: Vec<_> =
        list.members.iter().filter(|known| known.vote && !is_subject(known.id.as_deref(), &known.engine_id)).collect();
    let up = remaining
        .iter()
        .filter(|known| known.up != Some(false) && known.id.as_deref().is_none_or(|id| group.is_running(id)))
        .count();
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
    plan.activities.push(working("Leaving", format!("{name} left and is removed")));
    if let Some(pod) = objects.pod(name) {
        if pod.metadata.deletion_timestamp.is_none() {
            plan.writes.push(Write::Delete { target: Target::of(Kind::Pod, pod), why: "the member left" });
        }
        return;
    }
    let claims: Vec<_> = claims_of(group.wanted, name)
        .values()
        .filter_map(|claim| objects.claim(claim))
        .filter(|claim| annotation(*claim, labels::LEFT).is_none())
        .collect();
    for claim in &claims {
        let target = Target::of(Kind::Claim, *claim);
        if claim.metadata.deletion_timestamp.is_some() {
            continue;
        }
        plan.writes.push(match group.wanted.deletion_policy {
            DeletionPolicy::Delete => Write::Delete { target, why: "the member left and deletionPolicy is Delete" },
            DeletionPolicy::Retain => {
                Write::Patch { target, patch: json!({"metadata": {"annotations": {labels::LEFT: "true"}}}) }
            }
        });
    }
    if claims.is_empty() {
        group.next.members.retain(|known| known.name != *name);
    }
}
