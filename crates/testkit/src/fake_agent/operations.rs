//! Operations: the journal, and what each act does to the fake engine.
//!
//! Invariant: an operation that is done is never carried out again; asking for it again answers its report.

use backlot_standard::manifest::Elections;
use backlot_standard::operation::{Act, OperationReport, OperationRequest, OperationState};
use backlot_standard::result::{Blocker, CanDisruptOutput, Exit, JoinOutput, ReconfigureOutput, VerbError, VerbResult};
use backlot_standard::verb::Verb;
use serde::Serialize;
use serde_json::Value;

use super::engine::{Data, GroupId};
use super::pilot::Phase;
use super::{AgentError, Misbehaviour, Place, State};

/// Calls after which an operation with unknown outcome has failed.
const MAX_UNKNOWN_CALLS: u32 = 5;

/// Outcome of one call of a verb.
type Outcome = (Exit, VerbResult);

impl State {
    pub(super) fn operate(&mut self, place: &Place, request: &OperationRequest) -> Result<OperationReport, AgentError> {
        let Some(agent) = self.agents.get(place) else { return Err(AgentError::Unreachable) };
        let refused = |error: String| Err(AgentError::Refused { status: 409, error });
        let Some(view) = &agent.view else { return refused("no view yet".to_owned()) };
        if request.operator_epoch < view.operator_epoch {
            return refused(format!("operator epoch {} is older than {}", request.operator_epoch, view.operator_epoch));
        }
        if request.view_generation > view.generation {
            return refused(format!("the view held is older: generation {}", view.generation));
        }
        let known = self.journal(agent).remove(&request.id);
        if let Some(known) = known.filter(|known| known.state != OperationState::Failed) {
            return Ok(known);
        }
        let member = agent.member.clone();
        let report = OperationReport {
            id: request.id.clone(),
            state: OperationState::Running,
            attempts: 0,
            exit: None,
            result: VerbResult::default(),
        };
        self.write_report(place, report);
        let misbehaviour = match request.act {
            Act::Verb(verb) => self.misbehaviour(&member, verb),
            Act::Restart | Act::Stop => None,
        };
        match misbehaviour {
            Some(Misbehaviour::Hang) => self.work(place, request, None),
            Some(Misbehaviour::Slow(steps)) => self.work(place, request, Some(steps)),
            Some(Misbehaviour::Lie) => self.conclude(place, &request.id, (Exit::Done, VerbResult::default())),
            other => self.call(place, request, other),
        }
        self.look(place);
        if misbehaviour == Some(Misbehaviour::LoseReply) {
            return Err(AgentError::Lost);
        }
        self.read_report(place, &request.id).ok_or(AgentError::Unreachable)
    }

    fn work(&mut self, place: &Place, request: &OperationRequest, steps: Option<u32>) {
        if let Some(agent) = self.agents.get_mut(place) {
            agent.working.push((request.clone(), steps));
        }
        self.touch(place);
    }

    /// Goes on with operations that are at work; whether anything changed.
    pub(super) fn advance_operations(&mut self, place: &Place) -> bool {
        let Some(agent) = self.agents.get_mut(place) else { return false };
        let mut due = vec![];
        agent.working.retain_mut(|(request, steps)| match steps {
            None => true,
            Some(0) => {
                due.push(request.clone());
                false
            }
            Some(steps) => {
                *steps -= 1;
                true
            }
        });
        let counting = agent.working.iter().any(|(_, steps)| steps.is_some());
        let changed = counting || !due.is_empty();
        for request in due {
            let misbehaviour = match request.act {
                Act::Verb(verb) => {
                    let member = self.agents.get(place).map(|agent| agent.member.clone()).unwrap_or_default();
                    self.misbehaviour(&member, verb).filter(|how| !matches!(how, Misbehaviour::Slow(_)))
                }
                Act::Restart | Act::Stop => None,
            };
            self.call(place, &request, misbehaviour);
        }
        changed
    }

