//! Deleting: preconditions, finalizers, graceful periods of pods, eviction.
//!
//! Invariant: an object with finalizers or a running grace period is only marked; it goes when both are over.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::call::Call;
use super::error::Refusal;
use super::kinds;
use super::read::shape;
use super::selector::{Selector, label_selector_matches};
use super::state::{Answer, State};
use super::store::key;

/// What a client says with a deletion.
#[derive(Clone, Debug, Default)]
struct Options {
    grace_seconds: Option<i64>,
    propagation: String,
    uid: Option<String>,
    resource_version: Option<String>,
    dry_run: bool,
}

impl Options {
    fn of(call: &Call) -> Result<Self, Refusal> {
        let body: Value = if call.body.is_empty() {
            json!({})
        } else {
            serde_json::from_slice(&call.body).map_err(|error| Refusal::bad_request(error.to_string()))?
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let mut options = Self {
            grace_seconds: body["gracePeriodSeconds"].as_i64(),
            propagation: text(&body["propagationPolicy"]).unwrap_or_default(),
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            dry_run: body["dryRun"].as_array().is_some_and(|values| !values.is_empty()),
        };
        // A body is read instead of the query, not beside it.
        if call.body.is_empty() {
            options.grace_seconds = call.query.get("gracePeriodSeconds").parse().ok();
            call.query.get("propagationPolicy").clone_into(&mut options.propagation);
            options.dry_run = call.dry_run();
        }
        Ok(options)
    }
}

/// DELETE of an object.
pub(crate) fn one(state: &mut State, call: &Call) -> Answer {
    delete(state, call, &Options::of(call)?)
}

/// DELETE of a collection.
pub(crate) fn collection(state: &mut State, call: &Call) -> Answer {
    let options = Options::of(call)?;
    let selector = Selector::parse(&call.resource, call.query.get("labelSelector"), call.query.get("fieldSelector"))?;
    let selected: Vec<_> = state
        .store
        .list(&call.resource, &call.namespace)
        .into_iter()
        .filter(|(_, object)| selector.matches(object))
        .collect();
    let mut items = vec![];
    for ((_, namespace, name), object) in selected {
        let call = Call { namespace, name, ..call.clone() };
        delete(state, &call, &options)?;
        items.push(shape(&call, &object));
    }
    let metadata = json!({ "resourceVersion": state.store.revision().to_string() });
    let kind = format!("{}List", call.resource.kind);
    Ok((
        StatusCode::OK,
        json!({"kind": kind, "apiVersion": call.resource.api_version(), "metadata": metadata, "items": items}),
    ))
}

fn delete(state: &mut State, call: &Call, options: &Options) -> Answer {
    let resource = call.resource.clone();
    let key = key(&resource, &call.namespace, &call.name);
    let Some(old) = state.store.get(&key) else { return Err(Refusal::not_found(&resource, &call.name)) };
    check_preconditions(call, &old, options)?;
    let grace = kinds::grace_seconds(&resource, &old, options.grace_seconds);
    let mut new = (*old).clone();
    add_propagation_finalizer(&mut new, &options.propagation);
    let held = new["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
        || kinds::held_without_finalizers(&resource, &new);
    if !held && grace == 0 {
        if resource.kind == "Pod" {
            mark(state, &mut new, &old, 0);
        }
        return remove(state, call, new, options);
    }
    mark(state, &mut new, &old, grace);
    kinds::marked_for_deletion(&resource, &mut new);
    let code = if options.propagation == "Foreground" { StatusCode::ACCEPTED } else { StatusCode::OK };
    if options.dry_run || *old == new {
        return Ok((code, shape(call, &new)));
    }
    let stored = state.store.put(key, new);
    Ok((code, shape(call, &stored)))
}

fn check_preconditions(call: &Call, old: &Value, options: &Options) -> Result<(), Refusal> {
    let metadata = &old["metadata"];
    let now = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
    if let Some(uid) = options.uid.as_ref().filter(|uid| **uid != now("uid")) {
        let why = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            now("uid")
        );
        return Err(Refusal::deletion_conflict(&call.resource, &call.name, &why));
    }
    if let Some(revision) = options.resource_version.as_ref().filter(|revision| **revision != now("resourceVersion")) {
        let why = format!(
            "the ResourceVersion in the precondition ({revision}) does not match the ResourceVersion in record ({}). The object might have been modified",
            now("resourceVersion")
        );
        return Err(Refusal::deletion_conflict(&call.resource, &call.name, &why));
    }
    Ok(())
}

fn add_propagation_finalizer(object: &mut Value, propagation: &str) {
    let finalizer = match propagation {
        "Foreground" => "foregroundDeletion",
        "Orphan" => "orphan",
        _ => return,
    };
    let finalizers = &mut object["metadata"]["finalizers"];
    match finalizers.as_array_mut() {
        Some(list) if list.iter().any(|one| one == finalizer) => {}
        Some(list) => list.push(json!(finalizer)),
        None => *finalizers = json!([finalizer]),
    }
}

/// Sets the time at which the object may go. A repeated deletion can only shorten it.
fn mark(state: &State, new: &mut Value, old: &Value, grace: i64) {
    let metadata = &old["metadata"];
    let before = metadata["deletionGracePeriodSeconds"].as_i64();
    if !metadata["deletionTimestamp"].is_null() && before.is_some_and(|before| before <= grace) {
        return;
    }
    if metadata["deletionTimestamp"].is_null()
        && let Some(generation) = metadata["generation"].as_i64()
    {
        new["metadata"]["generation"] = json!(generation + 1);
    }
    new["metadata"]["deletionTimestamp"] = json!(state.time_after(grace));
    new["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
}

fn remove(state: &mut State, call: &Call, last: Value, options: &Options) -> Answer {
    let resource = call.resource.clone();
    let last = if options.dry_run {
        Arc::new(last)
    } else {
        let removed = state.store.remove(&key(&resource, &call.namespace, &call.name), Some(last));
        let last = removed.ok_or_else(|| Refusal::not_found(&resource, &call.name))?;
        kinds::removed(state, &resource, &last);
        last
    };
    if resource.returns_deleted {
        return Ok((StatusCode::OK, shape(call, &last)));
    }
    let mut details = resource.details(&call.name);
    details["uid"] = last["metadata"]["uid"].clone();
    Ok((
        StatusCode::OK,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}),
    ))
}

