//! Events: what happened, once each, as a readable story in `kubectl describe`.
//!
//! kube's own recorder folds events of one reason into a series and keeps the first text; here each member's joining is a line.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};

/// Longest text of an event that the API server takes.
const LONGEST_NOTE: usize = 1000;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Whether a person should look.
    pub is_warning: bool,
    /// CamelCase, stable.
    pub reason: String,
    /// For people.
    pub note: String,
}

/// Writes events; one that cannot be written is lost, and said in the log.
#[derive(Clone)]
pub struct Teller {
    client: Client,
}

impl Teller {
    /// A teller.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Writes one event about an object.
    pub async fn tell(&self, object: &ObjectReference, news: News) {
        let now = Timestamp::now();
        let name = object.name.clone().unwrap_or_default();
        let namespace = object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some("Reconcile".to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(news.note.chars().take(LONGEST_NOTE).collect()),
            reason: Some(news.reason),
            regarding: Some(object.clone()),
            reporting_controller: Some("backlot.dev/operator".to_owned()),
            reporting_instance: Some("backlot-operator".to_owned()),
            type_: Some(if news.is_warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Err(error) = api.create(&PostParams::default(), &event).await {
            tracing::debug!(object = name, %error, "event not written");
        }
    }
}
