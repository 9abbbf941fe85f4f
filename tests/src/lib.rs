//! What the tests across the daemons share: the whole-cluster simulation.
//!
//! [`sim`] runs the daemons' cores together in one process, on a simulated clock, network and disk,
//! from one seed. The end-to-end tests in `tests/e2e` run the real binary instead.

pub mod sim;
