//! The files and directories of control groups.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How often a kill is repeated until a group is empty; each round kills all that it sees.
const KILL_ROUNDS: usize = 50;

pub(super) fn io_sum(stat: &str) -> (u64, u64) {
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

pub(super) fn read_number(file: &File) -> Option<u64> {
    let mut buffer = [0; 32];
    let length = read_text(file, &mut buffer);
    std::str::from_utf8(&buffer[..length])
        .ok()?
        .trim()
        .parse()
        .ok()
}

pub(super) fn read_key(file: &File, key: &str) -> Option<u64> {
    let mut buffer = [0; 1024];
    let length = read_text(file, &mut buffer);
    key_of(std::str::from_utf8(&buffer[..length]).ok()?, key)
}

pub(super) fn key_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Removes all that can be removed; says what was in the way first.
pub(super) fn remove_directories(paths: impl Iterator<Item = impl AsRef<Path>>) -> io::Result<()> {
    paths
        .map(|path| remove_directory(path.as_ref()))
        .fold(Ok(()), io::Result::and)
}

pub(super) fn remove_directory(path: &Path) -> io::Result<()> {
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

pub(super) fn signal_members(directory: &Path, signal: rustix::process::Signal) -> io::Result<()> {
    for pid in members(directory)? {
        // One that has just ended needs no signal.
        let _ = rustix::process::kill_process(pid, signal);
    }
    Ok(())
}

pub(super) fn kill_members(directory: &Path) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
