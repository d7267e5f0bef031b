//! The fake engine's clusters: who founded each group, who is a member, who leads, and where clients' data went.
//!
//! Invariant: a group acknowledges a write only when its leader and, with a quorum, a majority of its voters run; then every
//! running member of it holds the write.

use std::collections::{BTreeMap, BTreeSet};

use backlot_standard::manifest::{Elections, Leadership};
use backlot_standard::result::{ClusterHealth, EngineMember, MembershipOutput};

use super::pilot::{Agent, Phase};
use super::{Place, State};

/// A group: (cluster UID, component, shard).
pub(super) type GroupId = (String, String, u32);

/// Every group of every fake cluster.
#[derive(Debug, Default)]
pub(super) struct Groups(pub(super) BTreeMap<GroupId, Group>);

/// What the engines of a group agree on.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) foundings: u32,
    /// Members by the engine's own id.
    pub(super) members: BTreeMap<String, EngineMember>,
    pub(super) version: u64,
    /// The member that takes writes.
    pub(super) leader: Option<String>,
    pub(super) term: u64,
    /// Number of the newest acknowledged write.
    pub(super) offset: u64,
}

/// A member's data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Data {
    pub(super) records: BTreeMap<String, String>,
    pub(super) offset: u64,
    /// Number of the founding from which it stems.
    pub(super) history: u32,
}

impl Groups {
    pub(super) fn joined(&self, cluster_uid: &str) -> BTreeSet<String> {
        let groups = self.0.iter().filter(|((uid, ..), _)| uid == cluster_uid);
        groups.flat_map(|(_, group)| group.members.values().filter_map(|member| member.id.clone())).collect()
    }
}

impl Group {
    pub(super) fn has(&self, member: &str) -> bool {
        self.members.values().any(|known| known.id.as_deref() == Some(member))
    }

    /// Makes a member part of the group; the engine's own id and whether that is new.
    pub(super) fn add(&mut self, member: &str) -> (String, bool) {
        let known = self.members.values().find(|known| known.id.as_deref() == Some(member));
        if let Some(known) = known {
            return (known.engine_id.clone(), false);
        }
        self.version += 1;
        let engine_id = format!("e{}", self.version);
        let added = EngineMember { id: Some(member.to_owned()), engine_id: engine_id.clone(), vote: true, up: None };
        self.members.insert(engine_id.clone(), added);
        (engine_id, true)
    }

    /// Ends a membership; whether there was one.
    pub(super) fn drop_member(&mut self, member: &str) -> bool {
        let before = self.members.len();
        self.members.retain(|_, known| known.id.as_deref() != Some(member));
        let changed = self.members.len() != before;
        self.version += u64::from(changed);
        if self.leader.as_deref() == Some(member) {
            self.leader = None;
        }
        changed
    }
}

impl State {
    /// The members of a group whose engine runs, by member.
    pub(super) fn running(&self, id: &GroupId) -> BTreeMap<String, Place> {
        let runs = |agent: &Agent| agent.group().as_ref() == Some(id) && agent.phase == Phase::Running;
        let running = self.agents.iter().filter(|(_, agent)| runs(agent));
        running.map(|(place, agent)| (agent.member.clone(), place.clone())).collect()
    }

    /// Whether a majority of the group's voters run, beside `without`.
    pub(super) fn has_majority(&self, id: &GroupId, without: &[String]) -> bool {
        let Some(group) = self.groups.0.get(id) else { return false };
        let running = self.running(id);
        let up = |member: &str| running.contains_key(member) && !without.iter().any(|one| one == member);
        let voters: Vec<&EngineMember> = group.members.values().filter(|member| member.vote).collect();
        let alive = voters.iter().filter(|voter| voter.id.as_deref().is_some_and(up)).count();
        alive * 2 > voters.len()
    }

    fn needs_majority(&self) -> bool {
        self.image.manifest.membership.quorum
    }

    fn has_leader(&self, id: &GroupId) -> bool {
        let component = self.image.manifest.component(&id.1);
        component.is_some_and(|component| component.leader != Leadership::None)
    }

    /// Elections and replication; whether anything changed.
    pub(super) fn run_engines(&mut self) -> bool {
        let ids: Vec<GroupId> = self.groups.0.keys().cloned().collect();
        let mut changed = false;
        for id in ids {
            changed |= self.elect(&id);
            changed |= self.replicate(&id);
        }
        changed
    }

