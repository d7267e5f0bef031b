//! Shrinking: who leaves, what proves it, and what becomes of the volume.

use backlot_core::plan::Plan;
use backlot_core::snapshot::Observed;
use backlot_standard::result::{EngineMember, MembershipOutput};
use backlot_standard::verb::Verb;
use serde_json::json;

use crate::world::{Shape, World};

const SHAPES: [Shape; 3] = [Shape::Quorum, Shape::Agent, Shape::Leaderless];

fn reasons(plan: &Plan) -> Vec<String> {
    plan.activities.iter().map(|activity| format!("{}: {}", activity.reason, activity.message)).collect()
}

#[test]
fn the_leader_is_the_last_to_leave() {
    for shape in SHAPES {
        let mut world = World::ready(shape, json!({"members": 5}));
        world.edit(json!({"members": 1}));
        world.settle();
        assert_eq!(world.records(), "0:joined", "{shape:?}");
    }
    let mut world = World::ready(Shape::Quorum, json!({"members": 3}));
    // The engine elects another leader while the first one's pod is away.
    world.remove_pod("orders-0");
    world.settle();
    let leader = world.database.status.as_ref().unwrap().leader.clone().unwrap();
    world.edit(json!({"members": 1}));
    world.settle();
    assert_eq!(world.records(), format!("{}:joined", leader.trim_start_matches("orders-")));
}

#[test]
fn a_shrink_is_not_begun_while_those_that_stay_are_unwell() {
    for shape in SHAPES {
        let mut world = World::ready(shape, json!({"members": 3}));
        world.unschedulable.insert("orders-1".into());
        world.remove_pod("orders-1");
        world.edit(json!({"members": 1}));
        (0..10).for_each(|_| drop(world.step()));
        assert!(!world.records().contains("leav"), "{shape:?}: {}", world.records());
        let why = match shape {
            Shape::Quorum | Shape::Agent => "True ShrinkWaits: orders-2 stays: orders-1 must be well first",
            Shape::Leaderless | Shape::Parts => {
                "True ShrinkWaits: orders-1 stays: it must run to move its data and duties away"
            }
        };
        assert_eq!(world.condition("Degraded"), why, "{shape:?}");
        world.edit(json!({"members": 3}));
        world.unschedulable.clear();
        world.settle();
        assert_eq!(world.records(), "0:joined 1:joined 2:joined", "{shape:?}");
    }
}

#[test]
fn a_shrink_that_is_taken_back_midway_costs_no_member() {
    for shape in SHAPES {
        for steps in 0..12 {
            let mut world = World::ready(shape, json!({"members": 3}));
            world.edit(json!({"members": 1}));
            (0..steps).for_each(|_| drop(world.step()));
            world.edit(json!({"members": 3}));
            world.settle();
            assert_eq!(world.engine.members.len(), 3, "{shape:?} after {steps}");
            assert!(world.condition("Ready").starts_with("True"), "{shape:?} after {steps}");
        }
    }
}

#[test]
fn ordinals_of_retained_volumes_are_not_used_again() {
    for shape in SHAPES {
        let mut world = World::ready(shape, json!({"members": 3}));
        for (members, records) in
            [(1, "0:joined"), (3, "0:joined 3:joined 4:joined"), (1, "0:joined"), (3, "0:joined 5:joined 6:joined")]
        {
            world.edit(json!({"members": members}));
            world.settle();
            assert_eq!(world.records(), records, "{shape:?}");
        }
    }
}

#[test]
fn with_delete_the_volumes_go_after_their_pods_and_ordinals_are_used_again() {
    for shape in SHAPES {
        let mut world = World::ready(shape, json!({"members": 3, "deletionPolicy": "Delete"}));
        world.edit(json!({"members": 1}));
        world.settle();
        assert!(world.objects.claim("orders-2").is_none(), "{shape:?}");
        world.edit(json!({"members": 3}));
        world.settle();
        assert_eq!(world.records(), "0:joined 1:joined 2:joined", "{shape:?}");
    }
}

