//! kubectl on the cluster under test.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// kubectl from the PATH, with the kubeconfig of the environment, in one namespace.
#[derive(Clone, Debug)]
pub struct Kubectl {
    /// The namespace of all calls.
    pub namespace: String,
}

impl Kubectl {
    /// In this namespace.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(["--namespace", &self.namespace, "--request-timeout", "60s"]).args(arguments);
        command
    }

    /// Runs kubectl with `input` on its standard input; answers its standard output.
    ///
    /// # Errors
    /// When it cannot be run or exits with another code than 0; the text is what it said.
    pub fn run_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl; `eval \"$(cargo xtask cluster env)\"` puts it into the PATH")?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input to the end is judged by its exit code.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            bail!("kubectl {}: {}", arguments.join(" "), format!("{} {}", out.trim(), err.trim()).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs kubectl; answers its standard output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with(arguments, "")
    }

    /// Applies manifests (YAML or JSON).
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.run_with(&["apply", "-f", "-"], manifest)
    }

    /// An object; `None` when there is none.
    pub fn get(&self, kind: &str, name: &str) -> Result<Option<Value>> {
        let text = self.run(&["get", kind, name, "--ignore-not-found", "-o", "json"])?;
        if text.trim().is_empty() { Ok(None) } else { Ok(Some(serde_json::from_str(&text)?)) }
    }

    /// Objects by label selector.
    pub fn list(&self, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let list: Value = serde_json::from_str(&self.run(&["get", kind, "-l", selector, "-o", "json"])?)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Patches an object by a merge patch.
    pub fn patch(&self, kind: &str, name: &str, patch: &Value) -> Result<()> {
        self.run(&["patch", kind, name, "--type", "merge", "-p", &patch.to_string()]).map(drop)
    }

    /// Makes the namespace, with Pod Security *restricted* enforced, if it is not there.
    pub fn make_namespace(&self) -> Result<()> {
        let name = &self.namespace;
        let labels = serde_json::json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let body =
            serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.apply(&body.to_string()).map(drop)
    }

    /// Deletes the namespace with its Databases and all their data: the policy is taken up before anything goes, so that no
    /// volume outlives them.
    ///
    /// # Errors
    /// When it is not gone within some minutes.
    pub fn remove_namespace(&self) -> Result<()> {
        if self.get("namespace", &self.namespace)?.is_none() {
            return Ok(());
        }
        let databases = self.run(&["get", "databases", "-o", "name"])?;
        for database in databases.lines() {
            self.run(&["patch", database, "--type", "merge", "-p", r#"{"spec":{"deletionPolicy":"Delete"}}"#])?;
        }
        for database in databases.lines() {
            wait_for(&format!("deletionPolicy of {database} taken up"), Duration::from_mins(3), || {
                let finalizers = self.run(&["get", database, "-o", "jsonpath={.metadata.finalizers}"])?;
                Ok((!finalizers.is_empty()).then_some(()))
            })?;
        }
        if !databases.trim().is_empty() {
            self.run(&["delete", "databases", "--all", "--timeout=180s"])?;
        }
        self.run(&["delete", "namespace", &self.namespace, "--timeout=180s"]).map(drop)
    }
}

/// Repeats `look` every half second until it answers something or `limit` is over; a failing look is a look without an answer.
///
/// # Errors
/// After `limit`, with what the last look failed with.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    let mut last;
    loop {
        match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => last = String::new(),
            Err(error) => last = format!(" ({error:#})"),
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {} s{last}", limit.as_secs());
        }
        sleep(Duration::from_millis(500));
    }
}
