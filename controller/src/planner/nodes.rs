//! The node table: who is connected, what is believed to be there, losses, drains.
//!
//! A node is known from the first time that it connected until an administrator deletes it; the
//! known ones are durable, since an unanswered attempt may be on any of them. A node that is away
//! longer than `lost_after` is lost, and its work is rescheduled as each instance's policy says;
//! but when more than a fifth of the nodes are away together, it is the network and not the nodes:
//! rescheduling is suspended and an alarm raised, until they are back or an administrator resumes.

use super::instance::{NOWHERE, Phase};
use super::state::{State, ns};
use crate::api::types::{EndReason, EndRecord, Severity};
use crate::store::{AfterStop, EventRow, NodeRow, Write};
use pronto_payloads::control::Stop;
use pronto_payloads::demand::Capacity;
use pronto_payloads::ids::{BootId, InstanceId, NodeUuid};
use pronto_payloads::instance::{Phase as NodePhase, digest_item};
use pronto_payloads::node::{
    NodeConnected, NodeDisconnected, NodeFacts, NodeLoad, NodeState, StatsBatch,
};
use rustc_hash::FxHashSet;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Fewer nodes than this are never called a mass loss: small clusters lose one of three.
const MASS_LOSS_MIN: usize = 3;
/// More than this part of the nodes away together is the network's fault.
const MASS_LOSS_PART: usize = 5;
/// Stale attempts to stop that are remembered for one node; they are reported again anyhow.
const MAX_STALE: usize = 1024;
/// Instances that the store does not know and one node reports: as many as an honest launcher keeps. One
/// that makes them up fills neither memory nor, with an alarm for each, the disk.
pub(crate) const MAX_QUARANTINED: usize = 16 * 1024;

/// How far the inventory of a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pull {
    #[default]
    Idle,
    Wanted,
    /// Asked for; pages so far, and the attempts in them: number of the instance, and of the attempt.
    Asked {
        pages: u32,
        seen: BTreeSet<(u64, u32)>,
    },
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) row: NodeRow,
    pub(crate) connected: bool,
    pub(crate) facts: Option<NodeFacts>,
    pub(crate) state: NodeState,
    pub(crate) reason: String,
    pub(crate) session_epoch: u64,
    /// Since when it has been away.
    pub(crate) disconnected_ns: i64,
    pub(crate) lost: bool,
    /// The latest break of the scheduler's session since which it gave a whole inventory.
    pub(crate) cleared_break: u64,
    pub(crate) pull: Pull,
    /// When the pull was asked for, or ended.
    pub(crate) pull_ns: i64,
    pub(crate) attempts: FxHashSet<u32>,
    pub(crate) available: Option<Capacity>,
    pub(crate) load: Option<NodeLoad>,
    pub(crate) quarantined: BTreeSet<InstanceId>,
    stale: BTreeMap<InstanceId, (Stop, i64)>,
    pub(crate) mode_sent_ns: Option<i64>,
}

/// All known nodes. Indices are never used twice.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    pub(crate) list: Vec<Option<Node>>,
    index: HashMap<Arc<str>, u32>,
    pub(crate) suspended: bool,
    /// An administrator's word that the nodes that are away are really lost.
    resumed: bool,
}

impl Nodes {
    pub(crate) fn find(&self, name: &str) -> Option<u32> {
        self.index.get(name).copied()
    }

    pub(crate) fn node(&self, index: u32) -> Option<&Node> {
        self.list.get(index as usize)?.as_ref()
    }

    pub(crate) fn node_mut(&mut self, index: u32) -> Option<&mut Node> {
        self.list.get_mut(index as usize)?.as_mut()
    }

    pub(crate) fn name_of(&self, index: u32) -> Option<Arc<str>> {
        self.node(index).map(|node| Arc::clone(&node.row.name))
    }

    pub(crate) fn is_connected(&self, index: u32) -> bool {
        self.node(index).is_some_and(|node| node.connected)
    }

    pub(crate) fn session_epoch(&self, index: u32) -> u64 {
        self.node(index).map_or(0, |node| node.session_epoch)
    }

    pub(crate) fn put_on(&mut self, index: u32, slot: u32) {
        if let Some(node) = self.node_mut(index) {
            node.attempts.insert(slot);
        }
    }

