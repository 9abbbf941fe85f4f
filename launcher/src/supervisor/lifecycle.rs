//! From acceptance to emptiness: what the runtimes say, deadlines, and what a restart found.

use super::record::{Record, Stage};
use super::tombstones::Tombstone;
use super::{
    Durable, END_REPEAT, Effect, Found, INPUTS_LIMIT, Job, RECEIVED_REPORT, RUNNING_REPORT,
    StopCause, Supervisor,
};
use crate::moment::Moment;
use pronto_payloads::demand::Runtime;
use pronto_payloads::ids::Version;
use pronto_payloads::instance::{End, EndCause, Phase, Usage};
use pronto_payloads::place::AttemptId;
use std::sync::Arc;

impl Supervisor {
    /// Takes an attempt back into the books after a restart.
    pub(super) fn restore(&mut self, job: Arc<Job>, now: Moment) {
        let id = job.id;
        let mut record = Record::new(job);
        record.durable = true;
        if record.job.boot_id == self.boot_id {
            self.ledger
                .debit_adopted(&record.job.demand, &record.job.gpus);
            record.debited = true;
            // What ran before must not be handed out again before its runtime has been asked.
            record.stage = Stage::Launched;
            self.records.insert(id, record);
        } else {
            record.phase = Phase::Ended;
            record.ends(End {
                cause: EndCause::NodeFailed,
                message: "the machine was restarted while this ran".into(),
            });
            record.ended_at = Some(now);
            record.started_at = None;
            self.ended += 1;
            self.records.insert(id, record);
            self.report_at(id, now.after(END_REPEAT));
        }
    }

    /// Hands an accepted attempt to its runtime, if there is a lease to do so.
    pub(super) fn launch(&mut self, now: Moment, id: AttemptId, effects: &mut Vec<Effect>) {
        if now >= self.lease_until {
            self.waiting.insert(id);
            return;
        }
        self.waiting.remove(&id);
        let fence_at = self.fence_of(id);
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        record.stage = Stage::Preparing;
        record.phase = Phase::Preparing;
        effects.push(Effect::Prepare {
            start_at_once: record.job.body.await_inputs == 0,
            job: Arc::clone(&record.job),
            fence_at,
        });
    }

    pub(super) fn prepared(&mut self, now: Moment, id: AttemptId, effects: &mut Vec<Effect>) {
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        if record.stage != Stage::Preparing || record.is_ended() {
            return;
        }
        record.stage = Stage::Inputs(record.job.body.await_inputs);
        self.await_inputs(now, id, effects);
    }

    /// Starts it if nothing is missing; otherwise the next file must come in time.
    fn await_inputs(&mut self, now: Moment, id: AttemptId, effects: &mut Vec<Effect>) {
        let stage = self.records.get(&id).map(|record| record.stage);
        if let Some(Stage::Inputs(1..)) = stage {
            self.deadline_at(now, id, now.after(INPUTS_LIMIT), effects);
        } else {
            self.clear_deadline(id);
            self.start_when_ready(now, id, effects);
        }
    }

    pub(super) fn input_arrived(
        &mut self,
        now: Moment,
        id: AttemptId,
        path: String,
        effects: &mut Vec<Effect>,
    ) {
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        if let Stage::Inputs(missing) = &mut record.stage {
            if record.inputs.insert(path) {
                *missing = missing.saturating_sub(1);
            }
            self.await_inputs(now, id, effects);
        }
    }

    fn start_when_ready(&mut self, now: Moment, id: AttemptId, effects: &mut Vec<Effect>) {
        let fence_at = self.fence_of(id);
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        if record.stage != Stage::Inputs(0) || record.stopping.is_some() {
            return;
        }
        if now >= self.lease_until {
            // Preparing may have taken longer than the lease lasted.
            self.waiting.insert(id);
            return;
        }
        if fence_at.is_some_and(|at| at <= now) {
            return self.stop_record(now, id, StopCause::LeaseExpired, None, effects);
        }
        record.stage = Stage::Launched;
        effects.push(Effect::Start {
            job: Arc::clone(&record.job),
            fence_at,
        });
        if let Some(at) = fence_at {
            self.deadline_at(now, id, at, effects);
        }
    }

    /// Until when a `stop-after` attempt may start: what covers it now is over by then, and its owner
    /// may have begun it anew elsewhere.
    fn starts_by(&self, record: &Record) -> Option<Moment> {
        let after_ms = record.job.stop_after_ms()?;
        // Its START came under a lease; of later ones a restart knows nothing.
        let lease = self.owner_leases.get(&record.job.id.owner);
        let lease = lease.copied().unwrap_or_default();
        Some(lease.max(record.job.received_at).after_ms(after_ms))
    }

