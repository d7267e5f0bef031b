//! The endpoint slice controller: one slice for each Service with a selector.

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Cluster, Workload, is_deleting, is_finished, is_ready, node_name};
use crate::api_server::Refused;

impl<W: Workload> Cluster<W> {
    pub(super) fn write_endpoints(&mut self) -> Result<(), Refused> {
        if self.trouble.endpoints {
            return Ok(());
        }
        let services: Vec<Service> = self.server.list("");
        let pods = self.pods();
        for service in services.iter().filter(|service| !is_deleting(*service)) {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
            if selector.is_empty() {
                continue;
            }
            let selected = pods.iter().filter(|pod| {
                pod.namespace() == service.namespace()
                    && !is_finished(pod)
                    && selector.iter().all(|(key, value)| pod.labels().get(key) == Some(value))
            });
            let slice = self.slice(service, selected);
            self.write_slice(service, &slice)?;
        }
        Ok(())
    }

    fn write_slice(&self, service: &Service, slice: &Value) -> Result<(), Refused> {
        let (namespace, name) = (service.namespace().unwrap_or_default(), slice_name(service));
        let collection = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
        match self.server.get::<EndpointSlice>(&namespace, &name) {
            None => self.post(&collection, slice),
            Some(_) => self.patch(
                &format!("{collection}/{name}"),
                &json!({"endpoints": slice["endpoints"], "ports": slice["ports"]}),
            ),
        }
    }

    fn slice<'a>(&self, service: &Service, pods: impl Iterator<Item = &'a Pod>) -> Value {
        let spec = service.spec.clone().unwrap_or_default();
        let early = spec.publish_not_ready_addresses == Some(true);
        let endpoints: Vec<Value> = pods.filter_map(|pod| self.endpoint(pod, early)).collect();
        let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
            let target = serde_json::to_value(&port.target_port).unwrap_or_default();
            let number = if target.is_number() { target } else { json!(port.port) };
            json!({"name": port.name.clone().unwrap_or_default(), "protocol": port.protocol, "port": number})
        };
        let ports: Vec<Value> = spec.ports.iter().flatten().map(port).collect();
        json!({
            "metadata": {
                "name": slice_name(service),
                "labels": {
                    "kubernetes.io/service-name": service.name_any(),
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Service", "name": service.name_any(), "uid": service.uid(),
                    "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports,
        })
    }

    fn endpoint(&self, pod: &Pod, early: bool) -> Option<Value> {
        let address = pod.status.as_ref()?.pod_ip.clone()?;
        let terminating = is_deleting(pod);
        let serving = is_ready(pod);
        let node: Option<Node> = self.server.get("", node_name(pod));
        let zone = node.and_then(|node| node.labels().get("topology.kubernetes.io/zone").cloned());
        Some(json!({
            "addresses": [address],
            "conditions": {"ready": (serving && !terminating) || early, "serving": serving || early, "terminating": terminating},
            "nodeName": node_name(pod),
            "zone": zone,
            "targetRef": {"kind": "Pod", "namespace": pod.namespace(), "name": pod.name_any(), "uid": pod.uid()},
        }))
    }
}

fn slice_name(service: &Service) -> String {
    format!("{}-simulated", service.name_any())
}
