//! Whether a run has come to its end, and whether it is the end that was promised.

use super::*;

impl World {
    /// Whether nothing is under way any more.
    pub(super) fn has_settled(&self) -> bool {
        self.steps.is_multiple_of(64)
            && self.oracle.running.is_empty()
            && self.nodes.iter().all(Node::is_idle)
            && self.controllers.iter().all(Controller::has_finished)
            && self.unanswered() == 0
            && self.held().is_none()
    }

    /// What somebody still holds although nothing lives any more: the scheduler of a node, the node of
    /// a report that nobody acknowledged, a controller of a quota.
    fn held(&self) -> Option<String> {
        for node in &self.nodes {
            let name = &node.name;
            let scheduler = &self.schedulers[node.target as usize].process;
            let scheduler = scheduler.as_ref().filter(|_| node.welcomed);
            let Some(table) = scheduler.map(|process| process.broker.table()) else {
                return Some(format!("{name} is at no scheduler"));
            };
            let free = table.find(name).and_then(|index| table.available(index));
            if free.as_ref() != Some(&node.equipment.capacity) {
                let (at, all) = (node.target, &node.equipment.capacity);
                return Some(format!("scheduler-{at} has {free:?} of {all:?} on {name}"));
            }
            let kept = node.kept();
            if kept > 0 && !self.is_quarantined() {
                return Some(format!("{name} keeps {kept} ends that none acknowledges"));
            }
        }
        let mut controllers = self.controllers.iter();
        let holds = controllers.position(|controller| !controller.holds_nothing());
        holds.map(|index| format!("controller-{index} charges for what has ended"))
    }

    /// Whether a store was put back that does not know all that ran.
    fn is_quarantined(&self) -> bool {
        let mut controllers = self.controllers.iter();
        controllers.any(|it| it.events_of("quarantined") > 0)
    }

    /// How many STARTs of open sessions wait for their answer.
    fn unanswered(&self) -> usize {
        let conns = self.controllers.iter().filter_map(|it| it.conn);
        conns.map(|conn| self.answers.waiting(conn)).sum()
    }

    pub(super) fn unsettled(&self) -> String {
        let running: Vec<_> = self.oracle.running.keys().map(describe::attempt).collect();
        let busy: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| !node.is_idle())
            .map(|node| &node.name)
            .collect();
        format!(
            "convergence: {} ms after the last fault {} instances have no end, nodes run {running:?}, \
             not all is free on {busy:?}, {} STARTs have no answer, held: {:?}",
            self.config.settle / MS,
            self.controllers
                .iter()
                .map(Controller::unfinished)
                .sum::<usize>(),
            self.unanswered(),
            self.held(),
        )
    }

    /// Invariant 3: what was acknowledged is in an end state, and that state is what happened.
    pub(super) fn judge(&mut self) {
        let acknowledged = std::mem::take(&mut self.oracle.acknowledged);
        for (id, promise) in &acknowledged {
            let controller = &self.controllers[promise.controller as usize];
            let Some(end) = controller.end_of(*id) else {
                self.oracle
                    .violate(format!("invariant 3: {id} was acknowledged and is lost"));
                break;
            };
            let unasked = !self.oracle.asked_to_stop.contains(id) && !self.oracle.drained;
            let stopped = matches!(end.state, InstanceState::Stopped | InstanceState::Cancelled);
            if stopped && unasked {
                self.oracle
                    .violate(format!("{id} was stopped, and nobody had asked for it"));
                break;
            }
            if end.state == InstanceState::Expired && promise.spec.pending_timeout_ms.is_none() {
                self.oracle.violate(format!(
                    "{id} has expired, which its user had not asked for"
                ));
                break;
            }
            if let (InstanceState::Failed, EndReason::Exited, Some(code)) =
                (end.state, end.cause, end.code)
            {
                let really =
                    self.oracle.attempts_of(*id).iter().any(|attempt| {
                        self.oracle.endings.get(attempt) == Some(&Ending::Exited(code))
                    });
                if !really && unasked {
                    self.oracle.violate(format!(
                        "{id} is said to have exited with {code}, and has not"
                    ));
                    break;
                }
            }
            if end.state == InstanceState::Succeeded {
                let really = self.oracle.attempts_of(*id).iter().any(|attempt| {
                    attempt.attempt.0 == end.attempt
                        && self.oracle.endings.get(attempt) == Some(&Ending::Exited(0))
                });
                if !really {
                    let attempts = self.oracle.attempts_of(*id);
                    self.oracle.violate(format!(
                        "{id} is said to have succeeded as attempt {}, which did not: {attempts:?}",
                        end.attempt
                    ));
                    break;
                }
            }
        }
        self.oracle.acknowledged = acknowledged;
    }

    pub(super) fn ends(&self) -> BTreeMap<&'static str, usize> {
        let mut ends = BTreeMap::new();
        for end in self
            .controllers
            .iter()
            .flat_map(|of| of.store.ends.values())
        {
            *ends.entry(end.state.name()).or_default() += 1;
        }
        ends
    }
}
