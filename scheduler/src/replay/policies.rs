//! Policies to compare the node table with. Each reads every node for each placement.
//!
//! - best fit: of the nodes that fit, the one with the least free, worst fit: with the most. Free is
//!   the sum of CPUs and GPUs, each as a share of the largest node's.
//! - random: any node and any device of those that fit.
//! - FGD (Weng et al., "Beware of Fragmentation", USENIX ATC 2023): the node and device on which
//!   the placement adds least to the GPU capacity that the trace's typical demands can't use. As in
//!   its authors' plugin for Kubernetes, a node's score is a whole number from 0 to 100.
//!
//! They are as in the paper's experiments, so that figures can be compared; best fit and worst fit
//! choose the tightest device, as the table does. Of equals the first is taken.

use super::rng::Rng;
use super::trace::{Trace, TraceNode, TraceTask};
use pronto_payloads::demand::{Capacity, Constraint, Demand, GPU_MILLIS};
use pronto_payloads::place::GpuShare;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    BestFit,
    WorstFit,
    Random,
    Fgd,
}

/// What tells demands apart for FGD: CPU, memory, devices and how much of each.
type Shape = (u32, u32, u16, u16);

fn shape_of(demand: &Demand) -> Shape {
    let (devices, each) = demand.gpu_shape();
    (demand.cpu_millis, demand.memory_mib, devices, each)
}

/// The distinct demands of a trace and how often each occurs.
#[derive(Clone, Debug)]
pub(super) struct Typical {
    shapes: Vec<(Shape, f64)>,
    numbers: HashMap<Shape, usize>,
}

impl Typical {
    pub(super) fn new(trace: &Trace) -> Self {
        let mut typical = Self {
            shapes: Vec::new(),
            numbers: HashMap::new(),
        };
        let each = 1.0 / trace.tasks.len().max(1) as f64;
        for task in &trace.tasks {
            let shape = shape_of(&task.demand);
            let next = typical.shapes.len();
            let number = *typical.numbers.entry(shape).or_insert(next);
            if number == next {
                typical.shapes.push((shape, 0.0));
            }
            typical.shapes[number].1 += each;
        }
        typical
    }

    /// The GPU thousandths of a node that the typical demands can't use.
    pub(super) fn waste(&self, free: &Capacity) -> f64 {
        let total: f64 = free.gpu_millis.iter().copied().map(f64::from).sum();
        let mut sum = 0.0;
        for &((cpu_millis, memory_mib, devices, each), weight) in &self.shapes {
            if devices == 0 {
                // As in the paper: no GPU is of use to them.
                sum += weight * total;
                continue;
            }
            let suffices = free.gpu_millis.iter().filter(|&&free| free >= each);
            let holds = free.cpu_millis >= cpu_millis
                && free.memory_mib >= memory_mib
                && suffices.count() >= usize::from(devices);
            sum += weight
                * if holds {
                    let rests = free.gpu_millis.iter().filter(|&&free| free < each);
                    rests.copied().map(f64::from).sum()
                } else {
                    total
                };
        }
        sum
    }
}

/// What a placement would add to a node's waste, and the first of its devices. `None` = unknown.
type Scores = Vec<Option<(f64, u16)>>;

/// A cluster under one of the policies.
#[derive(Debug)]
pub(super) struct Linear<'a> {
    policy: Policy,
    nodes: Vec<&'a TraceNode>,
    free: Vec<Capacity>,
    largest: [f64; 2],
    rng: Rng,
    typical: &'a Typical,
    /// By node, then by shape; forgotten when the node changes.
    scores: Vec<Scores>,
}

impl<'a> Linear<'a> {
    pub(super) fn new(
        policy: Policy,
        nodes: Vec<&'a TraceNode>,
        typical: &'a Typical,
        rng: Rng,
    ) -> Self {
        let free: Vec<Capacity> = nodes.iter().map(|node| node.capacity.clone()).collect();
        let largest = free.iter().map(sizes).fold([1.0_f64; 2], |largest, sizes| {
            std::array::from_fn(|dimension| largest[dimension].max(sizes[dimension]))
        });
        Self {
            scores: vec![vec![None; typical.shapes.len()]; nodes.len()],
            policy,
            nodes,
            free,
            largest,
            rng,
            typical,
        }
    }

