//! Creating and updating: one pipeline for PUT, every kind of PATCH, and creation by apply.
//!
//! Invariant: an object is stored only by [`finish_create`] and [`finish_update`], so that defaults, validation, generation,
//! ownership, finalizers and the rule "no change, no new revision" hold on every path.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::call::Call;
use super::error::{Cause, Refusal};
use super::kinds;
use super::managed::{Manager, Managers, Stamp};
use super::read::shape;
use super::state::{Answer, State};
use super::store::key;

/// Fields of metadata that only the server sets.
const SYSTEM: &[&str] =
    &["uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"];

/// POST.
pub(crate) fn create(state: &mut State, call: &Call) -> Answer {
    let object = call.object()?;
    if !object["metadata"]["resourceVersion"].as_str().unwrap_or_default().is_empty() {
        return Err(Refusal::internal("resourceVersion should not be set on objects to be created"));
    }
    let managers = Managers::default();
    create_object(state, call, object, managers)
}

fn create_object(state: &mut State, call: &Call, object: Value, managers: Managers) -> Answer {
    let manager = manager(call, "Update");
    finish_create(state, call, object, managers, Some(&manager))
}

/// Stores a new object; `tracked` becomes the owner of its fields.
pub(crate) fn finish_create(
    state: &mut State,
    call: &Call,
    mut object: Value,
    mut managers: Managers,
    tracked: Option<&Manager>,
) -> Answer {
    let resource = call.resource.clone();
    place(state, call, &mut object)?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let key = key(&resource, &call.namespace, &name);
    check_namespace(state, call, &name)?;
    let uid = state.next_uid();
    let now = state.now();
    let metadata = &mut object["metadata"];
    if let Some(map) = metadata.as_object_mut() {
        map.retain(|field, _| {
            !SYSTEM.contains(&field.as_str()) && field != "managedFields" && field != "resourceVersion"
        });
    }
    metadata["uid"] = json!(uid);
    metadata["creationTimestamp"] = json!(now);
    if resource.generation {
        metadata["generation"] = json!(1);
    }
    if resource.status
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    kinds::prepare(&resource, &mut object)?;
    if let Some(tracked) = tracked {
        managers.track_update(&resource.schema, &json!({}), &object, tracked, &stamp(state, call));
    }
    kinds::admit_new(state, &resource, &mut object);
    let causes = kinds::validate(&resource, &object);
    if !causes.is_empty() {
        return Err(Refusal::invalid(&resource, &name, &causes));
    }
    if state.store.get(&key).is_some() {
        return Err(Refusal::already_exists(&resource, &name));
    }
    managers.write(&mut object);
    if call.dry_run() {
        return Ok((StatusCode::CREATED, shape(call, &object)));
    }
    let stored = state.store.put(key, object);
    kinds::stored(state, &resource, &stored);
    Ok((StatusCode::CREATED, shape(call, &stored)))
}

