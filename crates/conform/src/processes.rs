//! Verbs as processes of this machine: seen, counted and killed from outside their containers.
//!
//! Invariant: only processes that carry the UID of the cluster under test in their environment are looked at.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use backlot_standard::verb::Verb;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(3);
/// Calls that are killed: fewer than the agent's tries after an unknown outcome (SPEC, appendix A: five).
const KILLS: u32 = 3;
/// Moments after its start at which a call is killed.
const MOMENTS: [Duration; KILLS as usize] = [Duration::ZERO, Duration::from_millis(120), Duration::from_millis(500)];

/// Kills the first calls of a verb midway, until it is dropped.
pub struct Killer {
    stop: Arc<AtomicBool>,
    killed: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Killer {
    /// Lies in wait for calls of `verb` in a cluster.
    pub fn of(verb: Verb, cluster_uid: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let killed = Arc::new(AtomicU32::new(0));
        let marks = [format!("DB_VERB={}", verb.name()), format!("DB_CLUSTER_UID={cluster_uid}")];
        let thread = {
            let (stop, killed) = (Arc::clone(&stop), Arc::clone(&killed));
            std::thread::spawn(move || lie_in_wait(&marks, &stop, &killed))
        };
        Self { stop, killed, thread: Some(thread) }
    }

    /// Calls killed so far.
    pub fn killed(&self) -> u32 {
        self.killed.load(Ordering::Relaxed)
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn lie_in_wait(marks: &[String; 2], stop: &AtomicBool, killed: &AtomicU32) {
    let mut innocent = BTreeSet::new();
    while !stop.load(Ordering::Relaxed) && killed.load(Ordering::Relaxed) < KILLS {
        let Some(call) = find(marks, &mut innocent) else {
            std::thread::sleep(LOOK);
            continue;
        };
        let moment = MOMENTS[killed.load(Ordering::Relaxed) as usize % MOMENTS.len()];
        std::thread::sleep(moment);
        // Its number may belong to another process by now; its marks do not.
        if has(call, marks) && kill(Pid::from_raw(call), Signal::SIGKILL).is_ok() {
            killed.fetch_add(1, Ordering::Relaxed);
        }
        innocent.insert(call);
    }
}

/// A process of a call: not the agent's own, which has to tell how the call ended.
fn find(marks: &[String; 2], innocent: &mut BTreeSet<i32>) -> Option<i32> {
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if innocent.contains(&pid) {
            continue;
        }
        if has(pid, marks) {
            return Some(pid);
        }
        // A process that has not become another program yet may still become a verb.
        if fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| !environ.is_empty()) && !is_agent(pid) {
            innocent.insert(pid);
        }
    }
    None
}

fn has(pid: i32, marks: &[String; 2]) -> bool {
    let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    let variables: Vec<&[u8]> = environ.split(|byte| *byte == 0).collect();
    marks.iter().all(|mark| variables.contains(&mark.as_bytes())) && !is_agent(pid)
}

fn is_agent(pid: i32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.to_string_lossy().ends_with("/backlot-agent"))
}

/// Processor time in milliseconds that the ended children of a process, and of its children, have used.
pub fn children_milliseconds(first: i32) -> u64 {
    let ticks = |pid: i32| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
        Some(fields.get(13)?.parse::<u64>().ok()? + fields.get(14)?.parse::<u64>().ok()?)
    };
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap_or_default();
    let pilots = children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| is_agent(*pid));
    let all: u64 = pilots.chain([first]).filter_map(ticks).sum();
    all * 1000 / u64::try_from(per_second).unwrap_or(100)
}

/// Processes in the PID name space of `first`.
fn space(first: i32) -> Vec<std::path::PathBuf> {
    let Ok(space) = fs::read_link(format!("/proc/{first}/ns/pid")) else { return vec![] };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| fs::read_link(path.join("ns/pid")).is_ok_and(|own| own == space)).collect()
}

/// Memory of a container in bytes, shared pages counted in parts.
pub fn memory(first: i32) -> u64 {
    let share = |path: std::path::PathBuf| -> Option<u64> {
        let text = fs::read_to_string(path.join("smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
    };
    space(first).into_iter().filter_map(share).sum()
}

/// Where secret `values` are seen in arguments or environments of the processes below `first`: "name in program".
pub fn leaks(first: i32, values: &[(String, String)]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in space(first) {
        for place in ["cmdline", "environ"] {
            let text = fs::read(path.join(place)).unwrap_or_default();
            let arguments = fs::read(path.join("cmdline")).unwrap_or_default();
            let program = arguments.split(|byte| *byte == 0).next().unwrap_or_default();
            for (name, value) in values {
                if contains(&text, value.as_bytes()) {
                    found.insert(format!("the secret {name} in the {place} of {}", String::from_utf8_lossy(program)));
                }
            }
        }
    }
    found
}

/// Whether `text` contains `part`.
pub fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}
