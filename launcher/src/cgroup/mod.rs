//! Control groups, version 1 and 2: limits, their enforcement, usage, and killing all of a group.
//!
//! [`Hierarchy::detect`] finds what this machine has and makes the directory under which all
//! groups of one launcher live; [`Group`] is one of them. A group is reused, since making one costs
//! more than a short task has to spend: its counters are therefore read against a baseline.
//!
//! It leaves to others who belongs into a group: a process joins by writing `0` to each of
//! [`Group::join_fds`] itself, while it has one thread and before it executes anything of a tenant's.
//!
//! Version 1 mounts each controller by itself; a group is then one directory in each hierarchy.
//! It has no way to kill a group at once, so the group is first forbidden to fork.

mod files;
mod group;
mod hierarchy;

pub use group::Group;
pub use hierarchy::Hierarchy;

use files::{io_sum, key_of};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// No memory limit below this: not even a shell starts in less.
pub const MEMORY_MIN_BYTES: u64 = 4 << 20;
/// What one workload may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Hard.
    pub memory_bytes: u64,
    /// A weight, or with `hard_cpu` a quota: thousandths of a core.
    pub cpu_millis: u32,
    /// See `cpu_millis`.
    pub hard_cpu: bool,
    /// Processes and threads.
    pub pids: u32,
}

/// What a group's counters say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// CPU time of all that ever ran in it.
    pub cpu_us: u64,
    /// Memory now.
    pub memory_bytes: u64,
    /// The most memory since the group was last reset.
    pub memory_peak_bytes: u64,
    /// Processes killed for lack of memory.
    pub oom_kills: u64,
    /// Tasks now.
    pub pids: u64,
    /// Bytes read from and written to devices, where the kernel counts them by group.
    pub io_bytes: Option<(u64, u64)>,
}

/// The counters of a group by name, for whoever does not hold it open.
#[must_use]
pub fn counters(hierarchy: &Hierarchy, name: &str) -> Counters {
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    match hierarchy {
        Hierarchy::V2 { base } => {
            let base = base.join(name);
            let cpu = fs::read_to_string(base.join("cpu.stat")).unwrap_or_default();
            Counters {
                cpu_us: key_of(&cpu, "usage_usec").unwrap_or(0),
                memory_bytes: number(base.join("memory.current")).unwrap_or(0),
                memory_peak_bytes: number(base.join("memory.peak")).unwrap_or(0),
                oom_kills: 0,
                pids: number(base.join("pids.current")).unwrap_or(0),
                io_bytes: fs::read_to_string(base.join("io.stat"))
                    .ok()
                    .map(|stat| io_sum(&stat)),
            }
        }
        Hierarchy::V1 {
            memory,
            cpuacct,
            pids,
            ..
        } => {
            let memory = memory.join(name);
            Counters {
                cpu_us: number(cpuacct.join(name).join("cpuacct.usage")).unwrap_or(0) / 1000,
                memory_bytes: number(memory.join("memory.usage_in_bytes")).unwrap_or(0),
                memory_peak_bytes: number(memory.join("memory.max_usage_in_bytes")).unwrap_or(0),
                oom_kills: 0,
                pids: number(pids.join(name).join("pids.current")).unwrap_or(0),
                io_bytes: None,
            }
        }
    }
}

/// Files through which a process with one thread joins a group by name, writing `0` to each.
///
/// In version 1 a thread moves itself through `tasks` without the lock that stops every fork of
/// the machine, for which `cgroup.procs` waits an RCU grace period: milliseconds, in each
/// hierarchy. Version 2 has no such file for groups with limits.
///
/// # Errors
/// If the group is gone.
pub fn join_files(hierarchy: &Hierarchy, name: &str) -> io::Result<Vec<File>> {
    let file = match hierarchy {
        Hierarchy::V1 { .. } => "tasks",
        Hierarchy::V2 { .. } => "cgroup.procs",
    };
    let open = |base: &Path| {
        OpenOptions::new()
            .write(true)
            .open(base.join(name).join(file))
    };
    hierarchy.bases().into_iter().map(open).collect()
}
