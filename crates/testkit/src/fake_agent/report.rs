//! What an agent reports: role, health, status.
//!
//! Invariant: what is not known now is absent, never a default.

use std::collections::BTreeMap;

use backlot_standard::STANDARD;
use backlot_standard::manifest::Elections;
use backlot_standard::operation::{OperationReport, OperationState};
use backlot_standard::result::{ClusterHealth, HealthOutput, Position, ProcessHealth, Role, RoleOutput};
use backlot_standard::status::{AgentBuild, EngineStatus, MemberStatus};

use super::State;
use super::pilot::{Agent, Phase};

/// Operations that a status shows at most beside those at work.
const SHOWN_OPERATIONS: usize = 8;

impl State {
    pub(super) fn is_ready(&self, agent: &Agent) -> bool {
        self.health(agent).is_some_and(|health| health.ready)
    }

    fn health(&self, agent: &Agent) -> Option<HealthOutput> {
        if agent.phase != Phase::Running || agent.blind.1 {
            return None;
        }
        let id = agent.group()?;
        let group = self.groups.0.get(&id);
        let joined = group.is_some_and(|group| group.has(&agent.member));
        let verdict = self.verdict(&id);
        let serves = !matches!(verdict, ClusterHealth::NoQuorum);
        let mut reasons = vec![];
        if !joined {
            reasons.push("NotJoined".to_owned());
        }
        if !serves {
            reasons.push("NoQuorum".to_owned());
        }
        Some(HealthOutput {
            process: ProcessHealth::Up,
            ready: joined && serves,
            cluster: verdict,
            reasons,
            message: String::new(),
        })
    }

    fn role(&self, agent: &Agent) -> Option<RoleOutput> {
        if agent.phase != Phase::Running || agent.blind.0 {
            return None;
        }
        let group = self.groups.0.get(&agent.group()?);
        let leader = group.and_then(|group| group.leader.clone());
        let leads = leader.as_deref() == Some(&agent.member);
        let joined = group.is_some_and(|group| group.has(&agent.member));
        let role = match (&leader, self.image.manifest.elections) {
            _ if !joined => Role::Unknown,
            (_, Elections::None) => Role::Peer,
            (Some(_), _) if leads => Role::Leader,
            (Some(_), _) => Role::Follower,
            (None, _) => Role::Unknown,
        };
        let data = self.volumes.get(&agent.volume).and_then(|volume| volume.data.as_ref());
        let position = data.map(|data| Position { offset: data.offset, history: format!("h{}", data.history) });
        let writable = leads || (role == Role::Peer && self.is_ready(agent));
        Some(RoleOutput { role, writable, term: group.map(|group| group.term), position })
    }

    pub(super) fn journal(&self, agent: &Agent) -> BTreeMap<String, OperationReport> {
        self.volumes.get(&agent.volume).map(|volume| volume.journal.clone()).unwrap_or_default()
    }

    pub(super) fn report(&self, agent: &Agent) -> MemberStatus {
        let journal = self.journal(agent);
        let (open, ended): (Vec<_>, Vec<_>) =
            journal.into_values().partition(|report| report.state == OperationState::Running);
        let skipped = ended.len().saturating_sub(SHOWN_OPERATIONS);
        let volume = self.volumes.get(&agent.volume);
        MemberStatus {
            standard: STANDARD.to_owned(),
            revision: agent.revision,
            boot_id: agent.boot_id.clone(),
            agent: AgentBuild { version: "0.1.0".to_owned(), sha256: "0".repeat(64) },
            member: agent.member.clone(),
            cluster_uid: agent.cluster_uid.clone(),
            incarnation: volume.and_then(|volume| volume.stamp.clone()).map(|(.., incarnation)| incarnation),
            address: agent.address.clone(),
            view_generation: agent.view.as_ref().map(|view| view.generation),
            engine: EngineStatus {
                phase: agent.phase,
                starts: agent.starts,
                started_at: agent.started_at,
                last_exit: agent.last_exit.clone(),
            },
            data: agent.data,
            role: self.role(agent),
            health: self.health(agent),
            config: agent.config.clone(),
            blocked: agent.blocked.clone(),
            operations: open.into_iter().chain(ended.into_iter().skip(skipped)).collect(),
        }
    }
}
