//! `backlot`: the command line. It parses what was typed, resolves what is meant, and runs it.

mod conform;
mod manifest;
mod new_type;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// One Kubernetes operator for every database.
#[derive(Parser)]
#[command(name = "backlot", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check an image's manifest against the Database Image Standard; no cluster and no container engine is needed.
    ///
    /// Exit code 0: it keeps the standard. 1: it breaks it, each problem on a line. 2: it cannot be read.
    Manifest {
        /// Path of the manifest, e.g. images/acme/db/manifest.yaml.
        file: PathBuf,
    },
    /// Make the folder of a new database type; it passes level 0 of `backlot conform` as it is.
    NewType {
        /// Name of the engine: a-z, 0-9 and -.
        name: String,
        /// Folder to make it in.
        #[arg(long = "in", default_value = ".")]
        parent: PathBuf,
    },
    /// Run a database image through the life that the standard promises, in containers of this machine. No Kubernetes is needed.
    ///
    /// Exit code 0: every claim that was tested holds. 1: a check failed. 2: the kit could not work.
    Conform(conform::Arguments),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Manifest { file } => match manifest::check(&file) {
            Ok(report) => {
                println!("{}", report.text);
                ExitCode::from(u8::from(!report.is_good))
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::from(2)
            }
        },
        Command::NewType { name, parent } => match new_type::make(&name, &parent) {
            Ok(next) => {
                println!("{next}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        },
        Command::Conform(arguments) => conform::run(&arguments),
    }
}
