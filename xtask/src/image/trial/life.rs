//! The engine's life in a member, as the agent leads it: render, start, stop, crash.
//!
//! Invariant: the engine is started only from what `render` answered.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use backlot_standard::layout;
use backlot_standard::manifest;
use backlot_standard::result::{FileOwner, HealthOutput, ProcessHealth, RenderOutput, RenderedFile};
use backlot_standard::verb::Verb;
use nix::sys::signal::Signal;

use super::calls::{Order, Outcome, call};
use super::members;
use super::processes::{Process, Space};
use super::secrets;
use super::state::Trial;

/// Time between two looks at an engine.
const LOOK: Duration = Duration::from_millis(100);
/// Runs the engine as a process whose number inside the container is known.
const STARTER: &str = "echo $$ >/run/db/.engine; exec \"$@\"";

/// Renders, starts, waits until `health` says up, and calls `post-start`.
pub fn start(trial: &Trial, member: &str, words: &[String]) -> Result<()> {
    if alive(trial, member)?.is_some() {
        bail!("the engine of {member} runs");
    }
    let order = Order { words: words.to_vec(), ..Order::default() };
    let rendered = done(trial, member, Verb::Render, &order)?;
    let output: RenderOutput = serde_json::from_value(rendered.result.output.clone().unwrap_or_default())?;
    for file in &output.files {
        write_file(trial, member, file, &rendered.scratch).with_context(|| format!("cannot write {}", file.path))?;
    }
    rendered.clean()?;
    spawn(trial, member, &output)?;
    wait_until_up(trial, member, &order)?;
    if trial.verbs.contains(&Verb::PostStart) {
        done(trial, member, Verb::PostStart, &order)?.clean()?;
    }
    Ok(())
}

/// Calls `pre-stop`, sends the manifest's signals, and fails if the engine does not end by them.
pub fn stop(trial: &Trial, member: &str, reason: &str) -> Result<()> {
    let engine = alive(trial, member)?.with_context(|| format!("the engine of {member} does not run"))?;
    if trial.verbs.contains(&Verb::PreStop) {
        let order = Order { words: vec![format!("reason={reason}")], ..Order::default() };
        done(trial, member, Verb::PreStop, &order)?.clean()?;
    }
    for step in &trial.manifest.stop.sequence {
        engine.signal(signal(step.signal));
        let limit = Instant::now() + Duration::from_secs(step.seconds.into());
        while alive(trial, member)?.is_some() && Instant::now() < limit {
            std::thread::sleep(LOOK);
        }
    }
    if alive(trial, member)?.is_some() {
        kill(trial, member)?;
        bail!("the engine of {member} did not end by {:?}", trial.manifest.stop.sequence);
    }
    let code = exit_code(trial, member)?;
    let by_signal = trial.manifest.stop.sequence.iter().any(|step| code == 128 + signal(step.signal) as i32);
    if code != 0 && !by_signal && !trial.manifest.stop.ok_exit_codes.contains(&code) {
        bail!("the engine of {member} ended with {code}; the manifest's stop.okExitCodes do not allow it");
    }
    Ok(())
}

/// Kills every process of the member but the container's first, as the keeper fences.
pub fn kill(trial: &Trial, member: &str) -> Result<()> {
    let space = Space::of(trial, member)?;
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        let processes: Vec<Process> = space.processes().into_iter().filter(|process| !is_sleep(process)).collect();
        if processes.is_empty() {
            return Ok(());
        }
        if Instant::now() > limit {
            bail!("the processes of {member} cannot be killed");
        }
        for process in &processes {
            process.signal(Signal::SIGKILL);
        }
        std::thread::sleep(LOOK);
    }
}

/// The engine's first process, if it lives.
pub fn alive(trial: &Trial, member: &str) -> Result<Option<Process>> {
    let Ok(number) = fs::read_to_string(trial.member(member, "run").join(".engine")) else { return Ok(None) };
    let number: i32 = number.trim().parse().context("the engine's process number")?;
    if trial.member(member, "exit").exists() {
        return Ok(None);
    }
    Ok(Space::of(trial, member)?.processes().into_iter().find(|process| process.inner == number))
}

/// The file with the engine's output.
pub fn log(trial: &Trial, member: &str) -> PathBuf {
    trial.member(member, "log").join("engine.log")
}

/// The sleep that the container's first process waits for.
fn is_sleep(process: &Process) -> bool {
    process.arguments == b"sleep\x003600\x00"
}

fn done(trial: &Trial, member: &str, verb: Verb, order: &Order) -> Result<Outcome> {
    let outcome = call(trial, member, verb, order)?;
    if outcome.code != 0 || !outcome.faults.is_empty() {
        let result = serde_json::to_string(&outcome.result)?;
        let log = fs::read_to_string(&outcome.log).unwrap_or_default();
        bail!("{} on {member} answered {} {result} {}\n{log}", verb.name(), outcome.code, outcome.faults.join("; "));
    }
    Ok(outcome)
}

