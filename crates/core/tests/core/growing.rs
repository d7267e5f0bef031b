//! Growing: members start and join as the type allows, and a grow that cannot succeed is taken back by reverting.

use backlot_standard::manifest::StartOrder;
use serde_json::json;

use crate::world::{Shape, World};

#[test]
fn no_join_is_begun_beside_one_that_may_be_at_work() {
    let mut world = World::ready(Shape::Agent, json!({"members": 1}));
    world.edit(json!({"members": 3}));
    world.until("a join", |world| world.delivered.iter().any(|operation| operation.contains("join/")));
    let first = world.delivered.last().unwrap().split(' ').next().unwrap().to_owned();
    let joins = |world: &World| world.delivered.iter().filter(|operation| operation.contains("join/")).count();
    world.silent = [(first, 10)].into();
    (0..8).for_each(|_| drop(world.step()));
    assert_eq!(joins(&world), 1, "{:?}", world.delivered);
    world.settle();
    assert_eq!(joins(&world), 2);
}

#[test]
fn a_member_that_cannot_start_holds_up_no_other() {
    let mut world = World::ready(Shape::Agent, json!({"members": 1}));
    world.unschedulable.insert("orders-1".into());
    world.edit(json!({"members": 3}));
    world.until("the other joined", |world| world.records() == "0:joined 1:joining 2:joined");
    world.unschedulable.clear();
    world.settle();
    assert_eq!(world.records(), "0:joined 1:joined 2:joined");
}

#[test]
fn a_grow_that_cannot_succeed_is_taken_back_by_reverting() {
    for shape in [Shape::Quorum, Shape::Agent, Shape::Leaderless] {
        let mut world = World::ready(shape, json!({"members": 3}));
        world.unschedulable = ["orders-3".into(), "orders-4".into()].into();
        world.edit(json!({"members": 5}));
        (0..10).for_each(|_| drop(world.step()));
        assert!(world.condition("Ready").starts_with("False"), "{shape:?}");
        world.edit(json!({"members": 3}));
        world.settle();
        assert_eq!(world.records(), "0:joined 1:joined 2:joined", "{shape:?}");
        assert!(world.condition("Ready").starts_with("True"), "{shape:?}");
    }
}

#[test]
fn a_member_whose_volume_is_not_the_recorded_one_takes_part_in_nothing() {
    for shape in [Shape::Quorum, Shape::Agent, Shape::Leaderless] {
        let mut world = World::ready(shape, json!({"members": 3}));
        *world.volume("orders-1") = crate::world::Volume::default();
        world.remove_pod("orders-1");
        let before = world.delivered.len();
        world.edit(json!({"config": {"max-connections": 200}}));
        (0..20).for_each(|_| drop(world.step()));
        assert_eq!(world.delivered.len(), before, "{shape:?}: {:?}", world.delivered);
        let degraded = world.condition("Degraded");
        assert!(degraded.contains("orders-1 (VolumeReplaced"), "{shape:?}: {degraded}");
        assert_eq!(world.records(), "0:joined 1:joined 2:joined", "{shape:?}");
    }
}

#[test]
fn numbers_that_the_engine_does_not_accept_are_not_given_out() {
    let mut image = Shape::Agent.image();
    image.manifest.membership.ids.max = 3;
    let mut world = World::of(image, json!({"members": 4}));
    (0..30).for_each(|_| drop(world.step()));
    assert_eq!(world.records(), "0:joined 1:joined 2:joined");
    assert!(world.condition("Degraded").starts_with("True NoFreeOrdinal: 1 members of data cannot be added"));
}

#[test]
fn where_members_come_one_after_the_other_a_newcomer_is_the_highest() {
    let mut image = Shape::Quorum.image();
    image.manifest.membership.start = StartOrder::Serial;
    let mut world = World::of(image, json!({"members": 3, "deletionPolicy": "Delete"}));
    world.settle();
    // The engine elects another leader while the first one's pod is away, and the leader leaves last.
    world.remove_pod("orders-0");
    world.settle();
    world.edit(json!({"members": 1}));
    world.settle();
    let left: u32 = world.records().trim_end_matches(":joined").parse().unwrap();
    assert!(left > 0);
    world.edit(json!({"members": 3}));
    world.settle();
    assert_eq!(world.records(), format!("{left}:joined {}:joined {}:joined", left + 1, left + 2));
}
