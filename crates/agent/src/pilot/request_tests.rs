//! What verbs are told.

use std::collections::BTreeMap;

use super::*;
use backlot_standard::environment;
use backlot_standard::manifest::DurabilityLevel;
use backlot_standard::request::{Member, MemberState, Plan, Resources};
use backlot_standard::view::{ComponentView, GroupView};

fn member(ordinal: u32, address: &str) -> Member {
    Member {
        id: format!("m-{ordinal}"),
        numeric_id: ordinal + 1,
        name: format!("m-{ordinal}.m.ns.svc"),
        address: address.to_owned(),
        component: "data".to_owned(),
        shard: 0,
        ordinal,
        zone: String::new(),
        state: MemberState::Joined,
        vote: ordinal != 1,
        incarnation: String::new(),
        engine_id: (ordinal == 1).then(|| "e1".to_owned()),
    }
}

fn view(leader: Option<&str>, founded: bool) -> ClusterView {
    let config = BTreeMap::from([("a.b".to_owned(), "x=y".to_owned()), ("c".to_owned(), String::new())]);
    ClusterView {
        standard: "0.1".to_owned(),
        generation: 7,
        operator_epoch: 1,
        cluster_uid: "uid".to_owned(),
        cluster_name: "m".to_owned(),
        engine_name: "m-1a".to_owned(),
        groups: vec![GroupView {
            component: "data".to_owned(),
            shard: 0,
            founder: Some("m-0".to_owned()),
            founded,
            leader: leader.map(str::to_owned),
            epoch: 4,
            plan: Plan { current: 2, target: 3, joining: vec![], leaving: vec![] },
        }],
        members: vec![member(0, "10.0.0.1"), member(1, "")],
        components: BTreeMap::from([(
            "data".to_owned(),
            ComponentView { config, resources: Resources { memory_bytes: 5, cpu_millis: 6, volumes: BTreeMap::new() } },
        )]),
        durability: Some(DurabilityLevel::Quorum),
    }
}

fn manifest(elections: &str) -> Manifest {
    let text = include_str!("../../tests/fixtures/image/manifest.yaml");
    serde_norway::from_str(&format!("{text}\nelections: {elections}\n")).unwrap()
}

fn request(view: &ClusterView, manifest: &Manifest, call: &Call) -> Option<Request> {
    let situation = Situation { view, manifest, member: "m-0", address: "10.9.9.9", applied: None };
    build(call, 60, &situation)
}

