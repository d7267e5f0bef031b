//! The operator: watches Databases and classes, talks to members' agents, carries out what `backlot-core` decides.
//!
//! One pass over a Database is [`database::pass`]: read → validate → plan → apply → status. Only [`cache`], [`read`], [`apply`]
//! and [`agents`] do IO. Invariant: a destructive write follows a fresh read of the Database and of its target.

pub mod agents;
pub mod apply;
pub mod cache;
pub mod class;
pub mod connection;
pub mod database;
pub mod events;
pub mod leadership;
pub mod metrics;
pub mod pki;
pub mod queue;
pub mod read;
pub mod routes;
pub mod server;
pub mod settings;

mod run;
mod views;

pub use run::{run, run_with};
