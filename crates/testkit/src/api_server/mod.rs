//! A Kubernetes API server in memory, for tests of the operator.
//!
//! It serves real `kube::Client`s without sockets, stores what they write, and answers as a real server does: revisions,
//! conflicts, ownership of fields, finalizers, watches. No controllers run in it; [`crate::simulated`] plays those.
//! Invariant: deterministic; the same requests in the same order give the same bytes.

mod call;
mod connection;
mod delete;
mod direct;
mod discovery;
mod error;
mod fields;
mod kinds;
mod managed;
mod merge;
mod patch;
mod read;
mod resource;
mod scale;
mod schema;
mod selector;
mod state;
mod store;
mod watch;
mod write;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};

pub use connection::{Connection, ConnectionError};
pub use direct::Refused;
pub(crate) use direct::Stored;
pub(crate) use kinds::parse_quantity;
pub(crate) use selector::label_selector_matches;

use call::Call;
use error::Refusal;
use read::Reply;
use state::State;
use watch::{Signals, Watch};

/// The server. Clones are the same server.
#[derive(Clone)]
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    signals: Arc<tokio::sync::watch::Sender<Signals>>,
    /// The field manager of direct writes.
    actor: &'static str,
}

impl Default for ApiServer {
    fn default() -> Self {
        Self::new()
    }
}

impl ApiServer {
    /// A server with the namespaces `default` and `kube-system` and nothing else.
    pub fn new() -> Self {
        Self::in_world(0)
    }

    /// The same, whose UIDs begin with `world` in hexadecimal: no other server has them, if the number is its own.
    pub fn in_world(world: u32) -> Self {
        let server = Self {
            state: Arc::new(Mutex::new(State::new(world))),
            signals: Arc::new(tokio::sync::watch::Sender::default()),
            actor: "test",
        };
        server.create_namespace("default");
        server.create_namespace("kube-system");
        server
    }

    /// A new connection, with a record and faults of its own.
    pub fn connect(&self) -> Connection {
        Connection::new(self.clone())
    }

    /// A client over a new connection. Must be called within a tokio runtime.
    pub fn client(&self) -> kube::Client {
        self.connect().client()
    }

    /// The server's clock: creation and deletion times.
    pub fn now(&self) -> Timestamp {
        self.state().clock
    }

    /// Moves the clock. Nothing happens by that alone.
    pub fn advance(&self, by: SignedDuration) {
        let mut state = self.state();
        state.clock = state.clock.checked_add(by).unwrap_or(state.clock);
    }

    /// The newest revision; it rises with each stored change.
    pub fn revision(&self) -> u64 {
        self.state().store.revision()
    }

    /// Sends a bookmark to every watch that allows them.
    pub fn send_bookmarks(&self) {
        self.signal(|signals| signals.bookmarks += 1);
    }

    /// Ends every running watch with 410 Gone.
    pub fn expire_watches(&self) {
        self.signal(|signals| signals.expirations += 1);
    }

    /// Ends every running watch without a word, as a restarted server does.
    pub fn drop_watches(&self) {
        self.signal(|signals| signals.drops += 1);
    }

    /// Forgets past revisions: watches and continued lists that begin there get 410 Gone.
    pub fn compact(&self) {
        self.state().store.compact();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, change: impl FnOnce(&mut Signals)) {
        self.signals.send_modify(change);
    }

    /// Answers a request as `connection` sees the server.
    fn reply(&self, parts: &http::request::Parts, body: Bytes, connection: &Connection) -> Result<Reply, Refusal> {
        let cached = connection.visible_revision();
        let mut state = self.state();
        if parts.method == Method::GET
            && let Some(document) = discovery::answer(&state.registry, parts.uri.path())
        {
            return Ok(Reply::Object(StatusCode::OK, document));
        }
        let call = Call::parse(&state.registry, parts, body)?;
        if call.method == Method::GET && call.name.is_empty() && call.query.is_true("watch") {
            let watch = Watch::start(&state, call, connection.clone(), self.signals.subscribe())?;
            return Ok(Reply::Watch(Box::new(watch)));
        }
        let before = state.store.revision();
        let answer = state.answer(&call, cached);
        let changed = state.store.revision() != before;
        drop(state);
        if changed {
            self.signal(|signals| signals.changes += 1);
        }
        answer.map(|(status, value)| Reply::Object(status, value))
    }
}
