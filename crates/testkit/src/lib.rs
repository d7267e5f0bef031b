//! Test doubles for everything around Backlot's own code: a Kubernetes API server in memory, the controllers and kubelets of a
//! simulated cluster, a member's agent, and a fake database image.
//!
//! Invariant: deterministic. No clock, no random number, no socket in the doubles themselves; a failing run can be repeated.

pub mod api_server;
pub mod fake_agent;
pub mod fault;
pub mod simulated;
