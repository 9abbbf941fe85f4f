//! What a START asks of a node, and its form that the table compares with.

use super::block::Need;
use super::gpu;
use super::labels::{LabelId, Labels, Where};
use super::landmarks::Landmarks;
use super::summary::{Features, RANKS, Ranks, Summary, ranks};
use pronto_payloads::demand::{Constraint, Demand, Resource, Runtime};
use pronto_payloads::place::{Explain, StartPrefix};
use smallvec::SmallVec;

/// What a node must have and be.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    pub demand: &'a Demand,
    /// All of them must hold.
    pub constraints: &'a [Constraint],
    pub runtime: Runtime,
    /// The payload schema that the node must read.
    pub schema: u16,
    /// Taken if it fits, before any other.
    pub prefer: Option<&'a str>,
    /// Passed over, as long as another node could ever hold the demand.
    pub avoid: &'a [String],
}

impl<'a> From<&'a StartPrefix> for Query<'a> {
    fn from(start: &'a StartPrefix) -> Self {
        Self {
            demand: &start.demand,
            constraints: &start.constraints,
            runtime: start.runtime,
            schema: start.body_schema,
            prefer: start.prefer.as_deref(),
            avoid: &start.avoid,
        }
    }
}

impl<'a> From<&'a Explain> for Query<'a> {
    fn from(explain: &'a Explain) -> Self {
        Self {
            demand: &explain.demand,
            constraints: &explain.constraints,
            runtime: explain.runtime,
            schema: explain.body_schema,
            prefer: None,
            avoid: &[],
        }
    }
}

/// The four quantities that are compared for every node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Quantities {
    pub(super) cpu_millis: u32,
    pub(super) memory_mib: u32,
    pub(super) disk_mib: u32,
    /// See [`gpu::Devices::rank`].
    pub(super) gpu_rank: u32,
}

impl Quantities {
    #[inline]
    pub(super) fn of_demand(demand: &Demand) -> Self {
        Self {
            cpu_millis: demand.cpu_millis,
            memory_mib: demand.memory_mib,
            disk_mib: demand.disk_mib,
            gpu_rank: gpu::rank_of_demand(demand.gpu_shape()).into(),
        }
    }

    #[inline]
    pub(super) fn hold(&self, need: &Self) -> bool {
        // Without a branch for each: which dimension is short is not predictable.
        (self.cpu_millis >= need.cpu_millis)
            & (self.memory_mib >= need.memory_mib)
            & (self.disk_mib >= need.disk_mib)
            & (self.gpu_rank >= need.gpu_rank)
    }

    fn all(&self) -> [u32; RANKS] {
        [
            self.cpu_millis,
            self.memory_mib,
            self.disk_mib,
            self.gpu_rank,
        ]
    }

    #[inline]
    pub(super) fn ranks(&self) -> Ranks {
        ranks(self.all())
    }

    #[inline]
    pub(super) fn summary(&self, features: Features, landmarks: &Landmarks) -> Summary {
        Summary::new(self.all(), features, |ranks| landmarks.reached(ranks))
    }
}

/// The bit of a runtime in a node's set.
pub(super) const fn runtime_bit(runtime: Runtime) -> u8 {
    1 << runtime as u8
}

/// Four bits hold the schemas modulo four: enough to tell neighbours apart in an upgrade.
const SCHEMA_BITS: u16 = 4;

/// The fixed bits of a node: runtimes in the lowest four, schemas in the next.
pub(super) fn fixed_features(runtimes: u8, schema_min: u16, schema_max: u16) -> Features {
    let last = schema_max.min(schema_min.saturating_add(SCHEMA_BITS - 1));
    (schema_min..=last).fold(Features::from(runtimes), |features, schema| {
        features | schema_bit(schema)
    })
}

fn schema_bit(schema: u16) -> Features {
    1 << (4 + schema % SCHEMA_BITS)
}

/// Which slots are looked at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    /// Those that the tree proposes.
    Tree,
    /// These few.
    Slots(&'a [u32]),
    /// The one that a constraint names.
    One(u32),
    /// None: a constraint holds for no node.
    Nowhere,
}

