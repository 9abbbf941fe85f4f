//! From a request to a running process: where the program lies, its pipes, and what an error of
//! the last steps means to its user.

use super::message::{STDIN_PIPE, Spawn};
use super::sys::{self, Child, FilesLimit, Nursery, SpawnError, Stage};
use super::workload::Workload;
use crate::cgroup::Group;
use crate::moment::Moment;
use pronto_payloads::instance::{End, EndCause};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Where a process says how readily the kernel may end it for lack of memory.
pub(super) const OOM_SCORE: &CStr = c"/proc/self/oom_score_adj";

/// Starts children; holds what all of them share.
#[derive(Debug)]
pub(super) struct Spawner {
    null: OwnedFd,
    nursery: Nursery,
    /// We are spared by the kernel's out-of-memory killer; our children must not be.
    protected: bool,
    /// Of descriptors, as we were given it: programs that use `select` can't do with our own.
    files_limit: Option<FilesLimit>,
}

/// Why nothing runs, and the group that is free again.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) end: End,
    pub(super) group: Option<Group>,
}

/// The two ends of a child's standard input, and who keeps it open.
struct Stdin {
    read: OwnedFd,
    holder: OwnedFd,
}

impl Spawner {
    pub(super) fn new(protected: bool, files_limit: Option<FilesLimit>) -> io::Result<Self> {
        Ok(Self {
            nursery: Nursery::new()?,
            null: sys::null()?,
            protected,
            files_limit,
        })
    }

    /// Starts a workload in its group. Gives the group back if nothing runs.
    pub(super) fn start(
        &mut self,
        spawn: Spawn,
        group: Option<Group>,
    ) -> Result<Workload, Box<Refused>> {
        match self.try_start(&spawn, group.as_ref()) {
            Ok((pid, at, pipes, holder)) => Ok(Workload::new(spawn, pid, at, group, pipes, holder)),
            Err(end) => Err(Box::new(Refused { end, group })),
        }
    }

    #[expect(
        clippy::type_complexity,
        reason = "the parts of a workload, taken apart at once"
    )]
    fn try_start(
        &mut self,
        spawn: &Spawn,
        group: Option<&Group>,
    ) -> Result<(i32, Moment, [Option<OwnedFd>; 2], Option<OwnedFd>), End> {
        let arguments = c_strings(&spawn.command)?;
        let environment = c_strings(&spawn.environment)?;
        let candidates = candidates(&spawn.command, &spawn.environment)?;
        let workdir = c_path(&spawn.workdir)?;
        let tmp = spawn.private_tmp.then(|| private_tmp(spawn)).transpose()?;
        let failed = |error: io::Error| node_failed(format!("no pipe could be made: {error}"));
        let stdin = spawn
            .stdin
            .then(|| stdin_pipe(&spawn.directory))
            .transpose()
            .map_err(failed)?;
        let (out_read, out_write) = output_pipe().map_err(failed)?;
        let (err_read, err_write) = output_pipe().map_err(failed)?;
        let child = Child {
            candidates: &candidates,
            arguments: &arguments,
            environment: &environment,
            standard: [
                stdin
                    .as_ref()
                    .map_or(self.null.as_fd(), |stdin| stdin.read.as_fd()),
                out_write.as_fd(),
                err_write.as_fd(),
            ],
            groups: group.iter().flat_map(|group| group.join_fds()).collect(),
            groups_of: None,
            reaper: group.is_none(),
            workdir: &workdir,
            private_tmp: tmp.as_deref(),
            user: spawn.user.as_ref(),
            umask: spawn.umask,
            no_new_privileges: !spawn.new_privileges,
            data_limit_bytes: group.is_none().then_some(
                spawn
                    .limits
                    .memory_bytes
                    .max(crate::cgroup::MEMORY_MIN_BYTES),
            ),
            files_limit: self.files_limit,
            oom_score: self.protected.then_some(OOM_SCORE),
        };
        match sys::spawn(&child, &mut self.nursery) {
            Ok(pid) => {
                let holder = stdin.map(|stdin| stdin.holder);
                Ok((pid, Moment::now(), [Some(out_read), Some(err_read)], holder))
            }
            Err(error) => Err(explain(&spawn.command, &spawn.workdir, &error)),
        }
    }
}

