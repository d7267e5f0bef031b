//! The keeper: first process of the container (elections and fencing stand on it).
//!
//! Single-threaded, no disk, no network: it starts and reaps, forwards the engine's output, and holds one deadline.
//! Invariants: the engine's end never ends the keeper; the keeper never waits for anybody (every descriptor is
//! non-blocking or polled first), so the deadline is met whatever the others do; after a pause of the machine the
//! deadline is looked at before anything else.

pub mod engine;
pub mod pilots;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, getpid};

use crate::args::Settings;
use crate::hex;
use crate::log::{self, Level};
use crate::process;
use crate::protocol::{Ended, Hello, ToKeeper, ToPilot};
use engine::{Engine, Output};
use pilots::PilotProcess;

/// Ticks of silence after which a pilot is killed; a tick is a third of the configured silence.
const SILENT_TICKS: u32 = 3;
/// A pilot that does not become ready in this time is given up.
const READY_MS: u64 = 5_000;
/// Bounds of the pause before a pilot is started again.
const PILOT_BACKOFF_MS: (u64, u64) = (100, 5_000);
/// A pilot that ran so long starts again without a pause.
const PILOT_SETTLED_MS: u64 = 60_000;
/// Without any ready pilot for this long, the keeper itself passes a termination on to the engine.
const ORPHAN_TERMINATION_MS: u64 = 10_000;
/// Time for the rest of the engine's processes to die before the engine counts as ended anyway.
const LEFTOVER_MS: u64 = 5_000;

/// Runs as the first process of a container until it is told to end.
pub fn run(settings: &Settings) -> ExitCode {
    match Keeper::new(settings) {
        Ok(mut keeper) => keeper.run(),
        Err(error) => {
            log::event(Level::Error, "the keeper cannot start", &[("error", &error)]);
            ExitCode::FAILURE
        }
    }
}

struct Keeper<'a> {
    settings: &'a Settings,
    signals: SignalFd,
    hello: Hello,
    pilot: Option<PilotProcess>,
    /// A pilot that is to replace `pilot`.
    next_pilot: Option<PilotProcess>,
    /// Binary of the pilot that was last ready.
    pilot_path: PathBuf,
    pilot_due: u64,
    pilot_backoff: u64,
    engine: Option<Engine>,
    leftover_since: u64,
    output: Output,
    deadline: Option<u64>,
    terminate_since: Option<u64>,
    last_tick: u64,
    done: bool,
}

impl<'a> Keeper<'a> {
    fn new(settings: &'a Settings) -> io::Result<Self> {
        take_over_ignored_signals()?;
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        // As PID 1 orphans come to us anyway; elsewhere (tests) this makes it so.
        nix::sys::prctl::set_child_subreaper(true)?;
        let boot_id = hex::random_name().map_err(|_| Errno::EIO)?;
        let link = settings.paths.pilot();
        let replaced = std::fs::exists(&link).unwrap_or(false);
        Ok(Self {
            settings,
            signals,
            hello: Hello { boot_id, ..Hello::default() },
            pilot: None,
            next_pilot: None,
            pilot_path: if replaced { link } else { own_binary() },
            pilot_due: 0,
            pilot_backoff: PILOT_BACKOFF_MS.0,
            engine: None,
            leftover_since: 0,
            output: Output::default(),
            deadline: None,
            terminate_since: None,
            last_tick: now_ms(),
            done: false,
        })
    }

