//! What one node may still be promised: reported less reserved, exactly.
//!
//! Each START of a session has a sequence number. A status says up to which of them the launcher's
//! ledger is debited (`applied`), snapshotted together with what is free. So
//!
//! ```text
//! available = reported − Σ demands of the STARTs after `applied`
//! ```
//!
//! whatever crossed whatever on the way. Invariants: the outstanding reservations are exactly the
//! sequence numbers `applied + 1 ..= sent`; the running sums are their sums; nothing is forgotten
//! at a status that does not count it.

use crate::table::GpuShares;
use pronto_payloads::demand::{Capacity, Demand, Resource};
use pronto_payloads::ids::Seq;
use pronto_payloads::place::GpuShare;
use std::collections::VecDeque;

/// What a START in flight holds, besides its place in the sequence.
#[derive(Debug)]
struct Reservation {
    cpu_millis: u32,
    memory_mib: u32,
    disk_mib: u32,
    gpus: GpuShares,
    /// Few demands have named resources; the others stay small.
    resources: Option<Box<[Resource]>>,
}

/// Sums of what is outstanding. They are wide, since each demand alone may be as large as a field.
#[derive(Debug, Default)]
struct Reserved {
    cpu_millis: u64,
    memory_mib: u64,
    disk_mib: u64,
    gpu_millis: Vec<u32>,
    resources: Vec<(String, u64)>,
}

/// The books of one session.
#[derive(Debug, Default)]
pub(crate) struct Account {
    reported: Capacity,
    available: Capacity,
    applied: u64,
    sent: u64,
    outstanding: VecDeque<Reservation>,
    reserved: Reserved,
}

/// What a status has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// There is more of something than before.
    pub(crate) grown: bool,
    /// There is more or less of something.
    pub(crate) changed: bool,
    /// Every START is counted in the report now.
    pub(crate) settled: bool,
}

/// A status that can't be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Impossible {
    #[error("applied_seq {applied} is above the last START of this session, {sent}")]
    Ahead { applied: u64, sent: u64 },
    #[error("applied_seq {applied} is below the {before} of an earlier status")]
    Backwards { applied: u64, before: u64 },
}

impl Account {
    /// What may still be promised.
    pub(crate) const fn available(&self) -> &Capacity {
        &self.available
    }

    /// The sequence number of the next START.
    pub(crate) const fn next_seq(&self) -> Seq {
        Seq(self.sent + 1)
    }

