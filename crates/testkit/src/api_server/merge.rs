//! Merging: applied configurations, JSON merge patches, and removal of single fields.
//!
//! Invariant: pure functions of values; ownership is decided elsewhere.

use serde_json::{Map, Value};

use super::fields::item_element;
use super::schema::{Node, Rule};

/// `applied` laid over `live` by the rules of server-side apply.
pub(crate) fn structured(node: &Node, live: &Value, applied: &Value) -> Value {
    match (&node.rule, live, applied) {
        (Rule::Natural, Value::Object(old), Value::Object(new)) => {
            let mut merged = old.clone();
            for (name, value) in new {
                let value = match old.get(name) {
                    Some(before) => structured(node.field(name), before, value),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Rule::Keyed(_) | Rule::Set, Value::Array(old), Value::Array(new)) => Value::Array(lists(node, old, new)),
        _ => applied.clone(),
    }
}

/// The items of both lists: those of `new` in their order, those only in `old` where they were.
fn lists(node: &Node, old: &[Value], new: &[Value]) -> Vec<Value> {
    let name = |item: &Value| item_element(&node.rule, item);
    let old_names: Vec<String> = old.iter().map(name).collect();
    let new_names: Vec<String> = new.iter().map(name).collect();
    let merged_item = |position: usize| {
        let before = old_names.iter().position(|other| *other == new_names[position]).map(|index| &old[index]);
        match (before, &node.rule) {
            (Some(before), Rule::Keyed(_)) => structured(node.item(), before, &new[position]),
            _ => new[position].clone(),
        }
    };
    let mut merged = vec![];
    let (mut left, mut right) = (0, 0);
    while left < old.len() || right < new.len() {
        if left < old.len() && !new_names.contains(&old_names[left]) {
            merged.push(old[left].clone());
            left += 1;
        } else if left < old.len() && new_names[..right].contains(&old_names[left]) {
            left += 1;
        } else if right < new.len() {
            merged.push(merged_item(right));
            right += 1;
        } else {
            left += 1;
        }
    }
    merged
}

/// Removes one field, and the maps and lists that become empty by it; those that `keeps` keeps become null instead, as in a
/// real server, whose validation then refuses them unless their type allows it.
pub(crate) fn remove(node: &Node, value: &mut Value, path: &[String], keeps: &dyn Fn(&[String]) -> bool) {
    remove_at(node, value, path, 0, keeps);
}

fn remove_at(node: &Node, value: &mut Value, path: &[String], depth: usize, keeps: &dyn Fn(&[String]) -> bool) {
    let Some((element, below)) = path[depth..].split_first() else { return };
    match value {
        Value::Object(map) => {
            let Some(name) = element.strip_prefix("f:") else { return };
            let Some(inner) = map.get_mut(name) else { return };
            if below.is_empty() {
                map.remove(name);
                return;
            }
            remove_at(node.field(name), inner, path, depth + 1, keeps);
            if is_empty(inner) {
                if keeps(&path[..=depth]) {
                    *inner = Value::Null;
                } else {
                    map.remove(name);
                }
            }
        }
        Value::Array(items) => {
            let Some(index) = items.iter().position(|item| item_element(&node.rule, item) == *element) else { return };
            if below.is_empty() {
                items.remove(index);
            } else {
                remove_at(node.item(), &mut items[index], path, depth + 1, keeps);
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// RFC 7386.
pub(crate) fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            map.remove(name);
        } else {
            merge_patch(map.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Removes nulls, as the real server's decoding does.
pub(crate) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
