//! Directories kept for the next attempts, with nothing in them but a record and an exit that are over,
//! and an empty working directory: short tasks would otherwise spend more on making and removing them
//! than on their process.

use super::listing;
use rustix::fs::Mode;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// More than end at once on most nodes.
const SPARES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Spares {
    paths: Vec<PathBuf>,
    next: u64,
}

impl Spares {
    /// Puts an attempt's directory aside, under another name beside it; says whether there was room.
    pub(super) fn put(&mut self, path: &Path) -> bool {
        if self.paths.len() == SPARES {
            return false;
        }
        let spare = path.with_file_name(format!("spare.{}", self.next));
        self.next += 1;
        let put = fs::rename(path, &spare).is_ok();
        if put {
            self.paths.push(spare);
        }
        put
    }

    pub(super) fn take(&mut self) -> Option<PathBuf> {
        self.paths.pop()
    }
}

/// Takes a working directory, if there is one, from the user who had it last; says whether that user
/// has left nothing in it meanwhile.
pub(super) fn take_back(work: &Path) -> io::Result<bool> {
    let directory = match listing::open(work) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    rustix::fs::fchown(&directory, Some(uid), Some(gid))?;
    rustix::fs::fchmod(&directory, Mode::RWXU)?;
    // Only now can that user add nothing more.
    listing::is_empty(&directory)
}
