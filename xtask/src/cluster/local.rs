//! The commands on a cluster of our own.

use anyhow::Result;

use super::control_plane::Options;
use super::kubectl::Kubectl;
use super::layout::Layout;
use super::slots::running;
use super::{Command, become_process, csi_sanity, down, faults, images, progress, selftest, status, up};

/// Runs a command.
pub fn run(layout: &Layout, command: Command) -> Result<()> {
    match command {
        Command::Up { fsync } => up::up(layout, Options { fsync }),
        Command::Down => down::down(layout),
        Command::Status => status::status(layout),
        Command::Env => {
            println!("export KUBECONFIG={}", layout.kubeconfig().display());
            println!("export PATH={}:$PATH", layout.programs().display());
            Ok(())
        }
        Command::Kubectl { arguments } => {
            running(layout)?;
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            become_process(&mut Kubectl::new(layout).command(&arguments))
        }
        Command::LoadImage { archives } => {
            running(layout)?;
            archives.iter().try_for_each(|archive| {
                progress::step(&format!("load {}", archive.display()), || images::load(layout, archive))
            })
        }
        Command::KillNode { node } => faults::kill_node(&layout.node(&node)?),
        Command::RestoreNode { node } => faults::restore_node(&layout.node(&node)?, Options { fsync: false }),
        Command::Partition { node } => faults::partition(&layout.node(&node)?),
        Command::Heal { node } => faults::heal(&layout.node(&node)?),
        Command::CsiSanity => csi_sanity(),
        Command::Selftest => selftest::run(),
    }
}
