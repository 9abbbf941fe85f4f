//! The scheduler: it finds a fit, keeps exact books of what it has promised, and forwards.
//!
//! [`core`] is the broker, a state machine without I/O; [`table`] is where it looks for a fit;
//! [`run`] is the daemon, which owns sockets and clock; [`SchedulerConfig`] is its file. [`replay`]
//! and [`bench_place`] drive the same table without a cluster.
//!
//! Invariants: nothing here touches a disk but to read credentials; all that is known was told by
//! launchers and controllers since they connected; no START is answered twice or never.

pub mod bench_place;
mod config;
pub mod core;
pub mod replay;
mod shell;
pub mod table;

pub use config::{ConfigError, FitName, QueuesConfig, SchedulerConfig, TimeoutsConfig};
pub use shell::{Scheduler, run};
