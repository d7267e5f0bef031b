//! Installs Backlot on a local cluster the way a platform engineer would: images, Helm chart, classes.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use backlot_e2e::kubectl::{Kubectl, wait_for};
use backlot_e2e::profile::{Profile, checkout};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::image;

/// Namespace of the operator.
const NAMESPACE: &str = "backlot-system";

/// Arguments of `install` and `demo`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Name of the local cluster.
    #[arg(long, env = "BACKLOT_CLUSTER", default_value = "dev")]
    pub cluster: String,
    #[command(flatten)]
    pub types: Types,
}

/// Which types a command is about.
#[derive(Args, Clone, Debug)]
pub struct Types {
    /// Only these types; without it those whose tests are quick (images/<type>/test/quick).
    #[arg(long = "type")]
    types: Vec<String>,
    /// Every type.
    #[arg(long, conflicts_with = "types")]
    all_types: bool,
}

impl Types {
    /// These types.
    pub fn of(profiles: &[Profile]) -> Self {
        Self { types: profiles.iter().map(|profile| profile.class.clone()).collect(), all_types: false }
    }

    /// Whether types are chosen by name.
    pub fn are_named(&self) -> bool {
        !self.types.is_empty()
    }

    /// Profiles of the chosen types.
    pub fn profiles(&self) -> Result<Vec<Profile>> {
        let mut all = Profile::all()?;
        if let Some(unknown) = self.types.iter().find(|name| all.iter().all(|profile| profile.class != **name)) {
            bail!("--type {unknown}: there is no images/{unknown}/test/e2e.json");
        }
        all.retain(|profile| match &*self.types {
            [] => self.all_types || profile.is_quick(),
            named => named.contains(&profile.class),
        });
        Ok(all)
    }
}

/// Environment variable that tells a process that starts itself again when it began, in milliseconds since 1970.
const STARTED: &str = "BACKLOT_XTASK_STARTED";

/// When this command began, counted from the first of the processes that carry it out.
pub fn started() -> SystemTime {
    static BEGAN: OnceLock<SystemTime> = OnceLock::new();
    *BEGAN.get_or_init(|| {
        let millis = std::env::var(STARTED).ok().and_then(|millis| millis.parse().ok());
        millis.map_or_else(SystemTime::now, |millis| UNIX_EPOCH + Duration::from_millis(millis))
    })
}

/// Runs `work` with kubectl, helm and kubeconfig of the cluster in the environment: the process starts itself again with it.
pub fn with_cluster(cluster: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    if let Ok(provider) = std::env::var("CLUSTER")
        && provider != "local"
    {
        bail!(
            "CLUSTER={provider}: images are loaded into local clusters only. Push them to your registry (cargo xtask image build --all), then helm install backlot deploy/chart with image.repository and classes set"
        );
    }
    let program = std::env::current_exe()?;
    let output = Command::new(&program).args(["cluster", "--name", cluster, "env"]).output()?;
    if !output.status.success() {
        bail!("cluster {cluster}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let exports = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    let mut variables: Vec<(String, String)> = exports.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let path = std::env::var("PATH").unwrap_or_default();
    for (_, value) in &mut variables {
        *value = value.replace("$PATH", &path);
    }
    let kubeconfig = variables.iter().find(|(key, _)| key == "KUBECONFIG").map(|(_, value)| value.clone());
    let kubeconfig = kubeconfig.context("cluster env names no KUBECONFIG")?;
    let is_ready = std::env::var("KUBECONFIG").is_ok_and(|present| present == kubeconfig)
        && path.contains(&format!("clusters/{cluster}/bin"));
    if is_ready {
        return work();
    }
    let began = started().duration_since(UNIX_EPOCH)?.as_millis().to_string();
    let mut again = Command::new(program);
    again.args(std::env::args_os().skip(1)).envs(variables).env("NO_PROXY", "*").env(STARTED, began);
    let status = again.status()?;
    std::process::exit(status.code().unwrap_or(1));
}

/// Builds what is missing, loads it into the cluster, installs the chart, waits until every class is usable.
pub fn run(arguments: &Arguments) -> Result<()> {
    with_cluster(&arguments.cluster, || install(arguments))
}

/// The image of the client pods, pinned.
pub fn client_image() -> Result<String> {
    Ok(image::build(&image::Store::open()?, "client")?.pinned())
}

pub(crate) fn install(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    let profiles = arguments.types.profiles()?;
    let store = image::Store::open()?;
    let mut classes = Map::new();
    for profile in &profiles {
        let built = image::load(&store, &arguments.cluster, &profile.class)?;
        classes.insert(profile.class.clone(), json!([{"version": built.version, "image": built.pinned()}]));
    }
    let client = image::load(&store, &arguments.cluster, "client")?;
    let operator = image::load(&store, &arguments.cluster, "operator")?;
    let values = json!({
        "image": {"repository": operator.repository(), "digest": operator.digest},
        "classes": classes,
    });
    helm(&values)?;
    let kubectl = Kubectl::new(NAMESPACE);
    kubectl.run(&["rollout", "status", "deployment/backlot-operator", "--timeout=180s"])?;
    for profile in &profiles {
        wait_for(&format!("class {} Ready", profile.class), Duration::from_mins(3), || {
            let class = kubectl.get("databaseclass", &profile.class)?.unwrap_or_default();
            let conditions = class["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let current =
                conditions.iter().find(|condition| condition["observedGeneration"] == class["metadata"]["generation"]);
            match current {
                Some(condition) if condition["status"] == "True" => Ok(Some(())),
                Some(condition) => bail!("{}", condition["message"]),
                None => Ok(None),
            }
        })?;
    }
    eprintln!(
        "installed on cluster {} in {:.0} s; client image {}",
        arguments.cluster,
        start.elapsed().as_secs_f64(),
        client.pinned()
    );
    Ok(())
}

fn helm(values: &Value) -> Result<()> {
    let kubectl = Kubectl::new(NAMESPACE);
    kubectl.make_namespace()?;
    let chart: PathBuf = checkout().join("deploy/chart");
    // Helm installs CRDs once and never upgrades them; here they follow the checkout.
    kubectl.run(&["apply", "--server-side", "--force-conflicts", "-f", &chart.join("crds").display().to_string()])?;
    let file = std::env::temp_dir().join(format!("backlot-values-{}.json", std::process::id()));
    std::fs::write(&file, values.to_string())?;
    let status = Command::new("helm")
        .args(["upgrade", "--install", "backlot"])
        .arg(&chart)
        .args(["--namespace", NAMESPACE, "--skip-crds", "--values"])
        .arg(&file)
        .stdout(std::process::Stdio::null())
        .status()
        .context("start helm")?;
    std::fs::remove_file(&file)?;
    if !status.success() {
        bail!("helm ended with {status}");
    }
    Ok(())
}
