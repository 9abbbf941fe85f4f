//! The node table against a naive one: a list that is read from its head for each question.

use super::*;
use pronto_payloads::demand::{Constraint, Resource};
use pronto_payloads::node::Label;
use pronto_payloads::place::Refusal;
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Plain {
    spec: NodeSpec,
    available: Option<Capacity>,
    admission: Admission,
    recent: bool,
}

/// By slot, as the table's order is.
#[derive(Default)]
struct Oracle {
    nodes: Vec<Option<Plain>>,
    last: Option<usize>,
}

fn holds(capacity: &Capacity, demand: &Demand) -> bool {
    let (devices, each) = demand.gpu_shape();
    let fitting = capacity.gpu_millis.iter().filter(|&&free| free >= each);
    capacity.cpu_millis >= demand.cpu_millis
        && capacity.memory_mib >= demand.memory_mib
        && capacity.disk_mib >= demand.disk_mib
        && (each == 0 || fitting.count() >= usize::from(devices))
        && demand.resources.iter().all(|need| {
            let mut free = capacity.resources.iter();
            free.any(|free| free.name == need.name && free.count >= need.count)
        })
}

/// A node reports no more than it could give.
fn within(mut free: Capacity, allocatable: &Capacity) -> Capacity {
    free.cpu_millis = free.cpu_millis.min(allocatable.cpu_millis);
    free.memory_mib = free.memory_mib.min(allocatable.memory_mib);
    free.disk_mib = free.disk_mib.min(allocatable.disk_mib);
    let devices = allocatable.gpu_millis.iter().enumerate();
    free.gpu_millis = devices
        .map(|(device, &whole)| whole.min(free.gpu_millis.get(device).copied().unwrap_or(whole)))
        .collect();
    free.resources.clone_from(&allocatable.resources);
    free
}

fn suits(node: &Plain, query: &Query<'_>) -> bool {
    node.spec.runtimes.contains(&query.runtime)
        && node.spec.schema_min <= query.schema
        && query.schema <= node.spec.schema_max
        && query.constraints.iter().all(|constraint| match constraint {
            Constraint::Node(name) => *name == node.spec.name,
            Constraint::Label { key, value } => {
                let mut labels = node.spec.labels.iter();
                labels.any(|label| label.key == *key && label.value == *value)
            }
        })
}

impl Oracle {
    fn fits(&self, slot: usize, query: &Query<'_>) -> bool {
        self.nodes[slot].as_ref().is_some_and(|node| {
            node.admission.is_open()
                && suits(node, query)
                && node
                    .available
                    .as_ref()
                    .is_some_and(|available| holds(available, query.demand))
        })
    }

    fn ever(&self, query: &Query<'_>) -> bool {
        let mut nodes = self.nodes.iter().flatten();
        nodes.any(|node| suits(node, query) && holds(&node.spec.allocatable, query.demand))
    }

    /// Whether it is worth waiting for a node that is not avoided.
    fn elsewhere(&self, query: &Query<'_>) -> bool {
        self.nodes.iter().flatten().any(|node| {
            suits(node, query)
                && holds(&node.spec.allocatable, query.demand)
                && !query.avoid.contains(&node.spec.name)
                && node.admission.is_open()
                && node.available.is_some()
        })
    }

