//! The node table: every connected node, what is free on it, and a fit for a demand.
//!
//! It answers one question fast: which node, in the table's order, takes this demand? The order is
//! fixed when a node connects; searches start at its head, so that work packs, and prefer not to
//! use the most recently used node ([`Spread`]), so that a burst does not pile up. Of the first few
//! nodes that fit, [`Fit::Few`] takes the one that is left least fragmented.
//!
//! It holds no sessions, sequence numbers, reservations or clocks: its owner says what is available
//! on a node (already net of reservations), which obstacles a node has and when its last START has
//! been counted. Nothing here allocates on the straight path.
//!
//! Invariants: a placement never exceeds what is available; the trees are exactly the summaries of
//! the nodes ([`NodeTable::sanity_check`]); a [`NodeIndex`] of a node that is gone names no other.

mod explain;
mod gpu;
mod labels;
mod node;
#[cfg(test)]
mod oracle;
mod query;
mod tree;

pub use explain::Explained;
pub use gpu::GpuShares;
pub use node::{Admission, NodeSpec, Obstacle, Placement, subtract};
pub use query::Query;

use labels::Labels;
use node::{Node, resources_hold};
use pronto_payloads::demand::{Capacity, Demand, Runtime};
use pronto_payloads::place::{GpuShare, Refusal};
use query::{Compiled, Quantities, Target, fixed_words, runtime_bit};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::collections::BTreeSet;
use std::sync::Arc;
use tree::{Summary, Tree, WORDS};

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

/// Candidates of one search.
type Candidates = SmallVec<[u32; MAX_CHOICES as usize]>;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct NodeTable {
    config: TableConfig,
    /// What is free, by slot. Meaningful while the node takes work.
    free: Vec<Quantities>,
    nodes: Vec<Option<Node>>,
    /// How often a slot has been given away: the generation of its next node.
    generations: Vec<u32>,
    /// Slots of gone nodes, taken lowest first so that the table stays dense at its head.
    vacant: BTreeSet<u32>,
    by_name: FxHashMap<Arc<str>, u32>,
    labels: Labels,
    /// Nodes that take work.
    open: Tree,
    /// Those of them that are not recently used. Kept for [`Spread::Settle`] alone.
    settled: Tree,
    /// What nodes could give if nothing ran, obstacles aside.
    allocatable: Tree,
    last_used: Option<u32>,
}

impl NodeTable {
    #[must_use]
    pub fn new(config: TableConfig) -> Self {
        Self {
            config,
            free: Vec::new(),
            nodes: Vec::new(),
            generations: Vec::new(),
            vacant: BTreeSet::new(),
            by_name: FxHashMap::default(),
            labels: Labels::default(),
            open: Tree::default(),
            settled: Tree::default(),
            allocatable: Tree::default(),
            last_used: None,
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
        self.by_name.insert(Arc::clone(&name), slot);
        self.nodes[slot as usize] = Some(Node {
            name,
            allocatable: spec.allocatable,
            labels: ids.into(),
            runtimes: runtime_bits(&spec.runtimes),
            schema_min: spec.schema_min,
            schema_max: spec.schema_max,
            admission: Admission::OPEN,
            reported: false,
            recent: false,
            devices: SmallVec::new(),
            resources: Vec::new(),
        });
        // A label that has just become common has a bit now, on all nodes that have it.
        for slot in promoted.into_iter().chain([slot]) {
            self.summarise_allocatable(slot);
            self.summarise(slot);
        }
        NodeIndex {
            slot,
            generation: self.generations[slot as usize],
        }
    }

    fn push_slot(&mut self) -> u32 {
        let slot = u32::try_from(self.nodes.len()).expect("fewer than 2^32 nodes connect");
        self.free.push(Quantities::default());
        self.nodes.push(None);
        self.generations.push(0);
        self.open.push();
        self.settled.push();
        self.allocatable.push();
        slot
    }

    /// Removes a node; its slot goes to a later one.
    pub fn remove(&mut self, index: NodeIndex) {
        if self.node(index).is_none() {
            return;
        }
        let slot = index.slot as usize;
        let Some(node) = self.nodes[slot].take() else {
            return;
        };
        self.generations[slot] = self.generations[slot].wrapping_add(1);
        self.by_name.remove(&node.name);
        for &label in &node.labels {
            self.labels.remove(label, index.slot);
        }
        self.vacant.insert(index.slot);
        self.open.set(slot, Summary::ABSENT);
        self.settled.set(slot, Summary::ABSENT);
        self.allocatable.set(slot, Summary::ABSENT);
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
            generation: self.generations[slot as usize],
        }
    }

