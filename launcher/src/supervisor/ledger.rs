//! The ledger: what this node can give, and what it has promised.
//!
//! Exactness is its only duty: a demand is debited whole or not at all, and credited once. It
//! obeys the devices that the scheduler chose, after checking them against its own books.
//!
//! Invariant: for each dimension and device, free + Σ debits = allocatable. A configuration that
//! shrank below what still runs shows as free = 0 until enough has ended.

use pronto_payloads::demand::{Capacity, Demand, GPU_MILLIS, Resource};
use pronto_payloads::place::GpuShare;

/// Free and promised capacity. Sums are kept signed, so that a shrunken node stays exact.
#[derive(Clone, Debug)]
pub struct Ledger {
    allocatable: Capacity,
    cpu_millis: i64,
    memory_mib: i64,
    disk_mib: i64,
    gpu_millis: Vec<i64>,
    /// Parallel to `allocatable.resources`.
    resources: Vec<i64>,
}

impl Ledger {
    /// A ledger in which nothing is promised.
    #[must_use]
    pub fn new(allocatable: Capacity) -> Self {
        Self {
            cpu_millis: i64::from(allocatable.cpu_millis),
            memory_mib: i64::from(allocatable.memory_mib),
            disk_mib: i64::from(allocatable.disk_mib),
            gpu_millis: allocatable
                .gpu_millis
                .iter()
                .copied()
                .map(i64::from)
                .collect(),
            resources: allocatable
                .resources
                .iter()
                .map(|resource| i64::from(resource.count))
                .collect(),
            allocatable,
        }
    }

    /// What is not promised.
    #[must_use]
    pub fn free(&self) -> Capacity {
        let count = |free: i64| u32::try_from(free.max(0)).unwrap_or(u32::MAX);
        Capacity {
            cpu_millis: count(self.cpu_millis),
            memory_mib: count(self.memory_mib),
            disk_mib: count(self.disk_mib),
            gpu_millis: self
                .gpu_millis
                .iter()
                .map(|&free| {
                    u16::try_from(free.clamp(0, i64::from(GPU_MILLIS))).unwrap_or(GPU_MILLIS)
                })
                .collect(),
            resources: self
                .allocatable
                .resources
                .iter()
                .zip(&self.resources)
                .map(|(resource, &free)| Resource {
                    name: resource.name.clone(),
                    count: count(free),
                })
                .collect(),
        }
    }

    /// Debits a demand with the devices that the scheduler chose for it.
    ///
    /// # Errors
    /// Says in words what is not free; nothing is debited then.
    pub fn debit(&mut self, demand: &Demand, gpus: &[GpuShare]) -> Result<(), String> {
        self.check_devices(demand, gpus)?;
        let short = |what: &str, free: i64, asked: u32| {
            if free < i64::from(asked) {
                Err(format!(
                    "asked for {asked} {what}, {} are free",
                    free.max(0)
                ))
            } else {
                Ok(())
            }
        };
        short("CPU millis", self.cpu_millis, demand.cpu_millis)?;
        short("MiB of memory", self.memory_mib, demand.memory_mib)?;
        short("MiB of disk", self.disk_mib, demand.disk_mib)?;
        for resource in &demand.resources {
            match self.resource_index(&resource.name) {
                Some(index) => short(&resource.name, self.resources[index], resource.count)?,
                None => return Err(format!("there is no resource {}", resource.name)),
            }
        }
        self.add(demand, gpus, -1);
        Ok(())
    }

    /// Debits what ran before a restart, whether or not the configuration still allows it.
    pub fn debit_adopted(&mut self, demand: &Demand, gpus: &[GpuShare]) {
        self.add(demand, gpus, -1);
    }

    /// Credits what was debited.
    pub fn credit(&mut self, demand: &Demand, gpus: &[GpuShare]) {
        self.add(demand, gpus, 1);
    }

    /// All that could be given if nothing ran.
    #[must_use]
    pub const fn allocatable(&self) -> &Capacity {
        &self.allocatable
    }

