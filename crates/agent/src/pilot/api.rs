//! The API: who may ask what, and the answers. Invariant: without the operator's certificate nothing is told but whether
//! the agent lives and the engine serves, and nothing is changed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use backlot_standard::operation::{OperationReport, OperationRequest, OperationState};
use backlot_standard::view::SignedView;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::tls::Peer;
use super::view::{self, Held, Refusal};
use super::{Pilot, disk, image, operations, replace};
use crate::log::{self, Level};

/// Largest JSON body.
const JSON_BYTES: usize = 4 << 20;
/// Time for a body.
const BODY: Duration = Duration::from_secs(30);
/// How long the answer to an operation waits for its end.
const QUICK: Duration = Duration::from_secs(2);
/// Changes within this time are told together.
const COALESCE: Duration = Duration::from_millis(200);
/// A watcher gets a line at least this often.
const REPEAT: Duration = Duration::from_mins(1);
/// How long a view may take to get to the disk before it is used all the same.
const DISK: Duration = Duration::from_secs(5);

/// A response's body: whole, or lines as they come.
pub enum Body {
    /// Whole.
    Whole(VecDeque<Bytes>),
    /// Lines.
    Lines(mpsc::Receiver<Bytes>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(pieces) => Poll::Ready(pieces.pop_front().map(|piece| Ok(Frame::data(piece)))),
            Self::Lines(lines) => lines.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(pieces) if pieces.is_empty())
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(pieces) => {
                hyper::body::SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum())
            }
            Self::Lines(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// Answers one request.
pub async fn answer(pilot: Rc<Pilot>, peer: Peer, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    match (&method, path.as_str()) {
        (&Method::GET, "/livez") => return text(StatusCode::OK, "the agent is alive"),
        (&Method::GET, "/readyz") => return readyz(&pilot),
        _ => {}
    }
    let may = match &peer {
        Peer::Operator => true,
        Peer::Member(_) => path == "/v1/view",
        Peer::Nobody => false,
    };
    if !may {
        return error(StatusCode::FORBIDDEN, "this needs the operator's certificate");
    }
    match (&method, path.as_str()) {
        (&Method::GET, "/v1/status") => json(StatusCode::OK, &pilot.publish()),
        (&Method::GET, "/v1/watch") => watch(&pilot, request.uri().query().unwrap_or_default()),
        (&Method::GET, "/v1/view") => get_view(&pilot),
        (&Method::PUT, "/v1/view") => put_view(&pilot, request).await,
        (&Method::GET, "/v1/manifest") => manifest(&pilot.settings.paths),
        (&Method::POST, "/v1/operations") => post_operation(&pilot, request).await,
        (&Method::PUT, "/v1/pilot") => replace::put(&pilot, request).await,
        (&Method::GET, "/metrics") => text(StatusCode::OK, &pilot.metrics()),
        (&Method::GET, path) => match path.strip_prefix("/v1/operations/") {
            Some(id) => get_operation(&pilot, id),
            None => error(StatusCode::NOT_FOUND, "there is nothing at this path"),
        },
        _ => error(StatusCode::NOT_FOUND, "there is nothing at this path"),
    }
}

fn readyz(pilot: &Pilot) -> Response<Body> {
    let state = pilot.state.borrow();
    let ready = pilot.image.as_ref().is_ok_and(|image| state.is_ready(&image.manifest));
    let phase = serde_json::to_string(&state.phase()).unwrap_or_default();
    if ready {
        return text(StatusCode::OK, "the engine serves");
    }
    text(StatusCode::SERVICE_UNAVAILABLE, &format!("the engine does not serve: {}", phase.trim_matches('"')))
}

/// Lines of the report: at once unless the caller has it, at every change, at least every minute.
fn watch(pilot: &Rc<Pilot>, query: &str) -> Response<Body> {
    let parameter = |name: &str| query.split('&').filter_map(|pair| pair.split_once('=')).find(|pair| pair.0 == name);
    let boot_id = parameter("bootId").map(|pair| pair.1);
    let revision = parameter("revision").and_then(|pair| pair.1.parse::<u64>().ok());
    let mut known = revision.filter(|_| boot_id == Some(&pilot.hello.boot_id));
    let (lines, receiver) = mpsc::channel::<Bytes>(1);
    let pilot = pilot.clone();
    tokio::task::spawn_local(async move {
        let mut changed = pilot.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let status = pilot.publish();
            if known != Some(status.revision) {
                known = Some(status.revision);
                if lines.send(line(&status)).await.is_err() {
                    return;
                }
            }
            let quiet = tokio::time::sleep(REPEAT);
            tokio::pin!(quiet);
            let due = loop {
                tokio::select! {
                    _ = changed.changed() => {
                        tokio::time::sleep(COALESCE).await;
                        changed.borrow_and_update();
                        if known != Some(pilot.publish().revision) {
                            break false;
                        }
                    }
                    () = lines.closed() => return,
                    () = &mut quiet => break true,
                }
            };
            if due {
                known = None;
            }
        }
    });
    let mut response = Response::new(Body::Lines(receiver));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

fn line(value: &impl Serialize) -> Bytes {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}

fn get_view(pilot: &Pilot) -> Response<Body> {
    match &pilot.state.borrow().view {
        Some(held) => json(StatusCode::OK, &held.signed),
        None => error(StatusCode::NOT_FOUND, "no view is held"),
    }
}

async fn put_view(pilot: &Rc<Pilot>, request: Request<Incoming>) -> Response<Body> {
    let signed: SignedView = match body(request).await {
        Ok(signed) => signed,
        Err(response) => return response,
    };
    if pilot.state.borrow().quiescent {
        return error(StatusCode::SERVICE_UNAVAILABLE, "another pilot takes over; ask again in a second");
    }
    // One at a time, so that what is on disk is what is held.
    let _one = pilot.view_writes.lock().await;
    let accepted = {
        super::server::refresh(&pilot.identity);
        let keys = pilot.identity.borrow().ca_keys.clone();
        let state = pilot.state.borrow();
        view::accept(signed, &keys, &pilot.member.cluster_uid, state.view.as_ref(), state.seen_epoch)
    };
    match accepted {
        Ok(held) => {
            let generation = held.view.generation;
            hold_view(pilot, held).await;
            json(StatusCode::OK, &serde_json::json!({ "generation": generation }))
        }
        Err(refusal) => {
            let status = match refusal {
                Refusal::Signature | Refusal::Cluster { .. } => StatusCode::FORBIDDEN,
                Refusal::Unreadable(_) => StatusCode::BAD_REQUEST,
                Refusal::Older { .. } | Refusal::Different(_) => StatusCode::CONFLICT,
            };
            error(status, &refusal.to_string())
        }
    }
}

/// Writes the view to the volume and takes it into use. A full or hanging disk does not keep a member from it.
async fn hold_view(pilot: &Rc<Pilot>, held: Held) {
    let same = pilot.state.borrow().view.as_ref().is_some_and(|present| present.view == held.view);
    if same {
        return;
    }
    let saved = tokio::time::timeout(DISK, save_view(pilot, &held.signed)).await;
    let error = match saved {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("the disk does not answer".to_owned()),
    };
    if let Some(error) = &error {
        log::event(Level::Error, "the view cannot be stored; trying again", &[("error", error)]);
        save_later(pilot);
    }
    pilot.update(|state| {
        state.seen_epoch = state.seen_epoch.max(held.view.operator_epoch);
        state.view = Some(held);
        // What failed under the old view may work under the new one.
        state.try_at_once();
    });
}

async fn save_view(pilot: &Pilot, signed: &SignedView) -> std::io::Result<()> {
    use super::identity::Volume;
    if matches!(pilot.state.borrow().volume, Volume::Foreign { .. } | Volume::Unusable { .. }) {
        // Not our volume to write to; the view is then held in memory only.
        return Ok(());
    }
    let path = pilot.state_directory.join(view::FILE);
    let bytes = serde_json::to_vec(signed)?;
    disk::apart(move || disk::replace(&path, &bytes)).await
}

fn save_later(pilot: &Rc<Pilot>) {
    if std::mem::replace(&mut pilot.state.borrow_mut().view_unsaved, true) {
        return;
    }
    let pilot = pilot.clone();
    tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let signed = pilot.state.borrow().view.as_ref().map(|held| held.signed.clone());
            if let Some(signed) = signed
                && save_view(&pilot, &signed).await.is_ok()
            {
                pilot.state.borrow_mut().view_unsaved = false;
                return;
            }
        }
    });
}

