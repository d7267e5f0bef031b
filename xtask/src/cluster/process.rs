//! The programs that keep running: started apart from this one, found again by process id and start time.
//!
//! An id alone proves nothing, since ids are used again; the start time beside it does.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::cgroup::Hierarchies;
use super::layout::Layout;
use super::run::{digest, write};

const PAUSE: Duration = Duration::from_millis(50);

/// A program to keep running.
#[derive(Debug)]
pub struct Daemon {
    /// `control-plane` or a node's name.
    pub owner: String,
    /// The program's name, unique for its owner.
    pub name: String,
    /// The network namespace that it lives in.
    pub network: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The content of its configuration file, if it has one.
    pub configuration: String,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Record {
    pid: i32,
    start: u64,
    fingerprint: String,
}

/// Whether a program was already there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Started {
    /// It was started now.
    Now,
    /// It ran before, with the same arguments.
    Before,
}

impl Daemon {
    /// Starts the program unless it runs; one of another version, with other arguments or another configuration is replaced.
    pub fn ensure(&self, layout: &Layout, hierarchies: &Hierarchies) -> Result<Started> {
        if let Some(record) = self.running(layout) {
            if record.fingerprint == self.fingerprint() {
                return Ok(Started::Before);
            }
            stop(record.pid, record.start)?;
        }
        let group = layout.cgroup().join(&self.owner).join("daemons").join(&self.name);
        hierarchies.create(&group)?;
        self.kill_unrecorded(&hierarchies.members(&group))?;
        let pid = self.spawn(layout, &hierarchies.membership(&group))?;
        let start = start_time(pid)
            .with_context(|| format!("{} ended at once: see {}", self.name, self.log(layout).display()))?;
        let record = Record { pid, start, fingerprint: self.fingerprint() };
        write(&self.record_file(layout), serde_json::to_string(&record)?)?;
        Ok(Started::Now)
    }

    /// Kills what an interrupted start left: the same program in the same group, but in no record. Others in the group are its
    /// children, such as the shims of containers, and go on.
    fn kill_unrecorded(&self, members: &[Pid]) -> Result<()> {
        for pid in members {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
            if self.command.first().is_some_and(|own| own.as_bytes() == program)
                && let Some(start) = start_time(pid.as_raw())
            {
                stop(pid.as_raw(), start)?;
            }
        }
        Ok(())
    }

    fn spawn(&self, layout: &Layout, membership: &[PathBuf]) -> Result<i32> {
        let log = self.log(layout);
        fs::create_dir_all(layout.logs()).with_context(|| format!("create {}", layout.logs().display()))?;
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        // The shell joins the groups and becomes the program, so that nothing of it is ever outside. A session of its own keeps the
        // program when the terminal goes away.
        let mut script = String::new();
        for path in membership {
            // Writing to a string cannot fail.
            let _ = write!(script, "echo $$ > '{}' && ", path.display());
        }
        script.push_str("exec setsid nsenter \"--net=/run/netns/$0\" -- \"$@\"");
        let child = Command::new("sh")
            .args(["-c", &script, &self.network])
            .args(&self.command)
            .current_dir("/")
            // Proxies and the like are settings of who calls, not of the cluster.
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share the log")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {}", self.name))?;
        i32::try_from(child.id()).context("process id")
    }

    /// Waits until the program is of use; fails as soon as it ends, and shows the end of its log.
    pub fn wait_for(&self, layout: &Layout, what: &str, timeout: Duration, ready: impl Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            if !self.is_running(layout) {
                bail!("{} has ended while waiting for {what}:\n{}", self.name, self.end_of_log(layout));
            }
            if started.elapsed() > timeout {
                bail!("waited {} s for {what} of {}:\n{}", timeout.as_secs(), self.name, self.end_of_log(layout));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Whether the recorded process is alive.
    pub fn is_running(&self, layout: &Layout) -> bool {
        self.running(layout).is_some()
    }

    /// The process id, while the program runs.
    pub fn pid(&self, layout: &Layout) -> Option<i32> {
        self.running(layout).map(|record| record.pid)
    }

    /// Where the program's output goes.
    pub fn log(&self, layout: &Layout) -> PathBuf {
        layout.logs().join(format!("{}-{}.log", self.owner, self.name))
    }

    fn running(&self, layout: &Layout) -> Option<Record> {
        let content = fs::read(self.record_file(layout)).ok()?;
        let record: Record = serde_json::from_slice(&content).ok()?;
        (start_time(record.pid) == Some(record.start)).then_some(record)
    }

    /// Changes whenever the program has to be started anew. The program is called by a link, so what it leads to counts.
    fn fingerprint(&self) -> String {
        let program = self.command.first().map(PathBuf::from).unwrap_or_default();
        let program = fs::canonicalize(&program).unwrap_or(program);
        digest(format!("{} {:?} {}", program.display(), self.command, self.configuration))
    }

    fn record_file(&self, layout: &Layout) -> PathBuf {
        layout.directory.join("run").join(&self.owner).join(format!("{}.json", self.name))
    }

    fn end_of_log(&self, layout: &Layout) -> String {
        let path = self.log(layout);
        let content = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&content);
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(15)..].join("\n");
        format!("{end}\n(from {})", path.display())
    }
}

fn stop(pid: i32, start: u64) -> Result<()> {
    let started = Instant::now();
    while start_time(pid) == Some(start) {
        let signal = if started.elapsed() < Duration::from_secs(5) { Signal::SIGTERM } else { Signal::SIGKILL };
        if started.elapsed() > Duration::from_secs(15) {
            bail!("process {pid} does not end");
        }
        // It may have ended just now.
        let _ = kill(Pid::from_raw(pid), signal);
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// When a living process was started, in clock ticks since the machine's start.
fn start_time(pid: i32) -> Option<u64> {
    parse_start_time(&fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses and may hold spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_a_strange_program_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 1";
        assert_eq!(parse_start_time(stat), Some(4711));
    }

    #[test]
    fn a_process_that_waits_to_be_reaped_is_not_alive() {
        let stat = "7 (a) Z 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 1";
        assert_eq!(parse_start_time(stat), None);
    }

    #[test]
    fn this_process_has_a_start_time() {
        assert!(start_time(i32::try_from(std::process::id()).unwrap()).is_some());
    }
}