    fn run(&mut self) -> ExitCode {
        while !self.done {
            let ready = self.wait();
            self.check_deadline();
            if ready.signals {
                self.take_signals();
            }
            self.reap();
            self.talk_to_pilots();
            if ready.output {
                self.output.read();
            }
            if ready.log {
                self.output.write();
            }
            self.finish_engine();
            self.tick();
            self.keep_a_pilot();
            self.terminate_without_pilot();
        }
        process::kill_everything();
        // The last words of the engine, if the log reader takes them soon.
        for _ in 0..1000 {
            if !self.output.is_waiting() {
                break;
            }
            self.output.write();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        ExitCode::SUCCESS
    }

    /// Waits until something is to be done.
    fn wait(&self) -> Ready {
        let timeout = self.timeout();
        let stderr = io::stderr();
        let interest = |pilot: &PilotProcess| {
            if pilot.has_unsent() { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN }
        };
        let mut descriptors = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        for pilot in self.pilot.iter().chain(&self.next_pilot).filter(|pilot| !pilot.is_broken()) {
            descriptors.push(PollFd::new(pilot.socket(), interest(pilot)));
        }
        let output = self.output.readable().map(|pipe| {
            descriptors.push(PollFd::new(pipe, PollFlags::POLLIN));
            descriptors.len() - 1
        });
        let log = self.output.is_waiting().then(|| {
            descriptors.push(PollFd::new(stderr.as_fd(), PollFlags::POLLOUT));
            descriptors.len() - 1
        });
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let _ = nix::poll::poll(&mut descriptors, timeout);
        let any = |index: Option<usize>| index.is_some_and(|index| descriptors[index].any().unwrap_or(false));
        Ready { signals: any(Some(0)), output: any(output), log: any(log) }
    }

    /// Milliseconds until the next thing that happens by time alone.
    fn timeout(&self) -> u64 {
        let now = now_ms();
        let mut next = self.last_tick + self.tick_ms();
        if self.pilot.is_none() {
            next = next.min(self.pilot_due);
        }
        if let Some(deadline) = self.deadline {
            next = next.min(deadline);
        }
        if self.engine.as_ref().is_some_and(|engine| engine.ended.is_some()) {
            next = next.min(now + 5);
        }
        next.saturating_sub(now)
    }

    fn check_deadline(&mut self) {
        if self.deadline.is_some_and(|deadline| now_ms() >= deadline) {
            // First the act, then the words.
            process::kill_everything();
            self.deadline = None;
            self.hello.fenced = true;
            log::event(Level::Error, "the deadline passed: killed every process of the member", &[]);
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).unwrap_or(0);
            if signal == Signal::SIGTERM as i32 || signal == Signal::SIGINT as i32 {
                self.terminate_since.get_or_insert(now_ms());
                self.hello.terminating = true;
                self.tell_pilots(&ToPilot::Terminate);
            }
        }
    }

