//! Maintenance: drains with their deadlines, restores, and nodes that are deleted.
//!
//! A drained node is told MAINTENANCE until it reports it, and again at each connect; one that is
//! restored is told READY until it has answered. Of the others' modes a controller says nothing: it
//! may not be the only one that drains. What may be restarted is moved at once; the rest may go on
//! until the deadline.

use super::dispatch::Topic;
use super::instance::Phase;
use super::nodes::{Pull, sorted};
use super::state::State;
use crate::api::types::{RestartMode, Severity};
use crate::store::{AfterStop, StopIntent, Write};
use pronto_payloads::codec::encode;
use pronto_payloads::control::SetMode;
use pronto_payloads::hello::Mode;
use pronto_payloads::node::NodeState;
use pronto_protocol::operand::Operand;
use std::sync::Arc;

/// SET_MODE is repeated this often until the node reports the mode.
const MODE_REPEAT_NS: i64 = 2_000_000_000;

impl State {
    /// Tells a node the mode that is wished of it, if there is a wish.
    pub(crate) fn assert_mode(&mut self, index: u32) {
        let now_ns = self.now.mono_ns;
        let up = self.link.up;
        let Some(node) = self.nodes.node_mut(index) else {
            return;
        };
        let Some(mode) = node.row.wish else {
            return;
        };
        let is_so = mode == Mode::Maintenance && node.state == NodeState::Maintenance;
        let recent = node
            .mode_sent_ns
            .is_some_and(|sent| now_ns - sent < MODE_REPEAT_NS);
        if !node.connected || !up || is_so || recent {
            return;
        }
        node.mode_sent_ns = Some(now_ns);
        let name = Arc::clone(&node.row.name);
        let body = encode(&SetMode { mode });
        let topic = match mode {
            Mode::Maintenance => Topic::Drain(index.into()),
            Mode::Ready => Topic::Restore(index.into()),
        };
        self.send_to_node(Operand::SetMode, topic, &name, &body);
    }

    pub(crate) fn drain(&mut self, index: u32, deadline_ms: u64) {
        let until = self.now.unix_ms.saturating_add(deadline_ms);
        let Some(node) = self.nodes.node_mut(index) else {
            return;
        };
        node.row.wish = Some(Mode::Maintenance);
        node.row.drain_until_unix_ms = Some(until);
        node.mode_sent_ns = None;
        let row = node.row.clone();
        self.journal.write(Write::Node(row));
        self.assert_mode(index);
        self.sweep_drain(index);
    }

    pub(crate) fn restore(&mut self, index: u32) {
        let Some(node) = self.nodes.node_mut(index) else {
            return;
        };
        node.row.wish = Some(Mode::Ready);
        node.row.drain_until_unix_ms = None;
        node.mode_sent_ns = None;
        let row = node.row.clone();
        self.journal.write(Write::Node(row));
        self.assert_mode(index);
    }

    /// A node has taken up READY and keeps it by itself: the wish is fulfilled.
    pub(crate) fn restored(&mut self, index: u64) {
        let node = u32::try_from(index).ok();
        let Some(node) = node.and_then(|index| self.nodes.node_mut(index)) else {
            return;
        };
        // A drain that came meanwhile stands.
        if node.row.wish == Some(Mode::Ready) {
            node.row.wish = None;
            let row = node.row.clone();
            self.journal.write(Write::Node(row));
        }
    }

    pub(crate) fn sweep_drains(&mut self) {
        let draining: Vec<u32> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.row.drain_until_unix_ms.is_some() && !node.attempts.is_empty())
            .map(|(index, _)| index)
            .collect();
        for index in draining {
            self.assert_mode(index);
            self.sweep_drain(index);
        }
    }

    /// Moves what may be restarted at once, and the rest when the deadline is there.
    pub(crate) fn sweep_drain(&mut self, index: u32) {
        let Some(node) = self.nodes.node(index) else {
            return;
        };
        let Some(until) = node.row.drain_until_unix_ms else {
            return;
        };
        let due = self.now.unix_ms >= until;
        for slot in sorted(&node.attempts) {
            let instance = self.instance(slot);
            let there = matches!(instance.phase, Phase::Starting | Phase::Running);
            let spec = &self.template(slot).spec;
            let movable = spec.restart.mode != RestartMode::Never;
            if there && instance.stop().is_none() && (due || movable) {
                let then = if (movable || spec.reschedule.limit > 0) && !spec.stdin {
                    AfterStop::Move
                } else {
                    AfterStop::Keep
                };
                let message = "its node is drained".to_owned();
                self.record_instance(slot, "drained", Severity::Info, message);
                self.intend_stop(
                    slot,
                    StopIntent {
                        grace_ms: None,
                        then,
                    },
                );
            }
        }
    }

    /// An administrator swears that nothing runs on a node any more, and forgets it.
    pub(crate) fn delete_node(&mut self, index: u32) {
        let Some(node) = self.nodes.node(index) else {
            return;
        };
        let slots = sorted(&node.attempts);
        for slot in slots {
            if matches!(self.instance(slot).phase, Phase::Starting | Phase::Running) {
                self.give_up_on_node(slot, "was fenced by an administrator");
            }
        }
        if let Some(node) = self.nodes.remove(index) {
            if matches!(node.pull, Pull::Asked { .. }) {
                self.link.pulls -= 1;
            }
            self.journal.write(Write::NodeDeleted(node.row.name));
        }
        self.sweep_uncertain();
    }
}
