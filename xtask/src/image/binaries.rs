//! Static builds of the workspace's own programs, for images without any file of a system.
//!
//! Invariant: the programs link no shared library, so they run in an image that has none, and beside any database's libraries.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::process;
use super::store::Store;

/// Builds `names` and returns the files, in the same order.
pub fn build(store: &Store, names: &[String]) -> Result<Vec<PathBuf>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    eprintln!("building {} (static, release)", names.join(", "));
    let triple = host_triple()?;
    // A folder of its own: other flags in the shared one would rebuild everything at each change between them.
    let target = store.checkout().join("target/static");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(store.checkout()).env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.args(["build", "--quiet", "--release", "--locked", "--target", &triple, "--target-dir"]).arg(&target);
    for name in names {
        cargo.args(["--bin", name]);
    }
    process::passed_through(&mut cargo)?;
    Ok(names.iter().map(|name| target.join(&triple).join("release").join(name)).collect())
}

fn host_triple() -> Result<String> {
    let version = process::capture(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV shows no host")?.to_owned())
}
