//! Who may do what, and that secrets stay where they belong.

use backlot_standard::layout::names;
use backlot_standard::operation::Act;
use backlot_standard::status::EnginePhase;
use backlot_standard::verb::Verb;

use crate::support::{Authority, Client, MEMBER, SECRET, TestMember, UID, agent_binary, operation, view};

#[test]
fn a_client_without_certificate_gets_only_the_probes() {
    let mut member = TestMember::usual();
    member.start();
    let nobody = Client::new(&member.authority, None, member.port);
    assert_eq!(nobody.get("/livez").unwrap().status, 200);
    let ready = nobody.get("/readyz").unwrap();
    assert_eq!((ready.status, ready.body.lines().count()), (503, 1));
    let denied = [
        ("GET", "/v1/status"),
        ("GET", "/v1/watch"),
        ("GET", "/v1/view"),
        ("PUT", "/v1/view"),
        ("GET", "/v1/manifest"),
        ("POST", "/v1/operations"),
        ("GET", "/v1/operations/x"),
        ("PUT", "/v1/pilot"),
        ("GET", "/metrics"),
        ("GET", "/"),
        ("POST", "/livez"),
    ];
    for (method, path) in denied {
        assert_eq!(nobody.request(method, path, "", b"{}").unwrap().status, 403, "{method} {path}");
    }
}

#[test]
fn certificates_count_by_authority_and_name_not_by_date() {
    let mut member = TestMember::usual();
    member.start();
    let stranger = Authority::new();
    let client = |authority: &Authority, name: &str, expired: bool| {
        Client::new(&member.authority, Some(authority.issue(name, expired)), member.port)
    };
    let forged = client(&stranger, &names::operator(UID), false);
    assert!(forged.get("/livez").is_err());
    let status =
        |name: &str, expired: bool, path: &str| client(&member.authority, name, expired).get(path).unwrap().status;
    assert_eq!(status(&names::operator(UID), true, "/v1/status"), 200);
    assert_eq!(status(&names::operator("other"), false, "/v1/status"), 403);
    assert_eq!(status(&names::member("orders-1", UID), false, "/v1/status"), 403);
    assert_eq!(status(&names::member("orders-1", "other"), false, "/v1/view"), 403);
    member.show(&view(1, false));
    assert_eq!(status(&names::member("orders-1", UID), true, "/v1/view"), 200);
}

#[test]
fn a_member_may_pass_a_view_on() {
    let mut member = TestMember::usual();
    member.start();
    let peer = Client::new(
        &member.authority,
        Some(member.authority.issue(&names::member("orders-1", UID), false)),
        member.port,
    );
    let body = serde_json::to_vec(&member.authority.sign(&view(4, false))).unwrap();
    assert_eq!(peer.request("PUT", "/v1/view", "", &body).unwrap().status, 200);
    assert_eq!(peer.get("/v1/view").unwrap().body.as_bytes(), body);
    assert_eq!(member.status().view_generation, Some(4));
}

#[test]
fn old_operators_and_foreign_views_are_refused() {
    let mut member = TestMember::usual();
    member.start_founded();
    let put = |generation, epoch, uid: &str| {
        let mut view = view(generation, true);
        view.operator_epoch = epoch;
        view.cluster_uid = uid.to_owned();
        member.put_view(&view).status
    };
    assert_eq!(put(1, 5, UID), 409);
    assert_eq!(put(3, 4, UID), 409);
    assert_eq!(put(3, 5, "other"), 403);
    let forged = serde_json::to_vec(&Authority::new().sign(&view(9, true))).unwrap();
    assert_eq!(member.operator.request("PUT", "/v1/view", "", &forged).unwrap().status, 403);
    assert_eq!(member.operator.request("PUT", "/v1/view", "", b"{").unwrap().status, 400);
    assert_eq!(member.status().view_generation, Some(2));
    let post = |epoch, generation, id: &str| {
        let mut request = operation(id, Act::Verb(Verb::Join));
        request.operator_epoch = epoch;
        request.view_generation = generation;
        member.post(&request).status
    };
    assert_eq!(post(4, 2, "a"), 409);
    assert_eq!(post(5, 3, "a"), 409);
    assert_eq!(post(5, 2, "a b"), 400);
    assert_eq!(post(5, 2, &"x".repeat(201)), 400);
    assert!(member.calls("join").is_empty());
    // An operator of epoch 6 has spoken: from now on 5 is old, for views too.
    assert!([200, 202].contains(&post(6, 2, "a")));
    assert_eq!(post(5, 2, "b"), 409);
    assert_eq!(put(3, 5, UID), 409);
    assert_eq!(put(3, 6, UID), 200);
}