    /// All that may be chosen, best first; the first alone by [`Fit::First`].
    fn order(&self, query: &Query<'_>, spread: Spread) -> Vec<usize> {
        let avoided = |slot: usize| {
            let node = self.nodes[slot].as_ref();
            node.is_some_and(|node| query.avoid.contains(&node.spec.name))
        };
        if let Some(prefer) = query.prefer {
            let named = (0..self.nodes.len()).find(|&slot| {
                self.nodes[slot]
                    .as_ref()
                    .is_some_and(|node| node.spec.name == prefer)
            });
            if let Some(slot) = named
                && self.fits(slot, query)
                && !avoided(slot)
            {
                return vec![slot];
            }
        }
        let all: Vec<usize> = (0..self.nodes.len())
            .filter(|&slot| self.fits(slot, query) && !avoided(slot))
            .collect();
        if all.is_empty() && !query.avoid.is_empty() && !self.elsewhere(query) {
            return self.order(
                &Query {
                    avoid: &[],
                    ..*query
                },
                spread,
            );
        }
        let after = self.last.map_or(0, |last| last + 1);
        let turned = || {
            let (head, tail): (Vec<usize>, Vec<usize>) =
                all.iter().partition(|&&slot| slot < after);
            [tail, head].concat()
        };
        match spread {
            Spread::Settle => {
                let is_settled =
                    |slot: &usize| self.nodes[*slot].as_ref().is_some_and(|node| !node.recent);
                let settled: Vec<usize> = all.iter().copied().filter(is_settled).collect();
                if settled.is_empty() {
                    turned()
                } else {
                    settled
                }
            }
            Spread::Skip => {
                let is_other = |slot: &usize| Some(*slot) != self.last;
                let others: Vec<usize> = all.iter().copied().filter(is_other).collect();
                if others.is_empty() { all } else { others }
            }
            Spread::Rotate => turned(),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Box<NodeSpec>),
    Remove(prop::sample::Index),
    Available(prop::sample::Index, Capacity),
    Obstacle(prop::sample::Index, Obstacle, bool),
    Runtimes(prop::sample::Index, Vec<Runtime>),
    Settled(prop::sample::Index),
    Place(Box<Wish>),
}

#[derive(Clone, Debug)]
struct Wish {
    demand: Demand,
    constraints: Vec<Constraint>,
    runtime: Runtime,
    schema: u16,
    prefer: Option<String>,
    avoid: Vec<String>,
}

impl Wish {
    fn query(&self) -> Query<'_> {
        Query {
            demand: &self.demand,
            constraints: &self.constraints,
            runtime: self.runtime,
            schema: self.schema,
            prefer: self.prefer.as_deref(),
            avoid: &self.avoid,
        }
    }
}

fn names() -> impl Strategy<Value = String> {
    (0_u32..40).prop_map(|number| format!("n{number}"))
}

fn resources() -> impl Strategy<Value = Vec<Resource>> {
    prop_oneof![
        4 => Just(vec![]),
        1 => (1_u32..3).prop_map(|count| vec![Resource { name: "fpga".into(), count }]),
    ]
}

fn capacities() -> impl Strategy<Value = Capacity> {
    let devices = prop::collection::vec(prop_oneof![Just(1000_u16), 0..1000_u16], 0..4);
    let quantity = || prop_oneof![3 => 0_u32..5, 1 => 4_000_u32..4_010, 1 => Just(u32::MAX)];
    (quantity(), quantity(), quantity(), devices, resources()).prop_map(
        |(cpu_millis, memory_mib, disk_mib, gpu_millis, resources)| Capacity {
            cpu_millis,
            memory_mib,
            disk_mib,
            gpu_millis,
            resources,
        },
    )
}

fn demands() -> impl Strategy<Value = Demand> {
    let gpus = prop_oneof![
        3 => Just((0, 0)),
        1 => (1_u16..3).prop_map(|gpus| (gpus, 0)),
        1 => (1_u16..1000).prop_map(|millis| (0, millis)),
    ];
    let quantity = || prop_oneof![5 => 0_u32..4, 1 => 4_000_u32..4_010];
    (quantity(), quantity(), 0_u32..3, gpus, resources()).prop_map(
        |(cpu_millis, memory_mib, disk_mib, (gpus, gpu_millis), resources)| Demand {
            cpu_millis,
            memory_mib,
            disk_mib,
            gpus,
            gpu_millis,
            resources,
        },
    )
}

fn runtimes() -> impl Strategy<Value = Runtime> {
    prop_oneof![8 => Just(Runtime::Exec), 1 => Just(Runtime::Docker), 1 => Just(Runtime::Sim)]
}

fn specs() -> impl Strategy<Value = NodeSpec> {
    let labels = (0_u8..3, 0_u8..2).prop_map(|(zone, arch)| {
        vec![
            Label {
                key: "arch".into(),
                value: format!("a{arch}"),
            },
            Label {
                key: "zone".into(),
                value: format!("z{zone}"),
            },
        ]
    });
    let offered = prop::collection::vec(runtimes(), 1..3);
    (names(), capacities(), labels, offered, 1_u16..3, 0_u16..6).prop_map(
        |(name, allocatable, labels, runtimes, schema_min, range)| NodeSpec {
            name,
            allocatable,
            labels,
            runtimes,
            schema_min,
            schema_max: schema_min + range,
        },
    )
}

