//! The command `db` of test scripts: one process a call, described in `images/README.md`.
//!
//! Invariant: a command that does not hold makes the script fail and says on which member, with which answer and logs.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use backlot_standard::verb::Verb;
use clap::{Args, Subcommand};

use super::calls::{self, Order, Outcome};
use super::state::Trial;
use super::{life, members, request, secrets};
use crate::image::process;

/// Time between two tries of `until`.
const RETRY: Duration = Duration::from_millis(200);

/// What a test script can do.
#[derive(Subcommand)]
pub enum Command {
    /// Make a member: container, empty volumes, entry in `members`.
    Member { member: String, words: Vec<String> },
    /// Change all later requests.
    Set { words: Vec<String> },
    /// Run a verb; print its result, exit with its code.
    Verb {
        #[command(flatten)]
        call: Call,
        /// Kill it after so many milliseconds.
        #[arg(long)]
        kill_after: Option<u64>,
    },
    /// Run a verb and fail unless it exits with CODE and every jq expression holds.
    Expect {
        code: i32,
        #[command(flatten)]
        call: Call,
        #[arg(last = true)]
        checks: Vec<String>,
    },
    /// As `expect`, repeated until it holds.
    Until {
        seconds: u64,
        code: i32,
        #[command(flatten)]
        call: Call,
        #[arg(last = true)]
        checks: Vec<String>,
    },
    /// Render, start the engine, wait until it is up.
    Start { member: String, words: Vec<String> },
    /// Stop the engine gracefully.
    Stop {
        member: String,
        #[arg(default_value = "restart")]
        reason: String,
    },
    /// Kill the engine and all its processes.
    Kill { member: String },
    /// Exit 0 if the engine's process runs.
    Alive { member: String },
    /// Make the member's container anew, with the same volumes.
    Move { member: String },
    /// Empty the volumes.
    Wipe { member: String },
    /// Take the member off the network.
    Disconnect { member: String },
    /// Give the member its network back.
    Connect { member: String },
    /// Run a command in the member.
    Exec {
        member: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Make a new value of a secret, or remove it.
    Secret {
        name: String,
        #[arg(default_value = "current")]
        version: String,
        #[arg(long)]
        remove: bool,
        #[arg(long)]
        value: Option<String>,
    },
    /// Print the path of a secret's file.
    SecretPath {
        name: String,
        #[arg(default_value = "current")]
        version: String,
    },
    /// Print the engine's output.
    Log { member: String },
    /// Print a line of the report.
    Say { words: Vec<String> },
}

/// A call of a verb.
#[derive(Args)]
pub struct Call {
    member: String,
    #[arg(value_parser = parse_verb)]
    verb: Verb,
    words: Vec<String>,
    /// File for standard input.
    #[arg(long)]
    input: Option<PathBuf>,
    /// File for standard output.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Runs one command of a test script.
pub fn dispatch(command: Command) -> Result<()> {
    let mut trial = Trial::current()?;
    match command {
        Command::Member { member, words } => members::create(&mut trial, &member, &words),
        Command::Set { words } => trial.change(|base| words.iter().try_for_each(|word| request::set(base, word))),
        Command::Verb { call, kill_after } => verb(&trial, &call, kill_after),
        Command::Expect { code, call, checks } => {
            expect(&trial, code, &call, &checks)?.map_or(Ok(()), |problem| bail!("{problem}"))
        }
        Command::Until { seconds, code, call, checks } => until(&trial, seconds, code, call, &checks),
        Command::Start { member, words } => life::start(&trial, &member, &words),
        Command::Stop { member, reason } => life::stop(&trial, &member, &reason),
        Command::Kill { member } => life::kill(&trial, &member),
        Command::Alive { member } => match life::alive(&trial, &member)? {
            Some(_) => Ok(()),
            None => bail!("the engine of {member} does not run"),
        },
        Command::Move { member } => members::replace(&mut trial, &member),
        Command::Wipe { member } => match life::alive(&trial, &member)? {
            Some(_) => bail!("the engine of {member} runs: stop or kill it first"),
            None => members::wipe(&trial, &member),
        },
        Command::Disconnect { member } => members::connect(&mut trial, &member, false),
        Command::Connect { member } => members::connect(&mut trial, &member, true),
        Command::Exec { member, command } => {
            let status = members::exec(&trial, &member).args(command).status().context("cannot start the engine")?;
            std::process::exit(status.code().unwrap_or(1))
        }
        Command::Secret { name, version, remove: true, .. } => secrets::remove(&trial, &name, &version),
        Command::Secret { name, version, value, .. } => secrets::generate(&trial, &name, &version, value.as_deref()),
        Command::SecretPath { name, version } => {
            println!("{}", secrets::path(&trial, &name, &version)?.display());
            Ok(())
        }
        Command::Log { member } => {
            print!("{}", fs::read_to_string(life::log(&trial, &member)).unwrap_or_default());
            Ok(())
        }
        Command::Say { words } => {
            println!("  - {}", words.join(" "));
            Ok(())
        }
    }
}

fn verb(trial: &Trial, call: &Call, kill_after: Option<u64>) -> Result<()> {
    let mut order = order(call);
    order.kill_after = kill_after.map(Duration::from_millis);
    let outcome = run(trial, call, &order)?;
    println!("{}", serde_json::to_string(&outcome.result)?);
    for fault in &outcome.faults {
        eprintln!("{} on {}: {fault}", call.verb.name(), call.member);
    }
    std::process::exit(outcome.code)
}

fn until(trial: &Trial, seconds: u64, code: i32, mut call: Call, checks: &[String]) -> Result<()> {
    let limit = Instant::now() + Duration::from_secs(seconds);
    if !call.words.iter().any(|word| word.starts_with("operationId=")) {
        call.words.push(format!("operationId=until-{}", std::process::id()));
    }
    while let Some(problem) = expect(trial, code, &call, checks)? {
        if Instant::now() > limit {
            bail!("after {seconds} s still: {problem}");
        }
        std::thread::sleep(RETRY);
    }
    Ok(())
}

/// Runs a verb; answers what does not hold.
fn expect(trial: &Trial, code: i32, call: &Call, checks: &[String]) -> Result<Option<String>> {
    let outcome = run(trial, call, &order(call))?;
    let result = serde_json::to_string(&outcome.result)?;
    let mut problems = outcome.faults.clone();
    if outcome.code != code {
        problems.push(format!("exit code {} instead of {code}", outcome.code));
    }
    for check in checks {
        if !holds(check, &result)? {
            problems.push(format!("not true: {check}"));
        }
    }
    if problems.is_empty() {
        return Ok(None);
    }
    let log = fs::read_to_string(&outcome.log).unwrap_or_default();
    Ok(Some(format!("{} on {}: {}\nresult: {result}\nlog: {log}", call.verb.name(), call.member, problems.join("; "))))
}

fn run(trial: &Trial, call: &Call, order: &Order) -> Result<Outcome> {
    let started = Instant::now();
    let outcome = calls::call(trial, &call.member, call.verb, order)?;
    outcome.clean()?;
    if trial.verbose {
        let result = serde_json::to_string(&outcome.result)?;
        let milliseconds = started.elapsed().as_millis();
        eprintln!("    {} on {}: {} in {milliseconds} ms {result}", call.verb.name(), call.member, outcome.code);
    }
    Ok(outcome)
}

fn order(call: &Call) -> Order {
    Order { words: call.words.clone(), kill_after: None, input: call.input.clone(), output: call.output.clone() }
}

/// Whether a jq expression is true of the result.
fn holds(check: &str, result: &str) -> Result<bool> {
    let mut jq = Process::new("jq");
    let mut jq = jq.args(["--exit-status", check]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    jq.stdin.take().context("jq reads")?.write_all(result.as_bytes())?;
    match jq.wait()?.code() {
        Some(0) => Ok(true),
        Some(1 | 4 | 5) => Ok(false),
        code => bail!("jq cannot evaluate {check:?} (exit code {code:?})"),
    }
}

fn parse_verb(name: &str) -> Result<Verb, String> {
    let known = || Verb::ALL.iter().map(|verb| verb.name()).collect::<Vec<_>>().join(", ");
    Verb::from_name(name).ok_or_else(|| format!("the standard has no such verb; it has {}", known()))
}

/// Installs what the scripts need on this machine.
pub fn install_needs() -> Result<()> {
    if process::exists("jq") { Ok(()) } else { crate::image::packages::ensure(&[("jq", "jq")]) }
}
