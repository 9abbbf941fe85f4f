//! The writer's thread: commits all batches that are waiting in one transaction, and answers for
//! them. A failure of the store ends the daemon: after a failed fsync nobody knows what is on disk.

use super::engine::Message;
use super::metrics::Metrics;
use super::unix_ms;
use crate::planner::Event;
use crate::store::{Batch, SqliteStore, Store, StoreError};
use pronto_payloads::ids::InstanceId;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Batches in one transaction: what a second of the fastest load gathers is far below.
const GROUP: usize = 512;
/// Retention works while nothing else is to be done, and not more often.
const PURGE_EVERY: Duration = Duration::from_secs(10);
/// Unless more is there to remove than goes at a time.
const PURGE_MORE: Duration = Duration::from_millis(50);

enum Job {
    Commit(Batch),
    Lookup(u64, InstanceId),
}

/// How long things are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    pub(crate) instances_ms: u64,
    pub(crate) events_ms: u64,
}

/// Gives work to the writer. What waits is bounded by what the planner's own limits allow to be
/// under way.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    jobs: Sender<Job>,
}

impl Writer {
    pub(crate) fn commit(&self, batch: Batch) {
        // The thread ends only together with the daemon.
        let _ending = self.jobs.send(Job::Commit(batch));
    }

    pub(crate) fn lookup(&self, lookup: u64, id: InstanceId) {
        let _ending = self.jobs.send(Job::Lookup(lookup, id));
    }
}

/// Starts the thread; the receiver gets the store's failure.
pub(crate) fn start(
    store: SqliteStore,
    inbox: mpsc::Sender<Message>,
    metrics: Arc<Metrics>,
    retention: Retention,
) -> std::io::Result<(Writer, oneshot::Receiver<StoreError>)> {
    let (jobs, received) = channel();
    let (failed, failure) = oneshot::channel();
    std::thread::Builder::new()
        .name("writer".to_owned())
        .spawn(move || {
            if let Err(error) = work(store, &received, &inbox, &metrics, retention) {
                let _ending = failed.send(error);
            }
        })?;
    Ok((Writer { jobs }, failure))
}

fn work(
    mut store: SqliteStore,
    jobs: &Receiver<Job>,
    inbox: &mpsc::Sender<Message>,
    metrics: &Metrics,
    retention: Retention,
) -> Result<(), StoreError> {
    let mut group: Vec<Batch> = Vec::new();
    let mut lookups = Vec::new();
    let (mut purged, mut pause) = (Instant::now(), PURGE_EVERY);
    loop {
        let first = match jobs.recv_timeout(pause) {
            Ok(job) => Some(job),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        let idle = first.is_none();
        for job in first.into_iter().chain(jobs.try_iter()) {
            match job {
                Job::Commit(batch) => group.push(batch),
                Job::Lookup(lookup, id) => lookups.push((lookup, id)),
            }
            if group.len() >= GROUP {
                break;
            }
        }
        if let Some(last) = group.last() {
            let number = last.number;
            let began = Instant::now();
            let committed = store.commit(&group)?;
            let took = began.elapsed();
            metrics.note_commit(took, group.len());
            group.clear();
            let event = Event::CommitDone {
                number,
                admissions_refused: committed.admissions_refused,
                took_ns: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
            };
            if inbox.blocking_send(Message::Event(event)).is_err() {
                return Ok(());
            }
        }
        for (lookup, id) in lookups.drain(..) {
            let past = store.lookup(id)?;
            let event = Event::LookedUp { lookup, past };
            if inbox.blocking_send(Message::Event(event)).is_err() {
                return Ok(());
            }
        }
        if idle || purged.elapsed() >= pause {
            purged = Instant::now();
            let now = unix_ms();
            let more = store.purge(
                now.saturating_sub(retention.instances_ms),
                now.saturating_sub(retention.events_ms),
            )?;
            pause = if more { PURGE_MORE } else { PURGE_EVERY };
        }
    }
}
