//! Generated files of the standard are fresh: the JSON Schemas, and the table of verbs in the specification.
//!
//! `UPDATE_GENERATED=1 cargo test -p backlot-standard --test generated` writes them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use backlot_standard::STANDARD;
use backlot_standard::manifest::Manifest;
use backlot_standard::request::Request;
use backlot_standard::result::{
    CanDisruptOutput, Exit, HealthOutput, JoinOutput, MembershipOutput, PrepareOutput, ReconfigureOutput, RenderOutput,
    RoleOutput, VerbResult,
};
use backlot_standard::verb::Verb;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

const OPEN: &str = "<!-- generated: verbs (UPDATE_GENERATED=1 cargo test -p backlot-standard --test generated) -->\n";
const CLOSE: &str = "<!-- end generated -->";

/// Verbs that the specification defines and 0.1 callers do not call yet.
const RESERVED: &[Verb] = &[
    Verb::Switchover,
    Verb::Fence,
    Verb::Acks,
    Verb::Salvage,
    Verb::Account,
    Verb::RotateSecret,
    Verb::Recover,
    Verb::Maintain,
    Verb::Backup,
    Verb::Restore,
    Verb::Verify,
    Verb::UpgradePlan,
    Verb::UpgradeStep,
];

fn standard_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../standard")
}

fn write_or_compare(path: &Path, fresh: &str) {
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, fresh).unwrap();
        return;
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == fresh,
        "{} is stale. Run: UPDATE_GENERATED=1 cargo test -p backlot-standard --test generated",
        path.display()
    );
}

fn schema<T: JsonSchema>(name: &str, title: &str, add: impl Fn(&mut SchemaGenerator)) -> Schema {
    // Schemas describe what an author writes: fields with a default are optional.
    let mut generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    add(&mut generator);
    let mut schema = generator.into_root_schema_for::<T>();
    schema.insert("$id".to_owned(), json!(format!("urn:backlot:standard:{STANDARD}:{name}")));
    schema.insert("title".to_owned(), json!(title));
    schema
}

fn text(schema: &Schema) -> String {
    serde_json::to_string_pretty(schema).unwrap() + "\n"
}

#[test]
fn the_manifest_schema_is_fresh() {
    let mut schema = schema::<Manifest>("manifest", "Manifest of a database image", |_| ());
    // A map's keys have no place in the derived schema, but an editor should complete and check them.
    let names: Vec<&str> = Verb::ALL.iter().map(|verb| verb.name()).collect();
    let verbs = schema.pointer_mut("/properties/verbs").and_then(Value::as_object_mut).unwrap();
    verbs.insert("propertyNames".to_owned(), json!({ "enum": names }));
    write_or_compare(&standard_dir().join("schemas/manifest.schema.json"), &text(&schema));
}

#[test]
fn the_request_schema_is_fresh() {
    let schema = schema::<Request>("request", "Request to a verb", |_| ());
    write_or_compare(&standard_dir().join("schemas/request.schema.json"), &text(&schema));
}

#[test]
fn the_result_schema_is_fresh_and_describes_every_output() {
    let schema = schema::<VerbResult>("result", "Result of a verb", |generator| {
        generator.subschema_for::<RenderOutput>();
        generator.subschema_for::<PrepareOutput>();
        generator.subschema_for::<JoinOutput>();
        generator.subschema_for::<RoleOutput>();
        generator.subschema_for::<HealthOutput>();
        generator.subschema_for::<MembershipOutput>();
        generator.subschema_for::<CanDisruptOutput>();
        generator.subschema_for::<ReconfigureOutput>();
    });
    for output in ["RenderOutput", "HealthOutput", "ReconfigureOutput"] {
        assert!(schema.pointer(&format!("/$defs/{output}")).is_some(), "{output} is missing in the schema's $defs");
    }
    write_or_compare(&standard_dir().join("schemas/result.schema.json"), &text(&schema));
}

