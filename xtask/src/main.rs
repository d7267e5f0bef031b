//! Developer commands of Backlot: the local cluster, images, generated files, benchmarks, the demo.

use clap::{Parser, Subcommand};

/// Developer commands of Backlot.
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {}
}
