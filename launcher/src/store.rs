//! The launcher's durable state on disk: versioned JSON, a directory an attempt.
//!
//! A crash of this process must lose nothing; a crash of the machine may, because another boot id
//! proves all work gone anyway. So attempts and tombstones are written without fsync, and only what
//! must hold across boots is synced: node uuid, session epoch, mode, term, epochs of owners.
//!
//! It leaves names to `data_dir` and everything about processes to the runtimes.

mod attempts;
mod ballast;
mod listing;
mod node;
mod removal;
mod spares;

pub use attempts::AttemptStore;
pub use node::NodeStore;
