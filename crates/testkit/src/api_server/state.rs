//! Everything that the server holds: registry, storage, clock and the counters that make it deterministic.
//!
//! Invariant: UIDs, generated names, addresses and times come from counters and a clock that only tests move, so that the same
//! requests give the same bytes.

use http::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::call::Call;
use super::error::Refusal;
use super::resource::{Registry, ResourceType};
use super::store::Store;
use super::{delete, patch, read, write};

/// An answer that is not a stream.
pub(crate) type Answer = Result<(StatusCode, Value), Refusal>;

/// The server's state.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) registry: Registry,
    pub(crate) store: Store,
    pub(crate) clock: Timestamp,
    world: u32,
    uids: u64,
    names: u64,
    addresses: u32,
}

impl State {
    pub(crate) fn new(world: u32) -> Self {
        Self {
            registry: Registry::built_in(),
            store: Store::default(),
            // 2026-01-01T00:00:00Z.
            clock: Timestamp::from_second(1_767_225_600).unwrap_or(Timestamp::UNIX_EPOCH),
            world,
            uids: 0,
            names: 0,
            addresses: 0,
        }
    }

    /// The clock as objects show it: RFC 3339, whole seconds.
    pub(crate) fn now(&self) -> String {
        self.time_after(0)
    }

    pub(crate) fn time_after(&self, seconds: i64) -> String {
        let time = self.clock.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(self.clock);
        time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    pub(crate) fn next_uid(&mut self) -> String {
        self.uids += 1;
        format!("{:08x}-0000-4000-8000-{:012x}", self.world, self.uids)
    }

    /// Five characters of the alphabet that Kubernetes uses for generated names.
    pub(crate) fn next_suffix(&mut self) -> String {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        self.names += 1;
        let mut rest = self.names;
        let mut suffix = String::new();
        for _ in 0..5 {
            let index = usize::try_from(rest % ALPHABET.len() as u64).unwrap_or_default();
            suffix.push(char::from(ALPHABET[index]));
            rest /= ALPHABET.len() as u64;
        }
        suffix
    }

    /// A fresh address below `prefix`, e.g. `10.96`.
    pub(crate) fn next_address(&mut self, prefix: &str) -> String {
        self.addresses += 1;
        format!("{prefix}.{}.{}", self.addresses / 250, self.addresses % 250 + 1)
    }

    /// Answers any request but a watch. `revision` is what a cached read may see instead of the newest.
    pub(crate) fn answer(&mut self, call: &Call, cached: Option<u64>) -> Answer {
        match (&call.method, call.subresource.as_str(), call.name.is_empty()) {
            (&Method::GET, "" | "status", false) => read::get(self, call, cached),
            (&Method::GET, "", true) => read::list(self, call, cached),
            (&Method::POST, "", true) => write::create(self, call),
            (&Method::PUT, "" | "status", false) => write::update(self, call),
            (&Method::PATCH, "" | "status", false) => patch::patch(self, call),
            (&Method::DELETE, "", false) => delete::one(self, call),
            (&Method::DELETE, "", true) => delete::collection(self, call),
            (_, "scale", false) => super::scale::scale(self, call),
            (&Method::POST, "binding", false) => write::bind(self, call),
            (&Method::POST, "eviction", false) => delete::evict(self, call),
            (_, "" | "status", _) => Err(Refusal::method_not_allowed()),
            _ => Err(Refusal::no_such_path()),
        }
    }

    /// Keeps the registry in step with the stored definitions of custom resources.
    pub(crate) fn definition_changed(&mut self, definition: &Value, removed: bool) {
        for resource in ResourceType::from_definition(definition) {
            if removed {
                self.registry.remove(&resource);
            } else {
                self.registry.add(resource);
            }
        }
    }
}
