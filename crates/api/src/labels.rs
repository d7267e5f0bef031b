//! Labels and annotations. Ownership is decided by UID labels, never by names alone.

/// Standard label: `backlot` on everything the operator makes.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const MANAGED_BY_VALUE: &str = "backlot";
/// Standard label: the engine.
pub const NAME: &str = "app.kubernetes.io/name";
/// Standard label: the Database's name.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// Standard label: the component.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// Standard label: the engine's version.
pub const VERSION: &str = "app.kubernetes.io/version";
/// Name of the Database.
pub const DATABASE: &str = "backlot.dev/database";
/// Identity of the cluster: `Database.status.clusterUid`.
pub const CLUSTER_UID: &str = "backlot.dev/cluster-uid";
/// Shard of a member.
pub const SHARD: &str = "backlot.dev/shard";
/// Ordinal of a member.
pub const ORDINAL: &str = "backlot.dev/ordinal";
/// Name of a member's volume in the manifest.
pub const VOLUME: &str = "backlot.dev/volume";
/// Name of the DatabaseClass.
pub const CLASS: &str = "backlot.dev/class";
/// On the cluster's Secret: the founding record by group, kept with retained volumes.
pub const FOUNDED: &str = "backlot.dev/founded";
/// On a claim: the member has left; its volume is kept and the ordinal is not used again while it exists.
pub const LEFT: &str = "backlot.dev/left";
/// On a volume: it was set to Retain because of `deletionPolicy: Retain`.
pub const RETAINED: &str = "backlot.dev/retained";
/// On an EndpointSlice: lineage and epoch of the route, `<lineage>.<epoch>`; only ever raised.
pub const ROUTE_EPOCH: &str = "backlot.dev/route-epoch";
/// Finalizer of Databases with `deletionPolicy: Delete`.
pub const FINALIZER: &str = "backlot.dev/delete-volumes";
/// On an inspection pod: the image it looks at.
pub const INSPECTS: &str = "backlot.dev/inspects";
