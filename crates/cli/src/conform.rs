//! `backlot conform`: arguments, Ctrl-C and exit code of the kit.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use backlot_conform::Options;
use clap::Args;
use nix::sys::signal::{SigSet, Signal};

/// Arguments of `backlot conform`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The image; pulled when the container engine does not have it.
    #[arg(required_unless_present = "list")]
    image: Option<String>,
    /// Print the names of the checks that need a running engine, and end.
    #[arg(long)]
    list: bool,
    /// Container engine: podman, docker or nerdctl, or a path. The first one that answers when absent.
    #[arg(long)]
    engine: Option<PathBuf>,
    /// The agent's static binary; the file backlot-agent beside this program when absent.
    #[arg(long, env = "BACKLOT_AGENT")]
    agent: Option<PathBuf>,
    /// Highest level: 0 static, 1 one member, 2 three members, 3 backup, 4 upgrades, 5 links.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=5))]
    level: u8,
    /// Run these checks only, e.g. --only crash-loses-nothing,stops-in-its-time.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Leave containers and volumes to look at.
    #[arg(long)]
    keep: bool,
    /// Folder for results.json, junit.xml and logs.
    #[arg(long, default_value = "conform-results")]
    results: PathBuf,
    /// Seconds to wait for anything that the image must do.
    #[arg(long, default_value_t = 600)]
    patience: u64,
}

/// Runs the kit.
pub fn run(arguments: &Arguments) -> ExitCode {
    let Some(image) = arguments.image.clone().filter(|_| !arguments.list) else {
        backlot_conform::names().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    };
    clean_up_after_interrupts();
    let beside = || std::env::current_exe().map(|own| own.with_file_name("backlot-agent"));
    let agent = match arguments.agent.clone().map_or_else(beside, Ok) {
        Ok(agent) => agent,
        Err(error) => return failed(&error),
    };
    let results = match std::path::absolute(&arguments.results) {
        Ok(results) => results,
        Err(error) => return failed(&error),
    };
    let options = Options {
        image,
        engine: arguments.engine.clone(),
        agent,
        level: arguments.level,
        only: arguments.only.clone(),
        keep: arguments.keep,
        results,
        patience: Duration::from_secs(arguments.patience),
    };
    match backlot_conform::run(&options) {
        Ok(found) => {
            println!("{}\nresults: {}", found.summary(), options.results.display());
            ExitCode::from(u8::from(!found.is_good()))
        }
        Err(error) => failed(&format!("{error:#}")),
    }
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(2)
}

/// The first signal ends the run, which removes what it made; the second one ends the program.
fn clean_up_after_interrupts() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // Inherited by all threads that follow, so that one alone waits for them.
    if signals.thread_block().is_err() {
        return;
    }
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            eprintln!("interrupted: removing containers and networks; once more leaves them");
            backlot_conform::interrupt();
        }
        if signals.wait().is_ok() {
            std::process::exit(130);
        }
    });
}
