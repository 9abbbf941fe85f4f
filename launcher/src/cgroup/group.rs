//! One control group, open: its limits, its counters, its end.

use super::files::{make_directory, read_key, read_number, remove_directories, signal_members};
use super::{Counters, Hierarchy, Limits, MEMORY_MIN_BYTES, join_files};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// A group with more left in it is not used again.
const RECLAIM_MAX_BYTES: u64 = 16 << 20;

/// The period of a hard CPU quota: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

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

    /// CPU time when it was recycled last, to subtract from what [`super::counters`] reads.
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
