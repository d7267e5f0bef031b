//! The image folders of a checkout, and the content hash that decides whether one is built already.
//!
//! Invariant: two checkouts with equal folders, binaries and base have equal hashes; tests and documents beside a Containerfile
//! do not count.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::base;
use super::store::Store;

/// Raise it when the way of building changes what comes out.
const RECIPE: &str = "1";
/// A comment line of a Containerfile that asks for static builds of the workspace's programs in the context's `bin/`.
const BINARIES_MARK: &str = "# binaries:";
/// What lies beside a Containerfile but is no part of the image.
const NOT_IN_IMAGE: &[&str] = &["test", "README.md"];

/// The folder of one image.
pub struct Source {
    /// Name of the image.
    pub name: String,
    /// Folder with the Containerfile, and the build context.
    pub folder: PathBuf,
    /// Programs of the workspace that the image contains.
    pub binaries: Vec<String>,
}

/// Every image of the checkout, by name.
pub fn all(store: &Store) -> Result<Vec<Source>> {
    let mut sources = vec![Source::read("operator".to_owned(), store.checkout().join("deploy/image"))];
    for parent in ["images", "dev/images"] {
        for folder in folders(&store.checkout().join(parent))? {
            if let Some(name) = folder.file_name().and_then(|name| name.to_str()) {
                sources.push(Source::read(name.to_owned(), folder.clone()));
            }
        }
    }
    let mut sources: Vec<Source> = sources.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    sources.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(sources)
}

/// Names of the images that have tests of their own.
pub fn tested(store: &Store) -> Result<Vec<String>> {
    let sources = all(store)?.into_iter().filter(|source| source.folder.join("test/run").is_file());
    Ok(sources.map(|source| source.name).collect())
}

/// The image `name`, or an error that lists those there are.
pub fn find(store: &Store, name: &str) -> Result<Source> {
    let mut sources = all(store)?;
    if let Some(index) = sources.iter().position(|source| source.name == name) {
        return Ok(sources.swap_remove(index));
    }
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    bail!("no image {name:?} in this checkout: there are {}", names.join(", "))
}

impl Source {
    /// The folder's image, or none if the folder has no Containerfile.
    fn read(name: String, folder: PathBuf) -> Result<Option<Self>> {
        let containerfile = folder.join("Containerfile");
        if !containerfile.is_file() {
            return Ok(None);
        }
        let text =
            fs::read_to_string(&containerfile).with_context(|| format!("cannot read {}", containerfile.display()))?;
        let marked = text.lines().filter_map(|line| line.strip_prefix(BINARIES_MARK));
        let binaries = marked.flat_map(str::split_whitespace).map(str::to_owned).collect();
        Ok(Some(Self { name, folder, binaries }))
    }

    /// Hash of everything that decides the image's content; `programs` are the built files of [`Source::binaries`].
    pub fn hash(&self, programs: &[PathBuf]) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(format!("{RECIPE} {}\n", base::key()));
        for file in self.files()? {
            hash_file(&mut hash, &self.folder.join(&file), &file)?;
        }
        for program in programs {
            hash_file(&mut hash, program, Path::new(program.file_name().unwrap_or_default()))?;
        }
        Ok(format!("{:x}", hash.finalize())[..16].to_owned())
    }

    /// Whether the server comes from a repository that a machine may not reach; a stand-in for it lies beside the tests.
    pub fn needs_vendor(&self) -> bool {
        self.folder.join("test/stand-in").is_dir()
    }

    /// Hash of the folder's own files, the same on every machine.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        for file in self.files()? {
            hash_file(&mut hash, &self.folder.join(&file), &file)?;
        }
        Ok(format!("{:x}", hash.finalize())[..16].to_owned())
    }

    /// The files of the context, relative to the folder, in a stable order.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut open = vec![PathBuf::new()];
        while let Some(folder) = open.pop() {
            let path = self.folder.join(&folder);
            for entry in fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))? {
                let entry = entry?;
                let relative = folder.join(entry.file_name());
                if NOT_IN_IMAGE.iter().any(|name| relative == Path::new(name)) {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    open.push(relative);
                } else {
                    found.push(relative);
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

fn hash_file(hash: &mut Sha256, path: &Path, name: &Path) -> Result<()> {
    let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let executable = fs::metadata(path)?.permissions().mode() & 0o111 != 0;
    hash.update(format!("{} {executable} {}\n", name.display(), content.len()));
    hash.update(content);
    Ok(())
}

fn folders(parent: &Path) -> Result<Vec<PathBuf>> {
    if !parent.is_dir() {
        return Ok(Vec::new());
    }
    let mut folders = Vec::new();
    for entry in fs::read_dir(parent).with_context(|| format!("cannot read {}", parent.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(folder: &Path) -> Source {
        Source::read("x".to_owned(), folder.to_path_buf()).unwrap().unwrap()
    }

    #[test]
    fn only_what_goes_into_an_image_decides_whether_it_is_built_again() {
        let folder = std::env::temp_dir().join(format!("backlot-source-{}", std::process::id()));
        fs::create_dir_all(folder.join("test")).unwrap();
        fs::create_dir_all(folder.join("db")).unwrap();
        fs::write(folder.join("Containerfile"), "# binaries: one two\nFROM scratch\n").unwrap();
        fs::write(folder.join("db/verb"), "x").unwrap();
        assert_eq!(image(&folder).binaries, ["one", "two"]);
        let hash = image(&folder).hash(&[]).unwrap();

        fs::write(folder.join("test/run"), "x").unwrap();
        fs::write(folder.join("README.md"), "x").unwrap();
        assert_eq!(image(&folder).hash(&[]).unwrap(), hash);

        fs::set_permissions(folder.join("db/verb"), fs::Permissions::from_mode(0o755)).unwrap();
        let executable = image(&folder).hash(&[]).unwrap();
        assert_ne!(executable, hash);
        fs::rename(folder.join("db/verb"), folder.join("db/verbs")).unwrap();
        assert_ne!(image(&folder).hash(&[]).unwrap(), executable);
        assert_ne!(image(&folder).hash(&[folder.join("db/verbs")]).unwrap(), image(&folder).hash(&[]).unwrap());
        fs::remove_dir_all(&folder).unwrap();
    }
}
