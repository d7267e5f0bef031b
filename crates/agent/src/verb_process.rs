//! `run-verb`: runs one verb and ends with everything that the verb started.
//!
//! A process of its own for each call, subreaper of everything below it: whatever a verb forks, in whatever session, is
//! found and killed when the verb ends, when its deadline passes, when its result grows beyond the limit, or when the
//! pilot goes away (standard input is closed). Invariant: when this process has ended, nothing of the call is left.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::args::VerbArguments;
use crate::keeper::engine::set_nonblocking;
use crate::{log, process};

/// Largest result file.
pub const RESULT_BYTES: u64 = 1 << 20;
/// Output forwarded to the log in one call (SPEC §11); a verb that is polled must say less.
const LOG_BYTES: usize = 1 << 20;
const POLLED_LOG_BYTES: usize = 64 * 1024;
/// What a line costs beside its own bytes.
const RECORD_BYTES: usize = 160;
/// Longest line forwarded; the rest of it is cut.
const LINE_BYTES: usize = 2048;
/// Last output kept for the error message of a verb that says nothing else.
const TAIL_BYTES: usize = 512;
/// How often the size of the result is looked at.
const WATCH_MS: u64 = 50;

/// How a call ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallEnd {
    /// Exit code of the verb.
    pub code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// Why it was killed, when it was.
    pub killed: Option<Killed>,
    /// Processes that the verb left behind and that were killed.
    pub leftovers: usize,
    /// Last output.
    pub tail: String,
    /// Why the verb could not be started.
    pub start_error: Option<String>,
}

/// Why a call was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Killed {
    /// Its time was over.
    Deadline,
    /// The pilot cancelled it, or went away.
    Cancelled,
    /// The result file grew beyond [`RESULT_BYTES`].
    ResultTooLarge,
}