    fn call(&mut self, place: &Place, request: &OperationRequest, misbehaviour: Option<Misbehaviour>) {
        let failed = |exit: Exit, code: &str| {
            let error = VerbError { code: code.to_owned(), message: "the fake engine was told to".to_owned() };
            (exit, VerbResult { error: Some(error), ..VerbResult::default() })
        };
        let outcome = match misbehaviour {
            Some(Misbehaviour::Hang) => return self.work(place, request, None),
            Some(Misbehaviour::Garbage) => failed(Exit::Unknown, "ResultUnparsable"),
            Some(Misbehaviour::Crash) => {
                self.crash(place);
                failed(Exit::Unknown, "EngineGone")
            }
            Some(Misbehaviour::Fail) => failed(Exit::Failed, "Fault"),
            Some(Misbehaviour::Refuse) => {
                let mut outcome = failed(Exit::Unsafe, "Refused");
                outcome.1.blockers.push(Blocker {
                    object: "queue-1".to_owned(),
                    reason: "has no other copy".to_owned(),
                    hint: "add a copy".to_owned(),
                });
                outcome
            }
            Some(Misbehaviour::LoseReply | Misbehaviour::Slow(_) | Misbehaviour::Lie) | None => {
                match self.carry_out(place, request) {
                    Some(outcome) => outcome,
                    None => return,
                }
            }
        };
        let attempts = self.read_report(place, &request.id).map_or(0, |report| report.attempts) + 1;
        let again = matches!(outcome.0, Exit::Pending | Exit::Later | Exit::Busy | Exit::EngineState)
            || (outcome.0 == Exit::Unknown && attempts < MAX_UNKNOWN_CALLS);
        self.conclude(place, &request.id, outcome);
        if again {
            if let Some(mut report) = self.read_report(place, &request.id) {
                report.state = OperationState::Running;
                self.write_report(place, report);
            }
            self.work(place, request, Some(0));
        }
    }

    fn conclude(&mut self, place: &Place, id: &str, (exit, result): Outcome) {
        let Some(mut report) = self.read_report(place, id) else { return };
        report.attempts += 1;
        report.exit = Some(exit);
        report.state = if exit == Exit::Done { OperationState::Done } else { OperationState::Failed };
        report.result = result;
        self.write_report(place, report);
        self.touch(place);
    }

    fn read_report(&self, place: &Place, id: &str) -> Option<OperationReport> {
        self.journal(self.agents.get(place)?).remove(id)
    }

    fn write_report(&mut self, place: &Place, report: OperationReport) {
        let Some(agent) = self.agents.get(place) else { return };
        let volume = self.volumes.entry(agent.volume.clone()).or_default();
        volume.journal.insert(report.id.clone(), report);
    }

    /// Carries an act out; `None` when it goes on in the background.
    fn carry_out(&mut self, place: &Place, request: &OperationRequest) -> Option<Outcome> {
        let agent = self.agents.get(place)?.clone();
        let id = agent.group()?;
        let subject = request.subject.clone().unwrap_or_else(|| agent.member.clone());
        let name = match request.act {
            Act::Verb(verb) => verb.name(),
            Act::Restart => "restart",
            Act::Stop => "stop",
        };
        if self.agents.get_mut(place)?.begun.insert(request.id.clone()) {
            self.record(&agent.member, name, request.subject.as_deref(), &request.id);
        }
        let outcome = match request.act {
            Act::Verb(Verb::Found) => return self.found(place, request, &id),
            Act::Verb(verb) if agent.phase != Phase::Running && verb != Verb::Prepare => {
                (Exit::EngineState, VerbResult::default())
            }
            Act::Verb(Verb::Join) => self.join(&id, &subject),
            Act::Verb(Verb::Leave) => self.leave(&id, &subject, &agent.volume),
            Act::Verb(Verb::Forget) => self.forget(&id, &subject),
            Act::Verb(Verb::Membership) => done(false, &self.membership(&id)),
            Act::Verb(Verb::CanDisrupt) => self.can_disrupt(&id, request),
            Act::Verb(Verb::Reconfigure) => done(false, &ReconfigureOutput::default()),
            Act::Verb(Verb::Rebalance) => done(false, &Value::Null),
            Act::Verb(_) => (Exit::Unsupported, VerbResult::default()),
            Act::Restart => return self.restart(place, request, &id),
            Act::Stop => self.stop(place, &id),
        };
        self.run_engines();
        Some(outcome)
    }

