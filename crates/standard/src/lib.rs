//! The Database Image Standard as types.
//!
//! Three audiences share this crate and nothing else: images (through the JSON Schemas generated from it), the agent that
//! runs their verbs, and the operator that talks to the agents. Invariant: no IO, no clock, no database engine's name.
//! The normative text is `standard/SPEC.md`; section numbers in the docstrings refer to it.

pub mod config;
pub mod environment;
pub mod layout;
pub mod manifest;
pub mod operation;
pub mod request;
pub mod result;
pub mod status;
pub mod verb;
pub mod view;

mod check;
mod lookup;

pub use check::ManifestError;

/// The version of the standard that this crate implements, as images state it in `manifest.standard` (SPEC §12).
pub const STANDARD: &str = "0.1";

/// Whether an image that states `standard` can be run by this build: same major version, a minor version not newer than ours.
pub fn supports(standard: &str) -> bool {
    let parse = |text: &str| {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    match (parse(standard), parse(STANDARD)) {
        (Some((major, minor)), Some((our_major, our_minor))) => major == our_major && minor <= our_minor,
        _ => false,
    }
}
