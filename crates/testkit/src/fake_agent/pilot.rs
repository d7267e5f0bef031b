//! An agent's pilot: what it does by itself, level-triggered on its view.
//!
//! Invariant: an engine starts only on data of this member and this cluster, or on an empty volume that the view permits.

use std::collections::{BTreeMap, BTreeSet};

use backlot_standard::config::Apply;
use backlot_standard::layout::env;
use backlot_standard::manifest::Elections;
use backlot_standard::operation::{OperationReport, OperationRequest, OperationState};
use backlot_standard::request::{Member, MemberState};
use backlot_standard::result::{DataState, Exit};
use backlot_standard::status::{Blocked, ConfigStatus, EngineExit, EnginePhase};
use backlot_standard::verb::Verb;
use backlot_standard::view::{ClusterView, GroupView, SignedView};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::engine::{Data, GroupId};
use super::{AgentError, Misbehaviour, Place, State};
use crate::simulated::Started;

/// Where the engine is.
pub(super) type Phase = EnginePhase;

/// What outlives the pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Volume {
    /// (cluster UID, member, incarnation).
    pub(super) stamp: Option<(String, String, String)>,
    pub(super) view: Option<ClusterView>,
    pub(super) journal: BTreeMap<String, OperationReport>,
    pub(super) data: Option<Data>,
    /// The engine was started here.
    pub(super) started: bool,
    /// The member left; never to be started.
    pub(super) retired: bool,
    /// Files that no agent put there.
    pub(super) foreign: bool,
}

/// A running agent.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) member: String,
    pub(super) cluster_uid: String,
    pub(super) address: String,
    pub(super) volume: String,
    /// It serves the manifest of its image and nothing else.
    pub(super) inspection: bool,
    pub(super) phase: Phase,
    pub(super) view: Option<ClusterView>,
    pub(super) founding: bool,
    /// Operations at work, with the steps that they still need; `None` = for ever.
    pub(super) working: Vec<(OperationRequest, Option<u32>)>,
    /// Operations whose act was begun since the boot.
    pub(super) begun: BTreeSet<String>,
    pub(super) boot_id: String,
    pub(super) revision: u64,
    pub(super) starts: u32,
    pub(super) started_at: Option<i64>,
    pub(super) last_exit: Option<EngineExit>,
    pub(super) data: Option<DataState>,
    pub(super) config: ConfigStatus,
    applied: BTreeMap<String, String>,
    pub(super) blocked: Option<Blocked>,
    /// `role` and `health` gave no answer at the last poll.
    pub(super) blind: (bool, bool),
    stopped_on_order: bool,
}

impl Agent {
    /// Its group, once a view says so.
    pub(super) fn group(&self) -> Option<GroupId> {
        let member = self.own()?;
        Some((self.cluster_uid.clone(), member.component.clone(), member.shard))
    }

    pub(super) fn own(&self) -> Option<&Member> {
        self.view.as_ref()?.member(&self.member)
    }

    pub(super) fn group_view(&self) -> Option<&GroupView> {
        self.view.as_ref()?.group_of(self.own()?)
    }

    fn config(&self) -> BTreeMap<String, String> {
        let component = self.own().map(|member| member.component.clone()).unwrap_or_default();
        let view = self.view.as_ref().and_then(|view| view.components.get(&component));
        view.map(|component| component.config.clone()).unwrap_or_default()
    }

    fn block(&mut self, reason: &str, message: &str) {
        self.phase = Phase::Waiting;
        self.blocked = Some(Blocked { reason: reason.to_owned(), message: message.to_owned() });
    }

    pub(super) fn start(&mut self, now: i64) {
        self.phase = Phase::Starting;
        self.blocked = None;
        self.starts += 1;
        self.started_at = Some(now);
        self.stopped_on_order = false;
        self.applied = self.config();
        self.config = ConfigStatus {
            applied_generation: self.view.as_ref().map(|view| view.generation),
            ..ConfigStatus::default()
        };
    }

    pub(super) fn stop(&mut self, phase: Phase, code: i32, now: i64) {
        self.phase = phase;
        self.stopped_on_order = phase == Phase::Stopped;
        self.last_exit = Some(EngineExit { code: Some(code), signal: None, at: now, output_tail: String::new() });
    }
}

