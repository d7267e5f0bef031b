//! The kubelet's readiness probe: HTTPS without looking at the certificate, as Kubernetes does it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use backlot_standard::layout;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

/// Deadline of each step of a probe.
const LIMIT: Duration = Duration::from_secs(1);

/// Asks agents whether their members are ready.
#[derive(Clone, Debug)]
pub struct Probe(Arc<ClientConfig>);

impl Probe {
    /// A probe.
    pub fn new() -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate))
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// Whether the agent at `address` says that its member is ready.
    pub fn is_ready(&self, address: &str) -> bool {
        self.ask(address).is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    fn ask(&self, address: &str) -> Option<String> {
        let address = SocketAddr::new(address.parse().ok()?, layout::AGENT_PORT);
        let stream = TcpStream::connect_timeout(&address, LIMIT).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        stream.set_write_timeout(Some(LIMIT)).ok()?;
        let name = ServerName::try_from("probe.internal").ok()?;
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(&self.0), name).ok()?, stream);
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: probe.internal\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = [0; 64];
        let read = stream.read(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..read]).into_owned())
    }
}

#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
