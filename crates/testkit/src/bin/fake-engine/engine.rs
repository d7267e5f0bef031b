//! The engine: a line protocol on a TCP port.
//!
//! `AUTH password`, then `SET key value`, `GET key`, `KEYS`, `ROLE`, `PEERS`, `INFO`, `HELLO`; what verbs use: `FOUND`, `JOIN`,
//! `LEAVE`, `RETIRE`, `PROMOTE`, `DEMOTE`, `FOLLOW`, `SETTINGS`; what engines use among themselves: `APPEND`, `WOULD`,
//! `VOTE`.
//! Invariant: nothing is answered before the password was right.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::json;

use super::breaks::{self, breaks};
use super::files::{self, Cluster, Config, Peer};
use super::misbehave::{self, Then};
use super::peers;
use super::records::{Record, Records};

/// A running engine.
pub struct Engine {
    pub config: Config,
    pub secret: String,
    pub shared: Mutex<State>,
    /// One write at a time.
    writing: Mutex<()>,
}

/// What changes while it runs.
pub struct State {
    pub cluster: Cluster,
    pub records: Records,
    pub settings: std::collections::BTreeMap<String, String>,
    pub leads: bool,
    pub leader: Option<String>,
    /// When a leader was last heard of.
    pub heard: Instant,
    /// Number of the member, for elections that do not collide.
    pub ordinal: u32,
    data: std::path::PathBuf,
}

/// Runs the engine with the configuration that `render` made.
pub fn serve(config: &Path) -> ExitCode {
    match open(config) {
        Ok((engine, listener)) => run(&engine, &listener),
        Err(error) => {
            eprintln!("cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

fn open(config: &Path) -> io::Result<(Arc<Engine>, TcpListener)> {
    let config: Config = files::read_json(config)?.ok_or_else(|| io::Error::other("the configuration is absent"))?;
    let asked = config.settings.get("misbehave").map_or("", String::as_str);
    if let Then::End(code) = misbehave::misbehave("engine", &config.data, asked, None) {
        return Err(io::Error::other(format!("told to end with {code}")));
    }
    let secret = std::fs::read_to_string(&config.secret)?.trim().to_owned();
    let cluster =
        Cluster::read(&config.data)?.unwrap_or_else(|| Cluster { member: config.member.clone(), ..Cluster::default() });
    if breaks::is_spent(&config.data) {
        return Err(io::Error::other("this member has started before"));
    }
    if cluster.retired && !breaks("rejoins") {
        return Err(io::Error::other("this member left its cluster"));
    }
    let mut state = State {
        records: Records::open(&config.data)?,
        settings: config.settings.clone(),
        leads: false,
        leader: None,
        heard: Instant::now(),
        ordinal: config.member.rsplit('-').next().and_then(|text| text.parse().ok()).unwrap_or_default(),
        data: config.data.clone(),
        cluster,
    };
    if let Ok(uid) = std::env::var("FAKE_FOUNDS")
        && state.cluster.uid.is_empty()
    {
        state.cluster.uid = uid;
        state.add(&config.member, &format!("{}:{}", config.address, config.port));
        (state.leads, state.leader) = (true, Some(config.member.clone()));
    }
    // `::` takes both families; a machine without IPv6 has only the other.
    let listener =
        TcpListener::bind((config.listen.as_str(), config.port)).or_else(|error| match config.listen.as_str() {
            "::" => TcpListener::bind(("0.0.0.0", config.port)),
            _ => Err(error),
        })?;
    eprintln!("{} listens on {}:{}", config.member, config.listen, config.port);
    let engine = Engine { config, secret, shared: Mutex::new(state), writing: Mutex::new(()) };
    Ok((Arc::new(engine), listener))
}

fn run(engine: &Arc<Engine>, listener: &TcpListener) -> ExitCode {
    let ticking = Arc::clone(engine);
    std::thread::spawn(move || peers::tick(&ticking));
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                let engine = Arc::clone(engine);
                std::thread::spawn(move || {
                    // A client that went away is not the engine's business.
                    let _gone = converse(&engine, stream);
                });
            }
            Err(error) => eprintln!("cannot accept: {error}"),
        }
    }
    ExitCode::SUCCESS
}

fn converse(engine: &Arc<Engine>, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut output = stream.try_clone()?;
    let mut known = false;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let answer = match line.strip_prefix("AUTH ") {
            Some(password) => {
                known = password == engine.secret || breaks("open-door");
                if known { "OK".to_owned() } else { "ERR wrong password".to_owned() }
            }
            None if !known => "ERR AUTH first".to_owned(),
            None => engine.answer(&line).unwrap_or_else(|error| format!("ERR {error}")),
        };
        output.write_all(format!("{answer}\n").as_bytes())?;
    }
    Ok(())
}

