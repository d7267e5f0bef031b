//! The record kept beside each image archive: what the archive holds, readable without an engine.
//!
//! Invariant: a record exists only when its archive is complete.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::store::{self, Store};

/// Archives of other states of a folder stay as long as this after their last use, because another checkout on the machine may be
/// at work with them.
const KEPT: Duration = Duration::from_hours(1);
/// States that stay in any case: going back and forth between two is quick.
const NEWEST_KEPT: usize = 3;

/// A built image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Built {
    /// Name of the image's folder.
    pub name: String,
    /// What `dev.backlot.version` says, or the workspace's version.
    pub version: String,
    /// `localhost/backlot/NAME:VERSION`.
    pub reference: String,
    /// Digest of the image's manifest, `sha256:…`; the same in the archive, in the store and on a node.
    pub digest: String,
    /// Content hash of the folder.
    pub hash: String,
    /// OCI archive, for `podman load` and `ctr images import`.
    pub archive: PathBuf,
    /// Size of the archive, whose layers are not compressed.
    pub bytes: u64,
}

impl Built {
    /// `localhost/backlot/NAME@sha256:…`, which is what a `DatabaseClass` names.
    pub fn pinned(&self) -> String {
        format!("{}@{}", self.repository(), self.digest)
    }

    /// `localhost/backlot/NAME`.
    pub fn repository(&self) -> String {
        repository(&self.name)
    }
}

/// Where the image `name` is kept.
pub fn repository(name: &str) -> String {
    format!("localhost/backlot/{name}")
}

/// The archive of the image `name` with the content `hash`.
pub fn path(store: &Store, name: &str, hash: &str) -> PathBuf {
    store.path(format!("{name}-{hash}.tar"))
}

/// The record of an archive, if it is complete.
pub fn read(store: &Store, name: &str, hash: &str) -> Option<Built> {
    let archive = path(store, name, hash);
    let record = fs::read(archive.with_extension("json")).ok()?;
    let mut built: Built = serde_json::from_slice(&record).ok()?;
    let bytes = fs::metadata(&archive).ok()?.len();
    // The cache may have been moved, and a full disk may have cut the archive.
    built.archive = archive;
    (built.bytes == bytes).then_some(built)
}

/// The record of the newest archive of the image `name`.
pub fn newest(store: &Store, name: &str) -> Result<Option<Built>> {
    Ok(states(store, name)?.first().and_then(|(_, hash)| read(store, name, hash)))
}

/// Writes the record of a complete archive.
pub fn write(built: &Built) -> Result<()> {
    store::write(&built.archive.with_extension("json"), &serde_json::to_vec_pretty(built)?, 0o644)
}

/// Marks an archive as used, so that it is not taken for old.
pub fn touch(built: &Built) -> Result<()> {
    let record = fs::File::options().write(true).open(built.archive.with_extension("json"))?;
    record.set_modified(SystemTime::now()).context("cannot mark an archive as used")
}

/// Removes archives of older states of an image, and answers their content hashes.
pub fn prune(store: &Store, kept: &Built) -> Result<Vec<String>> {
    let now = SystemTime::now();
    let is_old = |used: &SystemTime| now.duration_since(*used).unwrap_or_default() > KEPT;
    let states = states(store, &kept.name)?.into_iter().skip(NEWEST_KEPT);
    let old: Vec<String> =
        states.filter(|(used, hash)| is_old(used) && *hash != kept.hash).map(|(_, hash)| hash).collect();
    for hash in &old {
        let archive = path(store, &kept.name, hash);
        fs::remove_file(archive.with_extension("json")).context("cannot remove an old record")?;
        fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    }
    Ok(old)
}

/// The states of the image `name` that have a record: when it was last used, and its content hash; the newest first.
fn states(store: &Store, name: &str) -> Result<Vec<(SystemTime, String)>> {
    let mut states = Vec::new();
    for entry in fs::read_dir(store.path("")).context("cannot read the store")? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_record = path.extension().is_some_and(|extension| extension == "json");
        let Some((_, hash)) = stem.rsplit_once('-').filter(|(owner, _)| is_record && *owner == name) else { continue };
        states.push((fs::metadata(&path)?.modified()?, hash.to_owned()));
    }
    states.sort_by(|one, other| other.cmp(one));
    Ok(states)
}
