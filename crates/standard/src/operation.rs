//! One-shot acts that the operator asks of an agent (SPEC appendix A).
//!
//! Every operation has an id. The agent journals id and outcome on the volume, so that an operation asked again after a
//! lost reply runs at most once to success, and its outcome can be read again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::request::Reason;
use crate::result::{Exit, VerbResult};
use crate::verb::Verb;

/// `POST /v1/operations`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationRequest {
    /// At most 200 characters, `[A-Za-z0-9._/-]`. The same id always means the same act.
    pub id: String,
    /// Epoch of the operator's leadership; the agent refuses an older one than it has seen (HTTP 409).
    pub operator_epoch: u64,
    /// View that the operator decided on; the agent refuses when its own is older (HTTP 409), so that the verb knows the same members.
    pub view_generation: u64,
    /// What to do.
    pub act: Act,
    /// Why.
    pub reason: Reason,
    /// Member acted on, when not the receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// A healthy peer to work through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// The verb's parameters.
    #[serde(default)]
    pub params: Map<String, Value>,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "kind", content = "verb")]
pub enum Act {
    /// Runs a verb of the image. `found` includes what belongs to founding: prepare, render, start, promote.
    Verb(Verb),
    /// Stops the engine gracefully and starts it again with freshly rendered files.
    Restart,
    /// Stops the engine gracefully and keeps it stopped.
    Stop,
}

/// Answer of `POST /v1/operations` and `GET /v1/operations/{id}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationReport {
    /// The operation.
    pub id: String,
    /// Where it is.
    pub state: OperationState,
    /// How often the verb was called.
    pub attempts: u32,
    /// Exit of the last call, when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Result of the last call.
    #[serde(default)]
    pub result: VerbResult,
}

/// Where an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OperationState {
    /// At work, or to be called again by the agent (*pending*, *later*, *busy*).
    Running,
    /// Done: the target state was read.
    Done,
    /// Ended without success; asking again with the same id starts another attempt.
    Failed,
}
