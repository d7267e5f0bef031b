//! A connection to one agent: HTTP/1.1 over mutual TLS 1.3. Who answers is decided by the name in its certificate, never by
//! the address. Every call has a deadline; a call that fails changes nothing here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, BodyStream, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Deadline of a connection's TCP and TLS handshakes.
const CONNECT: Duration = Duration::from_secs(3);
/// Deadline of a call.
const CALL: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const LONGEST_ANSWER: usize = 4 << 20;
/// Silence on a watch after which it is given up; agents send a line a minute.
const WATCH_SILENCE: Duration = Duration::from_secs(90);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The agent cannot be reached.
    #[error("cannot connect to {address}: {why}")]
    Connect {
        /// Address and port.
        address: String,
        /// Why.
        why: String,
    },
    /// The call broke off or took too long: whether it was carried out is unknown.
    #[error("no answer to {path}: {why}")]
    Lost {
        /// Path of the call.
        path: String,
        /// Why.
        why: String,
    },
    /// The agent refused.
    #[error("{path} refused ({status}): {message}")]
    Refused {
        /// Path of the call.
        path: String,
        /// HTTP status.
        status: u16,
        /// What the agent says.
        message: String,
    },
}

/// TLS identity towards the agents of one cluster.
#[derive(Clone, Debug)]
pub struct Identity {
    config: Arc<rustls::ClientConfig>,
}

impl Identity {
    /// Makes an identity from PEM: CA, own certificate, own key.
    pub fn new(ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, String> {
        let mut roots = rustls::RootCertStore::empty();
        for ca in CertificateDer::pem_slice_iter(ca) {
            roots.add(ca.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
        }
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| error.to_string())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| error.to_string())?;
        Ok(Self { config: Arc::new(config) })
    }
}

/// Where an agent is and who it must be.
#[derive(Clone, Debug)]
pub struct Peer {
    /// `address:port`, bracketed for IPv6.
    pub address: String,
    /// Name that its certificate must carry.
    pub name: String,
    /// Our identity.
    pub identity: Identity,
}

impl Peer {
    async fn open(&self) -> Result<http1::SendRequest<Full<Bytes>>, CallError> {
        let failed = |why: String| CallError::Connect { address: self.address.clone(), why };
        let name = ServerName::try_from(self.name.clone()).map_err(|error| failed(error.to_string()))?;
        let connecting = async {
            let stream = TcpStream::connect(&self.address).await?;
            stream.set_nodelay(true)?;
            tokio_rustls::TlsConnector::from(Arc::clone(&self.identity.config)).connect(name, stream).await
        };
        let stream = timeout(CONNECT, connecting)
            .await
            .map_err(|_| failed("timed out".into()))?
            .map_err(|error| failed(error.to_string()))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.to_string()))?;
        tokio::spawn(async move {
            // The caller sees a broken connection in its own call.
            let _ = connection.await;
        });
        Ok(sender)
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, CallError> {
        let lost = |why: String| CallError::Lost { path: path.to_owned(), why };
        let mut sender = self.open().await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.name)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| lost(error.to_string()))?;
        timeout(CALL, sender.send_request(request))
            .await
            .map_err(|_| lost("timed out".into()))?
            .map_err(|error| lost(error.to_string()))
    }

    /// A call with a JSON answer.
    pub async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, CallError> {
        let lost = |why: String| CallError::Lost { path: path.to_owned(), why };
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let body = timeout(CALL, Limited::new(response.into_body(), LONGEST_ANSWER).collect())
            .await
            .map_err(|_| lost("timed out".into()))?
            .map_err(|error| lost(error.to_string()))?
            .to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| lost(format!("unreadable answer: {error}")));
        }
        let said = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let message = said.and_then(|said| said.get("error")?.as_str().map(ToOwned::to_owned));
        let message = message.unwrap_or_else(|| String::from_utf8_lossy(&body).chars().take(300).collect());
        Err(CallError::Refused { path: path.to_owned(), status: status.as_u16(), message })
    }

    /// Reads JSON lines from `path` until the connection ends or falls silent; calls `take` for each.
    pub async fn watch<T: DeserializeOwned>(&self, path: &str, mut take: impl FnMut(T)) -> CallError {
        let lost = |why: String| CallError::Lost { path: path.to_owned(), why };
        let response = match self.send(Method::GET, path, vec![]).await {
            Ok(response) if response.status().is_success() => response,
            Ok(response) => return lost(format!("status {}", response.status())),
            Err(error) => return error,
        };
        let mut stream = BodyStream::new(response.into_body());
        let mut line = Vec::new();
        loop {
            let frame = match timeout(WATCH_SILENCE, stream.next()).await {
                Err(_) => return lost("silent for too long".into()),
                Ok(None) => return lost("the agent closed the watch".into()),
                Ok(Some(Err(error))) => return lost(error.to_string()),
                Ok(Some(Ok(frame))) => frame,
            };
            for byte in frame.data_ref().into_iter().flatten() {
                if *byte != b'\n' {
                    line.push(*byte);
                } else if !line.is_empty() {
                    match serde_json::from_slice(&line) {
                        Ok(value) => take(value),
                        Err(error) => return lost(format!("unreadable line: {error}")),
                    }
                    line.clear();
                }
            }
            if line.len() > LONGEST_ANSWER {
                return lost("a line is too long".into());
            }
        }
    }
}
