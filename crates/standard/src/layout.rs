//! Where things lie inside a member's container. The operator's pod template and the agent agree on these paths only.

/// Directory with the agent's binary, an emptyDir that the init container fills; mounted read-write for in-place replacement.
pub const AGENT_DIR: &str = "/backlot/agent";
/// The agent's binary, first process of the engine container.
pub const AGENT_BINARY: &str = "/backlot/agent/backlot-agent";
/// The member's TLS identity, projected from the database's Secret: `ca.crt`, `tls.crt`, `tls.key` (PEM).
pub const IDENTITY_DIR: &str = "/backlot/identity";
/// Generated credentials, projected from the database's Secret: `<name>/current` and, during a rotation, `next`, `previous`.
pub const CREDENTIALS_DIR: &str = "/backlot/credentials";
/// tmpfs of the member: rendered files, secrets, scratch directories, sockets of the engine.
pub const RUN_DIR: &str = "/run/db";
/// Name of the agent's directory at the root of the first volume: identity stamp, last view, operation journal.
pub const STATE_DIR: &str = ".backlot";
/// The image's manifest.
pub const MANIFEST: &str = "/db/manifest.yaml";
/// The image's verbs, one executable per verb.
pub const VERBS_DIR: &str = "/db/verbs";
/// TCP port of the agent: mutual TLS 1.3; without a client certificate only `/livez` and `/readyz` answer.
pub const AGENT_PORT: u16 = 7443;

/// Environment variables that the pod template gives the agent; everything else comes with the cluster view.
pub mod env {
    /// The member's name (pod name), e.g. `orders-0`.
    pub const MEMBER: &str = "BACKLOT_MEMBER";
    /// The cluster's UID: a view or peer of another cluster is refused.
    pub const CLUSTER_UID: &str = "BACKLOT_CLUSTER_UID";
    /// The pod's present IP address (downward API).
    pub const POD_IP: &str = "BACKLOT_POD_IP";
}

/// DNS names in certificates: who is speaking is decided by these, never by addresses.
pub mod names {
    /// Name of the operator towards the agents of one cluster.
    pub fn operator(cluster_uid: &str) -> String {
        format!("operator.{cluster_uid}.backlot.internal")
    }
    /// Name of a member of one cluster.
    pub fn member(member: &str, cluster_uid: &str) -> String {
        format!("{member}.{cluster_uid}.backlot.internal")
    }
}
