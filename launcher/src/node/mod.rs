//! What this machine is and how it does: facts for HELLO, load for STATS, pressure for FULL.
//!
//! Read from /proc and the file system; decides nothing.

mod facts;
mod load;

pub use facts::{boot_id, facts};
pub use load::LoadMeter;
