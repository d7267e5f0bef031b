//! One test for each promise about what goes wrong around the operator.

use std::collections::BTreeSet;

use backlot_api::{Database, labels};
use backlot_operator::database;
use backlot_standard::manifest::Elections;
use backlot_testkit::fault::{Fault, When};
use http::Method;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::world::{self, NAME, NAMESPACE, World, from};

fn pod_uids(world: &World) -> BTreeSet<String> {
    world.server.list::<Pod>(NAMESPACE).iter().filter_map(ResourceExt::uid).collect()
}

/// Requests that changed something, by method and path, status and events aside.
fn changes(world: &World) -> Vec<(Method, String)> {
    let writes = world.connection.writes().into_iter().filter(|write| write.changed);
    let writes = writes.map(|write| (write.method, write.path));
    writes.filter(|(_, path)| !path.ends_with("/status") && !path.contains("/events")).collect()
}

async fn three(spec: Value) -> World {
    let mut body = json!({"members": 3});
    body.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let world = World::with_database(Elections::Engine, body).await;
    world.connection.clear_record();
    world
}

#[tokio::test(start_paused = true)]
async fn agents_that_cannot_be_reached_for_long_change_nothing() {
    let mut world = three(json!({})).await;
    let pods = pod_uids(&world);
    for name in ["orders-0", "orders-1", "orders-2"] {
        world.members.cut_off(NAMESPACE, name);
    }
    world.steps(40).await;
    assert_eq!(changes(&world), vec![]);
    assert_eq!(pod_uids(&world), pods);
    let degraded = world.condition(NAME, "Degraded");
    assert_eq!(degraded.0, "True", "{degraded:?}");
    assert!(degraded.2.contains("orders-0"), "{degraded:?}");
    for name in ["orders-0", "orders-1", "orders-2"] {
        world.members.reconnect(NAMESPACE, name);
    }
    world.settle().await;
    world.must_be_ready();
    assert_eq!(pod_uids(&world), pods);
}

#[tokio::test(start_paused = true)]
async fn a_shrink_while_agents_cannot_be_reached_removes_nobody() {
    let mut world = three(json!({})).await;
    for name in ["orders-0", "orders-1", "orders-2"] {
        world.members.cut_off(NAMESPACE, name);
    }
    world.edit(|database| database.spec.members = Some(1));
    world.steps(20).await;
    assert_eq!(world.server.list::<Pod>(NAMESPACE).len(), 3);
    assert_eq!(world.members.joined(&world.cluster_uid()).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_same_name_that_is_not_ours_is_left_alone() {
    let mut world = World::new(Elections::Engine);
    let foreign: Pod = from(json!({
        "metadata": {"name": "orders-1", "namespace": NAMESPACE},
        "spec": {"containers": [{"name": "shop", "image": "registry.example/shop:1"}]},
    }));
    let foreign = world.server.create(&foreign).unwrap();
    world.server.create(&world::database(NAME, json!({"members": 3}))).unwrap();
    world.steps(30).await;
    assert_eq!(world.server.get::<Pod>(NAMESPACE, "orders-1").unwrap().uid(), foreign.uid());
    let said: Vec<_> = world.errors.iter().map(|(_, error)| error.as_str()).collect();
    assert!(said.iter().any(|error| error.contains("orders-1 exists and does not belong")), "{said:?}");
    assert_eq!(world.members.joined(&world.cluster_uid()), ["orders-0".to_owned(), "orders-2".to_owned()].into());
    let touched = world.connection.writes().into_iter().filter(|write| write.changed);
    assert!(!touched.map(|write| write.path).any(|path| path.ends_with("/pods/orders-1")));
    world.server.delete::<Pod>(NAMESPACE, "orders-1", Some(0)).unwrap();
    world.settle().await;
    world.must_be_ready();
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_taken_is_said_in_the_condition() {
    let mut world = World::new(Elections::Engine);
    let foreign: Pod = from(json!({
        "metadata": {"name": "orders-1", "namespace": NAMESPACE},
        "spec": {"containers": [{"name": "shop", "image": "registry.example/shop:1"}]},
    }));
    world.server.create(&foreign).unwrap();
    world.server.create(&world::database(NAME, json!({"members": 3}))).unwrap();
    world.steps(30).await;
    let degraded = world.condition(NAME, "Degraded");
    assert_eq!((degraded.0.as_str(), degraded.1.as_str()), ("True", "NameTaken"), "{degraded:?}");
    assert!(degraded.2.contains("orders-1"), "{degraded:?}");
}

#[tokio::test(start_paused = true)]
async fn a_users_service_of_our_name_is_not_overwritten() {
    let mut world = World::new(Elections::Engine);
    let foreign: Service = from(json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"selector": {"app": "shop"}, "ports": [{"port": 80}]},
    }));
    let before = world.server.create(&foreign).unwrap();
    world.server.create(&world::database(NAME, json!({"members": 3}))).unwrap();
    world.steps(30).await;
    let after: Service = world.server.get(NAMESPACE, NAME).unwrap();
    assert_eq!((after.uid(), &after.spec), (before.uid(), &before.spec));
    assert!(!after.labels().contains_key(labels::MANAGED_BY));
    let said: Vec<_> = world.errors.iter().map(|(_, error)| error.as_str()).collect();
    assert!(said.iter().any(|error| error.contains("Service orders exists")), "{said:?}");
    let degraded = world.condition(NAME, "Degraded");
    assert_eq!((degraded.0.as_str(), degraded.1.as_str()), ("True", "NameTaken"), "{degraded:?}");
    assert_eq!(world.members.joined(&world.cluster_uid()).len(), 3, "the rest goes on");
}

