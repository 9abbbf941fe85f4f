//! What this machine is and how it does: facts for HELLO, load for STATS, pressure for FULL.
//!
//! Read from /proc, the file system and NVML; decides nothing.

mod facts;
mod gpus;
mod load;
mod nvml;

pub use facts::{boot_id, facts};
pub use gpus::Gpus;
pub use load::LoadMeter;
