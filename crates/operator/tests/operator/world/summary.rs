//! The state of a world in lines that are the same for every way that leads to it: without UIDs, addresses, times, and without
//! the names that chance may give the founder's and leader's role to.

use std::collections::BTreeMap;

use backlot_api::{Database, labels};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::{Resource, ResourceExt};

use super::{NAMESPACE, World};

fn marks<K: Resource>(object: &K) -> String {
    let left = object.meta().annotations.as_ref().is_some_and(|known| known.contains_key(labels::LEFT));
    let going = object.meta().deletion_timestamp.is_some();
    format!("{}{}", if left { " left" } else { "" }, if going { " going" } else { "" })
}

impl World {
    /// The whole state, line by line.
    pub fn summary(&self) -> Vec<String> {
        let mut lines = vec![];
        for database in self.server.list::<Database>(NAMESPACE) {
            lines.extend(self.database_lines(&database));
        }
        for pod in self.server.list::<Pod>(NAMESPACE) {
            let records = self.members.read(NAMESPACE, &pod.name_any());
            lines.push(format!("pod {}{} holds {records:?}", pod.name_any(), marks(&pod)));
        }
        for claim in self.server.list::<PersistentVolumeClaim>(NAMESPACE) {
            let size = serde_json::to_value(&claim.spec).unwrap()["resources"]["requests"]["storage"].clone();
            lines.push(format!("claim {}{} {size}", claim.name_any(), marks(&claim)));
        }
        let mut volumes: BTreeMap<String, u32> = BTreeMap::new();
        for volume in self.server.list::<PersistentVolume>("") {
            let policy = volume.spec.unwrap().persistent_volume_reclaim_policy.unwrap();
            let phase = volume.status.unwrap().phase.unwrap();
            *volumes.entry(format!("{policy} {phase}")).or_default() += 1;
        }
        lines.push(format!("volumes {volumes:?}"));
        lines.extend(self.object_lines());
        lines
    }

    fn database_lines(&self, database: &Database) -> Vec<String> {
        let name = database.name_any();
        let status = database.status.clone().unwrap();
        let conditions: Vec<_> = status
            .conditions
            .iter()
            .map(|known| format!("{}={} {}", known.type_, known.status, known.reason))
            .collect();
        let uid = status.cluster_uid.clone().unwrap();
        let mut lines = vec![
            format!("{name}{} {conditions:?}", marks(database)),
            format!("{name} finalizers {:?}", database.finalizers()),
            format!("{name} ready {:?} leader {}", status.ready_members, status.leader.is_some()),
            format!("{name} engine {:?}", self.members.joined(&uid)),
        ];
        for group in &status.groups {
            let members: Vec<_> = group
                .members
                .iter()
                .map(|member| format!("{} {:?} {}", member.name, member.state, member.incarnation.is_some()))
                .collect();
            let (founded, led) = (group.founded && group.founder.is_some(), group.leader.is_some());
            lines.push(format!("{name} group {} {founded} {led} {} {members:?}", group.component, group.epoch));
        }
        lines
    }

    fn object_lines(&self) -> Vec<String> {
        let mut lines = vec![];
        for secret in self.server.list::<Secret>(NAMESPACE) {
            let keys: Vec<_> = secret.data.iter().flatten().map(|(key, _)| key.clone()).collect();
            let founded = secret.annotations().get(labels::FOUNDED).map(|text| text.contains("\"founded\":true"));
            lines.push(format!("secret {} {keys:?} founded {founded:?}", secret.name_any()));
        }
        for service in self.server.list::<Service>(NAMESPACE) {
            lines.push(format!("service {}", service.name_any()));
        }
        for slice in self.server.list::<EndpointSlice>(NAMESPACE) {
            let ready = |known: &&k8s_openapi::api::discovery::v1::Endpoint| {
                known.conditions.as_ref().is_some_and(|known| known.ready == Some(true))
            };
            lines.push(format!("slice {} {}", slice.name_any(), slice.endpoints.iter().filter(ready).count()));
        }
        for budget in self.server.list::<PodDisruptionBudget>(NAMESPACE) {
            lines.push(format!("budget {} {:?}", budget.name_any(), budget.spec.unwrap().min_available));
        }
        lines
    }
}
