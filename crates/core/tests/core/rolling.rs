//! Rolling restarts: one member at a time, the leader last, and only while all others are well.

use serde_json::json;

use crate::world::{Fault, Shape, World};

fn restarts(world: &World) -> Vec<String> {
    let restarts = world.delivered.iter().filter_map(|operation| operation.split_once(" restart/"));
    restarts.map(|(member, _)| member.to_owned()).collect()
}

#[test]
fn members_restart_one_after_the_other_and_the_leader_last() {
    for (shape, order) in [
        (Shape::Quorum, ["orders-1", "orders-2", "orders-0"]),
        (Shape::Agent, ["orders-1", "orders-2", "orders-0"]),
        (Shape::Leaderless, ["orders-0", "orders-1", "orders-2"]),
    ] {
        let mut world = World::ready(shape, json!({"members": 3}));
        world.edit(json!({"config": {"max-connections": 200}}));
        world.settle();
        assert_eq!(restarts(&world), order, "{shape:?}");
        assert!(world.condition("Ready").starts_with("True"), "{shape:?}");
    }
}

#[test]
fn live_settings_restart_nobody() {
    for shape in [Shape::Quorum, Shape::Agent, Shape::Leaderless] {
        let mut world = World::ready(shape, json!({"members": 3}));
        world.edit(json!({"config": {"live-limit": 7}}));
        world.settle();
        assert_eq!(restarts(&world), [""; 0], "{shape:?}");
    }
}

#[test]
fn a_setting_that_is_taken_back_midway_ends_the_rolling() {
    let mut world = World::ready(Shape::Quorum, json!({"members": 3}));
    world.edit(json!({"config": {"max-connections": 200}}));
    world.until("one restarted", |world| restarts(world).len() == 1);
    world.edit(json!({"config": {"max-connections": null}}));
    world.settle();
    assert_eq!(restarts(&world), ["orders-1", "orders-1"]);
}

#[test]
fn the_next_restart_waits_until_the_last_one_is_well_again() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    world.edit(json!({"config": {"max-connections": 200}}));
    world.until("one restarted", |world| restarts(world).len() == 1);
    world.silent.insert("orders-1".into(), 10);
    (0..8).for_each(|_| drop(world.step()));
    assert_eq!(restarts(&world), ["orders-1"]);
    let progressing = world.condition("Progressing");
    assert!(
        progressing.starts_with("True RestartWaits: 2 members wait for a restart; orders-1 must be well first"),
        "{progressing}"
    );
    world.settle();
    assert_eq!(restarts(&world).len(), 3);
}

#[test]
fn an_engine_that_does_not_allow_a_restart_is_not_restarted() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    world.edit(json!({"config": {"max-connections": 200}}));
    // A member that the engine knows and nobody else: it counts as down.
    world.engine.members.insert("orders-9".into());
    world.pass(Fault::default());
    (0..5).for_each(|_| drop(world.step()));
    assert_eq!(restarts(&world), [""; 0]);
    assert!(world.condition("Progressing").contains("RestartWaits"), "{}", world.condition("Progressing"));
    world.engine.members.remove("orders-9");
    world.settle();
    assert_eq!(restarts(&world).len(), 3);
}

#[test]
fn an_order_that_is_repeated_restarts_once() {
    let mut world = World::ready(Shape::Quorum, json!({"members": 3}));
    world.edit(json!({"config": {"max-connections": 200}}));
    for _ in 0..40 {
        world.pass(Fault { lossy: true, ..Fault::default() });
        world.pass(Fault { stale: true, ..Fault::default() });
        world.pass(Fault::default());
        world.tick();
    }
    world.settle();
    assert_eq!(restarts(&world), ["orders-1", "orders-2", "orders-0"]);
}

#[test]
fn a_single_member_restarts_too() {
    for shape in [Shape::Quorum, Shape::Agent, Shape::Leaderless] {
        let mut world = World::ready(shape, json!({"members": 1}));
        world.edit(json!({"config": {"max-connections": 200}}));
        world.settle();
        assert_eq!(restarts(&world), ["orders-0"], "{shape:?}");
    }
}

#[test]
fn a_setting_that_followers_need_first_is_lowered_on_the_leader_first() {
    for (value, order) in [(16, ["orders-1", "orders-2", "orders-0"]), (4, ["orders-0", "orders-1", "orders-2"])] {
        let mut world = World::ready(Shape::Quorum, json!({"members": 3}));
        world.edit(json!({"config": {"max-workers": value}}));
        world.settle();
        assert_eq!(restarts(&world), order, "8 to {value}");
    }
}

#[test]
fn where_agents_elect_such_a_setting_is_not_lowered_and_taking_it_back_recovers() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    world.edit(json!({"config": {"max-workers": 4}}));
    let refusals = world.refusals();
    assert_eq!(
        refusals,
        [
            "SettingLowered: spec.config.max-workers: 8 → 4 refused: followers of this engine refuse less than their leader had, and this operator cannot lower it yet. Set it back to at least 8"
        ]
    );
    world.edit(json!({"config": {"max-workers": null}}));
    world.settle();
    assert_eq!(restarts(&world), [""; 0]);
}
