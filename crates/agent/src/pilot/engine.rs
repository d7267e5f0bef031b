//! The pilot's end of the connection to the keeper, and what is remembered of the engine's run.
//!
//! Invariant: a keeper that does not answer while this pilot runs normally means that nobody guards the engine; the
//! pilot then kills the engine itself.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use backlot_standard::verb::Lane;
use nix::unistd::{Pid, getpid, getppid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::Pilot;
use super::disk;
use super::state::{Session, back_off};
use crate::log::{self, Level};
use crate::process;
use crate::protocol::{Ended, Hello, Lines, Running, ToKeeper, ToPilot, encode};

const SESSION: &str = "session.json";
/// Pings without any answer after which the keeper counts as hung; they are sent three times per configured silence.
const SILENT_TICKS: u32 = 3;
/// An engine that ran so long starts again without a pause.
const SETTLED: Duration = Duration::from_mins(5);

/// Sends messages to the keeper.
pub struct KeeperLink {
    outgoing: mpsc::UnboundedSender<ToKeeper>,
    start: std::cell::RefCell<Option<oneshot::Sender<Result<Running, String>>>>,
    silence: Duration,
}

/// The reading end, and what was read already.
pub struct Incoming {
    socket: OwnedReadHalf,
    lines: Lines,
}

impl KeeperLink {
    /// Sends a message; lost when the keeper is gone, and then this process ends too.
    pub fn send(&self, message: ToKeeper) {
        let _ = self.outgoing.send(message);
    }
}

/// Takes over the socket on standard input and waits for the keeper's first words.
pub async fn connect(silence: Duration) -> io::Result<(KeeperLink, Incoming, Hello)> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    let (socket, mut writing) = UnixStream::from_std(socket)?.into_split();
    let (outgoing, mut messages) = mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        while let Some(message) = messages.recv().await {
            if writing.write_all(&encode(&message)).await.is_err() {
                return;
            }
        }
    });
    let mut incoming = Incoming { socket, lines: Lines::default() };
    let hello = loop {
        if let ToPilot::Hello(hello) = incoming.next().await? {
            break hello;
        }
    };
    let link = KeeperLink { outgoing, start: std::cell::RefCell::default(), silence };
    Ok((link, incoming, hello))
}

