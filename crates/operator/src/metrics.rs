//! Prometheus metrics: what answers "how many, how long, why not".

use std::sync::Mutex;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Labels of the databases gauge.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DatabaseLabels {
    /// Class.
    pub class: String,
    /// Reason of the Ready condition.
    pub reason: String,
    /// Status of the Ready condition.
    pub ready: String,
}

/// Labels of the pass counter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PassLabels {
    /// `database`, `class` or `routes`.
    pub kind: String,
    /// `ok` or `error`.
    pub outcome: String,
}

/// Labels of the request counter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// HTTP method.
    pub method: String,
    /// Whether it opens a watch.
    pub watch: String,
}

/// All metrics.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Databases by class and Ready.
    pub databases: Family<DatabaseLabels, Gauge>,
    /// Passes by kind and outcome.
    pub passes: Family<PassLabels, Counter>,
    /// Requests to the Kubernetes API.
    pub requests: Family<RequestLabels, Counter>,
    /// Seconds of passes over Databases.
    pub pass_seconds: Histogram,
    /// Epoch while this replica leads, 0 otherwise.
    pub epoch: Gauge<i64, AtomicI64>,
    /// Members watched.
    pub members_watched: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("backlot");
        let metrics = Self {
            databases: Family::default(),
            passes: Family::default(),
            requests: Family::default(),
            pass_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 8)),
            epoch: Gauge::default(),
            members_watched: Gauge::default(),
            registry: Mutex::default(),
        };
        registry.register("databases", "Databases by class and Ready condition", metrics.databases.clone());
        registry.register("passes", "Passes by kind and outcome", metrics.passes.clone());
        registry.register("api_requests", "Requests to the Kubernetes API by method", metrics.requests.clone());
        registry.register("database_pass_seconds", "Seconds of passes over Databases", metrics.pass_seconds.clone());
        registry.register("leader_epoch", "Epoch while this replica leads, 0 otherwise", metrics.epoch.clone());
        registry.register("members_watched", "Members whose agents are watched", metrics.members_watched.clone());
        Self { registry: Mutex::new(registry), ..metrics }
    }
}

impl Metrics {
    /// Counts a request to the Kubernetes API.
    pub fn count_request<B>(&self, request: &http::Request<B>) {
        let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let labels = RequestLabels { method: request.method().to_string(), watch: watch.to_string() };
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts a pass.
    pub fn count(&self, kind: &str, is_ok: bool, took: Duration) {
        let outcome = if is_ok { "ok" } else { "error" };
        self.passes.get_or_create(&PassLabels { kind: kind.to_owned(), outcome: outcome.to_owned() }).inc();
        if kind == "database" {
            self.pass_seconds.observe(took.as_secs_f64());
        }
    }

    /// The text for Prometheus.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = text::encode(&mut text, &registry) {
            tracing::warn!(%error, "metrics not written");
        }
        text
    }
}
