//! `bench place`: what a search and an update of the real node table cost, beside two references in
//! the same run, since absolute figures drift with the machine.
//!
//! Each distribution is a cluster in which a known share of the nodes has room. Demands differ and
//! come in shuffled order; nodes change between batches; a batch of searches is timed as one and its
//! answers are checked afterwards against a scan that reads every node. A batch's demands are copied
//! before the clock starts: a START has just been decoded when its search begins, while the references
//! would have driven a list of demands out of the caches. The table itself stays as cold as they leave
//! it.
//!
//! The adversary: node `i` of `n` has a share `u` of the CPUs free and `1 - u` of the memory, `u`
//! uniform; a demand asks for a share `s` of the CPUs, `s` uniform in 0.2 to 0.8, and `1.02 - s` of
//! the memory. No node fits, while each group of nodes seems to: its maxima come from different
//! nodes. In its other form, the cross, every second node has all its CPUs free and hardly any
//! memory, and the rest the other way round. The generator is [`crate::replay::Rng`], seeded with
//! [`BenchPlaceConfig::seed`].

mod busy;
mod reference;

use crate::replay::Rng;
use crate::table::{Fit, NodeIndex, NodeSpec, NodeTable, Query, Spread, TableConfig};
use hdrhistogram::Histogram;
use pronto_payloads::demand::{Capacity, Constraint, Demand, GPU_MILLIS, Runtime};
use pronto_payloads::node::Label;
use reference::{LockedNodes, VectorScan};
use serde::Serialize;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BenchPlaceConfig {
    pub nodes: usize,
    /// Share of nodes without room in the row `search/fill`, 0 to 1.
    pub fill: f64,
    /// How many dimensions a demand has: 1 = cpu, 2 = and memory, 3 = and disk, 4 = and GPUs.
    pub dims: usize,
    pub seed: u64,
    pub fit: Fit,
    pub spread: Spread,
    /// How long each distribution is measured, at the least one batch.
    pub budget_ms: u64,
}

impl Default for BenchPlaceConfig {
    fn default() -> Self {
        Self {
            nodes: 100_000,
            fill: 0.95,
            dims: 4,
            seed: 42,
            fit: Fit::First,
            spread: Spread::Settle,
            budget_ms: 500,
        }
    }
}

/// One line of a benchmark's table. What does not apply is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BenchRow {
    pub name: String,
    pub unit: String,
    pub value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<f64>,
    /// `value / reference`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

/// Searches that are timed as one: a clock's reading costs as much as a search.
const BATCH: usize = 64;
const LOCKED_BATCH: usize = 4;
/// Distinct demands, more than a branch predictor learns by heart in a batch.
const DEMANDS: usize = 509;
/// Nodes that change between two batches.
const CHANGES: usize = 8;
/// Batches after which a distribution is measured well enough, whatever the budget.
const ENOUGH_BATCHES: u64 = 2_000;
/// Choices of the row `place/few`: the default.
const FEW_CHOICES: u8 = crate::table::DEFAULT_CHOICES;
/// Zones of the constraint rows.
const ZONES: usize = 10;

const CPU_MILLIS: u32 = 64_000;
const MEMORY_MIB: u32 = 262_144;
const DISK_MIB: u32 = 1_000_000;
const DEVICES: usize = 8;

/// The smallest demand in each dimension: a node without room has less than that.
const LEAST_CPU_MILLIS: u32 = 1_000;
const LEAST_MEMORY_MIB: u32 = 2_048;
const LEAST_DISK_MIB: u32 = 4_096;
const LEAST_GPU_MILLIS: u16 = 100;

/// How a cluster's free capacity is distributed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Distribution {
    AllFit,
    /// This share of the nodes has no room.
    Filled(f64),
    LastFits,
    NoneFits,
    Adversarial,
    AdversarialCross,
}

