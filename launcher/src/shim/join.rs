//! A command that joins a running instance: the same control group, user, directory and variables.
//!
//! This process starts it, stays beside it and ends with its exit code. Its own standard input is
//! the command's leash: a pipe of the launcher's that is open as long as somebody wants the command.
//! It carries pieces, each four bytes of length (little-endian) and so many bytes. The first is what to
//! run, with the instance's variables, which no command line must show: everybody on the node can read
//! those. The others are the command's input; an empty one says that it is complete. When the leash is let go, because nobody
//! listens any more or the launcher has died, the command is killed with its session *before* its
//! input closes: it never takes a part of its input for the whole.

use super::spawn;
use super::sys::{self, Child, Nursery, User};
use crate::cgroup::{self, Hierarchy};
use pronto_payloads::instance::{End, EndCause};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// No piece of input is longer.
pub(crate) const PIECE_BYTES: usize = 64 * 1024;
/// The length in front of each.
const PIECE_HEADER_BYTES: usize = 4;
/// Of new files, unless the command says otherwise.
const UMASK: u32 = 0o022;
/// The exit code of what a signal ended, less the signal: the shells' custom.
const SIGNAL_EXIT: i32 = 128;

/// What to join, and what to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// [`super::message::FORMAT`].
    pub format: u32,
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

/// The first piece is no longer: a START's body with all of it escaped is not.
const JOIN_BYTES: usize = 8 << 20;

/// Reads what to run from the leash, byte for byte: what follows is the command's.
pub(super) fn receive() -> io::Result<Join> {
    let mut header = [0; PIECE_HEADER_BYTES];
    read_whole(&mut header)?;
    let length = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if length > JOIN_BYTES {
        return Err(io::Error::other("more than a command and its variables"));
    }
    let mut text = vec![0; length];
    read_whole(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn read_whole(mut rest: &mut [u8]) -> io::Result<()> {
    while !rest.is_empty() {
        match rustix::io::read(rustix::stdio::stdin(), &mut *rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => rest = &mut rest[length..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Runs the command to its end. Returns the exit code.
pub(super) fn run(join: &Join) -> i32 {
    match start(join) {
        Ok(mut keeper) => keeper.until_ended().unwrap_or_else(|error| {
            eprintln!("launcher-shim: {error}");
            keeper.kill();
            SIGNAL_EXIT + libc::SIGKILL
        }),
        Err(end) => {
            eprintln!("{}", end.message);
            match end.cause {
                EndCause::CannotExecute { code } => code,
                _ => 126,
            }
        }
    }
}

/// The command's keeper.
struct Keeper {
    pid: i32,
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

fn start(join: &Join) -> Result<Keeper, End> {
    let failed = |error: io::Error| spawn::node_failed(format!("can't start a process: {error}"));
    let leash = sys::take_stdin().map_err(failed)?;
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
        workdir: &spawn::c_path(&join.workdir)?,
        private_tmp: None,
        user: join.user.as_ref(),
        umask: UMASK,
        no_new_privileges: true,
        data_limit_bytes: None,
        // Not the launcher's own, which its unit may have lowered.
        oom_score: Some(c"/proc/self/oom_score_adj"),
    };
    let pid = sys::spawn(&child, &mut nursery)
        .map_err(|error| spawn::explain(&join.command, &join.workdir, &error))?;
    // They end when the command does.
    outputs.give_up().map_err(failed)?;
    Ok(Keeper {
        pid,
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
    /// Feeds the command until it has ended, or kills it when the leash is let go.
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
            if happened[1].intersects(PollFlags::HUP | PollFlags::ERR) {
                self.kill();
                // Nobody wants its exit code.
                return Ok(SIGNAL_EXIT + libc::SIGKILL);
            }
            if happened[1].contains(PollFlags::IN) {
                self.take()?;
            }
            if happened.get(2).is_some_and(|input| !input.is_empty()) {
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
        let reaped = sys::reap().filter(|reaped| reaped.pid == self.pid)?;
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
