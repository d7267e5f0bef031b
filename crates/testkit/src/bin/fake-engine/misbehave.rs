//! Misbehaviour on demand: from the setting `misbehave`, the file `misbehave` beside the data, or the environment.
//!
//! `VERB:HOW[:TIMES]`, comma-separated; `engine` stands for the engine itself. Invariant: what was not asked for does not happen.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::files::append_line;

/// Longer than any deadline.
const FOREVER: Duration = Duration::from_hours(7 * 24);
/// Size of a result that is far too large: sparse, so that it costs no disk.
const HUGE_BYTES: u64 = 10 * 1024 * 1024 * 1024;

/// What remains to be done after misbehaving.
#[derive(Debug, PartialEq, Eq)]
pub enum Then {
    /// The call goes on.
    GoOn,
    /// The call ends with this exit code.
    End(u8),
}

/// Misbehaves as asked for `name`, a verb's name or `engine`.
pub fn misbehave(name: &str, data: &Path, settings: &str, result: Option<&Path>) -> Then {
    let Some(how) = asked(name, data, settings) else { return Then::GoOn };
    eprintln!("{name} misbehaves: {how}");
    let write = |text: &[u8]| {
        if let Some(result) = result
            && let Err(error) = fs::write(result, text)
        {
            eprintln!("cannot write the result: {error}");
        }
    };
    let error = json!({"code": "Misbehaved", "message": "the fake engine was told to"});
    match how.as_str() {
        "hang" => std::thread::sleep(FOREVER),
        "slow" => {
            std::thread::sleep(Duration::from_secs(3));
            return Then::GoOn;
        }
        "crash" => std::process::abort(),
        "garbage" => write(b"\x00\xff this is no JSON {"),
        "huge" => {
            let sized = result.map(|result| fs::File::create(result).and_then(|file| file.set_len(HUGE_BYTES)));
            if let Some(Err(error)) = sized {
                eprintln!("cannot write the result: {error}");
            }
        }
        "flood" => flood(),
        "orphan" => orphan(),
        "lie" => {}
        "refuse" => {
            let blocker = json!({"object": "queue-1", "reason": "has no other copy", "hint": "add a copy"});
            write(json!({"error": error, "blockers": [blocker]}).to_string().as_bytes());
            return Then::End(22);
        }
        "pending" => {
            write(json!({"progress": {"fraction": 0.5, "note": "half way"}}).to_string().as_bytes());
            return Then::End(10);
        }
        "later" => {
            write(json!({"retry": {"afterSeconds": 1}}).to_string().as_bytes());
            return Then::End(11);
        }
        "fail" | "unknown" => {
            write(json!({ "error": error }).to_string().as_bytes());
            return Then::End(if how == "fail" { 30 } else { 31 });
        }
        other => eprintln!("unknown misbehaviour {other}"),
    }
    Then::End(0)
}

/// The first entry for `name` that is not used up.
fn asked(name: &str, data: &Path, settings: &str) -> Option<String> {
    let file = fs::read_to_string(data.join("misbehave")).unwrap_or_default();
    let variable = std::env::var("FAKE_MISBEHAVE").unwrap_or_default();
    let journal = data.join("misbehaved");
    let done = fs::read_to_string(&journal).unwrap_or_default();
    for entry in [settings, &file, &variable].iter().flat_map(|text| text.split([',', '\n'])).map(str::trim) {
        let parts: Vec<&str> = entry.split(':').collect();
        let (how, limit) = match parts.as_slice() {
            [who, how] if *who == name => (*how, usize::MAX),
            [who, how, times] if *who == name => (*how, times.parse().unwrap_or(1)),
            _ => continue,
        };
        if done.lines().filter(|line| *line == entry).count() < limit {
            // A volume that is full or absent must not hide the misbehaviour.
            let _unwritable = append_line(&journal, entry);
            return Some(how.to_owned());
        }
    }
    None
}

/// Prints until somebody ends it: far more than any log should take.
fn flood() {
    let line = vec![b'x'; 64 * 1024];
    let mut output = io::stdout().lock();
    let mut written = 0;
    while written < HUGE_BYTES && output.write_all(&line).is_ok() {
        written += line.len() as u64;
    }
}

/// Leaves a process behind that nobody waits for.
fn orphan() {
    let itself = std::env::current_exe().unwrap_or_default();
    let child = std::process::Command::new(itself).arg("linger").env("FAKE_MISBEHAVE", "").spawn();
    if let Err(error) = child {
        eprintln!("cannot leave a process behind: {error}");
    }
}

/// What the process that is left behind does.
pub fn linger() {
    std::thread::sleep(FOREVER);
}
