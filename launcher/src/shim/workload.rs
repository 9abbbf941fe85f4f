//! One workload of the shim: its process, its pipes, its log, and what is due when.

use super::message::{Exit, FORMAT, Spawn};
use super::sys::Reaped;
use crate::cgroup::Group;
use crate::logs::{self, LogWriter};
use crate::moment::Moment;
use crate::supervisor::StopCause;
use pronto_payloads::instance::{End, EndCause, Usage};
use pronto_payloads::stream::Channel;
use rustix::process::{Pid, Signal};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Output that one workload may write a second, after a burst: a flood is slowed to this, and the
/// log's disk has an hour of life more.
const LOG_BYTES_PER_S: u64 = 32 << 20;
/// What it may write at once.
const LOG_BURST_BYTES: u64 = 8 << 20;
/// Remains of an ended workload are killed again this often until nothing is left.
const REKILL_INTERVAL: Duration = Duration::from_millis(20);

/// Why and since when a workload is being ended.
#[derive(Clone, Copy, Debug)]
struct Stopping {
    cause: StopCause,
    kill_at: Moment,
}

/// How its main process ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) at: Moment,
    pub(super) end: End,
    pub(super) usage: Usage,
}

#[derive(Debug)]
pub(super) struct Workload {
    pub(super) spawn: Spawn,
    pub(super) pid: i32,
    pub(super) started_at: Moment,
    pub(super) group: Option<Group>,
    /// Read ends, by channel: stdout, stderr.
    pub(super) pipes: [Option<OwnedFd>; 2],
    /// Whether each pipe is watched; a flood is not, for a while.
    pub(super) watched: [bool; 2],
    pub(super) stdin_holder: Option<OwnedFd>,
    pub(super) ended: Option<Ended>,
    /// What is in the timers for it.
    pub(super) alarm: Option<Moment>,
    log: LogWriter,
    log_error: Option<String>,
    allowance_bytes: u64,
    allowance_at: Moment,
    stopping: Option<Stopping>,
    timeout_at: Option<Moment>,
    pub(super) fence_at: Option<Moment>,
    rekill_at: Option<Moment>,
    resume_at: Option<Moment>,
}

impl Workload {
    pub(super) fn new(
        spawn: Spawn,
        pid: i32,
        started_at: Moment,
        group: Option<Group>,
        pipes: [Option<OwnedFd>; 2],
        stdin_holder: Option<OwnedFd>,
    ) -> Self {
        Self {
            log: LogWriter::new(spawn.directory.clone(), spawn.log_cap_bytes),
            timeout_at: spawn.timeout_ms.map(|ms| started_at.after_ms(ms)),
            fence_at: spawn.fence_at,
            spawn,
            pid,
            started_at,
            group,
            pipes,
            watched: [true; 2],
            stdin_holder,
            ended: None,
            alarm: None,
            log_error: None,
            allowance_bytes: LOG_BURST_BYTES,
            allowance_at: started_at,
            stopping: None,
            rekill_at: None,
            resume_at: None,
        }
    }

