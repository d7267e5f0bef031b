//! Founding happens once, by the member that was recorded before it was told to.

use backlot_core::plan::Write;
use serde_json::json;

use crate::world::{Fault, Shape, World};

fn founder(world: &World) -> Option<String> {
    let status = world.database.status.as_ref()?;
    Some(status.groups.first()?.founder.as_ref()?.member.clone())
}

fn record(world: &World) -> String {
    let annotations = world.objects.secret.as_ref().unwrap().metadata.annotations.clone().unwrap_or_default();
    annotations.get(backlot_api::labels::FOUNDED).cloned().unwrap_or_default()
}

#[test]
fn status_and_secret_name_the_founder_before_it_is_told() {
    for shape in [Shape::Quorum, Shape::Agent, Shape::Leaderless] {
        let mut world = World::new(shape, json!({"members": 3, "config": {"page-size": "large"}}));
        world.until("a founder", |world| founder(world).is_some());
        assert_eq!(world.delivered, [""; 0], "{shape:?}");
        world.until("an operation", |world| !world.delivered.is_empty());
        assert!(record(&world).contains(r#""founder":{"member":"orders-0""#), "{}", record(&world));
        assert!(record(&world).contains(r#""immutable":{"data":{"page-size":"large"}}"#), "{}", record(&world));
        assert!(world.delivered[0].starts_with("orders-0 found/data-0/uid-"), "{:?}", world.delivered);
    }
}

#[test]
fn nobody_is_told_to_found_before_the_record_was_seen_on_the_secret() {
    let mut world = World::new(Shape::Agent, json!({"members": 3}));
    world.until("a founder", |world| founder(world).is_some());
    // The write of the record may fail; the plan that makes it does not count on it.
    let plan = world.plan();
    assert_eq!(plan.operations, []);
    assert_eq!(plan.activities[0].message, "records that orders-0 founds data-0");
    let patches = plan.writes.iter().filter(|write| matches!(write, Write::Patch { .. }));
    assert_eq!(patches.count(), 1);
}

#[test]
fn an_immutable_setting_is_fixed_before_anybody_founds() {
    let mut world = World::new(Shape::Agent, json!({"config": {"page-size": "large"}}));
    world.until("an operation", |world| !world.delivered.is_empty());
    world.edit(json!({"config": {"page-size": "small"}}));
    assert_eq!(
        world.refusals(),
        [
            "SettingImmutable: spec.config.page-size: `small` refused: it cannot change after the cluster was founded with `large`. Set it back"
        ]
    );
}

#[test]
fn a_founder_whose_pod_is_lost_midway_founds_on() {
    let mut world = World::new(Shape::Quorum, json!({"members": 3}));
    world.until("an operation", |world| !world.delivered.is_empty());
    world.remove_pod("orders-0");
    world.settle();
    assert_eq!(founder(&world).as_deref(), Some("orders-0"));
    assert_eq!(world.engine.members.len(), 3);
}

#[test]
fn a_founder_whose_volume_was_replaced_founds_nothing_again() {
    let mut world = World::new(Shape::Agent, json!({"members": 3}));
    world.until("a founder", |world| founder(world).is_some());
    *world.volume("orders-0") = crate::world::Volume::default();
    (0..10).for_each(|_| drop(world.step()));
    assert!(world.condition("Degraded").starts_with("True FounderVolumeReplaced"), "{}", world.condition("Degraded"));
    assert_eq!(world.delivered, [""; 0]);
    assert!(world.engine.foundings.is_empty());
}

#[test]
fn the_volume_of_a_silent_founder_is_not_taken_for_a_replaced_one() {
    let mut world = World::new(Shape::Agent, json!({"members": 3}));
    world.until("a founder", |world| founder(world).is_some());
    // A fresh container that has not read its volume yet.
    let stamp = world.volume("orders-0").stamp.take();
    world.pass(Fault::default());
    assert!(world.condition("Progressing").starts_with("True"), "{}", world.condition("Progressing"));
    assert!(!world.condition("Degraded").contains("FounderVolumeReplaced"));
    world.volume("orders-0").stamp = stamp;
    world.settle();
    assert_eq!(world.engine.foundings.len(), 1);
}

#[test]
fn a_member_that_is_to_go_founds_nothing() {
    let mut world = World::new(Shape::Agent, json!({"members": 3}));
    // Only the last member answers when the spec shrinks.
    world.silent = [("orders-0".into(), 6), ("orders-1".into(), 6)].into();
    world.step();
    world.edit(json!({"members": 1}));
    world.settle();
    assert_eq!(founder(&world).as_deref(), Some("orders-0"));
    assert_eq!(world.records(), "0:joined");
}

#[test]
fn a_founder_at_work_is_not_shrunk_away() {
    for shape in [Shape::Quorum, Shape::Agent, Shape::Leaderless] {
        let mut world = World::new(shape, json!({"members": 3}));
        world.silent = [("orders-0".into(), 10), ("orders-1".into(), 10)].into();
        world.until("a founder", |world| founder(world).is_some());
        // Where members come one after the other, the first one founds, however long it takes to answer.
        let expected = if matches!(shape, Shape::Quorum) { "orders-0" } else { "orders-2" };
        assert_eq!(founder(&world).as_deref(), Some(expected));
        world.edit(json!({"members": 1}));
        world.settle();
        assert_eq!(world.engine.foundings.len(), 1, "{shape:?}");
        assert_eq!(world.engine.foundings[0].0, expected, "{shape:?}");
        assert!(world.condition("Ready").starts_with("True"), "{shape:?}");
    }
}

#[test]
fn two_operators_that_decide_at_once_found_once() {
    let mut world = World::new(Shape::Agent, json!({"members": 3}));
    world.until("a founder", |world| founder(world).is_some());
    for _ in 0..6 {
        world.pass(Fault::default());
        world.pass(Fault { stale: true, ..Fault::default() });
        world.tick();
    }
    world.settle();
    assert_eq!(world.engine.foundings.len(), 1);
    assert_eq!(world.delivered.iter().filter(|operation| operation.contains(" found/")).count(), 1);
}