    /// Whether every START is counted in the last report.
    pub(crate) fn is_settled(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Counts a START that was queued for the node as [`Self::next_seq`].
    pub(crate) fn reserve(&mut self, demand: &Demand, gpus: &GpuShares) {
        let resources = &demand.resources;
        let resources = (!resources.is_empty()).then(|| resources.as_slice().into());
        self.sent += 1;
        let reservation = Reservation {
            cpu_millis: demand.cpu_millis,
            memory_mib: demand.memory_mib,
            disk_mib: demand.disk_mib,
            gpus: *gpus,
            resources,
        };
        self.reserved.add(&reservation);
        let free = &mut self.available;
        free.cpu_millis = free.cpu_millis.saturating_sub(demand.cpu_millis);
        free.memory_mib = free.memory_mib.saturating_sub(demand.memory_mib);
        free.disk_mib = free.disk_mib.saturating_sub(demand.disk_mib);
        for share in gpus {
            if let Some(device) = free.gpu_millis.get_mut(usize::from(share.device)) {
                *device = device.saturating_sub(share.millis);
            }
        }
        for wanted in &demand.resources {
            if let Some(resource) = free
                .resources
                .iter_mut()
                .find(|free| free.name == wanted.name)
            {
                resource.count = resource.count.saturating_sub(wanted.count);
            }
        }
        self.outstanding.push_back(reservation);
    }

    /// Takes in a status.
    pub(crate) fn report(&mut self, applied: Seq, free: Capacity) -> Result<Change, Impossible> {
        let applied = applied.0;
        if applied > self.sent {
            return Err(Impossible::Ahead {
                applied,
                sent: self.sent,
            });
        }
        if applied < self.applied {
            return Err(Impossible::Backwards {
                applied,
                before: self.applied,
            });
        }
        for _ in self.applied..applied {
            if let Some(reservation) = self.outstanding.pop_front() {
                self.reserved.subtract(&reservation);
            }
        }
        self.applied = applied;
        self.reported = free;
        let (grown, changed) = self.recompute();
        Ok(Change {
            grown,
            changed,
            settled: self.outstanding.is_empty(),
        })
    }

    /// Sets what is available anew, in place; says whether anything grew, and whether it changed.
    fn recompute(&mut self) -> (bool, bool) {
        let Self {
            reported,
            available,
            reserved,
            ..
        } = self;
        let mut grown = false;
        let mut changed = false;
        let mut note = |before: u32, after: u32| {
            grown |= after > before;
            changed |= after != before;
            after
        };
        available.cpu_millis = note(
            available.cpu_millis,
            less(reported.cpu_millis, reserved.cpu_millis),
        );
        available.memory_mib = note(
            available.memory_mib,
            less(reported.memory_mib, reserved.memory_mib),
        );
        available.disk_mib = note(
            available.disk_mib,
            less(reported.disk_mib, reserved.disk_mib),
        );
        if available.gpu_millis.len() != reported.gpu_millis.len() {
            available.gpu_millis.clear();
            available.gpu_millis.resize(reported.gpu_millis.len(), 0);
            note(0, 1);
        }
        for (device, free) in available.gpu_millis.iter_mut().enumerate() {
            let held = reserved.gpu_millis.get(device).copied().unwrap_or(0);
            let left = reported.gpu_millis[device].saturating_sub(saturated(held));
            note(u32::from(*free), u32::from(left));
            *free = left;
        }
        let same_names = available.resources.len() == reported.resources.len()
            && available
                .resources
                .iter()
                .zip(&reported.resources)
                .all(|(a, b)| a.name == b.name);
        if !same_names {
            available.resources.clone_from(&reported.resources);
            available
                .resources
                .iter_mut()
                .for_each(|resource| resource.count = 0);
            note(0, 1);
        }
        for (free, reported) in available.resources.iter_mut().zip(&reported.resources) {
            let held = reserved.resource(&free.name);
            free.count = note(free.count, less(reported.count, held));
        }
        (grown, changed)
    }

    /// Whether the running sums are the sums, for tests.
    pub(crate) fn sanity_check(&self) {
        assert_eq!(
            self.outstanding.len() as u64,
            self.sent - self.applied,
            "one each in flight"
        );
        let sum = |of: fn(&Reservation) -> u32| -> u64 {
            self.outstanding
                .iter()
                .map(|reservation| u64::from(of(reservation)))
                .sum()
        };
        assert_eq!(
            self.reserved.cpu_millis,
            sum(|reservation| reservation.cpu_millis)
        );
        assert_eq!(
            self.reserved.memory_mib,
            sum(|reservation| reservation.memory_mib)
        );
        assert_eq!(
            self.reserved.disk_mib,
            sum(|reservation| reservation.disk_mib)
        );
        let shares = self.outstanding.iter().flat_map(|held| &held.gpus);
        let gpus: u32 = shares.map(|gpu| u32::from(gpu.millis)).sum();
        assert_eq!(self.reserved.gpu_millis.iter().sum::<u32>(), gpus);
        let left = less(self.reported.cpu_millis, self.reserved.cpu_millis);
        assert_eq!(
            self.available.cpu_millis, left,
            "available = reported − reserved"
        );
    }
}

/// What is left of a field; nothing if more is reserved than the node reports, as after its
/// administrator took capacity away.
fn less(reported: u32, reserved: u64) -> u32 {
    reported.saturating_sub(u32::try_from(reserved).unwrap_or(u32::MAX))
}

fn saturated(millis: u32) -> u16 {
    u16::try_from(millis).unwrap_or(u16::MAX)
}

impl Reserved {
    fn add(&mut self, reservation: &Reservation) {
        self.cpu_millis += u64::from(reservation.cpu_millis);
        self.memory_mib += u64::from(reservation.memory_mib);
        self.disk_mib += u64::from(reservation.disk_mib);
        for GpuShare { device, millis } in &reservation.gpus {
            let device = usize::from(device);
            if self.gpu_millis.len() <= device {
                self.gpu_millis.resize(device + 1, 0);
            }
            self.gpu_millis[device] += u32::from(millis);
        }
        for Resource { name, count } in reservation.resources.iter().flatten() {
            match self.resources.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += u64::from(*count),
                None => self.resources.push((name.clone(), u64::from(*count))),
            }
        }
    }