    pub(super) fn place(&mut self, task: &TraceTask) -> Option<(usize, Vec<GpuShare>)> {
        let fitting = (0..self.nodes.len()).filter(|&node| {
            holds(&self.free[node], &task.demand) && suits(self.nodes[node], &task.constraints)
        });
        let fitting: Vec<usize> = fitting.collect();
        let node = match self.policy {
            Policy::Random => *fitting.get(self.rng.below(fitting.len().max(1)))?,
            Policy::BestFit => self.least(&fitting, |this, node| this.free_share(node))?,
            Policy::WorstFit => self.least(&fitting, |this, node| -this.free_share(node))?,
            Policy::Fgd => self.least(&fitting, |this, node| {
                let (added, _) = this.score(node, &task.demand);
                // The plugin: the logistic function of the devices that are saved, in percent.
                -(100.0 / (1.0 + (added / f64::from(GPU_MILLIS)).exp())).floor()
            })?,
        };
        let first = match self.policy {
            Policy::Fgd => Some(self.score(node, &task.demand).1),
            Policy::Random => self.any_device(node, task.demand.gpu_shape().1),
            Policy::BestFit | Policy::WorstFit => None,
        };
        let shares = shares(&self.free[node], &task.demand, first);
        self.set(node, |free| {
            crate::table::subtract(free, &task.demand, shares.iter().copied());
        });
        Some((node, shares))
    }

    /// Changes what is free on a node.
    pub(super) fn set(&mut self, node: usize, change: impl FnOnce(&mut Capacity)) {
        change(&mut self.free[node]);
        self.scores[node].fill(None);
    }

    fn least(
        &mut self,
        nodes: &[usize],
        mut score: impl FnMut(&mut Self, usize) -> f64,
    ) -> Option<usize> {
        let mut best = None;
        for &node in nodes {
            let score = score(self, node);
            if best.is_none_or(|(_, least)| score < least - 1e-6) {
                best = Some((node, score));
            }
        }
        best.map(|(node, _)| node)
    }

    fn free_share(&self, node: usize) -> f64 {
        let sizes = sizes(&self.free[node]).into_iter().zip(self.largest);
        sizes.map(|(free, largest)| free / largest).sum()
    }

    fn any_device(&mut self, node: usize, each: u16) -> Option<u16> {
        let numbered = (0_u16..).zip(&self.free[node].gpu_millis);
        let fitting = numbered.filter(|&(_, &free)| free >= each);
        let fitting: Vec<u16> = fitting.map(|(device, _)| device).collect();
        let any = self.rng.below(fitting.len().max(1));
        fitting.get(any).copied()
    }

    fn score(&mut self, node: usize, demand: &Demand) -> (f64, u16) {
        let number = self.typical.numbers[&shape_of(demand)];
        if let Some(score) = self.scores[node][number] {
            return score;
        }
        let free = &self.free[node];
        let before = self.typical.waste(free);
        let (devices, each) = demand.gpu_shape();
        let mut tried: Vec<u16> = Vec::new();
        let mut best = (f64::INFINITY, 0);
        for (device, &rest) in (0_u16..).zip(&free.gpu_millis) {
            if devices == 1 && each < GPU_MILLIS && (rest < each || tried.contains(&rest)) {
                continue;
            }
            tried.push(rest);
            let mut after = free.clone();
            let shares = shares(free, demand, Some(device));
            crate::table::subtract(&mut after, demand, shares.iter().copied());
            let added = self.typical.waste(&after) - before;
            if added < best.0 - 1e-6 {
                best = (added, device);
            }
            if devices != 1 || each == GPU_MILLIS {
                break;
            }
        }
        if free.gpu_millis.is_empty() {
            best.0 = 0.0;
        }
        self.scores[node][number] = Some(best);
        best
    }
}

/// CPUs and GPUs.
fn sizes(free: &Capacity) -> [f64; 2] {
    let gpus: u32 = free.gpu_millis.iter().copied().map(u32::from).sum();
    [free.cpu_millis, gpus].map(f64::from)
}

fn holds(free: &Capacity, demand: &Demand) -> bool {
    let (devices, each) = demand.gpu_shape();
    free.cpu_millis >= demand.cpu_millis
        && free.memory_mib >= demand.memory_mib
        && free.disk_mib >= demand.disk_mib
        && (devices == 0
            || free.gpu_millis.iter().filter(|&&free| free >= each).count() >= usize::from(devices))
}

fn suits(node: &TraceNode, constraints: &[Constraint]) -> bool {
    constraints.iter().all(|constraint| match constraint {
        Constraint::Node(name) => *name == node.name,
        Constraint::Label { key, value } => {
            let mut labels = node.labels.iter();
            labels.any(|label| label.key == *key && label.value == *value)
        }
    })
}

/// Devices for a demand that fits: for a share the one that is asked for, or the tightest.
fn shares(free: &Capacity, demand: &Demand, device: Option<u16>) -> Vec<GpuShare> {
    let (devices, each) = demand.gpu_shape();
    let numbered = (0_u16..).zip(free.gpu_millis.iter().copied());
    let mut fitting: Vec<(u16, u16)> = numbered.filter(|&(_, free)| free >= each).collect();
    if each < GPU_MILLIS {
        fitting.sort_by_key(|&(number, free)| (Some(number) != device, free));
    }
    let chosen = fitting.into_iter().take(usize::from(devices));
    chosen
        .map(|(device, _)| GpuShare {
            device,
            millis: each,
        })
        .collect()
}
