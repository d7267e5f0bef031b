//! The pure decisions of Backlot: what was observed goes in, what is to be done and said comes out.
//!
//! [`snapshot`] → [`validate`] → [`plan`] → [`status`]; [`build`] makes the objects, [`routes`] the endpoints, [`class`] looks
//! after images. Invariant: no IO, no async runtime, no clock, no randomness, no environment; `now` is an argument. The same
//! functions serve the operator and `backlot plan`.

pub mod build;
mod chain;
pub mod class;
pub mod names;
pub mod plan;
pub mod quantity;
pub mod routes;
pub mod snapshot;
pub mod status;
pub mod validate;
pub mod view;

mod records;
