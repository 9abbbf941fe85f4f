//! Processes by pid and start time: a pid alone may have been given to somebody else.

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a process that should end is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Where a process's start time stands in `/proc/PID/stat`, counted behind its name.
const START_TIME_FIELD: usize = 19;
const STATE_FIELD: usize = 0;

/// This very program, also after its file was replaced by a newer one or removed: a cluster does
/// not become a mixture of versions by a build.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";

/// One process, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// In clock ticks since the machine booted.
    pub(crate) started_ticks: u64,
}

impl Process {
    /// The process that has this pid now.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let fields = stat(pid)?;
        let started_ticks = fields.get(START_TIME_FIELD)?.parse().ok()?;
        Some(Self { pid, started_ticks })
    }

    /// Ourselves.
    pub(crate) fn own() -> Option<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// Whether it still runs, and is not merely waiting to be reaped.
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
            && stat(self.pid).is_some_and(|fields| fields[STATE_FIELD] != "Z")
    }

    /// Sends it a signal, if it is still the one that was meant.
    pub(crate) fn signal(self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            // It may end at this very moment: then there is nobody to be told.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for its end; `false` if the time is up.
    pub(crate) fn wait_end(self, limit: Duration) -> bool {
        let begun = Instant::now();
        while self.is_alive() {
            if begun.elapsed() > limit {
                return false;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        true
    }

    /// SIGTERM, and SIGKILL if that does not help.
    pub(crate) fn end(self, grace: Duration) {
        self.signal(Signal::TERM);
        if !self.wait_end(grace) {
            self.signal(Signal::KILL);
            self.wait_end(grace);
        }
    }
}

/// The fields of `/proc/PID/stat` behind the name, which may itself hold spaces and parentheses.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// All processes whose command line has an argument that starts with this path, besides ourselves.
pub(crate) fn naming(directory: &Path) -> Vec<(Process, Vec<String>)> {
    let own = Process::own();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let process = Process::of(pid).filter(|process| Some(*process) != own)?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<String> = line
            .split(|&byte| byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        words
            .iter()
            .any(|word| Path::new(word).starts_with(directory))
            .then_some((process, words))
    })
    .collect()
}

/// The last lines of a text file, for an error message.
pub(crate) fn last_lines(path: &Path, count: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_itself_and_ends_once() {
        let own = Process::own().unwrap();
        assert!(own.is_alive());
        let stranger = Process {
            started_ticks: own.started_ticks + 1,
            ..own
        };
        assert!(!stranger.is_alive(), "another process with our pid");
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.is_alive());
        process.end(Duration::from_secs(5));
        assert!(!process.is_alive());
        child.wait().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn processes_are_found_by_what_they_name() {
        let directory = std::env::temp_dir().join(format!("pronto-naming-{}", std::process::id()));
        // It waits by itself: a child of its own would have its words until it executes others.
        let mut child = Command::new("sh")
            .args(["-c", "read line"])
            .arg(directory.join("x"))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        let found = loop {
            let found = naming(&directory);
            // Between fork and exec the command line is still our own.
            if !found.is_empty() || begun.elapsed() > Duration::from_secs(10) {
                break found;
            }
        };
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1[0], "sh");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
