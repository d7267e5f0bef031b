//! Built-in objects pass through their types, as in a real server: wrong types are refused, unknown fields vanish, empty
//! optional fields vanish, quantities become canonical.

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{
        ConfigMap, Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service,
        ServiceAccount,
    },
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    storage::v1::{StorageClass, VolumeAttachment},
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::quantity;
use crate::api_server::error::Refusal;
use crate::api_server::resource::ResourceType;

type Pass = fn(&Value) -> Result<Value, serde_json::Error>;

/// Passes a built-in object through its type.
pub(super) fn normalise(resource: &ResourceType, object: &mut Value) -> Result<(), Refusal> {
    let Some(pass) = pass(resource) else { return Ok(()) };
    let managed = object["metadata"].get("managedFields").cloned();
    let mut typed = pass(object).map_err(|error| {
        Refusal::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {error}",
            resource.kind, resource.version, resource.kind
        ))
    })?;
    drop_empty(&mut typed);
    if resource.kind == "Service"
        && let Some(spec) = typed["spec"].as_object_mut()
    {
        spec.retain(|name, value| name != "selector" || *value != json!({}));
    }
    canonical_quantities(&resource.kind, &mut typed);
    if let Some(managed) = managed {
        typed["metadata"]["managedFields"] = managed;
    }
    *object = typed;
    Ok(())
}

/// The first field of `config` that its type does not have.
pub(super) fn check_fields(resource: &ResourceType, config: &Value) -> Result<(), String> {
    let Some(pass) = pass(resource) else { return Ok(()) };
    let typed = pass(config).map_err(|error| error.to_string())?;
    match lost_field(config, &typed, "") {
        Some(path) => Err(format!("{path}: field not declared in schema")),
        None => Ok(()),
    }
}

fn lost_field(given: &Value, kept: &Value, path: &str) -> Option<String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => given.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match kept.get(name) {
                Some(kept) => lost_field(value, kept, &path),
                None if value.is_null() => None,
                None => Some(path),
            }
        }),
        (Value::Array(given), Value::Array(kept)) => {
            given.iter().zip(kept).find_map(|(given, kept)| lost_field(given, kept, path))
        }
        _ => None,
    }
}

fn pass(resource: &ResourceType) -> Option<Pass> {
    Some(match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "ConfigMap") => through::<ConfigMap>,
        ("", "Event") => through::<Event>,
        ("", "Namespace") => through::<Namespace>,
        ("", "Node") => through::<Node>,
        ("", "PersistentVolume") => through::<PersistentVolume>,
        ("", "PersistentVolumeClaim") => through::<PersistentVolumeClaim>,
        ("", "Pod") => through::<Pod>,
        ("", "Secret") => through::<Secret>,
        ("", "Service") => through::<Service>,
        ("", "ServiceAccount") => through::<ServiceAccount>,
        ("coordination.k8s.io", "Lease") => through::<Lease>,
        ("discovery.k8s.io", "EndpointSlice") => through::<EndpointSlice>,
        ("events.k8s.io", "Event") => through::<k8s_openapi::api::events::v1::Event>,
        ("networking.k8s.io", "NetworkPolicy") => through::<NetworkPolicy>,
        ("policy", "PodDisruptionBudget") => through::<PodDisruptionBudget>,
        ("storage.k8s.io", "StorageClass") => through::<StorageClass>,
        ("storage.k8s.io", "VolumeAttachment") => through::<VolumeAttachment>,
        _ => return None,
    })
}

fn through<K: Serialize + DeserializeOwned>(object: &Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<K>(object.clone())?)
}

/// Fields that are stored although they are empty: their emptiness means something.
const MEANINGFUL_EMPTY: &[&str] = &[
    "emptyDir",
    "securityContext",
    "resources",
    "podSelector",
    "namespaceSelector",
    "selector",
    "status",
    "loadBalancer",
    "spec",
];

fn drop_empty(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // Data of ConfigMaps and Secrets and the values of labels may be empty strings; those are not touched.
            map.values_mut().for_each(drop_empty);
            map.retain(|name, inner| {
                let empty = match inner {
                    Value::Object(inner) => inner.is_empty(),
                    Value::Array(inner) => return !inner.is_empty(),
                    Value::Null => true,
                    _ => false,
                };
                !empty || MEANINGFUL_EMPTY.contains(&name.as_str())
            });
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty),
        _ => {}
    }
}

fn canonical_quantities(kind: &str, object: &mut Value) {
    let maps: &[&str] = match kind {
        "Pod" => {
            for list in ["/spec/containers", "/spec/initContainers"] {
                let containers = object.pointer_mut(list).and_then(Value::as_array_mut);
                for container in containers.into_iter().flatten() {
                    canonical_at(container, &["/resources/limits", "/resources/requests"]);
                }
            }
            &[]
        }
        "PersistentVolumeClaim" => {
            &["/spec/resources/limits", "/spec/resources/requests", "/status/capacity", "/status/allocatedResources"]
        }
        "PersistentVolume" => &["/spec/capacity"],
        _ => &[],
    };
    canonical_at(object, maps);
}

fn canonical_at(object: &mut Value, pointers: &[&str]) {
    for pointer in pointers {
        if let Some(map) = object.pointer_mut(pointer) {
            quantity::canonicalise(map);
        }
    }
}
