//! What a verb is told, made from the view; pure. Its plain form is `backlot_standard::environment`.

use std::collections::BTreeMap;

use backlot_standard::manifest::{Elections, Manifest};
use backlot_standard::request::{Cluster, Intent, IntentRole, Reason, Request};
use backlot_standard::verb::Verb;
use backlot_standard::view::ClusterView;
use serde_json::{Map, Value};

/// One call of a verb.
#[derive(Clone, Debug)]
pub struct Call {
    /// The verb.
    pub verb: Verb,
    /// Stays the same when the call is repeated.
    pub operation_id: String,
    /// 1 for the first call with this id.
    pub attempt: u32,
    /// Why.
    pub reason: Reason,
    /// The member acted on.
    pub subject: Option<String>,
    /// A peer to work through.
    pub via: Option<String>,
    /// The verb's parameters.
    pub params: Map<String, Value>,
    /// Whether the call belongs to the founding.
    pub founding: bool,
}

impl Call {
    /// The agent's own call, without subject and parameters.
    pub fn own(verb: Verb, purpose: &str, attempt: u32, reason: Reason) -> Self {
        Self {
            verb,
            operation_id: format!("agent/{}/{purpose}", verb.name()),
            attempt,
            reason,
            subject: None,
            via: None,
            params: Map::new(),
            founding: false,
        }
    }
}

/// What else a request is made of.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The view held.
    pub view: &'a ClusterView,
    /// The manifest.
    pub manifest: &'a Manifest,
    /// This member.
    pub member: &'a str,
    /// Its present address; empty when not known.
    pub address: &'a str,
    /// Settings in force.
    pub applied: Option<&'a BTreeMap<String, String>>,
}

/// Makes the request; `None` when the view does not know this member.
pub fn build(call: &Call, deadline_seconds: u32, situation: &Situation<'_>) -> Option<Request> {
    let view = situation.view;
    let own = view.member(situation.member)?;
    let group = view.group_of(own)?;
    let component = view.components.get(&own.component).cloned().unwrap_or_default();
    let mut members = view.members.clone();
    // Nobody knows this member's address better than itself.
    if let Some(own) = members.iter_mut().find(|member| member.id == situation.member)
        && !situation.address.is_empty()
    {
        situation.address.clone_into(&mut own.address);
    }
    let leader = leader_of(situation);
    let role = match (situation.manifest.elections, &leader) {
        (Elections::None | Elections::Engine, _) | (Elections::Agent, None) => IntentRole::None,
        (Elections::Agent, Some(leader)) if leader == situation.member => IntentRole::Leader,
        (Elections::Agent, Some(_)) => IntentRole::Follower,
    };
    let mut params = call.params.clone();
    if call.verb == Verb::Promote {
        params.entry("epoch").or_insert_with(|| group.epoch.into());
    }
    Some(Request {
        standard: backlot_standard::STANDARD.to_owned(),
        verb: call.verb,
        operation_id: call.operation_id.clone(),
        attempt: call.attempt,
        deadline_seconds,
        cluster: Cluster {
            uid: view.cluster_uid.clone(),
            name: view.cluster_name.clone(),
            engine_name: view.engine_name.clone(),
            epoch: group.epoch,
            founded: group.founded,
            founding: call.founding && !group.founded,
        },
        self_id: situation.member.to_owned(),
        members,
        plan: group.plan.clone(),
        intent: Intent { role, leader, epoch: group.epoch },
        subject: call.subject.clone(),
        via: call.via.clone(),
        resources: component.resources,
        config: component.config,
        applied_config: situation.applied.cloned(),
        durability: view.durability,
        reason: call.reason,
        params,
    })
}

/// The leader that the view names; a founding member leads until the view names one.
pub fn leader_of(situation: &Situation<'_>) -> Option<String> {
    let own = situation.view.member(situation.member)?;
    let group = situation.view.group_of(own)?;
    let founder = || group.founder.clone().filter(|founder| !group.founded && founder == situation.member);
    group.leader.clone().or_else(founder)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
