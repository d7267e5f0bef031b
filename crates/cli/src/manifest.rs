//! `backlot manifest`: what the operator would say of a manifest, before an image is built.

use std::path::Path;

use anyhow::{Context as _, Result};
use backlot_standard::manifest::Manifest;

/// What was found.
pub struct Report {
    /// Whether the manifest keeps the standard.
    pub is_good: bool,
    /// For people.
    pub text: String,
}

/// Reads and checks the manifest at `file`.
pub fn check(file: &Path) -> Result<Report> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let manifest: Manifest = match serde_norway::from_str(&text) {
        Ok(manifest) => manifest,
        Err(error) => return Ok(Report { is_good: false, text: format!("{}: {error}", file.display()) }),
    };
    let problems: Vec<_> = manifest.check().iter().map(|problem| format!("{}: {problem}", file.display())).collect();
    if problems.is_empty() {
        let (engine, version, settings) = (&manifest.engine, &manifest.version, manifest.config.len());
        let text =
            format!("{}: {engine} {version} keeps standard {}; {settings} settings", file.display(), manifest.standard);
        return Ok(Report { is_good: true, text });
    }
    Ok(Report { is_good: false, text: problems.join("\n") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(manifest: &str) -> Report {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("manifest.yaml");
        std::fs::write(&file, manifest).unwrap();
        check(&file).unwrap()
    }

    const GOOD: &str = r#"
standard: "0.1"
engine: acme
version: 2.11.3
ports: [{name: client, port: 8500, purpose: client}]
volumes: [{name: data, path: /data}]
binding: {type: acme, port: client, uri: "acme://{host}:{port}"}
"#;

    #[test]
    fn a_good_manifest_is_named_with_its_engine_and_version() {
        let report = report(GOOD);
        assert!(report.is_good);
        assert!(report.text.ends_with("acme 2.11.3 keeps standard 0.1; 0 settings"), "{}", report.text);
    }

    #[test]
    fn every_problem_is_told_with_its_field() {
        let report = report(&GOOD.replace("8500", "7443").replace("port: client, uri", "port: clients, uri"));
        assert!(!report.is_good);
        assert!(report.text.contains("ports[0].port: `7443` is not free"), "{}", report.text);
        assert!(report.text.contains("binding.port: `clients` names no port"), "{}", report.text);
    }

    #[test]
    fn an_unknown_word_in_an_enum_is_refused_by_name() {
        let report = report(&GOOD.replace("purpose: client", "purpose: clients"));
        assert!(!report.is_good);
        assert!(report.text.contains("clients"), "{}", report.text);
    }
}
