//! The processes of a container, seen from outside.
//!
//! Invariant: only processes in the container's own PID name space are looked at or killed.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::state::Trial;
use crate::image::process;

/// A process of a container.
pub struct Process {
    /// Its number on this machine.
    pub pid: i32,
    /// Its number inside the container.
    pub inner: i32,
    /// Its arguments, as the kernel shows them.
    pub arguments: Vec<u8>,
    /// Its environment, as the kernel shows it.
    pub environment: Vec<u8>,
}

/// The PID name space of a member's container.
pub struct Space {
    link: PathBuf,
    /// Processes of other name spaces, so that looking often is cheap; a process never changes its name space.
    others: RefCell<HashSet<i32>>,
}

impl Space {
    /// The name space of `member`.
    pub fn of(trial: &Trial, member: &str) -> Result<Self> {
        let container = trial.container(member);
        let pid = process::capture(&mut trial.podman(&["inspect", "--format", "{{.State.Pid}}", &container]))?;
        let link = format!("/proc/{}/ns/pid", pid.trim());
        let link = fs::read_link(&link).with_context(|| format!("the container of {member} does not run"))?;
        Ok(Self { link, others: RefCell::default() })
    }

    /// The processes that live now, the container's first one excepted.
    pub fn processes(&self) -> Vec<Process> {
        let Ok(entries) = fs::read_dir("/proc") else { return vec![] };
        entries.flatten().filter_map(|entry| self.process(entry.file_name().to_str()?.parse().ok()?)).collect()
    }

    /// A process that ends while it is looked at is none.
    fn process(&self, pid: i32) -> Option<Process> {
        let file = |name: &str| format!("/proc/{pid}/{name}");
        if self.others.borrow().contains(&pid) {
            return None;
        }
        if fs::read_link(file("ns/pid")).ok()? != self.link {
            self.others.borrow_mut().insert(pid);
            return None;
        }
        let status = fs::read_to_string(file("status")).ok()?;
        if status.lines().any(|line| line.starts_with("State:\tZ")) {
            return None;
        }
        let inner =
            status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()?;
        let arguments = fs::read(file("cmdline")).ok()?;
        let environment = fs::read(file("environ")).ok()?;
        (inner != 1).then_some(Process { pid, inner, arguments, environment })
    }
}

impl Process {
    /// Whether the process inherited `marker` in its environment.
    pub fn descends_from(&self, marker: &str) -> bool {
        contains(&self.environment, marker.as_bytes())
    }

    /// Sends a signal; a process that is gone already is fine.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid), signal);
    }
}

/// Whether `text` contains `part`.
pub fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
