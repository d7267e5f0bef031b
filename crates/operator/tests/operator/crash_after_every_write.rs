//! An operator that dies after any single write or call, or whose request fails in any way, changes nothing about where a
//! Database ends.

use backlot_api::Database;
use backlot_api::database::DeletionPolicy;
use backlot_standard::manifest::Elections;
use backlot_testkit::fault::{Fault, When};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::world::{NAME, NAMESPACE, World, database, from};

/// Something that happens to a world.
struct Scenario {
    elections: Elections,
    /// The Database before it happens; none when it is made by it.
    start: Option<Value>,
    /// What goes before, once all is well.
    before: Option<fn(&mut World)>,
    happens: fn(&mut World),
    /// The way back to the state before, where there is one that is shorter than a new world.
    back: Option<fn(&mut World)>,
    /// What must be true in the end.
    end: fn(&World),
}

fn delete_database(world: &mut World) {
    world.server.delete::<Database>(NAMESPACE, NAME, None).unwrap();
}

fn ready_with(world: &World, members: usize) {
    world.must_be_ready();
    assert_eq!(world.members.joined(&world.cluster_uid()).len(), members);
}

fn keeps_data(world: &World, members: usize) {
    ready_with(world, members);
    for pod in world.server.list::<Pod>(NAMESPACE) {
        let name = pod.name_any();
        assert_eq!(world.members.read(NAMESPACE, &name).get("before").map(String::as_str), Some("1"), "{name}");
    }
}

impl Scenario {
    async fn world(&self) -> World {
        let mut world = match &self.start {
            Some(spec) => World::with_database(self.elections, spec.clone()).await,
            None => World::new(self.elections),
        };
        if let Some(before) = self.before {
            before(&mut world);
            world.settle().await;
        }
        world.restart_operator();
        world
    }

    /// Lets it happen in `world` while `fail` happens to the operator; answers how often the operator died, and the end.
    async fn run(&self, world: &mut World, fail: impl FnOnce(&mut World)) -> (u32, Vec<String>) {
        (self.happens)(world);
        fail(world);
        let crashes = world.crashes;
        world.settle().await;
        (self.end)(world);
        (world.crashes - crashes, world.summary())
    }

    /// The world for the next run: this one after the way back, or a new one.
    async fn again(&self, mut world: World) -> World {
        let Some(back) = self.back else { return self.world().await };
        back(&mut world);
        world.is_behind = false;
        world.settle().await;
        world.restart_operator();
        world
    }

    /// The run without failure, then one with each.
    async fn survives(&self) {
        let mut world = self.world().await;
        let (connection, agents) = (world.connection.clone(), world.agents.clone());
        let (_, wanted) = self.run(&mut world, |_| {}).await;
        let (requests, writes) = (connection.recorded().len() as u64, connection.writes().len() as u64);
        let calls = agents.calls();
        println!("{requests} requests, {writes} of them writes; {calls} calls of agents");
        assert!(writes > 0);
        let mut reached = 0;
        for write in 1..=writes {
            println!("crash after write {write} of {writes}");
            world = self.again(world).await;
            let crash = |world: &mut World| world.connection.inject(When::Write(write), Fault::StopAfter);
            let (crashes, end) = self.run(&mut world, crash).await;
            assert_eq!(end, wanted);
            reached += u64::from(crashes);
        }
        // The way there again may be one write shorter, when an event is told another time.
        assert!(reached + 2 > writes, "{reached} crashes at {writes} writes");
        // Neighbours are alike: each third call, and each third request, which fail in all ways in turn.
        for call in (1..=calls).step_by(3) {
            println!("crash after call {call} of {calls}");
            world = self.again(world).await;
            assert_eq!(self.run(&mut world, |world| world.agents.crash_after(call)).await.1, wanted);
        }
        for (request, fault) in (1..=requests).step_by(3).zip(FAULTS.iter().cycle()) {
            println!("{fault:?} at request {request} of {requests}");
            world = self.again(world).await;
            let fail = |world: &mut World| world.connection.inject(When::Request(request), *fault);
            assert_eq!(self.run(&mut world, fail).await.1, wanted);
        }
        println!("caches that are behind");
        world = self.again(world).await;
        assert_eq!(self.run(&mut world, |world| world.is_behind = true).await.1, wanted);
    }
}

/// How a request fails when the operator lives on.
const FAULTS: [Fault; 4] = [Fault::LoseReply, Fault::Conflict, Fault::InternalError, Fault::TooManyRequests];

#[tokio::test(start_paused = true)]
async fn create() {
    let create = Scenario {
        elections: Elections::Engine,
        start: None,
        before: None,
        happens: |world| drop(world.server.create(&database(NAME, json!({"members": 3}))).unwrap()),
        back: None,
        end: |world| ready_with(world, 3),
    };
    create.survives().await;
}

#[tokio::test(start_paused = true)]
async fn create_where_agents_elect() {
    let create = Scenario {
        elections: Elections::Agent,
        start: None,
        before: None,
        happens: |world| {
            drop(world.server.create(&database(NAME, json!({"members": 2, "deletionPolicy": "Delete"}))).unwrap());
        },
        back: None,
        end: |world| ready_with(world, 2),
    };
    create.survives().await;
}

