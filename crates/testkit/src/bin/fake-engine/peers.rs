//! What an engine says to the others: heartbeats, votes, replication.
//!
//! Invariant: no lock is held while a peer is asked.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client;
use super::engine::{Engine, State};
use super::files::Peer;
use super::records::Record;

/// Time between two heartbeats of a leader.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// Longest wait for the others' answers.
const PATIENCE: Duration = Duration::from_millis(500);
/// Without a heartbeat for this long, plus a share that differs by member, a member stands for election.
const ELECTION: Duration = Duration::from_millis(800);

/// Heartbeats and elections, for ever.
pub fn tick(engine: &Arc<Engine>) {
    loop {
        std::thread::sleep(HEARTBEAT);
        let (leads, stands) = {
            let state = engine.state();
            let patience = ELECTION + Duration::from_millis(u64::from(state.ordinal) * 300);
            let silent = Instant::now().duration_since(state.heard) > patience;
            (state.leads, state.is_member() && silent && !engine.config.led)
        };
        if leads {
            lead(engine);
        } else if stands {
            stand(engine);
        }
    }
}

/// Sends heartbeats with what followers lack; without a majority the leader steps down where one is needed.
fn lead(engine: &Arc<Engine>) {
    let reached = replicate(engine);
    let mut state = engine.state();
    let majority = state.cluster.members.len() / 2 + 1;
    if reached >= majority || !engine.config.quorum {
        state.heard = Instant::now();
    } else if Instant::now().duration_since(state.heard) > ELECTION {
        eprintln!("no majority: stepping down");
        state.leads = false;
        state.leader = None;
    }
}

/// Brings every member up to the leader's newest write; how many hold it, the leader included.
pub fn replicate(engine: &Arc<Engine>) -> usize {
    let (peers, own) = {
        let state = engine.state();
        (others(&state), state.cluster.member.clone())
    };
    let members = peers.len() + 1;
    let asks = peers.into_iter().map(|peer| {
        let (engine, own) = (Arc::clone(engine), own.clone());
        move || bring_up(&engine, &peer, &own).is_some()
    });
    count(members, asks)
}

/// Whether every other member answers.
pub fn all_answer(engine: &Arc<Engine>) -> bool {
    let peers = others(&engine.state());
    peers.iter().all(|peer| client::ask(&peer.address, &engine.secret, "ROLE").is_ok())
}

/// How many members say yes, this one included: as soon as it is a majority, or everybody answered, or time is up. A member that
/// cannot be reached keeps nobody waiting.
fn count<F: FnOnce() -> bool + Send + 'static>(members: usize, asks: impl Iterator<Item = F>) -> usize {
    let (sender, answers) = std::sync::mpsc::channel();
    for ask in asks {
        let sender = sender.clone();
        std::thread::spawn(move || {
            // Nobody listens any more when the count is over.
            let _late = sender.send(ask());
        });
    }
    drop(sender);
    let deadline = Instant::now() + PATIENCE;
    let mut yes = 1;
    while yes * 2 <= members {
        match answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(answer) => yes += usize::from(answer),
            Err(_) => break,
        }
    }
    yes
}

fn others(state: &State) -> Vec<Peer> {
    state.cluster.members.values().filter(|peer| peer.member != state.cluster.member).cloned().collect()
}

/// Sends a peer the writes that it lacks, one by one; `None` when it cannot be brought up now.
fn bring_up(engine: &Engine, peer: &Peer, own: &str) -> Option<()> {
    let mut offset = engine.state().records.offset();
    loop {
        let (message, goal) = {
            let state = engine.state();
            if !state.leads {
                return None;
            }
            let record = state.records.after(offset);
            let message = json!({
                "term": state.cluster.term, "leader": own, "members": state.cluster.members,
                "version": state.cluster.version, "uid": state.cluster.uid,
                "offset": offset, "offsetTerm": state.records.term_at(offset), "record": record,
            });
            (message, state.records.offset())
        };
        let answer = client::ask(&peer.address, &engine.secret, &format!("APPEND {message}")).ok()?;
        let (word, number) = answer.split_once(' ')?;
        let number: u64 = number.parse().ok()?;
        match word {
            "HOLDS" if number >= goal => return Some(()),
            "HOLDS" | "LACKS" => offset = number,
            "TERM" => {
                let mut state = engine.state();
                if number > state.cluster.term && !engine.config.led {
                    state.step_down(number);
                }
                return None;
            }
            _ => return None,
        }
    }
}

