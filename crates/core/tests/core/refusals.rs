//! Bad input: every refusal names field, value and remedy, and `docs/bad-input.md` lists it as it is said.

use std::collections::BTreeSet;
use std::path::Path;

use backlot_api::{Database, DatabaseClass, database_class::ClassVersion};
use backlot_core::class;
use backlot_core::snapshot::ImageFacts;
use backlot_standard::operation::OperationState;
use backlot_standard::result::{Blocker, Exit, VerbError, VerbResult};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::world::{NAME, Shape, World, manifest};

/// An edit and what it is answered.
#[derive(Deserialize)]
struct Case {
    shape: Shape,
    ready: Option<Value>,
    edit: Value,
    says: Vec<String>,
}

fn cases() -> Vec<Case> {
    serde_norway::from_str(include_str!("../refusals.yaml")).unwrap()
}

#[test]
fn every_refusal_names_field_value_and_remedy_and_reverting_recovers() {
    for Case { shape, ready, edit, says } in cases() {
        let mut world = match &ready {
            Some(spec) => World::ready(shape, spec.clone()),
            None => World::new(shape, json!({})),
        };
        let before = world.database.spec.clone();
        let acts = (world.written.len(), world.delivered.len());
        world.edit(edit.clone());
        assert_eq!(world.refusals(), says, "{edit}");
        world.step();
        let status = world.database.status.clone().unwrap();
        assert!(world.condition("Ready").starts_with(&format!("False {}", says[0])), "{edit}");
        assert_eq!(status.observed_generation, world.database.metadata.generation, "{edit}");
        assert_eq!((world.written.len(), world.delivered.len()), acts, "{edit}");
        world.database.spec = before;
        world.settle();
        assert!(world.condition("Ready").starts_with("True"), "{edit}");
    }
}

#[test]
fn mistakes_are_all_told_and_each_once() {
    let two = r"
engine: acme-two
elections: none
components: [{name: data}, {name: router, stateless: true}]
volumes: [{name: data, path: /data}]
";
    let image = backlot_core::snapshot::UsableImage { manifest: manifest(two), ..Shape::Leaderless.image() };
    let world = World::of(image, json!({"members": 3, "config": {"colour": "red"}, "durability": "Async"}));
    assert_eq!(
        world.refusals(),
        [
            "SettingRefused: spec.config.colour: unknown setting. All settings: kubectl get databaseclass acme -o yaml",
            "DurabilityRefused: spec.durability: Async refused: acme-two offers none; leave it out"
        ]
    );
}

#[test]
fn a_name_that_is_too_long_is_refused_also_without_admission_rules() {
    let mut world = World::new(Shape::Agent, json!({}));
    world.database.metadata.name = Some("n".repeat(33));
    assert_eq!(
        world.refusals(),
        ["NameTooLong: metadata.name: 33 characters; at most 32 are allowed. Create it under a shorter name"]
    );
}

#[test]
fn another_version_than_runs_is_refused() {
    let mut world = World::ready(Shape::Agent, json!({}));
    world.image.class_version = "2".into();
    assert_eq!(
        world.refusals(),
        [
            "UpgradeNotSupported: spec.version: 1 → 2 refused: this operator cannot upgrade yet. Set spec.version back to 1"
        ]
    );
}

fn acme(versions: &[&str]) -> DatabaseClass {
    let list: Vec<_> =
        versions.iter().map(|version| json!({"version": version, "image": format!("acme:{version}")})).collect();
    let mut class: DatabaseClass = serde_json::from_value(json!({
        "apiVersion": "backlot.dev/v1alpha1", "kind": "DatabaseClass", "metadata": {"name": "acme"}, "spec": {"versions": list},
    }))
    .unwrap();
    class.status = Some(serde_json::from_value(json!({"conditions": []})).unwrap());
    class
}

fn asked(version: Option<&str>) -> Database {
    Database::new(NAME, serde_json::from_value(json!({"class": "acme", "version": version})).unwrap())
}

fn refusal(facts: &ImageFacts) -> String {
    match facts {
        ImageFacts::Refused { reason, message } => format!("{reason}: {message}"),
        ImageFacts::Usable(image) => format!("usable: {}", image.class_version),
    }
}

