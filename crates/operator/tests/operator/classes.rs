//! Inspection of a class's images: one pod for each, which serves the manifest over TLS with the inspection's keys.

use std::sync::Arc;

use backlot_api::DatabaseClass;
use backlot_operator::class::{Inspector, pass};
use backlot_standard::manifest::Elections;
use backlot_testkit::api_server::{ApiServer, Connection};
use backlot_testkit::fake_agent::FakeImage;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{CustomResourceExt, ResourceExt};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::world::{NAMESPACE, from};

/// A class `fake` with one image, and an operator that inspects.
struct Bench {
    server: ApiServer,
    connection: Connection,
    inspector: Inspector,
}

impl Bench {
    fn new() -> Self {
        let server = ApiServer::new();
        server.define(&DatabaseClass::crd()).unwrap();
        let class: DatabaseClass = from(json!({
            "apiVersion": "backlot.dev/v1alpha1",
            "kind": "DatabaseClass",
            "metadata": {"name": "fake"},
            "spec": {"versions": [{"version": "1", "image": "registry.example/fake:1"}]},
        }));
        server.create(&class).unwrap();
        let connection = server.connect();
        let inspector = Inspector {
            client: connection.client(),
            namespace: NAMESPACE.to_owned(),
            agent_image: "registry.example/agent:1".to_owned(),
        };
        Self { server, connection, inspector }
    }

    fn class(&self) -> DatabaseClass {
        self.server.get("", "fake").unwrap()
    }

    /// The class's Ready condition: `(status, reason, message)`.
    fn ready(&self) -> (String, String, String) {
        let ready = self.class().status.unwrap().conditions.remove(0);
        (ready.status, ready.reason, ready.message)
    }

    fn pods(&self) -> Vec<Pod> {
        self.server.list(NAMESPACE)
    }

    async fn pass(&self) {
        pass(&self.inspector, &self.class()).await.unwrap();
    }

    /// The kubelet reports on the only pod.
    fn report(&self, status: Value) {
        let name = self.pods()[0].name_any();
        self.server.edit_status::<Pod>(NAMESPACE, &name, |pod| pod.status = Some(from(status))).unwrap();
    }

    /// The pod runs at this loopback address and answers there.
    async fn serve(&self, address: &str, status: u16, answer: Value) {
        let secret: Secret = self.server.get(NAMESPACE, "backlot-inspection").unwrap();
        let entry = |key: &str| secret.data.as_ref().unwrap()[key].0.clone();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&entry("inspection.crt")).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(&entry("inspection.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((address, 7443)).await.unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let _asked = stream.read(&mut [0; 4096]).await;
                let body = answer.to_string();
                let head =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _gone = stream.write_all(format!("{head}{body}").as_bytes()).await;
                let _gone = stream.shutdown().await;
            }
        });
        self.report(json!({
            "phase": "Running",
            "podIP": address,
            "containerStatuses": [{
                "name": "engine", "image": "registry.example/fake:1", "ready": true, "restartCount": 0,
                "imageID": format!("registry.example/fake@sha256:{}", "a".repeat(64)),
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }],
        }));
    }

    /// Inspects an image that answers this; the class's Ready condition after it.
    async fn judged(address: &str, status: u16, answer: Value) -> (String, String, String) {
        let bench = Self::new();
        bench.pass().await;
        bench.serve(address, status, answer).await;
        bench.pass().await;
        assert_eq!(bench.pods().len(), 0, "the pod is removed: {:?}", bench.ready());
        bench.connection.clear_record();
        bench.pass().await;
        assert_eq!(bench.connection.writes(), vec![], "what is judged is not looked at again");
        bench.ready()
    }
}

fn manifest() -> Value {
    serde_json::to_value(FakeImage::new(Elections::Engine).unwrap().manifest).unwrap()
}