impl Distribution {
    fn capacity(self, number: usize, nodes: usize, rng: &mut Rng) -> Capacity {
        let has_room = match self {
            Self::AllFit => true,
            Self::Filled(share) => rng.below(10_000) as f64 >= share * 10_000.0,
            Self::LastFits => number + 1 == nodes,
            Self::NoneFits => false,
            Self::Adversarial => {
                let cpu = rng.range(0, 1_000_001);
                return Capacity {
                    cpu_millis: part(CPU_MILLIS, cpu),
                    memory_mib: part(MEMORY_MIB, 1_000_000 - cpu),
                    ..roomy(rng)
                };
            }
            Self::AdversarialCross => {
                let mut capacity = roomy(rng);
                if number.is_multiple_of(2) {
                    capacity.cpu_millis = rng.range(0, LEAST_CPU_MILLIS);
                } else {
                    capacity.memory_mib = rng.range(0, LEAST_MEMORY_MIB);
                }
                return capacity;
            }
        };
        if has_room { roomy(rng) } else { full(rng) }
    }

    fn demand(self, dims: usize, rng: &mut Rng) -> Demand {
        let (cpu_millis, memory_mib) = if self == Self::Adversarial {
            let share = rng.range(200_000, 800_001);
            (part(CPU_MILLIS, share), part(MEMORY_MIB, 1_020_000 - share))
        } else {
            (
                rng.range(LEAST_CPU_MILLIS, 8_000),
                rng.range(LEAST_MEMORY_MIB, 32_768),
            )
        };
        let mut demand = Demand {
            cpu_millis,
            ..Demand::default()
        };
        if dims > 1 {
            demand.memory_mib = memory_mib;
        }
        if dims > 2 {
            demand.disk_mib = rng.range(LEAST_DISK_MIB, 65_536);
        }
        if dims > 3 {
            // As in openb: every second a share of one device, the rest whole ones.
            if rng.below(2) == 0 {
                demand.gpu_millis = LEAST_GPU_MILLIS * u16::try_from(1 + rng.below(9)).unwrap_or(1);
            } else {
                demand.gpus = u16::try_from(1 + rng.below(2)).unwrap_or(1);
            }
        }
        demand
    }
}

fn part(whole: u32, millionths: u32) -> u32 {
    u32::try_from(u64::from(whole) * u64::from(millionths) / 1_000_000).unwrap_or(whole)
}

/// Room for any of the demands.
fn roomy(rng: &mut Rng) -> Capacity {
    Capacity {
        cpu_millis: rng.range(8_000, CPU_MILLIS),
        memory_mib: rng.range(32_768, MEMORY_MIB),
        disk_mib: rng.range(65_536, DISK_MIB),
        gpu_millis: vec![GPU_MILLIS; DEVICES],
        resources: Vec::new(),
    }
}

/// Room for none of them.
fn full(rng: &mut Rng) -> Capacity {
    let mut share = || u16::try_from(rng.below(usize::from(LEAST_GPU_MILLIS))).unwrap_or(0);
    let gpu_millis = (0..DEVICES).map(|_| share()).collect();
    Capacity {
        cpu_millis: rng.range(0, LEAST_CPU_MILLIS),
        memory_mib: rng.range(0, LEAST_MEMORY_MIB),
        disk_mib: rng.range(0, LEAST_DISK_MIB),
        gpu_millis,
        resources: Vec::new(),
    }
}

/// A cluster in the table and in both references.
struct Cluster {
    table: NodeTable,
    indices: Vec<NodeIndex>,
    locked: LockedNodes,
    scan: VectorScan,
}

impl Cluster {
    fn new(config: &BenchPlaceConfig, nodes: &[Capacity]) -> Self {
        let mut table = NodeTable::new(TableConfig {
            fit: config.fit,
            spread: config.spread,
        });
        let allocatable = Capacity {
            cpu_millis: CPU_MILLIS,
            memory_mib: MEMORY_MIB,
            disk_mib: DISK_MIB,
            gpu_millis: vec![GPU_MILLIS; DEVICES],
            resources: Vec::new(),
        };
        let indices = nodes.iter().enumerate().map(|(number, free)| {
            let index = table.insert(NodeSpec {
                name: format!("node-{number}"),
                allocatable: allocatable.clone(),
                labels: vec![
                    Label {
                        key: "hostname".to_owned(),
                        value: format!("node-{number}"),
                    },
                    zone_label(number % ZONES),
                ],
                runtimes: vec![Runtime::Exec],
                schema_min: 1,
                schema_max: 1,
            });
            table.set_available(index, free);
            index
        });
        Self {
            indices: indices.collect(),
            table,
            locked: LockedNodes::new(nodes, ZONES),
            scan: VectorScan::new(nodes, config.dims),
        }
    }

