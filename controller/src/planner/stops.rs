//! Stops: a wish that is written down, carried out, and repeated until the end is reported.
//!
//! A STOP leaves only when what follows it (an end, a deletion, a new attempt) is on disk.

use super::dispatch::Topic;
use super::instance::{NOWHERE, Phase};
use super::journal::After;
use super::state::{State, ns};
use crate::api::types::{EndReason, InstanceState};
use crate::store::{AfterStop, StopIntent, Write};
use pronto_payloads::codec::encode;
use pronto_payloads::control::Stop;
use pronto_payloads::ids::Attempt;
use pronto_protocol::operand::Operand;

/// Frames of one round to nodes where something may be: a hundred thousand unanswered attempts among
/// ten thousand nodes would be a flood.
pub(crate) const MAX_STOPS: usize = 4096;

impl State {
    /// Writes the wish to stop an instance down; it is carried out once that is durable.
    pub(crate) fn intend_stop(&mut self, slot: u32, intent: StopIntent) {
        let instance = self.instance_mut(slot);
        let seq = instance.seq;
        instance.amended = true;
        let before = instance.more().stop;
        // A deletion is not taken back by a stop.
        let then = match before.map(|stop| stop.then) {
            Some(AfterStop::Delete) => AfterStop::Delete,
            _ => intent.then,
        };
        let more = instance.more();
        more.stop = Some(StopIntent {
            grace_ms: intent.grace_ms,
            then,
        });
        more.stop_sent_ns = None;
        more.stop_durable = false;
        self.stopping.insert(seq);
        let row = self.amend_row(slot);
        self.journal.write(Write::Amend(row));
        self.journal.then(After::Stop { seq });
    }

    /// A stop that was promised is durable: carry it out.
    pub(crate) fn on_stop_durable(&mut self, seq: u64) {
        let Some(slot) = self.slot(seq) else { return };
        if self.instance(slot).stop().is_none() {
            return;
        }
        self.instance_mut(slot).more().stop_durable = true;
        match self.instance(slot).phase {
            Phase::Starting | Phase::Running => self.send_stop(slot),
            Phase::Uncertain => self.send_stop_everywhere(slot),
            Phase::Placing | Phase::Ending => {}
            Phase::Committing | Phase::Queued | Phase::Waiting => self.finish_stopped(slot),
        }
    }

    /// A crash must not turn a move into an end: no STOP before what follows it is written down.
    fn stop_is_durable(&self, slot: u32) -> bool {
        let more = self.instance(slot).more.as_ref();
        more.is_some_and(|more| more.stop.is_some() && more.stop_durable)
    }

    fn stop_of(&self, slot: u32) -> Stop {
        Stop {
            owner: self.meta.owner,
            instance: self.id(slot),
            attempt: Attempt(self.instance(slot).attempt),
            grace_ms: self.instance(slot).stop().and_then(|stop| stop.grace_ms),
        }
    }

    pub(crate) fn send_stop(&mut self, slot: u32) {
        if !self.stop_is_durable(slot) {
            return;
        }
        let node = self.instance(slot).node;
        let now_ns = self.now.mono_ns;
        self.instance_mut(slot).more().stop_sent_ns = Some(now_ns);
        if node == NOWHERE || !self.nodes.is_connected(node) || !self.link.up {
            return;
        }
        let Some(name) = self.nodes.name_of(node) else {
            return;
        };
        let stop = self.stop_of(slot);
        let seq = self.instance(slot).seq;
        self.send_to_node(Operand::Stop, Topic::Stop(seq), &name, &encode(&stop));
    }

    pub(crate) fn send_stop_unless_recent(&mut self, slot: u32) {
        let sent = self
            .instance(slot)
            .more
            .as_ref()
            .and_then(|more| more.stop_sent_ns);
        let repeat_ns = ns(self.settings.stop_repeat_ms);
        if sent.is_none_or(|sent| self.now.mono_ns - sent >= repeat_ns) {
            self.send_stop(slot);
        }
    }

    /// An unanswered attempt may be on each node that has not said since that it is not there. Those are
    /// told, as far as this round's budget goes: the next one goes on.
    fn send_stop_everywhere(&mut self, slot: u32) {
        if !self.stop_is_durable(slot) || self.link.stops_left == 0 {
            return;
        }
        let now_ns = self.now.mono_ns;
        let more = self.instance_mut(slot).more();
        more.stop_sent_ns = Some(now_ns);
        let since_break = more.uncertain_since_break;
        if !self.link.up {
            return;
        }
        let stop = encode(&self.stop_of(slot));
        let seq = self.instance(slot).seq;
        let nodes = self.nodes.where_it_may_be(since_break);
        self.link.stops_left = self.link.stops_left.saturating_sub(nodes.len());
        for name in nodes {
            self.send_to_node(Operand::Stop, Topic::Stop(seq), &name, &stop);
        }
    }

    /// STOP is repeated until the end is reported.
    pub(crate) fn sweep_stops(&mut self) {
        self.link.stops_left = MAX_STOPS;
        let repeat_ns = ns(self.settings.stop_repeat_ms);
        let due: Vec<u64> = self
            .stopping
            .iter()
            .copied()
            .filter(|&seq| {
                self.slot(seq).is_some_and(|slot| {
                    let sent = self
                        .instance(slot)
                        .more
                        .as_ref()
                        .and_then(|more| more.stop_sent_ns);
                    sent.is_none_or(|sent| self.now.mono_ns - sent >= repeat_ns)
                })
            })
            .collect();
        for seq in due {
            let Some(slot) = self.slot(seq) else { continue };
            match self.instance(slot).phase {
                Phase::Starting | Phase::Running => self.send_stop(slot),
                Phase::Uncertain => self.send_stop_everywhere(slot),
                _ => {}
            }
        }
        let stale = self.nodes.stale_due(self.now.mono_ns, repeat_ns);
        for (name, stop) in stale {
            let seq = self.ids.seq(stop.instance, self.meta.next_seq);
            self.send_to_node(Operand::Stop, Topic::Stop(seq), &name, &encode(&stop));
        }
    }

    /// A stopped instance that will certainly not run.
    pub(crate) fn finish_stopped(&mut self, slot: u32) {
        if self.instance(slot).after_stop() == Some(AfterStop::Restart)
            || self.instance(slot).after_stop() == Some(AfterStop::Move)
        {
            self.restart_now(slot, None);
            return;
        }
        let ran = self.instance(slot).was_placed || self.instance(slot).restarts > 0;
        let (state, cause, text) = if ran {
            (InstanceState::Stopped, EndReason::Stopped, "stopped")
        } else {
            (
                InstanceState::Cancelled,
                EndReason::Cancelled,
                "cancelled before it was placed",
            )
        };
        self.finish(slot, state, cause, text.to_owned(), None);
    }
}
