//! `backlot conform`: runs an image through the life that the Database Image Standard promises, without Kubernetes.
//!
//! The caller is the real operator with the real agent; the Kubernetes around them is testkit's, whose kubelet here starts
//! containers (docs/adr/0009). What is checked is picked from what the manifest claims, and knows no engine: an image's own
//! `/db/test/workload` writes and verifies. Invariant: a check passes only for what was seen.

mod archive;
mod checks;
mod engine;
mod files;
mod kit;
mod machine;
mod pod;
mod probe;
mod processes;
mod report;
mod run;
mod world;

pub use report::{Outcome, Results, Verdict};
pub use run::{Options, interrupt, names, run};
