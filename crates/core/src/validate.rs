//! From what was typed to what is meant, or every reason why not. Raw CRD types stop here.

use std::collections::{BTreeMap, BTreeSet};

use backlot_api::database::{ComponentOverride, DeletionPolicy, Placement};
use backlot_api::{Database, DatabaseSpec};
use backlot_standard::config::{self, Apply, SettingError};
use backlot_standard::manifest::{Component, DurabilityLevel, Elections, Manifest};
use backlot_standard::status::EnginePhase;
use backlot_standard::verb::Verb;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::chain;
use crate::names;
use crate::quantity;
use crate::records::{self, Founding};
use crate::snapshot::{ImageFacts, Snapshot, UsableImage};

/// Size of a volume when the user gives none.
const DEFAULT_STORAGE_BYTES: u64 = 1 << 30;
/// Smallest volume that is worth asking for.
const LEAST_STORAGE_BYTES: u64 = 1 << 20;

/// What is wanted, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Name of the Database.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its class.
    pub class: String,
    /// UID of the Database object, owner of everything but volumes and the cluster's Secret.
    pub owner_uid: String,
    /// Identity of the cluster.
    pub cluster_uid: String,
    /// Name for the engine.
    pub engine_name: String,
    /// Version as the class names it.
    pub class_version: String,
    /// Image, pinned by digest.
    pub image: String,
    /// Image pull Secrets.
    pub pull_secrets: Vec<String>,
    /// Manifest of the image.
    pub manifest: Manifest,
    /// Verbs of the image.
    pub verbs: BTreeSet<Verb>,
    /// Components in the manifest's order.
    pub components: Vec<WantedComponent>,
    /// Durability.
    pub durability: Option<DurabilityLevel>,
    /// Placement.
    pub placement: Placement,
    /// StorageClass.
    pub storage_class: Option<String>,
    /// What becomes of volumes.
    pub deletion_policy: DeletionPolicy,
    /// Hands off.
    pub paused: bool,
    /// The founding record of volumes that are taken back.
    pub adopted: Option<Founding>,
}

/// What is wanted of a component.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedComponent {
    /// What the manifest says of it.
    pub component: Component,
    /// Members of each group.
    pub members: u32,
    /// Memory limit and request in bytes.
    pub memory_bytes: u64,
    /// CPU limit and request in thousandths; 0 = none.
    pub cpu_millis: u64,
    /// Size of each volume in bytes.
    pub storage_bytes: u64,
    /// Field that gives the size, for messages.
    pub storage_field: String,
    /// Settings.
    pub config: BTreeMap<String, String>,
}

impl Wanted {
    /// The component that founds the engine's cluster of this one: itself, or the farthest one that it joins, through others, and
    /// that has members (SPEC §9.11).
    pub fn root<'a>(&'a self, component: &'a str) -> &'a str {
        chain::root(&self.manifest, component, |name| {
            self.components.iter().any(|known| known.component.name == name && known.members > 0)
        })
    }

    /// Whether the image has the verb.
    pub fn has(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }
}

/// Why a spec is refused. Nothing that runs is touched while there is one; reverting the field recovers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// CamelCase, stable: condition reason, event reason and metric label.
    pub reason: &'static str,
    /// Field, value, why, and what to do.
    pub message: String,
}

pub(crate) fn refuse(reason: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { reason, message: message.into() }
}

/// What the spec of a Database comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// What members follow: the spec or, while that is refused, the one accepted last. `None` when there is none that
    /// holds: then nothing is touched.
    pub followed: Option<Wanted>,
    /// Why the spec is refused; empty when it is accepted.
    pub refusals: Vec<Refusal>,
}

/// Judges the spec: a refused edit changes nothing, and keeps nobody from healing what it would have changed.
pub fn judge(snapshot: &Snapshot) -> Judgement {
    match validate(snapshot) {
        Ok(wanted) => Judgement { followed: Some(wanted), refusals: vec![] },
        Err(refusals) => {
            let earlier = accepted(snapshot).filter(|(_, refusals)| refusals.is_empty());
            Judgement { followed: earlier.map(|(wanted, _)| wanted), refusals }
        }
    }
}

/// Checks a snapshot's spec against its image and what exists.
///
/// # Errors
/// Every refusal, at least one.
pub fn validate(snapshot: &Snapshot) -> Result<Wanted, Vec<Refusal>> {
    let image = match &snapshot.image {
        ImageFacts::Usable(image) => image,
        ImageFacts::Refused { reason, message } => return Err(vec![refuse(reason, message.clone())]),
    };
    let (wanted, mut refusals) = examine(snapshot, &snapshot.database, image);
    if refusals.is_empty() {
        return Ok(wanted);
    }
    // Components share settings: one mistake is told once.
    let mut told: Vec<Refusal> = vec![];
    refusals.retain(|refusal| {
        let is_new = !told.contains(refusal);
        told.push(refusal.clone());
        is_new
    });
    Err(refusals)
}

