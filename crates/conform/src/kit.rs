//! What checks work with: one Database of the image under test, a client that writes and verifies, and the ways to disturb it.
//!
//! Invariant: nothing here knows an engine. What is asked of it is in its manifest, what it answers is in the standard's words.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use backlot_api::labels::COMPONENT;
use backlot_api::{Database, DatabaseClass};
use backlot_standard::layout;
use backlot_standard::manifest::Manifest;
use backlot_standard::result::{Exit, VerbResult};
use backlot_standard::verb::Verb;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod, Secret};
use kube::ResourceExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::checks::Stage;
use crate::engine::{Engine, capture};
use crate::machine::LABEL;
use crate::world::{NAMESPACE, World};

/// Name of the Database under test, and of its class.
const NAME: &str = "db";
/// Pause between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(200);
/// Longest time of a call of the workload.
const WORKLOAD: Duration = Duration::from_mins(5);

/// What the image promises: its manifest and the verbs that it has.
#[derive(Clone, Debug)]
pub struct Claims {
    /// The manifest.
    pub manifest: Manifest,
    /// Its verbs.
    pub verbs: Vec<Verb>,
    /// It has a client for tests.
    pub has_workload: bool,
}

impl Claims {
    /// Whether the image has the verb.
    pub fn has(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }
}

/// Answer of a verb that was called by hand.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// Meaning of the exit code.
    pub exit: Exit,
    /// The result.
    pub result: VerbResult,
}

/// What checks work with.
pub struct Kit {
    /// The container engine.
    pub engine: Engine,
    /// The cluster.
    pub world: World,
    /// What the image claims.
    pub claims: Claims,
    /// The image.
    pub image: String,
    /// Longest time that anything is waited for.
    pub patience: Duration,
    /// Records that were acknowledged and must be there.
    pub records: u32,
    /// What could not be set up with a new Database.
    pub broken_stage: Option<Stage>,
    run: String,
}

impl Kit {
    /// A kit for `image` in `world`.
    pub fn new(engine: Engine, world: World, claims: Claims, image: &str, run: &str, patience: Duration) -> Self {
        Self {
            engine,
            world,
            claims,
            image: image.to_owned(),
            patience,
            records: 0,
            broken_stage: None,
            run: run.to_owned(),
        }
    }

