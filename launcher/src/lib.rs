//! The daemon on each compute node: it runs real workloads and reports exactly.
//!
//! A pure core, [`supervisor`], decides; a thin shell connects it to the scheduler, the disk and
//! the runtimes.

pub mod cgroup;
pub mod data_dir;
pub mod logs;
pub mod moment;
pub mod runtime;
pub mod shim;
pub mod store;
pub mod supervisor;
