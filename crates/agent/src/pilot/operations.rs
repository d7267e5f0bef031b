//! Operations of the operator: accepted once, journaled, run in their lane, called again as their answers ask.
//!
//! Invariants: an id is journaled before anything is changed for it; an operation that is done is never run again; an old
//! operator, or one that decided on a view newer than ours, is refused.

use std::rc::Rc;
use std::time::Duration;

use backlot_standard::operation::{Act, OperationReport, OperationRequest, OperationState};
use backlot_standard::result::{Exit, VerbError, VerbResult};
use backlot_standard::verb::{EngineState, Lane, Verb};

use super::Pilot;
use super::identity::Volume;
use super::journal::Entry;
use super::lifecycle::Order;
use super::request::Call;
use super::state::{PendingOrder, back_off};
use super::verb_run::Outcome;
use super::{disk, start};
use crate::log;

/// Calls of a short verb that answers *pending*, *later* or *busy*.
const SHORT_CALLS: u32 = 10;
/// Seconds in which a long verb may go on answering *pending*.
const LONG_SECONDS: i64 = 24 * 3600;
/// Calls that may end in *unknown*.
const UNKNOWN_CALLS: u32 = 5;
/// Pause before a pending verb is called again when it names none.
const PENDING: Duration = Duration::from_secs(2);
/// How long an operation waits for the engine state that its verb needs.
const ENGINE_WAIT: Duration = Duration::from_mins(10);
/// Longest id.
const MAX_ID: usize = 200;

/// What follows from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The operation is done.
    Done,
    /// Call again after this time.
    Again(Duration),
    /// The operation failed.
    Failed,
}

/// Why a request is refused; nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The id breaks the rules.
    #[error("the id must have 1 to {MAX_ID} characters of A-Z a-z 0-9 . _ / -")]
    Id,
    /// An operator that is no longer the leader.
    #[error("the operator's epoch {given} is older than {seen}, which this agent has seen")]
    OldEpoch {
        /// Epoch given.
        given: u64,
        /// Highest epoch seen.
        seen: u64,
    },
    /// The operator decided on a view that is not here yet.
    #[error("the operation was decided on view {given}, this agent holds {}", held.map_or("none".to_owned(), |held| held.to_string()))]
    ViewNotSeen {
        /// Generation given.
        given: u64,
        /// Generation held.
        held: Option<u64>,
    },
    /// Another pilot takes over, or the container ends.
    #[error("this agent is about to end; ask again in a second")]
    Leaving,
}

/// Takes an operation; its report tells where it is.
pub async fn accept(pilot: &Rc<Pilot>, request: OperationRequest) -> Result<OperationReport, Refusal> {
    check(pilot, &request)?;
    let known = pilot.journal.borrow().get(&request.id).cloned();
    let attempts = match known {
        Some(entry) if entry.report.state != OperationState::Failed => return Ok(entry.report),
        Some(entry) => entry.report.attempts,
        None => 0,
    };
    pilot.update(|state| state.seen_epoch = state.seen_epoch.max(request.operator_epoch));
    let mut report = OperationReport {
        id: request.id.clone(),
        state: OperationState::Running,
        attempts,
        exit: None,
        result: VerbResult::default(),
    };
    if let Some((exit, code, message)) = impossible(pilot, &request) {
        fail(&mut report, exit, code, message);
        return Ok(report);
    }
    if let Some(verb) = read_only(pilot, request.act) {
        return Ok(answer(pilot, &request, verb, report).await);
    }
    let entry = Entry {
        number: 0,
        request,
        report: report.clone(),
        handle: None,
        since: log::unix_seconds(),
        unknowns: 0,
        boot_id: pilot.hello.boot_id.clone(),
        starts: pilot.state.borrow().engine.starts,
    };
    let id = report.id.clone();
    if let Err(error) = write(pilot, entry).await {
        pilot.journal.borrow_mut().remove(&id);
        fail(&mut report, Exit::Failed, "JournalUnwritable", format!("the operation cannot be journaled: {error}"));
        return Ok(report);
    }
    if matches!(
        pilot.journal.borrow().get(&id).map(|entry| entry.request.act),
        Some(Act::Restart | Act::Verb(Verb::Found))
    ) {
        start::hold(pilot, false).await;
    }
    begin(pilot, &id);
    Ok(report)
}

fn check(pilot: &Pilot, request: &OperationRequest) -> Result<(), Refusal> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
    if request.id.is_empty() || request.id.len() > MAX_ID || !request.id.chars().all(allowed) {
        return Err(Refusal::Id);
    }
    let state = pilot.state.borrow();
    if request.operator_epoch < state.seen_epoch {
        return Err(Refusal::OldEpoch { given: request.operator_epoch, seen: state.seen_epoch });
    }
    let held = state.view.as_ref().map(|held| held.view.generation);
    if held.is_none_or(|held| request.view_generation > held) {
        return Err(Refusal::ViewNotSeen { given: request.view_generation, held });
    }
    if state.terminating || state.quiescent {
        return Err(Refusal::Leaving);
    }
    Ok(())
}

