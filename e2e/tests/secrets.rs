//! No password appears where it could be read by others: arguments, environment, logs, events, status.

use anyhow::{Context as _, Result, ensure};
use backlot_e2e::cluster::{profiles, scene};
use backlot_e2e::database::Database;

#[test]
fn no_password_leaves_its_secret() -> Result<()> {
    let Some(scene) = scene("canary")? else { return Ok(()) };
    for profile in profiles()? {
        let database = Database::new(&scene.kubectl, &format!("db-{}", profile.class), &profile);
        database.create()?;
        database.wait_ready(profile.members)?;
        database.start_client(&scene.image("client")?)?;
        database.write(1, 5)?;
        let canaries = canaries(&database)?;
        ensure!(!canaries.is_empty(), "{} has no generated secret", profile.class);
        for (place, text) in places(&database)? {
            for (name, canary) in &canaries {
                ensure!(!text.contains(canary.as_str()), "{name} of {} appears in {place}", profile.class);
            }
        }
    }
    scene.clean_up()
}

/// Generated passwords by name, decoded.
fn canaries(database: &Database) -> Result<Vec<(String, String)>> {
    let secret = database.kubectl.get("secret", &format!("{}-cluster", database.name))?.context("no Secret")?;
    let data = secret["data"].as_object().cloned().unwrap_or_default();
    data.into_iter()
        .filter(|(key, _)| key.starts_with("secret."))
        .map(|(key, _)| {
            let template = format!("go-template={{{{index .data \"{key}\" | base64decode}}}}");
            let value =
                database.kubectl.run(&["get", "secret", &format!("{}-cluster", database.name), "-o", &template])?;
            Ok((key, value))
        })
        .collect()
}

fn places(database: &Database) -> Result<Vec<(String, String)>> {
    let mut places = vec![
        ("the Database".to_owned(), database.get()?.to_string()),
        ("events".to_owned(), database.kubectl.run(&["get", "events", "-o", "json"])?),
    ];
    for member in database.members()? {
        let pod = database.kubectl.get("pod", &member)?.context("no pod")?;
        places.push((format!("the pod {member}"), pod.to_string()));
        places.push((format!("the log of {member}"), database.kubectl.run(&["logs", &member, "-c", "engine"])?));
        let processes = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; true";
        let text = database.kubectl.run(&["exec", &member, "-c", "engine", "--", "sh", "-c", processes])?;
        places.push((format!("processes of {member}"), text));
    }
    Ok(places)
}
