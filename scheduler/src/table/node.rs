//! One node of the table: what it could give, what is free, whether it takes work at all.
//!
//! Two parts: a [`Slot`] is one cache line and all that the straight path reads and writes; a
//! [`Node`] is the rest.

use super::gpu::{Devices, GpuShares};
use super::labels::LabelId;
use super::query::{Compiled, Quantities};
use super::summary::Features;
use pronto_payloads::demand::{Capacity, Demand, Resource, Runtime};
use pronto_payloads::node::{Label, NodeFacts};
use pronto_payloads::place::GpuShare;
use std::sync::Arc;

/// What a node says of itself when it connects.
#[derive(Clone, Debug, Default)]
pub struct NodeSpec {
    pub name: String,
    /// All that it could give if nothing ran.
    pub allocatable: Capacity,
    pub labels: Vec<Label>,
    pub runtimes: Vec<Runtime>,
    /// The payload schemas that it reads.
    pub schema_min: u16,
    pub schema_max: u16,
}

impl NodeSpec {
    #[must_use]
    pub fn new(name: &str, facts: &NodeFacts) -> Self {
        Self {
            name: name.to_owned(),
            allocatable: facts.allocatable.clone(),
            labels: facts.labels.clone(),
            runtimes: facts.runtimes.clone(),
            schema_min: facts.schema_min,
            schema_max: facts.schema_max,
        }
    }
}

/// A reason for which a node takes no work, whatever is free. Several may hold at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Obstacle {
    /// An administrator drains it, or it shuts down.
    Maintenance,
    /// It reports FULL.
    Full,
    /// Its session's outbound queue has no room.
    QueueFull,
    /// Repeated failures of its own have put it in back-off.
    BackedOff,
}

/// The obstacles of one node; empty = it takes work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission(u8);

impl Admission {
    pub const OPEN: Self = Self(0);

    #[must_use]
    pub const fn has(self, obstacle: Obstacle) -> bool {
        self.0 & (1 << obstacle as u8) != 0
    }

    #[must_use]
    pub const fn is_open(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    pub const fn with(self, obstacle: Obstacle, holds: bool) -> Self {
        let bit = 1 << obstacle as u8;
        Self(if holds { self.0 | bit } else { self.0 & !bit })
    }
}

/// What nearly every look at a node needs, in one cache line.
#[derive(Clone, Debug, Default)]
#[repr(align(64))]
pub(super) struct Slot {
    /// What is free. Meaningful while the node takes work.
    pub(super) free: Quantities,
    /// How often the slot has been given away.
    pub(super) generation: u32,
    /// The feature bits of its summary.
    pub(super) features: Features,
    pub(super) schema_min: u16,
    pub(super) schema_max: u16,
    pub(super) runtimes: u8,
    pub(super) admission: Admission,
    /// Its node has reported what is free.
    pub(super) reported: bool,
    /// A START went there that no READY has counted yet.
    pub(super) recent: bool,
    /// Its [`Node`] has free named resources.
    pub(super) has_resources: bool,
    pub(super) devices: Devices,
}

/// Two would be two misses a look.
const _: () = assert!(size_of::<Slot>() == 64, "a slot is one cache line");

impl Slot {
    pub(super) fn takes_work(&self) -> bool {
        self.admission.is_open() && self.reported
    }

    /// Returns what is left.
    #[inline]
    pub(super) fn debit(&mut self, demand: &Demand, gpus: &GpuShares) -> Quantities {
        let mut gpu_rank = self.free.gpu_rank;
        if !gpus.is_empty() {
            self.devices.subtract(gpus);
            gpu_rank = self.devices.rank().into();
        }
        let left = Quantities {
            cpu_millis: self.free.cpu_millis.saturating_sub(demand.cpu_millis),
            memory_mib: self.free.memory_mib.saturating_sub(demand.memory_mib),
            disk_mib: self.free.disk_mib.saturating_sub(demand.disk_mib),
            gpu_rank,
        };
        self.free = left;
        left
    }

    /// Whether it offers the runtime and reads the schema.
    pub(super) fn serves(&self, query: &Compiled<'_>) -> bool {
        (self.runtimes & query.runtime != 0)
            & (u32::from(self.schema_min) <= query.schema)
            & (query.schema <= u32::from(self.schema_max))
    }
}

/// What few looks at a node need.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: Arc<str>,
    pub(super) allocatable: Capacity,
    /// Ascending.
    pub(super) labels: Box<[LabelId]>,
    /// Free named resources.
    pub(super) resources: Vec<Resource>,
}

impl Node {
    pub(super) fn has_labels(&self, labels: &[LabelId]) -> bool {
        labels
            .iter()
            .all(|label| self.labels.binary_search(label).is_ok())
    }
}

/// Whether named resources suffice; both lists are sorted by name.
pub(super) fn resources_hold(free: &[Resource], need: &[Resource]) -> bool {
    need.iter().all(|need| lacking(free, need).is_none())
}

/// The resource, if there is less of it than needed.
pub(super) fn lacking<'a>(free: &[Resource], need: &'a Resource) -> Option<&'a str> {
    let count = free
        .binary_search_by(|free| free.name.cmp(&need.name))
        .map_or(0, |at| free[at].count);
    (count < need.count).then_some(need.name.as_str())
}

/// The quantities of a capacity.
pub(super) fn quantities(capacity: &Capacity) -> Quantities {
    Quantities {
        cpu_millis: capacity.cpu_millis,
        memory_mib: capacity.memory_mib,
        disk_mib: capacity.disk_mib,
        gpu_rank: Devices::from(capacity.gpu_millis.as_slice()).rank().into(),
    }
}

/// Takes a demand and the devices that were chosen for it off a capacity. What is not there is not
/// taken: a node that reports less than was reserved on it has nothing free, never less.
pub fn subtract(
    capacity: &mut Capacity,
    demand: &Demand,
    gpus: impl IntoIterator<Item = GpuShare>,
) {
    capacity.cpu_millis = capacity.cpu_millis.saturating_sub(demand.cpu_millis);
    capacity.memory_mib = capacity.memory_mib.saturating_sub(demand.memory_mib);
    capacity.disk_mib = capacity.disk_mib.saturating_sub(demand.disk_mib);
    for share in gpus {
        if let Some(free) = capacity.gpu_millis.get_mut(usize::from(share.device)) {
            *free = free.saturating_sub(share.millis);
        }
    }
    subtract_resources(&mut capacity.resources, &demand.resources);
}

pub(super) fn subtract_resources(free: &mut [Resource], taken: &[Resource]) {
    for taken in taken {
        if let Ok(at) = free.binary_search_by(|free| free.name.cmp(&taken.name)) {
            free[at].count = free[at].count.saturating_sub(taken.count);
        }
    }
}

/// Where a demand goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    pub node: super::NodeIndex,
    pub gpus: GpuShares,
}

/// It is handed on in registers: written to memory piece by piece it could not be read as a whole
/// until the pieces have left the processor's store buffer.
const _: () = assert!(size_of::<Option<Placement>>() == 16);
