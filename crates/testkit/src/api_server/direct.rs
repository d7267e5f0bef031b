//! Direct access for tests and simulated controllers: typed, synchronous, without faults and without a record.
//!
//! Invariant: everything goes through the same pipeline as requests of clients.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::ApiServer;
use super::error::Refusal;
use super::read::Reply;
use super::resource::ResourceType;
use super::store;

/// A direct request was refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// HTTP status.
    pub status: StatusCode,
    /// The `Status` body.
    pub body: Value,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.status, self.body["message"].as_str().unwrap_or_default())
    }
}

impl std::error::Error for Refused {}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { status: refusal.code(), body: *refusal.0 }
    }
}

/// An object of any kind, with the path of its requests.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) path: String,
    /// Empty for cluster-wide kinds.
    pub(crate) namespace: String,
    pub(crate) object: Arc<Value>,
}

impl ApiServer {
    /// Every object, by resource, namespace and name.
    pub(crate) fn stored(&self) -> Vec<Stored> {
        let state = self.state();
        let resources: Vec<_> = state.registry.all().cloned().collect();
        let stored = |resource: &Arc<ResourceType>| {
            let objects = state.store.list(resource, "");
            let path = |namespace: &str, name: &str| resource.path(namespace, name);
            objects
                .into_iter()
                .map(|((_, namespace, name), object)| Stored { path: path(&namespace, &name), namespace, object })
                .collect::<Vec<_>>()
        };
        resources.iter().flat_map(stored).collect()
    }

    /// The same server; direct writes through this handle are those of another field manager.
    #[must_use]
    pub fn acting_as(&self, manager: &'static str) -> Self {
        Self { actor: manager, ..self.clone() }
    }

    /// Sends one request and returns status and body. `path` may have a query.
    pub fn request(&self, method: Method, path: &str, content_type: &str, body: &Value) -> (StatusCode, Value) {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = http::Request::builder().method(method).uri(path).header("content-type", content_type).body(());
        let Ok(request) = request else {
            let refusal = Refusal::bad_request(format!("{path:?} is not a path"));
            return (refusal.code(), *refusal.0);
        };
        match self.reply(&request.into_parts().0, body, &self.connect()) {
            Ok(Reply::Object(status, value)) => (status, value),
            Ok(Reply::Watch(_)) => (StatusCode::METHOD_NOT_ALLOWED, json!("watches need a client")),
            Err(refusal) => (refusal.code(), *refusal.0),
        }
    }

    /// Makes a namespace, if it is not there.
    pub fn create_namespace(&self, name: &str) {
        let body = json!({"metadata": {"name": name}});
        let _exists = self.request(Method::POST, "/api/v1/namespaces", "application/json", &body);
    }

    /// Makes or replaces a `CustomResourceDefinition`; its resources are served at once.
    pub fn define(&self, definition: &CustomResourceDefinition) -> Result<(), Refused> {
        self.apply(definition).map(drop)
    }

    /// The object, if it is there. `namespace` is empty for cluster-wide kinds.
    pub fn get<K>(&self, namespace: &str, name: &str) -> Option<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let state = self.state();
        let resource = state.registry.get(&K::group(&()), &K::version(&()), &K::plural(&()))?;
        K::deserialize(&*state.store.get(&store::key(&resource, namespace, name))?).ok()
    }

    /// Every object of a kind, in one namespace or (empty) in all, by namespace and name.
    pub fn list<K>(&self, namespace: &str) -> Vec<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let state = self.state();
        let Some(resource) = state.registry.get(&K::group(&()), &K::version(&()), &K::plural(&())) else {
            return vec![];
        };
        let objects = state.store.list(&resource, namespace).into_iter();
        objects.filter_map(|(_, object)| K::deserialize(&*object).ok()).collect()
    }

    /// Makes the object; fails when it is there.
    pub fn create<K>(&self, object: &K) -> Result<K, Refused>
    where
        K: Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        let path = format!("{}?fieldManager={}", collection::<K>(&object.namespace().unwrap_or_default()), self.actor);
        self.typed(Method::POST, &path, "application/json", &typed_value(object))
    }

    /// Server-side apply, forced: as `kubectl apply --server-side --force-conflicts`.
    pub fn apply<K>(&self, object: &K) -> Result<K, Refused>
    where
        K: Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        let path = format!(
            "{}/{}?fieldManager={}&force=true",
            collection::<K>(&object.namespace().unwrap_or_default()),
            object.name_any(),
            self.actor
        );
        self.typed(Method::PATCH, &path, "application/apply-patch+yaml", &typed_value(object))
    }

    /// Reads the object, changes it, writes it back; nothing happens when it is absent.
    pub fn edit<K>(&self, namespace: &str, name: &str, change: impl FnOnce(&mut K)) -> Result<Option<K>, Refused>
    where
        K: Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        self.edit_at(namespace, name, "", change)
    }

    /// The same for its subresource `status`.
    pub fn edit_status<K>(&self, namespace: &str, name: &str, change: impl FnOnce(&mut K)) -> Result<Option<K>, Refused>
    where
        K: Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        self.edit_at(namespace, name, "/status", change)
    }

    fn edit_at<K>(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
        change: impl FnOnce(&mut K),
    ) -> Result<Option<K>, Refused>
    where
        K: Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        let Some(mut object) = self.get::<K>(namespace, name) else { return Ok(None) };
        change(&mut object);
        let path = format!("{}/{name}{subresource}?fieldManager={}", collection::<K>(namespace), self.actor);
        self.typed(Method::PUT, &path, "application/json", &typed_value(&object)).map(Some)
    }

    /// Deletes the object; `grace_seconds` as in `kubectl delete --grace-period`.
    pub fn delete<K>(&self, namespace: &str, name: &str, grace_seconds: Option<i64>) -> Result<(), Refused>
    where
        K: Resource<DynamicType = ()>,
    {
        let path = format!("{}/{name}", collection::<K>(namespace));
        let body = grace_seconds.map_or(Value::Null, |seconds| json!({"gracePeriodSeconds": seconds}));
        let (status, body) = self.request(Method::DELETE, &path, "application/json", &body);
        if status.is_success() { Ok(()) } else { Err(Refused { status, body }) }
    }

    fn typed<K: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: &Value,
    ) -> Result<K, Refused> {
        let (status, body) = self.request(method, path, content_type, body);
        if !status.is_success() {
            return Err(Refused { status, body });
        }
        serde_json::from_value(body.clone()).map_err(|error| Refused {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            body: json!({"message": format!("the stored object does not parse: {error}"), "object": body}),
        })
    }
}

fn collection<K: Resource<DynamicType = ()>>(namespace: &str) -> String {
    K::url_path(&(), (!namespace.is_empty()).then_some(namespace))
}

fn typed_value<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value["kind"] = json!(K::kind(&()));
    value["apiVersion"] = json!(K::api_version(&()));
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    value
}
