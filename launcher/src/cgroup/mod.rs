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

use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// No memory limit below this: not even a shell starts in less.
pub const MEMORY_MIN_BYTES: u64 = 4 << 20;
/// A group with more left in it is not used again.
const RECLAIM_MAX_BYTES: u64 = 16 << 20;
/// The period of a hard CPU quota: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// The end of the name of a group that holds daemons and no groups.
const LEAF: &str = "-daemon";
/// How often a kill is repeated until a group is empty; each round kills all that it sees.
const KILL_ROUNDS: usize = 50;

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

/// Which control groups this machine lets us use, and where ours lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hierarchy {
    /// The unified hierarchy.
    V2 {
        /// The directory of this launcher's groups.
        base: PathBuf,
    },
    /// One hierarchy a controller.
    V1 {
        /// The directory of this launcher's groups in each.
        memory: PathBuf,
        /// Weight and quota.
        cpu: PathBuf,
        /// CPU time; may be the same directory as `cpu`.
        cpuacct: PathBuf,
        /// Number of tasks.
        pids: PathBuf,
    },
}

impl Hierarchy {
    /// Finds a writable hierarchy and makes this launcher's directory in it.
    ///
    /// # Errors
    /// Says in words why limits can't be enforced by control groups here.
    pub fn detect(name: &str) -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
        let own = fs::read_to_string("/proc/self/cgroup")
            .map_err(|error| format!("/proc/self/cgroup: {error}"))?;
        let v2 = unified(&mounts, &own).ok_or_else(|| "no cgroup2 mount".to_owned());
        let tried = v2.and_then(|own| Self::make_v2(&own, name));
        tried.or_else(|v2| {
            Self::make_v1(&mounts, &own, name)
                .map_err(|v1| format!("version 2: {v2}; version 1: {v1}"))
        })
    }

    /// What a node's facts call it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::V2 { .. } => "cgroup2",
            Self::V1 { .. } => "cgroup1",
        }
    }

    fn make_v2(own: &Path, name: &str) -> Result<Self, String> {
        let words = |error: io::Error| error.to_string();
        // Its groups lie where an earlier process put them, or the other runtime of this one.
        let own = own.parent().filter(|_| is_leaf(own)).unwrap_or(own);
        let offered = fs::read_to_string(own.join("cgroup.controllers")).map_err(words)?;
        for needed in ["memory", "cpu", "pids"] {
            if !offered
                .split_whitespace()
                .any(|controller| controller == needed)
            {
                return Err(format!(
                    "controller {needed} is not available in {}",
                    own.display()
                ));
            }
        }
        // A group with processes of its own can't hand controllers down, the root excepted; so the
        // launcher moves into a leaf.
        let enable = || fs::write(own.join("cgroup.subtree_control"), "+memory +cpu +pids");
        if enable().is_err() {
            let leaf = own.join(format!("{name}{LEAF}"));
            make_directory(&leaf).map_err(words)?;
            move_members(own, &leaf).map_err(words)?;
            enable().map_err(words)?;
        }
        let _ = fs::write(own.join("cgroup.subtree_control"), "+io");
        let base = own.join(name);
        make_directory(&base).map_err(words)?;
        fs::write(base.join("cgroup.subtree_control"), "+memory +cpu +pids").map_err(words)?;
        let _ = fs::write(base.join("cgroup.subtree_control"), "+io");
        Ok(Self::V2 { base })
    }

    fn make_v1(mounts: &str, own: &str, name: &str) -> Result<Self, String> {
        let make = |controller: &str| {
            let own = controller_directory(mounts, own, controller)
                .ok_or_else(|| format!("controller {controller} is not mounted"))?;
            let base = own.join(name);
            make_directory(&base).map_err(|error| format!("{}: {error}", base.display()))?;
            Ok::<_, String>(base)
        };
        Ok(Self::V1 {
            memory: make("memory")?,
            cpu: make("cpu")?,
            cpuacct: make("cpuacct")?,
            pids: make("pids")?,
        })
    }

    /// Every directory under which groups lie, each once.
    fn bases(&self) -> Vec<&Path> {
        match self {
            Self::V2 { base } => vec![base],
            Self::V1 {
                memory,
                cpu,
                cpuacct,
                pids,
            } => {
                let mut bases: Vec<&Path> = vec![pids, memory, cpu, cpuacct];
                bases.dedup();
                bases
            }
        }
    }

    /// Kills and removes every group that is there: what a shim that vanished has left.
    ///
    /// # Errors
    /// If a process does not die or a directory can't be removed.
    pub fn clear(&self) -> io::Result<()> {
        for base in self.bases() {
            for entry in fs::read_dir(base)? {
                let path = entry?.path();
                if !path.is_dir() {
                    continue;
                }
                kill_members(&path)?;
                remove_directory(&path)?;
            }
        }
        Ok(())
    }

    /// Removes this launcher's own directories; they must be empty. Whoever removes the last ones
    /// also puts the daemons back where they were started.
    ///
    /// # Errors
    /// If one is not.
    pub fn remove(&self) -> io::Result<()> {
        remove_directories(self.bases().into_iter())?;
        match self {
            Self::V2 { base } => base.parent().map_or(Ok(()), remove_leaves),
            Self::V1 { .. } => Ok(()),
        }
    }
}

