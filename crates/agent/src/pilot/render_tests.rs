//! What `render` may put where.

use super::*;
use std::os::unix::fs::PermissionsExt;

struct Place {
    directory: tempfile::TempDir,
    paths: Paths,
    manifest: Manifest,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let paths = Paths::below(directory.path().to_owned());
    for path in ["run/db/secrets/admin", "scratch", "data"] {
        std::fs::create_dir_all(directory.path().join(path)).unwrap();
    }
    std::fs::write(directory.path().join("run/db/secrets/admin/current"), "hidden\n").unwrap();
    std::fs::write(directory.path().join("scratch/written"), "by the verb ${secret:admin}").unwrap();
    let text = include_str!("../../tests/fixtures/image/manifest.yaml");
    Place { directory, paths, manifest: serde_norway::from_str(text).unwrap() }
}

fn render(place: &Place, file: &serde_json::Value) -> Result<(), String> {
    let output = serde_json::from_value(serde_json::json!({ "argv": ["engine"], "files": [file] })).unwrap();
    put_in_place(&output, &place.directory.path().join("scratch"), &place.paths, &place.manifest)
        .map_err(|error| error.to_string())
}

#[test]
fn files_are_written_with_mode_and_secret() {
    let place = place();
    let file =
        serde_json::json!({"path": "/run/db/a/b.conf", "content": "x=${secret:admin};${secret:admin}", "mode": "0440"});
    render(&place, &file).unwrap();
    let path = place.directory.path().join("run/db/a/b.conf");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "x=hidden;hidden");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o440);
    render(&place, &serde_json::json!({"path": "/run/db/c", "from": "written"})).unwrap();
    assert_eq!(std::fs::read_to_string(place.directory.path().join("run/db/c")).unwrap(), "by the verb hidden");
    render(&place, &serde_json::json!({"path": "/data/db/e.conf", "content": "e", "owner": "engine"})).unwrap();
    assert!(place.directory.path().join("data/db/e.conf").exists());
}

#[test]
fn wrong_files_are_refused_by_name_without_their_content() {
    let place = place();
    let cases = [
        ("outside", r#"{"path": "/etc/passwd", "content": "x"}"#, "not below /run/db"),
        ("climbing", r#"{"path": "/run/db/../../etc/x", "content": "x"}"#, "not below /run/db"),
        ("the agent's own", r#"{"path": "/run/db/.backlot/x", "content": "x"}"#, "not below /run/db"),
        ("a volume, owner standard", r#"{"path": "/data/db/x", "content": "x"}"#, "need `owner: engine`"),
        ("the stamp", r#"{"path": "/data/.backlot/identity.json", "content": "x", "owner": "engine"}"#, "not below"),
        (
            "a secret on a volume",
            r#"{"path": "/data/db/x", "content": "${secret:admin}", "owner": "engine"}"#,
            "below /run/db only",
        ),
        ("neither content nor from", r#"{"path": "/run/db/x"}"#, "one of `content` and `from`"),
        ("both", r#"{"path": "/run/db/x", "content": "x", "from": "y"}"#, "one of `content` and `from`"),
        (
            "from elsewhere",
            r#"{"path": "/run/db/x", "from": "../run/db/secrets/admin/current"}"#,
            "relative to $DB_SCRATCH",
        ),
        ("from nowhere", r#"{"path": "/run/db/x", "from": "absent"}"#, "No such file"),
        ("bad mode", r#"{"path": "/run/db/x", "content": "x", "mode": "rw"}"#, "mode `rw` is not octal"),
        ("setuid", r#"{"path": "/run/db/x", "content": "x", "mode": "4755"}"#, "mode `4755` is not octal"),
        (
            "unknown secret",
            r#"{"path": "/run/db/x", "content": "${secret:other}"}"#,
            "the secret `other` cannot be read",
        ),
        ("a path as a secret", r#"{"path": "/run/db/x", "content": "${secret:../x}"}"#, "`../x` is no name"),
        ("not closed", r#"{"path": "/run/db/x", "content": "${secret:admin"}"#, "not closed"),
    ];
    for (name, file, expected) in cases {
        let error = render(&place, &serde_json::from_str(file).unwrap()).expect_err(name);
        assert!(error.contains(expected), "{name}: {error}");
        assert!(!error.contains("hidden"), "{name}: {error}");
    }
    let none = RenderOutput::default();
    assert!(put_in_place(&none, Path::new("/"), &place.paths, &place.manifest).is_err());
}
