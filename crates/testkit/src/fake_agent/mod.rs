//! Members in memory: agents with an engine behind them, as the operator sees them, without TLS, files or processes.
//!
//! They run as the [`Workload`] of a [`crate::simulated::Cluster`]: a pod that starts is an agent that answers; what is on a
//! volume outlives it. Invariants: an agent follows the contract (it refuses older views and epochs, runs an operation at most
//! once to success, never founds on an empty volume by itself); whatever the operator asks for that would harm a real cluster
//! is done and recorded in [`FakeMembers::violations`].

mod engine;
mod operations;
mod pilot;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backlot_standard::manifest::{Elections, Leadership, Manifest};
use backlot_standard::operation::{OperationReport, OperationRequest};
use backlot_standard::status::MemberStatus;
use backlot_standard::verb::Verb;
use backlot_standard::view::SignedView;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::Value;

use crate::simulated::{Started, Workload};
use engine::Groups;
use pilot::{Agent, Volume};

/// Where a member is: (namespace, pod).
pub type Place = (String, String);

/// An agent gave no answer, or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentError {
    /// No connection: the pod does not run, or it is cut off.
    Unreachable,
    /// The call was sent and not answered; whether it was carried out is unknown.
    Lost,
    /// The agent refused.
    Refused {
        /// HTTP status.
        status: u16,
        /// What the agent says.
        error: String,
    },
}

impl std::fmt::Display for AgentError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable => write!(f, "the agent cannot be reached"),
            Self::Lost => write!(f, "the agent gave no answer"),
            Self::Refused { status, error } => write!(f, "the agent refused ({status}): {error}"),
        }
    }
}

impl std::error::Error for AgentError {}

/// How a verb goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// It never ends: the operation stays *running*; a polled verb's answer becomes unknown.
    Hang,
    /// It ends with a result that is no JSON: *unknown*; the agent calls it again.
    Garbage,
    /// It takes the engine down with it: the engine crashes, the outcome is *unknown*.
    Crash,
    /// It refuses as unsafe, and says what stands in the way.
    Refuse,
    /// It fails and changes nothing.
    Fail,
    /// It works; the agent's answer to the operator is lost.
    LoseReply,
    /// It takes this many steps of the cluster.
    Slow(u32),
    /// It says that it is done and does nothing.
    Lie,
}

/// Something that an agent did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Number of the deed, from 1, over all members.
    pub number: u64,
    /// The member.
    pub member: String,
    /// What: a verb's name, `start`, `stop`, `restart`, `view`.
    pub act: String,
    /// Member acted on, when another one.
    pub subject: Option<String>,
    /// The operation's id; empty for what the agent does by itself.
    pub operation: String,
}

/// What the fake database can do.
#[derive(Clone, Debug)]
pub struct FakeImage {
    /// Its manifest.
    pub manifest: Manifest,
    /// The verbs that it has.
    pub verbs: BTreeSet<Verb>,
}

impl FakeImage {
    /// The fake database of `dev/images`, with the engine (or the agents) electing.
    pub fn new(elections: Elections) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let text = match elections {
            Elections::Agent => include_str!("../../../../dev/images/fake-led/db/manifest.yaml"),
            Elections::Engine | Elections::None => include_str!("../../../../dev/images/fake/db/manifest.yaml"),
        };
        let mut manifest: Manifest = serde_norway::from_str(text)?;
        manifest.elections = elections;
        if elections == Elections::None {
            manifest.components.iter_mut().for_each(|component| component.leader = Leadership::None);
        }
        let mut verbs: BTreeSet<Verb> = [
            Verb::Render,
            Verb::Prepare,
            Verb::Found,
            Verb::Join,
            Verb::Leave,
            Verb::Forget,
            Verb::Rebalance,
            Verb::Role,
            Verb::Health,
            Verb::Membership,
            Verb::CanDisrupt,
            Verb::Reconfigure,
        ]
        .into();
        if elections == Elections::Agent {
            verbs.extend([Verb::Promote, Verb::Demote, Verb::Follow]);
        }
        Ok(Self { manifest, verbs })
    }
}

