//! Puts in place what `render` answered.
//!
//! Invariants: a path outside `/run/db` (or outside a volume, for files of the engine) is refused; a secret is filled
//! into files on tmpfs only; a file is replaced whole.

use std::io;
use std::path::{Component, Path};

use backlot_standard::layout;
use backlot_standard::manifest::Manifest;
use backlot_standard::result::{FileOwner, RenderOutput, RenderedFile};

use super::{disk, secrets};
use crate::paths::Paths;

const PLACEHOLDER: &str = "${secret:";

/// Why what was rendered cannot be put in place.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// Nothing to start.
    #[error("render gave no argv; the first element is the engine's program")]
    NoArgv,
    /// A file at a forbidden place.
    #[error("render gave the file `{path}`, which is not below /run/db{}", if *.volumes { " or on a volume" } else { "; files on a volume need `owner: engine`" })]
    Place {
        /// The path.
        path: String,
        /// Whether volumes would be allowed.
        volumes: bool,
    },
    /// A file whose fields contradict each other or do not parse.
    #[error("render gave the file `{path}`: {problem}")]
    File {
        /// The path.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

/// Writes every file; returns nothing of their content in an error.
pub fn put_in_place(
    output: &RenderOutput,
    scratch: &Path,
    paths: &Paths,
    manifest: &Manifest,
) -> Result<(), RenderError> {
    if output.argv.is_empty() {
        return Err(RenderError::NoArgv);
    }
    for file in &output.files {
        put(file, scratch, paths, manifest)?;
    }
    Ok(())
}

fn put(file: &RenderedFile, scratch: &Path, paths: &Paths, manifest: &Manifest) -> Result<(), RenderError> {
    let wrong = |problem: String| RenderError::File { path: file.path.clone(), problem };
    let failed = |error: io::Error| wrong(error.to_string());
    let target = paths.at(&file.path);
    let plain = target.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let in_memory = target.starts_with(paths.run()) && !target.starts_with(paths.session());
    let on_volume = manifest.volumes.iter().any(|volume| {
        let root = paths.at(&volume.path);
        target.starts_with(&root) && !target.starts_with(root.join(layout::STATE_DIR))
    });
    let engines = file.owner == FileOwner::Engine;
    if !plain || !(in_memory || engines && on_volume) {
        return Err(RenderError::Place { path: file.path.clone(), volumes: engines });
    }
    let content = match (&file.content, &file.from) {
        (Some(content), None) => content.clone().into_bytes(),
        (None, Some(from)) => {
            let relative = Path::new(from).components().all(|part| matches!(part, Component::Normal(_)));
            if !relative {
                return Err(wrong(format!("`from: {from}` must be a path relative to $DB_SCRATCH")));
            }
            std::fs::read(scratch.join(from)).map_err(failed)?
        }
        (Some(_), Some(_)) | (None, None) => return Err(wrong("needs one of `content` and `from`".to_owned())),
    };
    let content = match String::from_utf8(content) {
        Ok(text) if text.contains(PLACEHOLDER) && !in_memory => {
            return Err(wrong("has a secret's placeholder, but secrets are written below /run/db only".to_owned()));
        }
        Ok(text) => fill(&text, &paths.secrets()).map_err(wrong)?.into_bytes(),
        Err(binary) => binary.into_bytes(),
    };
    let mode = u32::from_str_radix(&file.mode, 8).ok().filter(|mode| *mode <= 0o777);
    let mode = mode.ok_or_else(|| wrong(format!("mode `{}` is not octal, e.g. 0600", file.mode)))?;
    if let Some(directory) = target.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    disk::replace_volatile(&target, &content, mode).map_err(failed)
}

/// Fills the placeholders. Errors name the secret, never a value.
fn fill(text: &str, directory: &Path) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(PLACEHOLDER) {
        let (before, after) = rest.split_at(start);
        let after = &after[PLACEHOLDER.len()..];
        let Some(end) = after.find('}') else { return Err(format!("`{PLACEHOLDER}` is not closed by `}}`")) };
        let name = &after[..end];
        let valid = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if !valid {
            return Err(format!("`{name}` is no name of a secret"));
        }
        let value = secrets::current(directory, name)
            .map_err(|error| format!("the secret `{name}` cannot be read: {error}"))?;
        filled.push_str(before);
        filled.push_str(&value);
        rest = &after[end + 1..];
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
