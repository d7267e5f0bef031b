//! Services, endpoint slices of routes, disruption budgets.

use backlot_api::labels::{CLUSTER_UID, COMPONENT, MANAGED_BY_VALUE, ROUTE_EPOCH};
use backlot_standard::manifest::{Leadership, PortPurpose};
use serde_json::{Value, json};

use super::{Kind, Object, meta};
use crate::names;
use crate::validate::{Wanted, WantedComponent};

/// Every Service of a Database: members' names, and one or two for applications.
pub fn services(wanted: &Wanted) -> Vec<Object> {
    let ports = ports(wanted);
    let mut services = vec![Object::new(
        Kind::Service,
        names::members_service(&wanted.name),
        json!({
            "metadata": meta(wanted),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": true,
                "selector": {CLUSTER_UID: wanted.cluster_uid},
                "ports": all_ports(wanted),
            },
        }),
    )];
    let service = |name: String, selector: Option<Value>| {
        let mut body = json!({"metadata": meta(wanted), "spec": {"type": "ClusterIP", "ports": ports}});
        if let Some(selector) = selector {
            body["spec"]["selector"] = selector;
        }
        Object::new(Kind::Service, name, body)
    };
    if has_leader(wanted) {
        services.push(service(names::service(&wanted.name), None));
        services.push(service(names::read_only_service(&wanted.name), None));
    } else {
        let selector = json!({CLUSTER_UID: wanted.cluster_uid, COMPONENT: wanted.manifest.bound_component()});
        services.push(service(names::service(&wanted.name), Some(selector)));
    }
    services
}

/// Whether applications must find a leader.
pub(crate) fn has_leader(wanted: &Wanted) -> bool {
    wanted.components.iter().any(|component| component.component.leader == Leadership::One)
}

fn port(port: &backlot_standard::manifest::Port) -> Value {
    json!({"name": port.name, "port": port.port, "protocol": port.protocol})
}

fn ports(wanted: &Wanted) -> Value {
    wanted.manifest.ports.iter().filter(|known| known.purpose == PortPurpose::Client).map(port).collect()
}

fn all_ports(wanted: &Wanted) -> Value {
    wanted.manifest.ports.iter().map(port).collect()
}

/// An endpoint slice of a selectorless Service. `endpoints` are `(member, address, ready)`.
pub fn slice(wanted: &Wanted, service: &str, epoch: &str, endpoints: &[(String, String, bool)]) -> Object {
    let mut metadata = meta(wanted);
    metadata["labels"]["kubernetes.io/service-name"] = json!(service);
    metadata["labels"]["endpointslice.kubernetes.io/managed-by"] = json!(MANAGED_BY_VALUE);
    metadata["annotations"] = json!({ROUTE_EPOCH: epoch});
    let is_v6 = endpoints.iter().any(|(_, address, _)| address.contains(':'));
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(member, address, ready)| {
            json!({
                "addresses": [address],
                "conditions": {"ready": ready, "serving": ready, "terminating": false},
                "targetRef": {"kind": "Pod", "name": member, "namespace": wanted.namespace},
            })
        })
        .collect();
    Object::new(
        Kind::Slice,
        service,
        json!({
            "metadata": metadata,
            "addressType": if is_v6 { "IPv6" } else { "IPv4" },
            "endpoints": endpoints,
            "ports": ports(wanted),
        }),
    )
}

/// The disruption budget of a component: one member at a time, an integer of the present topology.
pub fn budget(wanted: &Wanted, component: &WantedComponent, members: usize) -> Object {
    let name = &component.component.name;
    Object::new(
        Kind::Budget,
        names::budget(&wanted.name, name),
        json!({
            "metadata": meta(wanted),
            "spec": {
                "minAvailable": members.saturating_sub(1),
                "selector": {"matchLabels": {CLUSTER_UID: wanted.cluster_uid, COMPONENT: name}},
            },
        }),
    )
}
