//! Taking a cluster down: no process, mount, loop device, network namespace, control group or file of it is left.
//!
//! What is to go is found in the kernel by the cluster's names and not in a list of what was started, so it works after any crash.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::cgroup::Hierarchies;
use super::layout::{Layout, Node};
use super::machine;
use super::network;
use super::progress::{note, step};
use super::run::run;
use super::slots::{Slot, check_name};
use super::up::hold;

/// Removes the cluster and its data.
pub fn down(layout: &Layout) -> Result<()> {
    println!("Removing cluster {}", layout.name);
    let lock = hold(layout)?;
    let hierarchies = Hierarchies::of_this_machine()?;
    check_name(layout)?;
    let slot = Slot::of(layout);
    step("processes", || hierarchies.kill(&layout.cgroup()))?;
    step("mounts and loop devices", || release(&layout.directory))?;
    step("network namespaces", || network::remove(layout, slot))?;
    step("control groups", || hierarchies.remove(&layout.cgroup()))?;
    step("files", || {
        layout.nodes().iter().try_for_each(machine::forget)?;
        if layout.directory.exists() {
            fs::remove_dir_all(&layout.directory).with_context(|| format!("remove {}", layout.directory.display()))?;
        }
        Ok(())
    })?;
    if let Some(slot) = slot {
        slot.release()?;
    }
    if !Slot::any() {
        machine::restore()?;
    }
    drop(lock);
    let _ = fs::remove_file(layout.directory.with_extension("lock"));
    let rest = remains(layout)?;
    if !rest.is_empty() {
        bail!("this is left of cluster {}:\n{}", layout.name, rest.join("\n"));
    }
    note("nothing is left");
    Ok(())
}

/// What of the cluster is still on the machine, one line each.
pub fn remains(layout: &Layout) -> Result<Vec<String>> {
    let hierarchies = Hierarchies::of_this_machine()?;
    let mut rest: Vec<String> =
        hierarchies.members(&layout.cgroup()).iter().map(|pid| format!("process {pid}")).collect();
    rest.extend(
        hierarchies.existing(&layout.cgroup()).iter().map(|folder| format!("control group {}", folder.display())),
    );
    rest.extend(mounts_below(&layout.directory)?.iter().map(|path| format!("mount {}", path.display())));
    rest.extend(loops_below(&layout.directory)?.iter().map(|device| format!("loop device {device}")));
    rest.extend(network::existing(layout).iter().map(|name| format!("network namespace {name}")));
    for node in layout.nodes() {
        rest.extend(machine::left_by(&node).iter().map(|path| format!("file {}", path.display())));
    }
    if let Some(slot) = Slot::of(layout) {
        rest.push(format!("network device {}", slot.device()));
    }
    if layout.directory.exists() {
        rest.push(format!("folder {}", layout.directory.display()));
    }
    Ok(rest)
}

/// Takes a node's processes, mounts and network away as a power cut would, and leaves what is on its disks.
pub fn crash(node: &Node, hierarchies: &Hierarchies) -> Result<()> {
    hierarchies.kill(&node.cgroup())?;
    release(&node.directory())?;
    machine::forget(node)?;
    // Nothing of these outlives a real machine's restart.
    let directory = node.directory();
    for gone in ["containerd-state", "runc", "containerd.sock", "containerd.sock.ttrpc"] {
        let path = directory.join(gone);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Unmounts all below the folder, inner mounts first, and detaches the loop devices of files in it.
fn release(folder: &Path) -> Result<()> {
    for _ in 0..3 {
        let mounts = mounts_below(folder)?;
        if mounts.is_empty() {
            break;
        }
        for path in mounts.iter().rev() {
            // The mount may have gone with another one; what stays is seen in the next turn.
            if run("umount", [path]).is_err() {
                let _ = run("umount", [Path::new("--lazy"), path]);
            }
        }
    }
    if let Some(path) = mounts_below(folder)?.first() {
        bail!("{} cannot be unmounted", path.display());
    }
    for device in loops_below(folder)? {
        // Most are detached by the kernel with their last mount.
        let _ = run("losetup", ["--detach", &device]);
    }
    Ok(())
}

fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let unescaped = points
        .map(|point| point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"));
    Ok(unescaped.map(PathBuf::from).filter(|path| path.starts_with(folder)).collect())
}

fn loops_below(folder: &Path) -> Result<Vec<String>> {
    let list = run("losetup", ["--noheadings", "--output", "NAME,BACK-FILE"])?;
    let mut found = Vec::new();
    for line in list.lines() {
        if let Some((device, file)) = line.split_once(char::is_whitespace)
            && Path::new(file.trim()).starts_with(folder)
        {
            found.push(device.to_owned());
        }
    }
    Ok(found)
}