async fn post_operation(pilot: &Rc<Pilot>, request: Request<Incoming>) -> Response<Body> {
    let request: OperationRequest = match body(request).await {
        Ok(request) => request,
        Err(response) => return response,
    };
    let report = match operations::accept(pilot, request).await {
        Ok(report) => report,
        Err(refusal) => {
            let status = match refusal {
                operations::Refusal::Id => StatusCode::BAD_REQUEST,
                operations::Refusal::Leaving => StatusCode::SERVICE_UNAVAILABLE,
                operations::Refusal::OldEpoch { .. } | operations::Refusal::ViewNotSeen { .. } => StatusCode::CONFLICT,
            };
            return error(status, &refusal.to_string());
        }
    };
    let report = if report.state == OperationState::Running { ended(pilot, report).await } else { report };
    let status = if report.state == OperationState::Running { StatusCode::ACCEPTED } else { StatusCode::OK };
    json(status, &report)
}

/// Waits a little for the operation's end.
async fn ended(pilot: &Pilot, report: OperationReport) -> OperationReport {
    let mut changed = pilot.changed.subscribe();
    let latest = || pilot.journal.borrow().get(&report.id).map(|entry| entry.report.clone());
    let end = async {
        while latest().is_some_and(|latest| latest.state == OperationState::Running) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(QUICK, end).await;
    latest().unwrap_or(report)
}

fn get_operation(pilot: &Pilot, encoded: &str) -> Response<Body> {
    let id = percent_decode(encoded);
    match id.as_deref().and_then(|id| pilot.journal.borrow().get(id).map(|entry| entry.report.clone())) {
        Some(report) => json(StatusCode::OK, &report),
        None => error(StatusCode::NOT_FOUND, "no operation with this id is known"),
    }
}

/// The manifest as it is in the image, and the verbs.
pub fn manifest(paths: &crate::paths::Paths) -> Response<Body> {
    match image::read_manifest(paths) {
        Ok(manifest) => {
            let verbs = image::read_verbs(paths);
            json(StatusCode::OK, &serde_json::json!({ "manifest": manifest, "verbs": verbs }))
        }
        Err(problem) => error(StatusCode::UNPROCESSABLE_ENTITY, &problem),
    }
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Response<Body>> {
    let collected = tokio::time::timeout(BODY, Limited::new(request.into_body(), JSON_BYTES).collect()).await;
    let Ok(Ok(collected)) = collected else {
        return Err(error(StatusCode::BAD_REQUEST, "the body is too long, or it did not come in time"));
    };
    serde_json::from_slice(&collected.to_bytes())
        .map_err(|problem| error(StatusCode::BAD_REQUEST, &format!("the body cannot be read: {problem}")))
}

/// A response of JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    respond(status, "application/json", serde_json::to_vec(value).unwrap_or_default())
}

/// A response that tells what is wrong.
pub fn error(status: StatusCode, message: &str) -> Response<Body> {
    json(status, &serde_json::json!({ "error": message }))
}

/// A response of plain text.
pub fn text(status: StatusCode, message: &str) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", format!("{}\n", message.trim_end()).into_bytes())
}

fn respond(status: StatusCode, kind: &'static str, bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::Whole(VecDeque::from([Bytes::from(bytes)])));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = vec![];
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_percent_decoded() {
        assert_eq!(percent_decode("a%2Fb%2e-_").as_deref(), Some("a/b.-_"));
        assert_eq!(percent_decode("plain/id").as_deref(), Some("plain/id"));
        assert_eq!(percent_decode("%2"), None);
        assert_eq!(percent_decode("%zz"), None);
    }
}