/// What routes need to know of a Database that was accepted once, whatever its spec says now. `None` when its identity or
/// what it runs is in doubt.
pub fn routed(snapshot: &Snapshot) -> Option<Wanted> {
    records::identity(snapshot).ok()?;
    accepted(snapshot).map(|(wanted, _)| wanted)
}

/// The spec that was accepted last, on the image that runs, and what speaks against it now. Hands off and what becomes of
/// the volumes are as the present spec says.
fn accepted(snapshot: &Snapshot) -> Option<(Wanted, Vec<Refusal>)> {
    let (running, now) = (snapshot.running.as_ref()?, &snapshot.database.spec);
    let accepted = snapshot.database.status.as_ref()?.accepted_spec.clone()?;
    let mut database = snapshot.database.clone();
    database.spec = DatabaseSpec { paused: now.paused, deletion_policy: now.deletion_policy, ..*accepted };
    Some(examine(snapshot, &database, running))
}

fn examine(snapshot: &Snapshot, database: &Database, image: &UsableImage) -> (Wanted, Vec<Refusal>) {
    let mut refusals = vec![];
    let identity = records::identity(snapshot).unwrap_or_else(|refusal| {
        refusals.push(refusal);
        records::Identity { cluster_uid: database.uid().unwrap_or_default(), adopted: None }
    });
    let founding = records::founding(snapshot).unwrap_or_else(|refusal| {
        refusals.push(refusal);
        None
    });
    refusals.extend(records::check_adopted(snapshot, &image.manifest, &identity));
    refusals.extend(checks(database, &image.manifest, &image.class_version));
    let components: Vec<_> = image
        .manifest
        .components
        .iter()
        .map(|component| want_component(database, &image.manifest, component, founding.as_ref(), &mut refusals))
        .collect();
    chain::check_root(database, &image.manifest, &components, founding.as_ref(), &mut refusals);
    let durability = want_durability(database, &image.manifest, &components, &mut refusals);
    check_storage(snapshot, &components, &mut refusals);
    check_lowering(snapshot, &image.manifest, &components, &mut refusals);
    let name = database.name_any();
    let wanted = Wanted {
        engine_name: names::engine_name(&name, &identity.cluster_uid),
        name,
        namespace: database.namespace().unwrap_or_default(),
        class: database.spec.class.clone(),
        owner_uid: database.uid().unwrap_or_default(),
        cluster_uid: identity.cluster_uid,
        class_version: image.class_version.clone(),
        image: image.pinned.clone(),
        pull_secrets: image.pull_secrets.clone(),
        manifest: image.manifest.clone(),
        verbs: image.verbs.clone(),
        components,
        durability,
        placement: database.spec.placement.clone(),
        storage_class: database.spec.storage.class_name.clone(),
        deletion_policy: database.spec.deletion_policy,
        paused: database.spec.paused,
        adopted: identity.adopted,
    };
    (wanted, refusals)
}

/// Checks that need no component.
fn checks(database: &Database, manifest: &Manifest, class_version: &str) -> Vec<Refusal> {
    let mut refusals = vec![];
    let name = database.name_any();
    if name.len() > names::LONGEST_DATABASE_NAME {
        let length = name.len();
        refusals.push(refuse(
            "NameTooLong",
            format!("metadata.name: {length} characters; at most 32 are allowed. Create it under a shorter name"),
        ));
    }
    let current = database.status.as_ref().and_then(|status| status.class_version.as_deref());
    if let Some(current) = current
        && current != class_version
    {
        refusals.push(refuse(
            "UpgradeNotSupported",
            format!("spec.version: {current} → {class_version} refused: this operator cannot upgrade yet. Set spec.version back to {current}"),
        ));
    }
    for component in database.spec.components.keys() {
        if manifest.component(component).is_none() {
            let known: Vec<_> = manifest.components.iter().map(|component| component.name.as_str()).collect();
            refusals.push(refuse(
                "UnknownComponent",
                format!(
                    "spec.components.{component}: {} has no such component; it has {}",
                    manifest.engine,
                    known.join(", ")
                ),
            ));
        }
    }
    refusals
}

