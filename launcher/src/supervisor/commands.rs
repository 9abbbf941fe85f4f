//! The frames of the control session, and the answers that are due at once.

use super::record::StopCause;
use super::tombstones::Tombstone;
use super::{Durable, Effect, Supervisor};
use crate::moment::Moment;
use pronto_payloads::codec::{self, DecodeError};
use pronto_payloads::control::{Ack, Delete, Failure, PullInventory, SetMode, Stop};
use pronto_payloads::ids::{Attempt, InstanceId, OwnerId, SessionEpoch};
use pronto_payloads::instance::{InstanceReport, Inventory};
use pronto_payloads::limits;
use pronto_payloads::node::Lease;
use pronto_payloads::place::AttemptId;
use pronto_protocol::{Flags, Frame, Operand};

impl Supervisor {
    pub(super) fn frame(
        &mut self,
        now: Moment,
        epoch: SessionEpoch,
        frame: &Frame,
        effects: &mut Vec<Effect>,
    ) {
        if self
            .session
            .as_ref()
            .is_none_or(|session| session.epoch != epoch)
        {
            return;
        }
        let bytes = frame.payload.to_bytes();
        let handled = match frame.operand {
            Operand::Start => {
                self.start(now, bytes, effects);
                Ok(())
            }
            Operand::Stop => {
                codec::decode::<Stop>(&bytes).map(|stop| self.stop(now, frame, &stop, effects))
            }
            Operand::Delete => codec::decode::<Delete>(&bytes)
                .map(|delete| self.delete(now, frame, &delete, effects)),
            Operand::SetMode => codec::decode::<SetMode>(&bytes)
                .map(|mode| self.set_mode(now, frame, &mode, effects)),
            Operand::Inventory => codec::decode::<PullInventory>(&bytes)
                .map(|pull| self.inventory(now, frame.correlation, pull.owner, effects)),
            Operand::Ack => codec::decode::<Ack>(&bytes)
                .map(|ack| self.acknowledged(now, ack.id, ack.version, effects)),
            Operand::Lease => codec::decode::<Lease>(&bytes)
                .map(|lease| self.leased(now, frame.correlation, &lease, effects)),
            Operand::OpenBulk => {
                effects.push(Effect::OpenBulk);
                Ok(())
            }
            // The session layer answers PING, and logs what a peer calls an error.
            _ => Ok(()),
        };
        if let Err(error) = handled {
            refuse_payload(frame, &error, effects);
        }
    }

    /// Rule 5: ends what is here, and forbids what has not come yet.
    fn stop(&mut self, now: Moment, frame: &Frame, stop: &Stop, effects: &mut Vec<Effect>) {
        self.bury(now, stop.owner, stop.instance, stop.attempt, effects);
        for id in self.attempts_of(stop.owner, stop.instance) {
            if id.attempt > stop.attempt {
                continue;
            }
            if self
                .records
                .get(&id)
                .is_some_and(super::record::Record::is_ended)
            {
                self.report(now, id, effects);
            } else {
                self.stop_record(now, id, StopCause::Asked, stop.grace_ms, effects);
            }
        }
        done(frame, effects);
    }

    /// An instance that was deleted never comes back: its tombstone forbids every attempt.
    fn delete(&mut self, now: Moment, frame: &Frame, delete: &Delete, effects: &mut Vec<Effect>) {
        let (owner, instance) = (delete.owner, delete.instance);
        self.bury(now, owner, instance, Attempt(u32::MAX), effects);
        for id in self.attempts_of(owner, instance) {
            let Some(record) = self.records.get_mut(&id) else {
                continue;
            };
            if record.is_ended() {
                let durable = record.durable;
                self.forget(id);
                if durable {
                    effects.push(Effect::Keep(Durable::Deleted(id)));
                }
            } else {
                record.delete = true;
                self.stop_record(now, id, StopCause::Asked, None, effects);
            }
        }
        effects.push(Effect::Keep(Durable::Forgotten { owner, instance }));
        done(frame, effects);
    }

    fn set_mode(&mut self, now: Moment, frame: &Frame, set: &SetMode, effects: &mut Vec<Effect>) {
        if self.node.mode != set.mode {
            self.node.mode = set.mode;
            self.keep_state(effects);
        }
        self.status_soon(now);
        done(frame, effects);
    }

    /// Rule 2: content, session epoch and applied seq are taken in one piece; so are all pages.
    fn inventory(
        &mut self,
        now: Moment,
        correlation: u64,
        owner: OwnerId,
        effects: &mut Vec<Effect>,
    ) {
        let reports: Vec<InstanceReport> = self
            .records
            .values()
            .filter(|record| record.job.id.owner == owner)
            .map(|record| record.report(now))
            .collect();
        let mut pages = reports.chunks(limits::PAGE).map(<[_]>::to_vec).peekable();
        let mut page = 0;
        loop {
            let entries = pages.next().unwrap_or_default();
            let last = pages.peek().is_none();
            let payload = codec::encode(&Inventory {
                owner,
                boot_id: self.boot_id,
                session_epoch: self.session_epoch,
                applied_seq: self.applied_seq(),
                page,
                entries,
            });
            let mut frame = Frame::answer(Operand::InventoryPage, correlation, payload);
            if last {
                frame = frame.with_flags(Flags::LAST);
            }
            effects.push(Effect::Send(frame));
            if last {
                return;
            }
            page += 1;
        }
    }

    /// The tombstone is written before the answer that acknowledges it is sent.
    fn bury(
        &mut self,
        now: Moment,
        owner: OwnerId,
        instance: InstanceId,
        attempt: Attempt,
        effects: &mut Vec<Effect>,
    ) {
        let tombstone = Tombstone {
            owner,
            instance,
            attempt,
            at: now,
            end: None,
        };
        if self.tombstones.insert(tombstone.clone()) {
            effects.push(Effect::Keep(Durable::Tombstone(tombstone)));
        }
    }

    fn attempts_of(&self, owner: OwnerId, instance: InstanceId) -> Vec<AttemptId> {
        let first = AttemptId {
            owner,
            instance,
            attempt: Attempt(0),
        };
        let last = AttemptId {
            owner,
            instance,
            attempt: Attempt(u32::MAX),
        };
        self.records
            .range(first..=last)
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn send_report(&self, report: &InstanceReport, effects: &mut Vec<Effect>) {
        if self.session.is_some() {
            let frame = Frame::new(Operand::InstanceChanged, codec::encode(report));
            effects.push(Effect::Send(frame));
        }
    }
}

fn done(frame: &Frame, effects: &mut Vec<Effect>) {
    if frame.correlation != 0 || frame.wants_reply() {
        let answer = Frame::answer(Operand::Done, frame.correlation, bytes::Bytes::new());
        effects.push(Effect::Send(answer));
    }
}

/// What an honest peer of another release sends is answered, and ends nothing.
fn refuse_payload(frame: &Frame, error: &DecodeError, effects: &mut Vec<Effect>) {
    let text = format!("{}: {error}", frame.operand);
    let answer = match frame.operand {
        Operand::Stop => Operand::StopFailure,
        Operand::Delete => Operand::DeleteFailure,
        _ => {
            let code = pronto_protocol::RefusalCode::MalformedPayload;
            let payload = pronto_protocol::Refusal::new(code, text).encode();
            let refusal = Frame::answer(Operand::Unsupported, frame.correlation, payload);
            effects.push(Effect::Send(refusal));
            return;
        }
    };
    let payload = codec::encode(&Failure { text });
    effects.push(Effect::Send(Frame::answer(
        answer,
        frame.correlation,
        payload,
    )));
}
