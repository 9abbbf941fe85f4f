//! Which attempts streams may be about: those that have a directory and are not acknowledged.
//! Written by the main loop, read by streams.

use crate::supervisor::{Durable, Job};
use pronto_payloads::ids::{InstanceId, OwnerId};
use pronto_payloads::place::AttemptId;
use rustc_hash::FxHashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// An attempt, and how to wait for its start and its end.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) job: Arc<Job>,
    /// Cancelled once it can take files.
    pub(crate) prepared: CancellationToken,
    /// Cancelled once it runs.
    pub(crate) started: CancellationToken,
    /// Cancelled once nothing of it is left.
    pub(crate) ended: CancellationToken,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    known: Mutex<FxHashMap<(OwnerId, InstanceId), Known>>,
    /// Told of every attempt that is added.
    pub(crate) arrivals: Notify,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, FxHashMap<(OwnerId, InstanceId), Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an attempt; the highest of an instance is the one that is meant.
    pub(crate) fn insert(&self, job: &Arc<Job>, live: bool) {
        let mut known = self.lock();
        let key = (job.id.owner, job.id.instance);
        if known
            .get(&key)
            .is_some_and(|known| known.job.id.attempt > job.id.attempt)
        {
            return;
        }
        let entry = Known {
            job: job.clone(),
            prepared: CancellationToken::new(),
            started: CancellationToken::new(),
            ended: CancellationToken::new(),
        };
        if !live {
            entry.ended.cancel();
        }
        known.insert(key, entry);
        self.arrivals.notify_waiters();
    }

    /// Follows what the supervisor has decided.
    pub(crate) fn notice(&self, durable: &Durable) {
        match durable {
            Durable::Accepted(job) => self.insert(job, true),
            Durable::Emptied(job) => self.with(job.id, |known| known.ended.cancel()),
            Durable::Acknowledged(job) => self.remove(job.id),
            Durable::Deleted(id) => self.remove(*id),
            Durable::Forgotten { .. }
            | Durable::Tombstone(_)
            | Durable::Over(_)
            | Durable::State(_) => {}
        }
    }

    /// Its directory is there, and it waits for its files.
    pub(crate) fn prepared(&self, id: AttemptId) {
        self.with(id, |known| known.prepared.cancel());
    }

    /// It runs.
    pub(crate) fn started(&self, id: AttemptId) {
        self.with(id, |known| {
            known.prepared.cancel();
            known.started.cancel();
        });
    }

    pub(crate) fn find(&self, owner: OwnerId, instance: InstanceId) -> Option<Known> {
        self.lock().get(&(owner, instance)).cloned()
    }

    fn with(&self, id: AttemptId, change: impl FnOnce(&Known)) {
        if let Some(known) = self
            .lock()
            .get(&(id.owner, id.instance))
            .filter(|known| known.job.id == id)
        {
            change(known);
        }
    }

    fn remove(&self, id: AttemptId) {
        let mut known = self.lock();
        let key = (id.owner, id.instance);
        if known.get(&key).is_some_and(|known| known.job.id == id)
            && let Some(known) = known.remove(&key)
        {
            known.ended.cancel();
        }
    }
}
