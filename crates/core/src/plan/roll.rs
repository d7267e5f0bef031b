//! Rolling restart: one member at a time, only while all others are well and the engine agrees.

use backlot_api::database::MemberRecord;
use backlot_standard::config::RoleOrder;
use backlot_standard::operation::Act;
use backlot_standard::request::{MemberState, Reason};
use backlot_standard::result::ClusterHealth;
use backlot_standard::verb::Verb;

use super::{Group, Plan, stuck, working};
use crate::records;
use crate::snapshot::{Observed, Question};

/// Restarts the next member whose settings wait for it. Busy while any waits.
pub(super) fn restart(group: &mut Group<'_>, plan: &mut Plan) -> bool {
    let waits: Vec<_> = group
        .stored
        .members
        .iter()
        .filter(|member| group.agent(&member.name).is_some_and(|status| !status.config.pending_restart.is_empty()))
        .collect();
    let mut order = records::roll_order(group.snapshot, group.wanted, &group.stored, waits.clone());
    if let Some(first) = first_role(group, &order) {
        let leader = group.leader();
        order.sort_by_key(|member| (leader.as_deref() == Some(&member.name)) != (first == RoleOrder::Leader));
    }
    let Some(member) = order.first() else { return false };
    let (name, left) = (member.name.clone(), waits.len());
    if let Some(late) = first_late(group) {
        // Who must go first is known only when all have said what waits for a restart.
        plan.activities.push(working(
            "RestartWaits",
            format!("{left} members wait for a restart; {late} takes up the settings first"),
        ));
        return true;
    }
    if let Some(unwell) = first_unwell(group, &name) {
        plan.activities
            .push(working("RestartWaits", format!("{left} members wait for a restart; {unwell} must be well first")));
        return true;
    }
    if group.wanted.has(Verb::CanDisrupt) && group.stored.members.len() > 1 {
        match group.snapshot.answers.disruptions.get(&name) {
            None => {
                let member = group.place(Verb::CanDisrupt, &name).unwrap_or_else(|| name.clone());
                plan.questions.push(Question::CanDisrupt { member, subject: name });
                return true;
            }
            Some(Observed::Known(answer)) if answer.allowed.contains(&name) => {}
            Some(Observed::Known(_) | Observed::Absent) => {
                plan.activities
                    .push(working("RestartWaits", format!("{name} waits: the engine does not allow its restart now")));
                return true;
            }
            Some(Observed::Unknown(why)) => {
                plan.activities.push(stuck("RestartWaits", format!("{name} waits: {why}")));
                return true;
            }
        }
    }
    let Some(status) = group.agent(&name) else { return true };
    let keys = status.config.pending_restart.join(", ");
    // The id names the engine's run that is to end, so that it can never apply to a later one.
    let id = format!("restart/{name}/{}/{}", status.boot_id, status.engine.starts);
    plan.activities.push(working(
        "Restarting",
        format!("{name} restarts for {keys}; {left} of {} members left", group.stored.members.len()),
    ));
    plan.operations.push(group.operation(&name, id, Act::Restart, Reason::Config, &name));
    true
}

/// A member that has not yet judged the newest settings that another one has.
fn first_late(group: &Group<'_>) -> Option<String> {
    let running = group.cluster().filter(|member| group.is_running(&member.name));
    let judged: Vec<_> = running
        .filter_map(|member| Some((&member.name, group.agent(&member.name)?)))
        .map(|(name, status)| (name, status.config.applied_generation, status.view_generation))
        .collect();
    let newest = judged.iter().filter_map(|(_, _, held)| *held).max()?;
    judged
        .iter()
        .find(|(_, applied, _)| applied.is_none_or(|applied| applied < newest))
        .map(|(name, _, _)| (*name).clone())
}

/// The role that must restart first, when a waiting setting demands one: some engines refuse a follower with less than its
/// leader has. The order of a raised value is the setting's own, that of a lowered one the reverse.
fn first_role(group: &Group<'_>, waits: &[&MemberRecord]) -> Option<RoleOrder> {
    let wanted = &group.component.config;
    waits.iter().filter_map(|member| group.agent(&member.name)).find_map(|status| {
        status.config.pending_restart.iter().find_map(|key| {
            let setting = group.wanted.manifest.config.get(key)?;
            let raised = setting.raise_first_on?;
            let (before, after) = (status.config.applied.get(key), wanted.get(key));
            let is_lowered = setting.lowers(before.map(String::as_str), after.map(String::as_str)).unwrap_or(false);
            Some(match (raised, is_lowered) {
                (RoleOrder::Followers, false) | (RoleOrder::Leader, true) => RoleOrder::Followers,
                (RoleOrder::Followers, true) | (RoleOrder::Leader, false) => RoleOrder::Leader,
            })
        })
    })
}

/// A member other than `subject` that must be well before `subject` may go down.
fn first_unwell(group: &Group<'_>, subject: &str) -> Option<String> {
    let others = group.cluster().filter(|member| member.name != subject);
    others
        .filter(|member| {
            let cluster =
                group.agent(&member.name).and_then(|status| status.health.as_ref()).map(|health| health.cluster);
            let is_well =
                group.is_ready(&member.name) && matches!(cluster, Some(ClusterHealth::Ok | ClusterHealth::Unknown));
            member.state == MemberState::Joined && !is_well
        })
        .map(|member| member.name.clone())
        .next()
}