/// One group, open.
#[derive(Debug)]
pub struct Group {
    name: String,
    hierarchy: Hierarchy,
    join: Vec<File>,
    limits: Option<Limits>,
    pids_current: File,
    memory_peak: Option<File>,
    memory_current: File,
    memory_events: File,
    cpu: File,
    baseline: Counters,
}

impl Group {
    /// Makes a group.
    ///
    /// # Errors
    /// If the hierarchy is gone or full.
    pub fn create(hierarchy: &Hierarchy, name: &str) -> io::Result<Self> {
        let read = |path: PathBuf| File::open(path);
        for base in hierarchy.bases() {
            make_directory(&base.join(name))?;
        }
        let join = join_files(hierarchy, name)?;
        let (pids_current, memory_peak, memory_current, memory_events, cpu) = match hierarchy {
            Hierarchy::V2 { base } => {
                let base = base.join(name);
                // Resetting the peak needs a write, which kernels before 6.12 refuse.
                let peak = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(base.join("memory.peak"));
                let peak = peak.or_else(|_| File::open(base.join("memory.peak"))).ok();
                (
                    read(base.join("pids.current"))?,
                    peak,
                    read(base.join("memory.current"))?,
                    read(base.join("memory.events"))?,
                    read(base.join("cpu.stat"))?,
                )
            }
            Hierarchy::V1 {
                memory,
                cpuacct,
                pids,
                ..
            } => {
                let peak = memory.join(name).join("memory.max_usage_in_bytes");
                (
                    read(pids.join(name).join("pids.current"))?,
                    Some(OpenOptions::new().read(true).write(true).open(peak)?),
                    read(memory.join(name).join("memory.usage_in_bytes"))?,
                    read(memory.join(name).join("memory.oom_control"))?,
                    read(cpuacct.join(name).join("cpuacct.usage"))?,
                )
            }
        };
        Ok(Self {
            name: name.to_owned(),
            hierarchy: hierarchy.clone(),
            join,
            limits: None,
            pids_current,
            memory_peak,
            memory_current,
            memory_events,
            cpu,
            baseline: Counters::default(),
        })
    }