    /// Waits until `look` answers something; an error tells what was waited for, and the state of things.
    pub fn wait<T>(&self, what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            if crate::run::is_interrupted() {
                bail!("interrupted");
            }
            if let Some(broken) = self.world.machine(|machine| machine.broken.clone()) {
                bail!("the kit cannot go on: {broken}");
            }
            if let Some(found) = look()? {
                return Ok(found);
            }
            if Instant::now() > end {
                bail!("waited {} s for: {what}. {}", limit.as_secs(), self.story());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Makes the class, and waits until the operator has inspected the image; answers what it refuses.
    pub fn make_class(&self) -> Result<()> {
        let version = &self.claims.manifest.version;
        let class: DatabaseClass = serde_json::from_value(json!({
            "apiVersion": "backlot.dev/v1alpha1", "kind": "DatabaseClass", "metadata": {"name": NAME},
            "spec": {"versions": [{"version": version, "image": "backlot/image-under-test:1"}]},
        }))?;
        self.world.server.create(&class).map_err(|refused| anyhow!("{refused}"))?;
        self.wait("the operator inspects the image", self.patience, || {
            let class: Option<DatabaseClass> = self.world.server.get("", NAME);
            let condition = class.and_then(|class| class.status?.conditions.into_iter().next());
            match condition {
                Some(ready) if ready.status == "True" => Ok(Some(())),
                Some(ready) if ready.reason == "ImageRefused" => {
                    bail!("the operator refuses the image: {}", ready.message)
                }
                _ => Ok(None),
            }
        })
    }

    /// Creates the Database.
    pub fn create(&mut self, members: u32) -> Result<()> {
        self.records = 0;
        self.create_with(&json!({"class": NAME, "members": members, "deletionPolicy": "Delete"}))
    }

    /// Creates the Database with a whole spec.
    pub fn create_with(&self, spec: &Value) -> Result<()> {
        let database: Database = serde_json::from_value(json!({
            "apiVersion": "backlot.dev/v1alpha1", "kind": "Database",
            "metadata": {"name": NAME, "namespace": NAMESPACE}, "spec": spec,
        }))?;
        self.world.server.create(&database).map(drop).map_err(|refused| anyhow!("{refused}"))
    }

    /// Creates the Database with members of components that it may do without.
    pub fn create_with_components(&mut self, members: u32, components: &BTreeMap<String, u32>) -> Result<()> {
        self.records = 0;
        let components: BTreeMap<_, _> =
            components.iter().map(|(name, members)| (name, json!({"members": members}))).collect();
        self.create_with(
            &json!({"class": NAME, "members": members, "deletionPolicy": "Delete", "components": components}),
        )
    }

    /// The Database.
    pub fn database(&self) -> Result<Database> {
        self.world.server.get(NAMESPACE, NAME).context("the Database is gone")
    }

    /// Whether there is a Database.
    pub fn has_database(&self) -> bool {
        self.world.server.get::<Database>(NAMESPACE, NAME).is_some()
    }

    /// Edits the Database's spec.
    pub fn edit(&self, change: impl FnOnce(&mut Database)) -> Result<()> {
        let edited = self.world.server.edit(NAMESPACE, NAME, change).map_err(|refused| anyhow!("{refused}"))?;
        edited.map(drop).context("the Database is gone")
    }

    /// Deletes the Database and waits until it and its pods are gone.
    pub fn delete(&self) -> Result<()> {
        self.world.server.delete::<Database>(NAMESPACE, NAME, None).map_err(|refused| anyhow!("{refused}"))?;
        self.wait("the Database is deleted", self.patience, || {
            Ok((!self.has_database() && self.pods().is_empty()).then_some(()))
        })
    }

    /// Waits until the Database is Ready with so many members.
    pub fn wait_ready(&self, members: u32) -> Result<()> {
        self.wait(&format!("Ready with {members} members"), self.patience, || {
            let database = self.database()?;
            let Some(status) = database.status else { return Ok(None) };
            // An obstacle, such as a restart that the engine does not allow, leaves it Ready and makes it Degraded.
            let is = |kind: &str, wanted: &str| {
                status.conditions.iter().any(|condition| {
                    (condition.type_ == kind && condition.status == wanted)
                        && condition.observed_generation == database.metadata.generation
                })
            };
            let count = u32::try_from(self.pods().len()).unwrap_or(u32::MAX);
            let is_settled = is("Ready", "True") && is("Progressing", "False") && is("Degraded", "False");
            Ok((is_settled && count == members).then_some(()))
        })
    }

    /// Sets the number of members, and waits until it is so.
    pub fn resize(&self, members: u32) -> Result<()> {
        self.edit(|database| database.spec.members = Some(members))?;
        self.wait_ready(members)
    }

    /// The members' pods, by ordinal.
    pub fn pods(&self) -> Vec<Pod> {
        let mut pods: Vec<Pod> = self.world.server.list(NAMESPACE);
        pods.sort_by_key(|pod| {
            let name = pod.name_any();
            let ordinal = name.rsplit('-').next().and_then(|ordinal| ordinal.parse::<u32>().ok());
            (ordinal, name)
        });
        pods
    }

    /// Names of the members.
    pub fn members(&self) -> Vec<String> {
        self.pods().iter().map(kube::ResourceExt::name_any).collect()
    }

    /// Names of the members that applications connect to.
    pub fn bound_members(&self) -> Vec<String> {
        let bound = self.claims.manifest.bound_component();
        let is_bound = |pod: &&Pod| pod.labels().get(COMPONENT).is_some_and(|component| component == bound);
        self.pods().iter().filter(is_bound).map(kube::ResourceExt::name_any).collect()
    }

    /// The last member: the one that leaves first.
    pub fn last(&self) -> Result<String> {
        self.members().pop().context("there is no member")
    }

    /// Kills a member's container; the kubelet starts it again.
    pub fn kill(&self, member: &str) -> Result<()> {
        self.world.machine(|machine| machine.kill(member))
    }

    /// Keeps the containers of these members from being started again, and kills them.
    pub fn hold_down(&self, members: &[String]) -> Result<()> {
        self.world.machine(|machine| {
            machine.held.extend_from_slice(members);
            members.iter().try_for_each(|member| machine.kill(member))
        })
    }

    /// Lets every container be started again.
    pub fn release(&self) {
        self.world.machine(|machine| machine.held.clear());
    }

    /// Deletes pods, as a drain does; the operator makes new ones. Answers when the old ones are gone.
    pub fn delete_pods(&self, members: &[String], grace_seconds: Option<i64>) -> Result<()> {
        let uids: Vec<_> = self.pods().iter().map(|pod| (pod.name_any(), pod.uid())).collect();
        for member in members {
            let deleted = self.world.server.delete::<Pod>(NAMESPACE, member, grace_seconds);
            deleted.map_err(|refused| anyhow!("{refused}"))?;
        }
        self.wait("the pods end and new ones are made", self.patience, || {
            let present = self.pods();
            let replaced = |name: &String| {
                let old = uids.iter().find(|(known, _)| known == name).map(|(_, uid)| uid.clone());
                present.iter().any(|pod| &pod.name_any() == name && Some(pod.uid()) != old)
            };
            Ok(members.iter().all(replaced).then_some(()))
        })
    }

    /// Folders of a member's volumes on this machine.
    pub fn volumes(&self, member: &str) -> Result<Vec<PathBuf>> {
        let pod: Pod = self.world.server.get(NAMESPACE, member).with_context(|| format!("no pod {member}"))?;
        let volumes = pod.spec.into_iter().flat_map(|spec| spec.volumes.unwrap_or_default());
        let claims = volumes.filter_map(|volume| volume.persistent_volume_claim);
        let volume = |claim: String| {
            let claim: Option<PersistentVolumeClaim> = self.world.server.get(NAMESPACE, &claim);
            let name = claim.and_then(|claim| claim.spec?.volume_name).context("a claim is not bound")?;
            Ok(self.world.machine(|machine| machine.volume(&name)))
        };
        claims.map(|claim| volume(claim.claim_name)).collect()
    }

    /// Runs a command in a member's container.
    pub fn exec(&self, member: &str, command: &[&str]) -> Result<String> {
        let container = self.world.machine(|machine| machine.container(member).map(str::to_owned))?;
        self.engine.run(["exec", &container].iter().chain(command))
    }

    /// Calls a verb on a member, as its agent would; `words` are options and `KEY=VALUE` changes of the request.
    pub fn call(&self, member: &str, verb: Verb, words: &[&str]) -> Result<Answer> {
        let mut command = vec![layout::AGENT_BINARY, "call", verb.name(), "--changing"];
        command.extend(words);
        let said = self.exec(member, &command)?;
        let line = said.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("{} on {member} answered: {line}", verb.name()))
    }

    /// As [`Kit::call`], and an error unless the answer is `exit`.
    pub fn expect(&self, exit: Exit, member: &str, verb: Verb, words: &[&str]) -> Result<Answer> {
        let answer = self.call(member, verb, words)?;
        let said = answer.result.error.as_ref().map(|error| format!("{}: {}", error.code, error.message));
        ensure!(
            answer.exit == exit,
            "{} on {member} answers {:?} instead of {exit:?} ({})",
            verb.name(),
            answer.exit,
            said.unwrap_or_else(|| "without an error message".to_owned()),
        );
        Ok(answer)
    }

    /// Output of a verb that answers `done`.
    pub fn output(&self, member: &str, verb: Verb) -> Result<Value> {
        Ok(self.expect(Exit::Done, member, verb, &[])?.result.output.unwrap_or_default())
    }

    /// Writes the records up to `records` through these members; an error unless all are acknowledged.
    pub fn write(&mut self, records: u32) -> Result<()> {
        let hosts = self.hosts(&self.bound_members());
        self.workload("write", records, &hosts, &self.password()?, WORKLOAD).context("writing failed")?;
        self.records = records;
        Ok(())
    }

    /// Writes some records more.
    pub fn write_more(&mut self) -> Result<()> {
        self.write(self.records + 20)
    }

    /// Reads back every acknowledged record.
    pub fn verify(&self) -> Result<()> {
        self.verify_through(&self.bound_members())
    }

    /// How many records are missing when only these members are asked; `None` when they do not answer.
    pub fn missing_through(&self, members: &[String], limit: Duration) -> Result<Option<u64>> {
        let said = self.workload("verify", self.records, &self.hosts(members), &self.password()?, limit);
        let text = match &said {
            Ok(text) => text.clone(),
            Err(error) => error.to_string(),
        };
        let counts = text.split('{').nth(1).and_then(|rest| rest.split('}').next());
        let counts: Option<Value> = counts.and_then(|counts| serde_json::from_str(&format!("{{{counts}}}")).ok());
        Ok(counts.and_then(|counts| counts["missing"].as_u64()))
    }

    /// As [`Kit::verify`], through these members only.
    pub fn verify_through(&self, members: &[String]) -> Result<()> {
        let hosts = self.hosts(members);
        self.workload("verify", self.records, &hosts, &self.password()?, WORKLOAD)
            .map(drop)
            .context("acknowledged records are missing")
    }

    /// Runs the image's workload in a container of its own.
    pub fn workload(&self, mode: &str, records: u32, hosts: &str, password: &str, limit: Duration) -> Result<String> {
        let hosts_file = self.world.machine(|machine| machine.hosts_file());
        let label = format!("{LABEL}={}", self.run);
        let volume = format!("{}:/etc/hosts:ro", hosts_file.display());
        let hosts = format!("WORKLOAD_HOSTS={hosts}");
        let records = records.to_string();
        let container = format!("{}-workload-{:08x}", self.run, rand::random::<u32>());
        let mut arguments =
            vec!["run", "--rm", "--interactive", "--read-only", "--cap-drop=all", "--user", "1234:1234"];
        arguments.extend(self.engine.own_run_options());
        arguments.extend(["--tmpfs", "/tmp", "--env", "HOME=/tmp", "--label", &label, "--network", &self.run]);
        arguments.extend(["--name", &container, "--volume", &volume, "--env", &hosts]);
        arguments.extend(["--entrypoint", "/db/test/workload", &self.image, mode, &records]);
        let mut command = self.engine.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // A workload that wants no password may end before it reads one.
            drop(writeln!(input, "{password}"));
        }
        let (ended, watched) = std::sync::mpsc::channel::<()>();
        let watchdog = {
            let (engine, container) = (self.engine.clone(), container.clone());
            std::thread::spawn(move || {
                if watched.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    drop(engine.run(["kill", "--signal", "KILL", &container]));
                }
            })
        };
        let output = child.wait_with_output()?;
        drop(ended);
        drop(watchdog.join());
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() {
            return Ok(said);
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        let complaint: Vec<&str> = complaint.trim().lines().rev().take(3).collect();
        bail!("workload {mode} {records}: {said} {}", complaint.join(" | "))
    }

