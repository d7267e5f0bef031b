//! What a compiler does not see: arrows between crates, words and paths that do not belong, sizes of files and functions.
//!
//! Each test lists every finding with its place and the remedy. Sizes are a ratchet: `tidy-baseline.txt` holds what is over
//! the limit, and may only shrink (`UPDATE_GENERATED=1 cargo test -p xtask --test tidy` lowers it, never raises it).

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;
const BASELINE: &str = "xtask/tests/tidy-baseline.txt";

/// What each crate may depend on in the workspace. Nothing but the conformance kit depends on the operator or ships the testkit.
const ARROWS: &[(&str, &[&str])] = &[
    ("backlot-standard", &[]),
    ("backlot-api", &["backlot-standard"]),
    ("backlot-core", &["backlot-api", "backlot-standard"]),
    ("backlot-election", &["backlot-standard"]),
    ("backlot-agent", &["backlot-election", "backlot-standard"]),
    ("backlot-operator", &["backlot-api", "backlot-core", "backlot-standard"]),
    // The kit's caller is the operator, and its Kubernetes is testkit's (docs/adr/0009).
    ("backlot-conform", &["backlot-api", "backlot-operator", "backlot-standard", "backlot-testkit"]),
    ("backlot-cli", &["backlot-api", "backlot-conform", "backlot-core", "backlot-standard"]),
    ("backlot-testkit", &["backlot-api", "backlot-core", "backlot-standard"]),
    ("backlot-e2e", &["backlot-standard"]),
    ("xtask", &["backlot-api", "backlot-e2e", "backlot-standard"]),
];

/// What the pure crates must not reach for: IO, clocks, chance, the environment.
const IMPURE: &[&str] = &[
    "tokio::",
    "std::env",
    "std::fs",
    "std::net",
    "std::process",
    "std::time::SystemTime",
    "SystemTime::now",
    "Instant::now",
    "Timestamp::now",
    "Zoned::now",
    "rand::",
    "kube::Client",
    "kube::client",
    "kube::runtime",
    "kube::Api<",
];

const ENGINES: &[&str] = &[
    "cassandra",
    "consul",
    "couchbase",
    "elasticsearch",
    "kafka",
    "mongodb",
    "postgres",
    "postgresql",
    "rabbitmq",
    "redis",
    "zookeeper",
];

/// Where engines may be named: their images, data and promises of tests, and text for people.
const ENGINES_ALLOWED: &[&str] =
    &["images/", "examples/", "docs/", "dev/images/", "standard/appendix-b.md", "README.md", "CHANGELOG.md", BASELINE];

/// Places that exist on somebody's machine only, hosts that are a machine's configuration, and words that say nothing here.
const FORBIDDEN: &[&str] = &[
    "/home/",
    "/root/",
    "/Users/",
    "/work/",
    "/tmp/brief",
    "crates.io/",
    "static.crates.io",
    "proxy.golang.org",
    "registry.npmjs.org",
    "pypi.org",
    "files.pythonhosted.org",
    "repo1.maven.org",
    "repo.maven.apache.org",
    "deb.debian.org",
    "security.debian.org",
    "TODO",
    "FIXME",
    "XXX",
    "HACK",
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "manager", "misc"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file of the repository, committed or about to be, relative to its root.
fn files() -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is needed to list the repository's files");
    assert!(listed.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&listed.stderr));
    let names: BTreeSet<String> = String::from_utf8(listed.stdout)
        .unwrap()
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    names.into_iter().filter(|name| root().join(name).is_file()).collect()
}

/// Files of text with their content; lock files and checksums are written by tools.
fn texts() -> impl Iterator<Item = (String, String)> {
    let written_by_tools = |name: &str| {
        let locks = ["Cargo.lock", "go.sum", "package-lock.json"];
        locks.iter().any(|lock| name.ends_with(lock)) || name == "LICENSE"
    };
    files().into_iter().filter(move |name| !written_by_tools(name)).filter_map(|name| {
        let text = fs::read_to_string(root().join(&name)).ok()?;
        Some((name, text))
    })
}

fn extension(name: &str) -> &str {
    Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

fn assert_none(findings: &[String], remedy: &str) {
    assert!(findings.is_empty(), "{} found:\n  {}\n{remedy}", findings.len(), findings.join("\n  "));
}

#[test]
fn arrows_between_crates_are_those_of_the_architecture() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    let mut findings = vec![];
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            findings.push(format!("{name} has no row in ARROWS"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = dependency["name"].as_str().unwrap();
            let shipped = dependency["kind"].as_str() != Some("dev");
            if shipped && ours.contains(to) && !allowed.contains(&to) {
                findings.push(format!("{name} depends on {to}"));
            }
        }
    }
    assert_none(&findings, "Move the code to the crate that may know it; a new arrow needs a record in docs/adr.");
}

