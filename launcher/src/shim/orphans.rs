//! What is left of a command or a workload where no control group holds it together.
//!
//! Whoever leaves its session and its parents comes to the next process above that is marked as a
//! reaper of descendants: nobody below gets away from it but by ending. So its children, and theirs
//! when they have become its own, are all that is left; and no number of a child is given away
//! before the parent has looked at its end.

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, wait};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;

/// The shim's children that it has not started, and the ended workloads of which each may be one.
///
/// The main process of a workload is a reaper itself as long as it lives. So an orphan comes here
/// only when its workload is over, and is one of those of which something was left when it was first
/// seen. That none is left of a workload is certain; a process that does not die holds up those
/// alone that ended together.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    known: HashMap<Pid, BTreeSet<u64>>,
    /// Children could not be listed.
    unsure: bool,
}

impl Orphans {
    /// Takes up which children there are beside the main processes. `remains` are the workloads whose
    /// main process has been reaped and of which something may be left: all whose main process had
    /// ended when the children were listed.
    pub(super) fn survey(
        &mut self,
        children: io::Result<Vec<Pid>>,
        is_main: impl Fn(Pid) -> bool,
        remains: &BTreeSet<u64>,
    ) {
        self.unsure = children.is_err();
        let children = children.unwrap_or_default();
        for pid in children.into_iter().filter(|pid| !is_main(*pid)) {
            self.known.entry(pid).or_insert_with(|| remains.clone());
        }
    }

    /// It has been reaped: its number may be another's now.
    pub(super) fn reaped(&mut self, pid: Pid) {
        self.known.remove(&pid);
    }

    pub(super) fn has_none_of(&self, workload: u64) -> bool {
        !self.unsure && !self.known.values().any(|of| of.contains(&workload))
    }

    pub(super) fn kill(&self) {
        self.known.keys().copied().for_each(kill);
    }
}

fn kill(pid: Pid) {
    // One that has just ended needs no signal.
    let _ = kill_process(pid, Signal::KILL);
}

/// All children of this process, which has one thread; those that have ended and were not looked at
/// yet are among them.
pub(super) fn children() -> io::Result<Vec<Pid>> {
    // Reliable while only we reap: what has ended keeps its place, and what comes goes to the end.
    match fs::read_to_string("/proc/thread-self/children") {
        Ok(list) => Ok(list.split_whitespace().filter_map(parse_pid).collect()),
        // Kernels can be built without that file.
        Err(_) => children_by_parent(),
    }
}

fn children_by_parent() -> io::Result<Vec<Pid>> {
    let own = getpid();
    Ok(fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| parse_pid(entry.file_name().to_str()?))
        .filter(|pid| parent_of(*pid) == Some(own))
        .collect())
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Pid::from_raw(super::sys::stat_field(&stat, 4)?)
}

fn parse_pid(text: &str) -> Option<Pid> {
    Pid::from_raw(text.parse().ok()?)
}

/// Kills all children and theirs, and waits until none is left.
pub(super) fn end_all() {
    loop {
        children().unwrap_or_default().into_iter().for_each(kill);
        match wait(WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // There is none.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn both_ways_see_the_same_children() {
        let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&sleeper);
        let both = || [children().unwrap(), children_by_parent().unwrap()];
        assert!(both().iter().all(|seen| seen.contains(&pid)));
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(both().iter().all(|seen| !seen.contains(&pid)));
    }

    #[test]
    fn an_orphan_holds_up_those_that_ended_before_it_was_seen() {
        let pid = |number| Pid::from_raw(number).unwrap();
        let mut orphans = Orphans::default();
        let is_main = |other| other == pid(10);
        orphans.survey(Ok(vec![pid(10), pid(11)]), is_main, &[1, 2].into());
        let hangs = Ok(vec![pid(11), pid(12)]);
        orphans.survey(hangs, is_main, &[1, 2, 3].into());
        assert!(!orphans.has_none_of(1) && !orphans.has_none_of(3) && orphans.has_none_of(4));
        orphans.reaped(pid(12));
        assert!(!orphans.has_none_of(2) && orphans.has_none_of(3));
        orphans.reaped(pid(11));
        assert!(orphans.has_none_of(2));
        orphans.survey(Err(io::ErrorKind::Other.into()), is_main, &[5].into());
        assert!(!orphans.has_none_of(5), "nobody knows");
    }
}
