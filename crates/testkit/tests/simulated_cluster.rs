//! The simulated cluster: what its controllers do with an operator's objects.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeSet;

use backlot_testkit::api_server::ApiServer;
use backlot_testkit::simulated::{Cluster, Started, Workload};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn from<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn claim(name: &str) -> PersistentVolumeClaim {
    from(json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "1Gi"}}},
    }))
}

fn pod(name: &str) -> Pod {
    from(json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"db": "x"}},
        "spec": {
            "containers": [{"name": "engine", "image": "fake:1"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": format!("data-{name}")}}],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"db": "x"}}}]}},
        },
    }))
}

fn three_members(server: &ApiServer) {
    for name in ["x-0", "x-1", "x-2"] {
        server.create(&claim(&format!("data-{name}"))).unwrap();
        server.create(&pod(name)).unwrap();
    }
}

fn get_pod(server: &ApiServer, name: &str) -> Pod {
    server.get("default", name).unwrap()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.clone().unwrap().conditions.unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn node(pod: &Pod) -> String {
    pod.spec.clone().unwrap().node_name.unwrap_or_default()
}

#[derive(Default)]
struct Journal {
    lines: Vec<String>,
    unready: BTreeSet<String>,
}

impl Workload for Journal {
    fn started(&mut self, started: &Started) {
        self.lines.push(format!("start {} on {:?}", started.pod.name_any(), started.volumes.get("data")));
    }
    fn ready(&mut self, pod: &Pod) -> bool {
        !self.unready.contains(&pod.name_any())
    }
    fn stopped(&mut self, _namespace: &str, pod: &str) {
        self.lines.push(format!("stop {pod}"));
    }
    fn volume_deleted(&mut self, volume: &str) {
        self.lines.push(format!("delete {volume}"));
    }
}

#[test]
fn members_are_bound_scheduled_apart_and_become_ready() {
    let server = ApiServer::new();
    let mut cluster = Cluster::new(&server, Journal::default()).unwrap();
    three_members(&server);
    cluster.workload().unready.insert("x-1".to_owned());
    cluster.settle().unwrap();
    let nodes: BTreeSet<String> = ["x-0", "x-1", "x-2"].iter().map(|name| node(&get_pod(&server, name))).collect();
    assert_eq!(nodes.len(), 3);
    assert!(is_ready(&get_pod(&server, "x-0")) && !is_ready(&get_pod(&server, "x-1")));
    assert_eq!(cluster.workload().lines.len(), 3);
    let bound: PersistentVolumeClaim = server.get("default", "data-x-0").unwrap();
    assert_eq!(bound.status.unwrap().phase.as_deref(), Some("Bound"));
    assert!(!cluster.step().unwrap(), "a settled cluster stores nothing");
}

#[test]
fn a_deleted_pod_comes_back_to_the_node_of_its_volume() {
    let server = ApiServer::new();
    let mut cluster = Cluster::new(&server, Journal::default()).unwrap();
    three_members(&server);
    cluster.settle().unwrap();
    let before = get_pod(&server, "x-1");
    server.delete::<Pod>("default", "x-1", None).unwrap();
    assert!(get_pod(&server, "x-1").metadata.deletion_timestamp.is_some());
    cluster.settle().unwrap();
    assert!(server.get::<Pod>("default", "x-1").is_none());
    server.create(&pod("x-1")).unwrap();
    cluster.settle().unwrap();
    let after = get_pod(&server, "x-1");
    assert_eq!(node(&before), node(&after));
    assert_ne!(before.status.unwrap().pod_ip, after.status.unwrap().pod_ip);
    let lines = &cluster.workload().lines;
    assert_eq!(lines[1], lines[4], "the same volume: {lines:?}");
    assert_eq!(lines[3], "stop x-1");
}

#[test]
fn a_claim_in_use_stays_and_its_volume_goes_by_its_policy() {
    let server = ApiServer::new();
    let mut cluster = Cluster::new(&server, Journal::default()).unwrap();
    three_members(&server);
    cluster.settle().unwrap();
    let volume = |claim: &str| -> String {
        server.get::<PersistentVolumeClaim>("default", claim).unwrap().spec.unwrap().volume_name.unwrap()
    };
    let (kept, lost) = (volume("data-x-0"), volume("data-x-1"));
    server
        .edit::<PersistentVolume>("", &kept, |volume| {
            volume.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Retain".to_owned());
        })
        .unwrap();
    for claim in ["data-x-0", "data-x-1"] {
        server.delete::<PersistentVolumeClaim>("default", claim, None).unwrap();
    }
    cluster.settle().unwrap();
    assert!(server.get::<PersistentVolumeClaim>("default", "data-x-0").is_some(), "a pod uses it");
    for name in ["x-0", "x-1"] {
        server.delete::<Pod>("default", name, None).unwrap();
    }
    cluster.settle().unwrap();
    assert!(server.get::<PersistentVolumeClaim>("default", "data-x-0").is_none());
    let kept_volume: PersistentVolume = server.get("", &kept).unwrap();
    assert_eq!(kept_volume.status.unwrap().phase.as_deref(), Some("Released"));
    assert!(server.get::<PersistentVolume>("", &lost).is_none());
    assert!(cluster.workload().lines.contains(&format!("delete {lost}")));

    // Adoption: the volume is released of its old claim and named by a new one.
    server.edit::<PersistentVolume>("", &kept, |volume| volume.spec.as_mut().unwrap().claim_ref = None).unwrap();
    let mut again = claim("data-x-0");
    again.spec.as_mut().unwrap().volume_name = Some(kept.clone());
    server.create(&again).unwrap();
    cluster.settle().unwrap();
    let adopted: PersistentVolumeClaim = server.get("default", "data-x-0").unwrap();
    assert_eq!(adopted.status.unwrap().phase.as_deref(), Some("Bound"));
}

#[test]
fn volumes_grow_when_their_class_permits() {
    let server = ApiServer::new();
    let mut cluster = Cluster::new(&server, ()).unwrap();
    three_members(&server);
    cluster.settle().unwrap();
    let grow = |size: &str| {
        server.edit::<PersistentVolumeClaim>("default", "data-x-0", |claim| {
            let resources = claim.spec.as_mut().unwrap().resources.as_mut().unwrap();
            resources.requests.as_mut().unwrap().get_mut("storage").unwrap().0 = size.to_owned();
        })
    };
    cluster.trouble.resizing = true;
    grow("2048Mi").unwrap();
    cluster.settle().unwrap();
    let size = || {
        let claim: PersistentVolumeClaim = server.get("default", "data-x-0").unwrap();
        claim.status.unwrap().capacity.unwrap()["storage"].0.clone()
    };
    assert_eq!(size(), "1Gi");
    cluster.trouble.resizing = false;
    cluster.settle().unwrap();
    assert_eq!(size(), "2Gi");
    assert!(grow("1Gi").is_err(), "a volume does not shrink");
}

#[test]
fn a_silent_node_marks_its_pods_after_their_toleration_and_starts_them_when_it_is_back() {
    let server = ApiServer::new();
    let mut cluster = Cluster::new(&server, Journal::default()).unwrap();
    three_members(&server);
    cluster.settle().unwrap();
    let silent = node(&get_pod(&server, "x-2"));
    cluster.fail_node(&silent).unwrap();
    cluster.settle().unwrap();
    let pod = get_pod(&server, "x-2");
    assert!(!is_ready(&pod) && pod.metadata.deletion_timestamp.is_none());
    server.advance(SignedDuration::from_secs(301));
    cluster.settle().unwrap();
    assert!(get_pod(&server, "x-2").metadata.deletion_timestamp.is_some(), "it stays Terminating");
    cluster.restore_node(&silent).unwrap();
    cluster.settle().unwrap();
    assert!(server.get::<Pod>("default", "x-2").is_none());
}

#[test]
fn services_get_endpoints_and_budgets_their_counts() {
    let server = ApiServer::new();
    let mut cluster = Cluster::new(&server, Journal::default()).unwrap();
    three_members(&server);
    let service: Service = from(json!({"metadata": {"name": "x", "namespace": "default"},
        "spec": {"selector": {"db": "x"}, "ports": [{"name": "sql", "port": 5432}]}}));
    server.create(&service).unwrap();
    let budget: PodDisruptionBudget = from(json!({"metadata": {"name": "x", "namespace": "default"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"db": "x"}}}}));
    server.create(&budget).unwrap();
    cluster.workload().unready.insert("x-1".to_owned());
    cluster.settle().unwrap();
    let slice: EndpointSlice = server.get("default", "x-simulated").unwrap();
    let ready: Vec<bool> =
        slice.endpoints.iter().map(|endpoint| endpoint.conditions.clone().unwrap().ready.unwrap()).collect();
    assert_eq!(ready, [true, false, true]);
    let allowed = || server.get::<PodDisruptionBudget>("default", "x").unwrap().status.unwrap().disruptions_allowed;
    assert_eq!(allowed(), 0);
    cluster.workload().unready.clear();
    cluster.settle().unwrap();
    assert_eq!(allowed(), 1);
}

