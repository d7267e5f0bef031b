//! What a Database costs: objects, writes, and nothing at all while it rests.

use std::collections::BTreeMap;

use backlot_standard::manifest::Elections;
use http::Method;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use serde_json::json;

use crate::world::{NAME, NAMESPACE, World, database, laws};

#[tokio::test(start_paused = true)]
async fn a_three_member_database_is_made_with_few_objects_and_writes() {
    for elections in [Elections::Engine, Elections::Agent] {
        let mut world = World::new(elections);
        world.server.create(&database(NAME, json!({"members": 3}))).unwrap();
        world.settle().await;
        world.must_be_ready();
        let writes: Vec<_> = world.connection.writes().into_iter().filter(|write| write.changed).collect();
        let is_status = |path: &str| path.ends_with("/status");
        let mut made: BTreeMap<String, usize> = BTreeMap::new();
        for write in writes.iter().filter(|write| write.method == Method::POST) {
            *made.entry(laws::target(write).0).or_default() += 1;
        }
        let events = made.remove("events").unwrap_or_default();
        // Kubernetes makes one slice for each Service with a selector.
        let slices: Vec<EndpointSlice> = world.server.list(NAMESPACE);
        let by_kubernetes = slices.iter().filter(|slice| slice.name_any().ends_with("-simulated")).count();
        let objects: usize = made.values().sum();
        let others = objects - made["pods"] - made["persistentvolumeclaims"] + by_kubernetes;
        let status = writes.iter().filter(|write| is_status(&write.path)).count();
        let event_writes = writes.iter().filter(|write| write.path.contains("/events")).count();
        let policies = writes.iter().filter(|write| write.path.contains("/persistentvolumes/")).count();
        let rest = writes.len() - status - event_writes - policies;
        println!(
            "elections {elections:?}: {objects} objects {made:?} and {by_kubernetes} made by Kubernetes; {} writes: {rest} to these objects, {policies} to their volumes, {status} to status, {event_writes} for {events} events; {} requests; {} calls of agents",
            writes.len(),
            world.connection.recorded().len(),
            world.agents.calls(),
        );
        assert_eq!((made["pods"], made["persistentvolumeclaims"]), (3, 3));
        assert!(others <= 9, "{others} others: {made:?} and {by_kubernetes} by Kubernetes");
        assert_eq!(policies, 3, "the reclaim policy of each volume, once");
        assert!(rest * 10 <= (objects + by_kubernetes) * 12, "{rest} writes for {objects} objects");
        assert!(status <= 16, "{status} writes of status");
        assert!(event_writes <= 6, "{event_writes} writes of events");
    }
}

#[tokio::test(start_paused = true)]
async fn a_settled_database_costs_no_request() {
    let mut world = World::with_database(Elections::Engine, json!({"members": 3})).await;
    world.connection.clear_record();
    let calls = world.agents.calls();
    world.steps(20).await;
    assert_eq!(world.connection.recorded(), vec![]);
    assert_eq!(world.agents.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_operator_finds_nothing_to_write() {
    let mut world = World::with_database(Elections::Agent, json!({"members": 3, "deletionPolicy": "Delete"})).await;
    let starts = world.members.count("", "start");
    world.restart_operator();
    world.steps(10).await;
    assert_eq!(world.connection.recorded(), vec![]);
    assert_eq!(world.members.count("", "start"), starts, "no engine is restarted");
    assert_eq!(world.agents.calls(), 3, "the new epoch's view, once to each member");
}
