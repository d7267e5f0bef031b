//! Polls of `health` and `role`. Invariant: an answer that did not come is unknown; it is never taken for a bad one, and
//! only the engine's own word *hung*, three times, or a start that takes too long, leads to a restart.

use std::rc::Rc;
use std::time::{Duration, Instant};

use backlot_standard::request::Reason;
use backlot_standard::result::{ClusterHealth, HealthOutput, ProcessHealth, RoleOutput};
use backlot_standard::verb::Verb;

use super::Pilot;
use super::image::Image;
use super::request::Call;
use super::state::Answer;
use super::verb_run::shorten;
use crate::log::{self, Level};

/// First and longest pause between polls until the engine is up.
const STARTING_MS: (u64, u64) = (250, 1000);
/// Pause between polls while operations are at work.
const CHANGING: Duration = Duration::from_secs(1);
/// Reasons of `health` that are passed on.
const REASONS: usize = 16;
/// Polls in a row that must say *hung*.
const HUNG_POLLS: u32 = 3;

/// Polls while the engine runs.
pub async fn run(pilot: Rc<Pilot>) {
    let Ok(image) = pilot.image.clone() else { return };
    let mut changed = pilot.changed.subscribe();
    let mut starting = STARTING_MS.0;
    let mut polled_starts = 0;
    let mut last_error = String::new();
    loop {
        changed.borrow_and_update();
        let Some(running) = pilot.state.borrow().engine.running else {
            let _ = changed.changed().await;
            continue;
        };
        if running.starts != polled_starts {
            polled_starts = running.starts;
            starting = STARTING_MS.0;
        }
        let error = poll(&pilot, &image, running.starts).await.err().unwrap_or_default();
        if error != last_error {
            // Once, not at every poll.
            let level = if error.is_empty() { Level::Info } else { Level::Warn };
            let message = if error.is_empty() { "polls are answered again" } else { "a poll is not answered" };
            log::event(level, message, &[("error", &error)]);
            last_error = error;
        }
        let pause = pause(&pilot, &image, &mut starting);
        let _ = tokio::time::timeout(pause, pilot.poll_now.notified()).await;
    }
}

fn pause(pilot: &Pilot, image: &Image, starting: &mut u64) -> Duration {
    let settled = Duration::from_secs(u64::from(image.manifest.poll.seconds));
    let busy = pilot.journal.borrow().entries().iter().any(|entry| entry.is_running());
    let state = pilot.state.borrow();
    if !state.session.up {
        let pause = Duration::from_millis(*starting);
        *starting = (*starting * 3 / 2).min(STARTING_MS.1);
        pause
    } else if busy || !state.is_running() {
        CHANGING.min(settled)
    } else {
        settled
    }
}

async fn poll(pilot: &Pilot, image: &Image, starts: u32) -> Result<(), String> {
    let mut asked = health(pilot, image).await;
    if let Ok(health) = &mut asked {
        // Part of every line of the watch, so it must stay small whatever the image says.
        health.message = shorten(std::mem::take(&mut health.message));
        health.reasons.truncate(REASONS);
        health.reasons.iter_mut().for_each(|reason| *reason = shorten(std::mem::take(reason)));
    }
    let health = asked.as_ref().ok().cloned();
    let up = health.as_ref().is_some_and(|health| health.process == ProcessHealth::Up);
    let hung = health.as_ref().is_some_and(|health| health.process == ProcessHealth::Hung);
    if !take_health(pilot, image, starts, health, hung) {
        return Ok(());
    }
    if up && !pilot.state.borrow().session.up {
        pilot.update_session(|session| session.up = true);
        let took = pilot.state.borrow().engine.since.map_or(0, |since| since.elapsed().as_millis());
        log::event(Level::Info, "the engine is up", &[("startMillis", &took)]);
    }
    let mut answered = asked.map(drop);
    let known_up = pilot.state.borrow().session.up;
    if known_up && image.has(Verb::Role) {
        let call = Call::own(Verb::Role, "poll", 1, Reason::Poll);
        let role: Result<RoleOutput, String> = pilot.call(&call).await.output();
        answered = answered.and(role.as_ref().map(drop).map_err(Clone::clone));
        pilot.update(|state| {
            if state.engine.running.is_some_and(|running| running.starts == starts) {
                state.role = role.ok().and_then(Answer::now);
            }
        });
    }
    answered
}

/// Takes an answer in; false when it is about an engine that has ended meanwhile.
fn take_health(pilot: &Pilot, image: &Image, starts: u32, health: Option<HealthOutput>, hung: bool) -> bool {
    pilot.update(|state| {
        if state.engine.running.is_none_or(|running| running.starts != starts) {
            return false;
        }
        state.health = health.and_then(Answer::now);
        state.engine.hung_polls = if hung { state.engine.hung_polls + 1 } else { 0 };
        let limit = Duration::from_secs(u64::from(image.manifest.startup.max_seconds));
        let late = !state.session.up && state.engine.since.is_some_and(|since: Instant| since.elapsed() > limit);
        if state.engine.hung_polls >= HUNG_POLLS {
            state.engine.unwell = Some("its health said hung three times");
        } else if late && !hung {
            state.engine.unwell = Some("it was not up within startup.maxSeconds");
        }
        true
    })
}

/// The answer of `health`; an image without the verb is up and ready as long as its process runs.
async fn health(pilot: &Pilot, image: &Image) -> Result<HealthOutput, String> {
    if !image.has(Verb::Health) {
        return Ok(HealthOutput {
            process: ProcessHealth::Up,
            ready: true,
            cluster: ClusterHealth::Unknown,
            reasons: vec![],
            message: "the image has no verb health; its process runs".to_owned(),
        });
    }
    pilot.call(&Call::own(Verb::Health, "poll", 1, Reason::Poll)).await.output()
}
