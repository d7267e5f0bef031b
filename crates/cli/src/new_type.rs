//! `backlot new-type`: the folder of an image that keeps level 0, to be filled with an engine.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// Longest name of an engine (SPEC §3).
const LONGEST: usize = 32;
/// Files of the folder: path, content with `@NAME@` for the name, whether it is executable.
const FILES: &[(&str, &str, bool)] = &[
    ("Containerfile", include_str!("../template/Containerfile"), false),
    ("README.md", include_str!("../template/README.md"), false),
    ("db/manifest.yaml", include_str!("../template/db/manifest.yaml"), false),
    ("db/verbs/render", include_str!("../template/db/verbs/render"), true),
    ("db/verbs/health", include_str!("../template/db/verbs/health"), true),
    ("db/verbs/role", include_str!("../template/db/verbs/role"), true),
    ("db/test/workload", include_str!("../template/db/test/workload"), true),
];

/// Makes the folder `parent/name`.
pub fn make(name: &str, parent: &Path) -> Result<String> {
    let is_name = name.len() <= LONGEST
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !is_name {
        bail!(
            "`{name}` is no name of a type: use a-z, 0-9 and -, beginning with a letter, at most {LONGEST} characters"
        );
    }
    let folder = parent.join(name);
    fs::create_dir(&folder)
        .with_context(|| format!("cannot make {}: choose another name or --in", folder.display()))?;
    for (path, text, is_executable) in FILES {
        let file = folder.join(path);
        fs::create_dir_all(file.parent().unwrap_or(&folder))?;
        fs::write(&file, text.replace("@NAME@", name)).with_context(|| format!("cannot write {}", file.display()))?;
        let mode = if *is_executable { 0o755 } else { 0o644 };
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
    }
    let folder = folder.display();
    Ok(format!(
        "{folder} is made. Next: install the engine in {folder}/Containerfile, let {folder}/db/verbs/render start it, then\n  \
         podman build -t {name}:dev {folder} && backlot conform {name}:dev --level 1"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_has_a_good_manifest_and_verbs_that_everybody_may_execute() {
        let parent = tempfile::tempdir().unwrap();
        let said = make("acme-2", parent.path()).unwrap();
        assert!(said.contains("backlot conform acme-2:dev"), "{said}");
        let folder = parent.path().join("acme-2");
        let report = crate::manifest::check(&folder.join("db/manifest.yaml")).unwrap();
        assert!(report.is_good, "{}", report.text);
        for verb in ["render", "health", "role"] {
            let mode = fs::metadata(folder.join("db/verbs").join(verb)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o755);
        }
        for (path, ..) in FILES {
            assert!(!fs::read_to_string(folder.join(path)).unwrap().contains("@NAME@"), "{path}");
        }
        assert!(format!("{:#}", make("acme-2", parent.path()).unwrap_err()).contains("choose another name"));
    }

    #[test]
    fn bad_names_write_nothing() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["", "Acme", "1st", "a/b", "../a", &"a".repeat(33)] {
            assert!(make(name, parent.path()).unwrap_err().to_string().contains("no name of a type"), "{name}");
        }
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
