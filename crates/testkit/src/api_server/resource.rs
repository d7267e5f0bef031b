//! The resources that the server knows: one table for the built-in kinds, custom kinds from their definitions.
//!
//! Invariant: how resources differ in behaviour is a field here, not a branch on a kind's name elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::schema::Node;

/// A resource and how the server treats it.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "a row of a table: each is one trait of the resource")]
pub(crate) struct ResourceType {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) kind: String,
    pub(crate) namespaced: bool,
    /// Has the subresource `status`; the main resource then ignores changes of it.
    pub(crate) status: bool,
    /// `metadata.generation` counts changes of the wanted state.
    pub(crate) generation: bool,
    /// PUT without a resourceVersion is allowed.
    pub(crate) unconditional_update: bool,
    /// PUT of an absent object makes it.
    pub(crate) create_on_update: bool,
    /// DELETE answers the object, not a Status.
    pub(crate) returns_deleted: bool,
    /// Field selectors beside `metadata.name` and `metadata.namespace`.
    pub(crate) selectable: Vec<String>,
    /// How objects merge.
    pub(crate) schema: Node,
    /// Custom resources only.
    pub(crate) custom: Option<CustomType>,
}

/// What a `CustomResourceDefinition` says about a version.
#[derive(Clone, Debug)]
pub(crate) struct CustomType {
    pub(crate) openapi: Value,
    pub(crate) scale: Option<ScalePaths>,
}

/// The subresource `scale`: paths as in `.spec.members`.
#[derive(Clone, Debug)]
pub(crate) struct ScalePaths {
    pub(crate) spec: String,
    pub(crate) status: String,
    pub(crate) selector: Option<String>,
}

impl ResourceType {
    /// `group/version`, or `version` for the core group.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `plural.group`, or `plural` for the core group.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    pub(crate) fn details(&self, name: &str) -> Value {
        let mut details = json!({"name": name, "kind": self.plural});
        if !self.group.is_empty() {
            details["group"] = json!(self.group);
        }
        details
    }

    /// The URL path of an object.
    pub(crate) fn path(&self, namespace: &str, name: &str) -> String {
        let root = if self.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}", self.api_version()) };
        let place = if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") };
        format!("{root}{place}/{}/{name}", self.plural)
    }

    /// Every resource that a `CustomResourceDefinition` serves.
    pub(crate) fn from_definition(definition: &Value) -> Vec<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let spec = &definition["spec"];
        let versions = spec["versions"].as_array().into_iter().flatten().filter(|version| version["served"] == true);
        versions
            .map(|version| {
                let openapi = version["schema"]["openAPIV3Schema"].clone();
                let scale = version["subresources"].get("scale").map(|scale| ScalePaths {
                    spec: text(&scale["specReplicasPath"]),
                    status: text(&scale["statusReplicasPath"]),
                    selector: scale["labelSelectorPath"].as_str().map(str::to_owned),
                });
                let selectable = version["selectableFields"].as_array().into_iter().flatten();
                Self {
                    group: text(&spec["group"]),
                    version: text(&version["name"]),
                    plural: text(&spec["names"]["plural"]),
                    kind: text(&spec["names"]["kind"]),
                    namespaced: spec["scope"] == "Namespaced",
                    status: version["subresources"].get("status").is_some(),
                    generation: true,
                    unconditional_update: false,
                    create_on_update: false,
                    returns_deleted: false,
                    selectable: selectable
                        .map(|field| text(&field["jsonPath"]).trim_start_matches('.').to_owned())
                        .collect(),
                    schema: Node::custom(&openapi),
                    custom: Some(CustomType { openapi, scale }),
                }
            })
            .collect()
    }
}

/// Every resource served, by (group, version, plural).
#[derive(Clone, Debug)]
pub(crate) struct Registry(BTreeMap<(String, String, String), Arc<ResourceType>>);

impl Registry {
    /// The built-in resources.
    pub(crate) fn built_in() -> Self {
        let mut registry = Self(BTreeMap::new());
        BUILT_IN.iter().map(Row::resource).for_each(|resource| registry.add(resource));
        registry
    }

    pub(crate) fn add(&mut self, resource: ResourceType) {
        let key = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
        self.0.insert(key, Arc::new(resource));
    }

    pub(crate) fn remove(&mut self, resource: &ResourceType) {
        self.0.remove(&(resource.group.clone(), resource.version.clone(), resource.plural.clone()));
    }

    pub(crate) fn get(&self, group: &str, version: &str, plural: &str) -> Option<Arc<ResourceType>> {
        self.0.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<ResourceType>> {
        self.0.values()
    }
}

/// A line of the table; the flags are: n namespaced, s status, g generation, u unconditional update, c create on update,
/// r delete answers the object.
struct Row(&'static str, &'static str, &'static str, &'static str, &'static str);

impl Row {
    fn resource(&self) -> ResourceType {
        let Self(api_version, plural, kind, flags, selectable) = *self;
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let has = |flag: char| flags.contains(flag);
        ResourceType {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            kind: kind.to_owned(),
            namespaced: has('n'),
            status: has('s'),
            generation: has('g'),
            unconditional_update: has('u'),
            create_on_update: has('c'),
            returns_deleted: has('r'),
            selectable: selectable.split_whitespace().map(str::to_owned).collect(),
            schema: Node::built_in(kind),
            custom: None,
        }
    }
}

const BUILT_IN: &[Row] = &[
    Row("v1", "namespaces", "Namespace", "sur", "status.phase"),
    Row("v1", "nodes", "Node", "su", "spec.unschedulable"),
    Row(
        "v1",
        "pods",
        "Pod",
        "nsgur",
        "spec.nodeName spec.restartPolicy spec.schedulerName spec.serviceAccountName status.phase status.podIP",
    ),
    Row("v1", "persistentvolumeclaims", "PersistentVolumeClaim", "nsur", ""),
    Row("v1", "persistentvolumes", "PersistentVolume", "sur", ""),
    Row("v1", "services", "Service", "nsucr", "spec.clusterIP spec.type"),
    Row("v1", "serviceaccounts", "ServiceAccount", "nur", ""),
    Row("v1", "secrets", "Secret", "nu", "type"),
    Row("v1", "configmaps", "ConfigMap", "nu", ""),
    Row(
        "v1",
        "events",
        "Event",
        "nuc",
        "involvedObject.kind involvedObject.name involvedObject.namespace involvedObject.uid reason type",
    ),
    Row("events.k8s.io/v1", "events", "Event", "nuc", "regarding.kind regarding.name reason type"),
    Row("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", "ngu", ""),
    Row("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", "nsg", ""),
    Row("coordination.k8s.io/v1", "leases", "Lease", "nc", ""),
    Row("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", "ngu", ""),
    Row("storage.k8s.io/v1", "storageclasses", "StorageClass", "ur", ""),
    Row("storage.k8s.io/v1", "volumeattachments", "VolumeAttachment", "sr", ""),
    Row("rbac.authorization.k8s.io/v1", "roles", "Role", "nu", ""),
    Row("rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding", "nu", ""),
    Row("apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition", "sg", ""),
];
