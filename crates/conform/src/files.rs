//! Folders of members' volumes, as a check moves or empties them.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::engine::capture;

/// Copies a folder with everything that the kernel keeps about its files.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    capture(std::process::Command::new("cp").args(["--archive", "--no-target-directory"]).args([from, to])).map(drop)
}

/// Empties a folder, `keep` excepted.
pub fn empty(folder: &Path, keep: &str) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name == keep) {
            continue;
        }
        if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
    }
    Ok(())
}
