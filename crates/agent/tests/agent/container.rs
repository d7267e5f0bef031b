//! The keeper as what it is in a container: process 1 of a process namespace.

use std::process::Stdio;
use std::time::{Duration, Instant};

use backlot_agent::process::{descendants, is_alive};
use backlot_standard::operation::Act;
use backlot_standard::verb::Verb;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::pilot::forget;
use crate::support::{TestMember, operation};

/// Runs its argument as process 1. Not root: in a user namespace.
const CONTAINER: &[&str] = &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"];

fn wrapper() -> &'static [&'static str] {
    if nix::unistd::geteuid().is_root() {
        &["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    } else {
        CONTAINER
    }
}

fn start_contained(member: &mut TestMember) {
    let log = std::fs::File::create(member.path("log")).unwrap();
    let command = member.keeper_command(wrapper());
    member.spawn(command, log.into());
}

fn processes(member: &TestMember) -> Vec<(Pid, String)> {
    let line = |pid: Pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    descendants(member.keeper(), &[]).into_iter().map(|pid| (pid, line(pid))).collect()
}

#[test]
fn process_1_fences_everything_at_its_deadline_and_reaps_all() {
    let mut member = TestMember::usual();
    forget(&member);
    start_contained(&mut member);
    member.wait("the deadline is set", || member.path("set").exists());
    let sleeps = |line: &str| line.replace('\0', " ").contains("sleep 600");
    let sleepers: Vec<Pid> =
        processes(&member).into_iter().filter(|(_, line)| sleeps(line)).map(|(pid, _)| pid).collect();
    assert!(sleepers.len() >= 2, "{:?}", processes(&member));
    let started = Instant::now();
    while sleepers.iter().any(|pid| is_alive(*pid)) {
        assert!(started.elapsed() < Duration::from_secs(3), "they live: {:?}\n{}", processes(&member), member.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    member.wait("the next pilot is told", || {
        let text = std::fs::read_to_string(member.path("hello")).unwrap_or_default();
        text.lines().last().is_some_and(|line| line.contains("\"fenced\":true"))
    });
    // Reaped, not only dead: no zombie of the namespace is left.
    for pid in sleepers {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}

#[test]
fn a_member_lives_and_ends_in_its_container() {
    let mut member = TestMember::usual();
    // A daemon that the engine forgets about, and children that nobody waits for.
    member.behave("engine", "for i in 1 2 3; do (setsid true &); done; setsid sleep 600 &");
    start_contained(&mut member);
    member.wait("the API answers", || member.operator.get("/livez").is_ok());
    member.show(&crate::support::view(1, false));
    assert_eq!(member.operate(&operation("found", Act::Verb(Verb::Found)))["state"], "done");
    let zombies = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let stats = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
        let keeper = processes(&member)[0].0;
        stats.filter(|stat| stat.contains(&format!(") Z {keeper} "))).count()
    };
    member.wait("no zombie", || zombies() == 0);
    let keeper = processes(&member).into_iter().find(|(_, line)| line.contains("\0keeper\0")).unwrap().0;
    let all: Vec<Pid> = processes(&member).into_iter().map(|(pid, _)| pid).collect();
    kill(keeper, Signal::SIGTERM).unwrap();
    member.wait("everything ended", || !all.iter().any(|pid| is_alive(*pid)));
    assert_eq!(member.exit_code(), Some(0));
    assert!(member.log().contains("engine stops"));
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let mut member = TestMember::usual();
    member.behave("engine", "touch $root/run/db/up; trap 'exit 0' TERM; while :; do echo flood flood flood; done");
    let command = member.keeper_command(&[]);
    let (reader, writer) = std::io::pipe().unwrap();
    member.spawn(command, Stdio::from(writer));
    member.wait("the API answers", || member.operator.get("/livez").is_ok());
    member.show(&crate::support::view(1, false));
    assert_eq!(member.operate(&operation("found", Act::Verb(Verb::Found)))["state"], "done");
    let pilot = member.pilot();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(member.operate(&operation("join", Act::Verb(Verb::Join)))["state"], "done");
    assert_eq!(member.pilot(), pilot);
    assert!(member.engine().is_some());
    assert_eq!(member.terminate(), Some(0));
    drop(reader);
}
