//! The fake image's program, called as an agent calls it: verbs with a request, the engine as `render` says.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_fake-engine");
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Members on loopback addresses of their own; each test has a port of its own.
struct Bench {
    folder: tempfile::TempDir,
    port: u16,
    led: bool,
    config: Value,
    engines: Vec<(usize, Child)>,
}

impl Bench {
    fn new(port: u16, led: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..3 {
            let root = folder.path().join(format!("x-{index}"));
            for part in ["db/verbs", "data", "run/db", "scratch", "secrets/admin"] {
                fs::create_dir_all(root.join(part)).unwrap();
            }
            let image = if led { "fake-led" } else { "fake" };
            let manifest =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../dev/images/{image}/db/manifest.yaml"));
            fs::copy(manifest, root.join("db/manifest.yaml")).unwrap();
            fs::write(root.join("secrets/admin/current"), SECRET).unwrap();
            for verb in backlot_standard::verb::Verb::ALL {
                std::os::unix::fs::symlink(PROGRAM, root.join("db/verbs").join(verb.name())).unwrap();
            }
        }
        Self { folder, port, led, config: json!({}), engines: vec![] }
    }

    fn root(&self, member: usize) -> PathBuf {
        self.folder.path().join(format!("x-{member}"))
    }

    fn request(&self, member: usize, verb: &str, more: &Value) -> Value {
        let members: Vec<Value> = (0..3)
            .map(|index| {
                json!({"id": format!("x-{index}"), "numericId": index + 1, "name": format!("x-{index}.test"),
                    "address": format!("127.0.3.{}", index + 1), "component": "data", "shard": 0, "ordinal": index,
                    "state": "joined", "vote": true})
            })
            .collect();
        let mut request = json!({
            "standard": "0.1", "verb": verb, "operationId": "o", "attempt": 1, "deadlineSeconds": 10,
            "cluster": {"uid": "u1", "name": "x", "engineName": "x", "epoch": 1, "founded": true, "founding": false},
            "self": format!("x-{member}"), "members": members,
            "plan": {"current": 3, "target": 3, "joining": [], "leaving": []},
            "intent": {"role": "none", "leader": "x-0", "epoch": 2},
            "resources": {"memoryBytes": 0, "cpuMillis": 0, "volumes": {}},
            "config": self.config, "reason": "create", "params": {"members": ["x-1"]},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            request[key] = value.clone();
        }
        request
    }

    fn command(&self, member: usize, verb: &str, more: &Value) -> Command {
        let root = self.root(member);
        let request = self.request(member, verb, more);
        fs::write(root.join("request.json"), request.to_string()).unwrap();
        let _absent = fs::remove_file(root.join("result.json"));
        let mut command = Command::new(root.join("db/verbs").join(verb));
        command
            .env_clear()
            .env("DB_REQUEST", root.join("request.json"))
            .env("DB_RESULT", root.join("result.json"))
            .env("DB_SECRETS", root.join("secrets"))
            .env("FAKE_PORT", self.port.to_string())
            .stdin(Stdio::null());
        command
    }

    fn call_with(&self, member: usize, verb: &str, more: &Value) -> (i32, Value) {
        let Output { status, .. } = self.command(member, verb, more).output().unwrap();
        let result = fs::read(self.root(member).join("result.json")).unwrap_or_default();
        (status.code().unwrap_or(-1), serde_json::from_slice(&result).unwrap_or(Value::Null))
    }

    fn call(&self, member: usize, verb: &str) -> Value {
        let (code, result) = self.call_with(member, verb, &Value::Null);
        assert_eq!(code, 0, "{verb}: {result}");
        result["output"].clone()
    }

    /// Renders, fills the secret in, starts the engine, waits until it listens.
    fn start(&mut self, member: usize) {
        let output = self.call(member, "render");
        for file in output["files"].as_array().unwrap() {
            let content = file["content"].as_str().unwrap().replace("${secret:admin}", SECRET);
            fs::write(file["path"].as_str().unwrap(), content).unwrap();
        }
        let argv: Vec<&str> = output["argv"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let engine = Command::new(argv[0]).args(&argv[1..]).env_clear().stderr(Stdio::null()).spawn().unwrap();
        self.engines.push((member, engine));
        self.eventually("listens", |bench| TcpStream::connect(bench.address(member)).is_ok());
    }

    fn kill(&mut self, member: usize) {
        let index = self.engines.iter().position(|(of, _)| *of == member).unwrap();
        let (_, mut engine) = self.engines.remove(index);
        engine.kill().unwrap();
        engine.wait().unwrap();
    }

    fn address(&self, member: usize) -> String {
        format!("127.0.3.{}:{}", member + 1, self.port)
    }

    fn ask(&self, member: usize, command: &str) -> String {
        self.ask_with(SECRET, member, command)
    }

    fn ask_with(&self, password: &str, member: usize, command: &str) -> String {
        let mut asking = Command::new(PROGRAM);
        asking
            .args(["ask", &self.address(member), command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut asking = asking.spawn().unwrap();
        writeln!(asking.stdin.take().unwrap(), "{password}").unwrap();
        String::from_utf8_lossy(&asking.wait_with_output().unwrap().stdout).trim().to_owned()
    }

    fn eventually(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < deadline, "never: {what}");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Processes that a verb left behind.
    fn left_behind(&self) -> Vec<u32> {
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let pid = entry.ok()?.file_name().into_string().ok()?.parse::<u32>().ok()?;
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let ours = String::from_utf8_lossy(&environment).contains(self.folder.path().to_str()?);
            (ours && String::from_utf8_lossy(&line).contains("linger")).then_some(pid)
        });
        processes.collect()
    }

    fn leader(&self) -> Option<usize> {
        (0..3).find(|member| self.ask(*member, "ROLE").starts_with("leader"))
    }

    /// Three members that hold `k`.
    fn found(&mut self) {
        assert_eq!(self.call(0, "prepare")["state"], "fresh");
        self.start(0);
        assert_eq!(self.call(0, "found")["engineId"], "e1");
        if self.led {
            assert!(self.ask(0, "SET k 1").starts_with("ERR"), "an engine that was not promoted takes no writes");
            self.call(0, "promote");
        }
        assert_eq!(self.ask(0, "SET k 1"), "OK 1");
        for member in [1, 2] {
            self.start(member);
            self.call(member, "join");
        }
        self.eventually("followers hold the data", |bench| {
            (1..3).all(|member| bench.ask(member, "GET k") == "VALUE 1")
        });
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for (_, engine) in &mut self.engines {
            let _ended = engine.kill();
            let _reaped = engine.wait();
        }
    }
}

#[test]
fn a_cluster_is_founded_replicates_and_survives_its_leader() {
    let mut bench = Bench::new(17_101, false);
    bench.found();
    let role = bench.call(0, "role");
    assert_eq!((&role["role"], &role["writable"]), (&json!("leader"), &json!(true)));
    assert_eq!(bench.call(1, "health")["ready"], true);
    assert_eq!(bench.call(1, "membership")["members"].as_array().unwrap().len(), 3);
    assert_eq!(bench.call(1, "can-disrupt")["allowed"], json!(["x-1"]));
    bench.kill(0);
    bench.eventually("another leads", |bench| bench.leader().is_some_and(|leader| leader != 0));
    let leader = bench.leader().unwrap();
    assert_eq!(bench.ask(leader, "SET k 2"), "OK 2");
    assert_eq!(bench.call(leader, "can-disrupt")["allowed"], json!([]), "two of three are left");
    assert_eq!(bench.call(0, "prepare")["state"], "existing");
    bench.start(0);
    bench.eventually("it catches up", |bench| bench.ask(0, "GET k") == "VALUE 2");
}

#[test]
fn a_write_without_a_majority_is_not_acknowledged() {
    let mut bench = Bench::new(17_102, false);
    bench.found();
    bench.kill(1);
    bench.kill(2);
    assert!(bench.ask(0, "SET k 2").starts_with("ERR"));
    bench.eventually("it steps down", |bench| !bench.ask(0, "ROLE").starts_with("leader"));
    assert_eq!(bench.call(0, "health")["ready"], false);
}

#[test]
fn a_member_that_left_is_never_started_again() {
    let mut bench = Bench::new(17_103, false);
    bench.found();
    let (code, result) = bench.call_with(2, "leave", &Value::Null);
    assert_eq!((code, &result["changed"]), (0, &json!(true)));
    let (code, result) = bench.call_with(2, "leave", &Value::Null);
    assert_eq!((code, &result["changed"]), (0, &json!(false)), "leaving twice is leaving once");
    assert_eq!(bench.call(0, "membership")["members"].as_array().unwrap().len(), 2);
    bench.kill(2);
    assert_eq!(bench.call(2, "prepare")["state"], "retired");
    let other = json!({"cluster": {"uid": "u2", "name": "x", "engineName": "x", "epoch": 1, "founded": true, "founding": false}});
    let (_, result) = bench.call_with(1, "prepare", &other);
    assert_eq!(result["output"]["state"], "foreign");
    fs::write(bench.root(1).join("data/db/cluster.json"), "{").unwrap();
    assert_eq!(bench.call(1, "prepare")["state"], "unreadable");
}

#[test]
fn live_settings_are_taken_up_and_others_wait() {
    let mut bench = Bench::new(17_104, false);
    bench.found();
    bench.config = json!({"greeting": "hi", "cacheSize": "2Mi"});
    let output = bench.call(0, "reconfigure");
    assert_eq!(output["pendingRestart"], json!(["cacheSize"]));
    assert_eq!(bench.ask(0, "HELLO"), "hi");
    bench.kill(0);
    bench.start(0);
    assert_eq!(bench.call(0, "reconfigure")["pendingRestart"], json!([]));
}

#[test]
fn an_engine_with_agents_that_elect_takes_writes_only_after_promote() {
    let mut bench = Bench::new(17_105, true);
    bench.found();
    bench.kill(0);
    bench.start(0);
    assert!(bench.ask(0, "SET k 2").starts_with("ERR"));
    let old = json!({"intent": {"role": "leader", "leader": "x-0", "epoch": 1}});
    assert_eq!(bench.call_with(0, "promote", &old).0, 23, "an older epoch is refused");
    bench.call(0, "promote");
    assert_eq!(bench.ask(0, "SET k 2"), "OK 2");
    bench.call(0, "demote");
    assert!(bench.ask(0, "SET k 3").starts_with("ERR"));
}

#[test]
fn nothing_is_answered_without_the_password() {
    let mut bench = Bench::new(17_106, false);
    bench.start(0);
    assert!(bench.ask_with("wrong", 0, "GET k").starts_with("ERR"));
    let config = fs::read_to_string(bench.root(0).join("run/db/fake.json")).unwrap();
    assert!(!config.contains(SECRET));
}

#[test]
fn verbs_misbehave_as_they_are_told_and_record_every_call() {
    let mut bench = Bench::new(17_107, false);
    bench.config =
        json!({"misbehave": "prepare:refuse:1,membership:fail,role:crash,forget:pending,join:later,found:unknown"});
    assert_eq!(bench.call_with(0, "prepare", &Value::Null).0, 22);
    assert_eq!(bench.call(0, "prepare")["state"], "fresh", "once was asked for");
    for (verb, code) in [("membership", 30), ("role", -1), ("forget", 10), ("join", 11), ("found", 31)] {
        assert_eq!(bench.call_with(0, verb, &Value::Null).0, code, "{verb}");
    }
    fs::write(bench.root(0).join("data/db/misbehave"), "health:garbage\nrender:huge\nleave:lie").unwrap();
    assert_eq!(bench.call_with(0, "health", &Value::Null), (0, Value::Null));
    assert!(!fs::read(bench.root(0).join("result.json")).unwrap().is_empty());
    assert_eq!(bench.command(0, "render", &Value::Null).status().unwrap().code(), Some(0));
    assert!(fs::metadata(bench.root(0).join("result.json")).unwrap().len() > 1 << 30);
    assert_eq!(bench.call_with(0, "leave", &Value::Null).0, 0);
    let calls = fs::read_to_string(bench.root(0).join("data/calls.jsonl")).unwrap();
    assert_eq!(calls.lines().count(), 10);
    assert_eq!(serde_json::from_str::<Value>(calls.lines().next().unwrap()).unwrap()["verb"], "prepare");
}

#[test]
fn a_verb_hangs_floods_and_leaves_processes_behind() {
    let bench = Bench::new(17_108, false);
    fs::create_dir_all(bench.root(0).join("data/db")).unwrap();
    let told = |how: &str| fs::write(bench.root(0).join("data/db/misbehave"), format!("health:{how}")).unwrap();
    told("hang");
    let mut hangs = bench.command(0, "health", &Value::Null).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(hangs.try_wait().unwrap().is_none());
    hangs.kill().unwrap();
    hangs.wait().unwrap();

    told("flood");
    let mut floods =
        bench.command(0, "health", &Value::Null).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut output = floods.stdout.take().unwrap();
    let mut read = vec![0; 1 << 20];
    std::io::Read::read_exact(&mut output, &mut read).unwrap();
    floods.kill().unwrap();
    floods.wait().unwrap();

    told("orphan");
    let mut leaves =
        bench.command(0, "health", &Value::Null).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    assert!(leaves.wait().unwrap().success());
    // A process that has just been started shows its arguments a moment later.
    bench.eventually("a process is left", |bench| bench.left_behind().len() == 1);
    let left = bench.left_behind();
    for pid in left {
        Command::new("kill").arg(pid.to_string()).status().unwrap();
    }
}
