//! Who has ended, and what is left of them.

use super::message::FromShim;
use super::{Shim, ended, orphans, sys};
use crate::moment::Moment;
use rustix::process::Pid;
use std::os::fd::AsFd;

impl Shim {
    pub(super) fn take_signals(&mut self) {
        for signal in sys::pending_signals(self.signals.as_fd()) {
            if signal == libc::SIGTERM || signal == libc::SIGINT {
                self.shut_down(2000);
            }
        }
        self.settle();
    }

    /// Looks at all children that have ended; says whether there were any.
    fn reap(&mut self) -> bool {
        let mut any = false;
        while let Some(reaped) = sys::reap() {
            any = true;
            let Some(id) = self.by_pid.remove(&reaped.pid) else {
                // An orphan of a workload that was handed to us.
                if let Some(pid) = Pid::from_raw(reaped.pid) {
                    self.orphans.reaped(pid);
                }
                continue;
            };
            if let Some(workload) = self.workloads.get_mut(&id) {
                workload.main_ended(&reaped);
                self.remains.insert(id);
            }
        }
        any
    }

    /// Finds out who has ended, and what is left of them.
    fn survey(&mut self) {
        if self.settings.hierarchy.is_some() {
            self.reap();
            return;
        }
        // Nobody must end between the list and the look at who has ended: each orphan in the list is
        // then of a workload that is known to be over, and each of such a workload is in the list.
        let children = loop {
            let children = orphans::children();
            if !self.reap() {
                break children;
            }
        };
        let is_main = |pid: Pid| self.by_pid.contains_key(&pid.as_raw_nonzero().get());
        self.orphans.survey(children, is_main, &self.remains);
    }

    /// Finishes those that are empty by now, and kills what is left of the others.
    pub(super) fn settle(&mut self) {
        self.survey();
        self.orphans.kill();
        let now = Moment::now();
        for id in self.remains.clone() {
            let Some(workload) = self.workloads.get_mut(&id) else {
                continue;
            };
            let is_empty = match &workload.group {
                Some(group) => group.is_empty(),
                None => self.orphans.has_none_of(id),
            };
            if is_empty {
                self.finish(id);
            } else {
                workload.kill(now);
                self.set_timer(id);
            }
        }
    }

    fn finish(&mut self, id: u64) {
        // All writers are gone: a pipe's rest is what fits into it.
        self.drain_pipe(id, 0, 64);
        self.drain_pipe(id, 1, 64);
        self.remains.remove(&id);
        let Some(mut workload) = self.workloads.remove(&id) else {
            return;
        };
        if let Some(at) = workload.alarm {
            self.timers.remove(&(at, id));
        }
        if let Some(exit) = workload.exit() {
            self.exits.write(workload.spawn.directory.clone(), exit);
        }
        if let Some(ended) = ended(&workload) {
            self.tell(&ended);
        }
        let key = workload.spawn.key.clone();
        self.by_key.remove(&key);
        self.tell(&FromShim::Emptied { key });
        if let Some(group) = workload.group.take() {
            self.put_group(group);
        }
        self.idle_since = Moment::now();
    }
}
