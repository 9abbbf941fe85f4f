//! The cluster of a replay: its nodes in their order, what is free on each, and who chooses.

use super::policies::{Linear, Typical};
use super::rng::Rng;
use super::simulate::{Chooser, Order, Percentages, SimulateConfig};
use super::trace::{Trace, TraceNode, TraceTask};
use crate::table::{NodeIndex, NodeSpec, NodeTable, Query, TableConfig, subtract};
use pronto_payloads::demand::{Capacity, Demand, Runtime};
use pronto_payloads::place::{GpuShare, Refusal};

/// Sums over a cluster.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) cpu_millis: u64,
    pub(super) memory_mib: u64,
    pub(super) gpu_millis: u64,
}

impl Totals {
    fn add(&mut self, capacity: &Capacity) {
        self.cpu_millis += u64::from(capacity.cpu_millis);
        self.memory_mib += u64::from(capacity.memory_mib);
        self.gpu_millis += capacity
            .gpu_millis
            .iter()
            .copied()
            .map(u64::from)
            .sum::<u64>();
    }
}

/// What runs where, to be given back.
#[derive(Clone, Debug)]
pub(super) struct Held {
    node: usize,
    demand: Demand,
    gpus: Vec<GpuShare>,
}

/// What became of a task.
#[derive(Clone, Debug)]
pub(super) enum Replayed {
    Placed(Held),
    Refused(Refusal),
}

enum Choosing<'a> {
    Table {
        table: Box<NodeTable>,
        indices: Vec<NodeIndex>,
        /// By slot of the table, the node's number here.
        numbers: Vec<usize>,
    },
    Linear(Box<Linear<'a>>),
}

/// See the module's text.
pub(super) struct Cluster<'a> {
    choosing: Choosing<'a>,
    free: Vec<Capacity>,
    capacity: Totals,
    allocated: Totals,
    ready_every: usize,
    /// Nodes used since the last READYs.
    unsettled: Vec<usize>,
    since_ready: usize,
}

/// Decides the order of [`Order::Pronto`]: any number will do, but always the same.
const CONNECTING_SEED: u64 = 0x0070_726f_6e74_6f21;

fn ordered<'a>(trace: &'a Trace, order: Order, rng: &mut Rng) -> Vec<&'a TraceNode> {
    let mut nodes: Vec<&TraceNode> = trace.nodes.iter().collect();
    match order {
        Order::Pronto => Rng::new(CONNECTING_SEED).shuffle(&mut nodes),
        Order::List => {}
        Order::Shuffle => rng.shuffle(&mut nodes),
    }
    nodes
}

impl<'a> Cluster<'a> {
    pub(super) fn new(config: &'a SimulateConfig, typical: &'a Typical, rng: &mut Rng) -> Self {
        let nodes = ordered(&config.trace, config.order, rng);
        let free: Vec<Capacity> = nodes.iter().map(|node| node.capacity.clone()).collect();
        let mut capacity = Totals::default();
        free.iter().for_each(|free| capacity.add(free));
        let choosing = match config.chooser {
            Chooser::Policy(policy) => {
                let rng = Rng::new(rng.next());
                Choosing::Linear(Box::new(Linear::new(policy, nodes, typical, rng)))
            }
            Chooser::Table { fit, spread } => {
                let mut table = Box::new(NodeTable::new(TableConfig { fit, spread }));
                let indices: Vec<NodeIndex> =
                    nodes.iter().map(|node| connect(&mut table, node)).collect();
                let mut numbers = vec![0; indices.len()];
                for (number, index) in indices.iter().enumerate() {
                    numbers[index.position()] = number;
                }
                Choosing::Table {
                    table,
                    indices,
                    numbers,
                }
            }
        };
        Self {
            choosing,
            free,
            capacity,
            allocated: Totals::default(),
            ready_every: config.ready_every.max(1),
            unsettled: Vec::new(),
            since_ready: 0,
        }
    }

    pub(super) fn capacity(&self) -> Totals {
        self.capacity
    }

