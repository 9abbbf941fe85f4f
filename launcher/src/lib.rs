//! The daemon on each compute node: it runs real workloads and reports exactly.
//!
//! A pure core, [`supervisor`], decides; a thin shell connects it to the scheduler, the disk and
//! the runtimes.

pub mod cgroup;
pub mod config;
pub mod data_dir;
pub mod logs;
pub mod moment;
pub mod node;
pub mod privileges;
pub mod runtime;
mod shell;
pub mod shim;
pub mod store;
mod streams;
pub mod supervisor;

pub use config::LauncherConfig;
pub use shell::{end_workloads, run, run_simulated};
