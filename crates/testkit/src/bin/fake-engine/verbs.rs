//! The verbs of the fake image.
//!
//! Invariant: every call is recorded in `calls.jsonl` beside the data before anything else happens.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use backlot_standard::manifest::{Elections, Manifest};
use backlot_standard::request::{Member, Request};
use backlot_standard::result::{
    CanDisruptOutput, ClusterHealth, DataState, EngineMember, HealthOutput, JoinOutput, MembershipOutput, Position,
    PrepareOutput, ProcessHealth, ReconfigureOutput, RenderOutput, RenderedFile, Role, RoleOutput, VerbError,
    VerbResult,
};
use backlot_standard::verb::Verb;
use serde::Serialize;
use serde_json::{Value, json};

use super::breaks;
use super::client;
use super::files::{self, Cluster, Config};
use super::misbehave::{self, Then};

/// A verb's outcome: exit code and result.
pub type Outcome = (u8, VerbResult);

/// One call of a verb.
pub struct Call {
    pub request: Request,
    manifest: Manifest,
    root: PathBuf,
    pub data: PathBuf,
}

/// Runs a verb as the agent calls it.
pub fn run(verb: Verb, root: &Path) -> ExitCode {
    let (code, result) = match open(root) {
        Ok(call) => {
            let asked = call.request.config.get("misbehave").map_or("", String::as_str);
            let asked = if breaks::breaks("answers-nonsense") { "join:garbage:1" } else { asked };
            let file = result_file();
            call.record(verb);
            match misbehave::misbehave(verb.name(), &call.data, asked, file.as_deref()) {
                Then::End(code) => return ExitCode::from(code),
                Then::GoOn => breaks::run(&call, verb),
            }
        }
        Err(error) => refused(20, "RequestUnreadable", &error.to_string()),
    };
    if let Some(file) = result_file()
        && let Err(error) = fs::write(file, serde_json::to_vec(&result).unwrap_or_default())
    {
        eprintln!("cannot write the result: {error}");
        return ExitCode::from(31);
    }
    ExitCode::from(if code == 0 && verb == Verb::Found && breaks::ends_oddly(root) { 1 } else { code })
}

fn result_file() -> Option<PathBuf> {
    std::env::var_os("DB_RESULT").map(PathBuf::from)
}

fn open(root: &Path) -> io::Result<Call> {
    let path = std::env::var_os("DB_REQUEST").ok_or_else(|| io::Error::other("DB_REQUEST is not set"))?;
    let request = serde_json::from_slice(&fs::read(path)?)?;
    let manifest = fs::read_to_string(root.join("db/manifest.yaml"))?;
    let manifest = serde_norway::from_str(&manifest).map_err(io::Error::other)?;
    Ok(Call { request, manifest, root: root.to_owned(), data: root.join("data/db") })
}

pub fn refused(code: u8, reason: &str, message: &str) -> Outcome {
    let error = VerbError { code: reason.to_owned(), message: message.to_owned() };
    (code, VerbResult { error: Some(error), ..VerbResult::default() })
}

fn done<T: Serialize>(changed: bool, output: &T) -> Outcome {
    (0, VerbResult { changed, output: serde_json::to_value(output).ok(), ..VerbResult::default() })
}

impl Call {
    fn record(&self, verb: Verb) {
        let request = &self.request;
        let line = json!({
            "verb": verb.name(), "operation": request.operation_id, "attempt": request.attempt,
            "reason": request.reason, "subject": request.subject, "epoch": request.intent.epoch,
        });
        if let Err(error) = files::append_line(&self.data.with_file_name("calls.jsonl"), &line.to_string()) {
            eprintln!("cannot record the call: {error}");
        }
    }

    /// The file with the request as it came.
    pub fn request_file(&self) -> PathBuf {
        std::env::var_os("DB_REQUEST").map_or_else(|| self.data.join("request"), PathBuf::from)
    }