#[test]
fn a_policy_that_changes_midway_holds_from_then_on() {
    for steps in 0..14 {
        let mut world = World::ready(Shape::Leaderless, json!({"members": 3, "deletionPolicy": "Delete"}));
        world.edit(json!({"members": 1}));
        (0..steps).for_each(|_| drop(world.step()));
        world.edit(json!({"deletionPolicy": "Retain"}));
        let kept: Vec<_> =
            world.objects.claims.iter().filter(|claim| claim.metadata.deletion_timestamp.is_none()).cloned().collect();
        world.settle();
        for claim in kept {
            let volume = claim.spec.unwrap().volume_name.unwrap();
            let policy = world.objects.volumes[&volume].spec.clone().unwrap().persistent_volume_reclaim_policy;
            assert_eq!(policy.as_deref(), Some("Retain"), "after {steps}");
        }
    }
}

/// A world in which `orders-2` is to leave, with the list that its engine gives.
fn leaving(shape: Shape, list: Observed<MembershipOutput>) -> Plan {
    let mut world = World::ready(shape, json!({"members": 3}));
    world.edit(json!({"members": 1}));
    world.until("orders-2 leaves", |world| world.records().contains("2:leaving"));
    let mut snapshot = world.snapshot();
    snapshot.answers.memberships.insert("orders-0".into(), list);
    let wanted = backlot_core::validate::validate(&snapshot).unwrap();
    backlot_core::plan::plan(&snapshot, &wanted)
}

fn listed(ids: &[(Option<&str>, &str)]) -> Observed<MembershipOutput> {
    let member = |(id, engine_id): &(Option<&str>, &str)| EngineMember {
        id: id.map(Into::into),
        engine_id: (*engine_id).into(),
        vote: true,
        up: None,
    };
    Observed::Known(MembershipOutput { version: String::new(), members: ids.iter().map(member).collect() })
}

#[test]
fn only_a_list_that_can_be_trusted_proves_that_a_member_left() {
    let others = [(Some("orders-0"), "e-orders-0"), (Some("orders-1"), "e-orders-1")];
    for shape in [Shape::Quorum, Shape::Agent] {
        let is_left = |plan: &Plan| format!("{:?}", plan.groups[0].members[2].state) == "Left";
        let plan = leaving(shape, listed(&others));
        assert!(is_left(&plan), "{:?}", reasons(&plan));
        for (list, why) in [
            (
                listed(&[]),
                "ShrinkWaits: orders-2 stays: the engine's member list cannot be read (orders-0 does not list itself)",
            ),
            (
                listed(&others[1..]),
                "ShrinkWaits: orders-2 stays: the engine's member list cannot be read (orders-0 does not list itself)",
            ),
            (
                Observed::Unknown("timeout".into()),
                "ShrinkWaits: orders-2 stays: the engine's member list cannot be read (timeout)",
            ),
            (
                Observed::Absent,
                "ShrinkWaits: orders-2 stays: the engine's member list cannot be read (orders-0 gave no answer)",
            ),
            (listed(&[others[0], others[1], (None, "e-orders-2")]), "Leaving: orders-2 leaves"),
        ] {
            let plan = leaving(shape, list);
            assert!(!is_left(&plan));
            assert!(reasons(&plan).iter().any(|reason| reason == why), "{shape:?} {why}: {:?}", reasons(&plan));
        }
    }
}

#[test]
fn a_ghost_that_could_be_a_member_without_engine_id_is_no_proof() {
    let mut world = World::ready(Shape::Quorum, json!({"members": 3}));
    world.edit(json!({"members": 1}));
    world.until("orders-2 leaves", |world| world.records().contains("2:leaving"));
    let mut snapshot = world.snapshot();
    snapshot.database.status.as_mut().unwrap().groups[0].members[2].engine_id = None;
    let list = listed(&[(Some("orders-0"), "e-orders-0"), (Some("orders-1"), "e-orders-1"), (None, "7")]);
    snapshot.answers.memberships.insert("orders-0".into(), list);
    let wanted = backlot_core::validate::validate(&snapshot).unwrap();
    let plan = backlot_core::plan::plan(&snapshot, &wanted);
    assert_eq!(
        reasons(&plan),
        ["ShrinkWaits: orders-2 stays: the engine lists 7, and nobody knows which member that is"]
    );
}