fn spawn(trial: &Trial, member: &str, output: &RenderOutput) -> Result<()> {
    if output.argv.is_empty() {
        bail!("render answered no argv");
    }
    let exit = trial.member(member, "exit");
    fs::remove_file(&exit).ok();
    fs::remove_file(trial.member(member, "run").join(".engine")).ok();
    let template = members::exec(trial, member);
    let mut arguments: Vec<_> = template.get_args().map(std::ffi::OsString::from).collect();
    let container = arguments.pop().context("a container's name")?;
    for (variable, value) in &output.env {
        arguments.extend(["--env".into(), format!("{variable}={value}").into()]);
    }
    arguments.push(container);
    arguments.extend(["/bin/sh", "-c", STARTER, "sh"].map(Into::into));
    arguments.extend(output.argv.iter().map(Into::into));
    let log = fs::File::options().create(true).append(true).open(log(trial, member))?;
    // A shell of this machine outlives this call and keeps the engine's exit code.
    let mut keeper = Command::new("/bin/sh");
    keeper.args(["-c", "exit=$1; shift; \"$@\"; echo $? >\"$exit.part\"; mv \"$exit.part\" \"$exit\"", "sh"]);
    keeper.arg(&exit).arg(template.get_program()).args(arguments).process_group(0);
    keeper.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("cannot start the engine")?;
    Ok(())
}

fn wait_until_up(trial: &Trial, member: &str, order: &Order) -> Result<()> {
    let limit = Instant::now() + Duration::from_secs(trial.manifest.startup.max_seconds.into());
    let mut last = String::new();
    while Instant::now() < limit {
        if trial.member(member, "exit").exists() {
            let output = fs::read_to_string(log(trial, member)).unwrap_or_default();
            bail!("the engine of {member} ended with {}:\n{output}", exit_code(trial, member)?);
        }
        let outcome = call(trial, member, Verb::Health, order)?;
        outcome.clean()?;
        let output = outcome.result.output.clone().unwrap_or_default();
        last = format!("{} {output} {}", outcome.code, outcome.faults.join("; "));
        if outcome.code == 0 && serde_json::from_value::<HealthOutput>(output)?.process == ProcessHealth::Up {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    bail!("the engine of {member} is not up after {} s; health: {last}", trial.manifest.startup.max_seconds)
}

fn write_file(trial: &Trial, member: &str, file: &RenderedFile, scratch: &Path) -> Result<()> {
    let content = match (&file.content, &file.from) {
        (Some(content), None) => content.clone(),
        (None, Some(from)) => fs::read_to_string(scratch.join(from)).with_context(|| format!("cannot read {from}"))?,
        _ => bail!("a file needs either content or from"),
    };
    let below = |base: &str| file.path.strip_prefix(base).and_then(|rest| rest.strip_prefix('/'));
    let (path, content) = if let Some(rest) = below(layout::RUN_DIR) {
        (trial.member(member, "run").join(rest), secrets::fill(trial, &content)?)
    } else {
        let volume = trial.manifest.volumes.iter().find_map(|volume| Some((volume, below(&volume.path)?)));
        let (volume, rest) = volume.context("it lies neither below /run/db nor on a volume")?;
        if file.owner != FileOwner::Engine {
            bail!("a file on a volume needs owner: engine");
        }
        (trial.member(member, "volumes").join(&volume.name).join(rest), content)
    };
    let mode = u32::from_str_radix(&file.mode, 8).with_context(|| format!("mode {:?}", file.mode))?;
    make_folders(trial, path.parent().context("a file lies in a folder")?)?;
    fs::write(&path, content)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    chown(&path, Some(trial.uid), Some(trial.uid)).context("cannot give the file to the engine's user")
}

fn make_folders(trial: &Trial, folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    make_folders(trial, folder.parent().context("a folder lies in a folder")?)?;
    fs::create_dir(folder)?;
    chown(folder, Some(trial.uid), Some(trial.uid)).context("cannot give the folder to the engine's user")
}

fn exit_code(trial: &Trial, member: &str) -> Result<i32> {
    let limit = Instant::now() + Duration::from_secs(5);
    let path = trial.member(member, "exit");
    while !path.exists() && Instant::now() < limit {
        std::thread::sleep(LOOK);
    }
    let code = fs::read_to_string(&path).with_context(|| format!("the engine of {member} left no exit code"))?;
    code.trim().parse().context("the engine's exit code")
}

fn signal(signal: manifest::Signal) -> Signal {
    match signal {
        manifest::Signal::Term => Signal::SIGTERM,
        manifest::Signal::Int => Signal::SIGINT,
        manifest::Signal::Quit => Signal::SIGQUIT,
    }
}