/// Runs the call; its end is written to `call.outcome`.
pub fn run(call: &VerbArguments) -> ExitCode {
    let end = match run_call(call) {
        Ok(end) => end,
        Err(error) => CallEnd { start_error: Some(error.to_string()), ..CallEnd::default() },
    };
    let written = serde_json::to_vec(&end).map_err(std::io::Error::from);
    match written.and_then(|bytes| std::fs::write(&call.outcome, bytes)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run_call(call: &VerbArguments) -> std::io::Result<CallEnd> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.add(Signal::SIGTERM);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    if call.file_bytes > 0 {
        setrlimit(Resource::RLIMIT_FSIZE, call.file_bytes, call.file_bytes)?;
    }
    let (reader, writer) = std::io::pipe()?;
    let child = Command::new(&call.program)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn()?;
    let budget = if call.file_bytes > 0 { POLLED_LOG_BYTES } else { LOG_BYTES };
    let mut forward = Forward::new(&call.verb, budget, OwnedFd::from(reader))?;
    let verb = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let mut end = watch(call, verb, &signals, &mut forward);
    end.leftovers = kill_rest();
    forward.read();
    end.tail = forward.finish();
    Ok(end)
}

/// Waits for the verb's end or a reason to end it.
fn watch(call: &VerbArguments, verb: Pid, signals: &SignalFd, forward: &mut Forward<'_>) -> CallEnd {
    let started = Instant::now();
    let mut end = CallEnd::default();
    loop {
        if let Some((code, signal)) = reap(Some(verb)) {
            (end.code, end.signal) = (code, signal);
            return end;
        }
        let left = call.deadline.saturating_sub(started.elapsed());
        let killed = if left.is_zero() {
            Some(Killed::Deadline)
        } else if std::fs::metadata(&call.result).is_ok_and(|result| result.len() > RESULT_BYTES) {
            Some(Killed::ResultTooLarge)
        } else if was_cancelled(signals, forward, left.min(Duration::from_millis(WATCH_MS))) {
            Some(Killed::Cancelled)
        } else {
            None
        };
        if killed.is_some() {
            end.killed = killed;
            return end;
        }
    }
}

/// Waits for news, forwards output, and says whether the pilot ended the call.
fn was_cancelled(signals: &SignalFd, forward: &mut Forward<'_>, wait: Duration) -> bool {
    let stdin = std::io::stdin();
    let mut descriptors =
        vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    if let Some(pipe) = &forward.pipe {
        descriptors.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
    }
    let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
    let _ = nix::poll::poll(&mut descriptors, wait);
    let ready = |index: usize| descriptors.get(index).is_some_and(|entry| entry.any().unwrap_or(false));
    let (signalled, control, output) = (ready(0), ready(1), ready(2));
    if output {
        forward.read();
    }
    let mut cancelled = control && std::io::stdin().lock().read(&mut [0; 16]).is_ok_and(|read| read == 0);
    while signalled && let Ok(Some(info)) = signals.read_signal() {
        cancelled |= i32::try_from(info.ssi_signo) == Ok(Signal::SIGTERM as i32);
    }
    cancelled
}

/// Kills everything below this process until nothing is left; returns how many processes that took.
fn kill_rest() -> usize {
    let mut killed = 0;
    loop {
        killed += process::kill_descendants(getpid(), &[]);
        reap(None);
        if waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) == Err(Errno::ECHILD) {
            return killed;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Reaps what has ended; gives exit code and signal of `verb` when it was among them.
fn reap(verb: Option<Pid>) -> Option<(Option<i32>, Option<i32>)> {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if Some(pid) == verb => return Some((Some(code), None)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if Some(pid) == verb => return Some((None, Some(signal as i32))),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Takes the verb's output and forwards what is within the budget to the log.
struct Forward<'a> {
    verb: &'a str,
    operation: String,
    pipe: Option<std::fs::File>,
    line: Vec<u8>,
    tail: Vec<u8>,
    budget: usize,
    suppressed: u64,
}

impl<'a> Forward<'a> {
    fn new(verb: &'a str, budget: usize, pipe: OwnedFd) -> std::io::Result<Self> {
        set_nonblocking(&pipe)?;
        Ok(Self {
            verb,
            operation: std::env::var("DB_OPERATION_ID").unwrap_or_default(),
            pipe: Some(std::fs::File::from(pipe)),
            line: vec![],
            tail: vec![],
            budget,
            suppressed: 0,
        })
    }

    /// Reads what is there, at most a few buffers at once so that the deadline is met in a flood.
    fn read(&mut self) {
        let mut buffer = [0; 16 * 1024];
        for _ in 0..64 {
            let Some(pipe) = &mut self.pipe else { return };
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(read) => self.take(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => {}
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let recent = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        self.tail.extend_from_slice(recent);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL_BYTES));
        if self.budget == 0 {
            self.suppressed += bytes.len() as u64;
            return;
        }
        for byte in bytes {
            match byte {
                b'\n' => self.flush(),
                _ if self.line.len() < LINE_BYTES => self.line.push(*byte),
                _ => self.suppressed += 1,
            }
        }
    }

    fn flush(&mut self) {
        if self.budget == 0 {
            self.suppressed += self.line.len() as u64;
        } else if !self.line.is_empty() {
            self.emit(&String::from_utf8_lossy(&self.line));
        }
        // Short lines are not cheap: each becomes a record.
        self.budget = self.budget.saturating_sub(self.line.len() + RECORD_BYTES);
        self.line.clear();
    }

    fn emit(&self, message: &str) {
        let mut fields = Map::new();
        fields.insert("verb".into(), self.verb.into());
        fields.insert("operation".into(), self.operation.as_str().into());
        fields.insert("message".into(), message.into());
        log::emit(&log::line("verb", fields));
    }

    fn finish(&mut self) -> String {
        if !self.line.is_empty() {
            self.flush();
        }
        if self.suppressed > 0 {
            self.emit(&format!("{} bytes of output were left out: the verb writes too much", self.suppressed));
        }
        String::from_utf8_lossy(&self.tail).trim().to_owned()
    }
}
