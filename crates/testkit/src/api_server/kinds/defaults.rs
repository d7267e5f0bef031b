//! Defaults that the API server and its built-in admission fill in.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::api_server::state::State;

/// Fills what is filled on every write.
pub(super) fn fill(kind: &str, object: &mut Value) {
    match kind {
        "Pod" => pod(object),
        "Service" => service(object),
        "PersistentVolumeClaim" => set(&mut object["spec"], "volumeMode", json!("Filesystem")),
        "PersistentVolume" => {
            set(&mut object["spec"], "volumeMode", json!("Filesystem"));
            set(&mut object["spec"], "persistentVolumeReclaimPolicy", json!("Retain"));
        }
        "Secret" => secret(object),
        "StorageClass" => {
            set(object, "reclaimPolicy", json!("Delete"));
            set(object, "volumeBindingMode", json!("Immediate"));
        }
        "EndpointSlice" => {
            set(object, "endpoints", json!([]));
            set(object, "ports", json!([]));
            items(object, "/endpoints").for_each(|endpoint| set(endpoint, "conditions", json!({})));
            for port in items(object, "/ports") {
                set(port, "name", json!(""));
                set(port, "protocol", json!("TCP"));
            }
        }
        "NetworkPolicy" => {
            for rules in ["/spec/ingress", "/spec/egress"] {
                for port in items(object, rules).flat_map(|rule| items(rule, "/ports")) {
                    set(port, "protocol", json!("TCP"));
                }
            }
            let egress = !object["spec"]["egress"].is_null();
            let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
            set(&mut object["spec"], "policyTypes", types);
        }
        _ => {}
    }
}

/// Fills what is filled on creation only.
pub(super) fn fill_new(state: &mut State, kind: &str, object: &mut Value) {
    match kind {
        "Pod" => {
            let class = qos_class(&object["spec"]);
            object["status"] = json!({"phase": "Pending", "qosClass": class});
            set(&mut object["spec"], "priority", json!(0));
            set(&mut object["spec"], "preemptionPolicy", json!("PreemptLowerPriority"));
            set(&mut object["spec"], "serviceAccountName", json!("default"));
            let account = object["spec"]["serviceAccountName"].clone();
            set(&mut object["spec"], "serviceAccount", account);
            default_tolerations(&mut object["spec"]);
        }
        "Service" => service_address(state, object),
        "PersistentVolumeClaim" => {
            object["status"] = json!({"phase": "Pending"});
            default_class(state, object);
            add_finalizer(object, "kubernetes.io/pvc-protection");
        }
        "PersistentVolume" => {
            object["status"] = json!({"phase": "Pending"});
            add_finalizer(object, "kubernetes.io/pv-protection");
        }
        "PodDisruptionBudget" => {
            object["status"] =
                json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
        }
        "CustomResourceDefinition" => {
            let established = |kind: &str| json!({"type": kind, "status": "True", "reason": kind, "message": ""});
            object["status"] = json!({"conditions": [established("NamesAccepted"), established("Established")]});
        }
        "Namespace" => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            object["spec"]["finalizers"] = json!(["kubernetes"]);
            object["status"] = json!({"phase": "Active"});
        }
        _ => {}
    }
}

fn set(object: &mut Value, field: &str, value: Value) {
    if object.is_null() {
        *object = json!({});
    }
    if let Some(map) = object.as_object_mut() {
        map.entry(field.to_owned()).or_insert(value);
    }
}

/// The items of a list, wherever it is; none when it is absent.
fn items<'a>(object: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> {
    object.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten()
}

fn add_finalizer(object: &mut Value, finalizer: &str) {
    match object.pointer_mut("/metadata/finalizers").and_then(Value::as_array_mut) {
        Some(list) if list.iter().any(|one| one == finalizer) => {}
        Some(list) => list.push(json!(finalizer)),
        None => object["metadata"]["finalizers"] = json!([finalizer]),
    }
}

fn secret(object: &mut Value) {
    set(object, "type", json!("Opaque"));
    let Some(text) = object.as_object_mut().and_then(|map| map.remove("stringData")) else { return };
    for (name, value) in text.as_object().into_iter().flatten() {
        object["data"][name] = json!(STANDARD.encode(value.as_str().unwrap_or_default()));
    }
}

fn pod(object: &mut Value) {
    let spec = &mut object["spec"];
    for (field, value) in [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("securityContext", json!({})),
        ("schedulerName", json!("default-scheduler")),
        ("enableServiceLinks", json!(true)),
    ] {
        set(spec, field, value);
    }
    items(spec, "/containers").for_each(container);
    items(spec, "/initContainers").for_each(container);
    items(spec, "/volumes").for_each(volume);
}

