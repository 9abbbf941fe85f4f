//! Runs nothing, for a time: what load tests and simulated nodes are made of.
//!
//! [`SimTimers`] is the whole of it, pure: what was started when, and what has ended by now.
//! [`SimRuntime`] puts it behind the trait with one task that sleeps until the next end. Nothing
//! of it is on disk, so nothing is adopted.

use super::{BoxFuture, Events, FileRoot, Readiness, Runtime};
use crate::moment::Moment;
use crate::supervisor::{Event, Found, Job, StopCause};
use pronto_payloads::demand::Runtime as Kind;
use pronto_payloads::instance::{End, EndCause, InstanceUsage, Usage};
use pronto_payloads::place::AttemptId;
use pronto_payloads::start::Task;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Simulated attempts and when they end.
#[derive(Clone, Debug, Default)]
pub struct SimTimers {
    running: BTreeMap<AttemptId, (Moment, i32)>,
    ends: BTreeSet<(Moment, AttemptId)>,
}

impl SimTimers {
    /// Starts a job and says so.
    pub fn start(&mut self, now: Moment, job: &Job, events: &mut Vec<Event>) {
        let (run_ms, exit_code) = match &job.body.task {
            Task::Sim(task) => (task.run_ms, task.exit_code),
            _ => (0, 0),
        };
        let at = now.after_ms(run_ms);
        self.running.insert(job.id, (at, exit_code));
        self.ends.insert((at, job.id));
        events.push(Event::Started {
            id: job.id,
            at: now,
        });
        if run_ms == 0 {
            self.poll(now, events);
        }
    }

    /// Ends one before its time. One that was never started fails.
    pub fn stop(&mut self, now: Moment, id: AttemptId, cause: StopCause, events: &mut Vec<Event>) {
        let end = End {
            cause: cause.end_cause(),
            message: String::new(),
        };
        match self.running.remove(&id) {
            Some((at, _)) => {
                self.ends.remove(&(at, id));
                push_end(now, id, end, events);
            }
            None => events.push(Event::Failed { id, end }),
        }
    }

    /// Ends those whose time has come.
    pub fn poll(&mut self, now: Moment, events: &mut Vec<Event>) {
        while let Some(&(at, id)) = self.ends.first() {
            if at > now {
                return;
            }
            self.ends.pop_first();
            if let Some((_, code)) = self.running.remove(&id) {
                let end = End {
                    cause: EndCause::Exited { code },
                    message: String::new(),
                };
                push_end(at, id, end, events);
            }
        }
    }

    /// When the next one ends.
    #[must_use]
    pub fn next_end(&self) -> Option<Moment> {
        self.ends.first().map(|(at, _)| *at)
    }
}

fn push_end(at: Moment, id: AttemptId, end: End, events: &mut Vec<Event>) {
    events.push(Event::Ended {
        id,
        at,
        end,
        usage: Usage::default(),
    });
    events.push(Event::Emptied(id));
}

/// The runtime of a real launcher.
#[derive(Debug)]
pub struct SimRuntime {
    timers: Arc<Mutex<SimTimers>>,
    changed: Arc<Notify>,
    events: Events,
}

impl SimRuntime {
    /// Starts its one task on the current tokio runtime.
    #[must_use]
    pub fn new(events: Events) -> Self {
        let timers = Arc::new(Mutex::new(SimTimers::default()));
        let changed = Arc::new(Notify::new());
        let runtime = Self {
            timers: timers.clone(),
            changed: changed.clone(),
            events: events.clone(),
        };
        tokio::spawn(async move {
            loop {
                let next = lock(&timers).next_end();
                let now = Moment::now();
                let wait = next.map_or(Duration::from_secs(3600), |at| at.since(now));
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = changed.notified() => {}
                }
                let mut ended = Vec::new();
                lock(&timers).poll(Moment::now(), &mut ended);
                ended.into_iter().for_each(|event| events.tell(event));
            }
        });
        runtime
    }

    fn change(&self, change: impl FnOnce(&mut SimTimers, &mut Vec<Event>)) {
        let mut events = Vec::new();
        let mut timers = lock(&self.timers);
        let before = timers.next_end();
        change(&mut timers, &mut events);
        let earlier = timers.next_end() != before;
        drop(timers);
        events.into_iter().for_each(|event| self.events.tell(event));
        if earlier {
            self.changed.notify_one();
        }
    }
}

fn lock(timers: &Mutex<SimTimers>) -> MutexGuard<'_, SimTimers> {
    timers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runtime for SimRuntime {
    fn kind(&self) -> Kind {
        Kind::Sim
    }

    /// Nothing outlives this process, so nothing outlives its lease either.
    fn fences(&self) -> bool {
        true
    }

    fn prepare(&self, _job: &Arc<Job>) -> Readiness {
        Readiness::Now
    }

    fn start(&self, job: &Arc<Job>, _fence_at: Option<Moment>) {
        self.change(|timers, events| timers.start(Moment::now(), job, events));
    }

    fn stop(&self, id: AttemptId, cause: StopCause, _grace_ms: u64) {
        self.change(|timers, events| timers.stop(Moment::now(), id, cause, events));
    }

    fn adopt(&self, jobs: Vec<Arc<Job>>) {
        for job in jobs {
            let found = Found::Lost("simulated work ends with its launcher".into());
            self.events.tell(Event::Adopted { id: job.id, found });
        }
    }

    fn usages(&self) -> BoxFuture<'_, Vec<InstanceUsage>> {
        Box::pin(async { Vec::new() })
    }

    fn files(&self, _job: &Job) -> Option<FileRoot> {
        None
    }
}
