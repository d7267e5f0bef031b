//! `backlot-agent call`: a verb called by a person, or by the conformance kit.

use serde_json::Value;

use crate::support::{MEMBER, TestMember, UID, agent_binary};

/// Calls by hand; exit code of the agent, what it printed, what it complained about.
fn call(member: &TestMember, words: &[&str]) -> (Option<i32>, Value, String) {
    let root = member.path("");
    let output = std::process::Command::new(agent_binary())
        .arg("call")
        .args(words)
        .args(["--root", root.to_str().unwrap()])
        .env("BACKLOT_MEMBER", MEMBER)
        .env("BACKLOT_CLUSTER_UID", UID)
        .output()
        .unwrap();
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), answer, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_verb_called_by_hand_gets_the_agents_request_with_the_callers_changes() {
    let mut member = TestMember::usual();
    member.start_founded();
    let (code, answer, said) = call(&member, &["health"]);
    assert_eq!((code, &answer["exit"]), (Some(0), &"done".into()), "{said}");
    assert_eq!(answer["result"]["output"]["process"], "up");

    member.behave("join", "cp $DB_REQUEST $DB_ROOT/seen; exit 12");
    let (code, answer, _) = call(&member, &["join", "--changing", "surprise.deep=[1]", "reason=drain"]);
    assert_eq!((code, &answer["exit"]), (Some(0), &"busy".into()));
    let seen: Value = serde_json::from_slice(&std::fs::read(member.path("seen")).unwrap()).unwrap();
    assert_eq!((&seen["self"], &seen["verb"], &seen["reason"]), (&MEMBER.into(), &"join".into(), &"drain".into()));
    assert_eq!(seen["surprise"]["deep"], serde_json::json!([1]));
}

#[test]
fn a_call_by_hand_is_killed_midway_and_leaves_nothing_behind() {
    let mut member = TestMember::usual();
    member.start_founded();
    member.behave("join", "setsid sleep 4711 & echo $! >$DB_ROOT/left; wait");
    let (code, answer, _) = call(&member, &["join", "--changing", "--kill-after-ms", "300"]);
    assert_eq!((code, &answer["exit"]), (Some(0), &"unknown".into()));
    let left: i32 = std::fs::read_to_string(member.path("left")).unwrap().trim().parse().unwrap();
    assert!(!backlot_agent::process::is_alive(nix::unistd::Pid::from_raw(left)));
    let calls = std::fs::read_dir(member.path("run/db/.backlot/calls")).unwrap().flatten();
    assert_eq!(calls.filter(|call| call.file_name().to_string_lossy().contains("by-hand")).count(), 0);
}

#[test]
fn what_cannot_be_called_by_hand_is_refused_with_its_reason() {
    let mut member = TestMember::usual();
    member.start_founded();
    for (words, reason) in [
        (&["jion"][..], "`jion` is no verb"),
        (&["leave"], "the image has no verb leave"),
        (&["join"], "join changes something: add --changing"),
        (&["health", "cluster=5"], "the request: "),
    ] {
        let (code, _, said) = call(&member, words);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(reason), "{said}");
    }
}
