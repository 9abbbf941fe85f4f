//! Exact accounting against a naive model: launchers with ledgers of their own, messages that
//! cross each other, sessions that break at any moment.
//!
//! The model knows everything at once, which nobody in a cluster does: what a launcher has debited
//! and what is on its way to it. Together they must never exceed what the node has.

use crate::harness::*;
use pronto_payloads::codec;
use pronto_payloads::demand::{Capacity, Demand, Resource};
use pronto_payloads::ids::Seq;
use pronto_payloads::place::{GpuShare, Placed, StartPrefix, StartStamp};
use pronto_protocol::{Frame, Operand, Purpose, Role};
use pronto_scheduler::core::{Effect, SessionId};
use proptest::prelude::*;
use std::collections::{BTreeSet, VecDeque};

const NODES: usize = 3;
const CPU: u32 = 4000;
const DEVICES: usize = 2;
const LICENCES: u32 = 3;

#[derive(Clone, Debug)]
enum Op {
    /// A controller sends a START.
    Start {
        demand: Demand,
        prefer: Option<usize>,
    },
    /// A launcher takes in its next START, and may reject it.
    Apply { node: usize, reject: bool },
    /// A workload ends.
    Finish { node: usize, which: usize },
    /// A launcher takes a snapshot of its ledger and sends it; it arrives later.
    Snapshot { node: usize },
    /// The oldest snapshot under way arrives.
    Deliver { node: usize },
    /// The session breaks; what was under way both ways is lost. The launcher connects again.
    Reconnect { node: usize },
    /// Time passes.
    Tick,
}

fn demands() -> impl Strategy<Value = Demand> {
    let gpus = prop_oneof![
        4 => Just((0_u16, 0_u16)),
        2 => (1_u16..=2).prop_map(|gpus| (gpus, 0)),
        3 => (1_u16..10).prop_map(|tenths| (0, tenths * 100)),
    ];
    (1_u32..=2500, gpus, 0_u32..=2).prop_map(|(cpu_millis, (gpus, gpu_millis), licences)| Demand {
        cpu_millis,
        gpus,
        gpu_millis,
        resources: (licences > 0)
            .then(|| Resource {
                name: "licence".into(),
                count: licences,
            })
            .into_iter()
            .collect(),
        ..Demand::default()
    })
}

fn ops() -> impl Strategy<Value = Op> {
    let node = 0..NODES;
    prop_oneof![
        8 => (demands(), proptest::option::weighted(0.2, 0..NODES))
            .prop_map(|(demand, prefer)| Op::Start { demand, prefer }),
        6 => (node.clone(), any::<bool>()).prop_map(|(node, reject)| Op::Apply { node, reject }),
        4 => (node.clone(), 0_usize..8).prop_map(|(node, which)| Op::Finish { node, which }),
        5 => node.clone().prop_map(|node| Op::Snapshot { node }),
        5 => node.clone().prop_map(|node| Op::Deliver { node }),
        1 => node.prop_map(|node| Op::Reconnect { node }),
        1 => Just(Op::Tick),
    ]
}

/// Something that a node has promised to hold.
#[derive(Clone, Debug)]
struct Held {
    demand: Demand,
    gpus: Vec<GpuShare>,
}

struct Launcher {
    peer: Node,
    epoch: u64,
    /// Durable.
    ledger: Vec<Held>,
    /// STARTs that were forwarded and not yet taken in.
    inbox: VecDeque<(Seq, Held)>,
    applied: u64,
    statuses: VecDeque<Frame>,
}

fn whole() -> Capacity {
    Capacity {
        gpu_millis: vec![1000; DEVICES],
        resources: vec![Resource {
            name: "licence".into(),
            count: LICENCES,
        }],
        ..capacity(CPU)
    }
}

/// What is left of a node; panics if it holds more than it has.
fn free<'a>(held: impl Iterator<Item = &'a Held>) -> Capacity {
    let mut free = whole();
    for Held { demand, gpus } in held {
        let take = |free: &mut u32, wanted| {
            *free = free.checked_sub(wanted).expect("promised twice");
        };
        take(&mut free.cpu_millis, demand.cpu_millis);
        for resource in &demand.resources {
            take(&mut free.resources[0].count, resource.count);
        }
        for share in gpus {
            let device = &mut free.gpu_millis[usize::from(share.device)];
            *device = device
                .checked_sub(share.millis)
                .expect("a device is promised twice");
        }
        let shares: u32 = gpus.iter().map(|share| u32::from(share.millis)).sum();
        assert_eq!(shares, demand.gpu_total_millis());
    }
    free
}

struct Model {
    world: World,
    controller: Controller,
    launchers: Vec<Launcher>,
    starts: u64,
    answered: BTreeSet<u64>,
}

fn name(node: usize) -> String {
    format!("n{node}")
}

