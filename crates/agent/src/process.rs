//! Process trees, read from `/proc`.
//!
//! Groups and sessions do not bind processes (a child may leave them), parents do: with a subreaper above, every process
//! that a tree ever started is found below it. Invariant: a signal to *everything* is sent by PID 1 only.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Every process below `root` (without it), zombies left out, without the trees of `except`.
pub fn descendants(root: Pid, except: &[Pid]) -> Vec<Pid> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (pid, parent, state) in processes() {
        if state != 'Z' && state != 'X' {
            children.entry(parent).or_default().push(pid);
        }
    }
    let except: BTreeSet<i32> = except.iter().map(|pid| pid.as_raw()).collect();
    let mut found = vec![];
    let mut open = vec![root.as_raw()];
    while let Some(parent) = open.pop() {
        for child in children.get(&parent).into_iter().flatten().filter(|child| !except.contains(child)) {
            found.push(Pid::from_raw(*child));
            open.push(*child);
        }
    }
    found
}

/// Sends `SIGKILL` to every process below `root` but the trees of `except`; says how many there were.
///
/// They are stopped first, so that none can start another while the list is worked through. Callers repeat until 0.
pub fn kill_descendants(root: Pid, except: &[Pid]) -> usize {
    let found = descendants(root, except);
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in &found {
            let _ = kill(*pid, signal);
        }
    }
    found.len()
}

/// Kills everything below this process: as PID 1 in one system call, else (tests, developer machines) its own tree only.
pub fn kill_everything() {
    let own = nix::unistd::getpid();
    if own.as_raw() == 1 {
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    } else {
        kill_descendants(own, &[]);
    }
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: Pid) -> bool {
    read_stat(pid.as_raw()).is_some_and(|(_, state)| state != 'Z' && state != 'X')
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(pid: Pid) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

fn processes() -> impl Iterator<Item = (i32, i32, char)> {
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let (parent, state) = read_stat(pid)?;
        Some((pid, parent, state))
    })
}

fn read_stat(pid: i32) -> Option<(i32, char)> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also parentheses; the fields begin after the last one.
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let fields = String::from_utf8_lossy(&text[end + 1..]).into_owned();
    let mut fields = fields.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_in_its_own_session_is_a_descendant() {
        let mut child = std::process::Command::new("setsid").args(["sleep", "60"]).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert!(descendants(nix::unistd::getpid(), &[]).contains(&pid));
        assert!(!descendants(nix::unistd::getpid(), &[pid]).contains(&pid));
        assert!(is_alive(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_alive(pid));
    }
}