    /// Its name under the hierarchy.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where a process writes `0` to join.
    pub fn join_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.join.iter().map(AsFd::as_fd)
    }

    /// Sets limits for the next workload. Writes only what has changed.
    ///
    /// # Errors
    /// If the kernel refuses a limit.
    pub fn limit(&mut self, limits: Limits) -> io::Result<()> {
        if self.limits != Some(limits) {
            self.limits = None;
            self.write_limits(limits)?;
            self.limits = Some(limits);
        }
        Ok(())
    }

    /// Begins to count anew after a workload, and gives back memory that only it used. False if
    /// the group can't be reused: kernels before 6.12 don't reset the peak of version 2, and much
    /// memory takes the kernel seconds, in which nothing else would happen here.
    #[must_use]
    pub fn recycle(&mut self) -> bool {
        self.baseline.cpu_us = self.cpu_us();
        self.baseline.oom_kills = self.oom_kills();
        let left_bytes = self.memory_current();
        if left_bytes > RECLAIM_MAX_BYTES {
            return false;
        }
        if left_bytes > self.limits.map_or(0, |limits| limits.memory_bytes / 4) {
            self.reclaim();
        }
        let peak = self.memory_peak.as_ref();
        peak.is_some_and(|peak| peak.write_at(b"0", 0).is_ok())
    }

    /// Whether no process is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        read_number(&self.pids_current) == Some(0)
    }

    /// What is known at an end, since the group was recycled last: CPU, peak, kills.
    #[must_use]
    pub fn end_counters(&self) -> Counters {
        Counters {
            cpu_us: self.cpu_us().saturating_sub(self.baseline.cpu_us),
            memory_peak_bytes: self.memory_peak.as_ref().and_then(read_number).unwrap_or(0),
            oom_kills: self.oom_kills().saturating_sub(self.baseline.oom_kills),
            ..Counters::default()
        }
    }

    fn cpu_us(&self) -> u64 {
        match self.hierarchy {
            Hierarchy::V2 { .. } => read_key(&self.cpu, "usage_usec").unwrap_or(0),
            Hierarchy::V1 { .. } => read_number(&self.cpu).unwrap_or(0) / 1000,
        }
    }

    fn oom_kills(&self) -> u64 {
        read_key(&self.memory_events, "oom_kill").unwrap_or(0)
    }

    fn memory_current(&self) -> u64 {
        read_number(&self.memory_current).unwrap_or(0)
    }

    /// CPU time when it was recycled last, to subtract from what [`counters`] reads.
    #[must_use]
    pub const fn baseline_cpu_us(&self) -> u64 {
        self.baseline.cpu_us
    }

    /// Kills everything in it. Some may still be dying afterwards.
    ///
    /// # Errors
    /// If the group's files can't be used.
    pub fn kill(&mut self) -> io::Result<()> {
        match &self.hierarchy {
            Hierarchy::V2 { base } => {
                let directory = base.join(&self.name);
                if fs::write(directory.join("cgroup.kill"), "1").is_ok() {
                    return Ok(());
                }
                self.limits = None;
                let _ = fs::write(directory.join("pids.max"), "0");
                signal_members(&directory, rustix::process::Signal::KILL)
            }
            Hierarchy::V1 { pids, .. } => {
                // No fork can outrun the walk once no fork succeeds.
                let directory = pids.join(&self.name);
                self.limits = None;
                fs::write(directory.join("pids.max"), "0")?;
                signal_members(&directory, rustix::process::Signal::KILL)
            }
        }
    }

    /// Sends a signal to each process in it.
    ///
    /// # Errors
    /// If the group's files can't be used.
    pub fn signal(&self, signal: rustix::process::Signal) -> io::Result<()> {
        let base = match &self.hierarchy {
            Hierarchy::V2 { base } => base,
            Hierarchy::V1 { pids, .. } => pids,
        };
        signal_members(&base.join(&self.name), signal)
    }

    /// Gives back memory that nobody in it uses: the caches of a workload that is over.
    fn reclaim(&self) {
        // It is a courtesy: the limit itself reclaims the same pages later.
        let _ = match &self.hierarchy {
            Hierarchy::V1 { memory, .. } => {
                fs::write(memory.join(&self.name).join("memory.force_empty"), "0")
            }
            Hierarchy::V2 { base } => fs::write(base.join(&self.name).join("memory.reclaim"), "1G"),
        };
    }

    /// Removes it; it must be empty.
    ///
    /// # Errors
    /// If it is not.
    pub fn remove(self) -> io::Result<()> {
        let name = self.name.clone();
        remove_directories(
            self.hierarchy
                .bases()
                .into_iter()
                .map(|base| base.join(&name)),
        )
    }

    fn write_limits(&self, limits: Limits) -> io::Result<()> {
        let memory_bytes = limits.memory_bytes.max(MEMORY_MIN_BYTES);
        let quota_us = u64::from(limits.cpu_millis) * CPU_PERIOD_US / 1000;
        let quota_us = limits.hard_cpu.then_some(quota_us.max(1000));
        let shares = (u64::from(limits.cpu_millis) * 1024 / 1000).clamp(2, 262_144);
        match &self.hierarchy {
            Hierarchy::V2 { base } => {
                let directory = base.join(&self.name);
                let quota = quota_us.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
                let weight = 1 + (shares - 2) * 9999 / 262_142;
                fs::write(directory.join("memory.max"), memory_bytes.to_string())?;
                // Absent without swap accounting; then there is nothing to forbid.
                let _ = fs::write(directory.join("memory.swap.max"), "0");
                fs::write(directory.join("memory.oom.group"), "0")?;
                fs::write(directory.join("cpu.weight"), weight.to_string())?;
                fs::write(
                    directory.join("cpu.max"),
                    format!("{quota} {CPU_PERIOD_US}"),
                )?;
                fs::write(directory.join("pids.max"), limits.pids.to_string())
            }
            Hierarchy::V1 {
                memory, cpu, pids, ..
            } => {
                let memory = memory.join(&self.name);
                let limit = memory.join("memory.limit_in_bytes");
                let with_swap = memory.join("memory.memsw.limit_in_bytes");
                if with_swap.exists() {
                    // Neither may pass the other on the way, whichever way it goes.
                    fs::write(&with_swap, "-1")?;
                }
                fs::write(limit, memory_bytes.to_string())?;
                if with_swap.exists() {
                    fs::write(with_swap, memory_bytes.to_string())?;
                }
                let cpu = cpu.join(&self.name);
                fs::write(cpu.join("cpu.shares"), shares.to_string())?;
                let quota = cpu.join("cpu.cfs_quota_us");
                match quota_us {
                    Some(quota_us) => fs::write(quota, quota_us.to_string())?,
                    // Kernels without bandwidth control have no such file.
                    None if quota.exists() => fs::write(quota, "-1")?,
                    None => {}
                }
                fs::write(
                    pids.join(&self.name).join("pids.max"),
                    limits.pids.to_string(),
                )
            }
        }
    }
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

