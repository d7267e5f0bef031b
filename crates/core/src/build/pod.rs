//! Pods: members and the inspection of an image. A member's pod is a pure function of the wanted state, its record and the
//! agent's image; the template is never compared with a live pod, so that a new operator restarts nothing.

use backlot_api::database::MemberRecord;
use backlot_api::labels::{CLUSTER_UID, INSPECTS, MANAGED_BY, MANAGED_BY_VALUE, VERSION};
use backlot_standard::layout::{self, env};
use backlot_standard::verb::Verb;
use serde_json::{Value, json};

use super::{Kind, Object, member_labels, owner};
use crate::names;
use crate::plan::claims_of;
use crate::snapshot::OperatorFacts;
use crate::validate::{Wanted, WantedComponent};

/// User id of members when neither the image nor the platform gives one.
const DEFAULT_UID: u32 = 999;
/// Seconds that the agent needs on top of the engine's own stop.
const STOP_MARGIN_SECONDS: u32 = 30;

/// The pod of a member.
pub fn pod(
    wanted: &Wanted,
    component: &WantedComponent,
    member: &MemberRecord,
    shard: u32,
    operator: &OperatorFacts,
) -> Object {
    let name = &member.name;
    let mut labels = member_labels(wanted, &component.component.name, shard, member.ordinal);
    labels[VERSION] = json!(wanted.manifest.version);
    let resources = resources(component);
    let body = json!({
        "metadata": {
            "namespace": wanted.namespace,
            "labels": labels,
            "annotations": {"sidecar.istio.io/inject": "false", "linkerd.io/inject": "disabled"},
            "ownerReferences": owner(wanted),
        },
        "spec": {
            "hostname": name,
            "subdomain": names::members_service(&wanted.name),
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": grace_seconds(wanted),
            "securityContext": pod_security(wanted.manifest.security.uid.unwrap_or(DEFAULT_UID)),
            "imagePullSecrets": wanted.pull_secrets.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
            "nodeSelector": wanted.placement.node_selector,
            "tolerations": wanted.placement.tolerations,
            "affinity": spread(wanted),
            "topologySpreadConstraints": [{
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {CLUSTER_UID: wanted.cluster_uid}},
            }],
            "initContainers": [install(&operator.agent_image, &resources)],
            "containers": [engine(wanted, component, name, &resources)],
            "volumes": volumes(wanted, component, name),
        },
    });
    Object::new(Kind::Pod, name, body)
}

/// Time for `pre-stop`, the engine's own stop and the agent.
fn grace_seconds(wanted: &Wanted) -> u32 {
    let pre_stop = if wanted.has(Verb::PreStop) { wanted.manifest.rule(Verb::PreStop).timeout_seconds } else { 0 };
    pre_stop + wanted.manifest.stop.total_seconds() + STOP_MARGIN_SECONDS
}

fn resources(component: &WantedComponent) -> Value {
    let mut limits = json!({"memory": component.memory_bytes.to_string()});
    if component.cpu_millis > 0 {
        limits["cpu"] = json!(format!("{}m", component.cpu_millis));
    }
    json!({"limits": limits, "requests": limits})
}

fn pod_security(uid: u32) -> Value {
    json!({
        "runAsNonRoot": true,
        "runAsUser": uid,
        "runAsGroup": uid,
        "fsGroup": uid,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

fn container_security() -> Value {
    json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
}

fn spread(wanted: &Wanted) -> Value {
    json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
        "weight": 100,
        "podAffinityTerm": {
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {CLUSTER_UID: wanted.cluster_uid}},
        },
    }]}})
}

fn install(agent_image: &str, resources: &Value) -> Value {
    json!({
        "name": "agent",
        "image": agent_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/backlot-agent", "install", layout::AGENT_DIR],
        "resources": resources,
        "securityContext": container_security(),
        "volumeMounts": [{"name": "agent", "mountPath": layout::AGENT_DIR}],
    })
}

