//! The cluster for development and tests: `cargo xtask cluster …`.
//!
//! By default that is a three-node Kubernetes of our own on this machine. With `CLUSTER=current` the commands use the cluster of the
//! current kubeconfig, with `CLUSTER=kind` one that kind makes; what these cannot do is refused with the reason.

mod build;
mod certificates;
mod cgroup;
mod control_plane;
mod current;
mod down;
mod faults;
mod images;
mod kind;
mod kubectl;
mod layout;
mod local;
mod machine;
mod network;
mod node;
mod packages;
mod process;
mod progress;
mod run;
mod selftest;
mod slots;
mod status;
mod up;

use std::path::PathBuf;
use std::process::Command as Process;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use layout::Layout;

/// `cargo xtask cluster …`
#[derive(Args, Debug)]
pub struct Arguments {
    /// The cluster's name; clusters of different names share nothing.
    #[arg(long, env = "BACKLOT_CLUSTER", default_value = "dev", global = true)]
    name: String,
    /// Who provides the cluster.
    #[arg(long, env = "CLUSTER", default_value = "local", global = true)]
    provider: Provider,
    #[command(subcommand)]
    command: Command,
}

/// Who provides the cluster.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Provider {
    /// This program, on this machine.
    Local,
    /// Somebody else: it is the one of the current kubeconfig.
    Current,
    /// kind, with the container engine of this machine.
    Kind,
}

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
enum Command {
    /// Build and start the cluster, or start what of it does not run.
    Up {
        /// Let etcd wait for the disk on every write: slower, and survives a power cut.
        #[arg(long)]
        fsync: bool,
    },
    /// Remove the cluster and all its data.
    Down,
    /// Show what runs; fails when something does not.
    Status,
    /// Print the shell commands that set KUBECONFIG and PATH for the cluster.
    Env,
    /// Run kubectl on the cluster.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// What kubectl is given.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Import image archives (docker or OCI) into every node.
    LoadImage {
        /// The archives.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Kill all processes of a node and cut its network, as a power cut would.
    KillNode {
        /// The node.
        node: String,
    },
    /// Start a killed node again.
    RestoreNode {
        /// The node.
        node: String,
    },
    /// Cut a node off from the network; its processes go on.
    Partition {
        /// The node.
        node: String,
    },
    /// Connect a node again.
    Heal {
        /// The node.
        node: String,
    },
    /// Run the storage driver's tests, which include the CSI project's conformance suite.
    CsiSanity,
    /// Prove, on clusters of its own, that the local cluster keeps its promises.
    Selftest,
}

/// Runs a cluster command on the cluster that `CLUSTER` chooses.
pub fn run(arguments: Arguments) -> Result<()> {
    if let Command::CsiSanity = arguments.command {
        return csi_sanity();
    }
    match arguments.provider {
        Provider::Local => local::run(&Layout::new(&arguments.name)?, arguments.command),
        Provider::Current => current::run(arguments.command),
        Provider::Kind => kind::run(&arguments.name, arguments.command),
    }
}

/// Becomes another program, so that signals, terminal and exit code are its own.
fn become_process(command: &mut Process) -> Result<()> {
    use std::os::unix::process::CommandExt as _;
    Err(command.exec()).with_context(|| format!("start {}", command.get_program().display()))
}

fn csi_sanity() -> Result<()> {
    packages::ensure()?;
    let status = Process::new("go")
        .current_dir(layout::checkout().join("dev/csi"))
        .args(["test", "-count=1", "-v", "./..."])
        .status()
        .context("start go")?;
    if !status.success() {
        bail!("the storage driver failed its tests");
    }
    Ok(())
}
