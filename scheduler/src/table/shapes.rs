//! How fragmented a node is: the measure of FGD (Weng et al., "Beware of Fragmentation", USENIX ATC
//! 2023) over the demand shapes that were lately seen.
//!
//! A node's free GPU capacity is worth what the typical demands can do with it. For one shape, all
//! of it is wasted if the node could not take such a demand at all (its CPUs, memory or devices do
//! not suffice), and otherwise the rests on those devices that are too small for it. Weighted by how
//! often each shape occurs and summed, that is the node's waste, in thousandths of a device; a
//! placement is the better the less it adds. Demands without GPUs count as well: a node that has no
//! CPUs left for them is on its way to have none for those with GPUs.
//!
//! The shapes are kept by a decayed Space-Saving sketch (Metwally et al., ICDT 2005): a bounded
//! number of counters, the smallest of which is taken over by a shape that has none. What nodes are
//! compared with is a picture of the counters that is taken now and then, so that a node's waste
//! can be remembered in between ([`Shapes::version`]).

use super::gpu;
use super::query::Quantities;
use pronto_payloads::demand::{Demand, GPU_MILLIS};
use pronto_payloads::limits;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use wide::{i16x8, i32x4};

/// Shapes that are counted: the 64 most frequent cover 97 % of the openb trace, and all are
/// compared with each node that is considered.
const SHAPES: usize = 64;
/// Shapes in one vector.
const LANES: usize = 8;
/// Demands after which all counts are halved: a few thousand are enough to count 64 shapes, and a
/// cluster whose mix changes has forgotten the old one after some tens of thousands.
const HALVED_AFTER: u32 = 4_096;
/// Demands after which a new picture is taken: shares of a mix do not change in fewer, and a picture
/// costs some fifty placements' look at one node.
const PICTURED_AFTER: u32 = 64;

/// What tells shapes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
struct Shape {
    cpu_millis: u32,
    memory_mib: u32,
    gpus: (u16, u16),
}

#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    shape: Shape,
    count: f32,
}

/// Eight shapes of the picture. A shape that is not used has no weight.
#[derive(Clone, Copy, Debug, Default)]
struct Pictured {
    /// Shares of [`ALL`].
    weight: i16x8,
    /// The ranks of a summary: what they leave out is less than a thousandth.
    cpu: i16x8,
    memory: i16x8,
    gpu: i16x8,
    /// Thousandths of each device.
    each: i16x8,
}

/// The weight of all shapes together.
const ALL: f32 = 16_384.0;

/// The demand shapes lately seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Shapes {
    numbers: FxHashMap<Shape, usize>,
    counters: Vec<Counter>,
    since_halved: u32,
    since_pictured: u32,
    picture: Vec<Pictured>,
    version: u32,
}

/// A node has at most 32 devices, so that what is free of them fits in a lane.
const _: () = assert!(limits::GPUS * GPU_MILLIS as usize <= i16::MAX as usize);

fn lane(millis: u16) -> i16 {
    i16::try_from(millis).unwrap_or(i16::MAX)
}

impl Shape {
    fn quantities(self) -> Quantities {
        Quantities {
            cpu_millis: self.cpu_millis,
            memory_mib: self.memory_mib,
            disk_mib: 0,
            gpu_rank: gpu::rank_of_demand(self.gpus).into(),
        }
    }
}

impl Shapes {
    /// Changes when what [`Self::waste`] says of a node may change.
    pub(super) fn version(&self) -> u32 {
        self.version
    }

    /// A demand has been seen.
    pub(super) fn note(&mut self, demand: &Demand) {
        let shape = Shape {
            cpu_millis: demand.cpu_millis,
            memory_mib: demand.memory_mib,
            gpus: demand.gpu_shape(),
        };
        let number = self.numbers.get(&shape).copied();
        let number = number.unwrap_or_else(|| self.take_over(shape));
        self.counters[number].count += 1.0;
        self.since_halved += 1;
        if self.since_halved == HALVED_AFTER {
            self.since_halved = 0;
            for counter in &mut self.counters {
                counter.count *= 0.5;
            }
        }
        self.since_pictured += 1;
        if self.since_pictured == PICTURED_AFTER || self.version < PICTURED_AFTER {
            self.take_picture();
        }
    }

    fn take_over(&mut self, shape: Shape) -> usize {
        let number = if self.counters.len() < SHAPES {
            self.counters.push(Counter::default());
            self.counters.len() - 1
        } else {
            let rarest = (0..SHAPES)
                .min_by(|&a, &b| self.counters[a].count.total_cmp(&self.counters[b].count));
            let rarest = rarest.unwrap_or(0);
            self.numbers.remove(&self.counters[rarest].shape);
            rarest
        };
        self.numbers.insert(shape, number);
        self.counters[number].shape = shape;
        number
    }

