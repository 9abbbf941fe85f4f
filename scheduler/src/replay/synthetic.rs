//! A generated trace with the published mix of openb, for demonstrations and for tests where the
//! trace itself is not at hand.
//!
//! Nodes are the list's shapes in its numbers (Weng et al., USENIX ATC 2023, and the trace's own
//! node list): 1,213 nodes with 6,212 GPUs. Tasks are drawn: 13 % without a GPU, 38 % a share of
//! one, 48 % one whole, 1 % two, four or eight, with CPUs and memory in the proportions that are
//! common there. It is no copy of the trace, and its figures are its own.

use super::rng::Rng;
use super::trace::{Trace, TraceNode, TraceTask};
use pronto_payloads::demand::{Capacity, Demand, GPU_MILLIS};
use pronto_payloads::node::Label;

/// How many, CPUs (millis), memory (MiB), GPUs, model.
const NODES: [(usize, u32, u32, usize, &str); 15] = [
    (549, 96_000, 393_216, 8, "G2"),
    (387, 104_000, 524_288, 2, "T4"),
    (107, 16_000, 122_880, 2, "P100"),
    (39, 128_000, 786_432, 8, "G3"),
    (28, 32_000, 131_072, 4, "V100M16"),
    (22, 64_000, 262_144, 2, "P100"),
    (21, 96_000, 786_432, 8, "V100M32"),
    (19, 8_000, 32_768, 1, "V100M16"),
    (17, 96_000, 393_216, 4, "T4"),
    (9, 48_000, 376_832, 4, "V100M32"),
    (7, 64_000, 262_144, 8, "V100M16"),
    (3, 8_000, 61_440, 1, "P100"),
    (2, 8_000, 61_440, 2, "P100"),
    (2, 128_000, 1_048_576, 1, "A10"),
    (1, 82_000, 344_064, 8, "V100M16"),
];

const TASKS: usize = 8_152;
/// In thousandths of all tasks; the rest asks for one whole GPU.
const WITHOUT_GPU: usize = 133;
const WITH_SHARE: usize = 378;
const WITH_SEVERAL: usize = 9;

/// Nodes and tasks in random order, the same for the same seed.
#[must_use]
pub fn synthetic_openb(seed: u64) -> Trace {
    let mut rng = Rng::new(seed);
    let mut nodes = Vec::new();
    for (count, cpu_millis, memory_mib, gpus, model) in NODES {
        for _ in 0..count {
            nodes.push(TraceNode {
                name: format!("openb-{:04}", nodes.len()),
                capacity: Capacity {
                    cpu_millis,
                    memory_mib,
                    disk_mib: 0,
                    gpu_millis: vec![GPU_MILLIS; gpus],
                    resources: Vec::new(),
                },
                labels: vec![Label {
                    key: "gpu.model".to_owned(),
                    value: model.to_owned(),
                }],
            });
        }
    }
    let tasks = (0..TASKS).map(|_| TraceTask {
        demand: demand(&mut rng),
        ..TraceTask::default()
    });
    Trace {
        nodes,
        tasks: tasks.collect(),
    }
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.below(from.len())]
}

fn demand(rng: &mut Rng) -> Demand {
    let kind = rng.below(1_000);
    // A repeated value is a more frequent one.
    let (cpus, gpus, gpu_millis) = if kind < WITHOUT_GPU {
        (pick(rng, &[4, 8, 8, 16, 32]), 0, 0)
    } else if kind < WITHOUT_GPU + WITH_SHARE {
        let share = pick(rng, &[160, 230, 320, 470, 470, 590, 650, 810, 810, 810]);
        (pick(rng, &[2, 4, 6, 6, 8, 12]), 0, share)
    } else if kind < WITHOUT_GPU + WITH_SHARE + WITH_SEVERAL {
        let gpus = pick(rng, &[2, 2, 4, 8, 8, 8, 8, 8]);
        (u32::from(gpus) * pick(rng, &[8, 11]), gpus, 0)
    } else {
        (pick(rng, &[4, 8, 8, 11, 12, 12, 16]), 1, 0)
    };
    Demand {
        cpu_millis: cpus * 1_000,
        memory_mib: cpus * pick(rng, &[1_024, 2_048, 4_096]),
        disk_mib: 0,
        gpus,
        gpu_millis,
        resources: Vec::new(),
    }
}
