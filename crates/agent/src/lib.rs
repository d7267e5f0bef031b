//! The agent: the first process of every database member.
//!
//! One binary, several processes. The *keeper* (PID 1) starts and reaps, the *pilot* does everything that can fail, and
//! a small process per verb call makes sure that nothing of the call outlives it. Invariant: whatever happens to the
//! pilot, the engine's process is touched by nobody but the keeper.

pub mod args;
pub mod call;
pub mod hex;
pub mod install;
pub mod keeper;
pub mod launch;
pub mod log;
pub mod paths;
pub mod pilot;
pub mod process;
pub mod protocol;
pub mod verb_process;

use std::ffi::OsString;
use std::process::ExitCode;

use args::Command;

/// Version of this build, as `status.agent.version` shows it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Parses the arguments and runs the process they ask for.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match args::parse(arguments) {
        Ok(Command::Keeper(settings)) => keeper::run(&settings),
        Ok(Command::Pilot(settings)) => pilot::run(settings),
        Ok(Command::Inspect(settings)) => pilot::inspect::run(&settings),
        Ok(Command::Install(directory)) => install::run(&directory),
        Ok(Command::RunVerb(call)) => verb_process::run(&call),
        Ok(Command::Call(arguments)) => call::run(&arguments),
        Ok(Command::Launch(argv)) => launch::run(&argv),
        Ok(Command::Version) => {
            println!("backlot-agent {VERSION} standard {}", backlot_standard::STANDARD);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("backlot-agent: {error}\n{}", args::USAGE);
            ExitCode::from(2)
        }
    }
}