#[test]
fn a_renewed_identity_is_taken_up_without_a_restart() {
    let mut member = TestMember::usual();
    member.start_founded();
    let engine = member.engine();
    let renewed = Authority::new();
    let (certificate, key) = renewed.issue(&names::member(MEMBER, UID), false);
    let both = format!("{}{}", member.authority.pem(), renewed.pem());
    for (name, content) in [("ca.crt", both), ("tls.crt", certificate), ("tls.key", key.serialize_pem())] {
        // As the kubelet does it: another file under the same name.
        let path = member.path("backlot/identity").join(name);
        std::fs::write(path.with_extension("new"), content).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }
    // The new server certificate, and operators of both authorities.
    for authority in [&member.authority, &renewed] {
        let operator = Client::new(&renewed, Some(authority.issue(&names::operator(UID), false)), member.port);
        assert_eq!(operator.get("/v1/status").unwrap().status, 200);
    }
    let operator = Client::new(&renewed, Some(renewed.issue(&names::operator(UID), false)), member.port);
    let body = serde_json::to_vec(&renewed.sign(&view(7, true))).unwrap();
    assert_eq!(operator.request("PUT", "/v1/view", "", &body).unwrap().status, 200);
    assert_eq!(member.engine(), engine);
}

#[test]
fn secrets_are_in_no_environment_argument_log_or_answer() {
    let mut member = TestMember::new(&["render", "prepare", "found", "health", "role", "join"]);
    let dump = "for p in /proc/[0-9]*; do tr '\\0' '\\n' <$p/cmdline; tr '\\0' '\\n' <$p/environ; done >>$DB_ROOT/seen 2>/dev/null || true
                cat $DB_REQUEST $DB_CONFIG $DB_MEMBERS >>$DB_ROOT/seen
                cmp -s $DB_SECRETS/admin/current $DB_ROOT/backlot/credentials/admin/current || exit 30";
    member.behave("join", dump);
    member.behave("found", dump);
    member.start_founded();
    assert_eq!(member.operate(&operation("join", Act::Verb(Verb::Join)))["state"], "done");
    member.wait_phase(EnginePhase::Running);
    // A rotated secret is seen by the next call.
    std::fs::write(member.path("backlot/credentials/admin/fresh"), format!("{SECRET}-2")).unwrap();
    std::fs::rename(member.path("backlot/credentials/admin/fresh"), member.path("backlot/credentials/admin/current"))
        .unwrap();
    assert_eq!(member.operate(&operation("join-2", Act::Verb(Verb::Join)))["state"], "done");
    for path in ["/v1/status", "/v1/manifest", "/v1/operations/join", "/metrics", "/v1/view"] {
        assert!(!member.operator.get(path).unwrap().body.contains(SECRET), "{path}");
    }
    assert_eq!(member.terminate(), Some(0));
    let seen = std::fs::read_to_string(member.path("seen")).unwrap_or_default();
    assert!(seen.contains("DB_SECRETS"), "the dump is empty");
    assert!(!seen.contains(SECRET) && !member.log().contains(SECRET));
    let on_volume = std::process::Command::new("grep").args(["-r", SECRET]).arg(member.path("data")).status().unwrap();
    assert_eq!(on_volume.code(), Some(1));
}

#[test]
fn the_watch_tells_changes_and_not_what_is_known() {
    use std::io::{BufRead, BufReader, Write};
    let mut member = TestMember::usual();
    member.start_founded();
    let mut lines = {
        let mut stream = member.operator.open().unwrap();
        write!(stream, "GET /v1/watch HTTP/1.1\r\nhost: m\r\n\r\n").unwrap();
        BufReader::new(stream).lines().map_while(Result::ok).filter(|line| line.starts_with('{'))
    };
    let first: serde_json::Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
    assert_eq!(first["viewGeneration"], 2);
    member.show(&view(3, true));
    let second: serde_json::Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
    assert!(second["revision"].as_u64() > first["revision"].as_u64());
    assert_eq!(second["viewGeneration"], 3);
    // Positions move with every poll; alone they are no news.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let known = member.status();
    let mut stream = member.operator.open().unwrap();
    stream.sock.set_read_timeout(Some(std::time::Duration::from_millis(1500))).unwrap();
    write!(stream, "GET /v1/watch?bootId={}&revision={} HTTP/1.1\r\nhost: m\r\n\r\n", known.boot_id, known.revision)
        .unwrap();
    let quiet = BufReader::new(stream).lines().map_while(Result::ok).filter(|line| line.starts_with('{')).count();
    assert_eq!(quiet, 0);
}

#[test]
fn the_inspection_serves_the_manifest_to_the_operator_only() {
    let member = TestMember::usual();
    let mut inspection = std::process::Command::new(agent_binary())
        .args(["inspect", "--root", member.path("").to_str().unwrap()])
        .args(["--listen", &format!("127.0.0.1:{}", member.port)])
        .env("BACKLOT_CLUSTER_UID", UID)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let nobody = Client::new(&member.authority, None, member.port);
    member.wait("it answers", || nobody.get("/readyz").is_ok_and(|answer| answer.status == 200));
    assert_eq!(nobody.get("/v1/manifest").unwrap().status, 403);
    let answer = member.operator.get("/v1/manifest").unwrap().json();
    assert_eq!(answer["manifest"]["engine"], "fixture");
    assert_eq!(answer["verbs"], serde_json::json!(["render", "prepare", "found", "join", "role", "health"]));
    assert_eq!(member.operator.get("/v1/status").unwrap().status, 404);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(inspection.id()).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert!(inspection.wait().unwrap().success());
}
