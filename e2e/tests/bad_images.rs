//! An image that breaks the standard, or whose verbs misbehave, is told with the reason; a Database recovers when it is corrected.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backlot_e2e::cluster::{Scene, scene};
use backlot_e2e::database::{Database, LIMIT};
use backlot_e2e::kubectl::wait_for;
use backlot_e2e::profile::{Profile, Refused};
use serde_json::{Value, json};

#[test]
fn an_image_that_breaks_the_standard_is_refused_by_its_class() -> Result<()> {
    let Some(scene) = scene("bad-image")? else { return Ok(()) };
    let unknown = format!("localhost/backlot/nowhere@sha256:{}", "0".repeat(64));
    for (image, reason, said) in [
        (scene.image("fake-no-manifest")?, "ImageRefused", "/db/manifest.yaml"),
        (scene.image("fake-bad-manifest")?, "ImageRefused", "its manifest breaks the standard: "),
        (scene.image("fake-other-standard")?, "ImageRefused", "`9.0` needed, this operator speaks 0.1"),
        (unknown, "Inspecting", "nowhere"),
    ] {
        let class = make_class(&scene, &image)?;
        let what = format!("{image} refused");
        let found = wait_for(&what, Duration::from_mins(2), || {
            let object = scene.kubectl.get("databaseclass", &class)?.context("no class")?;
            let condition = object["status"]["conditions"][0].clone();
            Ok((condition["reason"] == reason && text(&condition["message"]).contains(said)).then_some(condition))
        });
        let told = found.and_then(|_| refused_database(&scene, &class, reason));
        scene.kubectl.run(&["delete", "databaseclass", &class])?;
        told.context(what)?;
    }
    scene.clean_up()
}

#[test]
fn verbs_that_misbehave_are_told_and_a_corrected_spec_recovers() -> Result<()> {
    let Some(scene) = scene("bad-verbs")? else { return Ok(()) };
    let class = make_class(&scene, &scene.image("fake")?)?;
    let outcome = misbehave(&scene, &class);
    if outcome.is_ok() {
        scene.clean_up()?;
    }
    scene.kubectl.run(&["delete", "databaseclass", &class])?;
    outcome
}

fn misbehave(scene: &Scene, class: &str) -> Result<()> {
    let profile = profile(class);
    let ways =
        [("hang", "DeadlineExceeded"), ("crash", "signal 6"), ("garbage", "GarbageResult"), ("huge", "1048576 bytes")];
    let databases = ways.map(|(way, _)| Database::new(&scene.kubectl, way, &profile));
    for database in &databases {
        let mut manifest = database.manifest(1);
        manifest["spec"]["config"] = json!({"misbehave": format!("found:{}", database.name)});
        scene.kubectl.apply(&manifest.to_string())?;
    }
    for (database, (way, said)) in databases.iter().zip(ways) {
        wait_for(&format!("found: {way} is told"), LIMIT, || {
            let ready = database.condition("Ready")?;
            Ok(ready.filter(|(_, reason, message)| reason == "FoundingFailed" && message.contains(said)))
        })
        .with_context(|| database.story())?;
    }
    for database in &databases {
        database.edit(&json!({"config": {"misbehave": null}}))?;
        database.wait_ready(1)?;
    }
    let [first, ..] = &databases;
    let before = container(scene, first)?;
    for way in ["health:hang", "health:garbage", "role:huge", "role:crash"] {
        first.edit(&json!({"config": {"misbehave": way}}))?;
        wait_for(&format!("{way} is told"), Duration::from_mins(3), || {
            Ok(first.condition("Ready")?.filter(|(status, _, _)| status == "False"))
        })
        .with_context(|| first.story())?;
        first.edit(&json!({"config": {"misbehave": null}}))?;
        first.wait_ready(1)?;
    }
    ensure!(container(scene, first)? == before, "a verb that misbehaved restarted the container");
    Ok(())
}

fn make_class(scene: &Scene, image: &str) -> Result<String> {
    // Classes belong to the whole Kubernetes: named after the namespace of the test and the image.
    let name = image.rsplit('/').next().and_then(|name| name.split('@').next()).context("an image has a name")?;
    let class = format!("{name}-{}", scene.kubectl.namespace);
    let object = json!({
        "apiVersion": "backlot.dev/v1alpha1", "kind": "DatabaseClass", "metadata": {"name": class},
        "spec": {"versions": [{"version": "1", "image": image}]},
    });
    scene.kubectl.apply(&object.to_string())?;
    Ok(class)
}

/// A Database of a class that is not usable says why, and nothing is made for it.
fn refused_database(scene: &Scene, class: &str, reason: &str) -> Result<()> {
    let database = Database::new(&scene.kubectl, "db", &profile(class));
    database.create()?;
    let reason = if reason == "Inspecting" { "ImageNotInspected" } else { reason };
    wait_for("the Database is told", Duration::from_mins(1), || {
        Ok(database.condition("Ready")?.filter(|(status, why, _)| status == "False" && why == reason))
    })?;
    ensure!(scene.kubectl.list("pods", "backlot.dev/database=db")?.is_empty(), "a pod was made");
    scene.kubectl.run(&["delete", "database", "db"]).map(drop)
}

fn container(scene: &Scene, database: &Database) -> Result<String> {
    let pod = scene.kubectl.get("pod", &format!("{}-0", database.name))?.context("no pod")?;
    Ok(text(&pod["status"]["containerStatuses"][0]["containerID"]))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn profile(class: &str) -> Profile {
    Profile {
        class: class.to_owned(),
        memory: "64Mi".to_owned(),
        members: 1,
        grown: 1,
        shrunk: 1,
        refused: Refused { key: String::new(), value: String::new(), message: String::new() },
        demo: vec![],
        live: None,
        restart: None,
    }
}