    /// Starts the engine, founds the group, and (with agents that elect) promotes the founder.
    fn found(&mut self, place: &Place, request: &OperationRequest, id: &GroupId) -> Option<Outcome> {
        let agent = self.agents.get(place)?.clone();
        let view = agent.group_view()?.clone();
        if view.founder.as_deref() != Some(&agent.member) {
            self.violations.push(format!("{} was told to found, but is not the founder", agent.member));
            return Some((Exit::Conflict, VerbResult::default()));
        }
        let founded = self.groups.0.get(id).is_some_and(|group| group.has(&agent.member));
        match agent.phase {
            Phase::Running => {}
            Phase::Waiting | Phase::Stopped | Phase::Crashed => {
                let now = self.clock;
                let agent = self.agents.get_mut(place)?;
                agent.founding = true;
                agent.start(now);
                self.work(place, request, Some(0));
                return None;
            }
            Phase::Preparing | Phase::Starting | Phase::Stopping => {
                self.work(place, request, Some(0));
                return None;
            }
        }
        let group = self.groups.0.entry(id.clone()).or_default();
        if !founded {
            if group.foundings > 0 {
                self.violations.push(format!("{} founded a group that was founded before", agent.member));
            }
            group.foundings += 1;
            group.members.clear();
        }
        let history = group.foundings;
        let (engine_id, _) = group.add(&agent.member);
        let by_agent = self.image.manifest.elections == Elections::Agent;
        if by_agent && view.leader.as_deref().is_none_or(|leader| leader == agent.member) {
            group.leader = Some(agent.member.clone());
            group.term = view.epoch;
        }
        let volume = self.volumes.entry(agent.volume.clone()).or_default();
        volume.data.get_or_insert(Data { history, ..Data::default() });
        self.run_engines();
        if let Some(agent) = self.agents.get_mut(place) {
            agent.founding = false;
        }
        Some(done(!founded, &JoinOutput { engine_id: Some(engine_id) }))
    }

    fn join(&mut self, id: &GroupId, subject: &str) -> Outcome {
        if !self.can_change_members(id) {
            return (Exit::Later, VerbResult::default());
        }
        let group = self.groups.0.entry(id.clone()).or_default();
        let (engine_id, changed) = group.add(subject);
        done(changed, &JoinOutput { engine_id: Some(engine_id) })
    }

    fn leave(&mut self, id: &GroupId, subject: &str, volume: &str) -> Outcome {
        if !self.can_change_members(id) {
            return (Exit::Later, VerbResult::default());
        }
        let changed = self.drop_member(id, subject);
        if let Some(volume) = self
            .volumes
            .get_mut(volume)
            .filter(|volume| volume.stamp.as_ref().is_some_and(|(_, member, _)| member == subject))
        {
            volume.retired = true;
        }
        done(changed, &Value::Null)
    }

    fn forget(&mut self, id: &GroupId, subject: &str) -> Outcome {
        if !self.can_change_members(id) {
            return (Exit::Later, VerbResult::default());
        }
        if self.running(id).contains_key(subject) {
            self.violations.push(format!("{subject} was forgotten while it runs"));
        }
        let changed = self.drop_member(id, subject);
        done(changed, &Value::Null)
    }

