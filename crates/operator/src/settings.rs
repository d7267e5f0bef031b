//! What the operator is told when it starts.

use std::net::SocketAddr;

use clap::Parser;

/// One operator for every database.
#[derive(Clone, Debug, Parser)]
#[command(name = "backlot-operator", version)]
pub struct Settings {
    /// Namespace to look after; all of them when absent.
    #[arg(long, env = "BACKLOT_NAMESPACE")]
    pub namespace: Option<String>,
    /// Namespace in which the operator itself runs: its lease and inspection pods are there.
    #[arg(long, env = "BACKLOT_OPERATOR_NAMESPACE", default_value = "backlot-system")]
    pub operator_namespace: String,
    /// Name of the operator's own pod.
    #[arg(long, env = "BACKLOT_POD_NAME", default_value = "backlot-operator")]
    pub pod_name: String,
    /// IP address of the operator's own pod, where other replicas ask whether it lives.
    #[arg(long, env = "BACKLOT_POD_IP", default_value = "127.0.0.1")]
    pub pod_ip: String,
    /// Image with the agent, for the init container of new pods.
    #[arg(long, env = "BACKLOT_AGENT_IMAGE")]
    pub agent_image: String,
    /// DNS domain of the Kubernetes cluster.
    #[arg(long, env = "BACKLOT_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, env = "BACKLOT_LISTEN", default_value = "[::]:8080")]
    pub listen: SocketAddr,
    /// Databases worked on at the same time.
    #[arg(long, env = "BACKLOT_WORKERS", default_value_t = 8)]
    pub workers: usize,
    /// Log filter, e.g. info or `backlot_operator=debug`.
    #[arg(long, env = "BACKLOT_LOG", default_value = "info,kube_client=warn,tower=warn")]
    pub log: String,
}
