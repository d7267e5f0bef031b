//! Runs the conformance kit on images of the checkout, with the container engine of the project's own store.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::build::build;
use super::engine::Engine;
use super::process;
use super::store::Store;
use super::{binaries, source, types};

/// The kit, built, with what it needs.
pub struct Kit {
    program: PathBuf,
    agent: PathBuf,
    engine: PathBuf,
}

impl Kit {
    /// Builds the kit and the agent.
    pub fn ready(store: &Store) -> Result<Self> {
        let [agent] = &binaries::build(store, &["backlot-agent".to_owned()])?[..] else { bail!("no agent was built") };
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(store.checkout()).args(["build", "--quiet", "--locked", "--bin", "backlot"]);
        process::passed_through(&mut cargo)?;
        let program = std::env::current_exe()?.with_file_name("backlot");
        Ok(Self { program, agent: agent.clone(), engine: store.path("engine/podman") })
    }

    /// Names of the checks that need a running engine.
    pub fn names(&self) -> Result<Vec<String>> {
        let listed = process::capture(Command::new(&self.program).args(["conform", "--list"]))?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// A run on the image `reference`.
    pub fn command(&self, reference: &str, results: &Path, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("conform").arg(reference).arg("--engine").arg(&self.engine).arg("--agent").arg(&self.agent);
        command.arg("--results").arg(results).args(arguments);
        command
    }
}

/// Builds the images and runs the kit on each with `arguments`. With `keep_results` the results are kept beside the image, in
/// `test/results.json`.
pub fn conform(store: &Store, names: &[String], arguments: &[String], keep_results: bool) -> Result<()> {
    let kit = Kit::ready(store)?;
    let engine = Engine::ready(store)?;
    let mut failed = vec![];
    for name in names {
        let built = build(store, name)?;
        engine.give(&built)?;
        let results = store.checkout().join("target/conform").join(name);
        let status = kit.command(&built.reference, &results, arguments).status();
        match status.with_context(|| format!("cannot start {}", kit.program.display()))?.code() {
            Some(0) => {}
            Some(1) => failed.push(name.clone()),
            _ => bail!("the conformance kit could not work on {name}"),
        }
        if keep_results {
            let source = source::find(store, name)?;
            let mut found: Value = serde_json::from_slice(&fs::read(results.join("results.json"))?)?;
            // What the results are of, so that nobody takes them for those of a later image.
            found["source"] = source.fingerprint()?.into();
            let kept = types::kept(&source);
            fs::write(&kept, serde_json::to_string_pretty(&found)? + "\n")
                .with_context(|| format!("cannot write {}", kept.display()))?;
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("not conformant: {}", failed.join(", ")) }
}
