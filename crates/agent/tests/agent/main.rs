//! The agent as it runs: real processes, real TLS, the fixture image; only the container is missing.
#![expect(clippy::unwrap_used, reason = "test support")]

mod by_hand;
mod container;
mod faults;
mod life;
mod numbers;
mod pilot;
mod security;
mod support;
