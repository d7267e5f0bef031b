//! What differs between kinds: types, defaults, validation, what may change, how an object goes.
//!
//! Invariant: each rule repeats what a real API server does by itself; what controllers do is in [`crate::simulated`].

mod defaults;
mod immutable;
mod names;
mod quantity;
mod rules;
mod structural;
mod typed;

use serde_json::{Map, Value, json};

use super::error::{Cause, Refusal};
use super::resource::ResourceType;
use super::state::State;

pub(crate) use quantity::parse as parse_quantity;

/// Brings an object into the form of its type and fills its defaults.
pub(crate) fn prepare(resource: &ResourceType, object: &mut Value) -> Result<(), Refusal> {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        let is_empty =
            |value: &Value| value.as_object().is_some_and(Map::is_empty) || *value == json!([]) || value.is_null();
        metadata.retain(|_, value| !is_empty(value));
    }
    if let Some(custom) = &resource.custom {
        structural::prune_and_default(&custom.openapi, object);
        return Ok(());
    }
    typed::normalise(resource, object)?;
    defaults::fill(&resource.kind, object);
    Ok(())
}

/// What admission adds to a new object. Nobody owns these fields.
pub(crate) fn admit_new(state: &mut State, resource: &ResourceType, object: &mut Value) {
    if resource.custom.is_none() {
        defaults::fill_new(state, &resource.kind, object);
    }
}

/// Gives back what the server allocated and the client left out.
pub(crate) fn keep_allocated(resource: &ResourceType, old: &Value, object: &mut Value) {
    if resource.custom.is_none() {
        immutable::keep_allocated(&resource.kind, old, object);
    }
}

/// Whether an applied configuration has only fields and types that its kind has.
pub(crate) fn check_applied(resource: &ResourceType, config: &Value) -> Result<(), String> {
    match &resource.custom {
        Some(custom) => structural::check_fields(&custom.openapi, config),
        None => typed::check_fields(resource, config),
    }
}

/// What is wrong with an object by itself.
pub(crate) fn validate(resource: &ResourceType, object: &Value) -> Vec<Cause> {
    let mut causes = names::check(resource, object);
    if let Some(custom) = &resource.custom {
        causes.extend(structural::validate(&custom.openapi, object));
        return causes;
    }
    if let Some(refused) = rules::allocation(&resource.kind, object) {
        return vec![refused];
    }
    causes.extend(rules::check(&resource.kind, object));
    causes
}

/// What must not change.
pub(crate) fn validate_update(resource: &ResourceType, subresource: &str, old: &Value, new: &Value) -> Vec<Cause> {
    if resource.custom.is_some() || !subresource.is_empty() {
        return vec![];
    }
    immutable::check(&resource.kind, old, new)
}

/// Seconds that the object stays after a deletion.
pub(crate) fn grace_seconds(resource: &ResourceType, object: &Value, asked: Option<i64>) -> i64 {
    let finished = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let scheduled = object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    if resource.kind != "Pod" || resource.custom.is_some() || finished || !scheduled {
        return 0;
    }
    asked.unwrap_or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30)).max(0)
}

/// Whether the object stays after a deletion although it has no finalizers in its metadata.
pub(crate) fn held_without_finalizers(resource: &ResourceType, object: &Value) -> bool {
    resource.kind == "Namespace"
        && object["spec"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
}

/// Changes that a deletion makes beside the time.
pub(crate) fn marked_for_deletion(resource: &ResourceType, object: &mut Value) {
    if resource.kind == "Namespace" {
        object["status"]["phase"] = json!("Terminating");
    }
}

/// Called with every object after it was stored.
pub(crate) fn stored(state: &mut State, resource: &ResourceType, object: &Value) {
    if resource.kind == "CustomResourceDefinition" {
        state.definition_changed(object, false);
    }
}

/// Called with every object after it was removed.
pub(crate) fn removed(state: &mut State, resource: &ResourceType, object: &Value) {
    if resource.kind == "CustomResourceDefinition" {
        state.definition_changed(object, true);
    }
}
