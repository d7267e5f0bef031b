//! The in-memory API server as clients see it.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeMap;

use backlot_testkit::api_server::ApiServer;
use backlot_testkit::fault::{Fault, When};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
    WatchEvent, WatchParams,
};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn from<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn config_map(name: &str, data: &[(&str, &str)]) -> ConfigMap {
    let data: BTreeMap<&str, &str> = data.iter().copied().collect();
    from(json!({"metadata": {"name": name, "labels": {"app": name}}, "data": data}))
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("not an answer of the API server: {other}"),
    }
}

fn maps(client: Client) -> Api<ConfigMap> {
    Api::default_namespaced(client)
}

#[tokio::test]
async fn objects_are_created_read_listed_changed_and_deleted() {
    let server = ApiServer::new();
    let api = maps(server.client());
    let made = api.create(&PostParams::default(), &config_map("a", &[("k", "1")])).await.unwrap();
    assert!(made.uid().is_some() && made.resource_version().is_some() && made.creation_timestamp().is_some());
    let again = api.create(&PostParams::default(), &made).await.unwrap_err();
    assert_eq!(code(&again), 500, "a resourceVersion on creation is refused");
    let again = api.create(&PostParams::default(), &config_map("a", &[])).await.unwrap_err();
    assert_eq!(code(&again), 409);
    assert!(again.to_string().contains("already exists"));

    let mut changed = api.get("a").await.unwrap();
    changed.data = Some(BTreeMap::from([("k".to_owned(), "2".to_owned())]));
    let stored = api.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_ne!(stored.resource_version(), made.resource_version());
    let stale = api.replace("a", &PostParams::default(), &changed).await.unwrap_err();
    assert_eq!(code(&stale), 409);

    api.create(&PostParams::default(), &config_map("b", &[])).await.unwrap();
    let all = api.list(&ListParams::default()).await.unwrap();
    assert_eq!(all.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["a", "b"]);
    let some = api.list(&ListParams::default().labels("app in (b,c),app!=a")).await.unwrap();
    assert_eq!(some.items.len(), 1);
    let named = api.list(&ListParams::default().fields("metadata.name=a")).await.unwrap();
    assert_eq!(named.items.len(), 1);
    let refused = api.list(&ListParams::default().fields("data.k=2")).await.unwrap_err();
    assert_eq!(code(&refused), 400);

    let deleted = api.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(deleted.is_right(), "config maps answer a Status");
    assert_eq!(code(&api.get("a").await.unwrap_err()), 404);
}

#[tokio::test]
async fn a_continued_list_shows_the_revision_at_which_it_began() {
    let server = ApiServer::new();
    let api = maps(server.client());
    for name in ["a", "b", "c"] {
        api.create(&PostParams::default(), &config_map(name, &[])).await.unwrap();
    }
    let first = api.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (2, Some(1)));
    let token = first.metadata.continue_.unwrap();
    api.delete("c", &DeleteParams::default()).await.unwrap();
    let rest = api.list(&ListParams::default().limit(2).continue_token(&token)).await.unwrap();
    assert_eq!(rest.items[0].name_any(), "c");
    server.compact();
    let expired = api.list(&ListParams::default().limit(2).continue_token(&token)).await.unwrap_err();
    assert_eq!(code(&expired), 410);
}

#[tokio::test]
async fn writes_without_a_change_store_nothing() {
    let server = ApiServer::new();
    let connection = server.connect();
    let api = maps(connection.client());
    let apply = PatchParams::apply("operator");
    let wanted = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "1"}});
    let first = api.patch("a", &apply, &Patch::Apply(&wanted)).await.unwrap();
    let second = api.patch("a", &apply, &Patch::Apply(&wanted)).await.unwrap();
    let merged = api.patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "1"}}))).await.unwrap();
    let replaced = api.replace("a", &PostParams::default(), &merged).await.unwrap();
    for other in [second, merged, replaced] {
        assert_eq!(first.resource_version(), other.resource_version());
    }
    let changed: Vec<bool> = connection.writes().iter().map(|write| write.changed).collect();
    assert_eq!(changed, [true, false, false, false]);
}

