//! One call of a verb: its files, its environment, its process, its answer.
//!
//! Invariants: a call has a deadline and leaves neither process nor file behind; no secret is in its arguments or
//! environment; an answer that cannot be understood is *unknown*, never *done*.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use backlot_standard::environment;
use backlot_standard::layout;
use backlot_standard::request::Request;
use backlot_standard::result::{Exit, VerbError, VerbResult};
use backlot_standard::verb::{Lane, Verb};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Pilot;
use super::request::{self, Call, Situation};
use crate::log::{self, Level};
use crate::paths::Paths;
use crate::verb_process::{CallEnd, Killed, RESULT_BYTES};

/// Largest file that a verb of the observe lane may write: it has nothing to write but its result.
const OBSERVE_FILE_BYTES: u64 = 16 << 20;
/// Longest message of an image that is passed on in a report.
const MESSAGE_BYTES: usize = 2048;
/// Time beyond the deadline after which a call counts as lost although its process is still there.
const GRACE: Duration = Duration::from_secs(10);

/// How a call ended.
#[derive(Debug)]
pub struct Outcome {
    /// Meaning of the exit code.
    pub exit: Exit,
    /// The result.
    pub result: VerbResult,
    /// Files that the verb wrote, until this is dropped.
    pub scratch: Option<CallDirectory>,
}

impl Outcome {
    /// A failure of the agent itself.
    pub fn failed(exit: Exit, code: &str, message: impl Into<String>) -> Self {
        let error = VerbError { code: code.to_owned(), message: message.into() };
        Self { exit, result: VerbResult { error: Some(error), ..VerbResult::default() }, scratch: None }
    }

    /// The verb's own output, when the call is done and the output is what the standard says.
    pub fn output<T: DeserializeOwned>(&self) -> Result<T, String> {
        if self.exit != Exit::Done {
            return Err(self.message());
        }
        let output = self.result.output.clone().unwrap_or_else(|| serde_json::json!({}));
        serde_json::from_value(output).map_err(|error| format!("the verb's output does not fit the standard: {error}"))
    }

    /// One line for people: why the call is not done.
    pub fn message(&self) -> String {
        let message = match &self.result.error {
            Some(error) => format!("{}: {}", error.code, error.message),
            None => match self.result.blockers.first() {
                Some(blocker) => format!("{}: {} {}", blocker.object, blocker.reason, blocker.hint),
                None => format!("the verb answered {:?} and gave no reason", self.exit),
            },
        };
        shorten(message)
    }
}

/// At most [`MESSAGE_BYTES`] of a text that an image wrote.
pub fn shorten(mut text: String) -> String {
    if text.len() > MESSAGE_BYTES {
        text.truncate(text.floor_char_boundary(MESSAGE_BYTES));
        text.push('…');
    }
    text
}

/// Directory of one call; removed when dropped.
#[derive(Debug)]
pub struct CallDirectory(PathBuf);

impl CallDirectory {
    /// Makes the directory of a call with a name of its own.
    pub fn new(paths: &Paths, name: &str) -> io::Result<Self> {
        let directory = Self(paths.session().join("calls").join(name));
        std::fs::create_dir_all(directory.scratch())?;
        Ok(directory)
    }

    /// Where `$DB_SCRATCH` is.
    pub fn scratch(&self) -> PathBuf {
        self.0.join("scratch")
    }

    /// Writes the request, as JSON and in plain form; answers the variables that a verb sees beside [`base_env`](super::base_env).
    pub fn fill(&self, paths: &Paths, json: &Value, request: &Request) -> io::Result<BTreeMap<String, String>> {
        let at = |name: &str| self.0.join(name);
        std::fs::write(at("request.json"), serde_json::to_vec(json)?)?;
        std::fs::write(at("members"), environment::members(request))?;
        std::fs::write(at("config"), environment::config(request))?;
        let mut env: BTreeMap<String, String> = environment::scalars(request).into_iter().collect();
        let places = [
            ("DB_REQUEST", at("request.json")),
            ("DB_RESULT", at("result.json")),
            ("DB_MEMBERS", at("members")),
            ("DB_CONFIG", at("config")),
            ("DB_SCRATCH", self.scratch()),
            ("DB_SECRETS", paths.secrets()),
        ];
        env.extend(places.map(|(name, path)| (name.to_owned(), path.display().to_string())));
        if let Some(root) = paths.root() {
            env.insert("DB_ROOT".to_owned(), root.display().to_string());
        }
        Ok(env)
    }

    /// Arguments of the process that runs the verb.
    pub fn arguments(&self, paths: &Paths, verb: Verb, lane: Lane, deadline: Duration) -> Vec<OsString> {
        let file_bytes = if lane == Lane::Observe { OBSERVE_FILE_BYTES } else { 0 };
        vec![
            "run-verb".into(),
            verb.name().into(),
            paths.verb(verb).into(),
            deadline.as_millis().to_string().into(),
            self.0.join("result.json").into(),
            self.0.join("outcome.json").into(),
            file_bytes.to_string().into(),
        ]
    }

