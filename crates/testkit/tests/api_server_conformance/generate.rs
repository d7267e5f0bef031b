//! Random requests from a small vocabulary, so that they meet each other often: few names, few fields, few values.
//!
//! Invariant: a sequence depends on its seed only. UIDs and revisions differ between servers; a request names them by what it
//! wants of them (the present one, an old one, a wrong one) and each server gets its own.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value, json};

/// A server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Real,
    Memory,
}

/// Which revision or UID a request names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    Nothing,
    Present,
    Old,
    Wrong,
}

/// A request for both servers.
pub struct Request {
    pub method: &'static str,
    pub path: String,
    pub content_type: &'static str,
    object: (usize, String),
    bodies: (Value, Value),
}

impl Request {
    /// The body for one server.
    pub fn body(&self, side: Side) -> Value {
        match side {
            Side::Real => self.bodies.0.clone(),
            Side::Memory => self.bodies.1.clone(),
        }
    }

    pub fn describe(&self) -> String {
        format!("{} {} ({}) {}", self.method, self.path, self.content_type, self.bodies.0)
    }
}

/// What each server said of an object: (now, before).
type Known = (Vec<Value>, Vec<Value>);

struct Kind {
    path: &'static str,
    plural: &'static str,
    name: &'static str,
    version: &'static str,
    status: bool,
    scale: bool,
    /// Controllers of a real cluster change these by themselves: they are only tried, not stored.
    tried_only: bool,
    body: fn(&mut StdRng) -> Map<String, Value>,
}

