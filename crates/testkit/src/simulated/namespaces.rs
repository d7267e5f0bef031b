//! The namespace controller: empties namespaces that go.

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use serde_json::json;

use super::{Cluster, Workload, is_deleting};
use crate::api_server::Refused;

impl<W: Workload> Cluster<W> {
    pub(super) fn end_namespaces(&mut self) -> Result<(), Refused> {
        let namespaces: Vec<Namespace> = self.server.list("");
        for namespace in namespaces.iter().filter(|namespace| is_deleting(*namespace)) {
            let name = namespace.name_any();
            let content: Vec<_> = self.server.stored().into_iter().filter(|object| object.namespace == name).collect();
            if content.is_empty() {
                let body = json!({"spec": {"finalizers": null}});
                self.patch(&format!("/api/v1/namespaces/{name}"), &body)?;
            }
            for object in content.iter().filter(|object| object.object["metadata"]["deletionTimestamp"].is_null()) {
                let uid = object.object["metadata"]["uid"].as_str().unwrap_or_default();
                self.delete(&object.path, uid, &json!({}))?;
            }
        }
        Ok(())
    }
}