/// Why the operation cannot be done here at all.
fn impossible(pilot: &Pilot, request: &OperationRequest) -> Option<(Exit, &'static str, String)> {
    let image = match &pilot.image {
        Ok(image) => image,
        Err(error) => return Some((Exit::Failed, "ManifestInvalid", error.clone())),
    };
    match &pilot.state.borrow().volume {
        Volume::Foreign { message } => return Some((Exit::Conflict, "ForeignVolume", message.clone())),
        Volume::Unusable { message } => return Some((Exit::Failed, "VolumeUnusable", message.clone())),
        Volume::None | Volume::Ours { .. } => {}
    }
    match request.act {
        Act::Verb(verb) if verb != Verb::Found && !image.has(verb) => {
            Some((Exit::Unsupported, "NoSuchVerb", format!("the image has no verb {}", verb.name())))
        }
        Act::Verb(_) | Act::Restart | Act::Stop => None,
    }
}

/// The verb of an act that only reads: asked for its answer now, so nothing of it is journaled or told to others.
fn read_only(pilot: &Pilot, act: Act) -> Option<Verb> {
    let (Act::Verb(verb), Ok(image)) = (act, &pilot.image) else { return None };
    (image.manifest.rule(verb).lane == Lane::Observe).then_some(verb)
}

async fn answer(pilot: &Pilot, request: &OperationRequest, verb: Verb, mut report: OperationReport) -> OperationReport {
    let needs_running =
        pilot.image.as_ref().is_ok_and(|image| image.manifest.rule(verb).engine == EngineState::Running);
    if needs_running && !pilot.state.borrow().is_running() {
        fail(&mut report, Exit::EngineState, "EngineNotRunning", "the engine does not run now".to_owned());
        return report;
    }
    let call = Call {
        verb,
        operation_id: request.id.clone(),
        attempt: 1,
        reason: request.reason,
        subject: request.subject.clone(),
        via: request.via.clone(),
        params: request.params.clone(),
        founding: false,
    };
    let outcome = pilot.call(&call).await;
    let state = if outcome.exit == Exit::Done { OperationState::Done } else { OperationState::Failed };
    OperationReport { state, attempts: 1, exit: Some(outcome.exit), result: outcome.result, ..report }
}

fn fail(report: &mut OperationReport, exit: Exit, code: &str, message: String) {
    report.state = OperationState::Failed;
    report.exit = Some(exit);
    report.result.error = Some(VerbError { code: code.to_owned(), message });
}

/// Goes on with the operations that an earlier pilot left.
pub fn resume(pilot: &Rc<Pilot>) {
    let running: Vec<String> = {
        let journal = pilot.journal.borrow();
        journal.entries().into_iter().filter(|entry| entry.is_running()).map(|entry| entry.report.id.clone()).collect()
    };
    for id in running {
        begin(pilot, &id);
    }
}

fn begin(pilot: &Rc<Pilot>, id: &str) {
    let Some(act) = pilot.journal.borrow().get(id).map(|entry| entry.request.act) else { return };
    let engine = |verb| pilot.image.as_ref().map(|image| image.manifest.rule(verb).engine);
    let order = match act {
        Act::Restart => Some(Order::Restart),
        Act::Stop => Some(Order::Stop),
        Act::Verb(Verb::Found) => Some(Order::Found),
        Act::Verb(verb) if engine(verb) == Ok(EngineState::Stopped) => Some(Order::Stopped(verb)),
        Act::Verb(_) => None,
    };
    match order {
        Some(order) => {
            pilot.update(|state| {
                state.rejected = None;
                state.orders.push_back(PendingOrder { id: id.to_owned(), order, stopped: false });
                state.try_at_once();
            });
        }
        None => drop(tokio::task::spawn_local(drive(pilot.clone(), id.to_owned()))),
    }
}

/// Calls the verb of an operation until it is done or has failed.
async fn drive(pilot: Rc<Pilot>, id: String) {
    loop {
        if !engine_fits(&pilot, &id).await {
            amend(&pilot, &id, |report| {
                let message = format!("the engine did not run within {} s", ENGINE_WAIT.as_secs());
                fail(report, Exit::EngineState, "EngineNotRunning", message);
            })
            .await;
            return;
        }
        let verdict = attempt(&pilot, &id, false).await;
        pilot.poll_now.notify_one();
        match verdict {
            Verdict::Done | Verdict::Failed => return,
            Verdict::Again(after) => tokio::time::sleep(after).await,
        }
    }
}