/// Its node's fault: another may do better.
pub(super) fn node_failed(message: String) -> End {
    End {
        cause: EndCause::Rejected,
        message,
    }
}

/// Of a command that was to join one.
pub(super) fn instance_ended() -> End {
    node_failed("the instance has ended".into())
}

fn cannot_execute(code: i32, message: String) -> End {
    End {
        cause: EndCause::CannotExecute { code },
        message,
    }
}

/// What a failed step means, in words and as 126 or 127.
pub(super) fn explain(command: &[String], workdir: &Path, failed: &SpawnError) -> End {
    let program = command.first().map_or("", String::as_str);
    let error = &failed.error;
    match failed.stage {
        Stage::Execute if error.kind() == io::ErrorKind::NotFound => {
            cannot_execute(127, format!("{program}: command not found"))
        }
        Stage::Execute if error.raw_os_error() == Some(libc::ENOEXEC) => cannot_execute(
            126,
            format!("{program}: not a program of this machine, nor a script with a #! line"),
        ),
        Stage::Execute => cannot_execute(126, format!("{program}: can't be executed: {error}")),
        Stage::Workdir => cannot_execute(
            126,
            format!("{}: can't work there: {error}", workdir.display()),
        ),
        Stage::User => cannot_execute(
            126,
            format!("can't become the user of the workload: {error}"),
        ),
        Stage::Instance => instance_ended(),
        Stage::PrivateTmp => node_failed(format!("can't give it a /tmp of its own: {error}")),
        Stage::Fork | Stage::Group | Stage::Session | Stage::Descriptors | Stage::Limits => {
            node_failed(format!(
                "can't start a process ({:?}): {error}",
                failed.stage
            ))
        }
    }
}

fn c_string(text: &[u8]) -> Result<CString, End> {
    CString::new(text).map_err(|_| cannot_execute(126, "a NUL character in its command".into()))
}

pub(super) fn c_strings(texts: &[String]) -> Result<Vec<CString>, End> {
    texts.iter().map(|text| c_string(text.as_bytes())).collect()
}

pub(super) fn c_path(path: &Path) -> Result<CString, End> {
    c_string(path.as_os_str().as_bytes())
}

/// As a shell looks for it: a name with a slash is a path, another lies in one of PATH's places.
pub(super) fn candidates(command: &[String], environment: &[String]) -> Result<Vec<CString>, End> {
    let program = command.first().map_or("", String::as_str);
    if program.contains('/') {
        return Ok(vec![c_string(program.as_bytes())?]);
    }
    let path = environment
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="));
    path.unwrap_or(DEFAULT_PATH)
        .split(':')
        .map(|place| if place.is_empty() { "." } else { place })
        .map(|place| c_string(format!("{place}/{program}").as_bytes()))
        .collect()
}

fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    // Only our end: a workload is not used to a non-blocking standard output.
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}

/// A named pipe, so that any launcher of this directory may feed it; we hold it open until told
/// that nobody will.
fn stdin_pipe(directory: &Path) -> io::Result<Stdin> {
    let path = directory.join(STDIN_PIPE);
    match rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let open = |flags: OFlags| rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty());
    let read = open(OFlags::RDONLY | OFlags::NONBLOCK)?;
    let holder = open(OFlags::WRONLY | OFlags::NONBLOCK)?;
    rustix::io::ioctl_fionbio(&read, false)?;
    Ok(Stdin { read, holder })
}

fn private_tmp(spawn: &Spawn) -> Result<CString, End> {
    let path = spawn.directory.join("tmp");
    let made = std::fs::create_dir_all(&path)
        .and_then(|()| rustix::fs::chmod(&path, Mode::from_raw_mode(0o1777)).map_err(Into::into));
    made.map_err(|error| node_failed(format!("{}: {error}", path.display())))?;
    c_path(&path)
}
