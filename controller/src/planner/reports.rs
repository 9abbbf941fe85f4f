//! What nodes say of attempts: INSTANCE_CHANGED and entries of inventories, and what follows from
//! an end.
//!
//! A report is level-triggered: whole state and version, the highest wins, repeated ones do no
//! harm. A node is believed only about what was placed there. An end is committed, then
//! acknowledged; a report about the past is acknowledged if the past is known, and otherwise
//! proves a store that was rolled back (`rollback`).

use super::dispatch::Topic;
use super::event::Effect;
use super::instance::Phase;
use super::journal::{After, ToAck};
use super::state::{State, ns};
use crate::api::types::{EndReason, EndRecord, InstanceState, RestartMode, Severity};
use crate::spec;
use crate::store::{AfterStop, EndRow, EventRow, Past, Write};
use pronto_payloads::codec::{encode, encode_into};
use pronto_payloads::control::{Ack, Delete, Stop, ToNode};
use pronto_payloads::ids::InstanceId;
use pronto_payloads::instance::{End, EndCause, InstanceReport, Phase as NodePhase};
use pronto_payloads::limits::AVOIDED_NODES;
use pronto_protocol::frame::Frame;
use pronto_protocol::operand::Operand;
use std::sync::Arc;

/// Lookups in the store that are open at most: reports repeat, so more would only be the same.
const MAX_LOOKUPS: usize = 4096;

impl State {
    /// A report that came from a node.
    pub(crate) fn on_report(&mut self, node: u32, report: InstanceReport) {
        if report.id.owner != self.meta.owner {
            return;
        }
        let Some(slot) = self.living(report.id.instance) else {
            self.ask_store(node, report);
            return;
        };
        let attempt = report.id.attempt.0;
        let current = self.instance(slot).attempt;
        if attempt > current && !self.may_have_given_out(slot, attempt) {
            self.disbelieve_newer(report.id.instance, node, attempt);
            return;
        }
        if self.is_outdated(slot) {
            self.hold(slot, node, report);
            return;
        }
        if attempt < current {
            if !self.consider_return(slot, node, &report) {
                self.on_stale(node, &report);
            }
        } else if attempt > current {
            self.adopt_newer(slot, node, report);
        } else {
            self.on_current(slot, node, report);
        }
    }

    /// Of an attempt that has a successor: it is ended, and not waited for.
    pub(crate) fn on_stale(&mut self, node: u32, report: &InstanceReport) {
        if report.phase == NodePhase::Ended {
            self.send_ack(ToAck {
                node,
                id: report.id,
                version: report.version,
            });
        } else {
            self.stop_stale(node, report);
        }
    }

    fn stop_stale(&mut self, node: u32, report: &InstanceReport) {
        let Some(name) = self.nodes.name_of(node) else {
            return;
        };
        let seq = self.ids.seq(report.id.instance, self.meta.next_seq);
        let stop = Stop {
            owner: self.meta.owner,
            instance: report.id.instance,
            attempt: report.id.attempt,
            grace_ms: None,
        };
        self.nodes.remember_stale(node, stop, self.now.mono_ns);
        self.send_to_node(Operand::Stop, Topic::Stop(seq), &name, &encode(&stop));
    }

