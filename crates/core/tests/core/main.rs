//! The pure core as a whole: named scenarios, golden plans and laws over a simulated world.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod adoption;
mod conditions;
mod crashes;
mod founding;
mod golden;
mod growing;
mod keeping;
mod laws;
mod observed;
mod parts;
mod refusals;
mod rolling;
mod routes;
mod shrinking;
mod world;
