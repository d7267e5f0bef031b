//! How objects of a kind merge: which lists have keys, which are sets, which maps and lists change only as a whole.
//!
//! Invariant: what the table or the CRD's schema does not name merges as Kubernetes does without markers: maps by field,
//! lists as a whole.

use std::collections::BTreeMap;

use serde_json::Value;

/// Where merging is at in an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Node {
    fields: BTreeMap<String, Node>,
    entries: Option<Box<Node>>,
    items: Option<Box<Node>>,
    /// How the value here merges.
    pub(crate) rule: Rule,
    /// The field is there, empty, in every object of the kind: setting what is in it does not add it.
    pub(crate) always: bool,
}

/// How a value merges.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Rule {
    /// Maps by field, lists as a whole.
    #[default]
    Natural,
    /// As a whole.
    Atomic,
    /// A list without duplicates, merged by value.
    Set,
    /// A list of maps, merged by these keys.
    Keyed(Vec<Key>),
}

/// A key of a keyed list, with the value that an item without it has.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) default: Option<Value>,
}

static UNKNOWN: Node = Node { fields: BTreeMap::new(), entries: None, items: None, rule: Rule::Natural, always: false };

impl Node {
    /// The node of a field or map entry.
    pub(crate) fn field(&self, name: &str) -> &Node {
        self.fields.get(name).or(self.entries.as_deref()).unwrap_or(&UNKNOWN)
    }

    /// The node of a list's items.
    pub(crate) fn item(&self) -> &Node {
        self.items.as_deref().unwrap_or(&UNKNOWN)
    }

    /// The schema of a built-in kind.
    pub(crate) fn built_in(kind: &str) -> Node {
        let mut root = Node::default();
        for (_, path, rule) in LISTS.iter().filter(|(of, ..)| *of == "*" || *of == kind) {
            root.at(path).rule = parse_rule(rule);
        }
        for (_, path) in ALWAYS.iter().filter(|(of, _)| *of == "*" || *of == kind) {
            root.at(path).always = true;
        }
        if kind == "Pod" {
            for containers in ["spec.containers[]", "spec.initContainers[]", "spec.ephemeralContainers[]"] {
                for (path, rule) in CONTAINER {
                    root.at(&format!("{containers}.{path}")).rule = parse_rule(rule);
                }
            }
        }
        root
    }

    /// The schema of a custom kind, as its definition states it.
    pub(crate) fn custom(schema: &Value) -> Node {
        let mut root = Node::from_openapi(schema);
        for (_, path, rule) in LISTS.iter().filter(|(of, ..)| *of == "*") {
            root.at(path).rule = parse_rule(rule);
        }
        root.at("metadata").always = true;
        root
    }

    fn from_openapi(schema: &Value) -> Node {
        let mut node = Node::default();
        if let Some(properties) = schema["properties"].as_object() {
            node.fields = properties.iter().map(|(name, value)| (name.clone(), Node::from_openapi(value))).collect();
        }
        if schema["additionalProperties"].is_object() {
            node.entries = Some(Box::new(Node::from_openapi(&schema["additionalProperties"])));
        }
        if schema["items"].is_object() {
            node.items = Some(Box::new(Node::from_openapi(&schema["items"])));
        }
        node.rule = match (schema["x-kubernetes-list-type"].as_str(), schema["x-kubernetes-map-type"].as_str()) {
            (_, Some("atomic")) | (Some("atomic"), _) => Rule::Atomic,
            (Some("set"), _) => Rule::Set,
            (Some("map"), _) => {
                let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
                let key = |name: &str| Key {
                    name: name.to_owned(),
                    default: schema["items"]["properties"][name].get("default").cloned(),
                };
                Rule::Keyed(keys.filter_map(Value::as_str).map(key).collect())
            }
            _ => Rule::Natural,
        };
        node
    }

    /// The node at a path, made where it is absent.
    fn at(&mut self, path: &str) -> &mut Node {
        let mut node = self;
        for part in path.split('.') {
            let (name, lists) = (part.trim_end_matches("[]"), part.matches("[]").count());
            node = node.fields.entry(name.to_owned()).or_default();
            for _ in 0..lists {
                node = &mut **node.items.get_or_insert_default();
            }
        }
        node
    }
}

