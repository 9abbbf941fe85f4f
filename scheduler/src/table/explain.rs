//! Why a demand does not fit, counted over all nodes. Off the placement path: it is linear.

use super::node::{Node, Obstacle, Slot, lacking, quantities};
use super::query::{Compiled, Quantities, Query};
use super::{NodeIndex, NodeTable};
use pronto_payloads::demand::{Constraint, Resource};
use pronto_payloads::limits;
use pronto_payloads::place::{CountedReason, Reason};
use std::collections::BTreeMap;

/// The answer to EXPLAIN, apart from the capacity generation, which the table does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    pub nodes: u32,
    /// Nodes that would take it now.
    pub fits: u32,
    /// The node that it would be placed on.
    pub node: Option<NodeIndex>,
    /// For the nodes that would not take it, most frequent first.
    pub reasons: Vec<CountedReason>,
}

impl NodeTable {
    /// Counts, over all nodes, the first reason that keeps each from taking the demand.
    #[must_use]
    pub fn explain(&self, query: &Query<'_>) -> Explained {
        let compiled = self.compile(query);
        let mut counts: BTreeMap<Reason, u32> = BTreeMap::new();
        let mut nodes = 0;
        let mut fits = 0;
        for (slot, node) in self.slots.iter().zip(&self.nodes) {
            let Some(node) = node else { continue };
            nodes += 1;
            match self.reason(slot, node, query, &compiled) {
                Some(reason) => *counts.entry(reason).or_default() += 1,
                None => fits += 1,
            }
        }
        let mut reasons: Vec<CountedReason> = counts
            .into_iter()
            .map(|(reason, nodes)| CountedReason { reason, nodes })
            .collect();
        reasons.sort_by(|a, b| b.nodes.cmp(&a.nodes).then_with(|| a.reason.cmp(&b.reason)));
        reasons.truncate(limits::REASONS);
        Explained {
            nodes,
            fits,
            node: self.look(query).map(|slot| self.index_of(slot)),
            reasons,
        }
    }

    fn reason(
        &self,
        slot: &Slot,
        node: &Node,
        query: &Query<'_>,
        compiled: &Compiled<'_>,
    ) -> Option<Reason> {
        let obstacles = [
            (Obstacle::Maintenance, Reason::Maintenance),
            (Obstacle::Full, Reason::ReportsFull),
            (Obstacle::QueueFull, Reason::QueueFull),
            (Obstacle::BackedOff, Reason::BackedOff),
        ];
        for (obstacle, reason) in obstacles {
            if slot.admission.has(obstacle) {
                return Some(reason);
            }
        }
        if !(slot.schema_min..=slot.schema_max).contains(&query.schema) {
            return Some(Reason::Schema);
        }
        if slot.runtimes & compiled.runtime == 0 {
            return Some(Reason::Runtime {
                name: query.runtime.name().to_owned(),
            });
        }
        let is_other = |constraint: &Constraint| matches!(constraint, Constraint::Node(name) if **name != *node.name);
        if query.constraints.iter().any(is_other) {
            return Some(Reason::NotThisNode);
        }
        for constraint in query.constraints {
            let Constraint::Label { key, value } = constraint else {
                continue;
            };
            let has = |label| node.labels.binary_search(&label).is_ok();
            if !self.labels.find(key, value).is_some_and(has) {
                return Some(Reason::Label {
                    key: key.clone(),
                    value: value.clone(),
                });
            }
        }
        let allocatable = quantities(&node.allocatable);
        let resources = compiled.resources;
        if let Some(dimension) = short(
            &allocatable,
            &node.allocatable.resources,
            compiled,
            resources,
        ) {
            return Some(Reason::TooSmall { dimension });
        }
        if !slot.reported {
            // Connected, and its first READY is still on the way: nothing is known to be free.
            return Some(Reason::ReportsFull);
        }
        short(&slot.free, &node.resources, compiled, resources)
            .map(|dimension| Reason::Lacks { dimension })
    }
}

/// The first dimension that does not suffice.
fn short(
    has: &Quantities,
    has_resources: &[Resource],
    compiled: &Compiled<'_>,
    resources: &[Resource],
) -> Option<String> {
    let need = &compiled.quantities;
    let gpu = if compiled.gpu_shape.1 < pronto_payloads::demand::GPU_MILLIS {
        "gpu share"
    } else {
        "gpus"
    };
    let quantities = [
        ("cpu", has.cpu_millis < need.cpu_millis),
        ("memory", has.memory_mib < need.memory_mib),
        ("disk", has.disk_mib < need.disk_mib),
        (gpu, has.gpu_rank < need.gpu_rank),
    ];
    quantities
        .into_iter()
        .find_map(|(name, lacks)| lacks.then(|| name.to_owned()))
        .or_else(|| {
            resources
                .iter()
                .find_map(|need| lacking(has_resources, need))
                .map(str::to_owned)
        })
}
