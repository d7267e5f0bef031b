//! One pass over one DatabaseClass: each image runs once in a short-lived pod with the agent, which serves its manifest. The
//! operator never talks to a registry; pull secrets, mirrors and air-gapped sites work as for any pod.

use std::collections::BTreeMap;
use std::time::Duration;

use backlot_api::DatabaseClass;
use backlot_api::database_class::ClassVersion;
use backlot_core::build::{self, SecretOrder};
use backlot_core::class;
use backlot_standard::layout::names;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::agents::endpoint;
use crate::connection::{CallError, Identity, Peer};
use crate::pki;

/// Secret with the keys of inspections, in the operator's namespace.
const IDENTITY: &str = "backlot-inspection";
/// Name in inspection certificates.
const UID: &str = "inspection";
/// Pause while an inspection runs.
const SOON: Duration = Duration::from_millis(700);
/// Pause before a failed inspection is tried again.
const LATER: Duration = Duration::from_secs(30);

/// Why a pass over a class failed.
#[derive(Debug, thiserror::Error)]
pub enum ClassError {
    /// The API server refused or did not answer.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// Keys could not be made.
    #[error(transparent)]
    Pki(#[from] pki::PkiError),
    /// The pod could not be put into words.
    #[error("pod: {0}")]
    Object(#[from] serde_json::Error),
    /// The inspection Secret is unusable.
    #[error("Secret {IDENTITY}: {0}. Delete it; it is made anew")]
    Identity(String),
}

/// What inspections need.
#[derive(Clone)]
pub struct Inspector {
    /// Kubernetes.
    pub client: Client,
    /// The operator's namespace.
    pub namespace: String,
    /// Image with the agent.
    pub agent_image: String,
}

#[derive(Deserialize)]
struct Inspected {
    manifest: Value,
    #[serde(default)]
    verbs: Vec<String>,
}

enum Outcome {
    Pending(String, Duration),
    Judged(Box<backlot_api::database_class::InspectedVersion>),
}

/// One pass; answers after which time to look again.
pub async fn pass(inspector: &Inspector, class: &DatabaseClass) -> Result<Option<Duration>, ClassError> {
    let mut versions = class.status.as_ref().map(|status| status.versions.clone()).unwrap_or_default();
    let observed = class.status.as_ref().and_then(|status| status.observed_generation);
    if observed != class.metadata.generation {
        // An edited class is the moment to try refused images again.
        versions.retain(|version| version.error.is_none());
    }
    let mut class = class.clone();
    if let Some(status) = class.status.as_mut() {
        status.versions.clone_from(&versions);
    }
    let (mut pending, mut again) = (vec![], None::<Duration>);
    for version in class::to_inspect(&class) {
        match inspect(inspector, &class, &version).await? {
            Outcome::Judged(inspected) => {
                versions.retain(|known| known.version != inspected.version || known.image != inspected.image);
                versions.push(*inspected);
            }
            Outcome::Pending(message, pause) => {
                pending.push(message);
                again = Some(again.map_or(pause, |again| again.min(pause)));
            }
        }
    }
    let order = |name: &str| class.spec.versions.iter().position(|version| version.version == name);
    versions.sort_by_key(|version| order(&version.version));
    let status = class::class_status(&class, versions, &pending, Timestamp::now());
    let api: Api<DatabaseClass> = Api::all(inspector.client.clone());
    let live = api.get(&class.name_any()).await?;
    if live.status.as_ref() != Some(&status) {
        let changed = DatabaseClass { status: Some(status), ..live };
        api.replace_status(&class.name_any(), &PostParams::default(), &changed).await?;
    }
    Ok(again)
}

async fn inspect(inspector: &Inspector, class: &DatabaseClass, version: &ClassVersion) -> Result<Outcome, ClassError> {
    let hash = format!("{:x}", Sha256::digest(format!("{} {}", class.name_any(), version.image)));
    let name = format!("backlot-inspect-{}", &hash[..12]);
    let pods: Api<Pod> = Api::namespaced(inspector.client.clone(), &inspector.namespace);
    let Some(pod) = pods.get_opt(&name).await? else {
        identity(inspector).await?;
        let pull = &class.spec.image_pull_secrets;
        let object =
            build::inspection_pod(&name, &inspector.namespace, &version.image, IDENTITY, pull, &inspector.agent_image);
        let pod: Pod = serde_json::from_value(object.body)?;
        match pods.create(&PostParams::default(), &pod).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => drop(other?),
        }
        return Ok(Outcome::Pending(format!("{}: image {} is being inspected", version.version, version.image), SOON));
    };
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.clone().unwrap_or_default();
    if matches!(phase.as_str(), "Failed" | "Succeeded") {
        let why = exit_message(&pod);
        remove(&pods, &pod).await?;
        return Ok(Outcome::Pending(
            format!("{}: image {} could not be inspected: {why}. It is tried again", version.version, version.image),
            LATER,
        ));
    }
    let engine = status.container_statuses.iter().flatten().find(|container| container.name == "engine");
    let is_running = engine.and_then(|engine| engine.state.as_ref()?.running.as_ref()).is_some();
    let (Some(address), Some(engine), true) = (status.pod_ip.clone(), engine, is_running) else {
        let waits = waiting_message(&pod).unwrap_or_else(|| format!("pod {name} is starting"));
        return Ok(Outcome::Pending(format!("{}: image {}: {waits}", version.version, version.image), SOON));
    };
    let peer =
        Peer { address: endpoint(&address), name: names::member(UID, UID), identity: identity(inspector).await? };
    let pinned = pin(&version.image, &engine.image_id);
    let outcome = match peer.call::<Inspected>(hyper::Method::GET, "/v1/manifest", vec![]).await {
        Ok(inspected) => Outcome::Judged(Box::new(class::judge(version, pinned, inspected.manifest, inspected.verbs))),
        Err(CallError::Refused { message, .. }) => Outcome::Judged(Box::new(class::refused(version, message))),
        Err(error) => {
            return Ok(Outcome::Pending(format!("{}: image {}: {error}", version.version, version.image), SOON));
        }
    };
    remove(&pods, &pod).await?;
    Ok(outcome)
}

/// The reference that members run: the digest that the kubelet reports, under the name that the class gives.
fn pin(image: &str, image_id: &str) -> String {
    let id = image_id.trim_start_matches("docker-pullable://");
    match id.split_once('@') {
        Some((_, digest)) => {
            let name = image.split_once('@').map_or(image, |(name, _)| name);
            // A colon after the last slash separates the tag; one before it belongs to a registry's port.
            let tag = name.rfind(':').filter(|colon| name.rfind('/').is_none_or(|slash| slash < *colon));
            format!("{}@{digest}", &name[..tag.unwrap_or(name.len())])
        }
        None => image.to_owned(),
    }
}

async fn remove(pods: &Api<Pod>, pod: &Pod) -> Result<(), ClassError> {
    let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
    match pods.delete(&pod.name_any(), &DeleteParams::default().preconditions(preconditions)).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other.map(drop).map_err(ClassError::from),
    }
}

