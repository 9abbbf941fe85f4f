//! How fragmented a node is: the measure of FGD (Weng et al., "Beware of Fragmentation", USENIX ATC
//! 2023) over the demand shapes that were lately seen.
//!
//! A node's free GPU capacity is worth what the typical demands can do with it. For one shape, all
//! of it is wasted if the node could not take such a demand at all (its CPUs, memory or devices do
//! not suffice), and otherwise the rests on those devices that are too small for it. Weighted by how
//! often each shape occurs and summed, that is the node's waste, in thousandths of a device; a
//! placement is the better the less it adds.
//!
//! The shapes are kept by a decayed Space-Saving sketch (Metwally et al., ICDT 2005): a bounded
//! number of counters, the smallest of which is taken over by a shape that has none. Demands
//! without GPUs have no part in the measure and are not counted.

use super::gpu;
use super::query::Quantities;
use pronto_payloads::demand::{Demand, GPU_MILLIS};
use rustc_hash::FxHashMap;

/// Shapes that are counted: the 64 most frequent cover 97 % of the openb trace, and all are
/// compared with each node that is considered.
const SHAPES: usize = 64;
/// Demands after which all counts are halved: an hour or a day of a busy cluster, and enough to
/// count 64 shapes.
const HALVED_AFTER: u32 = 4_096;

/// What tells shapes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
struct Shape {
    cpu_millis: u32,
    memory_mib: u32,
    gpus: (u16, u16),
}

/// The demand shapes lately seen; each array by counter.
#[derive(Clone, Debug)]
pub(super) struct Shapes {
    counters: FxHashMap<Shape, usize>,
    shapes: [Shape; SHAPES],
    /// Counters in use.
    used: usize,
    since_halved: u32,
    /// What follows is compared in vector registers, hence floating: single precision is plenty.
    weight: [f32; SHAPES],
    cpu_millis: [f32; SHAPES],
    memory_mib: [f32; SHAPES],
    gpu_rank: [f32; SHAPES],
    /// Thousandths of each device.
    each: [f32; SHAPES],
}

impl Default for Shapes {
    fn default() -> Self {
        Self {
            counters: FxHashMap::default(),
            shapes: [Shape::default(); SHAPES],
            used: 0,
            since_halved: 0,
            weight: [0.0; SHAPES],
            cpu_millis: [0.0; SHAPES],
            memory_mib: [0.0; SHAPES],
            gpu_rank: [0.0; SHAPES],
            each: [0.0; SHAPES],
        }
    }
}

/// Quantities beyond 2^24 are rounded to a few parts in ten million.
#[expect(clippy::cast_precision_loss, reason = "a measure, not an account")]
fn float(quantity: u32) -> f32 {
    quantity as f32
}

impl Shapes {
    /// A demand has been seen.
    pub(super) fn note(&mut self, demand: &Demand) {
        let gpus = demand.gpu_shape();
        if gpus.0 == 0 {
            return;
        }
        let shape = Shape {
            cpu_millis: demand.cpu_millis,
            memory_mib: demand.memory_mib,
            gpus,
        };
        let counter = self.counters.get(&shape).copied();
        let counter = counter.unwrap_or_else(|| self.take_over(shape));
        self.weight[counter] += 1.0;
        self.since_halved += 1;
        if self.since_halved == HALVED_AFTER {
            self.since_halved = 0;
            for weight in &mut self.weight {
                *weight *= 0.5;
            }
        }
    }

    fn take_over(&mut self, shape: Shape) -> usize {
        let counter = if self.used < SHAPES {
            self.used += 1;
            self.used - 1
        } else {
            let rarest = (0..SHAPES).min_by(|&a, &b| self.weight[a].total_cmp(&self.weight[b]));
            let rarest = rarest.unwrap_or(0);
            self.counters.remove(&self.shapes[rarest]);
            rarest
        };
        self.counters.insert(shape, counter);
        self.shapes[counter] = shape;
        self.cpu_millis[counter] = float(shape.cpu_millis);
        self.memory_mib[counter] = float(shape.memory_mib);
        self.gpu_rank[counter] = f32::from(gpu::rank_of_demand(shape.gpus));
        self.each[counter] = f32::from(shape.gpus.1);
        counter
    }

    /// The free GPU capacity of a node that the shapes can't use, weighted by their frequency.
    pub(super) fn waste(&self, free: &Quantities, devices: &[u16]) -> f32 {
        let total: u32 = devices.iter().map(|&free| u32::from(free)).sum();
        if total == 0 {
            return 0.0;
        }
        let mut small = [0.0; SHAPES];
        for &rest in devices {
            // Whole devices suffice for every share, and used-up ones waste nothing.
            if rest > 0 && rest < GPU_MILLIS {
                let rest = f32::from(rest);
                for (small, &each) in small.iter_mut().zip(&self.each) {
                    *small += if each > rest { rest } else { 0.0 };
                }
            }
        }
        let total = float(total);
        let cpu_millis = float(free.cpu_millis);
        let memory_mib = float(free.memory_mib);
        let gpu_rank = f32::from(free.gpu_rank);
        let mut sums = [0.0; 4];
        for counter in 0..SHAPES {
            let holds = (cpu_millis >= self.cpu_millis[counter])
                & (memory_mib >= self.memory_mib[counter])
                & (gpu_rank >= self.gpu_rank[counter]);
            let wasted = if holds { small[counter] } else { total };
            sums[counter % 4] += self.weight[counter] * wasted;
        }
        sums.iter().sum()
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
            gpu_rank: gpu::rank_of_free(devices),
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
        shapes.note(&demand(4_000, 0, 0));
        assert_eq!(waste(&shapes, 4_000, &[1_000, 1_000]), 0.0);
        assert_eq!(
            waste(&shapes, 4_000, &[1_000, 600]),
            600.0,
            "for whole devices"
        );
        assert_eq!(
            waste(&shapes, 4_000, &[1_000, 400]),
            800.0,
            "too small for both"
        );
        assert_eq!(
            waste(&shapes, 4_000, &[600]),
            600.0,
            "no whole device is there"
        );
        assert_eq!(
            waste(&shapes, 1_000, &[1_000]),
            1_000.0,
            "without the CPUs for one"
        );
        assert_eq!(waste(&shapes, 0, &[1_000]), 2_000.0, "without CPUs");
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
        assert_eq!(shapes.counters.len(), SHAPES);
        let frequent = Shape {
            cpu_millis: 7_000,
            memory_mib: 0,
            gpus: (1, 1_000),
        };
        assert!(shapes.counters.contains_key(&frequent));
    }
}
