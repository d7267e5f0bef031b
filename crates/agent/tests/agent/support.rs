//! A member without a container: the agent's real processes below a directory of their own, and an operator to talk to it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use backlot_standard::layout::names;
use backlot_standard::operation::{Act, OperationRequest};
use backlot_standard::request::{Member, MemberState, Plan, Reason};
use backlot_standard::status::{EnginePhase, MemberStatus};
use backlot_standard::verb::Verb;
use backlot_standard::view::{ClusterView, ComponentView, GroupView, SignedView};
use base64::Engine as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

pub const UID: &str = "uid-1";
pub const MEMBER: &str = "orders-0";
pub const SECRET: &str = "canary-7d1f0c9a";

/// A certificate authority and what it signed.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    seed: KeyPair,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let seed = KeyPair::from_pem(&key.serialize_pem()).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, key).unwrap(), seed }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for `name`; `expired` ones ended long ago.
    pub fn issue(&self, name: &str, expired: bool) -> (String, KeyPair) {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2001, 4, 1);
        }
        let certificate = params.signed_by(&key, &*self.issuer).unwrap();
        (certificate.pem(), key)
    }

    pub fn sign(&self, view: &ClusterView) -> SignedView {
        let payload = serde_json::to_string(view).unwrap();
        let key = ring::signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(&self.seed.serialize_der()).unwrap();
        let signature = base64::engine::general_purpose::STANDARD.encode(key.sign(payload.as_bytes()));
        SignedView { payload, signature }
    }
}

/// How a client shows itself.
pub struct Client {
    config: Arc<ClientConfig>,
    port: u16,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

impl Client {
    pub fn new(trust: &Authority, identity: Option<(String, KeyPair)>, port: u16) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(der(&trust.pem())).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            Some((certificate, key)) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
                builder.with_client_auth_cert(vec![der(&certificate)], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        Self { config: Arc::new(config), port }
    }

    pub fn open(&self) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let name = ServerName::try_from(names::member(MEMBER, UID)).unwrap();
        let connection = ClientConnection::new(self.config.clone(), name).map_err(std::io::Error::other)?;
        Ok(StreamOwned::new(connection, stream))
    }

    pub fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> std::io::Result<Answer> {
        let mut stream = self.open()?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: member\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        )?;
        stream.write_all(body)?;
        let mut bytes = vec![];
        // A server may close without a TLS goodbye after the answer.
        let read = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return Err(read.err().unwrap_or_else(|| std::io::Error::other("no answer")));
        };
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok(Answer { status, body: body.to_owned() })
    }

    pub fn get(&self, path: &str) -> std::io::Result<Answer> {
        self.request("GET", path, "", b"")
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap()
}

/// A member: directory, keys, and the keeper's process while it runs.
pub struct TestMember {
    directory: tempfile::TempDir,
    pub authority: Authority,
    pub operator: Client,
    pub port: u16,
    pub silence_ms: u64,
    keeper: Option<Child>,
}