impl State {
    /// A pod's containers start.
    pub(super) fn boot(&mut self, started: &Started) {
        let place = (started.pod.namespace().unwrap_or_default(), started.pod.name_any());
        let volume = started.volumes.values().next().cloned().unwrap_or_default();
        self.boots += 1;
        let variable = |name: &str| variable(&started.pod, name);
        let address = started.pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default();
        let spec = serde_json::to_value(&started.pod.spec).unwrap_or_default();
        let inspection = spec["containers"][0]["command"]
            .as_array()
            .is_some_and(|command| command.iter().any(|word| word == "inspect"));
        let view = self.volumes.get(&volume).and_then(|volume| volume.view.clone());
        let journal = self.volumes.get_mut(&volume).into_iter().flat_map(|volume| volume.journal.values_mut());
        for report in journal.filter(|report| report.state == OperationState::Running) {
            // The call died with the container: whether it was carried out is unknown.
            (report.state, report.exit) = (OperationState::Failed, Some(Exit::Unknown));
        }
        let agent = Agent {
            member: variable(env::MEMBER).unwrap_or_else(|| started.pod.name_any()),
            cluster_uid: variable(env::CLUSTER_UID).unwrap_or_default(),
            address,
            inspection,
            phase: Phase::Waiting,
            view,
            founding: false,
            working: vec![],
            begun: BTreeSet::new(),
            boot_id: format!("boot-{}", self.boots),
            revision: 1,
            starts: 0,
            started_at: None,
            last_exit: None,
            data: None,
            config: ConfigStatus::default(),
            applied: BTreeMap::new(),
            blocked: None,
            blind: (false, false),
            stopped_on_order: false,
            volume,
        };
        self.agents.insert(place.clone(), agent);
        self.look(&place);
    }

    /// The pod's containers have ended.
    pub(super) fn shut_down(&mut self, place: &Place) {
        let Some(agent) = self.agents.remove(place) else { return };
        if agent.phase == Phase::Running {
            self.record(&agent.member, "stop", None, "");
        }
        self.run_engines();
    }

    /// A volume is gone: harmless only when its member left or never held data.
    pub(super) fn lose_volume(&mut self, name: &str) {
        let Some(volume) = self.volumes.remove(name) else { return };
        let Some((uid, member, _)) = volume.stamp else { return };
        let is_member = self.groups.0.iter().any(|((of, ..), group)| *of == uid && group.has(&member));
        if is_member && volume.data.is_some() {
            self.violations.push(format!("the volume of {member} went while it was a member with data"));
        }
    }

    pub(super) fn crash(&mut self, place: &Place) {
        let now = self.clock;
        if let Some(agent) = self.agents.get_mut(place).filter(|agent| agent.phase == Phase::Running) {
            agent.stop(Phase::Crashed, 139, now);
            agent.revision += 1;
        }
        self.run_engines();
    }

    pub(super) fn take_view(&mut self, place: &Place, signed: &SignedView) -> Result<u64, AgentError> {
        let refused = |status: u16, error: String| Err(AgentError::Refused { status, error });
        let view: ClusterView = match serde_json::from_str(&signed.payload) {
            Ok(view) => view,
            Err(error) => return refused(400, format!("the view does not parse: {error}")),
        };
        let Some(agent) = self.agents.get_mut(place) else { return Err(AgentError::Unreachable) };
        if view.cluster_uid != agent.cluster_uid {
            return refused(403, format!("the view is of another cluster, {}", view.cluster_uid));
        }
        if let Some(held) = &agent.view {
            if view.generation < held.generation || view.operator_epoch < held.operator_epoch {
                return refused(409, format!("the view held is newer: generation {}", held.generation));
            }
            if view == *held {
                return Ok(held.generation);
            }
        }
        let (member, generation) = (agent.member.clone(), view.generation);
        agent.view = Some(view.clone());
        agent.revision += 1;
        if let Some(volume) = self.volumes.get_mut(&agent.volume) {
            volume.view = Some(view);
        }
        self.record(&member, "view", None, "");
        self.look(place);
        Ok(generation)
    }

