//! Names of everything that is made for a Database. They carry identity, so they never change.

use backlot_standard::manifest::{Component, Leadership, Manifest};

/// Longest name of a Database; members' names and the host names made from it must fit 63 characters.
pub const LONGEST_DATABASE_NAME: usize = 32;

/// Name of a member: `<db>[-<component>][-<shard>]-<ordinal>`. The component appears unless it is `data`, the shard
/// when the component has a leader per shard.
pub fn member(database: &str, manifest: &Manifest, component: &str, shard: u32, ordinal: u32) -> String {
    let mut name = database.to_owned();
    // The part that nearly every type has is not named, so that members keep their names when a type gets more parts.
    if component != Component::default().name {
        name = format!("{name}-{component}");
    }
    if manifest.component(component).is_some_and(|known| known.leader == Leadership::PerShard) {
        name = format!("{name}-{shard}");
    }
    format!("{name}-{ordinal}")
}

/// Name of the claim for a member's volume: the member's name for the first volume, with the volume's name for others.
pub fn claim(member: &str, volume: &str, is_first: bool) -> String {
    if is_first { member.to_owned() } else { format!("{member}-{volume}") }
}

/// Headless Service that gives members their DNS names.
pub fn members_service(database: &str) -> String {
    format!("{database}-members")
}

/// Service that takes writes (types with a leader) or any request.
pub fn service(database: &str) -> String {
    database.to_owned()
}

/// Service of the members that serve reads only.
pub fn read_only_service(database: &str) -> String {
    format!("{database}-ro")
}

/// Secret with the cluster's keys, certificates and generated credentials.
pub fn cluster_secret(database: &str) -> String {
    format!("{database}-cluster")
}

/// Secret for applications (Service Binding).
pub fn binding_secret(database: &str) -> String {
    format!("{database}-binding")
}

/// Disruption budget of a component.
pub fn budget(database: &str, component: &str) -> String {
    if component == Component::default().name { database.to_owned() } else { format!("{database}-{component}") }
}

/// DNS name of a member, resolvable before it is ready.
pub fn dns(member: &str, database: &str, namespace: &str, cluster_domain: &str) -> String {
    format!("{member}.{}.{namespace}.svc.{cluster_domain}", members_service(database))
}

/// DNS name of a Service.
pub fn service_dns(service: &str, namespace: &str, cluster_domain: &str) -> String {
    format!("{service}.{namespace}.svc.{cluster_domain}")
}

/// Name of the cluster for its engine: the Database's name and the first eight characters of the UID.
pub fn engine_name(database: &str, cluster_uid: &str) -> String {
    format!("{database}-{}", cluster_uid.chars().filter(char::is_ascii_alphanumeric).take(8).collect::<String>())
}
