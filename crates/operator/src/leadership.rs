//! Which replica leads, with an epoch that agents check. A Lease is written only when leadership changes hands: an idle
//! operator writes nothing.
//!
//! The leader reads the Lease every few seconds and acts only while its last read showed itself. A standby asks the leader's
//! own address whether it lives, and takes the Lease (guarded by resourceVersion, epoch + 1) after a period of silence. A
//! leader that was presumed dead wrongly sees the new holder at its next read; until then the agents refuse its older epoch.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// Name of the Lease.
const LEASE: &str = "backlot-operator";
/// Annotation with the address at which the holder answers.
const ADDRESS: &str = "backlot.dev/address";
/// Annotation with the epoch of the leadership.
const EPOCH: &str = "backlot.dev/epoch";
/// Pause between two reads of the Lease, and between two questions to its holder.
const PERIOD: Duration = Duration::from_secs(5);
/// Longest answer to the question who one is, in bytes.
const LONGEST_IDENTITY: u64 = 4096;
/// Silence of the holder after which a standby takes over, and age of its own last read after which a leader pauses.
const SILENCE: Duration = Duration::from_secs(11);
/// Longest silence that a standby waits for, when it cannot hear holders that live.
const LONGEST_SILENCE: Duration = Duration::from_mins(5);

/// Who this replica is.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Unique name: pod and a random part, so that a restarted process is another holder with another epoch.
    pub identity: String,
    /// `address:port` where it answers.
    pub address: String,
}

/// Takes part in leadership for ever; `epoch` is `Some` while this replica leads.
pub async fn run(api: Api<Lease>, candidate: Candidate, epoch: watch::Sender<Option<u64>>) {
    let mut last_confirmed = Instant::now();
    let mut last_heard = Instant::now();
    let mut patience = SILENCE;
    loop {
        match step(&api, &candidate, last_heard + patience).await {
            Ok(Step::Leads(number)) => {
                last_confirmed = Instant::now();
                // Who takes over from this replica is heard of from then on: its silence begins there.
                last_heard = last_confirmed;
                if *epoch.borrow() != Some(number) {
                    tracing::info!(epoch = number, holder = candidate.identity, "leads");
                    epoch.send_replace(Some(number));
                }
            }
            Ok(Step::Follows { is_alive }) => {
                let is_deposed = epoch.borrow().is_some();
                if is_deposed {
                    tracing::warn!("another replica leads now");
                    epoch.send_replace(None);
                }
                if is_alive {
                    last_heard = Instant::now();
                    patience = SILENCE;
                } else if is_deposed {
                    // Two that reach the API server and not each other would take turns: the deposed one waits longer each time.
                    patience = (patience * 2).min(LONGEST_SILENCE);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "lease not read");
                if last_confirmed.elapsed() > SILENCE && epoch.borrow().is_some() {
                    tracing::warn!("leadership is not confirmed; nothing is changed until it is");
                    epoch.send_replace(None);
                }
            }
        }
        sleep(PERIOD).await;
    }
}

enum Step {
    Leads(u64),
    Follows { is_alive: bool },
}

async fn step(api: &Api<Lease>, candidate: &Candidate, patient_until: Instant) -> Result<Step, kube::Error> {
    let Some(lease) = api.get_opt(LEASE).await? else {
        return take(api, candidate, None).await;
    };
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.unwrap_or_default();
    if holder == candidate.identity {
        return Ok(Step::Leads(number(&lease)));
    }
    let address = lease.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ADDRESS)).cloned();
    let is_own_address = address.as_deref() == Some(&candidate.address);
    let is_alive = match address {
        // Our own address under another identity: the holder was this pod's former process.
        Some(_) if is_own_address => false,
        Some(address) => {
            timeout(Duration::from_secs(2), answers_as(&address, &holder)).await.is_ok_and(|answers| answers)
        }
        None => false,
    };
    if is_own_address || (!is_alive && Instant::now() > patient_until) || holder.is_empty() {
        return take(api, candidate, Some(lease)).await;
    }
    Ok(Step::Follows { is_alive })
}

/// Whether the one at `address` is the holder: another process may have its address by now.
async fn answers_as(address: &str, holder: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /identity HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.take(LONGEST_IDENTITY).read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    ask.await.is_ok_and(|answer| answer.lines().last() == Some(holder))
}

fn number(lease: &Lease) -> u64 {
    let annotations = lease.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(EPOCH)).and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
}

/// The next epoch. It also follows the clock, so that a Lease that was lost, or restored from an old backup, does not lock the
/// operator out of members that remember a higher one; between two takes it rises whatever the clock says.
fn next_epoch(present: Option<&Lease>) -> u64 {
    let seconds = u64::try_from(Timestamp::now().as_second()).unwrap_or(0);
    present.map_or(0, number).saturating_add(1).max(seconds)
}

async fn take(api: &Api<Lease>, candidate: &Candidate, present: Option<Lease>) -> Result<Step, kube::Error> {
    let epoch = next_epoch(present.as_ref());
    let mut lease = present.clone().unwrap_or_else(|| Lease {
        metadata: ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() },
        ..Lease::default()
    });
    lease.metadata.managed_fields = None;
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(ADDRESS.to_owned(), candidate.address.clone());
    annotations.insert(EPOCH.to_owned(), epoch.to_string());
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(candidate.identity.clone()),
        lease_transitions: present
            .as_ref()
            .map(|lease| lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0) + 1),
        ..lease.spec.unwrap_or_default()
    });
    let written = match present {
        None => api.create(&PostParams::default(), &lease).await,
        Some(_) => api.replace(LEASE, &PostParams::default(), &lease).await,
    };
    match written {
        Ok(lease) => Ok(Step::Leads(number(&lease))),
        // Another replica was quicker.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Step::Follows { is_alive: true }),
        Err(error) => Err(error),
    }
}

/// Gives leadership up, so that another replica need not wait for silence.
pub async fn release(api: &Api<Lease>, candidate: &Candidate) {
    let Ok(Some(mut lease)) = api.get_opt(LEASE).await else { return };
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() == Some(&candidate.identity) {
        spec.holder_identity = Some(String::new());
        lease.metadata.managed_fields = None;
        if let Err(error) = api.replace(LEASE, &PostParams::default(), &lease).await {
            tracing::warn!(%error, "leadership not given up");
        }
    }
}