fn engine(wanted: &Wanted, component: &WantedComponent, member: &str, resources: &Value) -> Value {
    let ports: Vec<_> = wanted
        .manifest
        .ports
        .iter()
        .map(|port| json!({"name": port.name, "containerPort": port.port, "protocol": port.protocol}))
        .chain([json!({"name": "agent", "containerPort": layout::AGENT_PORT, "protocol": "TCP"})])
        .collect();
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": "agent", "scheme": "HTTPS"},
            "periodSeconds": period,
            "timeoutSeconds": 3,
            "failureThreshold": failures,
        })
    };
    json!({
        "name": "engine",
        "image": wanted.image,
        "imagePullPolicy": "IfNotPresent",
        "command": [layout::AGENT_BINARY, "keeper"],
        "env": [
            {"name": env::MEMBER, "value": member},
            {"name": env::CLUSTER_UID, "value": wanted.cluster_uid},
            {"name": env::POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "ports": ports,
        "readinessProbe": probe("/readyz", 3, 2),
        // The pilot is restarted by the keeper within seconds; only a wedged container is the kubelet's business.
        "livenessProbe": probe("/livez", 20, 6),
        "resources": resources,
        "securityContext": container_security(),
        "volumeMounts": mounts(wanted, component),
    })
}

fn mounts(wanted: &Wanted, component: &WantedComponent) -> Vec<Value> {
    let mut mounts = vec![
        json!({"name": "agent", "mountPath": layout::AGENT_DIR}),
        json!({"name": "identity", "mountPath": layout::IDENTITY_DIR, "readOnly": true}),
        json!({"name": "credentials", "mountPath": layout::CREDENTIALS_DIR, "readOnly": true}),
        json!({"name": "run", "mountPath": layout::RUN_DIR}),
    ];
    for (index, path) in wanted.manifest.security.scratch.iter().enumerate() {
        mounts.push(json!({"name": format!("scratch-{index}"), "mountPath": path}));
    }
    if wanted.manifest.security.shared_memory_bytes > 0 {
        mounts.push(json!({"name": "shared-memory", "mountPath": "/dev/shm"}));
    }
    if !component.component.stateless {
        for volume in &wanted.manifest.volumes {
            mounts.push(json!({"name": format!("volume-{}", volume.name), "mountPath": volume.path}));
        }
    }
    mounts
}

fn volumes(wanted: &Wanted, component: &WantedComponent, member: &str) -> Vec<Value> {
    let secret = names::cluster_secret(&wanted.name);
    let item = |key: String, path: String| json!({"key": key, "path": path});
    let secrets = &wanted.manifest.secrets;
    let version = |version: &str, suffix: &str| -> Vec<Value> {
        secrets
            .iter()
            .map(|known| item(format!("secret.{}{suffix}", known.name), format!("{}/{version}", known.name)))
            .collect()
    };
    let optional: Vec<_> = version("next", ".next").into_iter().chain(version("previous", ".previous")).collect();
    // Without a declared secret the volume would otherwise project every key, the CA's among them.
    let credentials = if secrets.is_empty() {
        json!({"name": "credentials", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}})
    } else {
        json!({"name": "credentials", "projected": {"sources": [
            {"secret": {"name": secret, "items": version("current", "")}},
            {"secret": {"name": secret, "optional": true, "items": optional}},
        ]}})
    };
    let mut volumes = vec![
        json!({"name": "agent", "emptyDir": {"sizeLimit": "64Mi"}}),
        json!({"name": "identity", "projected": {"sources": [{"secret": {"name": secret, "items": [
            item("ca.crt".into(), "ca.crt".into()),
            item(format!("{member}.crt"), "tls.crt".into()),
            item(format!("{member}.key"), "tls.key".into()),
        ]}}]}}),
        credentials,
        json!({"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}),
    ];
    for index in 0..wanted.manifest.security.scratch.len() {
        volumes.push(json!({"name": format!("scratch-{index}"), "emptyDir": {"sizeLimit": "256Mi"}}));
    }
    let shared = wanted.manifest.security.shared_memory_bytes;
    if shared > 0 {
        volumes
            .push(json!({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": shared.to_string()}}));
    }
    if !component.component.stateless {
        for (volume, claim) in claims_of(wanted, member) {
            volumes.push(json!({"name": format!("volume-{volume}"), "persistentVolumeClaim": {"claimName": claim}}));
        }
    }
    volumes
}

/// A short-lived pod that runs an image with the agent, which serves the manifest. `identity` names the Secret with its keys.
pub fn inspection_pod(
    name: &str,
    namespace: &str,
    image: &str,
    identity: &str,
    pull_secrets: &[String],
    agent_image: &str,
) -> Object {
    let resources = json!({"limits": {"cpu": "200m", "memory": "64Mi"}, "requests": {"cpu": "10m", "memory": "64Mi"}});
    let body = json!({
        "metadata": {
            "namespace": namespace,
            "labels": {MANAGED_BY: MANAGED_BY_VALUE},
            "annotations": {INSPECTS: image, "sidecar.istio.io/inject": "false", "linkerd.io/inject": "disabled"},
        },
        "spec": {
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": 600,
            "terminationGracePeriodSeconds": 0,
            "securityContext": pod_security(DEFAULT_UID),
            "imagePullSecrets": pull_secrets.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
            "initContainers": [install(agent_image, &resources)],
            "containers": [{
                "name": "engine",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": [layout::AGENT_BINARY, "inspect"],
                "env": [
                    {"name": env::MEMBER, "value": "inspection"},
                    {"name": env::CLUSTER_UID, "value": "inspection"},
                ],
                "resources": resources,
                "securityContext": container_security(),
                "volumeMounts": [
                    {"name": "agent", "mountPath": layout::AGENT_DIR, "readOnly": true},
                    {"name": "identity", "mountPath": layout::IDENTITY_DIR, "readOnly": true},
                ],
            }],
            "volumes": [
                {"name": "agent", "emptyDir": {"sizeLimit": "64Mi"}},
                {"name": "identity", "secret": {"secretName": identity, "items": [
                    {"key": "ca.crt", "path": "ca.crt"},
                    {"key": "inspection.crt", "path": "tls.crt"},
                    {"key": "inspection.key", "path": "tls.key"},
                ]}},
            ],
        },
    });
    Object::new(Kind::Pod, name, body)
}
