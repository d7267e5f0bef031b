//! Sets of fields, as `metadata.managedFields` records them: which manager owns what.
//!
//! A path is a list of elements in their stored form: `f:name`, `k:{"key":value}` for an item of a keyed list, `v:value` for
//! an item of a set. Invariant: encoding and decoding are inverse.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::schema::{Key, Node, Rule};

/// A field's place in an object.
pub(crate) type Path = Vec<String>;

/// A set of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldSet(pub(crate) BTreeSet<Path>);

/// What differs between two objects.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    pub(crate) added: FieldSet,
    pub(crate) modified: FieldSet,
    pub(crate) removed: FieldSet,
}

impl FieldSet {
    /// Every field that `value` sets.
    pub(crate) fn of(node: &Node, value: &Value) -> Self {
        let mut set = Self::default();
        set.collect(node, value, &mut vec![]);
        set
    }

    fn collect(&mut self, node: &Node, value: &Value, path: &mut Path) {
        match (value, &node.rule) {
            (Value::Object(map), Rule::Natural) if !map.is_empty() || path.is_empty() => {
                for (name, value) in map {
                    path.push(format!("f:{name}"));
                    self.collect(node.field(name), value, path);
                    path.pop();
                }
            }
            (Value::Array(items), Rule::Keyed(_) | Rule::Set) if !items.is_empty() => {
                for item in items {
                    path.push(item_element(&node.rule, item));
                    self.0.insert(path.clone());
                    if matches!(node.rule, Rule::Keyed(_)) {
                        self.collect(node.item(), item, path);
                    }
                    path.pop();
                }
            }
            (Value::Array(_), Rule::Keyed(_) | Rule::Set) => {}
            _ => {
                self.0.insert(path.clone());
            }
        }
    }

    /// Whether the set holds a field below `path`.
    pub(crate) fn has_below(&self, path: &[String]) -> bool {
        let mut following = self.0.range(path.to_vec()..).filter(|other| other.len() != path.len());
        following.next().is_some_and(|other| other.starts_with(path))
    }

    /// Removes the fields of `other`.
    pub(crate) fn subtract(&mut self, other: &FieldSet) {
        self.0.retain(|path| !other.0.contains(path));
    }

    /// The stored form.
    pub(crate) fn encode(&self) -> Value {
        let mut root = Map::new();
        for path in &self.0 {
            insert(&mut root, path);
        }
        simplify(Value::Object(root))
    }

    /// From the stored form.
    pub(crate) fn decode(stored: &Value) -> Self {
        let mut set = Self::default();
        set.read(stored, &mut vec![]);
        set
    }

    fn read(&mut self, stored: &Value, path: &mut Path) {
        let Some(map) = stored.as_object() else { return };
        if map.is_empty() && !path.is_empty() {
            self.0.insert(path.clone());
        }
        for (element, below) in map {
            if element == "." {
                self.0.insert(path.clone());
            } else {
                path.push(element.clone());
                self.read(below, path);
                path.pop();
            }
        }
    }
}

fn insert(node: &mut Map<String, Value>, path: &[String]) {
    let empty = || Value::Object(Map::new());
    match path.split_first() {
        None => drop(node.insert(".".to_owned(), empty())),
        Some((element, below)) => {
            if let Value::Object(next) = node.entry(element.clone()).or_insert_with(empty) {
                insert(next, below);
            }
        }
    }
}

/// A field that is a member and has nothing below it is stored as `{}` instead of `{".":{}}`.
fn simplify(value: Value) -> Value {
    let Value::Object(map) = value else { return value };
    if map.len() == 1 && map.contains_key(".") {
        return Value::Object(Map::new());
    }
    Value::Object(
        map.into_iter()
            .map(|(name, below)| if name == "." { (name, below) } else { (name, simplify(below)) })
            .collect(),
    )
}

/// The element of an item in a keyed list or a set.
pub(crate) fn item_element(rule: &Rule, item: &Value) -> String {
    match rule {
        Rule::Keyed(keys) => format!("k:{}", Value::Object(item_key(keys, item))),
        Rule::Set | Rule::Natural | Rule::Atomic => format!("v:{item}"),
    }
}

fn item_key(keys: &[Key], item: &Value) -> Map<String, Value> {
    let value = |key: &Key| item.get(&key.name).cloned().or_else(|| key.default.clone());
    keys.iter().filter_map(|key| Some((key.name.clone(), value(key)?))).collect()
}

