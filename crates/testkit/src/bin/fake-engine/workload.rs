//! `/db/test/workload`: acknowledged writes of an application, and their check.
//!
//! Invariant: a record counts as acknowledged only by the leader's word; one without an answer is written again.

use std::collections::BTreeMap;
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
    let mut session = Session { secret, servers: servers() };
    let mut counts = BTreeMap::new();
    for number in 1..=count {
        *counts.entry(session.record(mode, number)).or_insert(0_u64) += 1;
    }
    let count_of = |outcome| counts.get(&outcome).copied().unwrap_or(0);
    let (done, unknown) = (count_of(Outcome::Done), count_of(Outcome::Unknown));
    let report = if mode == "write" {
        json!({"acknowledged": done, "failed": 0, "unknown": unknown})
    } else {
        json!({"found": done, "missing": count_of(Outcome::Missing), "unknown": unknown})
    };
    println!("{report}");
    if done == count { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Done,
    Missing,
    Unknown,
}

struct Session {
    secret: String,
    /// Those that answered last first: a member that is away costs its silence once.
    servers: Vec<String>,
}

impl Session {
    /// Writes or checks one record on whatever server takes it.
    fn record(&mut self, mode: &str, number: u64) -> Outcome {
        let started = Instant::now();
        let (command, wanted) = match mode {
            "write" => (format!("SET record-{number} {number}"), "OK ".to_owned()),
            _ => (format!("GET record-{number}"), format!("VALUE {number}")),
        };
        loop {
            let mut outcome = Outcome::Unknown;
            for index in 0..self.servers.len() {
                match client::ask(&self.servers[index], &self.secret, &command) {
                    Ok(answer) if answer.starts_with(&wanted) => {
                        self.servers.swap(0, index);
                        return Outcome::Done;
                    }
                    Ok(answer) if !answer.starts_with("ERR") => outcome = Outcome::Missing,
                    _ => {}
                }
            }
            if mode != "write" || started.elapsed() > PATIENCE {
                return outcome;
            }
            std::thread::sleep(PAUSE);
        }
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
