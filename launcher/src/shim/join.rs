//! A command that joins a running instance: the same control group, user, directory and variables.
//!
//! This process starts it, stays beside it and ends with its exit code. Its own standard input is
//! the command's leash: a pipe of the launcher's that is open as long as somebody wants the command.
//! It carries pieces, each four bytes of length (little-endian) and so many bytes. The first is what
//! to join, as JSON: the instance's variables may be secrets, and everybody reads command lines. The
//! others are the command's input; an empty one says that it is complete. When the leash is let go,
//! because nobody listens any more or the launcher has died, the command is killed with its session
//! *before* its input closes: it never takes a part of its input for the whole.
//!
//! It lives no longer than the instance either. Groups are used again, and process ids too: so it
//! executes nothing unless the instance's main process, known by its number and the time of its
//! start, is still there when the groups have been joined. What joined by then ends with the groups.
//! Where there are none, this process sees the instance's end, and takes along what the command has
//! started.

use super::message::{FORMAT, LINE_BYTES};
use super::sys::{self, Child, Nursery, User};
use super::{orphans, say, spawn};
use crate::cgroup::{self, Hierarchy};
use crate::moment::Moment;
use pronto_payloads::instance::{End, EndCause};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// No piece of input is longer; the first piece is as long as a line of the shim's may be.
pub(crate) const PIECE_BYTES: usize = 64 * 1024;
/// The length in front of each.
const PIECE_HEADER_BYTES: usize = 4;
/// Of new files, unless the command says otherwise.
const UMASK: u32 = 0o022;
/// The exit code of what a signal ended, less the signal: the shells' custom.
const SIGNAL_EXIT: i32 = 128;

/// The unit of times in `/proc`: hundredths of a second on every architecture that we build for.
const TICK_NS: u64 = 10_000_000;

/// What to join, and what to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// [`super::message::FORMAT`].
    pub format: u32,
    /// The instance's main process.
    pub pid: i32,
    /// When it was seen to run: another that has its number now was started later.
    pub since: Moment,
    /// The instance's group; absent: it has none.
    pub hierarchy: Option<(Hierarchy, String)>,
    /// The instance's user; absent: this process's own.
    pub user: Option<User>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Where it runs.
    pub workdir: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// A piece as it goes over the leash.
pub(crate) fn push_piece(piece: &[u8], bytes: &mut Vec<u8>) {
    let length = u32::try_from(piece.len()).expect("a piece is shorter than LINE_BYTES");
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(piece);
}

/// Runs the command that standard input tells of, to its end. Returns the exit code.
pub(super) fn run() -> i32 {
    let told = sys::take_stdin().and_then(|leash| {
        let mut leash = File::from(leash);
        Ok((first_piece(&mut leash)?, OwnedFd::from(leash)))
    });
    let Ok((join, leash)) = told else {
        say("launcher-shim join is started by the launcher, which tells it the rest");
        return 64;
    };
    match start(&join, leash) {
        Ok(mut keeper) => {
            let code = keeper.until_ended().unwrap_or_else(|error| {
                say(format_args!("launcher-shim: {error}"));
                keeper.kill();
                SIGNAL_EXIT + libc::SIGKILL
            });
            if join.hierarchy.is_none() {
                orphans::end_all();
            }
            code
        }
        Err(end) => {
            say(end.message);
            match end.cause {
                EndCause::CannotExecute { code } => code,
                _ => 126,
            }
        }
    }
}

/// The main process of the instance that is joined.
struct Instance {
    /// Can be read until the process has been reaped.
    stat: File,
    /// Readable when it has ended; absent where the kernel is too old. There the launcher, when it
    /// hears of the end, lets the leash go.
    end: Option<OwnedFd>,
}

impl Instance {
    /// None: it has ended.
    fn find(pid: i32, since: Moment) -> Option<Self> {
        let mut stat = File::open(format!("/proc/{pid}/stat")).ok()?;
        let end = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok();
        // Only now: as long as this can be read its number is nobody else's.
        let mut text = String::new();
        stat.read_to_string(&mut text).ok()?;
        let started_ticks: u64 = sys::stat_field(&text, 22)?;
        (started_ticks.saturating_mul(TICK_NS) <= since.0).then_some(Self { stat, end })
    }
}

/// The command's keeper.
struct Keeper {
    pid: i32,
    instance: Instance,
    leash: OwnedFd,
    /// Readable when the command has ended.
    signals: OwnedFd,
    /// The command's standard input; absent once it is complete, or read no more.
    input: Option<OwnedFd>,
    /// What came over the leash and is not dealt with.
    inbox: Vec<u8>,
    /// Bytes of the piece at hand that have not been written.
    due: usize,
}

/// What to join.
fn first_piece(leash: &mut impl Read) -> io::Result<Join> {
    let mut header = [0; PIECE_HEADER_BYTES];
    leash.read_exact(&mut header)?;
    let length = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if length > LINE_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut piece = vec![0; length];
    leash.read_exact(&mut piece)?;
    let join: Join = serde_json::from_slice(&piece)?;
    if join.format != FORMAT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(join)
}