impl<'a> Target<'a> {
    fn narrowed_to_slots(self, slots: &'a [u32]) -> Self {
        match self {
            Self::Tree => Self::Slots(slots),
            Self::Slots(others) if slots.len() < others.len() => Self::Slots(slots),
            as_it_is => as_it_is,
        }
    }

    fn narrowed_to_one(self, slot: Option<u32>) -> Self {
        match (self, slot) {
            (Self::Nowhere, _) | (_, None) => Self::Nowhere,
            (Self::One(other), Some(slot)) if slot != other => Self::Nowhere,
            (_, Some(slot)) => Self::One(slot),
        }
    }
}

/// A query in the table's own terms.
#[derive(Debug)]
pub(super) struct Compiled<'a> {
    pub(super) quantities: Quantities,
    /// Made while the summary is in a register: lanes of what is in memory are slow to spread.
    pub(super) need: Need,
    pub(super) gpu_shape: (u16, u16),
    pub(super) runtime: u8,
    pub(super) schema: u32,
    pub(super) resources: &'a [Resource],
    pub(super) target: Target<'a>,
    /// Apart, since most queries have none and a struct of more than two cache lines is moved by a
    /// call of memcpy.
    pub(super) particulars: Option<Box<Particulars>>,
}

/// What constraints and a retry add to a query.
#[derive(Debug, Default)]
pub(super) struct Particulars {
    pub(super) labels: SmallVec<[LabelId; 4]>,
    /// Slots to pass over.
    pub(super) avoid: SmallVec<[u32; 4]>,
}

impl Particulars {
    #[inline(never)]
    fn new<'a>(
        query: &Query<'a>,
        labels: &'a Labels,
        find: &impl Fn(&str) -> Option<u32>,
        target: &mut Target<'a>,
        features: &mut Features,
    ) -> Box<Self> {
        let mut particulars = Box::<Self>::default();
        for constraint in query.constraints {
            match constraint {
                Constraint::Node(name) => *target = target.narrowed_to_one(find(name)),
                Constraint::Label { key, value } => {
                    let Some(label) = labels.find(key, value) else {
                        *target = Target::Nowhere;
                        continue;
                    };
                    particulars.labels.push(label);
                    match labels.whereabouts(label) {
                        Where::Bit(bit) => *features |= 1 << bit,
                        Where::At(slots) => *target = target.narrowed_to_slots(slots),
                    }
                }
            }
        }
        particulars.avoid = query.avoid.iter().filter_map(|name| find(name)).collect();
        particulars
    }
}

impl<'a> Compiled<'a> {
    /// `find` looks up a node's slot by its name.
    ///
    /// Always inlined: what is returned in memory, piece by piece, can't be read as a whole until the
    /// pieces have left the processor's store buffer.
    #[inline(always)]
    pub(super) fn new(
        query: &Query<'a>,
        labels: &'a Labels,
        landmarks: &Landmarks,
        find: impl Fn(&str) -> Option<u32>,
    ) -> Self {
        let quantities = Quantities::of_demand(query.demand);
        let runtime = runtime_bit(query.runtime);
        let mut features = Features::from(runtime) | schema_bit(query.schema);
        let mut target = Target::Tree;
        let mut particulars = None;
        // Most demands have neither: they shall not pay for the rest.
        if !(query.constraints.is_empty() & query.avoid.is_empty()) {
            let more = Particulars::new(query, labels, &find, &mut target, &mut features);
            particulars = Some(more);
        }
        Self {
            quantities,
            need: Need::new(quantities.summary(features, landmarks)),
            gpu_shape: query.demand.gpu_shape(),
            runtime,
            schema: query.schema.into(),
            resources: &query.demand.resources,
            target,
            particulars,
        }
    }

    /// A [`super::node::Slot`] alone decides.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.particulars.is_none() & self.resources.is_empty()
    }

    pub(super) fn labels(&self) -> &[LabelId] {
        self.particulars.as_ref().map_or(&[], |more| &more.labels)
    }

    pub(super) fn avoided(&self) -> &[u32] {
        self.particulars.as_ref().map_or(&[], |more| &more.avoid)
    }

    pub(super) fn avoid_none(&mut self) {
        if let Some(more) = &mut self.particulars {
            more.avoid.clear();
        }
    }
}
