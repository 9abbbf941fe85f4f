//! Random sequences of requests, answers, reports, breaks and crashes against a small model of
//! scheduler and nodes: invariants hold after every step, and in the end everything converges.

use super::*;
use crate::api::types::{CreateTenant, QuotaLimits, RestartMode, UpdateQuota};
use crate::store::AfterStop;
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
enum Act {
    Submit {
        tenant: u8,
        cpu: u8,
        count: u8,
        restart: bool,
    },
    Stop {
        pick: u8,
    },
    Answer {
        place: bool,
        node: u8,
    },
    Report {
        pick: u8,
        cause: u8,
    },
    Commit,
    Pass {
        ms: u16,
    },
    BreakSession,
    Crash,
    NodeDown {
        node: u8,
    },
    NodeUp {
        node: u8,
    },
    Quota {
        tenant: u8,
        instances: u8,
    },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..2_u8, 0..4_u8, 1..5_u8, any::<bool>()).prop_map(|(tenant, cpu, count, restart)| {
            Act::Submit { tenant, cpu, count, restart }
        }),
        2 => any::<u8>().prop_map(|pick| Act::Stop { pick }),
        10 => (any::<bool>(), 0..3_u8).prop_map(|(place, node)| Act::Answer { place, node }),
        8 => (any::<u8>(), 0..4_u8).prop_map(|(pick, cause)| Act::Report { pick, cause }),
        8 => Just(Act::Commit),
        3 => (1..30_000_u16).prop_map(|ms| Act::Pass { ms }),
        1 => Just(Act::BreakSession),
        1 => Just(Act::Crash),
        1 => (0..3_u8).prop_map(|node| Act::NodeDown { node }),
        2 => (0..3_u8).prop_map(|node| Act::NodeUp { node }),
        1 => (0..2_u8, 0..30_u8).prop_map(|(tenant, instances)| Act::Quota { tenant, instances }),
    ]
}

/// Scheduler and nodes as they really are: what runs where.
struct World {
    nodes: Vec<NodeConnected>,
    up: Vec<bool>,
    /// Attempts on each node, with whether they have ended.
    kept: Vec<BTreeMap<AttemptId, Option<EndCause>>>,
    applied: Vec<u64>,
    open: VecDeque<(StartPrefix, u64)>,
    pulls: VecDeque<(usize, u64)>,
    generation: u64,
    /// Every attempt that a node has started, ever.
    started: BTreeSet<AttemptId>,
    limits: [u64; 2],
    living: [u64; 2],
}

const TENANTS: [&str; 2] = ["one", "two"];

impl World {
    fn new() -> Self {
        Self {
            nodes: (0..3).map(|n| node(&format!("n{n}"))).collect(),
            up: vec![true; 3],
            kept: vec![BTreeMap::new(); 3],
            applied: vec![0; 3],
            open: VecDeque::new(),
            pulls: VecDeque::new(),
            generation: 1,
            started: BTreeSet::new(),
            limits: [20; 2],
            living: [0; 2],
        }
    }

    fn connected(&self) -> Vec<NodeConnected> {
        (0..3)
            .filter(|&n| self.up[n])
            .map(|n| self.told(n))
            .collect()
    }

    fn told(&self, n: usize) -> NodeConnected {
        let phase = |end: &Option<EndCause>| match end {
            None => NodePhase::Running,
            Some(_) => NodePhase::Ended,
        };
        let kept: Vec<_> = self.kept[n]
            .iter()
            .map(|(id, end)| (*id, phase(end)))
            .collect();
        NodeConnected {
            session_epoch: self.nodes[n].session_epoch,
            ..again(&self.nodes[n], &kept)
        }
    }

    /// What the planner has sent reaches the world.
    fn deliver(&mut self, h: &mut Harness) {
        while let Some(sent) = h.sent.pop_front() {
            match sent {
                Sent::Start {
                    prefix,
                    correlation,
                } => self.open.push_back((prefix, correlation)),
                Sent::Stop { node, stop, .. } => {
                    let n = self.index(&node);
                    for (id, end) in &mut self.kept[n] {
                        if self.up[n]
                            && id.instance == stop.instance
                            && id.attempt <= stop.attempt
                            && end.is_none()
                        {
                            *end = Some(EndCause::Stopped);
                        }
                    }
                }
                Sent::Ack { node, ack } => {
                    let n = self.index(&node);
                    if self.up[n] {
                        let gone = self.kept[n].remove(&ack.id);
                        assert!(
                            !matches!(gone, Some(None)),
                            "an attempt that runs was acknowledged"
                        );
                    }
                }
                Sent::Inventory { node, correlation } => {
                    let n = self.index(&node);
                    self.pulls.push_back((n, correlation));
                }
                Sent::Delete | Sent::SetMode { .. } => {}
                Sent::Activate { .. } | Sent::Nodes { .. } => panic!("only at a connect"),
            }
        }
        while let Some((n, correlation)) = self.pulls.pop_front() {
            if !self.up[n] {
                continue;
            }
            let entries: Vec<_> = self.kept[n]
                .iter()
                .map(|(id, end)| match end {
                    None => report(*id, NodePhase::Running, None, 1),
                    Some(cause) => report(*id, NodePhase::Ended, Some(cause.clone()), 2),
                })
                .collect();
            let node = self.nodes[n].clone();
            h.inventory(&node, self.applied[n], &entries, correlation);
            self.deliver(h);
        }
    }