#[test]
fn owned_objects_go_with_their_owner_and_namespaces_with_everything() {
    let server = ApiServer::new();
    let mut cluster = Cluster::new(&server, ()).unwrap();
    let owner: ConfigMap = server.create(&from(json!({"metadata": {"name": "o", "namespace": "default"}}))).unwrap();
    let dependent = |name: &str, uid: Option<String>| -> Secret {
        from(json!({"metadata": {"name": name, "namespace": "default", "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": uid, "controller": true, "blockOwnerDeletion": true}]}}))
    };
    server.create(&dependent("kept", owner.uid())).unwrap();
    server.create(&dependent("stray", Some("other".to_owned()))).unwrap();
    cluster.settle().unwrap();
    assert!(server.get::<Secret>("default", "kept").is_some());
    assert!(server.get::<Secret>("default", "stray").is_none(), "an owner with another UID is another object");
    let path = "/api/v1/namespaces/default/configmaps/o?propagationPolicy=Foreground";
    server.request(http::Method::DELETE, path, "application/json", &Value::Null);
    assert!(server.get::<ConfigMap>("default", "o").is_some(), "it waits for what it owns");
    cluster.settle().unwrap();
    assert!(server.get::<ConfigMap>("default", "o").is_none());
    assert!(server.get::<Secret>("default", "kept").is_none());

    three_members(&server);
    cluster.settle().unwrap();
    server.delete::<Namespace>("", "default", None).unwrap();
    cluster.settle().unwrap();
    assert!(server.get::<Namespace>("", "default").is_none());
    assert!(server.list::<PersistentVolume>("").is_empty());
}

