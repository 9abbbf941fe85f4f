//! Replays of cluster traces through the very same node table, without processes.

mod rng;

pub use rng::Rng;
