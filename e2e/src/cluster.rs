//! The cluster under test, as `cargo xtask e2e` gives it by environment.

use anyhow::{Context as _, Result, bail};
use std::process::{Command, id};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::kubectl::Kubectl;
use crate::profile::Profile;

/// Environment variable with the name of the local cluster under test; set by `cargo xtask e2e`.
pub const CLUSTER: &str = "BACKLOT_E2E_CLUSTER";
/// Environment variable with the program that builds images and gives them to that cluster.
pub const XTASK: &str = "BACKLOT_E2E_XTASK";
/// Environment variable with the types to test, separated by commas.
pub const TYPES: &str = "BACKLOT_E2E_TYPES";

/// A namespace of a test's own on the cluster under test.
pub struct Scene {
    /// kubectl in that namespace.
    pub kubectl: Kubectl,
    cluster: String,
}

/// Makes a namespace for a test; `None`, said aloud, when there is no cluster to test on.
///
/// # Errors
/// When the namespace cannot be made.
pub fn scene(name: &str) -> Result<Option<Scene>> {
    let Ok(cluster) = std::env::var(CLUSTER) else {
        println!("skipped: {CLUSTER} is not set; run `cargo xtask e2e`");
        return Ok(None);
    };
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let kubectl = Kubectl::new(format!("{name}-{}", seconds % 100_000 + u64::from(id() % 7)));
    kubectl.make_namespace()?;
    Ok(Some(Scene { kubectl, cluster }))
}

/// The types to test.
///
/// # Errors
/// When a profile cannot be read.
pub fn profiles() -> Result<Vec<Profile>> {
    let chosen = std::env::var(TYPES).unwrap_or_default();
    chosen.split(',').filter(|name| !name.is_empty()).map(Profile::read).collect()
}

impl Scene {
    /// The checkout's image of this name, built, on every node, pinned by digest.
    ///
    /// # Errors
    /// When it cannot be built or loaded.
    pub fn image(&self, name: &str) -> Result<String> {
        let xtask = std::env::var_os(XTASK).with_context(|| format!("{XTASK} is not set; run `cargo xtask e2e`"))?;
        let output = Command::new(xtask).args(["image", "load", name, "--cluster", &self.cluster]).output()?;
        if !output.status.success() {
            bail!("image {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Deletes the namespace with everything in it, volumes included. Called only when the test has passed: after a failure the
    /// databases are left for a look.
    ///
    /// # Errors
    /// When it is not gone within some minutes.
    pub fn clean_up(&self) -> Result<()> {
        self.kubectl.remove_namespace()
    }
}