    pub(crate) fn on_current(&mut self, slot: u32, node: u32, report: InstanceReport) {
        let instance = self.instance(slot);
        match instance.phase {
            Phase::Uncertain => {
                let seq = instance.seq;
                self.link.uncertain.remove(&seq);
                let epoch = self.nodes.session_epoch(node);
                self.settle_on(slot, node, epoch, 0);
                self.set_phase(slot, Phase::Starting);
            }
            Phase::Starting | Phase::Running => {
                if instance.node != node {
                    self.disbelieve(slot, node);
                    return;
                }
            }
            // PLACED comes first in the same session; an end is repeated until it is
            // acknowledged, which follows from what is under way.
            Phase::Committing | Phase::Queued | Phase::Waiting | Phase::Placing | Phase::Ending => {
                return;
            }
        }
        let instance = self.instance(slot);
        if report.version.0 < instance.version {
            return;
        }
        self.note_times(slot, &report);
        match (report.phase, report.end) {
            (NodePhase::Received | NodePhase::Preparing, _) => {}
            (NodePhase::Running, _) => self.set_phase(slot, Phase::Running),
            (NodePhase::Ended, Some(end)) => {
                let ack = ToAck {
                    node,
                    id: report.id,
                    version: report.version,
                };
                self.on_attempt_ended(slot, end, ack);
                return;
            }
            (NodePhase::Ended, None) => return,
        }
        if self.instance(slot).stop().is_some() {
            self.send_stop_unless_recent(slot);
        }
    }

    fn disbelieve(&mut self, slot: u32, node: u32) {
        let text = format!(
            "node {} reports instance {}, which was placed on {}; not believed",
            self.nodes.name_of(node).unwrap_or_default(),
            self.id(slot),
            self.nodes
                .name_of(self.instance(slot).node)
                .unwrap_or_default(),
        );
        self.warn(text);
    }

    fn disbelieve_newer(&mut self, id: InstanceId, node: u32, attempt: u32) {
        let text = format!(
            "node {} reports attempt {attempt} of instance {id}, which was not given out; not believed",
            self.nodes.name_of(node).unwrap_or_default(),
        );
        self.warn(text);
    }