    fn node(&self, index: NodeIndex) -> Option<&Node> {
        let slot = index.slot as usize;
        (*self.generations.get(slot)? == index.generation)
            .then(|| self.nodes[slot].as_ref())
            .flatten()
    }

    fn node_mut(&mut self, index: NodeIndex) -> Option<&mut Node> {
        let slot = index.slot as usize;
        (*self.generations.get(slot)? == index.generation)
            .then(|| self.nodes[slot].as_mut())
            .flatten()
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
        let node = self.node(index)?;
        let free = &self.free[index.slot as usize];
        Some(Capacity {
            cpu_millis: free.cpu_millis,
            memory_mib: free.memory_mib,
            disk_mib: free.disk_mib,
            gpu_millis: node.devices.to_vec(),
            resources: node.resources.clone(),
        })
    }

    /// What is available on a node, net of all reservations that its report does not count.
    /// Returns whether anything has grown, which may be what a refused demand waits for.
    pub fn set_available(&mut self, index: NodeIndex, available: &Capacity) -> bool {
        let slot = index.slot as usize;
        let quantities = node::quantities(available);
        let Some(node) = self.node_mut(index) else {
            return false;
        };
        let mut grown = !node.reported;
        node.reported = true;
        if node.devices.as_slice() != available.gpu_millis {
            grown |= has_grown(&node.devices, &available.gpu_millis);
            node.devices.clear();
            node.devices.extend_from_slice(&available.gpu_millis);
        }
        if node.resources != available.resources {
            grown |= !resources_hold(&node.resources, &available.resources);
            node.resources.clone_from(&available.resources);
        }
        let before = std::mem::replace(&mut self.free[slot], quantities);
        grown |= !before.hold(&quantities);
        self.summarise(index.slot);
        grown
    }

    /// Takes a placed demand off what is available.
    pub fn debit(&mut self, index: NodeIndex, demand: &Demand, gpus: &[GpuShare]) {
        let slot = index.slot as usize;
        let Some(node) = self.node_mut(index) else {
            return;
        };
        node::subtract_resources(&mut node.resources, &demand.resources);
        let gpu_rank = if gpus.is_empty() {
            None
        } else {
            node::subtract_devices(&mut node.devices, gpus);
            Some(gpu::rank_of_free(&node.devices))
        };
        let free = &mut self.free[slot];
        free.cpu_millis = free.cpu_millis.saturating_sub(demand.cpu_millis);
        free.memory_mib = free.memory_mib.saturating_sub(demand.memory_mib);
        free.disk_mib = free.disk_mib.saturating_sub(demand.disk_mib);
        if let Some(gpu_rank) = gpu_rank {
            free.gpu_rank = gpu_rank;
        }
        self.summarise(index.slot);
    }

    /// Says whether an obstacle holds. Returns whether the node takes work now and did not before.
    pub fn set_obstacle(&mut self, index: NodeIndex, obstacle: Obstacle, holds: bool) -> bool {
        let Some(node) = self.node_mut(index) else {
            return false;
        };
        let before = node.takes_work();
        node.admission = node.admission.with(obstacle, holds);
        let opened = !before && node.takes_work();
        self.summarise(index.slot);
        opened
    }

    /// The obstacles of a node.
    #[must_use]
    pub fn admission(&self, index: NodeIndex) -> Option<Admission> {
        self.node(index).map(|node| node.admission)
    }

    /// Which runtimes the node offers now. Returns whether one was added.
    pub fn set_runtimes(&mut self, index: NodeIndex, runtimes: &[Runtime]) -> bool {
        let Some(node) = self.node_mut(index) else {
            return false;
        };
        let bits = runtime_bits(runtimes);
        let before = std::mem::replace(&mut node.runtimes, bits);
        if before != bits {
            self.summarise_allocatable(index.slot);
            self.summarise(index.slot);
        }
        bits & !before != 0
    }

    /// A READY has counted the last START that went to this node: it is no longer recently used.
    pub fn settled(&mut self, index: NodeIndex) {
        let Some(node) = self.node_mut(index) else {
            return;
        };
        if std::mem::replace(&mut node.recent, false) {
            self.summarise(index.slot);
        }
    }

    /// Marks a node as recently used. [`Self::place`] does it by itself.
    pub fn mark_used(&mut self, index: NodeIndex) {
        let Some(node) = self.node_mut(index) else {
            return;
        };
        node.recent = true;
        self.last_used = Some(index.slot);
        if self.config.spread == Spread::Settle {
            self.settled.set(index.slot as usize, Summary::ABSENT);
        }
    }

