//! How the machine does right now.

use pronto_payloads::node::NodeLoad;
use std::fs;
use std::path::PathBuf;

/// Measures; remembers the last counters to make rates of them.
#[derive(Debug)]
pub struct LoadMeter {
    data_dir: PathBuf,
    low_memory_mib: u32,
    low_disk_mib: u32,
    /// Busy and all ticks at the last measurement.
    ticks: Option<(u64, u64)>,
}

impl LoadMeter {
    /// A meter for the disk of this directory.
    #[must_use]
    pub const fn new(data_dir: PathBuf, low_memory_mib: u32, low_disk_mib: u32) -> Self {
        Self {
            data_dir,
            low_memory_mib,
            low_disk_mib,
            ticks: None,
        }
    }

    /// The load, and why no more work should come, if it should not.
    pub fn measure(&mut self, instances: u32) -> (NodeLoad, Option<String>) {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mut load = NodeLoad {
            instances,
            ..NodeLoad::default()
        };
        self.measure_cpu(&read("/proc/stat"), &mut load);
        let load1 = read("/proc/loadavg");
        let load1 = load1
            .split_whitespace()
            .next()
            .and_then(|load| load.parse::<f64>().ok());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates"
        )]
        {
            load.load1_hundredths = (load1.unwrap_or(0.0) * 100.0).round() as u32;
        }
        let uptime = read("/proc/uptime");
        let uptime = uptime
            .split('.')
            .next()
            .and_then(|seconds| seconds.parse().ok());
        load.uptime_s = uptime.unwrap_or(0);
        let meminfo = read("/proc/meminfo");
        let mib = |kib: Option<u64>| u32::try_from(kib.unwrap_or(0) / 1024).unwrap_or(u32::MAX);
        load.memory_total_mib = mib(kib_of(&meminfo, "MemTotal"));
        let free_mib = mib(kib_of(&meminfo, "MemAvailable"));
        load.memory_used_mib = load.memory_total_mib.saturating_sub(free_mib);
        let mut disk_free_mib = u32::MAX;
        if let Ok(disk) = rustix::fs::statvfs(&self.data_dir) {
            let mib =
                |blocks: u64| u32::try_from((blocks * disk.f_frsize) >> 20).unwrap_or(u32::MAX);
            load.disk_total_mib = mib(disk.f_blocks);
            load.disk_used_mib = load.disk_total_mib.saturating_sub(mib(disk.f_bfree));
            disk_free_mib = mib(disk.f_bavail);
        }
        let pressure = if free_mib < self.low_memory_mib {
            Some(format!(
                "{free_mib} MiB of real memory left, below {}",
                self.low_memory_mib
            ))
        } else if disk_free_mib < self.low_disk_mib {
            Some(format!(
                "{disk_free_mib} MiB of real disk left, below {}",
                self.low_disk_mib
            ))
        } else {
            None
        };
        (load, pressure)
    }

    fn measure_cpu(&mut self, stat: &str, load: &mut NodeLoad) {
        let cores = stat
            .lines()
            .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
            .count();
        load.cpu_total_millis = u32::try_from(cores * 1000).unwrap_or(u32::MAX);
        let Some(line) = stat.lines().next() else {
            return;
        };
        let fields: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .filter_map(|field| field.parse().ok())
            .collect();
        // user nice system idle iowait irq softirq steal; guest times are inside of user.
        let all: u64 = fields.iter().take(8).sum();
        let idle: u64 = fields.iter().skip(3).take(2).sum();
        let busy = all.saturating_sub(idle);
        if let Some((last_busy, last_all)) = self.ticks.replace((busy, all)) {
            let busy_now = busy.saturating_sub(last_busy) * u64::from(load.cpu_total_millis);
            let used = busy_now
                .checked_div(all.saturating_sub(last_all))
                .unwrap_or(0);
            load.cpu_used_millis = u32::try_from(used).unwrap_or(u32::MAX);
        }
    }
}

/// A value of /proc/meminfo, in KiB.
pub(super) fn kib_of(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_load() {
        let mut meter = LoadMeter::new("/".into(), 0, 0);
        let (load, pressure) = meter.measure(3);
        assert!(load.memory_total_mib > load.memory_used_mib && load.memory_used_mib > 0);
        assert!(load.cpu_total_millis >= 1000 && load.disk_total_mib > 0);
        assert_eq!((load.instances, pressure), (3, None));
        let (_, pressure) = LoadMeter::new("/".into(), u32::MAX, 0).measure(0);
        assert!(pressure.unwrap().contains("MiB of real memory left"));
    }

    #[test]
    fn cpu_is_what_was_busy_in_between() {
        let mut meter = LoadMeter::new("/".into(), 0, 0);
        let mut load = NodeLoad::default();
        meter.measure_cpu("cpu 100 0 100 800 0 0 0 0 0 0\ncpu0 1\ncpu1 1\n", &mut load);
        meter.measure_cpu("cpu 150 0 100 850 0 0 0 0 0 0\ncpu0 1\ncpu1 1\n", &mut load);
        assert_eq!((load.cpu_used_millis, load.cpu_total_millis), (1000, 2000));
    }
}
