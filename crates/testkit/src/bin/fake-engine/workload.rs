//! `/db/test/workload`: acknowledged writes of an application, and their check.
//!
//! Invariant: a record counts as acknowledged only by the leader's word; one without an answer is written again.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;

use super::client;

/// Longest time of one call.
const PATIENCE: Duration = Duration::from_mins(1);
/// Pause before a write is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs `write N` or `verify N`.
pub fn run(arguments: &[&str]) -> ExitCode {
    let (mode, count) = match arguments {
        [mode @ ("write" | "verify"), count] => (*mode, count.parse::<u64>().ok()),
        _ => ("", None),
    };
    let Some(count) = count else {
        eprintln!("usage: workload write N | verify N");
        return ExitCode::from(2);
    };
    let secret = match secret() {
        Ok(secret) => secret,
        Err(error) => {
            eprintln!("cannot read the password: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = (1..=count).filter(|number| record(mode, &secret, *number)).count() as u64;
    let report = if mode == "write" {
        json!({"acknowledged": done, "failed": 0, "unknown": count - done})
    } else {
        json!({"found": done, "missing": count - done})
    };
    println!("{report}");
    if done == count { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Writes or checks one record on whatever server takes it.
fn record(mode: &str, secret: &str, number: u64) -> bool {
    let started = Instant::now();
    let (command, wanted) = match mode {
        "write" => (format!("SET record-{number} {number}"), "OK ".to_owned()),
        _ => (format!("GET record-{number}"), format!("VALUE {number}")),
    };
    loop {
        let taken = servers()
            .iter()
            .any(|server| client::ask(server, secret, &command).is_ok_and(|answer| answer.starts_with(&wanted)));
        if taken || mode != "write" || started.elapsed() > PATIENCE {
            return taken;
        }
        std::thread::sleep(PAUSE);
    }
}

fn servers() -> Vec<String> {
    let hosts = std::env::var("WORKLOAD_HOSTS").unwrap_or_else(|_| "127.0.0.1".to_owned());
    hosts.split_whitespace().map(|host| format!("{host}:7000")).collect()
}

fn secret() -> io::Result<String> {
    match std::env::var_os("DB_SECRETS").map(PathBuf::from) {
        Some(folder) => std::fs::read_to_string(folder.join("admin/current")).map(|text| text.trim().to_owned()),
        None => super::password(),
    }
}
