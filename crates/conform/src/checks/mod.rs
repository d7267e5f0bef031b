//! The checks. Each is a promise of the standard; which run is decided by what the manifest claims.
//!
//! Checks of a stage share one Database, in order; after one that failed the stage is set up anew. Invariant: a check leaves the
//! Database as it found it, Ready and of the same size, or fails; or it leaves none.

mod cluster;
mod image;
mod member;
mod parts;

use anyhow::Result;
use backlot_standard::manifest::{Component, Elections, Leadership};
use backlot_standard::verb::Verb;

use crate::kit::{Claims, Kit};

pub use image::Static;

/// What must stand when a check begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// A Database with as few members as the type allows.
    One,
    /// A Database with three members, or as many more as the type's smallest number.
    Three,
}

impl Stage {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::One => "of the smallest size",
            Self::Three => "with three members",
        }
    }
}

/// One check.
pub struct Check {
    /// Level of the standard's conformance, 1 to 5.
    pub level: u8,
    /// The promise, as a name.
    pub name: &'static str,
    /// What must stand.
    pub stage: Stage,
    /// Why the image does not claim it, when it does not.
    pub not_claimed: fn(&Claims) -> Option<&'static str>,
    /// Fails with the reason.
    pub run: fn(&mut Kit) -> Result<()>,
}

/// A level's work that no image can claim yet.
pub struct NotYet {
    /// The level.
    pub level: u8,
    /// The promise.
    pub name: &'static str,
    /// Why not.
    pub reason: &'static str,
    /// Whether the image would have it.
    pub concerns: fn(&Claims) -> bool,
}

/// Every check, in the order in which they run.
pub const ALL: &[Check] = &[
    Check {
        level: 1,
        name: "serves-and-keeps-writes",
        stage: Stage::One,
        not_claimed: no_workload,
        run: member::serves,
    },
    Check { level: 1, name: "declared-ports-are-open", stage: Stage::One, not_claimed: always, run: member::ports },
    Check { level: 1, name: "declared-role-appears", stage: Stage::One, not_claimed: no_leader, run: member::role },
    Check {
        level: 1,
        name: "wrong-password-is-refused",
        stage: Stage::One,
        not_claimed: no_password,
        run: member::wrong_password,
    },
    Check { level: 1, name: "render-is-pure", stage: Stage::One, not_claimed: always, run: member::render_is_pure },
    Check { level: 1, name: "verbs-can-be-repeated", stage: Stage::One, not_claimed: always, run: member::repeat },
    Check {
        level: 1,
        name: "verbs-can-be-called-at-once",
        stage: Stage::One,
        not_claimed: always,
        run: member::at_once,
    },
    Check { level: 1, name: "verbs-can-be-killed", stage: Stage::One, not_claimed: always, run: member::killed },
    Check {
        level: 1,
        name: "unknown-fields-are-ignored",
        stage: Stage::One,
        not_claimed: always,
        run: member::unknown_fields,
    },
    Check {
        level: 1,
        name: "live-setting-restarts-nothing",
        stage: Stage::One,
        not_claimed: member::no_live,
        run: member::live_setting,
    },
    Check {
        level: 1,
        name: "other-settings-by-restart",
        stage: Stage::One,
        not_claimed: member::no_restart,
        run: member::restart_setting,
    },
    Check { level: 1, name: "crash-loses-nothing", stage: Stage::One, not_claimed: no_workload, run: member::crash },
    Check { level: 1, name: "stops-in-its-time", stage: Stage::One, not_claimed: always, run: member::stops },
    Check { level: 1, name: "polls-stay-in-their-budget", stage: Stage::One, not_claimed: always, run: member::budget },
    Check {
        level: 2,
        name: "joins-although-killed-midway",
        stage: Stage::One,
        not_claimed: single,
        run: cluster::grow_with_kills,
    },
    Check {
        level: 2,
        name: "lost-member-comes-back",
        stage: Stage::Three,
        not_claimed: single,
        run: cluster::lost_container,
    },
    Check {
        level: 2,
        name: "serves-while-one-is-away",
        stage: Stage::Three,
        not_claimed: single,
        run: cluster::one_away,
    },
    Check {
        level: 2,
        name: "lost-majority-is-said",
        stage: Stage::Three,
        not_claimed: no_vote,
        run: cluster::no_majority,
    },
    Check {
        level: 2,
        name: "stops-without-majority",
        stage: Stage::Three,
        not_claimed: single,
        run: cluster::stop_without_majority,
    },
    Check {
        level: 2,
        name: "all-down-back-with-other-addresses",
        stage: Stage::Three,
        not_claimed: single,
        run: cluster::swapped_addresses,
    },
    Check {
        level: 2,
        name: "wiped-volume-founds-nothing",
        stage: Stage::Three,
        not_claimed: single,
        run: cluster::wiped_volume,
    },
    Check {
        level: 2,
        name: "settings-roll-one-by-one",
        stage: Stage::Three,
        not_claimed: member::no_restart,
        run: cluster::roll,
    },
    Check {
        level: 2,
        name: "forgotten-member-harms-nothing",
        stage: Stage::Three,
        not_claimed: single,
        run: cluster::forgotten_member,
    },
    Check {
        level: 2,
        name: "leaves-although-killed-midway",
        stage: Stage::Three,
        not_claimed: single,
        run: cluster::shrink_with_kills,
    },
    Check {
        level: 2,
        name: "retained-volumes-are-taken-back",
        stage: Stage::Three,
        not_claimed: no_workload,
        run: cluster::take_back,
    },
    Check { level: 2, name: "no-secret-is-seen", stage: Stage::Three, not_claimed: no_secrets, run: cluster::secrets },
    Check {
        level: 2,
        name: "components-join-serve-and-leave",
        stage: Stage::Three,
        not_claimed: parts::none,
        run: parts::join_serve_and_leave,
    },
];