    fn drop_member(&mut self, id: &GroupId, subject: &str) -> bool {
        let changed = self.groups.0.entry(id.clone()).or_default().drop_member(subject);
        if changed && self.image.manifest.membership.quorum && !self.has_majority(id, &[]) {
            self.violations.push(format!("the majority was lost when {subject} left"));
        }
        changed
    }

    fn can_change_members(&self, id: &GroupId) -> bool {
        let founded = self.groups.0.get(id).is_some_and(|group| group.foundings > 0);
        founded && (!self.image.manifest.membership.quorum || self.has_majority(id, &[]))
    }

    fn can_disrupt(&self, id: &GroupId, request: &OperationRequest) -> Outcome {
        let asked: Vec<String> = request
            .params
            .get("members")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|member| member.as_str().map(str::to_owned))
            .collect();
        let mut allowed: Vec<String> = vec![];
        for member in asked {
            let with: Vec<String> = allowed.iter().cloned().chain([member.clone()]).collect();
            if !self.image.manifest.membership.quorum || self.has_majority(id, &with) {
                allowed.push(member);
            }
        }
        let blockers = if allowed.is_empty() {
            vec![Blocker { object: "quorum".to_owned(), reason: "would be lost".to_owned(), hint: String::new() }]
        } else {
            vec![]
        };
        let (exit, result) = done(false, &CanDisruptOutput { allowed });
        (exit, VerbResult { blockers, ..result })
    }

    fn restart(&mut self, place: &Place, request: &OperationRequest, id: &GroupId) -> Option<Outcome> {
        let phase = self.agents.get(place)?.phase;
        let begun = self.read_report(place, &request.id).is_some_and(|report| report.result.changed);
        match (phase, begun) {
            (Phase::Running, true) => return Some(done(true, &Value::Null)),
            (Phase::Running | Phase::Waiting | Phase::Stopped | Phase::Crashed, false) => {
                self.watch_majority(place, id, "restarted");
                let now = self.clock;
                let agent = self.agents.get_mut(place)?;
                agent.stop(Phase::Stopping, 0, now);
                agent.start(now);
                self.give_up_leadership(place, id);
                if let Some(mut report) = self.read_report(place, &request.id) {
                    report.result.changed = true;
                    self.write_report(place, report);
                }
            }
            _ => {}
        }
        self.run_engines();
        self.work(place, request, Some(0));
        None
    }

    fn stop(&mut self, place: &Place, id: &GroupId) -> Outcome {
        self.watch_majority(place, id, "stopped");
        let now = self.clock;
        let Some(agent) = self.agents.get_mut(place) else { return (Exit::Failed, VerbResult::default()) };
        let changed = agent.phase != Phase::Stopped;
        agent.stop(Phase::Stopped, 0, now);
        self.give_up_leadership(place, id);
        done(changed, &Value::Null)
    }

    /// An engine whose leader the agents choose starts unable to take writes.
    fn give_up_leadership(&mut self, place: &Place, id: &GroupId) {
        let Some(member) = self.agents.get(place).map(|agent| agent.member.clone()) else { return };
        if let Some(group) = self.groups.0.get_mut(id).filter(|group| group.leader.as_ref() == Some(&member)) {
            group.leader = None;
        }
    }

    fn watch_majority(&mut self, place: &Place, id: &GroupId, how: &str) {
        let Some(member) = self.agents.get(place).map(|agent| agent.member.clone()) else { return };
        let several = self.groups.0.get(id).is_some_and(|group| group.members.len() > 2 && group.has(&member));
        let kept = self.has_majority(id, &[]) && !self.has_majority(id, std::slice::from_ref(&member));
        if self.image.manifest.membership.quorum && several && kept {
            self.violations.push(format!("the majority was lost when {member} was {how}"));
        }
    }
}

fn done<T: Serialize>(changed: bool, output: &T) -> Outcome {
    let output = serde_json::to_value(output).ok().filter(|value| !value.is_null());
    (Exit::Done, VerbResult { changed, output, ..VerbResult::default() })
}
