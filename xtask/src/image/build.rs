//! Builds one image, or finds that it is built.
//!
//! Invariant: an image is identified by the content hash of its folder; the same hash is never built twice on one machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

pub use super::archive::Built;
use super::engine::Engine;
use super::source::{self, Source};
use super::store::Store;
use super::{archive, base, binaries, process};

/// Label that says what version of an engine an image brings.
const VERSION_LABEL: &str = "{{ index .Labels \"dev.backlot.version\" }}";

/// Certificate authorities that an administrator added to a Debian machine; `ca-certificates` takes them up when it is installed.
const OWN_AUTHORITIES: &str = "/usr/local/share/ca-certificates";

/// Builds every image of the checkout.
pub fn build_all(store: &Store) -> Result<Vec<Built>> {
    let (sources, elsewhere): (Vec<_>, Vec<_>) =
        source::all(store)?.into_iter().partition(|source| !source.needs_vendor());
    for source in elsewhere {
        eprintln!("{}: left out, its server comes from a vendor's repository; `image build {0}` tries", source.name);
    }
    sources.iter().map(|source| build_source(store, source)).collect()
}

/// Builds the image `name` and returns what to call it.
pub fn build(store: &Store, name: &str) -> Result<Built> {
    build_source(store, &source::find(store, name)?)
}

fn build_source(store: &Store, source: &Source) -> Result<Built> {
    let programs = binaries::build(store, &source.binaries)?;
    let hash = source.hash(&programs)?;
    let started = Instant::now();
    let (built, verb) = match archive::read(store, &source.name, &hash) {
        Some(built) => {
            archive::touch(&built)?;
            (built, "is built")
        }
        None => (build_new(store, source, &programs, &hash)?, "built"),
    };
    let seconds = started.elapsed().as_secs_f32();
    eprintln!("{}: {verb} ({} MB, {seconds:.1} s) {}", source.name, built.bytes / 1_000_000, built.pinned());
    Ok(built)
}

fn build_new(store: &Store, source: &Source, programs: &[PathBuf], hash: &str) -> Result<Built> {
    let _lock = store.lock()?;
    // Another process may have built it while this one waited.
    if let Some(built) = archive::read(store, &source.name, hash) {
        return Ok(built);
    }
    let engine = Engine::ready(store)?;
    base::ensure(store, &engine)?;
    let repository = archive::repository(&source.name);
    let by_content = format!("{repository}:{hash}");
    let context = context(store, source, programs, hash)?;
    eprintln!("{}: building", source.name);
    let log = store.subfolder("log")?.join(format!("{}.log", source.name));
    // The host's network, because a machine without an engine has no bridge for builds; no registry is asked.
    let mut command =
        engine.command_with_policy(&["build", "--isolation", "chroot", "--network", "host", "--pull=never"]);
    // What this machine trusts beyond the public authorities, builds trust as well, e.g. a company's mirror of packages.
    if Path::new(OWN_AUTHORITIES).is_dir() {
        command.args(["--volume", &format!("{OWN_AUTHORITIES}:{OWN_AUTHORITIES}:ro")]);
    }
    command.args(["--tag", &by_content, "--file"]).arg(context.join("Containerfile")).arg(&context);
    process::logged(&mut command, &log).with_context(|| format!("cannot build the image {}", source.name))?;
    if context != source.folder {
        fs::remove_dir_all(&context)?;
    }

    let label = engine.inspect(&by_content, VERSION_LABEL)?;
    let version = if label.is_empty() || label == "<no value>" { env!("CARGO_PKG_VERSION").to_owned() } else { label };
    let reference = format!("{repository}:{version}");
    process::capture(&mut engine.command(&["tag", &by_content, &reference]))?;
    let digest = engine.inspect(&by_content, "{{ .Digest }}")?;

    let path = archive::path(store, &source.name, hash);
    let part = path.with_extension("part");
    if part.exists() {
        fs::remove_file(&part)?;
    }
    // Uncompressed: only so is the digest in the archive the one in the store, and a node imports it quicker.
    let save = ["save", "--quiet", "--uncompressed", "--format", "oci-archive", "--output"];
    process::capture(engine.command(&save).arg(&part).arg(&reference))?;
    let bytes = fs::metadata(&part)?.len();
    fs::rename(&part, &path).with_context(|| format!("cannot write {}", path.display()))?;

    let built =
        Built { name: source.name.clone(), version, reference, digest, hash: hash.to_owned(), archive: path, bytes };
    archive::write(&built)?;
    for old in archive::prune(store, &built)? {
        // One that a container uses stays: no failure.
        engine.command(&["image", "rm", &format!("{repository}:{old}")]).output()?;
    }
    process::capture(&mut engine.command(&["image", "prune", "--force", "--filter", "until=1h"]))?;
    Ok(built)
}

/// The build context: the folder itself, or a copy of it with the workspace's programs in `bin/`.
fn context(store: &Store, source: &Source, programs: &[PathBuf], hash: &str) -> Result<PathBuf> {
    if programs.is_empty() {
        return Ok(source.folder.clone());
    }
    let context = store.subfolder(format!("context/{}-{hash}", source.name))?;
    for file in source.files()? {
        copy(&source.folder.join(&file), &context.join(&file))?;
    }
    for program in programs {
        let to = context.join("bin").join(program.file_name().context("a program has a file name")?);
        copy(program, &to)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }
    Ok(context)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display())).map(drop)
}