    pub(super) fn place(&mut self, task: &TraceTask) -> Replayed {
        let (node, gpus) = match &mut self.choosing {
            Choosing::Linear(linear) => match linear.place(task) {
                Some(placed) => placed,
                None => return Replayed::Refused(Refusal::CloudFull),
            },
            Choosing::Table { table, numbers, .. } => {
                let query = Query {
                    demand: &task.demand,
                    constraints: &task.constraints,
                    runtime: Runtime::Sim,
                    schema: 1,
                    prefer: None,
                    avoid: &[],
                };
                match table.place(&query) {
                    Some(placed) => (
                        numbers[placed.node.position()],
                        placed.gpus.into_iter().collect(),
                    ),
                    None => return Replayed::Refused(table.classify_refusal(&query)),
                }
            }
        };
        subtract(&mut self.free[node], &task.demand, gpus.iter().copied());
        self.allocated.cpu_millis += u64::from(task.demand.cpu_millis);
        self.allocated.memory_mib += u64::from(task.demand.memory_mib);
        self.allocated.gpu_millis += u64::from(task.demand.gpu_total_millis());
        self.unsettled.push(node);
        self.since_ready += 1;
        if self.since_ready >= self.ready_every {
            self.settle();
        }
        Replayed::Placed(Held {
            node,
            demand: task.demand.clone(),
            gpus,
        })
    }

    /// READYs count all STARTs so far.
    fn settle(&mut self) {
        self.since_ready = 0;
        if let Choosing::Table { table, indices, .. } = &mut self.choosing {
            for node in self.unsettled.drain(..) {
                table.settled(indices[node]);
            }
        }
        self.unsettled.clear();
    }

    pub(super) fn release(&mut self, held: &Held) {
        let Held { node, demand, gpus } = held;
        let add = |free: &mut Capacity| {
            free.cpu_millis += demand.cpu_millis;
            free.memory_mib += demand.memory_mib;
            free.disk_mib += demand.disk_mib;
            for share in gpus {
                free.gpu_millis[usize::from(share.device)] += share.millis;
            }
        };
        add(&mut self.free[*node]);
        match &mut self.choosing {
            Choosing::Linear(linear) => linear.set(*node, add),
            Choosing::Table { table, indices, .. } => {
                table.set_available(indices[*node], &self.free[*node]);
            }
        }
        self.allocated.cpu_millis -= u64::from(demand.cpu_millis);
        self.allocated.memory_mib -= u64::from(demand.memory_mib);
        self.allocated.gpu_millis -= u64::from(demand.gpu_total_millis());
    }

    /// How many placements each node got since the last READYs.
    pub(super) fn starts_by_node(&self) -> Vec<usize> {
        let mut counts = vec![0; self.free.len()];
        for &node in &self.unsettled {
            counts[node] += 1;
        }
        counts
    }

    /// What is allocated now.
    pub(super) fn percentages(&self, arrived: f64) -> Percentages {
        let percent = |part: u64, whole: u64| {
            if whole == 0 {
                0.0
            } else {
                100.0 * part as f64 / whole as f64
            }
        };
        Percentages {
            arrived,
            gpu: percent(self.allocated.gpu_millis, self.capacity.gpu_millis),
            cpu: percent(self.allocated.cpu_millis, self.capacity.cpu_millis),
            memory: percent(self.allocated.memory_mib, self.capacity.memory_mib),
            gpu_fragmented: 0.0,
        }
    }

    /// Percent of the GPU capacity that is free and useless to the typical demands.
    pub(super) fn fragmented(&self, typical: &Typical) -> f64 {
        let wasted: f64 = self.free.iter().map(|free| typical.waste(free)).sum();
        100.0 * wasted / (self.capacity.gpu_millis as f64).max(1.0)
    }
}

fn connect(table: &mut NodeTable, node: &TraceNode) -> NodeIndex {
    let index = table.insert(NodeSpec {
        name: node.name.clone(),
        allocatable: node.capacity.clone(),
        labels: node.labels.clone(),
        runtimes: vec![Runtime::Sim],
        schema_min: 1,
        schema_max: 1,
    });
    table.set_available(index, &node.capacity);
    index
}
