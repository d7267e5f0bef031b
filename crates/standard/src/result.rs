//! What a verb answers: its exit code and the JSON file `$DB_RESULT` (SPEC §7), with the outputs of each verb.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A verb's result. Every field may be absent; an absent or empty file is an empty result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VerbResult {
    /// Whether something was changed; false when the target state was there already.
    pub changed: bool,
    /// The verb's own output, e.g. [`RoleOutput`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
    /// How far long work is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The engine's own handle of a job, given back in `params.handle` at the next call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle: Option<String>,
    /// With exit code 11: when and where to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// With exit code 22: what stands in the way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<Blocker>,
    /// For people.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What went wrong, for exit codes 20 to 31.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<VerbError>,
}

/// How far long work is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// 0 to 1.
    pub fraction: f64,
    /// One line for people.
    #[serde(default)]
    pub note: String,
}

/// When and where to try again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Seconds to wait.
    pub after_seconds: u32,
    /// What must be different then.
    #[serde(default)]
    pub need: RetryNeed,
}

/// What must be different at the next try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RetryNeed {
    /// Time.
    #[default]
    Settle,
    /// Another address of the member.
    NewAddress,
    /// Another member to run on.
    OtherMember,
}

/// An object of the user that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Blocker {
    /// The object, e.g. a table or a queue.
    pub object: String,
    /// Why it blocks.
    pub reason: String,
    /// What to do.
    #[serde(default)]
    pub hint: String,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerbError {
    /// CamelCase, stable.
    pub code: String,
    /// One sentence: what, where, what to do. Never a secret.
    pub message: String,
}

/// Meaning of a verb's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Exit {
    /// 0: the target state was read.
    Done,
    /// 10: call again with the same operation id.
    Pending,
    /// 11: not now; see `retry`.
    Later,
    /// 12: another call is at work.
    Busy,
    /// 13: needs the engine stopped, or running.
    EngineState,
    /// 20: the request is wrong.
    Invalid,
    /// 21: not supported by this engine or version.
    Unsupported,
    /// 22: refused, it would be unsafe; see `blockers`.
    Unsafe,
    /// 23: another identity or a newer epoch owns this.
    Conflict,
    /// 30: failed; nothing was changed.
    Failed,
    /// 31 and every other code, a signal, a missed deadline: failed; what was changed is unknown.
    Unknown,
}

impl Exit {
    /// The meaning of a process's exit code; `None` = ended by a signal or the deadline.
    pub fn from_code(code: Option<i32>) -> Self {
        match code {
            Some(0) => Self::Done,
            Some(10) => Self::Pending,
            Some(11) => Self::Later,
            Some(12) => Self::Busy,
            Some(13) => Self::EngineState,
            Some(20) => Self::Invalid,
            Some(21) => Self::Unsupported,
            Some(22) => Self::Unsafe,
            Some(23) => Self::Conflict,
            Some(30) => Self::Failed,
            _ => Self::Unknown,
        }
    }
}

/// Output of `render`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RenderOutput {
    /// The engine's program and arguments. Never a secret.
    pub argv: Vec<String>,
    /// The engine's environment beside `PATH`, `HOME`, `TZ`, `LANG`. Never a secret.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Files to put in place.
    #[serde(default)]
    pub files: Vec<RenderedFile>,
}

/// A file that the agent puts in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RenderedFile {
    /// Absolute path: below `/run/db`, or on a volume when `owner` is `engine`.
    pub path: String,
    /// Text; `${secret:NAME}` is filled with the secret's current value, only below `/run/db`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Instead of `content`: a file that the verb wrote, relative to `$DB_SCRATCH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Octal mode, e.g. `"0600"` (the default).
    #[serde(default = "default_mode")]
    pub mode: String,
    /// Who writes the file after its first time.
    #[serde(default)]
    pub owner: FileOwner,
}

fn default_mode() -> String {
    "0600".to_owned()
}

/// Who owns a rendered file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FileOwner {
    /// Rewritten at every start and change; part of the restart decision.
    #[default]
    Standard,
    /// Written when the verb renders it, rewritten by the engine afterwards.
    Engine,
}

/// Output of `prepare`: what the volume holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrepareOutput {
    /// What the volume holds.
    pub state: DataState,
    /// For people.
    #[serde(default)]
    pub message: String,
}

/// What a member's volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DataState {
    /// No data. Permits nothing by itself.
    Fresh,
    /// Data of this member, fit to start.
    Existing,
    /// A clone or join that did not finish; to be cloned again.
    Incomplete,
    /// Too long offline to rejoin; to be cloned again.
    Stale,
    /// The member was removed from the cluster; never to be started.
    Retired,
    /// Data of another cluster, member or version; never to be started.
    Foreign,
    /// Data that cannot be read; never to be started or overwritten.
    Unreadable,
}

/// Output of `found` and `join`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JoinOutput {
    /// The engine's own id of the member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_id: Option<String>,
}

/// Output of `role`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoleOutput {
    /// The role in the group.
    pub role: Role,
    /// Whether this member takes writes now.
    pub writable: bool,
    /// The engine's term or epoch of leadership, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    /// Position of the data; absent = unknown, which is not 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
}

/// A member's role in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Takes writes, or would.
    Leader,
    /// Follows a leader.
    Follower,
    /// Equal among equals.
    Peer,
    /// Runs without a vote.
    Observer,
    /// Not known now, e.g. during an election.
    Unknown,
}

/// Position of a member's data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// Monotonic within one history.
    pub offset: u64,
    /// Opaque name of the history; offsets of different histories do not compare.
    #[serde(default)]
    pub history: String,
}

/// Output of `health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthOutput {
    /// The process.
    pub process: ProcessHealth,
    /// Whether the member can serve its role now.
    pub ready: bool,
    /// The engine's verdict on its cluster, as this member sees it.
    #[serde(default)]
    pub cluster: ClusterHealth,
    /// CamelCase reasons for anything that is not well.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// One line for people.
    #[serde(default)]
    pub message: String,
}

/// Health of the engine's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ProcessHealth {
    /// It answers.
    Up,
    /// It is alive and not yet serving: loading, recovering, waiting for peers.
    Starting,
    /// It does not answer and should be restarted.
    Hung,
}

/// The engine's verdict on its cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ClusterHealth {
    /// All is well.
    Ok,
    /// Serves with less redundancy than wanted.
    Degraded,
    /// Some data cannot be served.
    PartlyLost,
    /// No majority.
    NoQuorum,
    /// Not known.
    #[default]
    Unknown,
}

/// Output of `membership`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MembershipOutput {
    /// The engine's version of its member list, opaque.
    #[serde(default)]
    pub version: String,
    /// The engine's members.
    pub members: Vec<EngineMember>,
}

/// A member as the engine knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EngineMember {
    /// The standard's member id, when the image can tell; absent for a member that is in no request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The engine's own id.
    pub engine_id: String,
    /// Whether it votes.
    pub vote: bool,
    /// Whether the engine sees it alive and in sync; absent = not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up: Option<bool>,
}

/// Output of `can-disrupt`: the largest subset of `params.members` that may be disrupted together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanDisruptOutput {
    /// Ids that may go together now; empty with `blockers` in the result.
    pub allowed: Vec<String>,
}

/// Output of `reconfigure`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ReconfigureOutput {
    /// Values read back from the engine, for keys in `request.config`.
    pub values: BTreeMap<String, String>,
    /// Keys whose wanted value waits for a restart.
    pub pending_restart: Vec<String>,
}
