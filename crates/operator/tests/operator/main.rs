//! The operator's own code against an API server, a cluster and members in memory.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod budget;
mod classes;
mod crash_after_every_write;
mod faults;
mod leadership;
mod world;
