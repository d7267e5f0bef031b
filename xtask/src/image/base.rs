//! The Debian base that all images share, made from packages under the name that Containerfiles use.
//!
//! Invariant: the base changes only with the recipe in this file, so all images of one cache share its one layer.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::engine::Engine;
use super::process;
use super::store::Store;

/// The name in `FROM`: with a registry at hand, the same name brings the vendor's own base.
const NAME: &str = "docker.io/library/debian:bookworm-slim";
const SUITE: &str = "bookworm";
/// As the vendor's slim image: merged `/usr`, no documentation but the licences, no translations, no package lists.
const RECIPE: &[&str] = &[
    "--variant=minbase",
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    "--include=usr-is-merged",
    "--aptopt=Acquire::Languages \"none\"",
    "--aptopt=APT::AutoRemove::SuggestsImportant \"false\"",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/lintian/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    // Downloaded packages and apt's own caches are not kept in a layer.
    "--customize-hook=printf '%s\\n' 'APT::Keep-Downloaded-Packages \"false\";' 'Dir::Cache::pkgcache \"\";' \
     'Dir::Cache::srcpkgcache \"\";' 'DPkg::Post-Invoke { \"rm -f /var/cache/apt/archives/*.deb || true\"; };' \
     > \"$1/etc/apt/apt.conf.d/docker-clean\"; rm -f \"$1\"/var/cache/apt/*.bin",
];

/// What the base is made from, for the content hash of the images on it.
pub fn key() -> String {
    let mut hash = Sha256::new();
    for word in RECIPE.iter().chain([&SUITE]) {
        hash.update(word);
        hash.update([0]);
    }
    format!("{:x}", hash.finalize())[..12].to_owned()
}

/// Makes the base where the store lacks it. The caller holds the store's lock.
pub fn ensure(store: &Store, engine: &Engine) -> Result<()> {
    let ours = format!("localhost/backlot/base:{}", key());
    if !engine.has(&ours)? {
        eprintln!("base: making a minimal Debian {SUITE} from packages (about half a minute)");
        let archive = store.path("base.tar");
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(RECIPE).arg(SUITE).arg(&archive);
        process::logged(&mut mmdebstrap, &store.subfolder("log")?.join("base.log"))?;
        let mut import = engine.command_with_policy(&["import", "--quiet", "--change", "CMD bash"]);
        process::capture(import.arg(&archive).arg(&ours))?;
        fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    }
    process::capture(&mut engine.command(&["tag", &ours, NAME])).map(drop)
}
