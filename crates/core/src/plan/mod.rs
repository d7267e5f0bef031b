//! From a snapshot to the acts of one pass: an ordered table of small stages per group, then the objects, then deletion.
//!
//! Operations on members follow only from what status *already stores*; what a pass decides anew is first written there. So a
//! crash between any two writes is followed by a pass that decides the same again.

mod delete;
mod found;
mod join;
mod keep;
mod leave;
mod roll;

use std::collections::BTreeMap;

use backlot_api::database::{DeletionPolicy, GroupStatus, MemberRecord};
use backlot_api::labels;
use backlot_standard::operation::{Act, OperationReport, OperationRequest, OperationState};
use backlot_standard::request::Reason;
use backlot_standard::result::Role;
use backlot_standard::status::{EnginePhase, MemberStatus};
use backlot_standard::verb::{RunsOn, Verb};
use backlot_standard::view::ClusterView;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::build::{self, Object, SecretOrder};
use crate::records;
use crate::snapshot::{Observed, Question, Snapshot};
use crate::validate::{Judgement, Wanted, WantedComponent};
use crate::view;

/// What one pass does. Carried out in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Asked first; when there are any, the pass is planned again with the answers.
    pub questions: Vec<Question>,
    /// The records that status is to hold, written before anything below is done.
    pub groups: Vec<GroupStatus>,
    /// What is going on, for status: the first is what people see.
    pub activities: Vec<Activity>,
    /// Things that happened, told once.
    pub events: Vec<Event>,
    /// Writes to the Kubernetes API, in order.
    pub writes: Vec<Write>,
    /// The view that members should hold, without its number.
    pub view: Option<ClusterView>,
    /// Operations on members.
    pub operations: Vec<Operation>,
}

impl Plan {
    /// Records stay as they are, and nothing else is done.
    fn untouched(snapshot: &Snapshot) -> Self {
        let groups = snapshot.database.status.as_ref().map(|status| status.groups.clone()).unwrap_or_default();
        Self { groups, ..Self::default() }
    }
}

/// A write to the Kubernetes API.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Make the cluster's Secret, or add to it: keys and passwords are generated where the write is done.
    ClusterSecret(SecretOrder),
    /// Create an object that is not there.
    Create(Object),
    /// Server-side apply to an object of ours that differs.
    Apply(Object),
    /// Merge patch of metadata or one field, guarded by UID and resourceVersion.
    Patch {
        /// The object.
        target: Target,
        /// The merge patch, without the guards.
        patch: Value,
    },
    /// Delete, after a fresh read that still shows this UID.
    Delete {
        /// The object.
        target: Target,
        /// Why, for the log.
        why: &'static str,
    },
}

/// An existing object that a write is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Kind.
    pub kind: build::Kind,
    /// Name.
    pub name: String,
    /// UID as observed.
    pub uid: String,
    /// resourceVersion as observed.
    pub resource_version: String,
}

impl Target {
    /// The target for an observed object.
    pub fn of<K: kube::Resource>(kind: build::Kind, object: &K) -> Self {
        let meta = object.meta();
        Self {
            kind,
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
        }
    }
}

/// An operation on a member; number and epoch are filled in when it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// The member that is asked.
    pub member: String,
    /// The request.
    pub request: OperationRequest,
}

/// Something that is going on or stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    /// Whether it is work or an obstacle.
    pub kind: ActivityKind,
    /// CamelCase, stable.
    pub reason: &'static str,
    /// What, why, what next.
    pub message: String,
}

/// Work, obstacle or rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivityKind {
    /// Goes on by itself.
    Working,
    /// Waits for something that may need a person.
    Stuck,
    /// A person wants nothing to be done.
    Paused,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// CamelCase, stable.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// A group at work: stored record, next record, and the plan that grows.
pub(crate) struct Group<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) wanted: &'a Wanted,
    pub(crate) component: &'a WantedComponent,
    /// Groups of other components that are part of the same engine's cluster, as status stores them.
    pub(crate) peers: Vec<GroupStatus>,
    /// As status stores it.
    pub(crate) stored: GroupStatus,
    /// As status will store it.
    pub(crate) next: GroupStatus,
}