    /// Makes an answer of what the call left; `timeout` is its deadline in seconds.
    pub fn conclude(&self, verb: Verb, timeout: u32) -> Outcome {
        let end = std::fs::read(self.0.join("outcome.json")).ok();
        let end = end.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        conclude(verb, timeout, end, &self.0.join("result.json"))
    }
}

impl Drop for CallDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Pilot {
    /// Waits for the verb's lane, runs it, and returns its answer.
    pub async fn call(&self, call: &Call) -> Outcome {
        let Ok(image) = &self.image else {
            return Outcome::failed(Exit::Failed, "ManifestInvalid", "the image's manifest cannot be used");
        };
        let rule = image.manifest.rule(call.verb);
        let _lane = self.lanes.enter(rule.lane).await;
        let started = Instant::now();
        let outcome = match self.prepare_call(call, rule.timeout_seconds) {
            Ok((directory, env)) => self.run_call(call.verb, rule.lane, rule.timeout_seconds, directory, env).await,
            Err(error) => Outcome::failed(Exit::Failed, "CallNotPossible", error.to_string()),
        };
        self.record_call(call, &outcome, started.elapsed());
        outcome
    }

    fn record_call(&self, call: &Call, outcome: &Outcome, took: Duration) {
        let failed = !matches!(outcome.exit, Exit::Done | Exit::Pending);
        {
            // Counters alone wake nobody.
            let mut state = self.state.borrow_mut();
            state.counters.verb_calls += 1;
            state.counters.verb_failures += u64::from(failed);
        }
        let routine = matches!(call.verb, Verb::Role | Verb::Health);
        let (verb, took) = (call.verb.name(), took.as_millis());
        if failed && !routine {
            let fields: [(&str, &dyn std::fmt::Display); 5] = [
                ("verb", &verb),
                ("operation", &call.operation_id),
                ("exit", &format!("{:?}", outcome.exit)),
                ("error", &outcome.message()),
                ("milliseconds", &took),
            ];
            log::event(Level::Warn, "verb not done", &fields);
        } else if !routine {
            let fields: [(&str, &dyn std::fmt::Display); 4] = [
                ("verb", &verb),
                ("operation", &call.operation_id),
                ("exit", &format!("{:?}", outcome.exit)),
                ("milliseconds", &took),
            ];
            log::event(Level::Info, "verb", &fields);
        }
    }

    fn prepare_call(&self, call: &Call, timeout: u32) -> io::Result<(CallDirectory, BTreeMap<String, String>)> {
        let credentials = self.settings.paths.at(layout::CREDENTIALS_DIR);
        let secrets = self.settings.paths.secrets();
        self.secrets.borrow_mut().refresh(&credentials, &secrets)?;
        let request = self.request(call, timeout)?;
        let number = self.next_call.get();
        self.next_call.set(number + 1);
        let paths = &self.settings.paths;
        let directory = CallDirectory::new(paths, &format!("{}-{number}", call.verb.name()))?;
        let mut env = super::base_env(paths);
        env.extend(directory.fill(paths, &serde_json::to_value(&request)?, &request)?);
        Ok((directory, env))
    }

    fn request(&self, call: &Call, timeout: u32) -> io::Result<Request> {
        let state = self.state.borrow();
        let (Some(held), Ok(image)) = (&state.view, &self.image) else {
            return Err(io::Error::other("no cluster view is held"));
        };
        let situation = Situation {
            view: &held.view,
            manifest: &image.manifest,
            member: &self.member.id,
            address: &self.member.address,
            applied: state.engine.running.is_some().then_some(&state.session.applied),
        };
        request::build(call, timeout, &situation)
            .ok_or_else(|| io::Error::other("the cluster view does not know this member"))
    }

    async fn run_call(
        &self,
        verb: Verb,
        lane: Lane,
        timeout: u32,
        directory: CallDirectory,
        env: BTreeMap<String, String>,
    ) -> Outcome {
        let deadline = Duration::from_secs(u64::from(timeout));
        let spawned = tokio::process::Command::new("/proc/self/exe")
            .args(directory.arguments(&self.settings.paths, verb, lane, deadline))
            .env_clear()
            .envs(env)
            .stdin(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => return Outcome::failed(Exit::Failed, "CallNotPossible", error.to_string()),
        };
        // Closing this pipe, also by dying, ends the call and everything that it started.
        let control = child.stdin.take();
        let in_time = tokio::select! {
            waited = tokio::time::timeout(deadline + GRACE, child.wait()) => waited.is_ok(),
            () = self.lanes.cancelled(lane) => {
                drop(control);
                tokio::time::timeout(GRACE, child.wait()).await.is_ok()
            }
        };
        if !in_time {
            return Outcome::failed(Exit::Unknown, "CallLost", "the verb's processes could not be ended");
        }
        let mut outcome = directory.conclude(verb, timeout);
        outcome.scratch = Some(directory);
        outcome
    }
}

