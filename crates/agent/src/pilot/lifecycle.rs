//! What to do next with the engine: a pure function of what is known.
//!
//! Invariants: absence of a view, an answer or a record permits nothing; an empty volume is founded only on the
//! operator's order and only by the member that its durable record names; data that is not this member's is never
//! started over. Every step may be interrupted anywhere: the next decision starts from what is then known.

use std::time::Duration;

use backlot_standard::request::{Member, MemberState};
use backlot_standard::result::DataState;
use backlot_standard::status::Blocked;
use backlot_standard::verb::{EngineState, Verb};
use backlot_standard::view::GroupView;

use super::identity::Volume;

/// An operation that changes whether the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Found the group.
    Found,
    /// Stop and start again.
    Restart,
    /// Stop and stay stopped.
    Stop,
    /// Run a verb that needs the engine stopped, then go on as before.
    Stopped(Verb),
}

/// Everything that the decision depends on.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not states")]
pub struct Facts<'a> {
    /// The container is to end.
    pub terminating: bool,
    /// Why the manifest cannot be used.
    pub manifest_error: Option<&'a str>,
    /// Generation of the view held.
    pub view: Option<u64>,
    /// This member's entry in the view.
    pub member: Option<&'a Member>,
    /// Its group in the view.
    pub group: Option<&'a GroupView>,
    /// The volume.
    pub volume: &'a Volume,
    /// Whether the engine's process is there.
    pub alive: bool,
    /// Whether it answered `up` since its start.
    pub up: bool,
    /// Whether `post-start` was done since its start.
    pub post_started: bool,
    /// Why `post-start` found the running engine's data to be somebody else's.
    pub rejected: Option<&'a str>,
    /// Why a running engine must be stopped and started again.
    pub unwell: Option<&'static str>,
    /// The oldest order that is not done.
    pub order: Option<Order>,
    /// Whether the engine was stopped since the order came.
    pub order_stopped: bool,
    /// Whether the engine is to stay stopped.
    pub held: bool,
    /// Time to wait before the next try of anything.
    pub pause: Option<Duration>,
    /// What `prepare` said since the engine last ended.
    pub data: Option<DataState>,
    /// Whether the image can clone.
    pub can_clone: bool,
    /// Engine state that `found` needs; `None` when the image has no such verb.
    pub found_needs: Option<EngineState>,
    /// Whether `found` was done on this volume.
    pub found_done: bool,
    /// Whether a founding member still must become writable.
    pub awaits_promotion: bool,
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until something changes.
    Rest(Option<Blocked>),
    /// Nothing, for this long or until something changes.
    Pause(Duration),
    /// Stop the engine gracefully.
    Stop(&'static str),
    /// Ask what the volume holds.
    Prepare,
    /// Fill the volume from another member.
    Clone,
    /// Render and start.
    Start {
        /// As part of the founding.
        founding: bool,
    },
    /// Run `post-start`.
    PostStart,
    /// Run `found`.
    Found,
    /// Run the verb of the order, the engine is stopped.
    RunStopped(Verb),
    /// The order is done.
    Finish,
    /// The order cannot be carried out.
    Refuse(Blocked),
    /// Tell the keeper to end the container.
    Exit,
}

/// Decides the next step.
pub fn decide(facts: &Facts<'_>) -> Step {
    if facts.terminating {
        return if facts.alive { Step::Stop("the container ends") } else { Step::Exit };
    }
    if let Some(error) = facts.manifest_error {
        return blocked("ManifestInvalid", error.to_owned());
    }
    if let Some(step) = obey(facts) {
        return step;
    }
    if facts.alive { tend(facts) } else { start(facts) }
}

/// What an order demands before everything else.
fn obey(facts: &Facts<'_>) -> Option<Step> {
    match facts.order? {
        Order::Stop if facts.alive => Some(Step::Stop("ordered to stop")),
        Order::Stop => Some(Step::Finish),
        Order::Restart if facts.alive && !facts.order_stopped => Some(Step::Stop("ordered to restart")),
        Order::Restart if facts.alive && facts.up && facts.post_started => Some(Step::Finish),
        Order::Restart => None,
        Order::Stopped(_) if facts.alive => Some(Step::Stop("a verb needs the engine stopped")),
        Order::Stopped(verb) => match (facts.pause, ownership(facts)) {
            (Some(pause), _) => Some(Step::Pause(pause)),
            (None, Some(blocked)) => Some(Step::Refuse(blocked)),
            (None, None) => Some(Step::RunStopped(verb)),
        },
        Order::Found => found(facts),
    }
}

/// The founding, from wherever it is. `None` = the ordinary course leads on.
fn found(facts: &Facts<'_>) -> Option<Step> {
    let (Some(member), Some(group)) = (facts.member, facts.group) else { return None };
    if group.founder.as_deref() != Some(&member.id) {
        let founder = group.founder.as_deref().unwrap_or("nobody");
        let message = format!("the view names {founder} as founder of this group, not {}", member.id);
        return Some(refuse("NotFounder", message));
    }
    if group.founded && !facts.found_done && facts.found_needs.is_some() {
        return Some(refuse("AlreadyFounded", "the group was founded before, but not with this volume".to_owned()));
    }
    let verb_due = facts.found_needs.is_some() && !facts.found_done;
    let needs_running = facts.found_needs == Some(EngineState::Running);
    if facts.alive {
        let running = facts.up && facts.post_started;
        return match (verb_due, needs_running) {
            (true, false) => Some(Step::Stop("founding needs the engine stopped")),
            (true, true) if running => facts.pause.map(Step::Pause).or(Some(Step::Found)),
            (false, _) if running && facts.awaits_promotion => Some(Step::Rest(None)),
            (false, _) if running => Some(Step::Finish),
            (true, true) | (false, _) => None,
        };
    }
    if let Some(blocked) = ownership(facts) {
        return Some(refuse(&blocked.reason, blocked.message));
    }
    if let Some(pause) = facts.pause {
        return Some(Step::Pause(pause));
    }
    match facts.data {
        None => Some(Step::Prepare),
        Some(DataState::Fresh | DataState::Incomplete) if group.founded => None,
        Some(DataState::Fresh | DataState::Incomplete) if facts.found_needs.is_some() && !needs_running => {
            Some(Step::Found)
        }
        Some(DataState::Existing) if verb_due && !needs_running => Some(Step::Found),
        Some(DataState::Fresh | DataState::Incomplete | DataState::Existing) => {
            Some(Step::Start { founding: !group.founded })
        }
        Some(DataState::Stale | DataState::Retired | DataState::Foreign | DataState::Unreadable) => {
            let message = "the volume holds data that must not be founded upon; see `data` in the status".to_owned();
            Some(refuse("DataNotFresh", message))
        }
    }
}

