//! A client's connection: its faults, its frozen cache, its record.
//!
//! Invariant: what happens to one connection changes nothing for another but the objects stored.

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};

use super::ApiServer;
use super::error::Refusal;
use super::read::Reply;
use super::watch::Watch;
use crate::fault::{Fault, Plan, Recorded, When};

/// Error of a connection: there was no answer.
pub type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

type ResponseBody = UnsyncBoxBody<Bytes, ConnectionError>;

/// A connection to an [`ApiServer`]. Clones are the same connection.
#[derive(Clone)]
pub struct Connection {
    server: ApiServer,
    shared: Arc<Mutex<Shared>>,
    crash: Arc<tokio::sync::watch::Sender<bool>>,
}

#[derive(Default)]
struct Shared {
    plan: Plan,
    record: Vec<Recorded>,
    requests: u64,
    writes: u64,
    dead: Option<Fault>,
    frozen: Option<u64>,
}

impl Connection {
    pub(super) fn new(server: ApiServer) -> Self {
        Self { server, shared: Arc::default(), crash: Arc::new(tokio::sync::watch::Sender::new(false)) }
    }

    /// A client that speaks over this connection. Must be called within a tokio runtime.
    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    /// The server at the other end.
    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    /// Plans a fault.
    pub fn inject(&self, when: When, fault: Fault) {
        self.shared().plan.add(when, fault);
    }

    /// Forgets every planned fault and revives a crashed connection.
    pub fn heal(&self) {
        let mut shared = self.shared();
        shared.plan.clear();
        shared.dead = None;
        self.crash.send_replace(false);
    }

    /// From now on this connection sees cached reads (`resourceVersion=0`) and watches as of now. Fresh reads stay fresh.
    pub fn freeze_cache(&self) {
        let revision = self.server.state().store.revision();
        self.shared().frozen = Some(revision);
    }

    /// Ends [`Self::freeze_cache`]: watches catch up.
    pub fn thaw_cache(&self) {
        self.shared().frozen = None;
        self.server.signal(|signals| signals.changes += 1);
    }

    /// Everything asked over this connection so far.
    pub fn recorded(&self) -> Vec<Recorded> {
        self.shared().record.clone()
    }

    /// The recorded writes.
    pub fn writes(&self) -> Vec<Recorded> {
        self.recorded().into_iter().filter(Recorded::is_write).collect()
    }

    /// Forgets the record; counts for faults go on.
    pub fn clear_record(&self) {
        self.shared().record.clear();
    }

    /// Whether the client is dead by [`Fault::CrashAfter`] or [`Fault::StopAfter`].
    pub fn crashed(&self) -> bool {
        self.shared().dead.is_some()
    }

    /// Waits until the client is dead.
    pub async fn crash(&self) {
        let mut news = self.crash.subscribe();
        // The sender lives as long as `self`.
        let _ = news.wait_for(|crashed| *crashed).await;
    }

