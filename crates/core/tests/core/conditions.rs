//! Status: honest, stable, and small.

use backlot_core::plan::{Activity, ActivityKind, Plan};
use backlot_core::validate::{Judgement, Refusal};
use backlot_core::{status, validate};
use backlot_standard::result::ClusterHealth;
use jiff::Timestamp;
use serde_json::json;

use crate::world::{Shape, World};

fn times(world: &World) -> Vec<(String, String)> {
    let conditions = &world.database.status.as_ref().unwrap().conditions;
    conditions.iter().map(|known| (known.type_.clone(), known.last_transition_time.0.to_string())).collect()
}

#[test]
fn a_ready_database_says_so_in_every_field() {
    for shape in [Shape::Quorum, Shape::Agent, Shape::Leaderless] {
        let world = World::ready(shape, json!({"members": 3}));
        let status = world.database.status.clone().unwrap();
        assert_eq!((status.members, status.ready_members.as_deref()), (3, Some("3/3")), "{shape:?}");
        assert_eq!((status.summary.as_deref(), status.version.as_deref()), (Some("Ready"), Some("1.2.3")));
        let leader = (shape != Shape::Leaderless).then(|| "orders-0".to_owned());
        assert_eq!(status.leader, leader, "{shape:?}");
        let selector = |uid| format!("backlot.dev/cluster-uid={uid},app.kubernetes.io/component=data");
        assert_eq!(status.selector, status.cluster_uid.map(selector));
        assert_eq!(world.condition("Ready"), "True Ready: 3 of 3 members are ready");
        assert_eq!(world.condition("Progressing"), "False Settled: nothing is to be changed");
        assert_eq!(world.condition("Degraded"), "False AllWell: all members are well");
        let available = match shape {
            Shape::Leaderless | Shape::Parts => "True MembersServe: members serve",
            Shape::Quorum | Shape::Agent => "True LeaderWritable: orders-0 takes writes",
        };
        assert_eq!(world.condition("Available"), available, "{shape:?}");
        let generations = status.conditions.iter().map(|known| known.observed_generation);
        assert!(generations.into_iter().all(|generation| generation == world.database.metadata.generation));
    }
}

#[test]
fn a_transition_time_changes_with_its_status_only() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    let before = times(&world);
    world.edit(json!({"config": {"live-limit": 3}}));
    world.settle();
    assert_eq!(times(&world), before, "a generation is no transition");
    world.remove_pod("orders-1");
    world.step();
    let changed: Vec<_> = times(&world).into_iter().filter(|time| !before.contains(time)).map(|time| time.0).collect();
    assert_eq!(changed, ["Ready", "Degraded"]);
    let unwell = times(&world);
    world.edit(json!({"config": {"no-such-key": 1}}));
    world.step();
    assert_eq!(times(&world), unwell, "other reasons and messages are no transition");
    assert_eq!(world.condition("Available"), "True LeaderWritable: orders-0 takes writes", "what runs is still told");
}

#[test]
fn available_is_what_members_say_themselves() {
    for shape in [Shape::Quorum, Shape::Agent] {
        let mut world = World::ready(shape, json!({"members": 3}));
        world.silent = ["orders-0", "orders-1", "orders-2"].map(|name| (name.to_owned(), 3)).into();
        world.step();
        assert_eq!(world.condition("Available"), "False NoWritableLeader: no member reports that it takes writes");
        assert!(
            world.condition("Degraded").contains("orders-0 (not reached: timeout)"),
            "{}",
            world.condition("Degraded")
        );
    }
    let mut world = World::ready(Shape::Leaderless, json!({"members": 3}));
    world.remove_pod("orders-0");
    world.remove_pod("orders-1");
    world.pass(crate::world::Fault::default());
    assert_eq!(world.condition("Available"), "True MembersServe: members serve");
    assert!(world.condition("Ready").starts_with("False"));
    let mut snapshot = world.snapshot();
    for observed in snapshot.agents.values_mut() {
        if let backlot_core::snapshot::Observed::Known(status) = observed
            && let Some(health) = status.health.as_mut()
        {
            health.cluster = ClusterHealth::PartlyLost;
        }
    }
    let judgement = validate::judge(&snapshot);
    let plan = backlot_core::plan::plan_pass(&snapshot, &judgement);
    let status = status::status(&snapshot, &judgement, &plan, Timestamp::UNIX_EPOCH);
    let available = status.conditions.iter().find(|known| known.type_ == "Available").unwrap();
    assert_eq!((available.status.as_str(), available.reason.as_str()), ("False", "NoMemberServes"));
}

