//! End-to-end tests on a local cluster of their own: up, install, test, down.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use backlot_e2e::cluster::{CLUSTER, TYPES, XTASK};
use backlot_e2e::profile::checkout;
use clap::Args;

use crate::install::{self, Types, with_cluster};

/// Arguments of `e2e`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Use this local cluster and leave it; without it, one of its own is made and removed.
    #[arg(long)]
    cluster: Option<String>,
    #[command(flatten)]
    types: Types,
    /// Only tests whose file is so named, e.g. `bad_input`.
    #[arg(long = "promise")]
    promises: Vec<String>,
    /// Also compare the in-memory API server with the real one.
    #[arg(long)]
    conformance: bool,
}

/// A name that another checkout on the same machine does not have.
fn own_name() -> Result<String> {
    let mut hasher = DefaultHasher::new();
    checkout().canonicalize()?.hash(&mut hasher);
    Ok(format!("e2e-{:06x}", hasher.finish() & 0x00ff_ffff))
}

fn cluster(name: &str, verb: &str) -> Result<()> {
    let status = Command::new(std::env::current_exe()?).args(["cluster", "--name", name, verb]).status()?;
    if !status.success() {
        bail!("cluster {name} {verb}: {status}");
    }
    Ok(())
}

/// Runs the tests; a cluster of their own is removed also when they fail.
pub fn run(arguments: &Arguments) -> Result<()> {
    let own = if arguments.cluster.is_none() { Some(own_name()?) } else { None };
    // The process starts itself again with the cluster's environment; only the first one brings it up and down.
    let is_inner = std::env::var_os(CLUSTER).is_some();
    let name = arguments.cluster.clone().or_else(|| own.clone()).context("no cluster")?;
    if is_inner {
        return test(arguments, &name);
    }
    cluster(&name, "up")?;
    let outcome = inner(&name);
    if own.is_some() {
        cluster(&name, "down")?;
    }
    outcome
}

fn inner(name: &str) -> Result<()> {
    let xtask = std::env::current_exe()?;
    let arguments = std::env::args_os().skip(1);
    let status = Command::new(&xtask).args(arguments).env(CLUSTER, name).env(XTASK, &xtask).status()?;
    if !status.success() {
        bail!("end-to-end tests on cluster {name} failed");
    }
    Ok(())
}

fn test(arguments: &Arguments, name: &str) -> Result<()> {
    with_cluster(name, || {
        install::install(&install::Arguments { cluster: name.to_owned(), types: arguments.types.clone() })?;
        let kubeconfig = std::env::var("KUBECONFIG")?;
        if arguments.conformance {
            cargo(
                &["test", "-p", "backlot-testkit", "--test", "api_server_conformance", "--", "--nocapture"],
                &kubeconfig,
                "",
            )?;
        }
        let names: Vec<_> = arguments.types.profiles()?.into_iter().map(|profile| profile.class).collect();
        let mut all = vec!["test", "-p", "backlot-e2e", "--no-fail-fast"];
        for promise in &arguments.promises {
            all.extend(["--test", promise]);
        }
        all.extend(["--", "--test-threads=1", "--nocapture"]);
        cargo(&all, &kubeconfig, &names.join(","))
    })
}

fn cargo(arguments: &[&str], kubeconfig: &str, types: &str) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(checkout()).args(arguments).env("BACKLOT_KUBECONFIG", kubeconfig).env(TYPES, types);
    let status = command.status()?;
    if !status.success() {
        bail!("cargo {}: {status}", arguments.join(" "));
    }
    Ok(())
}
