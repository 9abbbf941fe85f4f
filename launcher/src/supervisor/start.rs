//! START: the last word on admission.
//!
//! Each START advances `applied_seq`, whatever becomes of it, and its debit stands on the ledger
//! before anything else happens. What is refused here gets a record too, ended at birth, so that
//! the refusal is repeated until its owner has heard it; it is not put on disk, because after a
//! crash its absence from the inventory says the same.

use super::record::{JOB_FORMAT, Record};
use super::{Durable, Effect, Job, Supervisor};
use crate::moment::Moment;
use bytes::Bytes;
use pronto_payloads::codec;
use pronto_payloads::demand::Runtime;
use pronto_payloads::hello::Mode;
use pronto_payloads::ids::{Attempt, ControllerEpoch, OwnerId, Seq};
use pronto_payloads::instance::{End, EndCause};
use pronto_payloads::place::{AttemptId, GpuShare, StartPrefix, StartStamp};
use pronto_payloads::start::{OnDisconnect, StartBody, Task};
use pronto_payloads::{SCHEMA, SCHEMA_MIN, limits};
use std::sync::Arc;

/// Why a START will not run here.
enum Refused {
    /// This node would not or could not.
    Rejected(String),
    /// A STOP came before it.
    Stopped,
}

impl Refused {
    fn end(self) -> End {
        match self {
            Self::Rejected(message) => End {
                cause: EndCause::Rejected,
                message,
            },
            Self::Stopped => End {
                cause: EndCause::Stopped,
                message: "stopped before it started".into(),
            },
        }
    }
}

impl Supervisor {
    pub(super) fn start(&mut self, now: Moment, mut bytes: Bytes, effects: &mut Vec<Effect>) {
        let decoded = codec::take::<StartStamp>(&mut bytes)
            .and_then(|stamp| Ok((stamp, codec::take::<StartPrefix>(&mut bytes)?)));
        let (stamp, prefix) = match decoded {
            Ok(decoded) => decoded,
            // The scheduler wrote the one and has read the other: it is broken, not its controller.
            Err(error) => return self.close_session(format!("START: {error}"), effects),
        };
        let Some(session) = &mut self.session else {
            return;
        };
        if stamp.seq != session.applied_seq.next() {
            let expected = session.applied_seq.next();
            let text = format!("START with seq {}; accepted: {expected}", stamp.seq);
            return self.close_session(text, effects);
        }
        session.applied_seq = stamp.seq;
        self.status_soon(now);
        self.apply(now, &stamp, prefix, &bytes, effects);
    }

    fn apply(
        &mut self,
        now: Moment,
        stamp: &StartStamp,
        prefix: StartPrefix,
        body: &[u8],
        effects: &mut Vec<Effect>,
    ) {
        let id = prefix.id;
        if self.records.contains_key(&id) {
            return self.report(now, id, effects);
        }
        let decoded = decode_body(&prefix, body);
        let stop_after = decoded
            .as_ref()
            .is_ok_and(|body| matches!(body.on_disconnect, OnDisconnect::StopAfter { .. }));
        let refused = self
            .check(now, stamp, &prefix, stop_after, effects)
            .and_then(|()| {
                decoded
                    .as_ref()
                    .map(|_| ())
                    .map_err(|text| Refused::Rejected(text.clone()))
            })
            .and_then(|()| {
                self.ledger
                    .debit(&prefix.demand, &stamp.gpus)
                    .map_err(|text| Refused::Rejected(format!("not free on this node: {text}")))
            });
        let body = decoded.unwrap_or_else(|_| unreadable_body());
        let job = self.job(now, prefix, stamp.gpus.clone(), body);
        match refused {
            Ok(()) => self.accept(now, job, effects),
            Err(refused) => self.refuse(now, job, refused.end(), effects),
        }
    }