#[test]
fn a_pod_waits_for_what_it_mounts_and_for_its_image() {
    let server = ApiServer::new();
    let mut cluster = Cluster::new(&server, Journal::default()).unwrap();
    let pod: Pod = from(json!({
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {
            "containers": [{"name": "c", "image": "bad:1"}],
            "volumes": [{"name": "identity", "projected": {"sources": [{"secret": {"name": "id"}}]}}],
        },
    }));
    server.create(&pod).unwrap();
    cluster.trouble.unpullable.insert("bad:1".to_owned());
    cluster.settle().unwrap();
    let reason = || {
        let status = get_pod(&server, "p").status.unwrap();
        status.container_statuses.unwrap()[0].state.clone().unwrap().waiting.map(|waiting| waiting.reason.unwrap())
    };
    assert_eq!(reason().as_deref(), Some("ContainerCreating"));
    server.create(&from::<Secret>(json!({"metadata": {"name": "id", "namespace": "default"}}))).unwrap();
    cluster.settle().unwrap();
    assert_eq!(reason().as_deref(), Some("ImagePullBackOff"));
    cluster.trouble.unpullable.clear();
    cluster.settle().unwrap();
    assert_eq!(reason(), None);
    cluster.restart_containers("default", "p").unwrap();
    let status = get_pod(&server, "p").status.unwrap();
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 1);
}
