//! What was observed of one Database at one moment. Made by the operator's `read` stage or by a test.

use std::collections::{BTreeMap, BTreeSet};

use backlot_api::{Database, labels};
use backlot_standard::manifest::Manifest;
use backlot_standard::result::{CanDisruptOutput, MembershipOutput};
use backlot_standard::status::MemberStatus;
use backlot_standard::verb::Verb;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;

/// An observation: a failed or missing one is never read as zero, empty or done.
#[derive(Clone, Debug, PartialEq)]
pub enum Observed<T> {
    /// Read now, or pushed over a connection that is open now.
    Known(T),
    /// Read, and not there.
    Absent,
    /// Could not be read; why, for people.
    Unknown(String),
}

impl<T> Observed<T> {
    /// The value, when it is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Absent | Self::Unknown(_) => None,
        }
    }
}

/// Everything that a decision about one Database may use.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The Database.
    pub database: Database,
    /// What is known of the image that its spec names.
    pub image: ImageFacts,
    /// The image that its members run, when it is known.
    pub running: Option<UsableImage>,
    /// Objects in its namespace that carry its name or identity.
    pub objects: Objects,
    /// Reports of its members' agents, by member.
    pub agents: BTreeMap<String, Observed<MemberStatus>>,
    /// Answers to the questions of an earlier round of this pass.
    pub answers: Answers,
    /// The operator's own facts.
    pub operator: OperatorFacts,
}

/// What is known of the image that a Database names.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageFacts {
    /// Inspected and usable.
    Usable(Box<UsableImage>),
    /// Not usable, or not yet: a stable reason and a message.
    Refused {
        /// CamelCase.
        reason: &'static str,
        /// What, why and what to do.
        message: String,
    },
}

/// An inspected image.
#[derive(Clone, Debug, PartialEq)]
pub struct UsableImage {
    /// The version as the class names it.
    pub class_version: String,
    /// Reference with digest.
    pub pinned: String,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its verbs.
    pub verbs: BTreeSet<Verb>,
    /// Names of image pull Secrets.
    pub pull_secrets: Vec<String>,
}

/// Objects of one Database, as the API server has them. Looked up by name in the Database's namespace; whose they are is
/// decided by their labels.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// The cluster's Secret.
    pub secret: Option<Secret>,
    /// The binding Secret.
    pub binding: Option<Secret>,
    /// Services.
    pub services: Vec<Service>,
    /// EndpointSlices that the operator writes.
    pub slices: Vec<EndpointSlice>,
    /// Disruption budgets.
    pub budgets: Vec<PodDisruptionBudget>,
    /// Members' pods.
    pub pods: Vec<Pod>,
    /// Members' claims.
    pub claims: Vec<PersistentVolumeClaim>,
    /// Volumes bound to them, by name of the volume.
    pub volumes: BTreeMap<String, PersistentVolume>,
}

impl Objects {
    /// The pod of a member.
    pub fn pod(&self, member: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.name_any() == member)
    }

    /// The claim with this name.
    pub fn claim(&self, name: &str) -> Option<&PersistentVolumeClaim> {
        self.claims.iter().find(|claim| claim.name_any() == name)
    }
}

/// Facts of the operator that its decisions need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorFacts {
    /// Epoch of its leadership.
    pub epoch: u64,
    /// Image with the agent, for new pods.
    pub agent_image: String,
    /// DNS domain of the Kubernetes cluster, e.g. `cluster.local`.
    pub cluster_domain: String,
}

/// Something to ask a member before a decision can be made. Reads only; asked in the same pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// The engine's own member list.
    Membership {
        /// The member to ask.
        member: String,
    },
    /// Whether a member may be disrupted.
    CanDisrupt {
        /// The member to ask.
        member: String,
        /// The member to be disrupted.
        subject: String,
    },
}

/// Answers to questions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    /// By question; `Unknown` when the member did not answer or refused.
    pub memberships: BTreeMap<String, Observed<MembershipOutput>>,
    /// By subject: what may go, or why not.
    pub disruptions: BTreeMap<String, Observed<CanDisruptOutput>>,
}

/// Value of a label.
pub fn label<'a, K: kube::Resource>(object: &'a K, key: &str) -> Option<&'a str> {
    object.meta().labels.as_ref()?.get(key).map(String::as_str)
}

/// Value of an annotation.
pub fn annotation<'a, K: kube::Resource>(object: &'a K, key: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether the object carries the identity of this cluster.
pub fn belongs_to<K: kube::Resource>(object: &K, cluster_uid: &str) -> bool {
    label(object, labels::CLUSTER_UID) == Some(cluster_uid)
}
