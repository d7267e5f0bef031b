//! Mutual TLS 1.3: who may speak to this agent, and how it proves who it is.
//!
//! Invariants: a client certificate counts only if the cluster's CA signed it; who it speaks for is its DNS name, never
//! an address; dates of certificates are not looked at, so that an expired certificate can never cut a member off.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backlot_standard::layout::names;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The operator of this cluster.
    Operator,
    /// A member of this cluster.
    Member(String),
    /// No certificate, or a name that means nothing here.
    Nobody,
}

/// The member's identity and whom it trusts, as last read from the projected files.
#[derive(Clone)]
pub struct Identity {
    /// Configuration for new connections.
    pub config: Arc<ServerConfig>,
    /// Ed25519 public keys of the CA certificates, for the signatures of views.
    pub ca_keys: Vec<Vec<u8>>,
    files: Vec<FileState>,
    directory: PathBuf,
}

type FileState = Option<(u64, std::time::SystemTime, u64)>;

/// Why the identity cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct IdentityError {
    file: String,
    problem: String,
}

impl Identity {
    /// Reads `ca.crt`, `tls.crt` and `tls.key` from `directory`.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        let error =
            |file: &str, problem: String| IdentityError { file: directory.join(file).display().to_string(), problem };
        let files = file_states(directory);
        let authorities = certificates(&directory.join("ca.crt")).map_err(|problem| error("ca.crt", problem))?;
        let chain = certificates(&directory.join("tls.crt")).map_err(|problem| error("tls.crt", problem))?;
        let key = PrivateKeyDer::from_pem_file(directory.join("tls.key"))
            .map_err(|problem| error("tls.key", problem.to_string()))?;
        let mut roots = RootCertStore::empty();
        let mut ca_keys = vec![];
        for authority in authorities {
            ca_keys.push(public_key(&authority).map_err(|problem| error("ca.crt", problem))?);
            roots.add(authority).map_err(|problem| error("ca.crt", problem.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|problem| error("ca.crt", problem.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|problem| error("tls.crt", problem.to_string()))?
            .with_client_cert_verifier(Arc::new(AnyDate { inner }))
            .with_single_cert(chain, key)
            .map_err(|problem| error("tls.crt", problem.to_string()))?;
        // Few, long connections: tickets and caches would only cost memory.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), ca_keys, files, directory: directory.to_owned() })
    }

    /// The identity of the files as they are now: `None` when they are unchanged.
    pub fn reload(&self) -> Option<Result<Self, IdentityError>> {
        (file_states(&self.directory) != self.files).then(|| Self::load(&self.directory))
    }
}

/// Who presented these certificates.
pub fn peer(certificates: Option<&[CertificateDer<'_>]>, cluster_uid: &str) -> Peer {
    let Some(leaf) = certificates.and_then(<[_]>::first) else { return Peer::Nobody };
    let names = dns_names(leaf);
    if names.contains(&names::operator(cluster_uid)) {
        return Peer::Operator;
    }
    let suffix = names::member("", cluster_uid);
    match names.iter().find_map(|name| name.strip_suffix(&suffix)) {
        Some(member) if !member.is_empty() && !member.contains('.') => Peer::Member(member.to_owned()),
        _ => Peer::Nobody,
    }
}

fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return vec![] };
    let Ok(Some(extension)) = parsed.subject_alternative_name() else { return vec![] };
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    extension.value.general_names.iter().filter_map(dns).collect()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| error.to_string())?;
    if found.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(found) }
}

fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let key = parsed.public_key().subject_public_key.data.to_vec();
    if key.len() == 32 { Ok(key) } else { Err("the CA's key is no Ed25519 key".to_owned()) }
}

/// Identity of the files' content: the projected files are replaced as a whole, so inode and time tell.
fn file_states(directory: &Path) -> Vec<FileState> {
    let state = |name: &&str| {
        let metadata = std::fs::metadata(directory.join(name)).ok()?;
        Some((std::os::unix::fs::MetadataExt::ino(&metadata), metadata.modified().ok()?, metadata.len()))
    };
    ["ca.crt", "tls.crt", "tls.key"].iter().map(state).collect()
}

/// Checks everything about a client certificate but its dates.
#[derive(Debug)]
struct AnyDate {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for AnyDate {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // The chain is leaf and CA; at the leaf's first second its dates are right whatever the clocks say.
        let (_, parsed) =
            X509Certificate::from_der(end_entity).map_err(|_| rustls::Error::from(CertificateError::BadEncoding))?;
        let first = u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or(0);
        let then = UnixTime::since_unix_epoch(Duration::from_secs(first));
        self.inner.verify_client_cert(end_entity, intermediates, then)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
