//! Rules within one built-in object: the part of the real validation that an operator can break.

use serde_json::{Value, json};

use super::quantity;
use crate::api_server::error::Cause;

/// Every rule that the object breaks.
pub(super) fn check(kind: &str, object: &Value) -> Vec<Cause> {
    match kind {
        "Pod" => resources(&object["spec"]),
        "Service" => service(&object["spec"]),
        _ => vec![],
    }
}

/// What keeps the server from giving the object what it asks for; refused before every other rule.
pub(super) fn allocation(kind: &str, object: &Value) -> Option<Cause> {
    let spec = &object["spec"];
    let dual = kind == "Service" && spec["ipFamilyPolicy"] == "RequireDualStack" && !spec["selector"].is_null();
    let detail = "this cluster is not configured for dual-stack services";
    dual.then(|| Cause::invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], detail))
}

fn service(spec: &Value) -> Vec<Cause> {
    let mut causes = vec![];
    let ports = spec["ports"].as_array().cloned().unwrap_or_default();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let earlier = &ports[..index];
        if port["name"].is_null() && ports.len() > 1 {
            causes.push(Cause::required(&format!("{path}.name"), ""));
        }
        if !port["name"].is_null() && earlier.iter().any(|other| other["name"] == port["name"]) {
            causes.push(duplicate(&format!("{path}.name"), &port["name"]));
        }
        let key = |port: &Value| (port["port"].clone(), port["protocol"].clone());
        if earlier.iter().any(|other| key(other) == key(port)) {
            causes.push(duplicate(&path, &json!({"port": port["port"], "protocol": port["protocol"]})));
        }
    }
    causes
}

/// No container may request more than its limit.
fn resources(spec: &Value) -> Vec<Cause> {
    let mut causes = vec![];
    for list in ["initContainers", "containers"] {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let limits = &container["resources"]["limits"];
            for (name, requested) in container["resources"]["requests"].as_object().into_iter().flatten() {
                let amount = |value: &Value| value.as_str().and_then(quantity::parse);
                if let (Some(amount), Some(limit)) = (amount(requested), amount(&limits[name]))
                    && amount > limit
                {
                    let detail = format!("must be less than or equal to {name} limit of {}", limits[name]);
                    causes.push(Cause::invalid(
                        &format!("spec.{list}[{index}].resources.requests"),
                        requested,
                        &detail,
                    ));
                }
            }
        }
    }
    causes
}

fn duplicate(field: &str, value: &Value) -> Cause {
    Cause { reason: "FieldValueDuplicate", field: field.to_owned(), message: format!("Duplicate value: {value}") }
}
