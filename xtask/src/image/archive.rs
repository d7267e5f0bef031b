//! The record kept beside each image archive: what the archive holds, readable without an engine.
//!
//! Invariant: a record exists only when its archive is complete.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::store::{self, Store};

/// Archives of other states of a folder stay this long, because another checkout on the machine may use them.
const KEPT: Duration = Duration::from_hours(7 * 24);

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
    let mut newest: Option<(SystemTime, String)> = None;
    for entry in fs::read_dir(store.path("")).context("cannot read the store")? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_record = path.extension().is_some_and(|extension| extension == "json");
        let Some((_, hash)) = stem.rsplit_once('-').filter(|(owner, _)| is_record && *owner == name) else { continue };
        let modified = fs::metadata(&path)?.modified()?;
        if newest.as_ref().is_none_or(|(seen, _)| *seen < modified) {
            newest = Some((modified, hash.to_owned()));
        }
    }
    Ok(newest.and_then(|(_, hash)| read(store, name, &hash)))
}

/// Writes the record of a complete archive.
pub fn write(built: &Built) -> Result<()> {
    store::write(&built.archive.with_extension("json"), &serde_json::to_vec_pretty(built)?, 0o644)
}

/// Removes archives of older states of an image that nobody has built for a week.
pub fn prune(store: &Store, kept: &Built) -> Result<()> {
    for entry in fs::read_dir(store.path(""))? {
        let path = entry?.path();
        if is_old_state(&path, kept) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn is_old_state(path: &Path, kept: &Built) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let Some((name, hash)) = stem.rsplit_once('-') else { return false };
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    let age = modified.ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
    name == kept.name && hash != kept.hash && age > KEPT
}