#[tokio::test(start_paused = true)]
async fn grow() {
    let grow = Scenario {
        elections: Elections::Engine,
        start: Some(json!({"members": 1, "deletionPolicy": "Delete"})),
        before: None,
        happens: |world| world.edit(|database| database.spec.members = Some(3)),
        back: Some(|world| world.edit(|database| database.spec.members = Some(1))),
        end: |world| keeps_data(world, 3),
    };
    grow.survives().await;
}

#[tokio::test(start_paused = true)]
async fn shrink_and_keep_the_volumes() {
    let shrink = Scenario {
        elections: Elections::Engine,
        start: Some(json!({"members": 2})),
        before: None,
        happens: |world| world.edit(|database| database.spec.members = Some(1)),
        back: None,
        end: |world| keeps_data(world, 1),
    };
    shrink.survives().await;
}

#[tokio::test(start_paused = true)]
async fn shrink_and_delete_the_volumes() {
    let shrink = Scenario {
        elections: Elections::Engine,
        start: Some(json!({"members": 3, "deletionPolicy": "Delete"})),
        before: None,
        happens: |world| world.edit(|database| database.spec.members = Some(1)),
        back: Some(|world| world.edit(|database| database.spec.members = Some(3))),
        end: |world| keeps_data(world, 1),
    };
    shrink.survives().await;
}

#[tokio::test(start_paused = true)]
async fn reconfigure_live() {
    let reconfigure = Scenario {
        elections: Elections::Engine,
        start: Some(json!({"members": 3})),
        before: None,
        happens: |world| {
            world.edit(|database| drop(database.spec.config.insert("greeting".into(), from(json!("hi")))));
        },
        back: Some(|world| world.edit(|database| database.spec.config.clear())),
        end: |world| {
            keeps_data(world, 3);
            assert_eq!(world.members.count("", "reconfigure") % 3, 0, "each member once");
            assert_eq!(world.members.count("", "restart"), 0);
        },
    };
    reconfigure.survives().await;
}

#[tokio::test(start_paused = true)]
async fn reconfigure_with_restarts() {
    let reconfigure = Scenario {
        elections: Elections::Engine,
        start: Some(json!({"members": 3})),
        before: None,
        happens: |world| {
            world.edit(|database| drop(database.spec.config.insert("cacheSize".into(), from(json!("2Mi")))));
        },
        back: Some(|world| world.edit(|database| database.spec.config.clear())),
        end: |world| {
            keeps_data(world, 3);
            assert_eq!(world.members.count("", "restart") % 3, 0, "each member once");
        },
    };
    reconfigure.survives().await;
}

#[tokio::test(start_paused = true)]
async fn pod_lost() {
    let lost = Scenario {
        elections: Elections::Engine,
        start: Some(json!({"members": 3})),
        before: None,
        happens: |world| world.server.delete::<Pod>(NAMESPACE, "orders-1", Some(0)).unwrap(),
        back: Some(|_| {}),
        end: |world| keeps_data(world, 3),
    };
    lost.survives().await;
}

#[tokio::test(start_paused = true)]
async fn delete_with_the_volumes() {
    let delete = Scenario {
        elections: Elections::Engine,
        start: Some(json!({"members": 3, "deletionPolicy": "Delete"})),
        before: None,
        happens: delete_database,
        back: None,
        end: |world| assert_eq!(world.summary(), ["volumes {}"]),
    };
    delete.survives().await;
}

#[tokio::test(start_paused = true)]
async fn delete_and_keep_the_volumes() {
    let delete = Scenario {
        elections: Elections::Engine,
        start: Some(json!({"members": 3, "deletionPolicy": "Delete"})),
        before: None,
        // The policy turns with the last edit.
        happens: |world| {
            world.edit(|database| database.spec.deletion_policy = DeletionPolicy::Retain);
            delete_database(world);
        },
        back: None,
        end: |world| {
            assert!(world.server.get::<Database>(NAMESPACE, NAME).is_none());
            assert_eq!(world.server.list::<PersistentVolumeClaim>(NAMESPACE).len(), 3);
            assert!(world.summary().contains(&r#"volumes {"Retain Bound": 3}"#.to_owned()), "{:?}", world.summary());
            assert!(world.server.get::<Secret>(NAMESPACE, "orders-cluster").is_some());
        },
    };
    delete.survives().await;
}

#[tokio::test(start_paused = true)]
async fn take_back_retained_volumes() {
    let adopt = Scenario {
        elections: Elections::Engine,
        start: Some(json!({"members": 3})),
        before: Some(delete_database),
        happens: |world| {
            // All members come back at the same time.
            world.most_down = 3;
            world.server.create(&database(NAME, json!({"members": 3}))).unwrap();
        },
        back: Some(delete_database),
        end: |world| {
            keeps_data(world, 3);
            assert_eq!(world.members.count("", "found"), 1, "founded once in all");
        },
    };
    adopt.survives().await;
}