    fn note_times(&mut self, slot: u32, report: &InstanceReport) {
        let now_ns = self.now.mono_ns;
        let instance = self.instance_mut(slot);
        instance.version = report.version.0;
        let more = instance.more();
        let back = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX / 4);
        let floor = more.placed_ns.or(more.dispatched_ns).unwrap_or(i64::MIN);
        // The node's clock is not ours: its durations are counted back from the report's arrival.
        let received = more
            .received_ns
            .unwrap_or_else(|| now_ns.saturating_sub(back(report.age_ns)).max(floor));
        more.received_ns = Some(received);
        let at = |after: Option<u64>| {
            after.map(|after| received.saturating_add(back(after)).min(now_ns))
        };
        more.started_ns = at(report.started_after_ns).or(more.started_ns);
        more.ended_ns = at(report.ended_after_ns).or(more.ended_ns);
        if report.phase == NodePhase::Ended {
            more.reported_ns = Some(now_ns);
        }
        more.usage = Some(spec::usage(&report.usage));
    }

    /// What becomes of an instance whose current attempt has ended.
    fn on_attempt_ended(&mut self, slot: u32, end: End, ack: ToAck) {
        let record = spec::end_record(&end);
        match (self.instance(slot).after_stop(), &end.cause) {
            (Some(AfterStop::Restart), _)
            | (
                Some(AfterStop::Move),
                EndCause::Stopped
                | EndCause::Rejected
                | EndCause::NodeFailed
                | EndCause::LeaseExpired,
            ) => {
                self.restart_now(slot, Some(ack));
                return;
            }
            (Some(_), EndCause::Rejected | EndCause::NodeFailed | EndCause::LeaseExpired) => {
                self.finish_with(slot, InstanceState::Stopped, record, Some(ack));
                return;
            }
            _ => {}
        }
        let stopping = matches!(
            self.instance(slot).after_stop(),
            Some(AfterStop::Keep | AfterStop::Delete)
        );
        match end.cause {
            EndCause::Exited { code } => {
                let always = self.template(slot).spec.restart.mode == RestartMode::Always;
                if stopping || (code == 0 && !always) {
                    let state = if code == 0 {
                        InstanceState::Succeeded
                    } else {
                        InstanceState::Failed
                    };
                    self.finish_with(slot, state, record, Some(ack));
                } else {
                    self.restart_or_finish(slot, record, ack);
                }
            }
            EndCause::Signaled { .. } | EndCause::OutOfMemory { .. } | EndCause::TimedOut => {
                if stopping {
                    self.finish_with(slot, InstanceState::Failed, record, Some(ack));
                } else {
                    self.restart_or_finish(slot, record, ack);
                }
            }
            EndCause::CannotExecute { .. } => {
                self.finish_with(slot, InstanceState::Failed, record, Some(ack));
            }
            EndCause::Stopped => {
                self.finish_with(slot, InstanceState::Stopped, record, Some(ack));
            }
            EndCause::Rejected | EndCause::NodeFailed | EndCause::LeaseExpired => {
                self.reschedule_or_finish(slot, record, Some(ack));
            }
        }
    }

    /// After a failure of the workload's own, or always, as its policy says.
    fn restart_or_finish(&mut self, slot: u32, record: EndRecord, ack: ToAck) {
        let failed = record.cause != EndReason::Exited || record.code != Some(0);
        let policy = &self.template(slot).spec.restart;
        let wanted = match policy.mode {
            RestartMode::Never => false,
            RestartMode::OnFailure => failed,
            RestartMode::Always => true,
        };
        let done = u32::from(self.instance(slot).restarts);
        if !wanted || policy.limit.is_some_and(|limit| done >= limit) {
            let state = if failed {
                InstanceState::Failed
            } else {
                InstanceState::Succeeded
            };
            self.finish_with(slot, state, record, Some(ack));
            return;
        }
        let delay_ns = backoff_ns(policy.backoff_ms, policy.backoff_max_ms, done);
        let message = format!("restart {} after {}", done + 1, words(&record));
        self.record_instance(slot, "restarted", Severity::Info, message);
        let instance = self.instance_mut(slot);
        instance.restarts = instance.restarts.saturating_add(1);
        instance.more().trouble = Some((record.cause, record.message));
        self.raise(slot, delay_ns, Some(ack));
    }

    /// After a failure of the node: elsewhere, as its policy says.
    pub(crate) fn reschedule_or_finish(
        &mut self,
        slot: u32,
        record: EndRecord,
        ack: Option<ToAck>,
    ) {
        let spec = &self.template(slot).spec;
        let policy = &spec.reschedule;
        let done = u32::from(self.instance(slot).reschedules);
        // Standard input is given once.
        let fed = spec.stdin && record.cause != EndReason::Rejected;
        if done >= policy.limit || fed {
            let state = match record.cause {
                EndReason::Rejected => InstanceState::Failed,
                _ => InstanceState::NodeLost,
            };
            self.finish_with(slot, state, record, ack);
            return;
        }
        let delay_ns = backoff_ns(policy.backoff_ms, policy.backoff_max_ms, done);
        let node = self.nodes.name_of(self.instance(slot).node);
        let message = format!("reschedule {}: {}", done + 1, words(&record));
        self.record_instance(slot, "rescheduled", Severity::Warning, message);
        let instance = self.instance_mut(slot);
        instance.reschedules = instance.reschedules.saturating_add(1);
        let more = instance.more();
        more.trouble = Some((record.cause, record.message));
        more.prefer = None;
        if let Some(node) = node {
            more.avoid.retain(|other| *other != node);
            if more.avoid.len() >= AVOIDED_NODES {
                more.avoid.remove(0);
            }
            more.avoid.push(node);
            more.avoiding_since_ns = None;
        }
        self.raise(slot, delay_ns, ack);
    }

    /// A new attempt at once, since a user or a drain wants it.
    pub(crate) fn restart_now(&mut self, slot: u32, ack: Option<ToAck>) {
        self.let_go(slot);
        let moving = self.instance(slot).after_stop() == Some(AfterStop::Move);
        let node = self.nodes.name_of(self.instance(slot).node);
        let seq = self.instance(slot).seq;
        self.stopping.remove(&seq);
        let instance = self.instance_mut(slot);
        if !moving {
            instance.restarts = instance.restarts.saturating_add(1);
        }
        let more = instance.more();
        more.stop = None;
        more.prefer = if moving { None } else { node.clone() };
        if let Some(node) = node.filter(|_| moving) {
            more.avoid = vec![node];
            more.avoiding_since_ns = None;
        }
        self.wait_anew(slot);
        self.raise(slot, 0, ack);
    }

    /// What never came to a node and is restarted may wait for one as long again.
    pub(crate) fn wait_anew(&mut self, slot: u32) {
        if self.instance(slot).was_placed {
            return;
        }
        let now_ns = self.now.mono_ns;
        let timeout_ms = self.template(slot).spec.pending_timeout_ms;
        let instance = self.instance_mut(slot);
        instance.more().waits_anew_ns = Some(now_ns);
        let seq = instance.seq;
        if let Some(ms) = timeout_ms {
            self.arm(now_ns.saturating_add(ns(ms)), seq);
        }
    }

    pub(crate) fn finish(
        &mut self,
        slot: u32,
        state: InstanceState,
        cause: EndReason,
        message: String,
        ack: Option<ToAck>,
    ) {
        let record = EndRecord {
            cause,
            code: None,
            signal: None,
            message,
        };
        self.finish_with(slot, state, record, ack);
    }

    /// The end of an instance: written, and taken out of memory once that is durable.
    pub(crate) fn finish_with(
        &mut self,
        slot: u32,
        state: InstanceState,
        record: EndRecord,
        ack: Option<ToAck>,
    ) {
        self.let_go(slot);
        let instance = self.instance(slot);
        let seq = instance.seq;
        let entry = self.submission(instance.submission);
        let deleted = instance.after_stop() == Some(AfterStop::Delete);
        let row = EndRow {
            seq,
            state,
            attempt: instance.attempt,
            highest_attempt: instance.highest_attempt(),
            restarts: instance.restarts,
            reschedules: instance.reschedules,
            node: self.nodes.name_of(instance.node),
            cause: record.cause,
            code: record.code,
            signal: record.signal,
            message: record.message,
            ended_unix_ms: self.now.unix_ms,
            times: instance.times(
                entry.submitted_ns,
                entry.row.admitted_ns,
                entry.committed_ns,
            ),
            usage: instance.more.as_ref().and_then(|more| more.usage),
            deleted,
            amended: instance.amended,
        };
        let first_seq = entry.row.first_seq;
        let submission = instance.submission;
        self.stopping.remove(&seq);
        self.link.uncertain.remove(&seq);
        let entry = self.submission_mut(submission);
        entry.unfinished -= 1;
        let last = entry.unfinished == 0;
        self.set_phase(slot, Phase::Ending);
        self.instance_mut(slot).more().ending = Some(state);
        self.journal.write(Write::End(row));
        if last {
            self.journal.write(Write::SubmissionDone(first_seq));
        }
        self.journal.then(After::Ended { seq, ack });
    }

    pub(crate) fn on_ended(&mut self, seq: u64, ack: Option<ToAck>) {
        let Some(slot) = self.slot(seq) else { return };
        let ending = self
            .instance(slot)
            .more
            .as_ref()
            .and_then(|more| more.ending);
        if let Some(state) = ending {
            self.set_state(slot, state);
        }
        if let Some(ack) = ack {
            self.send_ack(ack);
        }
        if self.instance(slot).after_stop() == Some(AfterStop::Delete) {
            self.send_delete(slot);
        }
        self.remove_instance(slot);
    }

    fn send_delete(&mut self, slot: u32) {
        let Some(node) = self.nodes.name_of(self.instance(slot).node) else {
            return;
        };
        let delete = Delete {
            owner: self.meta.owner,
            instance: self.id(slot),
        };
        let seq = self.instance(slot).seq;
        self.send_to_node(Operand::Delete, Topic::Delete(seq), &node, &encode(&delete));
    }

    pub(crate) fn send_ack(&mut self, ack: ToAck) {
        if !self.link.up {
            return;
        }
        let Some(name) = self.nodes.name_of(ack.node) else {
            return;
        };
        let mut payload = Vec::new();
        let to = ToNode {
            node: name.to_string(),
        };
        encode_into(&to, &mut payload);
        let body = Ack {
            id: ack.id,
            version: ack.version,
        };
        encode_into(&body, &mut payload);
        self.send(Frame::new(Operand::Ack, payload));
    }

    /// A report about an instance that does not live: the store knows whether it ever did.
    fn ask_store(&mut self, node: u32, report: InstanceReport) {
        if self.link.lookups.len() >= MAX_LOOKUPS
            || self.nodes.is_quarantined(node, report.id.instance)
        {
            return;
        }
        let lookup = self.link.next_lookup;
        self.link.next_lookup += 1;
        let id = report.id.instance;
        self.link.lookups.insert(lookup, (node, report));
        self.out.push(Effect::Lookup { lookup, id });
    }

    pub(crate) fn on_looked_up(&mut self, lookup: u64, past: Past) {
        let Some((node, report)) = self.link.lookups.remove(&lookup) else {
            return;
        };
        if self.living(report.id.instance).is_some() {
            // It was opened again meanwhile; the next report finds it.
            return;
        }
        let id = report.id;
        match past {
            Past::Unknown => self.quarantine(node, &report),
            // A stop would stand in the way of the restart that gets this number.
            Past::Ended { highest_attempt }
                if id.attempt.0 > highest_attempt
                    && !self.numbered_before_restore(id.instance, id.attempt.0) =>
            {
                self.disbelieve_newer(id.instance, node, id.attempt.0);
            }
            Past::Ended { .. } | Past::Purged => self.on_stale(node, &report),
        }
    }

    pub(crate) fn record_instance(
        &mut self,
        slot: u32,
        kind: &'static str,
        severity: Severity,
        message: String,
    ) {
        let instance = self.instance(slot);
        let tenant = Arc::clone(&self.submission(instance.submission).row.tenant);
        let node = self.nodes.name_of(instance.node);
        let id = self.id(slot);
        self.record_row(EventRow {
            tenant: Some(tenant),
            instance: Some(id),
            node,
            ..self.own_row(kind, severity, message)
        });
    }
}