    pub(super) fn visible_revision(&self) -> Option<u64> {
        self.shared().frozen
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the request and says what is to happen to it: its number and the fault.
    fn admit(&self, parts: &http::request::Parts, body: &Bytes) -> Result<(u64, Option<Fault>), Fault> {
        let mut shared = self.shared();
        if let Some(dead) = shared.dead {
            return Err(dead);
        }
        let query = parts.uri.query().unwrap_or_default().to_owned();
        shared.requests += 1;
        let number = shared.requests;
        let is_write = !matches!(parts.method, Method::GET | Method::HEAD) && !is_dry_run(&parts.method, &query, body);
        shared.writes += u64::from(is_write);
        let write = is_write.then_some(shared.writes);
        let path = parts.uri.path().to_owned();
        let fault = shared.plan.take(number, write, &parts.method, &path);
        shared.record.push(Recorded {
            number,
            write,
            method: parts.method.clone(),
            path,
            watch: query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1"),
            query,
            request_bytes: body.len(),
            answer_bytes: 0,
            status: None,
            changed: false,
            body: serde_json::from_slice(body).ok(),
            fault,
        });
        Ok((number, fault))
    }

    fn note(&self, number: u64, note: impl FnOnce(&mut Recorded)) {
        if let Some(recorded) = self.shared().record.iter_mut().rfind(|recorded| recorded.number == number) {
            note(recorded);
        }
    }

    fn die(&self, how: Fault) {
        self.shared().dead = Some(how);
        self.crash.send_replace(true);
        self.server.signal(|signals| signals.changes += 1);
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<ResponseBody>, ConnectionError> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let (number, fault) = match self.admit(&parts, &body) {
            Ok(admitted) => admitted,
            Err(Fault::StopAfter) => pending().await,
            Err(_) => return Err(refused()),
        };
        match fault {
            Some(Fault::Disconnect) => return Err(refused()),
            Some(Fault::Hang) => pending().await,
            _ => {}
        }
        if let Some(refusal) = fault.and_then(refusal) {
            return Ok(self.json(number, refusal.code(), &refusal.0));
        }
        let before = self.server.state().store.revision();
        let reply = self.server.reply(&parts, body, &self);
        let changed = self.server.state().store.revision() != before;
        self.note(number, |recorded| recorded.changed = changed);
        match fault {
            Some(Fault::CrashAfter) => {
                self.die(Fault::CrashAfter);
                return Err(refused());
            }
            Some(Fault::StopAfter) => {
                self.die(Fault::StopAfter);
                return pending().await;
            }
            Some(Fault::LoseReply) => return Err(refused()),
            Some(Fault::InternalErrorAfter) => {
                let refusal = Refusal::internal("etcdserver: request timed out");
                return Ok(self.json(number, refusal.code(), &refusal.0));
            }
            _ => {}
        }
        match reply {
            Ok(Reply::Object(status, value)) => Ok(self.json(number, status, &value)),
            Ok(Reply::Watch(watch)) => {
                self.note(number, |recorded| recorded.status = Some(StatusCode::OK));
                Ok(stream(*watch))
            }
            Err(refusal) => Ok(self.json(number, refusal.code(), &refusal.0)),
        }
    }

    fn json(&self, number: u64, status: StatusCode, value: &Value) -> Response<ResponseBody> {
        let text = value.to_string();
        self.note(number, |recorded| {
            recorded.status = Some(status);
            recorded.answer_bytes = text.len();
        });
        let mut response = Response::new(Full::from(text).map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = status;
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        response
    }
}

fn stream(watch: Watch) -> Response<ResponseBody> {
    use futures::TryStreamExt as _;
    let frames = watch.lines().map_ok(http_body::Frame::data).map_err(|never| match never {});
    Response::new(StreamBody::new(frames).boxed_unsync())
}

fn refused() -> ConnectionError {
    Box::new(std::io::Error::new(std::io::ErrorKind::ConnectionReset, "connection reset by the fault injector"))
}

/// A deletion says it in its body, when it has one.
fn is_dry_run(method: &Method, query: &str, body: &Bytes) -> bool {
    let options: Value = serde_json::from_slice(body).unwrap_or_default();
    if *method == Method::DELETE && !body.is_empty() {
        options["dryRun"] == json!(["All"])
    } else {
        query.contains("dryRun=All")
    }
}

/// The answer of faults that answer without carrying out.
fn refusal(fault: Fault) -> Option<Refusal> {
    let status = |code: StatusCode, reason: &str, message: &str| Some(Refusal::new(code, reason, message, Value::Null));
    match fault {
        Fault::Conflict => status(
            StatusCode::CONFLICT,
            "Conflict",
            "Operation cannot be fulfilled: the object has been modified; please apply your changes to the latest version and try again",
        ),
        Fault::TooManyRequests => Some(Refusal::too_many_requests("too many requests, please try again later")),
        Fault::InternalError => Some(Refusal::internal("injected")),
        Fault::Unavailable => status(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            "the server is currently unable to handle the request",
        ),
        Fault::Forbidden => status(StatusCode::FORBIDDEN, "Forbidden", "forbidden: the permission was revoked"),
        Fault::QuotaExceeded => status(StatusCode::FORBIDDEN, "Forbidden", "forbidden: exceeded quota"),
        Fault::CrashAfter
        | Fault::StopAfter
        | Fault::LoseReply
        | Fault::Disconnect
        | Fault::Hang
        | Fault::InternalErrorAfter => None,
    }
}

impl tower::Service<Request<Body>> for Connection {
    type Response = Response<ResponseBody>;
    type Error = ConnectionError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().answer(request))
    }
}
