//! Status: computed on every path, in one place, from what was observed and planned.

use backlot_api::database::{BindingReference, DatabaseStatus};
use backlot_api::labels::{CLUSTER_UID, COMPONENT};
use backlot_standard::request::MemberState;
use backlot_standard::result::ClusterHealth;
use backlot_standard::status::{EnginePhase, MemberStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;

use crate::build::has_leader;
use crate::names;
use crate::plan::{Activity, ActivityKind, Plan};
use crate::routes;
use crate::snapshot::{Observed, Snapshot};
use crate::validate::{Judgement, Refusal, Wanted};

/// A condition before it has a time.
struct Verdict {
    kind: &'static str,
    is_true: bool,
    reason: String,
    message: String,
}

fn verdict(kind: &'static str, is_true: bool, reason: impl Into<String>, message: impl Into<String>) -> Verdict {
    Verdict { kind, is_true, reason: reason.into(), message: message.into() }
}

/// Status after a pass that was planned like this.
pub fn status(snapshot: &Snapshot, judgement: &Judgement, plan: &Plan, now: Timestamp) -> DatabaseStatus {
    let previous = snapshot.database.status.clone().unwrap_or_default();
    let generation = snapshot.database.metadata.generation;
    if snapshot.database.metadata.deletion_timestamp.is_some() {
        return deleting(previous, plan, generation, now);
    }
    let before = previous.conditions.clone();
    let (mut status, mut verdicts) = match &judgement.followed {
        Some(wanted) => followed(snapshot, wanted, plan, previous),
        None => (previous, vec![]),
    };
    if judgement.refusals.is_empty() {
        status.accepted_spec = Some(Box::new(snapshot.database.spec.clone()));
    } else {
        status.summary = Some(refused(&judgement.refusals, &mut verdicts));
    }
    status.observed_generation = generation;
    status.summary = status.summary.map(truncate);
    status.conditions = conditions(&before, verdicts, generation, now);
    status
}

/// Status of a Database whose members follow a spec, and the verdicts on it: Ready first.
fn followed(
    snapshot: &Snapshot,
    wanted: &Wanted,
    plan: &Plan,
    previous: DatabaseStatus,
) -> (DatabaseStatus, Vec<Verdict>) {
    let members: Vec<_> = plan.groups.iter().flat_map(|group| &group.members).collect();
    let is_ready = |name: &str| {
        agent(snapshot, name).is_some_and(|status| {
            status.engine.phase == EnginePhase::Running && status.health.as_ref().is_some_and(|health| health.ready)
        })
    };
    let joined = members.iter().filter(|member| member.state == MemberState::Joined).count();
    let ready = members.iter().filter(|member| member.state == MemberState::Joined && is_ready(&member.name)).count();
    let wants: usize = wanted.components.iter().map(|component| component.members as usize).sum();
    let bound = wanted.manifest.bound_component();
    let in_bound = plan.groups.iter().filter(|group| group.component == bound).flat_map(|group| &group.members);
    let scaled = in_bound.filter(|member| member.state == MemberState::Joined).count();
    let leader = routes::leader(snapshot).map(|status| status.member.clone());
    let unwell: Vec<String> = members
        .iter()
        .filter(|member| member.state == MemberState::Joined && !is_ready(&member.name))
        .map(|member| describe(snapshot, &member.name))
        .collect();
    let available = available(snapshot, wanted, plan, leader.as_deref());
    let first = |kind| plan.activities.iter().find(|activity| activity.kind == kind);
    let obstacle = first(ActivityKind::Stuck);
    let (work, pause) = (first(ActivityKind::Working), first(ActivityKind::Paused));
    let is_complete = ready == wants && joined == members.len() && available.is_true;
    let verdicts = vec![
        ready_verdict(is_complete, ready, wants, &unwell, obstacle.or(work).or(pause), &available),
        progressing(work, obstacle.or(pause)),
        degraded(&unwell, obstacle),
        available,
    ];
    let summary = summary(&verdicts, obstacle.or(work).or(pause), &unwell);
    let status = DatabaseStatus {
        cluster_uid: Some(wanted.cluster_uid.clone()),
        version: Some(wanted.manifest.version.clone()),
        class_version: Some(wanted.class_version.clone()),
        image: Some(wanted.image.clone()),
        // What `spec.members` scales, and the pods by which it may be scaled.
        members: u32::try_from(scaled).unwrap_or(u32::MAX),
        ready_members: Some(format!("{ready}/{wants}")),
        leader: if has_leader(wanted) { leader } else { None },
        summary: Some(summary),
        selector: Some(format!("{CLUSTER_UID}={},{COMPONENT}={bound}", wanted.cluster_uid)),
        binding: Some(BindingReference { name: names::binding_secret(&wanted.name) }),
        groups: plan.groups.clone(),
        ..previous
    };
    (status, verdicts)
}

/// Puts a refused spec into the verdicts; answers the summary. What members do all the same is still told.
fn refused(refusals: &[Refusal], verdicts: &mut Vec<Verdict>) -> String {
    let reason = refusals.first().map_or("SpecRefused", |refusal| refusal.reason);
    let message = refusals.iter().map(|refusal| refusal.message.as_str()).collect::<Vec<_>>().join("; ");
    // An image that is being inspected is no fault of anybody.
    let is_waiting = refusals.iter().all(|refusal| refusal.reason == "ImageNotInspected");
    let is_at_work = verdicts.iter().any(|known| known.kind == "Progressing" && known.is_true);
    verdicts.retain(|known| known.kind == "Available" || (known.kind == "Progressing" && is_at_work));
    verdicts.insert(0, verdict("Ready", false, reason, message.clone()));
    if is_waiting && !is_at_work {
        verdicts.insert(1, verdict("Progressing", true, reason, message.clone()));
    } else if !is_at_work {
        verdicts.insert(1, verdict("Progressing", false, reason, "nothing is changed until the spec is accepted"));
    }
    verdicts.insert(2, verdict("Degraded", !is_waiting, reason, message.clone()));
    format!("{}: {message}", if is_waiting { "Waits" } else { "Refused" })
}

fn deleting(previous: DatabaseStatus, plan: &Plan, generation: Option<i64>, now: Timestamp) -> DatabaseStatus {
    let message = plan.activities.first().map_or_else(|| "is deleted".to_owned(), |activity| activity.message.clone());
    let verdicts = vec![
        verdict("Ready", false, "Deleting", message.clone()),
        verdict("Progressing", true, "Deleting", message.clone()),
    ];
    DatabaseStatus {
        observed_generation: generation,
        summary: Some(truncate(format!("Deleting: {message}"))),
        conditions: conditions(&previous.conditions, verdicts, generation, now),
        ..previous
    }
}

fn agent<'a>(snapshot: &'a Snapshot, member: &str) -> Option<&'a MemberStatus> {
    snapshot.agents.get(member).and_then(Observed::known)
}

