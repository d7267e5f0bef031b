//! A request as environment variables and plain files, for verbs in a language without a JSON reader (SPEC §6).
//!
//! Invariant: nothing here is secret, every value is one line, and a variable of an absent value is empty, never unset.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use crate::request::{Member, Request};

/// The scalars of `request`, by variable. The caller adds `DB_REQUEST`, `DB_RESULT`, `DB_SCRATCH`, `DB_SECRETS`,
/// `DB_MEMBERS` and `DB_CONFIG`, which are paths.
pub fn scalars(request: &Request) -> Vec<(String, String)> {
    let member = |id: Option<&str>| request.members.iter().find(|member| Some(member.id.as_str()) == id);
    let own = request.self_member();
    let cluster = &request.cluster;
    let mut all: Vec<(String, String)> = [
        ("VERB", request.verb.name().to_owned()),
        ("OPERATION_ID", request.operation_id.clone()),
        ("ATTEMPT", request.attempt.to_string()),
        ("DEADLINE_SECONDS", request.deadline_seconds.to_string()),
        ("REASON", name(&request.reason)),
        ("CLUSTER_UID", cluster.uid.clone()),
        ("CLUSTER_NAME", cluster.name.clone()),
        ("ENGINE_NAME", cluster.engine_name.clone()),
        ("EPOCH", cluster.epoch.to_string()),
        ("FOUNDED", cluster.founded.to_string()),
        ("FOUNDING", cluster.founding.to_string()),
        ("DURABILITY", request.durability.as_ref().map(name).unwrap_or_default()),
        ("INTENT_ROLE", name(&request.intent.role)),
        ("MEMORY_BYTES", request.resources.memory_bytes.to_string()),
        ("CPU_MILLIS", request.resources.cpu_millis.to_string()),
        ("PLAN_CURRENT", request.plan.current.to_string()),
        ("PLAN_TARGET", request.plan.target.to_string()),
        ("SELF_COMPONENT", own.map(|own| own.component.clone()).unwrap_or_default()),
        ("SELF_SHARD", own.map(|own| own.shard.to_string()).unwrap_or_default()),
        ("SELF_ORDINAL", own.map(|own| own.ordinal.to_string()).unwrap_or_default()),
        ("SELF_STATE", own.map(|own| name(&own.state)).unwrap_or_default()),
    ]
    .map(|(variable, value)| (format!("DB_{variable}"), value))
    .to_vec();
    names_of(&mut all, "SELF", own);
    names_of(&mut all, "LEADER", member(request.intent.leader.as_deref()));
    names_of(&mut all, "SUBJECT", member(request.subject.as_deref()));
    names_of(&mut all, "VIA", member(request.via.as_deref()));
    for (key, value) in &request.params {
        if let Some(text) = param(value) {
            all.push((format!("DB_PARAM_{}", upper_snake(key)), text));
        }
    }
    all
}

/// Content of the file `$DB_MEMBERS`: one member a line, fields separated by tabs, `-` for an empty one: id, numericId, name,
/// address, component, shard, ordinal, state, vote, engineId.
pub fn members(request: &Request) -> String {
    request.members.iter().fold(String::new(), |mut lines, member| {
        let Member { id, numeric_id, name: dns, address, component, shard, ordinal, state, vote, engine_id, .. } =
            member;
        let filled = |value: &str| if value.is_empty() { "-".to_owned() } else { value.to_owned() };
        let fields = [
            filled(id),
            numeric_id.to_string(),
            filled(dns),
            filled(address),
            filled(component),
            shard.to_string(),
            ordinal.to_string(),
            name(state),
            vote.to_string(),
            filled(engine_id.as_deref().unwrap_or_default()),
        ];
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{}", fields.join("\t"));
        lines
    })
}

/// Content of the file `$DB_CONFIG`: `key=value`, one setting a line. A setting that cannot be written so (SPEC §8 forbids it) is
/// left out, rather than read as another one.
pub fn config(request: &Request) -> String {
    let is_plain = |key: &str, value: &str| !key.contains(['\n', '=']) && !value.contains('\n');
    let plain = request.config.iter().filter(|(key, value)| is_plain(key, value));
    plain.flat_map(|(key, value)| [key.as_str(), "=", value.as_str(), "\n"]).collect()
}

fn names_of(all: &mut Vec<(String, String)>, prefix: &str, member: Option<&Member>) {
    let text = |field: fn(&Member) -> String| member.map(field).unwrap_or_default();
    for (variable, value) in [
        ("ID", text(|member| member.id.clone())),
        ("NUMERIC_ID", text(|member| member.numeric_id.to_string())),
        ("NAME", text(|member| member.name.clone())),
        ("ADDRESS", text(|member| member.address.clone())),
        ("ENGINE_ID", text(|member| member.engine_id.clone().unwrap_or_default())),
    ] {
        all.push((format!("DB_{prefix}_{variable}"), value));
    }
}

/// The name of an enum's value as it stands in JSON.
fn name<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

/// Scalars as they are, lists of texts separated by spaces; objects have no plain form.
fn param(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Array(items) => {
            let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            texts.map(|texts| texts.join(" "))
        }
        Value::Null | Value::Object(_) => None,
    }
}

fn upper_snake(key: &str) -> String {
    key.chars().fold(String::new(), |mut snake, letter| {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_uppercase());
        snake
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        let member = |id: &str, ordinal: u32| {
            serde_json::json!({"id": id, "numericId": ordinal + 1, "name": format!("{id}.orders"), "component": "data",
                "shard": 0, "ordinal": ordinal, "state": "joined", "vote": true})
        };
        serde_json::from_value(serde_json::json!({
            "standard": "0.1", "verb": "can-disrupt", "operationId": "op", "attempt": 1, "deadlineSeconds": 10,
            "cluster": {"uid": "u", "name": "orders", "engineName": "orders-u", "epoch": 4, "founded": true, "founding": false},
            "self": "orders-1", "members": [member("orders-0", 0), member("orders-1", 1)], "plan": {"current": 2, "target": 3,
            "joining": [], "leaving": []}, "intent": {"role": "follower", "leader": "orders-0", "epoch": 4},
            "resources": {"memoryBytes": 5, "cpuMillis": 6, "volumes": {}}, "config": {"b": "2", "a": "x=y"}, "reason": "poll",
            "params": {"members": ["orders-0", "orders-1"], "mayDiscard": false, "tree": {}}
        }))
        .unwrap()
    }

    #[test]
    fn a_request_is_readable_without_json() {
        let all = scalars(&request());
        let value = |name: &str| all.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.as_str());
        assert_eq!(value("DB_VERB"), Some("can-disrupt"));
        assert_eq!(value("DB_SELF_ID"), Some("orders-1"));
        assert_eq!(value("DB_SELF_STATE"), Some("joined"));
        assert_eq!(value("DB_LEADER_NAME"), Some("orders-0.orders"));
        assert_eq!(value("DB_SUBJECT_ID"), Some(""));
        assert_eq!(value("DB_PARAM_MEMBERS"), Some("orders-0 orders-1"));
        assert_eq!(value("DB_PARAM_MAY_DISCARD"), Some("false"));
        assert_eq!(value("DB_PARAM_TREE"), None);
        assert_eq!(config(&request()), "a=x=y\nb=2\n");
    }

    #[test]
    fn an_empty_field_of_a_member_is_a_dash() {
        let lines = members(&request());
        assert_eq!(lines.lines().next(), Some("orders-0\t1\torders-0.orders\t-\tdata\t0\t0\tjoined\ttrue\t-"));
    }
}