#[tokio::test]
async fn apply_removes_what_its_manager_gave_up_and_nothing_else() {
    let server = ApiServer::new();
    let api: Api<Service> = Api::default_namespaced(server.client());
    let apply = |manager: &str| PatchParams::apply(manager);
    let service = |ports: Value, labels: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "labels": labels}, "spec": {"ports": ports}});
    let ports = json!([{"name": "sql", "port": 1}, {"name": "http", "port": 2}]);
    api.patch("a", &apply("one"), &Patch::Apply(service(ports, json!({"x": "1", "y": "1"})))).await.unwrap();
    let other = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "labels": {"z": "1"}},
        "spec": {"ports": [{"name": "http", "port": 2, "nodePort": 30002}]}});
    api.patch("a", &apply("two"), &Patch::Apply(other)).await.unwrap();
    let after = service(json!([{"name": "sql", "port": 1}]), json!({"x": "1"}));
    let stored = api.patch("a", &apply("one"), &Patch::Apply(after)).await.unwrap();
    assert_eq!(stored.labels().keys().collect::<Vec<_>>(), ["x", "z"]);
    let spec = stored.spec.unwrap();
    let left = spec.ports.unwrap();
    assert_eq!(left.len(), 2, "the other manager's port stays");
    assert_eq!((left[1].name.as_deref(), left[1].node_port), (Some("http"), Some(30002)));
    assert_eq!(left[0].protocol.as_deref(), Some("TCP"));
    assert!(spec.cluster_ip.is_some());
}

#[tokio::test]
async fn apply_conflicts_with_other_managers_unless_forced() {
    let server = ApiServer::new();
    let api = maps(server.client());
    let wanted =
        |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": value}});
    api.patch("a", &PatchParams::apply("one"), &Patch::Apply(wanted("1"))).await.unwrap();
    let refused = api.patch("a", &PatchParams::apply("two"), &Patch::Apply(wanted("2"))).await.unwrap_err();
    assert_eq!(code(&refused), 409);
    let kube::Error::Api(status) = refused else { unreachable!() };
    let cause = &status.details.unwrap().causes[0];
    assert_eq!((cause.reason.as_str(), cause.field.as_str()), ("FieldManagerConflict", ".data.k"));
    let shared = api.patch("a", &PatchParams::apply("two"), &Patch::Apply(wanted("1"))).await;
    assert!(shared.is_ok(), "the same value is shared");
    let forced = api.patch("a", &PatchParams::apply("two").force(), &Patch::Apply(wanted("2"))).await.unwrap();
    assert_eq!(forced.data.unwrap()["k"], "2");
    let edited = api.patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "3"}}))).await.unwrap();
    assert_eq!(edited.data.unwrap()["k"], "3");
    let refused = api.patch("a", &PatchParams::apply("two"), &Patch::Apply(wanted("2"))).await.unwrap_err();
    assert_eq!(code(&refused), 409, "an edit by hand takes the field over");
}

#[tokio::test]
async fn deletions_keep_to_their_preconditions() {
    let server = ApiServer::new();
    let api = maps(server.client());
    let made = api.create(&PostParams::default(), &config_map("a", &[])).await.unwrap();
    let with = |uid: Option<String>, resource_version: Option<String>| DeleteParams {
        preconditions: Some(Preconditions { uid, resource_version }),
        ..DeleteParams::default()
    };
    let wrong = api.delete("a", &with(Some("other".to_owned()), None)).await.unwrap_err();
    assert_eq!(code(&wrong), 409);
    let wrong = api.delete("a", &with(made.uid(), Some("1".to_owned()))).await.unwrap_err();
    assert_eq!(code(&wrong), 409);
    api.delete("a", &with(made.uid(), made.resource_version())).await.unwrap();
}

#[tokio::test]
async fn finalizers_and_grace_periods_hold_an_object() {
    let server = ApiServer::new();
    let api: Api<Pod> = Api::default_namespaced(server.client());
    let pod: Pod = from(json!({
        "metadata": {"name": "p", "finalizers": ["backlot.dev/hold"]},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i:1"}]},
    }));
    api.create(&PostParams::default(), &pod).await.unwrap();
    let going = api.delete("p", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(30));
    let shorter = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    let going = api.delete("p", &shorter).await.unwrap().left().unwrap();
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(0));
    let added = json!({"metadata": {"finalizers": ["backlot.dev/hold", "backlot.dev/more"]}});
    let refused = api.patch("p", &PatchParams::default(), &Patch::Merge(added)).await.unwrap_err();
    assert_eq!(code(&refused), 422);
    let released = json!({"metadata": {"finalizers": null}});
    api.patch("p", &PatchParams::default(), &Patch::Merge(released)).await.unwrap();
    assert!(api.get_opt("p").await.unwrap().is_none());
}

