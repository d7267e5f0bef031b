//! The verbs of the standard and the defaults of how each is run (SPEC §5).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! verbs {
    ($($variant:ident = $name:literal: $doc:literal,)*) => {
        /// A verb of the standard. Its executable is `/db/verbs/<name>`; an absent file means that the image does not support it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum Verb {
            $(#[doc = $doc] #[serde(rename = $name)] $variant,)*
        }
        impl Verb {
            /// Every verb, in the order of the specification.
            pub const ALL: &[Verb] = &[$(Verb::$variant,)*];
            /// The verb's name: file name of its executable, value of `request.verb`.
            pub fn name(self) -> &'static str {
                match self { $(Verb::$variant => $name,)* }
            }
        }
    };
}

verbs! {
    Render = "render": "Pure: files, arguments and environment of the engine for the wanted state.",
    Prepare = "prepare": "Before a start: what the volume holds, and repair of what an interrupted call of our own left.",
    Found = "found": "Once per group: create the engine's cluster on the founding member.",
    Clone = "clone": "Engine stopped: fill an empty volume from another member.",
    Join = "join": "Make a started member part of the engine's membership.",
    PostStart = "post-start": "After every start: undo pre-stop, meet changed addresses.",
    PreStop = "pre-stop": "Before a stop: what a graceful stop needs.",
    Leave = "leave": "Before a member goes: move its data and duties away, end its membership.",
    Forget = "forget": "On a survivor: end the membership of a dead or gone member.",
    Rebalance = "rebalance": "Before and after a change of members: spread data.",
    Role = "role": "Polled: this member's role, term and position.",
    Health = "health": "Polled: the process, readiness and the engine's verdict on its cluster.",
    Membership = "membership": "The engine's own member list.",
    CanDisrupt = "can-disrupt": "Which of the given members may be disrupted together, or why not.",
    Switchover = "switchover": "Engines that elect: move the leader.",
    Fence = "fence": "elections: agent. Cut this member off the stream of the old leader.",
    Acks = "acks": "elections: agent. Set which members must confirm a write.",
    Promote = "promote": "elections: agent. Make this member writable in the given epoch.",
    Demote = "demote": "elections: agent. Stop writes, answer the final position.",
    Follow = "follow": "elections: agent. Replicate from the given leader.",
    Salvage = "salvage": "elections: agent. Set diverged data aside.",
    Reconfigure = "reconfigure": "Apply live settings; answer values read back and keys that wait for a restart.",
    Account = "account": "Ensure, rotate or drop an account.",
    RotateSecret = "rotate-secret": "Add, use or drop a version of a secret.",
    Recover = "recover": "After a lost quorum, only on a person's order.",
    Maintain = "maintain": "A declared maintenance task.",
    Backup = "backup": "Write a backup to standard output.",
    Restore = "restore": "Read a backup from standard input.",
    Verify = "verify": "Check restored or stored data.",
    UpgradePlan = "upgrade-plan": "Pure: ordered steps of an upgrade.",
    UpgradeStep = "upgrade-step": "Run one step of an upgrade.",
}

/// The agent runs one verb at a time in each lane; lanes run beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Lane {
    /// Cheap reads: role, health, membership.
    Observe,
    /// Start, stop, membership, configuration.
    Lifecycle,
    /// Long work on data.
    Data,
    /// Leader changes; pre-empts `data`.
    Election,
}

/// What the engine's process must be doing when a verb is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum EngineState {
    /// The engine runs.
    Running,
    /// The engine is stopped; the agent stops it first.
    Stopped,
    /// Either.
    Any,
}

/// On which member a verb is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RunsOn {
    /// The member acted on.
    #[serde(rename = "self")]
    Self_,
    /// The leader of the group.
    Leader,
    /// A healthy member other than the one acted on.
    Survivor,
    /// Any healthy member.
    Any,
    /// Every member.
    Every,
}