    pub fn run(&self, verb: Verb) -> Outcome {
        match verb {
            Verb::Render => self.render(),
            Verb::Prepare => self.prepare(),
            Verb::Found => Self::change_membership(&self.own_address(), &format!("FOUND {}", self.request.cluster.uid)),
            Verb::Join => self.join(),
            Verb::Leave => self.leave(),
            Verb::Forget => self.forget(),
            Verb::Rebalance => done(false, &Value::Null),
            Verb::Role => self.role(),
            Verb::Health => self.health(),
            Verb::Membership => self.membership(),
            Verb::CanDisrupt => self.can_disrupt(),
            Verb::Reconfigure => self.reconfigure(),
            Verb::Promote => self.promote(),
            Verb::Demote => self.plain("DEMOTE"),
            Verb::Follow => self.plain(&format!("FOLLOW {}", self.request.intent.leader.as_deref().unwrap_or("-"))),
            _ => refused(21, "Unsupported", "the fake image has no such verb"),
        }
    }

    pub fn own(&self) -> Option<&Member> {
        self.request.self_member()
    }

    fn port(&self) -> u16 {
        let variable = std::env::var("FAKE_PORT").ok().and_then(|text| text.parse().ok());
        variable.or_else(|| self.manifest.client_port().map(|port| port.port)).unwrap_or(7000)
    }

    /// Address for clients on this member. Members of a test on one machine have loopback addresses of their own.
    fn local_host(&self) -> String {
        let address = self.own().map_or("", |own| own.address.as_str());
        if address.starts_with("127.") { address.to_owned() } else { "127.0.0.1".to_owned() }
    }

    fn own_address(&self) -> String {
        format!("{}:{}", self.local_host(), self.port())
    }

    /// A member as others reach it: by its name, or by address where names mean nothing.
    fn host(member: &Member) -> String {
        if breaks::breaks("keeps-addresses") {
            return member.address.clone();
        }
        if member.address.starts_with("127.") { member.address.clone() } else { member.name.clone() }
    }

    pub fn secret() -> String {
        let folder = std::env::var_os("DB_SECRETS").map(PathBuf::from).unwrap_or_default();
        fs::read_to_string(folder.join("admin/current")).unwrap_or_default().trim().to_owned()
    }

    fn ask(address: &str, command: &str) -> io::Result<String> {
        let answer = client::ask(address, &Self::secret(), command)?;
        match answer.strip_prefix("ERR ") {
            Some(error) => Err(io::Error::other(error.to_owned())),
            None => Ok(answer),
        }
    }

    fn info(&self) -> io::Result<Value> {
        Ok(serde_json::from_str(&Self::ask(&self.own_address(), "INFO")?)?)
    }

    fn render(&self) -> Outcome {
        let run = self.root.join("run/db");
        let (config, secret) = (run.join("fake.json"), run.join("admin.password"));
        let own = self.own();
        let loopback = own.is_some_and(|own| own.address.starts_with("127."));
        let content = Config {
            data: self.data.clone(),
            secret: secret.clone(),
            listen: if loopback { self.local_host() } else { "::".to_owned() },
            port: self.port(),
            member: self.request.self_id.clone(),
            address: own.map(Self::host).unwrap_or_default(),
            led: self.manifest.elections == Elections::Agent,
            quorum: self.manifest.membership.quorum,
            settings: self.request.config.clone(),
        };
        let file = |path: &Path, content: String| RenderedFile {
            path: path.to_string_lossy().into_owned(),
            content: Some(content),
            from: None,
            mode: "0600".to_owned(),
            owner: backlot_standard::result::FileOwner::Standard,
        };
        let text = serde_json::to_string_pretty(&content).unwrap_or_default();
        // Not by the name of a verb, or the engine would be one.
        let installed = self.root.join("db/fake-engine");
        let program = if installed.exists() { installed } else { std::env::current_exe().unwrap_or_default() };
        let output = RenderOutput {
            argv: vec![
                program.to_string_lossy().into_owned(),
                "serve".to_owned(),
                config.to_string_lossy().into_owned(),
            ],
            files: vec![file(&config, text), file(&secret, "${secret:admin}".to_owned())],
            ..RenderOutput::default()
        };
        done(false, &output)
    }

    fn prepare(&self) -> Outcome {
        let state =
            |state: DataState, message: &str| done(false, &PrepareOutput { state, message: message.to_owned() });
        match Cluster::read(&self.data) {
            Ok(None) => state(DataState::Fresh, "no cluster file"),
            Ok(Some(cluster)) if cluster.retired => state(DataState::Retired, "the member left"),
            Ok(Some(cluster)) if cluster.uid != self.request.cluster.uid || cluster.member != self.request.self_id => {
                state(DataState::Foreign, &format!("data of {} in cluster {}", cluster.member, cluster.uid))
            }
            Ok(Some(_)) => state(DataState::Existing, "data of this member"),
            Err(error) => state(DataState::Unreadable, &error.to_string()),
        }
    }

