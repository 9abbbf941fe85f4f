//! What the tree knows of a slot: four ranks (the larger, the more is free) and four words of bits
//! (what the node offers, and which landmarks it reaches, see [`super::landmarks`]).
//!
//! Ranks are rounded so that comparing them never rules out what fits; the exact comparison is the
//! search's.

use wide::i16x8;

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

    #[inline]
    pub(super) fn new(ranks: Ranks, features: Features, landmarks: u32) -> Self {
        let sizes = ranks.map(i16::cast_unsigned);
        Self(bytemuck::cast([
            quarter(sizes),
            u64::from(features) | u64::from(landmarks) << 32,
        ]))
    }

    /// The same need in a tree that keeps no landmarks.
    pub(super) fn without_landmarks(self) -> Self {
        let [a, b, c, d, e, f, ..] = self.0.to_array();
        Self(i16x8::new([a, b, c, d, e, f, 0, 0]))
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
        let by_size = self.0.max(other.0);
        let by_bits = self.0 | other.0;
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
pub(super) fn ranks([a, b, c, d]: [u32; RANKS]) -> Ranks {
    [rank(a) + 1, rank(b), rank(c), rank(d)]
}

/// A 32-bit quantity as a 15-bit floating number: exact below 2,048, within a thousandth above.
///
/// It is monotone, so `a >= b` implies `rank(a) >= rank(b)`: comparing ranks never rules out what
/// fits. Sixteen bits double the lanes of a register and halve the table.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the largest rank, of u32::MAX, is 23,551"
)]
const fn rank(quantity: u32) -> i16 {
    const MANTISSA_BITS: u32 = 11;
    let bits = u32::BITS - quantity.leading_zeros();
    let shift = bits.saturating_sub(MANTISSA_BITS);
    ((shift << (MANTISSA_BITS - 1)) + (quantity >> shift)) as i16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_monotone_and_nearly_exact() {
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
        assert_eq!(rank(2047), 2047);
        assert!(rank(1_000_000) < rank(1_001_000));
        assert!(rank(u32::MAX) < i16::MAX, "room for the raised first rank");
    }
}