    fn index(&self, name: &str) -> usize {
        self.nodes.iter().position(|n| n.node == name).unwrap()
    }

    fn connect(&mut self, h: &mut Harness) {
        self.open.clear();
        self.pulls.clear();
        let auto = std::mem::replace(&mut h.auto_commit, true);
        h.commit();
        // What was sent until now went into the void with the session.
        h.sent.clear();
        h.connect(&self.connected());
        h.auto_commit = auto;
        self.deliver(h);
    }

    fn place(&mut self, h: &mut Harness, n: usize) {
        let Some(start) = self.open.pop_front() else {
            return;
        };
        if !self.up[n] {
            h.refuse(&start, Refusal::CloudFull, self.generation);
        } else {
            assert!(
                self.started.insert(start.0.id),
                "attempt {:?} was started twice",
                start.0.id
            );
            self.applied[n] += 1;
            self.kept[n].insert(start.0.id, None);
            let placed = Placed {
                id: start.0.id,
                node: self.nodes[n].node.clone(),
                session_epoch: self.nodes[n].session_epoch,
                seq: Seq(self.applied[n]),
                placing_ns: 1,
            };
            h.frame(Operand::Placed, 0, encode(&placed).to_vec());
        }
        self.deliver(h);
    }

    fn report_all(&mut self, h: &mut Harness) {
        for n in 0..3 {
            if !self.up[n] {
                continue;
            }
            let all: Vec<_> = self.kept[n].clone().into_iter().collect();
            for (id, end) in all {
                let name = self.nodes[n].node.clone();
                match end {
                    None => h.running(&name, id),
                    Some(cause) => h.ended(&name, id, cause),
                }
                self.deliver(h);
            }
        }
    }

    fn check_quota(&mut self, h: &Harness) {
        for (index, tenant) in TENANTS.iter().enumerate() {
            let (limit, before) = (self.limits[index], self.living[index]);
            let living = h.state.living_of(tenant);
            // What lives stays when a limit is lowered, but nothing is added.
            assert!(
                living <= limit.max(before),
                "{tenant} has {living} of {limit}"
            );
            self.living[index] = living;
        }
    }
}

impl State {
    fn living_of(&self, tenant: &str) -> u64 {
        self.tenant_index
            .get(tenant)
            .map_or(0, |&index| self.tenants[index as usize].used.instances)
    }
}

fn setup() -> (Harness, World) {
    let settings = Settings {
        default_quota: QuotaLimits {
            instances: Some(20),
            ..QuotaLimits::default()
        },
        ..Settings::default()
    };
    let mut h = Harness::with(settings);
    for name in TENANTS {
        let create = CreateTenant {
            name: name.to_owned(),
            runtimes: None,
            privileged: None,
            submit_rate_per_s: None,
            quota: UpdateQuota::default(),
        };
        h.ask(admin(), Call::CreateTenant(create)).unwrap();
    }
    let mut world = World::new();
    world.connect(&mut h);
    h.auto_commit = false;
    (h, world)
}