impl Engine {
    fn answer(self: &Arc<Self>, line: &str) -> io::Result<String> {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        match (command, words.as_slice()) {
            ("SET", [key, ..]) => self.set(key, rest.split_once(' ').map_or("", |(_, value)| value)),
            ("GET", [key]) => {
                let state = self.state();
                Ok(state.records.values().get(key).map_or_else(|| "NONE".to_owned(), |value| format!("VALUE {value}")))
            }
            ("KEYS", []) => Ok(json!(self.state().records.values().keys().collect::<Vec<_>>()).to_string()),
            ("ROLE", []) => Ok(self.state().role()),
            ("PEERS", []) => Ok(json!(self.state().cluster.members).to_string()),
            ("INFO", []) => Ok(self.info()),
            ("HELLO", []) => Ok(self.state().settings.get("greeting").cloned().unwrap_or_else(|| "hello".to_owned())),
            ("FOUND", [uid]) => self.found(uid),
            ("JOIN", [member, address]) => self.join(member, address),
            ("LEAVE", [member]) => self.leave(member),
            ("RETIRE", []) => {
                let mut state = self.state();
                state.cluster.retired = true;
                (state.leads, state.leader) = (false, None);
                state.save()?;
                Ok("OK".to_owned())
            }
            ("PROMOTE", [epoch]) => self.promote(epoch.parse().unwrap_or_default()),
            ("DEMOTE", []) => {
                let mut state = self.state();
                state.leads = false;
                Ok(format!("OK {}", state.records.offset()))
            }
            ("FOLLOW", [leader]) => {
                let mut state = self.state();
                state.leads = false;
                state.leader = Some((*leader).to_owned());
                Ok("OK".to_owned())
            }
            ("SETTINGS", _) => {
                self.state().settings = serde_json::from_str(rest)?;
                Ok("OK".to_owned())
            }
            ("APPEND", _) => peers::accept(&mut self.state(), &serde_json::from_str(rest)?, self.config.led),
            ("WOULD", _) => Ok(peers::would_vote(&self.state(), &serde_json::from_str(rest)?)),
            ("VOTE", _) => peers::vote(&mut self.state(), &serde_json::from_str(rest)?),
            _ => Ok(format!("ERR unknown command {command}")),
        }
    }

    fn set(self: &Arc<Self>, key: &str, value: &str) -> io::Result<String> {
        let _one = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let members = {
            let mut state = self.state();
            if !state.leads && !breaks("acknowledges-alone") {
                return Ok(format!("ERR not the leader; it is {}", state.leader.as_deref().unwrap_or("unknown")));
            }
            let term = state.cluster.term;
            state.records.append(Record { term, key: key.to_owned(), value: value.to_owned() })?;
            state.cluster.members.len()
        };
        let holders = peers::replicate(self);
        if breaks("needs-all") && !peers::all_answer(self) {
            return Ok("ERR a member is away".to_owned());
        }
        if self.config.quorum && holders * 2 <= members && !breaks("acknowledges-alone") {
            return Ok("ERR no majority; whether the write stays is unknown".to_owned());
        }
        Ok(format!("OK {}", self.state().records.offset()))
    }