impl Incoming {
    async fn next(&mut self) -> io::Result<ToPilot> {
        loop {
            if let Some(message) = self.lines.take() {
                return Ok(message);
            }
            let mut buffer = [0; 4096];
            let read = self.socket.read(&mut buffer).await?;
            if read == 0 || !self.lines.extend(&buffer[..read]) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Listens to the keeper and watches that it answers. Ends when the keeper is gone.
pub fn spawn(pilot: &Rc<Pilot>, mut incoming: Incoming) -> JoinHandle<()> {
    let pilot = pilot.clone();
    tokio::task::spawn_local(async move {
        let period = pilot.keeper.silence / SILENT_TICKS;
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut silent, mut number, mut last) = (0, 0, Instant::now());
        loop {
            tokio::select! {
                biased;
                message = incoming.next() => match message {
                    Ok(message) => {
                        silent = 0;
                        hear(&pilot, message);
                    }
                    Err(_) => break,
                },
                _ = tick.tick() => {
                    // After a pause of this process or the machine the keeper gets its full time again.
                    let paused = last.elapsed() > period * 2;
                    last = Instant::now();
                    silent = if paused { 0 } else { silent + 1 };
                    if silent > SILENT_TICKS {
                        guard_alone(&pilot);
                    }
                    number += 1;
                    pilot.keeper.send(ToKeeper::Ping { number });
                }
            }
        }
        kill_engine(&pilot);
    })
}

fn hear(pilot: &Rc<Pilot>, message: ToPilot) {
    if pilot.state.borrow().keeper_silent {
        log::event(Level::Warn, "the keeper answers again", &[]);
        pilot.update(|state| state.keeper_silent = false);
    }
    match message {
        ToPilot::Hello(_) | ToPilot::Pong { .. } => {}
        ToPilot::Started(running) => {
            pilot.update(|state| {
                state.engine.running = Some(running);
                state.engine.since = Some(Instant::now());
                state.engine.crashed = false;
                state.engine.starts = running.starts;
                state.engine.started_at = Some(running.at);
            });
            answer_start(pilot, Ok(running));
        }
        ToPilot::StartFailed { error } => answer_start(pilot, Err(error)),
        ToPilot::Exited(ended) => note_end(pilot, ended),
        ToPilot::Terminate => {
            log::event(Level::Info, "the container is to end", &[]);
            pilot.update(|state| state.terminating = true);
            for lane in [Lane::Lifecycle, Lane::Data, Lane::Election] {
                pilot.lanes.cancel(lane);
            }
        }
        ToPilot::ReplaceFailed { error } => {
            log::event(Level::Error, "the new pilot did not start, this one goes on", &[("error", &error)]);
            pilot.update(|state| state.quiescent = false);
        }
    }
}

fn answer_start(pilot: &Pilot, answer: Result<Running, String>) {
    if let Some(waiting) = pilot.keeper.start.borrow_mut().take() {
        let _ = waiting.send(answer);
    }
}

fn note_end(pilot: &Pilot, ended: Ended) {
    let planned = pilot.state.borrow().engine.stopping;
    let fields: [(&str, &dyn std::fmt::Display); 3] = [
        ("code", &ended.code.map_or_else(|| "-".to_owned(), |code| code.to_string())),
        ("signal", &ended.signal.map_or_else(|| "-".to_owned(), |signal| signal.to_string())),
        ("planned", &planned),
    ];
    log::event(if planned { Level::Info } else { Level::Warn }, "the engine ended", &fields);
    pilot.update(|state| {
        let ran = state.engine.since.map_or(Duration::ZERO, |since| since.elapsed());
        let engine = &mut state.engine;
        engine.running = None;
        engine.since = None;
        engine.hung_polls = 0;
        engine.last_exit = Some(ended.into());
        // A stop because it was unwell was planned by us, but is a failure all the same.
        let unwell = engine.unwell.take().is_some();
        if !planned || unwell {
            engine.crashed = !planned || unwell;
            engine.crashes = if ran > SETTLED { 0 } else { engine.crashes };
            state.pause_until = Some(Instant::now() + back_off(engine.crashes));
            engine.crashes = engine.crashes.saturating_add(1);
            state.counters.crashes += 1;
        }
        state.data = None;
        state.role = None;
        state.health = None;
        state.session = Session::default();
    });
    // What runs against the engine has nobody left to talk to.
    for lane in [Lane::Observe, Lane::Lifecycle] {
        if !planned {
            pilot.lanes.cancel(lane);
        }
    }
}

/// The keeper is stopped or wedged: nobody would keep its deadline, so the engine must not go on.
fn guard_alone(pilot: &Pilot) {
    if !pilot.state.borrow().keeper_silent {
        log::event(Level::Error, "the keeper does not answer: killing the engine", &[]);
        pilot.update(|state| state.keeper_silent = true);
    }
    kill_engine(pilot);
}

/// Kills everything below the keeper but this process and its verbs.
fn kill_engine(pilot: &Pilot) {
    let keeper = getppid();
    if let Some(running) = pilot.state.borrow().engine.running {
        let engine = Pid::from_raw(running.pid);
        process::kill_descendants(engine, &[]);
        let _ = nix::sys::signal::kill(engine, nix::sys::signal::Signal::SIGKILL);
        if pilot.keeper_pid == keeper {
            process::kill_descendants(keeper, &[getpid()]);
        }
    }
}

impl Pilot {
    /// Asks the keeper to start the engine.
    pub async fn start_engine(
        &self,
        argv: Vec<String>,
        env: std::collections::BTreeMap<String, String>,
    ) -> Result<Running, String> {
        let (answer, waiting) = oneshot::channel();
        *self.keeper.start.borrow_mut() = Some(answer);
        self.keeper.send(ToKeeper::Start { argv, env });
        waiting.await.unwrap_or_else(|_| Err("the keeper gave no answer".to_owned()))
    }

    /// Changes what is remembered of the engine's run, for the next pilot too.
    pub fn update_session(&self, change: impl FnOnce(&mut Session)) {
        let session = self.update(|state| {
            change(&mut state.session);
            state.session.clone()
        });
        let written = serde_json::to_vec(&session)
            .map_err(io::Error::from)
            .and_then(|bytes| disk::replace_volatile(&self.settings.paths.session().join(SESSION), &bytes, 0o600));
        if let Err(error) = written {
            log::event(Level::Warn, "the engine's session cannot be remembered", &[("error", &error)]);
        }
    }
}

/// What an earlier pilot remembered, if it is about the engine that runs now.
pub fn load_session(directory: &Path, hello: &Hello) -> Session {
    let current = |session: &Session| {
        session.boot_id == hello.boot_id && hello.engine.is_some_and(|engine| engine.starts == session.starts)
    };
    read_session(directory).filter(current).unwrap_or_default()
}

/// The session as the pilot wrote it last, whatever run of the engine it belongs to.
pub fn read_session(directory: &Path) -> Option<Session> {
    serde_json::from_slice(&std::fs::read(directory.join(SESSION)).ok()?).ok()
}
