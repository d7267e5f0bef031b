//! Members in memory, driven as an operator drives them.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeMap;

use backlot_standard::manifest::Elections;
use backlot_standard::operation::{Act, OperationReport, OperationRequest, OperationState};
use backlot_standard::request::{Member, MemberState, Plan, Reason};
use backlot_standard::result::{CanDisruptOutput, Exit, MembershipOutput, Role};
use backlot_standard::status::{EnginePhase, MemberStatus};
use backlot_standard::verb::Verb;
use backlot_standard::view::{ClusterView, ComponentView, GroupView, SignedView};
use backlot_testkit::api_server::ApiServer;
use backlot_testkit::fake_agent::{AgentError, FakeImage, FakeMembers, Misbehaviour};
use backlot_testkit::simulated::Cluster;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const UID: &str = "cluster-1";

/// A hand-driven operator of one database.
struct Bench {
    server: ApiServer,
    cluster: Cluster<FakeMembers>,
    members: FakeMembers,
    view: ClusterView,
}

impl Bench {
    fn new(elections: Elections) -> Self {
        let server = ApiServer::new();
        let members = FakeMembers::new(FakeImage::new(elections).unwrap());
        let cluster = Cluster::new(&server, members.clone()).unwrap();
        let view = ClusterView {
            standard: "0.1".to_owned(),
            generation: 1,
            operator_epoch: 1,
            cluster_uid: UID.to_owned(),
            cluster_name: "x".to_owned(),
            engine_name: "x-1".to_owned(),
            groups: vec![GroupView {
                component: "data".to_owned(),
                shard: 0,
                founder: Some("x-0".to_owned()),
                founded: false,
                leader: (elections == Elections::Agent).then(|| "x-0".to_owned()),
                epoch: 1,
                plan: Plan::default(),
            }],
            members: vec![],
            components: BTreeMap::from([("data".to_owned(), ComponentView::default())]),
            durability: None,
        };
        Self { server, cluster, members, view }
    }

    fn with_three_members(elections: Elections) -> Self {
        let mut bench = Self::new(elections);
        bench.add("x-0");
        bench.publish();
        assert_eq!(bench.run("x-0", Verb::Found, "found").state, OperationState::Done);
        bench.view.groups[0].founded = true;
        bench.view.members[0].state = MemberState::Joined;
        for name in ["x-1", "x-2"] {
            bench.add(name);
            bench.publish();
            assert_eq!(bench.status(name).blocked.unwrap().reason, "WaitingForAdmission");
            bench.view.members.last_mut().unwrap().state = MemberState::Joining;
            bench.publish();
            assert_eq!(bench.run(name, Verb::Join, &format!("join/{name}")).state, OperationState::Done);
            bench.view.members.iter_mut().find(|member| member.id == name).unwrap().state = MemberState::Joined;
        }
        bench.publish();
        bench
    }

    fn add(&mut self, name: &str) {
        self.server.create(&claim(name)).unwrap();
        self.server.create(&pod(name)).unwrap();
        let ordinal = u32::try_from(self.view.members.len()).unwrap();
        self.view.members.push(Member {
            id: name.to_owned(),
            numeric_id: ordinal + 1,
            name: name.to_owned(),
            address: String::new(),
            component: "data".to_owned(),
            shard: 0,
            ordinal,
            zone: String::new(),
            state: MemberState::New,
            vote: true,
            incarnation: String::new(),
            engine_id: None,
        });
    }

    /// Gives everybody the view under the next number.
    fn publish(&mut self) {
        self.cluster.settle().unwrap();
        self.view.generation += 1;
        let signed = signed(&self.view);
        for member in &self.view.members {
            let _unreachable = self.members.put_view("default", &member.id, &signed);
        }
        self.cluster.settle().unwrap();
    }

    fn ask(&self, member: &str, act: Act, id: &str, subject: Option<&str>) -> Result<OperationReport, AgentError> {
        let asked = json!({"members": subject.into_iter().collect::<Vec<_>>()});
        let request = OperationRequest {
            id: id.to_owned(),
            operator_epoch: 1,
            view_generation: self.view.generation,
            act,
            reason: Reason::Create,
            subject: subject.map(str::to_owned),
            via: None,
            params: asked.as_object().unwrap().clone(),
        };
        self.members.operate("default", member, &request)
    }

    /// Asks until the operation has ended.
    fn run(&mut self, member: &str, verb: Verb, id: &str) -> OperationReport {
        for _ in 0..20 {
            let report = self.ask(member, Act::Verb(verb), id, None).unwrap();
            if report.state != OperationState::Running {
                return report;
            }
            self.cluster.step().unwrap();
        }
        panic!("{id} does not end");
    }

    fn status(&self, member: &str) -> MemberStatus {
        self.members.status("default", member).unwrap()
    }