fn waiting_message(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let waiting = containers.into_iter().find_map(|container| container.state.as_ref()?.waiting.clone())?;
    Some(format!("{} {}", waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default()).trim().to_owned())
}

fn exit_message(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let ended = containers
        .filter_map(|container| container.state.as_ref()?.terminated.clone())
        .find(|ended| ended.exit_code != 0);
    ended.map_or_else(
        || status.message.clone().or(status.reason.clone()).unwrap_or_else(|| "the pod ended".to_owned()),
        |ended| {
            format!("exit code {} {}", ended.exit_code, ended.message.or(ended.reason).unwrap_or_default())
                .trim()
                .to_owned()
        },
    )
}

/// The identity of inspections; its Secret is made once.
async fn identity(inspector: &Inspector) -> Result<Identity, ClassError> {
    let secrets: Api<Secret> = Api::namespaced(inspector.client.clone(), &inspector.namespace);
    let secret = if let Some(secret) = secrets.get_opt(IDENTITY).await? {
        secret
    } else {
        let order = SecretOrder {
            name: IDENTITY.to_owned(),
            cluster_uid: UID.to_owned(),
            is_new: true,
            members: vec![UID.to_owned()],
            labels: Value::Null,
            passwords: BTreeMap::new(),
        };
        let data =
            pki::fill(&order, &BTreeMap::new())?.into_iter().map(|(key, value)| (key, ByteString(value))).collect();
        let metadata = ObjectMeta { name: Some(IDENTITY.to_owned()), ..ObjectMeta::default() };
        let secret = Secret { metadata, data: Some(data), ..Secret::default() };
        match secrets.create(&PostParams::default(), &secret).await {
            Err(kube::Error::Api(status)) if status.code == 409 => secrets.get(IDENTITY).await?,
            other => other?,
        }
    };
    let data = secret.data.unwrap_or_default();
    let entry = |key: &str| data.get(key).map(|value| value.0.as_slice()).unwrap_or_default();
    Identity::new(entry(pki::CA_CERTIFICATE), entry("operator.crt"), entry("operator.key"))
        .map_err(ClassError::Identity)
}

#[cfg(test)]
mod tests {
    use super::pin;

    #[test]
    fn an_image_is_pinned_by_the_digest_that_runs() {
        assert_eq!(pin("reg.example:5000/pg:15", "reg.example:5000/pg@sha256:ab"), "reg.example:5000/pg@sha256:ab");
        assert_eq!(pin("mirror/pg:15", "docker-pullable://other/pg@sha256:ab"), "mirror/pg@sha256:ab");
        assert_eq!(pin("pg@sha256:ab", "sha256:cd"), "pg@sha256:ab");
    }
}