    /// Before a new lease is taken up: ends what has waited through a gap that its fence does not
    /// reach over.
    pub(super) fn end_overdue(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let waits = |record: &&Record| record.stage != Stage::Launched && !record.is_ended();
        let overdue: Vec<AttemptId> = self
            .records
            .values()
            .filter(waits)
            .filter(|record| self.starts_by(record).is_some_and(|at| at <= now))
            .map(|record| record.job.id)
            .collect();
        for id in overdue {
            self.stop_record(now, id, StopCause::LeaseExpired, None, effects);
        }
    }

    /// When `stop-after` ends the attempt, as the leases stand.
    fn fence_of(&self, id: AttemptId) -> Option<Moment> {
        let record = self.records.get(&id)?;
        let after_ms = record.job.stop_after_ms()?;
        self.owner_leases
            .get(&id.owner)
            .map(|lease| lease.after_ms(after_ms))
    }

    /// New leases move the deadlines of `stop-after` work.
    pub(super) fn refresh_fences(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let mut renewed = Vec::new();
        let live: Vec<AttemptId> = self
            .records
            .values()
            .filter(|record| !record.is_ended() && record.job.stop_after_ms().is_some())
            .map(|record| record.job.id)
            .collect();
        for id in live {
            if let Some(&lease_until) = self.owner_leases.get(&id.owner)
                && !renewed.contains(&id.owner)
            {
                renewed.push(id.owner);
                effects.push(Effect::Fence {
                    owner: id.owner,
                    lease_until,
                });
            }
            let deadline = self.deadline_of(id);
            if let Some(at) = deadline {
                self.deadline_at(now, id, at, effects);
            }
        }
    }

    /// The earlier of the timeout and the fence of a running attempt.
    fn deadline_of(&self, id: AttemptId) -> Option<Moment> {
        let record = self.records.get(&id)?;
        let timeout = record
            .started_at
            .zip(record.job.body.timeout_ms)
            .map(|(at, timeout_ms)| at.after_ms(timeout_ms));
        let fence = if record.stage == Stage::Launched {
            self.fence_of(id)
        } else {
            None
        };
        [timeout, fence].into_iter().flatten().min()
    }

    fn clear_deadline(&mut self, id: AttemptId) {
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        if let Some(old) = record.deadline_at.take()
            && record.report_at != Some(old)
        {
            self.alarms.remove(&(old, id));
        }
    }

    fn deadline_at(&mut self, now: Moment, id: AttemptId, at: Moment, effects: &mut Vec<Effect>) {
        self.clear_deadline(id);
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        if record.stopping.is_some() || record.is_ended() {
            return;
        }
        record.deadline_at = Some(at);
        self.alarms.insert((at, id));
        if at <= now {
            self.deadline_passed(now, id, effects);
        }
    }

    pub(super) fn started(
        &mut self,
        now: Moment,
        id: AttemptId,
        at: Moment,
        effects: &mut Vec<Effect>,
    ) {
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        if record.is_ended() || record.started_at.is_some() {
            return;
        }
        record.phase = Phase::Running;
        record.stage = Stage::Launched;
        record.started_at = Some(at);
        self.clear_report(id);
        // On a busy node a short task's end is right behind: then only the end is told.
        if self
            .records
            .get(&id)
            .is_some_and(|record| record.ended_at.is_none())
        {
            if self.records.len() - self.ended > 1 {
                self.report_at(id, now.after(RUNNING_REPORT));
            } else {
                self.report(now, id, effects);
            }
        }
        if let Some(at) = self.deadline_of(id) {
            self.deadline_at(now, id, at, effects);
        }
    }

    /// The main process has ended. It is told when nothing of it is left.
    pub(super) fn ended(&mut self, id: AttemptId, at: Moment, end: End, usage: Usage) {
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        if record.end.is_some() {
            return;
        }
        record.ends(match record.stopping {
            // What ended by itself while a STOP was on its way has ended by itself.
            Some(cause) if at >= record.stopping_since => End {
                cause: cause.end_cause(),
                message: match record.stage {
                    Stage::Inputs(missing @ 1..) if cause == StopCause::TimedOut => format!(
                        "no input file came for {} minutes, and {missing} are missing",
                        INPUTS_LIMIT.as_secs() / 60
                    ),
                    _ => stop_message(&end),
                },
            },
            _ => end,
        });
        record.ended_at = Some(at);
        record.usage = usage;
    }

