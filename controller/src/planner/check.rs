//! The planner's invariants, for tests and simulation to ask after each step.

use super::instance::{NOWHERE, Phase};
use super::state::{STATES, State};
use crate::api::types::{InstanceState, QuotaUse};
use crate::policy;
use pronto_payloads::place::AttemptId;

impl State {
    /// Plants a bug, for the simulation to show that it finds it: what one living instance holds
    /// of its tenant's quota is given back although it lives.
    #[doc(hidden)]
    pub fn plant_early_release(&mut self) {
        let Some(instance) = self.instances.iter().flatten().next() else {
            return;
        };
        let entry = self.submission(instance.submission);
        let (tenant, each) = (entry.tenant as usize, entry.template.each);
        policy::release(&mut self.tenants[tenant].used, &each);
    }

    /// Whether an attempt may be on any node as far as is known here, for simulation: whoever reports
    /// it is believed.
    #[must_use]
    pub fn may_be_anywhere(&self, id: AttemptId) -> bool {
        self.living(id.instance).is_some_and(|slot| {
            let instance = self.instance(slot);
            instance.phase == Phase::Uncertain
                || self
                    .meta
                    .numbered_before_restore(instance.seq, id.attempt.0)
        })
    }

    /// Whether no tenant is charged for anything, and nothing waits to be placed: as it must be once
    /// every instance has ended.
    #[must_use]
    pub fn holds_nothing(&self) -> bool {
        let free = QuotaUse::default();
        self.instances.iter().all(Option::is_none)
            && self.tenants.iter().all(|tenant| tenant.used == free)
            && self.queue_sizes().0 == 0
            && self.link.unanswered == 0
            && self.stopping.is_empty()
    }

    /// Panics if an invariant does not hold.
    ///
    /// # Panics
    /// With the invariant that is broken.
    pub fn check(&self) {
        let mut used = vec![QuotaUse::default(); self.tenants.len()];
        let mut states = vec![[0_u64; STATES]; self.tenants.len()];
        let mut placing = 0;
        for (slot, instance) in (0_u32..).zip(&self.instances) {
            let Some(instance) = instance else { continue };
            assert_eq!(
                self.by_seq.get(&instance.seq),
                Some(&slot),
                "found by number"
            );
            let entry = self.submission(instance.submission);
            policy::charge(&mut used[entry.tenant as usize], &entry.template.each, 1);
            states[entry.tenant as usize][instance.state as usize] += 1;
            placing += u32::from(instance.phase == Phase::Placing);
            let there = matches!(instance.phase, Phase::Starting | Phase::Running);
            assert!(
                !there || instance.node != NOWHERE,
                "an instance that runs is somewhere"
            );
            let uncertain = self.link.uncertain.contains(&instance.seq);
            assert_eq!(uncertain, instance.phase == Phase::Uncertain, "uncertain");
            if !matches!(instance.phase, Phase::Ending | Phase::Committing) {
                let stopping = self.stopping.contains(&instance.seq);
                assert_eq!(stopping, instance.stop().is_some(), "stopping");
            }
            if let Some(node) = self.nodes.node(instance.node) {
                assert!(node.attempts.contains(&slot), "its node knows of it");
            }
        }
        let living = self.instances.iter().flatten().count();
        assert_eq!(self.by_seq.len(), living, "no number without its instance");
        if self.link.up {
            assert_eq!(self.link.unanswered, placing, "unanswered STARTs");
        }
        for (tenant, (used, states)) in self.tenants.iter().zip(used.iter().zip(&states)) {
            assert_eq!(tenant.used, *used, "use of {}", tenant.name);
            assert_eq!(tenant.states, *states, "states of {}", tenant.name);
        }
        for (index, node) in self.nodes.iter() {
            for &slot in &node.attempts {
                assert_eq!(self.instance(slot).node, index, "an attempt is on one node");
            }
        }
        for (index, entry) in (0_u32..).zip(&self.submissions) {
            let Some(entry) = entry else { continue };
            let counted: u32 = entry.states.iter().sum();
            assert_eq!(counted, entry.row.count, "each instance is in one state");
            let living = self
                .instances
                .iter()
                .flatten()
                .filter(|instance| instance.submission == index)
                .count();
            assert_eq!(entry.living as usize, living, "living instances");
            let ended: u32 = InstanceState::ALL
                .iter()
                .filter(|state| state.is_end())
                .map(|state| entry.states[*state as usize])
                .sum();
            assert!(
                entry.living >= entry.row.count - ended,
                "ended ones are gone"
            );
        }
        self.queue.check();
    }
}
