//! The session to the scheduler, and finding out where attempts are after it broke.
//!
//! When a session breaks, and at the controller's own start, every attempt whose START was sent
//! and not answered is uncertain: it may be anywhere, or nowhere. Each break has a number. An
//! uncertain attempt is found when a node reports it; it is missing when every known node has
//! given a whole inventory that was asked for after its break, or can't have it any more:
//!
//! ```text
//! node that is       keep            stop-after T
//! connected          its inventory   its inventory
//! away               lost_after      lease + grant + T + grace + margin, from when it was last seen
//! fenced, deleted    at once         at once
//! ```
//!
//! For `stop-after` the same time is waited from the break itself, for a node that connected just
//! before and is not known yet; and in a store that was put back from a backup `lost_after`, since it
//! may not know all nodes (`rollback`). A missing attempt is followed by the next one; that is no retry
//! that a user counts.

use super::dispatch::Topic;
use super::event::{Effect, SessionUp};
use super::instance::Phase;
use super::journal::After;
use super::nodes::Pull;
use super::state::{State, ns};
use super::stops::MAX_STOPS;
use crate::api::types::{EndReason, EndRecord, Severity};
use crate::store::{AfterStop, Write};
use pronto_payloads::codec::encode;
use pronto_payloads::control::{Activate, Grant, PullInventory};
use pronto_payloads::ids::{Generation, Term};
use pronto_payloads::instance::{InstanceReport, Inventory};
use pronto_payloads::node::Nodes as NodePage;
use pronto_protocol::frame::Frame;
use pronto_protocol::operand::Operand;
use rustc_hash::FxHashMap;
use std::collections::{BTreeSet, VecDeque};

/// Inventories that are asked for at once: a restart of the scheduler is no flood.
const MAX_PULLS: u32 = 32;
/// An inventory that has not come after so long is asked for again.
const PULL_LIMIT_NS: i64 = 30_000_000_000;
/// One that was refused is asked for again after so long.
const PULL_AGAIN_NS: i64 = 2_000_000_000;
/// GRANT is renewed this often.
const GRANT_EVERY_NS: i64 = 1_000_000_000;
/// After NotActive or Busy, STARTs wait so long.
const HOLD_NS: i64 = 200_000_000;
/// The lease until a scheduler says another: what the launchers' default is.
const DEFAULT_LEASE_MS: u64 = 10_000;
/// A barrier holds others back for so long at most before it lets them pass as long again.
const BARRIER_NS: i64 = 120_000_000_000;

/// The session to the scheduler.
#[derive(Debug)]
pub(crate) struct Link {
    /// WELCOME was read.
    pub(crate) up: bool,
    pub(crate) address: String,
    pub(crate) active: bool,
    pub(crate) since_ns: i64,
    /// When the scheduler said something last, were it the answer to a GRANT.
    pub(crate) heard_ns: i64,
    /// ACTIVATE is confirmed and the list of nodes is complete.
    ready: bool,
    /// How often a session broke, the controller's start included.
    pub(crate) breaks: u64,
    window: u32,
    pub(crate) unanswered: u32,
    /// Of [`MAX_STOPS`].
    pub(crate) stops_left: usize,
    hold_until_ns: i64,
    pub(crate) generation: Generation,
    pub(crate) lease_ms: u64,
    granted_ns: i64,
    /// Nodes named by the pages of this session's NODES.
    listed: BTreeSet<u32>,
    pub(crate) pulls: u32,
    wanted: VecDeque<u32>,
    /// Numbers of the uncertain instances.
    pub(crate) uncertain: BTreeSet<u64>,
    pub(crate) lookups: FxHashMap<u64, (u32, InstanceReport)>,
    pub(crate) next_lookup: u64,
    pub(crate) superseded: bool,
    /// Open EXPLAINs: number, token of the request, and what to add to the answer.
    pub(crate) explains: FxHashMap<u64, super::explain::OpenExplain>,
    pub(crate) next_explain: u64,
}

