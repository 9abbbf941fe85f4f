//! What lies in a directory, without following links.

use rustix::fs::{Mode, OFlags, RawDir};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Names of a directory that are read at once.
const NAMES_BYTES: usize = 2048;

pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

pub(super) fn is_empty(directory: &OwnedFd) -> io::Result<bool> {
    let mut empty = true;
    each_name(directory, |_| {
        empty = false;
        false
    })?;
    Ok(empty)
}

/// Names while they are wanted. They are read into the stack: an attempt's directory takes one call,
/// and the standard library's 32 KiB from the heap cost more than that.
pub(super) fn each_name(
    directory: &OwnedFd,
    mut wants_more: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); NAMES_BYTES];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." && !wants_more(name) {
            break;
        }
    }
    Ok(())
}
