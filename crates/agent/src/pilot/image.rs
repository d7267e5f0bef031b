//! What is in the image: the manifest and which verbs there are. It cannot change while the container runs.

use std::collections::BTreeSet;

use backlot_standard::manifest::Manifest;
use backlot_standard::verb::Verb;

use crate::paths::Paths;

/// Largest manifest.
const MANIFEST_BYTES: u64 = 1 << 20;

/// A usable image.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest.
    pub manifest: Manifest,
    /// Verbs whose executable is there.
    pub verbs: BTreeSet<Verb>,
}

impl Image {
    /// Whether the image supports this verb.
    pub fn has(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }
}

/// Reads the manifest without judging it.
pub fn read_manifest(paths: &Paths) -> Result<Manifest, String> {
    let path = paths.manifest();
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let size = std::fs::metadata(&path).map_err(|error| failed(&error))?.len();
    if size > MANIFEST_BYTES {
        return Err(failed(&format!("has {size} bytes, at most {MANIFEST_BYTES} are allowed")));
    }
    let text = std::fs::read_to_string(&path).map_err(|error| failed(&error))?;
    serde_norway::from_str(&text).map_err(|error| failed(&error))
}

/// The verbs that the image has, in the order of the standard.
pub fn read_verbs(paths: &Paths) -> BTreeSet<Verb> {
    Verb::ALL.iter().copied().filter(|verb| paths.verb(*verb).is_file()).collect()
}

/// Reads and judges the image.
pub fn load(paths: &Paths) -> Result<Image, String> {
    let manifest = read_manifest(paths)?;
    let errors: Vec<String> = manifest.check().iter().map(ToString::to_string).collect();
    if errors.is_empty() {
        Ok(Image { manifest, verbs: read_verbs(paths) })
    } else {
        Err(format!("{}: {}", paths.manifest().display(), errors.join("; ")))
    }
}