impl Link {
    pub(crate) fn new(now_ns: i64) -> Self {
        Self {
            up: false,
            address: String::new(),
            active: false,
            since_ns: now_ns,
            heard_ns: now_ns,
            ready: false,
            breaks: 1,
            window: 0,
            unanswered: 0,
            stops_left: MAX_STOPS,
            hold_until_ns: i64::MIN,
            generation: Generation(0),
            lease_ms: DEFAULT_LEASE_MS,
            granted_ns: i64::MIN / 2,
            listed: BTreeSet::new(),
            pulls: 0,
            wanted: VecDeque::new(),
            uncertain: BTreeSet::new(),
            lookups: FxHashMap::default(),
            next_lookup: 1,
            superseded: false,
            explains: FxHashMap::default(),
            next_explain: 1,
        }
    }

    pub(crate) fn may_start(&self) -> bool {
        self.up
            && self.ready
            && !self.superseded
            && self.hold_until_ns == i64::MIN
            && self.unanswered < self.window
    }

    pub(crate) fn answered(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
    }

    /// No STARTs for a moment.
    pub(crate) fn hold(&mut self, now_ns: i64) {
        self.hold_until_ns = now_ns.saturating_add(HOLD_NS);
    }

    /// Whether placements may go out.
    pub(crate) const fn is_ready(&self) -> bool {
        self.up && self.ready
    }
}

impl State {
    pub(crate) fn on_session_up(&mut self, up: SessionUp) {
        if self.link.up {
            self.on_session_down("replaced by a newer session");
        }
        self.link.up = true;
        self.link.ready = false;
        self.link.address = up.address;
        self.link.active = up.active;
        self.link.since_ns = self.now.mono_ns;
        self.link.heard_ns = self.now.mono_ns;
        self.link.window = up.welcome.start_window.max(1);
        self.link.lease_ms = up.welcome.lease_ms.max(self.link.lease_ms);
        self.link.listed.clear();
        let reported = up.welcome.owner_epoch.0;
        if reported > self.meta.epoch || (self.meta.restored && reported >= self.meta.epoch) {
            if self.meta.restored {
                self.meta.epoch = reported.saturating_add(1);
                self.meta.restored = false;
                self.journal.write(Write::Epoch(self.meta.epoch));
                self.record(
                    "epoch_raised",
                    Severity::Warning,
                    format!(
                        "restored from a backup: the epoch is raised to {}, above all that \
                         launchers report",
                        self.meta.epoch
                    ),
                );
                self.journal.then(After::Effect(Effect::DropSession {
                    reason: "the epoch was raised".to_owned(),
                }));
                return;
            }
            self.on_superseded();
        }
        if self.meta.restored && reported > 0 {
            // All that launchers report is below it: from now on a higher epoch is another's.
            self.meta.restored = false;
            self.journal.write(Write::Epoch(self.meta.epoch));
        }
        // A scheduler that is active under the highest term keeps it. One that is not gets a new
        // one, and so does one that was left for another meanwhile: launchers would obey both.
        let term = self.meta.term.max(up.term.0);
        self.meta.term = if up.active && up.term.0 == term {
            term
        } else {
            term.saturating_add(1)
        };
        self.journal.write(Write::Term(self.meta.term));
        self.journal.then(After::Activate);
    }

    pub(crate) fn send_activate(&mut self) {
        if !self.link.up {
            return;
        }
        let expected = self.nodes.iter().filter(|(_, node)| !node.lost).count();
        let body = Activate {
            term: Term(self.meta.term),
            expected_nodes: u32::try_from(expected).unwrap_or(u32::MAX),
        };
        self.send(Frame::request(
            Operand::Activate,
            Topic::Activate.correlation(),
            encode(&body),
        ));
    }

