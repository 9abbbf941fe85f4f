//! A store in memory, for tests and simulation: what was committed is there after a crash of the
//! planner, and nothing else.

use super::rows::{
    AmendRow, EndRow, EventRow, Meta, NodeRow, Snapshot, SpecRow, StoredSubmission, SubmissionRow,
    TenantRow, WorkloadRow, Write,
};
use super::{Batch, Committed, Past, Store, StoreError};
use crate::numbers::IdScheme;
use pronto_payloads::ids::{InstanceId, OwnerId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows as the database would hold them.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    pub meta: Meta,
    pub specs: BTreeMap<u32, SpecRow>,
    /// With whether it is done.
    pub submissions: BTreeMap<u64, (SubmissionRow, bool)>,
    pub amends: BTreeMap<u64, AmendRow>,
    pub ends: BTreeMap<u64, EndRow>,
    pub tenants: BTreeMap<Arc<str>, TenantRow>,
    pub workloads: BTreeMap<(Arc<str>, Arc<str>), WorkloadRow>,
    pub nodes: BTreeMap<Arc<str>, NodeRow>,
    pub events: Vec<EventRow>,
    /// Refuses admissions, as a full disk does.
    pub full: bool,
    pub commits: u64,
}

impl MemoryStore {
    /// A new store.
    #[must_use]
    pub fn new(owner: OwnerId, id_key: u64) -> Self {
        Self {
            meta: Meta {
                owner,
                id_key,
                epoch: 0,
                term: 0,
                next_seq: 1,
                next_event: 1,
                restored: false,
                leap_seq: 0,
                leap_attempt: 0,
            },
            specs: BTreeMap::new(),
            submissions: BTreeMap::new(),
            amends: BTreeMap::new(),
            ends: BTreeMap::new(),
            tenants: BTreeMap::new(),
            workloads: BTreeMap::new(),
            nodes: BTreeMap::new(),
            events: Vec::new(),
            full: false,
            commits: 0,
        }
    }

    /// What [`super::restore_backup`] makes of this store as a backup.
    #[must_use]
    pub fn restored(&self, unix_ms: u64) -> Self {
        let mut store = self.clone();
        store.meta.next_seq = store.next_seq();
        store.meta.leap(unix_ms);
        store
    }

    fn next_seq(&self) -> u64 {
        let newest = self.submissions.last_key_value();
        newest.map_or(1, |(first, (row, _))| first + u64::from(row.count))
    }

    /// Raises the epoch and gives what a planner starts from, as opening a database does.
    pub fn open(&mut self) -> Snapshot {
        self.meta.epoch += 1;
        self.meta.next_seq = self.next_seq();
        self.meta.next_event = self.events.last().map_or(1, |event| event.number + 1);
        Snapshot {
            meta: self.meta,
            next_spec: self.specs.last_key_value().map_or(1, |(id, _)| id + 1),
            specs: self.specs.values().cloned().collect(),
            submissions: self
                .submissions
                .values()
                .map(|(row, _)| StoredSubmission {
                    row: row.clone(),
                    ended: self
                        .ends
                        .range(row.first_seq..row.first_seq + u64::from(row.count))
                        .map(|(&seq, end)| (seq, end.state))
                        .collect(),
                })
                .collect(),
            amends: self.amends.values().copied().collect(),
            tenants: self.tenants.values().cloned().collect(),
            workloads: self.workloads.values().cloned().collect(),
            nodes: self.nodes.values().cloned().collect(),
        }
    }

    fn apply(&mut self, write: Write) {
        match write {
            Write::Submission(row) => {
                let before = self.submissions.insert(row.first_seq, (row, false));
                assert!(before.is_none(), "an instance's number is given out once");
            }
            Write::Spec(row) => {
                self.specs.insert(row.id, row);
            }
            Write::Amend(row) => {
                if let Some(before) = self.amends.get(&row.seq) {
                    let (before, now) = (before.highest_attempt, row.highest_attempt);
                    assert!(before <= now, "no number is given out again");
                }
                self.amends.insert(row.seq, row);
            }
            Write::End(row) => {
                self.amends.remove(&row.seq);
                let before = self.ends.insert(row.seq, row);
                assert!(before.is_none(), "an instance ends once");
            }
            Write::SubmissionDone(first) => {
                if let Some((_, done)) = self.submissions.get_mut(&first) {
                    *done = true;
                }
            }
            Write::Forget(seq) => {
                if let Some(end) = self.ends.get_mut(&seq) {
                    end.deleted = true;
                }
            }
            Write::Reopen { amend, first_seq } => {
                self.ends.remove(&amend.seq);
                self.amends.insert(amend.seq, amend);
                if let Some((_, done)) = self.submissions.get_mut(&first_seq) {
                    *done = false;
                }
            }
            Write::Tenant(row) => {
                self.tenants.insert(Arc::clone(&row.name), row);
            }
            Write::TenantDeleted(name) => {
                self.tenants.remove(&name);
            }
            Write::Workload(row) => {
                let key = (Arc::clone(&row.tenant), Arc::clone(&row.name));
                self.workloads.insert(key, row);
            }
            Write::WorkloadDeleted { tenant, name } => {
                self.workloads.remove(&(tenant, name));
            }
            Write::Node(row) => {
                self.nodes.insert(Arc::clone(&row.name), row);
            }
            Write::NodeDeleted(name) => {
                self.nodes.remove(&name);
            }
            Write::Event(row) => self.events.push(row),
            Write::Term(term) => self.meta.term = term,
            Write::Epoch(epoch) => {
                self.meta.epoch = epoch;
                self.meta.restored = false;
            }
        }
    }
}

impl Store for MemoryStore {
    fn commit(&mut self, batches: &[Batch]) -> Result<Committed, StoreError> {
        self.commits += 1;
        for batch in batches {
            for write in &batch.writes {
                if !(self.full && matches!(write, Write::Submission(_))) {
                    self.apply(write.clone());
                }
            }
        }
        Ok(Committed {
            admissions_refused: self.full,
        })
    }

    fn lookup(&mut self, id: InstanceId) -> Result<Past, StoreError> {
        let ids = IdScheme::new(self.meta.id_key);
        let newest = self
            .submissions
            .last_key_value()
            .map_or(0, |(first, (row, _))| first + u64::from(row.count) - 1);
        let seq = ids.seq(id, newest);
        let known = self
            .submissions
            .range(..=seq)
            .next_back()
            .filter(|(first, (row, _))| seq < **first + u64::from(row.count))
            .is_some_and(|(_, (row, _))| ids.id(row.unix_ms, row.nonce, seq) == id);
        let end = self.ends.get(&seq).filter(|_| known);
        Ok(end.map_or(Past::Unknown, |end| Past::Ended {
            highest_attempt: end.attempt.max(end.highest_attempt),
        }))
    }
}