    /// When something is due.
    pub(super) fn due(&self) -> Option<Moment> {
        let live = self.ended.is_none();
        let deadline = [self.timeout_at, self.fence_at].into_iter().flatten().min();
        let deadline = deadline.filter(|_| live && self.stopping.is_none());
        let kill = self
            .stopping
            .map(|stopping| stopping.kill_at)
            .filter(|_| live);
        [deadline, kill, self.rekill_at, self.resume_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due. Says whether output is to be read again.
    pub(super) fn wake(&mut self, now: Moment) -> bool {
        let passed = |at: Option<Moment>| at.is_some_and(|at| at <= now);
        if self.ended.is_none() {
            match self.stopping {
                None if passed(self.fence_at) => {
                    self.stop(now, StopCause::LeaseExpired, self.spawn.grace_ms);
                }
                None if passed(self.timeout_at) => {
                    self.stop(now, StopCause::TimedOut, self.spawn.grace_ms);
                }
                Some(stopping) if stopping.kill_at <= now => self.kill(now),
                _ => {}
            }
        }
        if passed(self.rekill_at) {
            self.kill(now);
        }
        if passed(self.resume_at) {
            self.resume_at = None;
            return true;
        }
        false
    }

    /// SIGTERM to its process group; SIGKILL to all of it after the grace.
    pub(super) fn stop(&mut self, now: Moment, cause: StopCause, grace_ms: u64) {
        if self.ended.is_some() {
            return;
        }
        let kill_at = now.after_ms(grace_ms);
        match &mut self.stopping {
            // A repeated stop may only shorten the grace.
            Some(stopping) => stopping.kill_at = stopping.kill_at.min(kill_at),
            None => {
                self.stopping = Some(Stopping { cause, kill_at });
                signal_group(self.pid, Signal::TERM);
            }
        }
        if grace_ms == 0 {
            self.kill(now);
        }
    }

    /// Kills all that is left of it, and looks again soon. Without a control group the orphans of an
    /// ended one are the shim's to kill.
    pub(super) fn kill(&mut self, now: Moment) {
        // Its number, which is that of its process group, is another's once it has been reaped.
        if self.ended.is_none() {
            signal_group(self.pid, Signal::KILL);
        }
        if let Some(group) = &mut self.group {
            // If the group's files fail, the next round tries again.
            let _ = group.kill();
        }
        self.rekill_at = Some(now.after(REKILL_INTERVAL));
        if let Some(stopping) = &mut self.stopping {
            stopping.kill_at = now.after(REKILL_INTERVAL);
        }
    }

    pub(super) fn lease_renewed(&mut self, lease_until: Moment) {
        if let Some(after_ms) = self.spawn.stop_after_ms {
            self.fence_at = Some(lease_until.after_ms(after_ms));
        }
    }

    /// Takes output; says whether the pipe may be read on, or rests for a while.
    pub(super) fn output(&mut self, now: Moment, channel: Channel, bytes: &[u8]) -> bool {
        if self.log_error.is_none()
            && let Err(error) = self.log.append(channel, logs::unix_ms(), bytes)
        {
            self.log_error = Some(format!("its output can't be kept: {error}"));
        }
        let refill_bytes = u128::from(now.ns_since(self.allowance_at))
            * u128::from(LOG_BYTES_PER_S)
            / 1_000_000_000;
        let refill_bytes = u64::try_from(refill_bytes).unwrap_or(u64::MAX);
        self.allowance_at = now;
        self.allowance_bytes = self
            .allowance_bytes
            .saturating_add(refill_bytes)
            .min(LOG_BURST_BYTES);
        self.allowance_bytes = self.allowance_bytes.saturating_sub(bytes.len() as u64);
        if self.allowance_bytes == 0 {
            let rest_ns = bytes.len() as u64 * 1_000_000_000 / LOG_BYTES_PER_S;
            self.resume_at = Some(Moment(now.0 + rest_ns));
            return false;
        }
        true
    }

    /// Notes how the main process ended.
    pub(super) fn main_ended(&mut self, reaped: &Reaped) {
        let counters = self
            .group
            .as_ref()
            .map(Group::end_counters)
            .unwrap_or_default();
        // The kernel counts the peak of a process from before it executed, when it shared our
        // memory: that is good enough only where no group has counted.
        let peak_bytes = match counters.memory_peak_bytes {
            0 => reaped.peak_bytes.min(self.limit_bytes()),
            counted => counted,
        };
        let usage = Usage {
            cpu_ms: counters.cpu_us.max(reaped.cpu_us) / 1000,
            memory_mib: 0,
            memory_peak_mib: mib(peak_bytes),
            read_bytes: reaped.read_bytes,
            written_bytes: reaped.written_bytes,
            pids: 0,
        };
        let answer = match reaped.status {
            Ok(code) => EndCause::Exited { code },
            Err(signal) => EndCause::Signaled { signal },
        };
        let failed = answer != EndCause::Exited { code: 0 };
        let end = match self.stopping {
            Some(stopping) => stopped(stopping.cause, &answer),
            None if failed && counters.oom_kills > 0 => self.out_of_memory(peak_bytes),
            None => End {
                cause: answer,
                // It went on without one of its own.
                message: match counters.oom_kills {
                    0 => String::new(),
                    _ => format!(
                        "a process of it ran {}",
                        self.out_of_memory(peak_bytes).message
                    ),
                },
            },
        };
        self.ended = Some(Ended {
            at: reaped.at,
            end,
            usage,
        });
    }

    /// What its exit file is to say, once nothing of it is left.
    pub(super) fn exit(&mut self) -> Option<Exit> {
        let log_error = self.log_error.take();
        let ended = self.ended.as_mut()?;
        if let Some(error) = log_error {
            if !ended.end.message.is_empty() {
                ended.end.message.push_str("; ");
            }
            ended.end.message.push_str(&error);
        }
        Some(Exit {
            format: FORMAT,
            key: self.spawn.key.clone(),
            started_at: Some(self.started_at),
            ended_at: ended.at,
            end: ended.end.clone(),
            usage: ended.usage,
        })
    }

    fn limit_bytes(&self) -> u64 {
        self.spawn
            .limits
            .memory_bytes
            .max(crate::cgroup::MEMORY_MIN_BYTES)
    }

    fn out_of_memory(&self, peak_bytes: u64) -> End {
        let (limit_mib, peak_mib) = (mib(self.limit_bytes()), mib(peak_bytes));
        End {
            cause: EndCause::OutOfMemory {
                limit_mib,
                peak_mib,
            },
            message: format!("out of memory: limit {limit_mib} MiB, peak {peak_mib} MiB"),
        }
    }
}

fn stopped(cause: StopCause, answer: &EndCause) -> End {
    let message = match answer {
        EndCause::Exited { code } => format!("exited with {code} when told to stop"),
        EndCause::Signaled { signal } => format!("ended by signal {signal} when told to stop"),
        _ => String::new(),
    };
    End {
        cause: cause.end_cause(),
        message,
    }
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX)
}

fn signal_group(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // A group that has ended needs no signal.
        let _ = rustix::process::kill_process_group(pid, signal);
    }
}
