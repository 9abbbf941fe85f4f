//! Durable state: what is written, and the contract of who writes it.
//!
//! The planner names its writes ([`Write`]) in numbered batches; a [`Store`] makes batches durable,
//! many in one transaction, in their order. Nothing that depends on a batch leaves the controller
//! before the store has answered for it. On the straight path of an instance there are two writes:
//! its submission (one row, however many instances it has: their ids can be computed from it) and
//! its end.
//!
//! Invariants:
//! - Batches take effect whole and in order.
//! - A batch that was answered for survives the process and the machine.
//! - Only a full disk may refuse a batch, and then only its admissions; every other failure of
//!   the disk ends the process, since a failed fsync says nothing about what is on disk.

mod check;
mod load;
pub mod memory;
pub mod read;
pub mod rows;
mod schema;
pub mod sqlite;

pub use check::{backup, check, restore_backup};
pub use memory::MemoryStore;
pub use read::{EndedFilter, Reader};
pub use rows::*;
pub use schema::SCHEMA_VERSION;
pub use sqlite::SqliteStore;

use pronto_payloads::ids::InstanceId;
use rusqlite::ErrorCode;

/// Writes that take effect together.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Rises by one.
    pub number: u64,
    pub writes: Vec<Write>,
}

/// How a group of batches went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// For lack of room on the disk the admissions in these batches were left out; all else in
    /// them is durable.
    pub admissions_refused: bool,
}

/// Why the store can't go on. The process ends on it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite failed.
    #[error("the database failed: {0}")]
    Sqlite(#[source] rusqlite::Error),
    /// Something beside the database failed.
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    /// Another controller holds the file.
    #[error("{path} is held by another controller; one controller a data directory")]
    Locked { path: String },
    /// The file was written by a newer build.
    #[error(
        "the database has schema {found}, this build knows up to {known}; use the newer build, or \
         restore the backup that its migration made"
    )]
    Newer { found: u32, known: u32 },
    /// The file is not what it should be.
    #[error(
        "the database is damaged ({0}); stop the controller and restore a backup with `pronto \
         controller --restore-backup FILE`"
    )]
    Damaged(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        // Damage is met by whatever touches it first, an integrity check or not, and what is to be
        // done about it is the same.
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Sqlite(error),
        }
    }
}

/// Makes batches durable. One writer; synchronous, on a thread of its own.
pub trait Store {
    /// Makes all of these batches durable, in their order, before it returns.
    ///
    /// # Errors
    /// Anything but a full disk; the caller must end the process.
    fn commit(&mut self, batches: &[Batch]) -> Result<Committed, StoreError>;

    /// What is known of an instance that is not alive: for reports about the past.
    ///
    /// # Errors
    /// If it can't be read.
    fn lookup(&mut self, id: InstanceId) -> Result<Past, StoreError>;
}

/// What a store knows of an instance that is not alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// Nothing.
    Unknown,
    /// Retention has removed what it knew.
    Purged,
    /// It has ended.
    Ended {
        /// The highest number that an attempt of it was given.
        highest_attempt: u32,
    },
}