#[tokio::test]
async fn built_in_objects_get_their_defaults_and_keep_what_is_immutable() {
    let server = ApiServer::new();
    let pods: Api<Pod> = Api::default_namespaced(server.client());
    let pod: Pod = from(json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i:1", "resources": {"limits": {"memory": "1024Mi"}},
            "readinessProbe": {"httpGet": {"port": 1}}}]},
    }));
    let made = pods.create(&PostParams::default(), &pod).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    let spec = made.spec.unwrap();
    assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
    let requests = spec.containers[0].resources.clone().unwrap().requests.unwrap();
    assert_eq!(requests["memory"].0, "1Gi");
    let hostname = json!({"spec": {"hostname": "other"}});
    let refused = pods.patch("p", &PatchParams::default(), &Patch::Merge(hostname)).await.unwrap_err();
    assert_eq!(code(&refused), 422);

    let claims: Api<PersistentVolumeClaim> = Api::default_namespaced(server.client());
    let claim: PersistentVolumeClaim = from(json!({
        "metadata": {"name": "c"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }));
    let made = claims.create(&PostParams::default(), &claim).await.unwrap();
    assert_eq!(made.finalizers(), ["kubernetes.io/pvc-protection"]);
    let class = json!({"spec": {"storageClassName": "fast"}});
    let refused = claims.patch("c", &PatchParams::default(), &Patch::Merge(class)).await.unwrap_err();
    assert_eq!(code(&refused), 422);
}

fn things() -> CustomResourceDefinition {
    from(json!({
        "metadata": {"name": "things.test.dev"},
        "spec": {
            "group": "test.dev",
            "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.members", "statusReplicasPath": ".status.members"}},
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {
                    "spec": {"type": "object", "required": ["size"], "properties": {
                        "size": {"type": "integer", "minimum": 1},
                        "members": {"type": "integer", "default": 3},
                        "mode": {"type": "string", "enum": ["a", "b"]},
                    }},
                    "status": {"type": "object", "properties": {
                        "members": {"type": "integer"},
                        "conditions": {"type": "array", "x-kubernetes-list-type": "map",
                            "x-kubernetes-list-map-keys": ["type"],
                            "items": {"type": "object", "required": ["type"], "properties": {
                                "type": {"type": "string"}, "status": {"type": "string"}}}},
                    }},
                }}},
            }],
        },
    }))
}

fn thing_api(client: Client) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("test.dev", "v1", "Thing"));
    Api::default_namespaced_with(client, &resource)
}

fn thing(name: &str, spec: &Value) -> DynamicObject {
    from(json!({"apiVersion": "test.dev/v1", "kind": "Thing", "metadata": {"name": name}, "spec": spec}))
}

