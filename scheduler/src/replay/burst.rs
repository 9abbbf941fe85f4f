//! How evenly a burst of STARTs spreads over idle nodes before any READY comes back.

use super::trace::{Trace, TraceNode, TraceTask};
use super::{Chooser, Order, SimulateConfig, cluster::Cluster, policies::Typical, rng::Rng};
use crate::table::{Fit, Spread};
use pronto_payloads::demand::{Capacity, Demand};
use serde::Serialize;

/// Starts a node got in a burst.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BurstSpread {
    pub nodes: usize,
    pub starts: usize,
    pub fit: Fit,
    pub spread: Spread,
    /// Nodes that got any.
    pub nodes_used: usize,
    pub least_on_a_node: usize,
    pub most_on_a_node: usize,
    /// Standard deviation over the nodes, in starts.
    pub deviation: f64,
}

/// Places equal demands on equal idle nodes, each of which could hold all of them, while no READY
/// arrives.
#[must_use]
pub fn burst_spread(nodes: usize, starts: usize, spread: Spread, fit: Fit) -> BurstSpread {
    const CPU_MILLIS: u32 = 100;
    let whole = u32::try_from(starts).unwrap_or(u32::MAX);
    let node = |number: usize| TraceNode {
        name: format!("node-{number}"),
        capacity: Capacity {
            cpu_millis: whole.saturating_mul(CPU_MILLIS),
            ..Capacity::default()
        },
        labels: Vec::new(),
    };
    let task = TraceTask {
        demand: Demand {
            cpu_millis: CPU_MILLIS,
            ..Demand::default()
        },
        ..TraceTask::default()
    };
    let config = SimulateConfig {
        chooser: Chooser::Table { fit, spread },
        order: Order::List,
        ready_every: usize::MAX,
        ..SimulateConfig::new(Trace {
            nodes: (0..nodes).map(node).collect(),
            tasks: vec![task.clone()],
        })
    };
    let typical = Typical::new(&config.trace);
    let mut cluster = Cluster::new(&config, &typical, &mut Rng::new(0));
    for _ in 0..starts {
        cluster.place(&task);
    }
    let counts = cluster.starts_by_node();
    let mean = starts as f64 / nodes.max(1) as f64;
    let squares = counts.iter().map(|&count| (count as f64 - mean).powi(2));
    BurstSpread {
        nodes,
        starts,
        fit,
        spread,
        nodes_used: counts.iter().filter(|&&count| count > 0).count(),
        least_on_a_node: counts.iter().copied().min().unwrap_or(0),
        most_on_a_node: counts.iter().copied().max().unwrap_or(0),
        deviation: (squares.sum::<f64>() / nodes.max(1) as f64).sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_spreads_unless_only_the_last_node_is_avoided() {
        for fit in [Fit::First, Fit::Few { choices: 8 }] {
            for spread in [Spread::Settle, Spread::Rotate] {
                let burst = burst_spread(100, 1_000, spread, fit);
                assert_eq!(burst.least_on_a_node, 10, "{burst:?}");
                assert_eq!(burst.most_on_a_node, 10, "{burst:?}");
            }
            let burst = burst_spread(100, 1_000, Spread::Skip, fit);
            assert_eq!(burst.nodes_used, 2, "{burst:?}");
        }
    }
}
