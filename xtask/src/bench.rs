//! Numbers, as commands: `cargo xtask bench skeleton`. They are printed, never asserted: machines are shared and noisy.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use backlot_e2e::database::Database;
use backlot_e2e::kubectl::Kubectl;
use backlot_e2e::profile::{Profile, checkout};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::install::{self, with_cluster};

/// Arguments of `bench`.
#[derive(Args, Clone, Debug)]
// The group of `install`'s arguments, which are flattened in, has the type's name already.
#[group(id = "bench")]
pub struct Arguments {
    /// What to measure.
    suite: Suite,
    #[command(flatten)]
    install: install::Arguments,
    /// Seconds of the idle measurement.
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Suite {
    /// Objects, API requests, memory, sizes, time to Ready.
    Skeleton,
}

/// Namespace of the measured Databases.
const NAMESPACE: &str = "bench";
/// Kinds whose objects a Database owns, one way or another.
const KINDS: &[&str] = &[
    "pods",
    "persistentvolumeclaims",
    "secrets",
    "services",
    "endpointslices",
    "poddisruptionbudgets",
    "configmaps",
    "serviceaccounts",
];

/// Runs a suite on a local cluster, which must be up; it installs the operator first.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Suite::Skeleton = arguments.suite;
    with_cluster(&arguments.install.cluster, || {
        install::install(&arguments.install)?;
        let kubectl = Kubectl::new(NAMESPACE);
        kubectl.make_namespace()?;
        for profile in arguments.install.types.profiles()? {
            creation(&kubectl, &profile)?;
        }
        idle(arguments.idle_seconds)?;
        memory()?;
        sizes()?;
        kubectl.remove_namespace()
    })
}

/// Creates one Database and prints what that took and made.
fn creation(kubectl: &Kubectl, profile: &Profile) -> Result<()> {
    let database = Database::new(kubectl, &format!("db-{}", profile.class), profile);
    let (before, others) = (requests()?, objects(kubectl)?);
    let start = Instant::now();
    database.create()?;
    database.wait_ready(profile.members)?;
    let took = start.elapsed().as_secs_f64();
    // Late writes, such as the last status, belong to the creation.
    sleep(Duration::from_secs(5));
    let after = requests()?;
    let now = objects(kubectl)?;
    let made: BTreeMap<_, _> = now
        .iter()
        .map(|(kind, count)| (kind.clone(), count.saturating_sub(others.get(kind).copied().unwrap_or(0))))
        .filter(|(_, count)| *count > 0)
        .collect();
    let delta = |methods: &[&str]| -> u64 { methods.iter().map(|method| gained(&after, &before, method)).sum() };
    println!("{}: apply → {} of {} Ready {took:.1} s", profile.class, profile.members, profile.members);
    println!("  objects {:?}, {} in all", made, made.values().sum::<usize>());
    println!(
        "  operator's API writes {} (create {}, patch {}, status {}, delete {}), reads {}",
        delta(&["POST", "PATCH", "PUT", "DELETE"]),
        delta(&["POST"]),
        delta(&["PATCH"]),
        delta(&["PUT"]),
        delta(&["DELETE"]),
        delta(&["GET"]),
    );
    println!("  engine alone: {}", bare_start(kubectl, &database)?);
    Ok(())
}

/// How long the founder's engine took from its start until it answered, by the agent's own log.
fn bare_start(kubectl: &Kubectl, database: &Database) -> Result<String> {
    let mut shortest: Option<f64> = None;
    for member in database.members()? {
        let log = kubectl.run(&["logs", &member, "-c", "engine"])?;
        for line in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            if let Some(millis) = line["startMillis"].as_str().and_then(|millis| millis.parse::<f64>().ok()) {
                shortest = Some(shortest.map_or(millis, |known: f64| known.min(millis)));
            }
        }
    }
    Ok(shortest
        .map_or("not logged".to_owned(), |millis| format!("{:.1} s from its start until it answered", millis / 1000.0)))
}

fn objects(kubectl: &Kubectl) -> Result<BTreeMap<String, usize>> {
    KINDS
        .iter()
        .map(|kind| Ok(((*kind).to_owned(), kubectl.run(&["get", kind, "-o", "name"])?.lines().count())))
        .collect()
}

/// Requests of all operator replicas so far, by method; watches apart.
fn requests() -> Result<BTreeMap<String, u64>> {
    let operator = Kubectl::new("backlot-system");
    let pods = operator.list("pods", "app.kubernetes.io/name=backlot-operator")?;
    let mut counts = BTreeMap::new();
    for pod in pods {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/backlot-system/pods/{name}:8080/proxy/metrics");
        for line in operator
            .run(&["get", "--raw", &path])?
            .lines()
            .filter(|line| line.starts_with("backlot_api_requests_total{"))
        {
            let method = line.split("method=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
            let key = if line.contains("watch=\"true\"") { "WATCH" } else { method };
            let count: u64 = line.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or_default();
            *counts.entry(key.to_owned()).or_insert(0) += count;
        }
    }
    Ok(counts)
}

/// Requests of this method since `before`; a replica that restarted in between begins at 0.
fn gained(after: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>, method: &str) -> u64 {
    after.get(method).unwrap_or(&0).saturating_sub(*before.get(method).unwrap_or(&0))
}

fn idle(seconds: u64) -> Result<()> {
    let before = requests()?;
    sleep(Duration::from_secs(seconds));
    let after = requests()?;
    let per_minute: BTreeMap<_, _> = after
        .keys()
        .map(|method| (method.clone(), gained(&after, &before, method) * 60 / seconds))
        .filter(|(_, count)| *count > 0)
        .collect();
    println!("idle: the operator's API requests per minute, all replicas, {seconds} s: {per_minute:?}");
    Ok(())
}

/// Resident memory of operator and agents, from this machine's process table: the local cluster's nodes share it.
fn memory() -> Result<()> {
    let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<_> =
            command.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let program =
            words.first().map(|word| word.rsplit('/').next().unwrap_or_default().to_owned()).unwrap_or_default();
        let name = match program.as_str() {
            "backlot-operator" => "operator".to_owned(),
            "backlot-agent" => format!("agent {}", words.get(1).cloned().unwrap_or_default()),
            _ => continue,
        };
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let kib =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse::<u64>().ok());
        found.entry(name).or_default().extend(kib);
    }
    for (name, mut kib) in found {
        kib.sort_unstable();
        let median = kib[kib.len() / 2];
        println!(
            "memory: {name}: {} processes, resident median {median} KiB, largest {} KiB",
            kib.len(),
            kib[kib.len() - 1]
        );
    }
    Ok(())
}

fn sizes() -> Result<()> {
    let folder = checkout().join("target/static");
    let triple = fs::read_dir(&folder)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.join("release/backlot-agent").exists());
    let folder = triple.context("no static build")?.join("release");
    for name in ["backlot-operator", "backlot-agent"] {
        let bytes = fs::metadata(folder.join(name))?.len();
        println!("size: {name} {}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000);
    }
    Ok(())
}
