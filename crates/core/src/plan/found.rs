//! Founding: once per group, by the member that status names before anybody is told to.

use backlot_api::database::{Founder, GroupStatus, MemberRecord};
use backlot_standard::manifest::{Elections, Leadership, StartOrder};
use backlot_standard::operation::{Act, OperationState};
use backlot_standard::request::{MemberState, Reason};
use backlot_standard::result::DataState;
use backlot_standard::verb::Verb;

use super::{Event, Group, Plan, stuck, trouble, working};
use crate::records;

/// Chooses the founder, then has it found the group. Busy until the group is founded.
pub(super) fn found(group: &mut Group<'_>, plan: &mut Plan) -> bool {
    if group.stored.founded {
        return false;
    }
    if let Some(root) = group.root().cloned() {
        follow(group, plan, &root);
        return true;
    }
    match group.stored.founder.clone() {
        None => choose(group, plan),
        Some(founder) => operate(group, plan, &founder),
    }
    true
}

/// Members of a component that joins another's cluster may come as soon as that one is founded.
fn follow(group: &mut Group<'_>, plan: &mut Plan, root: &GroupStatus) {
    if root.founded {
        group.next.founded = true;
        super::join::admit(group);
        plan.activities.push(working("Joining", format!("{} joins what {} founded", group.title(), root.component)));
    } else {
        plan.activities
            .push(working("WaitsForComponent", format!("{} waits until {} is founded", group.title(), root.component)));
    }
}

fn choose(group: &mut Group<'_>, plan: &mut Plan) {
    if let Some(waits_for) = unfounded_dependency(group) {
        plan.activities
            .push(working("WaitsForComponent", format!("{} waits until {waits_for} is founded", group.title())));
        return;
    }
    let new: Vec<_> = group.next.members.iter().filter(|member| member.state == MemberState::New).collect();
    let data = |member: &MemberRecord| group.agent(&member.name).and_then(|status| status.data);
    let holds = |member: &&MemberRecord| data(member).is_some_and(|data| data != DataState::Fresh);
    // Also data of a component that would join: it belongs to a cluster that was.
    let others = group.peers.iter().flat_map(|peer| &peer.members);
    let all: Vec<_> = group.next.members.iter().chain(others).collect();
    if let Some(member) = all.iter().copied().find(holds) {
        plan.activities.push(stuck(
            "UnexpectedData",
            format!(
                "{} is not founded: the volume of {} holds data already, but no record says that the group was founded. Nothing was touched; move the data away or restore the Secret of its cluster",
                group.title(),
                member.name
            ),
        ));
        return;
    }
    // What an older volume holds must be known before anything is founded beside it.
    let is_unknown = |member: &&MemberRecord| {
        records::has_older_volume(group.snapshot, group.wanted, &member.name) && data(member).is_none()
    };
    let mut waiting = all.iter().copied().filter(|member| member.state == MemberState::New);
    if let Some(member) = waiting.find(is_unknown) {
        plan.activities.push(working(
            "WaitsForMembers",
            format!("{} waits to see what the earlier volume of {} holds", group.title(), member.name),
        ));
        return;
    }
    let is_stateless = group.component.component.stateless;
    // Where members come one after the other, they come in the order of their ordinals, the first one too.
    let candidates = match group.wanted.manifest.membership.start {
        StartOrder::Serial => 1,
        StartOrder::Parallel => new.len(),
    };
    let fresh = new.iter().take(candidates).find_map(|member| {
        let status = group.agent(&member.name)?;
        let incarnation = status.incarnation.clone().or_else(|| is_stateless.then(String::new))?;
        (status.data == Some(DataState::Fresh)).then(|| Founder { member: member.name.clone(), incarnation })
    });
    let Some(founder) = fresh else {
        plan.activities.push(working("WaitsForMembers", format!("{} waits for its first member", group.title())));
        return;
    };
    plan.activities.push(working("Founding", format!("{} is to found {}", founder.member, group.title())));
    if group.wanted.manifest.elections == Elections::Agent && group.component.component.leader != Leadership::None {
        group.next.leader = Some(founder.member.clone());
        group.next.epoch = 1;
    }
    group.next.founder = Some(founder);
}

fn operate(group: &mut Group<'_>, plan: &mut Plan, founder: &Founder) {
    let Some(status) = group.agent(&founder.member) else {
        plan.activities
            .push(working("WaitsForMembers", format!("waits for {} to found {}", founder.member, group.title())));
        return;
    };
    let stateless = group.component.component.stateless.then(String::new);
    let Some(incarnation) = status.incarnation.clone().or(stateless) else {
        plan.activities.push(working("WaitsForMembers", format!("waits for the volume of {}", founder.member)));
        return;
    };
    if incarnation != founder.incarnation {
        plan.activities.push(stuck(
            "FounderVolumeReplaced",
            format!(
                "the volume of {} was replaced while it founded {}: whether data exists elsewhere is unknown, so nothing is founded again. Delete the Database and create it anew",
                founder.member,
                group.title()
            ),
        ));
        return;
    }
    let id = format!("found/{}/{}", group.title(), group.wanted.cluster_uid);
    let report = status.operations.iter().find(|report| report.id == id).cloned();
    if let Some(report) = report.as_ref().filter(|report| report.state == OperationState::Done) {
        let engine_id = super::join::engine_id(report);
        group.next.founded = true;
        if let Some(member) = group.next_member(&founder.member) {
            member.state = MemberState::Joined;
            member.incarnation = Some(incarnation);
            member.engine_id = engine_id;
        }
        super::join::admit(group);
        plan.events.push(Event { reason: "Founded", message: format!("{} founded {}", founder.member, group.title()) });
        plan.activities.push(working("Founded", format!("{} founded {}", founder.member, group.title())));
        return;
    }
    let is_recorded = records::founding(group.snapshot).is_ok_and(|record| {
        let mut groups = record.iter().flat_map(|record| &record.groups);
        groups.any(|known| known.component == group.stored.component && known.founder.as_ref() == Some(founder))
    });
    if !is_recorded {
        // The record on the Secret comes first: it outlives the Database together with what is founded now.
        plan.activities.push(working("Founding", format!("records that {} founds {}", founder.member, group.title())));
        return;
    }
    match report.filter(|report| report.state == OperationState::Failed) {
        Some(report) => {
            plan.activities.push(stuck("FoundingFailed", format!("{}: {}", founder.member, trouble(&report))));
        }
        None => plan.activities.push(working("Founding", format!("{} founds {}", founder.member, group.title()))),
    }
    plan.operations.push(group.operation(&founder.member, id, Act::Verb(Verb::Found), Reason::Create, &founder.member));
}

fn unfounded_dependency(group: &Group<'_>) -> Option<String> {
    let status = group.snapshot.database.status.as_ref();
    let is_founded = |component: &str| {
        let mut groups = status
            .into_iter()
            .flat_map(|status| &status.groups)
            .filter(|group| group.component == component)
            .peekable();
        groups.peek().is_some() && groups.all(|group| group.founded)
    };
    let is_wanted =
        |name: &str| group.wanted.components.iter().any(|known| known.component.name == name && known.members > 0);
    let mut dependencies = group.component.component.depends_on.iter();
    dependencies.find(|component| is_wanted(component) && !is_founded(component)).cloned()
}
