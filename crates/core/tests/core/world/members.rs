//! Agents: each member follows the view it holds, as the specification's life of a member says.

use std::collections::BTreeMap;

use backlot_standard::config::Apply;
use backlot_standard::manifest::Elections;
use backlot_standard::operation::{Act, OperationReport, OperationRequest, OperationState};
use backlot_standard::request::{Member, MemberState};
use backlot_standard::result::{DataState, Exit, VerbResult};
use backlot_standard::status::{AgentBuild, Blocked, ConfigStatus, EnginePhase, EngineStatus, MemberStatus};
use backlot_standard::verb::Verb;
use backlot_standard::view::{ClusterView, GroupView};
use serde_json::json;

use super::World;

/// Content of a member's first volume.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// Cluster, member and incarnation for which an agent took it.
    pub stamp: Option<(String, String, String)>,
    /// Whether the engine's data is there.
    pub has_data: bool,
    /// The last view that its agent took.
    pub view: Option<ClusterView>,
    /// Operations that its agent took.
    pub journal: Vec<(OperationRequest, OperationReport)>,
}

/// An agent and its engine process.
#[derive(Clone, Debug)]
pub struct Agent {
    boot_id: String,
    address: String,
    /// Where the engine is.
    pub phase: EnginePhase,
    starts: u32,
    config: BTreeMap<String, String>,
    blocked: Option<Blocked>,
    /// Keys that the engine claims to need a restart for, whatever the view says.
    pub pending: Vec<String>,
}

impl Agent {
    /// A fresh container.
    pub fn new(number: u64, address: String) -> Self {
        Self {
            boot_id: format!("boot-{number}"),
            address,
            phase: EnginePhase::Waiting,
            starts: 0,
            config: BTreeMap::new(),
            blocked: None,
            pending: vec![],
        }
    }
}

