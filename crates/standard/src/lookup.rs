//! What callers ask of a manifest.

use crate::config::Apply;
use crate::manifest::{Component, IdRange, Manifest, Port};
use crate::verb::{Verb, VerbRule};

impl Manifest {
    /// How `verb` is run: the standard's default with this image's overrides.
    pub fn rule(&self, verb: Verb) -> VerbRule {
        let default = verb.default_rule();
        let Some(changed) = self.verbs.get(&verb) else { return default };
        VerbRule {
            lane: changed.lane.unwrap_or(default.lane),
            engine: changed.engine.unwrap_or(default.engine),
            runs_on: changed.runs_on.unwrap_or(default.runs_on),
            timeout_seconds: changed.timeout_seconds.unwrap_or(default.timeout_seconds),
            long: changed.long.unwrap_or(default.long),
        }
    }

    /// The first setting of this kind that has an example, with it (§8): what tests change.
    pub fn example(&self, apply: Apply) -> Option<(String, String)> {
        let mut settings = self.config.iter().filter(|(_, setting)| setting.apply == apply);
        settings.find_map(|(key, setting)| Some((key.clone(), setting.example.clone()?)))
    }

    /// The component with this name.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|component| component.name == name)
    }

    /// The components whose cluster this one may be part of: itself, what it joins, what that joins, and so on (SPEC §9.11).
    pub fn chain<'a>(&'a self, component: &'a str) -> impl Iterator<Item = &'a str> {
        std::iter::successors(Some(component), |at| self.component(at).and_then(|known| known.joins.as_deref()))
    }

    /// The last of the chain: the same for all components of one engine's cluster, and for no others.
    pub fn top<'a>(&'a self, component: &'a str) -> &'a str {
        self.chain(component).last().unwrap_or(component)
    }

    /// Numeric ids that members of this component may have.
    pub fn ids(&self, component: &str) -> IdRange {
        self.component(component).and_then(|known| known.ids).unwrap_or(self.membership.ids)
    }

    /// The component that applications connect to: the one that the binding names, else the first.
    pub fn bound_component(&self) -> &str {
        let named = self.binding.component.as_deref();
        named.or_else(|| Some(self.components.first()?.name.as_str())).unwrap_or_default()
    }

    /// The port that applications use.
    pub fn client_port(&self) -> Option<&Port> {
        self.ports.iter().find(|port| port.name == self.binding.port)
    }
}
