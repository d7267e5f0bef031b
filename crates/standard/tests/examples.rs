//! What the standard shows as an example is right: the example image, the shell idioms, and the manifests of the images.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use backlot_standard::manifest::Manifest;
use backlot_standard::result::{Exit, HealthOutput, ProcessHealth, RenderOutput, RetryNeed, RoleOutput, VerbResult};
use backlot_standard::verb::Verb;
use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn example() -> PathBuf {
    repository().join("standard/examples/acme/db")
}

fn read_manifest(path: &Path) -> Manifest {
    let text = fs::read_to_string(path).unwrap();
    serde_norway::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `image` is the folder that becomes the image's `/db`.
fn assert_complete(image: &Path) {
    let manifest = read_manifest(&image.join("manifest.yaml"));
    assert_eq!(manifest.check(), vec![], "{}", image.display());
    let mut verbs = vec![];
    for entry in fs::read_dir(image.join("verbs")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let verb = Verb::from_name(&name).unwrap_or_else(|| panic!("{}: no such verb: {name}", image.display()));
        let mode = entry.metadata().unwrap().permissions().mode();
        assert!(mode & 0o111 == 0o111, "{}: verbs/{name} is not executable for everyone", image.display());
        verbs.push(verb);
    }
    for needed in [Verb::Render, Verb::Health, Verb::Role] {
        assert!(verbs.contains(&needed), "{}: verbs/{} is missing", image.display(), needed.name());
    }
}

#[test]
fn the_example_image_is_complete_and_under_a_hundred_lines() {
    assert_complete(&example());
    let mut files = vec![example().join("../Containerfile"), example().join("manifest.yaml")];
    files.extend(fs::read_dir(example().join("verbs")).unwrap().map(|entry| entry.unwrap().path()));
    let lines: usize = files.iter().map(|file| fs::read_to_string(file).unwrap().lines().count()).sum();
    assert!(lines < 100, "{lines} lines");
}

#[test]
fn every_image_has_a_manifest_that_passes_the_check() {
    let Ok(images) = fs::read_dir(repository().join("images")) else { return };
    for image in images.map(|entry| entry.unwrap().path().join("db")) {
        if image.join("manifest.yaml").exists() {
            assert_complete(&image);
        }
    }
}

/// Runs one verb of the example as the agent would, with a `curl` that answers what the test says.
struct Call {
    directory: tempfile::TempDir,
    env: BTreeMap<&'static str, String>,
}

impl Call {
    fn new(curl: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir(path.join("scratch")).unwrap();
        fs::write(path.join("config"), "snapshot_entries=5000\n").unwrap();
        fs::write(path.join("members"), "a-0\t1\ta-0.a.svc\t-\tdata\t0\t0\tjoined\ttrue\t-\n").unwrap();
        fs::create_dir(path.join("bin")).unwrap();
        let program = path.join("bin/curl");
        fs::write(&program, format!("#!/bin/sh\nprintf '%s ' \"$@\" > \"{}/asked\"\n{curl}\n", path.display()))
            .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let file = |name: &str| path.join(name).display().to_string();
        let env = BTreeMap::from([
            ("PATH", format!("{}:/usr/bin:/bin", file("bin"))),
            ("DB_RESULT", file("result")),
            ("DB_SCRATCH", file("scratch")),
            ("DB_CONFIG", file("config")),
            ("DB_MEMBERS", file("members")),
            ("DB_SECRETS", file("secrets")),
            ("DB_SELF_ID", "a-0".to_owned()),
            ("DB_SELF_NAME", "a-0.a.svc".to_owned()),
            ("DB_SUBJECT_ID", "a-1".to_owned()),
            ("DB_SUBJECT_NAME", "a-1.a.svc".to_owned()),
            ("DB_MEMORY_BYTES", "1073741824".to_owned()),
            ("DB_FOUNDING", "false".to_owned()),
        ]);
        Self { directory, env }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.env.insert(name, value.to_owned());
        self
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> (Exit, VerbResult) {
        let status =
            Command::new(program).args(arguments).env_clear().envs(&self.env).current_dir("/").status().unwrap();
        let text = fs::read_to_string(self.directory.path().join("result")).unwrap_or_default();
        let result = if text.is_empty() { VerbResult::default() } else { serde_json::from_str(&text).unwrap() };
        (Exit::from_code(status.code()), result)
    }

    fn verb(&self, verb: Verb) -> (Exit, VerbResult) {
        self.run(&example().join("verbs").join(verb.name()), &[])
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap()
    }
}

fn output<T: serde::de::DeserializeOwned>(result: VerbResult) -> T {
    serde_json::from_value(result.output.unwrap_or(Value::Null)).unwrap()
}

#[test]
fn the_example_renders_and_only_a_founding_call_may_bootstrap() {
    let call = Call::new("exit 99");
    let (exit, result) = call.verb(Verb::Render);
    assert_eq!(exit, Exit::Done);
    let rendered: RenderOutput = output(result);
    assert_eq!(rendered.argv, ["/usr/bin/acme", "serve", "--config", "/run/db/acme.conf"]);
    assert!(rendered.files.iter().any(|file| file.content.as_deref() == Some("${secret:token}")));
    let conf = call.read("scratch/acme.conf");
    assert!(conf.contains("raft = a-0.a.svc:4501\n"), "{conf}");
    assert!(conf.ends_with("cache_bytes = 268435456\nsnapshot_entries = 5000\n"), "{conf}");

    let (_, result) = Call::new("exit 99").with("DB_FOUNDING", "true").verb(Verb::Render);
    assert_eq!(output::<RenderOutput>(result).argv.last().unwrap(), "--bootstrap");
}

#[test]
fn the_example_tells_no_from_no_answer() {
    let health = |curl: &str| output::<HealthOutput>(Call::new(curl).verb(Verb::Health).1);
    assert!(health("printf 200").ready);
    assert!(!health("printf 503").ready);
    assert_eq!(health("printf 000; exit 7").process, ProcessHealth::Starting);
    assert_eq!(health("printf 000; exit 28").process, ProcessHealth::Hung);
    let (exit, result) = Call::new("echo leader").verb(Verb::Role);
    assert!(exit == Exit::Done && output::<RoleOutput>(result).writable);
    assert_eq!(Call::new("exit 7").verb(Verb::Role), (Exit::Unknown, VerbResult::default()));
}

#[test]
fn the_example_takes_already_so_for_done() {
    let join = |code: &str| Call::new(&format!("printf {code}")).verb(Verb::Join);
    let forget = |code: &str| Call::new(&format!("printf {code}")).verb(Verb::Forget);
    for (call, exit, changed) in [
        (join("201"), Exit::Done, true),
        (join("409"), Exit::Done, false),
        (join("503"), Exit::Later, false),
        (join("500"), Exit::Unknown, false),
        (forget("204"), Exit::Done, true),
        (forget("404"), Exit::Done, false),
        (forget("412"), Exit::Unsafe, false),
    ] {
        assert_eq!((call.0, call.1.changed), (exit, changed));
    }
    let call = Call::new("printf 201");
    call.verb(Verb::Join);
    assert!(call.read("asked").contains("localhost:4500/raft/members/a-1?address=a-1.a.svc:4501"));
}

#[test]
fn the_shell_idioms_write_valid_results() {
    let idioms = repository().join("standard/examples/idioms.sh").display().to_string();
    let run = |script: &str| {
        let call = Call::new("exit 99");
        call.run(Path::new("/bin/sh"), &["-euc", &format!(". '{idioms}'; {script}")])
    };
    let (exit, result) = run(r#"fail 30 DiskFull 'a "quoted" \ word	and a tab'"#);
    assert_eq!(exit, Exit::Failed);
    assert_eq!(result.error.unwrap().message, r#"a "quoted" \ word and a tab"#);
    let (exit, result) = run("pending 0.25 'copied a quarter'");
    assert_eq!((exit, result.progress.unwrap().note.as_str()), (Exit::Pending, "copied a quarter"));
    let (exit, result) = run("later 5 'the leader is away' otherMember");
    assert_eq!((exit, result.retry.unwrap().need), (Exit::Later, RetryNeed::OtherMember));
    assert_eq!(result.error.unwrap().message, "the leader is away");
    let (exit, result) = run("refuse 'table x' 'one copy' 'add a copy'");
    assert_eq!((exit, result.blockers[0].object.as_str()), (Exit::Unsafe, "table x"));
    let (exit, result) =
        run(r#"[ "$(setting snapshot_entries 1)" = 5000 ]; [ "$(setting snapshot 7)" = 7 ]; done_ true"#);
    assert_eq!((exit, result.changed), (Exit::Done, true));
    let (exit, _) = run(r#"[ "$(members data 0)" = 'a-0 a-0.a.svc' ]; [ -z "$(members data 1)" ]; done_"#);
    assert_eq!(exit, Exit::Done);
}