    fn subtract(&mut self, reservation: &Reservation) {
        self.cpu_millis -= u64::from(reservation.cpu_millis);
        self.memory_mib -= u64::from(reservation.memory_mib);
        self.disk_mib -= u64::from(reservation.disk_mib);
        for GpuShare { device, millis } in &reservation.gpus {
            self.gpu_millis[usize::from(device)] -= u32::from(millis);
        }
        let Some(resources) = &reservation.resources else {
            return;
        };
        for Resource { name, count } in resources {
            if let Some((_, sum)) = self.resources.iter_mut().find(|(known, _)| known == name) {
                *sum -= u64::from(*count);
            }
        }
        self.resources.retain(|(_, sum)| *sum > 0);
    }

    fn resource(&self, name: &str) -> u64 {
        self.resources
            .iter()
            .find(|(known, _)| known == name)
            .map_or(0, |(_, sum)| *sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(cpu_millis: u32) -> Capacity {
        Capacity {
            cpu_millis,
            gpu_millis: vec![1000, 1000],
            ..Capacity::default()
        }
    }

    fn cpu(cpu_millis: u32) -> Demand {
        Demand {
            cpu_millis,
            ..Demand::default()
        }
    }

    #[test]
    fn a_status_forgets_only_what_it_counts() {
        let mut account = Account::default();
        account.report(Seq(0), capacity(1000)).unwrap();
        for _ in 0..3 {
            account.reserve(&cpu(300), &GpuShares::NONE);
        }
        assert_eq!(account.available().cpu_millis, 100);
        // The ledger has debited the first alone.
        let change = account.report(Seq(1), capacity(700)).unwrap();
        assert_eq!(account.available().cpu_millis, 100);
        assert_eq!(
            change,
            Change {
                grown: false,
                changed: false,
                settled: false
            }
        );
        // The third was rejected: counted as applied, and not debited.
        let change = account.report(Seq(3), capacity(400)).unwrap();
        assert_eq!(account.available().cpu_millis, 400);
        assert_eq!(
            change,
            Change {
                grown: true,
                changed: true,
                settled: true
            }
        );
        account.sanity_check();
    }

    #[test]
    fn devices_and_resources_are_counted_each() {
        let mut account = Account::default();
        let licences = |count| {
            vec![Resource {
                name: "licence".into(),
                count,
            }]
        };
        let free = Capacity {
            resources: licences(5),
            ..capacity(1000)
        };
        account.report(Seq(0), free.clone()).unwrap();
        let demand = Demand {
            gpu_millis: 300,
            resources: licences(2),
            ..Demand::default()
        };
        let second = GpuShares::new(1 << 1, 300);
        account.reserve(&demand, &second);
        assert_eq!(account.available().gpu_millis, [1000, 700]);
        account.report(Seq(0), free.clone()).unwrap();
        assert_eq!(account.available().gpu_millis, [1000, 700]);
        assert_eq!(account.available().resources, licences(3));
        account.sanity_check();
        account.report(Seq(1), free.clone()).unwrap();
        assert_eq!(account.available(), &free);
        account.sanity_check();
    }

    #[test]
    fn a_status_from_the_future_or_the_past_is_refused() {
        let mut account = Account::default();
        let ahead = account.report(Seq(1), capacity(1)).unwrap_err();
        assert_eq!(
            ahead,
            Impossible::Ahead {
                applied: 1,
                sent: 0
            }
        );
        account.reserve(&cpu(1), &GpuShares::NONE);
        account.report(Seq(1), capacity(1)).unwrap();
        assert!(account.report(Seq(0), capacity(1)).is_err());
    }

    #[test]
    fn more_reserved_than_reported_leaves_nothing() {
        let mut account = Account::default();
        account.report(Seq(0), capacity(1000)).unwrap();
        account.reserve(&cpu(900), &GpuShares::NONE);
        account.report(Seq(0), capacity(500)).unwrap();
        assert_eq!(account.available().cpu_millis, 0);
    }
}
