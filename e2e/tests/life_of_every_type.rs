//! One test for all types: what a cluster goes through from creation to being taken back. No type has a special case.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use backlot_e2e::cluster::{Scene, profiles, scene};
use backlot_e2e::database::{Database, LIMIT};
use backlot_e2e::kubectl::wait_for;
use backlot_e2e::profile::Profile;
use serde_json::json;

#[test]
fn every_type_is_created_grown_configured_broken_shrunk_and_taken_back() -> Result<()> {
    for profile in profiles()? {
        let Some(scene) = scene(&format!("life-{}", profile.class))? else { return Ok(()) };
        live(&scene, &profile).with_context(|| profile.class.clone())?;
        scene.clean_up()?;
    }
    Ok(())
}

fn live(scene: &Scene, profile: &Profile) -> Result<()> {
    let database = Database::new(&scene.kubectl, "db", profile);
    let step = |what: &str, work: &dyn Fn() -> Result<()>| -> Result<()> {
        let start = Instant::now();
        work().with_context(|| format!("{what}\n{}", database.story()))?;
        println!("{:<12} {:>6.1} s  {what}", profile.class, start.elapsed().as_secs_f64());
        Ok(())
    };
    step("create", &|| {
        database.create()?;
        database.wait_ready(profile.members)
    })?;
    step("write and read through the binding", &|| {
        database.start_client(&scene.image("client")?)?;
        database.write(1, 50)?;
        database.verify(1, 50)
    })?;
    step("grow", &|| {
        database.edit(&json!({"members": profile.grown}))?;
        database.wait_ready(profile.grown)?;
        database.write(51, 100)?;
        database.verify(1, 100)
    })?;
    if let Some((key, value)) = &profile.live {
        step("live setting: no engine restarts", &|| {
            let before = starts(&database)?;
            database.edit(&json!({"config": {key: value}}))?;
            database.wait_ready(profile.grown)?;
            ensure!(starts(&database)? == before, "an engine was started again");
            database.verify(1, 100)
        })?;
    }
    if let Some((key, value)) = &profile.restart {
        step("setting that needs a restart: every engine is started again", &|| {
            let before = starts(&database)?;
            database.edit(&json!({"config": {key: value}}))?;
            database.wait_ready(profile.grown)?;
            let is_restarted = starts(&database)?.iter().zip(&before).all(|(now, before)| now > before);
            ensure!(is_restarted, "not every engine was started again");
            database.verify(1, 100)
        })?;
    }
    step("a member's pod is lost and comes back with its data", &|| lose_pod(&database))?;
    step("a member is lost with its volume: nothing takes its place by itself, it is removed by shrinking", &|| {
        lose_volume(&database)
    })?;
    step("shrink", &|| {
        database.edit(&json!({"members": profile.shrunk}))?;
        database.wait_ready(profile.shrunk)?;
        database.verify(1, 100)?;
        database.write(101, 110)
    })?;
    step("delete with Retain keeps volumes, and the same name takes them back", &|| {
        let mut manifest = database.manifest(profile.shrunk);
        manifest["spec"] = database.get()?["spec"].clone();
        database.delete()?;
        let claims = scene.kubectl.list("pvc", "backlot.dev/database=db")?;
        ensure!(!claims.is_empty(), "no claim was retained");
        scene.kubectl.apply(&manifest.to_string())?;
        database.wait_ready(profile.shrunk)?;
        database.verify(1, 110)
    })
}

/// How often each member's agent has started its engine, which it restarts within the container.
fn starts(database: &Database) -> Result<Vec<usize>> {
    let log = |member: &String| database.kubectl.run(&["logs", member, "-c", "engine"]);
    database.members()?.iter().map(|member| Ok(log(member)?.matches("the engine was started").count())).collect()
}

fn lose_pod(database: &Database) -> Result<()> {
    let victim = last(database)?;
    let uid = || -> Result<String> {
        Ok(database.kubectl.get("pod", &victim)?.unwrap_or_default()["metadata"]["uid"].to_string())
    };
    let before = uid()?;
    database.kubectl.run(&["delete", "pod", &victim, "--grace-period=0", "--force"])?;
    wait_for("the new pod", LIMIT, || {
        let now = uid()?;
        Ok((now != "null" && now != before).then_some(()))
    })?;
    database.wait_ready(database.profile.grown)?;
    database.verify(1, 100)
}

/// Takes the last member's claims and its pod away at once, as a machine does that burns down with its disk.
fn lose_volume(database: &Database) -> Result<()> {
    let profile = &database.profile;
    let victim = last(database)?;
    let kubectl = &database.kubectl;
    let pod = kubectl.get("pod", &victim)?.context("no pod")?;
    let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    let claims: Vec<_> =
        volumes.iter().filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str()).collect();
    ensure!(!claims.is_empty(), "{victim} has no claims");
    for claim in &claims {
        kubectl.run(&["delete", "pvc", claim, "--wait=false"])?;
    }
    kubectl.run(&["delete", "pod", &victim, "--grace-period=0", "--force"])?;
    wait_for("the loss to be said", LIMIT, || {
        let said = database.condition("Degraded")?.filter(|(_, reason, _)| reason == "VolumeLost");
        Ok(said.map(drop))
    })?;
    for claim in &claims {
        ensure!(kubectl.get("pvc", claim)?.is_none(), "{victim} got an empty volume");
    }
    database.verify(1, 100)?;
    database.edit(&json!({"members": profile.members}))?;
    database.wait_ready(profile.members)?;
    ensure!(!database.members()?.contains(&victim), "{victim} is still a member");
    database.verify(1, 100)
}

fn last(database: &Database) -> Result<String> {
    database.members()?.pop().context("no members")
}