fn want_component(
    database: &Database,
    manifest: &Manifest,
    component: &Component,
    founding: Option<&Founding>,
    refusals: &mut Vec<Refusal>,
) -> WantedComponent {
    let spec = &database.spec;
    let none = ComponentOverride::default();
    let changed = spec.components.get(&component.name).unwrap_or(&none);
    let own = |is_own: bool, field: &str, general: &str| {
        if is_own { format!("spec.components.{}.{field}", component.name) } else { format!("spec.{general}") }
    };
    // The general number is for the parts that every cluster has.
    let general = spec.members.filter(|_| component.members.min > 0);
    let members = changed.members.or(general).unwrap_or(component.members.default);
    let field_of_members = own(changed.members.is_some() || general.is_none(), "members", "members");
    check_members(manifest, component, members, &field_of_members, refusals);
    let mut config = settings(&spec.config);
    config.extend(settings(&changed.config));
    check_config(database, manifest, component, &config, founding, refusals);
    let (resources, field) = match &changed.resources {
        Some(resources) => (resources, own(true, "resources", "")),
        None => (&spec.resources, own(false, "", "resources")),
    };
    let minimum = component.minimum_memory_bytes;
    let memory_bytes = parse(&format!("{field}.memory"), resources.memory.as_ref(), minimum, quantity::bytes, refusals);
    let cpu_millis = parse(&format!("{field}.cpu"), resources.cpu.as_ref(), 0, quantity::millis, refusals);
    if memory_bytes < minimum {
        let (given, least) = (resources.memory.as_ref().map(quantity::text).unwrap_or_default(), minimum >> 20);
        let message = format!(
            "{field}.memory: {given} refused: {} needs at least {least}Mi per member of {}",
            manifest.engine, component.name
        );
        refusals.push(refuse("MemoryTooSmall", message));
    }
    let size = changed.storage_size.as_ref().or(spec.storage.size.as_ref());
    let storage_field = own(changed.storage_size.is_some(), "storageSize", "storage.size");
    let storage_bytes = parse(&storage_field, size, DEFAULT_STORAGE_BYTES, quantity::bytes, refusals);
    if storage_bytes < LEAST_STORAGE_BYTES {
        let given = size.map(quantity::text).unwrap_or_default();
        refusals.push(refuse(
            "QuantityRefused",
            format!("{storage_field}: `{given}` is no size of a volume; use e.g. 1Gi"),
        ));
    }
    let component = component.clone();
    WantedComponent { component, members, memory_bytes, cpu_millis, storage_bytes, storage_field, config }
}

fn settings(values: &BTreeMap<String, IntOrString>) -> BTreeMap<String, String> {
    values.iter().map(|(key, value)| (key.clone(), quantity::text(value))).collect()
}

fn parse(
    field: &str,
    quantity: Option<&IntOrString>,
    default: u64,
    parser: fn(&IntOrString) -> Option<u64>,
    refusals: &mut Vec<Refusal>,
) -> u64 {
    let Some(quantity) = quantity else { return default };
    parser(quantity).unwrap_or_else(|| {
        let text = quantity::text(quantity);
        let message = format!("{field}: `{text}` is no quantity; use e.g. 500m, 2, 512Mi, 2Gi");
        refusals.push(refuse("QuantityRefused", message));
        default
    })
}

fn check_members(manifest: &Manifest, component: &Component, members: u32, field: &str, refusals: &mut Vec<Refusal>) {
    let count = component.members;
    let engine = &manifest.engine;
    if members < count.min || members > count.max {
        let (min, max) = (count.min, count.max);
        refusals.push(refuse(
            "MembersRefused",
            format!("{field}: {members} refused: {engine} has {min} to {max} members. Use a number in that range"),
        ));
    } else if count.odd && members.is_multiple_of(2) && members > 0 {
        let fewer = members - 1;
        let more = if members < count.max { format!(" or {}", members + 1) } else { String::new() };
        refusals.push(refuse(
            "MembersRefused",
            format!(
                "{field}: {members} refused: {engine} keeps a quorum with odd numbers; {members} members tolerate no more failures than {fewer}. Use {fewer}{more}"
            ),
        ));
    }
}

fn check_config(
    database: &Database,
    manifest: &Manifest,
    component: &Component,
    values: &BTreeMap<String, String>,
    founding: Option<&Founding>,
    refusals: &mut Vec<Refusal>,
) {
    let own = database.spec.components.get(&component.name);
    let field = |key: &str| match own.filter(|own| own.config.contains_key(key)) {
        Some(_) => format!("spec.components.{}.config.{key}", component.name),
        None => format!("spec.config.{key}"),
    };
    for (key, error) in config::check_all(&manifest.config, values) {
        let more = match &error {
            SettingError::Unknown { nearest: None } => {
                format!(". All settings: kubectl get databaseclass {} -o yaml", database.spec.class)
            }
            SettingError::Unknown { nearest: Some(_) }
            | SettingError::Type { .. }
            | SettingError::Range { .. }
            | SettingError::NotAllowed { .. } => String::new(),
        };
        refusals.push(refuse("SettingRefused", format!("{}: {error}{more}", field(&key))));
    }
    let Some(immutable) = founding.and_then(|founding| founding.immutable.get(&component.name)) else { return };
    for (key, setting) in manifest.config.iter().filter(|(_, setting)| setting.apply == Apply::Immutable) {
        let (was, is) = (immutable.get(key), values.get(key));
        if was != is {
            let default = setting.default.as_ref().map(|value| format!(" {value}")).unwrap_or_default();
            let show = |value: Option<&String>| {
                value.map_or_else(|| format!("the default{default}"), |value| format!("`{value}`"))
            };
            refusals.push(refuse(
                "SettingImmutable",
                format!(
                    "{}: {} refused: it cannot change after the cluster was founded with {}. Set it back",
                    field(key),
                    show(is),
                    show(was)
                ),
            ));
        }
    }
}

