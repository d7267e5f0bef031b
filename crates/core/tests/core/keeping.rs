//! What is kept as it should be, and what is left alone.

use backlot_api::database::DeletionPolicy;
use backlot_core::plan::Write;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use serde_json::json;

use crate::world::{Fault, Shape, World};

const SHAPES: [Shape; 3] = [Shape::Quorum, Shape::Agent, Shape::Leaderless];

#[test]
fn a_lost_pod_comes_back_with_its_volume() {
    for shape in SHAPES {
        for member in ["orders-0", "orders-1"] {
            let mut world = World::ready(shape, json!({"members": 3}));
            let volume = world.volume_name(member);
            world.remove_pod(member);
            let plan = world.pass(Fault::default()).plan;
            assert_eq!(plan.events.iter().map(|event| event.reason).collect::<Vec<_>>(), ["PodReplaced"]);
            world.settle();
            assert_eq!(world.volume_name(member), volume, "{shape:?}");
            assert!(world.condition("Ready").starts_with("True"), "{shape:?}");
        }
    }
}

#[test]
fn an_ended_pod_is_replaced_and_a_terminating_one_is_waited_for() {
    let mut world = World::ready(Shape::Quorum, json!({"members": 3}));
    let index = world.objects.pods.iter().position(|pod| pod.name_any() == "orders-1").unwrap();
    world.objects.pods[index].status.as_mut().unwrap().phase = Some("Failed".into());
    let plan = world.plan();
    assert!(matches!(&plan.writes[..], [Write::Delete { target, .. }] if target.name == "orders-1"));
    world.pass(Fault::default());
    let plan = world.plan();
    assert_eq!((plan.writes.len(), plan.activities[0].reason), (0, "PodTerminating"));
    world.settle();
    assert!(world.condition("Ready").starts_with("True"));
}

#[test]
fn nothing_of_somebody_else_is_used_or_changed() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    let other = |labels: &mut Option<std::collections::BTreeMap<String, String>>| {
        labels.as_mut().unwrap().insert(backlot_api::labels::CLUSTER_UID.into(), "other".into());
    };
    let index = world.objects.pods.iter().position(|pod| pod.name_any() == "orders-2").unwrap();
    other(&mut world.objects.pods[index].metadata.labels);
    world.objects.pods[index].status.as_mut().unwrap().phase = Some("Failed".into());
    let plan = world.plan();
    assert_eq!(plan.writes, []);
    assert_eq!(plan.activities[0].reason, "NameTaken");
    assert_eq!(plan.view.unwrap().member("orders-2").unwrap().address, "", "a stranger's address");

    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    world.remove_pod("orders-2");
    let index = world.objects.claims.iter().position(|claim| claim.name_any() == "orders-2").unwrap();
    other(&mut world.objects.claims[index].metadata.labels);
    world.objects.claims[index].metadata.labels.as_mut().unwrap().remove(backlot_api::labels::DATABASE);
    let plan = world.plan();
    assert_eq!((plan.writes.len(), plan.activities[0].reason), (0, "NameTaken"));
}

#[test]
fn objects_that_were_deleted_or_changed_are_put_right() {
    for shape in SHAPES {
        let mut world = World::ready(shape, json!({"members": 3}));
        let before = (world.objects.services.len(), world.objects.budgets.clone(), world.objects.binding.clone());
        world.objects.services.remove(0);
        world.objects.budgets[0].spec.as_mut().unwrap().min_available = None;
        world.objects.binding.as_mut().unwrap().data.as_mut().unwrap().remove("host");
        let plan = world.settle();
        assert_eq!(plan.writes, []);
        assert_eq!(world.objects.services.len(), before.0, "{shape:?}");
        let spec = |budgets: &[PodDisruptionBudget]| budgets[0].spec.clone();
        assert_eq!(spec(&world.objects.budgets), spec(&before.1), "{shape:?}");
        let data = |secret: &Option<Secret>| secret.clone().unwrap().data;
        assert_eq!(data(&world.objects.binding), data(&before.2), "{shape:?}");
    }
}