    fn words(&self, node: &Node) -> [u16; WORDS] {
        let fixed = fixed_words(node.runtimes, node.schema_min, node.schema_max);
        let labels = self.labels.words(&node.labels);
        std::array::from_fn(|word| fixed[word] | labels[word])
    }

    /// Brings the trees of what is free up to date with a node.
    fn summarise(&mut self, slot: u32) {
        let Some(node) = &self.nodes[slot as usize] else {
            return;
        };
        let slot = slot as usize;
        let summary = if node.takes_work() {
            self.free[slot].summary(self.words(node))
        } else {
            Summary::ABSENT
        };
        let recent = node.recent;
        self.open.set(slot, summary);
        if self.config.spread == Spread::Settle {
            let settled = if recent { Summary::ABSENT } else { summary };
            self.settled.set(slot, settled);
        }
    }

    fn summarise_allocatable(&mut self, slot: u32) {
        if let Some(node) = &self.nodes[slot as usize] {
            let summary = node::quantities(&node.allocatable).summary(self.words(node));
            self.allocatable.set(slot as usize, summary);
        }
    }

    fn compile<'a>(&'a self, query: &Query<'a>) -> Compiled<'a> {
        Compiled::new(query, &self.labels, |name| self.by_name.get(name).copied())
    }

    /// A fit for the query, if there is one now. Changes nothing.
    #[must_use]
    pub fn search(&self, query: &Query<'_>) -> Option<Placement> {
        let mut compiled = self.compile(query);
        let mut chosen = self.choose(&compiled, query.prefer);
        if chosen.is_none() && !compiled.avoid.is_empty() && !self.could_ever_fit(&compiled) {
            // To wait for another node would be to wait for ever.
            compiled.avoid.clear();
            chosen = self.choose(&compiled, query.prefer);
        }
        self.placement(chosen?, compiled.gpu_shape)
    }

    /// Finds a fit, takes the demand off it and marks it as recently used.
    pub fn place(&mut self, query: &Query<'_>) -> Option<Placement> {
        let placement = self.search(query)?;
        self.mark_used(placement.node);
        self.debit(placement.node, query.demand, &placement.gpus);
        Some(placement)
    }

    fn placement(&self, slot: u32, gpu_shape: (u16, u16)) -> Option<Placement> {
        let gpus = if gpu_shape.0 == 0 {
            GpuShares::new()
        } else {
            gpu::choose(&self.nodes[slot as usize].as_ref()?.devices, gpu_shape)?
        };
        Some(Placement {
            node: self.index_of(slot),
            gpus,
        })
    }

    fn choose(&self, query: &Compiled<'_>, prefer: Option<&str>) -> Option<u32> {
        if let Some(&slot) = prefer.and_then(|name| self.by_name.get(name))
            && self.takes(slot, query)
            && !query.avoid.contains(&slot)
        {
            return Some(slot);
        }
        let limit = match self.config.fit {
            Fit::First => 1,
            Fit::Few { choices } => usize::from(choices.clamp(1, MAX_CHOICES)),
        };
        let candidates = self.candidates(query, limit);
        match candidates.as_slice() {
            [] => None,
            [only] => Some(*only),
            several => Some(several[0]),
        }
    }

    /// The first nodes that fit, in the order that the spread asks for.
    fn candidates(&self, query: &Compiled<'_>, limit: usize) -> Candidates {
        let mut found = Candidates::new();
        let after_last = self.last_used.map_or(0, |slot| slot + 1);
        match self.config.spread {
            Spread::Settle => {
                self.collect(&self.settled, query, 0..u32::MAX, limit, &mut found);
                if found.is_empty() {
                    self.collect(&self.open, query, after_last..u32::MAX, limit, &mut found);
                    self.collect(&self.open, query, 0..after_last, limit, &mut found);
                }
            }
            Spread::Skip => {
                let last = self.last_used.unwrap_or(u32::MAX);
                self.collect(&self.open, query, 0..last, limit, &mut found);
                self.collect(&self.open, query, after_last..u32::MAX, limit, &mut found);
                if found.is_empty() {
                    self.collect(&self.open, query, last..after_last, limit, &mut found);
                }
            }
            Spread::Rotate => {
                self.collect(&self.open, query, after_last..u32::MAX, limit, &mut found);
                self.collect(&self.open, query, 0..after_last, limit, &mut found);
            }
        }
        found
    }

