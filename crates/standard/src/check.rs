//! What a manifest must fulfil beyond its types (SPEC §3). Pure; the conformance kit and the operator use the same check.

use std::collections::BTreeSet;

use crate::layout;
use crate::manifest::{Component, Elections, Leadership, Manifest};

/// A rule that a manifest breaks; the text names the field, the value and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ManifestError {
    /// Path of the field, e.g. `ports[1].name`.
    pub field: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl Manifest {
    /// Every rule that this manifest breaks, in the order of its fields.
    pub fn check(&self) -> Vec<ManifestError> {
        let mut errors = Errors::default();
        if !crate::supports(&self.standard) {
            let ours = crate::STANDARD;
            errors.add("standard", format!("`{}` is not supported; this build speaks {ours}", self.standard));
        }
        errors.name("engine", &self.engine);
        if self.version.is_empty() {
            errors.add("version", "is empty; give the engine's version");
        }
        self.check_components(&mut errors);
        self.check_ports(&mut errors);
        self.check_volumes(&mut errors);
        self.check_binding(&mut errors);
        for (index, secret) in self.secrets.iter().enumerate() {
            errors.name(&format!("secrets[{index}].name"), &secret.name);
            if !(16..=128).contains(&secret.generate.length) {
                errors.add(format!("secrets[{index}].generate.length"), "must be 16 to 128");
            }
        }
        for (key, setting) in &self.config {
            if let Some(Err(error)) = setting.example.as_ref().map(|example| setting.check(example)) {
                errors.add(format!("config.{key}.example"), error.to_string());
            }
        }
        if self.stop.sequence.is_empty() {
            errors.add("stop.sequence", "is empty; give at least one signal");
        }
        if self.poll.seconds == 0 {
            errors.add("poll.seconds", "must be at least 1");
        }
        if self.security.uid == Some(0) {
            errors.add("security.uid", "must not be 0; members never run as root");
        }
        for (verb, rule) in &self.verbs {
            if rule.timeout_seconds.is_some_and(|seconds| !(1..=86_400).contains(&seconds)) {
                errors.add(format!("verbs.{}.timeoutSeconds", verb.name()), "must be 1 to 86400");
            }
        }
        errors.0
    }

    fn check_components(&self, errors: &mut Errors) {
        if self.components.is_empty() {
            errors.add("components", "is empty; leave it out for a single component `data`");
        } else if self.components.iter().all(|component| component.members.min == 0) {
            errors.add(
                "components",
                "has none with `members.min` of at least 1, so a cluster could have no member at all",
            );
        }
        errors.unique("components", self.components.iter().map(|component| component.name.as_str()));
        for (index, component) in self.components.iter().enumerate() {
            let field = format!("components[{index}]");
            errors.name(&format!("{field}.name"), &component.name);
            let count = component.members;
            if count.max == 0 || count.min > count.default || count.default > count.max {
                errors.add(format!("{field}.members"), "needs min ≤ default ≤ max, and max at least 1");
            }
            let is_even = |number: u32| number.is_multiple_of(2) && number > 0;
            if count.odd && (is_even(count.min) || is_even(count.default)) {
                errors.add(format!("{field}.members"), "is odd, but min or default is even");
            }
            let before = &self.components[..index];
            if let Some(joined) =
                component.joins.as_ref().filter(|name| before.iter().all(|known| known.name != **name))
            {
                errors.add(format!("{field}.joins"), format!("`{joined}` is no component that stands before this one"));
            }
            // Numbers name members to the engine: those of one cluster must differ.
            let ids = self.ids(&component.name);
            let shares = |other: &&Component| {
                let others = self.ids(&other.name);
                ids.min <= others.max && others.min <= ids.max
            };
            let is_of_same = |other: &&Component| self.top(&other.name) == self.top(&component.name);
            if let Some(other) = before.iter().filter(is_of_same).find(shares) {
                errors.add(
                    format!("{field}.ids"),
                    format!("overlap those of `{}`; give each a range of its own", other.name),
                );
            }
            if component.leader != Leadership::None && self.elections == Elections::None {
                errors.add(format!("{field}.leader"), "needs `elections: engine` or `elections: agent`");
            }
            if component.joins.is_some() && component.leader != Leadership::None && self.elections == Elections::Agent {
                errors.add(
                    format!("{field}.leader"),
                    "must be `none` with `elections: agent`: members that join never lead",
                );
            }
            for dependency in &component.depends_on {
                if self.component(dependency).is_none() {
                    errors
                        .add(format!("{field}.dependsOn"), format!("`{dependency}` is no component of this manifest"));
                }
            }
        }
    }

    fn check_ports(&self, errors: &mut Errors) {
        errors.unique("ports", self.ports.iter().map(|port| port.name.as_str()));
        for (index, port) in self.ports.iter().enumerate() {
            errors.name(&format!("ports[{index}].name"), &port.name);
            if port.name.len() > 15 {
                errors.add(format!("ports[{index}].name"), "must have at most 15 characters");
            }
            if port.port == layout::AGENT_PORT || port.port == 0 {
                errors.add(
                    format!("ports[{index}].port"),
                    format!("`{}` is not free; use 1 to 65535 but 7443", port.port),
                );
            }
        }
        if self.metrics.as_ref().is_some_and(|metrics| !self.ports.iter().any(|port| port.name == metrics.port)) {
            errors.add("metrics.port", "names no port of this manifest");
        }
    }

    fn check_volumes(&self, errors: &mut Errors) {
        errors.unique("volumes", self.volumes.iter().map(|volume| volume.name.as_str()));
        if self.volumes.is_empty() && self.components.iter().any(|component| !component.stateless) {
            errors.add("volumes", "is empty; stateful components need a volume");
        }
        let paths = self.volumes.iter().map(|volume| &volume.path).chain(&self.security.scratch);
        for (index, path) in paths.enumerate() {
            let field = match index.checked_sub(self.volumes.len()) {
                None => format!("volumes[{index}].path"),
                Some(scratch) => format!("security.scratch[{scratch}]"),
            };
            let reserved = ["/db", "/backlot", "/run/db", "/dev", "/proc", "/sys"];
            let inside = |base: &str| path == base || path.starts_with(&format!("{base}/"));
            if !path.starts_with('/') || path == "/" || path.contains("..") {
                errors.add(field, format!("`{path}` must be an absolute path below /"));
            } else if reserved.iter().any(|base| inside(base)) {
                errors.add(field, format!("`{path}` is reserved; choose a path outside {}", reserved.join(", ")));
            }
        }
        for (index, volume) in self.volumes.iter().enumerate() {
            errors.name(&format!("volumes[{index}].name"), &volume.name);
        }
    }

    fn check_binding(&self, errors: &mut Errors) {
        let bound = self.bound_component();
        if self.component(bound).is_none_or(|component| component.members.min == 0) {
            errors.add("binding.component", format!("`{bound}` is no component that every cluster has"));
        }
        if self.client_port().is_none() {
            errors.add("binding.port", format!("`{}` names no port of this manifest", self.binding.port));
        }
        if let Some(secret) = &self.binding.password_secret
            && !self.secrets.iter().any(|known| known.name == *secret)
        {
            errors.add("binding.passwordSecret", format!("`{secret}` names no secret of this manifest"));
        }
    }
}

#[derive(Default)]
struct Errors(Vec<ManifestError>);

impl Errors {
    fn add(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.0.push(ManifestError { field: field.into(), problem: problem.into() });
    }

    fn name(&mut self, field: &str, name: &str) {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let edges = name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.ends_with('-');
        if !edges || !name.chars().all(fits) || name.len() > 32 {
            self.add(
                field,
                format!("`{name}` must be 1 to 32 lower case letters, digits or dashes, starting with a letter"),
            );
        }
    }

    fn unique<'a>(&mut self, field: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                self.add(field, format!("`{name}` appears twice"));
            }
        }
    }
}
