//! `DatabaseClass`: a database type, as a list of image versions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A database type: images that follow the Database Image Standard.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "backlot.dev",
    version = "v1alpha1",
    kind = "DatabaseClass",
    plural = "databaseclasses",
    shortname = "dbc",
    category = "backlot",
    status = "DatabaseClassStatus",
    derive = "PartialEq",
    doc = "A database type: a list of images that follow the Database Image Standard. Databases name it in spec.class.",
    printcolumn(name = "Engine", type_ = "string", json_path = ".status.engine"),
    printcolumn(name = "Versions", type_ = "string", json_path = ".status.versionsSummary"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseClassSpec {
    /// Images of this type, newest last. A Database without spec.version takes the last one.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["version".into()]))]
    pub versions: Vec<ClassVersion>,
    /// Names of image pull Secrets: in the operator's namespace for the inspection, in a Database's namespace for its pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<String>,
}

/// One image of a type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClassVersion {
    /// The version as Databases name it, e.g. "15" or "15.18".
    #[schemars(length(min = 1, max = 63))]
    pub version: String,
    /// The image. A tag is resolved once and pinned by digest.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
}

/// What the operator knows about the images of a class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DatabaseClassStatus {
    /// Generation of the spec that this status describes.
    pub observed_generation: Option<i64>,
    /// The engine that the images name.
    pub engine: Option<String>,
    /// Usable versions, for people.
    pub versions_summary: Option<String>,
    /// What inspection found, by version.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<InspectedVersion>,
    /// Ready: at least one version is usable, and every version was inspected.
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// What inspection found in one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InspectedVersion {
    /// The version, as in spec.
    pub version: String,
    /// The image reference that was inspected, as in spec.
    pub image: String,
    /// The reference that members run: name and digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned_image: Option<String>,
    /// The image's manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::any_object")]
    pub manifest: Option<Value>,
    /// Verbs that the image has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<String>,
    /// Why the image cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