    pub(crate) fn take_off(&mut self, index: u32, slot: u32) {
        if let Some(node) = self.node_mut(index) {
            node.attempts.remove(&slot);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Node)> {
        (0_u32..)
            .zip(&self.list)
            .filter_map(|(index, node)| Some((index, node.as_ref()?)))
    }

    /// The connected ones whose inventory was not taken since that break.
    pub(crate) fn where_it_may_be(&self, since_break: u64) -> Vec<Arc<str>> {
        self.iter()
            .filter(|(_, node)| node.connected && node.cleared_break < since_break)
            .map(|(_, node)| Arc::clone(&node.row.name))
            .collect()
    }

    pub(crate) fn is_quarantined(&self, index: u32, id: InstanceId) -> bool {
        self.node(index)
            .is_some_and(|node| node.quarantined.contains(&id))
    }

    pub(crate) fn quarantine(&mut self, index: u32, id: InstanceId) -> bool {
        self.node_mut(index).is_some_and(|node| {
            node.quarantined.len() < MAX_QUARANTINED && node.quarantined.insert(id)
        })
    }

    pub(crate) fn remember_stale(&mut self, index: u32, stop: Stop, now_ns: i64) {
        if let Some(node) = self.node_mut(index)
            && node.stale.len() < MAX_STALE
        {
            node.stale.insert(stop.instance, (stop, now_ns));
        }
    }

    /// A node has confirmed a stop.
    pub(crate) fn forget_stale(&mut self, index: u32, id: InstanceId) {
        if let Some(node) = self.node_mut(index) {
            node.stale.remove(&id);
        }
    }

    /// Stale attempts on a node that match.
    pub(crate) fn stale_with(
        &self,
        index: u32,
        matches: impl Fn(InstanceId) -> bool,
    ) -> Vec<InstanceId> {
        self.node(index).map_or_else(Vec::new, |node| {
            node.stale
                .keys()
                .copied()
                .filter(|id| matches(*id))
                .collect()
        })
    }

    /// Stops of stale attempts that are to be sent again.
    pub(crate) fn stale_due(&mut self, now_ns: i64, repeat_ns: i64) -> Vec<(Arc<str>, Stop)> {
        let mut due = Vec::new();
        for node in self.list.iter_mut().flatten().filter(|node| node.connected) {
            for (stop, sent) in node.stale.values_mut() {
                if now_ns - *sent >= repeat_ns {
                    *sent = now_ns;
                    due.push((Arc::clone(&node.row.name), *stop));
                }
            }
        }
        due
    }

    fn insert(&mut self, node: Node) -> u32 {
        let index = u32::try_from(self.list.len()).unwrap_or(NOWHERE);
        self.index.insert(Arc::clone(&node.row.name), index);
        self.list.push(Some(node));
        index
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<Node> {
        let node = self.list.get_mut(index as usize)?.take()?;
        self.index.remove(&node.row.name);
        Some(node)
    }
}

impl Node {
    fn new(row: NodeRow, now_ns: i64) -> Self {
        let lost = row.lost;
        Self {
            row,
            connected: false,
            facts: None,
            state: NodeState::Offline,
            reason: String::new(),
            session_epoch: 0,
            disconnected_ns: now_ns,
            lost,
            cleared_break: 0,
            pull: Pull::Idle,
            pull_ns: now_ns,
            attempts: FxHashSet::default(),
            available: None,
            load: None,
            quarantined: BTreeSet::new(),
            stale: BTreeMap::new(),
            mode_sent_ns: None,
        }
    }
}

impl State {
    pub(crate) fn restore_node(&mut self, row: NodeRow) {
        self.nodes.insert(Node::new(row, self.now.mono_ns));
    }

    /// A node that was declared lost, or is not any more; durable, so that nodes that are long
    /// gone do not look like a mass loss after each start.
    fn set_lost(&mut self, index: u32, lost: bool) {
        if let Some(node) = self.nodes.node_mut(index)
            && node.lost != lost
        {
            node.lost = lost;
            node.row.lost = lost;
            let row = node.row.clone();
            self.journal.write(Write::Node(row));
        }
    }

    /// The index of a node; a name that has not been seen yet becomes a known node.
    pub(crate) fn node_named(&mut self, name: &str) -> u32 {
        if let Some(index) = self.nodes.find(name) {
            return index;
        }
        let row = NodeRow {
            name: name.into(),
            uuid: NodeUuid::default(),
            boot_id: BootId::default(),
            wish: None,
            drain_until_unix_ms: None,
            lost: false,
        };
        self.journal.write(Write::Node(row.clone()));
        self.nodes.insert(Node::new(row, self.now.mono_ns))
    }

    pub(crate) fn on_node_connected(&mut self, said: NodeConnected) {
        let index = self.node_named(&said.node);
        let believed = self.believed_digest(index);
        let Some(node) = self.nodes.node_mut(index) else {
            return;
        };
        let rebooted = node.row.boot_id != said.boot_id || node.row.uuid != said.node_uuid;
        let first = node.row.boot_id == BootId::default();
        let was_away = !node.connected;
        let new_session = node.session_epoch != said.session_epoch.0;
        node.connected = true;
        node.state = said.state;
        node.reason.clear();
        node.session_epoch = said.session_epoch.0;
        node.facts = Some(said.facts);
        node.mode_sent_ns = None;
        if rebooted {
            node.row.boot_id = said.boot_id;
            node.row.uuid = said.node_uuid;
            let row = node.row.clone();
            self.journal.write(Write::Node(row));
        }
        self.set_lost(index, false);
        if new_session {
            // What was asked of the session before is not answered any more.
            self.end_pull(index);
        }
        if was_away {
            let text = if first {
                "connected for the first time"
            } else if rebooted {
                "connected after a reboot, or with a new data directory"
            } else {
                "connected"
            };
            self.record_node(index, "node_connected", Severity::Info, text.to_owned());
        }
        let agrees = believed == (said.attempts, said.digest);
        self.consider_pull(index, agrees && (first || !rebooted));
        self.assert_mode(index);
        self.leave_suspension();
    }

    /// What the launcher's digest would be if it had just what is believed to be there.
    fn believed_digest(&self, index: u32) -> (u32, u64) {
        let Some(node) = self.nodes.node(index) else {
            return (0, 0);
        };
        let mut count = 0;
        let mut digest = 0_u64;
        for &slot in &node.attempts {
            let phase = match self.instance(slot).phase {
                Phase::Running => NodePhase::Running,
                // Its end is there, and waits for its acknowledgement.
                Phase::Ending => NodePhase::Ended,
                _ => NodePhase::Received,
            };
            count += 1;
            digest = digest.wrapping_add(digest_item(&self.attempt_id(slot), phase));
        }
        (count, digest)
    }

    pub(crate) fn on_node_disconnected(&mut self, said: &NodeDisconnected) {
        let Some(index) = self.nodes.find(&said.node) else {
            return;
        };
        let Some(node) = self.nodes.node_mut(index) else {
            return;
        };
        if !node.connected || node.session_epoch != said.session_epoch.0 {
            return;
        }
        self.set_away(index, &said.reason);
        let severity = if said.orderly {
            Severity::Info
        } else {
            Severity::Warning
        };
        self.record_node(index, "node_disconnected", severity, said.reason.clone());
    }

    pub(crate) fn set_away(&mut self, index: u32, reason: &str) {
        let now_ns = self.now.mono_ns;
        let was_asked = self.nodes.node_mut(index).is_some_and(|node| {
            node.connected = false;
            node.state = NodeState::Offline;
            reason.clone_into(&mut node.reason);
            node.disconnected_ns = now_ns;
            node.available = None;
            let asked = matches!(node.pull, Pull::Asked { .. });
            node.pull = Pull::Idle;
            asked
        });
        if was_asked {
            self.link.pulls -= 1;
        }
        self.pull_next();
    }

    pub(crate) fn on_stats(&mut self, batch: StatsBatch) {
        self.link.generation = self.link.generation.max(batch.generation);
        self.queue.capacity(batch.generation);
        for stats in batch.nodes {
            let Some(index) = self.nodes.find(&stats.node) else {
                continue;
            };
            if let Some(node) = self.nodes.node_mut(index)
                && node.connected
            {
                node.state = stats.state;
                node.reason = stats.reason;
                node.available = Some(stats.available);
                node.load = Some(stats.load);
                if let Some(facts) = &mut node.facts {
                    facts.runtimes = stats.runtimes;
                }
            }
            for usage in stats.usages {
                let Some(slot) = self.living(usage.id.instance) else {
                    continue;
                };
                let instance = self.instance_mut(slot);
                if instance.node == index && instance.attempt == usage.id.attempt.0 {
                    instance.more().usage = Some(crate::spec::usage(&usage.usage));
                }
            }
            self.assert_mode(index);
        }
    }

    /// Whether so many nodes are away together that it is not their own doing.
    fn mass_loss(&self) -> bool {
        let (mut known, mut away) = (0, 0);
        for (_, node) in self.nodes.iter() {
            // One that is lost already went some time before; those that the guard holds back
            // vanished together, however long ago.
            if node.connected {
                known += 1;
            } else if !node.lost {
                known += 1;
                away += 1;
            }
        }
        away >= MASS_LOSS_MIN && away * MASS_LOSS_PART > known
    }

    pub(crate) fn sweep_nodes(&mut self) {
        if !self.link.up {
            // Without a scheduler nobody knows who is away.
            return;
        }
        let lost_after_ns = ns(self.settings.lost_after_ms);
        // A scheduler that is not heard may have had the node back for long: each GRANT is answered.
        let heard_ns = self.link.heard_ns;
        let overdue: Vec<u32> = self
            .nodes
            .iter()
            .filter(|(_, node)| {
                let since = node.disconnected_ns.max(self.link.since_ns);
                !node.connected && !node.lost && heard_ns - since >= lost_after_ns
            })
            .map(|(index, _)| index)
            .collect();
        if !overdue.is_empty() && !self.nodes.resumed && self.mass_loss() {
            if !self.nodes.suspended {
                self.nodes.suspended = true;
                self.record(
                    "rescheduling_suspended",
                    Severity::Alarm,
                    format!(
                        "{} nodes are away together, more than a fifth: nothing is rescheduled \
                         until they are back or an administrator resumes it",
                        overdue.len()
                    ),
                );
            }
        } else {
            for index in overdue {
                self.lose(index);
            }
        }
        self.sweep_drains();
    }

    fn leave_suspension(&mut self) {
        if self.nodes.suspended && !self.mass_loss() {
            self.resume("enough nodes are back");
        }
        if self.nodes.resumed && self.nodes.iter().all(|(_, node)| node.connected) {
            self.nodes.resumed = false;
        }
    }

    fn resume(&mut self, why: &str) {
        self.nodes.suspended = false;
        self.record("rescheduling_resumed", Severity::Info, why.to_owned());
    }

    /// An administrator says that what is away is lost.
    pub(crate) fn resume_by_hand(&mut self) {
        self.nodes.resumed = true;
        if self.nodes.suspended {
            self.resume("an administrator resumed it");
        }
    }

    fn lose(&mut self, index: u32) {
        self.set_lost(index, true);
        let Some(node) = self.nodes.node(index) else {
            return;
        };
        let slots = sorted(&node.attempts);
        self.record_node(
            index,
            "node_lost",
            Severity::Warning,
            format!("away for too long; {} instances were on it", slots.len()),
        );
        for slot in slots {
            self.on_node_lost(slot);
        }
    }

    fn lost_record(&self, index: u32, text: &str) -> EndRecord {
        let name = self.nodes.name_of(index).unwrap_or_default();
        EndRecord {
            cause: EndReason::NodeLost,
            code: None,
            signal: None,
            message: format!("node {name} {text}"),
        }
    }

    /// An instance's node is lost: `keep` may have a successor now, `stop-after` when its node
    /// has certainly ended it.
    fn on_node_lost(&mut self, slot: u32) {
        if !matches!(self.instance(slot).phase, Phase::Starting | Phase::Running) {
            return;
        }
        let index = self.instance(slot).node;
        let away_ns = self
            .nodes
            .node(index)
            .map_or(self.now.mono_ns, |node| node.disconnected_ns);
        if let Some(at) = self.fence_at(slot, away_ns)
            && at > self.now.mono_ns
        {
            let seq = self.instance(slot).seq;
            self.arm(at, seq);
            return;
        }
        self.give_up_with_node(slot);
        self.give_up_on_node(slot, "was lost");
    }

    pub(crate) fn give_up_on_node(&mut self, slot: u32, text: &str) {
        let record = self.lost_record(self.instance(slot).node, text);
        match self.instance(slot).after_stop() {
            Some(AfterStop::Keep | AfterStop::Delete) => {
                let state = crate::api::types::InstanceState::Stopped;
                self.finish_with(slot, state, record, None);
            }
            Some(AfterStop::Restart | AfterStop::Move) => self.restart_now(slot, None),
            None => self.reschedule_or_finish(slot, record, None),
        }
    }

    /// When a `stop-after` attempt has certainly ended on a node that was last heard of at
    /// `away_ns`; absent for `keep`.
    pub(crate) fn fence_at(&self, slot: u32, away_ns: i64) -> Option<i64> {
        let template = self.template(slot);
        let stop_after_ms = template.stop_after_ms()?;
        let grace_ms = template.spec.stop_grace_ms;
        let wait_ms = self
            .link
            .lease_ms
            .saturating_add(self.settings.grant_ms)
            .saturating_add(stop_after_ms)
            .saturating_add(grace_ms)
            .saturating_add(self.settings.fence_margin_ms);
        Some(away_ns.saturating_add(ns(wait_ms)))
    }

    /// A timer of a placed instance: its lost node's fence may be there.
    pub(crate) fn on_fence_timer(&mut self, slot: u32) {
        let index = self.instance(slot).node;
        if self.nodes.node(index).is_some_and(|node| node.lost) {
            self.on_node_lost(slot);
        }
    }

    /// An attempt that was placed is not there: the node does not know it.
    pub(crate) fn on_missing(&mut self, slot: u32) {
        self.give_up_on_node(slot, "does not have it");
    }

    pub(crate) fn record_node(
        &mut self,
        index: u32,
        kind: &'static str,
        severity: Severity,
        message: String,
    ) {
        let node = self.nodes.name_of(index);
        self.record_row(EventRow {
            node,
            ..self.own_row(kind, severity, message)
        });
    }
}

/// In an order that does not depend on the set's.
pub(crate) fn sorted(slots: &FxHashSet<u32>) -> Vec<u32> {
    let mut slots: Vec<u32> = slots.iter().copied().collect();
    slots.sort_unstable();
    slots
}