    /// `FOUND`, `JOIN` and `LEAVE` answer `OK id` or `SAME id`.
    fn change_membership(address: &str, command: &str) -> Outcome {
        match Self::ask(address, command) {
            Ok(answer) => {
                let (word, id) = answer.split_once(' ').unwrap_or((&answer, ""));
                let engine_id = (id != "-" && !id.is_empty()).then(|| id.to_owned());
                done(word == "OK", &JoinOutput { engine_id })
            }
            Err(error) => later(&error.to_string()),
        }
    }

    /// Where the leader is, asked of every member but those that must not be asked.
    fn leader(&self) -> Option<String> {
        self.request.members.iter().find_map(|member| {
            let address = format!("{}:{}", Self::host(member), self.port());
            Self::ask(&address, "ROLE").ok().filter(|answer| answer.starts_with("leader")).map(|_| address)
        })
    }

    fn join(&self) -> Outcome {
        let Some(subject) = self.subject() else { return refused(20, "NoSubject", "the subject is no member") };
        let Some(leader) = self.leader() else { return later("no member leads") };
        let address = format!("{}:{}", Self::host(subject), self.port());
        Self::change_membership(&leader, &format!("JOIN {} {address}", subject.id))
    }

    fn subject(&self) -> Option<&Member> {
        let id = self.request.subject.as_deref().unwrap_or(&self.request.self_id);
        self.request.members.iter().find(|member| member.id == id)
    }

    fn leave(&self) -> Outcome {
        if let Ok(Some(Cluster { retired: true, .. })) = Cluster::read(&self.data) {
            return done(false, &JoinOutput::default());
        }
        let Some(leader) = self.leader() else { return later("no member leads") };
        let outcome = Self::change_membership(&leader, &format!("LEAVE {}", self.request.self_id));
        if outcome.0 != 0 {
            return outcome;
        }
        match Self::ask(&self.own_address(), "RETIRE") {
            Ok(_) => outcome,
            Err(error) => refused(31, "EngineSilent", &error.to_string()),
        }
    }

    fn forget(&self) -> Outcome {
        let Some(subject) = &self.request.subject else { return refused(20, "NoSubject", "forget needs a subject") };
        let Some(leader) = self.leader() else { return later("no member leads") };
        Self::change_membership(&leader, &format!("LEAVE {subject}"))
    }

    fn role(&self) -> Outcome {
        let answer = match Self::ask(&self.own_address(), "ROLE") {
            Ok(answer) => answer,
            Err(error) => return refused(30, "EngineSilent", &error.to_string()),
        };
        let words: Vec<&str> = answer.split_whitespace().collect();
        let [role, term, offset, writable] = words.as_slice() else {
            return refused(30, "AnswerUnreadable", &answer);
        };
        let role = match *role {
            "leader" => Role::Leader,
            "follower" => Role::Follower,
            _ => Role::Unknown,
        };
        let position = offset.parse().ok().map(|offset| Position { offset, history: self.request.cluster.uid.clone() });
        done(false, &RoleOutput { role, writable: *writable == "true", term: term.parse().ok(), position })
    }

    fn health(&self) -> Outcome {
        let Ok(info) = self.info() else {
            let output = HealthOutput {
                process: ProcessHealth::Starting,
                ready: false,
                cluster: ClusterHealth::Unknown,
                reasons: vec!["NotListening".to_owned()],
                message: "the engine does not answer yet".to_owned(),
            };
            return done(false, &output);
        };
        let joined = info["joined"] == true;
        let leader = !info["leader"].is_null();
        let mut reasons = vec![];
        if !joined {
            reasons.push("NotJoined".to_owned());
        }
        if !leader {
            reasons.push("NoLeader".to_owned());
        }
        let cluster = match (joined, leader) {
            (false, _) => ClusterHealth::Unknown,
            (true, false) => ClusterHealth::NoQuorum,
            (true, true) => ClusterHealth::Ok,
        };
        let message = format!("offset {}", info["offset"]);
        let output = HealthOutput { process: ProcessHealth::Up, ready: joined && leader, cluster, reasons, message };
        done(false, &output)
    }

