//! The engine's process and its output, as the keeper holds them.
//!
//! Invariants: the pipe of the engine's output belongs to the keeper, so that a pilot that dies breaks nothing; an engine
//! counts as ended only when everything that it started has ended too.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use serde_json::Map;

use crate::log;
use crate::protocol::{Ended, Running};

/// Most output kept for `lastExit.outputTail`.
const TAIL_BYTES: usize = 2048;
/// Longest piece of a line that is forwarded at once.
const LINE_BYTES: usize = 3072;
/// Output waiting for the log reader; beyond it the engine's pipe is not read, as if the engine wrote to a full log itself.
const WAITING_BYTES: usize = 256 * 1024;

/// The engine's process.
#[derive(Debug)]
pub struct Engine {
    /// What the pilot knows of it.
    pub running: Running,
    /// How the main process ended; its descendants may still be there.
    pub ended: Option<Ended>,
}

impl Engine {
    /// Starts the engine in its own session. Its output goes to `output`.
    pub fn start(
        argv: &[String],
        env: &BTreeMap<String, String>,
        starts: u32,
        output: &mut Output,
    ) -> std::io::Result<Self> {
        let (reader, writer) = std::io::pipe()?;
        let child = Command::new("/proc/self/exe")
            .arg("launch")
            .args(argv)
            .env_clear()
            .envs(env)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()?;
        output.attach(OwnedFd::from(reader))?;
        // The child is reaped by the keeper's own loop, like every process of the container.
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        Ok(Self { running: Running { pid, starts, at: log::unix_seconds() }, ended: None })
    }

    /// The main process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.running.pid)
    }

    /// Takes note of how the main process ended.
    pub fn note_end(&mut self, status: WaitStatus) {
        let (code, signal) = match status {
            WaitStatus::Exited(_, code) => (Some(code), None),
            WaitStatus::Signaled(_, signal, _) => (None, Some(signal as i32)),
            _ => (None, None),
        };
        let starts = self.running.starts;
        self.ended = Some(Ended { starts, code, signal, at: log::unix_seconds(), output_tail: String::new() });
    }
}

/// The engine's output on its way to the log.
#[derive(Debug, Default)]
pub struct Output {
    pipe: Option<std::fs::File>,
    line: Vec<u8>,
    tail: VecDeque<u8>,
    waiting: VecDeque<u8>,
}

impl Output {
    fn attach(&mut self, pipe: OwnedFd) -> std::io::Result<()> {
        set_nonblocking(&pipe)?;
        self.pipe = Some(std::fs::File::from(pipe));
        self.tail.clear();
        Ok(())
    }

    /// The pipe to wait for, when there is room for more output.
    pub fn readable(&self) -> Option<BorrowedFd<'_>> {
        let room = self.waiting.len() < WAITING_BYTES;
        self.pipe.as_ref().filter(|_| room).map(AsFd::as_fd)
    }

    /// Whether something waits to be written to the log.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Reads what the engine wrote; once per call, so that a flood does not keep the keeper from its other duties.
    pub fn read(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut buffer = [0; 16 * 1024];
        match pipe.read(&mut buffer) {
            Ok(0) => {
                self.pipe = None;
                self.flush_line(false);
            }
            Ok(read) => self.take(&buffer[..read]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
            Err(_) => self.pipe = None,
        }
    }

    /// The last lines of output, after reading what is still in the pipe.
    pub fn take_tail(&mut self) -> String {
        for _ in 0..8 {
            self.read();
        }
        self.flush_line(false);
        let tail: Vec<u8> = self.tail.drain(..).collect();
        let text = String::from_utf8_lossy(&tail);
        text.trim().to_owned()
    }

    /// Writes one piece to the log; called when the log has room.
    pub fn write(&mut self) {
        let size = self.waiting.len().min(log::ATOMIC_BYTES);
        let slice: Vec<u8> = self.waiting.iter().copied().take(size).collect();
        // Whole lines as long as there are some, so that lines of other processes come between, not inside.
        let end = slice.iter().rposition(|byte| *byte == b'\n').map_or(slice.len(), |end| end + 1);
        match log::write(&slice[..end]) {
            Ok(written) => drop(self.waiting.drain(..written)),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
            Err(_) => self.waiting.clear(),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
        for byte in bytes {
            if *byte == b'\n' {
                self.flush_line(false);
            } else {
                self.line.push(*byte);
                if self.line.len() >= LINE_BYTES {
                    self.flush_line(true);
                }
            }
        }
    }

    fn flush_line(&mut self, partial: bool) {
        if self.line.is_empty() {
            return;
        }
        let mut fields = Map::new();
        fields.insert("message".into(), String::from_utf8_lossy(&self.line).trim_end_matches('\r').into());
        if partial {
            fields.insert("partial".into(), true.into());
        }
        self.waiting.extend(log::line("engine", fields).as_bytes());
        self.line.clear();
    }
}

/// Reads and writes of `fd` return at once.
pub fn set_nonblocking(fd: &impl AsFd) -> std::io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_becomes_lines_and_the_tail_is_bounded() {
        let mut output = Output::default();
        output.take(b"one\ntwo \xff\n");
        output.take("x".repeat(LINE_BYTES + 5).as_bytes());
        let text = String::from_utf8(output.waiting.iter().copied().collect()).unwrap();
        let messages: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(messages[0]["message"], "one");
        assert_eq!(messages[0]["source"], "engine");
        assert_eq!(messages[1]["message"], "two \u{fffd}");
        assert_eq!(messages[2]["partial"], true);
        assert_eq!(output.take_tail().len(), TAIL_BYTES);
    }

    #[test]
    fn a_slow_log_stops_the_reading() {
        let mut output = Output::default();
        let (reader, _writer) = std::io::pipe().unwrap();
        output.attach(OwnedFd::from(reader)).unwrap();
        assert!(output.readable().is_some());
        output.take("line\n".repeat(WAITING_BYTES / 20).as_bytes());
        assert!(output.readable().is_none());
    }
}
