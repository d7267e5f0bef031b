//! Calling the built kubectl on a cluster.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::layout::Layout;
use super::run::output;

/// kubectl with a kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: Option<PathBuf>,
}

impl Kubectl {
    /// For the administrator of a local cluster.
    pub fn new(layout: &Layout) -> Self {
        Self::with(layout.program("kubectl"), layout.kubeconfig())
    }

    /// With a kubeconfig.
    pub fn with(program: PathBuf, kubeconfig: PathBuf) -> Self {
        Self { program, kubeconfig: Some(kubeconfig) }
    }

    /// With whatever kubeconfig the user has chosen.
    pub fn current(program: PathBuf) -> Self {
        Self { program, kubeconfig: None }
    }

    /// The command, to be completed.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(kubeconfig) = &self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
            // The cluster is on this machine, where no proxy leads.
            command.env("NO_PROXY", "*");
        }
        command.args(arguments);
        command
    }

    /// Runs kubectl and returns what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.command(arguments))
    }

    /// Reads an object or a list.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.run(&all)?).context("read the output of kubectl")
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        use std::io::Write as _;
        let mut child = self
            .command(&["apply", "--server-side", "--force-conflicts", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl")?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(manifest.as_bytes()).context("hand a manifest to kubectl")?;
        }
        let output = child.wait_with_output().context("wait for kubectl")?;
        if !output.status.success() {
            bail!("kubectl apply: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}
