//! `pronto simulate`: a trace through the very same node table, in seconds and without processes.
//!
//! A trace without times is replayed as the FGD paper does it: what arrives is shuffled, then drawn
//! again from the list until 130 % of the cluster's GPU capacity has arrived (of its CPUs, if it has
//! no GPUs); nothing departs and nothing is tried twice. A trace with times is replayed in its own
//! time: what does not fit waits, and is tried again, oldest first, when something has departed.
//!
//! Every figure is the mean over the seeds.

use super::cluster::{Cluster, Replayed};
use super::policies::{Policy, Typical};
use super::rng::Rng;
use super::timed::{self, Waiting};
use super::trace::{Trace, TraceTask};
use crate::table::{Fit, Spread};
use pronto_payloads::demand::Demand;
use pronto_payloads::place::Refusal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What chooses the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Chooser {
    /// The scheduler's own table.
    Table { fit: Fit, spread: Spread },
    /// A policy to compare it with.
    Policy(Policy),
}

/// In which order the nodes connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// As the nodes of a cluster come up: in no order that has to do with their kind. The same for
    /// every seed.
    #[default]
    Pronto,
    /// As in the file.
    List,
    /// Shuffled by each seed, as in the paper.
    Shuffle,
}

/// What is replayed, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulateConfig {
    pub trace: Trace,
    pub chooser: Chooser,
    pub order: Order,
    /// READYs count all STARTs after each so many placements: 1 is a calm cluster, more a burst.
    pub ready_every: usize,
    /// 42 to 51 by default.
    pub seeds: Vec<u64>,
}

impl SimulateConfig {
    /// The default way to replay a trace.
    #[must_use]
    pub fn new(trace: Trace) -> Self {
        Self {
            trace,
            chooser: Chooser::Table {
                fit: Fit::default(),
                spread: Spread::default(),
            },
            order: Order::default(),
            ready_every: 1,
            seeds: (42..=51).collect(),
        }
    }
}

/// Percentages of a cluster's capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentages {
    /// Demand that has arrived, in the dimension that the replay is measured by.
    pub arrived: f64,
    pub gpu: f64,
    pub cpu: f64,
    pub memory: f64,
    /// GPU capacity that is free and useless to the typical demands.
    pub gpu_fragmented: f64,
}

/// What a replay shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SimulateReport {
    pub nodes: usize,
    pub tasks: usize,
    pub seeds: Vec<u64>,
    pub gpu_alloc_percent_at_100: f64,
    pub gpu_alloc_percent_at_130: f64,
    pub cpu_alloc_percent_at_100: f64,
    pub cpu_alloc_percent_at_130: f64,
    pub memory_alloc_percent_at_100: f64,
    pub memory_alloc_percent_at_130: f64,
    pub gpu_fragmented_percent_at_100: f64,
    pub gpu_fragmented_percent_at_130: f64,
    pub failed_at_100: f64,
    pub failed_at_130: f64,
    pub placements_per_second: f64,
    /// Refusals by reason, all attempts together.
    pub refusals: BTreeMap<String, f64>,
    /// Allocation against arrived demand, a point for each percent; by time for a timed trace.
    pub curve: Vec<Percentages>,
    /// For a trace with times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    pub runs: Vec<Run>,
}

/// One seed's part of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Run {
    pub seed: u64,
    pub gpu_alloc_percent_at_100: f64,
    pub gpu_alloc_percent_at_130: f64,
    pub failed_at_100: f64,
    pub failed_at_130: f64,
}

/// Arrived demand at which a replay ends, in percent of the capacity.
const LAST_PERCENT: usize = 130;

/// Replays a trace.
#[must_use]
pub fn simulate(config: &SimulateConfig) -> SimulateReport {
    let typical = Typical::new(&config.trace);
    let is_timed = config.trace.tasks.iter().any(|task| task.times.is_some());
    let mut runs = Vec::new();
    for &seed in &config.seeds {
        let mut rng = Rng::new(seed);
        let mut cluster = Cluster::new(config, &typical, &mut rng);
        let run = if is_timed {
            timed::replay(&config.trace.tasks, &mut cluster)
        } else {
            untimed(&config.trace.tasks, &mut cluster, &typical, &mut rng)
        };
        runs.push((seed, run));
    }
    summarise(config, &runs)
}

/// What one seed's replay has shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) curve: Vec<Percentages>,
    pub(super) failed_at_100: usize,
    pub(super) failed: usize,
    pub(super) attempts: usize,
    pub(super) elapsed: Duration,
    pub(super) refusals: BTreeMap<&'static str, usize>,
    pub(super) waiting: Option<Waiting>,
}

pub(super) const fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NeverFits => "never_fits",
        Refusal::NoNodes => "no_nodes",
        _ => "cloud_full",
    }
}