/// A member that is not ready, in words.
fn describe(snapshot: &Snapshot, member: &str) -> String {
    match snapshot.agents.get(member) {
        Some(Observed::Known(status)) => {
            let blocked = status.blocked.as_ref().map(|blocked| format!("{}: {}", blocked.reason, blocked.message));
            let health = status.health.as_ref().filter(|health| !health.ready).map(|health| {
                let reasons = health.reasons.join(", ");
                if health.message.is_empty() { reasons } else { health.message.clone() }
            });
            let exit = status.engine.last_exit.as_ref().filter(|_| status.engine.phase == EnginePhase::Crashed);
            let crash = exit.map(|exit| format!("crashed: {}", exit.output_tail.lines().last().unwrap_or_default()));
            let state = format!("{:?}", status.engine.phase).to_lowercase();
            let why = blocked.or(crash).or(health.filter(|text| !text.is_empty())).unwrap_or(state);
            format!("{member} ({why})")
        }
        Some(Observed::Unknown(why)) => format!("{member} (not reached: {why})"),
        Some(Observed::Absent) | None => format!("{member} (no agent answers)"),
    }
}

fn available(snapshot: &Snapshot, wanted: &Wanted, plan: &Plan, leader: Option<&str>) -> Verdict {
    if has_leader(wanted) {
        return match leader {
            Some(leader) => verdict("Available", true, "LeaderWritable", format!("{leader} takes writes")),
            None => verdict("Available", false, "NoWritableLeader", "no member reports that it takes writes"),
        };
    }
    let serves = |name: &str| {
        agent(snapshot, name).and_then(|status| status.health.as_ref()).is_some_and(|health| {
            health.ready && !matches!(health.cluster, ClusterHealth::NoQuorum | ClusterHealth::PartlyLost)
        })
    };
    let bound = plan.groups.iter().filter(|group| group.component == wanted.manifest.bound_component());
    let members = bound.flat_map(|group| &group.members).filter(|member| member.state == MemberState::Joined);
    match members.filter(|member| serves(&member.name)).count() {
        0 => verdict("Available", false, "NoMemberServes", "no member reports that it serves"),
        _ => verdict("Available", true, "MembersServe", "members serve"),
    }
}