fn parse_rule(text: &str) -> Rule {
    match text {
        "atomic" => Rule::Atomic,
        "set" => Rule::Set,
        keys => Rule::Keyed(
            keys.split(',')
                .map(|key| Key {
                    name: key.to_owned(),
                    default: (key == "protocol").then(|| Value::String("TCP".to_owned())),
                })
                .collect(),
        ),
    }
}

/// Fields that the Go types of a kind always hold, so that nobody owns their mere presence.
const ALWAYS: &[(&str, &str)] = &[
    ("*", "metadata"),
    ("*", "spec"),
    ("*", "status"),
    ("Pod", "spec.containers"),
    ("EndpointSlice", "endpoints"),
    ("EndpointSlice", "ports"),
    ("NetworkPolicy", "spec.podSelector"),
    ("PersistentVolumeClaim", "spec.resources"),
    ("Service", "status.loadBalancer"),
];

/// Kind (`*` = every), path, and `atomic`, `set` or the keys of the list. As Kubernetes 1.34 publishes them.
const LISTS: &[(&str, &str, &str)] = &[
    ("*", "metadata.finalizers", "set"),
    ("*", "metadata.ownerReferences", "uid"),
    ("*", "metadata.ownerReferences[]", "atomic"),
    ("Pod", "spec.containers", "name"),
    ("Pod", "spec.initContainers", "name"),
    ("Pod", "spec.ephemeralContainers", "name"),
    ("Pod", "spec.volumes", "name"),
    ("Pod", "spec.volumes[].configMap.items", "atomic"),
    ("Pod", "spec.volumes[].secret.items", "atomic"),
    ("Pod", "spec.imagePullSecrets", "name"),
    ("Pod", "spec.imagePullSecrets[]", "atomic"),
    ("Pod", "spec.hostAliases", "ip"),
    ("Pod", "spec.nodeSelector", "atomic"),
    ("Pod", "spec.schedulingGates", "name"),
    ("Pod", "spec.resourceClaims", "name"),
    ("Pod", "spec.topologySpreadConstraints", "topologyKey,whenUnsatisfiable"),
    ("Pod", "spec.topologySpreadConstraints[].labelSelector", "atomic"),
    ("Pod", "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution", "atomic"),
    ("Pod", "status.conditions", "type"),
    ("Pod", "status.podIPs", "ip"),
    ("Service", "spec.ports", "port,protocol"),
    ("Service", "spec.selector", "atomic"),
    ("Service", "status.conditions", "type"),
    ("PersistentVolumeClaim", "spec.selector", "atomic"),
    ("PersistentVolumeClaim", "spec.dataSource", "atomic"),
    ("PersistentVolumeClaim", "status.conditions", "type"),
    ("PersistentVolume", "spec.nodeAffinity.required", "atomic"),
    ("PersistentVolume", "spec.csi.nodePublishSecretRef", "atomic"),
    ("ServiceAccount", "secrets", "name"),
    ("ServiceAccount", "imagePullSecrets", "atomic"),
    ("Node", "spec.podCIDRs", "set"),
    ("Node", "status.addresses", "type"),
    ("Node", "status.conditions", "type"),
    ("Namespace", "status.conditions", "type"),
    ("EndpointSlice", "endpoints[].addresses", "set"),
    ("Event", "involvedObject", "atomic"),
    ("PodDisruptionBudget", "spec.selector", "atomic"),
    ("PodDisruptionBudget", "status.conditions", "type"),
    ("NetworkPolicy", "spec.podSelector", "atomic"),
    ("StorageClass", "mountOptions", "atomic"),
    ("CustomResourceDefinition", "status.conditions", "type"),
];

/// The same below every list of containers.
const CONTAINER: &[(&str, &str)] = &[
    ("ports", "containerPort,protocol"),
    ("env", "name"),
    ("env[].valueFrom.configMapKeyRef", "atomic"),
    ("env[].valueFrom.secretKeyRef", "atomic"),
    ("env[].valueFrom.fieldRef", "atomic"),
    ("env[].valueFrom.resourceFieldRef", "atomic"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
    ("resources.claims", "name"),
];