    /// Adds nodes of the range that fit and are in this tree, until there are `limit` of them.
    #[inline]
    fn collect(
        &self,
        tree: &Tree,
        query: &Compiled<'_>,
        range: std::ops::Range<u32>,
        limit: usize,
        found: &mut Candidates,
    ) {
        if found.len() >= limit || range.is_empty() {
            return;
        }
        let mut accept = |slot: u32| {
            if slot >= range.end {
                return true;
            }
            if self.fits(slot, query) && !query.avoid.contains(&slot) {
                found.push(slot);
            }
            found.len() >= limit
        };
        let few = match (query.target, &query.only) {
            (Target::Nowhere, _) => return,
            (_, Some(only)) => std::slice::from_ref(only),
            (Target::Slots(slots), None) => slots,
            (Target::Tree, None) => {
                #[expect(clippy::cast_possible_truncation, reason = "slots are counted in u32")]
                tree.search(query.summary, range.start as usize, |slot| {
                    accept(slot as u32)
                });
                return;
            }
        };
        for &slot in few {
            let present = tree.summary(slot as usize) != Summary::ABSENT;
            if slot >= range.start && present && accept(slot) {
                return;
            }
        }
    }

    /// Whether a node that takes work fits exactly.
    #[inline]
    fn fits(&self, slot: u32, query: &Compiled<'_>) -> bool {
        let slot = slot as usize;
        self.free[slot].hold(&query.quantities)
            && self.nodes[slot].as_ref().is_some_and(|node| {
                node.suits(query) && resources_hold(&node.resources, query.resources)
            })
    }

    /// As [`Self::fits`], for a slot that no tree has proposed.
    fn takes(&self, slot: u32, query: &Compiled<'_>) -> bool {
        self.nodes[slot as usize]
            .as_ref()
            .is_some_and(Node::takes_work)
            && query.only.is_none_or(|only| only == slot)
            && !matches!(query.target, Target::Nowhere)
            && self.fits(slot, query)
    }

    /// Why nothing fits, at about the cost of a search.
    #[must_use]
    pub fn classify_refusal(&self, query: &Query<'_>) -> Refusal {
        if self.is_empty() {
            return Refusal::NoNodes;
        }
        let mut compiled = self.compile(query);
        compiled.avoid.clear();
        if self.could_ever_fit(&compiled) {
            Refusal::CloudFull
        } else {
            Refusal::NeverFits
        }
    }

    /// Whether some node that is not avoided could hold the demand if nothing ran.
    fn could_ever_fit(&self, query: &Compiled<'_>) -> bool {
        let holds = |slot: u32| {
            !query.avoid.contains(&slot)
                && self.nodes[slot as usize].as_ref().is_some_and(|node| {
                    node::quantities(&node.allocatable).hold(&query.quantities)
                        && node.suits(query)
                        && resources_hold(&node.allocatable.resources, query.resources)
                })
        };
        match (query.target, query.only) {
            (Target::Nowhere, _) => false,
            (_, Some(only)) => holds(only),
            (Target::Slots(slots), None) => slots.iter().any(|&slot| holds(slot)),
            (Target::Tree, None) => {
                #[expect(clippy::cast_possible_truncation, reason = "slots are counted in u32")]
                let found = self
                    .allocatable
                    .search(query.summary, 0, |slot| holds(slot as u32));
                found.is_some()
            }
        }
    }

    /// Panics if the trees or the lists disagree with the nodes. For tests.
    #[cfg(test)]
    pub fn sanity_check(&self) {
        for tree in [&self.open, &self.settled, &self.allocatable] {
            assert_eq!(tree.len(), self.nodes.len());
            tree.sanity_check();
        }
        for (slot, node) in (0..).zip(&self.nodes) {
            let Some(node) = node else {
                assert!(self.vacant.contains(&slot));
                assert_eq!(self.open.summary(slot as usize), Summary::ABSENT);
                continue;
            };
            assert_eq!(self.by_name.get(&node.name), Some(&slot));
            let free = &self.free[slot as usize];
            if node.reported {
                assert_eq!(free.gpu_rank, gpu::rank_of_free(&node.devices));
            }
            let expected = if node.takes_work() {
                free.summary(self.words(node))
            } else {
                Summary::ABSENT
            };
            assert_eq!(self.open.summary(slot as usize), expected);
            if self.config.spread == Spread::Settle {
                let expected = if node.recent {
                    Summary::ABSENT
                } else {
                    expected
                };
                assert_eq!(self.settled.summary(slot as usize), expected);
            }
        }
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