    pub(crate) fn on_session_down(&mut self, reason: &str) {
        if !self.link.up {
            return;
        }
        self.link.up = false;
        self.link.ready = false;
        self.link.active = false;
        self.link.breaks += 1;
        self.link.since_ns = self.now.mono_ns;
        self.link.unanswered = 0;
        self.link.hold_until_ns = i64::MIN;
        self.link.generation = Generation(0);
        self.link.granted_ns = i64::MIN / 2;
        self.link.pulls = 0;
        self.link.wanted.clear();
        self.queue.session_lost();
        self.warn(format!("the session to the scheduler is gone: {reason}"));
        for node in self.nodes.list.iter_mut().flatten() {
            node.pull = Pull::Idle;
        }
        let (breaks, now_ns) = (self.link.breaks, self.now.mono_ns);
        let placing: Vec<u32> = (0_u32..)
            .zip(&self.instances)
            .filter(|(_, entry)| {
                entry
                    .as_ref()
                    .is_some_and(|instance| instance.phase == Phase::Placing)
            })
            .map(|(slot, _)| slot)
            .collect();
        for slot in placing {
            self.set_phase(slot, Phase::Uncertain);
            let instance = self.instance_mut(slot);
            let seq = instance.seq;
            let more = instance.more();
            more.uncertain_since_break = breaks;
            more.uncertain_since_ns = now_ns;
            // Its successor may run: nodes are asked again what they have.
            more.given_up = None;
            self.link.uncertain.insert(seq);
        }
        self.fail_explains();
    }

    pub(crate) fn on_node_page(&mut self, page: NodePage, last: bool) {
        for said in page.nodes {
            let name = said.node.clone();
            self.on_node_connected(said);
            if let Some(index) = self.nodes.find(&name) {
                self.link.listed.insert(index);
            }
        }
        if !last {
            return;
        }
        let gone: Vec<u32> = self
            .nodes
            .iter()
            .filter(|(index, node)| node.connected && !self.link.listed.contains(index))
            .map(|(index, _)| index)
            .collect();
        for index in gone {
            self.set_away(index, "not connected to this scheduler");
        }
        self.link.ready = true;
        for index in 0..u32::try_from(self.nodes.list.len()).unwrap_or(u32::MAX) {
            self.consider_pull(index, true);
        }
        self.sweep_uncertain();
    }

    /// Asks for a node's inventory, if there is a reason to.
    pub(crate) fn consider_pull(&mut self, index: u32, agrees: bool) {
        let needed = !self.link.uncertain.is_empty();
        let (breaks, up) = (self.link.breaks, self.link.up);
        let starting = self.nodes.node(index).is_some_and(|node| {
            node.attempts
                .iter()
                .any(|&slot| self.instance(slot).phase == Phase::Starting)
        });
        let Some(node) = self.nodes.node_mut(index) else {
            return;
        };
        if !node.connected || !up || node.pull != Pull::Idle {
            return;
        }
        let cleared = node.cleared_break >= breaks;
        // What was on its way when a session broke may have arrived unheard.
        if agrees && (cleared || !(needed || starting)) {
            return;
        }
        node.pull = Pull::Wanted;
        self.link.wanted.push_back(index);
        self.pull_next();
    }

    pub(crate) fn pull_next(&mut self) {
        while self.link.up && self.link.pulls < MAX_PULLS {
            let Some(index) = self.link.wanted.pop_front() else {
                return;
            };
            let Some(node) = self.nodes.node_mut(index) else {
                continue;
            };
            if node.pull != Pull::Wanted || !node.connected {
                continue;
            }
            node.pull = Pull::Asked {
                pages: 0,
                seen: BTreeSet::new(),
            };
            node.pull_ns = self.now.mono_ns;
            let name = std::sync::Arc::clone(&node.row.name);
            self.link.pulls += 1;
            let body = encode(&PullInventory {
                owner: self.meta.owner,
            });
            let topic = Topic::Inventory(u64::from(index));
            self.send_to_node(Operand::Inventory, topic, &name, &body);
        }
    }

    pub(crate) fn end_pull(&mut self, index: u32) {
        let now_ns = self.now.mono_ns;
        if let Some(node) = self.nodes.node_mut(index)
            && matches!(node.pull, Pull::Asked { .. })
        {
            node.pull = Pull::Idle;
            node.pull_ns = now_ns;
            self.link.pulls -= 1;
        }
        self.pull_next();
    }

