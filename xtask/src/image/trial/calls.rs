//! One call of a verb: its files, its environment, its deadline, and what it may not do.
//!
//! Invariant: when a call returns, no process of it lives.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use backlot_standard::result::{Exit, VerbResult};
use backlot_standard::verb::Verb;
use backlot_standard::{environment, layout};
use nix::sys::signal::Signal;

use super::processes::Space;
use super::request::{self, Built};
use super::secrets::Watch;
use super::state::Trial;
use super::{members, outputs};

/// Time between two looks at a running verb's processes.
const LOOK: Duration = Duration::from_millis(4);
/// Longest time that the container engine may take for a call, beside the verb's own.
const ENGINE_TIME: Duration = Duration::from_mins(1);
/// Most bytes of a result.
const RESULT_BYTES: u64 = 1 << 20;
/// Exit code of a failure whose effect is unknown.
const UNKNOWN: i32 = 31;

/// What to call and how.
#[derive(Clone, Default)]
pub struct Order {
    /// `KEY=VALUE` changes of the request.
    pub words: Vec<String>,
    /// Kill the verb after this time.
    pub kill_after: Option<Duration>,
    /// File for the verb's standard input.
    pub input: Option<PathBuf>,
    /// File for the verb's standard output.
    pub output: Option<PathBuf>,
}

/// How a call ended.
pub struct Outcome {
    /// The exit code that the agent would see.
    pub code: i32,
    /// The result; empty when there is none that can be read.
    pub result: VerbResult,
    /// What the verb did against the standard.
    pub faults: Vec<String>,
    /// The call's scratch folder, for files named by `render`.
    pub scratch: PathBuf,
    /// The verb's logs.
    pub log: PathBuf,
    folder: PathBuf,
}

impl Outcome {
    /// Removes the call's files, as the agent does.
    pub fn clean(&self) -> Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }
}

/// Runs `verb` on `member`.
pub fn call(trial: &Trial, member: &str, verb: Verb, order: &Order) -> Result<Outcome> {
    if !trial.verbs.contains(&verb) {
        bail!("the image has no verb {} (an absent verb is unsupported)", verb.name());
    }
    let built = request::build(trial, member, verb, &order.words)?;
    let id = format!("{}-{}-{}", verb.name(), std::process::id(), moment());
    let folder = trial.member(member, "run").join("calls").join(&id);
    let inside = format!("{}/calls/{id}", layout::RUN_DIR);
    write_files(trial, &built, &folder, &inside)?;
    let log = trial.member(member, "log").join(format!("{}-{id}.log", moment()));

    let space = Space::of(trial, member)?;
    let mut watch = Watch::of(trial);
    let mut child = spawn(trial, member, verb, &folder, &log, order)?;
    let deadline = Duration::from_secs(built.parsed.deadline_seconds.into());
    let ended = wait(&mut child, &space, &inside, order.kill_after.unwrap_or(deadline), &mut watch)?;

    let mut faults = Vec::new();
    let mut code = match ended {
        Some(code) if Exit::from_code(Some(code)) == Exit::Unknown && code != UNKNOWN => {
            faults.push(format!("ended with {code}, which the standard does not know"));
            UNKNOWN
        }
        Some(code) => code,
        None => {
            if order.kill_after.is_none() {
                faults.push(format!("did not end within {} s", deadline.as_secs()));
            }
            UNKNOWN
        }
    };
    for left in space.processes().iter().filter(|process| process.descends_from(&inside)) {
        let arguments = String::from_utf8_lossy(&left.arguments).replace('\0', " ");
        if ended.is_some() {
            faults.push(format!("left the process {} behind: {arguments}", left.inner));
        }
        left.signal(Signal::SIGKILL);
    }
    let path = folder.join("result.json");
    watch.text(&format!("the result of {}", verb.name()), &fs::read(&path).unwrap_or_default());
    watch.note(trial)?;
    let result = read_result(&path, verb, code).unwrap_or_else(|error| {
        faults.push(format!("{error:#}"));
        code = UNKNOWN;
        VerbResult::default()
    });
    fs::copy(&path, log.with_extension("json")).ok();
    Ok(Outcome { code, result, faults, scratch: folder.join("scratch"), log, folder })
}

