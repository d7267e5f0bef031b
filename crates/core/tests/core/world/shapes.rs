//! Images of three shapes; between them every branch of the core is taken.

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
binding: {type: acme, port: client, username: app, passwordSecret: app, uri: 'acme://{username}@{hosts}'}
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
}

impl Shape {
    /// Numbers of members that the shape allows.
    pub fn sizes(self) -> &'static [u32] {
        match self {
            Self::Quorum => &[1, 3, 5],
            Self::Agent | Self::Leaderless => &[1, 2, 3, 4, 5],
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
