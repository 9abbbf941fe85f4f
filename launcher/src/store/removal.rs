//! Removes what workloads leave behind: trees as deep as they like to make them.
//!
//! A workload decides how deep its directories go, and could so choose the end of whoever goes down
//! by recursion, or with a descriptor for each level. Here two are open at a time: the way up is `..`,
//! and what it leads to is compared with where the way down came from. No link is followed, since every
//! name is one component and none is opened but as a directory; and nothing is entered that another
//! file system is mounted on, since the kernel calls it busy before it says that it is not empty.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Levels whose way up is remembered: 24 MiB. From below a deeper one the way leads over the top again.
const LEVELS: usize = 1 << 20;
/// Names that are read at once. A directory is read on behind a subdirectory that has gone, so that more
/// would be read for nothing.
const NAMES_BYTES: usize = 2048;

/// Which directory it is, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64);

/// A directory on the way down, and where in it that way goes on.
struct Level {
    directory: Identity,
    position: u64,
}

/// Removes whatever is at this path, with all that is below it.
///
/// # Errors
/// At the first entry that can't be removed; what went before it is gone.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    remove(path, LEVELS)
}

fn remove(path: &Path, levels: usize) -> io::Result<()> {
    let mut here = match open(CWD, path) {
        Err(Errno::NOTDIR | Errno::LOOP) => return fs::remove_file(path),
        opened => opened?,
    };
    let top = identity(&here)?;
    let mut above: VecDeque<Level> = VecDeque::new();
    let (mut position, mut emptied) = (0, None);
    loop {
        if let Some((name, at)) = empty(&here, position)? {
            let below = open(&here, &*name)?;
            if emptied == Some(identity(&below)?) {
                // Somebody fills it while we empty it.
                return Err(Errno::NOTEMPTY.into());
            }
            if above.len() == levels {
                above.pop_front();
            }
            let directory = identity(&here)?;
            above.push_back(Level {
                directory,
                position: at,
            });
            (here, position) = (below, 0);
        } else if position > 0 {
            // Where removals move what follows them, something was passed over.
            position = 0;
        } else if let Some(level) = above.pop_back() {
            emptied = Some(identity(&here)?);
            here = open(&here, c"..")?;
            if identity(&here)? != level.directory {
                let text = "a directory was moved while its tree was removed";
                return Err(io::Error::other(text));
            }
            position = level.position;
        } else if identity(&here)? == top {
            return Ok(rustix::fs::rmdir(path)?);
        } else {
            here = open(CWD, path)?;
        }
    }
}

/// Removes what is in a directory from this position on, until a subdirectory is not empty: gives its
/// name, and the position before it.
fn empty(directory: &OwnedFd, mut position: u64) -> io::Result<Option<(Box<CStr>, u64)>> {
    rustix::fs::seek(directory, SeekFrom::Start(position))?;
    let mut buffer = [MaybeUninit::uninit(); NAMES_BYTES];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            match remove_entry(directory, name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(Some((name.into(), position))),
                Err(error) => return Err(error.into()),
            }
        }
        position = entry.next_entry_cookie();
    }
    Ok(None)
}

fn remove_entry(directory: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR),
        done => done,
    }
}

fn open(at: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn identity(directory: &OwnedFd) -> Result<Identity, Errno> {
    let is = rustix::fs::fstat(directory)?;
    Ok(Identity(is.st_dev, is.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each level has these directories, the last of which leads on, and a file.
    fn dig(top: &Path, levels: usize, names: &[&str]) {
        let mut here = open(CWD, top).unwrap();
        for _ in 0..levels {
            for name in names {
                rustix::fs::mkdirat(&here, *name, Mode::RWXU).unwrap();
            }
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&here, "file", flags, Mode::RUSR).unwrap();
            here = open(&here, *names.last().unwrap()).unwrap();
        }
    }

    #[test]
    fn a_tree_of_any_depth_goes() {
        // In memory: a disk takes its time for so many.
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let top = place.path().join("top");
        fs::create_dir(&top).unwrap();
        dig(&top, 20_000, &["d"]);
        let small = std::thread::Builder::new().stack_size(64 * 1024);
        let path = top.clone();
        let removed = small.spawn(move || remove_tree(&path)).unwrap().join();
        removed.unwrap().unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn a_way_up_that_was_too_long_to_remember_leads_over_the_top() {
        let place = tempfile::tempdir().unwrap();
        let top = place.path().join("top");
        fs::create_dir(&top).unwrap();
        dig(&top, 100, &["a", "z", "down"]);
        remove(&top, 7).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn a_wide_tree_goes_and_nothing_that_links_lead_to() {
        let place = tempfile::tempdir().unwrap();
        let (top, other) = (place.path().join("top"), place.path().join("other"));
        fs::create_dir(&other).unwrap();
        fs::write(other.join("stays"), "").unwrap();
        for number in 0..300 {
            let below = top.join(format!("{number}/{number}"));
            fs::create_dir_all(&below).unwrap();
            fs::write(below.join("file"), "").unwrap();
            std::os::unix::fs::symlink(&other, below.join("link")).unwrap();
        }
        std::os::unix::fs::symlink(&other, top.join("link")).unwrap();
        remove_tree(&top).unwrap();
        assert!(!top.exists() && other.join("stays").exists());
        // At the top too it is the link that goes.
        std::os::unix::fs::symlink(&other, &top).unwrap();
        remove_tree(&top).unwrap();
        assert!(!top.is_symlink() && other.join("stays").exists());
    }

    #[test]
    fn what_can_not_be_removed_is_told() {
        let place = tempfile::tempdir().unwrap();
        let error = remove_tree(&place.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
