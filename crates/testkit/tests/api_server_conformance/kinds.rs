//! The kinds of the comparison: where they are, and bodies with a few fields and a few values.

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use serde_json::{Map, Value, json};

/// A kind that both servers are asked for.
pub struct Kind {
    pub path: &'static str,
    pub plural: &'static str,
    pub name: &'static str,
    pub version: &'static str,
    pub status: bool,
    pub scale: bool,
    /// Controllers of a real cluster change these by themselves: they are only tried, not stored.
    pub tried_only: bool,
    pub body: fn(&mut StdRng) -> Map<String, Value>,
}

/// Every kind, by index.
pub const KINDS: &[Kind] = &[
    Kind {
        path: "/api/v1",
        plural: "configmaps",
        name: "ConfigMap",
        version: "v1",
        status: false,
        scale: false,
        tried_only: false,
        body: config_map,
    },
    Kind {
        path: "/api/v1",
        plural: "secrets",
        name: "Secret",
        version: "v1",
        status: false,
        scale: false,
        tried_only: false,
        body: secret,
    },
    Kind {
        path: "/api/v1",
        plural: "services",
        name: "Service",
        version: "v1",
        status: true,
        scale: false,
        tried_only: false,
        body: service,
    },
    Kind {
        path: "/api/v1",
        plural: "pods",
        name: "Pod",
        version: "v1",
        status: true,
        scale: false,
        tried_only: false,
        body: pod,
    },
    Kind {
        path: "/api/v1",
        plural: "persistentvolumeclaims",
        name: "PersistentVolumeClaim",
        version: "v1",
        status: true,
        scale: false,
        tried_only: true,
        body: claim,
    },
    Kind {
        path: "/apis/policy/v1",
        plural: "poddisruptionbudgets",
        name: "PodDisruptionBudget",
        version: "policy/v1",
        status: true,
        scale: false,
        tried_only: true,
        body: budget,
    },
    Kind {
        path: "/apis/coordination.k8s.io/v1",
        plural: "leases",
        name: "Lease",
        version: "coordination.k8s.io/v1",
        status: false,
        scale: false,
        tried_only: false,
        body: lease,
    },
    Kind {
        path: "/apis/discovery.k8s.io/v1",
        plural: "endpointslices",
        name: "EndpointSlice",
        version: "discovery.k8s.io/v1",
        status: false,
        scale: false,
        tried_only: false,
        body: slice,
    },
    Kind {
        path: "/apis/networking.k8s.io/v1",
        plural: "networkpolicies",
        name: "NetworkPolicy",
        version: "networking.k8s.io/v1",
        status: false,
        scale: false,
        tried_only: false,
        body: policy,
    },
    Kind {
        path: "/apis/conformance.backlot.dev/v1",
        plural: "things",
        name: "Thing",
        version: "conformance.backlot.dev/v1",
        status: true,
        scale: true,
        tried_only: false,
        body: thing,
    },
];

