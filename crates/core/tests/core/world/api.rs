//! The API server's part: writes are carried out with the guards of `crates/operator`, and must keep the laws.

use backlot_api::Database;
use backlot_api::database::DeletionPolicy;
use backlot_api::labels;
use backlot_core::build::{self, Kind, Object, SecretOrder};
use backlot_core::names;
use backlot_core::plan::{Target, Write};
use backlot_core::snapshot::{annotation, belongs_to};
use backlot_standard::request::MemberState;
use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::ResourceExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{NAME, World};

/// JSON merge patch.
pub fn merge(live: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *live = patch.clone();
        return;
    };
    if !live.is_object() {
        *live = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            live.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut live[key], value);
        }
    }
}

fn changed<K: Serialize + DeserializeOwned>(object: &K, patch: &Value, version: u64) -> K {
    let mut value = serde_json::to_value(object).unwrap();
    merge(&mut value, patch);
    value["metadata"]["resourceVersion"] = json!(version.to_string());
    serde_json::from_value(value).unwrap()
}

fn put<K: kube::Resource<DynamicType = ()> + Serialize + DeserializeOwned>(
    list: &mut Vec<K>,
    object: &Object,
    version: u64,
    meta: &ObjectMeta,
    must_be_new: bool,
) {
    let found = list.iter().position(|known| known.meta().name.as_deref() == Some(&object.name));
    match found {
        None => {
            let mut body = object.body.clone();
            assert!(body["metadata"].get("uid").is_none(), "{} is gone", object.name);
            merge(&mut body["metadata"], &serde_json::to_value(meta).unwrap());
            list.push(serde_json::from_value(body).unwrap());
        }
        // A create never overwrites.
        Some(_) if must_be_new => {}
        Some(index) => {
            let live = &list[index].meta();
            let is_same = |ours: &Value, theirs: &Option<String>| ours.is_null() || ours.as_str() == theirs.as_deref();
            let wanted = &object.body["metadata"];
            if is_same(&wanted["uid"], &live.uid) && is_same(&wanted["resourceVersion"], &live.resource_version) {
                list[index] = changed(&list[index], &object.body, version);
            }
        }
    }
}

impl World {
    /// Carries out one write that was decided for `database`.
    pub fn write(&mut self, database: &Database, write: &Write) {
        match write {
            Write::ClusterSecret(order) => self.fill_secret(order),
            Write::Create(object) => self.put(object, true),
            Write::Apply(object) => self.put(object, false),
            Write::Patch { target, patch } => self.patch(target, patch),
            Write::Delete { target, why } => self.delete(database, target, why),
        }
    }

    fn put(&mut self, object: &Object, is_create: bool) {
        self.written.push(format!("{} {:?} {}", if is_create { "create" } else { "apply" }, object.kind, object.name));
        let version = self.next();
        let meta = ObjectMeta {
            uid: Some(format!("uid-{version}")),
            resource_version: Some(version.to_string()),
            creation_timestamp: Some(Time(self.now)),
            ..ObjectMeta::default()
        };
        let objects = &mut self.objects;
        match object.kind {
            Kind::Pod => {
                assert!(is_create, "a pod is never changed");
                let claim = objects.claims.iter().find(|claim| claim.name_any() == object.name);
                let has_left = claim.is_some_and(|claim| annotation(claim, labels::LEFT).is_some());
                assert!(!has_left, "{} gets the volume of a member that left", object.name);
                put(&mut objects.pods, object, version, &meta, is_create);
            }
            Kind::Claim => put(&mut objects.claims, object, version, &meta, is_create),
            Kind::Service => put(&mut objects.services, object, version, &meta, is_create),
            Kind::Budget => put(&mut objects.budgets, object, version, &meta, is_create),
            Kind::Slice => {
                let epoch = |text: &str| text.split('.').map(|n| n.parse().unwrap()).collect::<Vec<u64>>();
                let live = objects.slices.iter().find(|slice| slice.name_any() == object.name);
                if let Some(before) = live.and_then(|slice| annotation(slice, labels::ROUTE_EPOCH)) {
                    let after = object.body["metadata"]["annotations"][labels::ROUTE_EPOCH].as_str().unwrap();
                    assert!(epoch(after) >= epoch(before), "route {} goes back to {after}", object.name);
                }
                put(&mut objects.slices, object, version, &meta, is_create);
            }
            Kind::Secret => {
                let mut list: Vec<_> = objects.binding.take().into_iter().collect();
                put(&mut list, object, version, &meta, is_create);
                objects.binding = list.pop();
            }
            Kind::Volume | Kind::Database => panic!("{:?} is only patched", object.kind),
        }
    }

    fn fill_secret(&mut self, order: &SecretOrder) {
        self.written.push(format!("fill Secret {}", order.name));
        let version = self.next();
        if order.is_new {
            if self.objects.secret.is_some() {
                return;
            }
            let meta = json!({"uid": format!("uid-{version}"), "resourceVersion": version.to_string()});
            let mut body = build::cluster_secret("default", &order.labels, &order.name, &[].into()).body;
            merge(&mut body["metadata"], &meta);
            self.objects.secret = Some(serde_json::from_value(body).unwrap());
        }
        let secret = self.objects.secret.as_mut().unwrap();
        assert!(belongs_to(secret, &order.cluster_uid), "entries for another cluster");
        secret.metadata.resource_version = Some(version.to_string());
        let data = secret.data.get_or_insert_default();
        let certificates = order.members.iter().flat_map(|member| [format!("{member}.crt"), format!("{member}.key")]);
        for key in certificates.chain(order.passwords.keys().map(|name| format!("secret.{name}"))) {
            data.entry(key).or_insert_with(|| ByteString(format!("value-{version}").into_bytes()));
        }
    }

