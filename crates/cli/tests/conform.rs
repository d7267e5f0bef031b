//! What `backlot conform` says when it cannot begin. Its checks are tested by `cargo xtask image conform-selftest`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

fn conform(words: &[&str], path: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let agent = folder.path().join("agent");
    fs::write(&agent, "").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_backlot"));
    command.args(["conform", "localhost/acme:1"]).args(words).env("BACKLOT_AGENT", &agent).env("PATH", path);
    command.current_dir(folder.path()).output().unwrap()
}

fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A container engine that answers `version` and does `rest` for everything else.
fn engine(folder: &Path, rest: &str) -> String {
    let file = folder.join("podman");
    fs::write(&file, format!("#!/bin/sh\n[ \"$1\" = version ] && exit 0\n{rest}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn without_a_container_engine_it_names_those_that_would_do() {
    let said = complaint(&conform(&[], "/nowhere"));
    assert!(said.contains("no container engine answers: install one of podman, docker, nerdctl"), "{said}");
    let said = complaint(&conform(&["--engine", "/nowhere/podman"], "/usr/bin:/bin"));
    assert!(said.contains("--engine /nowhere/podman: `/nowhere/podman version` does not work"), "{said}");
}

#[test]
fn an_unknown_check_and_a_missing_agent_are_named_before_anything_is_made() {
    let said = complaint(&conform(&["--only", "crash-loses-everything"], "/usr/bin:/bin"));
    assert!(said.contains("--only crash-loses-everything: there is no such check; there are "), "{said}");
    assert!(said.contains("crash-loses-nothing"), "{said}");
    let said = complaint(&conform(&["--agent", "/nowhere/agent"], "/usr/bin:/bin"));
    assert!(said.contains("the agent /nowhere/agent is no file: name its static binary with --agent"), "{said}");
}

#[test]
fn an_image_that_is_nowhere_is_told_with_the_engines_words() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path(), "echo 'Error: no such host' >&2; exit 125");
    let said = complaint(&conform(&["--engine", &engine], "/usr/bin:/bin"));
    assert!(said.contains("the image localhost/acme:1 is not here and cannot be pulled"), "{said}");
    assert!(said.contains("no such host"), "{said}");
}

#[test]
fn results_that_cannot_be_written_are_told_before_anything_is_run() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path(), "touch $0.ran; exit 125");
    let results = folder.path().join("podman/results");
    let said = complaint(&conform(&["--engine", &engine, "--results", results.to_str().unwrap()], "/usr/bin:/bin"));
    assert!(said.contains("podman/results/probe: make room, or choose another folder with --results"), "{said}");
    assert!(!folder.path().join("podman.ran").exists());
}

#[test]
fn the_names_of_checks_are_listed() {
    let output = Command::new(env!("CARGO_BIN_EXE_backlot")).args(["conform", "--list"]).output().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && listed.lines().any(|name| name == "crash-loses-nothing"), "{listed}");
}
