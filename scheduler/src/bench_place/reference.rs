//! What the node table is measured beside: two ways of finding a first fit that read every node.

use pronto_payloads::demand::{Capacity, Demand, GPU_MILLIS};
use std::sync::{Mutex, PoisonError};
use wide::i32x8;

/// An array of structs with one lock a node, read from its head, as ciao does it.
#[derive(Debug)]
pub(super) struct LockedNodes(Vec<Mutex<Locked>>);

#[derive(Debug)]
struct Locked {
    free: Capacity,
    zone: usize,
}

impl LockedNodes {
    pub(super) fn new(nodes: &[Capacity], zones: usize) -> Self {
        let locked = |(number, free): (usize, &Capacity)| {
            Mutex::new(Locked {
                free: free.clone(),
                zone: number % zones,
            })
        };
        Self(nodes.iter().enumerate().map(locked).collect())
    }

    pub(super) fn set(&self, node: usize, free: &Capacity) {
        let mut locked = self.0[node].lock().unwrap_or_else(PoisonError::into_inner);
        locked.free.clone_from(free);
    }

    pub(super) fn search(&self, demand: &Demand, zone: Option<usize>) -> Option<usize> {
        let (devices, each) = demand.gpu_shape();
        self.0.iter().position(|node| {
            let node = node.lock().unwrap_or_else(PoisonError::into_inner);
            let free = &node.free;
            free.cpu_millis >= demand.cpu_millis
                && free.memory_mib >= demand.memory_mib
                && free.disk_mib >= demand.disk_mib
                && zone.is_none_or(|zone| zone == node.zone)
                && (devices == 0
                    || free.gpu_millis.iter().filter(|&&free| free >= each).count()
                        >= usize::from(devices))
        })
    }
}

/// Nodes of one compared chunk.
const CHUNK: usize = 8;
/// What the scan compares: cpu, memory, disk, best single device, wholly free devices.
const DIMENSIONS: usize = 5;

/// A struct of arrays, all of whose dimensions are compared in vector registers, chunk by chunk.
#[derive(Debug)]
pub(super) struct VectorScan {
    arrays: [Vec<i32x8>; DIMENSIONS],
    /// How many dimensions are in use: the scan reads no others.
    dimensions: usize,
}

fn saturate(quantity: u32) -> i32 {
    i32::try_from(quantity).unwrap_or(i32::MAX)
}

fn lanes_of(free: &Capacity) -> [i32; DIMENSIONS] {
    let best = free.gpu_millis.iter().copied().max().unwrap_or(0);
    let whole = free.gpu_millis.iter().filter(|&&free| free >= GPU_MILLIS);
    [
        saturate(free.cpu_millis),
        saturate(free.memory_mib),
        saturate(free.disk_mib),
        i32::from(best),
        i32::try_from(whole.count()).unwrap_or(i32::MAX),
    ]
}

impl VectorScan {
    pub(super) fn new(nodes: &[Capacity], dimensions: usize) -> Self {
        let chunks = nodes.len().div_ceil(CHUNK);
        let mut scan = Self {
            // Below every demand, so that the tail of the last chunk never fits.
            arrays: std::array::from_fn(|_| vec![i32x8::splat(-1); chunks]),
            dimensions,
        };
        for (node, free) in nodes.iter().enumerate() {
            scan.set(node, free);
        }
        scan
    }

    pub(super) fn set(&mut self, node: usize, free: &Capacity) {
        for (array, value) in self.arrays.iter_mut().zip(lanes_of(free)) {
            array[node / CHUNK].as_mut_array()[node % CHUNK] = value;
        }
    }

    pub(super) fn search(&self, demand: &Demand) -> Option<usize> {
        let needs = [
            saturate(demand.cpu_millis),
            saturate(demand.memory_mib),
            saturate(demand.disk_mib),
            i32::from(demand.gpu_shape().1),
            i32::from(demand.gpus),
        ];
        match self.dimensions {
            1 => self.search_in::<1>(&needs),
            2 => self.search_in::<2>(&needs),
            3 => self.search_in::<3>(&needs),
            _ => self.search_in::<DIMENSIONS>(&needs),
        }
    }

    fn search_in<const USED: usize>(&self, needs: &[i32; DIMENSIONS]) -> Option<usize> {
        let needs: [i32x8; USED] = std::array::from_fn(|used| i32x8::splat(needs[used]));
        let chunks = self.arrays[0].len();
        let arrays: [&[i32x8]; USED] = std::array::from_fn(|used| &self.arrays[used][..chunks]);
        (0..chunks).find_map(|chunk| {
            let mut lacks = i32x8::ZERO;
            for (need, array) in needs.iter().zip(&arrays) {
                lacks |= need.simd_gt(array[chunk]);
            }
            let fits = !lacks.to_bitmask() & 0xff;
            (fits != 0).then(|| chunk * CHUNK + fits.trailing_zeros() as usize)
        })
    }
}
