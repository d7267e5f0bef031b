//! The custom resources of Backlot, group `backlot.dev`, and the labels and annotations on what it makes.
//!
//! Invariant: types only. What a field means to a cluster is decided in `backlot-core`.

pub mod database;
#[expect(clippy::duplicated_attributes, reason = "each printer column has a type and a path")]
pub mod database_class;
pub mod labels;

mod schema;

pub use database::{Database, DatabaseSpec, DatabaseStatus};
pub use database_class::{DatabaseClass, DatabaseClassSpec, DatabaseClassStatus};

/// Field manager of every server-side apply.
pub const FIELD_MANAGER: &str = "backlot";
/// API group of the custom resources.
pub const GROUP: &str = "backlot.dev";
