//! A small deterministic world around the core: it carries out plans, lets pods, volumes, agents and an engine answer, and
//! breaks wherever it is told to. Laws that must hold at every single act are asserted where the act is carried out.

mod api;
mod engine;
mod kubernetes;
mod members;
mod shapes;

use std::collections::{BTreeMap, BTreeSet};

use backlot_api::Database;
use backlot_api::database::{DatabaseSpec, DatabaseStatus, MemberRecord};
use backlot_core::plan::{self, Plan};
use backlot_core::snapshot::{Answers, ImageFacts, Objects, Observed, OperatorFacts, Question, Snapshot, UsableImage};
use backlot_core::{routes, status, validate};
use backlot_standard::view::ClusterView;
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

pub use engine::Engine;
pub use kubernetes::from;
pub use members::{Agent, Volume};
pub use shapes::{Shape, manifest};

/// Name of the Database.
pub const NAME: &str = "orders";

/// What goes wrong in one pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// The pass decides on what the one before had seen.
    pub stale: bool,
    /// The operator dies after this many acts.
    pub crash_after: Option<usize>,
    /// Every answer to an operation is lost, and every second request too.
    pub lossy: bool,
}

/// The world.
#[derive(Clone)]
pub struct World {
    /// Image of the Database's class.
    pub image: UsableImage,
    /// The Database as stored.
    pub database: Database,
    /// Objects as stored.
    pub objects: Objects,
    /// The engine's own truth.
    pub engine: Engine,
    /// Agents by member.
    pub agents: BTreeMap<String, Agent>,
    /// Content of volumes, by name of the persistent volume.
    pub volumes: BTreeMap<String, Volume>,
    /// Members whose agent does not answer, and for how many more ticks.
    pub silent: BTreeMap<String, u32>,
    /// Members whose pods no node takes.
    pub unschedulable: BTreeSet<String>,
    /// Members that an act of the operator has taken down and that are not back yet.
    pub disrupted: BTreeSet<String>,
    /// Epoch of the operator.
    pub epoch: u64,
    /// Operations that were delivered: `member id`.
    pub delivered: Vec<String>,
    /// Writes that were carried out.
    pub written: Vec<String>,
    acts: usize,
    now: Timestamp,
    counter: u64,
    seen: Option<Snapshot>,
    view: Option<ClusterView>,
    generation: u64,
}

/// What a pass came to.
#[derive(Debug)]
pub struct Outcome {
    /// Its plan.
    pub plan: Plan,
    /// Whether it changed status, wrote, asked for an operation or gave out a view.
    pub acted: bool,
}

impl World {
    /// A world with one new Database; `spec` is merged over a spec that names the class only.
    pub fn new(shape: Shape, spec: Value) -> Self {
        Self::of(shape.image(), spec)
    }

    /// The same for any image.
    pub fn of(image: UsableImage, spec: Value) -> Self {
        let mut world = Self {
            image,
            database: Database::new(NAME, serde_json::from_value(json!({"class": "acme"})).unwrap()),
            objects: Objects::default(),
            engine: Engine::default(),
            agents: BTreeMap::new(),
            volumes: BTreeMap::new(),
            silent: BTreeMap::new(),
            unschedulable: BTreeSet::new(),
            disrupted: BTreeSet::new(),
            epoch: 1,
            delivered: vec![],
            written: vec![],
            acts: 0,
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            counter: 0,
            seen: None,
            view: None,
            generation: 0,
        };
        world.create_database(spec);
        world
    }

    /// A world whose Database is ready.
    pub fn ready(shape: Shape, spec: Value) -> Self {
        let mut world = Self::new(shape, spec);
        let plan = world.settle();
        assert_eq!(plan.activities, []);
        assert!(world.condition("Ready").starts_with("True Ready"));
        world
    }

    /// Makes the Database, e.g. once more after it was deleted.
    pub fn create_database(&mut self, spec: Value) {
        let mut database = Database::new(NAME, serde_json::from_value(json!({"class": "acme"})).unwrap());
        let number = self.next();
        database.metadata.namespace = Some("default".into());
        database.metadata.uid = Some(format!("uid-{number}"));
        database.metadata.resource_version = Some(number.to_string());
        database.metadata.generation = Some(1);
        database.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
        self.database = database;
        self.seen = None;
        self.view = None;
        self.edit(spec);
    }