    /// Names of members, as the workload wants them.
    pub fn hosts(&self, members: &[String]) -> String {
        let name = |member: &String| {
            let pod: Option<Pod> = self.world.server.get(NAMESPACE, member);
            let subdomain = pod.and_then(|pod| pod.spec?.subdomain).unwrap_or_default();
            format!("{member}.{subdomain}.{NAMESPACE}.svc.{}", crate::world::DOMAIN)
        };
        members.iter().map(name).collect::<Vec<_>>().join(" ")
    }

    /// The application's password; empty when the type has none.
    pub fn password(&self) -> Result<String> {
        let database = self.database()?;
        let status = database.status.context("the Database has no status")?;
        let name = status.binding.context("the Database names no binding Secret")?.name;
        let secret: Secret = self.world.server.get(NAMESPACE, &name).context("the binding Secret is missing")?;
        let password = secret.data.unwrap_or_default().remove("password").map(|value| value.0).unwrap_or_default();
        Ok(String::from_utf8(password)?)
    }

    /// Values of all generated secrets.
    pub fn secret_values(&self) -> Vec<(String, String)> {
        let secrets: Vec<Secret> = self.world.server.list(NAMESPACE);
        let entries = secrets.into_iter().flat_map(|secret| secret.data.unwrap_or_default());
        entries
            .filter_map(|(key, value)| {
                let name = key.strip_prefix("secret.")?.to_owned();
                Some((name, String::from_utf8(value.0).ok()?))
            })
            .collect()
    }

