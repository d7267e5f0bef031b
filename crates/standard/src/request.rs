//! What a verb is told: the JSON file `$DB_REQUEST` (SPEC §6).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::manifest::DurabilityLevel;
use crate::verb::Verb;

/// A verb's request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Version of the standard that the caller speaks.
    pub standard: String,
    /// The verb called.
    pub verb: Verb,
    /// Stays the same when the call is repeated after a lost reply or *pending*.
    pub operation_id: String,
    /// 1 for the first call with this operation id.
    pub attempt: u32,
    /// Seconds until the call is killed.
    pub deadline_seconds: u32,
    /// The cluster.
    pub cluster: Cluster,
    /// Id of the member on which the verb runs; its entry is in `members`.
    #[serde(rename = "self")]
    pub self_id: String,
    /// Every member that the operator knows, of all components, dead and leaving ones too.
    pub members: Vec<Member>,
    /// Where the group is and where it goes.
    pub plan: Plan,
    /// What this member should be.
    pub intent: Intent,
    /// Id of the member acted on, when it is not `self`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Id of a healthy peer to work through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// The container's limits.
    pub resources: Resources,
    /// Every setting that the user gave.
    pub config: BTreeMap<String, String>,
    /// The settings with which the engine was started or last reconfigured; absent before the first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_config: Option<BTreeMap<String, String>>,
    /// The durability level that the user chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<DurabilityLevel>,
    /// Why the verb is called.
    pub reason: Reason,
    /// The verb's own parameters.
    #[serde(default)]
    pub params: Map<String, Value>,
}

/// The cluster that a member belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Identity of the cluster; a recreated Database has another.
    pub uid: String,
    /// Name of the Database.
    pub name: String,
    /// Immutable name for the engine: the Database's name and a short part of the uid.
    pub engine_name: String,
    /// Epoch of this group's leadership; verbs answer 23 to an older one than they have seen.
    pub epoch: u64,
    /// Whether the group was founded. An empty volume then never permits founding.
    pub founded: bool,
    /// Whether this member is the one that founds the group now: true only in calls that belong to the founding.
    pub founding: bool,
}

/// A member as the operator knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Identity: `<db>[-<component>][-<shard>]-<ordinal>`, also the pod's name.
    pub id: String,
    /// Number for engines that want one; never reused while data or registration of its former owner exists.
    pub numeric_id: u32,
    /// Immutable DNS name, resolvable before the member is ready.
    pub name: String,
    /// Present IP address; may change at any time, is never identity. Empty while unknown.
    #[serde(default)]
    pub address: String,
    /// Component.
    pub component: String,
    /// Shard, 0 for components with one group.
    pub shard: u32,
    /// Ordinal in its group.
    pub ordinal: u32,
    /// Failure domain, e.g. the node's zone. Empty while unknown.
    #[serde(default)]
    pub zone: String,
    /// Where it is in its life.
    pub state: MemberState,
    /// Whether it counts for quorum.
    pub vote: bool,
    /// Identity of its volume: a new volume has a new incarnation. Empty while unknown.
    #[serde(default)]
    pub incarnation: String,
    /// The engine's own id of it, as `found` or `join` answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_id: Option<String>,
}

/// Where a member is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum MemberState {
    /// Wanted; waits until the operator admits it.
    New,
    /// Admitted: it may start and join.
    Joining,
    /// Part of the engine's membership.
    Joined,
    /// `leave` was begun.
    Leaving,
    /// No longer part of it.
    Left,
    /// Lost with its volume.
    Dead,
}

/// Where the group is and where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Members joined now.
    pub current: u32,
    /// Members wanted.
    pub target: u32,
    /// Ids of members that come.
    pub joining: Vec<String>,
    /// Ids of members that go.
    pub leaving: Vec<String>,
}

/// What a member should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// The role wanted of `self`.
    pub role: IntentRole,
    /// Id of the group's leader, when one is decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Epoch in which that leader was decided.
    pub epoch: u64,
}

/// The role wanted of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum IntentRole {
    /// Take writes, after `promote`.
    Leader,
    /// Follow `intent.leader`.
    Follower,
    /// Not the caller's decision: members are equal, or the engine elects.
    None,
}

/// The container's limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Memory limit in bytes; 0 = none.
    pub memory_bytes: u64,
    /// CPU limit in thousandths of a core; 0 = none.
    pub cpu_millis: u64,
    /// Size of each volume in bytes, by name.
    pub volumes: BTreeMap<String, u64>,
}

/// Why a verb is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// The member or cluster is made.
    Create,
    /// A restart, asked for or after a crash.
    Restart,
    /// Settings changed.
    Config,
    /// The engine's version changes.
    Upgrade,
    /// The member leaves.
    Leave,
    /// Every member stops.
    StopAll,
    /// The Database is deleted.
    Delete,
    /// The node is drained.
    Drain,
    /// A periodic look.
    Poll,
}

impl Request {
    /// The entry of the member on which the verb runs.
    pub fn self_member(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.id == self.self_id)
    }
}