    #[expect(clippy::needless_pass_by_value, reason = "so that tests can say `edit(json!(…))`")]
    /// Merges into the spec, as `kubectl patch` would.
    pub fn edit(&mut self, change: Value) {
        let mut spec = serde_json::to_value(&self.database.spec).unwrap();
        api::merge(&mut spec, &change);
        self.database.spec = serde_json::from_value::<DatabaseSpec>(spec).unwrap();
        self.database.metadata.generation = self.database.metadata.generation.map(|generation| generation + 1);
        self.touch_database();
    }

    fn touch_database(&mut self) {
        self.database.metadata.resource_version = Some(self.next().to_string());
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// What an operator sees now.
    pub fn snapshot(&self) -> Snapshot {
        let agents = self.objects.pods.iter().map(|pod| {
            let name = pod.name_any();
            let observed = match self.agents.get(&name) {
                None => Observed::Absent,
                Some(_) if self.silent.contains_key(&name) => Observed::Unknown("timeout".into()),
                Some(_) => Observed::Known(self.report(&name)),
            };
            (name, observed)
        });
        Snapshot {
            database: self.database.clone(),
            image: ImageFacts::Usable(Box::new(self.image.clone())),
            running: self.database.status.as_ref().and_then(|status| status.image.as_ref()).map(|_| self.image.clone()),
            objects: self.objects.clone(),
            agents: agents.collect(),
            answers: Answers::default(),
            operator: OperatorFacts {
                epoch: self.epoch,
                agent_image: "registry.example/agent:1".into(),
                cluster_domain: "cluster.local".into(),
            },
        }
    }

    /// One pass of the operator, as `crates/operator` does it.
    pub fn pass(&mut self, fault: Fault) -> Outcome {
        let fresh = self.snapshot();
        let mut snapshot = if fault.stale { self.seen.clone().unwrap_or_else(|| fresh.clone()) } else { fresh.clone() };
        self.seen = Some(fresh);
        let judgement = validate::judge(&snapshot);
        let mut plan = plan::plan_pass(&snapshot, &judgement);
        for _ in 0..3 {
            if plan.questions.is_empty() {
                break;
            }
            self.ask(&mut snapshot, &plan.questions);
            plan = plan::plan_pass(&snapshot, &judgement);
        }
        let status = status::status(&snapshot, &judgement, &plan, self.now);
        let acted = self.carry_out(&snapshot, &plan, status, fault);
        Outcome { plan, acted }
    }

    fn ask(&self, snapshot: &mut Snapshot, questions: &[Question]) {
        for question in questions {
            match question {
                Question::Membership { member } => {
                    let answer = self.membership(member);
                    snapshot.answers.memberships.insert(member.clone(), answer);
                }
                Question::CanDisrupt { member, subject } => {
                    let answer = self.can_disrupt(member, subject);
                    snapshot.answers.disruptions.insert(subject.clone(), answer);
                }
            }
        }
    }

    fn carry_out(&mut self, snapshot: &Snapshot, plan: &Plan, status: DatabaseStatus, fault: Fault) -> bool {
        let mut budget = fault.crash_after.unwrap_or(usize::MAX);
        let mut acted = false;
        if budget == 0 {
            return true;
        }
        let mut spend = |world: &mut Self| {
            world.acts += 1;
            budget = budget.saturating_sub(1);
            budget > 0
        };
        let mut database = snapshot.database.clone();
        if database.status.as_ref() != Some(&status) {
            acted = true;
            if database.metadata.resource_version != self.database.metadata.resource_version {
                return true;
            }
            self.database.status = Some(status);
            self.touch_database();
            database = self.database.clone();
            if !spend(self) {
                return true;
            }
        }
        for write in &plan.writes {
            acted = true;
            self.write(&database, write);
            if !spend(self) {
                return true;
            }
        }
        acted |= self.push_view(snapshot, plan);
        for (index, operation) in plan.operations.iter().enumerate() {
            acted = true;
            if !(fault.lossy && index % 2 == 0) {
                self.operate(&operation.member, &operation.request, self.generation);
            }
            if !spend(self) {
                return true;
            }
        }
        acted
    }

    fn push_view(&mut self, snapshot: &Snapshot, plan: &Plan) -> bool {
        let Some(view) = &plan.view else { return false };
        if self.view.as_ref() != Some(view) {
            self.view = Some(view.clone());
            self.generation += 1;
        }
        let generation = (self.epoch << 32) | self.generation;
        let mut pushed = false;
        for (member, status) in &snapshot.agents {
            let lacks = status.known().is_some_and(|status| status.view_generation != Some(generation));
            if lacks && !self.silent.contains_key(member) {
                self.take_view(member, &ClusterView { generation, ..view.clone() });
                pushed = true;
            }
        }
        pushed
    }

    /// Routes, as every replica of the operator keeps them.
    pub fn route(&mut self) {
        let snapshot = self.snapshot();
        if snapshot.database.metadata.deletion_timestamp.is_some() || snapshot.objects.services.is_empty() {
            return;
        }
        let Some(wanted) = validate::routed(&snapshot) else { return };
        for write in routes::routes(&snapshot, &wanted) {
            self.write(&snapshot.database, &write);
        }
    }

    /// The operator restarts or another one takes over: its memory is gone, its epoch rises.
    pub fn restart_operator(&mut self) {
        self.epoch += 1;
        self.view = None;
        self.generation = 0;
        self.seen = None;
    }

    /// Time goes on for everything but the operator.
    pub fn tick(&mut self) {
        self.now += jiff::SignedDuration::from_secs(1);
        self.tick_kubernetes();
        self.tick_members();
        self.silent.retain(|_, ticks| {
            *ticks = ticks.saturating_sub(1);
            *ticks > 0
        });
        self.route();
    }

    /// A pass without faults, then time goes on.
    pub fn step(&mut self) -> Outcome {
        let outcome = self.pass(Fault::default());
        self.tick();
        outcome
    }

    /// Steps until nothing is done for three passes; answers the last plan.
    pub fn settle(&mut self) -> Plan {
        let mut quiet = 0;
        let mut last = None;
        for _ in 0..400 {
            let outcome = self.step();
            quiet = if outcome.acted || !self.silent.is_empty() { 0 } else { quiet + 1 };
            if quiet == 3 {
                return outcome.plan;
            }
            last = Some(outcome.plan);
        }
        let status = serde_json::to_string_pretty(&self.database.status).unwrap();
        panic!("not settled: {:#?}\n{status}", last.map(|plan| (plan.activities, plan.writes, plan.operations)));
    }

    /// Acts of the operator so far: writes and operations.
    pub fn acts(&self) -> usize {
        self.acts
    }

    /// Steps for a while, whatever stands in the way.
    pub fn settle_with_obstacles(&mut self) {
        (0..20).for_each(|_| drop(self.step()));
    }

    /// Steps until `wanted` holds.
    pub fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        for _ in 0..200 {
            if wanted(self) {
                return;
            }
            self.step();
        }
        panic!("never: {what}\n{}", serde_json::to_string_pretty(&self.database.status).unwrap());
    }