#[test]
fn of_two_members_that_claim_to_lead_the_newer_one_is_believed() {
    let world = World::ready(Shape::Quorum, json!({"members": 3}));
    let mut snapshot = world.snapshot();
    let mut claim = |name: &str, term| {
        if let Some(backlot_core::snapshot::Observed::Known(status)) = snapshot.agents.get_mut(name) {
            let role = status.role.as_mut().unwrap();
            (role.role, role.writable, role.term) = (backlot_standard::result::Role::Leader, true, Some(term));
        }
    };
    claim("orders-0", 3);
    claim("orders-1", 4);
    claim("orders-2", 2);
    let judgement = validate::judge(&snapshot);
    let plan = backlot_core::plan::plan_pass(&snapshot, &judgement);
    let status = status::status(&snapshot, &judgement, &plan, Timestamp::UNIX_EPOCH);
    assert_eq!(status.leader.as_deref(), Some("orders-1"));
}

#[test]
fn obstacles_come_before_work_and_messages_are_cut() {
    let world = World::ready(Shape::Agent, json!({"members": 3}));
    let snapshot = world.snapshot();
    let accepted = validate::judge(&snapshot);
    let activity = |kind, reason, message: &str| Activity { kind, reason, message: message.to_owned() };
    let plan = Plan {
        groups: world.database.status.clone().unwrap().groups,
        activities: vec![
            activity(ActivityKind::Working, "Leaving", "goes on"),
            activity(ActivityKind::Stuck, "LeaveFailed", &"ä".repeat(5000)),
        ],
        ..Plan::default()
    };
    let status = status::status(&snapshot, &accepted, &plan, Timestamp::UNIX_EPOCH);
    let reasons: Vec<_> = status.conditions.iter().map(|known| known.reason.as_str()).collect();
    assert_eq!(reasons, ["Ready", "Leaving", "LeaveFailed", "LeaderWritable"]);
    let longest = status.conditions.iter().map(|known| known.message.len()).max().unwrap();
    assert!((1000..1100).contains(&longest), "{longest}");
    assert!(status.summary.unwrap().len() < 1100);
    let refusals: Vec<_> = (0..200)
        .map(|number| Refusal { reason: "SettingRefused", message: format!("spec.config.k{number}: no") })
        .collect();
    let refused = Judgement { refusals, ..accepted };
    let status = status::status(&snapshot, &refused, &plan, Timestamp::UNIX_EPOCH);
    assert!(status.conditions.iter().all(|known| known.message.len() < 1100) && status.summary.unwrap().len() < 1100);
    assert_eq!(status.groups, snapshot.database.status.unwrap().groups, "records survive a refusal");
}

#[test]
fn a_member_that_is_not_well_is_named_with_the_reason() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    world.remove_pod("orders-2");
    world.unschedulable.insert("orders-2".into());
    (0..3).for_each(|_| drop(world.step()));
    assert_eq!(
        world.condition("Ready"),
        "False MembersNotReady: 2 of 3 members are ready; orders-2 (no agent answers)"
    );
    assert_eq!(
        world.database.status.as_ref().unwrap().summary.as_deref(),
        Some("Degraded: orders-2 (no agent answers)")
    );
}
