//! The lifecycle at work: gathers the facts, asks [`super::lifecycle::decide`], takes the step, again and again.
//!
//! Invariant: it is the only task that starts or stops the engine.

use std::rc::Rc;
use std::time::{Duration, Instant};

use backlot_standard::manifest::Elections;
use backlot_standard::operation::{OperationReport, OperationState};
use backlot_standard::result::{DataState, Exit, VerbError};
use backlot_standard::status::Blocked;
use backlot_standard::verb::Verb;

use super::identity::{self, Volume};
use super::lifecycle::{Facts, Order, Step, decide};
use super::operations::{self, Verdict};
use super::start;
use super::state::State;
use super::{MemberName, Pilot};
use crate::log::{self, Level};
use crate::protocol::ToKeeper;

/// How often an unusable volume is looked at.
const VOLUME: Duration = Duration::from_secs(5);
/// Mark: this volume held a started engine.
pub const STARTED: &str = "started";
/// Mark: `found` was done on this volume.
pub const FOUNDED: &str = "founded";
/// Mark: the engine is to stay stopped.
pub const HELD: &str = "held";

/// Drives the engine's life until the process ends.
pub async fn run(pilot: Rc<Pilot>) {
    let mut changed = pilot.changed.subscribe();
    loop {
        changed.borrow_and_update();
        let step = if pilot.state.borrow().quiescent { Step::Rest(None) } else { next_step(&pilot) };
        let wait = take(&pilot, step).await;
        let news = changed.changed();
        match wait {
            Wait::No => {}
            Wait::For(time) => drop(tokio::time::timeout(time, news).await),
            Wait::News => drop(news.await),
        }
    }
}

enum Wait {
    No,
    For(Duration),
    News,
}

fn next_step(pilot: &Pilot) -> Step {
    let state = pilot.state.borrow();
    let (member, group) = state.own(&pilot.member.id);
    let image = pilot.image.as_ref();
    let has = |verb| image.is_ok_and(|image| image.has(verb));
    let facts = Facts {
        terminating: state.terminating,
        manifest_error: image.err().map(String::as_str),
        view: state.view.as_ref().map(|held| held.view.generation),
        member,
        group,
        volume: &state.volume,
        alive: state.engine.running.is_some(),
        up: state.session.up,
        post_started: state.session.post_started,
        rejected: state.rejected.as_deref(),
        unwell: state.engine.unwell,
        order: state.orders.front().map(|order| order.order),
        order_stopped: state
            .orders
            .front()
            .is_some_and(|order| order.stopped || started_since(pilot, &state, &order.id)),
        held: state.held,
        pause: state.pause(),
        data: state.data,
        can_clone: has(Verb::Clone),
        found_needs: image
            .ok()
            .filter(|image| image.has(Verb::Found))
            .map(|image| image.manifest.rule(Verb::Found).engine),
        found_done: state.found_done,
        awaits_promotion: awaits_promotion(pilot, &state),
    };
    decide(&facts)
}

/// Whether the engine was started since the order came, seen by an earlier pilot.
fn started_since(pilot: &Pilot, state: &State, id: &str) -> bool {
    let journal = pilot.journal.borrow();
    journal.get(id).is_some_and(|entry| entry.boot_id != pilot.hello.boot_id || entry.starts < state.engine.starts)
}

/// Whether the founder of a group with elections by the agents is not writable yet.
fn awaits_promotion(pilot: &Pilot, state: &State) -> bool {
    let elections = pilot.image.as_ref().map(|image| image.manifest.elections);
    let (_, group) = state.own(&pilot.member.id);
    let other = group.and_then(|group| group.leader.as_ref()).is_some_and(|leader| *leader != pilot.member.id);
    let writable = state.role.as_ref().is_some_and(|role| role.value.writable);
    elections == Ok(Elections::Agent) && !other && !writable
}

