//! The short form in which golden cases write down what was seen.

use std::collections::BTreeMap;

use backlot_api::database::{DatabaseStatus, Founder, GroupStatus, MemberRecord};
use backlot_api::{Database, labels};
use backlot_core::build;
use backlot_core::snapshot::{Answers, ImageFacts, Objects, Observed, OperatorFacts, Snapshot};
use backlot_core::validate;
use backlot_standard::operation::OperationReport;
use backlot_standard::request::MemberState;
use backlot_standard::result::{
    CanDisruptOutput, ClusterHealth, DataState, EngineMember, HealthOutput, MembershipOutput, ProcessHealth, Role,
    RoleOutput,
};
use backlot_standard::status::{AgentBuild, ConfigStatus, EnginePhase, EngineStatus, MemberStatus};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::world::{NAME, Shape, from};

/// What was seen.
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not states")]
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seen {
    shape: Shape,
    /// Whether Secret, Services, budget and binding are there.
    #[serde(default)]
    objects: bool,
    /// Whether status is there; else this is the first pass.
    #[serde(default)]
    status: bool,
    /// Whether the plan shows the objects that are created.
    #[serde(default)]
    pub objects_in_plan: bool,
    /// UID of the cluster that objects are of.
    #[serde(default = "own_uid")]
    cluster_uid: String,
    /// Ordinal of the recorded founder.
    founder: Option<u32>,
    #[serde(default)]
    founded: bool,
    /// Ordinal of the decided leader.
    leader: Option<u32>,
    #[serde(default)]
    members: Vec<Member>,
    #[serde(default)]
    memberships: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    can_disrupt: BTreeMap<String, bool>,
}

fn own_uid() -> String {
    "uid-database".to_owned()
}

/// A member, its volume, pod and agent.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Member {
    ordinal: u32,
    /// As recorded; absent when status does not know it.
    state: Option<MemberState>,
    /// `bound`, `left` or `absent`.
    #[serde(default = "bound")]
    claim: String,
    /// `running`, `terminating`, `failed` or `absent`.
    #[serde(default = "running")]
    pod: String,
    /// Whether its agent does not answer.
    #[serde(default)]
    silent: bool,
    #[serde(default = "waiting")]
    engine: EnginePhase,
    data: Option<DataState>,
    role: Option<Role>,
    #[serde(default)]
    pending_restart: Vec<String>,
    #[serde(default)]
    operations: Vec<OperationReport>,
    /// Another volume than the recorded one.
    #[serde(default)]
    replaced: bool,
}

fn bound() -> String {
    "bound".to_owned()
}

fn running() -> String {
    "running".to_owned()
}

fn waiting() -> EnginePhase {
    EnginePhase::Waiting
}

impl Member {
    fn name(&self) -> String {
        name(self.ordinal)
    }

    fn record(&self) -> Option<MemberRecord> {
        let state = self.state?;
        let has_joined = !matches!(state, MemberState::New | MemberState::Joining);
        Some(MemberRecord {
            name: self.name(),
            ordinal: self.ordinal,
            state,
            incarnation: has_joined.then(|| incarnation(self.ordinal)),
            engine_id: has_joined.then(|| format!("e-{}", self.ordinal)),
        })
    }

    fn report(&self, cluster_uid: &str) -> MemberStatus {
        let is_up = self.engine == EnginePhase::Running;
        let role = self.role.filter(|_| is_up);
        MemberStatus {
            standard: backlot_standard::STANDARD.into(),
            revision: 1,
            boot_id: format!("boot-{}", self.ordinal),
            agent: AgentBuild { version: "0".into(), sha256: "0".into() },
            member: self.name(),
            cluster_uid: cluster_uid.into(),
            incarnation: Some(if self.replaced { "another".into() } else { incarnation(self.ordinal) }),
            address: format!("10.0.0.{}", self.ordinal),
            view_generation: Some(1),
            engine: EngineStatus { phase: self.engine, starts: u32::from(is_up), started_at: None, last_exit: None },
            data: self.data,
            role: role.map(|role| RoleOutput { role, writable: role == Role::Leader, term: Some(1), position: None }),
            health: is_up.then(|| HealthOutput {
                process: ProcessHealth::Up,
                ready: role.is_some(),
                cluster: ClusterHealth::Ok,
                reasons: vec![],
                message: String::new(),
            }),
            config: ConfigStatus {
                applied_generation: Some(1),
                pending_restart: self.pending_restart.clone(),
                ..ConfigStatus::default()
            },
            blocked: None,
            operations: self.operations.clone(),
        }
    }
}

