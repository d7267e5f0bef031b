//! `/healthz`, `/readyz` and `/metrics` of the operator. They tell counts and reasons, never a name of a user's object.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use backlot_api::Database;

use crate::metrics::{DatabaseLabels, Metrics};
use crate::read::Caches;

/// What the server tells about.
#[derive(Clone)]
pub struct Observed {
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Caches.
    pub caches: Caches,
    /// Name of this process as a candidate for leadership.
    pub identity: String,
}

/// The routes.
pub fn app(observed: Observed) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/identity", get(|State(observed): State<Observed>| async move { observed.identity }))
        .route("/metrics", get(metrics))
        .with_state(observed)
}

async fn ready(State(observed): State<Observed>) -> (StatusCode, &'static str) {
    if observed.caches.are_ready() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "first lists are not complete")
    }
}

async fn metrics(State(observed): State<Observed>) -> String {
    let databases = &observed.metrics.databases;
    databases.clear();
    for database in observed.caches.databases.all() {
        databases.get_or_create(&labels(&database)).inc();
    }
    observed.metrics.text()
}

fn labels(database: &Database) -> DatabaseLabels {
    let conditions = database.status.iter().flat_map(|status| &status.conditions);
    let ready =
        conditions.filter(|condition| condition.type_ == "Ready").map(|c| (c.reason.clone(), c.status.clone())).next();
    let (reason, ready) = ready.unwrap_or_else(|| ("New".to_owned(), "Unknown".to_owned()));
    DatabaseLabels { class: database.spec.class.clone(), reason, ready }
}
