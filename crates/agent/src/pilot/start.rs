//! Starting and stopping the engine, and the verbs that belong to it.

use std::time::Duration;

use backlot_standard::request::Reason;
use backlot_standard::result::{DataState, Exit, PrepareOutput, RenderOutput};
use backlot_standard::status::Blocked;
use backlot_standard::verb::Verb;
use tokio::time::timeout;

use super::driver::{self, STARTED};
use super::image::Image;
use super::request::Call;
use super::state::Session;
use super::{Pilot, reactions, render};
use crate::log::{self, Level};
use crate::protocol::ToKeeper;

/// Time for the kernel to end a killed engine.
const KILL_SECONDS: u64 = 10;
/// Pause before a pending `clone` is called again when it names none.
const CLONE_SECONDS: u64 = 2;

impl Pilot {
    /// Asks what the volume holds. Without the verb the agent's own mark tells.
    pub async fn prepare(&self, image: &Image) {
        let state = if image.has(Verb::Prepare) {
            self.update(|state| state.engine.preparing = true);
            let attempt = self.state.borrow().failures + 1;
            let outcome = self.call(&Call::own(Verb::Prepare, &self.hello.boot_id, attempt, self.start_reason())).await;
            match outcome.output::<PrepareOutput>() {
                Ok(output) => Ok(output.state),
                Err(error) => Err(error),
            }
        } else if self.state_directory.join(STARTED).exists() {
            Ok(DataState::Existing)
        } else {
            Ok(DataState::Fresh)
        };
        self.finish_step(Verb::Prepare, state.map(Some));
    }

    /// Fills the volume from another member.
    pub async fn clone_data(&self) {
        self.update(|state| state.engine.preparing = true);
        let attempt = self.state.borrow().failures + 1;
        let outcome = self.call(&Call::own(Verb::Clone, &self.incarnation(), attempt, Reason::Create)).await;
        match outcome.exit {
            Exit::Done => {
                self.mark(STARTED).await;
                self.finish_step(Verb::Clone, Ok(Some(DataState::Existing)));
            }
            Exit::Pending | Exit::Later | Exit::Busy => {
                let seconds =
                    outcome.result.retry.as_ref().map_or(CLONE_SECONDS, |retry| u64::from(retry.after_seconds));
                self.update(|state| {
                    state.engine.preparing = true;
                    state.pause_until = Some(std::time::Instant::now() + Duration::from_secs(seconds.max(1)));
                });
            }
            Exit::EngineState
            | Exit::Invalid
            | Exit::Unsupported
            | Exit::Unsafe
            | Exit::Conflict
            | Exit::Failed
            | Exit::Unknown => self.finish_step(Verb::Clone, Err(outcome.message())),
        }
    }

    /// Takes in how a step before the start went.
    fn finish_step(&self, verb: Verb, result: Result<Option<DataState>, String>) {
        self.update(|state| {
            state.engine.preparing = false;
            match result {
                Ok(data) => {
                    state.data = data;
                    state.reported_data = data;
                    state.try_at_once();
                    state.blocked = None;
                }
                Err(error) => {
                    state.blocked = Some(verb_failed(verb, &error));
                    state.back_off();
                }
            }
        });
    }

    /// Renders, puts the files in place and starts the process.
    pub async fn start(&self, image: &Image, founding: bool) {
        self.update(|state| state.engine.preparing = true);
        let started = self.render_and_start(image, founding).await;
        self.update(|state| {
            state.engine.preparing = false;
            match started {
                Ok(()) => {
                    state.blocked = None;
                    state.config.error = None;
                    state.failures = 0;
                }
                Err(error) => {
                    state.config.error = Some(error.clone());
                    state.blocked = Some(verb_failed(Verb::Render, &error));
                    state.back_off();
                }
            }
        });
    }

    async fn render_and_start(&self, image: &Image, founding: bool) -> Result<(), String> {
        let (wanted, generation, members) = {
            let state = self.state.borrow();
            let (member, _) = state.own(&self.member.id);
            let held = state.view.as_ref().ok_or("no cluster view is held")?;
            let component = member.map(|member| member.component.clone()).unwrap_or_default();
            let wanted = held.view.components.get(&component).map(|wanted| wanted.config.clone()).unwrap_or_default();
            (wanted, held.view.generation, reactions::members_key(&held.view))
        };
        let mut call = Call::own(Verb::Render, &self.hello.boot_id, 1, self.start_reason());
        call.founding = founding;
        let outcome = self.call(&call).await;
        let output: RenderOutput = outcome.output()?;
        let scratch = outcome.scratch.as_ref().map(super::verb_run::CallDirectory::scratch).unwrap_or_default();
        render::put_in_place(&output, &scratch, &self.settings.paths, &image.manifest)
            .map_err(|error| error.to_string())?;
        let mut env = super::base_env(&self.settings.paths);
        env.extend(output.env);
        if self.state.borrow().terminating {
            return Err("the container is to end".to_owned());
        }
        // Before the start, so that a pilot that takes over right after it knows what the engine was started with.
        let starts = self.state.borrow().engine.starts + 1;
        self.update_session(|session| {
            *session = Session {
                boot_id: self.hello.boot_id.clone(),
                starts,
                founding,
                told: wanted.clone(),
                applied: wanted,
                applied_generation: generation,
                members,
                ..Session::default()
            };
        });
        let running = self.start_engine(output.argv, env).await?;
        self.poll_now.notify_one();
        log::event(Level::Info, "the engine was started", &[("pid", &running.pid), ("founding", &founding)]);
        Ok(())
    }

