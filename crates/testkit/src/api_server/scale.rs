//! The subresource `scale` of custom resources.
//!
//! Invariant: scaling writes one field of the spec, through the same pipeline as an update of the object.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::call::Call;
use super::error::Refusal;
use super::managed::Managers;
use super::merge;
use super::resource::ScalePaths;
use super::state::{Answer, State};
use super::store::key;
use super::write;

pub(crate) fn scale(state: &mut State, call: &Call) -> Answer {
    let paths = call.resource.custom.as_ref().and_then(|custom| custom.scale.clone());
    let paths = paths.ok_or_else(Refusal::no_such_path)?;
    let old = state.store.get(&key(&call.resource, &call.namespace, &call.name));
    let old = old.ok_or_else(|| Refusal::not_found(&call.resource, &call.name))?;
    let present = view(&paths, &old);
    let wanted = match (&call.method, call.content_type.as_str()) {
        (&Method::GET, _) => return Ok((StatusCode::OK, present)),
        (&Method::PUT, _) => parse(call)?,
        (&Method::PATCH, "application/merge-patch+json") => {
            let mut merged = present;
            merge::merge_patch(&mut merged, &parse(call)?);
            merged
        }
        (&Method::PATCH, other) => return Err(Refusal::unsupported_media_type(other)),
        _ => return Err(Refusal::method_not_allowed()),
    };
    let mut new = (*old).clone();
    new["metadata"]["resourceVersion"] =
        wanted["metadata"].get("resourceVersion").cloned().unwrap_or_else(|| json!(""));
    let replicas = wanted["spec"].get("replicas").cloned().unwrap_or_else(|| json!(0));
    *at(&mut new, &paths.spec) = replicas;
    let managers = Managers::of(&old);
    let path: Vec<String> =
        paths.spec.split('.').filter(|name| !name.is_empty()).map(|name| format!("f:{name}")).collect();
    // A field that nobody owned stays nobody's.
    let manager = managers.own(&path).then(|| write::manager(call, "Update"));
    let main = Call { subresource: String::new(), metadata_only: false, ..call.clone() };
    let (code, stored) = write::finish_update(state, &main, &old, new, managers, manager.as_ref())?;
    Ok((code, view(&paths, &stored)))
}

fn parse(call: &Call) -> Result<Value, Refusal> {
    serde_json::from_slice(&call.body).map_err(|error| Refusal::bad_request(error.to_string()))
}

fn at<'a>(object: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.').filter(|name| !name.is_empty()).fold(object, |value, name| &mut value[name])
}

fn read<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').filter(|name| !name.is_empty()).fold(object, |value, name| &value[name])
}

fn view(paths: &ScalePaths, object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {},
        "status": {"replicas": read(object, &paths.status).as_i64().unwrap_or_default()},
    });
    if let Some(replicas) = read(object, &paths.spec).as_i64().filter(|replicas| *replicas != 0) {
        scale["spec"]["replicas"] = json!(replicas);
    }
    if let Some(selector) = paths.selector.as_ref().and_then(|path| read(object, path).as_str()) {
        scale["status"]["selector"] = json!(selector);
    }
    scale
}
