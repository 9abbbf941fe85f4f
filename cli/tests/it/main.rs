//! The real binary, without a cluster: what it prints and what it exits with.

mod certificates;
mod harness;
mod settings;
mod snapshots;
