//! START out, PLACED and START_FAILURE in.
//!
//! The correlation id of each command names what it is about, so that an answer needs no table:
//! four bits of kind, sixty of value.

use super::event::Effect;
use super::instance::Phase;
use super::journal::{After, ToAck};
use super::queue::LastRefusal;
use super::state::State;
use crate::api::types::{EndReason, InstanceState, Severity};
use crate::store::{AfterStop, AmendRow, Write};
use pronto_payloads::SCHEMA;
use pronto_payloads::codec::{self, encode};
use pronto_payloads::control::ToNode;
use pronto_payloads::ids::ControllerEpoch;
use pronto_payloads::place::{Placed, Refusal, StartFailure, StartPrefix};
use pronto_protocol::frame::{Frame, Payload};
use pronto_protocol::operand::Operand;

/// What a correlation id is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    Start(u64),
    Stop(u64),
    Delete(u64),
    Drain(u64),
    Restore(u64),
    Inventory(u64),
    Explain(u64),
    Activate,
    Nodes,
}

const TOPIC_SHIFT: u32 = 60;

/// An instance that avoids its last nodes, and finds no room on others, tries again after so long ...
const AVOID_AGAIN_NS: i64 = 1_000_000_000;
/// ... and after so long on any node.
const AVOID_FOR_NS: i64 = 30_000_000_000;

impl Topic {
    pub(crate) const fn correlation(self) -> u64 {
        let (kind, value) = match self {
            Self::Start(seq) => (1, seq),
            Self::Stop(seq) => (2, seq),
            Self::Delete(seq) => (3, seq),
            Self::Drain(node) => (4, node),
            Self::Inventory(node) => (5, node),
            Self::Explain(token) => (6, token),
            Self::Activate => (7, 0),
            Self::Nodes => (8, 0),
            Self::Restore(node) => (9, node),
        };
        (kind << TOPIC_SHIFT) | (value & ((1 << TOPIC_SHIFT) - 1))
    }

    pub(crate) const fn of(correlation: u64) -> Option<Self> {
        let value = correlation & ((1 << TOPIC_SHIFT) - 1);
        match correlation >> TOPIC_SHIFT {
            1 => Some(Self::Start(value)),
            2 => Some(Self::Stop(value)),
            3 => Some(Self::Delete(value)),
            4 => Some(Self::Drain(value)),
            5 => Some(Self::Inventory(value)),
            6 => Some(Self::Explain(value)),
            7 => Some(Self::Activate),
            8 => Some(Self::Nodes),
            9 => Some(Self::Restore(value)),
            _ => None,
        }
    }
}

impl State {
    /// Sends what the queue and the window allow.
    pub(crate) fn dispatch(&mut self) {
        while self.link.may_start() {
            let Some((seq, class)) = self.queue.pick() else {
                return;
            };
            let slot = self
                .slot(seq)
                .filter(|&slot| self.instance(slot).phase == Phase::Queued);
            match slot {
                Some(slot) => self.send_start(slot),
                None => self.queue.void(class),
            }
        }
    }

    fn send_start(&mut self, slot: u32) {
        let id = self.attempt_id(slot);
        let now_ns = self.now.mono_ns;
        let epoch = ControllerEpoch(self.meta.epoch);
        let instance = self.instance_mut(slot);
        let seq = instance.seq;
        let more = instance.more();
        more.dispatched_ns = Some(now_ns);
        let (avoid, prefer) = (more.avoid.clone(), more.prefer.clone());
        let submission = self.submission(self.instance(slot).submission);
        let template = &submission.template;
        let prefix = StartPrefix {
            id,
            controller_epoch: epoch,
            body_schema: SCHEMA,
            runtime: template.class.runtime,
            demand: template.class.demand.clone(),
            constraints: template.class.constraints.clone(),
            prefer: prefer.map(|node| node.to_string()),
            avoid: avoid.iter().map(ToString::to_string).collect(),
        };
        let body = template.body(submission.row.instance_name(seq).as_deref());
        let payload = Payload::with_prefix(encode(&prefix), body);
        self.link.unanswered += 1;
        self.set_phase(slot, Phase::Placing);
        self.send(Frame::request(
            Operand::Start,
            Topic::Start(seq).correlation(),
            payload,
        ));
    }

    pub(crate) fn send(&mut self, frame: Frame) {
        self.out.push(Effect::Send(frame));
    }

    /// Sends a command that the scheduler passes on to a node.
    pub(crate) fn send_to_node(&mut self, operand: Operand, topic: Topic, node: &str, body: &[u8]) {
        let mut payload = Vec::new();
        let to = ToNode {
            node: node.to_owned(),
        };
        codec::encode_into(&to, &mut payload);
        payload.extend_from_slice(body);
        self.send(Frame::request(operand, topic.correlation(), payload));
    }

