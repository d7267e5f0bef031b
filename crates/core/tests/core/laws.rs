//! Laws over random specifications, edits, crashes and losses. What must hold at every act is asserted by the world; here is
//! what must hold at the end: everything converges, and a settled database is left alone.

use std::collections::BTreeMap;

use backlot_api::DatabaseSpec;
use backlot_core::plan::Write;
use backlot_core::validate;
use backlot_standard::request::MemberState;
use proptest::prelude::*;
use serde_json::json;

use crate::world::{Fault, Shape, World};

#[derive(Clone, Debug)]
enum Event {
    Steps(u8),
    Crash(u8),
    Stale,
    Lossy,
    Silent(u8, u8),
    LosePod(u8),
    Members(u8),
    Fronts(u8),
    Keepers(u8),
    Limit(u8),
    Connections(u8),
    Policy(bool),
    Refused,
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1..6u8).prop_map(Event::Steps),
        4 => (0..12u8).prop_map(Event::Crash),
        2 => Just(Event::Stale),
        1 => Just(Event::Lossy),
        2 => (0..8u8, 1..6u8).prop_map(|(member, ticks)| Event::Silent(member, ticks)),
        2 => (0..8u8).prop_map(Event::LosePod),
        4 => any::<u8>().prop_map(Event::Members),
        2 => (0..4u8).prop_map(Event::Fronts),
        2 => (0..4u8).prop_map(Event::Keepers),
        1 => (1..100u8).prop_map(Event::Limit),
        2 => (10..255u8).prop_map(Event::Connections),
        1 => any::<bool>().prop_map(Event::Policy),
        1 => Just(Event::Refused),
        1 => Just(Event::Restart),
    ]
}

/// Few cases by default, because every developer waits for them; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { 64 };
    ProptestConfig { cases, ..default }
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![Just(Shape::Quorum), Just(Shape::Agent), Just(Shape::Leaderless), Just(Shape::Parts)]
}

fn accepted(world: &World) -> Option<Box<DatabaseSpec>> {
    world.database.status.as_ref()?.accepted_spec.clone()
}

