//! How a pod becomes a container: folders behind its volumes, files of its Secrets, arguments of `run`.
//!
//! Invariant: a volume that is there already is left as it is.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use backlot_testkit::api_server::ApiServer;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

/// Makes the folder or file behind each of the pod's volumes, by the volume's name.
///
/// `persistent` has the folders of persistent volumes, `folder` is where the others go, `agent` is the agent's binary.
pub fn make_volumes(
    spec: &Value,
    persistent: &BTreeMap<String, PathBuf>,
    folder: &Path,
    agent: &Path,
) -> Result<BTreeMap<String, PathBuf>> {
    let user = user(spec);
    let mut volumes = BTreeMap::new();
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let name = volume["name"].as_str().unwrap_or_default().to_owned();
        let place = persistent.get(&name).cloned().unwrap_or_else(|| folder.join(&name));
        if !place.exists() {
            fs::create_dir_all(&place)?;
            chown(&place, Some(0), Some(user))?;
            fs::set_permissions(&place, fs::Permissions::from_mode(0o2777))?;
        }
        volumes.insert(name, place);
    }
    // What the init container does: the agent's binary lies where the engine's container looks for it.
    let installed = volumes.get("agent").context("the pod has no volume for the agent")?.join("backlot-agent");
    if !installed.exists() {
        fs::copy(agent, &installed).with_context(|| format!("cannot copy {}", agent.display()))?;
        fs::set_permissions(&installed, fs::Permissions::from_mode(0o755))?;
    }
    Ok(volumes)
}

/// Writes the projected Secrets of a pod, as they are now.
pub fn fill_secrets(server: &ApiServer, namespace: &str, spec: &Value, folder: &Path) -> Result<()> {
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let place = folder.join(volume["name"].as_str().unwrap_or_default());
        let projected = volume["projected"]["sources"].as_array().into_iter().flatten().map(|one| &one["secret"]);
        for source in projected.chain([&volume["secret"]]) {
            let name = source["name"].as_str().or(source["secretName"].as_str());
            let Some(secret) = name.and_then(|name| server.get::<Secret>(namespace, name)) else { continue };
            for item in source["items"].as_array().into_iter().flatten() {
                let (key, path) = (item["key"].as_str().unwrap_or_default(), item["path"].as_str());
                let file = place.join(path.unwrap_or(key));
                match secret.data.as_ref().and_then(|data| data.get(key)) {
                    Some(value) => put(&file, &value.0, user(spec))?,
                    None => drop(fs::remove_file(&file)),
                }
            }
        }
    }
    Ok(())
}

/// What of a container's arguments the pod decides: user, limits, variables, mounts, and at the end image and command.
pub fn arguments(spec: &Value, address: &str, volumes: &BTreeMap<String, PathBuf>, image: &str) -> Result<Vec<String>> {
    let user = user(spec);
    let engine = &spec["containers"][0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut arguments = vec![format!("--user={user}:{user}")];
    if let Some(memory) = engine["resources"]["limits"]["memory"]
        .as_str()
        .filter(|memory| memory.bytes().all(|byte| byte.is_ascii_digit()))
    {
        arguments.push(format!("--memory={memory}"));
    }
    for variable in engine["env"].as_array().into_iter().flatten() {
        let value = if variable["valueFrom"].is_object() { address.to_owned() } else { text(&variable["value"]) };
        arguments.extend(["--env".to_owned(), format!("{}={value}", text(&variable["name"]))]);
    }
    for mount in engine["volumeMounts"].as_array().into_iter().flatten() {
        let name = text(&mount["name"]);
        let place = volumes.get(&name).with_context(|| format!("the pod mounts {name}, which is no volume of it"))?;
        let suffix = if mount["readOnly"] == true { ":ro" } else { "" };
        arguments.extend(["--volume".to_owned(), format!("{}:{}{suffix}", place.display(), text(&mount["mountPath"]))]);
    }
    let command: Vec<String> = engine["command"].as_array().into_iter().flatten().map(text).collect();
    let (program, rest) = command.split_first().context("the pod has no command")?;
    arguments.extend(["--entrypoint".to_owned(), program.clone(), image.to_owned()]);
    arguments.extend(rest.iter().cloned());
    Ok(arguments)
}

fn user(spec: &Value) -> u32 {
    spec["securityContext"]["runAsUser"].as_u64().and_then(|user| u32::try_from(user).ok()).unwrap_or(65534)
}

/// Writes a file that a pod's user may read, when it is not so already; at once, as the kubelet does.
fn put(file: &Path, content: &[u8], user: u32) -> Result<()> {
    if fs::read(file).is_ok_and(|present| present == content) {
        return Ok(());
    }
    let folder = file.parent().context("a secret's file lies in a folder")?;
    fs::create_dir_all(folder)?;
    let part = folder.join(".part");
    fs::write(&part, content)?;
    chown(&part, Some(user), Some(user))?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o400))?;
    fs::rename(&part, file).with_context(|| format!("cannot write {}", file.display()))
}
