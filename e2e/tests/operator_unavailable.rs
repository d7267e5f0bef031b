//! With the operator away, databases live: a container that ends starts its engine again from the last view, and the operator's
//! return restarts nothing.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backlot_e2e::cluster::{profiles, scene};
use backlot_e2e::database::Database;
use backlot_e2e::kubectl::{Kubectl, wait_for};

#[test]
fn members_restart_by_themselves_and_the_operators_return_restarts_nothing() -> Result<()> {
    let Some(scene) = scene("operator-away")? else { return Ok(()) };
    let profile = profiles()?.into_iter().next().context("no types")?;
    let database = Database::new(&scene.kubectl, "db", &profile);
    database.create()?;
    database.wait_ready(profile.members)?;
    database.start_client(&scene.image("client")?)?;
    database.write(1, 20)?;
    let operator = Kubectl::new("backlot-system");
    operator.run(&["scale", "deployment/backlot-operator", "--replicas=0"])?;
    let result = while_away(&database, &operator);
    operator.run(&["scale", "deployment/backlot-operator", "--replicas=2"])?;
    result?;
    operator.run(&["rollout", "status", "deployment/backlot-operator", "--timeout=120s"])?;
    let before = pods(&database)?;
    database.wait_ready(profile.members)?;
    // Long enough for several passes over the database.
    std::thread::sleep(Duration::from_secs(15));
    ensure!(pods(&database)? == before, "the operator's return changed a pod");
    database.verify(1, 20)?;
    scene.clean_up()
}

fn while_away(database: &Database, operator: &Kubectl) -> Result<()> {
    wait_for("the operator gone", Duration::from_mins(1), || {
        Ok(operator.list("pods", "app.kubernetes.io/name=backlot-operator")?.is_empty().then_some(()))
    })?;
    let member = database.members()?.first().context("no members")?.clone();
    let restarts = || -> Result<u64> {
        let pod = database.kubectl.get("pod", &member)?.context("the pod is gone")?;
        Ok(pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default())
    };
    let before = restarts()?;
    // The first process of the container ends, as after a crash of the agent or of the container runtime.
    database.kubectl.run(&["exec", &member, "-c", "engine", "--", "sh", "-c", "kill -TERM 1"])?;
    wait_for("the container restarted and ready", Duration::from_mins(2), || {
        let pod = database.kubectl.get("pod", &member)?.context("the pod is gone")?;
        let is_ready = pod["status"]["containerStatuses"][0]["ready"] == true;
        Ok((restarts()? > before && is_ready).then_some(()))
    })?;
    database.verify(1, 20)
}

/// Pods with their restart counts.
fn pods(database: &Database) -> Result<Vec<String>> {
    let pods = database.kubectl.list("pods", &format!("backlot.dev/database={}", database.name))?;
    Ok(pods
        .iter()
        .map(|pod| format!("{} {}", pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]))
        .collect())
}
