//! `docs/types.md`: types, versions and levels, made from the results that are kept beside the images.
//!
//! Invariant: the table claims what was run, and nothing of an image that changed since.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::source::{self, Source};
use super::store::Store;

const HEAD: &str = "# Database types\n\n\
    Made by `cargo xtask image types` from `images/*/test/results.json`, which `cargo xtask image conform TYPE --keep-results`\n\
    writes. What the levels are, and how to read a failure, is in [conformance.md](conformance.md). Times are of a shared machine with two cores.\n\n\
    | Type | Version | Level | Passed | Failed | Not tested | Not claimed | Run | Memory of all members | Tested with |\n\
    |---|---|---|---|---|---|---|---|---|---|\n";

/// File with the kept results of an image.
pub fn kept(source: &Source) -> PathBuf {
    source.folder.join("test/results.json")
}

/// Writes `docs/types.md`.
pub fn write(store: &Store) -> Result<()> {
    let path = path(store);
    fs::write(&path, text(store)?).with_context(|| format!("cannot write {}", path.display()))
}

fn path(store: &Store) -> PathBuf {
    store.checkout().join("docs/types.md")
}

fn text(store: &Store) -> Result<String> {
    let mut text = HEAD.to_owned();
    let mut failures = String::new();
    let folder = store.checkout().join("images");
    for source in source::all(store)?.iter().filter(|source| source.folder.starts_with(&folder)) {
        let name = &source.name;
        let Ok(read) = fs::read_to_string(kept(source)) else {
            // An image without the data of the end-to-end test is a draft, which nobody is offered.
            if source.folder.join("test/e2e.json").is_file() {
                writeln!(text, "| {name} | | not run | | | | | | | |")?;
            }
            continue;
        };
        let results: Value = serde_json::from_str(&read).with_context(|| kept(source).display().to_string())?;
        let outcomes = results["outcomes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let count = |verdict: &str| outcomes.iter().filter(|outcome| outcome["verdict"] == verdict).count();
        let is_current = results["source"] == source.fingerprint()? && results["only"].is_null();
        let level = match (is_current, level(outcomes)) {
            (false, _) => "the image changed since its run".to_owned(),
            (true, None) => "none".to_owned(),
            (true, Some(level)) => level.to_string(),
        };
        let memory = results["memoryBytes"].as_u64().map_or_else(String::new, |bytes| format!("{} MiB", bytes >> 20));
        let seconds = results["seconds"].as_f64().unwrap_or_default();
        let (version, with) = (&results["version"], &results["testedWith"]);
        let with = if with == "engine" { "engine" } else { "stand-in: not verified on a real server" };
        writeln!(
            text,
            "| {name} | {} | {level} | {} | {} | {} | {} | {seconds:.0} s | {memory} | {with} |",
            version.as_str().unwrap_or_default(),
            count("passed"),
            count("failed"),
            count("notTested"),
            count("notClaimed"),
        )?;
        for outcome in
            outcomes.iter().filter(|outcome| outcome["verdict"] == "failed" || outcome["verdict"] == "notTested")
        {
            let (check, reason) = (outcome["check"].as_str(), outcome["reason"].as_str());
            let reason: String = reason.unwrap_or_default().chars().take(200).collect();
            writeln!(failures, "- {name}, `{}`: {}", check.unwrap_or_default(), reason.replace('\n', " "))?;
        }
    }
    if !failures.is_empty() {
        write!(text, "\n## What failed, or could not be tested\n\n{failures}")?;
    }
    Ok(text)
}

/// As the kit counts it: something was proven, and nothing failed or was left untested, there and in all levels below.
fn level(outcomes: &[Value]) -> Option<u64> {
    let holds = |level: &u64| {
        let of =
            |verdict: &str| outcomes.iter().any(|outcome| outcome["level"] == *level && outcome["verdict"] == verdict);
        of("passed") && !of("failed") && !of("notTested")
    };
    (0..=5).take_while(holds).last()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_types_is_fresh() {
        let store = Store::open().unwrap();
        let present = fs::read_to_string(path(&store)).unwrap_or_default();
        assert_eq!(present, text(&store).unwrap(), "docs/types.md is stale: run cargo xtask image types");
    }
}
