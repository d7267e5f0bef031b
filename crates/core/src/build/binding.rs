//! The binding Secret: everything an application needs to connect, by the Service Binding specification.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use super::{Kind, Object, meta};
use crate::build::secret::password_key;
use crate::names;
use crate::validate::Wanted;

/// The binding Secret, once the cluster's Secret has the password; `None` before.
pub fn binding(wanted: &Wanted, members: &[&str], secret: &Secret, cluster_domain: &str) -> Option<Object> {
    let binding = &wanted.manifest.binding;
    let password = match &binding.password_secret {
        None => None,
        Some(name) => {
            let value = secret.data.as_ref()?.get(&password_key(name))?;
            Some(String::from_utf8(value.0.clone()).ok()?)
        }
    };
    let port = wanted.manifest.client_port()?.port.to_string();
    let dns = |member: &&str| names::dns(member, &wanted.name, &wanted.namespace, cluster_domain);
    let hostnames: Vec<_> = members.iter().map(dns).collect();
    let hosts: Vec<_> = hostnames.iter().map(|host| format!("{host}:{port}")).collect();
    let ports = vec![port.as_str(); members.len()].join(",");
    let host = names::service_dns(&names::service(&wanted.name), &wanted.namespace, cluster_domain);
    let values = [
        ("username", binding.username.clone()),
        ("password", password.clone()),
        ("database", binding.database.clone()),
        ("host", Some(host.clone())),
        ("port", Some(port.clone())),
        ("hosts", Some(hosts.join(","))),
        ("hostnames", Some(hostnames.join(","))),
        ("ports", Some(ports)),
    ];
    let mut entries = BTreeMap::from([
        ("type".to_owned(), binding.kind.clone()),
        ("provider".to_owned(), "backlot".to_owned()),
        ("uri".to_owned(), fill(&binding.uri, &values)),
    ]);
    for (key, template) in &binding.extra {
        entries.insert(key.clone(), fill(template, &values));
    }
    for (key, value) in &values {
        if let Some(value) = value
            && !matches!(*key, "hostnames" | "ports")
        {
            entries.insert((*key).to_owned(), value.clone());
        }
    }
    let data: BTreeMap<_, _> = entries.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))).collect();
    let body = json!({
        "metadata": meta(wanted),
        "type": format!("servicebinding.io/{}", binding.kind),
        "data": serde_json::to_value(data).unwrap_or(Value::Null),
    });
    Some(Object::new(Kind::Secret, names::binding_secret(&wanted.name), body))
}

fn fill(template: &str, values: &[(&str, Option<String>)]) -> String {
    values.iter().fold(template.to_owned(), |text, (key, value)| {
        text.replace(&format!("{{{key}}}"), value.as_deref().unwrap_or_default())
    })
}
