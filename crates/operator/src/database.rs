//! One pass over one Database: read → validate → plan → status → apply. Short on purpose; what is decided is in `backlot-core`.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backlot_api::{Database, DatabaseStatus};
use backlot_core::plan::{self, Activity, Operation, Plan};
use backlot_core::snapshot::{Answers, Observed, OperatorFacts, Question, Snapshot};
use backlot_core::{names, status, validate};
use backlot_standard::operation::{Act, OperationReport, OperationRequest, OperationState};
use backlot_standard::request::Reason;
use backlot_standard::verb::Verb;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::agents::Agents;
use crate::apply::{ApplyError, Writer};
use crate::cache::Key;
use crate::events::{News, Teller};
use crate::pki::PkiError;
use crate::read::Caches;
use crate::views::{self, Told};

/// Rounds of questions in one pass.
const ROUNDS: usize = 3;
/// Pause before a pass that waits for something is repeated without news.
const UNSETTLED: Duration = Duration::from_secs(5);
/// Pause before a settled Database is looked at again, to find drift that no watch told.
const SETTLED: Duration = Duration::from_mins(10);

/// Time within which an obstacle of one reason is told once: what is tried again and again fails again and again.
const WARNED: Duration = Duration::from_mins(10);

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// Status could not be written.
    #[error("status: {0}")]
    Status(Box<kube::Error>),
    /// A write failed.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A view could not be signed.
    #[error("view: {0}")]
    Sign(#[from] PkiError),
}

/// What passes share.
pub struct Operator<A> {
    /// Kubernetes.
    pub client: Client,
    /// Watch caches.
    pub caches: Caches,
    /// Members' agents.
    pub agents: A,
    /// Image with the agent.
    pub agent_image: String,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// Events.
    pub teller: Teller,
    memories: Mutex<HashMap<Key, Memory>>,
    /// Numbers of views are never used twice by one process, also not for a Database that was deleted and made again.
    views: AtomicU64,
}

/// What is kept between passes, and may be lost at any time: numbers of views, and when a failing operation is asked again.
#[derive(Default)]
struct Memory {
    told: Told,
    trouble: Option<Activity>,
    /// Operations that members answered as done when they were asked again, with the member; reports show only recent ones.
    done: Vec<(String, OperationReport)>,
    failures: HashMap<String, (u32, Instant)>,
    /// When an obstacle was last told, by reason.
    warned: HashMap<String, Instant>,
}

impl Memory {
    /// Whether an obstacle of this reason was not told lately.
    fn is_news(&mut self, reason: &str) -> bool {
        self.warned.retain(|_, told| told.elapsed() < WARNED);
        let is_news = !self.warned.contains_key(reason);
        self.warned.entry(reason.to_owned()).or_insert_with(Instant::now);
        is_news
    }
}

impl<A: Agents> Operator<A> {
    /// An operator.
    pub fn new(client: Client, caches: Caches, agents: A, agent_image: String, cluster_domain: String) -> Self {
        let teller = Teller::new(client.clone());
        Self {
            client,
            caches,
            agents,
            agent_image,
            cluster_domain,
            teller,
            memories: Mutex::default(),
            views: AtomicU64::new(0),
        }
    }

    /// The operator's facts in one epoch of its leadership.
    pub fn facts(&self, epoch: u64) -> OperatorFacts {
        OperatorFacts { epoch, agent_image: self.agent_image.clone(), cluster_domain: self.cluster_domain.clone() }
    }

    /// Number of the plan's view, 0 without one.
    fn number(&self, key: &Key, snapshot: &Snapshot, plan: &Plan) -> u64 {
        let Some(view) = &plan.view else { return 0 };
        self.memory(key, |memory| memory.told.number(view, snapshot, &self.views))
    }

    fn memory<T>(&self, key: &Key, work: impl FnOnce(&mut Memory) -> T) -> T {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        work(memories.entry(key.clone()).or_default())
    }
}

/// One pass; answers after which time to look again without news.
pub async fn pass<A: Agents>(operator: &Operator<A>, key: &Key, epoch: u64) -> Result<Option<Duration>, PassError> {
    let Some(mut snapshot) = operator.caches.snapshot(key, &operator.agents, operator.facts(epoch)) else {
        operator.agents.forget(key);
        let was_known = operator.memories.lock().unwrap_or_else(PoisonError::into_inner).remove(key).is_some();
        if was_known {
            tell_retained(operator, key).await;
        }
        return Ok(None);
    };
    add_answers(operator, key, &mut snapshot);
    let judgement = validate::judge(&snapshot);
    let mut plan = plan::plan_pass(&snapshot, &judgement);
    for _ in 0..ROUNDS {
        if plan.questions.is_empty() {
            break;
        }
        ask(operator, key, &mut snapshot, &plan.questions).await;
        plan = plan::plan_pass(&snapshot, &judgement);
    }
    operator.number(key, &snapshot, &plan);
    operator.memory(key, |memory| {
        plan.activities.extend(memory.told.pending_settings(&snapshot));
        plan.activities.extend(memory.trouble.clone());
    });
    let status = status::status(&snapshot, &judgement, &plan, Timestamp::now());
    let is_settled = plan.activities.is_empty() && plan.writes.is_empty() && plan.operations.is_empty();
    carry_out(operator, key, &snapshot, &plan, status).await?;
    Ok(Some(if is_settled { SETTLED } else { UNSETTLED }))
}

