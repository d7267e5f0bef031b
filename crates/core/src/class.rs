//! Decisions about a DatabaseClass: which images to inspect, what an inspection means, which version a Database gets.

use backlot_api::database_class::{ClassVersion, DatabaseClassStatus, InspectedVersion};
use backlot_api::{Database, DatabaseClass};
use backlot_standard::manifest::Manifest;
use backlot_standard::verb::Verb;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::Value;

use crate::snapshot::{ImageFacts, UsableImage};

/// Versions whose image was not inspected yet, or only under another reference.
pub fn to_inspect(class: &DatabaseClass) -> Vec<ClassVersion> {
    let inspected = |version: &ClassVersion| {
        class
            .status
            .iter()
            .flat_map(|status| &status.versions)
            .any(|known| known.version == version.version && known.image == version.image)
    };
    class.spec.versions.iter().filter(|version| !inspected(version)).cloned().collect()
}

/// What an image's answer means: its manifest, or why the image cannot be used.
pub fn judge(version: &ClassVersion, pinned_image: String, manifest: Value, verbs: Vec<String>) -> InspectedVersion {
    let standard = manifest.get("standard").and_then(Value::as_str).unwrap_or_default().to_owned();
    let error = if backlot_standard::supports(&standard) {
        match serde_json::from_value::<Manifest>(manifest.clone()) {
            Err(error) => Some(format!("its manifest is not valid: {error}")),
            Ok(manifest) => first_problem(&manifest, &verbs),
        }
    } else {
        let ours = backlot_standard::STANDARD;
        Some(format!(
            "standard `{standard}` needed, this operator speaks {ours}. Upgrade the operator, or use an image for {ours}"
        ))
    };
    let is_usable = error.is_none();
    InspectedVersion {
        version: version.version.clone(),
        image: version.image.clone(),
        pinned_image: Some(pinned_image),
        manifest: is_usable.then_some(manifest),
        verbs: if is_usable { verbs } else { vec![] },
        error,
    }
}

fn first_problem(manifest: &Manifest, verbs: &[String]) -> Option<String> {
    let problems: Vec<_> = manifest.check().iter().map(ToString::to_string).collect();
    if !problems.is_empty() {
        return Some(format!("its manifest breaks the standard: {}", problems.join("; ")));
    }
    let missing: Vec<_> = [Verb::Render, Verb::Health, Verb::Role]
        .iter()
        .map(|verb| verb.name())
        .filter(|verb| !verbs.iter().any(|known| known == verb))
        .collect();
    (!missing.is_empty())
        .then(|| format!("/db/verbs lacks {}; every image must have render, health and role", missing.join(", ")))
}

/// What is known of the image that a Database names.
pub fn image_of(database: &Database, class: Option<&DatabaseClass>) -> ImageFacts {
    let wanted = &database.spec.class;
    let refused = |reason, message| ImageFacts::Refused { reason, message };
    let Some(class) = class else {
        return refused(
            "ClassNotFound",
            format!("spec.class: there is no DatabaseClass {wanted}. List them: kubectl get databaseclasses"),
        );
    };
    let versions = &class.spec.versions;
    // An unnamed version stays what it was chosen to be; a class that learns a newer one upgrades nobody.
    let chosen =
        database.spec.version.as_ref().or(database.status.as_ref().and_then(|status| status.class_version.as_ref()));
    let version = match chosen {
        Some(chosen) => versions.iter().find(|version| version.version == *chosen),
        None => versions.last(),
    };
    let Some(version) = version else {
        let known: Vec<_> = versions.iter().map(|version| version.version.as_str()).collect();
        let chosen = chosen.cloned().unwrap_or_default();
        return refused(
            "VersionNotFound",
            format!("spec.version: {wanted} has no version {chosen}; it has {}", known.join(", ")),
        );
    };
    if let Some(running) = running_image(database, Some(class)).filter(|known| known.class_version == version.version) {
        return ImageFacts::Usable(Box::new(running));
    }
    let mut known = class.status.iter().flat_map(|status| &status.versions);
    let Some(inspected) = known.find(|known| known.version == version.version && known.image == version.image) else {
        return refused("ImageNotInspected", format!("image {} is being inspected", version.image));
    };
    if let Some(error) = &inspected.error {
        return refused("ImageRefused", format!("image {} refused: {error}", version.image));
    }
    match usable(inspected, class) {
        Some(image) => ImageFacts::Usable(Box::new(image)),
        None => refused("ImageNotInspected", format!("image {} is to be inspected again", version.image)),
    }
}

/// The image that a Database's members run, whatever its spec or its class name now: another image is an upgrade.
pub fn running_image(database: &Database, class: Option<&DatabaseClass>) -> Option<UsableImage> {
    let (status, class) = (database.status.as_ref()?, class?);
    let mut known = class.status.iter().flat_map(|status| &status.versions);
    let running = known.find(|known| {
        known.error.is_none()
            && known.pinned_image.is_some()
            && known.pinned_image == status.image
            && Some(&known.version) == status.class_version.as_ref()
    })?;
    usable(running, class)
}

