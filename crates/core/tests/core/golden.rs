//! Golden plans: `tests/golden/<case>/` holds what a user wrote (`input.yaml`), what was seen (`observed.yaml`, in short) and
//! what is then done (`plan.yaml`). `UPDATE_GENERATED=1` writes the plans anew; read the difference.

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

use backlot_api::Database;
use backlot_core::plan::{self, Plan, Write};
use backlot_core::snapshot::Snapshot;
use backlot_core::validate;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::observed::Seen;

/// A plan as people read it.
#[derive(Debug, Default, Serialize)]
struct Told {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    asks: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    records: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    activities: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    events: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    writes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    view: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    operations: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    objects: BTreeMap<String, Value>,
}

fn compact(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).unwrap();
    text.trim_matches('"').to_owned()
}

fn describe(write: &Write) -> String {
    match write {
        Write::ClusterSecret(order) => {
            let verb = if order.is_new { "create" } else { "fill" };
            let passwords: Vec<_> = order.passwords.keys().cloned().collect();
            format!("{verb} Secret {}: keys of {:?}, passwords {passwords:?}", order.name, order.members)
        }
        Write::Create(object) => format!("create {:?} {}", object.kind, object.name),
        Write::Apply(object) => format!("apply {:?} {}", object.kind, object.name),
        Write::Patch { target, patch } => {
            format!("patch {:?} {} (uid {}): {patch}", target.kind, target.name, target.uid)
        }
        Write::Delete { target, why } => {
            format!("delete {:?} {} (uid {}): {why}", target.kind, target.name, target.uid)
        }
    }
}

fn records(plan: &Plan) -> Vec<String> {
    let groups = plan.groups.iter().flat_map(|group| {
        let founder = group.founder.as_ref().map_or_else(|| "none".to_owned(), compact);
        let leader = group.leader.clone().unwrap_or_else(|| "none".to_owned());
        let head = format!(
            "{}-{}: founded {}, founder {founder}, leader {leader} in epoch {}",
            group.component, group.shard, group.founded, group.epoch
        );
        let members = group.members.iter().map(|member| {
            let incarnation = member.incarnation.as_deref().unwrap_or("-");
            let engine_id = member.engine_id.as_deref().unwrap_or("-");
            format!("{} {} incarnation {incarnation} engineId {engine_id}", member.name, compact(&member.state))
        });
        [head].into_iter().chain(members).collect::<Vec<_>>()
    });
    groups.collect()
}

fn view(plan: &Plan) -> Vec<String> {
    let Some(view) = &plan.view else { return vec![] };
    let groups = view.groups.iter().map(|group| {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".to_owned());
        let (current, target) = (group.plan.current, group.plan.target);
        format!(
            "{}-{}: founded {}, founder {}, leader {}, {current} of {target}, joining {:?}, leaving {:?}",
            group.component,
            group.shard,
            group.founded,
            name(&group.founder),
            name(&group.leader),
            group.plan.joining,
            group.plan.leaving
        )
    });
    let members = view.members.iter().map(|member| {
        format!("{} {} at `{}` incarnation `{}`", member.id, compact(&member.state), member.address, member.incarnation)
    });
    groups.chain(members).collect()
}

fn tell(plan: &Plan, with_objects: bool) -> Told {
    let objects = plan.writes.iter().filter_map(|write| match write {
        Write::Create(object) => Some((format!("{:?} {}", object.kind, object.name), object.body.clone())),
        Write::ClusterSecret(_) | Write::Apply(_) | Write::Patch { .. } | Write::Delete { .. } => None,
    });
    let operation = |operation: &plan::Operation| {
        let request = &operation.request;
        let about = request.subject.as_ref().map(|subject| format!(" about {subject}")).unwrap_or_default();
        let via = request.via.as_ref().map(|via| format!(" via {via}")).unwrap_or_default();
        let (act, reason) = (compact(&request.act), compact(&request.reason));
        format!("{}: {}{about}{via}, {act} because {reason}", operation.member, request.id)
    };
    Told {
        refused: vec![],
        asks: plan.questions.iter().map(|question| format!("{question:?}")).collect(),
        records: records(plan),
        activities: plan
            .activities
            .iter()
            .map(|known| format!("{:?} {}: {}", known.kind, known.reason, known.message))
            .collect(),
        events: plan.events.iter().map(|event| format!("{}: {}", event.reason, event.message)).collect(),
        writes: plan.writes.iter().map(describe).collect(),
        view: view(plan),
        operations: plan.operations.iter().map(operation).collect(),
        objects: if with_objects { objects.collect() } else { BTreeMap::new() },
    }
}

fn told(snapshot: &Snapshot, with_objects: bool) -> Told {
    let judgement = validate::judge(snapshot);
    let refusals = judgement.refusals.iter();
    let refused = refusals.map(|refusal| format!("{}: {}", refusal.reason, refusal.message)).collect();
    Told { refused, ..tell(&plan::plan_pass(snapshot, &judgement), with_objects) }
}

fn parse<T: DeserializeOwned>(case: &Path, file: &str, text: &str) -> T {
    serde_norway::from_str(text).unwrap_or_else(|error| panic!("{}: {error}", case.join(file).display()))
}

#[test]
fn plans_are_as_the_golden_files_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 20, "{} cases", cases.len());
    let mut stale = vec![];
    for case in &cases {
        let read = |name: &str| fs::read_to_string(case.join(name)).unwrap_or_default();
        let database: Database = parse(case, "input.yaml", &read("input.yaml"));
        let seen: Seen = parse(case, "observed.yaml", &read("observed.yaml"));
        let told = told(&seen.snapshot(database), seen.objects_in_plan);
        let text = serde_norway::to_string(&told).unwrap();
        if env::var_os("UPDATE_GENERATED").is_some() {
            fs::write(case.join("plan.yaml"), &text).unwrap();
        } else if read("plan.yaml") != text {
            stale.push(format!("{}\n{text}", case.display()));
        }
    }
    assert!(stale.is_empty(), "UPDATE_GENERATED=1 writes these anew:\n{}", stale.join("\n"));
}