    /// Asks again where an inventory was refused or has not come.
    pub(crate) fn sweep_pulls(&mut self) {
        if !self.link.is_ready() {
            return;
        }
        let (breaks, now_ns) = (self.link.breaks, self.now.mono_ns);
        let uncertain = !self.link.uncertain.is_empty();
        let due: Vec<u32> = self
            .nodes
            .iter()
            .filter(|(_, node)| match node.pull {
                Pull::Asked { .. } => now_ns - node.pull_ns >= PULL_LIMIT_NS,
                Pull::Idle => {
                    uncertain
                        && node.connected
                        && node.cleared_break < breaks
                        && now_ns - node.pull_ns >= PULL_AGAIN_NS
                }
                Pull::Wanted => false,
            })
            .map(|(index, _)| index)
            .collect();
        for index in due {
            self.end_pull(index);
            self.consider_pull(index, false);
        }
    }

    pub(crate) fn on_inventory(&mut self, name: &str, page: Inventory, last: bool) {
        if page.owner != self.meta.owner {
            return;
        }
        let Some(index) = self.nodes.find(name) else {
            return;
        };
        // By what lives: in a store that was restored, an instance may have the number of another one
        // that the store does not know any more.
        let numbers: Vec<(u64, u32)> = page
            .entries
            .iter()
            .filter_map(|entry| {
                let slot = self.living(entry.id.instance)?;
                Some((self.instance(slot).seq, entry.id.attempt.0))
            })
            .collect();
        let Some(node) = self.nodes.node_mut(index) else {
            return;
        };
        let Pull::Asked { pages, seen } = &mut node.pull else {
            return;
        };
        if *pages != page.page {
            // Pages of two answers mixed: start over.
            self.end_pull(index);
            self.consider_pull(index, false);
            return;
        }
        *pages += 1;
        seen.extend(numbers);
        let (epoch, applied) = (page.session_epoch.0, page.applied_seq.0);
        for report in page.entries {
            self.on_report(index, report);
        }
        if last {
            self.on_whole_inventory(index, epoch, applied);
        }
    }

    fn on_whole_inventory(&mut self, index: u32, epoch: u64, applied: u64) {
        let breaks = self.link.breaks;
        let Some(node) = self.nodes.node_mut(index) else {
            return;
        };
        let Pull::Asked { seen, .. } = std::mem::take(&mut node.pull) else {
            return;
        };
        node.cleared_break = breaks;
        self.link.pulls -= 1;
        let mut missing: Vec<u32> = Vec::new();
        if let Some(node) = self.nodes.node(index) {
            for &slot in &node.attempts {
                let instance = self.instance(slot);
                let older = (instance.session_epoch, instance.start_seq) <= (epoch, applied);
                let there = matches!(instance.phase, Phase::Starting | Phase::Running);
                // An older attempt that the node still keeps says nothing of this one.
                if there && older && !seen.contains(&(instance.seq, instance.attempt)) {
                    missing.push(slot);
                }
            }
        }
        missing.sort_unstable();
        for slot in missing {
            self.on_missing(slot);
        }
        self.pull_next();
        self.sweep_uncertain();
    }

