//! Sixteen children of the tree side by side, compared with a need in a few vector instructions.
//!
//! Lane by lane: all children's CPUs, then all their memory, and so on. A block is compared in some
//! fifty instructions without a branch.

use super::summary::{FIRST_LANDMARK_LANE, LANES, RANKS, Summary, quarter};
use wide::{i16x8, i16x16};

/// Children of a block: what two SSE registers of 16-bit lanes hold.
pub(super) const FAN: usize = 16;
pub(super) const FAN_BITS: usize = 4;

/// Sixteen children, lane by lane. A cache line holds two lanes.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Block(pub(super) [i16x16; LANES]);

impl Block {
    pub(super) const EMPTY: Self = Self([i16x16::ZERO; LANES]);

    /// The children that may satisfy the need, as bits.
    #[inline]
    pub(super) fn satisfying(&self, need: &Need) -> u32 {
        let (ranks, words) = self.0.split_at(RANKS);
        let lacks = below(need.ranks(), ranks) | missing(need.words(), words);
        lacks.simd_eq(i16x16::ZERO).to_bitmask()
    }

    pub(super) fn child(&self, child: usize) -> Summary {
        let lane = |lane: usize| self.0[lane].as_array()[child].cast_unsigned();
        Summary(bytemuck::cast([
            quarter(std::array::from_fn(lane)),
            quarter(std::array::from_fn(|word| lane(RANKS + word))),
        ]))
    }

    pub(super) fn set_child(&mut self, child: usize, summary: Summary) {
        for (lane, value) in self.0.iter_mut().zip(summary.0.to_array()) {
            lane.as_mut_array()[child] = value;
        }
    }

    pub(super) fn union(&self) -> Summary {
        self.union_of(i16x16::splat(-1))
    }

    /// The union of those children whose lane of the mask is all ones.
    #[inline]
    pub(super) fn union_of(&self, mask: i16x16) -> Summary {
        let folded = std::array::from_fn(|lane| {
            let lanes = (self.0[lane] & mask).to_array();
            let (low, high) = lanes.split_at(FAN / 2);
            let low = i16x8::from_slice_unaligned(low);
            let high = i16x8::from_slice_unaligned(high);
            if lane < RANKS {
                low.max(high)
            } else {
                low | high
            }
        });
        let children = i16x8::transpose(folded);
        let by_size = children.into_iter().reduce(i16x8::max);
        let by_bits = children.into_iter().reduce(|one, other| one | other);
        Summary::joined(by_size.unwrap_or_default(), by_bits.unwrap_or_default())
    }

    /// Sets a bit of a word for the children of the mask, and clears it for the others.
    #[inline]
    pub(super) fn set_bit(&mut self, lane: usize, bit: i16x16, mask: i16x16) {
        self.0[lane] = (self.0[lane] & !bit) | (mask & bit);
    }
}

/// What a query needs, each lane in all places of a register: a search compares it with several
/// blocks.
#[derive(Clone, Debug)]
pub(super) struct Need([i16x8; LANES]);

impl Need {
    #[inline]
    pub(super) fn new(summary: Summary) -> Self {
        Self(summary.0.to_array().map(i16x8::splat))
    }

    /// The same need in a tree that keeps no landmarks.
    pub(super) fn without_landmarks(&self) -> Self {
        let mut need = self.clone();
        need.0[FIRST_LANDMARK_LANE..].fill(i16x8::ZERO);
        need
    }

    #[inline]
    pub(super) fn ranks(&self) -> &[i16x8] {
        &self.0[..RANKS]
    }

    #[inline]
    pub(super) fn words(&self) -> &[i16x8] {
        &self.0[RANKS..]
    }

    /// Whether one child has each of these first ranks.
    #[inline]
    pub(super) fn is_reached<const N: usize>(&self, ranks: &[i16x16; N]) -> bool {
        let mut reached = i16x16::splat(-1);
        for (&need, &has) in self.0.iter().zip(ranks) {
            reached &= has.simd_gt(twice(need - i16x8::ONE));
        }
        reached.to_bitmask() != 0
    }
}

/// A register twice: half as many of them hold a need.
#[inline]
fn twice(half: i16x8) -> i16x16 {
    bytemuck::cast([half, half])
}

/// Ones in the lanes of which a rank is below the need.
#[inline]
pub(super) fn below(need: &[i16x8], ranks: &[i16x16]) -> i16x16 {
    let mut lacks = i16x16::ZERO;
    for (&need, &has) in need.iter().zip(ranks) {
        lacks |= twice(need).simd_gt(has);
    }
    lacks
}

/// Not zero in the lanes of which a word lacks a bit of the need.
#[inline]
pub(super) fn missing(need: &[i16x8], words: &[i16x16]) -> i16x16 {
    let mut lacks = i16x16::ZERO;
    for (&need, &has) in need.iter().zip(words) {
        lacks |= twice(need) & !has;
    }
    lacks
}

/// One lane of all ones for each bit.
#[inline]
pub(super) fn mask_of(bits: u16) -> i16x16 {
    const EACH: i16x16 = i16x16::new([
        1,
        1 << 1,
        1 << 2,
        1 << 3,
        1 << 4,
        1 << 5,
        1 << 6,
        1 << 7,
        1 << 8,
        1 << 9,
        1 << 10,
        1 << 11,
        1 << 12,
        1 << 13,
        1 << 14,
        i16::MIN,
    ]);
    (i16x16::splat(bits.cast_signed()) & EACH).simd_eq(EACH)
}
