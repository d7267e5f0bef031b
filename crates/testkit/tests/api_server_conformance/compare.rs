//! Comparing two answers: what may differ between two servers is taken out, everything else must be equal.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// Where two answers differ, one line each.
pub struct Differences(pub Vec<String>);

impl Differences {
    /// Compares a real answer with ours. `before` is what each server last said of the same object.
    pub fn between(expected: &(u16, Value), found: &(u16, Value), before: &(Value, Value)) -> Self {
        let mut lines = vec![];
        if expected.0 != found.0 {
            lines.push(format!("status: expected {}, found {}", expected.0, found.0));
        }
        let moved = |now: &Value, before: &Value| {
            let revision = |object: &Value| object["metadata"]["resourceVersion"].clone();
            let comparable = now["kind"] == before["kind"] && !revision(now).is_null();
            (!before.is_null() && comparable).then(|| revision(now) != revision(before))
        };
        let (theirs, ours) = (moved(&expected.1, &before.0), moved(&found.1, &before.1));
        if theirs != ours {
            lines.push(format!("whether something was stored: expected {theirs:?}, found {ours:?}"));
        }
        walk("", &normal(&expected.1), &normal(&found.1), &mut lines);
        if !lines.is_empty() && expected.1["kind"] == "Status" {
            lines.push(format!("  expected message: {}", expected.1["message"]));
        }
        if !lines.is_empty() && found.1["kind"] == "Status" {
            lines.push(format!("  found message:    {}", found.1["message"]));
        }
        Self(lines)
    }
}

impl std::fmt::Display for Differences {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// An answer without what two servers choose on their own.
fn normal(answer: &Value) -> Value {
    let mut answer = answer.clone();
    if answer["kind"] == "Status" && answer["status"] == "Failure" {
        return failure(&answer);
    }
    if let Some(items) = answer.get_mut("items").and_then(Value::as_array_mut) {
        // Controllers of a real cluster put objects of their own beside ours; generated names have no common order.
        items.retain(|item| {
            let metadata = &item["metadata"];
            metadata["name"] == "a" || metadata["name"] == "b"
        });
    }
    blank(&mut answer);
    answer
}

/// Of a refusal: code, reason, whom it concerns, and which fields.
fn failure(answer: &Value) -> Value {
    let details = &answer["details"];
    // Depends on where the real server took the families from; the cause beside it says the same.
    let causes = details["causes"].as_array().into_iter().flatten();
    let causes = causes.filter(|cause| cause["field"] != "spec.ipFamilies[1]");
    let causes: BTreeSet<String> = causes.map(|cause| format!("{} {}", cause["reason"], cause["field"])).collect();
    let name = details["name"].as_str().map(|name| if name.starts_with("g-") { "(generated)" } else { name });
    json!({
        "code": answer["code"], "reason": answer["reason"], "causes": causes,
        "name": name, "kind": details["kind"], "group": details["group"],
    })
}

fn blank(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // The real server writes some empty fields as null; both mean the same to every client.
            map.retain(|name, inner| match inner {
                Value::Null => false,
                Value::Array(items) => !(items.is_empty() && (name == "ports" || name == "endpoints")),
                _ => !(name == "continue" && inner == ""),
            });
            for (name, inner) in map.iter_mut() {
                match name.as_str() {
                    "uid" | "resourceVersion" | "creationTimestamp" | "deletionTimestamp" | "time" | "continue" => {
                        *inner = json!("(some)");
                    }
                    "clusterIP" if *inner != "None" => *inner = json!("(address)"),
                    "clusterIPs" if *inner != json!(["None"]) => *inner = json!("(addresses)"),
                    "managedFields" => *inner = managers(inner),
                    _ => blank(inner),
                }
            }
            shorten_generated_name(map);
        }
        Value::Array(items) => items.iter_mut().for_each(blank),
        _ => {}
    }
}

fn shorten_generated_name(map: &mut Map<String, Value>) {
    let Some(prefix) = map.get("generateName").and_then(Value::as_str).map(str::to_owned) else { return };
    if let Some(name) = map.get("name").and_then(Value::as_str)
        && let Some(suffix) = name.strip_prefix(&prefix)
    {
        let length = suffix.len();
        map.insert("name".to_owned(), json!(format!("{prefix}({length})")));
    }
}

/// Managers with their fields, whatever their order and times.
fn managers(entries: &Value) -> Value {
    let entries = entries.as_array().into_iter().flatten().map(|entry| {
        let key = format!("{} {} {}", entry["manager"], entry["operation"], entry["subresource"]);
        let mut fields = entry["fieldsV1"].clone();
        drop_owned_nulls(&mut fields);
        (key, fields)
    });
    Value::Object(entries.collect())
}

/// In a real server somebody owns these fields of conditions although they are null.
fn drop_owned_nulls(fields: &mut Value) {
    if let Some(map) = fields.as_object_mut() {
        map.retain(|name, _| name != "f:lastProbeTime" && name != "f:lastTransitionTime");
        map.values_mut().for_each(drop_owned_nulls);
    }
}

fn walk(path: &str, expected: &Value, found: &Value, lines: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(left), Value::Object(right)) => {
            let names: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for name in names {
                let side = |map: &Map<String, Value>| map.get(name).cloned().unwrap_or(json!("(absent)"));
                walk(&format!("{path}.{name}"), &side(left), &side(right), lines);
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (index, (left, right)) in left.iter().zip(right).enumerate() {
                walk(&format!("{path}[{index}]"), left, right, lines);
            }
        }
        _ if expected != found => lines.push(format!("{path}: expected {expected}, found {found}")),
        _ => {}
    }
}
