//! The node table: every connected node, what is free on it, and a fit for a demand.
//!
//! It answers one question fast: which node, in the table's order, takes this demand? The order is
//! fixed when a node connects; searches start at its head, so that work packs, and prefer not to
//! use the most recently used node ([`Spread`]), so that a burst does not pile up. Of the first few
//! nodes that fit, [`Fit::Few`] takes the one that is left least fragmented.
//!
//! It holds no sessions, sequence numbers, reservations or clocks: its owner says what is available
//! on a node (already net of reservations), which obstacles a node has and when its last START has
//! been counted. Placing allocates nothing, but for a query's constraints.
//!
//! Invariants: a placement never exceeds what is available; the trees are exactly the summaries of
//! the nodes (`sanity_check`, in tests); a [`NodeIndex`] of a node that is gone names no other.

mod block;
mod explain;
mod gpu;
mod inner;
mod labels;
mod landmarks;
mod node;
#[cfg(test)]
mod oracle;
mod query;
mod search;
mod shapes;
mod summary;
mod tree;

pub use explain::Explained;
pub use gpu::GpuShares;
pub use node::{Admission, NodeSpec, Obstacle, Placement, subtract};
pub use query::Query;

use gpu::Devices;
use labels::Labels;
use landmarks::Landmarks;
use node::{Node, Slot, resources_hold};
use pronto_payloads::demand::{Capacity, Demand, Resource, Runtime};
use query::{Quantities, fixed_features, runtime_bit};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use shapes::Shapes;
use std::collections::BTreeSet;
use std::sync::Arc;
use summary::Summary;
use tree::{Effort, Tree};

/// Which of the nodes that fit is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// The first.
    #[default]
    First,
    /// Of the first so many, the one that is left least fragmented (at most [`MAX_CHOICES`]).
    Few { choices: u8 },
}

/// The most nodes that [`Fit::Few`] compares: a fit is a bounded look, not a scoring of the cluster.
pub const MAX_CHOICES: u8 = 16;

/// Nodes that [`Fit::Few`] compares unless told otherwise. On the openb trace eight pack as well as
/// FGD over all nodes, and twice as many pack no better by more than a tenth of a percent.
pub const DEFAULT_CHOICES: u8 = 8;

/// How the most recently used node is avoided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// A node counts as recently used until a READY has counted its last START. Recent nodes are
    /// used when no other fits, in turn from the last one used.
    #[default]
    Settle,
    /// The very last node is used only when no other fits.
    Skip,
    /// Each search begins after the last node used, as ciao's did.
    Rotate,
}

/// How a table chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableConfig {
    pub fit: Fit,
    pub spread: Spread,
}

/// A node of the table. It stays valid while the node is connected, and names nothing afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIndex {
    slot: u32,
    generation: u32,
}

impl NodeIndex {
    /// Where the node stands in the table's order: below the number of nodes that were ever
    /// connected at once.
    #[must_use]
    pub fn position(self) -> usize {
        self.slot as usize
    }
}

/// What a node wastes by a version of [`Shapes`]; version 0 = not known.
#[derive(Clone, Copy, Debug, Default)]
struct Waste {
    version: u32,
    millis: f32,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct NodeTable {
    config: TableConfig,
    slots: Vec<Slot>,
    /// By slot as well; none = the slot is vacant.
    nodes: Vec<Option<Node>>,
    /// Slots of gone nodes, taken lowest first so that the table stays dense at its head.
    vacant: BTreeSet<u32>,
    by_name: FxHashMap<Arc<str>, u32>,
    labels: Labels,
    landmarks: Landmarks,
    /// Kept for [`Fit::Few`] alone.
    shapes: Shapes,
    /// By slot.
    wastes: Vec<Waste>,
    /// Nodes that take work; its settled view is kept for [`Spread::Settle`] alone.
    open: Tree,
    /// What nodes could give if nothing ran, obstacles aside.
    allocatable: Tree,
    /// Of the last search.
    effort: Effort,
    last_used: Option<u32>,
    /// Nodes that are recently used.
    recent: usize,
}

impl NodeTable {
    #[must_use]
    pub fn new(config: TableConfig) -> Self {
        Self {
            config,
            slots: Vec::new(),
            nodes: Vec::new(),
            vacant: BTreeSet::new(),
            by_name: FxHashMap::default(),
            labels: Labels::default(),
            landmarks: Landmarks::default(),
            shapes: Shapes::default(),
            wastes: Vec::new(),
            open: Tree::new(config.spread == Spread::Settle),
            allocatable: Tree::new(false),
            effort: Effort::default(),
            last_used: None,
            recent: 0,
        }
    }