    fn output<T: DeserializeOwned>(report: OperationReport) -> T {
        serde_json::from_value(report.result.output.unwrap()).unwrap()
    }
}

fn signed(view: &ClusterView) -> SignedView {
    SignedView { payload: serde_json::to_string(view).unwrap(), signature: String::new() }
}

fn from<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn claim(name: &str) -> PersistentVolumeClaim {
    from(json!({
        "metadata": {"name": format!("data-{name}"), "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "1Gi"}}},
    }))
}

fn pod(name: &str) -> Pod {
    from(json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "containers": [{"name": "engine", "image": "fake:1", "env": [
                {"name": "BACKLOT_MEMBER", "value": name}, {"name": "BACKLOT_CLUSTER_UID", "value": UID}]}],
            "volumes": [{"name": "volume-data", "persistentVolumeClaim": {"claimName": format!("data-{name}")}}],
        },
    }))
}

#[test]
fn a_cluster_is_founded_once_joined_and_holds_its_data() {
    let mut bench = Bench::with_three_members(Elections::Engine);
    assert_eq!(bench.members.joined(UID).len(), 3);
    bench.members.write(UID, "k", "1").unwrap();
    for member in ["x-0", "x-1", "x-2"] {
        let status = bench.status(member);
        assert_eq!(status.engine.phase, EnginePhase::Running);
        assert!(status.health.unwrap().ready);
        assert_eq!(bench.members.read("default", member)["k"], "1");
    }
    let roles: Vec<Role> = ["x-0", "x-1", "x-2"].map(|member| bench.status(member).role.unwrap().role).to_vec();
    assert_eq!(roles, [Role::Leader, Role::Follower, Role::Follower]);
    let again = bench.run("x-0", Verb::Found, "found");
    assert_eq!(again.attempts, 1, "an operation that is done does not run again");
    let repeated = bench.run("x-0", Verb::Found, "found-2");
    assert!(!repeated.result.changed);
    assert_eq!(bench.members.violations(), Vec::<String>::new());
}

#[test]
fn nobody_founds_by_itself_and_only_the_founder_founds() {
    let mut bench = Bench::new(Elections::Engine);
    bench.add("x-0");
    bench.add("x-1");
    bench.publish();
    assert_eq!(bench.status("x-0").blocked.unwrap().reason, "WaitingForFounding");
    let refused = bench.run("x-1", Verb::Found, "found");
    assert_eq!((refused.state, refused.exit), (OperationState::Failed, Some(Exit::Conflict)));
    assert_eq!(bench.members.violations().len(), 1);
}

#[test]
fn views_and_operations_of_the_past_are_refused() {
    let mut bench = Bench::with_three_members(Elections::Engine);
    let status = |result: Result<u64, AgentError>| match result {
        Err(AgentError::Refused { status, .. }) => status,
        other => panic!("{other:?}"),
    };
    let mut old = bench.view.clone();
    old.generation -= 1;
    assert_eq!(status(bench.members.put_view("default", "x-0", &signed(&old))), 409);
    old.generation += 5;
    old.cluster_uid = "other".to_owned();
    assert_eq!(status(bench.members.put_view("default", "x-0", &signed(&old))), 403);
    bench.view.operator_epoch = 2;
    bench.publish();
    let refused = bench.ask("x-0", Act::Verb(Verb::Join), "late", None).unwrap_err();
    assert!(matches!(refused, AgentError::Refused { status: 409, .. }));
}

#[test]
fn a_member_comes_back_with_its_data_and_a_replaced_volume_is_seen() {
    let mut bench = Bench::with_three_members(Elections::Engine);
    bench.server.delete::<Pod>("default", "x-2", None).unwrap();
    bench.cluster.settle().unwrap();
    bench.members.write(UID, "k", "1").unwrap();
    bench.server.create(&pod("x-2")).unwrap();
    bench.cluster.settle().unwrap();
    assert_eq!(bench.members.read("default", "x-2")["k"], "1", "it caught up");
    let incarnation = bench.status("x-2").incarnation.unwrap();
    bench.view.members[2].incarnation = incarnation;
    bench.publish();
    assert_eq!(bench.status("x-2").blocked, None);

    bench.server.delete::<PersistentVolumeClaim>("default", "data-x-2", None).unwrap();
    bench.server.delete::<Pod>("default", "x-2", None).unwrap();
    bench.cluster.settle().unwrap();
    assert_eq!(bench.members.violations().len(), 1, "data went while its member was joined");
    bench.server.create(&claim("x-2")).unwrap();
    bench.server.create(&pod("x-2")).unwrap();
    bench.publish();
    assert_eq!(bench.status("x-2").blocked.unwrap().reason, "VolumeReplaced");
}

