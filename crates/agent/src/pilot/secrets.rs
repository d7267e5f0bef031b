//! The cluster's secrets on the member's tmpfs: `/run/db/secrets/<name>/{current,next,previous}`, mode 0400.
//!
//! Copied from the projected volume, whose files are group-readable and change under a reader's feet. Invariant: a
//! secret's value is never in a message, a log line, an argument or an environment variable.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::disk;

/// What was copied last.
#[derive(Debug, Default)]
pub struct Secrets {
    copied: Option<BTreeMap<(String, String), FileState>>,
}

type FileState = (u64, u64, i64, i64, u64);

impl Secrets {
    /// Brings `to` up to date with the projected files below `from`; does nothing when those are unchanged.
    pub fn refresh(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let present = scan(from)?;
        if self.copied.as_ref() == Some(&present) {
            return Ok(());
        }
        make_directory(to)?;
        for (name, version) in present.keys() {
            let value = std::fs::read(from.join(name).join(version))?;
            make_directory(&to.join(name))?;
            disk::replace_volatile(&to.join(name).join(version), &value, 0o400)?;
        }
        for (name, version) in scan(to)?.into_keys() {
            if !present.contains_key(&(name.clone(), version.clone())) {
                std::fs::remove_file(to.join(name).join(version))?;
            }
        }
        self.copied = Some(present);
        Ok(())
    }
}

/// The current value of a secret, as the verbs see it. A trailing newline is part of a value only by accident.
pub fn current(secrets: &Path, name: &str) -> io::Result<String> {
    let value = std::fs::read_to_string(secrets.join(name).join("current"))?;
    Ok(value.trim_end_matches(['\n', '\r']).to_owned())
}

fn make_directory(path: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Every `<name>/<version>` below `directory`; names that begin with a dot belong to the projection.
fn scan(directory: &Path) -> io::Result<BTreeMap<(String, String), FileState>> {
    let mut found = BTreeMap::new();
    for (name, path) in visible(directory)? {
        if !path.is_dir() {
            continue;
        }
        for (version, path) in visible(&path)? {
            let metadata = std::fs::metadata(&path)?;
            let state = (metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len());
            found.insert((name.clone(), version), state);
        }
    }
    Ok(found)
}

fn visible(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let mut found = vec![];
    for entry in entries {
        let entry = entry?;
        match entry.file_name().into_string() {
            Ok(name) if !name.starts_with('.') => found.push((name, entry.path())),
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn project(from: &Path, generation: &str, secrets: &[(&str, &str)]) {
        // As the kubelet does it: a new directory, and one link that is swapped.
        let data = from.join(format!("..{generation}"));
        for (path, value) in secrets {
            let file = data.join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, value).unwrap();
        }
        let link = from.join("..next");
        symlink(&data, &link).unwrap();
        std::fs::rename(link, from.join("..data")).unwrap();
        for (path, _) in secrets {
            let name = path.split('/').next().unwrap();
            let _ = symlink(format!("..data/{name}"), from.join(name));
        }
    }

    #[test]
    fn a_swapped_projection_is_copied_and_old_versions_go() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let to = to.path().join("secrets");
        let mut secrets = Secrets::default();
        project(from.path(), "1", &[("admin/current", "one\n"), ("admin/previous", "zero")]);
        secrets.refresh(from.path(), &to).unwrap();
        assert_eq!(current(&to, "admin").unwrap(), "one");
        let mode = std::fs::metadata(to.join("admin/current")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        project(from.path(), "2", &[("admin/current", "two")]);
        secrets.refresh(from.path(), &to).unwrap();
        assert_eq!(current(&to, "admin").unwrap(), "two");
        assert!(!to.join("admin/previous").exists());
    }

    #[test]
    fn no_projection_means_no_secrets() {
        let to = tempfile::tempdir().unwrap();
        Secrets::default().refresh(&to.path().join("absent"), &to.path().join("secrets")).unwrap();
        assert!(current(to.path(), "admin").is_err());
    }
}
