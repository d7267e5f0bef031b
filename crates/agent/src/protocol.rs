//! What keeper and pilot say to each other over a socket pair: one JSON object a line.
//!
//! Frozen: an old keeper runs with a new pilot, because a pilot is replaced while the keeper stays. Messages and fields
//! may be added with defaults, never changed or removed; both sides ignore lines that they do not know.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest line; a longer one ends the connection.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// Pilot to keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ToKeeper {
    /// The pilot is at work; a pilot that it replaces may go.
    Ready,
    /// A sign of life; answered with the same number.
    Ping {
        /// Number.
        number: u64,
    },
    /// Start the engine. Answered by `Started` or `StartFailed`.
    Start {
        /// Program and arguments.
        argv: Vec<String>,
        /// The whole environment.
        env: BTreeMap<String, String>,
    },
    /// Signal the engine's main process.
    Signal {
        /// Number of the signal.
        signal: i32,
    },
    /// Kill the engine and everything that it started.
    KillEngine,
    /// Kill everything when this time passes without another such message; absent = no deadline.
    Deadline {
        /// From now.
        #[serde(default)]
        milliseconds: Option<u64>,
    },
    /// Start another pilot from this file; when it is ready, this one is ended.
    Replace {
        /// The binary.
        path: String,
    },
    /// The engine is stopped: end the container with code 0.
    Exit,
}

/// Keeper to pilot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ToPilot {
    /// First message: what the keeper knows.
    Hello(Hello),
    /// Answer to `Ping`.
    Pong {
        /// Number of the ping.
        number: u64,
    },
    /// The engine's process was started.
    Started(Running),
    /// The engine's process could not be started.
    StartFailed {
        /// Why.
        error: String,
    },
    /// The engine ended, and everything that it had started.
    Exited(Ended),
    /// The container is to end: stop the engine gracefully, then send `Exit`.
    Terminate,
    /// The new pilot did not become ready; this one goes on.
    ReplaceFailed {
        /// Why.
        error: String,
    },
}

/// What the keeper knows when a pilot starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// Random name of this run of the container.
    pub boot_id: String,
    /// Number of this pilot within the run.
    pub run: u64,
    /// The engine, when it runs.
    #[serde(default)]
    pub engine: Option<Running>,
    /// Starts of the engine in this run of the container.
    #[serde(default)]
    pub starts: u32,
    /// How the engine last ended.
    #[serde(default)]
    pub last_exit: Option<Ended>,
    /// Whether the container is to end.
    #[serde(default)]
    pub terminating: bool,
    /// Whether the keeper's deadline passed and it killed everything.
    #[serde(default)]
    pub fenced: bool,
}

/// A running engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// Process id.
    pub pid: i32,
    /// Number of this start in this run of the container.
    pub starts: u32,
    /// Unix seconds.
    pub at: i64,
}

/// An engine that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// Number of the start that ended.
    pub starts: u32,
    /// Exit code.
    #[serde(default)]
    pub code: Option<i32>,
    /// Signal number.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Unix seconds.
    pub at: i64,
    /// Last lines of output.
    pub output_tail: String,
}

/// A message as a line.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Collects bytes and gives whole lines as messages.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
}

impl Lines {
    /// Adds what was read; false when a line is too long.
    #[must_use]
    pub fn extend(&mut self, bytes: &[u8]) -> bool {
        self.buffer.extend_from_slice(bytes);
        self.buffer.len() <= MAX_LINE_BYTES || self.buffer.contains(&b'\n')
    }

    /// The next message; lines that are no known message are skipped.
    pub fn take<T: DeserializeOwned>(&mut self) -> Option<T> {
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            if let Ok(message) = serde_json::from_slice(&line) {
                return Some(message);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_format_is_frozen() {
        let line = |message: &ToKeeper| String::from_utf8(encode(message)).unwrap();
        assert_eq!(line(&ToKeeper::Ready), "{\"is\":\"ready\"}\n");
        assert_eq!(line(&ToKeeper::Ping { number: 7 }), "{\"is\":\"ping\",\"number\":7}\n");
        assert_eq!(line(&ToKeeper::Deadline { milliseconds: Some(9) }), "{\"is\":\"deadline\",\"milliseconds\":9}\n");
        assert_eq!(
            String::from_utf8(encode(&ToPilot::Started(Running { pid: 4, starts: 1, at: 2 }))).unwrap(),
            "{\"is\":\"started\",\"pid\":4,\"starts\":1,\"at\":2}\n"
        );
    }

    #[test]
    fn unknown_and_broken_lines_are_skipped() {
        let mut lines = Lines::default();
        assert!(lines.extend(b"{\"is\":\"dance\"}\nnonsense\n{\"is\":\"ready\",\"later\":1}\n{\"is\":\"pi"));
        assert_eq!(lines.take::<ToKeeper>(), Some(ToKeeper::Ready));
        assert_eq!(lines.take::<ToKeeper>(), None);
        assert!(lines.extend(b"ng\",\"number\":1}\n"));
        assert_eq!(lines.take::<ToKeeper>(), Some(ToKeeper::Ping { number: 1 }));
    }
}
