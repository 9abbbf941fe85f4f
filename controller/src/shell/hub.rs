//! Who watches what: changes of instances and lines of the audit trail, from the engine to the
//! responses that follow them.
//!
//! One who follows a single instance hears of that one alone, and of the latest change only; one
//! who waits for a submission hears when all of it has ended; one who watches a list gets every
//! change, and is told when it was too slow.

use crate::api::types::EventRecord;
use crate::planner::Change;
use crate::store::EventRow;
use pronto_payloads::ids::InstanceId;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

/// Changes that a watcher of a list may be behind: a second of a busy cluster.
const BEHIND: usize = 16_384;

/// The exchange.
#[derive(Debug)]
pub(crate) struct Hub {
    instances: Followed<InstanceId>,
    submissions: Followed<Uuid>,
    all: broadcast::Sender<Change>,
    events: broadcast::Sender<EventRecord>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            instances: Followed::default(),
            submissions: Followed::default(),
            all: broadcast::Sender::new(BEHIND),
            events: broadcast::Sender::new(BEHIND),
        }
    }
}

/// What somebody follows one by one, with its latest change.
#[derive(Debug)]
struct Followed<K>(Mutex<HashMap<K, watch::Sender<Option<Change>>>>);

impl<K> Default for Followed<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash> Followed<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, watch::Sender<Option<Change>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, key: K, change: &Change) {
        let mut all = self.lock();
        if !all.is_empty()
            && let Some(watcher) = all.get(&key)
        {
            // With nobody left the entry goes.
            if watcher.send(Some(change.clone())).is_err() {
                all.remove(&key);
            }
        }
    }

    fn follow(&self, key: K) -> watch::Receiver<Option<Change>> {
        let mut all = self.lock();
        if all.len() > 1024 && all.len().is_power_of_two() {
            all.retain(|_, watcher| watcher.receiver_count() > 0);
        }
        all.entry(key)
            .or_insert_with(|| watch::Sender::new(None))
            .subscribe()
    }

    /// Nobody follows it any more, perhaps.
    fn unfollow(&self, key: K) {
        let mut all = self.lock();
        if all
            .get(&key)
            .is_some_and(|watcher| watcher.receiver_count() == 0)
        {
            all.remove(&key);
        }
    }
}

impl Hub {
    pub(crate) fn publish(&self, change: Change) {
        self.instances.publish(change.id, &change);
        if change.submission_ended {
            self.submissions.publish(change.submission, &change);
        }
        if self.all.receiver_count() > 0 {
            let _nobody = self.all.send(change);
        }
    }

    pub(crate) fn publish_event(&self, row: &EventRow) {
        if self.events.receiver_count() > 0 {
            let _nobody = self.events.send(row.record());
        }
    }

    /// Changes of one instance from now on.
    pub(crate) fn follow(&self, id: InstanceId) -> watch::Receiver<Option<Change>> {
        self.instances.follow(id)
    }

    /// Nobody follows this instance any more, perhaps.
    pub(crate) fn unfollow(&self, id: InstanceId) {
        self.instances.unfollow(id);
    }

    /// Changes when all of a submission has ended.
    pub(crate) fn follow_submission(&self, request: Uuid) -> watch::Receiver<Option<Change>> {
        self.submissions.follow(request)
    }

    /// Nobody waits for this submission any more, perhaps.
    pub(crate) fn unfollow_submission(&self, request: Uuid) {
        self.submissions.unfollow(request);
    }

    pub(crate) fn watch_all(&self) -> broadcast::Receiver<Change> {
        self.all.subscribe()
    }

    pub(crate) fn follow_events(&self) -> broadcast::Receiver<EventRecord> {
        self.events.subscribe()
    }
}
