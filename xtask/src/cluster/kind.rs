//! The commands on a cluster that kind makes with the machine's container engine.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::kubectl::Kubectl;
use super::layout::{Layout, NODES, cache};
use super::progress::step;
use super::run::{installed, run as execute, write};
use super::{Command, become_process, build, csi_sanity};

/// Runs a command.
pub fn run(name: &str, command: Command) -> Result<()> {
    // For its check of the name.
    Layout::new(name)?;
    let cluster = format!("backlot-{name}");
    match command {
        Command::Up { .. } => up(name, &cluster),
        Command::Down => {
            step(&format!("delete {cluster}"), || kind(&["delete", "cluster", "--name", &cluster]).map(drop))
        }
        Command::Status => {
            print!("{}", kubectl(name)?.run(&["get", "nodes", "-o", "wide"])?);
            Ok(())
        }
        Command::Env => {
            println!("export KUBECONFIG={}", kubeconfig(name)?.display());
            println!("export PATH={}:$PATH", build::client_programs()?.display());
            Ok(())
        }
        Command::Kubectl { arguments } => {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            become_process(&mut kubectl(name)?.command(&arguments))
        }
        Command::LoadImage { archives } => archives.iter().try_for_each(|archive| {
            let path = archive.display().to_string();
            step(&format!("load {path}"), || kind(&["load", "image-archive", &path, "--name", &cluster]).map(drop))
        }),
        Command::KillNode { node } => engine(&["kill", &container(&cluster, &node)?]),
        Command::RestoreNode { node } => engine(&["start", &container(&cluster, &node)?]),
        Command::Partition { .. } | Command::Heal { .. } => {
            bail!(
                "CLUSTER=kind: a container that is connected again has another address: use the local cluster for partitions"
            )
        }
        Command::CsiSanity => csi_sanity(),
        Command::Selftest => bail!("CLUSTER=kind: the self test is one of the local cluster"),
    }
}

fn up(name: &str, cluster: &str) -> Result<()> {
    if kind(&["get", "clusters"])?.lines().any(|line| line == cluster) {
        println!("cluster {cluster} is there");
        return Ok(());
    }
    let workers: Vec<_> = NODES
        .iter()
        .map(|(_, zone)| serde_json::json!({"role": "worker", "labels": {"topology.kubernetes.io/zone": zone}}))
        .collect();
    let mut nodes = vec![serde_json::json!({"role": "control-plane"})];
    nodes.extend(workers);
    let config = serde_json::json!({"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": nodes});
    let file = folder(name)?.join("kind.yaml");
    write(&file, config.to_string())?;
    let (file, kubeconfig) = (file.display().to_string(), kubeconfig(name)?.display().to_string());
    step(&format!("create {cluster}"), || {
        kind(&["create", "cluster", "--name", cluster, "--config", &file, "--kubeconfig", &kubeconfig, "--wait", "3m"])
            .map(drop)
    })
}

fn kind(arguments: &[&str]) -> Result<String> {
    if !installed("kind") {
        bail!("CLUSTER=kind needs the program kind and a container engine: install them, or use the local cluster");
    }
    execute("kind", arguments)
}

fn engine(arguments: &[&str]) -> Result<()> {
    let engine = if installed("docker") { "docker" } else { "podman" };
    step(&format!("{engine} {}", arguments.join(" ")), || execute(engine, arguments).map(drop))
}

/// kind calls its workers `<cluster>-worker`, `-worker2`, `-worker3`.
fn container(cluster: &str, node: &str) -> Result<String> {
    let suffix = match node {
        "node-1" => "",
        "node-2" => "2",
        "node-3" => "3",
        _ => bail!("there is no node {node:?}: use node-1, node-2 or node-3"),
    };
    Ok(format!("{cluster}-worker{suffix}"))
}

fn kubectl(name: &str) -> Result<Kubectl> {
    Ok(Kubectl::with(build::client_programs()?.join("kubectl"), kubeconfig(name)?))
}

fn folder(name: &str) -> Result<PathBuf> {
    Ok(cache()?.join("kind").join(name))
}

fn kubeconfig(name: &str) -> Result<PathBuf> {
    Ok(folder(name)?.join("kubeconfig"))
}
