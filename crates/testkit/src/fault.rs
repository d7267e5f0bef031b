//! Faults that a connection to the API server can have, and the record of what was asked over it.
//!
//! Invariant: faults are chosen by counting requests and writes, never by chance or time, so that a failing run can be repeated.

use http::{Method, StatusCode};
use serde_json::Value;

/// When a fault happens. Counts begin at 1 with the connection's first request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// At the n-th write (POST, PUT, PATCH, DELETE; not a dry run).
    Write(u64),
    /// At the n-th request of any kind.
    Request(u64),
    /// At the next `times` requests with this method, if given, whose path contains this text.
    Matching {
        /// The method, or every one.
        method: Option<Method>,
        /// Part of the path, e.g. `/pods/orders-0`.
        path: String,
        /// How many requests; then the fault is over.
        times: u64,
    },
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is carried out; then the client is dead: this answer and everything later is a connection error.
    CrashAfter,
    /// The request is carried out; then the client is dead: this answer and every later one never comes, as for a process that
    /// was killed. Wait for [`crate::api_server::Connection::crash`] and drop the client's tasks.
    StopAfter,
    /// The request is carried out, its answer is lost: a connection error.
    LoseReply,
    /// The request is not carried out: a connection error.
    Disconnect,
    /// The request is not carried out and never answered.
    Hang,
    /// 409 Conflict; not carried out.
    Conflict,
    /// 429 Too Many Requests; not carried out.
    TooManyRequests,
    /// 500 Internal Server Error; not carried out.
    InternalError,
    /// 500 Internal Server Error although it was carried out.
    InternalErrorAfter,
    /// 503 Service Unavailable; not carried out.
    Unavailable,
    /// 403 Forbidden, as when a permission was revoked; not carried out.
    Forbidden,
    /// 403 Forbidden because a quota is exhausted; not carried out.
    QuotaExceeded,
}

/// A request as it was recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// Number of the request on its connection, from 1.
    pub number: u64,
    /// Number of the write on its connection, from 1; absent for reads and dry runs.
    pub write: Option<u64>,
    /// Method.
    pub method: Method,
    /// Path without the query.
    pub path: String,
    /// Query, still encoded.
    pub query: String,
    /// Bytes of the request's body.
    pub request_bytes: usize,
    /// Bytes of the answer's body; 0 for watches.
    pub answer_bytes: usize,
    /// Status of the answer; absent when there was none.
    pub status: Option<StatusCode>,
    /// Whether something was stored.
    pub changed: bool,
    /// Whether it is a watch.
    pub watch: bool,
    /// The request's body, when it is JSON.
    pub body: Option<Value>,
    /// The fault that happened, if any.
    pub fault: Option<Fault>,
}

impl Recorded {
    /// Whether the request is a write.
    pub fn is_write(&self) -> bool {
        self.write.is_some()
    }
}

/// The faults planned for a connection.
#[derive(Debug, Default)]
pub(crate) struct Plan(Vec<(When, Fault)>);

impl Plan {
    pub(crate) fn add(&mut self, when: When, fault: Fault) {
        self.0.push((when, fault));
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The fault for a request; it is used up by that.
    pub(crate) fn take(&mut self, number: u64, write: Option<u64>, method: &Method, path: &str) -> Option<Fault> {
        let hits = |when: &When| match when {
            When::Write(wanted) => write == Some(*wanted),
            When::Request(wanted) => number == *wanted,
            When::Matching { method: wanted, path: part, times } => {
                *times > 0 && wanted.as_ref().is_none_or(|wanted| wanted == method) && path.contains(part)
            }
        };
        let index = self.0.iter().position(|(when, _)| hits(when))?;
        let fault = self.0[index].1;
        if let When::Matching { times, .. } = &mut self.0[index].0 {
            *times -= 1;
        } else {
            self.0.remove(index);
        }
        Some(fault)
    }
}