/// POST of `pods/<name>/eviction`: a deletion that the pod's disruption budgets permit.
pub(crate) fn evict(state: &mut State, call: &Call) -> Answer {
    let Some(pod) = state.store.get(&key(&call.resource, &call.namespace, &call.name)) else {
        return Err(Refusal::not_found(&call.resource, &call.name));
    };
    let body: Value = serde_json::from_slice(&call.body).map_err(|error| Refusal::bad_request(error.to_string()))?;
    if let Some(budgets) = state.registry.get("policy", "v1", "poddisruptionbudgets") {
        let covers = |budget: &Value| {
            label_selector_matches(&budget["spec"]["selector"], &pod["metadata"]["labels"])
                && !pod["metadata"]["labels"].is_null()
        };
        let list = state.store.list(&budgets, &call.namespace);
        if let Some((budget_key, budget)) = list.into_iter().find(|(_, budget)| covers(budget)) {
            let allowed = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or_default();
            if allowed <= 0 {
                return Err(Refusal::too_many_requests(
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                ));
            }
            let mut changed = (*budget).clone();
            changed["status"]["disruptionsAllowed"] = json!(allowed - 1);
            state.store.put(budget_key, changed);
        }
    }
    let options = serde_json::to_vec(&body["deleteOptions"]).unwrap_or_default();
    let call = Call { subresource: String::new(), body: options.into(), ..call.clone() };
    let options = if body["deleteOptions"].is_object() { Options::of(&call)? } else { Options::default() };
    delete(state, &call, &options)?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok((StatusCode::CREATED, status))
}
