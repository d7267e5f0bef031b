//! `backlot-agent`: the first process of every database member.

use std::process::ExitCode;

fn main() -> ExitCode {
    backlot_agent::run(std::env::args_os().skip(1))
}
