//! Discovery: which groups, versions and resources the server has.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::resource::{Registry, ResourceType};

/// The document at a discovery path, if it is one.
pub(super) fn answer(registry: &Registry, path: &str) -> Option<Value> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    match segments.as_slice() {
        ["version"] => Some(json!({
            "major": "1", "minor": "34", "gitVersion": "v1.34.4", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "2026-01-01T00:00:00Z", "goVersion": "go1.26", "compiler": "gc", "platform": "linux/amd64",
        })),
        ["readyz" | "livez"] => Some(json!("ok")),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["apis"] => Some(groups(registry)),
        ["api", "v1"] => resources(registry, "", "v1"),
        ["apis", group, version] => resources(registry, group, version),
        _ => None,
    }
}

fn groups(registry: &Registry) -> Value {
    let pairs: BTreeSet<(&str, &str)> = registry
        .all()
        .filter(|resource| !resource.group.is_empty())
        .map(|resource| (resource.group.as_str(), resource.version.as_str()))
        .collect();
    let names: BTreeSet<&str> = pairs.iter().map(|(group, _)| *group).collect();
    let groups: Vec<Value> = names
        .into_iter()
        .map(|name| {
            let versions: Vec<Value> = pairs
                .iter()
                .filter(|(group, _)| *group == name)
                .map(|(group, version)| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
                .collect();
            json!({"name": name, "preferredVersion": versions[0], "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let resources: Vec<Value> = registry
        .all()
        .filter(|resource| resource.group == group && resource.version == version)
        .flat_map(|resource| described(resource))
        .collect();
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!resources.is_empty()).then(|| {
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
    })
}

fn described(resource: &ResourceType) -> Vec<Value> {
    let describe = |name: String| {
        json!({
            "name": name,
            "singularName": resource.kind.to_lowercase(),
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        })
    };
    let mut all = vec![describe(resource.plural.clone())];
    if resource.status {
        all.push(describe(format!("{}/status", resource.plural)));
    }
    all
}