    fn set(&mut self, node: usize, free: &Capacity) {
        self.table.set_available(self.indices[node], free);
        self.locked.set(node, free);
        self.scan.set(node, free);
    }
}

fn zone_label(zone: usize) -> Label {
    Label {
        key: "zone".to_owned(),
        value: format!("z{zone}"),
    }
}

fn query<'a>(demand: &'a Demand, constraints: &'a [Constraint]) -> Query<'a> {
    Query {
        demand,
        constraints,
        runtime: Runtime::Exec,
        schema: 1,
        prefer: None,
        avoid: &[],
    }
}

/// Nanoseconds of one operation, from batches.
struct Timings(Histogram<u64>);

impl Timings {
    fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3);
        Self(histogram.expect("the bounds are constants that it accepts"))
    }

    fn record(&mut self, batch: Duration) {
        self.0
            .saturating_record(u64::try_from(batch.as_nanos()).unwrap_or(u64::MAX));
    }

    fn quantile(&self, quantile: f64, operations: usize) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / operations as f64
    }

    fn row(&self, name: &str, operations: usize) -> BenchRow {
        BenchRow {
            name: name.to_owned(),
            unit: "ns".to_owned(),
            value: self.quantile(0.5, operations),
            p50: Some(self.quantile(0.5, operations)),
            p99: Some(self.quantile(0.99, operations)),
            max: Some(self.0.max() as f64 / operations as f64),
            reference: None,
            ratio: None,
        }
    }
}

impl BenchRow {
    fn beside(mut self, reference: f64) -> Self {
        self.reference = Some(reference);
        self.ratio = Some(self.value / reference);
        self
    }
}

/// Measures all distributions, and placements in a busy cluster (`place/first`, `place/few`). The rows `search/…` have the vectorised scan as their reference,
/// their companions `search/…/locked` the array of structs with one lock a node.
///
/// # Panics
/// When an answer of the table differs from the reference's: the figures would mean nothing.
#[must_use]
pub fn bench_place(config: &BenchPlaceConfig) -> Vec<BenchRow> {
    let distributions = [
        ("all-fit", Distribution::AllFit),
        ("90-percent-full", Distribution::Filled(0.9)),
        ("99-percent-full", Distribution::Filled(0.99)),
        ("fill", Distribution::Filled(config.fill)),
        ("last-fits", Distribution::LastFits),
        ("none-fits", Distribution::NoneFits),
        ("adversarial", Distribution::Adversarial),
        ("adversarial-cross", Distribution::AdversarialCross),
    ];
    let mut rows = Vec::new();
    for (name, distribution) in distributions {
        let mut bench = Bench::new(config, distribution);
        rows.extend(bench.searches(&format!("search/{name}"), &[], None));
        match distribution {
            Distribution::AllFit => rows.extend(bench.updates()),
            Distribution::LastFits => {
                let zone = (config.nodes - 1) % ZONES;
                let label = zone_label(zone);
                let constraint = [Constraint::Label {
                    key: label.key,
                    value: label.value,
                }];
                rows.extend(bench.searches("search/last-fits-in-zone", &constraint, Some(zone)));
            }
            _ => {}
        }
    }
    for (name, fit) in [
        ("place/first", Fit::First),
        (
            "place/few",
            Fit::Few {
                choices: FEW_CHOICES,
            },
        ),
    ] {
        rows.push(busy::placements(config, name, fit));
    }
    rows
}

struct Bench<'a> {
    config: &'a BenchPlaceConfig,
    distribution: Distribution,
    cluster: Cluster,
    demands: Vec<Demand>,
    rng: Rng,
}

impl<'a> Bench<'a> {
    fn new(config: &'a BenchPlaceConfig, distribution: Distribution) -> Self {
        let mut rng = Rng::new(config.seed);
        let nodes: Vec<Capacity> = (0..config.nodes)
            .map(|number| distribution.capacity(number, config.nodes, &mut rng))
            .collect();
        let demands = (0..DEMANDS)
            .map(|_| distribution.demand(config.dims, &mut rng))
            .collect();
        Self {
            config,
            distribution,
            cluster: Cluster::new(config, &nodes),
            demands,
            rng,
        }
    }

    fn picked_demands(&mut self) -> [Demand; BATCH] {
        std::array::from_fn(|_| self.demands[self.rng.below(DEMANDS)].clone())
    }

