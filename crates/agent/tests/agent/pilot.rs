//! Keeper and pilot guard each other, and the engine lives on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backlot_agent::process::is_alive;
use backlot_standard::operation::Act;
use backlot_standard::status::EnginePhase;
use backlot_standard::verb::Verb;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Client, TestMember, agent_binary, operation, sha256, view};

#[test]
fn a_killed_pilot_is_restarted_and_the_engine_is_untouched() {
    let mut member = TestMember::usual();
    member.start_founded();
    let (engine, pilot, before) = (member.engine(), member.pilot(), member.status());
    kill(pilot, Signal::SIGKILL).unwrap();
    member.wait("another pilot", || member.operator.get("/v1/status").is_ok());
    member.wait_phase(EnginePhase::Running);
    let after = member.status();
    assert_eq!(member.engine(), engine);
    assert_ne!(member.pilot(), pilot);
    assert_eq!((after.boot_id, after.engine.starts), (before.boot_id, 1));
    assert!(after.revision > before.revision);
    assert_eq!(after.config.applied_generation, Some(2));
    // Its output still reaches the log.
    let log = member.log().len();
    assert_eq!(member.terminate(), Some(0));
    assert!(member.log()[log..].contains("engine stops"));
}

/// Pauses before the kills; fixed, so that a failure can be looked at again.
const PAUSES_MS: [u64; 8] = [5, 150, 90, 300, 220, 40, 400, 120];

#[test]
fn pilots_killed_at_any_moment_lose_no_operation_and_do_nothing_twice() {
    let mut member = TestMember::usual();
    member.start();
    member.show(&view(1, false));
    let kill_and_wait = |pause: u64| {
        std::thread::sleep(Duration::from_millis(pause));
        kill(member.pilot(), Signal::SIGKILL).unwrap();
        member.wait("another pilot", || member.operator.get("/v1/status").is_ok());
    };
    let ask = |id: &str, act: Act| {
        // The answer may be lost with the pilot; asking again is always right.
        member.wait("accepted", || {
            let body = serde_json::to_vec(&operation(id, act)).unwrap();
            let answer = member.operator.request("POST", "/v1/operations", "", &body);
            answer.is_ok_and(|answer| [200, 202].contains(&answer.status))
        });
    };
    std::thread::scope(|scope| {
        scope.spawn(|| ask("found", Act::Verb(Verb::Found)));
        kill_and_wait(60);
        kill_and_wait(120);
    });
    member.wait("found", || member.operator.get("/v1/operations/found").is_ok_and(|a| a.body.contains("\"done\"")));
    let rows = std::fs::read_to_string(member.path("data/db/rows")).unwrap();
    member.show(&view(2, true));
    member.wait_phase(EnginePhase::Running);
    let starts = member.status().engine.starts;
    for (index, pause) in PAUSES_MS.into_iter().enumerate() {
        let act = if index % 2 == 0 { Act::Restart } else { Act::Verb(Verb::Join) };
        let id = format!("operation-{index}");
        std::thread::scope(|scope| {
            scope.spawn(|| ask(&id, act));
            kill_and_wait(pause);
        });
        member.wait(&id, || {
            member.operator.get(&format!("/v1/operations/{id}")).is_ok_and(|answer| answer.body.contains("\"done\""))
        });
    }
    member.wait_phase(EnginePhase::Running);
    let status = member.status();
    // Four restarts, each at most once too often because its pilot died in it.
    assert!((starts + 4..=starts + 8).contains(&status.engine.starts), "{status:?}");
    assert_eq!(std::fs::read_to_string(member.path("data/db/rows")).unwrap(), rows);
    for index in (1..8).step_by(2) {
        let id = format!("operation-{index}");
        let attempts: Vec<_> =
            member.calls("join").into_iter().filter(|call| call[1] == id).map(|call| call[2].clone()).collect();
        let mut once = attempts.clone();
        once.dedup();
        assert_eq!(attempts, once, "an attempt was begun twice");
    }
}

#[test]
fn a_hung_pilot_is_killed_and_restarted() {
    let mut member = TestMember::usual();
    member.silence_ms = 900;
    member.start_founded();
    let (engine, pilot) = (member.engine(), member.pilot());
    kill(pilot, Signal::SIGSTOP).unwrap();
    let started = Instant::now();
    member.wait("it is gone", || !is_alive(pilot));
    assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
    member.wait("another pilot", || member.operator.get("/v1/status").is_ok());
    member.wait_phase(EnginePhase::Running);
    assert_eq!(member.engine(), engine);
}