fn io_sum(stat: &str) -> (u64, u64) {
    let sum = |key: &str| {
        stat.split_whitespace()
            .filter_map(|word| {
                word.strip_prefix(key)?
                    .strip_prefix('=')?
                    .parse::<u64>()
                    .ok()
            })
            .sum()
    };
    (sum("rbytes"), sum("wbytes"))
}

fn read_text(file: &File, buffer: &mut [u8]) -> usize {
    file.read_at(buffer, 0).unwrap_or(0)
}

fn read_number(file: &File) -> Option<u64> {
    let mut buffer = [0; 32];
    let length = read_text(file, &mut buffer);
    std::str::from_utf8(&buffer[..length])
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn read_key(file: &File, key: &str) -> Option<u64> {
    let mut buffer = [0; 1024];
    let length = read_text(file, &mut buffer);
    key_of(std::str::from_utf8(&buffer[..length]).ok()?, key)
}

fn key_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

/// Whether a group is one into which a launcher has moved itself.
fn is_leaf(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("pronto-") && name.ends_with(LEAF))
}

fn move_members(from: &Path, to: &Path) -> io::Result<()> {
    let members = fs::read_to_string(from.join("cgroup.procs"))?;
    for pid in members.split_whitespace() {
        // A process that has ended meanwhile needs no move.
        let _ = fs::write(to.join("cgroup.procs"), pid);
    }
    Ok(())
}

/// Undoes what made leaves necessary. As long as another launcher has groups here, the kernel
/// refuses, and they stay.
fn remove_leaves(own: &Path) -> io::Result<()> {
    let leaves: Vec<PathBuf> = fs::read_dir(own)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_leaf(path))
        .collect();
    if leaves.is_empty() {
        return Ok(());
    }
    let enabled = fs::read_to_string(own.join("cgroup.subtree_control"))?;
    let disable: Vec<String> = enabled
        .split_whitespace()
        .map(|controller| format!("-{controller}"))
        .collect();
    fs::write(own.join("cgroup.subtree_control"), disable.join(" "))?;
    for leaf in leaves {
        move_members(&leaf, own)?;
        remove_directory(&leaf)?;
    }
    Ok(())
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Removes all that can be removed; says what was in the way first.
fn remove_directories(paths: impl Iterator<Item = impl AsRef<Path>>) -> io::Result<()> {
    paths
        .map(|path| remove_directory(path.as_ref()))
        .fold(Ok(()), io::Result::and)
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn members(directory: &Path) -> io::Result<Vec<rustix::process::Pid>> {
    let text = match fs::read_to_string(directory.join("cgroup.procs")) {
        // A group that is gone has no members.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    Ok(text
        .split_whitespace()
        .filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?))
        .collect())
}