    /// Ends of containers that were asked to stop since the last call: pod, seconds, exit code.
    pub fn take_ends(&self) -> Vec<(String, f64, i32)> {
        self.world.machine(|machine| std::mem::take(&mut machine.ends))
    }

    /// What a person would look at: the Database's conditions, its last events, and what members print.
    pub fn story(&self) -> String {
        let mut story = String::new();
        let database: Option<Database> = self.world.server.get(NAMESPACE, NAME);
        let conditions = database.and_then(|database| database.status).map(|status| status.conditions);
        let telling =
            |kind: &str, status: &str| matches!((kind, status), ("Ready", _) | ("Progressing" | "Degraded", "True"));
        let conditions = conditions.into_iter().flatten();
        for condition in conditions.filter(|condition| telling(&condition.type_, &condition.status)) {
            let (kind, status, reason) = (&condition.type_, &condition.status, &condition.reason);
            let _ = write!(story, "{kind}={status} {reason}: {}. ", condition.message);
        }
        let mut events: Vec<Event> = self.world.server.list(NAMESPACE);
        events.retain(|event| event.type_.as_deref() == Some("Warning"));
        for event in events.iter().rev().take(3) {
            let (reason, message) = (event.reason.as_deref(), event.message.as_deref());
            let _ = write!(story, "[{} {}] ", reason.unwrap_or_default(), message.unwrap_or_default());
        }
        for member in self.members() {
            let log = self.log(&member).unwrap_or_default();
            if let Some(complaint) = log.lines().rev().find_map(complaint) {
                let _ = write!(story, "{member} says: {complaint} ");
            }
        }
        story
    }

