//! Images of four shapes; between them every branch of the core is taken.

use std::collections::BTreeSet;

use backlot_core::snapshot::UsableImage;
use backlot_standard::manifest::Manifest;
use backlot_standard::verb::Verb;

const COMMON: &str = r"
standard: '0.1'
version: '1.2.3'
ports:
  - {name: client, port: 4000, purpose: client}
  - {name: peer, port: 4001, purpose: peer}
secrets: [{name: app}]
binding: {type: acme, component: data, port: client, username: app, passwordSecret: app, uri: 'acme://{username}@{hosts}'}
config:
  live-limit: {type: integer, apply: live, minimum: 1, maximum: 100}
  max-connections: {type: integer, apply: restart, minimum: 10, maximum: 1000, default: 100}
  max-workers: {type: integer, apply: restart, minimum: 1, default: 8, raiseFirstOn: followers}
  page-size: {type: string, apply: immutable, enum: [small, large], default: small}
";

const QUORUM: &str = r"
engine: acme-quorum
elections: engine
components: [{name: data, leader: one, members: {min: 1, default: 3, max: 7, odd: true}}]
membership: {change: one, start: serial, quorum: true, ids: {min: 1, max: 40}}
durability: [{level: Quorum, confirms: flushed}]
volumes: [{name: data, path: /data}]
";

const AGENT: &str = r"
engine: acme-agent
elections: agent
components: [{name: data, leader: one, members: {min: 1, default: 3, max: 5}}]
membership: {change: one, start: parallel}
durability: [{level: Quorum, confirms: flushed}, {level: Async, confirms: flushed}]
volumes: [{name: data, path: /data}]
verbs:
  leave: {runsOn: leader}
  membership: {runsOn: leader}
  can-disrupt: {runsOn: leader}
";

const LEADERLESS: &str = r"
engine: acme-ring
elections: none
components: [{name: data, leader: none, members: {min: 1, default: 3, max: 5}}]
membership: {change: set, start: parallel}
volumes: [{name: data, path: /data}, {name: log, path: /log}]
";

const PARTS: &str = r"
engine: acme-parts
elections: none
components:
  - {name: keeper, members: {min: 0, default: 0, max: 5, odd: true}, ids: {min: 101, max: 110}}
  - {name: data, joins: keeper, members: {min: 1, default: 3, max: 5}, ids: {min: 1, max: 100}}
  - {name: front, joins: data, members: {min: 0, default: 0, max: 3}, ids: {min: 201, max: 210}}
membership: {change: one, quorum: true}
volumes: [{name: data, path: /data}]
";

/// A shape of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Shape {
    /// The engine elects its leader and counts votes; odd numbers.
    Quorum,
    /// The agents decide who leads.
    Agent,
    /// Members are equal, join and leave in sets, and data is spread.
    Leaderless,
    /// Components that join the cluster of another one, which a cluster may have or not.
    Parts,
}

impl Shape {
    /// Numbers of members that the shape allows.
    pub fn sizes(self) -> &'static [u32] {
        match self {
            Self::Quorum => &[1, 3, 5],
            Self::Agent | Self::Leaderless | Self::Parts => &[1, 2, 3, 4, 5],
        }
    }

    /// A spec with this many members of `data`, and of other components what the shape is about.
    pub fn spec(self, members: u32) -> serde_json::Value {
        let components = match self {
            Self::Quorum | Self::Agent | Self::Leaderless => serde_json::json!({}),
            Self::Parts => serde_json::json!({"keeper": {"members": 3}, "front": {"members": 1}}),
        };
        serde_json::json!({"members": members, "components": components})
    }

    /// A member by number; numbers from 4 on are those of other components, where there are any.
    pub fn member(self, number: u8) -> String {
        match (self, number) {
            (Self::Parts, 4) => "orders-front-0".to_owned(),
            (Self::Parts, 5..) => format!("orders-keeper-{}", number - 5),
            _ => format!("orders-{number}"),
        }
    }

    /// Its image.
    pub fn image(self) -> UsableImage {
        use Verb::{
            CanDisrupt, Clone, Follow, Forget, Found, Health, Join, Leave, Membership, Promote, Rebalance, Render, Role,
        };
        let (text, more): (_, &[Verb]) = match self {
            Self::Quorum => (QUORUM, &[Membership, CanDisrupt, Forget]),
            Self::Agent => (AGENT, &[Membership, CanDisrupt, Clone, Promote, Follow]),
            Self::Leaderless => (LEADERLESS, &[Rebalance]),
            Self::Parts => (PARTS, &[Membership, CanDisrupt, Forget, Rebalance]),
        };
        let verbs: BTreeSet<_> =
            [Render, Health, Role, Found, Join, Leave].into_iter().chain(more.iter().copied()).collect();
        UsableImage {
            class_version: "1".into(),
            pinned: "registry.example/acme@sha256:00".into(),
            manifest: manifest(text),
            verbs,
            pull_secrets: vec![],
        }
    }
}

/// A manifest from its own lines and those that all shapes share.
pub fn manifest(own: &str) -> Manifest {
    let manifest: Manifest = serde_norway::from_str(&format!("{COMMON}{own}")).unwrap();
    assert_eq!(manifest.check(), []);
    manifest
}
