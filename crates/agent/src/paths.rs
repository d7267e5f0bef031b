//! Where things lie, as `backlot_standard::layout` says; tests put everything below a directory of their own.

use std::path::{Path, PathBuf};

use backlot_standard::layout;
use backlot_standard::verb::Verb;

/// The layout of a member's container, optionally below another root.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    root: Option<PathBuf>,
}

impl Paths {
    /// The layout below `root`.
    pub fn below(root: PathBuf) -> Self {
        Self { root: Some(root) }
    }

    /// The other root, when there is one.
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The real place of an absolute path of the container.
    pub fn at(&self, path: &str) -> PathBuf {
        match &self.root {
            Some(root) if !Path::new(path).starts_with(root) => root.join(path.trim_start_matches('/')),
            _ => PathBuf::from(path),
        }
    }

    /// The image's manifest.
    pub fn manifest(&self) -> PathBuf {
        self.at(layout::MANIFEST)
    }

    /// Executable of a verb.
    pub fn verb(&self, verb: Verb) -> PathBuf {
        self.at(layout::VERBS_DIR).join(verb.name())
    }

    /// tmpfs of the member.
    pub fn run(&self) -> PathBuf {
        self.at(layout::RUN_DIR)
    }

    /// Secrets, as verbs see them.
    pub fn secrets(&self) -> PathBuf {
        self.run().join("secrets")
    }

    /// The agent's own directory on tmpfs: what must outlive a pilot but not the pod.
    pub fn session(&self) -> PathBuf {
        self.run().join(layout::STATE_DIR)
    }

    /// Directory of the agent's binaries.
    pub fn agent(&self) -> PathBuf {
        self.at(layout::AGENT_DIR)
    }

    /// Link to the pilot that replaced the one of the keeper's own binary.
    pub fn pilot(&self) -> PathBuf {
        self.agent().join("pilot")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_root_is_put_before_a_path_once() {
        let paths = Paths::below("/tmp/t".into());
        assert_eq!(paths.at("/run/db"), Path::new("/tmp/t/run/db"));
        assert_eq!(paths.at("/tmp/t/run/db"), Path::new("/tmp/t/run/db"));
        assert_eq!(Paths::default().at("/run/db"), Path::new("/run/db"));
    }
}
