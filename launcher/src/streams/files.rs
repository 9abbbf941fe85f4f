//! Files into and out of an instance's directory.
//!
//! The launcher may be root and the directory is the workload's to fill, with links too: every
//! path is resolved by the kernel beneath the directory, and nothing outside of it is reached. Nor is
//! anything opened but directories and regular files, since opening a device can act.

use super::channel::{Inbound, Reader, Upward};
use super::{Context, Known};
use crate::runtime::{FileRoot, Refused};
use pronto_payloads::stream::{Channel, StreamEnd, StreamFailure};
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Bytes that are read from a file in one go.
const READ_BYTES: usize = 128 * 1024;
/// Paths that a pattern may match: more is a mistake.
const LISTED: usize = 10_000;
/// Directories that a listing goes down.
const DEPTH: usize = 32;

/// A file that is to be made.
#[derive(Clone, Debug)]
pub(super) struct NewFile {
    pub(super) path: String,
    pub(super) mode: u32,
    pub(super) bytes: u64,
}

fn root(context: &Context, known: &Known) -> Result<FileRoot, Refused> {
    let kind = known.job.runtime();
    let runtime = context.runtimes.of(kind);
    runtime
        .and_then(|runtime| runtime.files(&known.job))
        .ok_or_else(|| Refused::unsupported(kind, "copy files of this instance"))
}

fn refused(path: &str, error: &io::Error) -> Refused {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => StreamFailure::NotFound,
        _ => StreamFailure::Failed,
    };
    let text = match error.raw_os_error() {
        Some(libc::EXDEV) => format!("{path}: leads out of the instance's directory"),
        _ => format!("{path}: {error}"),
    };
    Refused::new(kind, text)
}

/// A path as it is meant: relative to the instance's directory.
fn relative(path: &str) -> Result<PathBuf, Refused> {
    let clean: PathBuf = Path::new(path)
        .components()
        .filter(|part| !matches!(part, Component::CurDir))
        .collect();
    let inside = clean
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if inside && !clean.as_os_str().is_empty() {
        Ok(clean)
    } else {
        let text = format!("{path}: accepted: a path below the instance's directory, without '..'");
        Err(Refused::new(StreamFailure::Unsupported, text))
    }
}

async fn blocking<T: Send + 'static>(
    path: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Refused> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome
        .map_err(io::Error::from)
        .and_then(|outcome| outcome)
        .map_err(|error| refused(path, &error))
}

fn open_root(root: &FileRoot) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(&root.path, flags, Mode::empty())?)
}

fn open_beneath(at: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(
        at,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?)
}

/// Opens a regular file for reading. It is looked at before it is opened, and then opened as what was
/// looked at, whatever its name stands for by then.
fn open_file(root: &FileRoot, path: &Path) -> io::Result<File> {
    let found = open_beneath(open_root(root)?, path, OFlags::PATH)?;
    let is = rustix::fs::fstat(&found)?;
    if FileType::from_raw_mode(is.st_mode) == FileType::RegularFile {
        File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
    } else {
        let kind = io::ErrorKind::InvalidInput;
        Err(io::Error::new(kind, "not a regular file"))
    }
}

pub(super) async fn copy_out(
    context: &Context,
    known: &Known,
    path: &str,
    upward: &Upward,
) -> Result<StreamEnd, Refused> {
    let root = root(context, known)?;
    let wanted = relative(path)?;
    let mut file = blocking(path, move || open_file(&root, &wanted)).await?;
    let mut hash = Sha256::new();
    loop {
        let (back, bytes) = blocking(path, move || {
            let mut bytes = vec![0; READ_BYTES];
            let length = file.read(&mut bytes)?;
            bytes.truncate(length);
            Ok((file, bytes))
        })
        .await?;
        file = back;
        if bytes.is_empty() {
            return Ok(StreamEnd::Complete {
                code: None,
                sha256: hash.finalize().to_vec(),
            });
        }
        hash.update(&bytes);
        if upward.data(Channel::File, &bytes).await.is_err() {
            return Ok(StreamEnd::Complete {
                code: None,
                sha256: Vec::new(),
            });
        }
    }
}

/// A file under a temporary name, until it is whole.
struct Part {
    directory: OwnedFd,
    temporary: String,
    name: PathBuf,
    file: File,
    done: bool,
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.done {
            // An opener that went away leaves nothing half-written behind.
            let _ = rustix::fs::unlinkat(&self.directory, &self.temporary, AtFlags::empty());
        }
    }
}