#[tokio::test]
async fn an_image_is_inspected_by_one_pod_that_goes_when_it_has_told() {
    let bench = Bench::new();
    bench.pass().await;
    bench.pass().await;
    assert_eq!(bench.pods().len(), 1, "one pod");
    let ready = bench.ready();
    assert_eq!((ready.0.as_str(), ready.1.as_str()), ("False", "Inspecting"), "{ready:?}");
    bench
        .serve("127.0.71.1", 200, json!({"manifest": manifest(), "verbs": ["render", "health", "role", "join"]}))
        .await;
    bench.pass().await;
    assert_eq!(bench.pods().len(), 0);
    let status = bench.class().status.unwrap();
    assert_eq!(status.engine.as_deref(), Some("fake"));
    assert_eq!(status.versions.len(), 1);
    let pinned = format!("registry.example/fake@sha256:{}", "a".repeat(64));
    assert_eq!(status.versions[0].pinned_image.as_ref(), Some(&pinned));
    assert_eq!(bench.ready().0, "True", "{:?}", bench.ready());
    bench.connection.clear_record();
    bench.pass().await;
    assert_eq!(bench.connection.writes(), vec![]);
}

#[tokio::test]
async fn an_image_without_a_readable_manifest_is_refused_in_its_own_words() {
    let answer = json!({"error": "/db/manifest.yaml: line 3: ports: expected a list"});
    let ready = Bench::judged("127.0.71.2", 422, answer).await;
    assert_eq!(ready.1, "ImageRefused");
    assert!(ready.2.contains("line 3"), "{ready:?}");
}

#[tokio::test]
async fn an_image_of_another_standard_is_refused_with_both_versions() {
    let mut other = manifest();
    other["standard"] = json!("7.0");
    let ready =
        Bench::judged("127.0.71.3", 200, json!({"manifest": other, "verbs": ["render", "health", "role"]})).await;
    assert_eq!(ready.1, "ImageRefused");
    assert!(ready.2.contains("7.0") && ready.2.contains(backlot_standard::STANDARD), "{ready:?}");
}

#[tokio::test]
async fn an_image_without_the_verbs_that_all_must_have_is_refused() {
    let ready = Bench::judged("127.0.71.4", 200, json!({"manifest": manifest(), "verbs": ["render"]})).await;
    assert_eq!(ready.1, "ImageRefused");
    assert!(ready.2.contains("health") && ready.2.contains("role"), "{ready:?}");
}

#[tokio::test]
async fn a_manifest_that_is_none_is_refused() {
    let answer = json!({"manifest": {"standard": "0.1", "engine": 7}, "verbs": ["render", "health", "role"]});
    let ready = Bench::judged("127.0.71.5", 200, answer).await;
    assert_eq!(ready.1, "ImageRefused");
    assert!(ready.2.contains("not valid"), "{ready:?}");
}

#[tokio::test]
async fn a_pod_that_ends_is_told_and_made_again_later() {
    let bench = Bench::new();
    bench.pass().await;
    let ended = json!({"terminated": {"exitCode": 127, "reason": "StartError", "message": "no such file"}});
    bench.report(json!({
        "phase": "Failed",
        "containerStatuses": [{"name": "engine", "image": "x", "imageID": "x", "ready": false, "restartCount": 0, "state": ended}],
    }));
    bench.pass().await;
    let ready = bench.ready();
    assert!(ready.2.contains("127") && ready.2.contains("no such file"), "{ready:?}");
    assert_eq!(bench.pods().len(), 0);
    bench.pass().await;
    assert_eq!(bench.pods().len(), 1, "tried again");
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_is_told() {
    let bench = Bench::new();
    bench.pass().await;
    let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}});
    bench.report(json!({
        "phase": "Pending",
        "containerStatuses": [{"name": "engine", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": waiting}],
    }));
    bench.pass().await;
    let ready = bench.ready();
    assert!(ready.2.contains("ImagePullBackOff not found"), "{ready:?}");
    assert_eq!(bench.pods().len(), 1);
}
