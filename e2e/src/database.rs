//! A Database under test and the pod of an application that uses it through its binding.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::kubectl::{Kubectl, wait_for};
use crate::profile::Profile;

/// Longest wait for a change to be done; generous, because the machine also builds.
pub const LIMIT: Duration = Duration::from_mins(15);

/// A Database under test.
#[derive(Clone, Debug)]
pub struct Database {
    /// kubectl in its namespace.
    pub kubectl: Kubectl,
    /// Its name.
    pub name: String,
    /// Its type.
    pub profile: Profile,
}

impl Database {
    /// A Database of a type; nothing is created yet.
    pub fn new(kubectl: &Kubectl, name: &str, profile: &Profile) -> Self {
        Self { kubectl: kubectl.clone(), name: name.to_owned(), profile: profile.clone() }
    }

    /// The object with this many members.
    pub fn manifest(&self, members: u32) -> Value {
        json!({
            "apiVersion": "backlot.dev/v1alpha1",
            "kind": "Database",
            "metadata": {"name": self.name},
            "spec": {
                "class": self.profile.class,
                "members": members,
                "resources": {"memory": self.profile.memory},
                "storage": {"size": "512Mi"},
            },
        })
    }

    /// Creates it with the type's number of members.
    pub fn create(&self) -> Result<()> {
        self.kubectl.apply(&self.manifest(self.profile.members).to_string()).map(drop)
    }

    /// The object as it is.
    pub fn get(&self) -> Result<Value> {
        self.kubectl.get("database", &self.name)?.with_context(|| format!("there is no Database {}", self.name))
    }

    /// Merges into `spec`.
    pub fn edit(&self, spec: &Value) -> Result<()> {
        self.kubectl.patch("database", &self.name, &json!({"spec": spec}))
    }

    /// A condition's `(status, reason, message)` for the present generation; `None` while it is of an older one.
    pub fn condition(&self, kind: &str) -> Result<Option<(String, String, String)>> {
        let object = self.get()?;
        let generation = &object["metadata"]["generation"];
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(conditions
            .iter()
            .find(|condition| condition["type"] == kind && condition["observedGeneration"] == *generation)
            .map(|condition| (text(&condition["status"]), text(&condition["reason"]), text(&condition["message"]))))
    }

    /// Waits until it is Ready with this many members and nothing is in progress.
    pub fn wait_ready(&self, members: u32) -> Result<()> {
        let wait = wait_for(&format!("{} Ready with {members} members", self.name), LIMIT, || {
            let object = self.get()?;
            let is = |kind: &str, status: &str| -> Result<bool> {
                Ok(self.condition(kind)?.is_some_and(|(present, _, _)| present == status))
            };
            let count = object["status"]["readyMembers"] == format!("{members}/{members}");
            // An obstacle, such as a restart that the engine does not allow, leaves it Ready and makes it Degraded.
            let is_done = count && is("Ready", "True")? && is("Progressing", "False")? && is("Degraded", "False")?;
            if is_done { Ok(Some(())) } else { bail!("{}", object["status"]["summary"]) }
        });
        wait.with_context(|| self.story())
    }

    /// Members' names by status.
    pub fn members(&self) -> Result<Vec<String>> {
        let object = self.get()?;
        let groups = object["status"]["groups"].as_array().cloned().unwrap_or_default();
        let members = groups.iter().flat_map(|group| group["members"].as_array().cloned().unwrap_or_default());
        Ok(members.filter_map(|member| member["name"].as_str().map(ToOwned::to_owned)).collect())
    }

    /// The member that takes writes, for types that have one.
    pub fn leader(&self) -> Result<Option<String>> {
        Ok(self.get()?["status"]["leader"].as_str().map(ToOwned::to_owned))
    }

    fn client_name(&self) -> String {
        format!("client-{}", self.name)
    }

    /// Starts the application's pod: the binding Secret is mounted as the Service Binding specification says.
    pub fn start_client(&self, image: &str) -> Result<()> {
        let name = self.client_name();
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "client",
                    "image": image,
                    "command": ["sleep", "infinity"],
                    "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "binding", "mountPath": "/bindings/db", "readOnly": true}, {"name": "tmp", "mountPath": "/tmp"}],
                }],
                "volumes": [
                    {"name": "binding", "secret": {"secretName": format!("{}-binding", self.name)}},
                    {"name": "tmp", "emptyDir": {}},
                ],
            },
        });
        self.kubectl.apply(&pod.to_string())?;
        self.kubectl.run(&["wait", "pod", &name, "--for=condition=Ready", "--timeout=120s"]).map(drop)
    }

    /// Runs the type's client script in the application's pod.
    pub fn client(&self, arguments: &[&str]) -> Result<String> {
        let name = self.client_name();
        let mut all = vec!["exec", "-i", &name, "--", "sh", "-s", "--"];
        all.extend(arguments);
        self.kubectl.run_with(&all, &self.profile.client()?)
    }

    /// Writes records `from` to `to`; repeats while the database is changing hands, as an application would.
    pub fn write(&self, from: u32, to: u32) -> Result<()> {
        self.repeat("write", from, to)
    }

    /// Reads records `from` to `to` back; fails when one is missing or differs.
    pub fn verify(&self, from: u32, to: u32) -> Result<()> {
        self.repeat("verify", from, to)
    }

    fn repeat(&self, verb: &str, from: u32, to: u32) -> Result<()> {
        let (first, last) = (from.to_string(), to.to_string());
        wait_for(&format!("{verb} records {from} to {to} of {}", self.name), Duration::from_mins(1), || {
            self.client(&[verb, &first, &last]).map(|_| Some(()))
        })
    }

    /// Deletes the Database and waits until it and its pods are gone.
    pub fn delete(&self) -> Result<()> {
        self.kubectl.run(&["delete", "database", &self.name, "--wait=true", "--timeout=180s"])?;
        let selector = format!("backlot.dev/database={}", self.name);
        wait_for(&format!("pods of {} gone", self.name), LIMIT, || {
            Ok(self.kubectl.list("pods", &selector)?.is_empty().then_some(()))
        })
    }

    /// What a person would look at when something went wrong.
    pub fn story(&self) -> String {
        let selector = format!("backlot.dev/database={}", self.name);
        let look = |arguments: &[&str]| self.kubectl.run(arguments).unwrap_or_else(|error| error.to_string());
        let mut story = look(&["get", "database", &self.name, "-o", "yaml"]);
        story += &look(&["get", "pods,pvc", "-l", &selector, "-o", "wide"]);
        story += &look(&["get", "events", "--sort-by", ".lastTimestamp"]);
        story += &look(&["logs", "-l", &selector, "-c", "engine", "--tail", "25", "--prefix"]);
        story
    }
}