const KINDS: &[Kind] = &[
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

/// Kinds by how often they come up.
const WEIGHTS: &[usize] = &[0, 0, 0, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9];

pub struct Generator {
    random: StdRng,
    namespace: String,
    known: BTreeMap<(usize, String), Known>,
}

impl Generator {
    pub fn new(seed: u64, namespace: &str) -> Self {
        Self { random: StdRng::seed_from_u64(seed), namespace: namespace.to_owned(), known: BTreeMap::new() }
    }

    /// What each server last said of the request's object.
    pub fn before(&self, request: &Request) -> (Value, Value) {
        let last = |list: &Vec<Value>| list.last().cloned().unwrap_or_default();
        self.known.get(&request.object).map_or((Value::Null, Value::Null), |(real, ours)| (last(real), last(ours)))
    }

    /// Remembers what the servers answered.
    pub fn learn(&mut self, request: &Request, real: &Value, ours: &Value) {
        if real["metadata"]["uid"].is_string() && real["kind"] != "Scale" && !request.path.contains("dryRun") {
            let known = self.known.entry(request.object.clone()).or_default();
            known.0.push(real.clone());
            known.1.push(ours.clone());
        }
    }

    pub fn next(&mut self) -> Request {
        let index = *WEIGHTS.choose(&mut self.random).unwrap_or(&0);
        let name = (*["a", "a", "b"].choose(&mut self.random).unwrap_or(&"a")).to_owned();
        let kind = &KINDS[index];
        let roll = self.random.random_range(0..100);
        match roll {
            0..4 => self.request(index, name, "GET", "", "", |_| Value::Null),
            4..8 => self.list(index),
            8..22 => self.create(index, name),
            22..36 => self.replace(index, name, ""),
            36..46 => self.merge(index, name, ""),
            46..52 => self.json_patch(index, name),
            52..76 => self.apply(index, name, ""),
            76..84 if kind.status => match roll {
                // To a real server the status of an absent Service is a creation that it then refuses.
                _ if kind.name == "Service" => self.merge(index, name, "status"),
                76..78 => self.replace(index, name, "status"),
                78..81 => self.merge(index, name, "status"),
                _ => self.apply(index, name, "status"),
            },
            84..88 if kind.scale => self.scale(index, name),
            _ => self.delete(index, name),
        }
    }

    fn request(
        &mut self,
        index: usize,
        name: String,
        method: &'static str,
        more: &str,
        query: &str,
        body: impl Fn(Side) -> Value,
    ) -> Request {
        let kind = &KINDS[index];
        let dry = method != "GET" && (kind.tried_only || self.random.random_ratio(1, 15));
        let mut parameters: Vec<&str> = query.split('&').filter(|one| !one.is_empty()).collect();
        if dry {
            parameters.push("dryRun=All");
        }
        let collection = format!("{}/namespaces/{}/{}", kind.path, self.namespace, kind.plural);
        let path = if name.is_empty() || method == "POST" { collection } else { format!("{collection}/{name}") };
        let subresource = if more.is_empty() { String::new() } else { format!("/{more}") };
        Request {
            method,
            path: format!("{path}{subresource}?{}", parameters.join("&")).trim_end_matches('?').to_owned(),
            content_type: "application/json",
            object: (index, name),
            bodies: (body(Side::Real), body(Side::Memory)),
        }
    }

    fn list(&mut self, index: usize) -> Request {
        let selectors =
            ["", "labelSelector=l1%3D1", "labelSelector=l1+in+(1,2),!l2", "fieldSelector=metadata.name%3Da"];
        let query = *selectors.choose(&mut self.random).unwrap_or(&"");
        self.request(index, String::new(), "GET", "", query, |_| Value::Null)
    }

    fn create(&mut self, index: usize, name: String) -> Request {
        let generated = self.random.random_ratio(1, 12);
        let mut body = self.object(index, &name);
        if generated {
            body["metadata"]["generateName"] = json!("g-");
            if let Some(metadata) = body["metadata"].as_object_mut() {
                metadata.remove("name");
            }
        }
        let name = if generated { "g".to_owned() } else { name };
        self.request(index, name, "POST", "", "fieldManager=m1", |_| body.clone())
    }

    fn replace(&mut self, index: usize, name: String, subresource: &'static str) -> Request {
        let named = self.named();
        let mut body = self.object(index, &name);
        keep_spec_typed(&mut body, subresource);
        let known = self.known.get(&(index, name.clone())).cloned().unwrap_or_default();
        self.request(index, name, "PUT", subresource, "fieldManager=m1", |side| {
            let mut body = body.clone();
            name_revision(&mut body, named, &known, side);
            body
        })
    }

    fn merge(&mut self, index: usize, name: String, subresource: &'static str) -> Request {
        let mut body = self.object(index, &name);
        keep_spec_typed(&mut body, subresource);
        if let Some(map) = body.as_object_mut() {
            map.remove("kind");
            map.remove("apiVersion");
        }
        if self.random.random_ratio(1, 3) {
            let field = *["labels", "annotations", "finalizers"].choose(&mut self.random).unwrap_or(&"labels");
            body["metadata"][field] = Value::Null;
        }
        let named = self.named();
        let known = self.known.get(&(index, name.clone())).cloned().unwrap_or_default();
        let mut request = self.request(index, name, "PATCH", subresource, "fieldManager=m2", |side| {
            let mut body = body.clone();
            name_revision(&mut body, named, &known, side);
            body
        });
        request.content_type = "application/merge-patch+json";
        request
    }

    fn json_patch(&mut self, index: usize, name: String) -> Request {
        let value = self.random.random_range(1..3).to_string();
        let patch = match self.random.random_range(0..5) {
            0 => json!([{"op": "add", "path": "/metadata/labels", "value": {"l1": value}}]),
            1 => json!([{"op": "remove", "path": "/metadata/labels/l1"}]),
            2 => json!([{"op": "test", "path": "/metadata/labels/l1", "value": value},
                {"op": "replace", "path": "/metadata/labels/l1", "value": "2"}]),
            3 => json!([{"op": "add", "path": "/metadata/annotations", "value": {"n": value}}]),
            _ => json!([{"op": "add", "path": "/metadata/labels/l2", "value": value}]),
        };
        let mut request = self.request(index, name, "PATCH", "", "fieldManager=m2", |_| patch.clone());
        request.content_type = "application/json-patch+json";
        request
    }

    fn apply(&mut self, index: usize, name: String, subresource: &'static str) -> Request {
        let body = self.object(index, &name);
        let manager = *["a1", "a2"].choose(&mut self.random).unwrap_or(&"a1");
        let force = if self.random.random_ratio(1, 2) { "&force=true" } else { "" };
        let query = format!("fieldManager={manager}{force}");
        let mut request = self.request(index, name, "PATCH", subresource, &query, |_| body.clone());
        request.content_type = "application/apply-patch+yaml";
        request
    }

    fn scale(&mut self, index: usize, name: String) -> Request {
        if self.random.random_ratio(1, 2) {
            return self.request(index, name, "GET", "scale", "", |_| Value::Null);
        }
        let replicas = self.random.random_range(0..5);
        let body = json!({"spec": {"replicas": replicas}});
        // Only tried: to whom the field belongs after a scaling follows no rule that is worth copying.
        let query = "fieldManager=m1&dryRun=All";
        let mut request = self.request(index, name, "PATCH", "scale", query, |_| body.clone());
        request.content_type = "application/merge-patch+json";
        request
    }

    fn delete(&mut self, index: usize, name: String) -> Request {
        let (uid, revision) = (self.named(), self.named());
        let policy = *["", "", "Background", "Foreground", "Orphan"].choose(&mut self.random).unwrap_or(&"");
        // The garbage collector of a real cluster ends these deletions at a time of its own.
        let policy = if KINDS[index].tried_only {
            policy
        } else {
            policy.trim_start_matches("Foreground").trim_start_matches("Orphan")
        };
        let known = self.known.get(&(index, name.clone())).cloned().unwrap_or_default();
        self.request(index, name, "DELETE", "", "", |side| {
            let mut preconditions = json!({});
            for (field, named) in [("uid", uid), ("resourceVersion", revision)] {
                if let Some(value) = pick(named, &known, side, field) {
                    preconditions[field] = value;
                }
            }
            let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions});
            if !policy.is_empty() {
                options["propagationPolicy"] = json!(policy);
            }
            options
        })
    }

    fn named(&mut self) -> Named {
        match self.random.random_range(0..10) {
            0..5 => Named::Nothing,
            5..8 => Named::Present,
            8 => Named::Old,
            _ => Named::Wrong,
        }
    }

    fn object(&mut self, index: usize, name: &str) -> Value {
        let kind = &KINDS[index];
        let mut metadata = json!({ "name": name });
        for (field, keys) in [("labels", ["l1", "l2"]), ("annotations", ["n", "o"])] {
            let map = small_map(&mut self.random, &keys);
            if map != json!({}) {
                metadata[field] = map;
            }
        }
        if self.random.random_ratio(1, 8) {
            metadata["finalizers"] = json!(["conformance.backlot.dev/f"]);
        }
        if self.random.random_ratio(1, 25) {
            metadata["labels"] = json!({"l1": "not allowed!"});
        }
        let mut object = (kind.body)(&mut self.random);
        object.insert("metadata".to_owned(), metadata);
        object.insert("kind".to_owned(), json!(kind.name));
        object.insert("apiVersion".to_owned(), json!(kind.version));
        Value::Object(object)
    }
}

/// A status with a wrong type in its spec makes a real server forget every manager.
fn keep_spec_typed(body: &mut Value, subresource: &str) {
    if subresource == "status" && body["spec"]["size"].is_string() {
        body["spec"]["size"] = json!(1);
    }
}

fn name_revision(body: &mut Value, named: Named, known: &Known, side: Side) {
    if let Some(revision) = pick(named, known, side, "resourceVersion") {
        body["metadata"]["resourceVersion"] = revision;
    }
}

fn pick(named: Named, known: &Known, side: Side, field: &str) -> Option<Value> {
    let list = if side == Side::Real { &known.0 } else { &known.1 };
    let object = match named {
        Named::Nothing => None,
        Named::Present => list.last(),
        Named::Old => list.first(),
        Named::Wrong => return Some(json!(if field == "uid" { "wrong" } else { "1" })),
    };
    object.map(|object| object["metadata"][field].clone())
}

fn small_map(random: &mut StdRng, keys: &[&str]) -> Value {
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