#[tokio::test]
async fn custom_objects_follow_their_definition() {
    let server = ApiServer::new();
    server.define(&things()).unwrap();
    let api = thing_api(server.client());
    let made = api.create(&PostParams::default(), &thing("t", &json!({"size": 1, "odd": true}))).await.unwrap();
    assert_eq!(made.data["spec"], json!({"size": 1, "members": 3}), "defaulted and pruned");
    for wrong in [json!({"size": 0}), json!({}), json!({"size": "1"}), json!({"size": 1, "mode": "c"})] {
        let refused = api.create(&PostParams::default(), &thing("u", &wrong)).await.unwrap_err();
        assert_eq!(code(&refused), 422, "{wrong}");
    }

    let status = json!({"status": {"members": 2}, "spec": {"size": 9}});
    let reported = api.patch_status("t", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    assert_eq!((reported.metadata.generation, &reported.data["spec"]["size"]), (Some(1), &json!(1)));
    let ignored =
        api.patch("t", &PatchParams::default(), &Patch::Merge(json!({"status": {"members": 7}}))).await.unwrap();
    assert_eq!(ignored.data["status"]["members"], 2);
    assert_eq!(ignored.resource_version(), reported.resource_version());
    let grown = api.patch("t", &PatchParams::default(), &Patch::Merge(json!({"spec": {"size": 5}}))).await.unwrap();
    assert_eq!(grown.metadata.generation, Some(2));

    let scale = api.get_scale("t").await.unwrap();
    assert_eq!(scale.status.unwrap().replicas, 2);
    let scaled = Patch::Merge(json!({"spec": {"replicas": 5}}));
    api.patch_scale("t", &PatchParams::default(), &scaled).await.unwrap();
    assert_eq!(api.get("t").await.unwrap().data["spec"]["members"], 5);
}

#[tokio::test]
async fn conditions_of_different_managers_live_beside_each_other() {
    let server = ApiServer::new();
    server.define(&things()).unwrap();
    let api = thing_api(server.client());
    api.create(&PostParams::default(), &thing("t", &json!({"size": 1}))).await.unwrap();
    let report = |kind: &str, status: &str| {
        json!({"apiVersion": "test.dev/v1", "kind": "Thing", "metadata": {"name": "t"},
            "status": {"conditions": [{"type": kind, "status": status}]}})
    };
    let apply = |manager: &str, body: Value| {
        let api = api.clone();
        let params = PatchParams::apply(manager);
        async move { api.patch_status("t", &params, &Patch::Apply(body)).await }
    };
    apply("one", report("Ready", "True")).await.unwrap();
    let both = apply("two", report("Backup", "False")).await.unwrap();
    assert_eq!(both.data["status"]["conditions"].as_array().unwrap().len(), 2);
    let refused = apply("two", report("Ready", "False")).await.unwrap_err();
    assert_eq!(code(&refused), 409);
    let empty = json!({"apiVersion": "test.dev/v1", "kind": "Thing", "metadata": {"name": "t"}, "status": {}});
    let left = apply("one", empty).await.unwrap();
    assert_eq!(left.data["status"]["conditions"], json!([{"type": "Backup", "status": "False"}]));
}

#[tokio::test]
async fn a_watch_shows_every_change_once_and_ends_when_it_expires() {
    let server = ApiServer::new();
    let connection = server.connect();
    let api = maps(connection.client());
    api.create(&PostParams::default(), &config_map("a", &[])).await.unwrap();
    let from = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let params = WatchParams::default().labels("app=b");
    let mut events = api.watch(&params, &from).await.unwrap().boxed();
    let other = maps(server.client());
    other.create(&PostParams::default(), &config_map("b", &[])).await.unwrap();
    connection.freeze_cache();
    other.patch("b", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "1"}}))).await.unwrap();
    let relabelled = json!({"metadata": {"labels": {"app": "c"}}});
    other.patch("b", &PatchParams::default(), &Patch::Merge(relabelled)).await.unwrap();
    let kind = |event: &WatchEvent<ConfigMap>| match event {
        WatchEvent::Added(_) => "added".to_owned(),
        WatchEvent::Modified(_) => "modified".to_owned(),
        WatchEvent::Deleted(_) => "deleted".to_owned(),
        WatchEvent::Bookmark(_) => "bookmark".to_owned(),
        WatchEvent::Error(status) => status.code.to_string(),
    };
    assert_eq!(kind(&events.try_next().await.unwrap().unwrap()), "added");
    assert!(futures::poll!(events.try_next()).is_pending(), "a frozen watch shows nothing new");
    let cached = api.get("b").await.unwrap();
    assert_eq!(cached.labels()["app"], "c", "a fresh read is fresh");
    let stale = api.list(&ListParams::default().match_any().labels("app=b")).await.unwrap();
    assert_eq!(stale.items.len(), 1, "a cached read is stale");
    connection.thaw_cache();
    assert_eq!(kind(&events.try_next().await.unwrap().unwrap()), "modified");
    assert_eq!(kind(&events.try_next().await.unwrap().unwrap()), "deleted");
    server.send_bookmarks();
    assert_eq!(kind(&events.try_next().await.unwrap().unwrap()), "bookmark");
    server.expire_watches();
    assert_eq!(kind(&events.try_next().await.unwrap().unwrap()), "410");
    assert!(events.try_next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_watcher_recovers_from_410_and_dropped_watches() {
    let server = ApiServer::new();
    let api = maps(server.client());
    let mut seen = kube::runtime::watcher(api.clone(), kube::runtime::watcher::Config::default()).boxed();
    let mut applied = vec![];
    for (round, name) in ["a", "b", "c"].into_iter().enumerate() {
        api.create(&PostParams::default(), &config_map(name, &[])).await.unwrap();
        loop {
            use kube::runtime::watcher::Event;
            if let Ok(Event::Apply(object) | Event::InitApply(object)) = seen.next().await.unwrap() {
                applied.push(object.name_any());
            }
            if applied.last().map(String::as_str) == Some(name) {
                break;
            }
        }
        if round == 0 {
            server.drop_watches();
        } else {
            server.compact();
            server.expire_watches();
        }
    }
    assert!(applied.ends_with(&["c".to_owned()]), "{applied:?}");
}

#[tokio::test]
async fn faults_happen_at_the_counted_request_and_are_recorded() {
    let server = ApiServer::new();
    let connection = server.connect();
    let api = maps(connection.client());
    connection.inject(When::Write(1), Fault::LoseReply);
    connection.inject(When::Write(2), Fault::Conflict);
    connection
        .inject(When::Matching { method: None, path: "/configmaps/slow".to_owned(), times: 2 }, Fault::TooManyRequests);
    connection.inject(When::Write(3), Fault::CrashAfter);
    let lost = api.create(&PostParams::default(), &config_map("a", &[])).await.unwrap_err();
    assert!(matches!(lost, kube::Error::Service(_)), "{lost}");
    assert!(api.get_opt("a").await.unwrap().is_some(), "the write was carried out");
    let refused = api.create(&PostParams::default(), &config_map("b", &[])).await.unwrap_err();
    assert_eq!(code(&refused), 409);
    for _ in 0..2 {
        assert_eq!(code(&api.get("slow").await.unwrap_err()), 429);
    }
    assert_eq!(code(&api.get("slow").await.unwrap_err()), 404);
    assert!(!connection.crashed());
    api.create(&PostParams::default(), &config_map("c", &[])).await.unwrap_err();
    connection.crash().await;
    assert!(matches!(api.get("a").await.unwrap_err(), kube::Error::Service(_)));
    let names: Vec<String> = server.list::<ConfigMap>("default").iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["a", "c"]);
    let writes = connection.writes();
    assert_eq!(writes.iter().map(|write| write.changed).collect::<Vec<_>>(), [true, false, true]);
    assert!(writes[0].request_bytes > 20);
    assert_eq!(writes[0].path, "/api/v1/namespaces/default/configmaps");
}

