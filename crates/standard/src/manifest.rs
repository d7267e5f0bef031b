//! `/db/manifest.yaml`: everything about a database type that is data (SPEC §3).
//!
//! Unknown fields are ignored, so that an older operator can read a newer minor version; unknown enum values are refused.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Setting;
use crate::verb::{Verb, VerbOverride};

/// The manifest of a database image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of the standard that the image is written for, e.g. `"0.1"`.
    pub standard: String,
    /// Name of the engine, e.g. `acme`: lower case letters, digits, dashes.
    pub engine: String,
    /// Version of the engine, e.g. `2.11.3`.
    pub version: String,
    /// Parts of a cluster; most types have one, named `data`.
    #[serde(default = "default_components")]
    pub components: Vec<Component>,
    /// Who elects the leader of a group.
    #[serde(default)]
    pub elections: Elections,
    /// What an acknowledged write survives; the first is the default of `spec.durability`.
    #[serde(default)]
    pub durability: Vec<Durability>,
    /// How members come and go.
    #[serde(default)]
    pub membership: Membership,
    /// Order of a rolling restart.
    #[serde(default)]
    pub roll: Roll,
    /// Ports of the engine.
    pub ports: Vec<Port>,
    /// Volumes of a member; the agent keeps its state at the root of the first.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Settings that users may change, by key.
    #[serde(default)]
    pub config: BTreeMap<String, Setting>,
    /// Secrets that are generated once per cluster and handed to verbs as files.
    #[serde(default)]
    pub secrets: Vec<SecretSpec>,
    /// How applications connect.
    pub binding: Binding,
    /// Limits of a start.
    #[serde(default)]
    pub startup: Startup,
    /// How the engine is stopped.
    #[serde(default)]
    pub stop: Stop,
    /// Security needs of the container.
    #[serde(default)]
    pub security: Security,
    /// How `role` and `health` are polled.
    #[serde(default)]
    pub poll: Poll,
    /// Where the engine's own Prometheus metrics are served.
    #[serde(default)]
    pub metrics: Option<Metrics>,
    /// Deviations from the defaults of how verbs are run.
    #[serde(default)]
    pub verbs: BTreeMap<Verb, VerbOverride>,
}

fn default_components() -> Vec<Component> {
    vec![Component::default()]
}

/// A part of a cluster whose members are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Component {
    /// Name; part of members' names when the type has several components.
    pub name: String,
    /// Whether a group of this component has a leader.
    pub leader: Leadership,
    /// How many members a group may have.
    pub members: MemberCount,
    /// Smallest memory of a working member, in bytes.
    pub minimum_memory_bytes: u64,
    /// Components that must be ready before this one is founded.
    pub depends_on: Vec<String>,
    /// Component whose cluster the members of this one join: while that has members, this one is not founded and its members do
    /// not vote (§9.11).
    pub joins: Option<String>,
    /// Range of numeric ids, `membership.ids` when absent.
    pub ids: Option<IdRange>,
    /// Whether members have no data: no volumes, no prepare, no join.
    pub stateless: bool,
}

impl Default for Component {
    fn default() -> Self {
        Self {
            name: "data".to_owned(),
            leader: Leadership::None,
            members: MemberCount::default(),
            minimum_memory_bytes: 64 * 1024 * 1024,
            depends_on: vec![],
            joins: None,
            ids: None,
            stateless: false,
        }
    }
}

/// Whether groups have leaders, and how many groups there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Leadership {
    /// Any healthy member serves reads and writes.
    #[default]
    None,
    /// One group, one leader that takes writes.
    One,
    /// Several groups (shards), a leader in each.
    PerShard,
}

/// Limits of the number of members in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberCount {
    /// Fewest members; 0 for a component that a cluster may do without.
    pub min: u32,
    /// Members when the user says nothing, of this component's own number where `min` is 0.
    pub default: u32,
    /// Most members.
    pub max: u32,
    /// Whether the number must be odd.
    pub odd: bool,
}

impl Default for MemberCount {
    fn default() -> Self {
        Self { min: 1, default: 3, max: 99, odd: false }
    }
}

/// Who elects a group's leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Elections {
    /// Nobody: members are equal.
    None,
    /// The engine itself; `role` reports the outcome.
    #[default]
    Engine,
    /// The agents. The engine always starts unable to accept writes; only `promote` makes it writable.
    Agent,
}

/// A durability level that the image can keep (SPEC §10).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Durability {
    /// The level, as users write it in `spec.durability`.
    pub level: DurabilityLevel,
    /// What a confirming member has done with the write.
    pub confirms: Confirms,
    /// Seconds of acknowledged writes that a failover may lose; absent for levels that lose nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_bound_seconds: Option<u32>,
}

/// Durability levels. There is no level that silently degrades.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DurabilityLevel {
    /// An acknowledged write is on a majority of the voters.
    Quorum,
    /// An acknowledged write is on the leader.
    Async,
}

/// What confirming a write means on a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Confirms {
    /// Written and flushed to stable storage.
    Flushed,
    /// Received in memory.
    Received,
}

/// How members come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Membership {
    /// Whether one member or a set of members changes at a time.
    pub change: MembershipChange,
    /// Whether new members may start beside each other.
    pub start: StartOrder,
    /// Whether the engine counts votes: shrinking and disruption then keep a majority of its own membership.
    pub quorum: bool,
    /// Range of the numeric ids that the engine accepts.
    pub ids: IdRange,
}