fn start(join: &Join, leash: OwnedFd) -> Result<Keeper, End> {
    let failed = |error: io::Error| spawn::node_failed(format!("can't start a process: {error}"));
    if join.hierarchy.is_none() {
        // It fails on no kernel that we know.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    }
    let instance = Instance::find(join.pid, join.since).ok_or_else(spawn::instance_ended)?;
    let mut nursery = Nursery::new().map_err(failed)?;
    // Blocked, so that a command that reads no more is an error of a write and not our end.
    let signals = sys::signal_file(&[libc::SIGCHLD, libc::SIGPIPE]).map_err(failed)?;
    let groups = match &join.hierarchy {
        Some((hierarchy, group)) => cgroup::join_files(hierarchy, group).map_err(failed)?,
        None => Vec::new(),
    };
    let (read, input) = input_pipe().map_err(failed)?;
    let outputs = Outputs::take().map_err(failed)?;
    let candidates = spawn::candidates(&join.command, &join.environment)?;
    let child = Child {
        candidates: &candidates,
        arguments: &spawn::c_strings(&join.command)?,
        environment: &spawn::c_strings(&join.environment)?,
        standard: [read.as_fd(), outputs.stdout.as_fd(), outputs.stderr.as_fd()],
        groups: groups.iter().map(AsFd::as_fd).collect(),
        groups_of: Some(instance.stat.as_fd()),
        reaper: false,
        workdir: &spawn::c_path(&join.workdir)?,
        private_tmp: None,
        user: join.user.as_ref(),
        umask: UMASK,
        no_new_privileges: true,
        data_limit_bytes: None,
        files_limit: None,
        // We have the launcher's, which is spared.
        oom_score: Some(spawn::OOM_SCORE),
    };
    let pid = sys::spawn(&child, &mut nursery)
        .map_err(|error| spawn::explain(&join.command, &join.workdir, &error))?;
    // They end when the command does.
    outputs.give_up().map_err(failed)?;
    Ok(Keeper {
        pid,
        instance,
        leash,
        signals,
        input: Some(input),
        inbox: Vec::with_capacity(PIECE_HEADER_BYTES + PIECE_BYTES),
        due: 0,
    })
}

/// Copies of what we were given to write to: a child's descriptors come from above those that it
/// is to have.
struct Outputs {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Outputs {
    fn take() -> io::Result<Self> {
        Ok(Self {
            stdout: rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?,
            stderr: rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?,
        })
    }

    /// Keeps none of them open.
    fn give_up(self) -> io::Result<()> {
        let null = std::fs::File::options().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        Ok(())
    }
}

/// Ours does not block; the command is not used to one that doesn't.
fn input_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&write, true)?;
    Ok((read, write))
}

impl Keeper {
    /// Feeds the command until it has ended, or kills it when the leash is let go or the instance
    /// has ended.
    fn until_ended(&mut self) -> io::Result<i32> {
        loop {
            self.next_piece();
            let ready = self.due.min(self.inbox.len());
            let input = self.input.as_ref().filter(|_| ready > 0);
            // Nothing more is taken before what is here has gone; that it was let go shows anyhow.
            let wanted = if ready == 0 {
                PollFlags::IN
            } else {
                PollFlags::empty()
            };
            let mut files = vec![
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(&self.leash, wanted),
            ];
            let instance = self.instance.end.as_ref();
            files.extend(instance.map(|end| PollFd::new(end, PollFlags::IN)));
            let input_at = files.len();
            files.extend(input.map(|input| PollFd::new(input, PollFlags::OUT)));
            match poll(&mut files, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let happened: Vec<PollFlags> = files.iter().map(PollFd::revents).collect();
            if !happened[0].is_empty()
                && let Some(code) = self.ended()
            {
                return Ok(code);
            }
            let instance_ended = instance.is_some() && !happened[2].is_empty();
            if instance_ended || happened[1].intersects(PollFlags::HUP | PollFlags::ERR) {
                self.kill();
                // Nobody wants its own exit code.
                return Ok(SIGNAL_EXIT + libc::SIGKILL);
            }
            if happened[1].contains(PollFlags::IN) {
                self.take()?;
            }
            if happened
                .get(input_at)
                .is_some_and(|input| !input.is_empty())
            {
                self.feed(ready)?;
            }
        }
    }

    /// Looks at the next piece's length, if the last one is done.
    fn next_piece(&mut self) {
        if self.due > 0 {
            return;
        }
        let Some(header) = self.inbox.first_chunk::<PIECE_HEADER_BYTES>() else {
            return;
        };
        self.due = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
        self.inbox.drain(..PIECE_HEADER_BYTES);
        if self.due == 0 {
            self.input = None;
        }
    }

    fn take(&mut self) -> io::Result<()> {
        let mut buffer = [0; PIECE_BYTES];
        match rustix::io::read(&self.leash, &mut buffer) {
            Ok(length) => {
                self.inbox.extend_from_slice(&buffer[..length]);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn feed(&mut self, ready: usize) -> io::Result<()> {
        let Some(input) = &self.input else {
            return Ok(());
        };
        match rustix::io::write(input, &self.inbox[..ready]) {
            Ok(length) => {
                self.inbox.drain(..length);
                self.due -= length;
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            // It reads no more. What is left waits for ever, and holds its writer up.
            Err(Errno::PIPE) => {
                self.input = None;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The exit code, once there is one.
    fn ended(&self) -> Option<i32> {
        let _ = sys::pending_signals(self.signals.as_fd());
        // Others are orphans of the command that were handed to us.
        let reaped = std::iter::from_fn(sys::reap).find(|reaped| reaped.pid == self.pid)?;
        Some(reaped.status.unwrap_or_else(|signal| SIGNAL_EXIT + signal))
    }

    /// Kills all of its session before the input can close.
    fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            // Not there: it has just ended by itself.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}
