//! The conformance kit tested with an image that breaks each rule on purpose: every check must catch its violation.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::build::{Built, build};
use super::conform::Kit;
use super::engine::Engine;
use super::process;
use super::store::Store;

/// A rule that is broken, by lines of a Containerfile on top of the fake image, and the check that must see it.
struct Broken {
    rule: &'static str,
    lines: &'static str,
    check: &'static str,
}

const fn by_lines(rule: &'static str, lines: &'static str, check: &'static str) -> Broken {
    Broken { rule, lines, check }
}

/// A rule that the fake engine breaks by itself, see `crates/testkit/src/bin/fake-engine/breaks.rs`.
const fn by_itself(rule: &'static str, check: &'static str) -> Broken {
    Broken { rule, lines: "", check }
}

const BROKEN: &[Broken] = &[
    by_lines("manifest-missing", "RUN rm /db/manifest.yaml", "manifest-keeps-the-standard"),
    by_lines("manifest-lies-about-a-verb", "RUN rm /db/verbs/found", "verbs-are-there"),
    by_lines(
        "newer-standard",
        "RUN sed -i 's/^standard:.*/standard: \"9.0\"/' /db/manifest.yaml",
        "manifest-keeps-the-standard",
    ),
    by_lines("no-role", "RUN rm /db/verbs/role", "verbs-are-there"),
    by_lines("misspelled-verb", "RUN cp /db/verbs/role /db/verbs/roles", "verbs-are-there"),
    by_lines("private-verb", "RUN chmod 700 /db/verbs/health", "verbs-are-there"),
    by_lines("root", "", "user-is-not-root"),
    by_lines("label", "LABEL dev.backlot.version=2", "labels-say-what-the-manifest-says"),
    by_lines("agent-inside", "RUN mkdir /backlot && touch /backlot/agent", "nothing-of-the-callers-inside"),
    by_lines(
        "port-that-stays-shut",
        "RUN sed -i 's/^volumes:/  - {name: admin, port: 7999, purpose: admin}\\nvolumes:/' /db/manifest.yaml",
        "declared-ports-are-open",
    ),
    by_itself("no-leader", "declared-role-appears"),
    by_itself("open-door", "wrong-password-is-refused"),
    by_itself("render-changes", "render-is-pure"),
    by_itself("says-changed", "verbs-can-be-repeated"),
    by_itself("one-at-a-time", "verbs-can-be-called-at-once"),
    by_itself("stale-lock", "verbs-can-be-killed"),
    by_itself("unknown-fields", "unknown-fields-are-ignored"),
    by_itself("live-by-restart", "live-setting-restarts-nothing"),
    by_itself("keeps-in-memory", "other-settings-by-restart"),
    by_itself("keeps-in-memory", "crash-loses-nothing"),
    by_itself("ignores-sigterm", "stops-in-its-time"),
    by_itself("greedy-polls", "polls-stay-in-their-budget"),
    by_itself("stale-lock", "joins-although-killed-midway"),
    by_itself("starts-once", "lost-member-comes-back"),
    by_itself("needs-all", "serves-while-one-is-away"),
    by_itself("acknowledges-alone", "lost-majority-is-said"),
    by_itself("keeps-addresses", "all-down-back-with-other-addresses"),
    by_itself("founds-again", "wiped-volume-founds-nothing"),
    by_itself("odd-exit-code", "serves-and-keeps-writes"),
    by_itself("answers-nonsense", "joins-although-killed-midway"),
    by_itself("knows-one-component", "components-join-serve-and-leave"),
    by_itself("allows-nothing", "settings-roll-one-by-one"),
    by_itself("rejoins", "forgotten-member-harms-nothing"),
    by_itself("stale-lock", "leaves-although-killed-midway"),
    by_itself("keeps-in-memory", "retained-volumes-are-taken-back"),
    by_itself("tells-secrets", "no-secret-is-seen"),
];

/// Runs the kit on every broken image, or on those whose rule or check is named in `only`.
pub fn selftest(store: &Store, only: &[String]) -> Result<()> {
    let kit = Kit::ready(store)?;
    let engine = Engine::ready(store)?;
    let fake = build(store, "fake")?;
    engine.give(&fake)?;
    let folder = store.subfolder("conform-selftest")?;
    let mut missed = vec![];
    let named =
        |broken: &&Broken| only.is_empty() || only.iter().any(|name| name == broken.rule || name == broken.check);
    for broken in BROKEN.iter().filter(named) {
        let caught = catches(&kit, &engine, &fake, &folder, broken).with_context(|| broken.rule)?;
        println!("{:<28} {:<36} {caught}", broken.rule, broken.check);
        if !caught.starts_with("caught") {
            missed.push(format!("{} by {}", broken.rule, broken.check));
        }
    }
    if missed.is_empty() { Ok(()) } else { bail!("violations that were not caught: {}", missed.join(", ")) }
}

fn catches(kit: &Kit, engine: &Engine, fake: &Built, folder: &Path, broken: &Broken) -> Result<String> {
    let reference = format!("localhost/backlot/broken:{}", broken.rule);
    let user = if broken.rule == "root" { "0" } else { "10001:10001" };
    let text = format!(
        "FROM {}:{}\nUSER 0\nENV FAKE_BREAKS={}\n{}\nUSER {user}\n",
        fake.repository(),
        fake.hash,
        broken.rule,
        broken.lines
    );
    fs::write(folder.join("Containerfile"), text)?;
    let mut make =
        engine.command_with_policy(&["build", "--quiet", "--network", "none", "--pull=never", "--tag", &reference]);
    process::capture(make.arg(folder))?;
    let results = folder.join(broken.rule);
    let arguments = ["--patience", "25", "--level", "2", "--only", broken.check].map(str::to_owned);
    // Level 0 is always looked at.
    let is_static = !kit.names()?.contains(&broken.check.to_owned());
    let arguments = if is_static { vec!["--level".to_owned(), "0".to_owned()] } else { arguments.to_vec() };
    let mut command = kit.command(&reference, &results, &arguments);
    let output = command.output()?;
    if output.status.code() != Some(1) {
        let said = String::from_utf8_lossy(&output.stdout);
        return Ok(format!("MISSED: the kit ended with {}: {said}", output.status));
    }
    let found: Value = serde_json::from_slice(&fs::read(results.join("results.json"))?)?;
    let outcomes = found["outcomes"].as_array().cloned().unwrap_or_default();
    let outcome = outcomes.iter().find(|outcome| outcome["check"] == broken.check);
    let (verdict, reason) = match outcome {
        Some(outcome) => {
            (outcome["verdict"].as_str().unwrap_or_default(), outcome["reason"].as_str().unwrap_or_default())
        }
        None => ("absent", ""),
    };
    let reason: String = reason.chars().take(120).collect();
    // What cannot even be set up is not passed either: the run fails, and says why.
    Ok(match verdict {
        "failed" => format!("caught: {reason}"),
        "notTested" => format!("caught before it: {reason}"),
        other => format!("MISSED: {other}"),
    })
}
