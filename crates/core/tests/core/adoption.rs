//! A Database of the same name takes back what an earlier one left: never by guess, and never without its data.

use backlot_api::labels;
use serde_json::json;

use crate::world::{Shape, World};

const SHAPES: [Shape; 3] = [Shape::Quorum, Shape::Agent, Shape::Leaderless];

/// A Database that was founded with three members, deleted with its volumes retained, and made anew.
fn recreated(shape: Shape) -> World {
    let mut world = World::ready(shape, json!({"members": 3}));
    world.recreate(json!({"members": 3}));
    world
}

fn annotate(world: &mut World, value: Option<&str>) {
    let annotations = world.objects.secret.as_mut().unwrap().metadata.annotations.get_or_insert_default();
    annotations.remove(labels::FOUNDED);
    annotations.extend(value.map(|value| (labels::FOUNDED.to_owned(), value.to_owned())));
}

/// Everything that a Database is told whose predecessor left something that does not fit.
pub fn refusals() -> Vec<String> {
    let mut said = vec![];
    let mut told = |change: &dyn Fn(&mut World)| {
        let mut world = recreated(Shape::Agent);
        change(&mut world);
        said.extend(world.refusals());
    };
    told(&|world| annotate(world, Some("?")));
    told(&|world| world.remove_claim("orders-0"));
    told(&|world| world.objects.claims.clear());
    told(&|world| world.objects.secret = None);
    told(&|world| world.edit(json!({"class": "other"})));
    told(&|world| {
        world.objects.secret.as_mut().unwrap().metadata.labels.as_mut().unwrap().retain(|key, _| key == labels::CLASS);
    });
    said
}

#[test]
fn a_database_of_the_same_name_takes_the_volumes_back() {
    for shape in SHAPES {
        let mut world = World::ready(shape, json!({"members": 3}));
        let before = world.database.status.clone().unwrap();
        world.recreate(json!({"members": 3}));
        world.settle();
        let after = world.database.status.clone().unwrap();
        assert_eq!(after.cluster_uid, before.cluster_uid, "{shape:?}");
        assert_ne!(after.cluster_uid, world.database.metadata.uid, "{shape:?}");
        assert_eq!(after.groups[0].leader, before.groups[0].leader, "{shape:?}");
        assert_eq!(world.records(), "0:joined 1:joined 2:joined", "{shape:?}");
        assert_eq!(world.engine.foundings.len(), 1, "{shape:?}");
        assert!(world.condition("Ready").starts_with("True"), "{shape:?}");
        for (was, is) in before.groups[0].members.iter().zip(&after.groups[0].members) {
            assert_eq!(was.incarnation, is.incarnation, "{shape:?}: volumes are recorded again");
        }
    }
}

#[test]
fn fewer_members_than_volumes_are_shrunk_to_one_by_one() {
    let mut world = World::ready(Shape::Agent, json!({"members": 4}));
    world.recreate(json!({"members": 2}));
    world.settle();
    assert_eq!(world.records(), "0:joined 1:joined");
    assert_eq!(world.engine.members.len(), 2);
}

#[test]
fn a_database_whose_status_was_lost_does_not_found_again() {
    for shape in SHAPES {
        let mut world = World::ready(shape, json!({"members": 3}));
        world.database.status = None;
        world.settle();
        assert_eq!(world.records(), "0:joined 1:joined 2:joined", "{shape:?}");
        assert_eq!(world.engine.foundings.len(), 1, "{shape:?}");
    }
}

#[test]
fn a_founding_record_that_cannot_be_read_is_not_taken_for_none() {
    let mut world = recreated(Shape::Agent);
    annotate(&mut world, Some("{\"groups\": 7}"));
    let refusals = world.refusals();
    assert!(
        refusals.len() == 1 && refusals[0].starts_with("FoundingRecordUnreadable: Secret orders-cluster: annotation"),
        "{refusals:?}"
    );
    assert!(refusals[0].ends_with("Restore the Secret from a backup"), "{refusals:?}");
}

#[test]
fn an_empty_member_in_place_of_a_lost_leader_is_not_made_the_leader() {
    let mut world = recreated(Shape::Agent);
    world.remove_claim("orders-0");
    assert_eq!(
        world.refusals(),
        [
            "LeaderVolumeMissing: claim orders-0 of orders-0, which led the cluster, is not here; others that followed an empty leader would lose their data. Restore the claim"
        ]
    );
    world.step();
    assert_eq!(world.database.status.as_ref().unwrap().cluster_uid, None);
    assert!(world.objects.pods.is_empty());
}