fn container(container: &mut Value) {
    set(container, "terminationMessagePath", json!("/dev/termination-log"));
    set(container, "terminationMessagePolicy", json!("File"));
    set(container, "resources", json!({}));
    let image = container["image"].as_str().unwrap_or_default();
    let tag = image.rsplit('/').next().unwrap_or_default();
    let latest = !image.contains('@') && (tag.ends_with(":latest") || !tag.contains(':'));
    set(container, "imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" }));
    for port in items(container, "/ports") {
        set(port, "protocol", json!("TCP"));
    }
    for variable in items(container, "/env") {
        if let Some(reference) = variable.pointer_mut("/valueFrom/fieldRef") {
            set(reference, "apiVersion", json!("v1"));
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe) else { continue };
        for (field, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            set(probe, field, json!(value));
        }
        if let Some(get) = probe.get_mut("httpGet") {
            set(get, "scheme", json!("HTTP"));
            set(get, "path", json!("/"));
        }
    }
    let limits = container["resources"].get("limits").cloned();
    for (name, value) in limits.as_ref().and_then(Value::as_object).into_iter().flatten() {
        set(&mut container["resources"]["requests"], name, value.clone());
    }
}

fn volume(volume: &mut Value) {
    for source in ["secret", "configMap", "projected", "downwardAPI"] {
        let Some(source) = volume.get_mut(source) else { continue };
        set(source, "defaultMode", json!(420));
        for projected in items(source, "/sources") {
            if let Some(token) = projected.get_mut("serviceAccountToken") {
                set(token, "expirationSeconds", json!(3600));
            }
            for item in items(projected, "/downwardAPI/items") {
                if let Some(reference) = item.get_mut("fieldRef") {
                    set(reference, "apiVersion", json!("v1"));
                }
            }
        }
        for item in items(source, "/items") {
            if let Some(reference) = item.get_mut("fieldRef") {
                set(reference, "apiVersion", json!("v1"));
            }
        }
    }
    if let Some(path) = volume.get_mut("hostPath") {
        set(path, "type", json!(""));
    }
}

fn default_tolerations(spec: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        let Some(list) = spec.get_mut("tolerations").and_then(Value::as_array_mut) else {
            spec["tolerations"] = json!([toleration]);
            continue;
        };
        let covers = |one: &Value| {
            (one["key"] == key || one["key"].is_null()) && (one["effect"] == "NoExecute" || one["effect"].is_null())
        };
        if !list.iter().any(covers) {
            list.push(toleration);
        }
    }
}

fn qos_class(spec: &Value) -> &'static str {
    let lists = ["containers", "initContainers"];
    let containers: Vec<&Value> = lists.iter().filter_map(|list| spec[*list].as_array()).flatten().collect();
    let quantities = |container: &Value, part: &str| {
        let resources = &container["resources"][part];
        (resources["cpu"].clone(), resources["memory"].clone())
    };
    let guaranteed = containers.iter().all(|container| {
        let (limits, requests) = (quantities(container, "limits"), quantities(container, "requests"));
        limits == requests && !limits.0.is_null() && !limits.1.is_null()
    });
    let none = (Value::Null, Value::Null);
    let nothing =
        |container: &&Value| quantities(container, "limits") == none && quantities(container, "requests") == none;
    match (guaranteed, containers.iter().all(nothing)) {
        (true, _) => "Guaranteed",
        (_, true) => "BestEffort",
        _ => "Burstable",
    }
}

fn service(object: &mut Value) {
    set(&mut object["status"], "loadBalancer", json!({}));
    let spec = &mut object["spec"];
    set(spec, "type", json!("ClusterIP"));
    set(spec, "sessionAffinity", json!("None"));
    let external = spec["type"] == "ExternalName";
    if !external {
        set(spec, "internalTrafficPolicy", json!("Cluster"));
    }
    for port in items(spec, "/ports") {
        set(port, "protocol", json!("TCP"));
        if let Some(number) = port.get("port").cloned() {
            set(port, "targetPort", number);
        }
    }
}

fn service_address(state: &mut State, object: &mut Value) {
    let spec = &mut object["spec"];
    if spec["type"] == "ExternalName" {
        return;
    }
    if spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().is_empty() {
        spec["clusterIP"] = json!(state.next_address("10.96"));
    }
    let address = spec["clusterIP"].clone();
    set(spec, "clusterIPs", json!([address]));
    let headless_without_selector = address == "None" && spec.get("selector").is_none();
    set(spec, "ipFamilies", if headless_without_selector { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) });
    set(spec, "ipFamilyPolicy", json!(if headless_without_selector { "RequireDualStack" } else { "SingleStack" }));
}

fn default_class(state: &State, object: &mut Value) {
    if object.pointer("/spec/storageClassName").is_some() {
        return;
    }
    let Some(classes) = state.registry.get("storage.k8s.io", "v1", "storageclasses") else { return };
    let default =
        state.store.list(&classes, "").into_iter().find(|(_, class)| {
            class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
        });
    if let Some((_, class)) = default {
        object["spec"]["storageClassName"] = class["metadata"]["name"].clone();
    }
}
