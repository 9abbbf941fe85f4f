//! What a whole placement costs in a busy cluster: search, choice, debit, and the mark as recently
//! used. The cluster has openb's kinds of nodes and demands, is as full as it gets, and stays so:
//! for each batch that is placed as much departs.

use super::{BATCH, BenchPlaceConfig, BenchRow, ENOUGH_BATCHES, Timings};
use crate::replay::{Rng, Trace, synthetic_openb};
use crate::table::{Fit, NodeIndex, NodeSpec, NodeTable, Placement, Query, TableConfig, subtract};
use pronto_payloads::demand::{Capacity, Demand, Runtime};
use std::hint::black_box;
use std::time::{Duration, Instant};

struct Busy {
    table: NodeTable,
    indices: Vec<NodeIndex>,
    free: Vec<Capacity>,
    /// What runs: which demand, and where.
    running: Vec<(usize, Placement)>,
}

fn query(demand: &Demand) -> Query<'_> {
    Query {
        demand,
        constraints: &[],
        runtime: Runtime::Sim,
        schema: 1,
        prefer: None,
        avoid: &[],
    }
}

impl Busy {
    fn new(nodes: usize, config: TableConfig, trace: &Trace, rng: &mut Rng) -> Self {
        let mut table = NodeTable::new(config);
        let mut free = Vec::new();
        let mut order: Vec<usize> = (0..nodes).collect();
        rng.shuffle(&mut order);
        let indices = order.into_iter().map(|number| {
            let capacity = &trace.nodes[number % trace.nodes.len()].capacity;
            let index = table.insert(NodeSpec {
                name: format!("node-{number}"),
                allocatable: capacity.clone(),
                runtimes: vec![Runtime::Sim],
                schema_min: 1,
                schema_max: 1,
                ..NodeSpec::default()
            });
            table.set_available(index, capacity);
            free.push(capacity.clone());
            index
        });
        Self {
            indices: indices.collect(),
            table,
            free,
            running: Vec::new(),
        }
    }

    fn started(&mut self, number: usize, demand: &Demand, placement: Placement) {
        subtract(
            &mut self.free[placement.node.position()],
            demand,
            &placement.gpus,
        );
        self.table.settled(placement.node);
        self.running.push((number, placement));
    }

    fn depart(&mut self, demands: &[Demand], rng: &mut Rng) {
        if self.running.is_empty() {
            return;
        }
        let (number, placement) = self.running.swap_remove(rng.below(self.running.len()));
        let demand = &demands[number];
        let free = &mut self.free[placement.node.position()];
        free.cpu_millis += demand.cpu_millis;
        free.memory_mib += demand.memory_mib;
        for share in &placement.gpus {
            free.gpu_millis[usize::from(share.device)] += share.millis;
        }
        let index = self.indices[placement.node.position()];
        self.table.set_available(index, free);
    }
}

pub(super) fn placements(config: &BenchPlaceConfig, name: &str, fit: Fit) -> BenchRow {
    let mut rng = Rng::new(config.seed);
    let trace = synthetic_openb(config.seed);
    let demands: Vec<Demand> = trace.tasks.iter().map(|task| task.demand.clone()).collect();
    let table = TableConfig {
        fit,
        spread: config.spread,
    };
    let mut busy = Busy::new(config.nodes, table, &trace, &mut rng);
    // A list of demands fills as many nodes as are in the trace; a bit more leaves no room.
    let enough = demands.len() * config.nodes / trace.nodes.len() * 11 / 10;
    for _ in 0..enough {
        let number = rng.below(demands.len());
        if let Some(placement) = busy.table.place(&query(&demands[number])) {
            busy.started(number, &demands[number], placement);
        }
    }
    let mut timings = Timings::new();
    let budget = Duration::from_millis(config.budget_ms);
    let begun = Instant::now();
    let mut batches = 0;
    while batches == 0 || (begun.elapsed() < budget && batches < ENOUGH_BATCHES) {
        for _ in 0..BATCH {
            busy.depart(&demands, &mut rng);
        }
        let picks: [usize; BATCH] = std::array::from_fn(|_| rng.below(demands.len()));
        let asked = picks.map(|pick| demands[pick].clone());
        let mut placed = [const { None }; BATCH];
        let timer = Instant::now();
        for (placed, demand) in placed.iter_mut().zip(&asked) {
            *placed = busy.table.place(black_box(&query(demand)));
        }
        timings.record(timer.elapsed());
        for (placement, &pick) in placed.into_iter().zip(&picks) {
            if let Some(placement) = placement {
                busy.started(pick, &demands[pick], placement);
            }
        }
        batches += 1;
    }
    timings.row(name, BATCH)
}
