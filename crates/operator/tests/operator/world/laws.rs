//! What must hold after every step, whatever fails: each write is looked at beside the state in which it was made.

use std::collections::BTreeSet;

use backlot_api::database::{DeletionPolicy, GroupStatus};
use backlot_api::{Database, labels};
use backlot_standard::request::MemberState;
use backlot_standard::status::EnginePhase;
use backlot_testkit::fake_agent::FakeMembers;
use backlot_testkit::fault::Recorded;
use http::Method;
use kube::{Resource, ResourceExt};

use super::listing::Listing;

/// `(plural, name)` of the object that a request is about; the name is empty for a collection.
pub fn target(request: &Recorded) -> (String, String) {
    let segments: Vec<&str> = request.path.split('/').filter(|segment| !segment.is_empty()).collect();
    let start = match segments.as_slice() {
        ["api", _, "namespaces", _, _, ..] => 4,
        ["apis", _, _, "namespaces", _, _, ..] => 5,
        ["api", ..] => 2,
        _ => 3,
    };
    let name = match request.method {
        Method::POST => request.body.as_ref().and_then(|body| body["metadata"]["name"].as_str()),
        _ => segments.get(start + 1).copied(),
    };
    ((*segments.get(start).unwrap_or(&"")).to_owned(), name.unwrap_or_default().to_owned())
}

fn uid_of(database: &Database) -> String {
    let adopted = database.status.as_ref().and_then(|status| status.cluster_uid.clone());
    adopted.or_else(|| database.uid()).unwrap()
}

fn groups(database: &Database) -> &[GroupStatus] {
    database.status.as_ref().map(|status| status.groups.as_slice()).unwrap_or_default()
}

fn state_of(database: &Database, member: &str) -> Option<MemberState> {
    let mut members = groups(database).iter().flat_map(|group| &group.members);
    members.find(|known| known.name == member).map(|known| known.state)
}

/// Checks what one pass wrote. `before` is the true state when the pass began; nobody else wrote meanwhile.
pub fn check_writes(before: &Listing, after: &Listing, writes: &[Recorded], members: &FakeMembers) {
    for write in writes.iter().filter(|write| write.is_write() && write.changed) {
        let (plural, name) = target(write);
        check_owner(before, after, write, &plural, &name);
        if write.method == Method::DELETE {
            let preconditions = &write.body.as_ref().unwrap()["preconditions"];
            assert!(preconditions["uid"].is_string(), "{name} deleted without its UID");
            assert!(preconditions["resourceVersion"].is_string(), "{name} deleted without its resourceVersion");
            match plural.as_str() {
                "pods" => check_pod_deletion(before, &name, members),
                "persistentvolumeclaims" => check_claim_deletion(before, &name, members),
                "secrets" => {
                    let is_last = before.databases.iter().any(|database| {
                        database.meta().deletion_timestamp.is_some()
                            && database.spec.deletion_policy == DeletionPolicy::Delete
                            && !before.claims.iter().any(|claim| belongs(claim, &uid_of(database)))
                    });
                    assert!(is_last, "Secret {name} deleted before its cluster's volumes");
                }
                other => panic!("{other} {name} is not the operator's to delete"),
            }
        }
        if plural == "pods" && write.method != Method::DELETE {
            assert_eq!(write.method, Method::POST, "pod {name} is changed");
        }
        if plural == "persistentvolumes" {
            let is_bound = before.claims.iter().any(|claim| {
                claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()) == Some(&name)
                    && before.databases.iter().any(|database| belongs(claim, &uid_of(database)))
            });
            assert!(is_bound, "volume {name} belongs to no Database");
        }
    }
    for database in &after.databases {
        let same = |known: &&Database| known.uid() == database.uid();
        if let Some(old) = before.databases.iter().find(same) {
            check_records(old, database);
        }
    }
}

/// What is changed belongs to a Database.
fn check_owner(before: &Listing, after: &Listing, write: &Recorded, plural: &str, name: &str) {
    fn find<K: Resource>(objects: &[K], name: &str) -> Option<String> {
        let object = objects.iter().find(|object| object.meta().name.as_deref() == Some(name))?;
        Some(object.meta().labels.as_ref()?.get(labels::CLUSTER_UID)?.clone())
    }
    if write.method == Method::POST {
        return;
    }
    let of = match plural {
        "pods" => find(&before.pods, name),
        "persistentvolumeclaims" => find(&before.claims, name),
        "secrets" => find(&before.secrets, name),
        "services" => find(&before.services, name),
        "endpointslices" => find(&before.slices, name),
        "poddisruptionbudgets" => find(&before.budgets, name),
        "databases" | "events" | "persistentvolumes" => return,
        other => panic!("{other} {name} is not the operator's to change"),
    };
    // A Database that takes volumes back learns its identity in this pass.
    let mut databases = before.databases.iter().chain(&after.databases);
    let is_own = of.is_some_and(|of| databases.any(|database| uid_of(database) == of));
    // A slice that this pass made, or an object of it, is changed by the same pass.
    let is_new = plural == "endpointslices" && find(&before.slices, name).is_none();
    assert!(is_own || is_new, "{plural} {name} of no Database is changed");
}

