//! Whose volume this is: the identity stamp `<first volume>/.backlot/identity.json`.
//!
//! Invariants: a stamp is made only on an empty volume, and never changed; a volume that holds somebody else's data is
//! not written to, not even by the agent.

use std::io;
use std::path::{Path, PathBuf};

use backlot_standard::layout;
use backlot_standard::manifest::Manifest;
use serde::{Deserialize, Serialize};

use super::disk;
use crate::hex;
use crate::paths::Paths;

const STAMP: &str = "identity.json";

/// What the stamp says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stamp {
    /// Cluster that the volume belongs to.
    pub cluster_uid: String,
    /// Member that the volume belongs to.
    pub member: String,
    /// Random identity of the volume.
    pub incarnation: String,
}

/// The volume as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Volume {
    /// No volume: the member is stateless. The agent's state is on tmpfs.
    None,
    /// Stamped as this member's.
    Ours {
        /// Identity of the volume.
        incarnation: String,
    },
    /// Somebody else's, or not empty and without a stamp.
    Foreign {
        /// What was found.
        message: String,
    },
    /// Cannot be read or written.
    Unusable {
        /// Why.
        message: String,
    },
}

/// Where the agent's state lies: on the first volume, or on tmpfs for a stateless member.
pub fn state_directory(paths: &Paths, manifest: &Manifest) -> (PathBuf, bool) {
    let first = manifest.volumes.first().map(|volume| paths.at(&volume.path));
    let may_be_stateless = manifest.components.iter().any(|component| component.stateless);
    match first {
        Some(path) if !may_be_stateless || is_writable(&path) => (path.join(layout::STATE_DIR), true),
        _ => (paths.session().join("state"), false),
    }
}

/// Reads the stamp; stamps an empty volume.
pub fn claim(state: &Path, is_volume: bool, cluster_uid: &str, member: &str) -> Volume {
    if !is_volume {
        return match std::fs::create_dir_all(state) {
            Ok(()) => Volume::None,
            Err(error) => unusable(state, &error),
        };
    }
    match read_or_make(state, cluster_uid, member) {
        Ok(volume) => volume,
        Err(error) => unusable(state, &error),
    }
}

fn unusable(state: &Path, error: &io::Error) -> Volume {
    let message = format!("{}: {error}; check the volume and its permissions", state.display());
    Volume::Unusable { message }
}

fn read_or_make(state: &Path, cluster_uid: &str, member: &str) -> io::Result<Volume> {
    let root = state.parent().ok_or_else(|| io::Error::other("the volume has no path"))?;
    match std::fs::read(state.join(STAMP)) {
        Ok(bytes) => return Ok(compare(&bytes, cluster_uid, member)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for entry in std::fs::read_dir(root)? {
        let name = entry?.file_name();
        if name != "lost+found" && name != layout::STATE_DIR {
            let message = format!(
                "the volume has no identity stamp but holds `{}`; give the member an empty volume, or restore the stamp",
                name.display()
            );
            return Ok(Volume::Foreign { message });
        }
    }
    let incarnation = hex::random_name()?;
    let stamp = Stamp { cluster_uid: cluster_uid.to_owned(), member: member.to_owned(), incarnation };
    std::fs::create_dir_all(state)?;
    disk::replace(&state.join(STAMP), &serde_json::to_vec(&stamp)?)?;
    std::fs::File::open(root)?.sync_all()?;
    Ok(Volume::Ours { incarnation: stamp.incarnation })
}

fn compare(bytes: &[u8], cluster_uid: &str, member: &str) -> Volume {
    match serde_json::from_slice::<Stamp>(bytes) {
        Ok(stamp) if stamp.cluster_uid == cluster_uid && stamp.member == member => {
            Volume::Ours { incarnation: stamp.incarnation }
        }
        Ok(stamp) => Volume::Foreign {
            message: format!(
                "the volume belongs to member {} of cluster {}, this is {member} of {cluster_uid}",
                stamp.member, stamp.cluster_uid
            ),
        },
        Err(error) => Volume::Foreign { message: format!("the volume's identity stamp cannot be read: {error}") },
    }
}

fn is_writable(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join(layout::STATE_DIR);
        (directory, state)
    }

    #[test]
    fn an_empty_volume_is_stamped_once() {
        let (directory, state) = volume();
        std::fs::create_dir(directory.path().join("lost+found")).unwrap();
        let first = claim(&state, true, "uid", "m-0");
        assert!(matches!(first, Volume::Ours { .. }));
        assert_eq!(claim(&state, true, "uid", "m-0"), first);
    }

    #[test]
    fn another_members_volume_is_foreign() {
        let (_directory, state) = volume();
        claim(&state, true, "uid", "m-0");
        for (uid, member) in [("uid", "m-1"), ("other", "m-0")] {
            assert!(matches!(claim(&state, true, uid, member), Volume::Foreign { .. }));
        }
    }

    #[test]
    fn a_volume_with_files_but_no_stamp_is_foreign_and_left_alone() {
        let (directory, state) = volume();
        std::fs::write(directory.path().join("data"), "").unwrap();
        let Volume::Foreign { message } = claim(&state, true, "uid", "m-0") else { panic!() };
        assert!(message.contains("`data`"));
        assert!(!state.exists());
    }

    #[test]
    fn a_broken_stamp_is_foreign_and_a_missing_volume_unusable() {
        let (directory, state) = volume();
        std::fs::create_dir(&state).unwrap();
        std::fs::write(state.join(STAMP), "{").unwrap();
        assert!(matches!(claim(&state, true, "uid", "m-0"), Volume::Foreign { .. }));
        let absent = directory.path().join("absent").join(layout::STATE_DIR);
        assert!(matches!(claim(&absent, true, "uid", "m-0"), Volume::Unusable { .. }));
    }
}