fn ready_verdict(
    is_complete: bool,
    ready: usize,
    wants: usize,
    unwell: &[String],
    activity: Option<&Activity>,
    available: &Verdict,
) -> Verdict {
    if is_complete {
        return verdict("Ready", true, "Ready", format!("{ready} of {wants} members are ready"));
    }
    let counts = format!("{ready} of {wants} members are ready");
    match (activity, unwell.first()) {
        (Some(activity), _) => verdict("Ready", false, activity.reason, format!("{counts}; {}", activity.message)),
        (None, Some(first)) => verdict("Ready", false, "MembersNotReady", format!("{counts}; {first}")),
        (None, None) if !available.is_true => {
            verdict("Ready", false, available.reason.clone(), format!("{counts}; {}", available.message))
        }
        (None, None) => verdict("Ready", false, "MembersNotReady", counts),
    }
}

fn progressing(work: Option<&Activity>, obstacle: Option<&Activity>) -> Verdict {
    match (work, obstacle) {
        (Some(work), _) => verdict("Progressing", true, work.reason, work.message.clone()),
        (None, Some(obstacle)) => verdict("Progressing", false, obstacle.reason, obstacle.message.clone()),
        (None, None) => verdict("Progressing", false, "Settled", "nothing is to be changed"),
    }
}

fn degraded(unwell: &[String], obstacle: Option<&Activity>) -> Verdict {
    match (obstacle, unwell.is_empty()) {
        (Some(obstacle), _) => verdict("Degraded", true, obstacle.reason, obstacle.message.clone()),
        (None, false) => verdict("Degraded", true, "MembersNotReady", unwell.join("; ")),
        (None, true) => verdict("Degraded", false, "AllWell", "all members are well"),
    }
}

fn summary(verdicts: &[Verdict], activity: Option<&Activity>, unwell: &[String]) -> String {
    let is_ready = verdicts.iter().any(|verdict| verdict.kind == "Ready" && verdict.is_true);
    match (is_ready, activity, unwell.first()) {
        (true, None, _) => "Ready".to_owned(),
        (_, Some(activity), _) => format!("{}: {}", activity.reason, activity.message),
        (false, None, Some(first)) => format!("Degraded: {first}"),
        (false, None, None) => {
            verdicts.first().map(|verdict| format!("{}: {}", verdict.reason, verdict.message)).unwrap_or_default()
        }
    }
}

/// Conditions with times: a time changes only with its status. Conditions of types not judged now are kept.
fn conditions(
    previous: &[Condition],
    verdicts: Vec<Verdict>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions: Vec<Condition> = verdicts
        .into_iter()
        .map(|verdict| {
            let status = if verdict.is_true { "True" } else { "False" };
            let same = previous.iter().find(|condition| condition.type_ == verdict.kind && condition.status == status);
            Condition {
                type_: verdict.kind.to_owned(),
                status: status.to_owned(),
                reason: verdict.reason,
                message: truncate(verdict.message),
                observed_generation: generation,
                last_transition_time: same
                    .map_or_else(|| Time(now), |condition| condition.last_transition_time.clone()),
            }
        })
        .collect();
    let kept = previous
        .iter()
        .filter(|known| !conditions.iter().any(|condition| condition.type_ == known.type_))
        .cloned()
        .collect::<Vec<_>>();
    conditions.extend(kept);
    conditions
}

/// Longest message of a condition that is kept; the API server refuses more than 32 KiB, people read less.
const LONGEST_MESSAGE: usize = 1024;

fn truncate(mut message: String) -> String {
    if message.len() > LONGEST_MESSAGE {
        let end = (0..=LONGEST_MESSAGE).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Name of a Database for logs: `namespace/name`.
pub fn title(snapshot: &Snapshot) -> String {
    format!("{}/{}", snapshot.database.namespace().unwrap_or_default(), snapshot.database.name_any())
}