    /// What a member's container has printed so far.
    pub fn log(&self, member: &str) -> Result<String> {
        let container = self.world.machine(|machine| machine.container(member).map(str::to_owned))?;
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "exec \"$@\" 2>&1", "sh"]);
        let logs = self.engine.command(["logs", &container]);
        command.arg(logs.get_program()).args(logs.get_args());
        capture(&mut command)
    }

    /// What a container that is gone had printed.
    pub fn saved_log(&self, container: &str) -> Result<String> {
        let folder = self.world.machine(|machine| machine.logs().to_owned());
        let path = folder.join(format!("{container}.log"));
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Host process id of a container's first process.
    pub fn first_process(&self, member: &str) -> Result<i32> {
        let container = self.world.machine(|machine| machine.container(member).map(str::to_owned))?;
        let pid = self.engine.run(["inspect", "--format", "{{.State.Pid}}", &container])?;
        pid.trim().parse().with_context(|| format!("{member} has no process"))
    }
}

/// A line of an agent's log that complains, for people.
pub fn complaint(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    if !matches!(line["level"].as_str(), Some("warn" | "error")) {
        return None;
    }
    let words =
        ["message", "verb", "error", "how", "code", "signal"].map(|field| line[field].as_str().unwrap_or_default());
    Some(words.join(" ").split_whitespace().collect::<Vec<_>>().join(" "))
}
