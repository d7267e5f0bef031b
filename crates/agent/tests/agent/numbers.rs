//! What the agent costs beside an idle engine. `BACKLOT_AGENT` names another build to measure, e.g. the static release.

use std::time::Duration;

use backlot_agent::process::resident_bytes;
use nix::unistd::Pid;

use crate::support::TestMember;

/// Ticks of processor time that a process, and its ended children, have used.
fn processor_ticks(pid: Pid) -> [u64; 2] {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let number = |index: usize| fields[index].parse::<u64>().unwrap();
    [number(11) + number(12), number(13) + number(14)]
}

/// What of the resident memory is the process's own, and its share of the binary's pages.
fn own_and_shared(pid: Pid) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let wanted = |line: &&str| ["Rss:", "Pss:", "Private_Dirty:"].iter().any(|name| line.starts_with(name));
    text.lines()
        .filter(wanted)
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join(", ")
}

#[test]
fn an_idle_agent_stays_small() {
    let mut member = TestMember::usual();
    member.edit_manifest("poll: {seconds: 1}", "poll: {seconds: 5}");
    member.start_founded();
    std::thread::sleep(Duration::from_secs(3));
    let (keeper, pilot) = (member.keeper(), member.pilot());
    let seconds = std::env::var("BACKLOT_IDLE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let before = [processor_ticks(keeper), processor_ticks(pilot)];
    std::thread::sleep(Duration::from_secs(seconds));
    for ((name, pid), before) in [("keeper", keeper), ("pilot", pilot)].into_iter().zip(before) {
        let after = processor_ticks(pid);
        let [own, verbs] = [after[0] - before[0], after[1] - before[1]].map(|ticks| ticks * 10);
        println!("{name}: {}; processor in {seconds} s: {own} ms itself, {verbs} ms verbs", own_and_shared(pid));
    }
    // The binary's pages are shared, and differ by build; what is the processes' own counts for every build.
    let own: u64 = [keeper, pilot].into_iter().map(anonymous_bytes).sum();
    assert!(own < 6 << 20, "{own} bytes of own memory");
    if std::env::var_os("BACKLOT_AGENT").is_some() {
        let resident: u64 = [keeper, pilot].into_iter().filter_map(resident_bytes).sum();
        assert!(resident < 15 << 20, "{resident} bytes resident");
    }
}

fn anonymous_bytes(pid: Pid) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
