//! `elections: agent`: what to tell the engine about the leader that the view names; a pure function.
//!
//! Invariant: `promote` is called on no member but the one that the view names; a member that takes writes while the view
//! names another loses that at once.

use backlot_standard::result::RoleOutput;

/// Everything that the decision depends on.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not states")]
pub struct Facts<'a> {
    /// This member.
    pub member: &'a str,
    /// The leader: of the view, or this member while it founds.
    pub leader: Option<Leader<'a>>,
    /// Whether the group is founded, or being founded by this member.
    pub founded: bool,
    /// Whether the engine runs and `post-start` is done.
    pub running: bool,
    /// Last answer of `role`; `None` = unknown.
    pub role: Option<&'a RoleOutput>,
    /// Whether this agent promoted it since its start or last demotion.
    pub promoted: bool,
    /// Whom the engine was last told to follow since its start.
    pub followed: Option<&'a str>,
    /// Whether the image can follow.
    pub can_follow: bool,
    /// Whether the image can demote.
    pub can_demote: bool,
}

/// The leader of the group.
#[derive(Clone, Debug)]
pub struct Leader<'a> {
    /// Member id.
    pub id: &'a str,
    /// DNS name.
    pub name: &'a str,
    /// Present address.
    pub address: &'a str,
}

impl Leader<'_> {
    /// What must be told to a follower again when it changes.
    pub fn key(&self) -> String {
        format!("{} {} {}", self.id, self.name, self.address)
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Nothing,
    /// `promote`.
    Promote,
    /// `follow`.
    Follow,
    /// `demote`.
    Demote,
    /// No `demote`: restart, every start is fenced.
    RestartFenced,
}

/// Decides what to tell the engine.
pub fn decide(facts: &Facts<'_>) -> Act {
    let Some(leader) = &facts.leader else { return Act::Nothing };
    if !facts.running || !facts.founded {
        return Act::Nothing;
    }
    let writable = facts.role.map(|role| role.writable);
    if leader.id == facts.member {
        // Unknown is not "not writable": wait for an answer.
        return if writable == Some(false) { Act::Promote } else { Act::Nothing };
    }
    // Also when its role is not known now: what was promoted counts as writable until it was demoted.
    if writable == Some(true) || facts.promoted {
        return if facts.can_demote { Act::Demote } else { Act::RestartFenced };
    }
    if facts.can_follow && facts.followed != Some(leader.key().as_str()) { Act::Follow } else { Act::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backlot_standard::result::Role;

    fn role(writable: bool) -> RoleOutput {
        RoleOutput { role: Role::Follower, writable, term: None, position: None }
    }

    fn leader(id: &str) -> Leader<'_> {
        Leader { id, name: id, address: "10.0.0.1" }
    }

    #[test]
    fn the_named_leader_is_promoted_and_the_others_follow() {
        let (fenced, writable) = (role(false), role(true));
        let base = Facts {
            member: "m-0",
            leader: Some(leader("m-0")),
            founded: true,
            running: true,
            role: Some(&fenced),
            promoted: false,
            followed: None,
            can_follow: true,
            can_demote: true,
        };
        let other = Facts { leader: Some(leader("m-1")), ..base.clone() };
        let cases = [
            ("named and fenced", base.clone(), Act::Promote),
            ("named and writable", Facts { role: Some(&writable), ..base.clone() }, Act::Nothing),
            ("named, role unknown", Facts { role: None, ..base.clone() }, Act::Nothing),
            ("named, engine down", Facts { running: false, ..base.clone() }, Act::Nothing),
            ("named, not founded", Facts { founded: false, ..base.clone() }, Act::Nothing),
            ("nobody named", Facts { leader: None, role: Some(&writable), ..base.clone() }, Act::Nothing),
            ("another named", other.clone(), Act::Follow),
            ("another named, role unknown", Facts { role: None, ..other.clone() }, Act::Follow),
            ("followed already", Facts { followed: Some("m-1 m-1 10.0.0.1"), ..other.clone() }, Act::Nothing),
            ("its address changed", Facts { followed: Some("m-1 m-1 10.0.0.9"), ..other.clone() }, Act::Follow),
            ("cannot follow", Facts { can_follow: false, ..other.clone() }, Act::Nothing),
            (
                "another named, promoted, role unknown",
                Facts { promoted: true, role: None, ..other.clone() },
                Act::Demote,
            ),
            ("another named, writable", Facts { role: Some(&writable), ..other.clone() }, Act::Demote),
            (
                "another named, writable, no demote",
                Facts { role: Some(&writable), can_demote: false, ..other },
                Act::RestartFenced,
            ),
        ];
        for (name, facts, act) in cases {
            assert_eq!(decide(&facts), act, "{name}");
        }
    }
}
