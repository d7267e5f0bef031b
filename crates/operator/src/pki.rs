//! Keys, certificates, passwords and signatures of a cluster.
//!
//! Each Database has a CA of its own. Certificates carry wide dates on purpose: trust is the CA and the name in the
//! certificate, and an expired date must never depose every leader at once.

use std::collections::BTreeMap;

use backlot_core::build::SecretOrder;
use backlot_standard::layout::names;
use backlot_standard::view::SignedView;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rand::Rng as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SigningKey as _, date_time_ymd,
};

/// Keys of the entries in the cluster's Secret.
pub const CA_CERTIFICATE: &str = "ca.crt";
/// Private key of the CA; never mounted into a pod.
pub const CA_KEY: &str = "ca.key";

/// Why keys could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The library refused.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// An entry of the Secret is missing or unreadable.
    #[error("entry {0} of the cluster's Secret is missing or unreadable")]
    Entry(&'static str),
}

fn params(name: &str, dns: &[String]) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(dns.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    Ok(params)
}

/// A CA: certificate and key in PEM.
fn new_ca(cluster_uid: &str) -> Result<(String, String), PkiError> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = params(&format!("backlot {cluster_uid}"), &[])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn issue(ca_certificate: &str, ca_key: &str, name: &str) -> Result<(String, String), PkiError> {
    let issuer = Issuer::from_ca_cert_pem(ca_certificate, KeyPair::from_pem(ca_key)?)?;
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = params(name.split('.').next().unwrap_or(name), &[name.to_owned()])?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
}

/// Generates what `order` asks for; `present` holds the Secret's entries. Answers only new entries.
pub fn fill(order: &SecretOrder, present: &BTreeMap<String, Vec<u8>>) -> Result<BTreeMap<String, Vec<u8>>, PkiError> {
    let mut entries = BTreeMap::new();
    let (ca_certificate, ca_key) = if order.is_new {
        let (certificate, key) = new_ca(&order.cluster_uid)?;
        entries.insert(CA_CERTIFICATE.to_owned(), certificate.clone().into_bytes());
        entries.insert(CA_KEY.to_owned(), key.clone().into_bytes());
        let (operator, operator_key) = issue(&certificate, &key, &names::operator(&order.cluster_uid))?;
        entries.insert("operator.crt".to_owned(), operator.into_bytes());
        entries.insert("operator.key".to_owned(), operator_key.into_bytes());
        (certificate, key)
    } else {
        (text(present, CA_CERTIFICATE)?, text(present, CA_KEY)?)
    };
    for member in &order.members {
        let (certificate, key) = issue(&ca_certificate, &ca_key, &names::member(member, &order.cluster_uid))?;
        entries.insert(format!("{member}.crt"), certificate.into_bytes());
        entries.insert(format!("{member}.key"), key.into_bytes());
    }
    for (name, length) in &order.passwords {
        entries.insert(format!("secret.{name}"), password(*length).into_bytes());
    }
    Ok(entries)
}

fn text(entries: &BTreeMap<String, Vec<u8>>, key: &'static str) -> Result<String, PkiError> {
    entries.get(key).and_then(|value| String::from_utf8(value.clone()).ok()).ok_or(PkiError::Entry(key))
}

fn password(length: u32) -> String {
    let mut rng = rand::rng();
    (0..length).map(|_| char::from(rng.sample(rand::distr::Alphanumeric))).collect()
}

/// Signs a view with the cluster's key.
pub fn sign(payload: String, ca_key: &str) -> Result<SignedView, PkiError> {
    let signature = KeyPair::from_pem(ca_key)?.sign(payload.as_bytes())?;
    Ok(SignedView { signature: BASE64.encode(signature), payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_secret_holds_every_entry_and_a_later_order_only_adds() {
        let mut order = SecretOrder {
            name: "orders-cluster".into(),
            cluster_uid: "uid-1".into(),
            is_new: true,
            members: vec!["orders-0".into()],
            labels: serde_json::Value::Null,
            passwords: BTreeMap::from([("app".to_owned(), 24)]),
        };
        let first = fill(&order, &BTreeMap::new()).unwrap();
        let keys: Vec<_> = first.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            ["ca.crt", "ca.key", "operator.crt", "operator.key", "orders-0.crt", "orders-0.key", "secret.app"]
        );
        assert_eq!(first["secret.app"].len(), 24);
        order.is_new = false;
        order.members = vec!["orders-1".into()];
        order.passwords.clear();
        let second = fill(&order, &first).unwrap();
        assert_eq!(second.keys().collect::<Vec<_>>(), ["orders-1.crt", "orders-1.key"]);
    }

    #[test]
    fn a_secret_without_its_ca_is_an_error_and_not_a_new_ca() {
        let order = SecretOrder {
            name: "x".into(),
            cluster_uid: "u".into(),
            is_new: false,
            members: vec!["x-0".into()],
            labels: serde_json::Value::Null,
            passwords: BTreeMap::new(),
        };
        assert!(matches!(fill(&order, &BTreeMap::new()), Err(PkiError::Entry(CA_CERTIFICATE))));
    }
}