fn want_durability(
    database: &Database,
    manifest: &Manifest,
    components: &[WantedComponent],
    refusals: &mut Vec<Refusal>,
) -> Option<DurabilityLevel> {
    let level = database.spec.durability.or_else(|| manifest.durability.first().map(|claim| claim.level))?;
    if !manifest.durability.iter().any(|claim| claim.level == level) {
        let known: Vec<_> = manifest.durability.iter().map(|claim| format!("{:?}", claim.level)).collect();
        let known = if known.is_empty() { "none; leave it out".to_owned() } else { known.join(", ") };
        refusals.push(refuse(
            "DurabilityRefused",
            format!("spec.durability: {level:?} refused: {} offers {known}", manifest.engine),
        ));
    }
    let explicit = database.spec.durability == Some(DurabilityLevel::Quorum);
    // Members that join do not vote.
    let founds = |component: &&WantedComponent| chain::founds(manifest, components, &component.component.name);
    if explicit && let Some(small) = components.iter().filter(founds).find(|component| component.members == 2) {
        refusals.push(refuse(
            "DurabilityRefused",
            format!(
                "spec.durability: Quorum refused with 2 members of {}: the loss of either would stop writes. Use 3 members, or Async",
                small.component.name
            ),
        ));
    }
    Some(level)
}

/// Where agents elect, an engine always starts as a follower, and one that refuses less than its leader had could never start
/// again with a lowered setting: not even the leader.
fn check_lowering(
    snapshot: &Snapshot,
    manifest: &Manifest,
    components: &[WantedComponent],
    refusals: &mut Vec<Refusal>,
) {
    if manifest.elections != Elections::Agent {
        return;
    }
    let followers_first = |setting: &&config::Setting| setting.raise_first_on == Some(config::RoleOrder::Followers);
    let running = snapshot
        .agents
        .values()
        .filter_map(|status| status.known())
        .filter(|status| status.engine.phase == EnginePhase::Running);
    for applied in running.map(|status| &status.config.applied) {
        for (key, setting) in manifest.config.iter().filter(|(_, setting)| followers_first(setting)) {
            for component in components {
                let (before, after) =
                    (applied.get(key).map(String::as_str), component.config.get(key).map(String::as_str));
                if setting.lowers(before, after) == Some(true) {
                    let show = |value: Option<&str>| {
                        value.map_or_else(|| setting.default.clone().unwrap_or_default().to_string(), ToOwned::to_owned)
                    };
                    let (before, after) = (show(before), show(after));
                    refusals.push(refuse(
                        "SettingLowered",
                        format!("spec.config.{key}: {before} → {after} refused: followers of this engine refuse less than their leader had, and this operator cannot lower it yet. Set it back to at least {before}"),
                    ));
                }
            }
        }
    }
}

/// Volumes only grow; growing existing ones is not done yet, so that it is refused rather than half done.
fn check_storage(snapshot: &Snapshot, components: &[WantedComponent], refusals: &mut Vec<Refusal>) {
    for component in components {
        for claim in &snapshot.objects.claims {
            let is_ours =
                crate::snapshot::label(claim, backlot_api::labels::COMPONENT) == Some(&component.component.name);
            let size = claim
                .spec
                .as_ref()
                .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"))
                .and_then(|quantity| quantity::bytes(&IntOrString::String(quantity.0.clone())));
            if let Some(size) = size
                && is_ours
                && size != component.storage_bytes
            {
                let field = &component.storage_field;
                let (name, has, wants) = (claim.name_any(), size >> 20, component.storage_bytes >> 20);
                let why = if wants < has { "volumes never shrink" } else { "this operator cannot grow volumes yet" };
                refusals.push(refuse(
                    "StorageChangeRefused",
                    format!(
                        "{field}: {wants}Mi refused: the volume of {name} has {has}Mi and {why}. Set it back to {has}Mi"
                    ),
                ));
                return;
            }
        }
    }
}
