//! Builds a verb's request from the trial's state and from `KEY=VALUE` words.
//!
//! Invariant: what is sent is also a valid request of the standard's type; fields that the type does not know are sent as well.

use anyhow::{Context, Result, bail};
use backlot_standard::request::{MemberState, Reason, Request};
use backlot_standard::verb::Verb;
use backlot_standard::{STANDARD, request};
use serde_json::{Map, Value, json};

use super::state::Trial;

/// Keys whose values are texts even when they look like numbers.
const TEXT_KEYS: &[&str] =
    &["id", "name", "address", "zone", "incarnation", "engineId", "uid", "engineName", "operationId"];
/// Keys below which everything is one flat key, dots included.
const FLAT: &[&str] = &["config", "appliedConfig", "params"];

/// What all requests of a new trial have in common.
pub fn base(trial_manifest: &backlot_standard::manifest::Manifest) -> Value {
    let volumes: Map<String, Value> =
        trial_manifest.volumes.iter().map(|volume| (volume.name.clone(), json!(1_u64 << 30))).collect();
    json!({
        "standard": STANDARD,
        "cluster": {"uid": "3f0c1a52-6d1e-4c55-9a51-0d6a3d5c7e11", "name": "trial", "engineName": "trial-3f0c1a52", "epoch": 1,
            "founded": false, "founding": false},
        "members": [],
        "intent": {"epoch": 1},
        "resources": {"memoryBytes": 268_435_456_u64, "cpuMillis": 1000, "volumes": volumes},
        "config": {},
        "durability": trial_manifest.durability.first().map(|durability| durability.level),
    })
}

/// A request as it is sent, and as its type.
pub struct Built {
    /// What the verb reads.
    pub sent: Value,
    /// The same, parsed.
    pub parsed: Request,
}

/// Builds the request of one call.
pub fn build(trial: &Trial, member: &str, verb: Verb, words: &[String]) -> Result<Built> {
    let mut sent = trial.base.clone();
    let merge = |sent: &mut Value, key: &str, value: Value| {
        if sent.get(key).is_none() {
            sent[key] = value;
        }
    };
    for word in words {
        set(&mut sent, word)?;
    }
    let operation = format!("{member}-{}-{}", verb.name(), std::process::id());
    merge(&mut sent, "verb", json!(verb));
    merge(&mut sent, "operationId", json!(operation));
    merge(&mut sent, "attempt", json!(1));
    merge(&mut sent, "deadlineSeconds", json!(trial.manifest.rule(verb).timeout_seconds));
    merge(&mut sent, "self", json!(member));
    merge(&mut sent, "reason", json!(reason(verb)));
    merge(&mut sent, "params", json!({}));
    let plan = plan(&sent);
    merge(&mut sent, "plan", plan);
    if sent["intent"].get("role").is_none() {
        let role = match sent["intent"].get("leader") {
            None => request::IntentRole::None,
            Some(leader) if leader == member => request::IntentRole::Leader,
            Some(_) => request::IntentRole::Follower,
        };
        sent["intent"]["role"] = json!(role);
    }
    let parsed: Request = serde_json::from_value(sent.clone()).context("not a request of the standard")?;
    if parsed.self_member().is_none() {
        bail!("no member {member:?}: make it with `db member {member}`");
    }
    Ok(Built { sent, parsed })
}

/// Changes one field: `KEY=VALUE`, or `KEY=` to remove it.
pub fn set(request: &mut Value, word: &str) -> Result<()> {
    let (key, value) = word.split_once('=').with_context(|| format!("{word:?} is not KEY=VALUE"))?;
    match key {
        "leader" => return set(request, &format!("intent.leader={value}")),
        "epoch" => {
            set(request, &format!("intent.epoch={value}"))?;
            return set(request, &format!("cluster.epoch={value}"));
        }
        _ => {}
    }
    let path = match key.split_once('.') {
        Some((first, rest)) if FLAT.contains(&first) => vec![first, rest],
        _ => key.split('.').collect(),
    };
    let is_text = path.first() == Some(&"config")
        || path.first() == Some(&"appliedConfig")
        || path.last().is_some_and(|last| TEXT_KEYS.contains(last));
    let parsed = if is_text { None } else { serde_json::from_str(value).ok() };
    let value = if value.is_empty() { None } else { Some(parsed.unwrap_or_else(|| json!(value))) };
    place(request, &path, value).with_context(|| format!("cannot set {key}"))
}

fn place(at: &mut Value, path: &[&str], value: Option<Value>) -> Result<()> {
    let (first, rest) = path.split_first().context("the key is empty")?;
    if let Value::Array(items) = at {
        let item = items.iter_mut().find(|item| item.get("id").is_some_and(|id| id == first));
        return place(item.with_context(|| format!("no element {first:?}"))?, rest, value);
    }
    let fields = at.as_object_mut().with_context(|| format!("{first:?} lies in something that has no fields"))?;
    if !rest.is_empty() {
        return place(fields.entry(*first).or_insert_with(|| json!({})), rest, value);
    }
    match value {
        Some(value) => fields.insert((*first).to_owned(), value),
        None => fields.remove(*first),
    };
    Ok(())
}

/// The plan that follows from the members' states.
fn plan(sent: &Value) -> Value {
    let members = sent["members"].as_array().cloned().unwrap_or_default();
    let ids = |states: &[MemberState]| -> Vec<Value> {
        let wanted: Vec<Value> = states.iter().map(|state| json!(state)).collect();
        members.iter().filter(|member| wanted.contains(&member["state"])).map(|member| member["id"].clone()).collect()
    };
    let joining = ids(&[MemberState::New, MemberState::Joining]);
    let joined = ids(&[MemberState::Joined]);
    let target = joining.len() + joined.len();
    json!({"current": joined.len(), "target": target, "joining": joining, "leaving": ids(&[MemberState::Leaving])})
}

fn reason(verb: Verb) -> Reason {
    match verb {
        Verb::Role | Verb::Health | Verb::Membership | Verb::CanDisrupt => Reason::Poll,
        Verb::Leave | Verb::Forget => Reason::Leave,
        Verb::Reconfigure | Verb::RotateSecret => Reason::Config,
        Verb::PreStop | Verb::PostStart => Reason::Restart,
        Verb::UpgradePlan | Verb::UpgradeStep => Reason::Upgrade,
        Verb::Render
        | Verb::Prepare
        | Verb::Found
        | Verb::Clone
        | Verb::Join
        | Verb::Rebalance
        | Verb::Switchover
        | Verb::Fence
        | Verb::Acks
        | Verb::Promote
        | Verb::Demote
        | Verb::Follow
        | Verb::Salvage
        | Verb::Account
        | Verb::Recover
        | Verb::Maintain
        | Verb::Backup
        | Verb::Restore
        | Verb::Verify => Reason::Create,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_into_the_request() {
        let mut request = json!({"members": [{"id": "a"}, {"id": "b"}], "config": {}, "cluster": {}});
        for word in ["members.b.engineId=7", "config.a.b=12", "cluster.founded=true", "leader=a", "epoch=3"] {
            set(&mut request, word).unwrap();
        }
        assert_eq!(request["members"][1], json!({"id": "b", "engineId": "7"}));
        assert_eq!(request["config"], json!({"a.b": "12"}));
        assert_eq!(request["cluster"], json!({"founded": true, "epoch": 3}));
        assert_eq!(request["intent"], json!({"leader": "a", "epoch": 3}));
        set(&mut request, "leader=").unwrap();
        assert_eq!(request["intent"], json!({"epoch": 3}));
        assert!(set(&mut request, "members.c.vote=false").is_err());
    }
}