#[test]
fn pure_crates_do_no_io_and_ask_no_clock() {
    let mut findings = vec![];
    for (name, text) in texts() {
        let pure = ["crates/standard/src/", "crates/api/src/", "crates/core/src/", "crates/election/src/"];
        if !pure.iter().any(|folder| name.starts_with(folder)) || extension(&name) != "rs" {
            continue;
        }
        for (number, line) in lines_of_code(&text) {
            findings.extend(
                IMPURE.iter().filter(|word| line.contains(*word)).map(|word| format!("{name}:{number}: {word}")),
            );
        }
    }
    assert_none(&findings, "Hand the value in as an argument; IO belongs into the operator's read and apply stages.");
}

#[test]
fn no_engine_is_named_outside_its_image() {
    let mut findings = vec![];
    for (name, text) in texts() {
        let test_data = name.contains("/tests/") && extension(&name) != "rs";
        if test_data
            || ENGINES_ALLOWED.iter().any(|allowed| name.starts_with(allowed))
            || names_engines_on_purpose(&name)
        {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            let words = lower.split(|c: char| !c.is_ascii_alphanumeric());
            findings.extend(
                words.filter(|word| ENGINES.contains(word)).map(|word| format!("{name}:{}: {word}", number + 1)),
            );
        }
    }
    assert_none(
        &findings,
        "Say it in general terms, in a manifest, or in test data. The example engine is called acme.",
    );
}

/// This file, for its list; the linter's list of proper names; and tests of the promises on real engines.
fn names_engines_on_purpose(name: &str) -> bool {
    name == "xtask/tests/tidy.rs" || name == "clippy.toml" || name.starts_with("xtask/tests/e2e")
}

#[test]
fn no_word_or_path_that_does_not_belong() {
    let mut findings = vec![];
    for (name, text) in texts().filter(|(name, _)| name != "xtask/tests/tidy.rs") {
        for (number, line) in text.lines().enumerate() {
            let found = FORBIDDEN.iter().filter(|word| contains_at_word_start(line, word));
            findings.extend(found.map(|word| format!("{name}:{}: {word}", number + 1)));
        }
    }
    assert_none(&findings, "Use relative paths, the machine's own configuration, and finished code.");
}

/// Whether `line` holds `word` where no letter, digit or path goes before it.
fn contains_at_word_start(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let whole = !word.ends_with(char::is_alphanumeric) || !after.is_some_and(char::is_alphanumeric);
        whole && !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '}' | '*'))
    })
}

#[test]
fn names_of_files_say_what_is_inside() {
    let findings: Vec<String> = files()
        .into_iter()
        .filter(|name| {
            Path::new(name).components().any(|part| {
                let part = part.as_os_str().to_string_lossy();
                EMPTY_NAMES.contains(&part.split('.').next().unwrap_or_default())
            })
        })
        .collect();
    assert_none(&findings, "Name a module after what it does.");
}

#[test]
fn every_rust_file_opens_with_what_it_is() {
    let findings: Vec<String> = texts()
        .filter(|(name, text)| extension(name) == "rs" && !name.ends_with("_tests.rs") && !text.starts_with("//! "))
        .map(|(name, _)| name)
        .collect();
    assert_none(&findings, "Open it with `//! What it is and its invariant.`");
}

#[test]
fn local_links_in_documents_lead_somewhere() {
    let mut findings = vec![];
    for (name, text) in texts().filter(|(name, _)| extension(name) == "md") {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            let folder = Path::new(&name).parent().unwrap();
            if !root().join(folder).join(path).exists() {
                findings.push(format!("{name}: {target}"));
            }
        }
    }
    assert_none(&findings, "Correct the link.");
}

#[test]
fn every_reason_is_in_the_runbook() {
    let runbook = fs::read_to_string(root().join("docs/runbook.md")).unwrap();
    let mut findings = BTreeSet::new();
    let places = ["crates/core/src/", "crates/operator/src/", "crates/agent/src/pilot/"];
    let is_code = |name: &str| places.iter().any(|place| name.starts_with(place)) && !name.ends_with("_tests.rs");
    for (name, text) in texts().filter(|(name, _)| is_code(name)) {
        let code: Vec<&str> = lines_of_code(&text).map(|(_, line)| line.trim()).collect();
        for reason in reasons(&code.join("\n")) {
            if !runbook.contains(&format!("`{reason}`")) {
                findings.insert(format!("{name}: {reason}"));
            }
        }
    }
    let findings: Vec<String> = findings.into_iter().collect();
    assert_none(&findings, "Say in docs/runbook.md what it means and what to do.");
}

/// CamelCase reasons that code hands to what makes conditions, refusals, events and blocks.
fn reasons(code: &str) -> Vec<String> {
    let makers = ["refuse(", "refused(", "working(", "stuck(", "blocked(", "block(", "reason: ", "event("];
    let mut found = vec![];
    for maker in makers {
        for (at, _) in code.match_indices(maker) {
            let Some(rest) = code[at + maker.len()..].trim_start().strip_prefix('"') else { continue };
            let reason = rest.split('"').next().unwrap_or_default();
            let is_reason = reason.starts_with(|c: char| c.is_ascii_uppercase())
                && reason.len() > 2
                && reason.chars().all(char::is_alphanumeric);
            if is_reason {
                found.push(reason.to_owned());
            }
        }
    }
    found
}

