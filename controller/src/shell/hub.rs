//! Who watches what: changes of instances and lines of the audit trail, from the engine to the
//! responses that follow them.
//!
//! One who follows a single instance hears of that one alone, and of the latest change only; one
//! who watches a list gets every change, and is told when it was too slow.

use crate::api::types::EventRecord;
use crate::planner::Change;
use crate::store::EventRow;
use pronto_payloads::ids::InstanceId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{broadcast, watch};

/// Changes that a watcher of a list may be behind: a second of a busy cluster.
const BEHIND: usize = 16_384;

/// The exchange.
#[derive(Debug)]
pub(crate) struct Hub {
    one: Mutex<HashMap<InstanceId, watch::Sender<Option<Change>>>>,
    all: broadcast::Sender<Change>,
    events: broadcast::Sender<EventRecord>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            one: Mutex::new(HashMap::new()),
            all: broadcast::Sender::new(BEHIND),
            events: broadcast::Sender::new(BEHIND),
        }
    }
}

impl Hub {
    fn one(&self) -> MutexGuard<'_, HashMap<InstanceId, watch::Sender<Option<Change>>>> {
        self.one.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn publish(&self, change: Change) {
        let mut one = self.one();
        if !one.is_empty()
            && let Some(watcher) = one.get(&change.id)
        {
            // With nobody left the entry goes.
            if watcher.send(Some(change.clone())).is_err() {
                one.remove(&change.id);
            }
        }
        drop(one);
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
        let mut one = self.one();
        if one.len() > 1024 && one.len().is_power_of_two() {
            one.retain(|_, watcher| watcher.receiver_count() > 0);
        }
        one.entry(id)
            .or_insert_with(|| watch::Sender::new(None))
            .subscribe()
    }

    /// Nobody follows this instance any more, perhaps.
    pub(crate) fn unfollow(&self, id: InstanceId) {
        let mut one = self.one();
        if one
            .get(&id)
            .is_some_and(|watcher| watcher.receiver_count() == 0)
        {
            one.remove(&id);
        }
    }

    pub(crate) fn watch_all(&self) -> broadcast::Receiver<Change> {
        self.all.subscribe()
    }

    pub(crate) fn follow_events(&self) -> broadcast::Receiver<EventRecord> {
        self.events.subscribe()
    }
}
