//! Members in memory behind the operator's [`Agents`]: reached by their present address and the name that they hold keys for,
//! as over the network.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};

use backlot_core::snapshot::Observed;
use backlot_operator::agents::{Access, Agents};
use backlot_operator::cache::Key;
use backlot_operator::connection::CallError;
use backlot_standard::operation::{OperationReport, OperationRequest};
use backlot_standard::status::MemberStatus;
use backlot_standard::view::SignedView;
use backlot_testkit::fake_agent::{AgentError, FakeMembers};
use tokio::sync::watch;

/// The agents of one operator process.
#[derive(Clone)]
pub struct MemoryAgents {
    members: FakeMembers,
    state: Arc<Mutex<State>>,
    crash: Arc<watch::Sender<bool>>,
}

#[derive(Default)]
struct State {
    /// By Database: identity of the cluster, and members' addresses.
    followed: BTreeMap<Key, (String, BTreeMap<String, String>)>,
    calls: u64,
    crash_after: Option<u64>,
}

impl MemoryAgents {
    pub fn new(members: &FakeMembers) -> Self {
        Self { members: members.clone(), state: Arc::default(), crash: Arc::new(watch::Sender::new(false)) }
    }

    /// Calls so far: views given and operations asked.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// The operator dies after this many calls, before it learns the last one's answer.
    pub fn crash_after(&self, calls: u64) {
        self.state().crash_after = Some(calls);
    }

    /// Waits until the operator is dead.
    pub async fn crash(&self) {
        let _ = self.crash.subscribe().wait_for(|crashed| *crashed).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Who answers at the address that the operator knows, if it is who it must be.
    fn reach(&self, key: &Key, member: &str) -> Result<MemberStatus, CallError> {
        let refused = |why: &str| CallError::Connect { address: member.to_owned(), why: why.to_owned() };
        let followed = self.state().followed.get(key).cloned();
        let (cluster_uid, addresses) = followed.ok_or_else(|| refused("it is not followed"))?;
        let address = addresses.get(member).ok_or_else(|| refused("it has no address"))?;
        let status = self.members.status(&key.namespace, member).map_err(|error| refused(&error.to_string()))?;
        if status.address != *address {
            return Err(refused("nobody is at its former address"));
        }
        if status.cluster_uid != cluster_uid || status.member != member {
            return Err(refused("its certificate has another name"));
        }
        Ok(status)
    }

    async fn count(&self) {
        let is_dead = {
            let mut state = self.state();
            state.calls += 1;
            state.crash_after.is_some_and(|calls| state.calls >= calls)
        };
        if is_dead {
            self.crash.send_replace(true);
            pending::<()>().await;
        }
    }
}

fn lost(path: &str, error: AgentError) -> CallError {
    let path = path.to_owned();
    match error {
        AgentError::Unreachable => CallError::Connect { address: path, why: "no route".to_owned() },
        AgentError::Lost => CallError::Lost { path, why: "timed out".to_owned() },
        AgentError::Refused { status, error } => CallError::Refused { path, status, message: error },
    }
}

impl Agents for MemoryAgents {
    fn follow(&self, key: &Key, access: &Access) {
        let members = access.members.iter().cloned().collect();
        self.state().followed.insert(key.clone(), (access.cluster_uid.clone(), members));
    }

    fn forget(&self, key: &Key) {
        self.state().followed.remove(key);
    }

    fn observe(&self, key: &Key, member: &str) -> Observed<MemberStatus> {
        let is_followed = self.state().followed.get(key).is_some_and(|(_, members)| members.contains_key(member));
        if !is_followed {
            return Observed::Absent;
        }
        self.reach(key, member).map_or_else(|error| Observed::Unknown(error.to_string()), Observed::Known)
    }

    async fn put_view(&self, key: &Key, member: &str, view: &SignedView) -> Result<(), CallError> {
        let answer = match self.reach(key, member) {
            Ok(_) => self.members.put_view(&key.namespace, member, view).map_err(|error| lost("/v1/view", error)),
            Err(error) => Err(error),
        };
        self.count().await;
        answer.map(drop)
    }

    async fn operate(&self, key: &Key, member: &str, request: &OperationRequest) -> Result<OperationReport, CallError> {
        let answer = match self.reach(key, member) {
            Ok(_) => {
                self.members.operate(&key.namespace, member, request).map_err(|error| lost("/v1/operations", error))
            }
            Err(error) => Err(error),
        };
        self.count().await;
        answer
    }
}
