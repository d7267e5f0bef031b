//! The container engine, configured for the project alone.
//!
//! Invariant: it reads and writes nothing of the machine's own engine: storage, run-time files, registries and signature policy
//! are files of ours, and no registry is ever asked.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::archive::Built;
use super::packages;
use super::process;
use super::store::{self, Store};

/// `runc`, because crun refuses a machine whose control groups are of the first version. The limits are such that a container
/// starts where the process may not raise its own.
const CONTAINERS_CONF: &str = r#"[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "none"
[network]
network_backend = "netavark"
network_config_dir = "@FOLDER@/networks"
"#;
const STORAGE_CONF: &str = "[storage]\ndriver = \"overlay\"\ngraphroot = \"@STORE@\"\nrunroot = \"@RUN@/run\"\n";
const REGISTRIES_CONF: &str = "unqualified-search-registries = [\"docker.io\"]\nshort-name-mode = \"disabled\"\n";
/// Nothing is signed, because nothing is fetched: images are built here.
const POLICY_JSON: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

/// The engine, ready for commands.
pub struct Engine {
    wrapper: PathBuf,
    policy: PathBuf,
}

impl Engine {
    /// Installs the engine where it is absent, and writes its configuration.
    pub fn ready(store: &Store) -> Result<Self> {
        packages::ensure(packages::TO_BUILD)?;
        let folder = store.subfolder("engine")?;
        fs::create_dir_all(folder.join("networks"))?;
        let file = |name: &str| folder.join(name);
        let containers_conf = CONTAINERS_CONF.replace("@FOLDER@", &folder.to_string_lossy());
        store::write(&file("containers.conf"), containers_conf.as_bytes(), 0o644)?;
        let storage_conf = STORAGE_CONF.replace("@STORE@", &store.path("store").to_string_lossy());
        let storage_conf = storage_conf.replace("@RUN@", &run_folder(store));
        store::write(&file("storage.conf"), storage_conf.as_bytes(), 0o644)?;
        store::write(&file("registries.conf"), REGISTRIES_CONF.as_bytes(), 0o644)?;
        store::write(&file("policy.json"), POLICY_JSON.as_bytes(), 0o644)?;
        let engine = Self { wrapper: file("podman"), policy: file("policy.json") };
        store::write(&engine.wrapper, wrapper(store).as_bytes(), 0o755)?;
        Ok(engine)
    }

    /// A command of the engine.
    pub fn command(&self, subcommand: &[&str]) -> Command {
        let mut command = Command::new(&self.wrapper);
        command.args(subcommand);
        command
    }

    /// As [`Engine::command`], for those subcommands that check signatures.
    pub fn command_with_policy(&self, subcommand: &[&str]) -> Command {
        let mut command = self.command(subcommand);
        command.arg("--signature-policy").arg(&self.policy);
        command
    }

    /// Whether the store has the image `reference`.
    pub fn has(&self, reference: &str) -> Result<bool> {
        let mut exists = self.command(&["image", "exists", reference]);
        match exists.status()?.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => bail!("cannot look for {reference} in the image store: {} images", self.wrapper.display()),
        }
    }

    /// Makes sure that the store has a built image under its content hash; the store may be younger than the archive.
    pub fn give(&self, built: &Built) -> Result<()> {
        let by_content = format!("{}:{}", built.repository(), built.hash);
        if !self.has(&by_content)? {
            process::capture(self.command_with_policy(&["load", "--quiet", "--input"]).arg(&built.archive))?;
            process::capture(&mut self.command(&["tag", &built.reference, &by_content]))?;
        }
        Ok(())
    }

    /// One field of an image, given as a template.
    pub fn inspect(&self, reference: &str, template: &str) -> Result<String> {
        let shown = process::capture(&mut self.command(&["image", "inspect", "--format", template, reference]))
            .with_context(|| format!("cannot read {template} of the image {reference}"))?;
        Ok(shown.trim().to_owned())
    }

    /// Runs a command of the engine on this terminal.
    pub fn interactive(&self, arguments: &[String]) -> Result<()> {
        process::passed_through(self.command(&[]).args(arguments))
    }
}

/// The folder for run-time files: short, because paths of sockets are limited, and gone with the next boot, as these must be.
fn run_folder(store: &Store) -> String {
    let hash = format!("{:x}", Sha256::digest(store.path("").as_os_str().as_encoded_bytes()));
    format!("/run/backlot-images/{}", &hash[..8])
}

/// A script, and not only arguments, so that test scripts and people reach the same store.
fn wrapper(store: &Store) -> String {
    let run = run_folder(store);
    format!(
        "#!/bin/sh\n# The container engine on the project's own image store.\nexport CONTAINERS_CONF='{0}/containers.conf' \
         CONTAINERS_STORAGE_CONF='{0}/storage.conf' CONTAINERS_REGISTRIES_CONF='{0}/registries.conf'\n\
         exec podman --root '{1}' --runroot '{run}/run' --tmpdir '{run}/tmp' \"$@\"\n",
        store.path("engine").display(),
        store.path("store").display(),
    )
}