#[tokio::test(start_paused = true)]
async fn a_secret_deleted_by_hand_is_never_made_anew_and_members_go_on() {
    let mut world = three(json!({})).await;
    let pods = pod_uids(&world);
    let secret: Secret = world.server.get(NAMESPACE, "orders-cluster").unwrap();
    world.server.delete::<Secret>(NAMESPACE, "orders-cluster", None).unwrap();
    world.steps(20).await;
    assert!(world.server.get::<Secret>(NAMESPACE, "orders-cluster").is_none());
    let degraded = world.condition(NAME, "Degraded");
    assert_eq!((degraded.0.as_str(), degraded.1.as_str()), ("True", "SecretMissing"), "{degraded:?}");
    assert_eq!(pod_uids(&world), pods);
    assert_eq!(changes(&world), vec![]);
    assert_eq!(world.members.count("", "stop"), 0);
    let mut restored = secret;
    restored.metadata.resource_version = None;
    restored.metadata.uid = None;
    restored.metadata.creation_timestamp = None;
    world.server.create(&restored).unwrap();
    world.settle().await;
    world.must_be_ready();
}

#[tokio::test(start_paused = true)]
async fn agents_refuse_an_operator_of_an_older_epoch() {
    let mut world = three(json!({})).await;
    let agents = world.agents.clone();
    let former = world.new_operator();
    let calls = agents.calls();
    world.settle().await;
    let held = |world: &World| world.members.status(NAMESPACE, "orders-0").unwrap().view_generation.unwrap() >> 32;
    assert_eq!(held(&world), world.epoch);
    // The former leader was stopped for a while and goes on, with an edit that it saw and wants to carry out.
    world.edit(|database| drop(database.spec.config.insert("cacheSize".into(), from(json!("2Mi")))));
    world::Listing::of(&world.server).fill(&former.caches);
    let key = backlot_operator::cache::Key { namespace: NAMESPACE.into(), name: NAME.into() };
    let deeds = world.members.deeds().len();
    for _ in 0..5 {
        let _refused = database::pass(&former, &key, world.epoch - 1).await;
        world.cluster.step().unwrap();
        world::Listing::of(&world.server).fill(&former.caches);
    }
    assert!(agents.calls() > calls, "it tried");
    assert_eq!(world.members.deeds().len(), deeds, "nobody obeyed");
    assert_eq!(held(&world), world.epoch);
    world.settle().await;
    world.must_be_ready();
    assert_eq!(world.members.count("", "restart"), 3, "the leader carries the edit out");
}