fn signal_members(directory: &Path, signal: rustix::process::Signal) -> io::Result<()> {
    for pid in members(directory)? {
        // One that has just ended needs no signal.
        let _ = rustix::process::kill_process(pid, signal);
    }
    Ok(())
}

fn kill_members(directory: &Path) -> io::Result<()> {
    let _ = fs::write(directory.join("cgroup.kill"), "1");
    let _ = fs::write(directory.join("pids.max"), "0");
    for _ in 0..KILL_ROUNDS {
        if members(directory)?.is_empty() {
            return Ok(());
        }
        signal_members(directory, rustix::process::Signal::KILL)?;
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Err(io::Error::other(format!(
        "{} does not get empty",
        directory.display()
    )))
}

/// The directory of this process in the unified hierarchy.
fn unified(mounts: &str, own: &str) -> Option<PathBuf> {
    let (root, mount) = mounts
        .lines()
        .find_map(|line| mount_of(line, "cgroup2", None))?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(below(&mount, &root, path))
}

/// The directory of this process in a controller's hierarchy of version 1.
fn controller_directory(mounts: &str, own: &str, controller: &str) -> Option<PathBuf> {
    let (root, mount) = mounts
        .lines()
        .find_map(|line| mount_of(line, "cgroup", Some(controller)))?;
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        controllers
            .split(',')
            .any(|name| name == controller)
            .then(|| fields.next())?
    })?;
    Some(below(&mount, &root, path))
}

/// Root and mount point of a line of mountinfo, if it is of this type and has this option.
fn mount_of(line: &str, kind: &str, option: Option<&str>) -> Option<(String, PathBuf)> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    if right.next()? != kind {
        return None;
    }
    let options = right.nth(1)?;
    if option.is_some_and(|wanted| !options.split(',').any(|option| option == wanted)) {
        return None;
    }
    let mut left = left.split(' ').skip(3);
    Some((left.next()?.to_owned(), PathBuf::from(left.next()?)))
}

/// Inside of a container the mount shows a part of the hierarchy only.
fn below(mount: &Path, root: &str, own: &str) -> PathBuf {
    let own = own
        .strip_prefix(root)
        .unwrap_or(own)
        .trim_start_matches('/');
    let path = mount.join(own);
    if path.is_dir() {
        path
    } else {
        mount.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_as_this_process_sees_them() {
        let mounts = "30 29 0:26 / /nowhere/cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      31 29 0:27 /lxc/a /nowhere/cg/memory rw - cgroup cgroup rw,memory\n\
                      32 29 0:28 / /nowhere/cg/unified rw - cgroup2 cgroup2 rw\n";
        let own = "4:memory:/lxc/a/b\n2:cpu,cpuacct:/x\n0::/y\n";
        let find = |controller| controller_directory(mounts, own, controller);
        // A path that does not exist falls back to the mount itself.
        assert_eq!(find("cpuacct"), Some("/nowhere/cg/cpu,cpuacct".into()));
        assert_eq!(find("memory"), Some("/nowhere/cg/memory".into()));
        assert_eq!(find("pids"), None);
        assert_eq!(unified(mounts, own), Some("/nowhere/cg/unified".into()));
        assert_eq!(
            below(Path::new("/proc"), "/lxc/a", "/lxc/a/self"),
            Path::new("/proc/self")
        );
    }

    #[test]
    fn leaves_are_told_from_other_groups() {
        assert!(is_leaf(Path::new("/cg/unit/pronto-0a1b2c3d-daemon")));
        for other in ["/cg/pronto-0a1b2c3d", "/cg/ssh-daemon", "/"] {
            assert!(!is_leaf(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn counters_are_read_by_key() {
        assert_eq!(
            key_of("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"),
            Some(3)
        );
        assert_eq!(
            io_sum("8:0 rbytes=10 wbytes=20 rios=1\n8:1 rbytes=5 wbytes=1\n"),
            (15, 21)
        );
    }
}