    /// Lets time pass for every agent; whether anything changed.
    pub(super) fn step(&mut self) -> bool {
        self.clock += 1;
        let mut changed = false;
        let places: Vec<Place> = self.agents.keys().cloned().collect();
        for place in &places {
            changed |= self.advance_phase(place);
            changed |= self.look(place);
            changed |= self.advance_operations(place);
            changed |= self.poll(place);
        }
        changed | self.run_engines()
    }

    fn advance_phase(&mut self, place: &Place) -> bool {
        let Some(agent) = self.agents.get_mut(place) else { return false };
        let next = match agent.phase {
            Phase::Starting => Phase::Running,
            Phase::Crashed => Phase::Waiting,
            Phase::Waiting | Phase::Preparing | Phase::Running | Phase::Stopping | Phase::Stopped => return false,
        };
        agent.phase = next;
        agent.revision += 1;
        let (member, volume) = (agent.member.clone(), agent.volume.clone());
        if next == Phase::Running {
            self.volumes.entry(volume).or_default().started = true;
            self.record(&member, "start", None, "");
            self.run_engines();
        }
        true
    }

    fn poll(&mut self, place: &Place) -> bool {
        let Some(agent) = self.agents.get(place).filter(|agent| agent.phase == Phase::Running) else { return false };
        let (member, before) = (agent.member.clone(), agent.blind);
        let fails = |how: Option<Misbehaviour>| how.is_some();
        let blind = (fails(self.misbehaviour(&member, Verb::Role)), fails(self.misbehaviour(&member, Verb::Health)));
        if let Some(agent) = self.agents.get_mut(place) {
            agent.blind = blind;
            agent.revision += u64::from(blind != before);
        }
        blind != before
    }

    /// Does what the view asks for; whether anything changed.
    pub(super) fn look(&mut self, place: &Place) -> bool {
        let Some(before) = self.agents.get(place).cloned() else { return false };
        if before.inspection {
            return false;
        }
        let mut agent = before.clone();
        self.act(&mut agent);
        let changed = (agent.phase, &agent.blocked, &agent.config, agent.data)
            != (before.phase, &before.blocked, &before.config, before.data);
        agent.revision += u64::from(changed);
        self.agents.insert(place.clone(), agent);
        if changed {
            self.run_engines();
        }
        changed
    }

    fn act(&mut self, agent: &mut Agent) {
        let Some(own) = agent.own().cloned() else {
            agent.phase = Phase::Waiting;
            return;
        };
        if !self.may_use_volume(agent, &own) {
            return;
        }
        match agent.phase {
            Phase::Waiting if !agent.stopped_on_order => self.prepare(agent, &own),
            Phase::Running => {
                self.reconfigure(agent);
                self.follow_leader(agent);
            }
            Phase::Waiting | Phase::Preparing | Phase::Starting | Phase::Stopping | Phase::Stopped | Phase::Crashed => {
            }
        }
    }

    fn may_use_volume(&mut self, agent: &mut Agent, own: &Member) -> bool {
        if matches!(own.state, MemberState::Left | MemberState::Dead) {
            agent.block("Removed", "the member was removed from the cluster");
            return false;
        }
        let fresh_incarnation = format!("incarnation-{}", self.incarnations + 1);
        let volume = self.volumes.entry(agent.volume.clone()).or_default();
        match &volume.stamp {
            None if volume.foreign => {
                agent.block("ForeignVolume", "the volume holds files and no stamp");
                return false;
            }
            None => {
                self.incarnations += 1;
                volume.stamp = Some((agent.cluster_uid.clone(), agent.member.clone(), fresh_incarnation));
                volume.view.clone_from(&agent.view);
            }
            Some((uid, member, _)) if *uid != agent.cluster_uid || *member != agent.member => {
                agent.block("ForeignVolume", &format!("the volume belongs to {member} of {uid}"));
                return false;
            }
            Some(_) => {}
        }
        let incarnation = volume.stamp.as_ref().map(|(.., incarnation)| incarnation.clone()).unwrap_or_default();
        if !own.incarnation.is_empty() && own.incarnation != incarnation {
            agent.block("VolumeReplaced", "the volume is not the one that the view names");
            return false;
        }
        true
    }

