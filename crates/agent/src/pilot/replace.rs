//! `PUT /v1/pilot`: another build of the pilot takes over while the engine runs.
//!
//! Invariants: a binary is started only if its digest is the one announced; the old pilot begins nothing from the moment
//! it asks the keeper until the keeper ends it or tells it to go on; the engine is not touched.

use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use ring::digest::{Context, SHA256};

use super::Pilot;
use super::api::{Body, error, json};
use crate::hex;
use crate::log::{self, Level};
use crate::protocol::ToKeeper;

/// Largest binary.
const BINARY_BYTES: u64 = 64 << 20;
/// Time for the whole body.
const UPLOAD: Duration = Duration::from_mins(2);
/// How long running verbs are waited for; then they are ended, and called again by the new pilot.
const DRAIN: Duration = Duration::from_secs(5);
/// Names of binaries begin so.
const PREFIX: &str = "pilot-";

/// Takes a new binary and hands over to it.
pub async fn put(pilot: &Rc<Pilot>, request: Request<Incoming>) -> Response<Body> {
    let announced = request.headers().get("x-sha256").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let announced = announced.to_ascii_lowercase();
    if let Some(answer) = needless(pilot, &announced) {
        // Who still sends its body does not read an answer.
        let _ = tokio::time::timeout(UPLOAD, discard(request.into_body())).await;
        return answer;
    }
    let target = pilot.settings.paths.agent().join(format!("{PREFIX}{}", &announced[..16]));
    let stored = tokio::time::timeout(UPLOAD, store(request.into_body(), &target, &announced)).await;
    match stored {
        Ok(Ok(())) => {}
        failed => {
            let _ = std::fs::remove_file(temporary(&target));
            let Ok(Err(problem)) = failed else {
                return error(StatusCode::REQUEST_TIMEOUT, "the binary did not come in time");
            };
            return error(StatusCode::BAD_REQUEST, &problem);
        }
    }
    if let Err(problem) = runs(&target).await {
        let _ = std::fs::remove_file(&target);
        return error(StatusCode::UNPROCESSABLE_ENTITY, &problem);
    }
    tokio::task::spawn_local(hand_over(pilot.clone(), target));
    json(StatusCode::ACCEPTED, &serde_json::json!({ "sha256": announced }))
}

/// The answer to a request whose body need not be looked at.
fn needless(pilot: &Pilot, announced: &str) -> Option<Response<Body>> {
    if announced.len() != 64 || !announced.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let message = "the header x-sha256 must be the SHA-256 of the binary in hex";
        return Some(error(StatusCode::BAD_REQUEST, message));
    }
    if announced == pilot.build.sha256 {
        return Some(json(StatusCode::OK, &serde_json::json!({ "sha256": announced })));
    }
    let state = pilot.state.borrow();
    let leaving = state.quiescent || state.terminating;
    let message = "another pilot takes over already, or the container ends";
    leaving.then(|| error(StatusCode::SERVICE_UNAVAILABLE, message))
}

async fn discard(mut body: Incoming) {
    let mut size = 0;
    while let Some(Ok(frame)) = body.frame().await {
        size += frame.data_ref().map_or(0, |data| data.len() as u64);
        if size > BINARY_BYTES {
            return;
        }
    }
}

async fn store(mut body: Incoming, target: &Path, announced: &str) -> Result<(), String> {
    let temporary = temporary(target);
    let failed = |error: std::io::Error| format!("{}: {error}", temporary.display());
    let _ = std::fs::remove_file(&temporary);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o755).open(&temporary).map_err(failed)?;
    let mut digest = Context::new(&SHA256);
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("the body broke off: {error}"))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len() as u64;
        if size > BINARY_BYTES {
            return Err(format!("the binary has more than {BINARY_BYTES} bytes"));
        }
        digest.update(&data);
        file.write_all(&data).map_err(failed)?;
    }
    drop(file);
    let found = hex::encode(digest.finish().as_ref());
    if found != announced {
        return Err(format!("the binary's SHA-256 is {found}, announced was {announced}"));
    }
    std::fs::rename(&temporary, target).map_err(failed)
}

fn temporary(target: &Path) -> PathBuf {
    target.with_extension("tmp")
}

/// Whether the binary runs here and is an agent of this standard.
async fn runs(path: &Path) -> Result<(), String> {
    let mut command = tokio::process::Command::new(path);
    let output = command.arg("version").env_clear().stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(5), output).await;
    let output = output.map_err(|_| "the binary does not answer `version`".to_owned())?;
    let output = output.map_err(|error| format!("the binary does not run here: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let standard = text.trim().rsplit(' ').next().unwrap_or_default();
    if output.status.success() && text.starts_with("backlot-agent ") && backlot_standard::supports(standard) {
        Ok(())
    } else {
        Err("the binary is no agent of a standard that this member runs under".to_owned())
    }
}

async fn hand_over(pilot: Rc<Pilot>, path: PathBuf) {
    pilot.update(|state| state.quiescent = true);
    let drained = async {
        let changing = || {
            let state = pilot.state.borrow();
            state.engine.stopping || state.engine.preparing
        };
        while pilot.lanes.are_busy() || changing() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = tokio::time::timeout(DRAIN, drained).await;
    // The answer to the upload is on its way; a moment lets it arrive before this process ends.
    tokio::time::sleep(Duration::from_millis(50)).await;
    log::event(Level::Info, "handing over to another pilot", &[("path", &path.display())]);
    pilot.keeper.send(ToKeeper::Replace { path: path.display().to_string() });
}

/// A pilot that took over makes itself the one that the next container starts, and removes the others.
pub fn settle(pilot: &Pilot) {
    let Ok(own) = std::fs::read_link("/proc/self/exe") else { return };
    let directory = pilot.settings.paths.agent();
    let name = own.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if own.parent() != Some(&directory) || !name.starts_with(PREFIX) {
        return;
    }
    let temporary = directory.join(".pilot.tmp");
    let _ = std::fs::remove_file(&temporary);
    let linked = symlink(name, &temporary).and_then(|()| std::fs::rename(&temporary, pilot.settings.paths.pilot()));
    if let Err(error) = linked {
        log::event(Level::Warn, "the next container will start the old pilot", &[("error", &error)]);
        return;
    }
    for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
        let other = entry.file_name();
        if other.to_str().is_some_and(|other| other.starts_with(PREFIX) && other != name) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// SHA-256 of this process's binary.
pub fn own_sha256() -> String {
    let mut digest = Context::new(&SHA256);
    let mut buffer = [0; 16 * 1024];
    let Ok(mut file) = std::fs::File::open("/proc/self/exe") else { return String::new() };
    while let Ok(read) = file.read(&mut buffer) {
        if read == 0 {
            break;
        }
        digest.update(&buffer[..read]);
    }
    hex::encode(digest.finish().as_ref())
}
