//! Tests an image without Kubernetes: `images/NAME/test/run` drives members through the command `db`, which plays the agent.
//!
//! Nothing here knows a database type: a member is what the image's manifest and verbs say. Invariant: whatever a trial made
//! (containers, network, files) is gone when it ends, and a secret that it saw outside the places for secrets fails it.

mod calls;
mod command;
mod life;
mod members;
mod outputs;
mod processes;
mod request;
mod run;
mod secrets;
mod state;

pub use command::{Command, dispatch};
pub use run::{Options, run};