    /// Some nodes change as the distribution would have them.
    fn change_nodes(&mut self) {
        for _ in 0..CHANGES {
            let node = self.rng.below(self.config.nodes);
            let free = self
                .distribution
                .capacity(node, self.config.nodes, &mut self.rng);
            self.cluster.set(node, &free);
        }
    }

    fn searches(
        &mut self,
        name: &str,
        constraints: &[Constraint],
        zone: Option<usize>,
    ) -> Vec<BenchRow> {
        let mut ours = Timings::new();
        let mut scan = Timings::new();
        let mut locked = Timings::new();
        let budget = Duration::from_millis(self.config.budget_ms);
        let begun = Instant::now();
        let mut batches = 0;
        let mut answers = [const { None }; BATCH];
        let mut expected = [None; BATCH];
        while batches == 0 || (begun.elapsed() < budget && batches < ENOUGH_BATCHES) {
            self.change_nodes();
            let demands = self.picked_demands();
            let timer = Instant::now();
            for (answer, demand) in answers.iter_mut().zip(&demands) {
                let query = query(demand, constraints);
                *answer = self.cluster.table.search(black_box(&query));
            }
            // The first batch warms the caches.
            if batches > 0 {
                ours.record(timer.elapsed());
            }
            let timer = Instant::now();
            for (answer, demand) in expected.iter_mut().zip(&demands) {
                *answer = match zone {
                    None => self.cluster.scan.search(black_box(demand)),
                    Some(_) => self.cluster.locked.search(demand, zone),
                };
            }
            scan.record(timer.elapsed());
            for ((answer, expected), demand) in answers.iter().zip(&expected).zip(&demands) {
                let found = answer.as_ref().map(|placement| placement.node);
                let expected = expected.map(|node| self.cluster.indices[node]);
                assert_eq!(found, expected, "{name}: the first fit for {demand:?}");
            }
            // It may take a hundred times as long as the scan: fewer will do.
            let timer = Instant::now();
            for demand in &demands[..LOCKED_BATCH] {
                black_box(self.cluster.locked.search(black_box(demand), zone));
            }
            locked.record(timer.elapsed());
            batches += 1;
        }
        let row = ours.row(name, BATCH);
        let beside_locks = BenchRow {
            name: format!("{name}/locked"),
            ..row.clone()
        };
        let mut rows = vec![beside_locks.beside(locked.quantile(0.5, LOCKED_BATCH))];
        if zone.is_none() {
            rows.insert(0, row.beside(scan.quantile(0.5, BATCH)));
        }
        rows
    }

    /// A READY's new capacity; and a whole START: search, debit, mark as recent, settle.
    fn updates(&mut self) -> Vec<BenchRow> {
        let mut update = Timings::new();
        let mut start = Timings::new();
        let budget = Duration::from_millis(self.config.budget_ms);
        let begun = Instant::now();
        let mut batches = 0;
        while batches == 0 || (begun.elapsed() < budget && batches < ENOUGH_BATCHES) {
            let changes: Vec<(NodeIndex, Capacity)> = (0..BATCH)
                .map(|_| {
                    let node = self.rng.below(self.config.nodes);
                    (self.cluster.indices[node], roomy(&mut self.rng))
                })
                .collect();
            let timer = Instant::now();
            for (index, free) in &changes {
                self.cluster.table.set_available(*index, black_box(free));
            }
            update.record(timer.elapsed());
            let demands = self.picked_demands();
            let timer = Instant::now();
            for demand in &demands {
                let query = query(demand, &[]);
                if let Some(placement) = self.cluster.table.place(black_box(&query)) {
                    self.cluster.table.settled(placement.node);
                }
            }
            start.record(timer.elapsed());
            batches += 1;
        }
        vec![
            update.row("update", BATCH),
            start.row("place-and-settle", BATCH),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_distribution_agrees_with_its_reference() {
        let rows = bench_place(&BenchPlaceConfig {
            nodes: 3_000,
            budget_ms: 1,
            ..BenchPlaceConfig::default()
        });
        for name in [
            "search/all-fit",
            "search/last-fits",
            "search/adversarial",
            "update",
        ] {
            assert!(rows.iter().any(|row| row.name == name), "{name} is there");
        }
    }
}