/// The engine's process is there.
fn tend(facts: &Facts<'_>) -> Step {
    if facts.rejected.is_some() {
        return Step::Stop("its data is not this member's");
    }
    if let Some(why) = facts.unwell {
        return Step::Stop(why);
    }
    if facts.up && !facts.post_started {
        return facts.pause.map_or(Step::PostStart, Step::Pause);
    }
    Step::Rest(None)
}

/// The engine's process is not there.
fn start(facts: &Facts<'_>) -> Step {
    if facts.held {
        return Step::Rest(None);
    }
    if let Some(blocked) = ownership(facts) {
        return Step::Rest(Some(blocked));
    }
    if let Some(message) = facts.rejected {
        return blocked("ForeignVolume", message.to_owned());
    }
    if let Some(pause) = facts.pause {
        return Step::Pause(pause);
    }
    let Some(data) = facts.data else { return Step::Prepare };
    let (Some(member), Some(group)) = (facts.member, facts.group) else { return Step::Rest(None) };
    let coming = member.state == MemberState::Joining;
    match data {
        DataState::Existing => Step::Start { founding: false },
        DataState::Fresh | DataState::Incomplete if !group.founded => {
            blocked("WaitingForFounding", waiting(member, group))
        }
        DataState::Fresh | DataState::Incomplete | DataState::Stale if member.state == MemberState::New => {
            blocked("WaitingForAdmission", format!("{} starts and joins when the operator admits it", member.id))
        }
        DataState::Fresh if coming && facts.can_clone => Step::Clone,
        DataState::Fresh if coming => Step::Start { founding: false },
        DataState::Fresh => blocked(
            "DataMissing",
            format!(
                "{} is part of the cluster but its volume holds no data; rebuild the member to fill it anew",
                member.id
            ),
        ),
        DataState::Incomplete | DataState::Stale
            if facts.can_clone && (coming || member.state == MemberState::Joined) =>
        {
            Step::Clone
        }
        DataState::Incomplete | DataState::Stale => blocked(
            "DataUnfit",
            "the volume's data is incomplete or too old and the image cannot clone; rebuild the member".to_owned(),
        ),
        DataState::Retired => blocked(
            "RetiredMember",
            "the data belongs to a member that was removed from the cluster; give it an empty volume to join anew"
                .to_owned(),
        ),
        DataState::Foreign => blocked(
            "ForeignVolume",
            "the data belongs to another cluster, member or version; give the member its own volume".to_owned(),
        ),
        DataState::Unreadable => blocked(
            "UnreadableData",
            "the data cannot be read and is left untouched; repair it, or rebuild the member".to_owned(),
        ),
    }
}

/// Why the view and the volume do not permit this member to run; `None` = they do.
fn ownership(facts: &Facts<'_>) -> Option<Blocked> {
    let block = |reason: &str, message: String| Some(Blocked { reason: reason.to_owned(), message });
    match facts.volume {
        Volume::Foreign { message } => return block("ForeignVolume", message.clone()),
        Volume::Unusable { message } => return block("VolumeUnusable", message.clone()),
        Volume::None | Volume::Ours { .. } => {}
    }
    let Some(generation) = facts.view else {
        return block("WaitingForView", "no cluster view came yet; the operator sends it".to_owned());
    };
    let (Some(member), Some(_)) = (facts.member, facts.group) else {
        return block("NotAMember", format!("this member is not in the cluster view of generation {generation}"));
    };
    if matches!(member.state, MemberState::Left | MemberState::Dead) {
        return block("Removed", format!("{} was removed from the cluster", member.id));
    }
    match facts.volume {
        Volume::Ours { incarnation } if !member.incarnation.is_empty() && *incarnation != member.incarnation => block(
            "VolumeReplaced",
            format!(
                "the cluster knows {} with volume {}, this is volume {incarnation}; the operator must admit it",
                member.id, member.incarnation
            ),
        ),
        Volume::None | Volume::Ours { .. } | Volume::Foreign { .. } | Volume::Unusable { .. } => None,
    }
}

fn waiting(member: &Member, group: &GroupView) -> String {
    match group.founder.as_deref() {
        Some(founder) if founder == member.id => "this member founds the group when the operator says so".to_owned(),
        Some(founder) => format!("{founder} founds the group first"),
        None => "no founder is named yet".to_owned(),
    }
}

fn blocked(reason: &str, message: String) -> Step {
    Step::Rest(Some(Blocked { reason: reason.to_owned(), message }))
}

fn refuse(reason: &str, message: String) -> Step {
    Step::Refuse(Blocked { reason: reason.to_owned(), message })
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
