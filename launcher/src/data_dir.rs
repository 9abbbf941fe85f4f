//! Where things lie in the data directory. Nothing but names; `store` reads and writes them.
//!
//! ```text
//! lock                      held by the launcher that uses the directory
//! node.json                 node uuid, session epoch, mode, term, epochs of owners      (fsynced)
//! tombstones.jsonl          what STOP forbade, and ends of what never started
//! ballast                   room for these two on a full disk
//! shim.sock, shim.pid, shim.log
//! qemu/                     the same of the shim that owns virtual machines
//! instances/<instance>.<attempt>/
//!     record.json           what its START asked for; kept.json once its end is acknowledged
//!     exit.json             how it ended, written by the shim
//!     log.000000 …          its output
//!     stdin                 a named pipe, if it is fed
//!     work/                 its working directory, always made anew
//!     tmp/                  its /tmp, if it has one of its own
//! instances/spare.<n>/      an empty attempt's directory, to be renamed and used again
//! ```

use pronto_payloads::ids::{Attempt, InstanceId};
use pronto_payloads::place::AttemptId;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A record of an attempt that is not acknowledged.
pub const RECORD_FILE: &str = "record.json";
/// A record whose end is acknowledged: its files age.
pub const KEPT_FILE: &str = "kept.json";
/// The working directory.
pub const WORK_DIRECTORY: &str = "work";

/// A launcher's data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// This path.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What must not start, or not again.
    #[must_use]
    pub fn tombstones(&self) -> PathBuf {
        self.0.join("tombstones.jsonl")
    }

    /// Who this directory's shim is.
    #[must_use]
    pub fn shim_pid(&self) -> PathBuf {
        self.0.join("shim.pid")
    }

    /// All attempts' directories.
    #[must_use]
    pub fn instances(&self) -> PathBuf {
        self.0.join("instances")
    }

    /// An attempt's directory.
    #[must_use]
    pub fn attempt(&self, id: &AttemptId) -> PathBuf {
        self.instances().join(key(id))
    }

    /// An attempt's own working directory.
    #[must_use]
    pub fn work(&self, id: &AttemptId) -> PathBuf {
        self.attempt(id).join(WORK_DIRECTORY)
    }
}

/// The name of an attempt's directory, and of the attempt towards the shim.
#[must_use]
pub fn key(id: &AttemptId) -> String {
    format!("{}.{}", id.instance, id.attempt)
}

/// Instance and attempt of a directory's name.
#[must_use]
pub fn parse_key(name: &str) -> Option<(InstanceId, Attempt)> {
    let (instance, attempt) = name.split_once('.')?;
    Some((instance.parse().ok()?, Attempt(attempt.parse().ok()?)))
}

/// Writes a file that may be there already, in place: neither its directory nor its blocks change,
/// which costs a fifth of making and removing one. A reader must know an older content by itself.
///
/// # Errors
/// If it can't be written.
pub fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    let length = bytes.len() as u64;
    if file.metadata()?.len() == length {
        return Ok(());
    }
    file.set_len(length)
}