/// What comes with later parts of the standard.
pub const NOT_YET: &[NotYet] = &[
    NotYet {
        level: 2,
        name: "failover",
        reason: "elections: agent needs elections among the agents, which come later",
        concerns: elected_by_agents,
    },
    NotYet {
        level: 3,
        name: "backup-and-restore",
        reason: "no caller of standard 0.1 calls backup and restore",
        concerns: every,
    },
    NotYet { level: 4, name: "upgrades", reason: "no caller of standard 0.1 calls upgrade-plan", concerns: every },
    NotYet { level: 5, name: "links", reason: "links are not part of standard 0.1", concerns: every },
];

fn every(_: &Claims) -> bool {
    true
}

fn elected_by_agents(claims: &Claims) -> bool {
    claims.manifest.elections == Elections::Agent
}

fn always(_: &Claims) -> Option<&'static str> {
    None
}

fn no_workload(claims: &Claims) -> Option<&'static str> {
    (!claims.has_workload).then_some("the image has no /db/test/workload")
}

fn no_leader(claims: &Claims) -> Option<&'static str> {
    let leads = claims.manifest.components.iter().any(|component| component.leader != Leadership::None);
    (!leads).then_some("no component has a leader")
}

fn no_password(claims: &Claims) -> Option<&'static str> {
    no_workload(claims)
        .or_else(|| claims.manifest.binding.password_secret.is_none().then_some("the binding has no password"))
}

fn no_secrets(claims: &Claims) -> Option<&'static str> {
    claims.manifest.secrets.is_empty().then_some("the manifest declares no secret")
}

fn single(claims: &Claims) -> Option<&'static str> {
    no_workload(claims).or_else(|| (largest(claims) < 3).then_some("the type has fewer than three members"))
}

fn no_vote(claims: &Claims) -> Option<&'static str> {
    let counts = claims.manifest.membership.quorum && claims.manifest.elections == Elections::Engine;
    single(claims)
        .or_else(|| (!counts).then_some("the engine does not elect by votes (membership.quorum, elections: engine)"))
}

/// The component that applications connect to: the one whose size checks change.
fn bound(claims: &Claims) -> Option<&Component> {
    claims.manifest.component(claims.manifest.bound_component())
}

/// Most members.
fn largest(claims: &Claims) -> u32 {
    bound(claims).map_or(99, |component| component.members.max)
}

/// Members of the smallest Database.
pub fn smallest(claims: &Claims) -> u32 {
    bound(claims).map_or(1, |component| component.members.min)
}

/// Members of a Database that can lose one.
pub fn three(claims: &Claims) -> u32 {
    smallest(claims).max(3)
}

/// Verbs that run beside a running engine on the member itself and may be called again at any time.
fn repeatable(claims: &Claims) -> Vec<Verb> {
    let verbs = [Verb::Join, Verb::PostStart, Verb::Reconfigure, Verb::Rebalance];
    verbs.into_iter().filter(|verb| claims.has(*verb)).collect()
}
