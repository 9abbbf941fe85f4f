//! The daemon on each compute node: it runs real workloads and reports exactly.
//!
//! A pure core, [`supervisor`], decides; a thin shell connects it to the scheduler, the disk and
//! the runtimes.

pub mod moment;
pub mod supervisor;
