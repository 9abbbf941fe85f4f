//! Random schedules: whatever happens in whatever order, the books stay exact and nothing runs
//! twice.

use super::*;
use pronto_payloads::control::{Ack, Stop};
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
enum Action {
    Start {
        instance: u8,
        attempt: u32,
        cpu_millis: u32,
    },
    Prepared(u8),
    Failed(u8),
    Started(u8),
    Ended(u8),
    Emptied(u8),
    Stop {
        instance: u8,
        attempt: u32,
    },
    Ack(u8),
    Lease,
    Wait(u64),
    Reconnect,
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    let instance = 0_u8..6;
    prop_oneof![
        6 => (instance.clone(), 1_u32..4, 0_u32..2500)
            .prop_map(|(instance, attempt, cpu_millis)| Action::Start { instance, attempt, cpu_millis }),
        4 => instance.clone().prop_map(Action::Prepared),
        1 => instance.clone().prop_map(Action::Failed),
        4 => instance.clone().prop_map(Action::Started),
        3 => instance.clone().prop_map(Action::Ended),
        3 => instance.clone().prop_map(Action::Emptied),
        2 => (instance.clone(), 1_u32..4).prop_map(|(instance, attempt)| Action::Stop { instance, attempt }),
        2 => instance.prop_map(Action::Ack),
        2 => Just(Action::Lease),
        2 => (1_u64..4000).prop_map(Action::Wait),
        1 => Just(Action::Reconnect),
        1 => Just(Action::Restart),
    ]
}

/// What the world outside knows: each attempt that was told to start, and when it ended.
#[derive(Default)]
struct World {
    started: BTreeSet<AttemptId>,
    running: BTreeSet<AttemptId>,
    ending: BTreeSet<AttemptId>,
    /// Could not be prepared, and their owner may know it.
    failed: BTreeSet<AttemptId>,
}

impl World {
    fn examine(&mut self, node: &mut Node) {
        for effect in std::mem::take(&mut node.unseen) {
            if let Effect::Start { job, .. } = &effect {
                assert!(
                    node.now < node.core.lease_until(),
                    "nothing starts without a lease"
                );
                assert!(
                    self.started.insert(job.id),
                    "{:?} was started twice",
                    job.id
                );
                assert!(!self.failed.contains(&job.id), "{:?} had failed", job.id);
                self.running.insert(job.id);
                let used: u32 = 4000 - node.core.free().cpu_millis;
                assert!(used <= 4000);
            }
            if matches!(&effect, Effect::Send(frame) if frame.wants_reply()) {
                node.unseen.push(effect);
            }
        }
    }

    fn of(set: &BTreeSet<AttemptId>, instance: u8) -> Option<AttemptId> {
        set.iter().copied().find(|id| id.instance.0[0] == instance)
    }

    fn act(&mut self, node: &mut Node, action: Action) {
        match action {
            Action::Start {
                instance,
                attempt: number,
                cpu_millis,
            } => {
                if node.core.is_connected() {
                    let demand = Demand {
                        cpu_millis,
                        ..Demand::default()
                    };
                    node.start_with(attempt(instance, number), &demand, &body());
                }
            }
            Action::Prepared(instance) => {
                for number in 1..4 {
                    node.step(Event::Prepared(attempt(instance, number)));
                }
            }
            Action::Failed(instance) => {
                let preparing: Vec<AttemptId> = node
                    .core
                    .reports(node.now)
                    .filter(|report| report.phase == Phase::Preparing)
                    .map(|report| report.id)
                    .filter(|id| id.instance.0[0] == instance && !self.started.contains(id))
                    .collect();
                for id in preparing {
                    self.failed.insert(id);
                    node.step(Event::Failed { id, end: no_disk() });
                }
            }
            Action::Started(instance) => {
                if let Some(id) = Self::of(&self.running, instance) {
                    node.step(Event::Started { id, at: node.now });
                }
            }
            Action::Ended(instance) => {
                if let Some(id) = Self::of(&self.running, instance) {
                    self.running.remove(&id);
                    self.ending.insert(id);
                    node.step(Event::Ended {
                        id,
                        at: node.now,
                        end: exited(0),
                        usage: Usage::default(),
                    });
                }
            }
            Action::Emptied(instance) => {
                if let Some(id) = Self::of(&self.ending, instance) {
                    self.ending.remove(&id);
                    node.step(Event::Emptied(id));
                }
            }
            Action::Stop {
                instance,
                attempt: number,
            } => {
                if node.core.is_connected() {
                    let id = attempt(instance, number);
                    let stop = Stop {
                        owner: id.owner,
                        instance: id.instance,
                        attempt: id.attempt,
                        grace_ms: None,
                    };
                    node.frame(Operand::Stop, 1, codec::encode(&stop));
                }
            }
            Action::Ack(instance) => {
                for number in 1..4 {
                    let id = attempt(instance, number);
                    let version = pronto_payloads::ids::Version(4);
                    if node.core.is_connected() {
                        node.frame(Operand::Ack, 0, codec::encode(&Ack { id, version }));
                    }
                }
            }
            Action::Lease => {
                let asked = node
                    .unseen
                    .iter()
                    .any(|effect| matches!(effect, Effect::Send(_)));
                if asked && node.core.is_connected() {
                    node.lease(&[]);
                }
            }
            Action::Wait(ms) => node.wait_ms(ms),
            Action::Reconnect => node.connect(),
            Action::Restart => {
                node.unseen.clear();
                node.restart();
                self.adopt(node);
                node.connect();
            }
        }
    }

    fn adopt(&mut self, node: &mut Node) {
        let now = node.now;
        let known: Vec<AttemptId> = node.core.reports(now).map(|report| report.id).collect();
        for id in known {
            let found = if self.running.contains(&id) {
                Found::Running {
                    started_at: now,
                    fence_at: None,
                }
            } else if self.started.contains(&id) {
                self.ending.remove(&id);
                Found::Ended {
                    started_at: None,
                    ended_at: now,
                    end: exited(0),
                    usage: Usage::default(),
                }
            } else {
                Found::NeverStarted
            };
            node.step(Event::Adopted { id, found });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn the_books_are_exact_and_nothing_runs_twice(
        actions in prop::collection::vec(action(), 1..120)
    ) {
        let mut node = Node::disconnected();
        let mut world = World::default();
        node.connect();
        node.lease(&[]);
        for action in actions {
            world.act(&mut node, action);
            world.examine(&mut node);
            let live = world.running.len() + world.ending.len();
            prop_assert!(live <= node.core.counts().0, "what runs is on the books");
        }
    }
}