/// Makes an answer of what the call left.
fn conclude(verb: Verb, timeout: u32, end: Option<CallEnd>, result_file: &Path) -> Outcome {
    let verb = verb.name();
    let Some(end) = end else {
        return Outcome::failed(Exit::Unknown, "CallLost", format!("the process that ran {verb} was killed"));
    };
    if let Some(error) = end.start_error {
        return Outcome::failed(Exit::Failed, "CannotStart", format!("the verb {verb} cannot be started: {error}"));
    }
    match end.killed {
        Some(Killed::Deadline) => {
            let message = format!("{verb} was killed after {timeout} s, with everything it had started");
            return Outcome::failed(Exit::Unknown, "DeadlineExceeded", message);
        }
        Some(Killed::Cancelled) => {
            return Outcome::failed(
                Exit::Unknown,
                "Cancelled",
                format!("{verb} was cancelled and will be called again"),
            );
        }
        Some(Killed::ResultTooLarge) => {
            let message = format!("{verb} wrote a result of more than {RESULT_BYTES} bytes");
            return Outcome::failed(Exit::Unknown, "ResultTooLarge", message);
        }
        None => {}
    }
    if end.leftovers > 0 {
        let fields: [(&str, &dyn std::fmt::Display); 2] = [("verb", &verb), ("processes", &end.leftovers)];
        log::event(Level::Warn, "the verb left processes behind; they were killed", &fields);
    }
    let exit = Exit::from_code(end.code);
    let mut result = match read_result(result_file) {
        Ok(result) => result,
        Err(error) => return Outcome::failed(Exit::Unknown, "GarbageResult", format!("{verb}: {error}")),
    };
    if matches!(exit, Exit::Failed | Exit::Unknown) && result.error.is_none() {
        let how = match (end.code, end.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no exit code".to_owned(),
        };
        let message = format!("{verb} ended with {how}: {}", end.tail);
        result.error = Some(VerbError { code: "VerbFailed".to_owned(), message });
    }
    Outcome { exit, result, scratch: None }
}

fn read_result(path: &Path) -> Result<VerbResult, String> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > RESULT_BYTES => {
            return Err(format!("the result has {} bytes, at most {RESULT_BYTES} are allowed", metadata.len()));
        }
        Ok(metadata) if !metadata.is_file() => return Err("the result is no file".to_owned()),
        Ok(_) => {}
        Err(_) => return Ok(VerbResult::default()),
    }
    let bytes = std::fs::read(path).map_err(|error| format!("the result cannot be read: {error}"))?;
    if bytes.trim_ascii().is_empty() {
        return Ok(VerbResult::default());
    }
    serde_json::from_slice(&bytes).map_err(|error| format!("the result is not what the standard says: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(code: i32) -> CallEnd {
        CallEnd { code: Some(code), tail: "last words".to_owned(), ..CallEnd::default() }
    }

    #[test]
    fn answers_are_judged_by_exit_code_and_result_together() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("result.json");
        let judge = |end: Option<CallEnd>, content: Option<&[u8]>| {
            match content {
                Some(content) => std::fs::write(&file, content).unwrap(),
                None => drop(std::fs::remove_file(&file)),
            }
            let outcome = conclude(Verb::Health, 5, end, &file);
            (outcome.exit, outcome.result.error.map(|error| error.code).unwrap_or_default())
        };
        let large = vec![b' '; usize::try_from(RESULT_BYTES).unwrap() + 1];
        let killed = Some(CallEnd { killed: Some(Killed::Deadline), ..CallEnd::default() });
        let by_signal = Some(CallEnd { signal: Some(9), ..CallEnd::default() });
        assert_eq!(judge(Some(end(0)), None), (Exit::Done, String::new()));
        assert_eq!(judge(Some(end(0)), Some(b" \n")), (Exit::Done, String::new()));
        assert_eq!(judge(Some(end(10)), Some(b"{\"changed\":true,\"later\":1}")), (Exit::Pending, String::new()));
        assert_eq!(judge(Some(end(0)), Some(b"\xff\x00garbage")), (Exit::Unknown, "GarbageResult".to_owned()));
        assert_eq!(judge(Some(end(0)), Some(&large)), (Exit::Unknown, "GarbageResult".to_owned()));
        assert_eq!(judge(Some(end(30)), None), (Exit::Failed, "VerbFailed".to_owned()));
        assert_eq!(judge(Some(end(77)), None), (Exit::Unknown, "VerbFailed".to_owned()));
        assert_eq!(judge(by_signal, None), (Exit::Unknown, "VerbFailed".to_owned()));
        assert_eq!(judge(killed, None), (Exit::Unknown, "DeadlineExceeded".to_owned()));
        assert_eq!(judge(None, None), (Exit::Unknown, "CallLost".to_owned()));
    }
}
