//! The commands on somebody else's cluster, the one of the current kubeconfig: it is used, never changed as a cluster.

use anyhow::{Context as _, Result, bail};

use super::kubectl::Kubectl;
use super::{Command, become_process, build, csi_sanity};

/// Runs a command.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Up { .. } | Command::Status => check(&kubectl()?),
        Command::Down => {
            println!("CLUSTER=current: the cluster is not ours, so nothing of it is removed");
            Ok(())
        }
        Command::Env => {
            println!("export PATH={}:$PATH", build::client_programs()?.display());
            Ok(())
        }
        Command::Kubectl { arguments } => {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            become_process(&mut kubectl()?.command(&arguments))
        }
        Command::LoadImage { .. } => {
            bail!(
                "CLUSTER=current: images cannot be put into the nodes: push them to a registry that the cluster pulls from"
            )
        }
        Command::KillNode { node }
        | Command::RestoreNode { node }
        | Command::Partition { node }
        | Command::Heal { node } => {
            bail!("CLUSTER=current: node {node} is not ours to disturb: use the local cluster")
        }
        Command::CsiSanity => csi_sanity(),
        Command::Selftest => bail!("CLUSTER=current: the self test is one of the local cluster"),
    }
}

fn kubectl() -> Result<Kubectl> {
    Ok(Kubectl::current(build::client_programs()?.join("kubectl")))
}

/// Says what the cluster is, and fails where it lacks what databases need.
fn check(kubectl: &Kubectl) -> Result<()> {
    let context = kubectl
        .run(&["config", "current-context"])
        .context("CLUSTER=current needs a kubeconfig with a current context")?;
    print!("context {context}{}", kubectl.run(&["get", "nodes", "-o", "wide", "--request-timeout=10s"])?);
    let classes = kubectl.json(&["get", "storageclasses"])?;
    let default = classes["items"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|class| class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true");
    match default.and_then(|class| class["metadata"]["name"].as_str()) {
        Some(name) => println!("default StorageClass {name}"),
        None => {
            bail!("the cluster has no default StorageClass: mark one with storageclass.kubernetes.io/is-default-class")
        }
    }
    Ok(())
}