enum Next {
    Rest(Option<(&'static str, String)>),
    Start,
}

impl World {
    pub(super) fn take_view(&mut self, member: &str, view: &ClusterView) {
        if !self.agents.contains_key(member) {
            return;
        }
        let volume = self.volume(member);
        if volume.view.as_ref().is_none_or(|held| held.generation < view.generation) {
            volume.view = Some(view.clone());
        }
    }

    pub(super) fn tick_members(&mut self) {
        let names: Vec<_> = self.agents.keys().cloned().collect();
        for name in &names {
            self.live(name);
        }
        self.elect();
        for name in &names {
            self.work(name);
        }
    }

    /// One step of a member's life.
    fn live(&mut self, name: &str) {
        let number = self.next();
        let volume = self.volume(name);
        let Some(view) = volume.view.clone() else { return };
        let Some(own) = view.member(name).cloned() else { return };
        let stamp = (view.cluster_uid.clone(), name.to_owned(), format!("inc-{number}"));
        let stamp = volume.stamp.get_or_insert(stamp).clone();
        let group = view.group_of(&own).cloned().unwrap();
        let config = view.components[&own.component].config.clone();
        let phase = self.agents[name].phase;
        let next = self.next_step(name, &view, &own, &group, &stamp);
        let manifest = self.image.manifest.clone();
        let agent = self.agents.get_mut(name).unwrap();
        agent.blocked = None;
        match (phase, next) {
            (_, Next::Rest(Some((reason, message)))) => {
                agent.phase = EnginePhase::Waiting;
                agent.blocked = Some(Blocked { reason: reason.into(), message });
            }
            (_, Next::Rest(None)) => {}
            (EnginePhase::Waiting | EnginePhase::Stopping, Next::Start) => {
                agent.phase = EnginePhase::Starting;
                agent.starts += 1;
                agent.config = config;
                agent.pending.clear();
            }
            (EnginePhase::Starting, Next::Start) => agent.phase = EnginePhase::Running,
            (_, Next::Start) => {
                let is_live = |key: &String| manifest.config[key].apply == Apply::Live;
                agent.config.retain(|key, _| !is_live(key));
                agent.config.extend(config.into_iter().filter(|(key, _)| is_live(key)));
                self.replicate(name, &group);
            }
        }
    }

    fn next_step(
        &self,
        name: &str,
        view: &ClusterView,
        own: &Member,
        group: &GroupView,
        stamp: &(String, String, String),
    ) -> Next {
        let blocked = |reason, message: &str| Next::Rest(Some((reason, message.to_owned())));
        let volume = &self.volumes[&self.volume_name(name).unwrap()];
        if stamp.0 != view.cluster_uid || stamp.1 != name {
            return blocked("ForeignVolume", "the volume is stamped for another member");
        }
        if !own.incarnation.is_empty() && own.incarnation != stamp.2 {
            return blocked("VolumeReplaced", "the volume is another one");
        }
        match (own.state, volume.has_data, group.founded) {
            (MemberState::Left | MemberState::Dead, _, _) => blocked("Removed", "the member left"),
            (_, true, _) | (MemberState::Joining, false, true) => Next::Start,
            (MemberState::New, false, true) => blocked("NotAdmitted", "the member is not admitted yet"),
            (_, false, false) => blocked("WaitingForFounding", "nobody has founded"),
            (MemberState::Joined | MemberState::Leaving, false, true) => blocked("DataMissing", "the data is gone"),
        }
    }

    /// Data comes from whoever has it; a leader without data would make all others throw theirs away.
    fn replicate(&mut self, name: &str, group: &GroupView) {
        let manifest = &self.image.manifest;
        let has_data = |world: &Self, member: &str| {
            world.volume_name(member).is_some_and(|volume| world.volumes[&volume].has_data)
        };
        if manifest.elections == Elections::Agent && group.founded && group.leader.as_deref() == Some(name) {
            assert!(has_data(self, name), "{name} has no data and is made the leader");
        }
        let is_source = |member: &&String| self.is_up(member) && has_data(self, member);
        if self.engine.members.iter().any(|member| is_source(&member)) {
            self.volume(name).has_data = true;
        }
    }

    /// A member's agent takes an operation, unless it is silent, gone or does not hold the view that was decided on.
    pub(super) fn operate(&mut self, member: &str, request: &OperationRequest, generation: u64) {
        let view_is_held = self.volume_name(member).is_some_and(|name| {
            let held = self.volumes.get(&name).and_then(|volume| volume.view.as_ref());
            held.is_some_and(|view| (view.generation & 0xffff_ffff) >= generation)
        });
        if !self.agents.contains_key(member) || self.silent.contains_key(member) || !view_is_held {
            return;
        }
        let known = self.volume(member).journal.iter().any(|(_, report)| report.id == request.id);
        if known {
            return;
        }
        self.check_operation(member, request);
        self.delivered.push(format!("{member} {}", request.id));
        let report = OperationReport {
            id: request.id.clone(),
            state: OperationState::Running,
            attempts: 1,
            exit: None,
            result: VerbResult::default(),
        };
        self.volume(member).journal.push((request.clone(), report));
        if request.act == Act::Restart {
            self.agents.get_mut(member).unwrap().phase = EnginePhase::Stopping;
            self.disrupted.insert(member.to_owned());
        }
    }

    fn check_operation(&self, member: &str, request: &OperationRequest) {
        let subject = request.subject.as_deref().unwrap_or(member);
        match request.act {
            Act::Verb(Verb::Found) => self.check_found(member),
            Act::Verb(Verb::Join | Verb::Leave | Verb::Forget) => self.check_change(subject, request),
            Act::Restart => {
                assert_eq!(self.disrupted.len(), 0, "{member} is taken down beside {:?}", self.disrupted);
            }
            Act::Verb(_) | Act::Stop => {}
        }
    }

    /// Founding is asked of nobody but the member, and the volume, that status names.
    fn check_found(&self, member: &str) {
        let status = self.database.status.as_ref().unwrap();
        let mut groups = status.groups.iter().filter_map(|group| Some((group, group.founder.as_ref()?)));
        let (group, founder) = groups.next().unwrap();
        assert!(groups.next().is_none(), "two components found");
        let stamp = self.volumes[&self.volume_name(member).unwrap()].stamp.as_ref().unwrap();
        assert_eq!((founder.member.as_str(), &founder.incarnation), (member, &stamp.2), "who founds");
        assert!(!group.founded || self.engine.foundings.len() == 1, "founded twice");
    }

    /// Where members change one at a time, no change is begun beside another.
    fn check_change(&self, subject: &str, request: &OperationRequest) {
        if self.image.manifest.membership.change == backlot_standard::manifest::MembershipChange::Set {
            return;
        }
        let is_change = |act| matches!(act, Act::Verb(Verb::Join | Verb::Leave | Verb::Forget));
        for (name, agent) in &self.agents {
            let journal = &self.volumes[&self.volume_name(name).unwrap()].journal;
            for (other, report) in journal {
                let other_subject = other.subject.as_deref().unwrap_or(name);
                let is_at_work = report.state == OperationState::Running && is_change(other.act);
                assert!(
                    !is_at_work || other_subject == subject,
                    "{} begins beside {} ({:?})",
                    request.id,
                    other.id,
                    agent.phase
                );
            }
        }
    }

    /// Goes on with the operations of one member.
    fn work(&mut self, name: &str) {
        for index in 0..self.volume(name).journal.len() {
            let (request, report) = self.volume(name).journal[index].clone();
            if report.state == OperationState::Running && self.carry_on(name, &request) {
                let report = &mut self.volume(name).journal[index].1;
                report.state = OperationState::Done;
                report.exit = Some(Exit::Done);
                let subject = request.subject.as_deref().unwrap_or(name);
                if matches!(request.act, Act::Verb(Verb::Found | Verb::Join)) {
                    report.result.output = Some(json!({"engineId": format!("e-{subject}")}));
                }
            }
        }
    }

    /// Whether the operation is done now.
    fn carry_on(&mut self, name: &str, request: &OperationRequest) -> bool {
        let subject = request.subject.as_deref().unwrap_or(name).to_owned();
        match request.act {
            Act::Verb(Verb::Found) => self.found(name),
            Act::Verb(Verb::Join) => self.is_up(name) && self.is_up(&subject) && self.change(&subject, true),
            Act::Verb(Verb::Leave | Verb::Forget) => self.is_up(name) && self.change(&subject, false),
            Act::Restart => {
                let is_back = self.is_up(name);
                if is_back {
                    self.disrupted.remove(name);
                }
                is_back
            }
            Act::Verb(_) | Act::Stop => self.is_up(name),
        }
    }

    fn found(&mut self, name: &str) -> bool {
        if !self.volume(name).has_data {
            let incarnation = self.volume(name).stamp.clone().unwrap().2;
            self.engine.foundings.push((name.to_owned(), incarnation));
            assert_eq!(self.engine.foundings.len(), 1, "founded twice: {:?}", self.engine.foundings);
            self.engine.members.insert(name.to_owned());
            self.volume(name).has_data = true;
        }
        self.is_up(name)
    }

    /// What a member's agent reports.
    pub fn report(&self, name: &str) -> MemberStatus {
        let agent = &self.agents[name];
        let volume = self.volume_name(name).and_then(|volume| self.volumes.get(&volume)).cloned().unwrap_or_default();
        let is_up = agent.phase == EnginePhase::Running;
        let mut pending = agent.pending.clone();
        if let Some(own) = volume.view.as_ref().and_then(|view| view.member(name)) {
            let wanted = &volume.view.as_ref().unwrap().components[&own.component].config;
            let keys =
                wanted.keys().chain(agent.config.keys()).filter(|key| wanted.get(*key) != agent.config.get(*key));
            pending.extend(keys.filter(|_| is_up).cloned());
            pending.sort();
            pending.dedup();
        }
        let skip = volume.journal.len().saturating_sub(8);
        MemberStatus {
            standard: backlot_standard::STANDARD.into(),
            revision: 1,
            boot_id: agent.boot_id.clone(),
            agent: AgentBuild { version: "0".into(), sha256: "0".into() },
            member: name.into(),
            cluster_uid: volume.stamp.as_ref().map(|stamp| stamp.0.clone()).unwrap_or_default(),
            incarnation: volume.stamp.as_ref().map(|stamp| stamp.2.clone()),
            address: agent.address.clone(),
            view_generation: volume.view.as_ref().map(|view| view.generation),
            engine: EngineStatus { phase: agent.phase, starts: agent.starts, started_at: None, last_exit: None },
            data: volume.stamp.as_ref().map(|_| if volume.has_data { DataState::Existing } else { DataState::Fresh }),
            role: is_up.then(|| self.role(name)),
            health: is_up.then(|| self.health(name)),
            config: ConfigStatus {
                applied_generation: volume.view.as_ref().map(|view| view.generation),
                pending_restart: pending,
                applied: agent.config.clone(),
                error: None,
            },
            blocked: agent.blocked.clone(),
            operations: volume.journal.iter().skip(skip).map(|(_, report)| report.clone()).collect(),
        }
    }

    /// Whether a member's engine runs.
    pub fn is_up(&self, name: &str) -> bool {
        self.agents.get(name).is_some_and(|agent| agent.phase == EnginePhase::Running)
    }
}
