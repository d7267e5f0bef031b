//! Watch caches: what the API server pushed, kept by Database, without what no decision reads.
//!
//! A cache may be behind. It is good enough to decide what to create; before anything is destroyed, `apply` reads afresh.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, RwLock};

use backlot_api::labels;
use futures::{StreamExt, TryStreamExt};
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

/// Name of a Database: namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace; empty for objects of the whole cluster.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// How objects are grouped: by the Database that they carry as a label, or each by its own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// By namespace and the label `backlot.dev/database`.
    Database,
    /// By namespace and own name.
    Own,
}

type Groups<K> = BTreeMap<Key, BTreeMap<String, Arc<K>>>;

/// Objects of one kind.
#[derive(Debug)]
pub struct Cache<K> {
    grouping: Grouping,
    state: RwLock<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    groups: Groups<K>,
    arriving: Option<Groups<K>>,
    is_ready: bool,
}

impl<K: Resource + Clone> Cache<K> {
    /// An empty cache.
    pub fn new(grouping: Grouping) -> Arc<Self> {
        Arc::new(Self {
            grouping,
            state: RwLock::new(State { groups: BTreeMap::new(), arriving: None, is_ready: false }),
        })
    }

    /// Whether the first list has arrived.
    pub fn is_ready(&self) -> bool {
        self.read().is_ready
    }

    /// Objects of one group.
    pub fn group(&self, key: &Key) -> Vec<Arc<K>> {
        self.read().groups.get(key).map(|group| group.values().cloned().collect()).unwrap_or_default()
    }

    /// The object with this key, for caches grouped by own name.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read().groups.get(key).and_then(|group| group.get(&key.name).cloned())
    }

    /// Every group's key.
    pub fn keys(&self) -> Vec<Key> {
        self.read().groups.keys().cloned().collect()
    }

    /// Every object.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.read().groups.values().flat_map(|group| group.values().cloned()).collect()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State<K>> {
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn key_of(&self, object: &K) -> Option<Key> {
        let namespace = object.namespace().unwrap_or_default();
        let name = match self.grouping {
            Grouping::Database => object.labels().get(labels::DATABASE)?.clone(),
            Grouping::Own => object.name_any(),
        };
        Some(Key { namespace, name })
    }

    /// Takes one event of a watch; answers the groups that it touches.
    pub fn take(&self, event: Event<K>) -> Vec<Key> {
        let mut state = self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        match event {
            Event::Apply(object) => {
                let Some(key) = self.key_of(&object) else { return vec![] };
                state.groups.entry(key.clone()).or_default().insert(object.name_any(), Arc::new(object));
                vec![key]
            }
            Event::Delete(object) => {
                let Some(key) = self.key_of(&object) else { return vec![] };
                if let Some(group) = state.groups.get_mut(&key) {
                    group.remove(&object.name_any());
                    if group.is_empty() {
                        state.groups.remove(&key);
                    }
                }
                vec![key]
            }
            Event::Init => {
                state.arriving = Some(BTreeMap::new());
                vec![]
            }
            Event::InitApply(object) => {
                if let (Some(key), Some(arriving)) = (self.key_of(&object), state.arriving.as_mut()) {
                    arriving.entry(key).or_default().insert(object.name_any(), Arc::new(object));
                }
                vec![]
            }
            Event::InitDone => {
                let mut touched: Vec<_> = state.groups.keys().cloned().collect();
                state.groups = state.arriving.take().unwrap_or_default();
                state.is_ready = true;
                touched.extend(state.groups.keys().cloned());
                touched.sort();
                touched.dedup();
                touched
            }
        }
    }
}

/// Watches `api` into `cache` for ever; calls `touched` for each group that an event touches. `slim` drops what no decision
/// reads before an object is kept.
pub async fn keep<K>(
    api: Api<K>,
    config: watcher::Config,
    cache: Arc<Cache<K>>,
    slim: fn(&mut K),
    touched: impl Fn(Key),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let stream = watch(api, config).default_backoff().map_ok(|event| {
        event.modify(|object| {
            object.managed_fields_mut().clear();
            slim(object);
        })
    });
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => cache.take(event).into_iter().for_each(&touched),
            Err(error) => {
                tracing::warn!(kind = std::any::type_name::<K>(), %error, "watch interrupted; it is tried again");
            }
        }
    }
}
