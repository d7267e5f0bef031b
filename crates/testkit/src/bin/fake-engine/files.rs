//! What the engine keeps on its volume, and the configuration that `render` gives it.
//!
//! Invariant: a file is replaced by renaming a flushed copy, so that it is whole or absent after any crash.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What `render` writes for the engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Directory of the engine's files.
    pub data: PathBuf,
    /// File with the password of `admin`.
    pub secret: PathBuf,
    /// Address to listen on.
    pub listen: String,
    /// Port.
    pub port: u16,
    /// The member.
    pub member: String,
    /// Its name for other members.
    pub address: String,
    /// Whether the agents choose the leader.
    pub led: bool,
    /// Whether a write needs a majority.
    pub quorum: bool,
    /// The user's settings.
    pub settings: BTreeMap<String, String>,
}

/// The cluster as the engine knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Identity of the cluster.
    pub uid: String,
    /// The member whose files these are.
    pub member: String,
    /// Members by the engine's own id.
    pub members: BTreeMap<String, Peer>,
    /// Rises with each change of `members`.
    pub version: u64,
    /// Newest election term seen.
    pub term: u64,
    /// Candidate that got this member's vote in `term`.
    pub voted_for: Option<String>,
    /// The member left: never to be started again.
    pub retired: bool,
}

/// A member as the engine knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The standard's member id.
    pub member: String,
    /// `host:port`.
    pub address: String,
}

impl Cluster {
    /// Where the cluster's file is.
    pub fn path(data: &Path) -> PathBuf {
        data.join("cluster.json")
    }

    /// Reads it; `None` when there is none.
    pub fn read(data: &Path) -> io::Result<Option<Self>> {
        read_json(&Self::path(data))
    }

    /// The engine's own id of a member.
    pub fn id_of(&self, member: &str) -> Option<&String> {
        self.members.iter().find(|(_, peer)| peer.member == member).map(|(id, _)| id)
    }
}

/// Reads a JSON file; `None` when it is absent.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a JSON file.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.sync_all()?;
    fs::rename(part, path)
}

/// Appends a line.
pub fn append_line(path: &Path, line: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{line}\n").as_bytes())
}
