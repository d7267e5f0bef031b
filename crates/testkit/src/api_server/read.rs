//! Reads: single objects and lists.
//!
//! Invariant: a read that does not say `resourceVersion=0` sees every write that was answered before it.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde_json::{Value, json};

use super::call::Call;
use super::error::Refusal;
use super::selector::Selector;
use super::state::{Answer, State};
use super::store::{Key, key};

pub(crate) fn get(state: &mut State, call: &Call, cached: Option<u64>) -> Answer {
    if call.subresource == "status" && !call.resource.status {
        return Err(Refusal::no_such_path());
    }
    let key = key(&call.resource, &call.namespace, &call.name);
    let found = match cached.filter(|_| call.query.get("resourceVersion") == "0") {
        Some(revision) => state.store.get_at(&key, revision),
        None => state.store.get(&key),
    };
    let object = found.ok_or_else(|| Refusal::not_found(&call.resource, &call.name))?;
    Ok((StatusCode::OK, shape(call, &object)))
}

pub(crate) fn list(state: &mut State, call: &Call, cached: Option<u64>) -> Answer {
    let selector = Selector::parse(&call.resource, call.query.get("labelSelector"), call.query.get("fieldSelector"))?;
    let (revision, after) = list_position(state, call, cached)?;
    let objects = if revision == state.store.revision() {
        state.store.list(&call.resource, &call.namespace)
    } else {
        state.store.list_at(&call.resource, &call.namespace, revision)
    };
    let selected: Vec<(Key, Arc<Value>)> = objects
        .into_iter()
        .filter(|(key, object)| after.as_ref().is_none_or(|after| key > after) && selector.matches(object))
        .collect();
    let limit = call.query.get("limit").parse::<usize>().ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let mut metadata = json!({ "resourceVersion": revision.to_string() });
    if let (true, Some((last, _))) = (selected.len() > limit, selected.get(limit.saturating_sub(1))) {
        metadata["continue"] = json!(encode_continue(revision, last));
        metadata["remainingItemCount"] = json!(selected.len() - limit);
    }
    let items: Vec<Value> = selected.iter().take(limit).map(|(_, object)| list_item(call, object)).collect();
    let (kind, api_version) = if call.metadata_only {
        ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned())
    } else {
        (format!("{}List", call.resource.kind), call.resource.api_version())
    };
    let list = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items});
    Ok((StatusCode::OK, list))
}

/// The revision to read, and the key after which to go on.
fn list_position(state: &State, call: &Call, cached: Option<u64>) -> Result<(u64, Option<Key>), Refusal> {
    let newest = state.store.revision();
    let token = call.query.get("continue");
    if !token.is_empty() {
        let (revision, after) = decode_continue(token)?;
        if revision < state.store.compacted() {
            return Err(Refusal::expired(
                "The provided continue parameter is too old to display a consistent list result.",
            ));
        }
        return Ok((revision, Some(after)));
    }
    match (call.query.get("resourceVersion"), call.query.get("resourceVersionMatch")) {
        ("0", _) => Ok((cached.unwrap_or(newest), None)),
        (exact, "Exact") => {
            let revision = exact.parse().map_err(|_| Refusal::bad_request("invalid resourceVersion"))?;
            if revision < state.store.compacted() {
                return Err(Refusal::expired("The resourceVersion for the provided list is too old."));
            }
            Ok((revision, None))
        }
        (text, _) => {
            let oldest: u64 = text.parse().unwrap_or_default();
            let behind = cached.filter(|revision| !text.is_empty() && *revision >= oldest);
            Ok((behind.unwrap_or(newest), None))
        }
    }
}

fn encode_continue(revision: u64, last: &Key) -> String {
    URL_SAFE_NO_PAD.encode(json!([revision, last]).to_string())
}

fn decode_continue(token: &str) -> Result<(u64, Key), Refusal> {
    let refused = || Refusal::bad_request("continue key is not valid");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| refused())?;
    serde_json::from_slice(&bytes).map_err(|_| refused())
}

/// A list's item: built-in kinds leave out their type there.
fn list_item(call: &Call, object: &Value) -> Value {
    let mut item = shape(call, object);
    if let (None, false, Some(map)) = (&call.resource.custom, call.metadata_only, item.as_object_mut()) {
        map.remove("kind");
        map.remove("apiVersion");
    }
    item
}

/// The object as the client asked for it: in the requested version, whole or metadata only.
pub(crate) fn shape(call: &Call, object: &Value) -> Value {
    if call.metadata_only {
        return json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        });
    }
    let mut shaped = object.clone();
    shaped["apiVersion"] = json!(call.resource.api_version());
    shaped
}

/// What the server answers.
pub(crate) enum Reply {
    /// One document.
    Object(StatusCode, Value),
    /// A stream of changes.
    Watch(Box<super::watch::Watch>),
}