/// Some of the keys with small values.
pub fn small_map(random: &mut StdRng, keys: &[&str]) -> Value {
    let mut map = Map::new();
    for key in keys {
        if random.random_ratio(1, 2) {
            map.insert((*key).to_owned(), json!(random.random_range(1..3).to_string()));
        }
    }
    Value::Object(map)
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn config_map(random: &mut StdRng) -> Map<String, Value> {
    let mut body = json!({"data": small_map(random, &["k1", "k2", "k3"])});
    if random.random_ratio(1, 20) {
        body["immutable"] = json!(true);
    }
    if random.random_ratio(1, 10) {
        body["unknownField"] = json!(1);
    }
    fields(body)
}

fn secret(random: &mut StdRng) -> Map<String, Value> {
    let mut body = json!({});
    if random.random_ratio(1, 2) {
        body["data"] = json!({"k1": "MQ=="});
    }
    if random.random_ratio(1, 3) {
        body["stringData"] = small_map(random, &["k1", "k2"]);
    }
    if random.random_ratio(1, 8) {
        body["type"] = json!("backlot.dev/x");
    }
    fields(body)
}

fn service(random: &mut StdRng) -> Map<String, Value> {
    let all = [
        json!({"name": "one", "port": 80}),
        json!({"name": "two", "port": 81, "targetPort": "sql"}),
        json!({"name": "udp", "port": 80, "protocol": "UDP"}),
        json!({"name": "two", "port": 82, "targetPort": 8082}),
    ];
    let mut ports: Vec<Value> = all.iter().filter(|_| random.random_ratio(1, 2)).cloned().collect();
    if ports.is_empty() {
        ports.push(all[0].clone());
    }
    let mut spec = json!({"ports": ports});
    if random.random_ratio(1, 2) {
        spec["selector"] = small_map(random, &["l1", "l2"]);
    }
    if random.random_ratio(1, 3) {
        spec["clusterIP"] = json!("None");
    }
    if random.random_ratio(1, 3) {
        spec["publishNotReadyAddresses"] = json!(true);
    }
    fields(json!({"spec": spec}))
}

fn pod(random: &mut StdRng) -> Map<String, Value> {
    let memory = *["64Mi", "65536Ki", "1.5Gi"].choose(random).unwrap_or(&"64Mi");
    let mut container =
        json!({"name": "c", "image": "backlot.dev/none:1", "resources": {"limits": {"memory": memory}}});
    if random.random_ratio(1, 2) {
        container["ports"] = json!([{"name": "sql", "containerPort": 1}]);
        container["readinessProbe"] =
            json!({"httpGet": {"port": "sql", "path": "/readyz", "scheme": "HTTPS"}, "periodSeconds": 3});
    }
    if random.random_ratio(1, 2) {
        container["env"] = json!([{"name": "A", "value": "1"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    }
    let volumes = json!([
        {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
        {"name": "id", "projected": {"sources": [{"secret": {"name": "s", "items": [{"key": "k", "path": "p"}]}}]}},
        {"name": "s", "secret": {"secretName": "s"}},
    ]);
    let mut spec = json!({
        // No scheduler of this name: nobody but the test touches the pod.
        "schedulerName": "nobody",
        "automountServiceAccountToken": false,
        "containers": [container],
    });
    if random.random_ratio(1, 2) {
        spec["volumes"] = volumes;
        spec["terminationGracePeriodSeconds"] = json!(5);
        spec["enableServiceLinks"] = json!(false);
        spec["hostname"] = json!("h");
        spec["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"l1": "1"}}}]);
        spec["securityContext"] = json!({"runAsNonRoot": true, "fsGroup": 5});
    }
    if random.random_ratio(1, 2) {
        spec["initContainers"] = json!([{"name": "i", "image": "backlot.dev/none:1"}]);
        spec["nodeSelector"] = json!({"x": "y"});
        spec["affinity"] = json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "podAffinityTerm": {"topologyKey": "z", "labelSelector": {"matchLabels": {"l1": "1"}}}}]}});
    }
    let condition = json!({"type": *["A", "B"].choose(random).unwrap_or(&"A"), "status": "True"});
    fields(json!({"spec": spec, "status": {"conditions": [condition]}}))
}

fn claim(random: &mut StdRng) -> Map<String, Value> {
    let size = *["1Gi", "1024Mi", "0.5Gi"].choose(random).unwrap_or(&"1Gi");
    fields(json!({"spec": {
        "accessModes": ["ReadWriteOncePod"], "storageClassName": "none", "resources": {"requests": {"storage": size}},
    }}))
}

fn budget(random: &mut StdRng) -> Map<String, Value> {
    fields(json!({"spec": {"minAvailable": random.random_range(0..3), "selector": {"matchLabels": {"l1": "1"}}}}))
}

fn lease(random: &mut StdRng) -> Map<String, Value> {
    fields(json!({"spec": {
        "holderIdentity": *["x", "y"].choose(random).unwrap_or(&"x"),
        "leaseDurationSeconds": random.random_range(1..3),
        "leaseTransitions": random.random_range(0..2),
        "renewTime": "2026-01-01T00:00:00.000000Z",
    }}))
}

fn slice(random: &mut StdRng) -> Map<String, Value> {
    let endpoint =
        json!({"addresses": [format!("192.0.2.{}", random.random_range(1..3))], "conditions": {"ready": true}});
    let mut body = json!({"addressType": "IPv4", "endpoints": [endpoint]});
    if random.random_ratio(1, 2) {
        body["ports"] = json!([{"name": "sql", "port": 1}]);
    }
    if random.random_ratio(1, 10) {
        body["addressType"] = json!("IPv6");
        body["endpoints"] = json!([{"addresses": ["2001:db8::1"]}]);
    }
    fields(body)
}

fn policy(random: &mut StdRng) -> Map<String, Value> {
    let mut spec = json!({"podSelector": {"matchLabels": {"l1": random.random_range(1..3).to_string()}}});
    if random.random_ratio(1, 2) {
        spec["ingress"] = json!([{"from": [{"podSelector": {}}], "ports": [{"port": 1}]}]);
    }
    if random.random_ratio(1, 3) {
        spec["egress"] = json!([{"to": [{"podSelector": {}}]}]);
    }
    fields(json!({ "spec": spec }))
}

fn thing(random: &mut StdRng) -> Map<String, Value> {
    let mut spec = json!({});
    if random.random_ratio(9, 10) {
        spec["size"] = json!(random.random_range(0..6));
    }
    if random.random_ratio(1, 3) {
        spec["members"] = json!(random.random_range(1..4));
    }
    if random.random_ratio(1, 3) {
        spec["mode"] = json!(*["x", "y", "z"].choose(random).unwrap_or(&"x"));
    }
    if random.random_ratio(1, 2) {
        let parts = ["p", "q", "r"].iter().filter(|_| random.random_ratio(1, 2));
        let parts: Vec<Value> = parts.map(|name| json!({"name": name})).collect();
        spec["parts"] = Value::Array(parts);
        for part in spec["parts"].as_array_mut().into_iter().flatten() {
            if random.random_ratio(1, 2) {
                part["weight"] = json!(random.random_range(1..3));
            }
        }
    }
    if random.random_ratio(1, 3) {
        spec["tags"] = ["t", "u", "v"].iter().filter(|_| random.random_ratio(1, 2)).map(|tag| json!(tag)).collect();
    }
    if random.random_ratio(1, 3) {
        spec["words"] = ["t", "u"].iter().filter(|_| random.random_ratio(1, 2)).map(|tag| json!(tag)).collect();
    }
    if random.random_ratio(1, 3) {
        spec["config"] = small_map(random, &["k1", "k2"]);
    }
    if random.random_ratio(1, 3) {
        spec["whole"] = small_map(random, &["x", "y"]);
    }
    if random.random_ratio(1, 8) {
        spec["unknown"] = json!({"a": 1});
    }
    if random.random_ratio(1, 12) {
        spec["size"] = json!("five");
    }
    let mut status = json!({});
    if random.random_ratio(1, 2) {
        status["members"] = json!(random.random_range(0..3));
    }
    let conditions = ["A", "B"].iter().filter(|_| random.random_ratio(1, 2));
    let conditions: Vec<Value> = conditions.map(|name| json!({"type": name})).collect();
    if !conditions.is_empty() {
        status["conditions"] = Value::Array(conditions);
        for condition in status["conditions"].as_array_mut().into_iter().flatten() {
            condition["status"] = json!(if random.random_ratio(1, 2) { "True" } else { "False" });
        }
    }
    fields(json!({"spec": spec, "status": status}))
}

/// The definition of `things`.
pub fn definition() -> Value {
    let text = json!({"type": "string"});
    let strings = |kind: &str| json!({"type": "array", "x-kubernetes-list-type": kind, "items": text, "maxItems": 5});
    let spec = json!({"type": "object", "required": ["size"], "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 4},
        "members": {"type": "integer", "default": 3},
        "mode": {"type": "string", "enum": ["x", "y"]},
        "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {
            "type": "object", "required": ["name"], "properties": {
                "name": text, "weight": {"type": "integer"}, "size": {"type": "string", "default": "s"}}}},
        "tags": strings("set"),
        "words": strings("atomic"),
        "config": {"type": "object", "additionalProperties": text},
        "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"x": text, "y": text}},
    }});
    let status = json!({"type": "object", "properties": {
        "members": {"type": "integer"},
        "conditions": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "items": {
            "type": "object", "required": ["type"], "properties": {"type": text, "status": text}}},
    }});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.conformance.backlot.dev"},
        "spec": {
            "group": "conformance.backlot.dev",
            "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.members", "statusReplicasPath": ".status.members"}},
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"],
                    "properties": {"spec": spec, "status": status}}},
            }],
        },
    })
}
