//! Another build of the operator restarts no member, runs the members that the earlier one made, and can be taken back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backlot_e2e::cluster::{Scene, profiles, scene};
use backlot_e2e::database::Database;
use backlot_e2e::kubectl::Kubectl;
use serde_json::{Value, json};

#[test]
fn another_build_of_the_operator_restarts_nothing() -> Result<()> {
    let Some(scene) = scene("other-operator")? else { return Ok(()) };
    let profile = profiles()?.into_iter().next().context("no types")?;
    let database = Database::new(&scene.kubectl, "db", &profile);
    database.create()?;
    database.wait_ready(profile.members)?;
    database.start_client(&scene.image("client")?)?;
    database.write(1, 20)?;
    let (own, other) = (scene.image("operator")?, scene.image("operator-other")?);
    ensure!(own != other, "both builds have the digest of {own}");
    let outcome = with_both(&scene, &database, &own, &other);
    // Other tests on this cluster want the checkout's own build.
    run(&own)?;
    outcome?;
    scene.clean_up()
}

fn with_both(scene: &Scene, database: &Database, own: &str, other: &str) -> Result<()> {
    let (members, grown) = (database.profile.members, database.profile.grown);
    let before = pods(database)?;
    run(other)?;
    settle(database, members)?;
    ensure!(pods(database)? == before, "the other build changed a pod");
    database.edit(&json!({"members": grown}))?;
    database.wait_ready(grown)?;
    database.write(21, 40)?;
    let images = agent_images(scene)?;
    ensure!(images.contains(&own.to_owned()) && images.contains(&other.to_owned()), "agents are of {images:?}");
    let mixed = pods(database)?;
    ensure!(before.iter().all(|pod| mixed.contains(pod)), "growing changed a pod that was there");
    run(own)?;
    settle(database, grown)?;
    ensure!(pods(database)? == mixed, "the way back changed a pod");
    database.verify(1, 40)
}

/// Has the operator's Deployment run this build.
fn run(image: &str) -> Result<()> {
    let operator = Kubectl::new("backlot-system");
    let deployment = operator.get("deployment", "backlot-operator")?.context("no operator")?;
    let before = deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
    // The image is named twice: as the operator's own and as that of new members' agents.
    let template = deployment["spec"]["template"].to_string().replace(before, image);
    let template: Value = serde_json::from_str(&template)?;
    operator.patch("deployment", "backlot-operator", &json!({"spec": {"template": template}}))?;
    operator.run(&["rollout", "status", "deployment/backlot-operator", "--timeout=180s"]).map(drop)
}

/// Long enough for several passes over the database by the new leader.
fn settle(database: &Database, members: u32) -> Result<()> {
    std::thread::sleep(Duration::from_secs(20));
    database.wait_ready(members)
}

/// Pods with their containers.
fn pods(database: &Database) -> Result<Vec<String>> {
    let pods = database.kubectl.list("pods", &format!("backlot.dev/database={}", database.name))?;
    let describe =
        |pod: &Value| format!("{} {}", pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["containerID"]);
    Ok(pods.iter().map(describe).collect())
}

/// Images from which the members' agents were copied.
fn agent_images(scene: &Scene) -> Result<Vec<String>> {
    let pods = scene.kubectl.list("pods", "backlot.dev/database=db")?;
    let image = |pod: &Value| Some(pod["spec"]["initContainers"][0]["image"].as_str()?.to_owned());
    Ok(pods.iter().filter_map(image).collect())
}