fn words(record: &EndRecord) -> String {
    if record.message.is_empty() {
        match (record.code, record.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => serde_json::to_value(record.cause)
                .ok()
                .and_then(|cause| Some(cause.as_str()?.replace('_', " ")))
                .unwrap_or_default(),
        }
    } else {
        record.message.clone()
    }
}

/// What comes back as fast as it ends must not take the whole controller for itself.
const BACKOFF_MIN_MS: u64 = 10;
const BACKOFF_MAX_MIN_MS: u64 = 1000;

/// The delay before the retry that follows `done` others: doubling, bounded.
fn backoff_ns(first_ms: u64, max_ms: u64, done: u32) -> i64 {
    let ms = first_ms
        .max(BACKOFF_MIN_MS)
        .saturating_mul(1_u64.checked_shl(done.min(32)).unwrap_or(u64::MAX))
        .min(max_ms.max(BACKOFF_MAX_MIN_MS));
    ns(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_and_is_bounded() {
        let ms = |done| backoff_ns(100, 30_000, done) / 1_000_000;
        assert_eq!(
            [ms(0), ms(1), ms(2), ms(20), ms(4_000)],
            [100, 200, 400, 30_000, 30_000]
        );
        let ms = |done| backoff_ns(0, 0, done) / 1_000_000;
        assert_eq!([ms(0), ms(1), ms(2), ms(20)], [10, 20, 40, 1000]);
    }
}
