//! The engine's own truth: who founded, who is a member, who leads. The operator must find it out by asking.

use std::collections::BTreeSet;

use backlot_core::snapshot::Observed;
use backlot_standard::manifest::Elections;
use backlot_standard::result::{
    CanDisruptOutput, ClusterHealth, EngineMember, HealthOutput, MembershipOutput, ProcessHealth, Role, RoleOutput,
};
use backlot_standard::verb::{RunsOn, Verb};

use super::World;

/// What the engine knows.
#[derive(Clone, Debug, Default)]
pub struct Engine {
    /// Every founding: member and incarnation. More than one is two clusters.
    pub foundings: Vec<(String, String)>,
    /// The engine's members.
    pub members: BTreeSet<String>,
    leader: Option<String>,
    term: u64,
}

impl World {
    /// Whether a member votes: keepers if the engine has any, else all but fronts.
    fn votes(&self, member: &str) -> bool {
        let is = |name: &str, part: &str| name.starts_with(&format!("{}-{part}-", super::NAME));
        let has_keepers = self.engine.members.iter().any(|known| is(known, "keeper"));
        if has_keepers { is(member, "keeper") } else { !is(member, "front") }
    }

    fn has_quorum(&self) -> bool {
        let voters = || self.engine.members.iter().filter(|member| self.votes(member));
        let up = voters().filter(|member| self.is_up(member)).count();
        !self.image.manifest.membership.quorum || up > voters().count() / 2
    }

    /// Adds or removes a member, when the engine can decide.
    pub(super) fn change(&mut self, subject: &str, joins: bool) -> bool {
        if !self.has_quorum() {
            return false;
        }
        if joins {
            self.engine.members.insert(subject.to_owned());
        } else {
            self.engine.members.remove(subject);
            assert!(!self.engine.members.is_empty(), "{subject} was the last member");
        }
        true
    }

    /// The engine's own election.
    pub(super) fn elect(&mut self) {
        if self.image.manifest.elections != Elections::Engine {
            return;
        }
        let leads = |member: &String| self.engine.members.contains(member) && self.is_up(member);
        if !self.has_quorum() || self.engine.members.is_empty() {
            self.engine.leader = None;
        } else if !self.engine.leader.as_ref().is_some_and(leads) {
            self.engine.leader = self.engine.members.iter().find(|member| self.is_up(member)).cloned();
            self.engine.term += 1;
        }
    }

    /// The leader that the view of a member names, or that the engine elected.
    fn leader_for(&self, name: &str) -> (Option<String>, u64) {
        if self.image.manifest.elections == Elections::Engine {
            return (self.engine.leader.clone(), self.engine.term);
        }
        let view = self.volume_name(name).and_then(|volume| self.volumes[&volume].view.clone());
        let group = view.and_then(|view| view.groups.first().cloned());
        group.map_or((None, 0), |group| (group.leader, group.epoch))
    }

    pub(super) fn role(&self, name: &str) -> RoleOutput {
        let (leader, term) = self.leader_for(name);
        let is_leader = leader.as_deref() == Some(name) && self.engine.members.contains(name);
        match self.image.manifest.elections {
            Elections::None => RoleOutput { role: Role::Peer, writable: true, term: None, position: None },
            Elections::Engine | Elections::Agent => RoleOutput {
                role: if is_leader { Role::Leader } else { Role::Follower },
                writable: is_leader,
                term: Some(term),
                position: None,
            },
        }
    }

    pub(super) fn health(&self, name: &str) -> HealthOutput {
        let is_member = self.engine.members.contains(name);
        let has_data = self.volume_name(name).is_some_and(|volume| self.volumes[&volume].has_data);
        let cluster = match (self.has_quorum(), self.engine.members.iter().all(|member| self.is_up(member))) {
            (false, _) => ClusterHealth::NoQuorum,
            (true, false) => ClusterHealth::Degraded,
            (true, true) => ClusterHealth::Ok,
        };
        HealthOutput {
            process: ProcessHealth::Up,
            ready: is_member && has_data && self.has_quorum(),
            cluster,
            reasons: vec![],
            message: String::new(),
        }
    }

    fn can_answer(&self, member: &str, verb: Verb) -> Result<bool, String> {
        if self.silent.contains_key(member) || !self.is_up(member) {
            return Err(format!("{member} does not answer"));
        }
        if !self.has_quorum() {
            return Err(format!("{member} has no quorum"));
        }
        let is_leader = self.leader_for(member).0.as_deref() == Some(member);
        Ok(is_leader || self.image.manifest.rule(verb).runs_on != RunsOn::Leader)
    }

    /// The engine's member list as one member tells it. One that is not the leader may know just itself.
    pub(super) fn membership(&self, member: &str) -> Observed<MembershipOutput> {
        let knows_all = match self.can_answer(member, Verb::Membership) {
            Err(why) => return Observed::Unknown(why),
            Ok(knows_all) => knows_all,
        };
        let members =
            self.engine.members.iter().filter(|known| knows_all || *known == member).map(|known| EngineMember {
                id: Some(known.clone()),
                engine_id: format!("e-{known}"),
                vote: self.votes(known),
                up: Some(self.is_up(known)),
            });
        Observed::Known(MembershipOutput { version: String::new(), members: members.collect() })
    }

    pub(super) fn can_disrupt(&self, member: &str, subject: &str) -> Observed<CanDisruptOutput> {
        match self.can_answer(member, Verb::CanDisrupt) {
            Err(why) => Observed::Unknown(why),
            Ok(false) => Observed::Unknown(format!("{member} is not the leader")),
            Ok(true) => {
                let others_are_up =
                    self.engine.members.iter().filter(|known| *known != subject).all(|known| self.is_up(known));
                let allowed = if others_are_up { vec![subject.to_owned()] } else { vec![] };
                Observed::Known(CanDisruptOutput { allowed })
            }
        }
    }
}
