//! What really happened, and whether it was allowed to.
//!
//! The oracle sees each process begin and end on its node, each acknowledgement that a user got,
//! and nothing of what the daemons believe. From that it checks the invariants of ARCHITECTURE.md;
//! the first violation ends the simulation.

use super::equipment::{self, Equipment, Taken};
use super::net::Time;
use pronto_controller::api::types::Spec;
use pronto_payloads::demand::{Capacity, Demand};
use pronto_payloads::ids::{Attempt, InstanceId, OwnerId};
use pronto_payloads::instance::{End, EndCause};
use pronto_payloads::place::{AttemptId, GpuShare, StartPrefix, StartStamp};
use pronto_payloads::start::OnDisconnect;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One attempt that runs.
#[derive(Clone, Debug)]
pub struct Running {
    pub node: u32,
    /// When its node got it: work that waited through an outage had its successor by then.
    pub since: Time,
    pub demand: Demand,
    /// The devices that it was given.
    pub gpus: Vec<GpuShare>,
    pub on_disconnect: OnDisconnect,
    pub tenant: String,
    /// Its end outlives its launcher process.
    pub durable: bool,
}

/// What a user was promised of an instance.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    pub controller: u32,
    pub tenant: String,
    pub stop: bool,
    pub deleted: bool,
    /// What was asked for.
    pub spec: Arc<Spec>,
}

/// What a tenant may use at most.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    pub instances: u64,
    pub gpu_millis: u64,
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
    /// Instances of which a user has asked for the end, whether or not that was acknowledged.
    pub asked_to_stop: BTreeSet<InstanceId>,
    /// Instances of which a user has asked for another attempt, whatever becomes of the present one.
    pub restarted: BTreeSet<InstanceId>,
    /// An administrator has drained something: then what can't move is stopped.
    pub drained: bool,
    /// The attempt that succeeded, its node, and since when that had it.
    succeeded: BTreeMap<InstanceId, (Attempt, u32, Time)>,
    /// When a node was cut off from its owner, or lost power, last.
    excused: BTreeMap<(OwnerId, u32), Time>,
    /// Nodes that are cut off now.
    gone: BTreeSet<(OwnerId, u32)>,
    /// For how many beats an owner has not reached a node.
    pub away_beats: BTreeMap<(OwnerId, u32), u32>,
    /// Until when it is a node's own doing if it is promised too much.
    pub lying_until: BTreeMap<u32, Time>,
    /// What each controller had acknowledged when the last copy of its store was made.
    backups: BTreeMap<u32, BTreeMap<InstanceId, Acknowledged>>,
    /// Instances that a store was restored to before: they run on, and nobody can charge them.
    forgotten: BTreeSet<InstanceId>,
    /// Refusals that were judged already, and how many there were on each node.
    refused: BTreeSet<AttemptId>,
    pub refused_by: BTreeMap<u32, usize>,
    /// Attempts that a controller sent, and was not told that they were refused.
    sent: BTreeSet<AttemptId>,
    /// Attempts that certainly run nowhere: their controller was told so.
    given_back: BTreeSet<AttemptId>,
    /// How many STARTs controllers sent in all.
    pub starts: usize,
    nodes: BTreeMap<u32, Equipment>,
    /// The quotas that tenants have, where they have some.
    pub quotas: BTreeMap<String, Quota>,
    /// The first violation.
    pub violation: Option<String>,
}

impl Oracle {
    /// A node, and all that it may promise.
    pub fn add_node(&mut self, node: u32, equipment: Equipment) {
        self.nodes.insert(node, equipment);
    }

    /// Says that something forbidden has happened; the first one counts.
    pub fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// A user wants another attempt of an instance, and no more that it be stopped.
    pub fn restarts(&mut self, id: InstanceId) {
        self.asked_to_stop.insert(id);
        self.restarted.insert(id);
        if let Some(promise) = self.acknowledged.get_mut(&id) {
            promise.stop = false;
        }
    }

    /// A stop of an instance is acknowledged.
    pub fn stops(&mut self, id: InstanceId, delete: bool) {
        if let Some(promise) = self.acknowledged.get_mut(&id) {
            promise.stop = !self.restarted.contains(&id);
            promise.deleted |= delete;
        }
    }

    /// An owner can't reach a node, and has not for long enough to take it for lost; or reaches it.
    /// What is on a lost node may have a successor.
    pub fn excuse(&mut self, owner: OwnerId, node: u32, now: Time, gone: bool) {
        if gone {
            self.excused.insert((owner, node), now);
            self.gone.insert((owner, node));
        } else {
            self.gone.remove(&(owner, node));
        }
    }

