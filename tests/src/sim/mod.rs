//! The whole cluster in one process, from one seed.
//!
//! Schedulers, launchers and controllers are the daemons' own cores, joined by real protocol sessions
//! over a simulated network ([`net`]), with a simulated disk under each controller and a simulated
//! node under each launcher. [`world`] runs them on a simulated clock; [`faults`] breaks things by
//! a schedule drawn from the seed; [`users`] submit, stop and drain meanwhile; [`oracle`] watches
//! what really ran and checks the invariants after each step.
//!
//! Nothing here reads a clock or a random source: the same seed gives the same trace, byte by byte,
//! which a test checks.

pub mod answers;
pub mod controller;
pub mod describe;
pub mod equipment;
pub mod faults;
pub mod launcher;
pub mod net;
pub mod oracle;
pub mod plant;
pub mod rng;
pub mod sabotage;
pub mod scheduler;
pub mod tally;
#[cfg(test)]
mod tests;
pub mod users;
pub mod world;

pub use plant::Plant;
pub use tally::Tally;
pub use world::{Outcome, SimConfig, World, run};
