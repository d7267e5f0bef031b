//! Runs the test script of one image, and cleans up after it.
//!
//! Invariant: containers and networks of a trial carry its label, so that whatever the script made is found and removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use backlot_standard::layout;
use backlot_standard::manifest::Manifest;
use backlot_standard::verb::Verb;

use super::secrets::{self, Watch};
use super::state::{FOLDER, Trial};
use super::{command, request};
use crate::image::build::{Built, build};
use crate::image::engine::Engine;
use crate::image::store::{self, Store};
use crate::image::{process, source};

/// How to run a trial.
pub struct Options {
    /// User of the members; not one that the image knows.
    pub uid: u32,
    /// Whether containers and files stay.
    pub keep: bool,
    /// Whether to show every call.
    pub verbose: bool,
    /// Longest time of the script.
    pub limit: Duration,
}

/// Builds the image `name` and runs its tests.
pub fn run(store: &Store, name: &str, options: &Options) -> Result<()> {
    let script = source::find(store, name)?.folder.join("test/run");
    if !script.is_file() {
        bail!("the image {name} has no tests: {} is missing", script.display());
    }
    command::install_needs()?;
    let built = build(store, name)?;
    let engine = Engine::ready(store)?;
    engine.give(&built)?;
    let trial = prepare(store, &engine, &built, options)?;
    println!("{name}: testing {}", built.pinned());
    let started = Instant::now();
    let outcome = execute(&trial, &script, options.limit).and_then(|()| search(&trial));
    if let Err(error) = &outcome {
        eprintln!("{name}: FAILED: {error:#}");
    }
    if options.keep {
        eprintln!("kept: {} and the containers {}-*", trial.folder.display(), trial.network);
    } else {
        remove(&trial)?;
    }
    match outcome {
        Ok(()) => println!("{name}: passed in {:.1} s", started.elapsed().as_secs_f32()),
        Err(_) => bail!("the tests of the image {name} failed"),
    }
    Ok(())
}

fn prepare(store: &Store, engine: &Engine, built: &Built, options: &Options) -> Result<Trial> {
    let network = format!("trial-{}-{}", built.name, std::process::id());
    let folder = store.subfolder(format!("trials/{network}"))?;
    let image = format!("{}:{}", built.repository(), built.hash);
    let inside = |command: &[&str]| {
        let read = ["run", "--rm", "--network", "none", "--read-only", "--entrypoint", ""];
        process::capture(engine.command(&read).arg(&image).args(command))
    };
    let manifest = inside(&["cat", layout::MANIFEST]).context("the image has no manifest")?;
    let manifest: Manifest = serde_norway::from_str(&manifest).with_context(|| format!("{}'s manifest", built.name))?;
    let errors: Vec<String> = manifest.check().iter().map(ToString::to_string).collect();
    if !errors.is_empty() {
        bail!("{}'s manifest: {}", built.name, errors.join("; "));
    }
    check_labels(engine, &image, &manifest)?;
    let files = inside(&["find", layout::VERBS_DIR, "-type", "f", "-perm", "-005", "-printf", "%f\n"])?;
    let verbs: BTreeSet<Verb> = files.lines().filter_map(Verb::from_name).collect();
    if verbs.is_empty() {
        bail!("the image has no verb in {} that everybody may execute", layout::VERBS_DIR);
    }

    fs::create_dir_all(folder.join("secrets"))?;
    fs::create_dir_all(folder.join("work"))?;
    let podman = store.path("engine/podman");
    let trial = Trial {
        base: request::base(&manifest),
        folder,
        network,
        image,
        podman,
        uid: options.uid,
        manifest,
        verbs,
        verbose: options.verbose,
    };
    trial.create()?;
    secrets::generate_all(&trial)?;
    process::capture(&mut trial.podman(&["network", "create", "--internal", &trial.network]))?;
    Ok(trial)
}

/// The labels have to say what the manifest says, and the image's own user may not be root.
fn check_labels(engine: &Engine, image: &str, manifest: &Manifest) -> Result<()> {
    let wanted = [("standard", &manifest.standard), ("engine", &manifest.engine), ("version", &manifest.version)];
    for (label, value) in wanted {
        let found = engine.inspect(image, &format!("{{{{ index .Labels \"dev.backlot.{label}\" }}}}"))?;
        if found != *value {
            bail!("the label dev.backlot.{label} is {found:?}, and the manifest says {value:?}");
        }
    }
    let user = engine.inspect(image, "{{ .User }}")?;
    let number: Option<u32> = user.split(':').next().and_then(|user| user.parse().ok());
    if number.is_none_or(|number| number == 0) {
        bail!("the image's USER is {user:?}; a number other than 0 is needed");
    }
    Ok(())
}

fn execute(trial: &Trial, script: &Path, limit: Duration) -> Result<()> {
    let commands = trial.folder.join("bin");
    fs::create_dir_all(&commands)?;
    // A copy, because a build of the workspace may replace this program while the script runs.
    let program = commands.join("xtask");
    let own = std::env::current_exe()?;
    if fs::hard_link(&own, &program).is_err() {
        fs::copy(&own, &program)?;
    }
    let db = format!("#!/bin/sh\nRUST_BACKTRACE=0 exec '{}' image db \"$@\"\n", program.display());
    store::write(&commands.join("db"), db.as_bytes(), 0o755)?;
    let mut path = vec![commands];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));

    let mut run = Command::new(script);
    run.current_dir(script.parent().context("a script lies in a folder")?).env("PATH", std::env::join_paths(path)?);
    run.env(FOLDER, &trial.folder).env("WORK", trial.folder.join("work"));
    run.env("IMAGE", &trial.image).env("PODMAN", &trial.podman).env("NETWORK", &trial.network);
    let mut child = run.spawn().with_context(|| format!("cannot start {}", script.display()))?;
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() { Ok(()) } else { bail!("{} ended with {status}", script.display()) };
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            bail!("{} did not end within {} s", script.display(), limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Looks for secrets in all logs and results, and reports what was noted during the calls.
fn search(trial: &Trial) -> Result<()> {
    let mut watch = Watch::of(trial);
    let members = trial.folder.join("members");
    if let Ok(entries) = fs::read_dir(&members) {
        for entry in entries {
            watch.folder(&entry?.path().join("log"))?;
        }
    }
    watch.note(trial)?;
    let leaks = secrets::leaks(trial);
    if leaks.is_empty() {
        return Ok(());
    }
    bail!("{}", leaks.into_iter().collect::<Vec<_>>().join("; "))
}

fn remove(trial: &Trial) -> Result<()> {
    let filter = format!("name=^{}-", trial.network);
    let containers = process::capture(&mut trial.podman(&["ps", "--all", "--quiet", "--filter", &filter]))?;
    for container in containers.split_whitespace() {
        process::capture(&mut trial.podman(&["rm", "--force", "--volumes", "--time", "0", container]))?;
    }
    process::capture(&mut trial.podman(&["network", "rm", "--force", &trial.network]))?;
    fs::remove_dir_all(&trial.folder).with_context(|| format!("cannot remove {}", trial.folder.display()))
}