#[test]
fn the_list_is_asked_of_the_leader_where_the_image_says_so() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    world.edit(json!({"members": 2}));
    world.until("orders-2 leaves", |world| world.records().contains("2:leaving"));
    // Another member's list names just itself, which would look as if all others had left.
    world.silent.insert("orders-0".into(), 10);
    let plan = world.plan();
    assert_eq!(
        reasons(&plan),
        ["ShrinkWaits: orders-2 stays: the engine's member list cannot be read (no other member answers)"]
    );
    world.silent.clear();
    world.settle();
    assert_eq!(world.records(), "0:joined 1:joined");
}

#[test]
fn voters_that_are_not_known_to_be_up_are_not_counted() {
    let votes = [(Some("orders-0"), "e-orders-0"), (None, "e-x"), (Some("orders-2"), "e-orders-2"), (None, "e-y")];
    let plan = leaving(Shape::Quorum, listed(&votes));
    assert!(
        reasons(&plan).iter().any(|reason| reason
            == "ShrinkWaits: orders-2 stays: only 1 of the 3 voters that remain are up, 2 are needed. Bring the others back first"),
        "{:?}",
        reasons(&plan)
    );
    assert!(plan.operations.is_empty());
}

#[test]
fn a_quorum_that_is_lost_midway_stops_the_shrink_until_it_is_back() {
    let mut world = World::ready(Shape::Quorum, json!({"members": 3}));
    world.edit(json!({"members": 1}));
    world.until("orders-2 leaves", |world| world.records().contains("2:leaving"));
    world.unschedulable.insert("orders-1".into());
    world.remove_pod("orders-1");
    (0..6).for_each(|_| drop(world.step()));
    assert!(world.condition("Degraded").contains("ShrinkWaits: orders-2 stays: only 1 of the 2 voters"));
    assert!(world.objects.pod("orders-2").is_some());
    world.unschedulable.clear();
    world.settle();
    assert_eq!(world.records(), "0:joined");
}

#[test]
fn a_member_whose_volume_is_lost_is_forgotten_by_a_survivor() {
    let mut world = World::ready(Shape::Quorum, json!({"members": 3}));
    world.remove_pod("orders-2");
    world.remove_claim("orders-2");
    (0..3).for_each(|_| drop(world.step()));
    assert!(world.condition("Degraded").starts_with("True VolumeLost: claim orders-2 of orders-2 is gone"));
    world.edit(json!({"members": 1}));
    world.until("forgotten", |world| !world.engine.members.contains("orders-2"));
    assert!(world.delivered.iter().any(|operation| operation.starts_with("orders-0 forget/orders-2/")));
    world.settle();
    assert_eq!(world.records(), "0:joined");
}

#[test]
fn a_member_whose_volume_is_lost_goes_from_an_engine_that_keeps_no_membership() {
    let mut image = Shape::Leaderless.image();
    image.verbs.remove(&Verb::Rebalance);
    let mut world = World::of(image, json!({"members": 3}));
    world.settle();
    world.remove_pod("orders-2");
    world.remove_claim("orders-2");
    world.settle_with_obstacles();
    assert_eq!(world.records(), "0:joined 1:joined 2:joined");
    world.edit(json!({"members": 2}));
    world.settle();
    assert_eq!(world.records(), "0:joined 1:joined");
    assert!(world.condition("Ready").starts_with("True"), "{}", world.condition("Ready"));
}

#[test]
fn silent_members_are_not_removed() {
    for shape in SHAPES {
        let mut world = World::ready(shape, json!({"members": 3}));
        for name in ["orders-0", "orders-1", "orders-2"] {
            world.silent.insert(name.into(), 30);
        }
        let before = (world.written.len(), world.delivered.len());
        world.edit(json!({"members": 1, "config": {"max-connections": 50}, "deletionPolicy": "Delete"}));
        (0..25).for_each(|_| drop(world.step()));
        let after = world.written[before.0..].iter().filter(|write| write.starts_with("delete")).count();
        assert_eq!((after, world.delivered.len()), (0, before.1), "{shape:?}");
        world.settle();
        assert_eq!(world.engine.members.len(), 1, "{shape:?}");
    }
}