fn usable(inspected: &InspectedVersion, class: &DatabaseClass) -> Option<UsableImage> {
    Some(UsableImage {
        class_version: inspected.version.clone(),
        pinned: inspected.pinned_image.clone()?,
        manifest: serde_json::from_value(inspected.manifest.clone()?).ok()?,
        verbs: inspected.verbs.iter().filter_map(|verb| Verb::from_name(verb)).collect(),
        pull_secrets: class.spec.image_pull_secrets.clone(),
    })
}

/// Images that a class named before and whose manifests are kept.
const FORMER_IMAGES: usize = 16;

/// Status of a class from what inspections found; `pending` tells why others are not done.
pub fn class_status(
    class: &DatabaseClass,
    versions: Vec<InspectedVersion>,
    pending: &[String],
    now: Timestamp,
) -> DatabaseClassStatus {
    let is_listed = |known: &InspectedVersion| {
        class.spec.versions.iter().any(|version| version.version == known.version && version.image == known.image)
    };
    // Manifests of images that were listed before stay, for the Databases that run them.
    let (listed, mut former): (Vec<_>, Vec<_>) = versions.into_iter().partition(&is_listed);
    former
        .retain(|known| known.error.is_none() && !listed.iter().any(|other| other.pinned_image == known.pinned_image));
    former.drain(..former.len().saturating_sub(FORMER_IMAGES));
    let usable: Vec<_> = listed.iter().filter(|version| version.error.is_none()).collect();
    let errors: Vec<_> =
        listed.iter().filter_map(|version| Some(format!("{}: {}", version.version, version.error.as_ref()?))).collect();
    let is_ready = !usable.is_empty() && pending.is_empty() && errors.is_empty();
    let (reason, message) = match (pending.first(), errors.first(), usable.is_empty()) {
        (Some(first), _, _) => ("Inspecting", first.clone()),
        (None, Some(_), _) => ("ImageRefused", errors.join("; ")),
        (None, None, true) => ("NoVersions", "no version is usable".to_owned()),
        (None, None, false) => ("Inspected", format!("{} versions are usable", usable.len())),
    };
    let engine =
        usable.iter().find_map(|version| version.manifest.as_ref()?.get("engine")?.as_str().map(ToOwned::to_owned));
    let summary: Vec<_> = usable.iter().map(|version| version.version.clone()).collect();
    let status = if is_ready { "True" } else { "False" };
    let previous = class.status.as_ref().and_then(|known| {
        known.conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == status)
    });
    DatabaseClassStatus {
        observed_generation: class.metadata.generation,
        engine,
        versions_summary: Some(summary.join(", ")),
        versions: former.into_iter().chain(listed.clone()).collect(),
        conditions: vec![Condition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: class.metadata.generation,
            last_transition_time: previous
                .map_or_else(|| Time(now), |condition| condition.last_transition_time.clone()),
        }],
    }
}

/// What it means that an image has no readable manifest.
pub fn refused(version: &ClassVersion, error: String) -> InspectedVersion {
    InspectedVersion {
        version: version.version.clone(),
        image: version.image.clone(),
        pinned_image: None,
        manifest: None,
        verbs: vec![],
        error: Some(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backlot_api::{DatabaseClassSpec, DatabaseSpec};
    use serde_json::json;

    fn inspected(image: &str, digest: &str) -> InspectedVersion {
        let manifest = json!({
            "standard": "0.1", "engine": "acme", "version": "1.0",
            "ports": [{"name": "client", "port": 80, "purpose": "client"}],
            "volumes": [{"name": "data", "path": "/data"}],
            "binding": {"type": "acme", "port": "client", "uri": ""},
        });
        let version = ClassVersion { version: "1".into(), image: image.into() };
        let verbs = ["render", "health", "role"].map(ToOwned::to_owned).to_vec();
        judge(&version, format!("acme@sha256:{digest}"), manifest, verbs)
    }

    fn class(image: &str) -> DatabaseClass {
        let versions = vec![ClassVersion { version: "1".into(), image: image.into() }];
        DatabaseClass::new("acme", DatabaseClassSpec { versions, image_pull_secrets: vec![] })
    }

    #[test]
    fn a_database_keeps_the_image_that_it_runs_when_its_class_names_another() {
        let mut class = class("acme:new");
        let both = vec![inspected("acme:old", "aa"), inspected("acme:new", "bb")];
        class.status = Some(class_status(&class, both, &[], Timestamp::UNIX_EPOCH));
        let spec: DatabaseSpec = serde_json::from_value(json!({"class": "acme"})).unwrap();
        let mut database = Database::new("db", spec);
        let pinned = |database: &Database| match image_of(database, Some(&class)) {
            ImageFacts::Usable(image) => image.pinned,
            ImageFacts::Refused { message, .. } => message,
        };
        assert_eq!(pinned(&database), "acme@sha256:bb");
        let status = backlot_api::DatabaseStatus {
            class_version: Some("1".into()),
            image: Some("acme@sha256:aa".into()),
            ..Default::default()
        };
        database.status = Some(status);
        assert_eq!(pinned(&database), "acme@sha256:aa");
        assert_eq!(class.status.as_ref().unwrap().versions_summary.as_deref(), Some("1"));
    }
}
