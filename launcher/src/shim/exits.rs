//! How attempts ended, on disk, or in memory until the disk takes it.
//!
//! An attempt without its exit file is one that was never started, to a launcher that has not heard
//! of its end: it would run twice. So a file that can't be written, on a full disk or for want of
//! descriptors, is tried again, and every launcher that comes meanwhile is told.

use super::message::{EXIT_FILE, Exit};
use crate::moment::Moment;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two tries.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Ends that are not on disk. Their number is bounded by the attempts that the launcher may have.
#[derive(Debug, Default)]
pub(super) struct Exits {
    unwritten: Vec<(PathBuf, Exit)>,
    retry_at: Moment,
}

impl Exits {
    /// Writes an attempt's, or keeps it.
    pub(super) fn write(&mut self, directory: PathBuf, exit: Exit) {
        if let Err(error) = write(&directory, &exit) {
            super::say(format_args!(
                "launcher-shim: the exit of {}: {error}",
                exit.key
            ));
            self.unwritten.push((directory, exit));
        }
    }

    /// Tries again what could not be written.
    pub(super) fn retry(&mut self) {
        self.unwritten
            .retain(|(directory, exit)| write(directory, exit).is_err());
        self.retry_at = Moment::now().after(RETRY_INTERVAL);
    }

    /// When that is due.
    pub(super) fn due(&self) -> Option<Moment> {
        (!self.unwritten.is_empty()).then_some(self.retry_at)
    }

    pub(super) fn unwritten(&self) -> impl Iterator<Item = &Exit> {
        self.unwritten.iter().map(|(_, exit)| exit)
    }
}

/// Writes an exit file, over what an earlier attempt may have left in a directory that is reused.
fn write(directory: &Path, exit: &Exit) -> io::Result<()> {
    let bytes = serde_json::to_vec(exit)?;
    match crate::data_dir::overwrite(&directory.join(EXIT_FILE), &bytes) {
        // With its directory the launcher has given up what could run twice.
        Err(_) if !directory.exists() => Ok(()),
        other => other,
    }
}
