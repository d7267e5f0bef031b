//! What the pilot knows. One place, changed only through [`super::Pilot::update`], which wakes everybody who decides on it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use backlot_standard::manifest::Manifest;
use backlot_standard::request::Member;
use backlot_standard::result::{DataState, HealthOutput, RoleOutput};
use backlot_standard::status::{Blocked, ConfigStatus, EngineExit, EnginePhase};
use backlot_standard::view::GroupView;
use serde::{Deserialize, Serialize};

use super::identity::Volume;
use super::lifecycle::Order;
use super::view::Held;
use crate::protocol::Running;

/// Everything that changes.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not states")]
pub struct State {
    /// The view held.
    pub view: Option<Held>,
    /// Whether the held view still must be written to the volume.
    pub view_unsaved: bool,
    /// Highest epoch of an operator seen.
    pub seen_epoch: u64,
    /// The volume.
    pub volume: Volume,
    /// The engine.
    pub engine: Engine,
    /// What `prepare` said since the engine last ended.
    pub data: Option<DataState>,
    /// What `prepare` said last, for the report.
    pub reported_data: Option<DataState>,
    /// Last answer of `role`.
    pub role: Option<Answer<RoleOutput>>,
    /// Last answer of `health`.
    pub health: Option<Answer<HealthOutput>>,
    /// Settings.
    pub config: ConfigStatus,
    /// What keeps the lifecycle from going on.
    pub blocked: Option<Blocked>,
    /// Orders that are not done, oldest first.
    pub orders: VecDeque<PendingOrder>,
    /// Why `post-start` found the data to be somebody else's.
    pub rejected: Option<String>,
    /// The engine is to stay stopped.
    pub held: bool,
    /// `found` was done on this volume.
    pub found_done: bool,
    /// The container is to end.
    pub terminating: bool,
    /// Another pilot is about to take over: begin nothing.
    pub quiescent: bool,
    /// The keeper does not answer.
    pub keeper_silent: bool,
    /// What belongs to the present run of the engine.
    pub session: Session,
    /// No try of anything before this moment.
    pub pause_until: Option<Instant>,
    /// Failed steps in a row.
    pub failures: u32,
    /// Counters for the metrics.
    pub counters: Counters,
}

/// An answer and when it came.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    /// The answer.
    pub value: T,
    /// When it came.
    pub at: Instant,
}

impl<T> Answer<T> {
    /// An answer that came now.
    pub fn now(value: T) -> Option<Self> {
        Some(Self { value, at: Instant::now() })
    }
}

/// The engine's process as the pilot sees it.
#[derive(Debug, Default)]
pub struct Engine {
    /// The process, when there is one.
    pub running: Option<Running>,
    /// When this pilot learnt of the process.
    pub since: Option<Instant>,
    /// A graceful stop is under way.
    pub stopping: bool,
    /// A verb that precedes the start is at work.
    pub preparing: bool,
    /// It ended by itself and was not started since.
    pub crashed: bool,
    /// Why it must be stopped and started again.
    pub unwell: Option<&'static str>,
    /// Polls in a row that said *hung*.
    pub hung_polls: u32,
    /// Unplanned ends in a row.
    pub crashes: u32,
    /// Starts in this run of the container.
    pub starts: u32,
    /// Unix seconds of the last start.
    pub started_at: Option<i64>,
    /// How it last ended.
    pub last_exit: Option<EngineExit>,
}

/// An order of the operator that changes whether the engine runs.
#[derive(Clone, Debug)]
pub struct PendingOrder {
    /// Operation id.
    pub id: String,
    /// What is ordered.
    pub order: Order,
    /// Whether the engine was stopped since.
    pub stopped: bool,
}

/// What belongs to one run of the engine; kept on tmpfs, so that the next pilot knows it too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not states")]
pub struct Session {
    /// Run of the container.
    pub boot_id: String,
    /// Number of the engine's start.
    pub starts: u32,
    /// It was started as part of the founding.
    pub founding: bool,
    /// It answered `up`.
    pub up: bool,
    /// `post-start` was done.
    pub post_started: bool,
    /// Settings in force.
    pub applied: BTreeMap<String, String>,
    /// Settings that the engine was last started or reconfigured with.
    pub told: BTreeMap<String, String>,
    /// Generation of the view whose settings are in force.
    pub applied_generation: u64,
    /// Keys that wait for a restart.
    pub pending_restart: Vec<String>,
    /// The group's members as the engine was last told.
    pub members: String,
    /// It was promoted, and not demoted since.
    pub promoted: bool,
    /// The leader that the engine was last told to follow.
    pub followed: Option<String>,
}

/// Counters for the metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Verb calls.
    pub verb_calls: u64,
    /// Verb calls that did not end in *done*.
    pub verb_failures: u64,
    /// Unplanned ends of the engine.
    pub crashes: u64,
}

impl State {
    /// This member's entry and its group.
    pub fn own(&self, member: &str) -> (Option<&Member>, Option<&GroupView>) {
        let Some(held) = &self.view else { return (None, None) };
        let own = held.view.member(member);
        (own, own.and_then(|own| held.view.group_of(own)))
    }

    /// Whether the engine runs and everything that follows a start is done.
    pub fn is_running(&self) -> bool {
        self.engine.running.is_some() && !self.engine.stopping && self.session.up && self.session.post_started
    }

    /// Where the engine is.
    pub fn phase(&self) -> EnginePhase {
        match (&self.engine.running, &self.engine) {
            (_, engine) if engine.stopping => EnginePhase::Stopping,
            (Some(_), _) if self.is_running() => EnginePhase::Running,
            (Some(_), _) => EnginePhase::Starting,
            (None, engine) if engine.preparing => EnginePhase::Preparing,
            (None, _) if self.held => EnginePhase::Stopped,
            (None, engine) if engine.crashed => EnginePhase::Crashed,
            (None, _) => EnginePhase::Waiting,
        }
    }

    /// Whether the engine serves: up, and `health` said so not too long ago.
    pub fn is_ready(&self, manifest: &Manifest) -> bool {
        self.is_running() && fresh(self.health.as_ref(), manifest).is_some_and(|health| health.ready)
    }

    /// Time that the lifecycle must still wait.
    pub fn pause(&self) -> Option<Duration> {
        self.pause_until.map(|until| until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    /// Waits before the next try, longer with every failure in a row, 60 s at most.
    pub fn back_off(&mut self) {
        self.pause_until = Some(Instant::now() + back_off(self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    /// Forgets failures: something changed that may help.
    pub fn try_at_once(&mut self) {
        self.failures = 0;
        self.pause_until = None;
    }
}

/// One second, doubling up to a minute.
pub fn back_off(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.min(6)).min(Duration::from_mins(1))
}

/// The answer unless it is older than three polls.
pub fn fresh<'a, T>(answer: Option<&'a Answer<T>>, manifest: &Manifest) -> Option<&'a T> {
    // The time that the calls themselves may take comes on top.
    let limit = Duration::from_secs(u64::from(manifest.poll.seconds) * 3 + 10);
    answer.filter(|answer| answer.at.elapsed() <= limit).map(|answer| &answer.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_doubles_up_to_a_minute() {
        let seconds: Vec<u64> = (0..8).map(|failures| back_off(failures).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(back_off(u32::MAX).as_secs(), 60);
    }
}