#[test]
fn leaving_forgetting_and_disrupting_follow_the_quorum() {
    let mut bench = Bench::with_three_members(Elections::Engine);
    let allowed = |bench: &Bench, id: &str| -> Vec<String> {
        let report = bench.ask("x-0", Act::Verb(Verb::CanDisrupt), id, Some("x-1")).unwrap();
        Bench::output::<CanDisruptOutput>(report).allowed
    };
    assert_eq!(allowed(&bench, "ask-1"), ["x-1"]);
    bench.server.delete::<Pod>("default", "x-2", None).unwrap();
    bench.cluster.settle().unwrap();
    assert!(allowed(&bench, "ask-2").is_empty());
    let forgotten = bench.ask("x-0", Act::Verb(Verb::Forget), "forget", Some("x-2")).unwrap();
    assert_eq!(forgotten.state, OperationState::Done);
    let left = bench.run("x-1", Verb::Leave, "leave");
    assert_eq!(left.state, OperationState::Done);
    let report = bench.ask("x-0", Act::Verb(Verb::Membership), "list", None).unwrap();
    let members = Bench::output::<MembershipOutput>(report).members;
    assert_eq!(members.iter().map(|member| member.id.clone().unwrap()).collect::<Vec<_>>(), ["x-0"]);
    assert_eq!(bench.members.violations(), Vec::<String>::new());
}

#[test]
fn settings_are_taken_up_live_or_wait_for_a_restart() {
    let mut bench = Bench::with_three_members(Elections::Engine);
    let config = &mut bench.view.components.get_mut("data").unwrap().config;
    config.insert("greeting".to_owned(), "hi".to_owned());
    config.insert("cacheSize".to_owned(), "2Mi".to_owned());
    bench.publish();
    assert_eq!(bench.status("x-1").config.pending_restart, ["cacheSize"]);
    let report = bench.ask("x-1", Act::Restart, "restart", None).unwrap();
    assert_eq!(report.state, OperationState::Running);
    bench.cluster.settle().unwrap();
    let report = bench.members.operation("default", "x-1", "restart").unwrap().unwrap();
    assert_eq!(report.state, OperationState::Done);
    assert!(bench.status("x-1").config.pending_restart.is_empty());
    assert_eq!((bench.members.count("x-1", "restart"), bench.members.count("x-1", "start")), (1, 2));
}

#[test]
fn agents_that_elect_promote_the_named_leader_again_after_a_restart() {
    let mut bench = Bench::with_three_members(Elections::Agent);
    assert!(bench.status("x-0").role.unwrap().writable);
    bench.ask("x-0", Act::Restart, "restart", None).unwrap();
    assert!(bench.members.write(UID, "k", "1").is_err(), "a restarted engine takes no writes");
    bench.cluster.settle().unwrap();
    assert!(bench.status("x-0").role.unwrap().writable);
    bench.members.write(UID, "k", "1").unwrap();
    assert_eq!(bench.members.violations(), Vec::<String>::new());
}

#[test]
fn misbehaviour_shows_as_it_would_in_reality() {
    let mut bench = Bench::with_three_members(Elections::Engine);
    let join = |bench: &Bench, id: &str| bench.ask("x-1", Act::Verb(Verb::Join), id, None);
    bench.members.misbehave("x-1", Verb::Join, Misbehaviour::Refuse, 1);
    let refused = join(&bench, "a").unwrap();
    assert_eq!((refused.state, refused.exit), (OperationState::Failed, Some(Exit::Unsafe)));
    assert_eq!(refused.result.blockers.len(), 1);
    assert_eq!(join(&bench, "a").unwrap().state, OperationState::Done, "asking again tries again");

    bench.members.misbehave("x-1", Verb::Join, Misbehaviour::LoseReply, 1);
    assert_eq!(join(&bench, "b").unwrap_err(), AgentError::Lost);
    assert_eq!(join(&bench, "b").unwrap().state, OperationState::Done);

    bench.members.misbehave("x-1", Verb::Join, Misbehaviour::Garbage, 9);
    join(&bench, "c").unwrap();
    bench.cluster.settle().unwrap();
    let report = bench.members.operation("default", "x-1", "c").unwrap().unwrap();
    assert_eq!((report.state, report.attempts), (OperationState::Failed, 5));
    bench.members.behave();

    bench.members.misbehave("x-1", Verb::Join, Misbehaviour::Hang, 1);
    join(&bench, "d").unwrap();
    bench.cluster.settle().unwrap();
    assert_eq!(join(&bench, "d").unwrap().state, OperationState::Running);

    bench.members.misbehave("x-1", Verb::Join, Misbehaviour::Crash, 1);
    join(&bench, "e").unwrap();
    assert_eq!(bench.status("x-1").engine.phase, EnginePhase::Crashed);
    assert_eq!(bench.status("x-1").health, None);
    bench.cluster.settle().unwrap();
    assert_eq!(bench.status("x-1").engine.phase, EnginePhase::Running);

    bench.members.cut_off("default", "x-1");
    assert_eq!(join(&bench, "f").unwrap_err(), AgentError::Unreachable);
}