#[tokio::test]
async fn an_eviction_keeps_to_the_budget() {
    let server = ApiServer::new();
    let client = server.client();
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod: Pod = from(json!({"metadata": {"name": "p", "labels": {"db": "x"}},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}}));
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let budget: PodDisruptionBudget = from(json!({"metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"db": "x"}}}}));
    let budgets: Api<PodDisruptionBudget> = Api::default_namespaced(client);
    budgets.create(&PostParams::default(), &budget).await.unwrap();
    let refused = pods.evict("p", &kube::api::EvictParams::default()).await.unwrap_err();
    assert_eq!(code(&refused), 429);
    server
        .edit_status::<PodDisruptionBudget>("default", "b", |budget| {
            budget.status.as_mut().unwrap().disruptions_allowed = 1;
        })
        .unwrap();
    pods.evict("p", &kube::api::EvictParams::default()).await.unwrap();
    assert!(pods.get_opt("p").await.unwrap().is_none());
}

#[tokio::test]
async fn a_namespace_that_goes_takes_no_new_objects() {
    let server = ApiServer::new();
    let absent: Api<ConfigMap> = Api::namespaced(server.client(), "elsewhere");
    let refused = absent.create(&PostParams::default(), &config_map("a", &[])).await.unwrap_err();
    assert_eq!(code(&refused), 404);
    server.create_namespace("elsewhere");
    server.delete::<k8s_openapi::api::core::v1::Namespace>("", "elsewhere", None).unwrap();
    let refused = absent.create(&PostParams::default(), &config_map("a", &[])).await.unwrap_err();
    assert_eq!(code(&refused), 403);
}