/// Gives the object its name and namespace, or refuses them.
fn place(state: &mut State, call: &Call, object: &mut Value) -> Result<(), Refusal> {
    let metadata = &mut object["metadata"];
    let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
    let (mut name, generate) = (text(&metadata["name"]), text(&metadata["generateName"]));
    let namespace = text(&metadata["namespace"]);
    if call.resource.namespaced {
        if !namespace.is_empty() && namespace != call.namespace {
            return Err(Refusal::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        metadata["namespace"] = json!(call.namespace);
    } else if let Some(map) = metadata.as_object_mut() {
        map.remove("namespace");
    }
    if name.is_empty() && !generate.is_empty() {
        name = format!("{generate}{}", state.next_suffix());
    }
    if name.is_empty() {
        let cause = Cause::required("metadata.name", "name or generateName is required");
        return Err(Refusal::invalid(&call.resource, "", &[cause]));
    }
    metadata["name"] = json!(name);
    if metadata["generateName"].is_null()
        && let Some(map) = metadata.as_object_mut()
    {
        map.remove("generateName");
    }
    Ok(())
}

fn check_namespace(state: &State, call: &Call, name: &str) -> Result<(), Refusal> {
    if !call.resource.namespaced {
        return Ok(());
    }
    let Some(namespaces) = state.registry.get("", "v1", "namespaces") else { return Ok(()) };
    let Some(namespace) = state.store.get(&key(&namespaces, "", &call.namespace)) else {
        return Err(Refusal::not_found(&namespaces, &call.namespace));
    };
    if namespace["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {} because it is being terminated", call.namespace);
    let mut refusal = Refusal::forbidden(&call.resource, name, &why);
    let cause = json!({
        "reason": "NamespaceTerminating",
        "message": format!("namespace {} is being terminated", call.namespace),
        "field": "metadata.namespace",
    });
    refusal.0["details"]["causes"] = json!([cause]);
    Err(refusal)
}

/// PUT.
pub(crate) fn update(state: &mut State, call: &Call) -> Answer {
    let object = call.object()?;
    let metadata = &object["metadata"];
    if metadata["name"].as_str().is_some_and(|name| name != call.name) {
        return Err(Refusal::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            metadata["name"].as_str().unwrap_or_default(),
            call.name
        )));
    }
    if metadata["namespace"].as_str().is_some_and(|namespace| namespace != call.namespace) {
        return Err(Refusal::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let Some(old) = state.store.get(&key(&call.resource, &call.namespace, &call.name)) else {
        if call.resource.create_on_update && call.subresource.is_empty() {
            return create_object(state, call, object, Managers::default());
        }
        return Err(Refusal::not_found(&call.resource, &call.name));
    };
    let revision = metadata["resourceVersion"].as_str().unwrap_or_default();
    if revision.is_empty() && !call.resource.unconditional_update {
        let cause = Cause::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
        return Err(Refusal::invalid_by_resource(&call.resource, &call.name, &[cause]));
    }
    let managers = Managers::of(&old);
    finish_update(state, call, &old, object, managers, Some(&manager(call, "Update")))
}

/// POST of `pods/<name>/binding`: what the scheduler decided.
pub(crate) fn bind(state: &mut State, call: &Call) -> Answer {
    let binding: Value = serde_json::from_slice(&call.body).map_err(|error| Refusal::bad_request(error.to_string()))?;
    let found = state.store.get(&key(&call.resource, &call.namespace, &call.name));
    let old = found.ok_or_else(|| Refusal::not_found(&call.resource, &call.name))?;
    if let Some(node) = old["spec"]["nodeName"].as_str() {
        let why = format!("pod {} is already assigned to node {node:?}", call.name);
        return Err(Refusal::conflict(&call.resource, &call.name, &why));
    }
    let mut new = (*old).clone();
    new["spec"]["nodeName"] = binding["target"]["name"].clone();
    finish_update(state, call, &old, new, Managers::of(&old), None)?;
    Ok((
        StatusCode::CREATED,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// Checks `uid` and `resourceVersion` that a client gave with a write.
fn check_preconditions(call: &Call, old: &Value, new: &Value) -> Result<(), Refusal> {
    let given = |field: &str| new["metadata"][field].as_str().filter(|text| !text.is_empty());
    let (uid, now) = (given("uid"), old["metadata"]["uid"].as_str().unwrap_or_default());
    if let Some(uid) = uid.filter(|uid| *uid != now) {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {now}");
        return Err(Refusal::conflict(&call.resource, &call.name, &why));
    }
    if given("resourceVersion").is_some_and(|revision| old["metadata"]["resourceVersion"] != *revision) {
        return Err(Refusal::modified(&call.resource, &call.name));
    }
    Ok(())
}

/// Stores a changed object, or nothing when nothing changed; `tracked` becomes the owner of what changed.
pub(crate) fn finish_update(
    state: &mut State,
    call: &Call,
    old: &Arc<Value>,
    mut new: Value,
    mut managers: Managers,
    tracked: Option<&Manager>,
) -> Answer {
    let resource = call.resource.clone();
    check_preconditions(call, old, &new)?;
    let given = new["metadata"].clone();
    keep_system_fields(call, old, &mut new)?;
    kinds::prepare(&resource, &mut new)?;
    if let Some(tracked) = tracked {
        // The status of a custom object leaves metadata alone, yet the writer becomes owner of what it gave there.
        let mut claimed = new.clone();
        if resource.custom.is_some() && call.subresource == "status" {
            for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
                set_or_remove(&mut claimed["metadata"], field, given.get(field).cloned());
            }
            kinds::prepare(&resource, &mut claimed)?;
        }
        managers.track_update(&resource.schema, old, &claimed, tracked, &stamp(state, call));
    }
    kinds::keep_allocated(&resource, old, &mut new);
    let mut causes = kinds::validate(&resource, &new);
    causes.extend(kinds::validate_update(&resource, &call.subresource, old, &new));
    causes.extend(new_finalizers_while_deleting(old, &new));
    if !causes.is_empty() {
        return Err(Refusal::invalid(&resource, &call.name, &causes));
    }
    if resource.generation
        && wanted_state(resource.status, &resource.kind, old) != wanted_state(resource.status, &resource.kind, &new)
    {
        new["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or_default() + 1);
    }
    if without_managers(old) == without_managers(&new) && managers.owns_the_same(&Managers::of(old)) {
        return Ok((StatusCode::OK, shape(call, old)));
    }
    managers.write(&mut new);
    if call.dry_run() {
        return Ok((StatusCode::OK, shape(call, &new)));
    }
    let key = key(&resource, &call.namespace, &call.name);
    let metadata = &new["metadata"];
    let held = metadata["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
        || kinds::held_without_finalizers(&resource, &new);
    let graceful = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or_default() > 0;
    if !metadata["deletionTimestamp"].is_null() && !held && !graceful {
        // The answer keeps the last stored revision; watches see that of the removal.
        let answer = shape(call, &new);
        let last = state.store.remove(&key, Some(new)).ok_or_else(|| Refusal::not_found(&resource, &call.name))?;
        kinds::removed(state, &resource, &last);
        return Ok((StatusCode::OK, answer));
    }
    let stored = state.store.put(key, new);
    kinds::stored(state, &resource, &stored);
    Ok((StatusCode::OK, shape(call, &stored)))
}

/// What a client cannot change is as it was: the server's metadata, and what belongs to the other endpoint.
fn keep_system_fields(call: &Call, old: &Value, new: &mut Value) -> Result<(), Refusal> {
    if !new["metadata"].is_object() {
        new["metadata"] = json!({});
    }
    if call.subresource == "status" {
        if !call.resource.status {
            return Err(Refusal::no_such_path());
        }
        let status = new.get("status").cloned();
        let metadata = new["metadata"].clone();
        *new = old.clone();
        set_or_remove(new, "status", status);
        if call.resource.custom.is_none() {
            for field in ["labels", "annotations", "finalizers"] {
                set_or_remove(&mut new["metadata"], field, metadata.get(field).cloned());
            }
        }
    } else if call.resource.status {
        set_or_remove(new, "status", old.get("status").cloned());
    }
    for field in SYSTEM.iter().chain(&["name", "namespace", "generateName", "resourceVersion"]) {
        set_or_remove(&mut new["metadata"], field, old["metadata"].get(*field).cloned());
    }
    new["kind"] = old["kind"].clone();
    new["apiVersion"] = json!(call.resource.api_version());
    Ok(())
}

fn set_or_remove(object: &mut Value, field: &str, value: Option<Value>) {
    let Some(map) = object.as_object_mut() else { return };
    match value {
        Some(value) => drop(map.insert(field.to_owned(), value)),
        None => drop(map.remove(field)),
    }
}

fn without_managers(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    object
}

/// The part of an object whose changes `metadata.generation` counts.
fn wanted_state(has_status: bool, kind: &str, object: &Value) -> Value {
    let mut wanted = object.clone();
    if let Some(map) = wanted.as_object_mut() {
        let metadata = map.remove("metadata").unwrap_or_default();
        map.remove("apiVersion");
        if has_status {
            map.remove("status");
        }
        if kind == "EndpointSlice" {
            map.insert("labels".to_owned(), metadata["labels"].clone());
        }
        map.insert("deleting".to_owned(), json!(!metadata["deletionTimestamp"].is_null()));
    }
    wanted
}

fn new_finalizers_while_deleting(old: &Value, new: &Value) -> Option<Cause> {
    let deleting = !old["metadata"]["deletionTimestamp"].is_null();
    let before = old["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let after = new["metadata"]["finalizers"].as_array().into_iter().flatten();
    let added: Vec<String> = after.filter(|finalizer| !before.contains(finalizer)).map(ToString::to_string).collect();
    (deleting && !added.is_empty()).then(|| {
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            added.join(", ")
        );
        Cause::forbidden("metadata.finalizers", &detail)
    })
}

/// Who writes by this call.
pub(crate) fn manager(call: &Call, operation: &'static str) -> Manager {
    Manager { operation, name: call.manager(), subresource: call.subresource.clone() }
}

/// When and in which version this call writes.
pub(crate) fn stamp(state: &State, call: &Call) -> Stamp {
    Stamp { time: state.now(), api_version: call.resource.api_version() }
}
