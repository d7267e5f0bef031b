//! Building the programs of the cluster from source, once per version of that source.
//!
//! What was built is kept in the cache under a hash of its source, module versions and Go version; it is complete or absent.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::layout::{Layout, cache, checkout};
use super::progress::{note, seconds};
use super::run::{digest, installed, output, words};
use super::slots::exclusive_for_long;

/// The version that the Kubernetes programs report; `dev/kubernetes/go.mod` requires the same.
const KUBERNETES: &str = "v1.34.4";

/// A Go module in `dev/`, the packages of it that are built, and the names under which the first is called.
struct Module {
    name: &'static str,
    packages: &'static [&'static str],
    links: &'static [&'static str],
}

const MODULES: [Module; 4] = [
    Module { name: "pod", packages: &["."], links: &[] },
    Module { name: "csi", packages: &["."], links: &[] },
    Module {
        name: "addons",
        packages: &[
            "./coredns",
            "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
            "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer",
        ],
        links: &[],
    },
    Module {
        name: "kubernetes",
        packages: &[".", "helm.sh/helm/v3/cmd/helm"],
        links: &[
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "kubelet",
            "kubectl",
        ],
    },
];

/// Builds what is not in the cache, and links every program into the cluster's folder.
pub fn ensure(layout: &Layout) -> Result<()> {
    for folder in build_all()? {
        link_all(&folder, &layout.programs())?;
    }
    Ok(())
}

/// Builds what is not in the cache; returns the folders of the programs.
pub fn build_all() -> Result<Vec<PathBuf>> {
    if !installed("go") {
        bail!("go is absent: install Go 1.26 or newer, which builds the programs of the local cluster");
    }
    let cache = cache()?;
    let go = words("go", "version")?;
    let _lock = exclusive_for_long(&cache.join("build.lock"))?;
    MODULES.iter().map(|module| ensure_module(module, &cache, &go)).collect()
}

/// The folder of the kubectl and helm that this checkout brings, built if need be.
pub fn client_programs() -> Result<PathBuf> {
    let folders = build_all()?;
    folders.into_iter().next_back().context("no module is built")
}

fn ensure_module(module: &Module, cache: &Path, go: &str) -> Result<PathBuf> {
    let source = checkout().join("dev").join(module.name);
    let target = cache.join("programs").join(format!("{}-{}", module.name, hash(module, &source, go)?));
    if target.is_dir() {
        return Ok(target);
    }
    let unfinished = target.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("remove {}", unfinished.display()))?;
    }
    fs::create_dir_all(&unfinished).with_context(|| format!("create {}", unfinished.display()))?;
    compile(module, &source, &unfinished)?;
    for link in module.links {
        std::os::unix::fs::symlink(module.name, unfinished.join(link)).with_context(|| format!("link {link}"))?;
    }
    fs::rename(&unfinished, &target).with_context(|| format!("move to {}", target.display()))?;
    Ok(target)
}

/// Go in the module's folder. The settings are ours and not the user's, so that the same source gives the same programs.
fn go(source: &Path, command: &str) -> Command {
    let mut go = Command::new("go");
    go.current_dir(source)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly -trimpath -buildvcs=false")
        .arg(command);
    go
}

/// Runs the compiler, which names every package that it works on, and shows how far it is.
fn compile(module: &Module, source: &Path, target: &Path) -> Result<()> {
    const EVERY: Duration = Duration::from_secs(10);
    let started = Instant::now();
    note(&format!(
        "build {} from source (all four: about ten minutes on two cores from nothing, later from Go's cache)",
        module.name
    ));
    let packages = output(go(source, "list").arg("-deps").args(module.packages))?.lines().count();
    let version = "k8s.io/component-base/version";
    let flags = format!("-s -w -X {version}.gitVersion={KUBERNETES} -X {version}.gitMajor=1 -X {version}.gitMinor=34");
    let mut child = go(source, "build")
        .args(["-v", "-ldflags", &flags, "-o"])
        .arg(target)
        .args(module.packages)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start go")?;
    let (mut compiled, mut shown, mut messages) = (0_u32, Instant::now(), Vec::new());
    for line in child.stderr.take().map(BufReader::new).into_iter().flat_map(BufReader::lines) {
        let line = line.context("read the output of go")?;
        if line.contains(' ') {
            messages.push(line);
            continue;
        }
        compiled += 1;
        if shown.elapsed() > EVERY {
            let time = seconds(started.elapsed());
            note(&format!("  {}: {compiled} of at most {packages} packages compiled, {time} ({line})", module.name));
            shown = Instant::now();
        }
    }
    let status = child.wait().context("wait for go")?;
    if !status.success() {
        bail!("building dev/{} failed:\n{}", module.name, messages.join("\n"));
    }
    note(&format!("built {}: {compiled} of {packages} packages compiled, {}", module.name, seconds(started.elapsed())));
    Ok(())
}

/// Identifies all that goes into the programs: sources, locked versions, compiler, its arguments.
fn hash(module: &Module, source: &Path, go: &str) -> Result<String> {
    let mut files = Vec::new();
    collect(source, &mut files)?;
    files.sort();
    let mut all = format!("{go} {KUBERNETES} {:?} {:?}\n", module.packages, module.links).into_bytes();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        all.extend(format!("{} {}\n", file.strip_prefix(source).unwrap_or(&file).display(), content.len()).bytes());
        all.extend(content);
    }
    Ok(digest(all)[..16].to_owned())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            collect(&path, files)?;
        } else if !name.ends_with("_test.go")
            && path.extension().is_some_and(|kind| ["go", "mod", "sum"].iter().any(|known| kind == *known))
        {
            files.push(path);
        }
    }
    Ok(())
}

/// Links are replaced by rename: a program may be started by its link at any time.
fn link_all(programs: &Path, links: &Path) -> Result<()> {
    fs::create_dir_all(links).with_context(|| format!("create {}", links.display()))?;
    for entry in fs::read_dir(programs).with_context(|| format!("read {}", programs.display()))? {
        let program = entry.with_context(|| format!("read {}", programs.display()))?.path();
        let Some(name) = program.file_name() else { continue };
        let fresh = links.join(".new");
        let _ = fs::remove_file(&fresh);
        std::os::unix::fs::symlink(&program, &fresh).with_context(|| format!("link {}", program.display()))?;
        fs::rename(&fresh, links.join(name)).with_context(|| format!("link {}", program.display()))?;
    }
    Ok(())
}