/// Every member of every fake database. Clones are the same members.
#[derive(Clone)]
pub struct FakeMembers(Arc<Mutex<State>>);

pub(crate) struct State {
    image: FakeImage,
    groups: Groups,
    agents: BTreeMap<Place, Agent>,
    volumes: BTreeMap<String, Volume>,
    misbehaviours: Vec<(String, Verb, Misbehaviour, u32)>,
    cut_off: BTreeSet<Place>,
    manifest: Option<Value>,
    deeds: Vec<Done>,
    violations: Vec<String>,
    boots: u64,
    incarnations: u64,
    clock: i64,
}

impl FakeMembers {
    /// Members of databases of this image.
    pub fn new(image: FakeImage) -> Self {
        Self(Arc::new(Mutex::new(State {
            image,
            groups: Groups::default(),
            agents: BTreeMap::new(),
            volumes: BTreeMap::new(),
            misbehaviours: vec![],
            cut_off: BTreeSet::new(),
            manifest: None,
            deeds: vec![],
            violations: vec![],
            boots: 0,
            incarnations: 0,
            clock: 1_767_225_600,
        })))
    }

    /// `GET /v1/status`, or the newest line of `GET /v1/watch`.
    pub fn status(&self, namespace: &str, pod: &str) -> Result<MemberStatus, AgentError> {
        let state = self.state();
        state.reachable(namespace, pod).map(|agent| state.report(agent))
    }

    /// `PUT /v1/view`: the generation now held.
    pub fn put_view(&self, namespace: &str, pod: &str, view: &SignedView) -> Result<u64, AgentError> {
        let mut state = self.state();
        state.reachable(namespace, pod)?;
        state.take_view(&(namespace.to_owned(), pod.to_owned()), view)
    }

    /// `POST /v1/operations`.
    pub fn operate(
        &self,
        namespace: &str,
        pod: &str,
        request: &OperationRequest,
    ) -> Result<OperationReport, AgentError> {
        let mut state = self.state();
        state.reachable(namespace, pod)?;
        state.operate(&(namespace.to_owned(), pod.to_owned()), request)
    }

    /// `GET /v1/operations/{id}`; `None` is 404.
    pub fn operation(&self, namespace: &str, pod: &str, id: &str) -> Result<Option<OperationReport>, AgentError> {
        let state = self.state();
        let agent = state.reachable(namespace, pod)?;
        Ok(state.journal(agent).get(id).cloned())
    }

    /// `GET /v1/manifest`: the document with `manifest` and `verbs`.
    pub fn manifest(&self, namespace: &str, pod: &str) -> Result<Value, AgentError> {
        let state = self.state();
        state.reachable(namespace, pod)?;
        match &state.manifest {
            Some(refusal) if refusal["error"].is_string() => Err(AgentError::Refused {
                status: 422,
                error: refusal["error"].as_str().unwrap_or_default().to_owned(),
            }),
            Some(other) => Ok(other.clone()),
            None => Ok(serde_json::json!({"manifest": state.image.manifest, "verbs": state.image.verbs})),
        }
    }

    /// What `GET /v1/manifest` answers from now on: a document, or `{"error": …}` for a refusal with 422.
    pub fn set_manifest(&self, answer: Value) {
        self.state().manifest = Some(answer);
    }

    /// The next `times` calls of a verb on a member go wrong.
    pub fn misbehave(&self, member: &str, verb: Verb, how: Misbehaviour, times: u32) {
        self.state().misbehaviours.push((member.to_owned(), verb, how, times));
    }

    /// Ends every misbehaviour.
    pub fn behave(&self) {
        self.state().misbehaviours.clear();
    }

    /// Nobody reaches the member's agent any more; its engine goes on.
    pub fn cut_off(&self, namespace: &str, pod: &str) {
        self.state().cut_off.insert((namespace.to_owned(), pod.to_owned()));
    }

