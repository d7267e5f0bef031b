//! The journal of operations on the volume: one JSON line per change, flushed before the change counts.
//!
//! Invariants: an operation that is known here is never begun a second time under the same id while it runs or after it
//! was done; a torn last line (power loss, full disk) loses that line only.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use backlot_standard::operation::{OperationReport, OperationRequest, OperationState};
use serde::{Deserialize, Serialize};

use super::disk;

/// File name in the agent's state directory.
pub const FILE: &str = "operations.jsonl";
/// Ended operations that are kept.
const KEPT: usize = 100;
/// Bytes of ended operations that are kept, but for the last few, whatever their size.
const KEPT_BYTES: usize = 2 << 20;
const KEPT_ANYWAY: usize = 4;
/// Bytes at which the file is rewritten.
const MAX_BYTES: u64 = 4 << 20;
/// Lines at which the file is rewritten.
const MAX_LINES: usize = 1000;

/// An operation as journaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Rises with each change; the order of the operations.
    #[serde(default)]
    pub number: u64,
    /// What was asked.
    pub request: OperationRequest,
    /// Where it is.
    pub report: OperationReport,
    /// The engine's handle of the work, for the next call.
    #[serde(default)]
    pub handle: Option<String>,
    /// Unix seconds at which it was accepted.
    #[serde(default)]
    pub since: i64,
    /// Calls that ended in *unknown*.
    #[serde(default)]
    pub unknowns: u32,
    /// Run of the container in which it was accepted.
    #[serde(default)]
    pub boot_id: String,
    /// Starts of the engine in that run, when it was accepted.
    #[serde(default)]
    pub starts: u32,
}

impl Entry {
    /// Whether the operation still is at work.
    pub fn is_running(&self) -> bool {
        self.report.state == OperationState::Running
    }
}

/// The operations in memory, and the lines on disk.
#[derive(Debug, Default)]
pub struct Journal {
    entries: BTreeMap<String, Entry>,
    next_number: u64,
}

/// What a write to disk needs; taken from the journal, so that the writing can be done on another thread.
#[derive(Debug)]
pub struct Line {
    path: PathBuf,
    bytes: Vec<u8>,
    compacted: Vec<u8>,
}

impl Journal {
    /// Reads the journal; lines that cannot be read are left out.
    pub fn load(state: &Path) -> Self {
        let bytes = std::fs::read(state.join(FILE)).unwrap_or_default();
        let mut journal = Self::default();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if let Ok(entry) = serde_json::from_slice::<Entry>(line) {
                journal.next_number = journal.next_number.max(entry.number + 1);
                journal.entries.insert(entry.report.id.clone(), entry);
            }
        }
        journal.forget_old();
        journal
    }

    /// The operation with this id.
    pub fn get(&self, id: &str) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// Every operation, oldest change first.
    pub fn entries(&self) -> Vec<&Entry> {
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_by_key(|entry| entry.number);
        entries
    }

    /// Highest epoch of an operator that asked for something.
    pub fn seen_epoch(&self) -> u64 {
        self.entries.values().map(|entry| entry.request.operator_epoch).max().unwrap_or(0)
    }

    /// Takes the change into memory; the caller writes the returned line.
    pub fn put(&mut self, mut entry: Entry, state: &Path) -> Line {
        entry.number = self.next_number;
        self.next_number += 1;
        let bytes = line(&entry);
        self.entries.insert(entry.report.id.clone(), entry);
        let compacted = self.forget_old();
        Line { path: state.join(FILE), bytes, compacted }
    }

    /// Takes back an operation that could not be journaled.
    pub fn remove(&mut self, id: &str) {
        self.entries.remove(id);
    }

    /// Forgets the oldest operations that ended, by number and by size; returns the lines of those that are kept.
    fn forget_old(&mut self) -> Vec<u8> {
        let (mut kept, mut bytes) = (0, 0);
        let mut lines = vec![];
        let mut forgotten = vec![];
        for entry in self.entries().into_iter().rev() {
            let text = line(entry);
            if !entry.is_running() {
                kept += 1;
                bytes += text.len();
                if kept > KEPT || (bytes > KEPT_BYTES && kept > KEPT_ANYWAY) {
                    forgotten.push(entry.report.id.clone());
                    continue;
                }
            }
            lines.push(text);
        }
        for id in forgotten {
            self.entries.remove(&id);
        }
        lines.into_iter().rev().flatten().collect()
    }
}

