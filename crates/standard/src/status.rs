//! What an agent reports (SPEC appendix A): `GET /v1/status`, and a line on every change of `GET /v1/watch`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::operation::OperationReport;
use crate::result::{DataState, HealthOutput, RoleOutput};

/// A member as its agent sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Version of the standard that the agent speaks.
    pub standard: String,
    /// Rises with every change of this report within one `boot_id`.
    pub revision: u64,
    /// Random name of this run of the container.
    pub boot_id: String,
    /// Version and SHA-256 of the running pilot.
    pub agent: AgentBuild,
    /// The member's id.
    pub member: String,
    /// The cluster's UID.
    pub cluster_uid: String,
    /// Identity of the volume, made by the agent when it first saw it empty; absent without a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<String>,
    /// Present address.
    pub address: String,
    /// Generation of the view held; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view_generation: Option<u64>,
    /// The engine.
    pub engine: EngineStatus,
    /// What `prepare` said last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataState>,
    /// Last answer of `role`; absent = unknown (engine not running, verb failed, answer too old).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<RoleOutput>,
    /// Last answer of `health`; absent = unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthOutput>,
    /// Settings.
    pub config: ConfigStatus,
    /// What keeps the member from going on, when something does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<Blocked>,
    /// Operations that are not yet done, and the last ones that ended (at most 8).
    #[serde(default)]
    pub operations: Vec<OperationReport>,
}

/// Which build of the agent runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentBuild {
    /// Version.
    pub version: String,
    /// SHA-256 of the binary, lower case hex.
    pub sha256: String,
}

/// The engine's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineStatus {
    /// Where it is.
    pub phase: EnginePhase,
    /// Starts since the container began.
    pub starts: u32,
    /// Unix seconds of the last start; absent when it never started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<i64>,
    /// How it last ended, with the tail of its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<EngineExit>,
}

/// Where the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EnginePhase {
    /// No view yet, or nothing permits a start (see `blocked`).
    Waiting,
    /// `prepare`, `found` or `clone` is at work.
    Preparing,
    /// Started, `health` does not answer *up* yet.
    Starting,
    /// Up.
    Running,
    /// A graceful stop is under way.
    Stopping,
    /// Stopped on order.
    Stopped,
    /// Ended by itself; the next start waits for its back-off.
    Crashed,
}

/// How the engine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineExit {
    /// Exit code, when it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Signal number, when a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Unix seconds.
    pub at: i64,
    /// Last lines of its output, at most 2 KiB.
    pub output_tail: String,
}

/// Settings of the member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigStatus {
    /// Generation of the view whose settings the engine was started with or live settings were last applied from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_generation: Option<u64>,
    /// Keys whose wanted value waits for a restart.
    #[serde(default)]
    pub pending_restart: Vec<String>,
    /// The user's settings that the running engine has taken up.
    #[serde(default)]
    pub applied: BTreeMap<String, String>,
    /// Why the last `render` or `reconfigure` failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Why a member does not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Blocked {
    /// CamelCase, stable, e.g. `ForeignVolume`, `VerbFailed`, `WaitingForFounding`.
    pub reason: String,
    /// What, why and what to do.
    pub message: String,
}
