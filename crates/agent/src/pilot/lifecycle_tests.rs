//! Tables: facts in, step out. One row changes one thing.

use super::*;
use backlot_standard::request::Plan;

struct Case {
    member: Member,
    group: GroupView,
    volume: Volume,
}

fn case(state: MemberState, founder: Option<&str>, was_founded: bool) -> Case {
    Case {
        member: Member {
            id: "m-0".to_owned(),
            numeric_id: 1,
            name: String::new(),
            address: String::new(),
            component: "data".to_owned(),
            shard: 0,
            ordinal: 0,
            zone: String::new(),
            state,
            vote: true,
            incarnation: String::new(),
            engine_id: None,
        },
        group: GroupView {
            component: "data".to_owned(),
            shard: 0,
            founder: founder.map(str::to_owned),
            founded: was_founded,
            leader: None,
            epoch: 1,
            plan: Plan::default(),
        },
        volume: Volume::Ours { incarnation: "i-1".to_owned() },
    }
}

fn facts(case: &Case) -> Facts<'_> {
    Facts {
        terminating: false,
        manifest_error: None,
        view: Some(3),
        member: Some(&case.member),
        group: Some(&case.group),
        volume: &case.volume,
        alive: false,
        up: false,
        post_started: false,
        rejected: None,
        unwell: None,
        order: None,
        order_stopped: false,
        held: false,
        pause: None,
        data: None,
        can_clone: true,
        found_needs: Some(EngineState::Stopped),
        found_done: false,
        awaits_promotion: false,
    }
}

/// A step by its name; blocked and refused ones by their reason.
fn name(step: &Step) -> String {
    match step {
        Step::Rest(Some(blocked)) => format!("blocked {}", blocked.reason),
        Step::Refuse(blocked) => format!("refuse {}", blocked.reason),
        Step::Rest(None) => "rest".to_owned(),
        Step::Pause(_) => "pause".to_owned(),
        Step::Stop(_) => "stop".to_owned(),
        Step::Start { founding: true } => "start founding".to_owned(),
        Step::Start { founding: false } => "start".to_owned(),
        Step::RunStopped(verb) => format!("run {}", verb.name()),
        Step::Prepare | Step::Clone | Step::PostStart | Step::Found | Step::Finish | Step::Exit => {
            format!("{step:?}").to_lowercase()
        }
    }
}