    fn take_picture(&mut self) {
        self.since_pictured = 0;
        self.version += 1;
        let total: f32 = self.counters.iter().map(|counter| counter.count).sum();
        self.picture.clear();
        for counters in self.counters.chunks(LANES) {
            let mut pictured = Pictured::default();
            for (at, Counter { shape, count }) in counters.iter().enumerate() {
                let [cpu, memory, _, gpu] = shape.quantities().ranks();
                #[expect(clippy::cast_possible_truncation, reason = "ALL fits")]
                let weight = (count / total * ALL).round() as i16;
                pictured.weight.as_mut_array()[at] = weight;
                pictured.cpu.as_mut_array()[at] = cpu;
                pictured.memory.as_mut_array()[at] = memory;
                pictured.gpu.as_mut_array()[at] = gpu;
                pictured.each.as_mut_array()[at] = lane(shape.gpus.1);
            }
            self.picture.push(pictured);
        }
    }

    /// The free GPU capacity of a node that the shapes can't use, weighted by their frequency.
    pub(super) fn waste(&self, free: &Quantities, devices: &[u16]) -> f32 {
        let total = devices
            .iter()
            .fold(0, |total: u16, &free| total.saturating_add(free));
        if total == 0 {
            return 0.0;
        }
        // Whole devices suffice for every share, and used-up ones waste nothing.
        let is_rest = |rest: &&u16| **rest > 0 && **rest < GPU_MILLIS;
        let rests = devices.iter().filter(is_rest);
        let rests: SmallVec<[i16x8; LANES]> = rests.map(|&rest| i16x8::splat(lane(rest))).collect();
        let total = i16x8::splat(lane(total));
        let [cpu, memory, _, gpu] = free.ranks().map(i16x8::splat);
        let mut sum = i32x4::ZERO;
        for shapes in &self.picture {
            let mut wasted = i16x8::ZERO;
            for &rest in &rests {
                wasted += rest & shapes.each.simd_gt(rest);
            }
            let lacks =
                shapes.cpu.simd_gt(cpu) | shapes.memory.simd_gt(memory) | shapes.gpu.simd_gt(gpu);
            wasted = (total & lacks) | (wasted & !lacks);
            sum += shapes.weight.dot(wasted);
        }
        sum.reduce_add() as f32 / ALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(cpu_millis: u32, gpus: u16, gpu_millis: u16) -> Demand {
        Demand {
            cpu_millis,
            gpus,
            gpu_millis,
            ..Demand::default()
        }
    }

    fn waste(shapes: &Shapes, cpu_millis: u32, devices: &[u16]) -> f32 {
        let free = Quantities {
            cpu_millis,
            gpu_rank: gpu::Devices::from(devices).rank().into(),
            ..Quantities::default()
        };
        shapes.waste(&free, devices)
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "small whole numbers are exact")]
    fn waste_is_what_the_shapes_cannot_use() {
        let mut shapes = Shapes::default();
        shapes.note(&demand(1_000, 0, 500));
        shapes.note(&demand(4_000, 1, 0));
        shapes.note(&demand(500, 0, 0));
        shapes.note(&demand(500, 0, 0));
        let cases: [(u32, &[u16], f32, &str); 6] = [
            (4_000, &[1_000, 1_000], 0.0, "all can use all"),
            (
                4_000,
                &[1_000, 600],
                600.0,
                "the rest is too small for whole devices",
            ),
            (
                4_000,
                &[1_000, 400],
                800.0,
                "the rest is too small for both",
            ),
            (4_000, &[600], 600.0, "no whole device is there"),
            (
                1_000,
                &[1_000],
                1_000.0,
                "without the CPUs for a whole device",
            ),
            (0, &[1_000], 4_000.0, "without CPUs"),
        ];
        for (cpu_millis, devices, expected, why) in cases {
            // Each of the four demands weighs a quarter.
            assert_eq!(waste(&shapes, cpu_millis, devices) * 4.0, expected, "{why}");
        }
    }

    #[test]
    fn rare_shapes_give_way() {
        let mut shapes = Shapes::default();
        for _ in 0..1_000 {
            shapes.note(&demand(7_000, 1, 0));
        }
        for cpu_millis in 0..10_000 {
            shapes.note(&demand(cpu_millis + 10_000, 1, 0));
        }
        assert_eq!(shapes.numbers.len(), SHAPES);
        let frequent = Shape {
            cpu_millis: 7_000,
            memory_mib: 0,
            gpus: (1, 1_000),
        };
        assert!(shapes.numbers.contains_key(&frequent));
    }
}
