//! The operator dies after every single act of a change, and the next one ends where an undisturbed one does.

use serde_json::{Value, json};

use crate::world::{Fault, Shape, World};

/// Drives to the end, dying once after `at` acts in all; answers whether there were that many.
fn drive(world: &mut World, at: usize) -> bool {
    let first = world.acts();
    let mut quiet = 0;
    while quiet < 3 {
        let left = at - (world.acts() - first);
        let outcome = world.pass(Fault { crash_after: Some(left), ..Fault::default() });
        if world.acts() - first >= at {
            world.restart_operator();
            return true;
        }
        world.tick();
        quiet = if outcome.acted { 0 } else { quiet + 1 };
    }
    false
}

fn everywhere(shape: Shape, first: &Value, change: &Value, check: impl Fn(&World, usize)) {
    let ready = (!first.is_null()).then(|| World::ready(shape, first.clone()));
    for at in 0.. {
        let mut world = match &ready {
            None => World::new(shape, change.clone()),
            Some(ready) => {
                let mut world = ready.clone();
                world.edit(change.clone());
                world
            }
        };
        let died = drive(&mut world, at);
        let plan = world.settle();
        assert_eq!(plan.activities, [], "{shape:?} {change} after {at}");
        assert!(world.condition("Ready").starts_with("True"), "{shape:?} {change} after {at}");
        assert_eq!(world.engine.foundings.len(), 1);
        check(&world, at);
        if !died {
            return;
        }
    }
}

#[test]
fn a_crash_after_any_act_of_a_creation_changes_nothing_in_the_end() {
    for shape in [Shape::Quorum, Shape::Agent, Shape::Leaderless] {
        everywhere(shape, &Value::Null, &json!({"members": 3}), |world, at| {
            assert_eq!(world.records(), "0:joined 1:joined 2:joined", "{shape:?} after {at}");
        });
    }
}

#[test]
fn a_crash_after_any_act_of_growing_changes_nothing_in_the_end() {
    for shape in [Shape::Quorum, Shape::Agent, Shape::Leaderless] {
        everywhere(shape, &json!({"members": 1}), &json!({"members": 3}), |world, at| {
            assert_eq!(world.records(), "0:joined 1:joined 2:joined", "{shape:?} after {at}");
        });
    }
}

#[test]
fn a_crash_after_any_act_of_shrinking_changes_nothing_in_the_end() {
    for shape in [Shape::Quorum, Shape::Agent, Shape::Leaderless] {
        for policy in ["Retain", "Delete"] {
            let first = json!({"members": 3, "deletionPolicy": policy});
            everywhere(shape, &first, &json!({"members": 1}), |world, at| {
                assert_eq!(world.records(), "0:joined", "{shape:?} after {at}");
                let claims = world.objects.claims.len() / world.image.manifest.volumes.len();
                assert_eq!(claims, if policy == "Retain" { 3 } else { 1 }, "{shape:?} after {at}");
            });
        }
    }
}

#[test]
fn a_crash_after_any_act_of_a_rolling_restart_changes_nothing_in_the_end() {
    for shape in [Shape::Quorum, Shape::Agent] {
        everywhere(shape, &json!({"members": 3}), &json!({"config": {"max-connections": 99}}), |world, at| {
            let restarts = world.delivered.iter().filter(|operation| operation.contains(" restart/")).count();
            assert_eq!(restarts, 3, "{shape:?} after {at}");
        });
    }
}

#[test]
fn a_crash_after_any_act_of_a_deletion_changes_nothing_in_the_end() {
    let ready = World::ready(Shape::Leaderless, json!({"members": 3, "deletionPolicy": "Delete"}));
    for at in 0..25 {
        let mut world = ready.clone();
        world.delete_database();
        let mut acts = 0;
        for _ in 0..12 {
            let before = world.acts();
            world.pass(Fault { crash_after: (acts < at).then(|| at - acts), ..Fault::default() });
            acts += world.acts() - before;
            world.tick();
        }
        assert!(world.collect_garbage(), "after {at}");
        assert!(world.objects.claims.is_empty() && world.objects.secret.is_none(), "after {at}");
    }
}
