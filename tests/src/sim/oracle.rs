//! What really happened, and whether it was allowed to.
//!
//! The oracle sees each process begin and end on its node, each acknowledgement that a user got,
//! and nothing of what the daemons believe. From that it checks the invariants of ARCHITECTURE.md;
//! the first violation ends the simulation.

use super::net::Time;
use pronto_payloads::demand::{Capacity, Demand};
use pronto_payloads::ids::InstanceId;
use pronto_payloads::place::AttemptId;
use pronto_payloads::start::OnDisconnect;
use std::collections::{BTreeMap, BTreeSet};

/// One attempt that runs.
#[derive(Clone, Debug)]
pub struct Running {
    pub node: u32,
    pub since: Time,
    pub demand: Demand,
    pub on_disconnect: OnDisconnect,
    pub tenant: String,
}

/// What a user was promised of an instance.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    pub tenant: String,
    pub stop: bool,
    pub deleted: bool,
}

/// How an attempt ended on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this code.
    Exited(i32),
    /// Stopped, timed out or fenced.
    Ended,
    /// With its machine.
    Died,
}

/// The watcher.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Every attempt that ever began.
    begun: BTreeSet<AttemptId>,
    pub running: BTreeMap<AttemptId, Running>,
    pub endings: BTreeMap<AttemptId, Ending>,
    pub acknowledged: BTreeMap<InstanceId, Acknowledged>,
    capacities: BTreeMap<u32, Capacity>,
    /// The quota of instances that each tenant has, where it has one.
    pub quotas: BTreeMap<String, u64>,
    /// The first violation.
    pub violation: Option<String>,
}

impl Oracle {
    /// A node and all that it may promise.
    pub fn add_node(&mut self, node: u32, capacity: Capacity) {
        self.capacities.insert(node, capacity);
    }

    /// Says that something forbidden has happened; the first one counts.
    pub fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// An attempt begins to run.
    pub fn begins(&mut self, id: AttemptId, running: Running) {
        if !self.begun.insert(id) {
            self.violate(format!("invariant 2: {id:?} ran twice"));
        }
        for (other, theirs) in &self.running {
            let same = other.owner == id.owner && other.instance == id.instance;
            if same && theirs.on_disconnect != OnDisconnect::Keep {
                self.violation.get_or_insert(format!(
                    "invariant 2: {id:?} began while attempt {} of a stop-after instance runs on \
                     node {}",
                    other.attempt, theirs.node
                ));
            }
        }
        let (node, tenant) = (running.node, running.tenant.clone());
        self.running.insert(id, running);
        self.check_capacity(node);
        self.check_quota(&tenant);
    }

    /// An attempt has ended.
    pub fn ends(&mut self, id: AttemptId, ending: Ending) {
        self.running.remove(&id);
        self.endings.insert(id, ending);
    }

    /// A machine has lost power.
    pub fn node_died(&mut self, node: u32) {
        let died: Vec<_> = self
            .running
            .iter()
            .filter(|(_, running)| running.node == node)
            .map(|(id, _)| *id)
            .collect();
        for id in died {
            self.ends(id, Ending::Died);
        }
    }

    /// Invariant 1.
    fn check_capacity(&mut self, node: u32) {
        let capacity = &self.capacities[&node];
        let mine = self.running.values().filter(|running| running.node == node);
        let (mut cpu, mut memory) = (0_u64, 0_u64);
        for running in mine {
            cpu += u64::from(running.demand.cpu_millis);
            memory += u64::from(running.demand.memory_mib);
        }
        if cpu > u64::from(capacity.cpu_millis) || memory > u64::from(capacity.memory_mib) {
            let text = format!(
                "invariant 1: node {node} runs {cpu} millis and {memory} MiB of {} and {}",
                capacity.cpu_millis, capacity.memory_mib
            );
            self.violate(text);
        }
    }

    /// Invariant 4, as far as processes show it.
    fn check_quota(&mut self, tenant: &str) {
        let Some(&quota) = self.quotas.get(tenant) else {
            return;
        };
        let instances: BTreeSet<_> = self
            .running
            .iter()
            .filter(|(_, running)| running.tenant == tenant)
            .map(|(id, _)| id.instance)
            .collect();
        if instances.len() as u64 > quota {
            let count = instances.len();
            self.violate(format!(
                "invariant 4: {tenant} runs {count} instances, its quota is {quota}"
            ));
        }
    }

    /// How many attempts began in all.
    #[must_use]
    pub fn begun(&self) -> usize {
        self.begun.len()
    }

    /// The highest attempt of an instance that began.
    #[must_use]
    pub fn attempts_of(&self, instance: InstanceId) -> Vec<AttemptId> {
        self.begun
            .iter()
            .filter(|id| id.instance == instance)
            .copied()
            .collect()
    }
}
