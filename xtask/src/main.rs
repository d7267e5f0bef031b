//! Developer commands of Backlot: the local cluster, images, generated files, benchmarks, the demo.

mod cluster;
mod image;

use clap::{Parser, Subcommand};

/// Developer commands of Backlot.
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The cluster for development and tests.
    Cluster(cluster::Arguments),
    /// Container images: build, list, load into a cluster, test.
    #[command(subcommand)]
    Image(image::Command),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Cluster(arguments) => cluster::run(arguments),
        Command::Image(command) => image::run(command),
    }
}
