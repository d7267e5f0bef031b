//! What the end-to-end tests and the demo do with a cluster: they use it as a person would, through kubectl and the binding
//! Secrets. Invariant: nothing here knows a database engine; what differs by type is data beside its image
//! (`images/<type>/test/`).

pub mod cluster;
pub mod database;
pub mod kubectl;
pub mod profile;
