//! What goes wrong around a member, and what must then happen.

use std::io::Write;
use std::time::{Duration, Instant};

use backlot_agent::process::is_alive;
use backlot_standard::operation::Act;
use backlot_standard::request::MemberState;
use backlot_standard::status::EnginePhase;
use backlot_standard::verb::Verb;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{TestMember, operation, view};

fn read_pid(member: &TestMember, file: &str) -> Pid {
    member.wait(file, || std::fs::read_to_string(member.path(file)).is_ok_and(|text| text.ends_with('\n')));
    Pid::from_raw(std::fs::read_to_string(member.path(file)).unwrap().trim().parse().unwrap())
}

#[test]
fn a_crashed_engine_is_restarted_with_a_growing_pause_and_its_last_words_are_kept() {
    let mut member = TestMember::usual();
    member.start_founded();
    member.behave("engine", "date +%s%3N >>$root/starts; echo last words of $$; exit 7");
    kill(member.engine().unwrap(), Signal::SIGKILL).unwrap();
    member.wait("the kill is reported", || member.status().engine.last_exit.is_some_and(|exit| exit.signal == Some(9)));
    let starts = || -> Vec<u64> {
        let text = std::fs::read_to_string(member.path("starts")).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    member.wait("three more starts", || starts().len() >= 3);
    member.wait_phase(EnginePhase::Crashed);
    let starts = starts();
    let pauses = [starts[1] - starts[0], starts[2] - starts[1]];
    assert!((1900..3500).contains(&pauses[0]) && (3900..6000).contains(&pauses[1]), "{pauses:?}");
    member.wait("the exit code is reported", || {
        member
            .status()
            .engine
            .last_exit
            .is_some_and(|exit| exit.code == Some(7) && exit.output_tail.contains("last words of"))
    });
    member.behave("engine", "true");
    // A new view is a reason to try at once.
    member.show(&view(3, true));
    member.wait_phase(EnginePhase::Running);
}

#[test]
fn the_engines_end_takes_everything_with_it_that_it_started() {
    let mut member = TestMember::usual();
    member.behave("engine", "setsid sh -c 'echo $$ >'$root'/daemon; sleep 600' &");
    member.start_founded();
    let daemon = read_pid(&member, "daemon");
    kill(member.engine().unwrap(), Signal::SIGKILL).unwrap();
    member.wait("a second start", || member.status().engine.starts == 2);
    assert!(!is_alive(daemon));
}

#[test]
fn a_deadline_kills_everything_that_a_verb_started() {
    let mut member = TestMember::usual();
    member.start_founded();
    member.behave(
        "join",
        "setsid sh -c 'setsid sh -c \"echo \\$\\$ >$DB_ROOT/grandchild; sleep 600\" & sleep 600' & sleep 600",
    );
    let mut request = operation("join", Act::Verb(Verb::Join));
    request.view_generation = 2;
    let started = Instant::now();
    member.post(&request);
    let grandchild = read_pid(&member, "grandchild");
    assert!(is_alive(grandchild));
    member.wait("the first call ended", || member.report("join")["exit"] == "unknown");
    assert!(started.elapsed() >= Duration::from_secs(3));
    assert!(!is_alive(grandchild));
    assert_eq!(member.report("join")["result"]["error"]["code"], "DeadlineExceeded");
    // It is called again with the same id.
    member.behave("join", "true");
    member.wait("done", || member.report("join")["state"] == "done");
    let calls = member.calls("join");
    assert_eq!((calls[0][1].as_str(), calls[1][1].as_str()), ("join", "join"));
    assert_eq!((calls[0][2].as_str(), calls[1][2].as_str()), ("1", "2"));
}

#[test]
fn a_verb_leaves_no_process_behind_even_when_it_is_done() {
    let mut member = TestMember::usual();
    member.start_founded();
    member.behave(
        "join",
        "setsid sh -c 'echo $$ >'$DB_ROOT'/left; sleep 600' & while [ ! -s $DB_ROOT/left ]; do sleep 0.02; done",
    );
    member.operate(&operation("join", Act::Verb(Verb::Join)));
    assert!(!is_alive(read_pid(&member, "left")));
    assert!(member.log().contains("left processes behind"));
}

#[test]
fn ten_gigabytes_of_output_fill_neither_log_nor_memory() {
    let mut member = TestMember::usual();
    member.edit_manifest("join: {timeoutSeconds: 3}", "join: {timeoutSeconds: 120}");
    member.start_founded();
    member.behave("join", "head -c 10G /dev/zero; yes | dd bs=1M count=64 iflag=fullblock 2>/dev/null");
    let before = std::fs::metadata(member.path("log")).unwrap().len();
    member.post(&operation("join", Act::Verb(Verb::Join)));
    let pilot = member.pilot();
    let limit = Instant::now() + Duration::from_secs(110);
    let mut peak = 0;
    while member.report("join")["state"] == "running" {
        peak = peak.max(backlot_agent::process::resident_bytes(pilot).unwrap());
        assert!(Instant::now() < limit, "the flood takes too long");
        // The agent answers all the while.
        assert_eq!(member.operator.get("/livez").unwrap().status, 200);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(member.report("join")["state"], "done");
    let grown = std::fs::metadata(member.path("log")).unwrap().len() - before;
    assert!(grown < 4 << 20, "{grown} bytes of log");
    assert!(peak < 64 << 20, "{peak} bytes resident");
    assert!(member.log().contains("bytes of output were left out"));
}

#[test]
fn a_result_that_grows_without_end_ends_the_call() {
    let mut member = TestMember::usual();
    member.edit_manifest("join: {timeoutSeconds: 3}", "join: {timeoutSeconds: 60}");
    member.start_founded();
    member.behave("join", "cat /dev/zero >$DB_RESULT");
    member.post(&operation("join", Act::Verb(Verb::Join)));
    member.wait("too large", || member.report("join")["result"]["error"]["code"] == "ResultTooLarge");
    let calls = member.path("run/db/.backlot/calls");
    member.behave("join", "true");
    member.wait("done", || member.report("join")["state"] == "done");
    assert!(
        std::fs::read_dir(calls)
            .unwrap()
            .flatten()
            .all(|entry| !entry.file_name().to_string_lossy().starts_with("join"))
    );
}

#[test]
fn garbage_is_unknown_and_five_times_unknown_is_failed() {
    let mut member = TestMember::usual();
    member.start_founded();
    member.behave("join", "printf 'no json' >$DB_RESULT; exit 0");
    member.post(&operation("join", Act::Verb(Verb::Join)));
    member.wait("garbage", || member.report("join")["result"]["error"]["code"] == "GarbageResult");
    // Between the calls lie 1 + 2 + 4 + 8 seconds.
    member.wait("failed", || member.report("join")["state"] == "failed");
    assert_eq!(member.calls("join").len(), 5);
    member.behave("join", "true");
    let report = member.operate(&operation("join", Act::Verb(Verb::Join)));
    assert_eq!((&report["state"], &report["attempts"]), (&"done".into(), &6.into()));
}

#[test]
fn garbage_from_health_is_unknown_not_down() {
    let mut member = TestMember::usual();
    member.start_founded();
    member.behave("health", "printf '{\"output\":{\"process\":\"dancing\"}}' >$DB_RESULT; exit 0");
    member.wait("unknown", || member.status().health.is_none());
    assert_eq!(member.operator.get("/readyz").unwrap().status, 503);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(member.status().engine.starts, 1);
    assert_eq!(member.status().engine.phase, EnginePhase::Running);
}

#[test]
fn an_engine_that_says_hung_three_times_is_restarted() {
    let mut member = TestMember::usual();
    member.start_founded();
    member.behave("health", "result '{\"output\":{\"process\":\"hung\",\"ready\":false}}'; exit 0");
    member.wait("stopped as hung", || member.log().contains("hung three times"));
    member.behave("health", "true");
    member.wait("a second start", || member.status().engine.starts >= 2);
    member.wait_phase(EnginePhase::Running);
}

#[test]
fn an_engine_that_is_not_up_in_time_is_restarted() {
    let mut member = TestMember::usual();
    member.edit_manifest("maxSeconds: 20", "maxSeconds: 1");
    member.behave("engine", "sleep 600");
    member.start();
    member.show(&view(1, false));
    member.post(&operation("found", Act::Verb(Verb::Found)));
    member.wait("a second start", || member.status().engine.starts >= 2);
    assert!(member.log().contains("not up within startup.maxSeconds"));
}

#[test]
fn a_lost_reply_is_read_again_and_nothing_runs_twice() {
    let mut member = TestMember::usual();
    member.start_founded();
    member.behave("join", "sleep 1");
    let body = serde_json::to_vec(&operation("join", Act::Verb(Verb::Join))).unwrap();
    // The connection is gone before the answer comes.
    let mut stream = member.operator.open().unwrap();
    write!(stream, "POST /v1/operations HTTP/1.1\r\nhost: m\r\ncontent-length: {}\r\n\r\n", body.len()).unwrap();
    stream.write_all(&body).unwrap();
    stream.flush().unwrap();
    member.wait("it began", || member.calls("join").len() == 1);
    drop(stream);
    let report = member.operate(&operation("join", Act::Verb(Verb::Join)));
    assert_eq!(report["state"], "done");
    // Also after the container was restarted.
    assert_eq!(member.terminate(), Some(0));
    member.start();
    assert_eq!(member.report("join"), report);
    assert_eq!(member.operate(&operation("join", Act::Verb(Verb::Join))), report);
    assert_eq!(member.calls("join").len(), 1);
}

#[test]
fn an_operation_goes_on_after_the_pilot_died_in_it() {
    let mut member = TestMember::usual();
    member.start_founded();
    member.behave("join", "echo $$ >$DB_ROOT/joining; [ $DB_ATTEMPT -gt 1 ] || sleep 600");
    member.post(&operation("join", Act::Verb(Verb::Join)));
    let verb = read_pid(&member, "joining");
    kill(member.pilot(), Signal::SIGKILL).unwrap();
    member.wait("done", || {
        member.operator.get("/v1/operations/join").is_ok_and(|answer| answer.body.contains("\"done\""))
    });
    assert!(!is_alive(verb));
    assert_eq!(member.calls("join").len(), 2);
}

#[test]
fn somebody_elses_volume_is_neither_started_nor_written_to() {
    let mut member = TestMember::usual();
    std::fs::create_dir(member.path("data/.backlot")).unwrap();
    let stamp = r#"{"clusterUid":"other","member":"orders-0","incarnation":"1"}"#;
    std::fs::write(member.path("data/.backlot/identity.json"), stamp).unwrap();
    member.start();
    member.show(&view(2, true));
    member.wait_blocked("ForeignVolume");
    let report = member.operate_once(&operation("found", Act::Verb(Verb::Found)));
    assert_eq!((&report["state"], &report["exit"]), (&"failed".into(), &"conflict".into()));
    let files: Vec<_> =
        std::fs::read_dir(member.path("data/.backlot")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(files, ["identity.json"]);
    assert_eq!(std::fs::read_to_string(member.path("data/.backlot/identity.json")).unwrap(), stamp);
}

#[test]
fn a_verb_that_cannot_be_executed_fails_with_its_reason() {
    let mut member = TestMember::usual();
    std::fs::write(member.path("db/verbs/join"), "#!/no/such/shell\n").unwrap();
    member.start_founded();
    let report = member.operate(&operation("join", Act::Verb(Verb::Join)));
    assert_eq!((&report["state"], &report["exit"]), (&"failed".into(), &"failed".into()));
    assert_eq!(report["result"]["error"]["code"], "CannotStart");
}

#[test]
fn a_volume_that_becomes_usable_is_taken_up() {
    let mut member = TestMember::usual();
    std::fs::remove_dir(member.path("data")).unwrap();
    member.start();
    member.wait_blocked("VolumeUnusable");
    std::fs::create_dir(member.path("data")).unwrap();
    member
        .wait("claimed", || member.operator.get("/v1/status").is_ok_and(|answer| answer.body.contains("incarnation")));
    member.show(&view(1, false));
    assert_eq!(member.operate(&operation("found", Act::Verb(Verb::Found)))["state"], "done");
}

#[test]
fn operations_on_somebody_elses_volume_are_not_gone_on_with() {
    let mut member = TestMember::usual();
    member.start_founded();
    member.behave("join", "exit 10");
    member.post(&operation("join", Act::Verb(Verb::Join)));
    assert_eq!(member.report("join")["state"], "running");
    assert_eq!(member.terminate(), Some(0));
    let stamp = std::fs::read_to_string(member.path("data/.backlot/identity.json")).unwrap();
    std::fs::write(member.path("data/.backlot/identity.json"), stamp.replace("uid-1", "uid-2")).unwrap();
    member.start();
    member.wait_blocked("ForeignVolume");
    assert!(member.status().operations.is_empty());
    assert_eq!(member.status().view_generation, None);
}

#[test]
fn files_without_a_stamp_are_foreign() {
    let mut member = TestMember::usual();
    std::fs::write(member.path("data/somebody"), "").unwrap();
    member.start();
    member.show(&view(2, true));
    member.wait_blocked("ForeignVolume");
    assert!(!member.path("data/.backlot").exists());
}

#[test]
fn a_wiped_member_is_neither_founded_nor_started_until_it_is_admitted() {
    let mut member = TestMember::usual();
    member.start_founded();
    assert_eq!(member.terminate(), Some(0));
    std::fs::remove_dir_all(member.path("data/db")).unwrap();
    member.start();
    member.wait_blocked("DataMissing");
    let mut again = operation("found-again", Act::Verb(Verb::Found));
    again.view_generation = 2;
    assert_eq!(member.operator.get("/readyz").unwrap().status, 503);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(member.calls("found").len(), 1);
    assert_eq!(member.status().engine.starts, 0);
    // The operator admits it anew.
    let mut admitted = view(3, true);
    admitted.members[0].state = MemberState::Joining;
    member.show(&admitted);
    member.wait_phase(EnginePhase::Running);
}

#[test]
fn data_that_turns_out_foreign_after_the_start_is_stopped_and_not_started_again() {
    let mut member = TestMember::new(&["render", "prepare", "found", "health", "post-start"]);
    member.start_founded();
    member.behave(
        "post-start",
        "result '{\"error\":{\"code\":\"OtherCluster\",\"message\":\"the data is of cluster 7\"}}'; exit 23",
    );
    assert_eq!(member.terminate(), Some(0));
    member.start();
    member.wait_blocked("ForeignVolume");
    assert!(member.status().blocked.unwrap().message.contains("of cluster 7"));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!((member.status().engine.phase, member.status().engine.starts), (EnginePhase::Waiting, 1));
    // Somebody looked into it.
    member.behave("post-start", "true");
    assert_eq!(member.operate(&operation("go", Act::Restart))["state"], "done");
}

#[test]
fn a_replaced_volume_waits_until_the_view_names_it() {
    let mut member = TestMember::usual();
    member.start();
    let mut known = view(1, true);
    known.members[0].incarnation = "another".to_owned();
    known.members[0].state = MemberState::Joining;
    member.show(&known);
    member.wait_blocked("VolumeReplaced");
    known.generation = 2;
    known.members[0].incarnation = member.status().incarnation.unwrap();
    member.show(&known);
    member.wait_phase(EnginePhase::Running);
}

#[test]
fn a_full_disk_fails_operations_and_breaks_nothing() {
    let mut member = TestMember::usual();
    member.start_founded();
    let engine = member.engine();
    // Root is not stopped by modes; a directory in the journal's place stops everybody.
    let journal = member.path("data/.backlot/operations.jsonl");
    let aside = member.path("journal-aside");
    std::fs::rename(&journal, &aside).unwrap();
    std::fs::create_dir(&journal).unwrap();
    let report = member.operate_once(&operation("join", Act::Verb(Verb::Join)));
    assert_eq!((&report["state"], &report["exit"]), (&"failed".into(), &"failed".into()));
    assert_eq!(report["result"]["error"]["code"], "JournalUnwritable");
    assert!(member.calls("join").is_empty());
    assert_eq!(member.engine(), engine);
    std::fs::remove_dir(&journal).unwrap();
    std::fs::rename(&aside, &journal).unwrap();
    assert_eq!(member.operate(&operation("join", Act::Verb(Verb::Join)))["state"], "done");
}

#[test]
fn a_broken_render_stops_nothing_and_a_corrected_view_goes_on_at_once() {
    let mut member = TestMember::usual();
    member.start_founded();
    member.behave("render", "grep -q '^greeting=bad' $DB_CONFIG && { echo bad greeting >&2; exit 20; }; true");
    let mut bad = view(3, true);
    bad.components.get_mut("data").unwrap().config.insert("greeting".to_owned(), "bad".to_owned());
    member.show(&bad);
    assert_eq!(member.status().engine.phase, EnginePhase::Running);
    member.post(&operation("restart", Act::Restart));
    member.wait("the error is shown", || member.status().config.error.is_some());
    member.show(&view(4, true));
    member.wait_phase(EnginePhase::Running);
    assert_eq!(member.status().config.error, None);
}

#[test]
fn a_bad_manifest_blocks_with_its_error() {
    let mut member = TestMember::usual();
    member.edit_manifest("standard: \"0.1\"", "standard: \"9.0\"");
    member.start();
    member.wait_blocked("ManifestInvalid");
    assert!(member.status().blocked.unwrap().message.contains("9.0"));
    std::fs::write(member.path("db/manifest.yaml"), "{{").unwrap();
    assert_eq!(member.operator.get("/v1/manifest").unwrap().status, 422);
    assert_eq!(member.terminate(), Some(0));
}