    fn patch(&mut self, target: &Target, patch: &Value) {
        self.written.push(format!("patch {:?} {}", target.kind, target.name));
        let version = self.next();
        let is_same = |meta: &ObjectMeta| {
            meta.uid.as_ref() == Some(&target.uid) && meta.resource_version.as_ref() == Some(&target.resource_version)
        };
        let objects = &mut self.objects;
        match target.kind {
            Kind::Claim => {
                if let Some(live) = objects.claims.iter_mut().find(|claim| is_same(&claim.metadata)) {
                    *live = changed(live, patch, version);
                }
            }
            Kind::Volume => {
                if let Some(live) = objects.volumes.values_mut().find(|volume| is_same(&volume.metadata)) {
                    *live = changed(live, patch, version);
                }
            }
            Kind::Secret => {
                if let Some(live) = objects.secret.as_mut().filter(|secret| is_same(&secret.metadata)) {
                    *live = changed(live, patch, version);
                }
            }
            Kind::Database => {
                let status = self.database.status.clone();
                if is_same(&self.database.metadata) {
                    self.database = changed(&self.database, patch, version);
                    self.database.status = status;
                }
            }
            Kind::Pod | Kind::Service | Kind::Slice | Kind::Budget => panic!("{:?} is never patched", target.kind),
        }
    }

    fn delete(&mut self, database: &Database, target: &Target, why: &str) {
        let live = &self.database.metadata;
        if live.uid != database.metadata.uid || live.resource_version != database.metadata.resource_version {
            return;
        }
        self.written.push(format!("delete {:?} {}: {why}", target.kind, target.name));
        let now = Time(self.now);
        match target.kind {
            Kind::Pod => {
                let index = self.objects.pods.iter().position(|pod| pod.metadata.uid.as_ref() == Some(&target.uid));
                let Some(index) = index else { return };
                self.check_pod_delete(&target.name);
                self.objects.pods[index].metadata.deletion_timestamp.get_or_insert(now);
            }
            Kind::Claim => {
                let claims = &self.objects.claims;
                let index = claims.iter().position(|claim| claim.metadata.uid.as_ref() == Some(&target.uid));
                let Some(index) = index else { return };
                self.check_claim_delete(&target.name);
                self.objects.claims[index].metadata.deletion_timestamp.get_or_insert(now);
            }
            Kind::Secret => {
                assert!(self.is_deleted_with_volumes(), "the Secret goes while the Database stays");
                assert!(self.objects.claims.is_empty(), "the Secret goes before the volumes");
                self.objects.secret = None;
            }
            Kind::Volume | Kind::Service | Kind::Slice | Kind::Budget | Kind::Database => {
                panic!("{:?} is never deleted", target.kind)
            }
        }
    }

    fn is_deleted_with_volumes(&self) -> bool {
        let is_deleting = self.database.metadata.deletion_timestamp.is_some();
        is_deleting && self.database.spec.deletion_policy == DeletionPolicy::Delete
    }

    /// The member that a claim or pod is of, by its name.
    fn record_state(&self, member: &str) -> Option<MemberState> {
        let groups = self.database.status.iter().flat_map(|status| &status.groups);
        groups.flat_map(|group| &group.members).find(|known| known.name == member).map(|known| known.state)
    }

    fn check_pod_delete(&self, name: &str) {
        let pod = self.objects.pod(name).unwrap();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if self.is_deleted_with_volumes() || matches!(phase, Some("Failed" | "Succeeded")) {
            return;
        }
        assert_eq!(
            self.record_state(name),
            Some(MemberState::Left),
            "pod {name} goes without proof that its member left"
        );
        assert!(!self.engine.members.contains(name), "pod {name} goes, but the engine counts on it");
    }

    fn check_claim_delete(&self, name: &str) {
        assert_eq!(self.database.spec.deletion_policy, DeletionPolicy::Delete, "claim {name} goes against the policy");
        if self.is_deleted_with_volumes() {
            return;
        }
        let member = name.trim_end_matches("-log");
        assert_eq!(self.record_state(member), Some(MemberState::Left), "claim {name} goes without proof");
        assert!(!self.engine.members.contains(member), "claim {name} goes, but the engine counts on it");
        assert!(self.objects.pod(member).is_none(), "claim {name} goes before its pod");
    }

    /// A user deletes the Database; what it owns is collected, volumes and the cluster's Secret have no owner.
    pub fn delete_database(&mut self) {
        self.database.metadata.deletion_timestamp = Some(Time(self.now));
        self.touch_database();
    }

    /// Whether the Database is gone; what it owned then goes too.
    pub fn collect_garbage(&mut self) -> bool {
        if self.database.metadata.deletion_timestamp.is_none() || !self.database.finalizers().is_empty() {
            return false;
        }
        self.objects.services.clear();
        self.objects.slices.clear();
        self.objects.budgets.clear();
        self.objects.binding = None;
        let names: Vec<_> = self.objects.pods.iter().map(ResourceExt::name_any).collect();
        for name in names {
            self.remove_pod(&name);
        }
        assert_eq!(names::cluster_secret(NAME), "orders-cluster");
        true
    }
}
