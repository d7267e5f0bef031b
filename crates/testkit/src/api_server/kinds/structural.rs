//! Custom objects and their structural schema: pruning, defaults, and the checks that the schema states.

use serde_json::{Map, Value, json};

use crate::api_server::error::Cause;

/// Removes what the schema does not know and fills its defaults.
pub(super) fn prune_and_default(schema: &Value, object: &mut Value) {
    let Some(properties) = schema["properties"].as_object() else { return };
    let Some(map) = object.as_object_mut() else { return };
    map.retain(|name, _| matches!(name.as_str(), "apiVersion" | "kind" | "metadata") || properties.contains_key(name));
    for (name, schema) in properties {
        if matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        fill(schema, map, name);
    }
}

fn fill(schema: &Value, map: &mut Map<String, Value>, name: &str) {
    if !map.contains_key(name)
        && let Some(default) = schema.get("default")
    {
        map.insert(name.to_owned(), default.clone());
    }
    if let Some(value) = map.get_mut(name) {
        walk(schema, value);
    }
}

fn walk(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            let properties = schema["properties"].as_object();
            let open = schema["x-kubernetes-preserve-unknown-fields"] == true
                || schema["x-kubernetes-embedded-resource"] == true;
            let entries = schema.get("additionalProperties").filter(|entries| **entries != json!(false));
            if !open && entries.is_none() {
                map.retain(|name, _| properties.is_some_and(|properties| properties.contains_key(name)));
            }
            for (name, schema) in properties.into_iter().flatten() {
                fill(schema, map, name);
            }
            if let Some(entries) = entries.filter(|entries| entries.is_object()) {
                map.values_mut().for_each(|value| walk(entries, value));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| walk(&schema["items"], item)),
        _ => {}
    }
}

/// The first field that the schema does not have, or that has another type.
pub(super) fn check_fields(schema: &Value, object: &Value) -> Result<(), String> {
    for (name, value) in object.as_object().into_iter().flatten() {
        if matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        match schema["properties"].get(name) {
            Some(schema) => check_field(schema, value, &format!(".{name}"))?,
            None => return Err(format!(".{name}: field not declared in schema")),
        }
    }
    Ok(())
}

fn check_field(schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    if value.is_null() || schema["x-kubernetes-preserve-unknown-fields"] == true {
        return Ok(());
    }
    if !has_type(schema, value) {
        return Err(format!("{path}: expected {}, got {value}", schema["type"].as_str().unwrap_or_default()));
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match schema["properties"].get(name).or_else(|| schema.get("additionalProperties")) {
            Some(schema) => check_field(schema, inner, &path)?,
            None => return Err(format!("{path}: field not declared in schema")),
        }
    }
    value.as_array().into_iter().flatten().try_for_each(|item| check_field(&schema["items"], item, path))
}

/// Every rule of the schema that the object breaks.
pub(super) fn validate(schema: &Value, object: &Value) -> Vec<Cause> {
    let mut causes = vec![];
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        if matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        if let Some(value) = object.get(name) {
            check(schema, value, name, &mut causes);
        }
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if object.get(name).is_none() {
            causes.push(Cause::required(name, ""));
        }
    }
    causes
}

fn check(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    if !has_type(schema, value) {
        let wanted = schema["type"].as_str().unwrap_or_default();
        let message = format!("Invalid value: {value}: {path} in body must be of type {wanted}");
        causes.push(Cause { reason: "FieldValueTypeInvalid", field: path.to_owned(), message });
        return;
    }
    check_limits(schema, value, path, causes);
    match value {
        Value::Object(map) => {
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !map.contains_key(name) {
                    causes.push(Cause::required(&format!("{path}.{name}"), ""));
                }
            }
            for (name, value) in map {
                if let Some(schema) = schema["properties"].get(name) {
                    check(schema, value, &format!("{path}.{name}"), causes);
                } else if schema["additionalProperties"].is_object() {
                    check(&schema["additionalProperties"], value, &format!("{path}.{name}"), causes);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check(&schema["items"], item, &format!("{path}[{index}]"), causes);
            }
            check_duplicates(schema, items, path, causes);
        }
        _ => {}
    }
}

fn has_type(schema: &Value, value: &Value) -> bool {
    if schema["x-kubernetes-int-or-string"] == true {
        return value.is_string() || value.is_i64() || value.is_u64();
    }
    match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        _ => true,
    }
}

fn check_limits(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if let Some(allowed) = schema["enum"].as_array().filter(|allowed| !allowed.contains(value)) {
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", allowed.join(", "));
        causes.push(Cause { reason: "FieldValueNotSupported", field: path.to_owned(), message });
    }
    let (number, length) = match value {
        Value::Number(number) => (number.as_f64(), None),
        Value::String(text) => (None, Some(text.chars().count())),
        Value::Array(items) => (None, Some(items.len())),
        Value::Object(map) => (None, Some(map.len())),
        _ => (None, None),
    };
    if let (Some(number), Some(minimum)) = (number, schema["minimum"].as_f64())
        && number < minimum
    {
        let detail = format!("{path} in body should be greater than or equal to {minimum}");
        causes.push(Cause::invalid(path, value, &detail));
    }
    if let (Some(number), Some(maximum)) = (number, schema["maximum"].as_f64())
        && number > maximum
    {
        let detail = format!("{path} in body should be less than or equal to {maximum}");
        causes.push(Cause::invalid(path, value, &detail));
    }
    let (least, most) = match value {
        Value::String(_) => ("minLength", "maxLength"),
        Value::Array(_) => ("minItems", "maxItems"),
        _ => ("minProperties", "maxProperties"),
    };
    let limit = |name: &str| schema[name].as_u64().and_then(|limit| usize::try_from(limit).ok());
    if let (Some(length), Some(least)) = (length, limit(least))
        && length < least
    {
        causes.push(Cause::invalid(path, value, &format!("{path} in body should be at least {least} long")));
    }
    if let (Some(length), Some(most)) = (length, limit(most))
        && length > most
    {
        let message = format!("Too long: may not be more than {most}");
        causes.push(Cause { reason: "FieldValueTooLong", field: path.to_owned(), message });
    }
}

fn check_duplicates(schema: &Value, items: &[Value], path: &str, causes: &mut Vec<Cause>) {
    let keys: Vec<&str> =
        schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let identity = |item: &Value| match schema["x-kubernetes-list-type"].as_str() {
        Some("map") => Some(keys.iter().map(|key| item[*key].clone()).collect::<Value>()),
        Some("set") => Some(item.clone()),
        _ => None,
    };
    let mut seen: Vec<Value> = vec![];
    for (index, item) in items.iter().enumerate() {
        let Some(identity) = identity(item) else { return };
        if seen.contains(&identity) {
            let message = format!("Duplicate value: {identity}");
            causes.push(Cause { reason: "FieldValueDuplicate", field: format!("{path}[{index}]"), message });
        }
        seen.push(identity);
    }
}