fn wishes() -> impl Strategy<Value = Wish> {
    let constraint = prop_oneof![
        1 => names().prop_map(Constraint::Node),
        4 => (0_u8..4).prop_map(|zone| Constraint::Label { key: "zone".into(), value: format!("z{zone}") }),
        2 => (0_u8..2).prop_map(|arch| Constraint::Label { key: "arch".into(), value: format!("a{arch}") }),
    ];
    let constraints = prop_oneof![
        3 => Just(vec![]),
        2 => prop::collection::vec(constraint, 1..3),
    ];
    let prefer = prop_oneof![4 => Just(None), 1 => names().prop_map(Some)];
    let avoid = prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(names(), 1..4)];
    (demands(), constraints, runtimes(), 1_u16..4, prefer, avoid).prop_map(
        |(demand, constraints, runtime, schema, prefer, avoid)| Wish {
            demand,
            constraints,
            runtime,
            schema,
            prefer,
            avoid,
        },
    )
}

fn steps() -> impl Strategy<Value = Step> {
    let at = any::<prop::sample::Index>;
    let obstacle = prop_oneof![
        Just(Obstacle::Maintenance),
        Just(Obstacle::Full),
        Just(Obstacle::QueueFull),
        Just(Obstacle::BackedOff),
    ];
    prop_oneof![
        4 => specs().prop_map(|spec| Step::Insert(Box::new(spec))),
        1 => at().prop_map(Step::Remove),
        8 => (at(), capacities()).prop_map(|(at, capacity)| Step::Available(at, capacity)),
        1 => (at(), obstacle, any::<bool>()).prop_map(|(at, obstacle, holds)| Step::Obstacle(at, obstacle, holds)),
        1 => (at(), prop::collection::vec(runtimes(), 0..3)).prop_map(|(at, runtimes)| Step::Runtimes(at, runtimes)),
        3 => at().prop_map(Step::Settled),
        10 => wishes().prop_map(|wish| Step::Place(Box::new(wish))),
    ]
}

fn fits() -> impl Strategy<Value = Fit> {
    prop_oneof![
        Just(Fit::First),
        (1_u8..9).prop_map(|choices| Fit::Few { choices })
    ]
}

fn spreads() -> impl Strategy<Value = Spread> {
    prop_oneof![
        Just(Spread::Settle),
        Just(Spread::Skip),
        Just(Spread::Rotate)
    ]
}

/// The table and its oracle, driven side by side.
struct Pair {
    table: NodeTable,
    oracle: Oracle,
}

impl Pair {
    fn picked(&self, at: prop::sample::Index) -> Option<(NodeIndex, usize)> {
        let nodes: Vec<NodeIndex> = self.table.iter().collect();
        (!nodes.is_empty()).then(|| {
            let index = nodes[at.index(nodes.len())];
            (index, index.slot as usize)
        })
    }

