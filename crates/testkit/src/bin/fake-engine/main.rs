//! A database for tests: an engine of a few hundred kilobytes that starts in milliseconds, keeps real files, replicates to a
//! majority, elects its leader or has it named, and misbehaves on demand. The same program is every verb of its image: the
//! name by which it is called decides.
//!
//! Invariant: an acknowledged write is flushed on the leader and, where the manifest says so, on a majority of the members.

mod breaks;
mod client;
mod engine;
mod files;
mod misbehave;
mod peers;
mod records;
mod verbs;
mod workload;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use backlot_standard::verb::Verb;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let called = arguments.next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    if let Some(verb) = Verb::from_name(&name) {
        return verbs::run(verb, &root(Path::new(&called)));
    }
    let arguments: Vec<String> = arguments.collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if name == "workload" {
        return workload::run(&arguments);
    }
    match arguments.as_slice() {
        ["linger"] => {
            misbehave::linger();
            ExitCode::SUCCESS
        }
        ["serve", config] => engine::serve(Path::new(config)),
        ["ask", address, command @ ..] => ask(address, &command.join(" ")),
        _ => {
            eprintln!(
                "usage: {name} serve CONFIG | {name} ask ADDRESS:PORT COMMAND… (the password on standard input),\n\
                 or call it `workload` or by the name of a verb, as the agent does"
            );
            ExitCode::from(2)
        }
    }
}

/// The directory that is `/` for the image: three levels above `/db/verbs/<verb>`, so that tests can put everything elsewhere.
fn root(verb: &Path) -> PathBuf {
    verb.ancestors().nth(3).map_or_else(|| PathBuf::from("/"), Path::to_path_buf)
}

/// Sends one command and prints the answer: a client for tests and people.
fn ask(address: &str, command: &str) -> ExitCode {
    match password().and_then(|secret| client::ask(address, &secret, command)) {
        Ok(answer) => {
            println!("{answer}");
            if answer.starts_with("ERR") { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("{address}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Never an argument: those are visible to everybody on the machine.
fn password() -> io::Result<String> {
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}