    pub(crate) fn on_placed(&mut self, placed: &Placed) {
        if placed.id.owner != self.meta.owner {
            return;
        }
        let Some(slot) = self.living(placed.id.instance) else {
            return;
        };
        let instance = self.instance(slot);
        if instance.phase != Phase::Placing || instance.attempt != placed.id.attempt.0 {
            return;
        }
        let (class, seq) = (instance.class, instance.seq);
        self.link.answered();
        self.queue.placed(class, seq);
        let node = self.node_named(&placed.node);
        let now_ns = self.now.mono_ns;
        let instance = self.instance_mut(slot);
        instance.more().placed_ns = Some(now_ns);
        self.settle_on(slot, node, placed.session_epoch.0, placed.seq.0);
        self.set_phase(slot, Phase::Starting);
        self.let_go(slot);
        if self.instance(slot).stop().is_some() {
            self.send_stop(slot);
        }
    }

    /// An attempt is on a node, as inventories of it know it from `session_epoch` and `seq` on.
    pub(crate) fn settle_on(&mut self, slot: u32, node: u32, session_epoch: u64, start_seq: u64) {
        let before = self.instance(slot).node;
        self.nodes.take_off(before, slot);
        self.nodes.put_on(node, slot);
        let instance = self.instance_mut(slot);
        instance.node = node;
        instance.session_epoch = session_epoch;
        instance.start_seq = start_seq;
        instance.was_placed = true;
        let attempt = instance.attempt;
        if self.template(slot).runs_are_counted()
            && self.instance(slot).settled_attempt() != attempt
        {
            let instance = self.instance_mut(slot);
            instance.more().settled_attempt = attempt;
            instance.amended = true;
            let row = self.amend_row(slot);
            self.journal.write(Write::Amend(row));
        }
    }

    pub(crate) fn on_start_failure(&mut self, correlation: u64, failure: StartFailure) {
        let Some(Topic::Start(seq)) = Topic::of(correlation) else {
            return;
        };
        let Some(slot) = self.slot(seq) else { return };
        let instance = self.instance(slot);
        let current = failure.id.attempt.0 == instance.attempt || failure.id.attempt.0 == 0;
        if instance.phase != Phase::Placing || !current {
            return;
        }
        let class = instance.class;
        let mut pause = false;
        self.link.answered();
        self.link.generation = self.link.generation.max(failure.generation);
        match failure.refusal {
            Refusal::Malformed => {
                self.queue.void(class);
                let text = format!("the scheduler could not read its START: {}", failure.text);
                self.warn(text.clone());
                self.finish(slot, InstanceState::Failed, EndReason::Rejected, text, None);
                return;
            }
            Refusal::StaleEpoch => {
                self.queue.void(class);
                self.on_superseded();
            }
            Refusal::NotActive | Refusal::Busy => {
                self.queue.void(class);
                self.link.hold(self.now.mono_ns);
            }
            // Says nothing of the others of its class, for which there may be room.
            Refusal::CloudFull if self.avoids_nodes(slot) => {
                self.queue.void(class);
                pause = true;
            }
            Refusal::CloudFull | Refusal::NoNodes | Refusal::NeverFits | Refusal::Warming => {
                let priority = self.template(slot).priority();
                let last = LastRefusal {
                    refusal: failure.refusal,
                    generation: failure.generation,
                };
                self.queue.refused(class, seq, priority, last);
            }
        }
        if self.instance(slot).after_stop().is_some() {
            self.finish_stopped(slot);
        } else if !self.take_back_instead(slot) {
            // Refused, it certainly did not run: the same attempt is sent again.
            if pause {
                self.pause(slot);
            } else {
                self.requeue(slot);
            }
        }
    }

    fn avoids_nodes(&self, slot: u32) -> bool {
        let more = self.instance(slot).more.as_ref();
        more.is_some_and(|more| !more.avoid.is_empty())
    }

    /// Waits a little for room on a node that is not avoided; in the end takes any.
    fn pause(&mut self, slot: u32) {
        let now_ns = self.now.mono_ns;
        let instance = self.instance_mut(slot);
        let seq = instance.seq;
        let more = instance.more();
        let since_ns = *more.avoiding_since_ns.get_or_insert(now_ns);
        if now_ns - since_ns >= AVOID_FOR_NS {
            more.avoid.clear();
            self.requeue(slot);
            return;
        }
        let at_ns = now_ns + AVOID_AGAIN_NS;
        more.not_before_ns = at_ns;
        self.set_phase(slot, Phase::Waiting);
        self.arm(at_ns, seq);
    }

