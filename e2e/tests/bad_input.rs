//! Bad input is refused with field, value and remedy; nothing that runs is touched; reverting recovers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backlot_e2e::cluster::{Scene, profiles, scene};
use backlot_e2e::database::{Database, LIMIT};
use backlot_e2e::kubectl::wait_for;
use serde_json::{Value, json};

/// A minute is plenty for a refusal.
const SOON: Duration = Duration::from_mins(1);

#[test]
fn a_bad_edit_is_refused_and_reverting_recovers() -> Result<()> {
    let Some(scene) = scene("bad-edit")? else { return Ok(()) };
    for profile in profiles()? {
        let database = Database::new(&scene.kubectl, &format!("db-{}", profile.class), &profile);
        database.create()?;
        database.wait_ready(profile.members)?;
        let (key, value) = (profile.refused.key.clone(), profile.refused.value.clone());
        refused(&database, &json!({"config": {key.clone(): value}}), "SettingRefused", &profile.refused.message)?;
        lose_pod(&scene, &database)?;
        let before = pods(&scene, &database)?;
        database.edit(&json!({"config": {key: null}}))?;
        database.wait_ready(profile.members)?;
        refused(&database, &json!({"version": "99"}), "VersionNotFound", "has no version 99")?;
        database.edit(&json!({"version": null}))?;
        refused(&database, &json!({"resources": {"memory": "1Mi"}}), "MemoryTooSmall", "needs at least")?;
        database.edit(&json!({"resources": {"memory": profile.memory}}))?;
        refused(&database, &json!({"storage": {"size": "700Mi"}}), "StorageChangeRefused", "cannot grow volumes yet")?;
        refused(&database, &json!({"storage": {"size": "400Mi"}}), "StorageChangeRefused", "volumes never shrink")?;
        database.edit(&json!({"storage": {"size": "512Mi"}}))?;
        database.wait_ready(profile.members)?;
        ensure!(pods(&scene, &database)? == before, "a refused edit changed a pod of {}", profile.class);
    }
    scene.clean_up()
}

#[test]
fn the_api_server_refuses_what_no_class_could_allow() -> Result<()> {
    let Some(scene) = scene("bad-object")? else { return Ok(()) };
    let profile = profiles()?.into_iter().next().context("no types")?;
    let create = |name: &str, change: &dyn Fn(&mut Value)| -> Result<String> {
        let mut manifest = Database::new(&scene.kubectl, name, &profile).manifest(1);
        change(&mut manifest);
        let error = scene.kubectl.apply(&manifest.to_string()).err().with_context(|| format!("{name} was accepted"))?;
        Ok(error.to_string())
    };
    let said = create("a-name-that-is-much-too-long-for-a-db", &|_| {})?;
    ensure!(said.contains("at most 32 characters"), "{said}");
    let said = create("zero", &|manifest| manifest["spec"]["members"] = json!(0))?;
    ensure!(said.contains("spec.members"), "{said}");
    let said = create("size", &|manifest| manifest["spec"]["storage"]["size"] = json!("much"))?;
    ensure!(said.contains("spec.storage.size"), "{said}");
    let said = create("policy", &|manifest| manifest["spec"]["deletionPolicy"] = json!("Forget"))?;
    ensure!(said.contains("deletionPolicy"), "{said}");
    let database = Database::new(&scene.kubectl, "unknown", &profile);
    let mut manifest = database.manifest(1);
    manifest["spec"]["class"] = json!("no-such-class");
    scene.kubectl.apply(&manifest.to_string())?;
    waits_with(&database, "ClassNotFound", "there is no DatabaseClass no-such-class")?;
    let said = database.edit(&json!({"class": profile.class})).err().context("spec.class was changed")?.to_string();
    ensure!(said.contains("spec.class is immutable"), "{said}");
    scene.kubectl.run(&["delete", "database", "unknown"])?;
    scene.clean_up()
}

#[test]
fn paused_means_hands_off() -> Result<()> {
    let Some(scene) = scene("paused")? else { return Ok(()) };
    let profile = profiles()?.into_iter().next().context("no types")?;
    let database = Database::new(&scene.kubectl, "db", &profile);
    database.create()?;
    database.wait_ready(profile.members)?;
    database.edit(&json!({"paused": true, "members": profile.grown}))?;
    wait_for("Paused", SOON, || Ok(database.condition("Progressing")?.filter(|(_, reason, _)| reason == "Paused")))?;
    let members = database.members()?.len();
    ensure!(members == profile.members as usize, "{members} members while paused");
    database.edit(&json!({"paused": false}))?;
    database.wait_ready(profile.grown)?;
    scene.clean_up()
}

/// A pod that is lost while the spec is refused comes back as it was.
fn lose_pod(scene: &Scene, database: &Database) -> Result<()> {
    let member = database.members()?.pop().context("no members")?;
    scene.kubectl.run(&["delete", "pod", &member, "--wait=true"])?;
    let all = format!("{0}/{0}", database.profile.members);
    wait_for(&format!("{member} back"), LIMIT, || {
        let pod = scene.kubectl.get("pod", &member)?.unwrap_or_default();
        let is_back = pod["status"]["containerStatuses"][0]["ready"] == true;
        Ok((is_back && database.get()?["status"]["readyMembers"] == all).then_some(()))
    })
    .with_context(|| database.story())
}

fn refused(database: &Database, edit: &Value, reason: &str, message: &str) -> Result<()> {
    database.edit(edit)?;
    waits_with(database, reason, message)
}

fn waits_with(database: &Database, reason: &str, message: &str) -> Result<()> {
    wait_for(&format!("{} refused with {reason}", database.name), SOON, || {
        let ready = database.condition("Ready")?;
        Ok(ready.filter(|(status, why, text)| status == "False" && why == reason && text.contains(message)))
    })
    .map(drop)
}

fn pods(scene: &Scene, database: &Database) -> Result<Vec<String>> {
    let pods = scene.kubectl.list("pods", &format!("backlot.dev/database={}", database.name))?;
    Ok(pods
        .iter()
        .map(|pod| format!("{} {}", pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["containerID"]))
        .collect())
}
