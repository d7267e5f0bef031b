//! What a generic test needs to know of a type, as data beside its image: `images/<type>/test/e2e.json` and
//! `images/<type>/test/client`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use backlot_standard::config::Apply;
use backlot_standard::manifest::Manifest;
use serde::Deserialize;

/// Facts of a type for generic tests.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    /// Name of the type: folder of its image, name of its class.
    #[serde(skip)]
    pub class: String,
    /// Memory of a member.
    pub memory: String,
    /// Members at first.
    pub members: u32,
    /// Members after growing.
    pub grown: u32,
    /// Members after shrinking.
    pub shrunk: u32,
    /// A setting that is refused, with a part of the message.
    pub refused: Refused,
    /// What the demo shows with this type; types that show nothing are left out of it.
    #[serde(default)]
    pub demo: Vec<DemoStep>,
    /// The setting that tests change while the engine runs: the first such example in the image's manifest.
    #[serde(skip)]
    pub live: Option<(String, String)>,
    /// The setting that tests change by restarting members: the first such example in the image's manifest.
    #[serde(skip)]
    pub restart: Option<(String, String)>,
}

/// A setting that is refused.
#[derive(Clone, Debug, Deserialize)]
pub struct Refused {
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
    /// Part of the message.
    pub message: String,
}

/// A step of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DemoStep {
    /// Grow to `grown`.
    Grow,
    /// Change the live and the restart settings.
    Configure,
    /// Kill a member's pod.
    Kill,
}

/// Root of the checkout.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

impl Profile {
    /// The profile of a type.
    ///
    /// # Errors
    /// When the type has none, or it is not valid.
    pub fn read(class: &str) -> Result<Self> {
        let read = |file: &str| {
            let path = checkout().join("images").join(class).join(file);
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let profile: Self =
            serde_json::from_str(&read("test/e2e.json")?).with_context(|| format!("{class}: test/e2e.json"))?;
        let manifest: Manifest =
            serde_norway::from_str(&read("db/manifest.yaml")?).with_context(|| format!("{class}: manifest"))?;
        let (live, restart) = (manifest.example(Apply::Live), manifest.example(Apply::Restart));
        Ok(Self { class: class.to_owned(), live, restart, ..profile })
    }

    /// The types that the tests of `make test` fit in the time for: those with a file `test/quick`.
    pub fn is_quick(&self) -> bool {
        checkout().join("images").join(&self.class).join("test/quick").is_file()
    }

    /// The profiles of every type that has one, by name.
    pub fn all() -> Result<Vec<Self>> {
        let mut names: Vec<_> = std::fs::read_dir(checkout().join("images"))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.join("test/e2e.json").is_file())
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        names.iter().map(|name| Self::read(name)).collect()
    }

    /// The client script of the type: `write FROM TO`, `verify FROM TO`; it reads the binding in `/bindings/db`.
    pub fn client(&self) -> Result<String> {
        let path = checkout().join("images").join(&self.class).join("test/client");
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }
}