fn name(ordinal: u32) -> String {
    format!("{NAME}-{ordinal}")
}

fn incarnation(ordinal: u32) -> String {
    format!("inc-{ordinal}")
}

impl Seen {
    /// The snapshot that is meant.
    pub fn snapshot(&self, mut database: Database) -> Snapshot {
        database.metadata.uid = Some(own_uid());
        database.metadata.resource_version = Some("1".into());
        database.metadata.generation = Some(1);
        database.status = self.status.then(|| self.status(&database));
        let image = ImageFacts::Usable(Box::new(self.shape.image()));
        let operator = OperatorFacts {
            epoch: 1,
            agent_image: "registry.example/agent:1".into(),
            cluster_domain: "cluster.local".into(),
        };
        let agents = self.members.iter().filter(|member| member.pod == "running").map(|member| {
            let report = if member.silent {
                Observed::Unknown("timeout".into())
            } else {
                Observed::Known(member.report(&self.cluster_uid))
            };
            (member.name(), report)
        });
        let agents = agents.collect();
        let running = self.status.then(|| self.shape.image());
        let (objects, answers) = (Objects::default(), self.answers());
        let mut snapshot = Snapshot { database, image, running, objects, agents, answers, operator };
        self.add_objects(&mut snapshot);
        snapshot
    }

    fn status(&self, database: &Database) -> DatabaseStatus {
        let founder = self.founder.map(|ordinal| Founder { member: name(ordinal), incarnation: incarnation(ordinal) });
        let group = GroupStatus {
            component: "data".into(),
            founder,
            founded: self.founded,
            leader: self.leader.map(name),
            epoch: u64::from(self.leader.is_some()),
            members: self.members.iter().filter_map(Member::record).collect(),
            ..GroupStatus::default()
        };
        DatabaseStatus {
            observed_generation: database.metadata.generation,
            cluster_uid: Some(self.cluster_uid.clone()),
            class_version: Some("1".into()),
            groups: vec![group],
            ..DatabaseStatus::default()
        }
    }

    fn answers(&self) -> Answers {
        let member = |name: &String| EngineMember {
            id: Some(name.clone()),
            engine_id: format!("e-{}", name.trim_start_matches("orders-")),
            vote: true,
            up: Some(true),
        };
        let list = |names: &Vec<String>| {
            Observed::Known(MembershipOutput { version: String::new(), members: names.iter().map(member).collect() })
        };
        let allowed = |name: &String, is_allowed: bool| {
            let allowed = if is_allowed { vec![name.clone()] } else { vec![] };
            Observed::Known(CanDisruptOutput { allowed })
        };
        Answers {
            memberships: self.memberships.iter().map(|(name, names)| (name.clone(), list(names))).collect(),
            disruptions: self.can_disrupt.iter().map(|(name, may)| (name.clone(), allowed(name, *may))).collect(),
        }
    }