/// Waits until the engine is as the verb needs it, and until this pilot may begin something.
async fn engine_fits(pilot: &Pilot, id: &str) -> bool {
    let act = pilot.journal.borrow().get(id).map(|entry| entry.request.act);
    let needs_running = match (act, &pilot.image) {
        (Some(Act::Verb(verb)), Ok(image)) => image.manifest.rule(verb).engine == EngineState::Running,
        _ => false,
    };
    let mut changed = pilot.changed.subscribe();
    let fits = async {
        loop {
            changed.borrow_and_update();
            let fits = {
                let state = pilot.state.borrow();
                !state.quiescent && !state.terminating && (!needs_running || state.is_running())
            };
            if fits || changed.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(ENGINE_WAIT, fits).await.is_ok()
}

/// Calls the verb of an operation once, and journals before and after.
pub async fn attempt(pilot: &Rc<Pilot>, id: &str, founding: bool) -> Verdict {
    let Some(mut entry) = pilot.journal.borrow().get(id).cloned() else { return Verdict::Failed };
    let Act::Verb(verb) = entry.request.act else { return Verdict::Failed };
    entry.report.attempts += 1;
    if let Err(error) = write(pilot, entry.clone()).await {
        let message = format!("the attempt cannot be journaled, so it was not begun: {error}");
        amend(pilot, id, |report| fail(report, Exit::Failed, "JournalUnwritable", message)).await;
        return Verdict::Failed;
    }
    let mut params = entry.request.params.clone();
    if let Some(handle) = &entry.handle {
        params.insert("handle".to_owned(), handle.as_str().into());
    }
    let call = Call {
        verb,
        operation_id: entry.report.id.clone(),
        attempt: entry.report.attempts,
        reason: entry.request.reason,
        subject: entry.request.subject.clone(),
        via: entry.request.via.clone(),
        params,
        founding,
    };
    let outcome = pilot.call(&call).await;
    let long = pilot.image.as_ref().is_ok_and(|image| image.manifest.rule(verb).long);
    if outcome.exit == Exit::Unknown {
        entry.unknowns += 1;
    }
    let verdict = judge(&entry, &outcome, long, log::unix_seconds());
    let Outcome { exit, result, scratch } = outcome;
    drop(scratch);
    entry.handle = result.handle.clone().or(entry.handle);
    // A founding goes on after its verb; who drives it ends the operation.
    entry.report.state = match verdict {
        Verdict::Done if founding => OperationState::Running,
        Verdict::Done => OperationState::Done,
        Verdict::Again(_) => OperationState::Running,
        Verdict::Failed => OperationState::Failed,
    };
    entry.report.exit = Some(exit);
    entry.report.result = result;
    keep(pilot, entry).await;
    verdict
}

/// What follows from an answer; pure.
fn judge(entry: &Entry, outcome: &Outcome, long: bool, now: i64) -> Verdict {
    let again = |after: Duration| {
        let over = if long { now - entry.since > LONG_SECONDS } else { entry.report.attempts >= SHORT_CALLS };
        if over { Verdict::Failed } else { Verdict::Again(after) }
    };
    match outcome.exit {
        Exit::Done => Verdict::Done,
        Exit::Pending | Exit::Later | Exit::Busy | Exit::EngineState => {
            let asked = outcome.result.retry.as_ref().map(|retry| Duration::from_secs(retry.after_seconds.into()));
            again(asked.unwrap_or(PENDING))
        }
        Exit::Unknown if entry.unknowns >= UNKNOWN_CALLS => Verdict::Failed,
        Exit::Unknown => Verdict::Again(back_off(entry.unknowns.saturating_sub(1))),
        Exit::Invalid | Exit::Unsupported | Exit::Unsafe | Exit::Conflict | Exit::Failed => Verdict::Failed,
    }
}

/// Changes a report and journals it.
pub async fn amend(pilot: &Rc<Pilot>, id: &str, change: impl FnOnce(&mut OperationReport)) {
    let Some(mut entry) = pilot.journal.borrow().get(id).cloned() else { return };
    change(&mut entry.report);
    keep(pilot, entry).await;
}

/// Journals an outcome. When the disk does not take it, it is at least kept in memory.
async fn keep(pilot: &Rc<Pilot>, entry: Entry) {
    let id = entry.report.id.clone();
    if let Err(error) = write(pilot, entry).await {
        let fields: [(&str, &dyn std::fmt::Display); 2] = [("operation", &id), ("error", &error)];
        log::event(log::Level::Error, "the outcome cannot be journaled, it is kept in memory only", &fields);
    }
}

async fn write(pilot: &Rc<Pilot>, entry: Entry) -> std::io::Result<()> {
    let _one = pilot.journal_writes.lock().await;
    let line = pilot.journal.borrow_mut().put(entry, &pilot.state_directory);
    pilot.update(|_| ());
    disk::apart(move || line.write()).await
}

#[cfg(test)]
#[path = "operations_tests.rs"]
mod tests;