#[test]
fn the_environment_says_what_the_request_says() {
    let mut call = Call::own(Verb::Forget, "x", 2, Reason::Leave);
    call.subject = Some("m-1".to_owned());
    call.params =
        serde_json::from_str(r#"{"oldValue": "v", "count": 3, "names": ["a", "b"], "deep": {"x": 1}}"#).unwrap();
    let env: BTreeMap<_, _> =
        environment::scalars(&request(&view(Some("m-1"), true), &manifest("agent"), &call).unwrap())
            .into_iter()
            .collect();
    let expected = [
        ("VERB", "forget"),
        ("OPERATION_ID", "agent/forget/x"),
        ("ATTEMPT", "2"),
        ("DEADLINE_SECONDS", "60"),
        ("REASON", "leave"),
        ("CLUSTER_UID", "uid"),
        ("CLUSTER_NAME", "m"),
        ("ENGINE_NAME", "m-1a"),
        ("EPOCH", "4"),
        ("FOUNDED", "true"),
        ("FOUNDING", "false"),
        ("DURABILITY", "Quorum"),
        ("SELF_ID", "m-0"),
        ("SELF_NUMERIC_ID", "1"),
        ("SELF_NAME", "m-0.m.ns.svc"),
        ("SELF_ADDRESS", "10.9.9.9"),
        ("SELF_COMPONENT", "data"),
        ("SELF_SHARD", "0"),
        ("SELF_ORDINAL", "0"),
        ("SELF_STATE", "joined"),
        ("SELF_ENGINE_ID", ""),
        ("INTENT_ROLE", "follower"),
        ("LEADER_ID", "m-1"),
        ("LEADER_NAME", "m-1.m.ns.svc"),
        ("LEADER_ADDRESS", ""),
        ("LEADER_NUMERIC_ID", "2"),
        ("LEADER_ENGINE_ID", "e1"),
        ("SUBJECT_ID", "m-1"),
        ("SUBJECT_NUMERIC_ID", "2"),
        ("SUBJECT_NAME", "m-1.m.ns.svc"),
        ("SUBJECT_ADDRESS", ""),
        ("SUBJECT_ENGINE_ID", "e1"),
        ("VIA_ID", ""),
        ("VIA_NAME", ""),
        ("VIA_ADDRESS", ""),
        ("VIA_NUMERIC_ID", ""),
        ("VIA_ENGINE_ID", ""),
        ("MEMORY_BYTES", "5"),
        ("CPU_MILLIS", "6"),
        ("PLAN_CURRENT", "2"),
        ("PLAN_TARGET", "3"),
        ("PARAM_OLD_VALUE", "v"),
        ("PARAM_COUNT", "3"),
        ("PARAM_NAMES", "a b"),
    ];
    for (name, value) in expected {
        assert_eq!(env.get(&format!("DB_{name}")).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(env.len(), expected.len());
}

#[test]
fn the_role_wanted_depends_on_who_elects_and_who_leads() {
    let role = |elections: &str, leader: Option<&str>, founded: bool| {
        let call = Call::own(Verb::Promote, "x", 1, Reason::Restart);
        let request = request(&view(leader, founded), &manifest(elections), &call).unwrap();
        assert_eq!(request.params["epoch"], 4);
        (request.intent.role, request.intent.leader)
    };
    let id = |text: &str| Some(text.to_owned());
    assert_eq!(role("agent", Some("m-0"), true), (IntentRole::Leader, id("m-0")));
    assert_eq!(role("agent", Some("m-1"), true), (IntentRole::Follower, id("m-1")));
    assert_eq!(role("agent", None, true), (IntentRole::None, None));
    // While it founds, the founder leads.
    assert_eq!(role("agent", None, false), (IntentRole::Leader, id("m-0")));
    assert_eq!(role("engine", Some("m-0"), true), (IntentRole::None, id("m-0")));
}

#[test]
fn files_for_shells_are_lines() {
    let request =
        request(&view(None, true), &manifest("engine"), &Call::own(Verb::Role, "poll", 1, Reason::Poll)).unwrap();
    let text = environment::members(&request);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "m-0\t1\tm-0.m.ns.svc\t10.9.9.9\tdata\t0\t0\tjoined\ttrue\t-");
    assert_eq!(lines[1], "m-1\t2\tm-1.m.ns.svc\t-\tdata\t0\t1\tjoined\tfalse\te1");
    assert_eq!(environment::config(&request), "a.b=x=y\nc=\n");
}

#[test]
fn founding_is_said_only_while_the_group_is_not_founded() {
    let mut call = Call::own(Verb::Render, "x", 1, Reason::Create);
    call.founding = true;
    let manifest = manifest("engine");
    assert!(request(&view(None, false), &manifest, &call).unwrap().cluster.founding);
    assert!(!request(&view(None, true), &manifest, &call).unwrap().cluster.founding);
    call.founding = false;
    assert!(!request(&view(None, false), &manifest, &call).unwrap().cluster.founding);
}

#[test]
fn a_member_that_the_view_does_not_know_gets_no_request() {
    let (view, manifest) = (view(None, true), manifest("engine"));
    let situation = Situation { view: &view, manifest: &manifest, member: "m-9", address: "", applied: None };
    assert!(build(&Call::own(Verb::Role, "x", 1, Reason::Poll), 5, &situation).is_none());
}
