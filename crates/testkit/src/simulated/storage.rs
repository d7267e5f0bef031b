//! Provisioner, binder, resizer and the protection of volumes in use.
//!
//! Invariant: a volume goes only when its claim is gone and its reclaim policy says Delete.

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Cluster, Workload, claims, is_deleting, is_finished, path};
use crate::api_server::{Refused, parse_quantity};

impl<W: Workload> Cluster<W> {
    /// Binds claims to volumes, makes volumes, grows them.
    pub(super) fn bind_volumes(&mut self) -> Result<(), Refused> {
        let claims: Vec<PersistentVolumeClaim> = self.server.list("");
        for claim in claims.iter().filter(|claim| !is_deleting(*claim)) {
            match claim.status.as_ref().and_then(|status| status.phase.as_deref()) {
                Some("Bound") => {
                    self.check_bound(claim)?;
                    self.grow(claim)?;
                }
                Some("Lost") => {}
                _ => self.bind(claim)?,
            }
        }
        let volumes: Vec<PersistentVolume> = self.server.list("");
        for volume in volumes.iter().filter(|volume| volume_phase(volume) == "Pending") {
            self.set_volume_phase(&volume.name_any(), "Available")?;
        }
        Ok(())
    }

    fn bind(&mut self, claim: &PersistentVolumeClaim) -> Result<(), Refused> {
        let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
        let volumes: Vec<PersistentVolume> = self.server.list("");
        let reserved = |volume: &&PersistentVolume| {
            let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            reference.is_some_and(|reference| refers_to(reference, claim))
        };
        let free = |volume: &&PersistentVolume| {
            volume.name_any() == wanted && volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none())
        };
        let usable = volumes.iter().filter(|volume| wanted.is_empty() || volume.name_any() == wanted);
        if let Some(volume) = usable.clone().find(reserved).or_else(|| usable.clone().find(free)) {
            return self.join(claim, volume);
        }
        if wanted.is_empty() { self.provision(claim) } else { Ok(()) }
    }

    fn provision(&mut self, claim: &PersistentVolumeClaim) -> Result<(), Refused> {
        let spec = claim.spec.clone().unwrap_or_default();
        let class: Option<StorageClass> = self.server.get("", &spec.storage_class_name.clone().unwrap_or_default());
        let Some(class) = class.filter(|class| class.provisioner != "kubernetes.io/no-provisioner") else {
            return Ok(());
        };
        let node = claim.annotations().get("volume.kubernetes.io/selected-node");
        let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
        if self.trouble.provisioning || (waits && node.is_none()) {
            return Ok(());
        }
        let name = format!("pvc-{}", claim.uid().unwrap_or_default());
        let storage = requested(claim);
        let mut volume = json!({
            "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": class.provisioner}},
            "spec": {
                "capacity": {"storage": storage},
                "accessModes": spec.access_modes,
                "persistentVolumeReclaimPolicy": class.reclaim_policy,
                "storageClassName": class.name_any(),
                "volumeMode": spec.volume_mode,
                "claimRef": reference(claim),
                "csi": {"driver": class.provisioner, "volumeHandle": name},
            },
        });
        if let (true, Some(node)) = (waits, node) {
            let expression = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
            volume["spec"]["nodeAffinity"] =
                json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}});
        }
        self.post("/api/v1/persistentvolumes", &volume)
    }

    fn join(&mut self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Refused> {
        let (namespace, name) = (claim.namespace().unwrap_or_default(), claim.name_any());
        self.patch(
            &format!("/api/v1/persistentvolumes/{}", volume.name_any()),
            &json!({"spec": {"claimRef": reference(claim)}}),
        )?;
        self.set_volume_phase(&volume.name_any(), "Bound")?;
        let path = path(&namespace, "persistentvolumeclaims", &name);
        self.patch(
            &path,
            &json!({
                "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
                "spec": {"volumeName": volume.name_any()},
            }),
        )?;
        let spec = volume.spec.clone().unwrap_or_default();
        let status = json!({"phase": "Bound", "accessModes": spec.access_modes, "capacity": spec.capacity});
        self.patch(&format!("{path}/status"), &json!({ "status": status }))
    }

    /// A bound claim whose volume is gone is lost.
    fn check_bound(&self, claim: &PersistentVolumeClaim) -> Result<(), Refused> {
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
        if self.server.get::<PersistentVolume>("", &name).is_some() {
            return Ok(());
        }
        let path = path(&claim.namespace().unwrap_or_default(), "persistentvolumeclaims", &claim.name_any());
        self.patch(&format!("{path}/status"), &json!({"status": {"phase": "Lost"}}))
    }

    fn grow(&self, claim: &PersistentVolumeClaim) -> Result<(), Refused> {
        let capacity = claim.status.as_ref().and_then(|status| status.capacity.as_ref());
        let size = |text: &str| parse_quantity(text).unwrap_or_default();
        let present = capacity.and_then(|capacity| capacity.get("storage")).map_or(0, |quantity| size(&quantity.0));
        let wanted = requested(claim);
        let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()).unwrap_or_default();
        let class: Option<StorageClass> = self.server.get("", &class);
        let expandable = class.is_some_and(|class| class.allow_volume_expansion == Some(true));
        if self.trouble.resizing || !expandable || size(&wanted) <= present {
            return Ok(());
        }
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
        let body = json!({"spec": {"capacity": {"storage": wanted}}});
        self.patch(&format!("/api/v1/persistentvolumes/{volume}"), &body)?;
        let path = path(&claim.namespace().unwrap_or_default(), "persistentvolumeclaims", &claim.name_any());
        self.patch(&format!("{path}/status"), &json!({"status": {"capacity": {"storage": wanted}}}))
    }

    /// Lets go of claims and volumes that nothing uses, and reclaims volumes.
    pub(super) fn release_volumes(&mut self) -> Result<(), Refused> {
        let pods = self.pods();
        let all: Vec<PersistentVolumeClaim> = self.server.list("");
        for claim in all.iter().filter(|claim| is_deleting(*claim)) {
            let used = pods.iter().any(|pod| {
                pod.namespace() == claim.namespace()
                    && !is_finished(pod)
                    && claims(pod).iter().any(|(_, name)| *name == claim.name_any())
            });
            let path = path(&claim.namespace().unwrap_or_default(), "persistentvolumeclaims", &claim.name_any());
            if !used {
                self.drop_finalizer(&path, claim.finalizers(), "kubernetes.io/pvc-protection")?;
            }
        }
        let volumes: Vec<PersistentVolume> = self.server.list("");
        for volume in &volumes {
            self.reclaim(volume)?;
        }
        Ok(())
    }

    fn reclaim(&mut self, volume: &PersistentVolume) -> Result<(), Refused> {
        let name = volume.name_any();
        let path = format!("/api/v1/persistentvolumes/{name}");
        let spec = volume.spec.clone().unwrap_or_default();
        let claim = spec.claim_ref.clone().unwrap_or_default();
        let found: Option<PersistentVolumeClaim> =
            self.server.get(&claim.namespace.unwrap_or_default(), &claim.name.unwrap_or_default());
        let claimed = found.is_some_and(|found| found.uid() == claim.uid);
        if is_deleting(volume) {
            if !claimed || volume_phase(volume) != "Bound" {
                let lost = volume.finalizers() == ["kubernetes.io/pv-protection"];
                self.drop_finalizer(&path, volume.finalizers(), "kubernetes.io/pv-protection")?;
                if lost && spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete") {
                    self.workload.volume_deleted(&name);
                }
            }
            return Ok(());
        }
        if claimed || claim.uid.is_none() || !matches!(volume_phase(volume), "Bound" | "Released") {
            return Ok(());
        }
        if volume_phase(volume) == "Bound" {
            self.set_volume_phase(&name, "Released")?;
        }
        if spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete") {
            self.delete(&path, &volume.uid().unwrap_or_default(), &json!({}))?;
        }
        Ok(())
    }

    fn set_volume_phase(&self, name: &str, phase: &str) -> Result<(), Refused> {
        self.patch(&format!("/api/v1/persistentvolumes/{name}/status"), &json!({"status": {"phase": phase}}))
    }

    /// Removes one finalizer and leaves the others.
    pub(super) fn drop_finalizer(&self, path: &str, present: &[String], finalizer: &str) -> Result<(), Refused> {
        if !present.iter().any(|one| one == finalizer) {
            return Ok(());
        }
        let left: Vec<&String> = present.iter().filter(|one| *one != finalizer).collect();
        self.patch(path, &json!({"metadata": {"finalizers": left}}))
    }
}

fn volume_phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

fn requested(claim: &PersistentVolumeClaim) -> String {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    requests.and_then(|requests| requests.get("storage")).map_or_else(|| "0".to_owned(), |quantity| quantity.0.clone())
}

fn reference(claim: &PersistentVolumeClaim) -> Value {
    json!({
        "kind": "PersistentVolumeClaim",
        "apiVersion": "v1",
        "namespace": claim.namespace(),
        "name": claim.name_any(),
        "uid": claim.uid(),
    })
}

/// Whether a volume is kept for this claim: by name, and by UID where the reference has one.
fn refers_to(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    reference.namespace == claim.namespace()
        && reference.name.as_deref() == Some(&claim.name_any())
        && (reference.uid.is_none() || reference.uid == claim.uid())
}