#[test]
fn budgets_follow_the_members_that_are_there() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    let least = |world: &World| serde_json::to_value(&world.objects.budgets[0].spec).unwrap()["minAvailable"].clone();
    assert_eq!(least(&world), json!(2));
    world.edit(json!({"members": 1}));
    world.settle();
    assert_eq!(least(&world), json!(0));
    world.edit(json!({"members": 4}));
    world.settle();
    assert_eq!(least(&world), json!(3));
}

#[test]
fn a_claim_that_somebody_deleted_is_said_while_its_data_can_be_saved() {
    let mut world = World::ready(Shape::Quorum, json!({"members": 3}));
    let now = world.database.metadata.creation_timestamp.clone();
    let index = world.objects.claims.iter().position(|claim| claim.name_any() == "orders-1").unwrap();
    world.objects.claims[index].metadata.deletion_timestamp = now;
    (0..3).for_each(|_| drop(world.step()));
    assert!(world.condition("Degraded").starts_with("True VolumeTerminating: claim orders-1 of orders-1 was deleted"));
}

#[test]
fn a_lost_volume_is_not_replaced_by_an_empty_one() {
    for shape in SHAPES {
        let mut world = World::ready(shape, json!({"members": 3}));
        world.remove_pod("orders-0");
        world.remove_claim("orders-0");
        (0..10).for_each(|_| drop(world.step()));
        assert!(world.objects.claim("orders-0").is_none(), "{shape:?}");
        assert!(world.condition("Degraded").contains("VolumeLost: claim orders-0"), "{shape:?}");
    }
}

#[test]
fn keys_and_passwords_of_live_data_are_not_made_anew() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    let secret = world.objects.secret.take();
    world.remove_pod("orders-1");
    let plan = world.plan();
    assert_eq!((plan.writes.len(), plan.activities[0].reason), (0, "SecretMissing"));
    world.objects.secret = secret;
    world.objects.secret.as_mut().unwrap().data.as_mut().unwrap().remove("secret.app");
    world.settle_with_obstacles();
    assert!(world.condition("Degraded").starts_with("True CredentialMissing: Secret orders-cluster lacks app."));
    assert!(!world.objects.secret.as_ref().unwrap().data.as_ref().unwrap().contains_key("secret.app"));
    assert!(world.is_up("orders-1"), "a missing password holds up no pod");

    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    world.recreate(json!({"members": 3}));
    let secret = world.objects.secret.as_mut().unwrap();
    secret.metadata.annotations = None;
    secret.data.as_mut().unwrap().remove("secret.app");
    (0..5).for_each(|_| drop(world.step()));
    assert!(!world.objects.secret.as_ref().unwrap().data.as_ref().unwrap().contains_key("secret.app"));
}

#[test]
fn a_paused_database_is_left_alone() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    world.edit(json!({"paused": true, "members": 5, "config": {"max-connections": 50}}));
    world.remove_pod("orders-2");
    let before = (world.written.len(), world.delivered.len());
    (0..5).for_each(|_| drop(world.step()));
    let writes: Vec<_> = world.written[before.0..].iter().filter(|write| !write.contains("Slice")).collect();
    assert_eq!((writes.len(), world.delivered.len()), (0, before.1), "{writes:?}");
    assert_eq!(world.records(), "0:joined 1:joined 2:joined");
    world.edit(json!({"paused": false}));
    world.settle();
    assert_eq!(world.engine.members.len(), 5);
}

#[test]
fn volumes_outlive_their_claims_or_not_as_the_policy_says() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    world.edit(json!({"members": 2}));
    world.settle();
    for (policy, name) in [(DeletionPolicy::Delete, "Delete"), (DeletionPolicy::Retain, "Retain")] {
        world.edit(json!({"deletionPolicy": policy}));
        world.settle();
        assert_eq!(world.objects.volumes.len(), 3);
        for volume in world.objects.volumes.values() {
            let policy = volume.spec.as_ref().unwrap().persistent_volume_reclaim_policy.as_deref();
            assert_eq!(policy, Some(name));
        }
    }
}

