//! Routes to a leader go upwards only, and absence changes nothing.

use backlot_api::labels::ROUTE_EPOCH;
use backlot_core::plan::Write;
use backlot_core::snapshot::{Observed, Snapshot};
use backlot_core::{routes, validate};
use backlot_standard::result::Role;
use serde_json::{Value, json};

use crate::world::{Shape, World};

/// Writes as `service epoch: members`.
fn planned(snapshot: &Snapshot) -> Vec<String> {
    let wanted = validate::routed(snapshot).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let writes = routes::routes(snapshot, &wanted);
    let described = writes.iter().map(|write| {
        let (Write::Create(object) | Write::Apply(object)) = write else { panic!("{write:?}") };
        let endpoints = object.body["endpoints"].as_array().unwrap();
        let members: Vec<_> = endpoints.iter().map(|endpoint| text(&endpoint["targetRef"]["name"])).collect();
        let epoch = text(&object.body["metadata"]["annotations"][ROUTE_EPOCH]);
        format!("{} {epoch}: {}", object.name, members.join(" "))
    });
    described.collect()
}

fn role(snapshot: &mut Snapshot, name: &str, role: Role, writable: bool, term: u64) {
    let Some(Observed::Known(status)) = snapshot.agents.get_mut(name) else { panic!("{name}") };
    status.role = Some(backlot_standard::result::RoleOutput { role, writable, term: Some(term), position: None });
}

fn silence(snapshot: &mut Snapshot, name: &str) {
    snapshot.agents.insert(name.into(), Observed::Unknown("timeout".into()));
}

fn ready() -> Snapshot {
    World::ready(Shape::Quorum, json!({"members": 3})).snapshot()
}

#[test]
fn settled_routes_are_left_alone_and_lost_ones_are_made_again() {
    let mut snapshot = ready();
    assert_eq!(planned(&snapshot), [""; 0]);
    snapshot.objects.slices.clear();
    assert_eq!(planned(&snapshot), ["orders 0.1: orders-0", "orders-ro 0.1: orders-1 orders-2"]);
    assert_eq!(planned(&World::ready(Shape::Leaderless, json!({})).snapshot()), [""; 0]);
}

#[test]
fn a_newer_leader_takes_the_route_and_an_older_one_does_not() {
    let mut snapshot = ready();
    role(&mut snapshot, "orders-1", Role::Leader, true, 2);
    assert_eq!(planned(&snapshot), ["orders 0.2: orders-1", "orders-ro 0.2: orders-2"]);
    role(&mut snapshot, "orders-0", Role::Follower, false, 2);
    role(&mut snapshot, "orders-1", Role::Leader, true, 0);
    assert_eq!(planned(&snapshot), [""; 0], "a route never goes back");
}

#[test]
fn a_leader_that_is_not_heard_of_keeps_its_route() {
    let mut snapshot = ready();
    silence(&mut snapshot, "orders-0");
    assert_eq!(planned(&snapshot), [""; 0]);
    snapshot.agents.insert("orders-0".into(), Observed::Absent);
    assert_eq!(planned(&snapshot), [""; 0]);
}

#[test]
fn a_leader_that_says_itself_that_it_takes_no_writes_loses_its_route() {
    let mut snapshot = ready();
    role(&mut snapshot, "orders-0", Role::Unknown, false, 1);
    assert_eq!(planned(&snapshot), ["orders 0.1: "]);
}

#[test]
fn a_follower_that_is_not_heard_of_stays_while_the_kubelet_calls_it_ready() {
    let mut snapshot = ready();
    silence(&mut snapshot, "orders-2");
    assert_eq!(planned(&snapshot), ["orders-ro 0.1: orders-1"], "nobody vouches for it");
    let pod = snapshot.objects.pods.iter_mut().find(|pod| pod.metadata.name.as_deref() == Some("orders-2")).unwrap();
    let mut status = serde_json::to_value(pod.status.as_ref().unwrap()).unwrap();
    status["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    pod.status = Some(serde_json::from_value(status).unwrap());
    assert_eq!(planned(&snapshot), [""; 0]);
    pod_of(&mut snapshot, "orders-2").status.as_mut().unwrap().pod_ip = Some("10.9.9.9".into());
    assert_eq!(planned(&snapshot), ["orders-ro 0.1: orders-1"], "another pod has its name now");
}

fn pod_of<'a>(snapshot: &'a mut Snapshot, name: &str) -> &'a mut k8s_openapi::api::core::v1::Pod {
    snapshot.objects.pods.iter_mut().find(|pod| pod.metadata.name.as_deref() == Some(name)).unwrap()
}

#[test]
fn a_refused_spec_does_not_keep_the_route_from_the_leader() {
    let mut world = World::ready(Shape::Quorum, json!({"members": 3}));
    world.edit(json!({"config": {"no-such-key": 1}}));
    let mut snapshot = world.snapshot();
    assert!(validate::validate(&snapshot).is_err());
    role(&mut snapshot, "orders-1", Role::Leader, true, 2);
    role(&mut snapshot, "orders-0", Role::Follower, false, 2);
    assert_eq!(planned(&snapshot), ["orders 0.2: orders-1", "orders-ro 0.2: orders-0 orders-2"]);
}

#[test]
fn a_database_whose_identity_is_in_doubt_has_no_routes() {
    let mut snapshot = ready();
    let labels = snapshot.objects.secret.as_mut().unwrap().metadata.labels.as_mut().unwrap();
    labels.insert(backlot_api::labels::CLUSTER_UID.into(), "other".into());
    assert!(validate::routed(&snapshot).is_none());
    let mut snapshot = ready();
    snapshot.database.status = None;
    assert!(validate::routed(&snapshot).is_none());
}

#[test]
fn a_route_is_written_only_to_the_slice_that_was_seen() {
    let mut snapshot = ready();
    role(&mut snapshot, "orders-1", Role::Leader, true, 2);
    let wanted = validate::routed(&snapshot).unwrap();
    for write in routes::routes(&snapshot, &wanted) {
        let Write::Apply(object) = write else { panic!("{write:?}") };
        let live = snapshot.objects.slices.iter().find(|slice| slice.metadata.name.as_deref() == Some(&object.name));
        let live = &live.unwrap().metadata;
        assert_eq!(object.body["metadata"]["uid"].as_str(), live.uid.as_deref());
        assert_eq!(object.body["metadata"]["resourceVersion"].as_str(), live.resource_version.as_deref());
    }
}