/// Adds operations that members answered as done in the last pass and do not report any more.
fn add_answers<A: Agents>(operator: &Operator<A>, key: &Key, snapshot: &mut Snapshot) {
    for (member, report) in operator.memory(key, |memory| std::mem::take(&mut memory.done)) {
        if let Some(Observed::Known(status)) = snapshot.agents.get_mut(&member)
            && !status.operations.iter().any(|known| known.id == report.id)
        {
            status.operations.push(report);
        }
    }
}

/// Writes status first, so that what is decided is remembered before it is done; then the rest in order.
async fn carry_out<A: Agents>(
    operator: &Operator<A>,
    key: &Key,
    snapshot: &Snapshot,
    plan: &Plan,
    status: DatabaseStatus,
) -> Result<(), PassError> {
    let mut database = snapshot.database.clone();
    if database.status.as_ref() != Some(&status) {
        let before = database.status.replace(status);
        let api: Api<Database> = Api::namespaced(operator.client.clone(), &key.namespace);
        let written = api.replace_status(&key.name, &PostParams::default(), &database).await;
        database = written.map_err(|error| PassError::Status(Box::new(error)))?;
        tell(operator, key, &database, before.as_ref(), plan).await;
    }
    let writer = Writer::new(operator.client.clone());
    let mut first_error = None;
    for write in &plan.writes {
        if let Err(error) = writer.write(&database, write).await {
            // One object that cannot be written holds up none of the others.
            tracing::warn!(database = %key, %error, "write not done");
            first_error.get_or_insert(error);
        }
    }
    let trouble = first_error.as_ref().and_then(ApplyError::trouble);
    operator.memory(key, |memory| memory.trouble = trouble);
    let number = operator.number(key, snapshot, plan);
    push_view(operator, key, snapshot, plan, number).await?;
    for operation in &plan.operations {
        operate(operator, key, snapshot, operation, number).await;
    }
    first_error.map_or(Ok(()), |error| Err(error.into()))
}

/// Gives the view to every member that does not hold it.
async fn push_view<A: Agents>(
    operator: &Operator<A>,
    key: &Key,
    snapshot: &Snapshot,
    plan: &Plan,
    number: u64,
) -> Result<(), PassError> {
    let lacking = views::lacking(snapshot, number);
    let Some(view) = plan.view.as_ref().filter(|_| !lacking.is_empty()) else { return Ok(()) };
    let Some(signed) = views::signed(snapshot, view, number)? else { return Ok(()) };
    let signed = &signed;
    let puts = lacking.iter().map(|member| async move {
        if let Err(error) = operator.agents.put_view(key, member, signed).await {
            tracing::info!(database = %key, member, %error, "view not taken");
        }
    });
    futures::future::join_all(puts).await;
    Ok(())
}

async fn operate<A: Agents>(
    operator: &Operator<A>,
    key: &Key,
    snapshot: &Snapshot,
    operation: &Operation,
    generation: u64,
) {
    let id = &operation.request.id;
    let reported = snapshot.agents.get(&operation.member).and_then(Observed::known);
    let report = reported.and_then(|status| status.operations.iter().find(|report| report.id == *id));
    if report.is_some_and(|report| report.state == OperationState::Running) {
        return;
    }
    let is_due = operator.memory(key, |memory| memory.failures.get(id).is_none_or(|(_, due)| *due <= Instant::now()));
    if !is_due {
        return;
    }
    let request = OperationRequest { view_generation: generation, ..operation.request.clone() };
    let answer = operator.agents.operate(key, &operation.member, &request).await;
    let failed = match &answer {
        Ok(report) => report.state == OperationState::Failed,
        Err(_) => true,
    };
    match &answer {
        Ok(report) => {
            tracing::info!(database = %key, member = operation.member, id, state = ?report.state, exit = ?report.exit, "operation");
        }
        Err(error) => tracing::info!(database = %key, member = operation.member, id, %error, "operation not accepted"),
    }
    operator.memory(key, |memory| {
        if failed {
            let failures = memory.failures.get(id).map_or(1, |(failures, _)| (failures + 1).min(6));
            memory.failures.insert(id.clone(), (failures, Instant::now() + Duration::from_secs(1 << failures)));
        } else {
            memory.failures.remove(id);
        }
        if let Ok(report) = answer
            && report.state == OperationState::Done
        {
            memory.done.push((operation.member.clone(), report));
        }
    });
}