#[test]
fn the_table_of_verbs_in_the_specification_is_fresh() {
    let path = standard_dir().join("SPEC.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(OPEN).expect("SPEC.md lost the opening marker of its table of verbs");
    let (_, after) = rest.split_once(CLOSE).expect("SPEC.md lost the closing marker of its table of verbs");
    write_or_compare(&path, &format!("{before}{OPEN}{}{CLOSE}{after}", verb_table()));
}

fn verb_table() -> String {
    let mut table =
        String::from("| Verb | For | Lane | Engine | Runs on | Timeout | Long |\n|---|---|---|---|---|---|---|\n");
    let words = |value: Value| value.as_str().unwrap().to_owned();
    let described = serde_json::to_value(schemars::schema_for!(Verb)).unwrap();
    for verb in Verb::ALL {
        let rule = verb.default_rule();
        let about = described["oneOf"].as_array().unwrap().iter().find(|one| one["const"] == verb.name()).unwrap();
        let dagger = if RESERVED.contains(verb) { " †" } else { "" };
        writeln!(
            table,
            "| {}{dagger} | {} | {} | {} | {} | {} | {} |",
            verb.name(),
            about["description"].as_str().unwrap(),
            words(json!(rule.lane)),
            words(json!(rule.engine)),
            words(json!(rule.runs_on)),
            rule.timeout_seconds,
            if rule.long { "long" } else { "" },
        )
        .unwrap();
    }
    table
}

#[test]
fn every_verb_and_exit_code_has_its_place_in_the_specification() {
    let text = fs::read_to_string(standard_dir().join("SPEC.md")).unwrap();
    for verb in Verb::ALL {
        let (plain, reserved) = (format!("**{}**", verb.name()), format!("**{}** †", verb.name()));
        assert!(text.contains(&plain), "SPEC.md does not describe the verb {plain}");
        assert_eq!(text.contains(&reserved), RESERVED.contains(verb), "the mark † of {plain} in §5");
    }
    for code in 0..=64 {
        let exit = Exit::from_code(Some(code));
        let row = format!("| {code} | {} |", json!(exit).as_str().unwrap());
        let stated = exit != Exit::Unknown || code == 31;
        assert_eq!(text.contains(&row), stated, "the row of exit code {code} in §7.1: {row}");
    }
}

/// Names of fields and values of enumerations anywhere in a schema.
fn names_in(schema: &Value, names: &mut BTreeSet<String>) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Object(fields)) = object.get("properties") {
                names.extend(fields.keys().cloned());
            }
            if let Some(Value::Array(values)) = object.get("enum") {
                names.extend(values.iter().filter_map(Value::as_str).map(str::to_owned));
            }
            names.extend(object.get("const").and_then(Value::as_str).map(str::to_owned));
            object.values().for_each(|value| names_in(value, names));
        }
        Value::Array(values) => values.iter().for_each(|value| names_in(value, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_field_and_value_of_the_schemas_is_in_the_specification() {
    let text = fs::read_to_string(standard_dir().join("SPEC.md")).unwrap();
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').collect();
    let mut names = BTreeSet::new();
    for schema in ["manifest", "request", "result"] {
        let path = standard_dir().join(format!("schemas/{schema}.schema.json"));
        names_in(&serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap(), &mut names);
    }
    assert!(names.contains("raiseFirstOn") && names.contains("partlyLost"), "the schemas were not read");
    let missing: Vec<_> = names.iter().filter(|name| !words.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "SPEC.md does not say what these are: {missing:?}");
}

#[test]
fn every_variable_that_a_verb_gets_is_in_the_specification() {
    let text = fs::read_to_string(standard_dir().join("SPEC.md")).unwrap();
    let request: Request = serde_json::from_value(json!({
        "standard": STANDARD, "verb": "role", "operationId": "op", "attempt": 1, "deadlineSeconds": 10,
        "cluster": {"uid": "u", "name": "n", "engineName": "n-u", "epoch": 1, "founded": true, "founding": false},
        "self": "n-0", "members": [], "plan": {"current": 1, "target": 1, "joining": [], "leaving": []},
        "intent": {"role": "none", "epoch": 1}, "resources": {"memoryBytes": 1, "cpuMillis": 1, "volumes": {}},
        "config": {}, "reason": "poll"
    }))
    .unwrap();
    for (variable, _) in backlot_standard::environment::scalars(&request) {
        let family = ["DB_LEADER_", "DB_SUBJECT_", "DB_VIA_"].iter().find(|family| variable.starts_with(*family));
        let shown = family.map_or_else(|| format!("`{variable}`"), |family| format!("`{family}…`"));
        assert!(text.contains(&shown), "SPEC.md §6.1 lacks {variable}");
    }
}

#[test]
fn the_specification_is_that_of_this_version() {
    let text = fs::read_to_string(standard_dir().join("SPEC.md")).unwrap();
    assert_eq!(text.lines().next(), Some(format!("# The Database Image Standard, version {STANDARD}").as_str()));
    assert!(fs::read_to_string(standard_dir().join("CHANGELOG.md")).unwrap().contains(&format!("## {STANDARD}")));
}
