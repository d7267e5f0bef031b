//! `Database`: what a user wants, the same for every type.

use std::collections::BTreeMap;

use backlot_standard::manifest::DurabilityLevel;
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a user wants of a database cluster.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "backlot.dev",
    version = "v1alpha1",
    kind = "Database",
    plural = "databases",
    shortname = "db",
    category = "backlot",
    namespaced,
    status = "DatabaseStatus",
    derive = "PartialEq",
    doc = "A database cluster. spec is the truth: scale, configure and pause by editing it.",
    validation = Rule::new("self.metadata.name.size() <= 32")
        .message("metadata.name: at most 32 characters, because members' names are made from it"),
    scale(
        spec_replicas_path = ".spec.members",
        status_replicas_path = ".status.members",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Class", type_ = "string", json_path = ".spec.class"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Members", type_ = "string", json_path = ".status.readyMembers"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.leader"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.summary"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseSpec {
    /// Name of the DatabaseClass. Immutable. List them with kubectl get databaseclasses.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.class is immutable; create another Database and move the data"))]
    pub class: String,
    /// Version of the class; the newest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub version: Option<String>,
    /// Members of each group, of every component that a cluster always has; the type's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 99))]
    pub members: Option<u32>,
    /// CPU and memory of each member.
    #[serde(default)]
    pub resources: Resources,
    /// Volume of each member.
    #[serde(default)]
    #[x_kube(validation = Rule::new("has(self.className) == has(oldSelf.className) && (!has(self.className) || self.className == oldSelf.className)").message("spec.storage.className is immutable"))]
    pub storage: Storage,
    /// Settings of the engine, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::settings")]
    pub config: BTreeMap<String, IntOrString>,
    /// What an acknowledged write survives; the type's first level when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<DurabilityLevel>,
    /// Where members may run.
    #[serde(default)]
    pub placement: Placement,
    /// Whether the operator leaves the database alone: it observes and keeps routes, and changes nothing else.
    #[serde(default)]
    pub paused: bool,
    /// What becomes of the volumes and credentials when the Database is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Deviations of single components.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub components: BTreeMap<String, ComponentOverride>,
}

/// CPU and memory of a member; requests equal limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Cores, e.g. "500m" or "2".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::quantity")]
    pub cpu: Option<IntOrString>,
    /// Bytes, e.g. "2Gi".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::quantity")]
    pub memory: Option<IntOrString>,
}

/// Volume of a member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Size, e.g. "20Gi"; 1Gi when absent. The size of existing volumes does not change yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::quantity")]
    pub size: Option<IntOrString>,
    /// Name of the StorageClass; the cluster's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
}

/// Where members may run. Members always prefer different nodes and zones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that members tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
}

/// What becomes of volumes and credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// They stay; a Database of the same name and class takes them back.
    #[default]
    Retain,
    /// They are deleted, after the pods.
    Delete,
}

/// Deviations of one component from the fields of the same name above.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentOverride {
    /// Members of each group of the component; 0 where the type can do without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 99))]
    pub members: Option<u32>,
    /// CPU and memory of each member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Size of each volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::quantity")]
    pub storage_size: Option<IntOrString>,
    /// Settings, merged over those above.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::settings")]
    pub config: BTreeMap<String, IntOrString>,
}

/// What is. Written only when it changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DatabaseStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Identity of the cluster: the Database's UID, or that of the earlier Database whose volumes it took back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_uid: Option<String>,
    /// Engine version that members run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Version of the class that was chosen at creation or by the last upgrade.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_version: Option<String>,
    /// Image that members run, pinned by digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Members that are part of the engine's membership.
    pub members: u32,
    /// Ready of wanted members, e.g. `3/3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_members: Option<String>,
    /// Member that takes writes, when there is just one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// One line for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Label selector of the members' pods, for /scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Secret with everything an application needs to connect (Service Binding).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binding: Option<BindingReference>,
    /// The last spec that was accepted: what members follow while a later one is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::any_object")]
    pub accepted_spec: Option<Box<DatabaseSpec>>,
    /// Groups and their members.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupStatus>,
    /// Ready, Available, Progressing, Degraded.
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Name of the binding Secret, in the Database's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BindingReference {
    /// Name of the Secret.
    pub name: String,
}

/// A group (shard) of a component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupStatus {
    /// Component.
    pub component: String,
    /// Shard.
    pub shard: u32,
    /// The only member that may ever found this group; written before it is told to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub founder: Option<Founder>,
    /// Whether it was founded.
    pub founded: bool,
    /// The decided leader, for types whose agents elect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Epoch of that decision.
    pub epoch: u64,
    /// Names of the members for which data was last spread, for types that rebalance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebalanced_for: Option<String>,
    /// How often data was spread.
    #[serde(skip_serializing_if = "is_zero")]
    pub rebalances: u64,
    /// Members.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberRecord>,
}

/// The founding record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Founder {
    /// The member.
    pub member: String,
    /// Identity of its volume.
    pub incarnation: String,
}

/// What is remembered of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberRecord {
    /// Name of the member and its pod.
    pub name: String,
    /// Ordinal in its group.
    pub ordinal: u32,
    /// Where it is in its life.
    pub state: backlot_standard::request::MemberState,
    /// Identity of its volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<String>,
    /// The engine's own id of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_id: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