/// A stage answers whether it is busy: then later ones wait for it.
type Stage = fn(&mut Group<'_>, &mut Plan) -> bool;
/// What changes a group's members, in order.
const CHANGES: &[Stage] = &[found::found, leave::leave, join::join, join::rebalance];

/// Pods and volumes are kept for every group. What changes an engine's cluster is done by one of its groups at a time, the one first
/// that has begun; members are restarted when no group changes, because a change may be what makes the others well.
fn run_stages(groups: &mut [Group<'_>], plan: &mut Plan) {
    let mut busy: Vec<String> = vec![];
    for group in groups.iter_mut() {
        if keep::members(group, plan) {
            busy.push(group.top());
        }
    }
    let mut order: Vec<_> = (0..groups.len()).collect();
    order.sort_by_key(|index| !groups.get(*index).is_some_and(Group::is_at_work));
    for stages in [CHANGES, &[roll::restart as Stage]] {
        for index in &order {
            let Some(group) = groups.get_mut(*index).filter(|group| !busy.contains(&group.top())) else { continue };
            if stages.iter().any(|stage| stage(group, plan)) {
                busy.push(group.top());
            }
        }
    }
}

/// Plans one pass: the deletion when there is one, else towards what members are to follow.
pub fn plan_pass(snapshot: &Snapshot, judgement: &Judgement) -> Plan {
    if snapshot.database.metadata.deletion_timestamp.is_some() {
        return delete::plan_deletion(snapshot);
    }
    match &judgement.followed {
        Some(wanted) => plan(snapshot, wanted),
        None => Plan::untouched(snapshot),
    }
}

/// Plans one pass for a valid spec.
pub fn plan(snapshot: &Snapshot, wanted: &Wanted) -> Plan {
    let mut plan = Plan::default();
    let mut groups: Vec<Group<'_>> = vec![];
    let all: Vec<_> =
        wanted.components.iter().map(|component| records::stored_group(snapshot, wanted, component, 0)).collect();
    for (component, stored) in wanted.components.iter().zip(&all) {
        if component.members == 0 && stored.members.is_empty() {
            continue;
        }
        let top = wanted.manifest.top(&stored.component);
        let is_peer =
            |other: &&GroupStatus| other.component != stored.component && wanted.manifest.top(&other.component) == top;
        let peers: Vec<_> = all.iter().filter(is_peer).cloned().collect();
        let (stored, mut next) = (stored.clone(), stored.clone());
        if !wanted.paused {
            plan.activities.extend(records::resize(snapshot, wanted, component, &mut next, &peers));
        }
        groups.push(Group { snapshot, wanted, component, peers, stored, next });
    }
    if wanted.paused {
        plan.activities.push(Activity {
            kind: ActivityKind::Paused,
            reason: "Paused",
            message: "spec.paused is set: the operator observes and keeps routes, and changes nothing else".to_owned(),
        });
    } else {
        keep::secret(snapshot, wanted, &groups, &mut plan);
        keep::objects(snapshot, wanted, &groups, &mut plan);
        keep::volumes(snapshot, &wanted.cluster_uid, wanted.deletion_policy, &mut plan);
        run_stages(&mut groups, &mut plan);
        keep::founding_record(snapshot, wanted, &groups, &mut plan);
    }
    let stored: Vec<_> = groups.iter().map(Group::stored_for_view).collect();
    // A paused Database's members keep the view that they hold, settings included.
    plan.view = (!wanted.paused).then(|| view::view(snapshot, wanted, &stored));
    plan.groups = groups.into_iter().map(|group| group.next).collect();
    let finalizers = snapshot.database.finalizers();
    let is_due = wanted.deletion_policy == DeletionPolicy::Delete && !wanted.paused;
    if is_due && !finalizers.iter().any(|known| known == labels::FINALIZER) {
        // Before anything else, so that a deletion that comes next leaves nothing behind.
        let all: Vec<_> = finalizers.iter().map(String::as_str).chain([labels::FINALIZER]).collect();
        plan.writes = vec![Write::Patch {
            target: Target::of(build::Kind::Database, &snapshot.database),
            patch: json!({"metadata": {"finalizers": all}}),
        }];
        plan.operations.clear();
    }
    plan
}

/// Whether a member's agent says now that it leads.
pub(crate) fn reports_leader(snapshot: &Snapshot, member: &str) -> bool {
    let status = snapshot.agents.get(member).and_then(Observed::known);
    status.and_then(|status| status.role.as_ref()).is_some_and(|role| role.role == Role::Leader)
}

pub(crate) fn working(reason: &'static str, message: impl Into<String>) -> Activity {
    Activity { kind: ActivityKind::Working, reason, message: message.into() }
}

pub(crate) fn stuck(reason: &'static str, message: impl Into<String>) -> Activity {
    Activity { kind: ActivityKind::Stuck, reason, message: message.into() }
}

impl Group<'_> {
    /// The record that members are told: members that this pass adds are told at once, other changes once they are stored.
    fn stored_for_view(&self) -> GroupStatus {
        let mut group = self.stored.clone();
        for member in &self.next.members {
            if !group.members.iter().any(|known| known.name == member.name) {
                group.members.push(member.clone());
            }
        }
        group.members.sort_by_key(|member| member.ordinal);
        group
    }

    /// The report of a member's agent, when it is known now and about the member's own volume.
    pub(crate) fn agent(&self, member: &str) -> Option<&MemberStatus> {
        match self.cluster().find(|known| known.name == member) {
            Some(record) => records::report(self.snapshot, record),
            None => self.snapshot.agents.get(member).and_then(Observed::known),
        }
    }

    /// Whether the member's engine is up.
    pub(crate) fn is_running(&self, member: &str) -> bool {
        self.agent(member).is_some_and(|status| status.engine.phase == EnginePhase::Running)
    }

    /// Whether the member's engine is up and says that it can serve its role.
    pub(crate) fn is_ready(&self, member: &str) -> bool {
        self.is_running(member)
            && self.agent(member).and_then(|status| status.health.as_ref()).is_some_and(|health| health.ready)
    }

    /// The member that leads: the decided one, else one that says so.
    pub(crate) fn leader(&self) -> Option<String> {
        let says_so = || self.cluster().find(|member| reports_leader(self.snapshot, &member.name));
        self.stored.leader.clone().or_else(|| says_so().map(|member| member.name.clone()))
    }

    /// What all groups of one engine's cluster have in common.
    pub(crate) fn top(&self) -> String {
        self.wanted.manifest.top(&self.stored.component).to_owned()
    }

    /// Whether a change of the group has begun.
    pub(crate) fn is_at_work(&self) -> bool {
        use backlot_standard::request::MemberState::{Joining, Leaving, Left};
        let rebalance = format!("rebalance/{}/", self.title());
        let restarts: Vec<_> = self.stored.members.iter().map(|member| format!("restart/{}/", member.name)).collect();
        let mut running =
            self.snapshot.agents.values().filter_map(Observed::known).flat_map(|status| &status.operations);
        self.stored.founded
            && (self.stored.members.iter().any(|member| matches!(member.state, Joining | Leaving | Left))
                || running.any(|report| {
                    let is_ours =
                        |id: &str| id.starts_with(&rebalance) || restarts.iter().any(|begun| id.starts_with(begun));
                    report.state == OperationState::Running && is_ours(&report.id)
                }))
    }

    /// Every member of the engine's cluster that this group is part of.
    pub(crate) fn cluster(&self) -> impl Iterator<Item = &MemberRecord> {
        self.stored.members.iter().chain(self.peers.iter().flat_map(|peer| &peer.members))
    }

    /// The group that founds, when it is another component's.
    pub(crate) fn root(&self) -> Option<&GroupStatus> {
        let root = self.wanted.root(&self.stored.component);
        self.peers.iter().find(|peer| peer.component == root)
    }

    /// Joined members other than `subject` whose engine is up, the leader first.
    pub(crate) fn survivors(&self, subject: &str) -> Vec<&MemberRecord> {
        use backlot_standard::request::MemberState::Joined;
        let leader = self.leader();
        let mut members: Vec<_> = self
            .cluster()
            .filter(|member| member.name != subject && member.state == Joined && self.is_running(&member.name))
            .collect();
        members.sort_by_key(|member| (leader.as_deref() != Some(&member.name), member.ordinal));
        members
    }

    /// The member on which `verb` runs for `subject`, by the image's rule; `None` when there is none now.
    pub(crate) fn place(&self, verb: Verb, subject: &str) -> Option<String> {
        match self.wanted.manifest.rule(verb).runs_on {
            RunsOn::Self_ => self.agent(subject).map(|_| subject.to_owned()),
            RunsOn::Leader => self.leader().filter(|leader| self.is_running(leader)),
            RunsOn::Survivor | RunsOn::Any | RunsOn::Every => {
                self.survivors(subject).first().map(|member| member.name.clone())
            }
        }
    }

    /// What is known of an operation.
    pub(crate) fn report(&self, id: &str) -> Option<&OperationReport> {
        self.snapshot
            .agents
            .values()
            .filter_map(Observed::known)
            .flat_map(|status| &status.operations)
            .find(|report| report.id == id)
    }

    /// An operation on `member` about `subject`.
    pub(crate) fn operation(&self, member: &str, id: String, act: Act, reason: Reason, subject: &str) -> Operation {
        let via = self.survivors(subject).first().map(|survivor| survivor.name.clone()).filter(|via| via != member);
        Operation {
            member: member.to_owned(),
            request: OperationRequest {
                id,
                operator_epoch: self.snapshot.operator.epoch,
                view_generation: 0,
                act,
                reason,
                subject: (member != subject).then(|| subject.to_owned()),
                via,
                params: serde_json::Map::new(),
            },
        }
    }

    /// Name of the group in operation ids and messages.
    pub(crate) fn title(&self) -> String {
        format!("{}-{}", self.stored.component, self.stored.shard)
    }

    pub(crate) fn next_member(&mut self, name: &str) -> Option<&mut MemberRecord> {
        self.next.members.iter_mut().find(|member| member.name == name)
    }
}

/// Why an operation that was reported is not done, in words.
pub(crate) fn trouble(report: &OperationReport) -> String {
    let result = &report.result;
    let blockers: Vec<_> = result
        .blockers
        .iter()
        .map(|blocker| format!("{}: {}. {}", blocker.object, blocker.reason, blocker.hint))
        .collect();
    match (&result.error, blockers.is_empty()) {
        (_, false) => blockers.join("; "),
        (Some(error), true) => format!("{}: {}", error.code, error.message),
        (None, true) => {
            let exit = report.exit.map_or_else(|| "no answer".to_owned(), |exit| format!("{exit:?}"));
            format!("ended with {exit} after {} attempts", report.attempts)
        }
    }
}

/// Progress of an operation that runs, in words; empty when it tells none.
pub(crate) fn progress(report: Option<&OperationReport>) -> String {
    report
        .and_then(|report| report.result.progress.as_ref())
        .map(|progress| {
            format!(
                " ({:.0} %{}{})",
                progress.fraction * 100.0,
                if progress.note.is_empty() { "" } else { ", " },
                progress.note
            )
        })
        .unwrap_or_default()
}

/// Claims of a member by volume name.
pub(crate) fn claims_of(wanted: &Wanted, member: &str) -> BTreeMap<String, String> {
    let volumes = wanted.manifest.volumes.iter().enumerate();
    volumes
        .map(|(index, volume)| (volume.name.clone(), crate::names::claim(member, &volume.name, index == 0)))
        .collect()
}
