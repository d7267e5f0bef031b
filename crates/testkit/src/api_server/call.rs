//! An HTTP request taken apart into what it asks for.
//!
//! Invariant: parsing looks only at the request and the registry, never at stored objects.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::error::Refusal;
use super::resource::{Registry, ResourceType};

/// A request for a resource.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) resource: Arc<ResourceType>,
    /// Empty for cluster-wide requests.
    pub(crate) namespace: String,
    /// Empty for collections.
    pub(crate) name: String,
    /// Empty for the object itself.
    pub(crate) subresource: String,
    pub(crate) query: Query,
    pub(crate) content_type: String,
    /// The client asks for metadata only.
    pub(crate) metadata_only: bool,
    /// First part of the User-Agent: the field manager of requests that name none.
    pub(crate) agent: String,
    pub(crate) body: Bytes,
}

/// Query parameters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(BTreeMap<String, String>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        };
        Self(pairs.map(pair).collect())
    }

    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub(crate) fn is_true(&self, name: &str) -> bool {
        matches!(self.get(name), "true" | "1")
    }
}

fn decode(text: &str) -> String {
    let mut bytes = vec![];
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let code = std::str::from_utf8(&digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok());
                bytes.push(code.unwrap_or(b'%'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Call {
    /// Takes a request apart.
    pub(crate) fn parse(registry: &Registry, parts: &http::request::Parts, body: Bytes) -> Result<Self, Refusal> {
        let header = |name: http::HeaderName| {
            parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let segments: Vec<String> = parts.uri.path().split('/').filter(|part| !part.is_empty()).map(decode).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (group, version, rest) = match segments.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Err(Refusal::no_such_path()),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !matches!(rest, [] | ["status" | "finalize"]) => (*namespace, rest),
            rest => ("", rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, "", ""),
            [plural, name] => (*plural, *name, ""),
            [plural, name, subresource] => (*plural, *name, *subresource),
            _ => return Err(Refusal::no_such_path()),
        };
        let resource = registry.get(group, version, plural).ok_or_else(Refusal::no_such_path)?;
        if resource.namespaced && namespace.is_empty() && !(name.is_empty() && parts.method == Method::GET) {
            return Err(Refusal::no_such_path());
        }
        Ok(Self {
            method: parts.method.clone(),
            resource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
            query: Query::parse(parts.uri.query().unwrap_or_default()),
            content_type: header(http::header::CONTENT_TYPE).split(';').next().unwrap_or_default().to_owned(),
            metadata_only: header(http::header::ACCEPT).contains("as=PartialObjectMetadata"),
            agent: header(http::header::USER_AGENT).split('/').next().unwrap_or_default().to_owned(),
            body,
        })
    }

    /// The body as an object of the resource's kind.
    pub(crate) fn object(&self) -> Result<Value, Refusal> {
        let mut object: Value = serde_json::from_slice(&self.body)
            .map_err(|error| Refusal::bad_request(format!("the body is not JSON: {error}")))?;
        self.check_type(&object)?;
        object["kind"] = Value::String(self.resource.kind.clone());
        object["apiVersion"] = Value::String(self.resource.api_version());
        super::merge::drop_nulls(&mut object);
        Ok(object)
    }

    fn check_type(&self, object: &Value) -> Result<(), Refusal> {
        if !object.is_object() {
            return Err(Refusal::bad_request("the body is not an object"));
        }
        let wrong = |field: &str, wanted: &str| object[field].as_str().is_some_and(|given| given != wanted);
        if wrong("kind", &self.resource.kind) || wrong("apiVersion", &self.resource.api_version()) {
            return Err(Refusal::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: the kinds or versions differ",
                object["kind"].as_str().unwrap_or_default(),
                object["apiVersion"].as_str().unwrap_or_default(),
                self.resource.kind
            )));
        }
        Ok(())
    }

    /// The field manager that writes.
    pub(crate) fn manager(&self) -> String {
        let named = self.query.get("fieldManager");
        match (named, self.agent.as_str()) {
            ("", "") => "unknown".to_owned(),
            ("", agent) => agent.to_owned(),
            (named, _) => named.to_owned(),
        }
    }

    /// Whether nothing is to be stored.
    pub(crate) fn dry_run(&self) -> bool {
        self.query.get("dryRun") == "All"
    }
}