    fn elect(&mut self, id: &GroupId) -> bool {
        if !self.has_leader(id) {
            return false;
        }
        let running = self.running(id);
        let majority = !self.needs_majority() || self.has_majority(id, &[]);
        let by_engine = self.image.manifest.elections == Elections::Engine;
        let best = running
            .iter()
            .filter(|(member, _)| self.groups.0.get(id).is_some_and(|group| group.has(member)))
            .max_by_key(|(member, place)| (self.offset_of(place), std::cmp::Reverse((*member).clone())))
            .map(|(member, _)| member.clone());
        let Some(group) = self.groups.0.get_mut(id) else { return false };
        let present = group.leader.clone().filter(|leader| running.contains_key(leader) && majority);
        let next = match (present, by_engine && majority) {
            (Some(leader), _) => Some(leader),
            (None, true) => best,
            (None, false) => None,
        };
        if next == group.leader {
            return false;
        }
        group.term += u64::from(next.is_some());
        group.leader = next;
        true
    }

    fn offset_of(&self, place: &Place) -> u64 {
        let volume = self.agents.get(place).and_then(|agent| self.volumes.get(&agent.volume));
        volume.and_then(|volume| volume.data.as_ref()).map_or(0, |data| data.offset)
    }

    /// Members that lag behind take over the newest data of a running member.
    fn replicate(&mut self, id: &GroupId) -> bool {
        let running = self.running(id);
        let Some(group) = self.groups.0.get(id) else { return false };
        let joined: Vec<String> = running
            .iter()
            .filter(|(member, _)| group.has(member))
            .filter_map(|(_, place)| self.agents.get(place).map(|agent| agent.volume.clone()))
            .collect();
        let newest = joined.iter().filter_map(|volume| self.volumes.get(volume)?.data.clone());
        let Some(newest) = newest.max_by_key(|data| data.offset) else { return false };
        let mut changed = false;
        for volume in joined {
            let data = &mut self.volumes.entry(volume).or_default().data;
            if data.as_ref().is_none_or(|data| data.offset < newest.offset || data.history != newest.history) {
                *data = Some(newest.clone());
                changed = true;
            }
        }
        changed
    }

    pub(super) fn write(&mut self, cluster_uid: &str, key: &str, value: &str) -> Result<(), String> {
        self.run_engines();
        let id = self.groups.0.keys().find(|(uid, ..)| uid == cluster_uid).cloned();
        let id = id.ok_or_else(|| format!("no cluster {cluster_uid} was founded"))?;
        if self.needs_majority() && !self.has_majority(&id, &[]) {
            return Err("no majority".to_owned());
        }
        if self.has_leader(&id) && self.groups.0.get(&id).is_none_or(|group| group.leader.is_none()) {
            return Err("no leader".to_owned());
        }
        let running = self.running(&id);
        let Some(group) = self.groups.0.get_mut(&id) else { return Err("no group".to_owned()) };
        group.offset += 1;
        let (offset, history) = (group.offset, group.foundings);
        let holders: Vec<Place> =
            running.iter().filter(|(member, _)| group.has(member)).map(|(_, place)| place.clone()).collect();
        if holders.is_empty() {
            return Err("no member runs".to_owned());
        }
        for place in holders {
            let Some(agent) = self.agents.get(&place) else { continue };
            let data = self.volumes.entry(agent.volume.clone()).or_default().data.get_or_insert_default();
            data.records.insert(key.to_owned(), value.to_owned());
            (data.offset, data.history) = (offset, history);
        }
        Ok(())
    }

    pub(super) fn membership(&self, id: &GroupId) -> MembershipOutput {
        let running = self.running(id);
        let Some(group) = self.groups.0.get(id) else { return MembershipOutput::default() };
        let seen = |member: &EngineMember| EngineMember {
            up: Some(member.id.as_ref().is_some_and(|id| running.contains_key(id))),
            ..member.clone()
        };
        MembershipOutput { version: group.version.to_string(), members: group.members.values().map(seen).collect() }
    }

    /// The engine's verdict on its group.
    pub(super) fn verdict(&self, id: &GroupId) -> ClusterHealth {
        let Some(group) = self.groups.0.get(id).filter(|group| group.foundings > 0) else {
            return ClusterHealth::Unknown;
        };
        let running = self.running(id);
        let all = group.members.values().all(|member| member.id.as_ref().is_some_and(|id| running.contains_key(id)));
        let leaderless = self.has_leader(id) && group.leader.is_none();
        if (self.needs_majority() && !self.has_majority(id, &[])) || leaderless {
            ClusterHealth::NoQuorum
        } else if all {
            ClusterHealth::Ok
        } else {
            ClusterHealth::Degraded
        }
    }
}