impl Line {
    /// Appends the line and flushes it; rewrites the file when it has grown long.
    pub fn write(self) -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&self.path)?;
        if file.metadata()?.len() > MAX_BYTES || count_lines(&mut file)? >= MAX_LINES {
            return disk::replace(&self.path, &self.compacted);
        }
        let mut bytes = self.bytes;
        if !ends_with_newline(&mut file)? {
            bytes.insert(0, b'\n');
        }
        file.write_all(&bytes)?;
        file.sync_data()
    }
}

fn line(entry: &Entry) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(entry).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

fn count_lines(file: &mut File) -> io::Result<usize> {
    // A line has some hundred bytes; small files need no counting.
    if file.metadata()?.len() < 64 * 1024 {
        return Ok(0);
    }
    let mut bytes = vec![];
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes.split(|byte| *byte == b'\n').count() - 1)
}

fn ends_with_newline(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use backlot_standard::operation::Act;
    use backlot_standard::request::Reason;

    fn entry(id: &str, state: OperationState) -> Entry {
        Entry {
            number: 0,
            request: OperationRequest {
                id: id.to_owned(),
                operator_epoch: 4,
                view_generation: 1,
                act: Act::Restart,
                reason: Reason::Restart,
                subject: None,
                via: None,
                params: serde_json::Map::new(),
            },
            report: OperationReport {
                id: id.to_owned(),
                state,
                attempts: 1,
                exit: None,
                result: backlot_standard::result::VerbResult::default(),
            },
            handle: None,
            since: 0,
            unknowns: 0,
            boot_id: String::new(),
            starts: 0,
        }
    }

    #[test]
    fn the_last_line_of_an_operation_counts() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::load(directory.path());
        for (id, state) in [("a", OperationState::Running), ("b", OperationState::Running), ("a", OperationState::Done)]
        {
            journal.put(entry(id, state), directory.path()).write().unwrap();
        }
        let read = Journal::load(directory.path());
        assert_eq!(read.get("a").unwrap().report.state, OperationState::Done);
        assert!(read.get("b").unwrap().is_running());
        assert_eq!(read.seen_epoch(), 4);
        let order: Vec<&str> = read.entries().iter().map(|entry| entry.report.id.as_str()).collect();
        assert_eq!(order, ["b", "a"]);
    }

    #[test]
    fn a_torn_line_loses_itself_only() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::default();
        journal.put(entry("a", OperationState::Done), directory.path()).write().unwrap();
        let path = directory.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], &whole[..whole.len() / 2]].concat()).unwrap();
        let mut journal = Journal::load(directory.path());
        journal.put(entry("b", OperationState::Running), directory.path()).write().unwrap();
        let read = Journal::load(directory.path());
        assert!(read.get("a").is_some() && read.get("b").is_some());
    }

    #[test]
    fn large_results_do_not_fill_memory_or_disk() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::default();
        for number in 0..30 {
            let mut large = entry(&format!("operation-{number}"), OperationState::Done);
            large.report.result.output = Some("x".repeat(900_000).into());
            journal.put(large, directory.path()).write().unwrap();
        }
        assert_eq!(journal.entries.len(), KEPT_ANYWAY);
        let bytes = std::fs::metadata(directory.path().join(FILE)).unwrap().len();
        assert!(bytes < 2 * MAX_BYTES, "{bytes}");
        assert!(Journal::load(directory.path()).get("operation-29").is_some());
    }

    #[test]
    fn the_file_stays_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::default();
        for number in 0..MAX_LINES + 50 {
            let id = format!("operation-{number}");
            journal.put(entry(&id, OperationState::Done), directory.path()).write().unwrap();
        }
        let lines = std::fs::read_to_string(directory.path().join(FILE)).unwrap().lines().count();
        assert!(lines <= KEPT + 50, "{lines}");
        assert_eq!(Journal::load(directory.path()).entries.len(), KEPT);
    }
}