fn run(acts: &[Act]) {
    let (mut h, mut world) = setup();
    let mut acknowledged: Vec<Uuid> = Vec::new();
    let mut open_submits: Vec<u64> = Vec::new();
    for act in acts {
        match act {
            Act::Submit {
                tenant,
                cpu,
                count,
                restart,
            } => {
                let mut spec = with_cpu(100 + u32::from(*cpu));
                if *restart {
                    spec.restart.mode = RestartMode::OnFailure;
                    spec.restart.limit = Some(1);
                }
                let call = h.submit_call(spec, u32::from(*count));
                let actor = user(TENANTS[usize::from(*tenant)]);
                open_submits.push(h.ask_later(actor, Call::Submit(Box::new(call))));
            }
            Act::Stop { pick } => {
                if let Some(id) = acknowledged.get(usize::from(*pick) % acknowledged.len().max(1)) {
                    let call = Call::Stop {
                        id: (*id).into(),
                        grace_ms: None,
                        then: AfterStop::Keep,
                    };
                    h.ask_later(admin(), call);
                }
            }
            Act::Answer { place, node } => {
                if *place {
                    world.place(&mut h, usize::from(*node));
                } else if let Some(start) = world.open.pop_front() {
                    h.refuse(&start, Refusal::CloudFull, world.generation);
                }
            }
            Act::Report { pick, cause } => {
                let n = usize::from(*pick) % 3;
                let running = world.kept[n].iter_mut().find(|(_, end)| end.is_none());
                if let (true, Some((id, end))) = (world.up[n], running) {
                    let cause = match cause {
                        0 => EndCause::Exited { code: 0 },
                        1 => EndCause::Exited { code: 1 },
                        2 => EndCause::Rejected,
                        _ => EndCause::NodeFailed,
                    };
                    *end = Some(cause.clone());
                    let (id, name) = (*id, world.nodes[n].node.clone());
                    h.ended(&name, id, cause);
                }
                world.generation += 1;
                h.capacity(world.generation);
            }
            Act::Commit => h.commit(),
            Act::Pass { ms } => h.pass(i64::from(*ms)),
            Act::BreakSession => {
                h.disconnect_scheduler();
                world.connect(&mut h);
            }
            Act::Crash => {
                open_submits.clear();
                h = h.crash();
                h.auto_commit = true;
                world.connect(&mut h);
                h.auto_commit = false;
            }
            Act::NodeDown { node } => {
                let n = usize::from(*node);
                if world.up[n] {
                    world.up[n] = false;
                    let told = world.nodes[n].clone();
                    h.node_down(&told);
                }
            }
            Act::NodeUp { node } => {
                let n = usize::from(*node);
                if !world.up[n] {
                    world.up[n] = true;
                    world.nodes[n].session_epoch.0 += 1;
                    world.applied[n] = 0;
                    let told = world.told(n);
                    h.node_up(&told);
                }
            }
            Act::Quota { tenant, instances } => {
                let index = usize::from(*tenant);
                let update = UpdateQuota {
                    instances: Some(Some(u64::from(*instances))),
                    ..UpdateQuota::default()
                };
                world.limits[index] = u64::from(*instances);
                h.ask_later(
                    admin(),
                    Call::UpdateQuota(TENANTS[index].to_owned(), update),
                );
                // A crash must not take it back, or the model would not know the limit.
                h.commit();
            }
        }
        world.deliver(&mut h);
        world.check_quota(&h);
        open_submits.retain(|token| match h.reply(*token) {
            None => true,
            Some(Ok(Reply::Submitted(response))) => {
                acknowledged.extend(response.instances);
                false
            }
            Some(_) => false,
        });
    }
    // Faults stop: everything that was acknowledged gets to an end.
    h.auto_commit = true;
    h.commit();
    for n in 0..3 {
        if !world.up[n] {
            world.up[n] = true;
            world.nodes[n].session_epoch.0 += 1;
            world.applied[n] = 0;
            let told = world.told(n);
            h.node_up(&told);
            world.deliver(&mut h);
        }
    }
    for _ in 0..200 {
        world.deliver(&mut h);
        while !world.open.is_empty() {
            world.place(&mut h, 0);
        }
        for kept in &mut world.kept {
            for end in kept.values_mut().filter(|end| end.is_none()) {
                *end = Some(EndCause::Exited { code: 0 });
            }
        }
        world.report_all(&mut h);
        world.generation += 1;
        h.capacity(world.generation);
        h.pass(1_000);
        world.deliver(&mut h);
        if h.state.by_seq.is_empty() && world.kept.iter().all(BTreeMap::is_empty) {
            break;
        }
    }
    assert!(h.state.by_seq.is_empty(), "it does not converge");
    for id in acknowledged {
        assert!(h.state_of(id).is_end(), "{id} was acknowledged and is lost");
    }
    for tenant in TENANTS {
        assert_eq!(h.state.living_of(tenant), 0);
    }
    h.sent.clear();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn nothing_acknowledged_is_lost_and_no_quota_is_exceeded(
        acts in proptest::collection::vec(act(), 1..120)
    ) {
        run(&acts);
    }
}

#[test]
fn the_same_sequence_has_the_same_effects() {
    let effects = || {
        let (mut h, mut world) = setup();
        h.auto_commit = true;
        h.submit(sim(), 20);
        world.deliver(&mut h);
        for n in 0..30 {
            world.place(&mut h, n % 3);
        }
        world.report_all(&mut h);
        h.disconnect_scheduler();
        world.connect(&mut h);
        let text = format!("{:?} {:?}", h.changes, h.store);
        h.sent.clear();
        text
    };
    assert_eq!(effects(), effects());
}
