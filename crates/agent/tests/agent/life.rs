//! A member's life: founding, start from the last view, graceful stop, settings, leadership.

use backlot_standard::operation::Act;
use backlot_standard::request::{MemberState, Reason};
use backlot_standard::result::DataState;
use backlot_standard::status::EnginePhase;
use backlot_standard::verb::Verb;
use backlot_standard::view::ClusterView;

use crate::support::{MEMBER, TestMember, member, operation, view};

fn with_config(generation: u64, settings: &[(&str, &str)]) -> ClusterView {
    let mut view = view(generation, true);
    let config = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    view.components.get_mut("data").unwrap().config = config;
    view
}

fn led_by(generation: u64, leader: &str) -> ClusterView {
    let mut view = view(generation, true);
    view.groups[0].leader = Some(leader.to_owned());
    view.groups[0].epoch = generation;
    view.members.push(member(1, MemberState::Joined));
    view
}

#[test]
fn a_group_is_founded_once_on_order_only() {
    let mut member = TestMember::usual();
    member.start();
    member.wait_blocked("WaitingForView");
    member.show(&view(1, false));
    member.wait_blocked("WaitingForFounding");
    assert!(member.calls("found").is_empty());
    let report = member.operate(&operation("db/found-1", Act::Verb(Verb::Found)));
    assert_eq!(report["state"], "done", "{report}");
    assert_eq!(report["result"]["changed"], true);
    let status = member.status();
    assert_eq!(status.engine.phase, EnginePhase::Running);
    assert_eq!(status.blocked, None);
    member.wait("ready", || member.operator.get("/readyz").unwrap().status == 200);
    member.show(&view(2, true));
    let again = member.operate(&operation("db/found-1", Act::Verb(Verb::Found)));
    assert_eq!(again, report);
    let another = member.operate(&operation("db/found-2", Act::Verb(Verb::Found)));
    assert_eq!((&another["state"], &another["result"]["changed"]), (&"done".into(), &false.into()));
    assert_eq!(member.calls("found").len(), 1);
    assert!(member.calls("render").iter().all(|call| call[4] == "true"));
    let config = std::fs::read_to_string(member.path("run/db/engine.conf")).unwrap();
    assert_eq!(config, format!("password={}\n", crate::support::SECRET));
}

#[test]
fn a_verb_found_that_needs_the_engine_runs_after_its_start() {
    let mut member = TestMember::usual();
    member.edit_manifest("verbs:\n", "verbs:\n  found: {engine: running}\n");
    member.start();
    member.show(&view(1, false));
    member.behave("found", "test -e \"$DB_ROOT/run/db/up\" || exit 30");
    let report = member.operate(&operation("found", Act::Verb(Verb::Found)));
    assert_eq!(report["state"], "done", "{report}");
    assert_eq!(member.status().engine.starts, 1);
}

#[test]
fn founding_under_elections_by_the_agents_includes_the_promotion() {
    let mut member = TestMember::new(&["render", "prepare", "found", "health", "role", "promote", "demote", "follow"]);
    member.edit_manifest("engine: fixture\n", "engine: fixture\nelections: agent\n");
    member.start_founded();
    assert!(member.path("run/db/writable").exists());
    member.show(&led_by(3, MEMBER));
    let engine = member.engine();
    // A restarted engine starts fenced and is promoted again.
    let report = member.operate(&operation("restart", Act::Restart));
    assert_eq!(report["state"], "done", "{report}");
    assert_ne!(member.engine(), engine);
    member.wait("promoted again", || member.path("run/db/writable").exists());
    assert!(member.calls("follow").is_empty());
    // Another leader: writable no longer, follows once.
    member.show(&led_by(4, "orders-1"));
    member.wait("follows", || member.calls("follow").len() == 1);
    assert!(!member.path("run/db/writable").exists());
    assert_eq!(member.calls("demote").len(), 1);
    let mut moved = led_by(5, "orders-1");
    moved.members[1].address = "10.0.0.2".to_owned();
    member.show(&moved);
    member.wait("follows the new address", || member.calls("follow").len() == 2);
    assert_eq!(member.status().engine.starts, 2);
}

#[test]
fn a_deposed_leader_without_demote_is_restarted_fenced() {
    let mut member = TestMember::new(&["render", "prepare", "found", "health", "role", "promote"]);
    member.edit_manifest("engine: fixture\n", "engine: fixture\nelections: agent\n");
    member.start_founded();
    assert!(member.path("run/db/writable").exists());
    member.show(&led_by(3, "orders-1"));
    member.wait("restarted", || member.status().engine.starts == 2);
    member.wait_phase(EnginePhase::Running);
    assert!(!member.path("run/db/writable").exists());
}

#[test]
fn a_restarted_container_starts_its_engine_from_the_last_view() {
    let mut member = TestMember::usual();
    member.start_founded();
    let before = member.status();
    assert_eq!(member.terminate(), Some(0));
    assert!(member.log().contains("engine stops"));
    member.start();
    member.wait_phase(EnginePhase::Running);
    let after = member.status();
    assert_eq!(after.view_generation, Some(2));
    assert_eq!(after.incarnation, before.incarnation);
    assert_ne!(after.boot_id, before.boot_id);
    assert_eq!(after.data, Some(DataState::Existing));
    assert_eq!(member.calls("found").len(), 1);
    assert_eq!(member.calls("render").last().unwrap()[4], "false");
}

