//! A working directory of an attempt's own: made, or taken over empty from one that is over.
//!
//! Making and removing one costs a file system more than a short task has to spend (on ext4 without
//! a journal the search for an inode passes over all that were freed in the last seconds). So the
//! store keeps empty ones, and this module makes one as good as new: an owner may have left behind
//! more than files.

use crate::shim::sys::User;
use rustix::fs::{IFlags, Mode, OFlags};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Only its user enters it.
const MODE: Mode = Mode::RWXU;
/// Names of extended attributes that fit into this are looked through; more are none of ours.
const NAMES_BYTES: usize = 256;

/// Makes sure that the directory is there and the user's. What is in it stays: input files come
/// before a start.
pub(super) fn make(path: &Path, user: Option<&User>) -> io::Result<()> {
    match fs::DirBuilder::new().mode(MODE.bits()).create(path) {
        Ok(()) => match user {
            Some(user) => std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)),
            None => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => take_over(path, user),
        Err(error) => Err(error),
    }
}

fn take_over(path: &Path, user: Option<&User>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let (uid, gid) = user.map_or_else(
        || (rustix::process::geteuid(), rustix::process::getegid()),
        |user| {
            (
                rustix::fs::Uid::from_raw(user.uid),
                rustix::fs::Gid::from_raw(user.gid),
            )
        },
    );
    let is = rustix::fs::fstat(&directory)?;
    if (is.st_uid, is.st_gid) != (uid.as_raw(), gid.as_raw()) {
        rustix::fs::fchown(&directory, Some(uid), Some(gid))?;
    }
    if Mode::from_raw_mode(is.st_mode) != MODE {
        rustix::fs::fchmod(&directory, MODE)?;
    }
    // Only now can nobody add anything. One with files in it is this attempt's own, and no
    // other's access list may outlast it either.
    if is_plain(&directory) {
        return Ok(());
    }
    fs::remove_dir(path)?;
    make(path, user)
}

/// Whether nothing but its owner and mode tells it from a new one: no access list, no attribute of
/// a user's, no flag that its files would inherit.
fn is_plain(directory: &OwnedFd) -> bool {
    let inherited = IFlags::APPEND
        | IFlags::IMMUTABLE
        | IFlags::SYNC
        | IFlags::DIRSYNC
        | IFlags::NODUMP
        | IFlags::NOATIME
        | IFlags::NOCOW
        | IFlags::COMPRESSED
        | IFlags::PROJECT_INHERIT;
    // A file system without flags has none to leave behind.
    let flags = rustix::fs::ioctl_getflags(directory.as_fd()).unwrap_or(IFlags::empty());
    let mut names = [0; NAMES_BYTES];
    let attributes = match rustix::fs::flistxattr(directory, &mut names[..]) {
        Ok(length) => names[..length]
            .split(|byte| *byte == 0)
            .any(|name| !name.is_empty() && !name.starts_with(b"security.")),
        Err(error) => error != rustix::io::Errno::OPNOTSUPP,
    };
    !attributes && !flags.intersects(inherited)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn inode_and_mode(path: &Path) -> (u64, u32) {
        let data = path.metadata().unwrap();
        (data.ino(), data.mode() & 0o7777)
    }

    #[test]
    fn an_empty_one_is_taken_over_with_its_mode_set_anew() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("work");
        make(&path, None).unwrap();
        let (inode, mode) = inode_and_mode(&path);
        assert_eq!(mode, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o2777)).unwrap();
        make(&path, None).unwrap();
        assert_eq!(inode_and_mode(&path), (inode, 0o700));
    }

    #[test]
    fn what_came_before_the_start_stays() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("work");
        make(&path, None).unwrap();
        fs::write(path.join("input"), "1").unwrap();
        make(&path, None).unwrap();
        assert_eq!(fs::read(path.join("input")).unwrap(), b"1");
    }

    #[test]
    fn one_with_an_attribute_of_a_users_is_made_anew() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("work");
        make(&path, None).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        if let Err(error) = rustix::fs::setxattr(&path, c"user.left", b"here", flags) {
            assert_eq!(error, rustix::io::Errno::OPNOTSUPP);
            eprintln!("this file system has no attributes of users: nothing is shown");
            return;
        }
        make(&path, None).unwrap();
        let names = rustix::fs::listxattr(&path, &mut [0; NAMES_BYTES][..]).unwrap();
        assert_eq!(names, 0);
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("work");
        std::os::unix::fs::symlink("/", &path).unwrap();
        make(&path, None).unwrap_err();
    }
}
