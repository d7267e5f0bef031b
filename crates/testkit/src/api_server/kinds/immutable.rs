//! What an update of a built-in object cannot change.

use serde_json::{Value, json};

use super::quantity;
use crate::api_server::error::Cause;

/// (kind, field, what the real server says).
const IMMUTABLE: &[(&str, &str, &str)] = &[
    ("Secret", "type", "field is immutable"),
    ("EndpointSlice", "addressType", "field is immutable"),
    ("StorageClass", "provisioner", "field is immutable"),
    ("StorageClass", "parameters", "field is immutable"),
    ("StorageClass", "reclaimPolicy", "field is immutable"),
    ("StorageClass", "volumeBindingMode", "field is immutable"),
    ("PersistentVolume", "spec.volumeMode", "field is immutable"),
    ("PersistentVolume", "spec.csi", "spec.persistentvolumesource is immutable after creation"),
    ("PersistentVolume", "spec.hostPath", "spec.persistentvolumesource is immutable after creation"),
    ("PersistentVolume", "spec.local", "spec.persistentvolumesource is immutable after creation"),
    ("PersistentVolume", "spec.nodeAffinity", "field is immutable"),
];

/// Fields of a pod's spec that an update may change; beside these, tolerations may be added.
const MUTABLE_POD_FIELDS: &[&str] = &["activeDeadlineSeconds", "tolerations", "schedulingGates", "nodeSelector"];

/// What the server allocated stays when a client leaves it out.
pub(super) fn keep_allocated(kind: &str, old: &Value, new: &mut Value) {
    if let ("Pod", Some(class)) = (kind, old["status"].get("qosClass")) {
        new["status"]["qosClass"] = class.clone();
    }
    if kind != "Service" {
        return;
    }
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if new["spec"].get(field).is_none()
            && let Some(value) = old["spec"].get(field)
        {
            new["spec"][field] = value.clone();
        }
    }
}

/// Every forbidden change.
pub(super) fn check(kind: &str, old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes: Vec<Cause> = IMMUTABLE
        .iter()
        .filter(|(of, path, _)| {
            let before = read(old, path);
            *of == kind && before != read(new, path) && !(before.is_null() && path.ends_with("nodeAffinity"))
        })
        .map(|(_, path, detail)| Cause::invalid(path, read(new, path), detail))
        .collect();
    match kind {
        "Pod" => causes.extend(pod(old, new)),
        "PersistentVolumeClaim" => causes.extend(claim(old, new)),
        "Service" => causes.extend(cluster_address(old, new)),
        "ConfigMap" | "Secret" if old["immutable"] == true => causes.extend(data(old, new)),
        _ => {}
    }
    causes
}

fn read<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(object, |value, name| &value[name])
}

fn pod(old: &Value, new: &Value) -> Option<Cause> {
    for list in ["containers", "initContainers"] {
        let count = |pod: &Value| pod["spec"][list].as_array().map_or(0, Vec::len);
        if count(old) != count(new) {
            return Some(Cause::forbidden(&format!("spec.{list}"), "pod updates may not add or remove containers"));
        }
    }
    let comparable = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        if let Some(map) = spec.as_object_mut() {
            map.retain(|name, _| !MUTABLE_POD_FIELDS.contains(&name.as_str()));
            for list in ["containers", "initContainers"] {
                for container in map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                    container["image"] = Value::Null;
                }
            }
        }
        spec
    };
    (comparable(old) != comparable(new)).then(|| {
        Cause::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        )
    })
}

fn claim(old: &Value, new: &Value) -> Option<Cause> {
    let comparable = |claim: &Value, volume: bool| {
        let mut spec = claim["spec"].clone();
        if let Some(map) = spec.as_object_mut() {
            map.remove("volumeAttributesClassName");
            if !volume {
                map.remove("volumeName");
            }
        }
        spec["resources"]["requests"]["storage"] = Value::Null;
        spec
    };
    let bound = !old["spec"]["volumeName"].is_null();
    if comparable(old, bound) != comparable(new, bound) {
        return Some(Cause::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
    let size = |claim: &Value| claim["spec"]["resources"]["requests"]["storage"].as_str().and_then(quantity::parse);
    match (size(old), size(new)) {
        (Some(before), Some(after)) if before != after && old["status"]["phase"] != "Bound" => Some(Cause::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        )),
        (Some(before), Some(after)) if after < before => {
            Some(Cause::forbidden("spec.resources.requests.storage", "field can not be less than status.capacity"))
        }
        _ => None,
    }
}

fn cluster_address(old: &Value, new: &Value) -> Option<Cause> {
    let (before, after) = (&old["spec"]["clusterIP"], &new["spec"]["clusterIP"]);
    let external = |service: &Value| service["spec"]["type"] == "ExternalName";
    (before != after && !external(old) && !external(new))
        .then(|| Cause::invalid("spec.clusterIPs[0]", &json!([after]), "may not change once set"))
}

fn data(old: &Value, new: &Value) -> Vec<Cause> {
    let changed = ["immutable", "data", "binaryData"].into_iter().filter(|field| old[*field] != new[*field]);
    changed.map(|field| Cause::forbidden(field, "field is immutable when `immutable` is set")).collect()
}
