//! The disruption controller: counts the pods of each budget.

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use serde_json::json;

use super::{Cluster, Workload, is_deleting, is_finished, is_ready};
use crate::api_server::{Refused, label_selector_matches};

impl<W: Workload> Cluster<W> {
    pub(super) fn count_budgets(&mut self) -> Result<(), Refused> {
        let budgets: Vec<PodDisruptionBudget> = self.server.list("");
        let pods = self.pods();
        for budget in &budgets {
            let spec = budget.spec.clone().unwrap_or_default();
            let selector = serde_json::to_value(&spec.selector).unwrap_or_default();
            let covered: Vec<_> = pods
                .iter()
                .filter(|pod| {
                    let labels = serde_json::to_value(pod.labels()).unwrap_or_default();
                    pod.namespace() == budget.namespace()
                        && !is_finished(pod)
                        && label_selector_matches(&selector, &labels)
                })
                .collect();
            let expected = i64::try_from(covered.len()).unwrap_or_default();
            let healthy = covered.iter().filter(|pod| is_ready(pod) && !is_deleting(**pod)).count();
            let healthy = i64::try_from(healthy).unwrap_or_default();
            let desired = match (&spec.min_available, &spec.max_unavailable) {
                (Some(minimum), _) => share(minimum, expected),
                (None, Some(maximum)) => expected - share(maximum, expected),
                (None, None) => expected - 1,
            };
            let path = format!(
                "/apis/policy/v1/namespaces/{}/poddisruptionbudgets/{}/status",
                budget.namespace().unwrap_or_default(),
                budget.name_any()
            );
            let status = json!({
                "expectedPods": expected, "currentHealthy": healthy, "desiredHealthy": desired.max(0),
                "disruptionsAllowed": (healthy - desired).max(0), "observedGeneration": budget.metadata.generation,
            });
            self.patch(&path, &json!({ "status": status }))?;
        }
        Ok(())
    }
}

/// A number, or a percentage of `whole` rounded up.
fn share(value: &IntOrString, whole: i64) -> i64 {
    match value {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or_default();
            (whole * percent + 99) / 100
        }
    }
}
