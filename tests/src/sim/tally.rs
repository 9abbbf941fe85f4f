//! How often each thing happened that a run is there to try, so that a fault which never strikes, or
//! strikes only what is down already, is seen.

use std::collections::BTreeMap;

/// Everything that seeds must show: what breaks, what users do, and what comes of both. A queue that
/// takes nothing more is counted too, and not expected: its sender holds back where it is brimming.
pub const EXPECTED: [&str; 39] = [
    "scheduler killed",
    "controller killed",
    "launcher killed",
    "launcher killed within a step",
    "process stopped",
    "power lost",
    "node fenced",
    "connection cut",
    "one way blocked",
    "host cut off",
    "disk stalled",
    "frames delayed",
    "peer slow",
    "capacity lied about",
    "false HELLO said",
    "work of others reported",
    "frames said twice",
    "node fails everything",
    "wall clock set",
    "certificate expired",
    "commit lost at a crash",
    "queue brimming",
    "cloud full",
    "submission",
    "stop",
    "stop and delete",
    "drain",
    "quota exceeded",
    "attempt taken back",
    "store restored",
    "whole GPUs given",
    "share of a GPU given",
    "named resource given",
    "constraint met",
    "preferred node given",
    "restart",
    "restart after the end",
    "delete after the end",
    "intruder rebuffed",
];

/// Counts by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(pub BTreeMap<&'static str, u64>);

impl Tally {
    /// It has happened once more.
    pub fn count(&mut self, what: &'static str) {
        self.count_many(what, 1);
    }

    /// It has happened so many times more.
    pub fn count_many(&mut self, what: &'static str, times: u64) {
        if times > 0 {
            *self.0.entry(what).or_default() += times;
        }
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        for (what, times) in &other.0 {
            self.count_many(what, *times);
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (what, times)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(formatter, "{comma}{what} {times}")?;
        }
        Ok(())
    }
}