fn happen(world: &mut World, shape: Shape, event: &Event) {
    let size = |index: u8| shape.sizes()[usize::from(index) % shape.sizes().len()];
    let name = |index: u8| shape.member(index);
    match *event {
        Event::Steps(steps) => (0..steps).for_each(|_| drop(world.step())),
        Event::Crash(acts) => {
            world.pass(Fault { crash_after: Some(acts.into()), ..Fault::default() });
            world.restart_operator();
        }
        Event::Stale => drop(world.pass(Fault { stale: true, ..Fault::default() })),
        Event::Lossy => drop(world.pass(Fault { lossy: true, ..Fault::default() })),
        Event::Silent(member, ticks) => drop(world.silent.insert(name(member), ticks.into())),
        Event::LosePod(member) => world.remove_pod(&name(member)),
        Event::Members(index) => world.edit(json!({"members": size(index)})),
        Event::Fronts(_) | Event::Keepers(_) if shape != Shape::Parts => {}
        // Until a spec was accepted, a cluster without keepers may still be created.
        Event::Keepers(0) if accepted(world).is_none() => {}
        Event::Fronts(members) => world.edit(json!({"components": {"front": {"members": members}}})),
        // Also to none, which is refused: then the accepted number goes on to hold.
        Event::Keepers(half) => {
            let before = world.database.spec.components["keeper"].members;
            world.edit(json!({"components": {"keeper": {"members": (2 * half).saturating_sub(1)}}}));
            world.pass(Fault::default());
            if half == 0 {
                assert_ne!(world.refusals(), [""; 0]);
                world.edit(json!({"components": {"keeper": {"members": before}}}));
            }
        }
        Event::Limit(limit) => world.edit(json!({"config": {"live-limit": limit}})),
        Event::Connections(limit) => world.edit(json!({"config": {"max-connections": limit}})),
        Event::Policy(delete) => world.edit(json!({"deletionPolicy": if delete { "Delete" } else { "Retain" }})),
        Event::Refused => {
            let members = world.database.spec.members;
            let before = accepted(world);
            world.edit(
                json!({"members": size(u8::try_from(members.unwrap_or(0)).unwrap()), "config": {"no-such-key": "1"}}),
            );
            for _ in 0..3 {
                let followed = validate::judge(&world.snapshot()).followed;
                let wants = followed.and_then(|wanted| {
                    let mut components = wanted.components.into_iter();
                    let data = components.find(|component| component.component.name == "data")?;
                    Some((data.members, data.config))
                });
                let is_as_accepted = |(count, config): (u32, BTreeMap<String, String>)| {
                    before.as_ref().is_some_and(|spec| spec.members == Some(count) && spec.config.len() == config.len())
                };
                assert!(wants.is_none_or(is_as_accepted), "a refused spec is followed");
                world.pass(Fault::default());
                assert_eq!(accepted(world), before);
            }
            world.edit(json!({"members": members, "config": {"no-such-key": null}}));
        }
        Event::Restart => world.restart_operator(),
    }
    world.tick();
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_it_converges_and_then_nothing_is_done(
        shape in shape(),
        first in any::<u8>(),
        events in proptest::collection::vec(event(), 0..16),
    ) {
        let size = shape.sizes()[usize::from(first) % shape.sizes().len()];
        let mut world = World::new(shape, shape.spec(size));
        for event in &events {
            happen(&mut world, shape, event);
        }
        let plan = world.settle();
        prop_assert!(plan.activities.is_empty(), "{:?}", plan.activities);
        let spec = &world.database.spec;
        let parts: u32 = spec.components.values().filter_map(|part| part.members).sum();
        let wants = spec.members.unwrap() + parts;
        let ready = world.condition("Ready");
        prop_assert!(ready.starts_with("True Ready"), "{ready}");
        prop_assert_eq!(world.engine.members.len(), wants as usize);
        prop_assert_eq!(world.engine.foundings.len(), 1);
        let before = (world.written.len(), world.delivered.len(), world.database.clone());
        world.restart_operator();
        world.step();
        world.step();
        prop_assert_eq!((world.written.len(), world.delivered.len(), world.database.clone()), before);
    }

    #[test]
    fn volumes_that_were_retained_are_taken_back_whatever_happened_before(
        shape in shape(),
        before in proptest::collection::vec(event(), 0..10),
        after in proptest::collection::vec(event(), 0..6),
    ) {
        let mut world = World::new(shape, shape.spec(3));
        for event in &before {
            happen(&mut world, shape, event);
        }
        world.edit(json!({"deletionPolicy": "Retain"}));
        let had_data = holds_data(&world);
        world.recreate(shape.spec(3));
        world.silent.clear();
        for event in &after {
            happen(&mut world, shape, event);
        }
        world.edit(json!({"deletionPolicy": "Retain", "config": {"page-size": null}}));
        let plan = world.settle();
        prop_assert!(plan.activities.is_empty(), "{:?}", plan.activities);
        prop_assert_eq!(world.engine.foundings.len(), 1);
        prop_assert!(holds_data(&world) || !had_data, "data is gone");
    }

    #[test]
    fn what_is_not_known_permits_nothing_destructive(
        shape in shape(),
        events in proptest::collection::vec(event(), 0..12),
    ) {
        let mut world = World::new(shape, shape.spec(3));
        for event in &events {
            happen(&mut world, shape, event);
        }
        let silent = world.objects.pods.iter().filter_map(|pod| Some((pod.metadata.name.clone()?, 9)));
        world.silent = silent.collect();
        world.edit(json!({"members": 1, "config": {"max-connections": 77}}));
        let left: Vec<_> = world.members().into_iter().filter(|member| member.state == MemberState::Left).collect();
        let plan = world.plan();
        for write in &plan.writes {
            if let Write::Delete { target, .. } = write {
                let is_left = left.iter().any(|member| target.name.starts_with(&member.name));
                prop_assert!(is_left, "{write:?}");
            }
        }
        prop_assert!(plan.operations.is_empty(), "nobody answers that could carry out {:?}", plan.operations);
    }

    #[test]
    fn a_deletion_with_volumes_ends_whatever_happened_before(
        shape in shape(),
        events in proptest::collection::vec(event(), 0..10),
        crashes in proptest::collection::vec(0..6usize, 0..6),
    ) {
        let mut world = World::new(shape, shape.spec(3));
        world.edit(json!({"deletionPolicy": "Delete"}));
        for event in &events {
            happen(&mut world, shape, event);
        }
        world.edit(json!({"deletionPolicy": "Delete"}));
        world.until("the finalizer", World::has_finalizer);
        world.delete_database();
        for acts in crashes {
            world.pass(Fault { crash_after: Some(acts), ..Fault::default() });
            world.tick();
        }
        (0..10).for_each(|_| drop(world.step()));
        prop_assert!(world.collect_garbage(), "the Database does not go");
        prop_assert!(world.objects.claims.is_empty() && world.objects.volumes.is_empty());
        prop_assert!(world.objects.secret.is_none());
    }
}

fn holds_data(world: &World) -> bool {
    world.volumes.values().any(|volume| volume.has_data)
}
