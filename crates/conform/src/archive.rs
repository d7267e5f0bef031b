//! Files of an image, read from an export of a container that is never started.

use std::io::Read as _;
use std::process::Stdio;

use anyhow::{Context as _, Result};

use crate::engine::Engine;

/// Largest file that is read.
const LARGEST: u64 = 1 << 20;

/// Path, mode and content.
pub type Entry = (String, u32, Vec<u8>);

/// Files of `image` below `/db` and `/backlot`, and all in a folder `.backlot`; the content is that of `content_of` only.
pub fn files(engine: &Engine, image: &str, content_of: &str) -> Result<Vec<Entry>> {
    // A command is needed where the image has none; it is never run.
    let container = engine.run(["create", "--network", "none", "--entrypoint", "/none", image])?;
    let container = container.lines().last().unwrap_or_default().to_owned();
    let read = read(engine, &container, content_of);
    let removed = engine.remove(&[&container]);
    let files = read?;
    removed?;
    Ok(files)
}

fn read(engine: &Engine, container: &str, content_of: &str) -> Result<Vec<Entry>> {
    let mut child = engine.command(["export", container]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let output = child.stdout.take().context("an export has an output")?;
    let mut archive = tar::Archive::new(std::io::BufReader::new(output));
    let mut found = vec![];
    for entry in archive.entries()? {
        let entry = entry?;
        if entry.header().entry_type().is_dir() {
            continue;
        }
        let path = format!("/{}", entry.path()?.display().to_string().trim_start_matches('/'));
        let is_wanted =
            ["/db/", "/backlot/"].iter().any(|start| path.starts_with(start)) || path.contains("/.backlot/");
        if is_wanted {
            let mode = entry.header().mode()?;
            let mut content = vec![];
            if path == content_of {
                entry.take(LARGEST).read_to_end(&mut content)?;
            }
            found.push((path, mode, content));
        }
    }
    child.wait()?;
    Ok(found)
}