impl Part {
    fn create(root: &FileRoot, path: &Path, mode: u32) -> io::Result<Self> {
        let directory = make_parents(root, path)?;
        let name = PathBuf::from(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
        let temporary = format!(".pronto-{}", uuid::Uuid::new_v4().simple());
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & 0o777);
        let file = rustix::fs::openat(&directory, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::fchmod(&file, mode)?;
        own(&file, root)?;
        Ok(Self {
            directory,
            temporary,
            name,
            file: file.into(),
            done: false,
        })
    }

    fn finish(mut self) -> io::Result<()> {
        rustix::fs::renameat(
            &self.directory,
            &self.temporary,
            &self.directory,
            &self.name,
        )?;
        self.done = true;
        Ok(())
    }
}

fn own(file: impl AsFd, root: &FileRoot) -> io::Result<()> {
    if let Some((uid, gid)) = root.owner {
        rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok(())
}

/// The directory of a path, made as far as it is not there.
fn make_parents(root: &FileRoot, path: &Path) -> io::Result<OwnedFd> {
    let mut directory = open_root(root)?;
    let Some(parent) = path.parent() else {
        return Ok(directory);
    };
    for part in parent.components() {
        let part = Path::new(part.as_os_str());
        let made = rustix::fs::mkdirat(&directory, part, Mode::from_raw_mode(0o755));
        let next = open_beneath(&directory, part, OFlags::DIRECTORY | OFlags::RDONLY)?;
        match made {
            Ok(()) => own(&next, root)?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        directory = next;
    }
    Ok(directory)
}

pub(super) async fn copy_in(
    context: &Context,
    known: &Known,
    file: NewFile,
    mut reader: Reader,
) -> Result<StreamEnd, Refused> {
    let root = root(context, known)?;
    let wanted = relative(&file.path)?;
    let path = file.path.clone();
    let mode = file.mode;
    let mut part = blocking(&path, move || Part::create(&root, &wanted, mode)).await?;
    let mut hash = Sha256::new();
    let mut missing = file.bytes;
    let claimed = loop {
        match reader.next().await {
            Some(Inbound::Data(bytes)) => {
                let Some(rest) = missing.checked_sub(bytes.len() as u64) else {
                    let text = format!(
                        "{path}: more than the {} bytes that were announced",
                        file.bytes
                    );
                    return Err(Refused::new(StreamFailure::Failed, text));
                };
                missing = rest;
                hash.update(&bytes);
                part = blocking(&path, move || part.file.write_all(&bytes).map(|()| part)).await?;
            }
            Some(Inbound::End(StreamEnd::Complete { sha256, .. })) => break sha256,
            Some(Inbound::End(StreamEnd::Failed { text, .. })) => {
                return Err(Refused::new(StreamFailure::Failed, text));
            }
            None => {
                return Err(Refused::new(
                    StreamFailure::Unreachable,
                    "the session has ended",
                ));
            }
        }
    };
    let sha256 = hash.finalize().to_vec();
    if missing > 0 || (!claimed.is_empty() && claimed != sha256) {
        let text = format!("{path}: the file did not arrive whole ({missing} bytes are missing)");
        return Err(Refused::new(StreamFailure::Failed, text));
    }
    blocking(&path, move || part.finish()).await?;
    Ok(StreamEnd::Complete { code: None, sha256 })
}

pub(super) async fn list(
    context: &Context,
    known: &Known,
    pattern: &str,
    upward: &Upward,
) -> Result<StreamEnd, Refused> {
    let root = root(context, known)?;
    let clean = relative(pattern)?;
    let compiled = glob::Pattern::new(&clean.to_string_lossy())
        .map_err(|error| Refused::new(StreamFailure::Unsupported, format!("{pattern}: {error}")))?;
    let found = blocking(pattern, move || {
        let mut found = Vec::new();
        let directory = open_root(&root)?;
        walk(&directory, Path::new(""), &compiled, DEPTH, &mut found)?;
        found.sort();
        Ok(found)
    })
    .await?;
    if found.len() > LISTED {
        let text = format!("{pattern}: matches more than {LISTED} files");
        return Err(Refused::new(StreamFailure::Unsupported, text));
    }
    let text: String = found.iter().map(|path| format!("{path}\n")).collect();
    // If the session has ended there is nobody to tell.
    let _ = upward.data(Channel::Stdout, text.as_bytes()).await;
    Ok(StreamEnd::Complete {
        code: None,
        sha256: Vec::new(),
    })
}

/// Regular files beneath a directory that match. Links are not followed, also where one takes a
/// directory's place meanwhile: the way down is one of descriptors.
fn walk(
    directory: &OwnedFd,
    below: &Path,
    pattern: &glob::Pattern,
    depth: usize,
    found: &mut Vec<String>,
) -> io::Result<()> {
    let options = glob::MatchOptions {
        require_literal_separator: true,
        require_literal_leading_dot: true,
        case_sensitive: true,
    };
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let path = below.join(OsStr::from_bytes(name.to_bytes()));
        let kind = match entry.file_type() {
            FileType::Unknown => kind_of(directory, name)?,
            known => known,
        };
        if kind.is_dir() && depth > 0 {
            if let Some(next) = enter(directory, name)? {
                walk(&next, &path, pattern, depth - 1, found)?;
            }
        } else if kind.is_file() && pattern.matches_path_with(&path, options) {
            // A name that is no text can't be named in an answer.
            found.extend(path.to_str().map(str::to_owned));
        }
        if found.len() > LISTED {
            return Ok(());
        }
    }
    Ok(())
}

/// For file systems whose directories do not say.
fn kind_of(directory: &OwnedFd, name: &CStr) -> io::Result<FileType> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(is) => Ok(FileType::from_raw_mode(is.st_mode)),
        Err(Errno::NOENT) => Ok(FileType::Unknown),
        Err(error) => Err(error.into()),
    }
}

