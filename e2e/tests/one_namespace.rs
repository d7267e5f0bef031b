//! Installed for one namespace, the operator looks after that one with a Role of that namespace, and touches no other.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use backlot_e2e::cluster::{Scene, profiles, scene};
use backlot_e2e::database::Database;
use backlot_e2e::kubectl::Kubectl;
use backlot_e2e::profile::{Profile, checkout};
use serde_json::{Value, json};

#[test]
fn an_operator_for_one_namespace_touches_no_other() -> Result<()> {
    let (Some(own), Some(other)) = (scene("watched")?, scene("not-watched")?) else { return Ok(()) };
    let profile = profiles()?.remove(0);
    let outcome = watch(&own.kubectl.namespace).and_then(|()| live(&own, &other, &profile));
    // Other tests on this cluster want all namespaces looked after.
    watch("")?;
    outcome?;
    other.clean_up()
}

fn live(own: &Scene, other: &Scene, profile: &Profile) -> Result<()> {
    let ignored = Database::new(&other.kubectl, "db", profile);
    ignored.create()?;
    let database = Database::new(&own.kubectl, "db", profile);
    database.create()?;
    database.wait_ready(profile.members)?;
    database.start_client(&own.image("client")?)?;
    database.write(1, 20)?;
    database.edit(&json!({"members": profile.grown}))?;
    database.wait_ready(profile.grown)?;
    database.verify(1, 20)?;
    own.clean_up()?;
    ensure!(ignored.get()?["status"] == Value::Null, "a Database elsewhere was looked after");
    Ok(())
}

/// Installs the chart for this namespace; all namespaces when it is empty.
fn watch(namespace: &str) -> Result<()> {
    let status = Command::new("helm")
        .args(["upgrade", "backlot"])
        .arg(checkout().join("deploy/chart"))
        .args(["--namespace", "backlot-system", "--reuse-values", "--skip-crds"])
        .args(["--set", &format!("watchNamespace={namespace}")])
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "helm ended with {status}");
    let operator = Kubectl::new("backlot-system");
    operator.run(&["rollout", "status", "deployment/backlot-operator", "--timeout=180s"])?;
    // Replicas of before may still be ending.
    std::thread::sleep(Duration::from_secs(5));
    Ok(())
}