impl TestMember {
    /// A member of the fixture image with the given verbs, not started.
    pub fn new(verbs: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for path in
            ["db/verbs", "data", "behave", "run/db", "backlot/agent", "backlot/identity", "backlot/credentials/admin"]
        {
            std::fs::create_dir_all(root.join(path)).unwrap();
        }
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/image");
        std::fs::copy(fixtures.join("manifest.yaml"), root.join("db/manifest.yaml")).unwrap();
        std::fs::copy(fixtures.join("engine.sh"), root.join("db/engine.sh")).unwrap();
        for verb in verbs {
            assert!(Verb::from_name(verb).is_some());
            let path = root.join("db/verbs").join(verb);
            std::fs::copy(fixtures.join("verb.sh"), &path).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        std::fs::write(root.join("backlot/credentials/admin/current"), SECRET).unwrap();
        let authority = Authority::new();
        let (certificate, key) = authority.issue(&names::member(MEMBER, UID), false);
        std::fs::write(root.join("backlot/identity/ca.crt"), authority.pem()).unwrap();
        std::fs::write(root.join("backlot/identity/tls.crt"), certificate).unwrap();
        std::fs::write(root.join("backlot/identity/tls.key"), key.serialize_pem()).unwrap();
        let port = free_port();
        let operator = Client::new(&authority, Some(authority.issue(&names::operator(UID), false)), port);
        Self { directory, authority, operator, port, silence_ms: 3000, keeper: None }
    }

    /// The usual verbs.
    pub fn usual() -> Self {
        Self::new(&["render", "prepare", "found", "health", "role", "join"])
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// Makes a verb, or the engine, do something else first.
    pub fn behave(&self, verb: &str, script: &str) {
        std::fs::write(self.path("behave").join(verb), script).unwrap();
    }

    pub fn edit_manifest(&self, from: &str, to: &str) {
        let path = self.path("db/manifest.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    /// Starts the keeper and waits until the pilot answers.
    pub fn start(&mut self) {
        self.start_keeper();
        self.wait("the API answers", || self.operator.get("/livez").is_ok_and(|answer| answer.status == 200));
    }

    pub fn start_keeper(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        // Like a runtime that was started in the background: its children ignore SIGINT until they say otherwise.
        let command = self.keeper_command(&["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]);
        self.spawn(command, log.into());
    }

    /// The keeper's command, with `wrapper` before it.
    pub fn keeper_command(&self, wrapper: &[&str]) -> Command {
        let agent = agent_binary();
        let mut words: Vec<&str> = wrapper.to_vec();
        words.push(&agent);
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["keeper", "--root", self.directory.path().to_str().unwrap()])
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .args(["--silence-ms", &self.silence_ms.to_string()])
            .env("BACKLOT_MEMBER", MEMBER)
            .env("BACKLOT_CLUSTER_UID", UID)
            .env("BACKLOT_POD_IP", "127.0.0.1");
        command
    }

    pub fn spawn(&mut self, mut command: Command, log: Stdio) {
        assert!(self.keeper.is_none());
        self.keeper = Some(command.stderr(log).spawn().unwrap());
    }

    /// The process that was spawned: the keeper, or its wrapper.
    pub fn keeper(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.keeper.as_ref().unwrap().id()).unwrap())
    }

    /// The pilot's process.
    pub fn pilot(&self) -> Pid {
        let found = children(self.keeper()).into_iter().find(|(_, line)| line.contains("\0pilot\0"));
        found.map_or_else(|| panic!("no pilot\n{}", self.log()), |(pid, _)| pid)
    }

    /// The engine's process.
    pub fn engine(&self) -> Option<Pid> {
        children(self.keeper()).into_iter().find(|(_, line)| line.contains("engine.sh")).map(|(pid, _)| pid)
    }

    /// Sends SIGTERM to the keeper and returns its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        kill(self.keeper(), Signal::SIGTERM).unwrap();
        self.exit_code()
    }

    /// Waits for the keeper's end.
    pub fn exit_code(&mut self) -> Option<i32> {
        let mut keeper = self.keeper.take().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            if let Some(status) = keeper.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        keeper.kill().unwrap();
        keeper.wait().unwrap();
        panic!("the keeper did not end\n{}", self.log());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Calls of a verb so far: operation id, attempt, reason, founding.
    pub fn calls(&self, verb: &str) -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        let lines = text.lines().map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>());
        lines.filter(|fields| fields[0] == verb).collect()
    }

    pub fn status(&self) -> MemberStatus {
        let answer = self.operator.get("/v1/status").unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }

    pub fn put_view(&self, view: &ClusterView) -> Answer {
        let body = serde_json::to_vec(&self.authority.sign(view)).unwrap();
        self.operator.request("PUT", "/v1/view", "", &body).unwrap()
    }

    pub fn show(&self, view: &ClusterView) {
        let answer = self.put_view(view);
        assert_eq!(answer.status, 200, "{}", answer.body);
    }

    pub fn post(&self, request: &OperationRequest) -> Answer {
        self.operator.request("POST", "/v1/operations", "", &serde_json::to_vec(request).unwrap()).unwrap()
    }

    /// Asks for an operation and waits for its end.
    pub fn operate(&self, request: &OperationRequest) -> Value {
        let answer = self.post(request);
        assert!([200, 202].contains(&answer.status), "{} {}\n{}", answer.status, answer.body, self.log());
        self.wait(&format!("{} ends", request.id), || self.report(&request.id)["state"] != "running");
        self.report(&request.id)
    }

    /// Asks for an operation that ends with the first answer.
    pub fn operate_once(&self, request: &OperationRequest) -> Value {
        let answer = self.post(request);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    pub fn report(&self, id: &str) -> Value {
        self.operator.get(&format!("/v1/operations/{}", id.replace('/', "%2F"))).unwrap().json()
    }

    pub fn wait_phase(&self, phase: EnginePhase) {
        self.wait(&format!("the engine is {phase:?}"), || self.status().engine.phase == phase);
    }

    pub fn wait_blocked(&self, reason: &str) {
        self.wait(&format!("blocked {reason}"), || {
            self.status().blocked.is_some_and(|blocked| blocked.reason == reason)
        });
    }

    pub fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !condition() {
            let status = || self.operator.get("/v1/status").map(|answer| answer.body).unwrap_or_default();
            assert!(Instant::now() < until, "never: {what}\n{}\n{}", status(), self.log());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Starts the member and founds its group.
    pub fn start_founded(&mut self) {
        self.start();
        self.show(&view(1, false));
        let report = self.operate(&operation("found", Act::Verb(Verb::Found)));
        assert_eq!(report["state"], "done", "{report}\n{}", self.log());
        self.show(&view(2, true));
        self.wait_phase(EnginePhase::Running);
    }
}

impl Drop for TestMember {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            let tree = backlot_agent::process::descendants(Pid::from_raw(i32::try_from(keeper.id()).unwrap()), &[]);
            let _ = keeper.kill();
            let _ = keeper.wait();
            for pid in tree {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }
}

/// The agent under test: this build, or the one that `BACKLOT_AGENT` names.
pub fn agent_binary() -> String {
    std::env::var("BACKLOT_AGENT").unwrap_or(env!("CARGO_BIN_EXE_backlot-agent").to_owned())
}

/// A port for one test: below the range that the kernel takes clients' ports from, and never given twice, because the
/// agent shares its port with any other agent.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 20_000 + u16::try_from(std::process::id() % 100).unwrap() * 100;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed) % 100;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn children(parent: Pid) -> Vec<(Pid, String)> {
    backlot_agent::process::descendants(parent, &[])
        .into_iter()
        .map(|pid| (pid, std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()))
        .collect()
}

pub fn member(ordinal: u32, state: MemberState) -> Member {
    Member {
        id: format!("orders-{ordinal}"),
        numeric_id: ordinal + 1,
        name: format!("orders-{ordinal}.orders.default.svc"),
        address: String::new(),
        component: "data".to_owned(),
        shard: 0,
        ordinal,
        zone: String::new(),
        state,
        vote: true,
        incarnation: String::new(),
        engine_id: None,
    }
}

/// A view with this member as founder and only member.
pub fn view(generation: u64, founded: bool) -> ClusterView {
    let state = if founded { MemberState::Joined } else { MemberState::New };
    ClusterView {
        standard: "0.1".to_owned(),
        generation,
        operator_epoch: 5,
        cluster_uid: UID.to_owned(),
        cluster_name: "orders".to_owned(),
        engine_name: "orders-1".to_owned(),
        groups: vec![GroupView {
            component: "data".to_owned(),
            shard: 0,
            founder: Some(MEMBER.to_owned()),
            founded,
            leader: None,
            epoch: 1,
            plan: Plan { current: 1, target: 1, joining: vec![], leaving: vec![] },
        }],
        members: vec![member(0, state)],
        components: std::collections::BTreeMap::from([("data".to_owned(), ComponentView::default())]),
        durability: None,
    }
}

pub fn operation(id: &str, act: Act) -> OperationRequest {
    OperationRequest {
        id: id.to_owned(),
        operator_epoch: 5,
        view_generation: 1,
        act,
        reason: Reason::Create,
        subject: None,
        via: None,
        params: serde_json::Map::new(),
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    backlot_agent::hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}