/// A directory that was there a moment ago; nothing if it has gone, or is something else.
fn enter(directory: &OwnedFd, name: &CStr) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(next) => Ok(Some(next)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below() {
        assert_eq!(relative("./a//b").unwrap(), Path::new("a/b"));
        for bad in ["/etc/passwd", "../x", "a/../../b", "", "."] {
            assert!(relative(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn links_out_of_the_directory_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", directory.path().join("out")).unwrap();
        let root = FileRoot {
            path: directory.path().to_owned(),
            owner: None,
        };
        let at = open_root(&root).unwrap();
        let error = open_beneath(&at, Path::new("out/passwd"), OFlags::RDONLY).unwrap_err();
        assert_eq!(
            refused("x", &error).text,
            "x: leads out of the instance's directory"
        );
        assert!(Part::create(&root, Path::new("out/new"), 0o644).is_err());
        let mut part = Part::create(&root, Path::new("a/b/c"), 0o640).unwrap();
        part.file.write_all(b"x").unwrap();
        part.finish().unwrap();
        drop(Part::create(&root, Path::new("a/gone"), 0o640).unwrap());
        assert_eq!(listed(&root), ["a/b/c"]);
    }

    fn listed(root: &FileRoot) -> Vec<String> {
        let (directory, all) = (open_root(root).unwrap(), glob::Pattern::new("**/*"));
        let mut found = Vec::new();
        walk(&directory, Path::new(""), &all.unwrap(), 9, &mut found).unwrap();
        found
    }

    #[test]
    fn a_link_that_takes_a_directorys_place_is_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let root = FileRoot {
            path: place.path().join("root"),
            owner: None,
        };
        let other = place.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("secret"), "").unwrap();
        for number in 0..50 {
            std::fs::create_dir_all(root.path.join(number.to_string())).unwrap();
        }
        std::os::unix::fs::symlink(&other, root.path.join("link")).unwrap();
        let directory = open_root(&root).unwrap();
        std::thread::scope(|scope| {
            let swapping = scope.spawn(|| {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                for _ in 0..20_000 {
                    rustix::fs::renameat_with(&directory, "49", &directory, "link", exchange)
                        .unwrap();
                }
            });
            while !swapping.is_finished() {
                assert_eq!(listed(&root), Vec::<String>::new());
            }
        });
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        use rustix::fs::inotify;
        let place = tempfile::tempdir().unwrap();
        let root = FileRoot {
            path: place.path().to_owned(),
            owner: None,
        };
        // For a device, which only root can make.
        let pipe = place.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        std::fs::write(place.path().join("file"), "content").unwrap();
        let opened = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&opened, &pipe, inotify::WatchFlags::OPEN).unwrap();
        let error = open_file(&root, Path::new("pipe")).unwrap_err();
        assert_eq!(error.to_string(), "not a regular file");
        let seen = rustix::io::read(&opened, &mut [0; 256]);
        assert_eq!(seen, Err(Errno::AGAIN), "nobody opened it");
        let file = open_file(&root, Path::new("file")).unwrap();
        assert_eq!(io::read_to_string(file).unwrap(), "content");
    }
}
