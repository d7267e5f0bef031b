//! The cluster view: what the operator tells the agents (SPEC appendix A). Signed with the cluster's key, numbered, newest wins.
//!
//! A member keeps its last view on its volume, so that it starts again with the operator and the API server away.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::manifest::DurabilityLevel;
use crate::request::{Member, Plan, Resources};

/// Everything that the members of a cluster must know about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterView {
    /// Version of the standard that the operator speaks.
    pub standard: String,
    /// Number of the view; a view with a lower number than the one held is refused.
    pub generation: u64,
    /// Epoch of the operator's leadership; a view of an older epoch is refused.
    pub operator_epoch: u64,
    /// Identity of the cluster.
    pub cluster_uid: String,
    /// Name of the Database.
    pub cluster_name: String,
    /// Immutable name for the engine.
    pub engine_name: String,
    /// Groups of every component.
    pub groups: Vec<GroupView>,
    /// Members of every group.
    pub members: Vec<Member>,
    /// Wanted state by component.
    pub components: BTreeMap<String, ComponentView>,
    /// Chosen durability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<DurabilityLevel>,
}

/// A group (shard) of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupView {
    /// Component.
    pub component: String,
    /// Shard.
    pub shard: u32,
    /// The member that the operator's durable record names as founder; nobody else ever founds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founder: Option<String>,
    /// Whether `found` was done.
    pub founded: bool,
    /// The decided leader, for `elections: agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Epoch of that decision.
    pub epoch: u64,
    /// Where the group is and where it goes.
    pub plan: Plan,
}

/// What is wanted of every member of a component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComponentView {
    /// Settings that the user gave.
    pub config: BTreeMap<String, String>,
    /// The container's limits.
    pub resources: Resources,
}

/// A view as it travels and is stored: the signature covers the exact bytes of `payload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignedView {
    /// [`ClusterView`] as JSON text.
    pub payload: String,
    /// Base64 (standard alphabet, padded) of the Ed25519 signature of `payload` by the key of the cluster's CA certificate.
    pub signature: String,
}

impl ClusterView {
    /// The group of a member.
    pub fn group_of(&self, member: &Member) -> Option<&GroupView> {
        self.groups.iter().find(|group| group.component == member.component && group.shard == member.shard)
    }

    /// The member with this id.
    pub fn member(&self, id: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }
}
