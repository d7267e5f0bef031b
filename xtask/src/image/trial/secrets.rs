//! The secrets of a trial, and the search for them in places where no secret may be.
//!
//! Invariant: every value that a secret ever had in this trial is looked for.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::distr::Alphanumeric;

use super::processes::{Process, contains};
use super::state::Trial;

/// Versions of a secret.
const VERSIONS: &[&str] = &["current", "next", "previous"];

/// Gives every secret of the manifest a value.
pub fn generate_all(trial: &Trial) -> Result<()> {
    for secret in &trial.manifest.secrets {
        generate(trial, &secret.name, "current", None)?;
    }
    Ok(())
}

/// Gives a secret a new value.
pub fn generate(trial: &Trial, name: &str, version: &str, value: Option<&str>) -> Result<()> {
    let length =
        trial.manifest.secrets.iter().find(|secret| secret.name == name).map_or(32, |secret| secret.generate.length);
    let random = || rand::rng().sample_iter(Alphanumeric).take(length as usize).map(char::from).collect();
    let value: String = value.map_or_else(random, str::to_owned);
    let path = path(trial, name, version)?;
    remove(trial, name, version)?;
    fs::create_dir_all(path.parent().context("a secret lies in a folder")?)?;
    let mut file = fs::File::options().create_new(true).write(true).mode(0o400).open(&path)?;
    file.write_all(value.as_bytes())?;
    chown(&path, Some(trial.uid), Some(trial.uid))?;
    let mut all = fs::File::options().create(true).append(true).mode(0o600).open(trial.folder.join("values"))?;
    writeln!(all, "{name} {value}").context("cannot note the secret")
}

/// Removes a version of a secret.
pub fn remove(trial: &Trial, name: &str, version: &str) -> Result<()> {
    let path = path(trial, name, version)?;
    if path.exists() {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// The file with a secret's value.
pub fn path(trial: &Trial, name: &str, version: &str) -> Result<PathBuf> {
    if !VERSIONS.contains(&version) {
        bail!("{version:?} is no version of a secret: use {}", VERSIONS.join(", "));
    }
    Ok(trial.folder.join("secrets").join(name).join(version))
}

/// Fills the placeholders of a rendered file.
pub fn fill(trial: &Trial, content: &str) -> Result<String> {
    let mut filled = String::new();
    let mut rest = content;
    while let Some((before, after)) = rest.split_once("${secret:") {
        let (name, after) = after.split_once('}').context("a placeholder ${secret: without its end")?;
        let path = path(trial, name, "current")?;
        let value =
            fs::read_to_string(&path).with_context(|| format!("the placeholder ${{secret:{name}}} has no secret"))?;
        write!(filled, "{before}{value}")?;
        rest = after;
    }
    Ok(filled + rest)
}

/// The values to look for.
pub struct Watch {
    values: Vec<(String, Vec<u8>)>,
    found: BTreeSet<String>,
}

impl Watch {
    /// Looks for every value of the trial so far.
    pub fn of(trial: &Trial) -> Self {
        let all = fs::read_to_string(trial.folder.join("values")).unwrap_or_default();
        let pair = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            // A very short value stands in innocent texts too.
            (value.len() >= 8).then(|| (name.to_owned(), value.as_bytes().to_vec()))
        };
        Self { values: all.lines().filter_map(pair).collect(), found: BTreeSet::new() }
    }

    /// Looks in a text that is called `place`.
    pub fn text(&mut self, place: &str, text: &[u8]) {
        for (name, value) in &self.values {
            if contains(text, value) {
                self.found.insert(format!("the secret {name} is in {place}"));
            }
        }
    }

    /// Looks at the arguments and the environment of processes.
    pub fn processes(&mut self, processes: &[Process]) {
        for process in processes {
            let program = process.arguments.split(|byte| *byte == 0).next().unwrap_or_default();
            let program = String::from_utf8_lossy(program).into_owned();
            self.text(&format!("the arguments of {program}"), &process.arguments);
            self.text(&format!("the environment of {program}"), &process.environment);
        }
    }

    /// Looks in every file below a folder.
    pub fn folder(&mut self, folder: &Path) -> Result<()> {
        let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                self.folder(&path)?;
            } else {
                self.text(&path.display().to_string(), &fs::read(&path)?);
            }
        }
        Ok(())
    }

    /// Notes what was found for the end of the trial.
    pub fn note(self, trial: &Trial) -> Result<()> {
        if self.found.is_empty() {
            return Ok(());
        }
        let mut file = fs::File::options().create(true).append(true).open(trial.folder.join("leaks"))?;
        self.found.iter().try_for_each(|leak| writeln!(file, "{leak}")).context("cannot note a leak")
    }
}

/// What was found so far, each once.
pub fn leaks(trial: &Trial) -> BTreeSet<String> {
    let noted = fs::read_to_string(trial.folder.join("leaks")).unwrap_or_default();
    noted.lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_in_arguments_and_environment_of_a_process() {
        let mut watch = Watch { values: vec![("app".into(), b"canary-canary".to_vec())], found: BTreeSet::new() };
        let process = |arguments: &[u8], environment: &[u8]| Process {
            pid: 2,
            inner: 2,
            arguments: arguments.to_vec(),
            environment: environment.to_vec(),
        };
        watch.processes(&[process(b"cli\0--user\0app\0", b"HOME=/\0")]);
        assert!(watch.found.is_empty());
        watch.processes(&[process(b"cli\0-pcanary-canary\0", b""), process(b"sh\0", b"PASSWORD=canary-canary\0")]);
        let found: Vec<&str> = watch.found.iter().map(String::as_str).collect();
        assert_eq!(found, ["the secret app is in the arguments of cli", "the secret app is in the environment of sh"]);
    }
}
