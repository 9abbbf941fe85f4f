//! Nodes as controllers see them: NODE_CONNECTED, NODE_DISCONNECTED, the paged REPLY NODES; and the
//! obstacles that keep placement off a node.

use super::limits::PAGES_PER_TURN;
use super::outlet::{Nanos, Outgoing, Outlet};
use super::{Broker, controller};
use crate::table::{NodeIndex, Obstacle};
use pronto_payloads::codec;
use pronto_payloads::limits::{NODE_PAGE, PAGE_BYTES};
use pronto_payloads::node::{NodeDisconnected, NodeState};
use pronto_protocol::{Flags, Operand};
use tracing::warn;

impl Broker {
    /// Tells every controller of a node that has just connected.
    pub(super) fn announce_node<O: Outlet>(&mut self, index: NodeIndex, out: &mut O) {
        for slot in 0..self.controllers.len() {
            let (Some(controller), Some(node)) =
                (self.controllers[slot].as_ref(), self.nodes.get(&index))
            else {
                continue;
            };
            let connected = codec::encode(&node.connected(controller.owner));
            self.tell(
                slot,
                Outgoing::new(Operand::NodeConnected, 0, [&connected, &[]]),
                out,
            );
        }
    }

    /// Tells every controller of a node that has gone.
    pub(super) fn announce_departure<O: Outlet>(&mut self, gone: &NodeDisconnected, out: &mut O) {
        let gone = codec::encode(gone);
        for slot in 0..self.controllers.len() {
            self.tell(
                slot,
                Outgoing::new(Operand::NodeDisconnected, 0, [&gone, &[]]),
                out,
            );
        }
    }

    /// COMMAND NODES: the pages follow, one a turn.
    pub(super) fn on_nodes(&mut self, slot: usize, correlation: u64) {
        if let Some(controller) = &mut self.controllers[slot] {
            controller.listing = Some(controller::Listing {
                correlation,
                after: None,
            });
        }
    }

    pub(super) fn continue_node_lists<O: Outlet>(&mut self, out: &mut O) {
        for slot in 0..self.controllers.len() {
            for _ in 0..PAGES_PER_TURN {
                self.send_node_page(slot, out);
            }
        }
    }

    fn send_node_page<O: Outlet>(&mut self, slot: usize, out: &mut O) {
        let Some(controller) = &self.controllers[slot] else {
            return;
        };
        let Some(listing) = controller
            .listing
            .filter(|_| controller.has_pages_to_send())
        else {
            return;
        };
        // A list is its length and its elements, so they are encoded as they are found.
        let mut page = Vec::new();
        let mut count: u64 = 0;
        let mut after = listing.after;
        let mut is_last = true;
        let rest = self
            .table
            .iter()
            .filter(|index| listing.after.is_none_or(|at| *index > at));
        for index in rest {
            if count == NODE_PAGE as u64 || page.len() >= PAGE_BYTES {
                is_last = false;
                break;
            }
            if let Some(node) = self.nodes.get(&index) {
                codec::encode_into(&node.connected(controller.owner), &mut page);
                count += 1;
            }
            after = Some(index);
        }
        let length = count.to_le_bytes();
        let message = Outgoing::new(Operand::NodeList, listing.correlation, [&length, &page]);
        let flags = if is_last { Flags::LAST } else { Flags::NONE };
        self.tell(slot, message.with_flags(flags), out);
        if let Some(controller) = &mut self.controllers[slot] {
            let next = controller::Listing { after, ..listing };
            controller.listing = (!is_last).then_some(next);
        }
    }

    /// Brings the table's obstacles of a node up to date. What was refused may fit afterwards.
    pub(super) fn review_obstacles(&mut self, now: Nanos, index: NodeIndex) {
        let Some(node) = self.nodes.get(&index) else {
            return;
        };
        let obeys = node.term <= self.activation.term();
        let obstacles = [
            (
                Obstacle::Maintenance,
                matches!(node.state, NodeState::Maintenance | NodeState::Offline),
            ),
            (Obstacle::Full, node.shown_full()),
            (Obstacle::QueueFull, node.brimming),
            (
                Obstacle::BackedOff,
                !obeys || node.faults.is_backed_off(now),
            ),
        ];
        let mut opened = false;
        for (obstacle, holds) in obstacles {
            opened |= self.table.set_obstacle(index, obstacle, holds);
        }
        if opened {
            self.capacity_has_grown();
        }
    }

    /// A launcher's queue has passed its mark, or has drained.
    pub(super) fn note_brimming(&mut self, index: NodeIndex) {
        let Some(node) = self.nodes.get(&index) else {
            return;
        };
        if self
            .table
            .set_obstacle(index, Obstacle::QueueFull, node.brimming)
        {
            self.capacity_has_grown();
        }
    }

    /// The term has risen: nodes that had seen it obey now.
    pub(super) fn review_terms(&mut self, now: Nanos) {
        let all: Vec<NodeIndex> = self.table.iter().collect();
        for index in all {
            self.review_obstacles(now, index);
        }
    }

    /// Takes a node out of placement because it fails everything.
    pub(super) fn back_off(&mut self, now: Nanos, index: NodeIndex) {
        self.counters.back_offs += 1;
        if let Some(node) = self.nodes.get(&index)
            && let Some(left_out) = self.quiet_back_offs.line(now.0)
        {
            warn!(
                node = node.name,
                left_out,
                failures = node.faults.in_a_row(),
                pause_ms = node
                    .faults
                    .until()
                    .map(|until| until.since(now) / 1_000_000),
                "nothing is placed on this node for a while, it keeps failing"
            );
        }
        if !self.backed_off.contains(&index) {
            self.backed_off.push(index);
        }
        self.review_obstacles(now, index);
    }

    pub(super) fn end_back_offs(&mut self, now: Nanos) {
        if self.backed_off.is_empty() {
            return;
        }
        let mut ended = Vec::new();
        let nodes = &self.nodes;
        self.backed_off.retain(|index| {
            let over = nodes
                .get(index)
                .is_none_or(|node| !node.faults.is_backed_off(now));
            if over {
                ended.push(*index);
            }
            !over
        });
        for index in ended {
            self.review_obstacles(now, index);
        }
    }
}
