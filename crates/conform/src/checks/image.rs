//! Level 0: what can be said of an image without running its engine.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use backlot_standard::layout;
use backlot_standard::manifest::Manifest;
use backlot_standard::verb::Verb;
use serde_json::Value;

use crate::archive::{self, Entry};
use crate::engine::Engine;
use crate::kit::Claims;

/// Label by which an image says that it holds a stand-in and not the engine.
const TESTED_WITH: &str = "dev.backlot.tested-with";

/// The image as the container engine sees it, and its files.
pub struct Static {
    config: Value,
    files: Vec<Entry>,
    /// Id of the image.
    pub id: String,
}

impl Static {
    /// Looks at an image that the engine has, or can pull.
    pub fn of(engine: &Engine, image: &str) -> Result<Self> {
        let inspect = || engine.run(["image", "inspect", image]);
        let text = inspect().or_else(|_| {
            engine
                .run(["pull", image])
                .with_context(|| format!("the image {image} is not here and cannot be pulled"))?;
            inspect()
        })?;
        let inspected: Value = serde_json::from_str(&text).context("the container engine's words about the image")?;
        let inspected = inspected[0].clone();
        let id = inspected["Id"].as_str().unwrap_or_default().trim_start_matches("sha256:").to_owned();
        // Nothing of the image is run: it may have no shell, and be for another machine.
        let files = archive::files(engine, image, layout::MANIFEST)?;
        Ok(Self { config: inspected, files, id })
    }

    /// What the image claims; an error when its manifest cannot be used.
    pub fn claims(&self) -> Result<Claims> {
        let file = self.files.iter().find(|(path, ..)| path == layout::MANIFEST);
        let (.., content) = file.with_context(|| format!("the image has no {}", layout::MANIFEST))?;
        let manifest: Manifest = serde_norway::from_slice(content).with_context(|| layout::MANIFEST.to_owned())?;
        let problems: Vec<String> = manifest.check().iter().map(ToString::to_string).collect();
        ensure!(problems.is_empty(), "{}: {}", layout::MANIFEST, problems.join("; "));
        let has = |wanted: &str| self.files.iter().any(|(path, ..)| path == wanted);
        let verb = |verb: &Verb| has(&format!("{}/{}", layout::VERBS_DIR, verb.name()));
        let verbs = Verb::ALL.iter().copied().filter(verb).collect();
        let has_workload = has("/db/test/workload");
        Ok(Claims { manifest, verbs, has_workload })
    }

    /// `engine`, or what the image says of itself.
    pub fn tested_with(&self) -> String {
        self.config["Config"]["Labels"][TESTED_WITH].as_str().unwrap_or("engine").to_owned()
    }

    /// The image is for this machine.
    pub fn architecture(&self) -> Result<()> {
        let image = self.config["Architecture"].as_str().unwrap_or_default();
        let own = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        ensure!(image == own, "the image is for {image}, this machine is {own}: build or pull it for {own}");
        Ok(())
    }

    /// Labels say what the manifest says.
    pub fn labels(&self, claims: &Claims) -> Result<()> {
        let manifest = &claims.manifest;
        let wanted = [("standard", &manifest.standard), ("engine", &manifest.engine), ("version", &manifest.version)];
        for (label, value) in wanted {
            let found = self.config["Config"]["Labels"][format!("dev.backlot.{label}")].as_str().unwrap_or_default();
            ensure!(found == value, "the label dev.backlot.{label} is {found:?}, and the manifest says {value:?}");
        }
        Ok(())
    }

    /// The image's own user is a number other than 0.
    pub fn user(&self) -> Result<()> {
        let user = self.config["Config"]["User"].as_str().unwrap_or_default();
        let number: Option<u32> = user.split(':').next().and_then(|user| user.parse().ok());
        let is_good = number.is_some_and(|number| number != 0);
        ensure!(
            is_good,
            "USER is {user:?}: it must be a number other than 0, so that a platform can see that it is not root"
        );
        Ok(())
    }

    /// Verbs are there, and everybody may execute them.
    pub fn verbs(&self, claims: &Claims) -> Result<()> {
        let missing = [Verb::Render, Verb::Health, Verb::Role].into_iter().filter(|verb| !claims.has(*verb));
        let missing: Vec<&str> = missing.map(Verb::name).collect();
        ensure!(missing.is_empty(), "{} must be in {}", missing.join(", "), layout::VERBS_DIR);
        let claimed = claims.manifest.verbs.keys().filter(|verb| !claims.has(**verb)).map(|verb| verb.name());
        let claimed: Vec<&str> = claimed.collect();
        ensure!(claimed.is_empty(), "the manifest has rules for verbs that are not there: {}", claimed.join(", "));
        let known: BTreeSet<String> =
            Verb::ALL.iter().map(|verb| format!("{}/{}", layout::VERBS_DIR, verb.name())).collect();
        for (path, mode, _) in &self.files {
            if !path.starts_with(layout::VERBS_DIR) {
                continue;
            }
            ensure!(known.contains(path), "{path} is no verb of the standard: misspelled, or it belongs into /db/lib");
            ensure!(mode & 0o5 == 0o5, "{path} has mode {mode:o}: everybody must be able to read and execute it");
        }
        Ok(())
    }

    /// Nothing of the caller's is in the image.
    pub fn nothing_of_ours(&self, claims: &Claims) -> Result<()> {
        let roots: Vec<String> =
            claims.manifest.volumes.iter().map(|volume| format!("{}/{}", volume.path, layout::STATE_DIR)).collect();
        for (path, ..) in &self.files {
            let is_ours = path.starts_with("/backlot/") || roots.iter().any(|root| path.starts_with(root));
            ensure!(!is_ours, "{path} belongs to the caller and must not be in the image");
        }
        Ok(())
    }
}