    /// Ends [`Self::cut_off`].
    pub fn reconnect(&self, namespace: &str, pod: &str) {
        self.state().cut_off.remove(&(namespace.to_owned(), pod.to_owned()));
    }

    /// The engine of a member ends by itself; its agent starts it again at the next step.
    pub fn crash_engine(&self, namespace: &str, pod: &str) {
        self.state().crash(&(namespace.to_owned(), pod.to_owned()));
    }

    /// Puts files of unknown origin on a volume that no agent has seen yet.
    pub fn put_foreign_files(&self, volume: &str) {
        self.state().volumes.entry(volume.to_owned()).or_default().foreign = true;
    }

    /// Empties a volume, as when a file system is made anew: stamp, view, journal and data are gone.
    pub fn wipe_volume(&self, volume: &str) {
        self.state().volumes.insert(volume.to_owned(), Volume::default());
    }

    /// A client writes: goes to the group's leader, or to any member when the group has none. Fails when no majority is there.
    pub fn write(&self, cluster_uid: &str, key: &str, value: &str) -> Result<(), String> {
        self.state().write(cluster_uid, key, value)
    }

    /// What a member's volume holds of the clients' data.
    pub fn read(&self, namespace: &str, pod: &str) -> BTreeMap<String, String> {
        let state = self.state();
        let agent = state.agents.get(&(namespace.to_owned(), pod.to_owned()));
        let data = agent.and_then(|agent| state.volumes.get(&agent.volume)).and_then(|volume| volume.data.as_ref());
        data.map(|data| data.records.clone()).unwrap_or_default()
    }

    /// The engine's own member list of a cluster: members' ids, whichever group.
    pub fn joined(&self, cluster_uid: &str) -> BTreeSet<String> {
        self.state().groups.joined(cluster_uid)
    }

    /// Everything that agents did, oldest first.
    pub fn deeds(&self) -> Vec<Done> {
        self.state().deeds.clone()
    }

    /// How often a member did something; every member for an empty name.
    pub fn count(&self, member: &str, act: &str) -> usize {
        let state = self.state();
        let hits = |deed: &&Done| (member.is_empty() || deed.member == member) && deed.act == act;
        state.deeds.iter().filter(hits).count()
    }

    /// What would have harmed a real cluster: a second founding, a lost majority, two leaders, data that went without leaving.
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Workload for FakeMembers {
    fn started(&mut self, started: &Started) {
        self.state().boot(started);
    }

    fn ready(&mut self, pod: &Pod) -> bool {
        let state = self.state();
        let place = (pod.namespace().unwrap_or_default(), pod.name_any());
        state.agents.get(&place).is_some_and(|agent| agent.inspection || state.is_ready(agent))
    }

    fn stopped(&mut self, namespace: &str, pod: &str) {
        self.state().shut_down(&(namespace.to_owned(), pod.to_owned()));
    }

    fn volume_deleted(&mut self, volume: &str) {
        self.state().lose_volume(volume);
    }

    fn step(&mut self) -> bool {
        self.state().step()
    }
}

impl State {
    fn reachable(&self, namespace: &str, pod: &str) -> Result<&Agent, AgentError> {
        let place = (namespace.to_owned(), pod.to_owned());
        match self.agents.get(&place) {
            Some(agent) if !self.cut_off.contains(&place) => Ok(agent),
            _ => Err(AgentError::Unreachable),
        }
    }

    fn record(&mut self, member: &str, act: &str, subject: Option<&str>, operation: &str) {
        self.deeds.push(Done {
            number: self.deeds.len() as u64 + 1,
            member: member.to_owned(),
            act: act.to_owned(),
            subject: subject.map(str::to_owned),
            operation: operation.to_owned(),
        });
    }

    /// The misbehaviour of this call, which it uses up.
    fn misbehaviour(&mut self, member: &str, verb: Verb) -> Option<Misbehaviour> {
        let index =
            self.misbehaviours.iter().position(|(who, what, _, times)| who == member && *what == verb && *times > 0)?;
        let (_, _, how, times) = &mut self.misbehaviours[index];
        *times -= 1;
        Some(*how)
    }
}