    /// Whether a node was cut off from its owner, or lost power, at or after some time.
    fn is_excused_since(&self, owner: OwnerId, node: u32, since: Time) -> bool {
        let key = (owner, node);
        self.gone.contains(&key) || self.excused.get(&key).is_some_and(|at| *at >= since)
    }

    /// A copy of a controller's store is made.
    pub fn back_up(&mut self, controller: u32) {
        let mine = self.acknowledged.iter();
        let mine = mine.filter(|(_, promise)| promise.controller == controller);
        let copy = mine.map(|(id, promise)| (*id, promise.clone())).collect();
        self.backups.insert(controller, copy);
    }

    /// A controller's store is as it was when the last copy was made: it is held to what it had
    /// promised by then, and may run again what it does not know to have ended.
    pub fn restore(&mut self, controller: u32, has_ended: impl Fn(InstanceId) -> bool) {
        let Some(copy) = self.backups.get(&controller) else {
            return;
        };
        let is_lost = |id: &&InstanceId| !copy.contains_key(*id);
        let mine = self.acknowledged.iter();
        let mine = mine.filter(|(_, promise)| promise.controller == controller);
        self.forgotten
            .extend(mine.map(|(id, _)| id).filter(is_lost).copied());
        self.acknowledged
            .retain(|_, promise| promise.controller != controller);
        self.acknowledged
            .extend(copy.iter().map(|(id, promise)| (*id, promise.clone())));
        self.succeeded
            .retain(|id, _| !copy.contains_key(id) || has_ended(*id));
    }

    /// An attempt begins to run.
    pub fn begins(&mut self, id: AttemptId, running: Running) {
        if !self.begun.insert(id) {
            self.violate(format!("invariant 2: {id:?} ran twice"));
        }
        if self.given_back.contains(&id) {
            self.violate(format!("rule 1: {id:?} was refused, and begins"));
        }
        let mut wrong = None;
        for (other, theirs) in &self.running {
            if other.owner != id.owner || other.instance != id.instance {
                continue;
            }
            let cut_off = self.is_excused_since(id.owner, theirs.node, theirs.since)
                || self.is_excused_since(id.owner, running.node, theirs.since);
            if theirs.on_disconnect != OnDisconnect::Keep {
                wrong = Some("of a stop-after instance");
            } else if !cut_off {
                wrong = Some("of a keep instance, whose node was not cut off,");
            }
            if let Some(what) = wrong {
                let text = format!(
                    "invariant 2: {id:?} began while attempt {} {what} runs on node {}",
                    other.attempt, theirs.node
                );
                self.violate(text);
                break;
            }
        }
        if let Some((before, node, since)) = self.succeeded.get(&id.instance).copied()
            && !self.restarted.contains(&id.instance)
            && !self.is_excused_since(id.owner, node, since)
            && !self.is_excused_since(id.owner, running.node, since)
        {
            self.violate(format!(
                "invariant 3: {id:?} began although attempt {before} had succeeded on node {node}, \
                 which was not cut off"
            ));
        }
        let (node, tenant) = (running.node, running.tenant.clone());
        self.check_what_was_asked(id, &running);
        self.running.insert(id, running);
        self.check_capacity(node);
        self.check_quota(id.owner, &tenant);
    }

    /// An attempt has ended.
    pub fn ends(&mut self, id: AttemptId, ending: Ending) {
        let running = self.running.remove(&id);
        if let Some(running) = running.filter(|running| running.durable)
            && ending == Ending::Exited(0)
        {
            let (node, since) = (running.node, running.since);
            self.succeeded
                .insert(id.instance, (id.attempt, node, since));
        }
        self.endings.insert(id, ending);
    }