fn version() -> ClassVersion {
    ClassVersion { version: "1".into(), image: "acme:1".into() }
}

/// What a Database is told when its class's only image answered this.
fn judged(manifest: Value, verbs: &[&str]) -> String {
    let mut class = acme(&["1"]);
    let verbs = verbs.iter().map(ToString::to_string).collect();
    class.status.as_mut().unwrap().versions = vec![class::judge(&version(), "acme@sha256:00".into(), manifest, verbs)];
    refusal(&class::image_of(&asked(None), Some(&class)))
}

fn image_refusals() -> Vec<String> {
    let usable = || serde_json::to_value(Shape::Agent.image().manifest).unwrap();
    let verbs = ["render", "health", "role"];
    let mut newer = usable();
    newer["standard"] = json!("1.3");
    let mut broken = usable();
    broken["ports"][0]["name"] = json!("Client");
    let mut class = acme(&["1"]);
    class.status.as_mut().unwrap().versions = vec![class::refused(&version(), "it has no /db/manifest.yaml".into())];
    vec![
        refusal(&class::image_of(&asked(None), None)),
        refusal(&class::image_of(&asked(Some("3")), Some(&acme(&["1", "2"])))),
        refusal(&class::image_of(&asked(None), Some(&acme(&["1"])))),
        refusal(&class::image_of(&asked(None), Some(&class))),
        judged(newer, &verbs),
        judged(broken, &verbs),
        judged(json!({"standard": "0.1"}), &verbs),
        judged(usable(), &["render"]),
        judged(usable(), &verbs),
    ]
}

#[test]
fn images_that_cannot_be_used_say_why() {
    assert_eq!(
        image_refusals(),
        [
            "ClassNotFound: spec.class: there is no DatabaseClass acme. List them: kubectl get databaseclasses",
            "VersionNotFound: spec.version: acme has no version 3; it has 1, 2",
            "ImageNotInspected: image acme:1 is being inspected",
            "ImageRefused: image acme:1 refused: it has no /db/manifest.yaml",
            "ImageRefused: image acme:1 refused: standard `1.3` needed, this operator speaks 0.1. Upgrade the operator, or use an image for 0.1",
            "ImageRefused: image acme:1 refused: its manifest breaks the standard: ports[0].name: `Client` must be 1 to 32 lower case letters, digits or dashes, starting with a letter; binding.port: `client` names no port of this manifest",
            "ImageRefused: image acme:1 refused: its manifest is not valid: missing field `engine`",
            "ImageRefused: image acme:1 refused: /db/verbs lacks health, role; every image must have render, health and role",
            "usable: 1",
        ]
    );
}

#[test]
fn a_version_that_was_chosen_stays_when_the_class_learns_a_newer_one() {
    let mut database = asked(None);
    assert_eq!(
        refusal(&class::image_of(&database, Some(&acme(&["1", "2"])))),
        "ImageNotInspected: image acme:2 is being inspected"
    );
    database.status = Some(serde_json::from_value(json!({"classVersion": "1"})).unwrap());
    assert_eq!(
        refusal(&class::image_of(&database, Some(&acme(&["1", "2"])))),
        "ImageNotInspected: image acme:1 is being inspected"
    );
}

#[test]
fn an_image_that_is_being_inspected_degrades_nothing() {
    let mut snapshot = World::new(Shape::Agent, json!({})).snapshot();
    snapshot.image = class::image_of(&asked(None), Some(&acme(&["1"])));
    let judgement = backlot_core::validate::judge(&snapshot);
    let plan = backlot_core::plan::plan_pass(&snapshot, &judgement);
    let status = backlot_core::status::status(&snapshot, &judgement, &plan, jiff::Timestamp::UNIX_EPOCH);
    let verdicts: Vec<_> = status.conditions.iter().map(|known| format!("{} {}", known.type_, known.status)).collect();
    assert_eq!(verdicts, ["Ready False", "Progressing True", "Degraded False"]);
    assert_eq!(status.summary.as_deref(), Some("Waits: image acme:1 is being inspected"));
}

