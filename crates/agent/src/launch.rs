//! `launch`: the moment between the keeper and the engine. Gives the engine a session of its own, makes it the kernel's
//! first choice when memory runs out, and becomes it. Invariant: nothing of the agent is inherited but the three streams.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::signal::SigSet;

/// How far the engine's `oom_score_adj` is above the agent's.
const OOM_SCORE_STEP: i32 = 10;

/// Becomes the engine `argv`; returns only when that fails.
pub fn run(argv: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = argv.split_first() else { return ExitCode::from(2) };
    let _ = nix::unistd::setsid();
    let _ = SigSet::all().thread_unblock();
    raise_oom_score();
    let error = Command::new(program).args(arguments).current_dir("/").exec();
    eprintln!("cannot start {}: {error}", program.display());
    ExitCode::from(127)
}

fn raise_oom_score() {
    let file = "/proc/self/oom_score_adj";
    let own = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(own) = own {
        let _ = std::fs::write(file, (own + OOM_SCORE_STEP).min(1000).to_string());
    }
}
