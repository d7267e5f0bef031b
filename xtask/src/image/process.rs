//! Child processes whose failure names the command and shows the end of what it said.
//!
//! Invariant: nothing secret is ever passed in an argument, so a command line may be shown.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// Lines of output that an error shows.
const TAIL_LINES: usize = 30;

/// Runs `command` and returns what it wrote to standard output.
pub fn capture(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } = command.output().with_context(|| not_started(command))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!("{} ended with {status}:\n{}{}", line(command), tail(&stdout), tail(&String::from_utf8_lossy(&stderr)));
    }
    Ok(stdout)
}

/// Runs `command` with all of its output in the file `log`, of which an error shows the end.
pub fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let status = command.stdout(file.try_clone()?).stderr(file).status().with_context(|| not_started(command))?;
    if !status.success() {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        bail!("{} ended with {status}; the end of {}:\n{}", line(command), log.display(), tail(&text));
    }
    Ok(())
}

/// Runs `command` on this terminal.
pub fn passed_through(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| not_started(command))?;
    if !status.success() {
        bail!("{} ended with {status}", line(command));
    }
    Ok(())
}

/// Folders outside the search path with programs of the container engine.
const ENGINE_FOLDERS: &[&str] = &["/usr/lib/podman", "/usr/libexec/podman"];

/// Whether `program` is found in the search path, or where the container engine has its own.
pub fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(ENGINE_FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(program)).any(|file| file.is_file())
}

fn not_started(command: &Command) -> String {
    format!("cannot start {}", command.get_program().to_string_lossy())
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(TAIL_LINES);
    lines[skipped..].iter().fold(String::new(), |mut shown, line| {
        shown.push_str(line);
        shown.push('\n');
        shown
    })
}
