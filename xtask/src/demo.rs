//! The demo: one operator that names no engine runs several; it narrates, and ends with what was done and where to look.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use backlot_e2e::database::Database;
use backlot_e2e::kubectl::{Kubectl, wait_for};
use backlot_e2e::profile::{DemoStep, Profile, checkout};
use serde_json::json;

use crate::install::{self, Arguments, Types};

/// Namespace of the demo's Databases.
const NAMESPACE: &str = "demo";
/// Records that are written at first, and again after the changes.
const RECORDS: u32 = 100;

/// What was done, for the table at the end.
#[derive(Default)]
struct Story {
    rows: Vec<(String, f64)>,
}

impl Story {
    fn step(&mut self, what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("• {what} …");
        let start = Instant::now();
        work().with_context(|| what.to_owned())?;
        let took = start.elapsed().as_secs_f64();
        println!("  done in {took:.1} s");
        self.rows.push((what.to_owned(), took));
        Ok(())
    }
}

/// Runs the demo on a local cluster, which it brings up.
pub fn run(arguments: &Arguments) -> Result<()> {
    install::started();
    let program = std::env::current_exe()?;
    let status = Command::new(program).args(["cluster", "--name", &arguments.cluster, "up"]).status()?;
    if !status.success() {
        bail!("cluster {} did not come up", arguments.cluster);
    }
    install::with_cluster(&arguments.cluster, || tell(arguments))
}

fn tell(arguments: &Arguments) -> Result<()> {
    let mut story = Story::default();
    story
        .rows
        .push(("build and start a Kubernetes of three nodes".to_owned(), install::started().elapsed()?.as_secs_f64()));
    let mut profiles = arguments.types.profiles()?;
    profiles.retain(|profile| arguments.types.are_named() || !profile.demo.is_empty());
    let shown = Arguments { types: Types::of(&profiles), ..arguments.clone() };
    story.step("build and load the images, install the operator with its Helm chart", || install::install(&shown))?;
    let kubectl = Kubectl::new(NAMESPACE);
    if kubectl.get("namespace", NAMESPACE)?.is_some() {
        println!("• remove what an earlier demo left");
        kubectl.remove_namespace()?;
    }
    kubectl.make_namespace()?;
    let mut databases = vec![];
    for profile in &profiles {
        let (name, manifest) = example(profile)?;
        println!("• kubectl apply -f examples/{}.yaml", profile.class);
        kubectl.apply(&manifest)?;
        databases.push(Database::new(&kubectl, &name, profile));
    }
    for database in &databases {
        let what =
            format!("{} ({}): {} members Ready", database.name, database.profile.class, database.profile.members);
        story.step(&what, || database.wait_ready(database.profile.members))?;
    }
    let client = install::client_image()?;
    for database in &databases {
        let what = format!("{}: write and read {RECORDS} records through the binding Secret", database.name);
        story.step(&what, || {
            database.start_client(&client)?;
            database.write(1, RECORDS)?;
            database.verify(1, RECORDS)
        })?;
    }
    for database in &databases {
        for step in &database.profile.demo {
            change(&mut story, database, *step)?;
        }
    }
    for database in &databases {
        let what = format!("{}: every record is still there, and new ones are taken", database.name);
        story.step(&what, || {
            database.verify(1, RECORDS)?;
            database.write(RECORDS + 1, 2 * RECORDS)?;
            database.verify(1, 2 * RECORDS)
        })?;
    }
    print_end(&story, &kubectl, &databases)
}

fn change(story: &mut Story, database: &Database, step: DemoStep) -> Result<()> {
    let profile = &database.profile;
    let name = &database.name;
    match step {
        DemoStep::Grow => {
            story.step(&format!("{name}: grow {} → {} members", profile.members, profile.grown), || {
                database.edit(&json!({"members": profile.grown}))?;
                database.wait_ready(profile.grown)
            })
        }
        DemoStep::Configure => {
            let changes = [(&profile.live, "while it runs"), (&profile.restart, "by a rolling restart, leader last")];
            for (setting, how) in changes {
                let Some((key, value)) = setting else { continue };
                story.step(&format!("{name}: set {key}={value} {how}"), || {
                    database.edit(&json!({"config": {key: value}}))?;
                    database.wait_ready(profile.members)
                })?;
            }
            Ok(())
        }
        DemoStep::Kill => {
            let members = database.members()?;
            let victim = members.last().context("no members")?.clone();
            story.step(&format!("{name}: kill the pod of {victim}; it comes back with its data"), || {
                let uid = |kubectl: &Kubectl| -> Result<String> {
                    Ok(kubectl.get("pod", &victim)?.unwrap_or_default()["metadata"]["uid"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned())
                };
                let before = uid(&database.kubectl)?;
                database.kubectl.run(&["delete", "pod", &victim, "--grace-period=0", "--force"])?;
                wait_for("the new pod", backlot_e2e::database::LIMIT, || {
                    let now = uid(&database.kubectl)?;
                    Ok((!now.is_empty() && now != before).then_some(()))
                })?;
                database.wait_ready(profile.members)
            })
        }
    }
}

/// Name and text of a type's example.
fn example(profile: &Profile) -> Result<(String, String)> {
    let path = checkout().join("examples").join(format!("{}.yaml", profile.class));
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let value: serde_json::Value = serde_norway::from_str(&text)?;
    let name = value["metadata"]["name"].as_str().context("the example has no name")?.to_owned();
    Ok((name, text))
}

fn print_end(story: &Story, kubectl: &Kubectl, databases: &[Database]) -> Result<()> {
    println!("\n{:>8}  what was done", "seconds");
    for (what, took) in &story.rows {
        println!("{took:>8.1}  {what}");
    }
    println!("{:>8.1}  in all\n", install::started().elapsed()?.as_secs_f64());
    println!("{}", kubectl.run(&["get", "databases"])?);
    let first = databases.first().map_or("NAME", |database| database.name.as_str());
    println!("The databases still run. To look around:");
    println!("  eval \"$(cargo xtask cluster env)\"");
    println!("  kubectl -n {NAMESPACE} get db,pods,pvc");
    println!("  kubectl -n {NAMESPACE} describe db {first}");
    println!("  kubectl explain db.spec");
    println!("  kubectl get databaseclasses");
    println!("Remove everything: make clean-cluster");
    Ok(())
}