    /// Everything but the ledger, in the order in which it should be explained.
    fn check(
        &mut self,
        now: Moment,
        stamp: &StartStamp,
        prefix: &StartPrefix,
        stop_after: bool,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refused> {
        let rejected = |text: String| Err(Refused::Rejected(text));
        let id = prefix.id;
        if self.tombstones.forbids(id.owner, id.instance, id.attempt) {
            return Err(Refused::Stopped);
        }
        if stamp.session_epoch != self.session_epoch {
            return rejected(format!(
                "stamped for session {}, this is {}",
                stamp.session_epoch, self.session_epoch
            ));
        }
        if stamp.term < self.node.term {
            let (old, new) = (stamp.term, self.node.term);
            return rejected(format!("scheduler's term {old} was superseded by {new}"));
        }
        self.check_epoch(id.owner, prefix.controller_epoch, effects)?;
        if now >= self.lease_until {
            return rejected("the node has no lease from the scheduler".into());
        }
        if self.node.mode == Mode::Maintenance {
            return rejected("the node is in maintenance".into());
        }
        if !self.offered.contains(&prefix.runtime) {
            return rejected(format!(
                "runtime {} is not offered now",
                prefix.runtime.name()
            ));
        }
        if !self.fencing.contains(&prefix.runtime) && stop_after {
            return rejected(format!(
                "on_disconnect: stop-after needs a shim, which runtime {} has not",
                prefix.runtime.name()
            ));
        }
        if let Some(other) = self.live_attempt_of(id) {
            return rejected(format!(
                "attempt {other} of the instance is still on this node"
            ));
        }
        Ok(())
    }

    fn check_epoch(
        &mut self,
        owner: OwnerId,
        epoch: ControllerEpoch,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refused> {
        let known = self
            .node
            .owners
            .iter()
            .position(|(known, _)| *known == owner);
        match known.map(|index| &mut self.node.owners[index].1) {
            Some(highest) if epoch < *highest => {
                let text = format!("controller's epoch {epoch} was superseded by {highest}");
                return Err(Refused::Rejected(text));
            }
            Some(highest) if epoch == *highest => return Ok(()),
            Some(highest) => *highest = epoch,
            None => {
                self.make_room_for_an_owner()?;
                self.node.owners.push((owner, epoch));
                self.node.owners.sort_unstable();
            }
        }
        self.keep_state(effects);
        Ok(())
    }

    /// Owners are bounded; one that has nothing here may be forgotten for a new one.
    fn make_room_for_an_owner(&mut self) -> Result<(), Refused> {
        if self.node.owners.len() < limits::OWNERS {
            return Ok(());
        }
        let idle = self
            .node
            .owners
            .iter()
            .position(|(owner, _)| !self.records.keys().any(|id| id.owner == *owner));
        let Some(idle) = idle else {
            let text = format!(
                "this node has work of {} controllers already",
                limits::OWNERS
            );
            return Err(Refused::Rejected(text));
        };
        self.node.owners.remove(idle);
        Ok(())
    }

    fn live_attempt_of(&self, id: AttemptId) -> Option<Attempt> {
        let first = AttemptId {
            attempt: Attempt(0),
            ..id
        };
        let last = AttemptId {
            attempt: Attempt(u32::MAX),
            ..id
        };
        self.records
            .range(first..=last)
            .find(|(_, record)| !record.is_ended())
            .map(|(id, _)| id.attempt)
    }

    fn job(
        &self,
        now: Moment,
        prefix: StartPrefix,
        gpus: Vec<GpuShare>,
        body: StartBody,
    ) -> Arc<Job> {
        Arc::new(Job {
            format: JOB_FORMAT,
            id: prefix.id,
            controller_epoch: prefix.controller_epoch,
            demand: prefix.demand,
            gpus,
            received_at: now,
            boot_id: self.boot_id,
            body,
        })
    }

    fn accept(&mut self, now: Moment, job: Arc<Job>, effects: &mut Vec<Effect>) {
        let id = job.id;
        let mut record = Record::new(Arc::clone(&job));
        record.debited = true;
        record.durable = outlives_the_process(job.runtime());
        if record.durable {
            effects.push(Effect::Keep(Durable::Accepted(Arc::clone(&job))));
        }
        self.records.insert(id, record);
        if job.stop_after_ms().is_some() {
            // That the START came shows that its owner lives: the node's own lease covers it until
            // the first renewal that names the owner.
            let lease = self.owner_leases.entry(id.owner).or_default();
            *lease = self.lease_until.max(*lease);
        }
        self.report_at(id, now.after(super::RECEIVED_REPORT));
        self.launch(now, id, effects);
    }

    fn refuse(&mut self, now: Moment, job: Arc<Job>, end: End, effects: &mut Vec<Effect>) {
        let id = job.id;
        let mut record = Record::new(job);
        record.phase = pronto_payloads::instance::Phase::Ended;
        record.ends(end);
        record.ended_at = Some(now);
        self.records.insert(id, record);
        self.ended += 1;
        self.report(now, id, effects);
    }

    /// What was applied so far in the present session.
    pub(super) fn applied_seq(&self) -> Seq {
        self.session
            .as_ref()
            .map_or(Seq(0), |session| session.applied_seq)
    }
}

/// The body, if its schema is one that this build reads and its task is of the prefix's runtime.
fn decode_body(prefix: &StartPrefix, body: &[u8]) -> Result<StartBody, String> {
    if !(SCHEMA_MIN..=SCHEMA).contains(&prefix.body_schema) {
        return Err(format!(
            "payload schema {}; accepted: {SCHEMA_MIN} to {SCHEMA}",
            prefix.body_schema
        ));
    }
    let body: StartBody = codec::decode(body).map_err(|error| format!("START's body: {error}"))?;
    if body.task.runtime() != prefix.runtime {
        let (task, asked) = (body.task.runtime().name(), prefix.runtime.name());
        return Err(format!(
            "START asks for runtime {asked} and carries a task for {task}"
        ));
    }
    Ok(body)
}

/// Stands for a body that could not be read, in a record that never runs.
fn unreadable_body() -> StartBody {
    StartBody::new("", Task::Sim(pronto_payloads::start::SimTask::default()))
}

/// Whether a runtime's attempts survive this process, so that they must be on disk.
pub(super) const fn outlives_the_process(runtime: Runtime) -> bool {
    !matches!(runtime, Runtime::Sim)
}
