//! What the tree knows of a slot: four ranks (the larger, the more is free) and four words of bits
//! (what the node offers, and which landmarks it reaches, see [`super::landmarks`]).
//!
//! Ranks are rounded so that comparing them never rules out what fits; the exact comparison is the
//! search's.

use wide::{f32x4, i16x8, i32x4};

/// Lanes of a summary that are compared by size.
pub(super) const RANKS: usize = 4;
/// What a node is, one bit each; two words of a summary.
pub(super) type Features = u32;
const FEATURE_WORDS: usize = 2;
/// Words of a summary that say which landmarks a node reaches.
pub(super) const LANDMARK_WORDS: usize = 2;
pub(super) const FIRST_LANDMARK_LANE: usize = RANKS + FEATURE_WORDS;
pub(super) const LANES: usize = FIRST_LANDMARK_LANE + LANDMARK_WORDS;

/// Ranks, then words. A slot's summary, an inner node's union, or what a query needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary(pub(super) i16x8);

/// The comparable part of a summary.
pub(super) type Ranks = [i16; RANKS];

const SIZE_LANES: i16x8 = i16x8::new([-1, -1, -1, -1, 0, 0, 0, 0]);
const BIT_LANES: i16x8 = i16x8::new([0, 0, 0, 0, -1, -1, -1, -1]);

impl Summary {
    /// A slot without a node, or with one that takes no work.
    pub(super) const ABSENT: Self = Self(i16x8::ZERO);

    /// Of quantities, and `reached` says which landmarks their ranks reach.
    #[inline]
    pub(super) fn new(
        quantities: [u32; RANKS],
        features: Features,
        reached: impl FnOnce(Ranks) -> u32,
    ) -> Self {
        let lanes = rank_lanes(quantities);
        let [ranks, _] = bytemuck::cast::<i16x8, [Ranks; 2]>(lanes);
        let words = u64::from(features) | u64::from(reached(ranks)) << 32;
        Self(lanes | bytemuck::cast::<[u64; 2], i16x8>([0, words]))
    }

    /// The same in a tree that keeps no landmarks.
    pub(super) fn without_landmarks(self) -> Self {
        let [a, b, c, d, e, f, ..] = self.0.to_array();
        Self(i16x8::new([a, b, c, d, e, f, 0, 0]))
    }

    /// All words.
    #[inline]
    pub(super) fn words(self) -> u64 {
        let [_, words] = bytemuck::cast::<i16x8, [u64; 2]>(self.0);
        words
    }

    /// Whether a union that was this one may be less when one of its parts changes from `old` to
    /// `new`: the part had the maximum of a rank that falls, or a bit that goes.
    #[inline]
    pub(super) fn may_lose(self, old: Self, new: Self) -> bool {
        let ranks = old.0.simd_gt(new.0) & old.0.simd_eq(self.0) & SIZE_LANES;
        let bits = old.0 & !new.0 & BIT_LANES;
        (ranks | bits) != i16x8::ZERO
    }

    /// The summary of anything that has what either has.
    #[inline]
    pub(super) fn union(self, other: Self) -> Self {
        Self::joined(self.0.max(other.0), self.0 | other.0)
    }

    /// The ranks of one and the words of the other.
    #[inline]
    pub(super) fn joined(by_size: i16x8, by_bits: i16x8) -> Self {
        Self((by_size & SIZE_LANES) | (by_bits & BIT_LANES))
    }
}

/// Four lanes in a general register. Lanes that are stored one by one can't be loaded as a whole
/// until the stores have left the processor's store buffer, which takes as long as comparing a
/// block.
#[inline]
pub(super) fn quarter([a, b, c, d]: [u16; 4]) -> u64 {
    u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32 | u64::from(d) << 48
}

/// The ranks of four quantities. The first is raised by one, so that a present node of no capacity
/// differs from an absent one.
///
/// A rank is the upper half of the quantity plus one as a 32-bit floating number, less what all have
/// in common: exact below 2,047, within a thousandth above, and all from 2^31 on are the same. It is
/// monotone, so `a >= b` implies `rank(a) >= rank(b)`: comparing ranks never rules out what fits.
/// Sixteen bits double the lanes of a register and halve the table; the processor converts four
/// quantities at once.
#[inline]
pub(super) fn ranks(quantities: [u32; RANKS]) -> Ranks {
    let [ranks, _] = bytemuck::cast::<i16x8, [Ranks; 2]>(rank_lanes(quantities));
    ranks
}

/// The ranks in the lower half of a register, zero in the upper.
#[inline]
fn rank_lanes(quantities: [u32; RANKS]) -> i16x8 {
    /// Of a floating number's fraction, what a rank leaves out.
    const DROPPED_BITS: u32 = 13;
    const ONE: i32 = 1.0_f32.to_bits().cast_signed() >> DROPPED_BITS;
    const OFFSET: i32x4 = i32x4::new([ONE - 1, ONE, ONE, ONE]);
    let quantities: i32x4 = bytemuck::cast(quantities);
    let above = quantities >> 31_u32;
    let quantities = (quantities & !above) | (above & i32x4::splat(i32::MAX));
    let raised = f32x4::from_i32x4(quantities) + f32x4::ONE;
    let ranks = (bytemuck::cast::<f32x4, i32x4>(raised) >> DROPPED_BITS) - OFFSET;
    i16x8::from_i32x8_saturate(bytemuck::cast([ranks, i32x4::ZERO]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_monotone_and_nearly_exact() {
        let rank = |quantity: u32| {
            let [raised, rank, ..] = ranks([quantity, quantity, 0, 0]);
            assert_eq!(raised, rank + 1);
            rank
        };
        let mut quantities: Vec<u32> = (0..5000).collect();
        for bit in 12..32 {
            for near in -2_i64..=2 {
                let quantity = (1_i64 << bit) + near;
                quantities.push(u32::try_from(quantity).expect("below 2^32"));
            }
        }
        quantities.push(u32::MAX);
        quantities.sort_unstable();
        for pair in quantities.windows(2) {
            assert!(rank(pair[0]) <= rank(pair[1]), "{pair:?}");
        }
        for quantity in 0..2_046 {
            assert!(rank(quantity) < rank(quantity + 1), "{quantity}");
        }
        assert_eq!(rank(0), 0);
        assert!(rank(1_000_000) < rank(1_001_000));
        assert!(rank(u32::MAX) < i16::MAX, "room for the raised first rank");
    }
}
