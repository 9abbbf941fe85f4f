//! The thread between the main loop and everything that may be slow: attempts' directories and the
//! runtimes. It executes orders strictly in the order in which the supervisor gave them.
//!
//! So a stalled disk delays starts, as it must, and never a lease or a status.

use crate::runtime::{Events, Readiness, Runtimes};
use crate::store::AttemptStore;
use crate::supervisor::{Durable, Effect, Event, Job};
use pronto_payloads::ids::{Attempt, InstanceId, OwnerId};
use pronto_payloads::instance::{End, EndCause};
use pronto_payloads::place::AttemptId;
use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// Something for the executor to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// An effect about directories or runtimes.
    Do(Effect),
    /// Find out what became of attempts of an earlier process.
    Adopt(Vec<Arc<Job>>),
    /// Remove what has aged.
    Age,
    /// Which acknowledged attempt of the instance still has its files?
    FindKept(
        OwnerId,
        InstanceId,
        Option<Attempt>,
        oneshot::Sender<Option<Arc<Job>>>,
    ),
}

/// Sends orders; a batch wakes the thread once.
pub(crate) type Orders = mpsc::Sender<Vec<Order>>;

/// Starts the thread. It ends when all senders are gone and everything is done.
pub(crate) fn spawn(
    store: AttemptStore,
    runtimes: Runtimes,
    events: Events,
) -> std::io::Result<(Orders, JoinHandle<()>)> {
    let (orders, batches) = mpsc::channel::<Vec<Order>>();
    let mut executor = Executor {
        store,
        runtimes,
        events,
        broken: BTreeSet::new(),
    };
    let thread = std::thread::Builder::new()
        .name("executor".into())
        .spawn(move || {
            for order in batches.into_iter().flatten() {
                executor.execute(order);
            }
        })?;
    Ok((orders, thread))
}

struct Executor {
    store: AttemptStore,
    runtimes: Runtimes,
    events: Events,
    /// Attempts whose record could not be written: nothing of them is started.
    broken: BTreeSet<AttemptId>,
}

impl Executor {
    fn execute(&mut self, order: Order) {
        match order {
            Order::Do(effect) => self.effect(effect),
            Order::Adopt(jobs) => self.adopt(&jobs),
            Order::Age => {
                let aged = self.store.age();
                self.remove(&aged);
            }
            Order::FindKept(owner, instance, wanted, answer) => {
                // Nobody waits any more: then nobody needs it.
                let _ = answer.send(self.store.kept_job(owner, instance, wanted));
            }
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Keep(durable) => self.keep(durable),
            Effect::Prepare {
                job,
                start_at_once,
                fence_at,
            } => {
                if self.broken.remove(&job.id) {
                    return;
                }
                let Some(runtime) = self.runtimes.of(job.runtime()) else {
                    let message = format!("this node has no runtime {}", job.runtime().name());
                    return self.reject(job.id, message);
                };
                match runtime.prepare(&job) {
                    Readiness::Now if start_at_once => runtime.start(&job, fence_at),
                    Readiness::Now => self.events.tell(Event::Prepared(job.id)),
                    Readiness::Later => {}
                }
            }
            Effect::Start { job, fence_at } => {
                if let Some(runtime) = self.runtimes.of(job.runtime()) {
                    runtime.start(&job, fence_at);
                }
            }
            Effect::Stop {
                id,
                runtime,
                cause,
                grace_ms,
            } => {
                if let Some(runtime) = self.runtimes.of(runtime) {
                    runtime.stop(id, cause, grace_ms);
                }
            }
            Effect::Fence { owner, lease_until } => {
                self.runtimes
                    .iter()
                    .for_each(|runtime| runtime.fence(owner, lease_until));
            }
            Effect::Send(_) | Effect::CloseSession(_) | Effect::OpenBulk | Effect::Measure => {
                debug_assert!(false, "the main loop does these itself");
            }
        }
    }

    fn keep(&mut self, durable: Durable) {
        match durable {
            Durable::Accepted(job) => {
                if let Err(error) = self.store.accept(&job) {
                    self.broken.insert(job.id);
                    self.reject(job.id, format!("its record can't be written: {error}"));
                }
            }
            Durable::Emptied(job) => self.store.emptied(&job),
            Durable::Acknowledged(job) => {
                if self.store.acknowledged(&job) {
                    self.remove(&[job.id]);
                }
            }
            Durable::Deleted(id) => {
                self.store.deleted(&id);
                self.remove(&[id]);
            }
            Durable::Forgotten { owner, instance } => {
                let forgotten = self.store.forgotten(owner, instance);
                self.remove(&forgotten);
            }
            Durable::Tombstone(_) | Durable::Over(_) | Durable::State(_) => {
                debug_assert!(false, "the main loop keeps these itself, before it answers");
            }
        }
    }

    fn reject(&self, id: AttemptId, message: String) {
        self.events.tell(Event::Failed {
            id,
            end: End {
                cause: EndCause::Rejected,
                message,
            },
        });
    }

    fn remove(&self, ids: &[AttemptId]) {
        for id in ids {
            self.runtimes.iter().for_each(|runtime| runtime.remove(*id));
        }
    }

    fn adopt(&self, jobs: &[Arc<Job>]) {
        for runtime in self.runtimes.iter() {
            let own = jobs
                .iter()
                .filter(|job| job.runtime() == runtime.kind())
                .cloned()
                .collect();
            runtime.adopt(own);
        }
        for job in jobs
            .iter()
            .filter(|job| self.runtimes.of(job.runtime()).is_none())
        {
            let text = format!("this node has no runtime {} any more", job.runtime().name());
            let found = crate::supervisor::Found::Lost(text);
            self.events.tell(Event::Adopted { id: job.id, found });
        }
    }
}