fn write_files(trial: &Trial, built: &Built, folder: &Path, inside: &str) -> Result<()> {
    fs::create_dir_all(folder.join("scratch"))?;
    let mut environment: String = [
        ("DB_REQUEST", format!("{inside}/request.json")),
        ("DB_RESULT", format!("{inside}/result.json")),
        ("DB_SCRATCH", format!("{inside}/scratch")),
        ("DB_MEMBERS", format!("{inside}/members")),
        ("DB_CONFIG", format!("{inside}/config")),
        ("DB_SECRETS", layout::CREDENTIALS_DIR.to_owned()),
    ]
    .map(|(variable, value)| format!("{variable}={value}\n"))
    .concat();
    for (variable, value) in environment::scalars(&built.parsed) {
        environment.extend([&variable, "=", &value, "\n"]);
    }
    fs::write(folder.join("request.json"), serde_json::to_vec_pretty(&built.sent)?)?;
    fs::write(folder.join("members"), environment::members(&built.parsed))?;
    fs::write(folder.join("config"), environment::config(&built.parsed))?;
    fs::write(folder.join("environment"), environment)?;
    for path in [folder.parent().unwrap_or(folder), folder, &folder.join("scratch")] {
        chown(path, Some(trial.uid), Some(trial.uid))?;
    }
    fs::set_permissions(folder.join("scratch"), fs::Permissions::from_mode(0o700))
        .context("cannot set the mode of a folder")
}

fn spawn(trial: &Trial, member: &str, verb: Verb, folder: &Path, log: &Path, order: &Order) -> Result<Child> {
    let template = members::exec(trial, member);
    let mut arguments: Vec<OsString> = template.get_args().map(OsString::from).collect();
    // The environment is an option of the engine's command, and has to stand before the container's name.
    let at = arguments.len() - 1;
    arguments.splice(at..at, [OsString::from("--env-file"), folder.join("environment").into()]);
    let log = File::create(log)?;
    let output = match &order.output {
        Some(path) => File::create(path).with_context(|| format!("cannot create {}", path.display()))?,
        None => log.try_clone()?,
    };
    let input = match &order.input {
        Some(path) => File::open(path).with_context(|| format!("cannot open {}", path.display()))?.into(),
        None => Stdio::null(),
    };
    let mut command = std::process::Command::new(template.get_program());
    command.args(arguments).arg(format!("{}/{}", layout::VERBS_DIR, verb.name()));
    command.stdin(input).stdout(output).stderr(log).spawn().context("cannot start the container engine")
}

/// Waits for the end of a verb; `None` when it had to be killed. Time counts from when the verb itself is seen, because the
/// container engine takes its own to start it.
fn wait(child: &mut Child, space: &Space, marker: &str, limit: Duration, watch: &mut Watch) -> Result<Option<i32>> {
    let called = Instant::now();
    let mut started = None;
    let mut killed = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code().filter(|_| !killed));
        }
        let processes = space.processes();
        watch.processes(&processes);
        let own = || processes.iter().filter(|process| process.descends_from(marker));
        if started.is_none() && own().next().is_some() {
            started = Some(Instant::now());
        }
        if started.is_some_and(|started| started.elapsed() > limit) {
            // None left: the verb has ended, and only the container engine has not said so yet.
            for process in own() {
                killed = true;
                process.signal(Signal::SIGKILL);
            }
        }
        if called.elapsed() > limit + ENGINE_TIME {
            bail!("the processes of a verb cannot be killed");
        }
        std::thread::sleep(LOOK);
    }
}

fn read_result(path: &Path, verb: Verb, code: i32) -> Result<VerbResult> {
    let length = fs::metadata(path).map_or(0, |metadata| metadata.len());
    if length > RESULT_BYTES {
        bail!("the result has {length} bytes, more than {RESULT_BYTES}");
    }
    let text = fs::read_to_string(path).unwrap_or_default();
    let result: VerbResult = if text.trim().is_empty() {
        VerbResult::default()
    } else {
        serde_json::from_str(&text).with_context(|| format!("the result is not the standard's: {text}"))?
    };
    if Exit::from_code(Some(code)) == Exit::Done {
        outputs::check(verb, result.output.as_ref())?;
    }
    Ok(result)
}

/// Microseconds since 1970, so that logs sort by time.
fn moment() -> u128 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_micros())
}