#[test]
fn deletion_with_retain_keeps_volumes_and_secret() {
    for shape in SHAPES {
        let mut world = World::ready(shape, json!({"members": 3, "deletionPolicy": "Delete"}));
        world.edit(json!({"deletionPolicy": "Retain"}));
        // No pass between the edit and the deletion.
        world.delete_database();
        (0..5).for_each(|_| drop(world.step()));
        assert!(world.collect_garbage(), "{shape:?}");
        assert!(world.objects.secret.is_some(), "{shape:?}");
        assert!(!world.objects.claims.is_empty(), "{shape:?}");
        for volume in world.objects.volumes.values() {
            let policy = volume.spec.as_ref().unwrap().persistent_volume_reclaim_policy.as_deref();
            assert_eq!(policy, Some("Retain"), "{shape:?}");
        }
    }
}

#[test]
fn deletion_with_delete_removes_pods_then_volumes_then_the_secret() {
    for shape in SHAPES {
        let mut world = World::ready(shape, json!({"members": 3, "deletionPolicy": "Delete"}));
        world.edit(json!({"members": 1}));
        world.settle();
        world.edit(json!({"deletionPolicy": "Retain"}));
        world.settle();
        world.edit(json!({"deletionPolicy": "Delete"}));
        // No pass between the edit and the deletion.
        world.delete_database();
        for _ in 0..10 {
            world.step();
        }
        assert!(world.collect_garbage(), "{shape:?}");
        assert!(world.objects.claims.is_empty() && world.objects.secret.is_none(), "{shape:?}");
        assert!(world.objects.volumes.is_empty(), "{shape:?}");
    }
}

#[test]
fn a_refused_edit_changes_nothing_and_a_lost_pod_still_comes_back() {
    for shape in [Shape::Quorum, Shape::Agent, Shape::Leaderless] {
        let mut world = World::ready(shape, json!({"members": 3}));
        let pod = |world: &World| world.objects.pod("orders-1").map(|pod| pod.spec.clone());
        let (before, body) = ((world.written.len(), world.delivered.len()), pod(&world));
        world.edit(json!({"members": 1, "config": {"no-such-key": "1"}}));
        (0..3).for_each(|_| drop(world.step()));
        assert_eq!((world.written.len(), world.delivered.len()), before, "{shape:?}");
        world.remove_pod("orders-1");
        world.until("the pod is back", |world| pod(world).is_some());
        (0..20).for_each(|_| drop(world.step()));
        assert_eq!(pod(&world), body, "{shape:?}");
        let status = world.database.status.clone().unwrap();
        assert_eq!(status.ready_members.as_deref(), Some("3/3"), "{shape:?}");
        assert!(world.condition("Ready").starts_with("False SettingRefused: "), "{}", world.condition("Ready"));
        assert!(world.condition("Progressing").starts_with("False SettingRefused: "));
        world.edit(json!({"members": 3, "config": {"no-such-key": null}}));
        world.settle();
        assert!(world.condition("Ready").starts_with("True Ready"));
    }
}

#[test]
fn a_refused_edit_may_still_pause() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    world.edit(json!({"paused": true, "config": {"no-such-key": "1"}}));
    world.remove_pod("orders-1");
    (0..5).for_each(|_| drop(world.step()));
    assert!(world.objects.pod("orders-1").is_none());
    assert!(world.condition("Ready").starts_with("False SettingRefused: "));
}

#[test]
fn a_database_that_was_never_accepted_deletes_nothing() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    world.recreate(json!({"members": 3, "deletionPolicy": "Delete", "durability": "Quorum"}));
    world.edit(json!({"config": {"no-such-key": "1"}}));
    world.step();
    world.database.metadata.finalizers = Some(vec![backlot_api::labels::FINALIZER.into()]);
    world.delete_database();
    (0..5).for_each(|_| drop(world.step()));
    assert!(world.collect_garbage());
    assert_eq!(world.objects.claims.len(), 3);
    assert!(world.objects.secret.is_some());
}
