//! Watches: streams of changes that start at a revision and end on order.
//!
//! Invariant: a watch shows every change after its start exactly once, in order; a frozen connection sees them later, never
//! not at all.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, Stream};
use serde_json::{Value, json};

use super::call::Call;
use super::connection::Connection;
use super::error::Refusal;
use super::read::shape;
use super::selector::Selector;
use super::state::State;
use super::store::Change;

/// A running watch.
pub(crate) struct Watch {
    call: Call,
    selector: Selector,
    connection: Connection,
    /// Changes up to this revision were shown.
    seen: u64,
    queue: VecDeque<Value>,
    bookmarks: bool,
    signals: Signals,
    news: tokio::sync::watch::Receiver<Signals>,
    ended: bool,
}

/// Orders to every watch; each count rises with each order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signals {
    /// Something was stored, or a connection thawed.
    pub(crate) changes: u64,
    /// Send a bookmark.
    pub(crate) bookmarks: u64,
    /// End with 410 Gone.
    pub(crate) expirations: u64,
    /// End without a word.
    pub(crate) drops: u64,
}

impl Watch {
    /// Starts a watch as the call's query asks for.
    pub(crate) fn start(
        state: &State,
        call: Call,
        connection: Connection,
        news: tokio::sync::watch::Receiver<Signals>,
    ) -> Result<Self, Refusal> {
        let selector =
            Selector::parse(&call.resource, call.query.get("labelSelector"), call.query.get("fieldSelector"))?;
        let visible = connection.visible_revision().unwrap_or_else(|| state.store.revision());
        let from = call.query.get("resourceVersion").to_owned();
        let initial = call.query.is_true("sendInitialEvents");
        let fresh = from.is_empty() || from == "0";
        let revision: u64 = if fresh {
            visible
        } else {
            from.parse().map_err(|_| Refusal::bad_request(format!("invalid resource version {from:?}")))?
        };
        let signals = *news.borrow();
        let mut watch = Self {
            bookmarks: call.query.is_true("allowWatchBookmarks"),
            selector,
            connection,
            seen: if initial { visible } else { revision },
            queue: VecDeque::new(),
            signals,
            news,
            ended: false,
            call,
        };
        if initial || fresh {
            for (_, object) in state.store.list_at(&watch.call.resource, &watch.call.namespace, visible) {
                if watch.selector.matches(&object) {
                    watch.push("ADDED", &object);
                }
            }
        } else if revision < state.store.compacted() {
            watch.expire();
        }
        if initial {
            let annotations = json!({"k8s.io/initial-events-end": "true"});
            watch.push_bookmark(&annotations);
        }
        Ok(watch)
    }

    /// The lines of the response's body.
    pub(crate) fn lines(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
        stream::unfold(self, |mut watch| async move {
            let line = watch.next_line().await?;
            Some((Ok(line), watch))
        })
    }

    async fn next_line(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(Bytes::from(format!("{event}\n")));
            }
            if self.ended {
                return None;
            }
            let signals = *self.news.borrow_and_update();
            self.take_changes();
            self.obey(signals);
            if self.queue.is_empty() && !self.ended {
                self.news.changed().await.ok()?;
            }
        }
    }

    fn take_changes(&mut self) {
        let server = self.connection.server().clone();
        let state = server.state();
        let visible = self.connection.visible_revision().unwrap_or_else(|| state.store.revision());
        if self.seen < state.store.compacted() && self.seen < visible {
            self.expire();
            return;
        }
        for change in state.store.changes_after(self.seen).iter().take_while(|change| change.revision <= visible) {
            self.show(change);
        }
        self.seen = self.seen.max(visible);
    }

    fn obey(&mut self, signals: Signals) {
        if signals.bookmarks != self.signals.bookmarks && self.bookmarks {
            self.push_bookmark(&Value::Null);
        }
        if signals.expirations != self.signals.expirations {
            self.expire();
        }
        self.ended |= signals.drops != self.signals.drops || self.connection.crashed();
        self.signals = signals;
    }

    fn show(&mut self, change: &Change) {
        let (resource, namespace, _) = &change.key;
        let elsewhere = !self.call.namespace.is_empty() && *namespace != self.call.namespace;
        if *resource != self.call.resource.qualified() || elsewhere {
            return;
        }
        let before = change.before.as_ref().is_some_and(|object| self.selector.matches(object));
        let after = !change.removed && self.selector.matches(&change.object);
        let gone: Arc<Value> = change.object.clone();
        match (before, after) {
            (false, true) => self.push("ADDED", &gone),
            (true, true) => self.push("MODIFIED", &gone),
            (true, false) => self.push("DELETED", &gone),
            (false, false) => {}
        }
    }

    fn push(&mut self, kind: &str, object: &Value) {
        self.queue.push_back(json!({"type": kind, "object": shape(&self.call, object)}));
    }

    fn push_bookmark(&mut self, annotations: &Value) {
        let mut metadata = json!({"resourceVersion": self.seen.to_string()});
        if !annotations.is_null() {
            metadata["annotations"] = annotations.clone();
        }
        let kind = if self.call.metadata_only { "PartialObjectMetadata" } else { &self.call.resource.kind };
        let version =
            if self.call.metadata_only { "meta.k8s.io/v1".to_owned() } else { self.call.resource.api_version() };
        let object = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        self.queue.push_back(json!({"type": "BOOKMARK", "object": object}));
    }

    fn expire(&mut self) {
        let refusal = Refusal::expired(&format!("too old resource version: {}", self.seen));
        self.queue.push_back(json!({"type": "ERROR", "object": *refusal.0}));
        self.ended = true;
    }
}
