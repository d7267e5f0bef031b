//! Components that join the cluster of another one: what founds, who votes, and that one group changes at a time.

use serde_json::{Value, json};

use crate::world::{Shape, World};

fn with(keepers: u32, fronts: u32) -> Value {
    json!({"members": 3, "components": {"keeper": {"members": keepers}, "front": {"members": fronts}}})
}

fn names(world: &World) -> Vec<String> {
    world.members().into_iter().map(|member| member.name).collect()
}

#[test]
fn the_joined_component_founds_and_the_others_follow() {
    let world = World::ready(Shape::Parts, with(3, 2));
    assert_eq!(world.engine.foundings.len(), 1);
    assert_eq!(world.engine.foundings[0].0, "orders-keeper-0");
    let keepers = ["orders-keeper-0", "orders-keeper-1", "orders-keeper-2"];
    let others = ["orders-0", "orders-1", "orders-2", "orders-front-0", "orders-front-1"];
    assert_eq!(names(&world), [&keepers[..], &others[..]].concat());
    let view = world.plan().view.unwrap();
    let voters = view.members.iter().filter(|member| member.vote).map(|member| member.id.as_str());
    assert_eq!(voters.collect::<Vec<_>>(), keepers);
    let mut numbers: Vec<_> = view.members.iter().map(|member| member.numeric_id).collect();
    assert_eq!(numbers, [101, 102, 103, 1, 2, 3, 201, 202]);
    numbers.dedup();
    assert_eq!(numbers.len(), 8);
}

#[test]
fn without_members_of_the_joined_component_the_next_one_founds() {
    let world = World::ready(Shape::Parts, json!({"members": 3}));
    assert_eq!(world.engine.foundings[0].0, "orders-0");
    assert_eq!(names(&world), ["orders-0", "orders-1", "orders-2"]);
    assert!(world.plan().view.unwrap().members.iter().all(|member| member.vote));
}

#[test]
fn whether_the_joined_component_exists_is_settled_by_founding() {
    for (had, wants, answer) in [(0, 3, "Use 0"), (3, 0, "Use at least 1")] {
        let mut world = World::ready(Shape::Parts, with(had, 0));
        world.edit(with(wants, 0));
        let refusals = world.refusals();
        let start = format!("MembersRefused: spec.components.keeper.members: {wants} refused");
        assert!(refusals[0].starts_with(&start) && refusals[0].ends_with(answer), "{refusals:?}");
        world.edit(with(had, 0));
        assert_eq!(world.refusals(), [""; 0]);
    }
}

#[test]
fn members_of_the_joined_component_cannot_be_given_up_before_they_founded() {
    let mut world = World::new(Shape::Parts, with(3, 0));
    world.unschedulable = ["orders-keeper-0", "orders-keeper-1", "orders-keeper-2"].map(str::to_owned).into();
    world.settle_with_obstacles();
    world.edit(with(0, 0));
    assert!(world.refusals()[0].ends_with("Use at least 1"), "{:?}", world.refusals());
    world.settle_with_obstacles();
    assert_eq!(world.engine.foundings.len(), 0);
    world.edit(with(1, 0));
    world.unschedulable.clear();
    world.settle();
    assert_eq!(world.engine.foundings[0].0, "orders-keeper-0");
}

#[test]
fn a_lost_member_is_replaced_although_another_component_waits_for_a_restart() {
    let mut world = World::ready(Shape::Parts, with(3, 0));
    world.remove_pod("orders-2");
    world.remove_claim("orders-2");
    world.settle_with_obstacles();
    world.edit(json!({"config": {"max-connections": 50}}));
    world.settle_with_obstacles();
    world.edit(json!({"members": 2}));
    let plan = world.settle();
    assert_eq!(plan.activities, []);
    assert_eq!(world.engine.members.len(), 5);
}

#[test]
fn nothing_is_founded_beside_data_of_a_component_that_would_join() {
    let mut world = World::ready(Shape::Parts, with(3, 0));
    world.delete_database();
    for keeper in ["orders-keeper-0", "orders-keeper-1", "orders-keeper-2"] {
        world.remove_claim(keeper);
    }
    let secret = world.objects.secret.as_mut().unwrap();
    secret.metadata.annotations = None;
    world.recreate(with(3, 0));
    world.settle_with_obstacles();
    assert_eq!(world.engine.foundings.len(), 1);
    assert!(world.condition("Degraded").starts_with("True UnexpectedData"), "{}", world.condition("Degraded"));
}

#[test]
fn a_component_that_only_joined_is_taken_back_without_its_volumes() {
    let mut world = World::ready(Shape::Parts, with(3, 1));
    world.delete_database();
    world.remove_claim("orders-front-0");
    world.recreate(with(3, 1));
    let plan = world.settle();
    assert_eq!((plan.activities, world.engine.foundings.len()), (vec![], 1));
}

#[test]
fn a_component_that_nobody_joins_comes_and_goes() {
    let mut world = World::ready(Shape::Parts, with(3, 0));
    for fronts in [2, 0, 1] {
        world.edit(with(3, fronts));
        let plan = world.settle();
        assert_eq!(plan.activities, []);
        assert_eq!(world.engine.members.len(), 6 + fronts as usize);
        assert!(world.condition("Ready").starts_with("True Ready"), "{}", world.condition("Ready"));
    }
}

#[test]
fn applications_get_the_members_of_the_bound_component() {
    let world = World::ready(Shape::Parts, with(3, 1));
    let binding = world.objects.binding.as_ref().unwrap().data.clone().unwrap();
    let hosts = String::from_utf8(binding["hosts"].0.clone()).unwrap();
    let hosts: Vec<_> = hosts.split(',').map(|host| host.split('.').next().unwrap()).collect();
    assert_eq!(hosts, ["orders-0", "orders-1", "orders-2"]);
    let service = world.objects.services.iter().find(|service| service.metadata.name.as_deref() == Some("orders"));
    let selector = service.unwrap().spec.clone().unwrap().selector.unwrap();
    assert_eq!(selector["app.kubernetes.io/component"], "data");
}

#[test]
fn members_of_two_components_are_not_restarted_beside_each_other() {
    // The world itself asserts that nothing is taken down while another one is.
    let mut world = World::ready(Shape::Parts, with(3, 2));
    world.edit(json!({"config": {"max-connections": 50}}));
    let plan = world.settle();
    assert_eq!(plan.activities, []);
    let restarts = world.delivered.iter().filter(|operation| operation.contains("restart/")).count();
    assert_eq!(restarts, 8);
}