    fn found(&self, uid: &str) -> io::Result<String> {
        let mut state = self.state();
        if !state.cluster.uid.is_empty() {
            let own = state.cluster.member.clone();
            let same = state.cluster.uid == uid;
            return Ok(match (same, state.cluster.id_of(&own)) {
                (true, Some(id)) => format!("SAME {id}"),
                _ => "ERR the data belongs to another cluster".to_owned(),
            });
        }
        uid.clone_into(&mut state.cluster.uid);
        state.cluster.term = 1;
        let id = state.add(&self.config.member, &format!("{}:{}", self.config.address, self.config.port));
        state.save()?;
        if !self.config.led {
            state.leads = true;
            state.leader = Some(self.config.member.clone());
        }
        Ok(format!("OK {id}"))
    }

    fn join(self: &Arc<Self>, member: &str, address: &str) -> io::Result<String> {
        let (id, answer) = {
            let mut state = self.state();
            if !state.leads {
                return Ok(format!("ERR not the leader; it is {}", state.leader.as_deref().unwrap_or("unknown")));
            }
            if let Some(id) = state.cluster.id_of(member).cloned() {
                let known = state.cluster.members.get(&id).is_some_and(|peer| peer.address == address);
                if !known {
                    state.move_to(&id, address);
                }
                (id, if known { "SAME" } else { "OK" })
            } else {
                (state.add(member, address), "OK")
            }
        };
        self.state().save()?;
        peers::replicate(self);
        Ok(format!("{answer} {id}"))
    }

    fn leave(self: &Arc<Self>, member: &str) -> io::Result<String> {
        {
            let mut state = self.state();
            if !state.leads {
                return Ok(format!("ERR not the leader; it is {}", state.leader.as_deref().unwrap_or("unknown")));
            }
            let Some(id) = state.cluster.id_of(member).cloned() else { return Ok("SAME -".to_owned()) };
            state.cluster.members.remove(&id);
            state.cluster.version += 1;
            state.save()?;
        }
        peers::replicate(self);
        let mut state = self.state();
        if state.cluster.member == member {
            state.leads = false;
            state.leader = None;
        }
        Ok("OK -".to_owned())
    }

    fn promote(&self, epoch: u64) -> io::Result<String> {
        let mut state = self.state();
        if epoch < state.cluster.term {
            return Ok(format!("ERR epoch {epoch} is older than {}", state.cluster.term));
        }
        let same = state.leads && state.cluster.term == epoch;
        state.cluster.term = epoch;
        state.leads = true;
        state.leader = Some(state.cluster.member.clone());
        state.save()?;
        Ok(if same { "SAME" } else { "OK" }.to_owned())
    }

    fn info(&self) -> String {
        let state = self.state();
        json!({
            "member": state.cluster.member, "uid": state.cluster.uid, "term": state.cluster.term,
            "leads": state.leads, "leader": state.leader, "offset": state.records.offset(),
            "joined": state.is_member(), "members": state.cluster.members, "version": state.cluster.version,
            "settings": state.settings, "started": self.config.settings,
        })
        .to_string()
    }
}

impl State {
    /// Whether this member is part of a cluster.
    pub fn is_member(&self) -> bool {
        !self.cluster.retired && self.cluster.id_of(&self.cluster.member).is_some()
    }

    /// Keeps what is known of the cluster.
    pub fn save(&self) -> io::Result<()> {
        files::write_json(&Cluster::path(&self.data), &self.cluster)
    }

    /// Follows whoever leads in a newer term.
    pub fn step_down(&mut self, term: u64) {
        self.cluster.term = term;
        self.cluster.voted_for = None;
        self.leads = false;
        self.leader = None;
    }

    fn add(&mut self, member: &str, address: &str) -> String {
        self.cluster.version += 1;
        let id = format!("e{}", self.cluster.version);
        self.cluster.members.insert(id.clone(), Peer { member: member.to_owned(), address: address.to_owned() });
        id
    }

    fn move_to(&mut self, id: &str, address: &str) {
        self.cluster.version += 1;
        if let Some(peer) = self.cluster.members.get_mut(id) {
            address.clone_into(&mut peer.address);
        }
    }

    fn role(&self) -> String {
        let role = match (self.leads, &self.leader) {
            (true, _) => "leader",
            (false, Some(_)) => "follower",
            (false, None) => "unknown",
        };
        format!("{role} {} {} {}", self.cluster.term, self.records.offset(), self.leads)
    }
}