async fn take(pilot: &Rc<Pilot>, step: Step) -> Wait {
    match (step, &pilot.image) {
        (Step::Rest(blocked), _) => {
            show(pilot, blocked);
            return look_at_volume(pilot);
        }
        (Step::Pause(time), _) => return Wait::For(time),
        (Step::Stop(why), image) => pilot.stop(image.as_ref().ok(), why).await,
        (Step::Exit, _) => {
            log::event(Level::Info, "the engine is stopped, ending the container", &[]);
            pilot.keeper.send(ToKeeper::Exit);
            return Wait::News;
        }
        (Step::Finish, _) => finish_order(pilot).await,
        (Step::Refuse(blocked), _) => refuse_order(pilot, blocked).await,
        (_, Err(_)) => return Wait::News,
        (Step::Prepare, Ok(image)) => pilot.prepare(image).await,
        (Step::Clone, Ok(_)) => pilot.clone_data().await,
        (Step::Start { founding }, Ok(image)) => pilot.start(image, founding).await,
        (Step::PostStart, Ok(image)) => pilot.post_start(image).await,
        (Step::Found, Ok(_)) => run_order(pilot, Verb::Found).await,
        (Step::RunStopped(verb), Ok(_)) => run_order(pilot, verb).await,
    }
    Wait::No
}

/// A volume that could not be used may become usable; everything read from it is then read anew by another pilot.
fn look_at_volume(pilot: &Pilot) -> Wait {
    let unusable = matches!(pilot.state.borrow().volume, Volume::Unusable { .. });
    if !unusable || pilot.state.borrow().engine.running.is_some() {
        return Wait::News;
    }
    let MemberName { id, cluster_uid, .. } = &pilot.member;
    if !matches!(identity::claim(&pilot.state_directory, pilot.is_volume, cluster_uid, id), Volume::Unusable { .. }) {
        log::event(Level::Info, "the volume can be used now, starting anew", &[]);
        std::process::exit(0);
    }
    Wait::For(VOLUME)
}

/// Shows why nothing happens. A verb that fails while the engine runs is shown by those who call it.
fn show(pilot: &Pilot, blocked: Option<Blocked>) {
    let changed = {
        let state = pilot.state.borrow();
        state.engine.running.is_none() && !state.held && state.blocked != blocked
    };
    if changed {
        if let Some(blocked) = &blocked {
            log::event(Level::Info, "waiting", &[("reason", &blocked.reason), ("message", &blocked.message)]);
        }
        pilot.update(|state| state.blocked = blocked);
    }
}

fn front(pilot: &Pilot) -> Option<(String, Order)> {
    pilot.state.borrow().orders.front().map(|order| (order.id.clone(), order.order))
}

async fn finish_order(pilot: &Rc<Pilot>) {
    let Some((id, order)) = front(pilot) else { return };
    match order {
        Order::Stop => start::hold(pilot, true).await,
        Order::Found | Order::Restart | Order::Stopped(_) => {}
    }
    operations::amend(pilot, &id, |report: &mut OperationReport| {
        report.state = OperationState::Done;
        report.exit = Some(Exit::Done);
        report.result.changed |= matches!(order, Order::Restart | Order::Stop);
    })
    .await;
    pilot.update(|state| drop(state.orders.pop_front()));
    pilot.poll_now.notify_one();
}

async fn refuse_order(pilot: &Rc<Pilot>, blocked: Blocked) {
    let Some((id, _)) = front(pilot) else { return };
    operations::amend(pilot, &id, |report: &mut OperationReport| {
        report.state = OperationState::Failed;
        report.exit = Some(Exit::Conflict);
        report.result.error = Some(VerbError { code: blocked.reason.clone(), message: blocked.message.clone() });
    })
    .await;
    pilot.update(|state| drop(state.orders.pop_front()));
}

/// Runs the verb of the order once.
async fn run_order(pilot: &Rc<Pilot>, verb: Verb) {
    let Some((id, order)) = front(pilot) else { return };
    pilot.update(|state| state.engine.preparing = state.engine.running.is_none());
    let verdict = operations::attempt(pilot, &id, order == Order::Found).await;
    pilot.update(|state| state.engine.preparing = false);
    match verdict {
        Verdict::Done if order == Order::Found => {
            pilot.mark(STARTED).await;
            pilot.mark(FOUNDED).await;
            pilot.update(|state| {
                state.found_done = true;
                state.data = Some(DataState::Existing);
                state.reported_data = state.data;
                state.try_at_once();
            });
            // The order goes on until the engine is up: its report says "running" until `Finish`.
        }
        Verdict::Again(after) => pilot.update(|state| state.pause_until = Some(Instant::now() + after)),
        Verdict::Done | Verdict::Failed => pilot.update(|state| {
            state.orders.pop_front();
            state.data = None;
            state.try_at_once();
        }),
    }
    if verb == Verb::Found {
        pilot.poll_now.notify_one();
    }
}
