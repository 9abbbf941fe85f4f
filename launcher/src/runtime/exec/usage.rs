//! What running attempts use, as their control groups tell, or else their main processes alone.

use super::attempts::{Attempts, Running};
use crate::cgroup;
use crate::moment::Moment;
use crate::shim::sys::stat_field;
use pronto_payloads::instance::{InstanceUsage, Usage};
use pronto_payloads::place::AttemptId;
use std::fs;
use std::time::Duration;

/// Workloads younger than this are not measured: they are over before anybody reads it.
const MEASURE_AGE: Duration = Duration::from_millis(500);

impl Attempts {
    pub(super) fn usages(&self) -> Vec<InstanceUsage> {
        let now = Moment::now();
        let running: Vec<(AttemptId, Running)> = self
            .lock()
            .values()
            .filter(|attempt| !attempt.ended)
            .filter_map(|attempt| Some((attempt.job.id, attempt.running.clone()?)))
            .filter(|(_, running)| now.since(running.since) >= MEASURE_AGE)
            .collect();
        running
            .into_iter()
            .map(|(id, running)| InstanceUsage {
                id,
                usage: self.usage(&running),
            })
            .collect()
    }

    fn usage(&self, running: &Running) -> Usage {
        // Up: what runs uses some memory, and the end's usage is rounded so too.
        let mib = |bytes: u64| u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        let (read_bytes, written_bytes) = process_io(running.pid);
        match (&self.settings.hierarchy, &running.group) {
            (Some(hierarchy), Some(group)) => {
                let counters = cgroup::counters(hierarchy, group);
                let (read_bytes, written_bytes) =
                    counters.io_bytes.unwrap_or((read_bytes, written_bytes));
                Usage {
                    cpu_ms: counters.cpu_us.saturating_sub(running.group_cpu_us) / 1000,
                    memory_mib: mib(counters.memory_bytes),
                    memory_peak_mib: mib(counters.memory_peak_bytes),
                    read_bytes,
                    written_bytes,
                    pids: u32::try_from(counters.pids).unwrap_or(u32::MAX),
                }
            }
            _ => process_usage(running.pid, read_bytes, written_bytes),
        }
    }
}

/// Bytes that a process has really read from and written to devices.
fn process_io(pid: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(": ")?.parse().ok())
            .unwrap_or(0)
    };
    (value("read_bytes"), value("write_bytes"))
}

/// Without a control group: the main process alone.
fn process_usage(pid: i32, read_bytes: u64, written_bytes: u64) -> Usage {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let number = |field| stat_field::<u64>(&stat, field).unwrap_or(0);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mib = |key: &str| {
        let kib = status.lines().find_map(|line| {
            line.strip_prefix(key)?
                .split_whitespace()
                .nth(1)?
                .parse::<u64>()
                .ok()
        });
        u32::try_from(kib.unwrap_or(0).div_ceil(1024)).unwrap_or(u32::MAX)
    };
    // Ticks are hundredths of a second on every architecture that we build for.
    Usage {
        cpu_ms: (number(14) + number(15)) * 10,
        memory_mib: mib("VmRSS"),
        memory_peak_mib: mib("VmHWM"),
        read_bytes,
        written_bytes,
        pids: u32::try_from(number(20)).unwrap_or(0),
    }
}