#[test]
fn a_hung_keeper_costs_the_engine_its_life() {
    let mut member = TestMember::usual();
    member.silence_ms = 900;
    member.behave("engine", "setsid sh -c 'echo $$ >'$root'/daemon; sleep 600' &");
    member.start_founded();
    let engine = member.engine().unwrap();
    let daemon = Pid::from_raw(std::fs::read_to_string(member.path("daemon")).unwrap().trim().parse().unwrap());
    let keeper = member.keeper();
    kill(keeper, Signal::SIGSTOP).unwrap();
    member.wait("the engine is gone", || !is_alive(engine) && !is_alive(daemon));
    kill(keeper, Signal::SIGCONT).unwrap();
    member.wait("it runs again", || member.status().engine.starts == 2);
    member.wait_phase(EnginePhase::Running);
}

#[test]
fn a_dead_keeper_leaves_nothing_behind() {
    let mut member = TestMember::usual();
    member.behave("engine", "setsid sh -c 'echo $$ >'$root'/daemon; sleep 600' &");
    member.start_founded();
    let daemon = Pid::from_raw(std::fs::read_to_string(member.path("daemon")).unwrap().trim().parse().unwrap());
    let (keeper, pilot, engine) = (member.keeper(), member.pilot(), member.engine().unwrap());
    kill(keeper, Signal::SIGKILL).unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    while [pilot, engine, daemon].into_iter().any(is_alive) {
        assert!(Instant::now() < until, "something outlives the keeper");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_pilot_is_replaced_while_the_engine_runs() {
    let mut member = TestMember::usual();
    member.start_founded();
    let (engine, pilot, before) = (member.engine(), member.pilot(), member.status());
    // Another build: the same program with something behind it.
    let mut binary = std::fs::read(agent_binary()).unwrap();
    binary.extend_from_slice(b"another build");
    let digest = sha256(&binary);
    let put = |member: &TestMember, header: &str, body: &[u8]| {
        member.operator.request("PUT", "/v1/pilot", &format!("x-sha256: {header}\r\n"), body).unwrap()
    };
    assert_eq!(put(&member, &digest, b"something else").status, 400);
    assert_eq!(put(&member, "short", &binary).status, 400);
    let script = b"#!/bin/sh\necho hello\n";
    assert_eq!(put(&member, &sha256(script), script).status, 422);
    let gap = longest_silence(&member, || {
        assert_eq!(put(&member, &digest, &binary).status, 202);
        member.wait("the new pilot answers", || {
            member.operator.get("/v1/status").is_ok_and(|answer| answer.body.contains(&digest))
        });
    });
    let usual = longest_silence(&member, || std::thread::sleep(Duration::from_secs(1)));
    println!("longest time between two answered probes: {gap:?} during the replacement, {usual:?} otherwise");
    let log = member.log();
    for line in log.lines().filter(|line| line.contains("handing over") || line.contains("was replaced")) {
        println!("{line}");
    }
    assert!(gap < Duration::from_secs(2), "{gap:?}");
    member.wait_phase(EnginePhase::Running);
    let after = member.status();
    assert_ne!(member.pilot(), pilot);
    assert_eq!(member.engine(), engine);
    assert_eq!((&after.boot_id, after.engine.starts), (&before.boot_id, 1));
    assert!(after.revision > before.revision);
    // The next container starts the new one, too.
    assert_eq!(member.terminate(), Some(0));
    member.start();
    assert_eq!(member.status().agent.sha256, digest);
    assert_eq!(put(&member, &digest, &binary).status, 200);
}

/// Asks for `/livez` all the time while `act` runs; returns the longest time without an answer.
fn longest_silence(member: &TestMember, act: impl FnOnce()) -> Duration {
    let nobody = Client::new(&member.authority, None, member.port);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while !done.load(Ordering::Relaxed) {
                if nobody.get("/livez").is_ok_and(|answer| answer.status == 200) {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
            }
            longest
        });
        act();
        done.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    })
}