fn untimed(
    tasks: &[TraceTask],
    cluster: &mut Cluster<'_>,
    typical: &Typical,
    rng: &mut Rng,
) -> Outcome {
    let mut sequence: Vec<usize> = (0..tasks.len()).collect();
    rng.shuffle(&mut sequence);
    let by_gpu = cluster.capacity().gpu_millis > 0;
    let measure = |demand: &Demand| {
        if by_gpu {
            u64::from(demand.gpu_total_millis())
        } else {
            u64::from(demand.cpu_millis)
        }
    };
    let capacity = if by_gpu {
        cluster.capacity().gpu_millis
    } else {
        cluster.capacity().cpu_millis
    };
    let mut outcome = Outcome::default();
    let total: u64 = tasks.iter().map(|task| measure(&task.demand)).sum();
    if total == 0 || capacity == 0 {
        return outcome;
    }
    let mut arrived = 0;
    while outcome.curve.len() <= LAST_PERCENT {
        let next = sequence.get(outcome.attempts).copied();
        let task = &tasks[next.unwrap_or_else(|| rng.below(tasks.len()))];
        let timer = Instant::now();
        let placed = cluster.place(task);
        outcome.elapsed += timer.elapsed();
        outcome.attempts += 1;
        arrived += measure(&task.demand);
        if let Replayed::Refused(refusal) = placed {
            outcome.failed += 1;
            *outcome.refusals.entry(reason(refusal)).or_default() += 1;
        }
        // A point once so much has arrived: point n of the curve is n percent.
        while outcome.curve.len() <= LAST_PERCENT
            && arrived * 100 >= capacity * outcome.curve.len() as u64
        {
            let percent = outcome.curve.len();
            let mut point = cluster.percentages(percent as f64);
            if percent.is_multiple_of(10) {
                point.gpu_fragmented = cluster.fragmented(typical);
            }
            if percent == 100 {
                outcome.failed_at_100 = outcome.failed;
            }
            outcome.curve.push(point);
        }
    }
    outcome
}

fn mean<T>(items: &[T], value: impl Fn(&T) -> f64) -> f64 {
    items.iter().map(value).sum::<f64>() / items.len().max(1) as f64
}

fn summarise(config: &SimulateConfig, outcomes: &[(u64, Outcome)]) -> SimulateReport {
    let points = outcomes.iter().map(|(_, outcome)| outcome.curve.len());
    let points = points.min().unwrap_or(0);
    let curve: Vec<Percentages> = (0..points)
        .map(|point| {
            let of = |value: fn(&Percentages) -> f64| {
                mean(outcomes, |(_, outcome)| value(&outcome.curve[point]))
            };
            Percentages {
                arrived: of(|point| point.arrived),
                gpu: of(|point| point.gpu),
                cpu: of(|point| point.cpu),
                memory: of(|point| point.memory),
                gpu_fragmented: of(|point| point.gpu_fragmented),
            }
        })
        .collect();
    let at = |percent: usize| {
        let point = curve.get(percent).or(curve.last());
        point.copied().unwrap_or_default()
    };
    let (at_100, at_130) = (at(100), at(LAST_PERCENT));
    let mut refusals = BTreeMap::new();
    for (_, outcome) in outcomes {
        for (&reason, &count) in &outcome.refusals {
            *refusals.entry(reason.to_owned()).or_insert(0.0) +=
                count as f64 / outcomes.len() as f64;
        }
    }
    let attempts: usize = outcomes.iter().map(|(_, outcome)| outcome.attempts).sum();
    let elapsed: Duration = outcomes.iter().map(|(_, outcome)| outcome.elapsed).sum();
    let runs = outcomes.iter().map(|(seed, outcome)| {
        let gpu = |percent: usize| outcome.curve.get(percent).map_or(0.0, |point| point.gpu);
        Run {
            seed: *seed,
            gpu_alloc_percent_at_100: gpu(100),
            gpu_alloc_percent_at_130: gpu(LAST_PERCENT),
            failed_at_100: outcome.failed_at_100 as f64,
            failed_at_130: outcome.failed as f64,
        }
    });
    let waiting: Vec<&Waiting> = outcomes
        .iter()
        .filter_map(|(_, outcome)| outcome.waiting.as_ref())
        .collect();
    SimulateReport {
        nodes: config.trace.nodes.len(),
        tasks: config.trace.tasks.len(),
        seeds: config.seeds.clone(),
        gpu_alloc_percent_at_100: at_100.gpu,
        gpu_alloc_percent_at_130: at_130.gpu,
        cpu_alloc_percent_at_100: at_100.cpu,
        cpu_alloc_percent_at_130: at_130.cpu,
        memory_alloc_percent_at_100: at_100.memory,
        memory_alloc_percent_at_130: at_130.memory,
        gpu_fragmented_percent_at_100: at_100.gpu_fragmented,
        gpu_fragmented_percent_at_130: at_130.gpu_fragmented,
        failed_at_100: mean(outcomes, |(_, outcome)| outcome.failed_at_100 as f64),
        failed_at_130: mean(outcomes, |(_, outcome)| outcome.failed as f64),
        placements_per_second: attempts as f64 / elapsed.as_secs_f64().max(1e-9),
        refusals,
        curve,
        waiting: Waiting::mean(&waiting),
        runs: runs.collect(),
    }
}
