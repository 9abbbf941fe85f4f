//! Statistics on their way up: coalesced per node, gathered into batches.
//!
//! A node has something to tell when its availability or state has changed or an EVENT STATS has
//! come. The nodes are gone through in rounds that take one statistics interval each, a few at every
//! tick, and those that have something to tell are put into a batch: so each node is told of at most
//! once an interval, whatever it sends, and 10,000 nodes never stall a turn. A change of state jumps
//! the queue. Nothing is lost by coalescing: the later replaces the earlier.

use super::limits::{MISSED_STATS, MISSED_STATUSES_MS, STATS_NODES_PER_TICK};
use super::outlet::{Nanos, Outgoing, Outlet};
use super::{Broker, controller::Controller, node::Node};
use crate::table::NodeIndex;
use bytes::Bytes;
use pronto_payloads::codec;
use pronto_payloads::instance::InstanceUsage;
use pronto_payloads::limits::{NODE_PAGE, PAGE_BYTES};
use pronto_payloads::node::{NodeStats, Stats};
use pronto_protocol::Operand;
use tracing::{debug, info, warn};

/// How far the present round is.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// The last node that was looked at.
    after: Option<NodeIndex>,
    last_tick: Nanos,
    /// Since when this process has run without a long pause: silence before that was its own.
    awake_since: Nanos,
    /// Parts of nodes that were due and not yet looked at, in nodes × nanoseconds.
    remainder: u64,
    /// Nodes whose state has changed.
    urgent: Vec<NodeIndex>,
}

/// One controller's batch in the making.
struct Batch {
    slot: usize,
    nodes: Vec<u8>,
    count: u64,
}

impl Broker {
    /// An EVENT STATS: kept undecoded until its turn comes.
    pub(super) fn on_stats(&mut self, index: NodeIndex, payload: &Bytes) {
        // With nobody to tell, ten thousand nodes' statistics would only lie in memory.
        if self.live_controllers().next().is_none() {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&index) {
            // Of its own memory, or the whole read that it came in would stay with it.
            node.stats.latest = Some(Bytes::copy_from_slice(payload));
            node.stats.dirty = true;
        }
    }

    /// A node's state has changed: it is told of at the next tick.
    pub(super) fn pass_on_soon(&mut self, index: NodeIndex) {
        if let Some(node) = self.nodes.get_mut(&index) {
            node.stats.dirty = true;
            if !std::mem::replace(&mut node.stats.urgent, true) {
                self.stats.urgent.push(index);
            }
        }
    }

    /// A controller that knows nothing yet, or was not told of late, is told of every node within
    /// the next round.
    pub(super) fn pass_everything_on(&mut self) {
        for node in self.nodes.values_mut() {
            node.stats.dirty = true;
        }
    }

    pub(super) fn pass_on_stats<O: Outlet>(&mut self, now: Nanos, out: &mut O) {
        // When all nodes come at once, the later ones wait a tick or two.
        let urgent = self.stats.urgent.len().min(STATS_NODES_PER_TICK);
        let mut due: Vec<NodeIndex> = self.stats.urgent.drain(..urgent).collect();
        for index in &due {
            if let Some(node) = self.nodes.get_mut(index) {
                node.stats.urgent = false;
            }
        }
        self.collect_due(now, &mut due);
        for index in &due {
            self.look_for_silence(now, *index);
        }
        let mut batches: Vec<Batch> = self
            .live_controllers()
            .filter(|(_, controller)| !controller.brimming)
            .map(|(slot, _)| Batch {
                slot,
                nodes: Vec::new(),
                count: 0,
            })
            .collect();
        if batches.is_empty() {
            return;
        }
        for index in due {
            self.add_to_batches(index, &mut batches, out);
        }
        for batch in &mut batches {
            self.send_batch(batch, out);
        }
    }

