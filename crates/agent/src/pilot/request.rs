//! What a verb is told: request and environment, made from the view; pure.

use std::collections::BTreeMap;

use backlot_standard::manifest::{DurabilityLevel, Elections, Manifest};
use backlot_standard::request::{Cluster, Intent, IntentRole, Member, MemberState, Reason, Request};
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

/// The request as environment, for verbs in languages without JSON.
pub fn environment(request: &Request) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let mut set = |name: &str, value: String| drop(env.insert(format!("DB_{name}"), value));
    set("VERB", request.verb.name().to_owned());
    set("OPERATION_ID", request.operation_id.clone());
    set("ATTEMPT", request.attempt.to_string());
    set("DEADLINE_SECONDS", request.deadline_seconds.to_string());
    set("REASON", plain(&request.reason));
    set("CLUSTER_UID", request.cluster.uid.clone());
    set("CLUSTER_NAME", request.cluster.name.clone());
    set("ENGINE_NAME", request.cluster.engine_name.clone());
    set("EPOCH", request.cluster.epoch.to_string());
    set("FOUNDED", request.cluster.founded.to_string());
    set("FOUNDING", request.cluster.founding.to_string());
    set("DURABILITY", request.durability.as_ref().map(plain::<DurabilityLevel>).unwrap_or_default());
    set("INTENT_ROLE", plain(&request.intent.role));
    set("MEMORY_BYTES", request.resources.memory_bytes.to_string());
    set("CPU_MILLIS", request.resources.cpu_millis.to_string());
    set("PLAN_CURRENT", request.plan.current.to_string());
    set("PLAN_TARGET", request.plan.target.to_string());
    let find = |id: &Option<String>| request.members.iter().find(|member| Some(&member.id) == id.as_ref());
    let own = request.self_member();
    set("SELF_COMPONENT", own.map(|own| own.component.clone()).unwrap_or_default());
    set("SELF_SHARD", own.map(|own| own.shard.to_string()).unwrap_or_default());
    set("SELF_ORDINAL", own.map(|own| own.ordinal.to_string()).unwrap_or_default());
    set("SELF_STATE", own.map(|own| plain(&own.state)).unwrap_or_default());
    let leader = find(&request.intent.leader);
    let (subject, via) = (find(&request.subject), find(&request.via));
    for (prefix, member) in [("SELF", own), ("LEADER", leader), ("SUBJECT", subject), ("VIA", via)] {
        set(&format!("{prefix}_ID"), member.map(|member| member.id.clone()).unwrap_or_default());
        set(&format!("{prefix}_NUMERIC_ID"), member.map(|member| member.numeric_id.to_string()).unwrap_or_default());
        let engine_id = member.and_then(|member| member.engine_id.clone());
        set(&format!("{prefix}_ENGINE_ID"), engine_id.unwrap_or_default());
        set(&format!("{prefix}_NAME"), member.map(|member| member.name.clone()).unwrap_or_default());
        set(&format!("{prefix}_ADDRESS"), member.map(|member| member.address.clone()).unwrap_or_default());
    }
    for (name, value) in &request.params {
        if let Some(value) = scalar(value) {
            set(&format!("PARAM_{}", upper_snake(name)), value);
        }
    }
    env
}

/// The members, one a line, fields separated by tabs; an empty field is `-`.
pub fn members_file(members: &[Member]) -> String {
    let mut text = String::new();
    for member in members {
        let fields = [
            member.id.clone(),
            member.numeric_id.to_string(),
            member.name.clone(),
            member.address.clone(),
            member.component.clone(),
            member.shard.to_string(),
            member.ordinal.to_string(),
            plain::<MemberState>(&member.state),
            member.vote.to_string(),
            member.engine_id.clone().unwrap_or_default(),
        ];
        let fields = fields.map(|field| if field.is_empty() { "-".to_owned() } else { field });
        text.push_str(&fields.join("\t"));
        text.push('\n');
    }
    text
}

/// The settings, `key=value` a line. Values with a line break cannot be (SPEC §8) and are left out.
pub fn config_file(config: &BTreeMap<String, String>) -> String {
    config
        .iter()
        .filter(|(key, value)| !key.contains(['\n', '=']) && !value.contains('\n'))
        .fold(String::new(), |text, (key, value)| text + key + "=" + value + "\n")
}

/// An enum as it is written in JSON.
fn plain<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(values) => {
            let texts: Option<Vec<&str>> = values.iter().map(Value::as_str).collect();
            Some(texts?.join(" "))
        }
        Value::Null | Value::Object(_) => None,
    }
}

fn upper_snake(camel: &str) -> String {
    let mut name = String::new();
    for c in camel.chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    }
    name
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
