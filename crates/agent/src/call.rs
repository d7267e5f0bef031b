//! `call`: one verb by hand, exactly as the pilot would call it now. For a person at a member, and for the conformance kit.
//!
//! The request is made of the view that the member holds on its volume, and of the session on tmpfs. Invariants: nothing of
//! the agent's state is written; a call beside the pilot's own is what the standard's rule "one at a time" is for (§7.3), so
//! verbs that change something are called only with `--changing`.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use backlot_standard::manifest::Manifest;
use backlot_standard::request::{Reason, Request};
use backlot_standard::verb::{Lane, Verb};
use serde_json::{Map, Value, json};

use crate::args::CallArguments;
use crate::paths::Paths;
use crate::pilot::request::{self, Call, Situation};
use crate::pilot::verb_run::CallDirectory;
use crate::pilot::{MemberName, base_env, engine, identity, image, view};

/// Runs the call and prints `{exit, result, milliseconds}` on one line; exit code 0 whatever the verb answered, 2 when it
/// could not be called.
pub fn run(arguments: &CallArguments) -> ExitCode {
    match call(arguments) {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("backlot-agent: {error}");
            ExitCode::from(2)
        }
    }
}

fn call(arguments: &CallArguments) -> Result<Value, String> {
    let paths = &arguments.paths;
    let verb = Verb::from_name(&arguments.verb).ok_or_else(|| format!("`{}` is no verb", arguments.verb))?;
    let image = image::load(paths)?;
    if !image.has(verb) {
        return Err(format!("the image has no verb {}: it is unsupported", verb.name()));
    }
    let rule = image.manifest.rule(verb);
    if rule.lane != Lane::Observe && verb != Verb::Render && !arguments.changing {
        return Err(format!(
            "{} changes something: add --changing, and mind that the agent may call it too",
            verb.name()
        ));
    }
    let seconds = rule.timeout_seconds;
    let request = make_request(paths, verb, seconds, &image.manifest, arguments)?;
    let parsed: Request = serde_json::from_value(request.clone()).map_err(|error| format!("the request: {error}"))?;

    let name = format!("{}-by-hand-{}", verb.name(), std::process::id());
    let directory = CallDirectory::new(paths, &name).map_err(|error| error.to_string())?;
    let mut env = base_env(paths);
    env.extend(directory.fill(paths, &request, &parsed).map_err(|error| error.to_string())?);
    let deadline = Duration::from_secs(seconds.into());
    let mut command = Command::new("/proc/self/exe");
    command.args(directory.arguments(paths, verb, rule.lane, deadline)).env_clear().envs(env);
    let started = Instant::now();
    wait(command, arguments.kill_after).map_err(|error| error.to_string())?;
    let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let outcome = directory.conclude(verb, seconds);
    Ok(json!({"exit": outcome.exit, "result": outcome.result, "milliseconds": milliseconds}))
}

/// Closing the process's standard input ends the call and everything that it started.
fn wait(mut command: Command, kill_after: Option<Duration>) -> std::io::Result<()> {
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let control = child.stdin.take();
    if let Some(time) = kill_after {
        std::thread::sleep(time);
    } else {
        child.wait()?;
    }
    drop(control);
    child.wait().map(drop)
}

fn make_request(
    paths: &Paths,
    verb: Verb,
    deadline_seconds: u32,
    manifest: &Manifest,
    arguments: &CallArguments,
) -> Result<Value, String> {
    let member = MemberName::from_env();
    let (directory, _) = identity::state_directory(paths, manifest);
    let held = view::load(&directory, &member.cluster_uid).ok_or("this member holds no cluster view yet")?;
    let session = engine::read_session(&paths.session());
    let situation = Situation {
        view: &held.view,
        manifest,
        member: &member.id,
        address: &member.address,
        applied: session.as_ref().map(|session| &session.applied),
    };
    let call = Call {
        verb,
        operation_id: format!("by-hand/{}", verb.name()),
        attempt: 1,
        reason: Reason::Restart,
        subject: None,
        via: None,
        params: Map::new(),
        founding: false,
    };
    let request =
        request::build(&call, deadline_seconds, &situation).ok_or("the cluster view does not know this member")?;
    let mut request = serde_json::to_value(&request).map_err(|error| error.to_string())?;
    for (path, value) in &arguments.set {
        set(&mut request, path, value.clone());
    }
    Ok(request)
}

/// Sets the field at a dotted path; objects on the way are made.
fn set(target: &mut Value, path: &str, value: Value) {
    let mut place = target;
    for key in path.split('.') {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[key];
    }
    *place = value;
}
