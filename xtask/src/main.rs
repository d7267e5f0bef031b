//! Developer commands of Backlot: the local cluster, images, generated files, benchmarks, the demo.

mod bench;
mod cluster;
mod demo;
mod e2e;
mod image;
mod install;

use std::process::ExitCode;

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
    /// Install the operator and the database classes on a local cluster.
    Install(install::Arguments),
    /// Print numbers, measured on a local cluster.
    Bench(bench::Arguments),
    /// Test the promises on a real Kubernetes with real engines.
    E2e(e2e::Arguments),
    /// One operator, several databases: create, use, change, break, verify.
    Demo(install::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Cluster(arguments) => cluster::run(arguments),
        Command::Image(command) => image::run(command),
        Command::Install(arguments) => install::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::E2e(arguments) => e2e::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn every_commands_arguments_fit_together() {
        super::Arguments::command().debug_assert();
    }
}