#[tokio::test(start_paused = true)]
async fn odd_databases_do_not_stop_others() {
    let mut world = World::new(Elections::Engine);
    let odd = [
        ("a-class", json!({"class": "nowhere"})),
        ("a-version", json!({"version": "99"})),
        ("a-setting", json!({"config": {"noSuchKey": "1"}})),
        ("a-type", json!({"config": {"maxClients": "many"}})),
        ("a-size", json!({"storage": {"size": "1"}, "members": 9, "resources": {"memory": "1"}})),
        ("a-component", json!({"components": {"nobody": {"members": 3}}})),
    ];
    for (name, spec) in &odd {
        world.server.create(&world::database(name, spec.clone())).unwrap();
    }
    let mut secret: Secret = from(json!({
        "metadata": {"name": "a-secret-cluster", "namespace": NAMESPACE, "labels": {
            (labels::MANAGED_BY): "backlot", (labels::DATABASE): "a-secret", (labels::CLASS): "fake", (labels::CLUSTER_UID): "x"}},
        "stringData": {},
    }));
    secret.metadata.annotations = Some([(labels::FOUNDED.to_owned(), "{not json".to_owned())].into());
    secret.data = Some(
        [("ca.crt", "x"), ("operator.crt", "x"), ("operator.key", "x")]
            .map(|(key, value)| (key.to_owned(), k8s_openapi::ByteString(value.into())))
            .into(),
    );
    world.server.create(&secret).unwrap();
    world.server.create(&world::database("a-secret", json!({"members": 1}))).unwrap();
    world.server.create(&world::database(NAME, json!({"members": 3}))).unwrap();
    world.steps(25).await;
    world.must_be_ready();
    for name in odd.iter().map(|(name, _)| *name).chain(["a-secret"]) {
        let degraded = world.condition(name, "Degraded");
        assert_eq!(degraded.0, "True", "{name}: {degraded:?}");
        assert!(degraded.2.len() > 20, "{name}: {degraded:?}");
        assert!(world.server.get::<Pod>(NAMESPACE, &format!("{name}-0")).is_none(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn revoked_permissions_crash_nothing_and_heal() {
    let mut world = World::new(Elections::Engine);
    world.server.create(&world::database(NAME, json!({"members": 3}))).unwrap();
    let revoke = |method: Option<Method>, path: &str| {
        world.connection.inject(When::Matching { method, path: path.to_owned(), times: 1000 }, Fault::Forbidden);
    };
    revoke(None, "/services");
    revoke(Some(Method::POST), "/pods");
    revoke(None, "/events");
    world.steps(5).await;
    assert!(!world.errors.is_empty());
    let ready = world.condition(NAME, "Ready");
    assert_eq!(ready.0, "False", "{ready:?}");
    assert_eq!(world.server.list::<PersistentVolumeClaim>(NAMESPACE).len(), 3, "what is permitted goes on");
    world.connection.heal();
    world.settle().await;
    world.must_be_ready();
}

#[tokio::test(start_paused = true)]
async fn a_database_goes_on_while_status_cannot_be_written() {
    let mut world = three(json!({})).await;
    let path = "/databases/orders/status".to_owned();
    world.connection.inject(When::Matching { method: None, path, times: 1000 }, Fault::Forbidden);
    world.edit(|database| database.spec.members = Some(5));
    world.steps(10).await;
    assert_eq!(world.server.list::<Pod>(NAMESPACE).len(), 3, "nothing is done that cannot be recorded first");
    world.connection.heal();
    world.settle().await;
    world.must_be_ready();
    assert_eq!(world.server.list::<Pod>(NAMESPACE).len(), 5);
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_quota_stops_one_member_and_not_the_others() {
    let mut world = World::new(Elections::Engine);
    world.server.create(&world::database(NAME, json!({"members": 3}))).unwrap();
    world.server.create(&world::database("second", json!({"members": 1}))).unwrap();
    // Pods are created by POST on the collection: the third of them and all later ones.
    world.step().await;
    let path = format!("/namespaces/{NAMESPACE}/pods");
    let quota = || When::Matching { method: Some(Method::POST), path: path.clone(), times: 1 };
    for _ in 0..3 {
        world.connection.inject(quota(), Fault::QuotaExceeded);
        world.step().await;
    }
    assert!(world.server.list::<Pod>(NAMESPACE).iter().all(|pod| pod.metadata.deletion_timestamp.is_none()));
    world.settle().await;
    world.must_be_ready();
    assert_eq!(world.condition("second", "Ready").0, "True");
}

#[tokio::test(start_paused = true)]
async fn a_database_deleted_and_made_again_fast_is_another_one() {
    let mut world = three(json!({"deletionPolicy": "Delete"})).await;
    let first = world.cluster_uid();
    world.server.delete::<Database>(NAMESPACE, NAME, None).unwrap();
    let again = world::database(NAME, json!({"members": 3, "deletionPolicy": "Delete"}));
    let mut made = false;
    for _ in 0..30 {
        if !made {
            made = world.server.create(&again).is_ok();
        }
        world.is_behind = !world.is_behind;
        world.step().await;
    }
    world.is_behind = false;
    world.settle().await;
    assert!(made);
    world.must_be_ready();
    let second = world.cluster_uid();
    assert_ne!(first, second);
    for pod in world.server.list::<Pod>(NAMESPACE) {
        assert_eq!(pod.labels()[labels::CLUSTER_UID], second);
        assert_eq!(world.members.read(NAMESPACE, &pod.name_any()).get("before"), None, "no data of the first one");
    }
}

#[tokio::test(start_paused = true)]
async fn a_retaining_database_leaves_volumes_and_secret() {
    let mut world = three(json!({"deletionPolicy": "Retain"})).await;
    world.server.delete::<Database>(NAMESPACE, NAME, None).unwrap();
    world.settle().await;
    assert!(world.server.list::<Pod>(NAMESPACE).is_empty());
    assert!(world.server.list::<Service>(NAMESPACE).is_empty());
    assert_eq!(world.server.list::<PersistentVolumeClaim>(NAMESPACE).len(), 3);
    let secrets: Vec<_> = world.server.list::<Secret>(NAMESPACE).iter().map(ResourceExt::name_any).collect();
    assert_eq!(secrets, ["orders-cluster"]);
    for volume in world.server.list::<PersistentVolume>("") {
        assert_eq!(volume.spec.unwrap().persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
    }
}

#[tokio::test(start_paused = true)]
async fn retained_volumes_of_another_class_are_refused() {
    let mut world = three(json!({})).await;
    world.server.delete::<Database>(NAMESPACE, NAME, None).unwrap();
    world.settle().await;
    world
        .server
        .edit::<Secret>(NAMESPACE, "orders-cluster", |secret| {
            secret.labels_mut().insert(labels::CLASS.to_owned(), "other".to_owned());
        })
        .unwrap();
    world.server.create(&world::database(NAME, json!({"members": 3}))).unwrap();
    world.steps(5).await;
    let degraded = world.condition(NAME, "Degraded");
    assert_eq!(degraded.1, "RetainedDataOfAnotherClass", "{degraded:?}");
    assert!(world.server.list::<Pod>(NAMESPACE).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refused_edit_touches_nothing_and_reverting_it_recovers() {
    let mut world = three(json!({})).await;
    world.edit(|database| drop(database.spec.config.insert("noSuchKey".into(), from(json!("1")))));
    world.steps(5).await;
    let degraded = world.condition(NAME, "Degraded");
    assert_eq!((degraded.0.as_str(), degraded.1.as_str()), ("True", "SettingRefused"), "{degraded:?}");
    assert_eq!(changes(&world), vec![]);
    // A pod that is lost while the spec is refused stays lost until then.
    world.edit(|database| database.spec.config.clear());
    world.settle().await;
    world.must_be_ready();
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_makes_no_twin_of_a_member() {
    let mut world = three(json!({})).await;
    let pod: Pod = world.server.get(NAMESPACE, "orders-1").unwrap();
    let node = pod.spec.as_ref().unwrap().node_name.clone().unwrap();
    world.cluster.fail_node(&node).unwrap();
    world.steps(10).await;
    let marked: Pod = world.server.get(NAMESPACE, "orders-1").unwrap();
    assert_eq!(marked.uid(), pod.uid(), "it is not deleted by force");
    assert!(marked.metadata.deletion_timestamp.is_some());
    assert_eq!(world.server.list::<Pod>(NAMESPACE).len(), 3);
    let but_routes: Vec<_> =
        changes(&world).into_iter().filter(|(_, path)| !path.contains("/endpointslices/")).collect();
    assert_eq!(but_routes, vec![]);
    assert_eq!(world.condition(NAME, "Degraded").0, "True");
    world.cluster.restore_node(&node).unwrap();
    world.settle().await;
    world.must_be_ready();
    assert_eq!(world.members.read(NAMESPACE, "orders-1").get("before").map(String::as_str), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_for_an_hour_restarts_nothing() {
    let mut world = three(json!({})).await;
    let (pods, starts) = (pod_uids(&world), world.members.count("", "start"));
    let all = When::Matching { method: None, path: "/".to_owned(), times: 100_000 };
    world.connection.inject(all, Fault::Disconnect);
    world.edit(|database| drop(database.spec.config.insert("greeting".into(), from(json!("hi")))));
    world.steps(36).await;
    assert_eq!((pod_uids(&world), world.members.count("", "start")), (pods, starts));
    world.connection.heal();
    world.steps(3).await;
    world.must_be_ready();
    assert_eq!(world.members.count("", "reconfigure"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_retained_volume_that_lost_its_data_is_told_and_the_others_go_on() {
    let mut world = three(json!({})).await;
    let claim: PersistentVolumeClaim = world.server.get(NAMESPACE, "orders-2").unwrap();
    world.server.delete::<Database>(NAMESPACE, NAME, None).unwrap();
    world.settle().await;
    world.members.wipe_volume(&claim.spec.unwrap().volume_name.unwrap());
    // All members come back at the same time.
    world.most_down = 3;
    world.server.create(&world::database(NAME, json!({"members": 3}))).unwrap();
    world.steps(12).await;
    assert_eq!(world.members.count("", "found"), 1, "nothing is founded again");
    let degraded = world.condition(NAME, "Degraded");
    assert_eq!(degraded.0, "True");
    assert!(degraded.2.contains("orders-2"), "{degraded:?}");
    assert_eq!(world.condition(NAME, "Available").0, "True");
    for name in ["orders-0", "orders-1"] {
        assert_eq!(world.members.read(NAMESPACE, name).get("before").map(String::as_str), Some("1"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_volume_under_a_running_cluster_founds_nothing() {
    let mut world = three(json!({})).await;
    let claim: PersistentVolumeClaim = world.server.get(NAMESPACE, "orders-0").unwrap();
    world.members.wipe_volume(&claim.spec.unwrap().volume_name.unwrap());
    world.server.delete::<Pod>(NAMESPACE, "orders-0", Some(0)).unwrap();
    world.steps(12).await;
    assert_eq!(world.members.count("", "found"), 1, "the founder with an empty volume founds no second cluster");
    let degraded = world.condition(NAME, "Degraded");
    assert!(degraded.2.contains("orders-0"), "{degraded:?}");
    assert_eq!(world.members.read(NAMESPACE, "orders-1").get("before").map(String::as_str), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_is_done_and_no_longer_reported_is_not_waited_for() {
    let mut world = World::with_database(Elections::Engine, json!({"members": 1, "deletionPolicy": "Delete"})).await;
    // Each size spreads data once more; a member's report shows only some of its operations.
    for members in [3, 1].into_iter().cycle().take(12) {
        world.edit(|database| database.spec.members = Some(members));
        world.settle().await;
        world.must_be_ready();
        assert_eq!(world.condition(NAME, "Progressing").1, "Settled", "{members}");
    }
}