    /// Checks that these debits, and no others, are on the books.
    ///
    /// # Panics
    /// If they are not: a broken invariant of our own.
    pub fn sanity_check<'a>(&self, debits: impl Iterator<Item = (&'a Demand, &'a [GpuShare])>) {
        let mut fresh = Self::new(self.allocatable.clone());
        for (demand, gpus) in debits {
            fresh.add(demand, gpus, -1);
        }
        assert_eq!(
            (self.cpu_millis, self.memory_mib, self.disk_mib),
            (fresh.cpu_millis, fresh.memory_mib, fresh.disk_mib),
            "free + debits = allocatable"
        );
        assert_eq!(
            self.gpu_millis, fresh.gpu_millis,
            "free + debits = allocatable, by device"
        );
        assert_eq!(
            self.resources, fresh.resources,
            "free + debits = allocatable, by resource"
        );
    }

    fn check_devices(&self, demand: &Demand, gpus: &[GpuShare]) -> Result<(), String> {
        let (devices, each) = demand.gpu_shape();
        if gpus.len() != usize::from(devices) {
            return Err(format!(
                "{} devices were stamped for a demand of {devices}",
                gpus.len()
            ));
        }
        for (index, share) in gpus.iter().enumerate() {
            if gpus[..index]
                .iter()
                .any(|earlier| earlier.device == share.device)
            {
                return Err(format!("device {} was stamped twice", share.device));
            }
            if share.millis != each {
                return Err(format!(
                    "{} millis were stamped for a demand of {each}",
                    share.millis
                ));
            }
            match self.gpu_millis.get(usize::from(share.device)) {
                None => return Err(format!("there is no device {}", share.device)),
                Some(&free) if free < i64::from(each) => {
                    return Err(format!(
                        "device {} has {} millis free",
                        share.device,
                        free.max(0)
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn resource_index(&self, name: &str) -> Option<usize> {
        self.allocatable
            .resources
            .binary_search_by(|resource| resource.name.as_str().cmp(name))
            .ok()
    }

    fn add(&mut self, demand: &Demand, gpus: &[GpuShare], sign: i64) {
        self.cpu_millis += sign * i64::from(demand.cpu_millis);
        self.memory_mib += sign * i64::from(demand.memory_mib);
        self.disk_mib += sign * i64::from(demand.disk_mib);
        for resource in &demand.resources {
            if let Some(index) = self.resource_index(&resource.name) {
                self.resources[index] += sign * i64::from(resource.count);
            }
        }
        for share in gpus {
            if let Some(free) = self.gpu_millis.get_mut(usize::from(share.device)) {
                *free += sign * i64::from(share.millis);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn capacity() -> Capacity {
        Capacity {
            cpu_millis: 4000,
            memory_mib: 1000,
            disk_mib: 1000,
            gpu_millis: vec![1000, 1000, 1000],
            resources: vec![Resource {
                name: "licence".into(),
                count: 3,
            }],
        }
    }

    #[test]
    fn a_stamp_that_is_not_free_is_refused_in_words() {
        let mut ledger = Ledger::new(capacity());
        let half = Demand {
            gpu_millis: 500,
            ..Demand::default()
        };
        let on = |device| {
            [GpuShare {
                device,
                millis: 500,
            }]
        };
        ledger.debit(&half, &on(1)).unwrap();
        ledger.debit(&half, &on(1)).unwrap();
        assert_eq!(
            ledger.debit(&half, &on(1)).unwrap_err(),
            "device 1 has 0 millis free"
        );
        assert_eq!(
            ledger.debit(&half, &on(7)).unwrap_err(),
            "there is no device 7"
        );
        assert!(
            ledger
                .debit(&half, &[])
                .unwrap_err()
                .contains("0 devices were stamped")
        );
        let two = Demand {
            gpus: 2,
            ..Demand::default()
        };
        let same = [GpuShare {
            device: 0,
            millis: 1000,
        }; 2];
        assert_eq!(
            ledger.debit(&two, &same).unwrap_err(),
            "device 0 was stamped twice"
        );
        assert_eq!(ledger.free().gpu_millis, [1000, 0, 1000]);
    }

    #[test]
    fn a_shrunken_node_reports_nothing_free_until_enough_has_ended() {
        let mut ledger = Ledger::new(capacity());
        let big = Demand {
            cpu_millis: 6000,
            ..Demand::default()
        };
        ledger.debit_adopted(&big, &[]);
        assert_eq!(ledger.free().cpu_millis, 0);
        assert!(
            ledger
                .debit(
                    &Demand {
                        cpu_millis: 1,
                        ..Demand::default()
                    },
                    &[]
                )
                .is_err()
        );
        ledger.credit(&big, &[]);
        assert_eq!(ledger.free(), capacity());
    }

    proptest! {
        /// Against an oracle that recomputes everything from the list of what is debited.
        #[test]
        fn the_books_are_exact(operations in prop::collection::vec(
            (any::<bool>(), 0u32..2500, 0u32..700, 0u16..4, 0u16..1000, 0u32..3), 1..60)
        ) {
            let mut ledger = Ledger::new(capacity());
            let mut held: Vec<(Demand, Vec<GpuShare>)> = Vec::new();
            for (release, cpu_millis, memory_mib, device, share, licences) in operations {
                if release && !held.is_empty() {
                    let (demand, gpus) = held.swap_remove(usize::from(device) % held.len());
                    ledger.credit(&demand, &gpus);
                } else {
                    let resources = (licences > 0)
                        .then(|| Resource { name: "licence".into(), count: licences });
                    let demand = Demand {
                        cpu_millis, memory_mib, disk_mib: 10, gpus: 0, gpu_millis: share,
                        resources: resources.into_iter().collect(),
                    };
                    let gpus: Vec<GpuShare> =
                        (share > 0).then_some(GpuShare { device, millis: share }).into_iter().collect();
                    let before = ledger.free();
                    match ledger.debit(&demand, &gpus) {
                        Ok(()) => held.push((demand, gpus)),
                        Err(_) => prop_assert_eq!(ledger.free(), before),
                    }
                }
                ledger.sanity_check(held.iter().map(|(demand, gpus)| (demand, gpus.as_slice())));
                let used: u32 = held.iter().map(|(demand, _)| demand.cpu_millis).sum();
                prop_assert_eq!(ledger.free().cpu_millis + used, 4000);
            }
        }
    }
}