/// How a verb is run: defaults of the standard, overridden by `manifest.verbs.<verb>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerbRule {
    /// The lane that it occupies.
    pub lane: Lane,
    /// The engine state that it needs.
    pub engine: EngineState,
    /// The member that it runs on.
    pub runs_on: RunsOn,
    /// Seconds until the agent kills the call and all its descendants.
    pub timeout_seconds: u32,
    /// Whether the work may outlast one call: the verb then answers *pending* and is called again.
    pub long: bool,
}

/// An image's deviations from [`Verb::default_rule`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerbOverride {
    /// The lane that it occupies.
    pub lane: Option<Lane>,
    /// The engine state that it needs.
    pub engine: Option<EngineState>,
    /// The member that it runs on.
    pub runs_on: Option<RunsOn>,
    /// Seconds until the agent kills the call and all its descendants (1 to 86400).
    #[schemars(range(min = 1, max = 86_400))]
    pub timeout_seconds: Option<u32>,
    /// Whether the work may outlast one call.
    pub long: Option<bool>,
}

impl Verb {
    /// The verb with this name, if the standard has one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|verb| verb.name() == name)
    }

    /// How the verb is run when the manifest says nothing (SPEC §5, table).
    #[expect(clippy::match_same_arms, reason = "one row per kind of verb, as in the specification's table")]
    pub fn default_rule(self) -> VerbRule {
        use EngineState::{Any, Running, Stopped};
        use Lane::{Data, Election, Lifecycle, Observe};
        use RunsOn::{Leader, Self_, Survivor};
        let rule =
            |lane, engine, runs_on, timeout_seconds, long| VerbRule { lane, engine, runs_on, timeout_seconds, long };
        match self {
            Verb::Render => rule(Lifecycle, Any, Self_, 10, false),
            Verb::Prepare => rule(Lifecycle, Stopped, Self_, 60, false),
            Verb::Found => rule(Lifecycle, Stopped, Self_, 120, false),
            Verb::Clone | Verb::Restore => rule(Data, Stopped, Self_, 600, true),
            Verb::Join => rule(Lifecycle, Running, Self_, 60, true),
            Verb::PostStart | Verb::PreStop | Verb::Reconfigure => rule(Lifecycle, Running, Self_, 30, false),
            Verb::Leave | Verb::Rebalance => rule(Lifecycle, Running, Self_, 60, true),
            Verb::Forget => rule(Lifecycle, Running, Survivor, 60, true),
            Verb::Role | Verb::Health => rule(Observe, Running, Self_, 5, false),
            Verb::Membership | Verb::CanDisrupt => rule(Observe, Running, RunsOn::Any, 10, false),
            Verb::Switchover => rule(Election, Running, Leader, 60, false),
            Verb::Fence => rule(Election, Any, Self_, 1, false),
            Verb::Acks => rule(Election, Running, Leader, 10, false),
            Verb::Promote | Verb::Demote => rule(Election, Running, Self_, 30, false),
            Verb::Follow => rule(Election, Any, Self_, 30, true),
            Verb::Salvage => rule(Data, Stopped, Self_, 600, true),
            Verb::Account => rule(Lifecycle, Running, Leader, 30, false),
            Verb::RotateSecret => rule(Lifecycle, Running, RunsOn::Every, 30, false),
            Verb::Recover => rule(Lifecycle, Stopped, Self_, 120, false),
            Verb::Maintain | Verb::Backup | Verb::Verify => rule(Data, Running, Self_, 600, true),
            Verb::UpgradePlan => rule(Observe, Any, RunsOn::Any, 10, false),
            Verb::UpgradeStep => rule(Lifecycle, Any, RunsOn::Any, 120, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_found_by_its_name() {
        for verb in Verb::ALL {
            assert_eq!(Verb::from_name(verb.name()), Some(*verb));
            assert_eq!(serde_json::to_value(verb).unwrap(), verb.name());
        }
        assert_eq!(Verb::from_name("exec"), None);
    }
}
