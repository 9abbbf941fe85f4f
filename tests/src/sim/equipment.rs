//! What a node has and is, and whether that is what a workload asked for.
//!
//! Plain clusters differ in CPU and memory alone. Equipped ones have GPUs, countable resources and
//! labels on some of their nodes, and so little disk that it runs out; what users ask for there is
//! something that at least one of the nodes could give if it were empty.

use super::rng::Rng;
use pronto_controller::api::types::{ConstraintSpec, DemandSpec, LabelSpec, Spec};
use pronto_payloads::demand::{Capacity, Constraint, Demand, GPU_MILLIS, Resource};
use pronto_payloads::node::Label;
use pronto_payloads::place::GpuShare;

/// Nobody's zone.
const NOWHERE: &str = "nowhere";

/// A node as it is, whatever it says of itself.
#[derive(Clone, Debug)]
pub struct Equipment {
    pub name: String,
    pub capacity: Capacity,
    /// Sorted by key.
    pub labels: Vec<Label>,
}

fn label(key: &str, value: &str) -> Label {
    Label {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

impl Equipment {
    /// A node that differs from others in its CPU and memory.
    #[must_use]
    pub fn plain(index: u32, rng: &mut Rng) -> Self {
        let name = format!("node-{index}");
        Self {
            capacity: Capacity {
                cpu_millis: u32::try_from(rng.between(2, 6) * 1000).expect("small"),
                memory_mib: u32::try_from(rng.between(2, 6) * 1024).expect("small"),
                disk_mib: 100_000,
                ..Capacity::default()
            },
            labels: vec![label("hostname", &name)],
            name,
        }
    }

    /// Gives it more. What is drawn here is drawn from a source of its own, so that a plain cluster's
    /// history stays what it was.
    pub fn equip(&mut self, rng: &mut Rng) {
        let devices = if rng.per_mille(600) {
            rng.between(1, 4)
        } else {
            0
        };
        let devices = usize::try_from(devices).expect("small");
        self.capacity.gpu_millis = vec![GPU_MILLIS; devices];
        self.capacity.disk_mib = u32::try_from(rng.between(2, 8) * 1024).expect("small");
        for name in ["licence", "port"] {
            if rng.per_mille(500) {
                self.capacity.resources.push(Resource {
                    name: name.to_owned(),
                    count: u32::try_from(rng.between(1, 4)).expect("small"),
                });
            }
        }
        if devices > 0 {
            let model = *rng.choose(&["large", "small"]);
            self.labels.push(label("gpu.model", model));
        }
        if rng.per_mille(800) {
            let zone = *rng.choose(&["a", "b", "c"]);
            self.labels.push(label("zone", zone));
        }
        self.labels.sort_unstable();
    }

    /// Whether it is what a constraint says.
    #[must_use]
    pub fn meets(&self, constraint: &Constraint) -> bool {
        match constraint {
            Constraint::Node(name) => *name == self.name,
            Constraint::Label { key, value } => self.has_label(key, value),
        }
    }

    fn has_label(&self, key: &str, value: &str) -> bool {
        let mut labels = self.labels.iter();
        labels.any(|label| label.key == key && label.value == value)
    }

    /// Whether it is what a user asked for.
    #[must_use]
    pub fn suits(&self, spec: &Spec) -> bool {
        spec.constraints.iter().all(|constraint| match constraint {
            ConstraintSpec::Node(name) => *name == self.name,
            ConstraintSpec::Label(label) => self.has_label(&label.key, &label.value),
        })
    }
}

/// Whether a demand is the one that a user wrote.
#[must_use]
pub fn is_as_asked(demand: &Demand, asked: &DemandSpec) -> bool {
    let resources = demand.resources.iter();
    let asked_for = |it: &Resource| asked.resources.get(&it.name) == Some(&it.count);
    demand.cpu_millis == asked.cpu_millis
        && demand.memory_mib == asked.memory_mib
        && demand.disk_mib == asked.disk_mib
        && (demand.gpus, demand.gpu_millis) == (asked.gpus, asked.gpu_millis)
        && demand.resources.len() == asked.resources.len()
        && resources.clone().all(asked_for)
}

/// What several demands take of a node together.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    cpu_millis: u64,
    memory_mib: u64,
    disk_mib: u64,
    gpu_millis: Vec<u64>,
    resources: Vec<(String, u64)>,
}

impl Taken {
    /// Adds a demand and the devices that it was given.
    pub fn add(&mut self, demand: &Demand, gpus: &[GpuShare]) {
        self.cpu_millis += u64::from(demand.cpu_millis);
        self.memory_mib += u64::from(demand.memory_mib);
        self.disk_mib += u64::from(demand.disk_mib);
        for share in gpus {
            let device = usize::from(share.device);
            let devices = self.gpu_millis.len().max(device + 1);
            self.gpu_millis.resize(devices, 0);
            self.gpu_millis[device] += u64::from(share.millis);
        }
        for wanted in &demand.resources {
            let count = u64::from(wanted.count);
            match self.resources.iter_mut().find(|it| it.0 == wanted.name) {
                Some((_, sum)) => *sum += count,
                None => self.resources.push((wanted.name.clone(), count)),
            }
        }
    }

    /// In which dimension there is less than this; nothing if it all fits.
    #[must_use]
    pub fn exceeds(&self, capacity: &Capacity) -> Option<String> {
        let more = |what: &str, taken: u64, there: u64| {
            (taken > there).then(|| format!("{taken} {what} of {there}"))
        };
        let device = |(index, &taken): (usize, &u64)| {
            let there = capacity.gpu_millis.get(index).copied().unwrap_or(0);
            more(&format!("millis of GPU {index}"), taken, u64::from(there))
        };
        let resource = |(name, taken): &(String, u64)| {
            let there = capacity.resources.iter().find(|it| it.name == *name);
            more(name, *taken, there.map_or(0, |it| u64::from(it.count)))
        };
        more("millis", self.cpu_millis, capacity.cpu_millis.into())
            .or_else(|| more("MiB", self.memory_mib, capacity.memory_mib.into()))
            .or_else(|| more("MiB of disk", self.disk_mib, capacity.disk_mib.into()))
            .or_else(|| self.gpu_millis.iter().enumerate().find_map(device))
            .or_else(|| self.resources.iter().find_map(resource))
    }
}

/// Whether these are devices for this demand: as many as it asks for, each once and with as much.
#[must_use]
pub fn are_devices_for(demand: &Demand, gpus: &[GpuShare]) -> bool {
    let (devices, each) = demand.gpu_shape();
    let is_new = |index: usize| {
        let mut earlier = gpus[..index].iter();
        earlier.all(|share| share.device != gpus[index].device)
    };
    gpus.len() == usize::from(devices)
        && gpus.iter().all(|share| share.millis == each)
        && (0..gpus.len()).all(is_new)
}

/// Adds to a submission's spec what only equipped nodes have. One of these could give all of it; now
/// and then none could, and then it expires.
pub fn ask_for_more(rng: &mut Rng, spec: &mut Spec, nodes: &[Equipment], is_long: bool) {
    let model = rng.choose(nodes);
    spec.demand.disk_mib = u32::try_from(rng.below(8) * 128).expect("small");
    // What runs for long and fits nowhere else would keep a queue waiting beyond any patience.
    let devices = model.capacity.gpu_millis.len() as u64;
    if devices > 0 && rng.per_mille(450) {
        if is_long || rng.per_mille(500) {
            spec.demand.gpu_millis = u16::try_from(rng.between(1, 9) * 100).expect("small");
        } else {
            spec.demand.gpus = u16::try_from(rng.between(1, devices)).expect("small");
        }
    }
    if is_long {
        return;
    }
    for resource in &model.capacity.resources {
        if rng.per_mille(200) {
            let count = rng.between(1, resource.count.into());
            let count = u32::try_from(count).expect("small");
            spec.demand.resources.insert(resource.name.clone(), count);
        }
    }
    for label in &model.labels {
        if rng.per_mille(150) {
            spec.constraints.push(ConstraintSpec::Label(LabelSpec {
                key: label.key.clone(),
                value: label.value.clone(),
            }));
        }
    }
    if rng.per_mille(40) {
        let name = model.name.clone();
        spec.constraints.push(ConstraintSpec::Node(name));
    }
    if rng.per_mille(30) {
        spec.constraints.push(ConstraintSpec::Label(LabelSpec {
            key: "zone".to_owned(),
            value: NOWHERE.to_owned(),
        }));
        spec.pending_timeout_ms = Some(rng.between(100, 5000));
    }
}
