//! Images: the one that the cluster makes for itself, and loading archives into the nodes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};

use super::layout::{Layout, Node};
use super::run::{digest, run};

/// The image of `dev/pod`: the sandbox of every pod, and the tool of the self test.
#[derive(Debug)]
pub struct PodImage {
    /// Its name; the tag is its content.
    pub reference: String,
    /// The archive.
    pub archive: PathBuf,
}

impl PodImage {
    /// Makes the archive unless it is there.
    pub fn ensure(layout: &Layout) -> Result<Self> {
        let program = fs::read(layout.program("pod")).context("read the program of the pod image")?;
        let layer = layer(&program)?;
        let digest = digest(&layer);
        let tag = &digest[..12];
        let reference = format!("backlot.dev/pod:{tag}");
        let archive = layout.directory.join(format!("pod-{tag}.tar"));
        if !archive.exists() {
            let unfinished = archive.with_extension("unfinished");
            write_archive(&unfinished, &reference, &layer, &digest)?;
            fs::rename(&unfinished, &archive).with_context(|| format!("move to {}", archive.display()))?;
        }
        Ok(Self { reference, archive })
    }

    /// Imports the image unless the node has it.
    pub fn ensure_on(&self, node: &Node) -> Result<()> {
        let filter = format!("name=={}", self.reference);
        if ctr(node, &["images", "list", "--quiet", &filter])?.trim().is_empty() {
            import(node, &self.archive)?;
        }
        Ok(())
    }
}

/// Imports an archive into every node, all at the same time.
pub fn load(layout: &Layout, archive: &Path) -> Result<()> {
    if !archive.is_file() {
        bail!("{} is no file: name an archive that `podman save` or `docker save` wrote", archive.display());
    }
    let nodes = layout.nodes();
    std::thread::scope(|scope| {
        let imports: Vec<_> = nodes.iter().map(|node| scope.spawn(|| import(node, archive))).collect();
        imports.into_iter().try_for_each(|import| import.join().map_err(|_| anyhow!("an import panicked"))?)
    })
}

fn import(node: &Node, archive: &Path) -> Result<()> {
    let path = archive.to_str().with_context(|| format!("{} is not UTF-8", archive.display()))?;
    ctr(node, &["images", "import", path]).map(drop).with_context(|| format!("import {path} on {}", node.name))
}

/// Runs containerd's own client in the namespace of Kubernetes.
pub fn ctr(node: &Node, arguments: &[&str]) -> Result<String> {
    let socket = node.containerd_socket();
    let address = socket.to_str().context("socket path is not UTF-8")?;
    run("ctr", ["--address", address, "--namespace", "k8s.io"].iter().chain(arguments))
}

fn layer(program: &[u8]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "pod", program, 0o755)?;
    archive.into_inner().context("finish a layer")
}

fn write_archive(path: &Path, reference: &str, layer: &[u8], digest: &str) -> Result<()> {
    let config = serde_json::json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": ["/pod"], "Cmd": ["pause"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(File::create(path).with_context(|| format!("create {}", path.display()))?);
    append(&mut archive, "config.json", config.to_string().as_bytes(), 0o644)?;
    append(&mut archive, "layer.tar", layer, 0o644)?;
    append(&mut archive, "manifest.json", manifest.to_string().as_bytes(), 0o644)?;
    archive.finish().context("finish an archive")
}

/// Entries carry no time and no owner, so that the same content has the same digest.
fn append<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str, content: &[u8], mode: u32) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(content.len()).context("size of an entry")?);
    header.set_mode(mode);
    archive.append_data(&mut header, name, content).with_context(|| format!("archive {name}"))
}

/// The name that images use for this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