    /// Nothing is left of it: the one place where a debit is credited.
    pub(super) fn emptied(&mut self, now: Moment, id: AttemptId, effects: &mut Vec<Effect>) {
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        if record.is_ended() {
            return;
        }
        debug_assert!(record.end.is_some(), "Ended comes before Emptied");
        if record.end.is_none() {
            record.ends(End {
                cause: EndCause::NodeFailed,
                message: "its end was not seen".into(),
            });
        }
        record.ended_at.get_or_insert(now);
        record.phase = Phase::Ended;
        if record.debited {
            record.debited = false;
            self.ledger.credit(&record.job.demand, &record.job.gpus);
        }
        let files = if record.delete {
            Durable::Deleted(id)
        } else {
            Durable::Emptied(Arc::clone(&record.job))
        };
        // No runtime keeps the end of what never started.
        let end = record.end.clone().filter(|_| record.started_at.is_none());
        if record.durable {
            effects.push(Effect::Keep(files));
            if end.is_some() {
                self.over(now, id, end, effects);
            }
        }
        self.clear_deadline(id);
        self.waiting.remove(&id);
        self.ended += 1;
        self.status_soon(now);
        self.report(now, id, effects);
    }

    pub(super) fn failed(
        &mut self,
        now: Moment,
        id: AttemptId,
        end: End,
        effects: &mut Vec<Effect>,
    ) {
        self.ended(id, now, end, Usage::default());
        self.emptied(now, id, effects);
    }

    pub(super) fn adopted(
        &mut self,
        now: Moment,
        id: AttemptId,
        found: Found,
        effects: &mut Vec<Effect>,
    ) {
        match found {
            Found::Running {
                started_at,
                fence_at,
            } => {
                let after_ms = self
                    .records
                    .get(&id)
                    .and_then(|record| record.job.stop_after_ms());
                if let Some((at, after_ms)) = fence_at.zip(after_ms) {
                    let lease = Moment(at.0.saturating_sub(after_ms.saturating_mul(1_000_000)));
                    let known = self.owner_leases.entry(id.owner).or_default();
                    *known = lease.max(*known);
                }
                self.started(now, id, started_at, effects);
                // A STOP that was acknowledged before the restart still holds.
                if self.tombstones.forbids(id.owner, id.instance, id.attempt) {
                    self.stop_record(now, id, StopCause::Asked, None, effects);
                }
            }
            Found::Ended {
                started_at,
                ended_at,
                end,
                usage,
            } => {
                if let Some(record) = self.records.get_mut(&id) {
                    record.started_at = record.started_at.or(started_at);
                }
                self.ended(id, ended_at, end, usage);
                self.emptied(now, id, effects);
            }
            Found::NeverStarted => {
                if let Some(record) = self.records.get_mut(&id)
                    && !record.is_ended()
                    && record.started_at.is_none()
                {
                    record.stage = Stage::Waiting;
                    record.phase = Phase::Received;
                    if let Some(end) = self.tombstones.end_of(&id).cloned() {
                        return self.failed(now, id, end, effects);
                    }
                    if self.tombstones.forbids(id.owner, id.instance, id.attempt) {
                        return self.stop_record(now, id, StopCause::Asked, None, effects);
                    }
                    // A lease may have come before this: what it covers began after a gap.
                    let after_ms = record.job.stop_after_ms();
                    let starts_by = after_ms.map(|ms| record.job.received_at.after_ms(ms));
                    if starts_by.is_some_and(|at| at <= now) {
                        return self.stop_record(now, id, StopCause::LeaseExpired, None, effects);
                    }
                    self.launch(now, id, effects);
                }
            }
            Found::Lost(message) => {
                self.failed(
                    now,
                    id,
                    End {
                        cause: EndCause::NodeFailed,
                        message,
                    },
                    effects,
                );
            }
        }
    }

    /// Begins to end an attempt, whatever it is doing.
    pub(super) fn stop_record(
        &mut self,
        now: Moment,
        id: AttemptId,
        cause: StopCause,
        grace_ms: Option<u64>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        if record.is_ended() {
            return;
        }
        if record.stopping.is_none() {
            record.stopping_since = now;
        }
        let cause = *record.stopping.get_or_insert(cause);
        if record.stage == Stage::Waiting {
            // No runtime has heard of it.
            let end = End {
                cause: cause.end_cause(),
                message: "stopped before it started".into(),
            };
            return self.failed(now, id, end, effects);
        }
        effects.push(Effect::Stop {
            id,
            runtime: record.job.runtime(),
            cause,
            grace_ms: grace_ms.unwrap_or(record.job.body.stop_grace_ms),
        });
    }