/// How many members may change at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum MembershipChange {
    /// One join or leave at a time.
    #[default]
    One,
    /// A set at a time.
    Set,
}

/// How new members start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum StartOrder {
    /// Beside each other.
    #[default]
    Parallel,
    /// One after the other, each joined before the next starts.
    Serial,
}

/// Inclusive range of numeric ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdRange {
    /// Smallest id.
    pub min: u32,
    /// Largest id.
    pub max: u32,
}

impl Default for IdRange {
    fn default() -> Self {
        Self { min: 1, max: 65_535 }
    }
}

/// Order of a rolling restart within a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Roll {
    /// Which role goes first.
    pub order: RollOrder,
}

/// Which role goes first in a rolling restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RollOrder {
    /// Followers, then the leader.
    #[default]
    LeaderLast,
    /// The leader, then followers.
    LeaderFirst,
    /// By ordinal.
    Any,
}

/// A port of the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Name, a Kubernetes port name (at most 15 characters).
    pub name: String,
    /// Number, 1 to 65535, not 7443 (the agent's).
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
    /// Protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// Who connects.
    pub purpose: PortPurpose,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
}

/// Who connects to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PortPurpose {
    /// Applications; part of the Services.
    Client,
    /// Members of the same cluster.
    Peer,
    /// Administrators.
    Admin,
    /// Prometheus.
    Metrics,
}

/// A volume of every member of a stateful component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Name; `data` by convention for the first.
    pub name: String,
    /// Absolute mount path. The engine keeps its files in a subdirectory; `.backlot` at the root is the agent's.
    pub path: String,
    /// Whether the engine takes up a grown volume while it runs.
    #[serde(default)]
    pub grow: Grow,
}

/// When a grown volume is taken up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Grow {
    /// While the engine runs.
    #[default]
    Online,
    /// At the next start.
    Restart,
}

/// A secret of the cluster, generated by the operator; verbs read `$DB_SECRETS/<name>/current`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretSpec {
    /// Name: lower case letters, digits, dashes.
    pub name: String,
    /// How its value is made.
    #[serde(default)]
    pub generate: Generate,
}

/// How a secret is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Generate {
    /// Characters, 16 to 128, from `A-Z a-z 0-9`.
    #[schemars(range(min = 16, max = 128))]
    pub length: u32,
}

impl Default for Generate {
    fn default() -> Self {
        Self { length: 32 }
    }
}

/// How applications connect: the source of the binding Secret (Service Binding specification, "Well-known Secret Entries").
///
/// Placeholders in `uri`, `extra`: `{username} {password} {database} {host} {port} {hosts} {hostnames} {ports}` (SPEC §3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// Value of the key `type`, e.g. `acme`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Component that applications connect to; the first when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// Name of the port that applications use.
    pub port: String,
    /// User name, when the engine has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Name of the secret that is the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret: Option<String>,
    /// Name of the database, when the engine has databases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Connection URI with placeholders.
    pub uri: String,
    /// More keys with placeholders, e.g. the list of all members with the settings that make failover quick.
    #[serde(default)]
    pub extra: BTreeMap<String, String>,
}

/// Limits of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Startup {
    /// Seconds after which an engine that answers no `health` is stopped and started again.
    pub max_seconds: u32,
}

impl Default for Startup {
    fn default() -> Self {
        Self { max_seconds: 300 }
    }
}

/// How the engine is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Stop {
    /// Signals in order; after the last one's time `SIGKILL` follows.
    pub sequence: Vec<StopSignal>,
    /// Exit codes that count as a clean stop, beside 0 and death by a signal of the sequence.
    pub ok_exit_codes: Vec<i32>,
}

impl Default for Stop {
    fn default() -> Self {
        Self { sequence: vec![StopSignal { signal: Signal::Term, seconds: 60 }], ok_exit_codes: vec![] }
    }
}

impl Stop {
    /// Seconds until `SIGKILL`.
    pub fn total_seconds(&self) -> u32 {
        self.sequence.iter().map(|step| step.seconds).sum()
    }
}

/// One step of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StopSignal {
    /// The signal.
    pub signal: Signal,
    /// Seconds to wait for the exit.
    pub seconds: u32,
}

/// Signals for stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Signal {
    /// SIGTERM.
    #[serde(rename = "SIGTERM")]
    Term,
    /// SIGINT.
    #[serde(rename = "SIGINT")]
    Int,
    /// SIGQUIT.
    #[serde(rename = "SIGQUIT")]
    Quit,
}

/// Security needs of the container. The root file system is read-only, always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Security {
    /// Writable directories (emptyDir), e.g. `/tmp`. `/run/db` is always there, in memory.
    pub scratch: Vec<String>,
    /// Size of `/dev/shm` in bytes; 0 leaves the runtime's default.
    pub shared_memory_bytes: u64,
    /// Numeric user id when the platform assigns none; must not be 0.
    pub uid: Option<u32>,
}

/// How `role` and `health` are polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Poll {
    /// Seconds between polls while the member is settled; the agent polls faster during changes.
    pub seconds: u32,
}

impl Default for Poll {
    fn default() -> Self {
        Self { seconds: 5 }
    }
}

/// Where the engine's own metrics are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// Name of the port.
    pub port: String,
    /// HTTP path.
    #[serde(default = "default_metrics_path")]
    pub path: String,
}

fn default_metrics_path() -> String {
    "/metrics".to_owned()
}