    /// Objects around the members are as the core itself makes them, under the names and labels of the cluster.
    fn add_objects(&self, snapshot: &mut Snapshot) {
        let meta = |name: &str, more: &Value| {
            let mut meta = json!({
                "name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "1",
                "labels": {
                    labels::CLUSTER_UID: self.cluster_uid, labels::DATABASE: NAME, labels::CLASS: "acme",
                    labels::COMPONENT: "data", labels::SHARD: "0",
                },
            });
            for (key, value) in more.as_object().unwrap() {
                match value.as_object() {
                    Some(entries) => entries.iter().for_each(|(entry, value)| meta[key][entry] = value.clone()),
                    None => meta[key] = value.clone(),
                }
            }
            meta
        };
        for member in &self.members {
            let (name, ordinal) = (member.name(), member.ordinal);
            if member.claim != "absent" {
                self.add_claims(snapshot, member, &meta);
            }
            if member.pod != "absent" {
                let is_ending = member.pod == "terminating";
                let more = if is_ending { json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}) } else { json!({}) };
                let phase = if member.pod == "failed" { "Failed" } else { "Running" };
                snapshot.objects.pods.push(from(json!({
                    "metadata": meta(&name, &more),
                    "status": {"phase": phase, "podIP": format!("10.0.0.{ordinal}")},
                })));
            }
        }
        if self.objects {
            self.add_common_objects(snapshot, &meta);
        }
    }

    fn add_claims(&self, snapshot: &mut Snapshot, member: &Member, meta: &dyn Fn(&str, &Value) -> Value) {
        for (index, volume) in self.shape.image().manifest.volumes.iter().enumerate() {
            let claim = backlot_core::names::claim(&member.name(), &volume.name, index == 0);
            let ordinal = member.ordinal.to_string();
            let mut more = json!({"labels": {labels::ORDINAL: ordinal, labels::VOLUME: volume.name}});
            if member.claim == "left" {
                more["annotations"] = json!({labels::LEFT: "true"});
            }
            let name = format!("pv-{claim}");
            snapshot.objects.claims.push(from(json!({
                "metadata": meta(&claim, &more),
                "spec": {"volumeName": name, "resources": {"requests": {"storage": "1Gi"}}},
            })));
            let volume = json!({
                "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": "1"},
                "spec": {"persistentVolumeReclaimPolicy": "Retain"},
            });
            snapshot.objects.volumes.insert(name, from(volume));
        }
    }

    fn add_common_objects(&self, snapshot: &mut Snapshot, meta: &dyn Fn(&str, &Value) -> Value) {
        let mut more = json!({});
        if self.founded || self.founder.is_some() {
            let founder =
                self.founder.map(|ordinal| json!({"member": name(ordinal), "incarnation": incarnation(ordinal)}));
            let mut group = json!({"component": "data", "shard": 0, "founded": self.founded, "epoch": 0});
            let joined = self.members.iter().filter(|member| member.state == Some(MemberState::Joined));
            group["members"] = json!(joined.filter_map(Member::record).collect::<Vec<_>>());
            if let Some(founder) = founder {
                group["founder"] = founder;
            }
            if let Some(leader) = self.leader {
                (group["leader"], group["epoch"]) = (json!(name(leader)), json!(1));
            }
            let record = json!({"groups": [group], "immutable": {"data": {}}});
            more["annotations"] = json!({labels::FOUNDED: record.to_string()});
        }
        let mut data = serde_json::Map::from_iter([("secret.app".to_owned(), json!("c2VjcmV0"))]);
        for ordinal in 0..9 {
            data.insert(format!("{}.crt", name(ordinal)), json!(""));
        }
        snapshot.objects.secret = Some(from(json!({"metadata": meta("orders-cluster", &more), "data": data})));
        let Ok(wanted) = validate::validate(snapshot) else { return };
        let of = |object: &build::Object| {
            let mut body = object.body.clone();
            body["metadata"]["uid"] = json!(format!("uid-{:?}-{}", object.kind, object.name).to_lowercase());
            body
        };
        snapshot.objects.services = build::services(&wanted).iter().map(|object| from(of(object))).collect();
        let members: Vec<_> = self.members.iter().filter(|member| member.state.is_some()).map(Member::name).collect();
        let count = wanted.components[0].members as usize;
        snapshot.objects.budgets = vec![from(of(&build::budget(&wanted, &wanted.components[0], count)))];
        let names: Vec<_> = members.iter().map(String::as_str).collect();
        let secret = snapshot.objects.secret.as_ref().unwrap();
        snapshot.objects.binding =
            build::binding(&wanted, &names, secret, "cluster.local").map(|object| from(of(&object)));
    }
}
