//! Which devices of a node a demand gets, and how a node's devices look to the tree.
//!
//! A whole device is given only when it is wholly free; a share goes to the device on which it
//! leaves least (the tightest fit), so that whole devices stay whole.

use pronto_payloads::demand::GPU_MILLIS;
use pronto_payloads::place::GpuShare;
use smallvec::SmallVec;

/// The devices of one placement. Eight are in the largest common machines.
pub type GpuShares = SmallVec<[GpuShare; 8]>;
/// Free thousandths by device.
pub(super) type Devices = SmallVec<[u16; 8]>;

/// A node's devices, or a demand for devices, as one number: below 1000 a share of one device,
/// from 1000 on the count of whole ones.
///
/// One order serves both kinds, since a wholly free device holds any share: a node can give what
/// is asked exactly when its rank is not below the demand's.
pub(super) fn rank_of_free(devices: &[u16]) -> u16 {
    let mut whole = 0;
    let mut share = 0;
    for &free in devices {
        if free >= GPU_MILLIS {
            whole += 1;
        } else {
            share = share.max(free);
        }
    }
    if whole > 0 {
        GPU_MILLIS - 1 + whole
    } else {
        share
    }
}

/// The rank of a demand of so many devices, each with so much.
#[inline]
pub(super) fn rank_of_demand((devices, each): (u16, u16)) -> u16 {
    if each == GPU_MILLIS {
        (GPU_MILLIS - 1).saturating_add(devices)
    } else {
        each
    }
}

/// Chooses devices for a demand, or none if they do not suffice.
pub(super) fn choose(free: &[u16], (devices, each): (u16, u16)) -> Option<GpuShares> {
    let mut chosen = GpuShares::new();
    if each == GPU_MILLIS {
        for (device, &free) in (0_u16..).zip(free) {
            if chosen.len() == usize::from(devices) {
                break;
            }
            if free >= GPU_MILLIS {
                let millis = GPU_MILLIS;
                chosen.push(GpuShare { device, millis });
            }
        }
    } else if each > 0
        && let Some(device) = tightest(free, each)
    {
        let millis = each;
        chosen.push(GpuShare { device, millis });
    }
    (chosen.len() == usize::from(devices)).then_some(chosen)
}

/// The first of the devices with the least free of those that have as much as `each`.
///
/// The least of one number for each device, without a branch: which device it is can't be
/// predicted, and the compiler makes vectors of it.
#[inline]
fn tightest(free: &[u16], each: u16) -> Option<u16> {
    const NONE: u32 = u32::MAX;
    let least = (0_u32..).zip(free).fold(NONE, |least, (device, &free)| {
        let this = u32::from(free) << u16::BITS | device;
        least.min(if free >= each { this } else { NONE })
    });
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is the device"
    )]
    (least != NONE).then_some(least as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_share_takes_the_tightest_device() {
        let chosen = choose(&[1000, 400, 300, 100], (1, 250)).expect("fits");
        assert_eq!(
            chosen.as_slice(),
            [GpuShare {
                device: 2,
                millis: 250
            }]
        );
        let chosen = choose(&[200, 1000, 100], (1, 250)).expect("fits");
        assert_eq!(chosen[0].device, 1, "a whole device when no rest suffices");
    }

    #[test]
    fn whole_devices_must_be_wholly_free() {
        assert!(choose(&[999, 1000], (2, 1000)).is_none());
        let chosen = choose(&[1000, 999, 1000, 1000], (2, 1000)).expect("fits");
        let devices: Vec<u16> = chosen.iter().map(|share| share.device).collect();
        assert_eq!(devices, [0, 2]);
        assert_eq!(choose(&[], (0, 0)), Some(GpuShares::new()));
    }

    proptest! {
        #[test]
        fn ranks_agree_with_the_choice(
            free in prop::collection::vec(0_u16..=1000, 0..9),
            devices in 0_u16..5,
            each in 1_u16..1000,
        ) {
            for demand in [(devices, if devices == 0 { 0 } else { 1000 }), (1, each)] {
                prop_assert_eq!(
                    rank_of_free(&free) >= rank_of_demand(demand),
                    choose(&free, demand).is_some(),
                    "{:?}", demand
                );
            }
        }
    }
}