impl Model {
    fn new() -> Self {
        let (mut world, controller) = World::active();
        let launchers = (0..NODES)
            .map(|node| Launcher {
                peer: world.node(&name(node), whole()),
                epoch: 1,
                ledger: Vec::new(),
                inbox: VecDeque::new(),
                applied: 0,
                statuses: VecDeque::new(),
            })
            .collect();
        Self {
            world,
            controller,
            launchers,
            starts: 0,
            answered: BTreeSet::new(),
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Start { demand, prefer } => {
                self.starts += 1;
                let mut wanted = start(attempt(self.starts), demand);
                wanted.prefer = prefer.map(name);
                self.world.start(&self.controller, self.starts, &wanted);
                self.take_answer(&wanted);
            }
            Op::Apply { node, reject } => {
                let launcher = &mut self.launchers[node];
                if let Some((seq, held)) = launcher.inbox.pop_front() {
                    assert_eq!(seq.0, launcher.applied + 1, "in the order of their numbers");
                    launcher.applied = seq.0;
                    if !reject {
                        launcher.ledger.push(held);
                    }
                }
            }
            Op::Finish { node, which } => {
                let ledger = &mut self.launchers[node].ledger;
                if which < ledger.len() {
                    ledger.swap_remove(which);
                }
            }
            Op::Snapshot { node } => {
                let launcher = &mut self.launchers[node];
                let free = free(launcher.ledger.iter());
                let status = status_bytes(&launcher.peer, launcher.applied, free);
                launcher
                    .statuses
                    .push_back(Frame::new(Operand::Ready, status));
            }
            Op::Deliver { node } => {
                let launcher = &mut self.launchers[node];
                if let Some(status) = launcher.statuses.pop_front() {
                    let session = launcher.peer.session;
                    self.world.send(session, status);
                }
            }
            Op::Reconnect { node } => self.reconnect(node),
            Op::Tick => self.world.pass_ms(50),
        }
        for operand in [
            Operand::Stats,
            Operand::Capacity,
            Operand::NodeConnected,
            Operand::NodeDisconnected,
        ] {
            self.world.skip_all(operand);
        }
        self.world.end_turn();
        self.world.skip_all(Operand::Capacity);
        self.world.expect_silence();
        for launcher in &self.launchers {
            let on_its_way = launcher.inbox.iter().map(|(_, held)| held);
            free(launcher.ledger.iter().chain(on_its_way));
        }
    }

    /// The START that was just sent has one answer, and says the truth.
    fn take_answer(&mut self, wanted: &StartPrefix) {
        let Some(Effect::Send { frame, .. }) = self.world.next(self.controller.session) else {
            panic!("every START is answered at once");
        };
        assert_eq!(frame.correlation, self.starts);
        assert!(self.answered.insert(frame.correlation));
        match frame.operand {
            Operand::Placed => {
                let placed: Placed = decode!(frame);
                let node: usize = placed.node[1..].parse().unwrap();
                let launcher = &mut self.launchers[node];
                let stamp: StartStamp = self.world.expect_start(launcher.peer.session, wanted);
                assert_eq!(
                    (placed.session_epoch, placed.seq),
                    (stamp.session_epoch, stamp.seq)
                );
                assert_eq!(stamp.session_epoch, launcher.peer.epoch);
                let held = Held {
                    demand: wanted.demand.clone(),
                    gpus: stamp.gpus,
                };
                launcher.inbox.push_back((stamp.seq, held));
            }
            Operand::StartFailure => {}
            other => panic!("{other} is no answer to a START"),
        }
    }

    fn reconnect(&mut self, node: usize) {
        let launcher = &mut self.launchers[node];
        let session: SessionId = launcher.peer.session;
        self.world.close(session);
        launcher.epoch += 1;
        launcher.inbox.clear();
        launcher.statuses.clear();
        launcher.applied = 0;
        let hello = codec::encode(&launcher_hello(whole()));
        let session = self.world.connect(
            (Role::Launcher, &name(node)),
            Purpose::Control,
            launcher.epoch,
            hello,
        );
        self.world.expect_welcome(session);
        launcher.peer = Node {
            session,
            epoch: pronto_payloads::ids::SessionEpoch(launcher.epoch),
        };
    }

    /// Lets everything arrive: the scheduler then knows exactly what is free.
    fn settle(&mut self) {
        for node in 0..NODES {
            while !self.launchers[node].inbox.is_empty() {
                self.run(Op::Apply {
                    node,
                    reject: false,
                });
            }
            self.run(Op::Snapshot { node });
            while !self.launchers[node].statuses.is_empty() {
                self.run(Op::Deliver { node });
            }
            let table = self.world.broker.table();
            let index = table.find(&name(node)).unwrap();
            let really_free = free(self.launchers[node].ledger.iter());
            assert_eq!(table.available(index), Some(really_free));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_capacity_is_promised_twice_and_every_start_is_answered_once(
        ops in prop::collection::vec(ops(), 1..150),
    ) {
        let mut model = Model::new();
        for op in ops {
            model.run(op);
        }
        model.settle();
        prop_assert_eq!(model.answered.len() as u64, model.starts);
    }
}