    /// What a pass would do now, with its questions answered.
    pub fn plan(&self) -> Plan {
        let mut snapshot = self.snapshot();
        let wanted = validate::validate(&snapshot).unwrap();
        for _ in 0..3 {
            let questions = plan::plan(&snapshot, &wanted).questions;
            self.ask(&mut snapshot, &questions);
        }
        plan::plan(&snapshot, &wanted)
    }

    /// Why the spec is refused, as `reason: message`.
    pub fn refusals(&self) -> Vec<String> {
        let refusals = validate::validate(&self.snapshot()).err().unwrap_or_default();
        refusals.iter().map(|refusal| format!("{}: {}", refusal.reason, refusal.message)).collect()
    }

    /// Deletes the Database, waits until it and what it owned is gone, and makes one of the same name.
    pub fn recreate(&mut self, spec: Value) {
        self.delete_database();
        for _ in 0..20 {
            if self.collect_garbage() {
                return self.create_database(spec);
            }
            self.step();
        }
        panic!("the Database does not go");
    }

    /// A condition's `status reason: message`.
    pub fn condition(&self, kind: &str) -> String {
        let status = self.database.status.as_ref().unwrap();
        let condition = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
        format!("{} {}: {}", condition.status, condition.reason, condition.message)
    }

    /// Whether the Database waits for its volumes to be deleted.
    pub fn has_finalizer(&self) -> bool {
        self.database.finalizers().iter().any(|known| known == backlot_api::labels::FINALIZER)
    }

    /// Records of every member.
    pub fn members(&self) -> Vec<MemberRecord> {
        let groups = self.database.status.iter().flat_map(|status| &status.groups);
        groups.flat_map(|group| group.members.clone()).collect()
    }

    /// States of the only group's members, e.g. `0:joined 1:new`.
    pub fn records(&self) -> String {
        let members = self.members();
        let states = members.iter().map(|member| {
            let state = serde_json::to_value(member.state).unwrap();
            format!("{}:{}", member.ordinal, state.as_str().unwrap())
        });
        states.collect::<Vec<_>>().join(" ")
    }
}
