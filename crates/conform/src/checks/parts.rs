//! Components that a cluster may have or not: they join the cluster of another one (SPEC §9.11).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use backlot_standard::manifest::Component;
use backlot_standard::verb::Verb;
use kube::ResourceExt as _;
use serde_json::json;

use super::three;
use crate::kit::{Claims, Kit};

fn optional(claims: &Claims) -> Vec<Component> {
    claims.manifest.components.iter().filter(|component| component.members.min == 0).cloned().collect()
}

fn is_joined(claims: &Claims, name: &str) -> bool {
    claims.manifest.components.iter().any(|other| other.joins.as_deref() == Some(name))
}

/// Why there is nothing to try.
pub fn none(claims: &Claims) -> Option<&'static str> {
    super::no_workload(claims)
        .or_else(|| optional(claims).is_empty().then_some("every component has `members.min` of 1 or more"))
}

/// A Database with every component founds one cluster, loses a member of each kind, and lets those go that may.
pub fn join_serve_and_leave(kit: &mut Kit) -> Result<()> {
    kit.delete()?;
    let size = three(&kit.claims);
    let count = |component: &Component| {
        if is_joined(&kit.claims, &component.name) { component.members.max.min(3) } else { 1 }
    };
    let counts: BTreeMap<String, u32> =
        optional(&kit.claims).iter().map(|component| (component.name.clone(), count(component))).collect();
    let all = size + counts.values().sum::<u32>();
    kit.create_with_components(size, &counts)?;
    kit.wait_ready(all)?;
    kit.write(100)?;
    one_cluster(kit, all)?;
    for component in counts.keys() {
        let members = members(kit, component);
        let member = members.last().with_context(|| format!("{component} has no member"))?;
        kit.kill(member)?;
        std::thread::sleep(std::time::Duration::from_secs(2));
        kit.wait_ready(all).with_context(|| format!("{member} was killed"))?;
        kit.verify()?;
    }
    let leaves: Vec<_> = counts.keys().filter(|name| !is_joined(&kit.claims, name)).cloned().collect();
    for (component, members) in leaves.iter().flat_map(|name| [(name, 0), (name, 1)]) {
        kit.edit(|database| {
            database.spec.components.entry(component.clone()).or_default().members = Some(members);
        })?;
        let left = if members == 0 { all - 1 } else { all };
        kit.wait_ready(left).with_context(|| format!("{component} with {members} members"))?;
        kit.verify()?;
    }
    kit.write_more()?;
    kit.verify()?;
    one_cluster(kit, all)?;
    kit.delete()
}

fn members(kit: &Kit, component: &str) -> Vec<String> {
    let pods = kit.pods().into_iter();
    let is_of = |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.labels().get(backlot_api::labels::COMPONENT).is_some_and(|label| label == component)
    };
    pods.filter(is_of).map(|pod| pod.name_any()).collect()
}

/// The engine's own list holds every member.
fn one_cluster(kit: &Kit, all: u32) -> Result<()> {
    if !kit.claims.has(Verb::Membership) {
        return Ok(());
    }
    let member = kit.bound_members().into_iter().next().context("there is no member")?;
    let output = super::member::until_done(kit, &member, Verb::Membership)?.result.output.unwrap_or_default();
    let listed = output["members"].as_array().map_or(0, Vec::len);
    ensure!(
        listed == all as usize,
        "the engine lists {listed} members, {all} belong to it: {}",
        json!(output["members"])
    );
    Ok(())
}