    fn reap(&mut self) {
        loop {
            let status = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::EINTR) => continue,
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(status) => status,
            };
            let pid = status.pid();
            if pid.is_some() && pid == self.engine.as_ref().map(Engine::pid) {
                if let Some(engine) = &mut self.engine {
                    engine.note_end(status);
                    self.leftover_since = now_ms();
                }
            } else if pid.is_some() && pid == self.pilot.as_ref().map(|pilot| pilot.pid) {
                self.lose_pilot(&format!("{status:?}"));
            } else if pid.is_some() && pid == self.next_pilot.as_ref().map(|pilot| pilot.pid) {
                self.give_up_next(&format!("the new pilot ended: {status:?}"));
            }
        }
    }

    /// Ends what the engine left behind, then reports its end.
    fn finish_engine(&mut self) {
        if self.engine.as_ref().is_none_or(|engine| engine.ended.is_none()) {
            return;
        }
        let overdue = now_ms() > self.leftover_since + LEFTOVER_MS;
        if process::kill_descendants(getpid(), &self.pilot_pids()) > 0 && !overdue {
            return;
        }
        let Some(mut ended) = self.engine.take().and_then(|engine| engine.ended) else { return };
        ended.output_tail = self.output.take_tail();
        self.hello.engine = None;
        self.hello.last_exit = Some(ended.clone());
        self.tell_pilots(&ToPilot::Exited(ended));
    }

    /// Tells the pilot, and the one that is about to follow it.
    fn tell_pilots(&mut self, message: &ToPilot) {
        for pilot in self.pilot.iter_mut().chain(&mut self.next_pilot) {
            pilot.send(message);
        }
    }

    fn pilot_pids(&self) -> Vec<Pid> {
        self.pilot.iter().chain(&self.next_pilot).map(|pilot| pilot.pid).collect()
    }

    fn talk_to_pilots(&mut self) {
        let messages = self.pilot.as_mut().map(|pilot| {
            pilot.flush();
            pilot.receive()
        });
        for message in messages.unwrap_or_default() {
            self.obey(message);
        }
        let messages = self.next_pilot.as_mut().map(|pilot| {
            pilot.flush();
            pilot.receive()
        });
        let ready = messages.is_some_and(|messages| messages.contains(&ToKeeper::Ready));
        if ready && let Some(mut next) = self.next_pilot.take() {
            if let Some(old) = self.pilot.take() {
                old.kill();
            }
            next.ready = true;
            self.pilot_path.clone_from(&next.path);
            self.pilot = Some(next);
            log::event(Level::Info, "the pilot was replaced", &[("path", &self.pilot_path.display())]);
        }
    }

    fn obey(&mut self, message: ToKeeper) {
        match message {
            ToKeeper::Ready => {
                if let Some(pilot) = &mut self.pilot {
                    pilot.ready = true;
                }
            }
            ToKeeper::Ping { number } => {
                if let Some(pilot) = &mut self.pilot {
                    pilot.send(&ToPilot::Pong { number });
                }
            }
            ToKeeper::Start { argv, env } => self.start_engine(&argv, &env),
            ToKeeper::Signal { signal } => {
                if let (Some(engine), Ok(signal)) = (&self.engine, Signal::try_from(signal))
                    && engine.ended.is_none()
                {
                    let _ = kill(engine.pid(), signal);
                }
            }
            ToKeeper::KillEngine => {
                process::kill_descendants(getpid(), &self.pilot_pids());
            }
            ToKeeper::Deadline { milliseconds } => {
                self.deadline = milliseconds.map(|milliseconds| now_ms() + milliseconds);
            }
            ToKeeper::Replace { path } => self.start_next(Path::new(&path)),
            ToKeeper::Exit => self.done = true,
        }
    }

    fn start_engine(&mut self, argv: &[String], env: &std::collections::BTreeMap<String, String>) {
        let started = if let Some(engine) = &self.engine {
            Err(io::Error::other(format!("the engine runs already as process {}", engine.running.pid)))
        } else {
            Engine::start(argv, env, self.hello.starts + 1, &mut self.output)
        };
        let answer = match started {
            Ok(engine) => {
                self.hello.starts = engine.running.starts;
                self.hello.engine = Some(engine.running);
                self.hello.fenced = false;
                let answer = ToPilot::Started(engine.running);
                self.engine = Some(engine);
                answer
            }
            Err(error) => ToPilot::StartFailed { error: error.to_string() },
        };
        if let Some(pilot) = &mut self.pilot {
            pilot.send(&answer);
        }
    }

    fn start_next(&mut self, path: &Path) {
        self.hello.run += 1;
        match PilotProcess::start(path, self.settings, now_ms()) {
            Ok(mut next) => {
                next.send(&ToPilot::Hello(self.hello.clone()));
                self.next_pilot = Some(next);
            }
            Err(error) => self.give_up_next(&format!("{} cannot be started: {error}", path.display())),
        }
    }

    /// The new pilot is no good: the old one goes on.
    fn give_up_next(&mut self, error: &str) {
        if let Some(next) = self.next_pilot.take() {
            next.kill();
        }
        log::event(Level::Error, "the new pilot did not become ready, the old one goes on", &[("error", &error)]);
        if let Some(pilot) = &mut self.pilot {
            pilot.send(&ToPilot::ReplaceFailed { error: error.to_owned() });
        }
    }

    fn lose_pilot(&mut self, how: &str) {
        let Some(pilot) = self.pilot.take() else { return };
        log::event(Level::Error, "the pilot ended, starting another; the engine goes on", &[("how", &how)]);
        let now = now_ms();
        if now > pilot.started + PILOT_SETTLED_MS {
            self.pilot_backoff = PILOT_BACKOFF_MS.0;
        }
        if !pilot.ready && pilot.path != own_binary() {
            // A replaced pilot that cannot even start must not lock the member out.
            self.pilot_path = own_binary();
        }
        self.pilot_due = now + self.pilot_backoff;
        self.pilot_backoff = (self.pilot_backoff * 2).min(PILOT_BACKOFF_MS.1);
    }

    /// Counts silence. Counted are ticks of this loop, not time: after a pause of the machine nobody is blamed for it.
    fn tick(&mut self) {
        let now = now_ms();
        if now < self.last_tick + self.tick_ms() {
            return;
        }
        self.last_tick = now;
        if let Some(pilot) = &mut self.pilot {
            pilot.silent_ticks += 1;
            let late = !pilot.ready && now > pilot.started + READY_MS;
            if (pilot.ready && pilot.silent_ticks > SILENT_TICKS) || late || pilot.is_broken() {
                log::event(Level::Error, "the pilot does not answer, killing it", &[("pid", &pilot.pid)]);
                pilot.kill();
            }
        }
        if self.next_pilot.as_ref().is_some_and(|next| now > next.started + READY_MS || next.is_broken()) {
            self.give_up_next("it was not ready in time");
        }
    }

    fn tick_ms(&self) -> u64 {
        (u64::try_from(self.settings.silence.as_millis()).unwrap_or(3_000) / u64::from(SILENT_TICKS)).max(50)
    }

    fn keep_a_pilot(&mut self) {
        if self.pilot.is_some() || self.next_pilot.is_some() || now_ms() < self.pilot_due || self.done {
            return;
        }
        self.hello.run += 1;
        match PilotProcess::start(&self.pilot_path, self.settings, now_ms()) {
            Ok(mut pilot) => {
                pilot.send(&ToPilot::Hello(self.hello.clone()));
                self.pilot = Some(pilot);
            }
            Err(error) => {
                let path = self.pilot_path.display().to_string();
                log::event(Level::Error, "the pilot cannot be started", &[("path", &path), ("error", &error)]);
                self.pilot_path = own_binary();
                self.pilot_due = now_ms() + self.pilot_backoff;
                self.pilot_backoff = (self.pilot_backoff * 2).min(PILOT_BACKOFF_MS.1);
            }
        }
    }

    /// Without a pilot that could do it gracefully, a termination still reaches the engine.
    fn terminate_without_pilot(&mut self) {
        let Some(since) = self.terminate_since else { return };
        if self.pilot.as_ref().is_some_and(|pilot| pilot.ready) {
            self.terminate_since = Some(now_ms());
        } else if now_ms() > since + ORPHAN_TERMINATION_MS {
            match &self.engine {
                Some(engine) => {
                    let _ = kill(engine.pid(), Signal::SIGTERM);
                    self.terminate_since = Some(now_ms());
                }
                None => self.done = true,
            }
        }
    }
}

/// Takes over the signals that stop an engine. What our parent had ignored (a runtime that was started in the background
/// ignores SIGINT) would be ignored by every engine too: what a process handles is the default again in those that it starts.
fn take_over_ignored_signals() -> io::Result<()> {
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2] {
        signal_hook::flag::register(signal as i32, Arc::default())?;
    }
    Ok(())
}

struct Ready {
    signals: bool,
    output: bool,
    log: bool,
}

/// Milliseconds of a clock that also counts while the machine sleeps.
fn now_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(time.tv_nsec()).unwrap_or(0) / 1_000_000
    })
}

fn own_binary() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// How an engine's end reads in the report.
impl From<Ended> for backlot_standard::status::EngineExit {
    fn from(ended: Ended) -> Self {
        Self { code: ended.code, signal: ended.signal, at: ended.at, output_tail: ended.output_tail }
    }
}
