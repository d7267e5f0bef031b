//! Members of a trial: a container each, as the pod of a member would be.
//!
//! Invariant: a container sees what a pod gives it and no more: read-only root, no capabilities, a user that the image does not
//! know, volumes that belong to a group of it, and a network that leads nowhere else.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use backlot_standard::layout;
use serde_json::{Value, json};

use super::request;
use super::state::Trial;
use crate::image::process;

/// First process: reaps, and ends when told to.
const FIRST_PROCESS: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";
/// Domain of members' names: the standard promises names, not host names.
const DOMAIN: &str = "trial";

/// Makes a member with empty volumes.
pub fn create(trial: &mut Trial, member: &str, words: &[String]) -> Result<()> {
    if trial.member(member, "").exists() {
        bail!("the member {member:?} exists: `db wipe` empties its volumes, `db move` makes its container anew");
    }
    for volume in &trial.manifest.volumes {
        empty_volume(trial, &trial.member(member, "volumes").join(&volume.name))?;
    }
    fs::create_dir_all(trial.member(member, "log"))?;
    let component = trial.manifest.components.first().map_or("data", |component| component.name.as_str()).to_owned();
    trial.change(|base| {
        let members = base["members"].as_array_mut().context("members are a list")?;
        let ordinal = members.len();
        members
            .push(json!({"id": member, "numericId": ordinal + 1, "name": format!("{member}.{DOMAIN}"), "address": "",
            "component": component, "shard": 0, "ordinal": ordinal, "state": "new", "vote": true}));
        words.iter().try_for_each(|word| request::set(base, &format!("members.{member}.{word}")))
    })?;
    start_container(trial, member)
}

/// Makes the container of a member anew: an empty `/run/db` and another address.
pub fn replace(trial: &mut Trial, member: &str) -> Result<()> {
    remove_container(trial, member)?;
    start_container(trial, member)
}

/// Empties the volumes of a member whose engine is stopped.
pub fn wipe(trial: &Trial, member: &str) -> Result<()> {
    for volume in &trial.manifest.volumes {
        let folder = trial.member(member, "volumes").join(&volume.name);
        for entry in fs::read_dir(&folder).with_context(|| format!("no member {member:?}"))? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
    }
    Ok(())
}

/// Takes a member off the network, or gives it back.
pub fn connect(trial: &mut Trial, member: &str, connected: bool) -> Result<()> {
    let container = trial.container(member);
    if connected {
        let name = format!("{member}.{DOMAIN}");
        let aliases = ["network", "connect", "--alias", member, "--alias", &name];
        process::capture(trial.podman(&aliases).arg(&trial.network).arg(&container))?;
        return note_address(trial, member);
    }
    process::capture(&mut trial.podman(&["network", "disconnect", &trial.network, &container])).map(drop)
}

/// A command inside the member's container, as the engine's user and with its environment.
pub fn exec(trial: &Trial, member: &str) -> Command {
    let mut command = trial.podman(&["exec", "--workdir", "/", "--user", &trial.user()]);
    for variable in ["HOME=/run/db/home", "TZ=UTC", "LANG=C.UTF-8"] {
        command.args(["--env", variable]);
    }
    // The last option: what follows is the container and the command.
    command.args(["--interactive", &trial.container(member)]);
    command
}

fn start_container(trial: &mut Trial, member: &str) -> Result<()> {
    let run = trial.member(member, "run");
    fs::create_dir_all(run.join("home"))?;
    for folder in [run.clone(), run.join("home")] {
        chown(&folder, Some(trial.uid), Some(trial.uid))?;
    }
    let network = format!("{}:alias={member},alias={member}.{DOMAIN}", trial.network);
    let mut create = trial.podman(&["run", "--detach", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all"]);
    create.args([
        "--security-opt=no-new-privileges",
        "--pids-limit=1024",
        "--network",
        &network,
        "--user",
        &trial.user(),
    ]);
    create.args(["--name", &trial.container(member), "--hostname", member]);
    let memory = trial.base["resources"]["memoryBytes"].as_u64().unwrap_or_default();
    if memory > 0 {
        create.arg(format!("--memory={memory}"));
    }
    let mount = |from: &Path, to: &str| format!("{}:{to}", from.display());
    create.arg("--volume").arg(mount(&run, layout::RUN_DIR));
    create.arg("--volume").arg(mount(&trial.folder.join("secrets"), &format!("{}:ro", layout::CREDENTIALS_DIR)));
    for volume in &trial.manifest.volumes {
        create.arg("--volume").arg(mount(&trial.member(member, "volumes").join(&volume.name), &volume.path));
    }
    for scratch in &trial.manifest.security.scratch {
        create.args(["--tmpfs", &format!("{scratch}:rw,mode=1777")]);
    }
    if trial.manifest.security.shared_memory_bytes > 0 {
        create.arg(format!("--shm-size={}b", trial.manifest.security.shared_memory_bytes));
    }
    create.args(["--entrypoint", "/bin/sh", &trial.image, "-c", FIRST_PROCESS]);
    process::capture(&mut create).with_context(|| format!("cannot start the container of {member}"))?;
    note_address(trial, member)
}

fn remove_container(trial: &Trial, member: &str) -> Result<()> {
    process::capture(&mut trial.podman(&["rm", "--force", "--time", "0", &trial.container(member)]))?;
    let run = trial.member(member, "run");
    fs::remove_dir_all(&run).with_context(|| format!("cannot empty {}", run.display()))
}

fn note_address(trial: &mut Trial, member: &str) -> Result<()> {
    let template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = process::capture(&mut trial.podman(&["inspect", "--format", template, &trial.container(member)]))?;
    let address = address.trim().to_owned();
    trial.change(|base| {
        let members = base["members"].as_array_mut().context("members are a list")?;
        let entry = members.iter_mut().find(|entry| entry["id"] == member);
        entry.with_context(|| format!("no member {member:?}"))?["address"] = Value::String(address);
        Ok(())
    })
}

/// A volume as the kubelet hands it over: it belongs to root and to the pod's group.
fn empty_volume(trial: &Trial, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    chown(folder, Some(0), Some(trial.uid))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o2775)).context("cannot set a volume's mode")
}