    fn prepare(&mut self, agent: &mut Agent, own: &Member) {
        let volume = self.volumes.entry(agent.volume.clone()).or_default();
        let state = match &volume.data {
            _ if volume.retired => DataState::Retired,
            Some(_) => DataState::Existing,
            None if volume.started => DataState::Existing,
            None => DataState::Fresh,
        };
        agent.data = Some(state);
        let Some(group) = agent.group_view().cloned() else { return };
        let joins = own.state == MemberState::Joining;
        match state {
            DataState::Existing => agent.start(self.clock),
            DataState::Fresh if !group.founded => {
                agent.block("WaitingForFounding", "the group is not founded");
            }
            DataState::Fresh if joins => agent.start(self.clock),
            DataState::Fresh if own.state == MemberState::New => {
                agent.block("WaitingForAdmission", "the operator has not admitted the member");
            }
            DataState::Fresh => agent.block("DataMissing", "the member joined before, and its volume is empty"),
            DataState::Retired => agent.block("RetiredMember", "the member left"),
            DataState::Incomplete | DataState::Stale | DataState::Foreign | DataState::Unreadable => {}
        }
    }

    fn reconfigure(&mut self, agent: &mut Agent) {
        let wanted = agent.config();
        let generation = agent.view.as_ref().map(|view| view.generation);
        if wanted == agent.applied || agent.config.applied_generation == generation {
            agent.config.applied_generation = generation;
            return;
        }
        if self.misbehaviour(&agent.member, Verb::Reconfigure).is_some() {
            agent.config.error = Some("reconfigure failed".to_owned());
            return;
        }
        let keys = wanted.keys().chain(agent.applied.keys());
        let changed: Vec<String> = keys.filter(|key| wanted.get(*key) != agent.applied.get(*key)).cloned().collect();
        let is_live =
            |key: &String| self.image.manifest.config.get(key).is_some_and(|setting| setting.apply == Apply::Live);
        let (live, restart): (Vec<String>, Vec<String>) = changed.into_iter().partition(is_live);
        for key in live {
            match wanted.get(&key) {
                Some(value) => drop(agent.applied.insert(key, value.clone())),
                None => drop(agent.applied.remove(&key)),
            }
        }
        let mut pending = restart;
        pending.sort();
        pending.dedup();
        agent.config =
            ConfigStatus { applied_generation: generation, pending_restart: pending, ..ConfigStatus::default() };
        let member = agent.member.clone();
        self.record(&member, "reconfigure", None, "");
    }

    /// `elections: agent`: promotes this member when the view names it as leader.
    fn follow_leader(&mut self, agent: &mut Agent) {
        if self.image.manifest.elections != Elections::Agent {
            return;
        }
        let (Some(id), Some(view)) = (agent.group(), agent.group_view().cloned()) else { return };
        let named = view.leader.as_deref() == Some(&agent.member);
        let group = self.groups.0.entry(id).or_default();
        let leads = group.leader.as_deref() == Some(&agent.member);
        let may = view.founded || agent.founding;
        let member = agent.member.clone();
        if named && !leads && may && group.has(&member) {
            if self.misbehaviour(&member, Verb::Promote).is_some() {
                return;
            }
            let group = self.groups.0.entry(agent.group().unwrap_or_default()).or_default();
            if let Some(other) = group.leader.replace(member.clone()) {
                self.violations.push(format!("{member} was promoted while {other} led"));
            }
            group.term = view.epoch;
            self.record(&member, "promote", None, "");
        } else if leads && !named {
            group.leader = None;
            self.record(&member, "demote", None, "");
        }
    }

    /// Marks a change of an agent's report.
    pub(super) fn touch(&mut self, place: &Place) {
        if let Some(agent) = self.agents.get_mut(place) {
            agent.revision += 1;
        }
    }
}

/// The value of an environment variable of the pod's first container.
fn variable(pod: &Pod, name: &str) -> Option<String> {
    let container = pod.spec.as_ref()?.containers.first()?;
    container.env.iter().flatten().find(|variable| variable.name == name)?.value.clone()
}