    fn plain(&mut self, slot: usize) -> &mut Plain {
        self.oracle.nodes[slot].as_mut().expect("the table has it")
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Insert(spec) => {
                for node in &mut self.oracle.nodes {
                    if node
                        .as_ref()
                        .is_some_and(|node| node.spec.name == spec.name)
                    {
                        *node = None;
                    }
                }
                let vacant = self.oracle.nodes.iter().position(Option::is_none);
                let slot = vacant.unwrap_or(self.oracle.nodes.len());
                if vacant.is_none() {
                    self.oracle.nodes.push(None);
                }
                self.oracle.nodes[slot] = Some(Plain {
                    spec: (*spec).clone(),
                    available: None,
                    admission: Admission::OPEN,
                    recent: false,
                });
                let index = self.table.insert(*spec);
                assert_eq!(
                    index.slot as usize, slot,
                    "a gone node's place is taken first"
                );
            }
            Step::Remove(at) => {
                if let Some((index, slot)) = self.picked(at) {
                    self.table.remove(index);
                    self.oracle.nodes[slot] = None;
                    assert!(
                        self.table.name(index).is_none(),
                        "a stale index names nothing"
                    );
                }
            }
            Step::Available(at, capacity) => {
                if let Some((index, slot)) = self.picked(at) {
                    let capacity = within(capacity, &self.plain(slot).spec.allocatable);
                    self.table.set_available(index, &capacity);
                    assert_eq!(self.table.available(index).as_ref(), Some(&capacity));
                    self.plain(slot).available = Some(capacity);
                }
            }
            Step::Obstacle(at, obstacle, holds) => {
                if let Some((index, slot)) = self.picked(at) {
                    self.table.set_obstacle(index, obstacle, holds);
                    let node = self.plain(slot);
                    node.admission = node.admission.with(obstacle, holds);
                }
            }
            Step::Runtimes(at, runtimes) => {
                if let Some((index, slot)) = self.picked(at) {
                    self.table.set_runtimes(index, &runtimes);
                    self.plain(slot).spec.runtimes = runtimes;
                }
            }
            Step::Settled(at) => {
                if let Some((index, slot)) = self.picked(at) {
                    self.table.settled(index);
                    self.plain(slot).recent = false;
                }
            }
            Step::Place(wish) => self.place(&wish),
        }
    }

    fn place(&mut self, wish: &Wish) {
        let query = wish.query();
        let TableConfig { fit, spread } = self.table.config();
        let order = self.oracle.order(&query, spread);
        let explained = self.table.explain(&query);
        let counted: u32 = explained.reasons.iter().map(|reason| reason.nodes).sum();
        assert_eq!(
            explained.fits + counted,
            explained.nodes,
            "each node is counted once"
        );
        let fitting = (0..self.oracle.nodes.len()).filter(|&slot| self.oracle.fits(slot, &query));
        assert_eq!(explained.fits as usize, fitting.count());
        let Some(placement) = self.table.place(&query) else {
            assert!(order.is_empty(), "{order:?} would fit");
            let expected = if self.oracle.nodes.iter().all(Option::is_none) {
                Refusal::NoNodes
            } else if self.oracle.ever(&query) {
                Refusal::CloudFull
            } else {
                Refusal::NeverFits
            };
            assert_eq!(self.table.classify_refusal(&query), expected);
            return;
        };
        let slot = placement.node.slot as usize;
        match fit {
            Fit::First => assert_eq!(order.first(), Some(&slot), "of {order:?}"),
            Fit::Few { choices } => {
                let first = &order[..order.len().min(usize::from(choices))];
                assert!(first.contains(&slot), "{slot} is not of {first:?}");
            }
        }
        let (devices, each) = wish.demand.gpu_shape();
        assert_eq!(placement.gpus.len(), usize::from(devices));
        let node = self.plain(slot);
        node.recent = true;
        let available = node.available.as_mut().expect("it fitted");
        for share in &placement.gpus {
            assert_eq!(share.millis, each);
            assert!(available.gpu_millis[usize::from(share.device)] >= each);
        }
        subtract(available, &wish.demand, &placement.gpus);
        let left = available.clone();
        assert_eq!(self.table.available(placement.node), Some(left));
        self.oracle.last = Some(slot);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn agrees_with_the_naive_table(
        fit in fits(),
        spread in spreads(),
        steps in prop::collection::vec(steps(), 1..120),
    ) {
        let mut pair = Pair {
            table: NodeTable::new(TableConfig { fit, spread }),
            oracle: Oracle::default(),
        };
        for step in steps {
            pair.step(step);
            pair.table.sanity_check();
        }
    }
}

/// Many nodes of few kinds, so that labels become common and the tree has several levels.
#[test]
fn agrees_with_the_naive_table_when_there_are_many_nodes() {
    let mut pair = Pair {
        table: NodeTable::new(TableConfig::default()),
        oracle: Oracle::default(),
    };
    for number in 0_u32..700 {
        let capacity = Capacity {
            cpu_millis: number % 7,
            memory_mib: 7 - number % 7,
            ..Capacity::default()
        };
        let label = |key: &str, value: String| Label {
            key: key.to_owned(),
            value,
        };
        pair.step(Step::Insert(Box::new(NodeSpec {
            name: format!("n{number}"),
            allocatable: capacity.clone(),
            labels: vec![
                label("hostname", format!("n{number}")),
                label("zone", format!("z{}", number % 5)),
            ],
            runtimes: vec![Runtime::Exec],
            schema_min: 1,
            schema_max: 1,
        })));
        let index = pair.table.find(&format!("n{number}")).expect("inserted");
        pair.table.set_available(index, &capacity);
        pair.plain(number as usize).available = Some(capacity);
    }
    for number in 0_u32..400 {
        let demand = Demand {
            cpu_millis: number % 8,
            memory_mib: number / 8 % 8,
            ..Demand::default()
        };
        let constraints = match number % 3 {
            0 => vec![],
            1 => vec![Constraint::Label {
                key: "zone".into(),
                value: format!("z{}", number % 6),
            }],
            _ => vec![Constraint::Label {
                key: "hostname".into(),
                value: format!("n{number}"),
            }],
        };
        pair.place(&Wish {
            demand,
            constraints,
            runtime: Runtime::Exec,
            schema: 1,
            prefer: None,
            avoid: vec![],
        });
    }
    pair.table.sanity_check();
}
