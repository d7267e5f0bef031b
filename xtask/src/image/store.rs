//! Where images live: the cache folder, its locks, and the checkout that is built.
//!
//! Invariant: whoever changes the image store or an archive holds the store's lock; readers need none, because files appear by
//! rename only.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The image part of the cache, and the checkout.
pub struct Store {
    checkout: PathBuf,
    folder: PathBuf,
}

impl Store {
    /// The store under `BACKLOT_CACHE`, or else under `~/.cache/backlot`.
    pub fn open() -> Result<Self> {
        let cache = match std::env::var_os("BACKLOT_CACHE") {
            Some(folder) => PathBuf::from(folder),
            None => std::env::home_dir().context("no home folder: set BACKLOT_CACHE")?.join(".cache/backlot"),
        };
        let folder = std::path::absolute(cache)?.join("images");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let package = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let checkout = package.parent().context("xtask lies in a workspace")?.to_path_buf();
        Ok(Self { checkout, folder })
    }

    /// The checkout whose images are built.
    pub fn checkout(&self) -> &Path {
        &self.checkout
    }

    /// A file or folder of the store.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.join(name)
    }

    /// A folder of the store, created when absent.
    pub fn subfolder(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let folder = self.path(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }

    /// The folder of the local cluster `name`, as `cargo xtask cluster` lays it out.
    pub fn cluster(&self, name: &str) -> PathBuf {
        self.folder.with_file_name("clusters").join(name)
    }

    /// Waits until no other process changes the store, and keeps others out while the result lives.
    pub fn lock(&self) -> Result<File> {
        let path = self.path("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => eprintln!("waiting for another build of images on this machine"),
            Err(TryLockError::Error(error)) => return Err(error).context(format!("cannot lock {}", path.display())),
        }
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }
}

/// Writes a file at once: a reader sees the old content or the new, never half.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let part = path.with_extension(format!("part-{}", std::process::id()));
    fs::write(&part, content).with_context(|| format!("cannot write {}", part.display()))?;
    fs::set_permissions(&part, fs::Permissions::from_mode(mode))?;
    fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))
}
