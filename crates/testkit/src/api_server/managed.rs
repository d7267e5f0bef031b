//! Field ownership: `metadata.managedFields`, conflicts, and what an apply removes.
//!
//! Invariant: after every write each field set belongs to the managers that set its present value, and to nobody else.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::fields::{Difference, FieldSet, describe};
use super::merge;
use super::schema::Node;

/// Who owns which fields of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Managers(BTreeMap<Manager, Owned>);

/// An entry's identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manager {
    /// `Apply` or `Update`.
    pub(crate) operation: &'static str,
    pub(crate) name: String,
    pub(crate) subresource: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Owned {
    fields: FieldSet,
    time: String,
    api_version: String,
}

/// A field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldConflict {
    pub(crate) manager: String,
    pub(crate) field: String,
}

/// Fields of every object that nobody owns.
const UNOWNED: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "managedFields",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

/// The part of an object that has owners.
pub(crate) fn owned_part(object: &Value) -> Value {
    let mut part = object.clone();
    if let Some(map) = part.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
        if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|name, _| !UNOWNED.contains(&name.as_str()));
            if metadata.is_empty() {
                map.remove("metadata");
            }
        }
    }
    part
}

impl Managers {
    /// From an object's metadata.
    pub(crate) fn of(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
        let entry = |entry: &Value| {
            let operation = if entry["operation"] == "Apply" { "Apply" } else { "Update" };
            let manager =
                Manager { operation, name: text(&entry["manager"]), subresource: text(&entry["subresource"]) };
            let fields = FieldSet::decode(&entry["fieldsV1"]);
            (manager, Owned { fields, time: text(&entry["time"]), api_version: text(&entry["apiVersion"]) })
        };
        Self(entries.map(entry).collect())
    }

    /// Into an object's metadata.
    pub(crate) fn write(&self, object: &mut Value) {
        let entry = |(manager, owned): (&Manager, &Owned)| {
            let mut entry = json!({
                "manager": manager.name,
                "operation": manager.operation,
                "apiVersion": owned.api_version,
                "time": owned.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": owned.fields.encode(),
            });
            if !manager.subresource.is_empty() {
                entry["subresource"] = json!(manager.subresource);
            }
            entry
        };
        let entries: Vec<Value> = self.0.iter().map(entry).collect();
        if entries.is_empty() {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.remove("managedFields");
            }
        } else {
            object["metadata"]["managedFields"] = Value::Array(entries);
        }
    }

    /// Whether any manager owns a field.
    pub(crate) fn own(&self, path: &[String]) -> bool {
        self.0.values().any(|owned| owned.fields.0.contains(path))
    }

    /// Whether the same managers own the same fields, whenever they set them.
    pub(crate) fn owns_the_same(&self, other: &Self) -> bool {
        let fields = |managers: &Self| -> Vec<(Manager, FieldSet)> {
            managers.0.iter().map(|(manager, owned)| (manager.clone(), owned.fields.clone())).collect()
        };
        fields(self) == fields(other)
    }

    /// Records that `manager` changed `old` into `new`.
    pub(crate) fn track_update(&mut self, node: &Node, old: &Value, new: &Value, manager: &Manager, stamp: &Stamp) {
        let difference = Difference::between(node, &owned_part(old), &owned_part(new));
        // What nobody owns is recorded again only by the next apply.
        let unowned = self.0.is_empty() && old["metadata"]["uid"].is_string();
        if difference.is_empty() || unowned {
            return;
        }
        for (other, owned) in &mut self.0 {
            owned.fields.subtract(&difference.removed);
            if other != manager {
                owned.fields.subtract(&difference.modified);
                owned.fields.subtract(&difference.added);
            }
        }
        let mut gained = difference.modified.0;
        gained.extend(difference.added.0);
        if !gained.is_empty() {
            let owned = self.0.entry(manager.clone()).or_insert_with(|| stamp.owned());
            owned.fields.0.extend(gained);
            owned.time.clone_from(&stamp.time);
        }
        self.0.retain(|_, owned| !owned.fields.0.is_empty());
    }

    /// Lays `config` over `live` for `manager`; the managers' sets are updated. Other managers' fields with other values are
    /// conflicts, unless `force`.
    pub(crate) fn apply(
        &mut self,
        node: &Node,
        live: &Value,
        config: &Value,
        manager: &Manager,
        stamp: &Stamp,
        force: bool,
    ) -> Result<Value, Vec<FieldConflict>> {
        if self.0.is_empty() && live["metadata"]["uid"].is_string() {
            // Fields of an object that nobody owns are taken for somebody's.
            let name = "before-first-apply".to_owned();
            let nobody = Manager { operation: "Update", name, subresource: String::new() };
            self.0.insert(nobody, Owned { fields: FieldSet::of(node, &owned_part(live)), ..stamp.owned() });
        }
        let fields = FieldSet::of(node, &owned_part(config));
        let merged = merge::structured(node, live, config);
        let difference = Difference::between(node, &owned_part(live), &owned_part(&merged));
        let mut conflicts = vec![];
        for (other, owned) in self.0.iter_mut().filter(|(other, _)| *other != manager) {
            let changed =
                |path: &&Vec<String>| difference.modified.0.contains(*path) || difference.added.0.contains(*path);
            let contested: FieldSet = FieldSet(owned.fields.0.iter().filter(changed).cloned().collect());
            conflicts.extend(contested.0.iter().map(|path| FieldConflict {
                manager: other.describe(&owned.api_version, &owned.time),
                field: describe(path),
            }));
            if force {
                owned.fields.subtract(&contested);
            }
        }
        if !force && !conflicts.is_empty() {
            return Err(conflicts);
        }
        let previous = self.0.remove(manager);
        if !fields.0.is_empty() {
            let owned = match &previous {
                Some(previous) if previous.fields == fields => previous.clone(),
                _ => Owned { fields, ..stamp.owned() },
            };
            self.0.insert(manager.clone(), owned);
        }
        self.0.retain(|_, owned| !owned.fields.0.is_empty());
        Ok(self.without_given_up(node, merged, &previous.map(|owned| owned.fields).unwrap_or_default()))
    }

    /// `merged` without the fields of `previous` that nobody owns any more.
    fn without_given_up(&self, node: &Node, mut merged: Value, previous: &FieldSet) -> Value {
        let owned_by_somebody = |path: &[String]| {
            self.0.values().any(|owned| owned.fields.0.contains(path) || owned.fields.has_below(path))
        };
        // With the last owned field of a map the map itself goes, and with it what nobody owned there.
        let with_parents: BTreeSet<&[String]> =
            previous.0.iter().flat_map(|path| (1..=path.len()).map(|length| &path[..length])).collect();
        for path in with_parents.into_iter().filter(|path| !owned_by_somebody(path)) {
            merge::remove(node, &mut merged, path, &|path| self.own(path));
        }
        merged
    }
}

/// When and in which version a manager set fields.
#[derive(Clone, Debug)]
pub(crate) struct Stamp {
    pub(crate) time: String,
    pub(crate) api_version: String,
}

impl Stamp {
    fn owned(&self) -> Owned {
        Owned { fields: FieldSet::default(), time: self.time.clone(), api_version: self.api_version.clone() }
    }
}

impl Manager {
    fn describe(&self, api_version: &str, time: &str) -> String {
        let place = match self.subresource.as_str() {
            "" => String::new(),
            subresource => format!(" with subresource {subresource:?}"),
        };
        let when = match self.operation {
            "Update" => format!(" using {api_version} at {time}"),
            _ => String::new(),
        };
        format!("{:?}{place}{when}", self.name)
    }
}