    /// A new attempt number, committed before the instance is queued again.
    pub(crate) fn raise(&mut self, slot: u32, delay_ns: i64, ack: Option<ToAck>) {
        let node = self.instance(slot).node;
        self.nodes.take_off(node, slot);
        if self.instance(slot).after_stop() == Some(AfterStop::Move) {
            // It leaves its node, as a drain wished.
            let instance = self.instance_mut(slot);
            instance.more().stop = None;
            let seq = instance.seq;
            self.stopping.remove(&seq);
        }
        let not_before_ns = self.now.mono_ns.saturating_add(delay_ns);
        let instance = self.instance(slot);
        let previous = self
            .nodes
            .name_of(node)
            .map(|name| (instance.attempt, name));
        let next = self
            .meta
            .next_attempt(instance.seq, instance.highest_attempt());
        let instance = self.instance_mut(slot);
        instance.attempt = next;
        if previous.is_some() {
            instance.more().previous = previous;
        }
        instance.leave_node();
        instance.amended = true;
        let (seq, attempt, submission) = (instance.seq, instance.attempt, instance.submission);
        self.link.uncertain.remove(&seq);
        self.submission_mut(submission).retries += 1;
        self.set_phase(slot, Phase::Committing);
        let row = self.amend_row(slot);
        self.journal.write(Write::Amend(row));
        self.journal.then(After::Raised {
            seq,
            attempt,
            not_before_ns,
            ack,
        });
    }

    pub(crate) fn amend_row(&self, slot: u32) -> AmendRow {
        let instance = self.instance(slot);
        AmendRow {
            seq: instance.seq,
            attempt: instance.attempt,
            highest_attempt: instance.highest_attempt(),
            settled_attempt: instance.settled_attempt(),
            restarts: instance.restarts,
            reschedules: instance.reschedules,
            stop: instance.stop(),
        }
    }

    pub(crate) fn on_raised(
        &mut self,
        seq: u64,
        attempt: u32,
        not_before_ns: i64,
        ack: Option<ToAck>,
    ) {
        if let Some(ack) = ack {
            self.send_ack(ack);
        }
        let Some(slot) = self.slot(seq) else { return };
        let instance = self.instance(slot);
        if instance.phase != Phase::Committing || instance.attempt != attempt {
            return;
        }
        if not_before_ns > self.now.mono_ns {
            self.instance_mut(slot).more().not_before_ns = not_before_ns;
            self.set_phase(slot, Phase::Waiting);
            self.arm(not_before_ns, seq);
        } else {
            self.requeue(slot);
        }
    }

    /// Another controller with a newer epoch works for this owner: this one must not.
    pub(crate) fn on_superseded(&mut self) {
        if self.link.superseded {
            return;
        }
        self.link.superseded = true;
        self.record(
            "superseded",
            Severity::Alarm,
            "a newer controller works on a copy of this store, or the store was rolled back; \
             nothing is started any more"
                .to_owned(),
        );
    }

    /// Timers: back-offs, fences, pending timeouts.
    pub(crate) fn run_timers(&mut self) {
        while let Some(&std::cmp::Reverse((at, seq))) = self.timers.peek() {
            if at > self.now.mono_ns {
                return;
            }
            self.timers.pop();
            let Some(slot) = self.slot(seq) else { continue };
            self.on_timer(slot);
        }
    }

    fn on_timer(&mut self, slot: u32) {
        let instance = self.instance(slot);
        let submission = self.submission(instance.submission);
        let timeout_ms = submission.template.spec.pending_timeout_ms;
        let committed_ns = i64::try_from(submission.committed_ns).unwrap_or(i64::MAX / 4);
        let admitted_ns = submission.submitted_ns.saturating_add(committed_ns);
        let more = instance.more.as_ref();
        let waits_since_ns = more
            .and_then(|more| more.waits_anew_ns)
            .unwrap_or(admitted_ns);
        let timed_out = !instance.was_placed
            && instance.after_stop().is_none()
            && timeout_ms
                .is_some_and(|ms| waits_since_ns + super::state::ns(ms) <= self.now.mono_ns);
        match instance.phase {
            Phase::Committing | Phase::Queued | Phase::Waiting if timed_out => {
                let text = self.waiting_text(slot).unwrap_or_default();
                let text = format!("not placed within its pending timeout: {text}");
                self.finish(
                    slot,
                    InstanceState::Expired,
                    EndReason::PendingTimeout,
                    text,
                    None,
                );
            }
            Phase::Placing | Phase::Uncertain if timed_out => {
                // Its START may be under way: look again when the answer must be there.
                const ANSWER_NS: i64 = 1_000_000_000;
                let (at, seq) = (self.now.mono_ns + ANSWER_NS, instance.seq);
                self.arm(at, seq);
            }
            Phase::Waiting => {
                let due = instance
                    .more
                    .as_ref()
                    .is_none_or(|more| more.not_before_ns <= self.now.mono_ns);
                if due {
                    self.requeue(slot);
                }
            }
            Phase::Starting | Phase::Running | Phase::Uncertain => self.on_fence_timer(slot),
            Phase::Committing | Phase::Queued | Phase::Placing | Phase::Ending => {}
        }
    }
}