    fn members(&self) -> io::Result<(String, Vec<EngineMember>)> {
        let info = self.info()?;
        let members: std::collections::BTreeMap<String, files::Peer> = serde_json::from_value(info["members"].clone())?;
        let seen = members.into_iter().map(|(engine_id, peer)| EngineMember {
            up: Some(Self::ask(&peer.address, "ROLE").is_ok()),
            id: Some(peer.member),
            engine_id,
            vote: true,
        });
        Ok((info["version"].to_string(), seen.collect()))
    }

    fn membership(&self) -> Outcome {
        match self.members() {
            Ok((version, members)) => done(false, &MembershipOutput { version, members }),
            Err(error) => refused(30, "EngineSilent", &error.to_string()),
        }
    }

    fn can_disrupt(&self) -> Outcome {
        let members = match self.members() {
            Ok((_, members)) => members,
            Err(error) => return refused(30, "EngineSilent", &error.to_string()),
        };
        let asked = self.request.params.get("members").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut allowed: Vec<String> = vec![];
        for member in asked.iter().filter_map(Value::as_str) {
            let left = members.iter().filter(|known| {
                let id = known.id.as_deref().unwrap_or_default();
                known.up == Some(true) && id != member && !allowed.iter().any(|gone| gone == id)
            });
            if !self.manifest.membership.quorum || left.count() * 2 > members.len() {
                allowed.push(member.to_owned());
            }
        }
        let (code, mut result) = done(false, &CanDisruptOutput { allowed: allowed.clone() });
        if allowed.is_empty() {
            result.blockers = vec![backlot_standard::result::Blocker {
                object: "majority".to_owned(),
                reason: "would be lost".to_owned(),
                hint: "bring the other members up".to_owned(),
            }];
        }
        (code, result)
    }

    fn reconfigure(&self) -> Outcome {
        let info = match self.info() {
            Ok(info) => info,
            Err(error) => return refused(30, "EngineSilent", &error.to_string()),
        };
        let wanted = &self.request.config;
        let is_live = |key: &str| {
            self.manifest.config.get(key).is_some_and(|setting| setting.apply == backlot_standard::config::Apply::Live)
        };
        let mut effective: std::collections::BTreeMap<String, String> =
            serde_json::from_value(info["started"].clone()).unwrap_or_default();
        let started = effective.clone();
        effective.retain(|key, _| !is_live(key));
        effective
            .extend(wanted.iter().filter(|(key, _)| is_live(key)).map(|(key, value)| (key.clone(), value.clone())));
        let keys =
            wanted.keys().chain(started.keys()).filter(|key| !is_live(key) && wanted.get(*key) != started.get(*key));
        let mut pending: Vec<String> = keys.cloned().collect();
        pending.sort();
        pending.dedup();
        let changed = json!(effective) != info["settings"];
        let values = effective.clone().into_iter().filter(|(key, _)| wanted.contains_key(key)).collect();
        match Self::ask(&self.own_address(), &format!("SETTINGS {}", json!(effective))) {
            Ok(_) => done(changed, &ReconfigureOutput { values, pending_restart: pending }),
            Err(error) => refused(31, "EngineSilent", &error.to_string()),
        }
    }

    fn promote(&self) -> Outcome {
        match Self::ask(&self.own_address(), &format!("PROMOTE {}", self.request.intent.epoch)) {
            Ok(answer) => done(answer == "OK", &Value::Null),
            Err(error) if error.to_string().contains("older") => refused(23, "OlderEpoch", &error.to_string()),
            Err(error) => refused(30, "EngineSilent", &error.to_string()),
        }
    }

    fn plain(&self, command: &str) -> Outcome {
        match Self::ask(&self.own_address(), command) {
            Ok(_) => done(true, &Value::Null),
            Err(error) => refused(30, "EngineSilent", &error.to_string()),
        }
    }
}

fn later(why: &str) -> Outcome {
    let (code, mut result) = refused(11, "Later", why);
    result.retry =
        Some(backlot_standard::result::Retry { after_seconds: 1, need: backlot_standard::result::RetryNeed::Settle });
    (code, result)
}