    #[must_use]
    pub fn config(&self) -> TableConfig {
        self.config
    }

    /// Connected nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Adds a node. It takes no work until [`Self::set_available`] has said what is free. A node of
    /// the same name is removed first: the owner ends an old session before a new one begins.
    pub fn insert(&mut self, spec: NodeSpec) -> NodeIndex {
        if let Some(old) = self.find(&spec.name) {
            self.remove(old);
        }
        let slot = self.vacant.pop_first().unwrap_or_else(|| self.push_slot());
        let name: Arc<str> = spec.name.into();
        let mut ids = Vec::with_capacity(spec.labels.len());
        let mut promoted = Vec::new();
        for label in &spec.labels {
            let (id, others) = self.labels.add(&label.key, &label.value, slot);
            ids.push(id);
            promoted.extend(others);
        }
        ids.sort_unstable();
        debug_assert!(
            ids.windows(2).all(|pair| pair[0] < pair[1]),
            "a node has a label once: HELLO is checked"
        );
        self.by_name.insert(Arc::clone(&name), slot);
        self.nodes[slot as usize] = Some(Node {
            name,
            allocatable: spec.allocatable,
            labels: ids.into(),
            resources: Vec::new(),
        });
        let hot = &mut self.slots[slot as usize];
        *hot = Slot {
            generation: hot.generation,
            runtimes: runtime_bits(&spec.runtimes),
            schema_min: spec.schema_min,
            schema_max: spec.schema_max,
            ..Slot::default()
        };
        // A label that has just become common has a bit now, on all nodes that have it.
        for slot in promoted.into_iter().chain([slot]) {
            self.describe(slot);
        }
        self.index_of(slot)
    }

    fn push_slot(&mut self) -> u32 {
        let slot = u32::try_from(self.nodes.len()).expect("fewer than 2^32 nodes connect");
        self.slots.push(Slot::default());
        self.wastes.push(Waste::default());
        self.nodes.push(None);
        self.open.push();
        self.allocatable.push();
        slot
    }

    /// Removes a node; its slot goes to a later one.
    pub fn remove(&mut self, index: NodeIndex) {
        let slot = index.slot as usize;
        if self.slot(index).is_none() {
            return;
        }
        let Some(node) = self.nodes[slot].take() else {
            return;
        };
        let hot = &mut self.slots[slot];
        hot.generation = hot.generation.wrapping_add(1);
        self.recent -= usize::from(std::mem::replace(&mut hot.recent, false));
        self.by_name.remove(&node.name);
        for &label in &node.labels {
            self.labels.remove(label, index.slot);
        }
        self.vacant.insert(index.slot);
        self.open.set(slot, Summary::ABSENT, true);
        self.allocatable.set_at_once(slot, Summary::ABSENT);
    }

    /// The node of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<NodeIndex> {
        let slot = *self.by_name.get(name)?;
        Some(self.index_of(slot))
    }

    fn index_of(&self, slot: u32) -> NodeIndex {
        NodeIndex {
            slot,
            generation: self.slots[slot as usize].generation,
        }
    }

    /// The slot of a node that is still there. Removing a node raises the generation, so no index
    /// can name a vacant slot.
    fn slot(&self, index: NodeIndex) -> Option<&Slot> {
        let slot = self.slots.get(index.slot as usize)?;
        (slot.generation == index.generation).then_some(slot)
    }