    fn deadline_passed(&mut self, now: Moment, id: AttemptId, effects: &mut Vec<Effect>) {
        let fence = self.fence_of(id);
        self.clear_deadline(id);
        let cause = if fence.is_some_and(|fence| fence <= now) {
            StopCause::LeaseExpired
        } else {
            StopCause::TimedOut
        };
        self.stop_record(now, id, cause, None, effects);
    }

    /// A record's time has come: its deadline, its report, or both.
    pub(super) fn alarm(
        &mut self,
        now: Moment,
        at: Moment,
        id: AttemptId,
        effects: &mut Vec<Effect>,
    ) {
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        if record.deadline_at == Some(at) {
            if record.report_at == Some(at) {
                self.alarms.insert((at, id));
            }
            self.deadline_passed(now, id, effects);
            return;
        }
        if record.report_at == Some(at) {
            record.report_at = None;
            self.report(now, id, effects);
        }
    }

    /// Says how an attempt is now, and plans when to say it again.
    pub(super) fn report(&mut self, now: Moment, id: AttemptId, effects: &mut Vec<Effect>) {
        self.clear_report(id);
        let Some(record) = self.records.get(&id) else {
            return;
        };
        let again = record.is_ended().then(|| now.after(END_REPEAT));
        let report = record.report(now);
        self.send_report(&report, effects);
        if let Some(at) = again {
            self.report_at(id, at);
        }
    }

    pub(super) fn report_at(&mut self, id: AttemptId, at: Moment) {
        self.clear_report(id);
        if let Some(record) = self.records.get_mut(&id) {
            record.report_at = Some(at);
            self.alarms.insert((at, id));
        }
    }

    fn clear_report(&mut self, id: AttemptId) {
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        if let Some(at) = record
            .report_at
            .take()
            .filter(|at| record.deadline_at != Some(*at))
        {
            self.alarms.remove(&(at, id));
        }
    }

    /// Its owner has committed this version.
    pub(super) fn acknowledged(
        &mut self,
        now: Moment,
        id: AttemptId,
        version: Version,
        effects: &mut Vec<Effect>,
    ) {
        let Some(record) = self.records.get(&id) else {
            return;
        };
        if !record.is_ended() || version < record.version() {
            return;
        }
        // An attempt is never sent again; should it be, it must not run again.
        self.over(now, id, None, effects);
        if let Some(durable) = self.forget(id) {
            effects.push(Effect::Keep(Durable::Acknowledged(durable)));
        }
    }

    /// Keeps an attempt from running, or from being taken up by the next process.
    fn over(&mut self, now: Moment, id: AttemptId, end: Option<End>, effects: &mut Vec<Effect>) {
        let tombstone = Tombstone {
            owner: id.owner,
            instance: id.instance,
            attempt: id.attempt,
            at: now,
            end,
        };
        effects.push(Effect::Keep(Durable::Over(tombstone.clone())));
        self.tombstones.insert(tombstone);
    }

    /// Drops an ended record; gives its job if there is something on disk.
    pub(super) fn forget(&mut self, id: AttemptId) -> Option<Arc<Job>> {
        self.clear_report(id);
        let record = self.records.remove(&id)?;
        self.ended -= 1;
        (record.durable && !record.delete).then_some(record.job)
    }

    /// What is told about an attempt in STATS: that it runs.
    pub(super) fn is_running(&self, id: &AttemptId) -> bool {
        self.records
            .get(id)
            .is_some_and(|record| record.phase == Phase::Running)
    }

    /// Waiting attempts go on under a new lease.
    pub(super) fn launch_waiting(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        for id in std::mem::take(&mut self.waiting) {
            if self
                .records
                .get(&id)
                .is_some_and(|record| record.stage == Stage::Waiting)
            {
                self.report_at(id, now.after(RECEIVED_REPORT));
                self.launch(now, id, effects);
            } else {
                self.start_when_ready(now, id, effects);
            }
        }
    }

    /// Changes of what is offered show in the next status.
    pub(super) fn offer_changed(&mut self, now: Moment, mut offered: Vec<Runtime>) {
        offered.sort_unstable();
        offered.dedup();
        if offered != self.offered {
            self.offered = offered;
            self.status_soon(now);
        }
    }

    pub(super) fn pressure_changed(&mut self, now: Moment, pressure: Option<String>) {
        if pressure != self.pressure {
            self.pressure = pressure;
            self.status_soon(now);
        }
    }
}

/// What a workload that was told to end answered, in words.
fn stop_message(end: &End) -> String {
    match &end.cause {
        EndCause::Exited { code } => format!("exited with {code} when told to stop"),
        EndCause::Signaled { signal } => format!("ended by signal {signal} when told to stop"),
        _ => end.message.clone(),
    }
}
