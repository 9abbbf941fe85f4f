//! Room that is set aside for what must be written on a full disk: that something is to be stopped.
//!
//! A file of nothing, cut shorter by a piece whenever such a write finds no room. Without it a workload
//! that fills the disk could not be stopped, since its launcher can't remember the STOP.

use rustix::fs::FallocateFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const WHOLE: u64 = 1024 * 1024;
/// More than a write needs: whoever fills the disk takes what is left over.
const PIECE: u64 = 16 * 1024;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Ballast {
    file: File,
    bytes: u64,
}

impl Ballast {
    /// The file at this path, with as much room as the disk gives.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)?;
        let bytes = file.metadata()?.len();
        let mut ballast = Self { file, bytes };
        ballast.refill();
        Ok(ballast)
    }

    /// Runs a write; where it finds no room, again with some that was set aside.
    pub(super) fn write(&mut self, mut write: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        self.refill();
        loop {
            match write() {
                Err(error) if is_full(&error) && self.give() => {}
                done => return done,
            }
        }
    }

    /// Takes back what was given, once there is room. A file system that can't allocate has none to set
    /// aside.
    fn refill(&mut self) {
        if self.bytes < WHOLE
            && rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, WHOLE).is_ok()
        {
            self.bytes = WHOLE;
        }
    }

    fn give(&mut self) -> bool {
        let left = self.bytes.saturating_sub(PIECE);
        let given = left < self.bytes && self.file.set_len(left).is_ok();
        if given {
            self.bytes = left;
        }
        given
    }
}

/// Whether it is room that was missing.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
