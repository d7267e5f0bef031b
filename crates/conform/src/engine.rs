//! The container engine: podman, docker or nerdctl, by their command line.
//!
//! Invariant: only options that all three have are used, or the engine's name decides here and nowhere else.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Engines, in the order in which they are tried.
const KNOWN: &[&str] = &["podman", "docker", "nerdctl"];

/// A container engine that answers.
#[derive(Clone, Debug)]
pub struct Engine {
    program: PathBuf,
}

impl Engine {
    /// The engine `choice` (a name or a path), else the first one of podman, docker and nerdctl that answers.
    pub fn find(choice: Option<&Path>) -> Result<Self> {
        let answers = |program: &Path| {
            let ask = Command::new(program).arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            ask.is_ok_and(|status| status.success())
        };
        if let Some(program) = choice {
            if answers(program) {
                let is_path = program.components().count() > 1;
                let program = if is_path { std::path::absolute(program)? } else { program.to_owned() };
                return Ok(Self { program });
            }
            bail!("--engine {}: `{0} version` does not work", program.display());
        }
        let found = KNOWN.iter().map(PathBuf::from).find(|program| answers(program));
        let program = found.with_context(|| {
            format!("no container engine answers: install one of {}, or name one with --engine", KNOWN.join(", "))
        })?;
        Ok(Self { program })
    }

    /// Name for people.
    pub fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Options of `run` that only this engine has.
    pub fn own_run_options(&self) -> &'static [&'static str] {
        match self.name() {
            // It mounts writable directories over a read-only root by default.
            name if name.contains("podman") => &["--read-only-tmpfs=false", "--security-opt=label=disable"],
            // SELinux would keep containers from the folders that are mounted.
            name if name.contains("docker") => &["--security-opt=label=disable"],
            _ => &[],
        }
    }

    /// A command.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        // podman's monitor leaves a file `oom` where it was started when a command in a container runs out of memory.
        command.args(arguments).stdin(Stdio::null()).current_dir(std::env::temp_dir());
        command
    }

    /// Removes containers with their volumes, also those that the engine is just stopping: then it refuses for a moment.
    pub fn remove(&self, containers: &[&str]) -> Result<()> {
        let mut refused = Ok(());
        for _ in 0..20 {
            refused = self.run(["rm", "--force", "--volumes"].iter().chain(containers)).map(drop);
            if refused.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        refused
    }

    /// Runs a command and answers what it prints.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        capture(&mut self.command(arguments))
    }
}

/// Runs a command and answers its output; an error tells what it complained about.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
    }
    let words: Vec<_> = command.get_args().take(2).map(OsStr::to_string_lossy).collect();
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().lines().last().unwrap_or_default();
    bail!("{} {}: {said}", command.get_program().display(), words.join(" "))
}
