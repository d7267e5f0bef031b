//! The cluster's certificate authority and the identities that it signs, each with a kubeconfig.
//!
//! What exists is kept: a certificate is made once per cluster, valid for ten years.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use super::layout::{API_SERVICE, CONTROL_PLANE, Layout};
use super::run::write;

/// The group that may do everything.
pub const ADMINISTRATORS: &str = "system:masters";

/// A certificate and its key, in files.
#[derive(Debug)]
pub struct Identity {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
}

/// The authority of one cluster.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the authority, or founds it.
    pub fn open(layout: &Layout) -> Result<Self> {
        let directory = layout.certificates();
        let files = identity(&directory, "ca");
        if !files.certificate.exists() {
            let key = KeyPair::generate().context("make the authority's key")?;
            let mut params = params("backlot-development-cluster", None);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages =
                vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
            let certificate = params.self_signed(&key).context("sign the authority's certificate")?;
            store(&files, &certificate.pem(), &key.serialize_pem())?;
        }
        let key = KeyPair::from_pem(&read(&files.key)?).context("read the authority's key")?;
        let issuer =
            Issuer::from_ca_cert_pem(&read(&files.certificate)?, key).context("read the authority's certificate")?;
        Ok(Self { directory, issuer })
    }

    /// The authority's own files.
    pub fn files(&self) -> Identity {
        identity(&self.directory, "ca")
    }

    /// The keys that sign and check service account tokens: private, public.
    pub fn token_keys(&self) -> Result<(PathBuf, PathBuf)> {
        let [private, public] = ["key", "pub"].map(|kind| self.directory.join(format!("service-accounts.{kind}")));
        if !public.exists() {
            let key = KeyPair::generate().context("make the token key")?;
            write(&private, key.serialize_pem())?;
            write(&public, key.public_key_pem())?;
        }
        Ok((private, public))
    }

    /// The API server's certificate.
    pub fn api_server(&self, outside: IpAddr) -> Result<Identity> {
        let mut names: Vec<String> = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
        ]
        .map(String::from)
        .to_vec();
        names.extend([outside.to_string(), CONTROL_PLANE.to_string(), API_SERVICE.to_string(), "127.0.0.1".to_owned()]);
        // The address depends on the slot, which is another one after a restart of the machine.
        self.issue(&format!("kube-apiserver-{outside}"), "kube-apiserver", None, &names)
    }

    /// A kubelet's server certificate.
    pub fn kubelet_server(&self, node: &str, address: IpAddr) -> Result<Identity> {
        self.issue(
            &format!("{node}-server"),
            &format!("system:node:{node}"),
            Some("system:nodes"),
            &[node.to_owned(), address.to_string()],
        )
    }

    /// A client's certificate: `user` in `group`.
    pub fn client(&self, file: &str, user: &str, group: &str) -> Result<Identity> {
        self.issue(file, user, Some(group), &[])
    }

    /// A kubeconfig with a client's certificate in it, and the files that it was made from.
    pub fn kubeconfig(&self, user: &str, group: &str, server: IpAddr) -> Result<PathBuf> {
        let file = user.replace(':', "-");
        let path = self.directory.join(format!("{file}.kubeconfig"));
        let content = self.kubeconfig_text(&file, user, group, server, "backlot")?;
        write(&path, content)?;
        Ok(path)
    }

    /// The text of a kubeconfig. JSON is YAML.
    pub fn kubeconfig_text(
        &self,
        file: &str,
        user: &str,
        group: &str,
        server: IpAddr,
        context: &str,
    ) -> Result<String> {
        let client = self.client(file, user, group)?;
        let embed = |path: &Path| -> Result<String> { Ok(base64(&read(path)?)) };
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": context,
            "clusters": [{"name": context, "cluster": {
                "server": format!("https://{server}:6443"),
                "certificate-authority-data": embed(&self.files().certificate)?,
            }}],
            "users": [{"name": context, "user": {
                "client-certificate-data": embed(&client.certificate)?,
                "client-key-data": embed(&client.key)?,
            }}],
            "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
        });
        Ok(serde_json::to_string_pretty(&config)?)
    }

    fn issue(&self, file: &str, user: &str, group: Option<&str>, names: &[String]) -> Result<Identity> {
        let files = identity(&self.directory, file);
        if files.certificate.exists() {
            return Ok(files);
        }
        let key = KeyPair::generate().with_context(|| format!("make the key of {user}"))?;
        let mut params = params(user, group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !names.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            params.subject_alt_names =
                CertificateParams::new(names.to_vec()).context("names of a certificate")?.subject_alt_names;
        }
        let certificate =
            params.signed_by(&key, &self.issuer).with_context(|| format!("sign the certificate of {user}"))?;
        store(&files, &certificate.pem(), &key.serialize_pem())?;
        Ok(files)
    }
}

fn params(user: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name = name;
    params.not_before = date_time_ymd(2024, 1, 1);
    params.not_after = date_time_ymd(2044, 1, 1);
    params
}

fn identity(directory: &Path, file: &str) -> Identity {
    Identity { certificate: directory.join(format!("{file}.crt")), key: directory.join(format!("{file}.key")) }
}

/// The certificate is written last: where it is, the key is too.
fn store(files: &Identity, certificate: &str, key: &str) -> Result<()> {
    write(&files.key, key)?;
    write(&files.certificate, certificate)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