/// Asks members what the plan wants to know.
async fn ask<A: Agents>(operator: &Operator<A>, key: &Key, snapshot: &mut Snapshot, questions: &[Question]) {
    let mut answers: Answers = snapshot.answers.clone();
    for question in questions {
        match question {
            Question::Membership { member } => {
                let answer = ask_one(operator, key, snapshot, member, Verb::Membership, Map::new()).await;
                answers.memberships.insert(member.clone(), answer);
            }
            Question::CanDisrupt { member, subject } => {
                let params = [
                    ("members".to_owned(), Value::from(vec![subject.clone()])),
                    ("kind".to_owned(), Value::from("restart")),
                ];
                let answer =
                    ask_one(operator, key, snapshot, member, Verb::CanDisrupt, params.into_iter().collect()).await;
                answers.disruptions.insert(subject.clone(), answer);
            }
        }
    }
    snapshot.answers = answers;
}

async fn ask_one<A: Agents, T: DeserializeOwned>(
    operator: &Operator<A>,
    key: &Key,
    snapshot: &Snapshot,
    member: &str,
    verb: Verb,
    params: Map<String, Value>,
) -> Observed<T> {
    let held = snapshot.agents.get(member).and_then(Observed::known).and_then(|status| status.view_generation);
    let request = OperationRequest {
        id: format!("{}/{member}/{}", verb.name(), Timestamp::now().as_nanosecond()),
        operator_epoch: snapshot.operator.epoch,
        view_generation: held.unwrap_or(0),
        act: Act::Verb(verb),
        reason: Reason::Poll,
        subject: None,
        via: None,
        params,
    };
    match operator.agents.operate(key, member, &request).await {
        Ok(report) if report.state == OperationState::Done && report.result.blockers.is_empty() => {
            let output = report.result.output.map(serde_json::from_value);
            output.and_then(Result::ok).map_or_else(
                || Observed::Unknown(format!("{} of {member} gave no output", verb.name())),
                Observed::Known,
            )
        }
        Ok(report) => {
            let blockers: Vec<_> =
                report.result.blockers.iter().map(|b| format!("{}: {} {}", b.object, b.reason, b.hint)).collect();
            let error = report.result.error.map(|error| error.message).unwrap_or_default();
            Observed::Unknown(
                format!("{} on {member}: {:?} {error} {}", verb.name(), report.exit, blockers.join("; "))
                    .trim_end()
                    .to_owned(),
            )
        }
        Err(error) => Observed::Unknown(error.to_string()),
    }
}

/// A Database is gone: says what stays of it.
async fn tell_retained<A: Agents>(operator: &Operator<A>, key: &Key) {
    let claims: Vec<_> = operator.caches.claims.group(key).iter().map(|claim| claim.name_any()).collect();
    if claims.is_empty() {
        return;
    }
    let secret = names::cluster_secret(&key.name);
    let note = format!(
        "volumes {} and Secret {secret} stay (deletionPolicy Retain). A Database {} of the same class takes them back; to free the space, delete the claims and the Secret",
        claims.join(", "),
        key.name
    );
    let gone = ObjectReference {
        api_version: Some("backlot.dev/v1alpha1".to_owned()),
        kind: Some("Database".to_owned()),
        namespace: Some(key.namespace.clone()),
        name: Some(key.name.clone()),
        ..ObjectReference::default()
    };
    operator.teller.tell(&gone, News { is_warning: false, reason: "VolumesRetained".to_owned(), note }).await;
}

/// Tells what happened, once: events of the plan, and a changed reason of Ready.
async fn tell<A: Agents>(
    operator: &Operator<A>,
    key: &Key,
    database: &Database,
    before: Option<&DatabaseStatus>,
    plan: &Plan,
) {
    let ready = |status: Option<&DatabaseStatus>| {
        let condition =
            status.and_then(|status| status.conditions.iter().find(|condition| condition.type_ == "Ready"))?;
        Some((condition.status.clone(), condition.reason.clone(), condition.message.clone()))
    };
    let news =
        |is_warning, reason: &str, note: &str| News { is_warning, reason: reason.to_owned(), note: note.to_owned() };
    let mut all: Vec<_> = plan.events.iter().map(|event| news(false, event.reason, &event.message)).collect();
    let (was, is) = (ready(before), ready(database.status.as_ref()));
    if let Some((status, reason, message)) = is
        && was.as_ref().is_none_or(|(was_status, was_reason, _)| (was_status, was_reason) != (&status, &reason))
    {
        let mut conditions = database.status.iter().flat_map(|status| &status.conditions);
        let is_degraded = conditions.any(|condition| condition.type_ == "Degraded" && condition.status == "True");
        let is_told = plan.events.iter().any(|event| event.reason == reason);
        let is_warning = status != "True";
        let is_due = || !is_warning || (is_degraded && operator.memory(key, |memory| memory.is_news(&reason)));
        if !is_told && is_due() {
            all.push(news(is_warning, &reason, &message));
        }
    }
    for news in all {
        operator.teller.tell(&database.object_ref(&()), news).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_obstacle_is_told_once_in_a_while_and_another_at_once() {
        let mut memory = Memory::default();
        assert_eq!(
            ["JoinFailed", "JoinFailed", "LeaveFailed"].map(|reason| memory.is_news(reason)),
            [true, false, true]
        );
        tokio::time::advance(WARNED / 2).await;
        assert!(!memory.is_news("JoinFailed"));
        tokio::time::advance(WARNED).await;
        assert!(memory.is_news("JoinFailed"));
    }
}