/// What a person is told about a `found` that ended like this.
fn founding_failed(exit: Exit, result: VerbResult) -> Vec<String> {
    let mut world = World::new(Shape::Agent, json!({}));
    world.until("an operation", |world| !world.delivered.is_empty());
    let report = &mut world.volume("orders-0").journal[0].1;
    (report.state, report.attempts, report.exit, report.result) = (OperationState::Failed, 5, Some(exit), result);
    let plan = world.plan();
    assert_eq!(plan.operations.len(), 1, "it is asked again; the operator spaces that out");
    plan.activities.iter().map(|activity| format!("{}: {}", activity.reason, activity.message)).collect()
}

#[test]
fn a_verb_that_fails_is_told_in_its_own_words() {
    assert_eq!(
        founding_failed(Exit::Unknown, VerbResult::default()),
        ["FoundingFailed: orders-0: ended with Unknown after 5 attempts"]
    );
    let error = VerbError { code: "DiskFull".into(), message: "no space on /data. Use a larger volume".into() };
    assert_eq!(
        founding_failed(Exit::Failed, VerbResult { error: Some(error), ..VerbResult::default() }),
        ["FoundingFailed: orders-0: DiskFull: no space on /data. Use a larger volume"]
    );
    let blocker = Blocker { object: "queue jobs".into(), reason: "holds messages".into(), hint: "Drain it.".into() };
    assert_eq!(
        founding_failed(Exit::Unsafe, VerbResult { blockers: vec![blocker], ..VerbResult::default() }),
        ["FoundingFailed: orders-0: queue jobs: holds messages. Drain it."]
    );
}

/// What else a person is told about input that is asked for and cannot be done.
fn obstacles() -> Vec<String> {
    let mut world = World::ready(Shape::Quorum, json!({"members": 3}));
    world.edit(json!({"members": 1}));
    world.until("orders-2 leaves", |world| world.records().contains("2:leaving"));
    world.remove_pod("orders-1");
    let lost_quorum = world.plan();
    let mut world = World::ready(Shape::Quorum, json!({"members": 3}));
    world.remove_pod("orders-1");
    world.edit(json!({"members": 1}));
    let unwell = world.plan();
    let activities = lost_quorum.activities.iter().chain(&unwell.activities);
    let mut said: Vec<_> = activities.map(|activity| format!("{}: {}", activity.reason, activity.message)).collect();
    said.extend(founding_failed(Exit::Unknown, VerbResult::default()));
    said
}

fn matches(template: &str, text: &str) -> bool {
    let mut parts = template.split('…');
    let first = parts.next().unwrap();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut last = first;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = part;
    }
    rest.is_empty() || last.is_empty()
}

/// Reasons of the table that other crates say: the class's pass, and the agents by way of an operation that failed.
const SAID_ELSEWHERE: &[&str] = &["Inspecting"];

#[test]
fn the_table_of_bad_input_says_what_is_said() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/bad-input.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`').trim()).collect())
        .collect();
    let mut said: Vec<String> = cases().into_iter().flat_map(|case| case.says).collect();
    said.extend(image_refusals());
    said.extend(obstacles());
    said.extend(crate::adoption::refusals());
    let mut world = World::ready(Shape::Agent, json!({}));
    world.image.class_version = "2".into();
    said.extend(world.refusals());
    let mut world = World::ready(Shape::Agent, json!({}));
    world.edit(json!({"config": {"max-workers": 4}}));
    said.extend(world.refusals());
    let mut told = BTreeSet::new();
    for row in &rows {
        let [input, answered, by, message, remedy] = row[..] else { panic!("five cells: {row:?}") };
        assert!(!remedy.is_empty(), "{input}: what to do?");
        let reason = by.split([',', ' ']).next().unwrap().trim_matches('`');
        let is_reason = reason.starts_with(char::is_uppercase) && !SAID_ELSEWHERE.contains(&reason);
        if !answered.contains("condition") || !is_reason {
            continue;
        }
        let pattern = format!("{reason}: {message}");
        assert!(said.iter().any(|text| matches(&pattern, text)), "nobody says: {pattern}");
        told.insert(reason.to_owned());
    }
    for text in said.iter().filter(|text| !text.starts_with("usable") && !text.starts_with("ImageNotInspected")) {
        let reason = text.split(':').next().unwrap();
        if reason.ends_with("Refused") || reason.ends_with("Missing") || reason.contains("Another") {
            assert!(told.contains(reason), "docs/bad-input.md lacks {text}");
        }
    }
}