    fn slot_mut(&mut self, index: NodeIndex) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(index.slot as usize)?;
        (slot.generation == index.generation).then_some(slot)
    }

    fn node(&self, index: NodeIndex) -> Option<&Node> {
        self.slot(index)?;
        self.nodes[index.slot as usize].as_ref()
    }

    /// A node's name.
    #[must_use]
    pub fn name(&self, index: NodeIndex) -> Option<&Arc<str>> {
        self.node(index).map(|node| &node.name)
    }

    /// The nodes in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = NodeIndex> + '_ {
        (0..)
            .zip(&self.nodes)
            .filter(|(_, node)| node.is_some())
            .map(|(slot, _)| self.index_of(slot))
    }

    /// What is available now, as the table counts it.
    #[must_use]
    pub fn available(&self, index: NodeIndex) -> Option<Capacity> {
        let slot = self.slot(index)?;
        Some(Capacity {
            cpu_millis: slot.free.cpu_millis,
            memory_mib: slot.free.memory_mib,
            disk_mib: slot.free.disk_mib,
            gpu_millis: slot.devices.as_slice().to_vec(),
            resources: self.node(index)?.resources.clone(),
        })
    }

    /// What is available on a node, net of all reservations that its report does not count.
    /// Returns whether anything has grown, which may be what a refused demand waits for.
    pub fn set_available(&mut self, index: NodeIndex, available: &Capacity) -> bool {
        let Some(slot) = self.slot_mut(index) else {
            return false;
        };
        let mut grown = !slot.reported;
        slot.reported = true;
        let mut gpu_rank = slot.free.gpu_rank;
        if !slot.devices.are(&available.gpu_millis) {
            grown |= has_grown(slot.devices.as_slice(), &available.gpu_millis);
            slot.devices = Devices::from(available.gpu_millis.as_slice());
            gpu_rank = slot.devices.rank().into();
        }
        let now = Quantities {
            cpu_millis: available.cpu_millis,
            memory_mib: available.memory_mib,
            disk_mib: available.disk_mib,
            gpu_rank,
        };
        let before = std::mem::replace(&mut slot.free, now);
        grown |= !before.hold(&now);
        grown |= self.set_resources(index, &available.resources);
        self.summarise_as(index.slot, now);
        grown
    }

    fn set_resources(&mut self, index: NodeIndex, available: &[Resource]) -> bool {
        let slot = &mut self.slots[index.slot as usize];
        if !slot.has_resources && available.is_empty() {
            return false;
        }
        slot.has_resources = !available.is_empty();
        let Some(node) = &mut self.nodes[index.slot as usize] else {
            return false;
        };
        let grown = !resources_hold(&node.resources, available);
        node.resources.clear();
        node.resources.extend_from_slice(available);
        grown
    }

    /// Takes a placed demand off what is available.
    pub fn debit(&mut self, index: NodeIndex, demand: &Demand, gpus: &GpuShares) {
        let Some(slot) = self.slot_mut(index) else {
            return;
        };
        let left = slot.debit(demand, gpus);
        if slot.has_resources
            && let Some(node) = &mut self.nodes[index.slot as usize]
        {
            node::subtract_resources(&mut node.resources, &demand.resources);
        }
        self.summarise_as(index.slot, left);
    }

    /// Says whether an obstacle holds. Returns whether the node takes work now and did not before.
    pub fn set_obstacle(&mut self, index: NodeIndex, obstacle: Obstacle, holds: bool) -> bool {
        let Some(slot) = self.slot_mut(index) else {
            return false;
        };
        let before = slot.takes_work();
        slot.admission = slot.admission.with(obstacle, holds);
        let opened = !before && slot.takes_work();
        self.summarise(index.slot);
        opened
    }

    /// The obstacles of a node.
    #[must_use]
    pub fn admission(&self, index: NodeIndex) -> Option<Admission> {
        self.slot(index).map(|slot| slot.admission)
    }

    /// Which runtimes the node offers now. Returns whether one was added.
    pub fn set_runtimes(&mut self, index: NodeIndex, runtimes: &[Runtime]) -> bool {
        let Some(slot) = self.slot_mut(index) else {
            return false;
        };
        let bits = runtime_bits(runtimes);
        let before = std::mem::replace(&mut slot.runtimes, bits);
        if before != bits {
            self.describe(index.slot);
        }
        bits & !before != 0
    }

    /// A READY has counted the last START that went to this node: it is no longer recently used.
    pub fn settled(&mut self, index: NodeIndex) {
        let Some(slot) = self.slot_mut(index) else {
            return;
        };
        if std::mem::replace(&mut slot.recent, false) {
            self.recent -= 1;
            self.summarise(index.slot);
        }
    }

    /// Takes a placement off what is available and marks its node as recently used. For a placement
    /// that was searched for and is now made; [`Self::place`] does both.
    pub fn commit(&mut self, placement: &Placement, demand: &Demand) {
        let Some(slot) = self.slot_mut(placement.node) else {
            return;
        };
        let was_recent = std::mem::replace(&mut slot.recent, true);
        self.recent += usize::from(!was_recent);
        self.last_used = Some(placement.node.slot);
        self.debit(placement.node, demand, &placement.gpus);
    }

    /// Brings the tree of what is free up to date with a node.
    fn summarise(&mut self, slot: u32) {
        self.summarise_as(slot, self.slots[slot as usize].free);
    }

    /// As [`Self::summarise`], for what has just been written to the slot: piece by piece, so that it
    /// can't be read as a whole until the pieces have left the processor's store buffer.
    #[inline(always)]
    fn summarise_as(&mut self, slot: u32, free: Quantities) {
        let at = slot as usize;
        let slot = &self.slots[at];
        let summary = if slot.takes_work() {
            free.summary(slot.features, &self.landmarks)
        } else {
            Summary::ABSENT
        };
        self.open.set(at, summary, !slot.recent);
        if self.config.fit != Fit::First {
            self.wastes[at].version = 0;
        }
    }

    /// What a node is, apart from what is free, may have changed.
    fn describe(&mut self, slot: u32) {
        let at = slot as usize;
        let Some(node) = &self.nodes[at] else {
            return;
        };
        let hot = &mut self.slots[at];
        let fixed = fixed_features(hot.runtimes, hot.schema_min, hot.schema_max);
        let labels = self.labels.features(&node.labels);
        hot.features = fixed | labels;
        let whole = node::quantities(&node.allocatable);
        let summary = whole
            .summary(hot.features, &self.landmarks)
            .without_landmarks();
        self.allocatable.set_at_once(at, summary);
        self.summarise(slot);
    }

    /// Panics if the trees or the lists disagree with the nodes. For tests.
    #[cfg(test)]
    pub fn sanity_check(&self) {
        for tree in [&self.open, &self.allocatable] {
            assert_eq!(tree.len(), self.nodes.len());
            tree.sanity_check();
        }
        for ((number, node), slot) in (0_u32..).zip(&self.nodes).zip(&self.slots) {
            let at = number as usize;
            let Some(node) = node else {
                assert!(self.vacant.contains(&number));
                assert_eq!(self.open.summary(at), Summary::ABSENT);
                continue;
            };
            assert_eq!(self.by_name.get(&node.name), Some(&number));
            if slot.reported {
                assert_eq!(slot.free.gpu_rank, u32::from(slot.devices.rank()));
            }
            let whole = node::quantities(&node.allocatable);
            let expected = whole
                .summary(slot.features, &self.landmarks)
                .without_landmarks();
            assert_eq!(self.allocatable.summary(at), expected);
            let expected = if slot.takes_work() {
                slot.free.summary(slot.features, &self.landmarks)
            } else {
                Summary::ABSENT
            };
            assert_eq!(self.open.summary(at), expected);
            let is_settled = slot.takes_work() && !slot.recent;
            assert_eq!(self.open.has(at, tree::View::Settled), is_settled);
        }
        let recent = self.slots.iter().filter(|slot| slot.recent).count();
        assert_eq!(self.recent, recent);
        assert_eq!(self.by_name.len() + self.vacant.len(), self.nodes.len());
    }
}

fn runtime_bits(runtimes: &[Runtime]) -> u8 {
    runtimes
        .iter()
        .fold(0, |bits, &runtime| bits | runtime_bit(runtime))
}

fn has_grown(before: &[u16], after: &[u16]) -> bool {
    after
        .iter()
        .enumerate()
        .any(|(device, &free)| free > before.get(device).copied().unwrap_or(0))
}