#[test]
fn the_stop_runs_pre_stop_and_the_signals_in_order() {
    let mut member = TestMember::new(&["render", "prepare", "found", "health", "pre-stop"]);
    // Ignores SIGTERM, ends at SIGINT. It starts its only child first: dash loses a signal that comes during a vfork.
    member.behave(
        "engine",
        "sleep 60 & trap 'echo term' TERM; trap 'echo int; exit 0' INT; touch $root/run/db/up; while :; do wait; done",
    );
    member.start_founded();
    assert_eq!(member.terminate(), Some(0));
    assert_eq!(member.calls("pre-stop").len(), 1);
    let log = member.log();
    let at = |word: &str| log.find(&format!("\"message\":\"{word}\"")).unwrap_or_else(|| panic!("no {word}\n{log}"));
    assert!(at("term") < at("int"));
    assert!(!log.contains("killing it"), "{log}");
}

#[test]
fn an_engine_that_ignores_every_signal_is_killed_and_the_exit_code_is_0() {
    let mut member = TestMember::usual();
    member.edit_manifest("seconds: 3", "seconds: 1");
    member.edit_manifest("seconds: 2}", "seconds: 1}");
    member.behave("engine", "touch $root/run/db/up; trap '' TERM INT; while :; do sleep 0.1; done");
    member.start_founded();
    let engine = member.engine().unwrap();
    assert_eq!(member.terminate(), Some(0));
    assert!(!backlot_agent::process::is_alive(engine));
}

#[test]
fn stop_holds_across_containers_until_a_restart() {
    let mut member = TestMember::usual();
    member.start_founded();
    assert_eq!(member.operate(&operation("stop", Act::Stop))["state"], "done");
    member.wait_phase(EnginePhase::Stopped);
    assert_eq!(member.terminate(), Some(0));
    member.start();
    member.wait_phase(EnginePhase::Stopped);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(member.status().engine.phase, EnginePhase::Stopped);
    assert_eq!(member.operate(&operation("go", Act::Restart))["state"], "done");
    member.wait_phase(EnginePhase::Running);
}

#[test]
fn live_settings_are_applied_and_others_wait_for_a_restart() {
    let mut member = TestMember::new(&["render", "prepare", "found", "health", "reconfigure"]);
    member.start_founded();
    member.wait("settled", || member.status().config.applied_generation == Some(2));
    // Founding changed this member's state, and so the group: told once.
    let calls = member.calls("reconfigure").len();
    member.show(&with_config(3, &[("greeting", "hello"), ("workers", "4")]));
    member.wait("applied", || member.status().config.applied_generation == Some(3));
    assert_eq!(member.calls("reconfigure").len(), calls + 1);
    assert_eq!(member.calls("reconfigure").last().unwrap()[3], "config");
    assert_eq!(member.status().config.pending_restart, ["workers"]);
    // A refused value is shown; the corrected one is taken at once.
    member.behave("reconfigure", "grep -q wrong \"$DB_CONFIG\" && { echo no such greeting >&2; exit 20; }; true");
    member.show(&with_config(4, &[("greeting", "wrong"), ("workers", "4")]));
    member.wait("the error is shown", || member.status().config.error.is_some());
    member.show(&with_config(5, &[("greeting", "hello"), ("workers", "4")]));
    member.wait("the error is gone", || member.status().config.error.is_none());
    member.wait("applied", || member.status().config.applied_generation == Some(5));
    let mut restart = operation("restart", Act::Restart);
    restart.reason = Reason::Config;
    member.operate(&restart);
    assert!(member.status().config.pending_restart.is_empty());
    assert!(member.log().contains("engine starts with greeting hello"));
    assert_eq!(member.calls("render").last().unwrap()[3], "config");
}

#[test]
fn a_new_member_clones_until_it_is_done_and_starts() {
    let mut member = TestMember::new(&["render", "prepare", "clone", "health"]);
    member.behave(
        "clone",
        "n=$(cat $DB_ROOT/n 2>/dev/null || echo 0); echo $((n+1)) >$DB_ROOT/n
         if [ $n -lt 2 ]; then result '{\"retry\":{\"afterSeconds\":1}}'; exit 10; fi",
    );
    let mut view = view(1, true);
    view.groups[0].founder = Some("orders-1".to_owned());
    view.members[0].state = MemberState::New;
    member.start();
    member.show(&view);
    member.wait_blocked("WaitingForAdmission");
    view.generation = 2;
    view.members[0].state = MemberState::Joining;
    member.show(&view);
    member.wait_phase(EnginePhase::Running);
    assert_eq!(member.calls("clone").len(), 3);
    let report = member.operate_once(&operation("join", Act::Verb(Verb::Join)));
    assert_eq!((&report["state"], &report["exit"]), (&"failed".into(), &"unsupported".into()));
}

#[test]
fn post_start_is_repeated_until_done_and_shown_meanwhile() {
    let mut member = TestMember::new(&["render", "prepare", "found", "health", "post-start"]);
    member.behave("post-start", "test -e $DB_ROOT/go || { echo not yet; exit 30; }");
    member.start();
    member.show(&view(1, false));
    member.post(&operation("found", Act::Verb(Verb::Found)));
    member.wait_blocked("VerbFailed");
    assert!(member.status().blocked.unwrap().message.contains("not yet"));
    assert_eq!(member.status().engine.phase, EnginePhase::Starting);
    std::fs::write(member.path("go"), "").unwrap();
    member.wait_phase(EnginePhase::Running);
    member.wait("found is done", || member.report("found")["state"] == "done");
}

#[test]
fn an_image_with_render_alone_works() {
    let mut member = TestMember::new(&["render"]);
    member.start();
    member.show(&view(1, false));
    let report = member.operate(&operation("found", Act::Verb(Verb::Found)));
    assert_eq!(report["state"], "done", "{report}");
    member.show(&view(2, true));
    assert_eq!(member.terminate(), Some(0));
    // Without `prepare` the agent's own mark says that there is data.
    member.start();
    member.wait_phase(EnginePhase::Running);
}
