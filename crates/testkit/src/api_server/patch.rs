//! PATCH: JSON merge patch, JSON patch, server-side apply.
//!
//! Invariant: a patch is computed on the newest object and stored through [`super::write`], like any update.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::call::Call;
use super::error::{Cause, Refusal};
use super::kinds;
use super::managed::Managers;
use super::merge;
use super::state::{Answer, State};
use super::store::key;
use super::write;

pub(crate) fn patch(state: &mut State, call: &Call) -> Answer {
    if call.content_type == "application/apply-patch+yaml" {
        return apply(state, call);
    }
    let compute = match call.content_type.as_str() {
        "application/merge-patch+json" => merged,
        "application/json-patch+json" => json_patched,
        other => return Err(Refusal::unsupported_media_type(other)),
    };
    if call.query.is_true("force") {
        return Err(Refusal::bad_request("force is allowed for apply patches only"));
    }
    let old = existing(state, call)?;
    let mut new = compute(call, &old)?;
    merge::drop_nulls(&mut new);
    check_name(call, &new)?;
    let managers = Managers::of(&old);
    write::finish_update(state, call, &old, new, managers, Some(&write::manager(call, "Update")))
}

fn existing(state: &State, call: &Call) -> Result<Arc<Value>, Refusal> {
    let found = state.store.get(&key(&call.resource, &call.namespace, &call.name));
    found.ok_or_else(|| Refusal::not_found(&call.resource, &call.name))
}

fn body(call: &Call) -> Result<Value, Refusal> {
    serde_json::from_slice(&call.body).map_err(|error| Refusal::bad_request(format!("the patch is not JSON: {error}")))
}

fn merged(call: &Call, old: &Value) -> Result<Value, Refusal> {
    let mut new = old.clone();
    let patch = body(call)?;
    if !patch.is_object() {
        return Err(Refusal::bad_request("a merge patch must be an object"));
    }
    merge::merge_patch(&mut new, &patch);
    Ok(new)
}

fn json_patched(call: &Call, old: &Value) -> Result<Value, Refusal> {
    let patch: json_patch::Patch = serde_json::from_slice(&call.body)
        .map_err(|error| Refusal::bad_request(format!("the patch is not a JSON patch: {error}")))?;
    let mut new = old.clone();
    json_patch::patch(&mut new, &patch).map_err(|error| {
        Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("the server rejected our request due to an error in our request: {error}"),
            json!({}),
        )
    })?;
    Ok(new)
}

fn check_name(call: &Call, new: &Value) -> Result<(), Refusal> {
    let name = &new["metadata"]["name"];
    if *name != *call.name {
        return Err(Refusal::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            name.as_str().unwrap_or_default(),
            call.name
        )));
    }
    Ok(())
}

/// Server-side apply.
fn apply(state: &mut State, call: &Call) -> Answer {
    if call.query.get("fieldManager").is_empty() {
        let cause = Cause::required("fieldManager", "is required for apply patch");
        return Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: {}", cause.message),
            json!({"group": "meta.k8s.io", "kind": "PatchOptions", "causes": [
                {"reason": cause.reason, "message": cause.message, "field": cause.field},
            ]}),
        ));
    }
    let given = body(call)?;
    for field in ["apiVersion", "kind"] {
        if given[field].as_str().is_none_or(str::is_empty) {
            return Err(Refusal::bad_request(format!("invalid object type: {field} is required in an apply patch")));
        }
    }
    let mut config = call.object()?;
    if config["metadata"].get("managedFields").is_some() {
        return Err(Refusal::bad_request("metadata.managedFields must be nil"));
    }
    if config["metadata"]["name"].is_null() {
        config["metadata"]["name"] = json!(call.name);
    }
    check_name(call, &config)?;
    let found = state.store.get(&key(&call.resource, &call.namespace, &call.name));
    if found.is_none() && !call.subresource.is_empty() {
        return Err(Refusal::not_found(&call.resource, &call.name));
    }
    if let Err(problem) = kinds::check_applied(&call.resource, &given) {
        let (group, kind) = (call.resource.api_version(), &call.resource.kind);
        let whom = format!("{}/{}; {group}, Kind={kind}", call.namespace, call.name);
        let message = format!("failed to create typed patch object ({whom}): {problem}");
        return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "", message, Value::Null));
    }
    let preconditions = config["metadata"].clone();
    keep_own_part(call, &mut config);
    let force = call.query.is_true("force");
    let manager = write::manager(call, "Apply");
    let stamp = write::stamp(state, call);
    let Some(old) = found else {
        return apply_new(state, call, &preconditions, &config);
    };
    let mut managers = Managers::of(&old);
    let mut new = managers
        .apply(&call.resource.schema, &old, &config, &manager, &stamp, force)
        .map_err(|conflicts| Refusal::apply_conflict(&conflicts))?;
    for field in ["uid", "resourceVersion"] {
        new["metadata"][field] = preconditions.get(field).cloned().unwrap_or_else(|| old["metadata"][field].clone());
    }
    write::finish_update(state, call, &old, new, managers, None)
}

fn apply_new(state: &mut State, call: &Call, preconditions: &Value, config: &Value) -> Answer {
    if preconditions["resourceVersion"].is_string() || preconditions["uid"].is_string() {
        return Err(Refusal::not_found(&call.resource, &call.name));
    }
    let mut managers = Managers::default();
    let (manager, stamp) = (write::manager(call, "Apply"), write::stamp(state, call));
    let object = managers
        .apply(&call.resource.schema, &json!({}), config, &manager, &stamp, true)
        .map_err(|conflicts| Refusal::apply_conflict(&conflicts))?;
    write::finish_create(state, call, object, managers, None)
}

/// Drops what the endpoint does not own, and what nobody owns: status at the object, everything else at its status.
fn keep_own_part(call: &Call, config: &mut Value) {
    let Some(map) = config.as_object_mut() else { return };
    if call.subresource == "status" {
        let names = ["apiVersion", "kind", "status", "metadata"];
        map.retain(|name, _| names.contains(&name.as_str()));
    } else if call.resource.status {
        map.remove("status");
    }
    if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| {
            matches!(name.as_str(), "name" | "labels" | "annotations" | "finalizers" | "ownerReferences")
        });
    }
}
