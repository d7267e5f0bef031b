//! The pilot's process as the keeper holds it: a child at the other end of a socket pair.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::args::Settings;
use crate::protocol::{Lines, ToKeeper, ToPilot, encode};

/// Unsent bytes at which a pilot counts as hung.
const UNSENT_BYTES: usize = 256 * 1024;

/// A pilot's process.
#[derive(Debug)]
pub struct PilotProcess {
    /// Process id.
    pub pid: Pid,
    /// Its binary.
    pub path: PathBuf,
    /// Whether it said that it is at work.
    pub ready: bool,
    /// Ticks of the keeper since it last said anything.
    pub silent_ticks: u32,
    /// Milliseconds of the keeper's clock when it was started.
    pub started: u64,
    socket: UnixStream,
    lines: Lines,
    unsent: Vec<u8>,
    broken: bool,
}

impl PilotProcess {
    /// Starts the pilot of `path`.
    pub fn start(path: &Path, settings: &Settings, now: u64) -> std::io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        // The socket is the pilot's standard input: the one descriptor that is passed on without unsafe code.
        let child = Command::new(path)
            .arg("pilot")
            .args(settings.to_arguments())
            .stdin(OwnedFd::from(theirs))
            .stdout(std::io::stderr().as_fd().try_clone_to_owned()?)
            .spawn()?;
        Ok(Self {
            pid: Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX)),
            path: path.to_owned(),
            ready: false,
            silent_ticks: 0,
            started: now,
            socket: ours,
            lines: Lines::default(),
            unsent: vec![],
            broken: false,
        })
    }

    /// The socket to wait for.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether something waits to be sent.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty() && !self.broken
    }

    /// Whether the connection is over; the process then is of no use.
    pub fn is_broken(&self) -> bool {
        self.broken || self.unsent.len() > UNSENT_BYTES
    }

    /// Sends a message, now or when the pilot reads again.
    pub fn send(&mut self, message: &ToPilot) {
        self.unsent.extend(encode(message));
        self.flush();
    }

    /// Sends what waits.
    pub fn flush(&mut self) {
        while self.has_unsent() {
            match self.socket.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => self.broken = true,
            }
        }
    }

    /// Reads what arrived and returns the messages.
    pub fn receive(&mut self) -> Vec<ToKeeper> {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => self.broken = true,
                Ok(read) => {
                    self.silent_ticks = 0;
                    self.broken |= !self.lines.extend(&buffer[..read]);
                    if read == buffer.len() && !self.broken {
                        continue;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => self.broken = true,
            }
            break;
        }
        std::iter::from_fn(|| self.lines.take()).collect()
    }

    /// Ends the process at once.
    pub fn kill(&self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}
