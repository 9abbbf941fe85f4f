//! Which devices of a node a demand gets, and how a node's devices look to the tree.
//!
//! A whole device is given only when it is wholly free; a share goes to the device on which it
//! leaves least (the tightest fit), so that whole devices stay whole.

use pronto_payloads::demand::GPU_MILLIS;
use pronto_payloads::place::GpuShare;
use std::hint::select_unpredictable;
use wide::i16x8;

/// The devices of one placement, and how much of each: all whole, or a share of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuShares {
    /// A bit for each device: a node has at most 32.
    devices: u32,
    each_millis: u16,
    /// Told apart, since that makes a placement that may be none as small as two registers.
    is_empty: bool,
}

impl Default for GpuShares {
    fn default() -> Self {
        Self::NONE
    }
}

impl GpuShares {
    pub const NONE: Self = Self::new(0, 0);

    /// So much of each device that has a bit.
    #[must_use]
    pub const fn new(devices: u32, each_millis: u16) -> Self {
        Self {
            devices,
            each_millis,
            is_empty: devices == 0,
        }
    }

    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.is_empty
    }

    #[must_use]
    pub const fn len(self) -> usize {
        self.devices.count_ones() as usize
    }
}

impl IntoIterator for &GpuShares {
    type Item = GpuShare;
    type IntoIter = EachShare;

    fn into_iter(self) -> EachShare {
        EachShare(*self)
    }
}

/// The shares of a placement, by device.
#[derive(Clone, Debug)]
pub struct EachShare(GpuShares);

impl Iterator for EachShare {
    type Item = GpuShare;

    fn next(&mut self) -> Option<GpuShare> {
        let Self(left) = self;
        let device = u16::try_from(left.devices.trailing_zeros()).unwrap_or(0);
        let share = GpuShare {
            device,
            millis: left.each_millis,
        };
        let any = left.devices != 0;
        left.devices &= left.devices.wrapping_sub(1);
        any.then_some(share)
    }
}

/// Devices that one register holds: as many as the largest common machines have.
const FEW: usize = 8;

/// Free thousandths by device.
#[derive(Clone, Debug)]
pub(super) enum Devices {
    /// Those after the count are zero.
    Few {
        free: [u16; FEW],
        count: u8,
    },
    Many(Box<[u16]>),
}

impl Default for Devices {
    fn default() -> Self {
        Self::from([].as_slice())
    }
}

impl From<&[u16]> for Devices {
    fn from(devices: &[u16]) -> Self {
        let mut free = [0; FEW];
        match (free.get_mut(..devices.len()), u8::try_from(devices.len())) {
            (Some(first), Ok(count)) => {
                first.copy_from_slice(devices);
                Self::Few { free, count }
            }
            _ => Self::Many(devices.into()),
        }
    }
}

impl Devices {
    #[inline]
    pub(super) fn as_slice(&self) -> &[u16] {
        match self {
            Self::Few { free, count } => &free[..usize::from(*count).min(FEW)],
            Self::Many(devices) => devices,
        }
    }

    /// Without a call where there are none or as many as a register holds, as there mostly are.
    #[inline]
    pub(super) fn are(&self, others: &[u16]) -> bool {
        match self {
            Self::Few { count: 0, .. } => others.is_empty(),
            Self::Few { free, count: 8 } => {
                others.first_chunk() == Some(free) && others.len() == FEW
            }
            _ => self.as_slice() == others,
        }
    }

    /// What is not there is not taken.
    pub(super) fn subtract(&mut self, gpus: &GpuShares) {
        let devices = match self {
            Self::Few { free, .. } => free.as_mut_slice(),
            Self::Many(devices) => devices,
        };
        for share in gpus {
            if let Some(free) = devices.get_mut(usize::from(share.device)) {
                *free = free.saturating_sub(share.millis);
            }
        }
    }

    /// A node's devices as one number: below 1000 a share of one device, from 1000 on the count of
    /// whole ones.
    ///
    /// One order serves both kinds, since a wholly free device holds any share: a node can give what
    /// is asked exactly when its rank is not below the demand's.
    #[inline]
    pub(super) fn rank(&self) -> u16 {
        let (whole, share) = match self {
            Self::Few { free, .. } => {
                let free = lanes(*free);
                let rests = i16x8::splat(WHOLE).simd_gt(free);
                let whole = !rests.to_bitmask() & 0xff;
                let share = (free & rests).reduce_max();
                (whole.count_ones(), share.cast_unsigned())
            }
            Self::Many(devices) => devices.iter().fold((0, 0), |(whole, share), &free| {
                if free >= GPU_MILLIS {
                    (whole + 1, share)
                } else {
                    (whole, share.max(free))
                }
            }),
        };
        let whole = u16::try_from(whole).unwrap_or(u16::MAX);
        let counted = (GPU_MILLIS - 1).saturating_add(whole);
        if whole > 0 { counted } else { share }
    }

    /// Chooses devices for a demand, or none if they do not suffice.
    ///
    /// Whether a demand is for whole devices or a share, and how many, can't be predicted: the same
    /// instructions serve all.
    #[inline]
    pub(super) fn choose(&self, (devices, each): (u16, u16)) -> Option<GpuShares> {
        let mut left = self.candidates(each);
        let candidates = left;
        let mut suffice = true;
        let mut take_one = |wanted: bool| {
            suffice &= !wanted | (left != 0);
            left &= select_unpredictable(wanted, left.wrapping_sub(1), u32::MAX);
        };
        take_one(devices > 0);
        take_one(devices > 1);
        for _ in 2..devices {
            take_one(true);
        }
        suffice.then(|| GpuShares::new(candidates & !left, each))
    }