    /// What follows the first *up*.
    pub async fn post_start(&self, image: &Image) {
        let starts = self.state.borrow().session.starts;
        let mut exit = Exit::Done;
        let mut error = String::new();
        if image.has(Verb::PostStart) {
            let attempt = self.state.borrow().failures + 1;
            let call = Call::own(Verb::PostStart, &self.session_name(), attempt, self.start_reason());
            let outcome = self.call(&call).await;
            exit = outcome.exit;
            error = outcome.message();
        }
        let waits = {
            let state = self.state.borrow();
            state.session.founding && !state.found_done && image.has(Verb::Found)
        };
        if exit == Exit::Done && !waits {
            self.mark(STARTED).await;
        }
        if self.state.borrow().session.starts != starts {
            // That engine has ended meanwhile; what was learnt is not about the next one.
            return;
        }
        match exit {
            Exit::Done => {
                self.update_session(|session| session.post_started = true);
                self.update(|state| {
                    state.try_at_once();
                    state.blocked = None;
                });
                self.poll_now.notify_one();
            }
            Exit::Conflict => self.update(|state| state.rejected = Some(error)),
            Exit::Pending
            | Exit::Later
            | Exit::Busy
            | Exit::EngineState
            | Exit::Invalid
            | Exit::Unsupported
            | Exit::Unsafe
            | Exit::Failed
            | Exit::Unknown => self.update(|state| {
                state.blocked = Some(verb_failed(Verb::PostStart, &error));
                state.back_off();
            }),
        }
    }

    /// Stops the engine: `pre-stop`, the signals of the manifest, in the end SIGKILL.
    pub async fn stop(&self, image: Option<&Image>, why: &str) {
        log::event(Level::Info, "stopping the engine", &[("why", &why)]);
        let (graceful, reason) = self.update(|state| {
            state.engine.stopping = true;
            let reason = if state.terminating { Reason::Drain } else { self.order_reason(state) };
            (state.session.up && state.engine.unwell.is_none(), reason)
        });
        if let Some(image) = image {
            if graceful && image.has(Verb::PreStop) {
                let outcome = self.call(&Call::own(Verb::PreStop, &self.session_name(), 1, reason)).await;
                if outcome.exit != Exit::Done {
                    log::event(Level::Warn, "pre-stop is not done, stopping anyway", &[("error", &outcome.message())]);
                }
            }
            for step in &image.manifest.stop.sequence {
                self.keeper.send(ToKeeper::Signal { signal: number_of(step.signal) });
                if self.has_ended(Duration::from_secs(u64::from(step.seconds))).await {
                    break;
                }
            }
        }
        if self.state.borrow().engine.running.is_some() {
            log::event(Level::Warn, "the engine did not stop in time, killing it", &[]);
            self.keeper.send(ToKeeper::KillEngine);
            self.has_ended(Duration::from_secs(KILL_SECONDS)).await;
        }
        self.update(|state| {
            state.engine.stopping = false;
            if let Some(order) = state.orders.front_mut() {
                order.stopped = true;
            }
        });
    }

    async fn has_ended(&self, limit: Duration) -> bool {
        let mut changed = self.changed.subscribe();
        let ended = async {
            changed.borrow_and_update();
            while self.state.borrow().engine.running.is_some() && changed.changed().await.is_ok() {}
        };
        timeout(limit, ended).await.is_ok()
    }

    /// Makes a mark in the agent's state directory; failing to is reported and tried again by the next start.
    pub async fn mark(&self, name: &'static str) {
        let path = self.state_directory.join(name);
        let marked = move || if path.exists() { Ok(()) } else { super::disk::replace(&path, b"") };
        if let Err(error) = super::disk::apart(marked).await {
            log::event(Level::Warn, "cannot leave a mark on the volume", &[("mark", &name), ("error", &error)]);
        }
    }

    fn start_reason(&self) -> Reason {
        let state = self.state.borrow();
        if state.engine.starts == 0 && !self.state_directory.join(STARTED).exists() {
            Reason::Create
        } else {
            self.order_reason(&state)
        }
    }

    fn order_reason(&self, state: &super::state::State) -> Reason {
        let journal = self.journal.borrow();
        let order = state.orders.front().and_then(|order| journal.get(&order.id));
        order.map_or(Reason::Restart, |entry| entry.request.reason)
    }

    /// Name of the present run of the engine.
    pub fn session_name(&self) -> String {
        format!("{}-{}", self.hello.boot_id, self.state.borrow().session.starts)
    }

    fn incarnation(&self) -> String {
        match &self.state.borrow().volume {
            super::identity::Volume::Ours { incarnation } => incarnation.clone(),
            _ => self.hello.boot_id.clone(),
        }
    }
}

/// What is shown while a verb of the lifecycle fails.
pub fn verb_failed(verb: Verb, error: &str) -> Blocked {
    Blocked { reason: "VerbFailed".to_owned(), message: format!("{}: {error}", verb.name()) }
}

fn number_of(signal: backlot_standard::manifest::Signal) -> i32 {
    use backlot_standard::manifest::Signal;
    match signal {
        Signal::Term => nix::libc::SIGTERM,
        Signal::Int => nix::libc::SIGINT,
        Signal::Quit => nix::libc::SIGQUIT,
    }
}

/// Keeps the engine stopped across containers, or lets it start again.
pub async fn hold(pilot: &Pilot, held: bool) {
    if held {
        pilot.mark(driver::HELD).await;
    } else {
        let path = pilot.state_directory.join(driver::HELD);
        // Mostly there is nothing to remove.
        let _ = super::disk::apart(move || std::fs::remove_file(path)).await;
    }
    pilot.update(|state| state.held = held);
}