#[test]
fn files_and_functions_stay_small() {
    let mut over: BTreeMap<String, usize> = BTreeMap::new();
    for (name, text) in texts() {
        let script = extension(&name).is_empty() && text.starts_with("#!");
        if !script && !["rs", "go", "py", "sh", "awk"].contains(&extension(&name)) {
            continue;
        }
        let lines = text.lines().count();
        if lines > MAX_FILE_LINES {
            over.insert(format!("{name} file"), lines);
        }
        for (function, lines) in functions(extension(&name), &text) {
            if lines > MAX_FUNCTION_LINES {
                over.insert(format!("{name} {function}"), lines);
            }
        }
    }
    compare_with_baseline(&over);
}

fn compare_with_baseline(over: &BTreeMap<String, usize>) {
    let path = root().join(BASELINE);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let entries = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let allowed: BTreeMap<String, usize> = entries
        .map(|line| line.rsplit_once(' ').expect("a line of the baseline is `path what lines`"))
        .map(|(what, lines)| (what.to_owned(), lines.parse().expect("a line of the baseline ends with a number")))
        .collect();
    let grown: Vec<String> = over
        .iter()
        .filter(|(what, lines)| allowed.get(*what).is_none_or(|limit| *lines > limit))
        .map(|(what, lines)| format!("{what} {lines}"))
        .collect();
    assert_none(
        &grown,
        &format!(
            "A file has at most {MAX_FILE_LINES} lines, a function {MAX_FUNCTION_LINES}. Split it by what it does."
        ),
    );
    let mut lowered =
        String::from("# Over the limits of tidy.rs, in lines. Entries may shrink and go, never grow or come.\n");
    for (what, lines) in over {
        writeln!(lowered, "{what} {lines}").unwrap();
    }
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(path, lowered).unwrap();
    } else {
        assert_eq!(allowed, *over, "{BASELINE} can shrink. Run: UPDATE_GENERATED=1 cargo test -p xtask --test tidy");
    }
}

/// Functions with their number of lines. Formatted code closes a function on the column on which it opened it.
fn functions(extension: &str, text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let opens = |line: &str| match extension {
        "rs" => {
            let words = line.trim_start();
            let head = words.split("fn ").next().unwrap_or_default();
            let modifiers = ["pub", "const", "async", "unsafe", "extern", "\"C\"", "default"];
            let only_modifiers = head.split_whitespace().all(|word| {
                let word = word.split('(').next().unwrap_or_default();
                modifiers.contains(&word) || ["crate)", "super)", "in"].contains(&word)
            });
            only_modifiers && words.len() > head.len()
        }
        "go" => line.starts_with("func "),
        _ => false,
    };
    let mut found = vec![];
    for (start, line) in lines.iter().enumerate().filter(|(_, line)| opens(line)) {
        let column = line.len() - line.trim_start().len();
        let closing = format!("{}}}", &line[..column]);
        // A body on one line, or a declaration without a body, ends where it began.
        let Some(length) = lines[start..].iter().position(|line| *line == closing) else { continue };
        let declared = lines[start..=start + length].iter().position(|line| line.ends_with(';') || line.ends_with('}'));
        let opened = lines[start..=start + length].iter().position(|line| line.ends_with('{'));
        if opened.is_some_and(|opened| declared.is_none_or(|declared| opened <= declared)) {
            let after = line.split("fn ").nth(1).or_else(|| line.strip_prefix("func ")).unwrap_or(line);
            let name: String = after.chars().take_while(|c| c.is_alphanumeric() || "_()* ".contains(*c)).collect();
            found.push((name.replace(' ', "_").trim_end_matches(['(', '_']).to_owned(), length + 1));
        }
    }
    found
}

/// Lines that are no comment, with their numbers, up to the module's own tests.
fn lines_of_code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = text.lines().enumerate().take_while(|(_, line)| line.trim() != "#[cfg(test)]");
    code.filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(index, line)| (index + 1, line))
}

#[test]
fn the_checks_themselves_find_what_they_look_for() {
    let long = format!(
        "impl A {{\n    pub(crate) async fn slow(&self) {{\n{}    }}\n\n    fn short() {{}}\n}}\n",
        "        x();\n".repeat(80)
    );
    assert_eq!(functions("rs", &long), [("slow".to_owned(), 82)]);
    let go = format!("func (d *driver) run(a int) {{\n{}}}\n", "\tx()\n".repeat(3));
    assert_eq!(functions("go", &go)[0].1, 5);
    assert!(contains_at_word_start("see /work/x", "/work/") && contains_at_word_start("\"/home/me\"", "/home/"));
    assert!(!contains_at_word_start("/run/db/home/x", "/home/") && !contains_at_word_start("mktemp XXXXXX", "XXX"));
    let code: Vec<_> = lines_of_code("a\n// tokio::\nb\n#[cfg(test)]\nc").collect();
    assert_eq!(code, [(1, "a"), (3, "b")]);
    assert_eq!(
        reasons("stuck(\n\"LeaveFailed\", x); trim(\"NotOne\"); Event { reason: \"Founded\" }"),
        ["LeaveFailed", "Founded"]
    );
}