    /// Those from which a demand's devices are taken, lowest first: all that are whole or, for a
    /// share, the first of those that have the least of what is enough.
    #[inline]
    fn candidates(&self, each: u16) -> u32 {
        let Self::Few { free, .. } = self else {
            return self.candidates_of_many(each);
        };
        let free = lanes(*free);
        let lacking = lanes([each; FEW]).simd_gt(free);
        let fitting = !lacking.to_bitmask() & 0xff;
        // Those that are too small count as larger than any.
        let least = i16x8::splat((free | (lacking & i16x8::splat(i16::MAX))).reduce_min());
        let tightest = free.simd_eq(least).to_bitmask() & fitting;
        let first_tightest = tightest & tightest.wrapping_neg();
        select_unpredictable(each == GPU_MILLIS, fitting, first_tightest)
    }

    #[cold]
    fn candidates_of_many(&self, each: u16) -> u32 {
        let free = self.as_slice().iter().zip(0..u32::BITS);
        let fitting = free.filter(|&(&free, _)| free >= each);
        if each == GPU_MILLIS {
            return fitting.fold(0, |bits, (_, device)| bits | 1 << device);
        }
        let tightest = fitting.min_by_key(|&(free, _)| free);
        tightest.map_or(0, |(_, device)| 1 << device)
    }
}

const WHOLE: i16 = GPU_MILLIS.cast_signed();

/// More than a lane holds is as good as its most: a device has [`GPU_MILLIS`].
#[inline]
fn lanes(free: [u16; FEW]) -> i16x8 {
    let free: i16x8 = bytemuck::cast(free);
    let above = free >> 15_u32;
    (free & !above) | (above & i16x8::splat(i16::MAX))
}

/// The rank of a demand of so many devices, each with so much; see [`Devices::rank`].
#[inline]
pub(super) fn rank_of_demand((devices, each): (u16, u16)) -> u16 {
    let whole = (GPU_MILLIS - 1).saturating_add(devices);
    select_unpredictable(each == GPU_MILLIS, whole, each)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn choose(free: &[u16], demand: (u16, u16)) -> Option<GpuShares> {
        Devices::from(free).choose(demand)
    }

    fn devices(chosen: GpuShares) -> Vec<u16> {
        chosen.into_iter().map(|share| share.device).collect()
    }

    #[test]
    fn a_share_takes_the_tightest_device() {
        let chosen = choose(&[1000, 400, 300, 100], (1, 250)).expect("fits");
        let shares: Vec<GpuShare> = chosen.into_iter().collect();
        assert_eq!(
            shares,
            [GpuShare {
                device: 2,
                millis: 250
            }]
        );
        let chosen = choose(&[200, 1000, 100], (1, 250)).expect("fits");
        let why = "a whole device when no rest suffices";
        assert_eq!(devices(chosen), [1], "{why}");
    }

    #[test]
    fn whole_devices_must_be_wholly_free() {
        assert!(choose(&[999, 1000], (2, 1000)).is_none());
        let chosen = choose(&[1000, 999, 1000, 1000], (2, 1000)).expect("fits");
        assert_eq!(devices(chosen), [0, 2]);
        assert_eq!(choose(&[], (0, 0)), Some(GpuShares::NONE));
    }

    /// The same choice, made one device after the other.
    fn naive(free: &[u16], (devices, each): (u16, u16)) -> Option<Vec<u16>> {
        let fitting = (0_u16..).zip(free).filter(|&(_, &free)| free >= each);
        let chosen: Vec<u16> = if each == GPU_MILLIS {
            fitting
                .map(|(device, _)| device)
                .take(devices.into())
                .collect()
        } else {
            let tightest = fitting.min_by_key(|&(_, free)| free);
            tightest
                .map(|(device, _)| device)
                .into_iter()
                .take(devices.into())
                .collect()
        };
        (chosen.len() == usize::from(devices)).then_some(chosen)
    }

    proptest! {
        #[test]
        fn choices_and_ranks_agree_with_a_look_at_each_device(
            free in prop::collection::vec(prop_oneof![3 => 0_u16..=1000, 1 => Just(1000)], 0..13),
            count in 0_u16..5,
            each in 1_u16..1000,
        ) {
            for demand in [(count, if count == 0 { 0 } else { 1000 }), (1, each)] {
                let held = Devices::from(free.as_slice());
                let chosen = held.choose(demand);
                prop_assert_eq!(chosen.map(devices), naive(&free, demand), "{:?}", demand);
                let fits = held.rank() >= rank_of_demand(demand);
                prop_assert_eq!(fits, chosen.is_some(), "{:?}", demand);
                let mut held = held;
                let mut left = free.clone();
                for share in &chosen.unwrap_or_default() {
                    prop_assert_eq!(share.millis, demand.1);
                    left[usize::from(share.device)] -= share.millis;
                }
                held.subtract(&chosen.unwrap_or_default());
                prop_assert_eq!(held.as_slice(), &left);
                prop_assert!(held.are(&left));
                prop_assert_eq!(held.are(&free), left == free);
            }
        }
    }
}