#[test]
fn a_founded_cluster_without_any_volume_is_not_waited_for() {
    for shape in SHAPES {
        let mut world = recreated(shape);
        let names: Vec<_> = world.objects.claims.iter().filter_map(|claim| claim.metadata.name.clone()).collect();
        for name in &names {
            world.remove_claim(name);
        }
        assert_eq!(
            world.refusals(),
            [
                "RetainedVolumesMissing: Secret orders-cluster tells of a founded cluster, but none of its volumes is here. Restore the claims orders-*, or delete the Secret to begin with an empty database"
            ]
        );
        world.objects.secret = None;
        world.engine = crate::world::Engine::default();
        world.settle();
        assert!(world.condition("Ready").starts_with("True"), "{shape:?}");
    }
}

#[test]
fn volumes_without_their_secret_are_not_touched() {
    let mut world = recreated(Shape::Quorum);
    world.objects.secret = None;
    assert_eq!(
        world.refusals(),
        [
            "VolumesOfAnotherCluster: claim orders-0 holds data of another cluster, and its Secret orders-cluster is gone or another. Restore that Secret to take the data back, or delete the claim"
        ]
    );
}

#[test]
fn another_class_does_not_get_the_volumes() {
    let mut world = recreated(Shape::Quorum);
    world.edit(json!({"class": "other"}));
    assert_eq!(
        world.refusals(),
        [
            "RetainedDataOfAnotherClass: volumes and Secret orders-cluster of an earlier Database orders of class acme are still here, not other. Choose another name, or delete the Secret and the claims orders-*"
        ]
    );
}

#[test]
fn a_secret_that_names_no_cluster_or_another_one_is_not_used() {
    let mut world = World::ready(Shape::Quorum, json!({}));
    let secret = world.objects.secret.as_mut().unwrap();
    secret.metadata.labels.as_mut().unwrap().insert(labels::CLUSTER_UID.into(), "other".into());
    assert!(world.refusals()[0].starts_with("SecretOfAnotherCluster: Secret orders-cluster does not belong"));
    let secret = world.objects.secret.as_mut().unwrap();
    secret.metadata.labels.as_mut().unwrap().remove(labels::CLUSTER_UID);
    world.database.status = None;
    assert!(world.refusals()[0].starts_with("SecretOfAnotherCluster: Secret orders-cluster has no label"));
}

#[test]
fn a_member_that_left_is_not_taken_back() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    world.edit(json!({"members": 2}));
    world.settle();
    world.recreate(json!({"members": 3}));
    world.settle();
    assert_eq!(world.records(), "0:joined 1:joined 3:joined");
}

#[test]
fn a_member_whose_leave_was_proven_is_marked_before_its_pod_goes() {
    let mut world = World::ready(Shape::Agent, json!({"members": 3}));
    world.edit(json!({"members": 2}));
    world.until("orders-2 left", |world| world.records().contains("2:left"));
    world.until("its pod goes", |world| {
        world.objects.pod("orders-2").is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
    });
    world.recreate(json!({"members": 2}));
    world.settle();
    assert_eq!(world.records(), "0:joined 1:joined");
}

#[test]
fn without_a_record_nothing_is_founded_before_every_earlier_volume_was_looked_into() {
    let mut world = recreated(Shape::Agent);
    annotate(&mut world, None);
    // One volume is empty, the others hold data and are not heard of at first.
    world.volume("orders-2").has_data = false;
    world.silent = [("orders-0".into(), 20), ("orders-1".into(), 20)].into();
    (0..10).for_each(|_| drop(world.step()));
    assert!(world.condition("Ready").contains("WaitsForMembers"), "{}", world.condition("Ready"));
    (0..20).for_each(|_| drop(world.step()));
    assert!(world.condition("Degraded").starts_with("True UnexpectedData"), "{}", world.condition("Degraded"));
    assert_eq!(world.engine.foundings.len(), 1);
    assert_eq!(world.database.status.as_ref().unwrap().groups[0].founder, None);
}

#[test]
fn a_founding_that_was_begun_is_finished_by_its_founder_only() {
    let mut world = World::new(Shape::Agent, json!({"members": 3}));
    world.until("founded", |world| !world.engine.foundings.is_empty());
    let founder = world.database.status.as_ref().unwrap().groups[0].founder.clone();
    assert!(!world.database.status.as_ref().unwrap().groups[0].founded);
    world.recreate(json!({"members": 3}));
    world.step();
    assert_eq!(world.database.status.as_ref().unwrap().groups[0].founder, founder);
    world.settle();
    assert!(world.condition("Ready").starts_with("True"));
    assert_eq!(world.engine.foundings.len(), 1);
}