    /// Resolves uncertain attempts that can't be anywhere any more.
    pub(crate) fn sweep_uncertain(&mut self) {
        if self.link.uncertain.is_empty() || !self.link.is_ready() {
            return;
        }
        let breaks = self.link.breaks;
        let mut all_cleared = true;
        let mut keep_cleared = true;
        // The latest time at which an uncleared node was heard of; absent if one is connected. Before
        // this session there was nobody to hear of it: what it runs may have ended, and it is on its
        // way to say so.
        let mut heard_ns = Some(i64::MIN);
        for (_, node) in self.nodes.iter() {
            if node.cleared_break >= breaks {
                continue;
            }
            all_cleared = false;
            keep_cleared &= node.lost;
            heard_ns = match heard_ns {
                Some(heard) if node.lost => Some(heard.max(node.disconnected_ns)),
                Some(heard) if !node.connected => {
                    Some(heard.max(node.disconnected_ns).max(self.link.since_ns))
                }
                _ => None,
            };
        }
        if !keep_cleared && heard_ns.is_none() {
            return;
        }
        // A store that was put back may not know every node either.
        let lost_after_ns = ns(self.settings.lost_after_ms);
        let all_could_come = self.now.mono_ns - self.link.since_ns >= lost_after_ns;
        let numbers: Vec<u64> = self.link.uncertain.iter().copied().collect();
        for seq in numbers {
            let Some(slot) = self.slot(seq) else {
                self.link.uncertain.remove(&seq);
                continue;
            };
            let since_ns = self
                .instance(slot)
                .more
                .as_ref()
                .map_or(i64::MIN, |more| more.uncertain_since_ns);
            let resolved = match heard_ns {
                _ if self.template(slot).stop_after_ms().is_none() => all_cleared || keep_cleared,
                None => false,
                Some(heard) => self
                    .fence_at(slot, heard.max(since_ns))
                    .is_none_or(|at| at <= self.now.mono_ns),
            };
            if resolved && (all_could_come || !self.is_outdated(slot)) {
                self.link.uncertain.remove(&seq);
                self.on_nowhere(slot);
            }
        }
    }

    /// An uncertain attempt that is nowhere.
    fn on_nowhere(&mut self, slot: u32) {
        if self.take_held(slot) {
            return;
        }
        match self.instance(slot).after_stop() {
            Some(AfterStop::Keep | AfterStop::Delete) => self.finish_stopped(slot),
            Some(AfterStop::Restart | AfterStop::Move) => self.restart_now(slot, None),
            // It came to a node in the time of the process before this one, and is not there any more.
            None if self.instance(slot).settled_attempt() == self.instance(slot).attempt => {
                let record = EndRecord {
                    cause: EndReason::NodeLost,
                    code: None,
                    signal: None,
                    message: "its node was lost, or does not have it any more".to_owned(),
                };
                self.reschedule_or_finish(slot, record, None);
            }
            None => self.raise(slot, 0, None),
        }
    }

    pub(crate) fn send_grant(&mut self) {
        self.link.granted_ns = self.now.mono_ns;
        let body = encode(&Grant {
            grant_ms: self.settings.grant_ms,
        });
        self.send(Frame::new(Operand::Grant, body));
    }

    pub(crate) fn sweep_link(&mut self) {
        if !self.link.up {
            return;
        }
        if self.link.active && self.now.mono_ns - self.link.granted_ns >= GRANT_EVERY_NS {
            self.send_grant();
        }
        if self.link.hold_until_ns != i64::MIN && self.now.mono_ns >= self.link.hold_until_ns {
            self.link.hold_until_ns = i64::MIN;
        }
    }

    /// Raises a barrier for a demand that has waited long, and takes an old one down.
    pub(crate) fn sweep_barrier(&mut self) {
        let now_ns = self.now.mono_ns;
        if let Some(barrier) = &self.queue.barrier {
            let over = now_ns >= barrier.until_ns || self.slot(barrier.seq).is_none();
            if over {
                self.queue.barrier = None;
            }
            return;
        }
        let Some((_, seq, class)) = self.queue.oldest_blocked() else {
            return;
        };
        let Some(slot) = self.slot(seq) else { return };
        let waited_ns = now_ns - self.instance(slot).waiting_since_ns;
        let after_ns = ns(self.settings.overtake_after_ms);
        // Half of the time after that it lets others pass: its room may never come.
        let phase = (waited_ns - after_ns).rem_euclid(2 * BARRIER_NS);
        if waited_ns >= after_ns && phase < BARRIER_NS {
            let priority = self.template(slot).priority();
            self.queue.barrier = Some(super::queue::Barrier {
                priority,
                seq,
                class,
                until_ns: now_ns + (BARRIER_NS - phase),
            });
        }
    }
}