fn belongs<K: Resource>(object: &K, uid: &str) -> bool {
    object.meta().labels.as_ref().and_then(|labels| labels.get(labels::CLUSTER_UID)).is_some_and(|of| of == uid)
}

fn owner<'a, K: Resource>(before: &'a Listing, object: &K) -> &'a Database {
    let owner = before.databases.iter().find(|database| belongs(object, &uid_of(database)));
    owner.unwrap_or_else(|| panic!("{} belongs to no Database", object.meta().name.as_ref().unwrap()))
}

fn is_going_with_volumes(database: &Database) -> bool {
    database.meta().deletion_timestamp.is_some() && database.spec.deletion_policy == DeletionPolicy::Delete
}

fn check_pod_deletion(before: &Listing, name: &str, members: &FakeMembers) {
    let pod = before.pods.iter().find(|pod| pod.name_any() == name).unwrap();
    let database = owner(before, pod);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if is_going_with_volumes(database) || matches!(phase, Some("Failed" | "Succeeded")) {
        return;
    }
    assert_eq!(state_of(database, name), Some(MemberState::Left), "pod {name} deleted before its member left");
    let joined = members.joined(&uid_of(database));
    assert!(!joined.contains(name), "pod {name} deleted although the engine counts it");
}

fn check_claim_deletion(before: &Listing, name: &str, members: &FakeMembers) {
    let claim = before.claims.iter().find(|claim| claim.name_any() == name).unwrap();
    let database = owner(before, claim);
    assert_eq!(database.spec.deletion_policy, DeletionPolicy::Delete, "claim {name} deleted against the policy");
    assert!(!before.pods.iter().any(|pod| pod.name_any() == name), "claim {name} deleted before its pod was gone");
    if is_going_with_volumes(database) {
        return;
    }
    assert_eq!(state_of(database, name), Some(MemberState::Left), "claim {name} deleted before its member left");
    assert!(!members.joined(&uid_of(database)).contains(name), "claim {name} deleted although the engine counts it");
}

/// Records only go forward.
fn check_records(old: &Database, new: &Database) {
    let identity = |database: &Database| database.status.as_ref().and_then(|status| status.cluster_uid.clone());
    if let Some(uid) = identity(old) {
        assert_eq!(identity(new), Some(uid), "the cluster's identity changed");
    }
    for was in groups(old) {
        let is = groups(new).iter().find(|group| (&group.component, group.shard) == (&was.component, was.shard));
        let Some(is) = is else { panic!("a group's record was lost") };
        assert!(!was.founded || is.founded, "the founding was forgotten");
        assert!(was.founder.is_none() || was.founder == is.founder, "the founder changed");
        assert!(was.epoch <= is.epoch, "the epoch fell");
        for member in &was.members {
            let now = is.members.iter().find(|known| known.name == member.name).map(|known| known.state);
            let may_follow: &[Option<MemberState>] = match member.state {
                MemberState::New | MemberState::Joining => continue,
                MemberState::Joined => &[Some(MemberState::Joined), Some(MemberState::Leaving)],
                MemberState::Leaving => &[Some(MemberState::Leaving), Some(MemberState::Left)],
                MemberState::Left | MemberState::Dead => &[Some(MemberState::Left), None],
            };
            assert!(may_follow.contains(&now), "{}: {:?} became {now:?}", member.name, member.state);
        }
    }
}

/// Checks what the members did and how they are.
pub fn check_members(now: &Listing, members: &FakeMembers, most_down: usize) {
    // Of volumes, `check_claim_deletion` judges whether they may go.
    let harmful = |text: &String| !text.starts_with("the volume of ");
    assert_eq!(members.violations().into_iter().filter(harmful).collect::<Vec<_>>(), Vec::<String>::new());
    for database in &now.databases {
        let uid = uid_of(database);
        let recorded: BTreeSet<String> =
            groups(database).iter().filter_map(|group| Some(group.founder.as_ref()?.member.clone())).collect();
        for deed in members.deeds().iter().filter(|deed| deed.act == "found" && deed.operation.ends_with(&uid)) {
            assert!(recorded.contains(&deed.member), "{} founded; recorded are {recorded:?}", deed.member);
        }
        if database.meta().deletion_timestamp.is_some() {
            continue;
        }
        let joined = groups(database).iter().flat_map(|group| &group.members);
        let joined = joined.filter(|member| member.state == MemberState::Joined);
        let is_down = |name: &str| {
            let status = members.status(&database.namespace().unwrap(), name);
            status.is_ok_and(|status| status.engine.phase != EnginePhase::Running)
        };
        let down: Vec<_> = joined.filter(|member| is_down(&member.name)).map(|member| member.name.clone()).collect();
        assert!(down.len() <= most_down, "down at the same time: {down:?}");
    }
}
