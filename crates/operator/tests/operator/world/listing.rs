//! What an operator's caches hold: listed as a whole at one moment, so that a test decides when news arrive.

use std::fmt::Debug;

use backlot_api::{Database, DatabaseClass, labels};
use backlot_operator::cache::Cache;
use backlot_operator::read::Caches;
use backlot_testkit::api_server::ApiServer;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

/// Everything that the operator watches, at one moment.
#[derive(Clone)]
pub struct Listing {
    pub databases: Vec<Database>,
    classes: Vec<DatabaseClass>,
    pub pods: Vec<Pod>,
    pub claims: Vec<PersistentVolumeClaim>,
    pub volumes: Vec<PersistentVolume>,
    pub secrets: Vec<Secret>,
    pub services: Vec<Service>,
    pub slices: Vec<EndpointSlice>,
    pub budgets: Vec<PodDisruptionBudget>,
}

/// Objects with the label that the operator's watches select.
fn ours<K: Resource<DynamicType = ()> + DeserializeOwned>(server: &ApiServer) -> Vec<K> {
    let is_ours = |object: &K| object.labels().get(labels::MANAGED_BY).is_some_and(|value| value == "backlot");
    server.list::<K>("").into_iter().filter(is_ours).collect()
}

fn fill<K: Resource + Clone + Debug>(cache: &Cache<K>, objects: &[K]) {
    cache.take(Event::Init);
    for object in objects {
        cache.take(Event::InitApply(object.clone()));
    }
    cache.take(Event::InitDone);
}

impl Listing {
    pub fn of(server: &ApiServer) -> Self {
        let mut pods: Vec<Pod> = ours(server);
        // Decisions must not need it: the operator does not keep it.
        for pod in &mut pods {
            pod.spec = None;
        }
        Self {
            databases: server.list(""),
            classes: server.list(""),
            pods,
            claims: ours(server),
            volumes: server.list(""),
            secrets: ours(server),
            services: ours(server),
            slices: ours(server),
            budgets: ours(server),
        }
    }

    pub fn fill(&self, caches: &Caches) {
        fill(&caches.databases, &self.databases);
        fill(&caches.classes, &self.classes);
        fill(&caches.pods, &self.pods);
        fill(&caches.claims, &self.claims);
        fill(&caches.volumes, &self.volumes);
        fill(&caches.secrets, &self.secrets);
        fill(&caches.services, &self.services);
        fill(&caches.slices, &self.slices);
        fill(&caches.budgets, &self.budgets);
    }
}
