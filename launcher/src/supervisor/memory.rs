//! A store in memory: what a disk would give back after a crash, for simulated nodes and tests.

use super::event::{Durable, NodeRecord, Restored};
use super::record::Job;
use super::tombstones::{Tombstone, Tombstones};
use pronto_payloads::place::AttemptId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Applies [`Durable`] effects, and restores from them.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    node: NodeRecord,
    jobs: BTreeMap<AttemptId, Arc<Job>>,
    tombstones: Tombstones,
}

impl MemoryStore {
    /// Does what a disk would do.
    pub fn apply(&mut self, durable: &Durable) {
        match durable {
            Durable::Accepted(job) => {
                self.jobs.insert(job.id, Arc::clone(job));
            }
            Durable::Acknowledged(job) => {
                self.jobs.remove(&job.id);
            }
            Durable::Deleted(id) => {
                self.jobs.remove(id);
            }
            Durable::Tombstone(tombstone) | Durable::Over(tombstone) => {
                self.tombstones.insert(tombstone.clone());
            }
            Durable::State(node) => self.node = node.clone(),
            Durable::Emptied(_) | Durable::Forgotten { .. } => {}
        }
    }

    /// What a restarted launcher would find.
    #[must_use]
    pub fn restore(&self) -> Restored {
        let tombstones: Vec<Tombstone> = self.tombstones.iter().collect();
        Restored {
            node: self.node.clone(),
            jobs: self.jobs.values().cloned().collect(),
            tombstones,
        }
    }
}