impl Difference {
    /// What changes from `old` to `new`.
    pub(crate) fn between(node: &Node, old: &Value, new: &Value) -> Self {
        let mut difference = Self::default();
        difference.walk(node, Some(old), Some(new), &mut vec![]);
        difference
    }

    /// Whether nothing differs.
    pub(crate) fn is_empty(&self) -> bool {
        self.added.0.is_empty() && self.modified.0.is_empty() && self.removed.0.is_empty()
    }

    fn walk(&mut self, node: &Node, old: Option<&Value>, new: Option<&Value>, path: &mut Path) {
        let maps = |value: Option<&Value>| value.is_none_or(Value::is_object);
        let lists = |value: Option<&Value>| value.is_none_or(Value::is_array);
        let filled = |value: Option<&Value>| match value {
            Some(Value::Object(map)) => !map.is_empty(),
            Some(Value::Array(list)) => !list.is_empty(),
            _ => false,
        };
        let inner = filled(old) || filled(new);
        let empty = if new.is_some_and(Value::is_array) { json!([]) } else { json!({}) };
        let old = old.or(node.always.then_some(&empty));
        if inner && !path.is_empty() && !matches!(node.rule, Rule::Atomic) {
            match (old, new) {
                (None, Some(value)) if filled(Some(value)) => drop(self.added.0.insert(path.clone())),
                (Some(_), None) => drop(self.removed.0.insert(path.clone())),
                _ => {}
            }
        }
        match &node.rule {
            Rule::Natural if inner && maps(old) && maps(new) => self.walk_maps(node, old, new, path),
            Rule::Keyed(_) | Rule::Set if inner && lists(old) && lists(new) => self.walk_lists(node, old, new, path),
            _ => self.leaf(old, new, path),
        }
    }

    fn walk_maps(&mut self, node: &Node, old: Option<&Value>, new: Option<&Value>, path: &mut Path) {
        let map = |value: Option<&Value>| value.and_then(Value::as_object).cloned().unwrap_or_default();
        let (old, new) = (map(old), map(new));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            path.push(format!("f:{name}"));
            self.walk(node.field(name), old.get(name), new.get(name), path);
            path.pop();
        }
    }

    fn walk_lists(&mut self, node: &Node, old: Option<&Value>, new: Option<&Value>, path: &mut Path) {
        let items = |value: Option<&Value>| -> Vec<(String, Value)> {
            let list = value.and_then(Value::as_array).into_iter().flatten();
            list.map(|item| (item_element(&node.rule, item), item.clone())).collect()
        };
        let (old, new) = (items(old), items(new));
        let names: BTreeSet<&String> = old.iter().chain(&new).map(|(name, _)| name).collect();
        let find = |list: &[(String, Value)], name: &str| {
            list.iter().find(|(other, _)| other == name).map(|(_, item)| item.clone())
        };
        for name in names {
            let (before, after) = (find(&old, name), find(&new, name));
            path.push(name.clone());
            match (&before, &after) {
                (None, Some(_)) => drop(self.added.0.insert(path.clone())),
                (Some(_), None) => drop(self.removed.0.insert(path.clone())),
                _ => {}
            }
            if matches!(node.rule, Rule::Keyed(_)) {
                self.walk(node.item(), before.as_ref(), after.as_ref(), path);
            }
            path.pop();
        }
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>, path: &[String]) {
        let set = match (old, new) {
            (None, Some(_)) => &mut self.added,
            (Some(_), None) => &mut self.removed,
            (Some(before), Some(after)) if before != after => &mut self.modified,
            _ => return,
        };
        set.0.insert(path.to_vec());
    }
}

/// The path as people read it in conflicts: `.spec.ports[port=80,protocol="TCP"].name`.
pub(crate) fn describe(path: &[String]) -> String {
    path.iter().map(|element| describe_element(element)).collect()
}

fn describe_element(element: &str) -> String {
    let (form, rest) = element.split_at(2);
    match (form, serde_json::from_str::<Value>(rest)) {
        ("k:", Ok(Value::Object(keys))) => {
            let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        ("v:", Ok(value)) => format!("[={value}]"),
        _ => format!(".{rest}"),
    }
}