/// A leader's message: takes over what this member lacks.
pub fn accept(state: &mut State, message: &Value, led: bool) -> std::io::Result<String> {
    let number = |field: &str| message[field].as_u64().unwrap_or_default();
    let term = number("term");
    let uid = message["uid"].as_str().unwrap_or_default();
    if state.cluster.retired || (!state.cluster.uid.is_empty() && state.cluster.uid != uid) {
        return Ok("ERR no member of this cluster".to_owned());
    }
    if term < state.cluster.term {
        return Ok(format!("TERM {}", state.cluster.term));
    }
    let newer = term > state.cluster.term;
    if newer || number("version") > state.cluster.version || state.cluster.uid.is_empty() {
        state.cluster.term = term;
        state.cluster.voted_for = if newer { None } else { state.cluster.voted_for.take() };
        uid.clone_into(&mut state.cluster.uid);
        state.cluster.version = number("version");
        state.cluster.members = serde_json::from_value(message["members"].clone())?;
        state.save()?;
    }
    if newer || !led {
        state.leads = false;
    }
    state.leader = message["leader"].as_str().map(str::to_owned);
    state.heard = Instant::now();
    let offset = number("offset");
    if state.records.offset() < offset {
        return Ok(format!("LACKS {}", state.records.offset()));
    }
    if state.records.term_at(offset) != number("offsetTerm") {
        let shared = offset.saturating_sub(1);
        state.records.truncate(shared)?;
        return Ok(format!("LACKS {shared}"));
    }
    if message["record"].is_null() {
        return Ok(format!("HOLDS {offset}"));
    }
    let record: Record = serde_json::from_value(message["record"].clone())?;
    if state.records.offset() > offset && state.records.term_at(offset + 1) != record.term {
        state.records.truncate(offset)?;
    }
    if state.records.offset() == offset {
        state.records.append(record)?;
    }
    Ok(format!("HOLDS {}", offset + 1))
}

/// Asks the others for their votes, after asking whether it would be worth while: a member that cannot win must not raise the
/// term and so depose the leader.
fn stand(engine: &Arc<Engine>) {
    let ballot = |state: &State, term: u64| {
        let offset = state.records.offset();
        json!({"term": term, "candidate": state.cluster.member, "uid": state.cluster.uid,
            "offset": offset, "offsetTerm": state.records.term_at(offset)})
    };
    let question = {
        let mut state = engine.state();
        state.heard = Instant::now();
        state.leader = None;
        ballot(&state, state.cluster.term + 1)
    };
    if !wins(engine, &format!("WOULD {question}")) {
        return;
    }
    let (message, term) = {
        let mut state = engine.state();
        state.cluster.term += 1;
        state.cluster.voted_for = Some(state.cluster.member.clone());
        if let Err(error) = state.save() {
            eprintln!("cannot keep the term: {error}");
            return;
        }
        (ballot(&state, state.cluster.term), state.cluster.term)
    };
    let elected = wins(engine, &format!("VOTE {message}"));
    let mut state = engine.state();
    if elected && state.cluster.term == term {
        eprintln!("elected in term {term}");
        state.leads = true;
        state.leader = Some(state.cluster.member.clone());
        state.heard = Instant::now();
    }
}

/// Whether a majority, this member included, answers yes.
fn wins(engine: &Arc<Engine>, question: &str) -> bool {
    let peers = others(&engine.state());
    let members = peers.len() + 1;
    let asks = peers.into_iter().map(|peer| {
        let (engine, question) = (Arc::clone(engine), question.to_owned());
        move || client::ask(&peer.address, &engine.secret, &question).is_ok_and(|answer| answer == "YES")
    });
    count(members, asks) * 2 > members
}

/// Whether a candidate may have this member's vote for all that its data says.
fn is_fit(state: &State, message: &Value) -> bool {
    let number = |field: &str| message[field].as_u64().unwrap_or_default();
    let candidate = message["candidate"].as_str().unwrap_or_default();
    let known = state.cluster.id_of(candidate).is_some() && message["uid"] == *state.cluster.uid;
    let own_offset = state.records.offset();
    let own = (state.records.term_at(own_offset), own_offset);
    known && number("term") >= state.cluster.term && (number("offsetTerm"), number("offset")) >= own
}

/// A member's question before it stands: no, while a leader is heard.
pub fn would_vote(state: &State, message: &Value) -> String {
    let silent = !state.leads && Instant::now().duration_since(state.heard) > ELECTION;
    let leaderless = state.leader.is_none() && !state.leads;
    if (silent || leaderless) && is_fit(state, message) { "YES".to_owned() } else { "NO".to_owned() }
}

/// A candidate's message: whether it gets this member's vote.
pub fn vote(state: &mut State, message: &Value) -> std::io::Result<String> {
    let term = message["term"].as_u64().unwrap_or_default();
    let candidate = message["candidate"].as_str().unwrap_or_default();
    if !is_fit(state, message) {
        return Ok("NO".to_owned());
    }
    if term > state.cluster.term {
        state.step_down(term);
    }
    if state.cluster.voted_for.as_deref().is_some_and(|voted| voted != candidate) {
        return Ok("NO".to_owned());
    }
    state.cluster.voted_for = Some(candidate.to_owned());
    state.heard = Instant::now();
    state.save()?;
    Ok("YES".to_owned())
}

impl Engine {
    /// The state, also after a thread died with it.
    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