    /// The nodes of this tick's part of the round.
    fn collect_due(&mut self, now: Nanos, due: &mut Vec<NodeIndex>) {
        let nodes = self.nodes.len() as u64;
        let interval_ns = self.config.stats_interval_ms.max(1) * 1_000_000;
        // After a pause, one round at most is made up for.
        let elapsed_ns = now.since(self.stats.last_tick).min(interval_ns);
        if now.since(self.stats.last_tick) > interval_ns {
            self.stats.awake_since = now;
        }
        self.stats.last_tick = now;
        let parts = elapsed_ns
            .saturating_mul(nodes)
            .saturating_add(self.stats.remainder);
        self.stats.remainder = parts % interval_ns;
        let count = usize::try_from(parts / interval_ns).unwrap_or(usize::MAX);
        let count = count.min(self.nodes.len()).min(STATS_NODES_PER_TICK);
        let after = self.stats.after;
        let rest = self
            .table
            .iter()
            .filter(|index| after.is_none_or(|after| *index > after));
        let before = self
            .table
            .iter()
            .filter(|index| after.is_some_and(|after| *index <= after));
        let first_new = due.len();
        due.extend(rest.chain(before).take(count));
        if let Some(last) = due[first_new..].last() {
            self.stats.after = Some(*last);
        }
    }

    /// A frame of this node has come.
    pub(super) fn hear(&mut self, now: Nanos, index: NodeIndex, is_stats: bool) {
        let Some(node) = self.nodes.get_mut(&index) else {
            return;
        };
        node.heard_at = now;
        node.sends_stats |= is_stats;
        if std::mem::replace(&mut node.silent, false) {
            info!(node = node.name, "is heard again");
            self.review_obstacles(now, index);
            self.pass_on_soon(index);
        }
    }

    /// Takes a node out of placement that has missed its statistics, from its WELCOME on.
    fn look_for_silence(&mut self, now: Nanos, index: NodeIndex) {
        let stats_ms = MISSED_STATS * self.config.stats_interval_ms.max(1);
        let awake_since = self.stats.awake_since;
        let Some(node) = self.nodes.get_mut(&index) else {
            return;
        };
        let heard_at = node.heard_at.max(awake_since);
        let limit_ms = if node.sends_stats {
            stats_ms
        } else {
            stats_ms.max(MISSED_STATUSES_MS)
        };
        if node.silent || now.since(heard_at) <= limit_ms * 1_000_000 {
            return;
        }
        node.silent = true;
        node.stats.dirty = true;
        warn!(
            node = node.name,
            "is silent: nothing is placed on it until it is heard again"
        );
        self.review_obstacles(now, index);
    }

    fn add_to_batches<O: Outlet>(&mut self, index: NodeIndex, batches: &mut [Batch], out: &mut O) {
        let Some(node) = self.nodes.get_mut(&index) else {
            return;
        };
        if !std::mem::replace(&mut node.stats.dirty, false) {
            return;
        }
        let usages = match node
            .stats
            .latest
            .take()
            .map(|latest| codec::decode::<Stats>(&latest))
        {
            Some(Ok(stats)) => {
                node.stats.load = stats.load;
                stats.usages
            }
            Some(Err(error)) => {
                debug!(node = node.name, %error, "statistics not understood");
                Vec::new()
            }
            None => Vec::new(),
        };
        for batch in batches {
            let (Some(node), Some(controller)) = (
                self.nodes.get(&index),
                self.controllers[batch.slot].as_ref(),
            ) else {
                continue;
            };
            codec::encode_into(&stats_of(node, controller, &usages), &mut batch.nodes);
            batch.count += 1;
            if batch.count == NODE_PAGE as u64 || batch.nodes.len() >= PAGE_BYTES {
                self.send_batch(batch, out);
            }
        }
    }

    fn send_batch<O: Outlet>(&mut self, batch: &mut Batch, out: &mut O) {
        if batch.count == 0 {
            return;
        }
        // A batch is the generation, the list's length and its elements.
        let mut head = [0; 16];
        head[..8].copy_from_slice(&self.generation.0.to_le_bytes());
        head[8..].copy_from_slice(&batch.count.to_le_bytes());
        self.tell(
            batch.slot,
            Outgoing::new(Operand::Stats, 0, [&head, &batch.nodes]),
            out,
        );
        batch.nodes.clear();
        batch.count = 0;
    }
}

fn stats_of(node: &Node, controller: &Controller, usages: &[InstanceUsage]) -> NodeStats {
    let own = usages
        .iter()
        .filter(|usage| usage.id.owner == controller.owner);
    let (state, reason) = node.shown();
    NodeStats {
        node: node.name.clone(),
        state,
        available: node.account.available().clone(),
        runtimes: node.facts.runtimes.clone(),
        reason,
        load: node.stats.load.clone(),
        usages: own.cloned().collect(),
    }
}
