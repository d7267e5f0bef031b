//! Components of one engine's cluster: which of them founds it, and that this is settled once (SPEC §9.11).

use backlot_api::Database;
use backlot_standard::manifest::Manifest;

use crate::records::Founding;
use crate::validate::{Refusal, WantedComponent, refuse};

/// The component that founds the engine's cluster of this one: itself, or the farthest one that it joins, through others, and that
/// has members.
pub(crate) fn root<'a>(manifest: &'a Manifest, component: &'a str, has_members: impl Fn(&str) -> bool) -> &'a str {
    manifest.chain(component).filter(|name| *name == component || has_members(name)).last().unwrap_or(component)
}

/// Whether a component founds, by the members that are wanted.
pub(crate) fn founds(manifest: &Manifest, components: &[WantedComponent], name: &str) -> bool {
    root(manifest, name, |other| has(components, other)) == name
}

fn has(components: &[WantedComponent], name: &str) -> bool {
    components.iter().any(|known| known.component.name == name && known.members > 0)
}

/// Which component founds is settled with the first spec that was accepted: members that founded cannot become such that join,
/// nor the other way round.
pub(crate) fn check_root(
    database: &Database,
    manifest: &Manifest,
    components: &[WantedComponent],
    founding: Option<&Founding>,
    refusals: &mut Vec<Refusal>,
) {
    let bound = manifest.bound_component();
    let is_chained = |name: &str| manifest.chain(bound).any(|known| known == name);
    let status = database.status.as_ref();
    let stored = status.into_iter().flat_map(|status| &status.groups).filter(|group| group.founder.is_some());
    let recorded = founding.into_iter().flat_map(|record| &record.groups).filter(|group| group.founder.is_some());
    let mut founders = stored.map(|group| &group.component).chain(recorded.map(|group| &group.component));
    let accepted = || {
        let spec = status?.accepted_spec.as_ref()?;
        Some(root(manifest, bound, |name| {
            let given = spec.components.get(name).and_then(|part| part.members);
            given.or_else(|| Some(manifest.component(name)?.members.default)).is_some_and(|members| members > 0)
        }))
    };
    let settled = founders.find(|name| is_chained(name)).map(String::as_str).or_else(accepted);
    let wanted = root(manifest, bound, |name| has(components, name));
    let Some(settled) = settled.filter(|settled| *settled != wanted) else { return };
    let (name, instead) = if has(components, settled) { (wanted, "0") } else { (settled, "at least 1") };
    let members = components.iter().find(|known| known.component.name == name).map_or(0, |known| known.members);
    refusals.push(refuse(
        "MembersRefused",
        format!(
            "spec.components.{name}.members: {members} refused: whether a cluster has {name} is settled when it is created. Use {instead}"
        ),
    ));
}
