//! A trace in its own time: arrivals, departures, and a queue of what does not fit yet.
//!
//! What waits is tried again, oldest first, when something has departed; a small demand may overtake
//! a large one that still does not fit. Demands that were refused since the last departure are not
//! tried twice: equal ones would be refused again.

use super::cluster::{Cluster, Held, Replayed};
use super::simulate::{Outcome, reason};
use super::trace::{TaskTimes, TraceTask};
use pronto_payloads::demand::{Constraint, Demand};
use pronto_payloads::place::Refusal;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::time::Instant;

/// How long tasks waited for a place, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Waiting {
    /// Tasks that were placed, at once or later.
    pub placed: f64,
    /// Those of them that waited.
    pub waited: f64,
    /// Tasks that no node could ever hold.
    pub refused: f64,
    /// Over all that were placed.
    pub mean_s: f64,
    pub p50_s: f64,
    pub p90_s: f64,
    pub p99_s: f64,
    pub max_s: f64,
    /// From the first arrival to the last departure.
    pub makespan_s: f64,
}

impl Waiting {
    fn new(mut waits_s: Vec<f64>, refused: usize, makespan_s: f64) -> Self {
        waits_s.sort_by(f64::total_cmp);
        let quantile = |percent: usize| {
            let at = (waits_s.len() * percent / 100).min(waits_s.len().saturating_sub(1));
            waits_s.get(at).copied().unwrap_or(0.0)
        };
        Self {
            placed: waits_s.len() as f64,
            waited: waits_s.iter().filter(|&&wait| wait > 0.0).count() as f64,
            refused: refused as f64,
            mean_s: waits_s.iter().sum::<f64>() / waits_s.len().max(1) as f64,
            p50_s: quantile(50),
            p90_s: quantile(90),
            p99_s: quantile(99),
            max_s: quantile(100),
            makespan_s,
        }
    }

    pub(super) fn mean(all: &[&Self]) -> Option<Self> {
        if all.is_empty() {
            return None;
        }
        let of = |value: fn(&Self) -> f64| {
            all.iter().map(|waiting| value(waiting)).sum::<f64>() / all.len() as f64
        };
        Some(Self {
            placed: of(|waiting| waiting.placed),
            waited: of(|waiting| waiting.waited),
            refused: of(|waiting| waiting.refused),
            mean_s: of(|waiting| waiting.mean_s),
            p50_s: of(|waiting| waiting.p50_s),
            p90_s: of(|waiting| waiting.p90_s),
            p99_s: of(|waiting| waiting.p99_s),
            max_s: of(|waiting| waiting.max_s),
            makespan_s: of(|waiting| waiting.makespan_s),
        })
    }
}

/// A moment, ordered.
#[derive(Clone, Copy, Debug, PartialEq)]
struct At(f64);

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

struct Replay<'a, 'b> {
    tasks: &'a [TraceTask],
    cluster: &'a mut Cluster<'b>,
    outcome: Outcome,
    running: Vec<Option<Held>>,
    departures: BinaryHeap<Reverse<(At, usize)>>,
    waits_s: Vec<f64>,
    ever_refused: usize,
}

impl Replay<'_, '_> {
    /// Whether the task is settled: placed, or refused for ever.
    fn try_now(&mut self, task: usize, now_s: f64) -> bool {
        let timer = Instant::now();
        let placed = self.cluster.place(&self.tasks[task]);
        self.outcome.elapsed += timer.elapsed();
        self.outcome.attempts += 1;
        match placed {
            Replayed::Placed(held) => {
                let TaskTimes {
                    arrival_s,
                    duration_s,
                } = times(&self.tasks[task]);
                self.waits_s.push(now_s - arrival_s);
                self.running[task] = Some(held);
                self.departures
                    .push(Reverse((At(now_s + duration_s), task)));
                true
            }
            Replayed::Refused(refusal) => {
                *self.outcome.refusals.entry(reason(refusal)).or_default() += 1;
                let for_ever = refusal != Refusal::CloudFull;
                self.ever_refused += usize::from(for_ever);
                for_ever
            }
        }
    }
}

fn times(task: &TraceTask) -> TaskTimes {
    task.times.unwrap_or_default()
}

pub(super) fn replay(tasks: &[TraceTask], cluster: &mut Cluster<'_>) -> Outcome {
    let mut arrivals: Vec<usize> = (0..tasks.len()).collect();
    arrivals.sort_by(|&a, &b| {
        let (a, b) = (times(&tasks[a]), times(&tasks[b]));
        a.arrival_s.total_cmp(&b.arrival_s)
    });
    let first_s = arrivals
        .first()
        .map_or(0.0, |&task| times(&tasks[task]).arrival_s);
    let mut arrivals: VecDeque<usize> = arrivals.into();
    let mut replay = Replay {
        tasks,
        cluster,
        outcome: Outcome::default(),
        running: vec![None; tasks.len()],
        departures: BinaryHeap::new(),
        waits_s: Vec::new(),
        ever_refused: 0,
    };
    let mut queue: VecDeque<usize> = VecDeque::new();
    let mut now_s = first_s;
    let mut refused: HashSet<(&Demand, &[Constraint])> = HashSet::new();
    loop {
        let arrival = arrivals.front().map(|&task| times(&tasks[task]).arrival_s);
        let departure = replay.departures.peek().map(|Reverse((at, _))| at.0);
        // Of equal moments the departure comes first: its place can be taken at once.
        match (arrival, departure) {
            (arrival, Some(at_s)) if arrival.is_none_or(|arrival_s| at_s <= arrival_s) => {
                now_s = at_s;
                while let Some(&Reverse((at, task))) = replay.departures.peek() {
                    if at.0 > now_s {
                        break;
                    }
                    replay.departures.pop();
                    if let Some(held) = replay.running[task].take() {
                        replay.cluster.release(&held);
                    }
                }
                refused.clear();
                queue.retain(|&task| {
                    let class = (&tasks[task].demand, tasks[task].constraints.as_slice());
                    if refused.contains(&class) {
                        return true;
                    }
                    let is_settled = replay.try_now(task, now_s);
                    if !is_settled {
                        refused.insert(class);
                    }
                    !is_settled
                });
            }
            (Some(at_s), _) => {
                now_s = at_s;
                let Some(task) = arrivals.pop_front() else {
                    break;
                };
                let class = (&tasks[task].demand, tasks[task].constraints.as_slice());
                if refused.contains(&class) {
                    queue.push_back(task);
                } else if !replay.try_now(task, now_s) {
                    refused.insert(class);
                    queue.push_back(task);
                }
            }
            _ => break,
        }
        let point = replay.cluster.percentages(now_s - first_s);
        replay.outcome.curve.push(point);
    }
    let mut outcome = replay.outcome;
    outcome.failed = replay.ever_refused + queue.len();
    outcome.failed_at_100 = outcome.failed;
    outcome.waiting = Some(Waiting::new(
        replay.waits_s,
        replay.ever_refused,
        now_s - first_s,
    ));
    outcome
}