#[test]
fn a_replacement_interrupts_nothing_that_is_at_work() {
    let mut member = TestMember::usual();
    member.start_founded();
    member.behave("join", "sleep 1.5");
    assert_eq!(member.operator.get("/v1/operations/join").unwrap().status, 404);
    let mut binary = std::fs::read(agent_binary()).unwrap();
    binary.push(0);
    let digest = sha256(&binary);
    let operator = &member.operator;
    std::thread::scope(|scope| {
        scope.spawn(|| member.post(&operation("join", Act::Verb(Verb::Join))));
        member.wait("it began", || member.calls("join").len() == 1);
        let answer = operator.request("PUT", "/v1/pilot", &format!("x-sha256: {digest}\r\n"), &binary).unwrap();
        assert_eq!(answer.status, 202, "{}", answer.body);
    });
    member.wait("done by the new pilot's account", || {
        operator.get("/v1/operations/join").is_ok_and(|answer| answer.body.contains("\"done\""))
    });
    member
        .wait("the new pilot answers", || operator.get("/v1/status").is_ok_and(|answer| answer.body.contains(&digest)));
    assert_eq!(member.calls("join").len(), 1);
}

#[test]
fn a_pilot_that_does_not_come_up_is_given_up() {
    let mut member = TestMember::usual();
    member.start_founded();
    let (engine, pilot) = (member.engine(), member.pilot());
    // Says the right version, and then does nothing.
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = version ] && {{ echo backlot-agent 9 standard {}; exit; }}\nsleep 600\n",
        backlot_standard::STANDARD
    );
    let put = |body: &[u8]| {
        member.operator.request("PUT", "/v1/pilot", &format!("x-sha256: {}\r\n", sha256(body)), body).unwrap().status
    };
    assert_eq!(put(script.as_bytes()), 202);
    member.wait("the old one goes on", || member.log().contains("this one goes on"));
    assert_eq!((member.pilot(), member.engine()), (pilot, engine));
    member.show(&view(3, true));
    assert_eq!(member.operate(&operation("join", Act::Verb(Verb::Join)))["state"], "done");
    // One that dies at once, too.
    assert_eq!(put(script.replace("sleep 600", "exit 1").as_bytes()), 202);
    member.wait("the old one goes on", || member.log().matches("this one goes on").count() == 2);
    assert_eq!((member.pilot(), member.engine()), (pilot, engine));
}

/// A pilot of a few lines of shell: sets a deadline and does not renew it.
const FORGETFUL: &str = r#"#!/bin/sh
[ "$1" = version ] && exit 1
root=$(dirname "$0")/../..
read -r hello <&0
printf '%s\n' "$hello" >>$root/hello
printf '%s\n' '{"is":"ready"}' >&0
case $hello in
*'"engine":null'*'"fenced":false'*)
    printf '%s\n' '{"is":"start","argv":["sh","-c","setsid sh -c \"echo \\$\\$ >'$root'/daemon; sleep 600\" & echo $$ >'$root'/main; wait"],"env":{"PATH":"/usr/bin:/bin"}}' >&0
    while [ ! -s $root/daemon ]; do sleep 0.02; done
    printf '%s\n' '{"is":"deadline","milliseconds":600}' >&0
    echo $(date +%s%3N) >$root/set
    ;;
esac
while :; do printf '%s\n' '{"is":"ping","number":1}' >&0; sleep 0.2; done
"#;

pub fn forget(member: &TestMember) {
    let pilot = member.path("backlot/agent/pilot");
    std::fs::write(&pilot, FORGETFUL).unwrap();
    std::fs::set_permissions(&pilot, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn the_keepers_deadline_kills_every_process_of_the_member() {
    let mut member = TestMember::usual();
    forget(&member);
    member.start_keeper();
    member.wait("the deadline is set", || member.path("set").exists());
    let read = |file: &str| Pid::from_raw(std::fs::read_to_string(member.path(file)).unwrap().trim().parse().unwrap());
    let (main, daemon) = (read("main"), read("daemon"));
    assert!(is_alive(main) && is_alive(daemon));
    let started = Instant::now();
    while is_alive(main) || is_alive(daemon) {
        assert!(started.elapsed() < Duration::from_secs(3), "the deadline passed and they live");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(started.elapsed() > Duration::from_millis(300));
    member.wait("the next pilot is told", || {
        std::fs::read_to_string(member.path("hello"))
            .is_ok_and(|text| text.lines().last().is_some_and(|line| line.contains("\"fenced\":true")))
    });
}
