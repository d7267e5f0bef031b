//! The engine's log of writes: one JSON line each, flushed before it counts.
//!
//! Invariant: two logs with the same term at the same offset are equal up to there.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::breaks::breaks;

/// One write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Term of the leader that took it.
    pub term: u64,
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
}

/// The log. Offsets begin at 1.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    file: File,
    all: Vec<Record>,
}

impl Records {
    /// Opens the log in `data`, and drops a half-written last line.
    pub fn open(data: &Path) -> io::Result<Self> {
        fs::create_dir_all(data)?;
        let path = data.join("records.jsonl");
        let mut all = vec![];
        let mut whole = 0;
        if let Ok(file) = File::open(&path) {
            let mut reader = BufReader::new(file);
            let mut line = String::new();
            while reader.read_line(&mut line)? > 0 {
                let Ok(record) = serde_json::from_str(&line) else { break };
                if !line.ends_with('\n') {
                    break;
                }
                all.push(record);
                whole += line.len() as u64;
                line.clear();
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.set_len(whole)?;
        Ok(Self { path, file, all })
    }

    /// Number of writes.
    pub fn offset(&self) -> u64 {
        self.all.len() as u64
    }

    /// Term of the write at `offset`; 0 before the first.
    pub fn term_at(&self, offset: u64) -> u64 {
        let index = usize::try_from(offset).ok().and_then(|offset| offset.checked_sub(1));
        index.and_then(|index| self.all.get(index)).map_or(0, |record| record.term)
    }

    /// The write after `offset`.
    pub fn after(&self, offset: u64) -> Option<&Record> {
        self.all.get(usize::try_from(offset).ok()?)
    }

    /// Appends and flushes one write.
    pub fn append(&mut self, record: Record) -> io::Result<u64> {
        if breaks("keeps-in-memory") {
            self.all.push(record);
            return Ok(self.offset());
        }
        self.file.write_all(format!("{}\n", serde_json::to_string(&record)?).as_bytes())?;
        self.file.sync_data()?;
        self.all.push(record);
        Ok(self.offset())
    }

    /// Drops every write after `offset`.
    pub fn truncate(&mut self, offset: u64) -> io::Result<()> {
        self.all.truncate(usize::try_from(offset).unwrap_or(usize::MAX));
        let mut text = vec![];
        for record in &self.all {
            serde_json::to_writer(&mut text, record)?;
            text.push(b'\n');
        }
        fs::write(&self.path, text)?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        self.file.sync_all()
    }

    /// The newest value of every key.
    pub fn values(&self) -> BTreeMap<&str, &str> {
        self.all.iter().map(|record| (record.key.as_str(), record.value.as_str())).collect()
    }
}
