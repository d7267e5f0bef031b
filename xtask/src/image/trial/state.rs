//! What the calls of `db` in one trial share: a folder with a state file, because each call is a process of its own.
//!
//! Invariant: the state file is replaced at once and changed under a lock, so calls may run beside each other.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use backlot_standard::manifest::Manifest;
use backlot_standard::verb::Verb;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::image::store;

/// Environment variable with the folder of the running trial.
pub const FOLDER: &str = "BACKLOT_TRIAL";

/// One trial.
#[derive(Serialize, Deserialize)]
pub struct Trial {
    /// Folder of the trial.
    pub folder: PathBuf,
    /// Name of the trial's network, and prefix of its containers' names.
    pub network: String,
    /// The image under test.
    pub image: String,
    /// The container engine's command.
    pub podman: PathBuf,
    /// The user and group of all members.
    pub uid: u32,
    /// The image's manifest.
    pub manifest: Manifest,
    /// The verbs that the image has.
    pub verbs: BTreeSet<Verb>,
    /// What all requests have in common: the request's own fields, without those that belong to one call.
    pub base: Value,
    /// Whether to show every call.
    pub verbose: bool,
}

impl Trial {
    /// The trial in which this process was called.
    pub fn current() -> Result<Self> {
        let folder = std::env::var_os(FOLDER).context("`db` works only inside `cargo xtask image test`")?;
        Self::read(Path::new(&folder))
    }

    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("state.json");
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("cannot parse {}", path.display()))
    }

    /// Writes the state for the first time.
    pub fn create(&self) -> Result<()> {
        store::write(&self.folder.join("state.json"), &serde_json::to_vec_pretty(self)?, 0o600)
    }

    /// Changes what all later requests have in common.
    pub fn change(&mut self, change: impl FnOnce(&mut Value) -> Result<()>) -> Result<()> {
        let lock = File::options().create(true).truncate(false).write(true).open(self.folder.join("state.lock"))?;
        lock.lock().context("cannot lock the trial's state")?;
        let mut now = Self::read(&self.folder)?;
        change(&mut now.base)?;
        now.create()?;
        *self = now;
        Ok(())
    }

    /// Name of a member's container.
    pub fn container(&self, member: &str) -> String {
        format!("{}-{member}", self.network)
    }

    /// Folder of a member, or of a part of it.
    pub fn member(&self, member: &str, part: &str) -> PathBuf {
        self.folder.join("members").join(member).join(part)
    }

    /// A command of the container engine.
    pub fn podman(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(&self.podman);
        command.args(arguments);
        command
    }

    /// User and group in the engine's notation.
    pub fn user(&self) -> String {
        format!("{0}:{0}", self.uid)
    }
}