    /// A machine has lost power.
    pub fn node_died(&mut self, node: u32, now: Time) {
        let owners: BTreeSet<_> = self.away_beats.keys().map(|(owner, _)| *owner).collect();
        for owner in owners {
            self.excused.insert((owner, node), now);
        }
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

    /// A launcher has said that an attempt will not run.
    pub fn refuses(&mut self, node: u32, id: AttemptId, end: &End) {
        if end.cause == EndCause::Rejected && self.refused.insert(id) {
            *self.refused_by.entry(node).or_default() += 1;
        }
    }

    /// Whether what a node says now, or said a while ago, may be false.
    fn is_liar(&self, node: u32, now: Time) -> bool {
        self.lying_until.get(&node).is_some_and(|at| now < *at)
    }

    /// A START reaches its launcher, which has so much to give: the scheduler promised no more, gave
    /// devices that are there, and chose a node that is what was asked for; unless the node lied.
    pub fn arrives(
        &mut self,
        node: u32,
        prefix: &StartPrefix,
        stamp: &StartStamp,
        free: &Capacity,
        now: Time,
    ) {
        let id = prefix.id;
        if !equipment::are_devices_for(&prefix.demand, &stamp.gpus) {
            let (gpus, demand) = (&stamp.gpus, &prefix.demand);
            self.violate(format!("{id:?} was given {gpus:?} for {demand:?}"));
        }
        if self.is_liar(node, now) {
            return;
        }
        let mut taken = Taken::default();
        taken.add(&prefix.demand, &stamp.gpus);
        if let Some(what) = taken.exceeds(free) {
            self.violate(format!(
                "invariant 1: node {node} was promised to {id:?} and is honest: {what} that are free"
            ));
        }
        let is = &self.nodes[&node];
        let unmet = prefix.constraints.iter().find(|it| !is.meets(it)).cloned();
        if let Some(unmet) = unmet {
            self.violate(format!("{id:?} asked for {unmet:?}, and came to {node}"));
        }
    }

    /// What runs is what its user asked for, where it asked to run.
    fn check_what_was_asked(&mut self, id: AttemptId, running: &Running) {
        let Some(promise) = self.acknowledged.get(&id.instance) else {
            return;
        };
        let spec = Arc::clone(&promise.spec);
        if !equipment::is_as_asked(&running.demand, &spec.demand) {
            let (really, asked) = (&running.demand, &spec.demand);
            self.violate(format!("{id:?} runs with {really:?}, and asked {asked:?}"));
        }
        let lied = self.is_liar(running.node, running.since);
        if !lied && !self.nodes[&running.node].suits(&spec) {
            let (node, asked) = (running.node, &spec.constraints);
            self.violate(format!("{id:?} runs on {node}, and asked for {asked:?}"));
        }
    }

    /// The controller sends a START, of whose instance this attempt is on its disk.
    pub fn sends(&mut self, id: AttemptId, durable: Option<u32>) {
        self.starts += 1;
        self.given_back.remove(&id);
        if !self.sent.insert(id) {
            self.violate(format!("rule 1: {id:?} was sent twice, and not refused"));
        }
        if durable != Some(id.attempt.0) {
            self.violate(format!(
                "rule 1: {id:?} was sent, and on disk is {durable:?}"
            ));
        }
        let stopped = self.acknowledged.get(&id.instance).map(|of| of.stop);
        if stopped == Some(true) {
            self.violate(format!("{id:?} was sent after its stop was acknowledged"));
        }
    }

    /// The controller hears that a START was refused.
    pub fn hears_refusal(&mut self, id: AttemptId) {
        self.given_back.insert(id);
        if self.begun.contains(&id) {
            self.violate(format!("rule 1: {id:?} is refused, and has begun"));
        }
        self.sent.remove(&id);
    }

    /// Invariant 1.
    fn check_capacity(&mut self, node: u32) {
        let mine = self.running.values().filter(|running| running.node == node);
        let mut taken = Taken::default();
        mine.for_each(|running| taken.add(&running.demand, &running.gpus));
        if let Some(what) = taken.exceeds(&self.nodes[&node].capacity) {
            self.violate(format!("invariant 1: node {node} runs {what}"));
        }
    }

    /// Invariant 4, as far as processes show it. What runs on a node that was lost may have been stopped
    /// meanwhile, and does not know it yet.
    fn check_quota(&mut self, owner: OwnerId, tenant: &str) {
        let Some(&quota) = self.quotas.get(tenant) else {
            return;
        };
        let instances: BTreeMap<_, _> = self
            .running
            .iter()
            .filter(|(id, running)| id.owner == owner && running.tenant == tenant)
            .filter(|(_, running)| !self.is_excused_since(owner, running.node, running.since))
            .map(|(id, running)| (id.instance, u64::from(running.demand.gpu_total_millis())))
            .filter(|(instance, _)| !self.forgotten.contains(instance))
            .collect();
        let count = instances.len() as u64;
        let gpu_millis: u64 = instances.values().sum();
        if count > quota.instances || gpu_millis > quota.gpu_millis {
            self.violate(format!(
                "invariant 4: {tenant} runs {count} instances on {gpu_millis} GPU millis, has {quota:?}"
            ));
        }
    }

    /// An attempt of an instance that runs, and its node.
    #[must_use]
    pub fn where_runs(&self, instance: InstanceId) -> Option<(AttemptId, u32)> {
        let mut running = self.running.iter();
        let found = running.find(|(id, _)| id.instance == instance);
        found.map(|(id, running)| (*id, running.node))
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
