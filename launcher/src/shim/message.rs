//! What launcher and shim say to each other, and what the shim leaves on disk.
//!
//! One JSON object a line, over a Unix socket in the data directory. The shim outlives releases of
//! the launcher, so both begin with the number of the format they speak, fields are only ever
//! added, and unknown ones are ignored.

use super::sys::User;
use crate::cgroup::Limits;
use crate::moment::Moment;
use crate::supervisor::StopCause;
use pronto_payloads::ids::OwnerId;
use pronto_payloads::instance::{End, Usage};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The format of messages and of exit files.
pub const FORMAT: u32 = 1;
/// A line is never longer: a START's body, escaped, and some air.
pub const LINE_BYTES: usize = 4 << 20;
/// The file that tells how an attempt ended, in its directory.
pub const EXIT_FILE: &str = "exit.json";
/// The named pipe through which standard input is fed, in its directory.
pub const STDIN_PIPE: &str = "stdin";

/// Names an attempt between launcher and shim: its directory's name.
pub type Key = String;

/// Launcher to shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToShim {
    /// The first line of a connection. Answered by Welcome, Alive for each workload, Unwritten for
    /// each that is over without its file, Listed.
    Hello {
        /// [`FORMAT`].
        format: u32,
    },
    /// Start a workload.
    Spawn(Box<Spawn>),
    /// End one.
    Stop {
        /// Which.
        key: Key,
        /// Why; the first cause stays.
        cause: StopCause,
        /// Between SIGTERM and SIGKILL.
        grace_ms: u64,
    },
    /// The lease of this owner's work lasts until then.
    Fence {
        /// Whose.
        owner: OwnerId,
        /// Until when.
        lease_until: Moment,
    },
    /// Nobody will feed its standard input any more.
    CloseStdin {
        /// Which.
        key: Key,
    },
    /// End all workloads, then yourself.
    Shutdown {
        /// Between SIGTERM and SIGKILL.
        grace_ms: u64,
    },
}

/// Everything about one process that the shim needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// Its name from now on.
    pub key: Key,
    /// Its directory: log, exit file, named pipe.
    pub directory: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Where it runs.
    pub workdir: PathBuf,
    /// As whom; absent: as the shim itself.
    pub user: Option<User>,
    /// File mode bits that it does not set.
    pub umask: u32,
    /// A `/tmp` of its own.
    pub private_tmp: bool,
    /// It may gain privileges by executing set-user-id programs.
    pub new_privileges: bool,
    /// What it may use.
    pub limits: Limits,
    /// Feed its standard input through the named pipe.
    pub stdin: bool,
    /// Total size of the kept log.
    pub log_cap_bytes: u64,
    /// Ended after this much running time.
    pub timeout_ms: Option<u64>,
    /// Between SIGTERM and SIGKILL when the shim itself ends it.
    pub grace_ms: u64,
    /// Whose it is, for its lease.
    pub owner: OwnerId,
    /// Ended this long after the lease of its owner.
    pub stop_after_ms: Option<u64>,
    /// When that is, as the leases stand.
    pub fence_at: Option<Moment>,
}

/// Shim to launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromShim {
    /// The answer to Hello.
    Welcome {
        /// [`FORMAT`].
        format: u32,
        /// The shim's own.
        pid: i32,
        /// Workloads from before this are not its own.
        started_at: Moment,
    },
    /// A workload that is here.
    Alive {
        /// Which.
        key: Key,
        /// Its main process.
        pid: i32,
        /// Since when.
        started_at: Moment,
        /// When its lease ends it.
        fence_at: Option<Moment>,
        /// Its control group.
        group: Option<String>,
        /// CPU time that the group had used before it.
        #[serde(default)]
        group_cpu_us: u64,
    },
    /// One that is over and of which nothing is left, whose exit file could not be written.
    Unwritten(Exit),
    /// All that are here have been named.
    Listed,
    /// It runs.
    Started {
        /// Which.
        key: Key,
        /// Since when.
        at: Moment,
        /// Its main process.
        pid: i32,
        /// Its control group.
        group: Option<String>,
        /// CPU time that the group had used before it.
        #[serde(default)]
        group_cpu_us: u64,
    },
    /// It could not be started; nothing of it is there.
    Failed {
        /// Which.
        key: Key,
        /// Why.
        end: End,
    },
    /// Its main process has ended.
    Ended {
        /// Which.
        key: Key,
        /// When.
        at: Moment,
        /// How.
        end: End,
        /// What it used.
        usage: Usage,
    },
    /// Nothing of it is left, and its exit file is written.
    Emptied {
        /// Which.
        key: Key,
    },
}

/// The exit file of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// [`FORMAT`].
    pub format: u32,
    /// Which attempt: directories are reused, and a file may be an earlier one's.
    pub key: Key,
    /// When it began to run, if it ever did.
    pub started_at: Option<Moment>,
    /// When its main process ended.
    pub ended_at: Moment,
    /// How.
    pub end: End,
    /// What it used.
    pub usage: Usage,
}

/// What the shim is started with: the only argument, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimSettings {
    /// [`FORMAT`].
    pub format: u32,
    /// The control groups that it may use; absent: none, limits are rlimits.
    pub hierarchy: Option<crate::cgroup::Hierarchy>,
    /// It ends itself when it has had no workload and no launcher for so long.
    pub idle_exit_ms: u64,
}
