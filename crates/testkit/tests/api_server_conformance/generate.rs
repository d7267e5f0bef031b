//! Random requests from a small vocabulary, so that they meet each other often: few names, few fields, few values.
//!
//! Invariant: a sequence depends on its seed only. UIDs and revisions differ between servers; a request names them by what it
//! wants of them (the present one, an old one, a wrong one) and each server gets its own.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use super::kinds::{KINDS, small_map};

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
        let mut body = self.object(index, &name);
        if subresource == "status" {
            // Metadata that is applied with a status is owned and not stored, until some later write stores what is left.
            body["metadata"] = json!({ "name": name });
        }
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
