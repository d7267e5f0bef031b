//! The in-memory API server against a real one: the same seeded random requests to both, answers compared.
//!
//! Runs when `BACKLOT_KUBECONFIG` names a kubeconfig; a mismatch is a failure of the in-memory server. `BACKLOT_SEED=N` repeats
//! one sequence, `BACKLOT_SEEDS=N` sets how many there are, `BACKLOT_TRACE=1` prints
//! every request.

mod compare;
mod generate;
mod kinds;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use backlot_testkit::api_server::ApiServer;
use compare::Differences;
use generate::{Generator, Request, Side};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Sequences when nothing else is asked for.
const SEEDS: u64 = 40;
/// Requests of one sequence.
const REQUESTS: u32 = 120;
/// Mismatches after which there is no point in going on.
const ENOUGH: usize = 6;

fn main() -> ExitCode {
    let Ok(kubeconfig) = std::env::var("BACKLOT_KUBECONFIG") else {
        println!("api_server_conformance: skipped: BACKLOT_KUBECONFIG is not set");
        return ExitCode::SUCCESS;
    };
    let outcome = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::from);
    match outcome.and_then(|runtime| runtime.block_on(run(&kubeconfig))) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(mismatches) => {
            println!("api_server_conformance: {mismatches} sequences differ");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("api_server_conformance: cannot run: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(kubeconfig: &str) -> Result<usize, Error> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let real = Client::try_from(Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?)?;
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("BACKLOT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("BACKLOT_SEEDS").unwrap_or(SEEDS),
    };
    let started = Instant::now();
    let total = seeds.end - seeds.start;
    define_things(&real).await?;
    let mut mismatches = 0;
    for seed in seeds {
        let differs = sequence(&real, seed).await?;
        mismatches += usize::from(differs);
        if mismatches == ENOUGH {
            break;
        }
    }
    println!(
        "api_server_conformance: {total} sequences of {REQUESTS} requests compared in {:.1} s, {mismatches} differ",
        started.elapsed().as_secs_f32()
    );
    Ok(mismatches)
}

/// One sequence in a namespace of its own; whether the servers differed.
async fn sequence(real: &Client, seed: u64) -> Result<bool, Error> {
    let memory = ApiServer::new();
    let ours = memory.client();
    define_things(&ours).await?;
    let namespace = format!("conformance-{seed}-{}", std::process::id());
    for client in [real, &ours] {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        send(client, "POST", "/api/v1/namespaces", "application/json", &body).await?;
    }
    wait_for_account(real, &namespace).await?;
    let mut generator = Generator::new(seed, &namespace);
    let mut differs = false;
    for step in 0..REQUESTS {
        let request = generator.next();
        let (mut expected, mut found) =
            (ask(real, &request, Side::Real).await?, ask(&ours, &request, Side::Memory).await?);
        if std::env::var("BACKLOT_TRACE").is_ok() {
            println!("{step}: {}\n  {} {}", request.describe(), expected.0, expected.1);
        }
        if request.path.contains("dryRun") {
            for answer in [&mut expected.1, &mut found.1] {
                if let Some(metadata) = answer["metadata"].as_object_mut() {
                    metadata.remove("resourceVersion");
                }
            }
        }
        let differences = Differences::between(&expected, &found, &generator.before(&request));
        if !differences.0.is_empty() {
            println!("seed {seed}, request {step}: {}", request.describe());
            println!("{differences}");
            differs = true;
            break;
        }
        generator.learn(&request, &expected.1, &found.1);
    }
    send(real, "DELETE", &format!("/api/v1/namespaces/{namespace}"), "application/json", &Value::Null).await?;
    Ok(differs)
}

async fn ask(client: &Client, request: &Request, side: Side) -> Result<(u16, Value), Error> {
    send(client, request.method, &request.path, request.content_type, &request.body(side)).await
}

async fn send(
    client: &Client,
    method: &str,
    path: &str,
    content_type: &str,
    body: &Value,
) -> Result<(u16, Value), Error> {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string().into_bytes()) };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content_type)
        .header("accept", "application/json")
        .header("user-agent", "conformance/1")
        .body(body)?;
    let response = client.send(request).await?;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect_bytes().await?;
    // A path that is not served yet answers plain text.
    let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
    Ok((status, serde_json::from_slice(&bytes).unwrap_or_else(|_| text())))
}

/// A custom resource with every kind of list, defaults, limits, status and scale.
async fn define_things(client: &Client) -> Result<(), Error> {
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/things.conformance.backlot.dev";
    let (status, answer) = send(
        client,
        "PATCH",
        &format!("{path}?fieldManager=conformance&force=true"),
        "application/apply-patch+yaml",
        &kinds::definition(),
    )
    .await?;
    if status >= 300 {
        return Err(format!("cannot define the custom resource: {answer}").into());
    }
    for _ in 0..100 {
        let (status, _) =
            send(client, "GET", "/apis/conformance.backlot.dev/v1/things", "application/json", &Value::Null).await?;
        if status == 200 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err("the custom resource is not served".into())
}

/// Pods are refused before the namespace's service account is there.
async fn wait_for_account(client: &Client, namespace: &str) -> Result<(), Error> {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
    for _ in 0..100 {
        if send(client, "GET", &path, "application/json", &Value::Null).await?.0 == 200 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err("no service account appears".into())
}