fn check(rows: &[(&str, Facts<'_>, &str)]) {
    for (row, facts, step) in rows {
        assert_eq!(name(&decide(facts)), *step, "{row}");
    }
}

#[test]
fn nothing_starts_without_view_membership_and_own_volume() {
    let joined = case(MemberState::Joined, Some("m-0"), true);
    let base = facts(&joined);
    let foreign = Volume::Foreign { message: String::new() };
    let unusable = Volume::Unusable { message: String::new() };
    let left = case(MemberState::Left, Some("m-1"), true);
    let dead = case(MemberState::Dead, Some("m-1"), true);
    let mut replaced = case(MemberState::Joined, Some("m-1"), true);
    replaced.member.incarnation = "i-0".to_owned();
    let mut known = case(MemberState::Joined, Some("m-1"), true);
    known.member.incarnation = "i-1".to_owned();
    check(&[
        ("all is well", base.clone(), "prepare"),
        ("volume known", facts(&known), "prepare"),
        ("stateless", Facts { volume: &Volume::None, ..base.clone() }, "prepare"),
        ("no view", Facts { view: None, member: None, group: None, ..base.clone() }, "blocked WaitingForView"),
        ("not in the view", Facts { member: None, group: None, ..base.clone() }, "blocked NotAMember"),
        ("no group", Facts { group: None, ..base.clone() }, "blocked NotAMember"),
        ("foreign volume", Facts { volume: &foreign, ..base.clone() }, "blocked ForeignVolume"),
        ("foreign volume, no view", Facts { volume: &foreign, view: None, ..base.clone() }, "blocked ForeignVolume"),
        ("unusable volume", Facts { volume: &unusable, ..base.clone() }, "blocked VolumeUnusable"),
        ("left", facts(&left), "blocked Removed"),
        ("dead", facts(&dead), "blocked Removed"),
        ("volume replaced", facts(&replaced), "blocked VolumeReplaced"),
        ("bad manifest", Facts { manifest_error: Some("x"), ..base.clone() }, "blocked ManifestInvalid"),
        ("held stopped", Facts { held: true, ..base.clone() }, "rest"),
        ("backing off", Facts { pause: Some(Duration::from_secs(1)), ..base }, "pause"),
    ]);
}

#[test]
fn what_the_volume_holds_decides_the_start() {
    let states = [MemberState::New, MemberState::Joining, MemberState::Joined, MemberState::Leaving];
    let expect = |data: DataState, founded: bool, founder: Option<&str>, can_clone: bool| -> Vec<String> {
        let step = |state: &MemberState| {
            let case = case(*state, founder, founded);
            name(&decide(&Facts { data: Some(data), can_clone, ..facts(&case) }))
        };
        states.iter().map(step).collect()
    };
    let all = |step: &str| vec![step.to_owned(); 4];
    assert_eq!(expect(DataState::Existing, true, None, true), all("start"));
    assert_eq!(expect(DataState::Existing, false, Some("m-0"), true), all("start"));
    for founder in [None, Some("m-0"), Some("m-1")] {
        assert_eq!(expect(DataState::Fresh, false, founder, true), all("blocked WaitingForFounding"));
        assert_eq!(expect(DataState::Incomplete, false, founder, true), all("blocked WaitingForFounding"));
    }
    let (missing, waits) = ("blocked DataMissing", "blocked WaitingForAdmission");
    assert_eq!(expect(DataState::Fresh, true, None, true), [waits, "clone", missing, missing]);
    assert_eq!(expect(DataState::Fresh, true, None, false), [waits, "start", missing, missing]);
    // Even the founder does not found again when its data is gone.
    assert_eq!(expect(DataState::Fresh, true, Some("m-0"), true), [waits, "clone", missing, missing]);
    for data in [DataState::Incomplete, DataState::Stale] {
        assert_eq!(expect(data, true, None, true), [waits, "clone", "clone", "blocked DataUnfit"]);
        let unfit = "blocked DataUnfit";
        assert_eq!(expect(data, true, None, false), [waits, unfit, unfit, unfit]);
    }
    for founded in [true, false] {
        assert_eq!(expect(DataState::Retired, founded, Some("m-0"), true), all("blocked RetiredMember"));
        assert_eq!(expect(DataState::Foreign, founded, Some("m-0"), true), all("blocked ForeignVolume"));
        assert_eq!(expect(DataState::Unreadable, founded, Some("m-0"), true), all("blocked UnreadableData"));
    }
}

#[test]
fn founding_needs_the_order_and_the_record() {
    let own = case(MemberState::New, Some("m-0"), false);
    let base = Facts { order: Some(Order::Found), ..facts(&own) };
    let other = case(MemberState::New, Some("m-1"), false);
    let nobody = case(MemberState::New, None, false);
    let founded = case(MemberState::Joined, Some("m-0"), true);
    let fresh = Facts { data: Some(DataState::Fresh), ..base.clone() };
    let done = Facts { found_done: true, data: Some(DataState::Existing), ..base.clone() };
    let running = Facts { alive: true, up: true, post_started: true, data: None, ..done.clone() };
    let needs_running = Facts { found_needs: Some(EngineState::Running), ..fresh.clone() };
    let pause = Some(Duration::from_secs(2));
    check(&[
        ("another is the founder", Facts { group: Some(&other.group), ..base.clone() }, "refuse NotFounder"),
        ("nobody is", Facts { group: Some(&nobody.group), ..base.clone() }, "refuse NotFounder"),
        (
            "founded by an earlier volume",
            Facts { group: Some(&founded.group), ..base.clone() },
            "refuse AlreadyFounded",
        ),
        ("volume unknown", base.clone(), "prepare"),
        ("fresh", fresh.clone(), "found"),
        ("after a broken attempt", Facts { data: Some(DataState::Incomplete), ..base.clone() }, "found"),
        ("the verb asked for a pause", Facts { pause, ..fresh.clone() }, "pause"),
        ("data that nobody founded here", Facts { data: Some(DataState::Existing), ..base.clone() }, "found"),
        ("retired data", Facts { data: Some(DataState::Retired), ..base.clone() }, "refuse DataNotFresh"),
        ("founded, to be started", done.clone(), "start founding"),
        ("founded and wiped before the view knows", Facts { data: Some(DataState::Fresh), ..done.clone() }, "found"),
        ("starting", Facts { up: false, post_started: false, ..running.clone() }, "rest"),
        ("up", Facts { post_started: false, ..running.clone() }, "poststart"),
        ("not writable yet", Facts { awaits_promotion: true, ..running.clone() }, "rest"),
        ("all done", running.clone(), "finish"),
        ("running without having been founded", Facts { found_done: false, ..running.clone() }, "stop"),
        ("asked again under another id", Facts { group: Some(&founded.group), ..running.clone() }, "finish"),
        ("the verb needs the engine: start first", needs_running.clone(), "start founding"),
        ("then the verb", Facts { alive: true, up: true, post_started: true, ..needs_running.clone() }, "found"),
        ("not before it is up", Facts { alive: true, ..needs_running }, "rest"),
        ("no verb found", Facts { found_needs: None, ..fresh.clone() }, "start founding"),
        ("no verb found, running", Facts { found_needs: None, ..running }, "finish"),
        (
            "foreign volume",
            Facts { volume: &Volume::Foreign { message: String::new() }, ..fresh },
            "refuse ForeignVolume",
        ),
    ]);
}

#[test]
fn orders_and_the_containers_end_come_first() {
    let joined = case(MemberState::Joined, None, true);
    let down = Facts { data: Some(DataState::Existing), ..facts(&joined) };
    let running = Facts { alive: true, up: true, post_started: true, ..facts(&joined) };
    let restart = Facts { order: Some(Order::Restart), ..running.clone() };
    let recover = Facts { order: Some(Order::Stopped(Verb::Recover)), ..down.clone() };
    check(&[
        ("running", running.clone(), "rest"),
        ("post-start due", Facts { post_started: false, ..running.clone() }, "poststart"),
        ("rejected", Facts { rejected: Some("x"), ..running.clone() }, "stop"),
        ("rejected, stopped", Facts { rejected: Some("x"), ..down.clone() }, "blocked ForeignVolume"),
        ("unwell", Facts { unwell: Some("hung"), ..running.clone() }, "stop"),
        ("end", Facts { terminating: true, ..restart.clone() }, "stop"),
        ("end, stopped", Facts { terminating: true, ..down.clone() }, "exit"),
        ("end without view", Facts { terminating: true, view: None, ..down.clone() }, "exit"),
        ("restart", restart.clone(), "stop"),
        ("restart, stopped", Facts { order: Some(Order::Restart), order_stopped: true, ..down.clone() }, "start"),
        ("restart while down", Facts { order: Some(Order::Restart), ..down.clone() }, "start"),
        ("restart, starting", Facts { order_stopped: true, up: false, post_started: false, ..restart.clone() }, "rest"),
        ("restart, running again", Facts { order_stopped: true, ..restart }, "finish"),
        ("stop", Facts { order: Some(Order::Stop), ..running.clone() }, "stop"),
        ("stop, stopped", Facts { order: Some(Order::Stop), ..down }, "finish"),
        ("recover", Facts { alive: true, ..recover.clone() }, "stop"),
        ("recover, stopped", recover.clone(), "run recover"),
        ("recover, pending", Facts { pause: Some(Duration::from_secs(1)), ..recover.clone() }, "pause"),
        ("recover, removed", Facts { member: None, ..recover }, "refuse NotAMember"),
    ]);
}

/// Whatever the facts: without the founding order on the recorded founder nothing is founded, foreign data never starts.
#[test]
fn no_combination_founds_or_starts_what_it_must_not() {
    let volumes = [
        Volume::None,
        Volume::Ours { incarnation: "i-1".to_owned() },
        Volume::Foreign { message: String::new() },
        Volume::Unusable { message: String::new() },
    ];
    let datas = [
        None,
        Some(DataState::Fresh),
        Some(DataState::Existing),
        Some(DataState::Incomplete),
        Some(DataState::Stale),
        Some(DataState::Retired),
        Some(DataState::Foreign),
        Some(DataState::Unreadable),
    ];
    let orders =
        [None, Some(Order::Found), Some(Order::Restart), Some(Order::Stop), Some(Order::Stopped(Verb::Recover))];
    let mut seen = 0;
    for bits in 0..1_u32 << 10 {
        let bit = |n: u32| bits >> n & 1 == 1;
        let founder = if bit(0) { "m-0" } else { "m-1" };
        let state = [MemberState::New, MemberState::Joined, MemberState::Left, MemberState::Dead][(bits >> 8) as usize];
        let case = case(state, Some(founder), bit(1));
        for ((volume, data), order) in
            volumes.iter().flat_map(|v| datas.map(|d| (v, d))).flat_map(|p| orders.map(|o| (p, o)))
        {
            let facts = Facts {
                volume,
                data,
                order,
                alive: bit(2),
                up: bit(3),
                post_started: bit(3),
                found_done: bit(4),
                can_clone: bit(5),
                order_stopped: bit(6),
                found_needs: if bit(7) { Some(EngineState::Stopped) } else { Some(EngineState::Running) },
                ..facts(&case)
            };
            let step = decide(&facts);
            let founds = matches!(step, Step::Found | Step::Start { founding: true });
            assert!(!founds || order == Some(Order::Found) && founder == "m-0", "{facts:?} {step:?}");
            let starts = matches!(step, Step::Start { .. } | Step::Clone | Step::Found) && !facts.alive;
            let unfit = matches!(data, Some(DataState::Retired | DataState::Foreign | DataState::Unreadable));
            let gone = matches!(state, MemberState::Left | MemberState::Dead);
            let foreign = matches!(volume, Volume::Foreign { .. } | Volume::Unusable { .. });
            assert!(!starts || !(unfit || gone || foreign), "{facts:?} {step:?}");
            seen += 1;
        }
    }
    assert_eq!(seen, 1024 * 4 * 8 * 5);
}
