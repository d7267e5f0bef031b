//! The CRDs of the Helm chart are generated from the types; this test fails when they are stale.
//! `UPDATE_GENERATED=1 cargo test -p backlot-api --test generated` writes them.

use std::path::Path;

use backlot_api::{Database, DatabaseClass};
use kube::CustomResourceExt;

fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/chart/crds").join(name);
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        assert!(std::fs::write(&path, text).is_ok(), "cannot write {}", path.display());
    }
    let present = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        present == text,
        "deploy/chart/crds/{name} is stale. Run: UPDATE_GENERATED=1 cargo test -p backlot-api --test generated"
    );
}

#[test]
fn the_charts_crds_are_fresh() {
    check("databases.yaml", &serde_norway::to_string(&Database::crd()).unwrap());
    check("databaseclasses.yaml", &serde_norway::to_string(&DatabaseClass::crd()).unwrap());
}

#[test]
fn a_database_has_fewer_than_sixty_fields() {
    fn count(schema: &serde_json::Value) -> usize {
        let properties = schema["properties"].as_object().into_iter().flatten();
        let nested: usize = properties.map(|(_, property)| 1 + count(property)).sum();
        nested + if schema["items"].is_object() { count(&schema["items"]) } else { 0 }
    }
    let crd = serde_json::to_value(Database::crd()).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    assert!(count(spec) < 60, "{} fields", count(spec));
}
