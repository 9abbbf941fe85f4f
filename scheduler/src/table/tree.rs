//! A 16-ary tree that skips what can't fit.
//!
//! Each slot has a [`Summary`]: four ranks (the larger, the more is free) and four words of bits
//! (what the node offers). An inner node keeps the maximum of each rank and the union of each word
//! over its children, so a query that an inner node can't satisfy rules out all slots below it. The
//! converse does not hold: the maxima may come from different slots, and a rank is a rounded number,
//! so every slot that the tree proposes is checked exactly by the caller.
//!
//! The children of one block stand lane by lane in vector registers: a block is compared in some
//! fifty instructions without a branch, and 100,000 slots are five blocks high.
//!
//! Invariants: an absent slot is all zero and satisfies no query, since every need's first rank is
//! at least one; each inner summary is exactly the union of its sixteen children.

use wide::{i16x8, i16x16};

/// Children of a block: what two SSE registers of 16-bit lanes hold.
const FAN: usize = 16;
const FAN_BITS: usize = 4;
/// Lanes of a summary that are compared by size.
pub(super) const RANKS: usize = 4;
/// Lanes of a summary that are sets of bits.
pub(super) const WORDS: usize = 4;
const LANES: usize = RANKS + WORDS;
/// Blocks from leaf to root: 16^8 slots, more than a 32-bit slot number can count.
const MAX_LEVELS: usize = 8;

/// Ranks, then words. A slot's summary, an inner node's union, or what a query needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary(i16x8);

impl Summary {
    /// A slot without a node, or with one that takes no work.
    pub(super) const ABSENT: Self = Self(i16x8::ZERO);

    /// From quantities and feature bits. The first rank is raised by one, so that a present node
    /// of no capacity differs from an absent one.
    pub(super) fn new(quantities: [u32; RANKS], words: [u16; WORDS]) -> Self {
        let [a, b, c, d] = quantities.map(rank);
        let [e, f, g, h] = words.map(u16::cast_signed);
        Self(i16x8::new([a + 1, b, c, d, e, f, g, h]))
    }

    /// The summary of anything that has what either has.
    fn union(self, other: Self) -> Self {
        let by_size = self.0.max(other.0);
        let by_bits = self.0 | other.0;
        Self((by_size & SIZE_LANES) | (by_bits & BIT_LANES))
    }
}

const SIZE_LANES: i16x8 = i16x8::new([-1, -1, -1, -1, 0, 0, 0, 0]);
const BIT_LANES: i16x8 = i16x8::new([0, 0, 0, 0, -1, -1, -1, -1]);

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

/// Sixteen children, lane by lane.
#[derive(Clone, Debug)]
struct Block([i16x16; LANES]);

impl Block {
    const EMPTY: Self = Self([i16x16::ZERO; LANES]);

    /// The children that may satisfy the need, as bits.
    #[inline]
    fn satisfying(&self, need: &[i16; LANES]) -> u32 {
        let mut lacks = i16x16::ZERO;
        let (ranks, words) = self.0.split_at(RANKS);
        for (&need, &has) in need.iter().zip(ranks) {
            lacks |= i16x16::splat(need).simd_gt(has);
        }
        for (&need, &has) in need[RANKS..].iter().zip(words) {
            lacks |= i16x16::splat(need) & !has;
        }
        lacks.simd_eq(i16x16::ZERO).to_bitmask()
    }

    fn child(&self, child: usize) -> Summary {
        let lanes: [i16; LANES] = std::array::from_fn(|lane| self.0[lane].as_array()[child]);
        Summary(i16x8::new(lanes))
    }

    fn set_child(&mut self, child: usize, summary: Summary) {
        for (lane, value) in self.0.iter_mut().zip(summary.0.to_array()) {
            lane.as_mut_array()[child] = value;
        }
    }

    fn union(&self) -> Summary {
        let halves: [[i16x8; 2]; LANES] = std::array::from_fn(|lane| {
            let lanes = self.0[lane].as_array();
            let (low, high) = lanes.split_at(LANES);
            [
                i16x8::from_slice_unaligned(low),
                i16x8::from_slice_unaligned(high),
            ]
        });
        let folded = std::array::from_fn(|lane| {
            let [low, high] = halves[lane];
            if lane < RANKS {
                low.max(high)
            } else {
                low | high
            }
        });
        i16x8::transpose(folded)
            .into_iter()
            .map(Summary)
            .reduce(Summary::union)
            .unwrap_or(Summary::ABSENT)
    }
}

/// The tree over slots `0..len`.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    /// From the leaves' blocks to the one root block. A block at level `l` with number `b` has as
    /// its children the blocks (at level 0: the slots) `16 b` to `16 b + 15` below.
    levels: Vec<Vec<Block>>,
    len: usize,
}

impl Tree {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds an absent slot at the tail.
    pub(super) fn push(&mut self) {
        self.len += 1;
        let mut needed = self.len;
        for level in 0.. {
            needed = needed.div_ceil(FAN);
            if level == self.levels.len() {
                let mut block = Block::EMPTY;
                // A new root stands over what was the root.
                if let Some(below) = level.checked_sub(1) {
                    block.set_child(0, self.levels[below][0].union());
                }
                self.levels.push(vec![block]);
            }
            if self.levels[level].len() < needed {
                self.levels[level].push(Block::EMPTY);
            }
            if needed == 1 && level + 1 == self.levels.len() {
                break;
            }
        }
    }

    pub(super) fn summary(&self, slot: usize) -> Summary {
        self.levels[0][slot / FAN].child(slot % FAN)
    }

    pub(super) fn set(&mut self, slot: usize, summary: Summary) {
        let mut index = slot;
        let mut summary = summary;
        for level in &mut self.levels {
            let block = &mut level[index / FAN];
            if block.child(index % FAN) == summary {
                return;
            }
            block.set_child(index % FAN, summary);
            summary = block.union();
            index /= FAN;
        }
    }

    /// Visits, in order, the slots from `start` on that may satisfy the need, until one is
    /// accepted; returns that one.
    #[inline]
    pub(super) fn search(
        &self,
        need: Summary,
        start: usize,
        mut accept: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        if start >= self.len {
            return None;
        }
        let need = need.0.to_array();
        // Most searches end where they begin: look there before starting at the root.
        let first = start / FAN;
        let mut near = self.levels[0][first].satisfying(&need) & (u32::MAX << (start % FAN));
        while near != 0 {
            let slot = first * FAN + near.trailing_zeros() as usize;
            if accept(slot) {
                return Some(slot);
            }
            near &= near - 1;
        }
        self.search_from_root(&need, (first + 1) * FAN, accept)
    }

    fn search_from_root(
        &self,
        need: &[i16; LANES],
        start: usize,
        mut accept: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let top = self.levels.len().checked_sub(1)?;
        let mut pending = [0_u32; MAX_LEVELS];
        let mut level = top;
        let mut block = 0;
        loop {
            let mut found = self.levels[level][block].satisfying(need);
            // On the path to `start`, children before it are passed over.
            let boundary = start >> (FAN_BITS * level);
            if block == boundary / FAN {
                found &= u32::MAX << (boundary % FAN);
            } else if block < boundary / FAN {
                found = 0;
            }
            if level == 0 {
                while found != 0 {
                    let slot = block * FAN + found.trailing_zeros() as usize;
                    if accept(slot) {
                        return Some(slot);
                    }
                    found &= found - 1;
                }
            }
            pending[level] = found;
            while pending[level] == 0 {
                if level == top {
                    return None;
                }
                level += 1;
                block /= FAN;
            }
            let child = pending[level].trailing_zeros() as usize;
            pending[level] &= pending[level] - 1;
            block = block * FAN + child;
            level -= 1;
        }
    }

    /// Panics if an inner node is not the union of its children.
    #[cfg(test)]
    pub(super) fn sanity_check(&self) {
        for level in 1..self.levels.len() {
            assert_eq!(
                self.levels[level].len(),
                self.levels[level - 1].len().div_ceil(FAN),
                "level {level} has a block for each sixteen below"
            );
            for (index, below) in self.levels[level - 1].iter().enumerate() {
                let above = self.levels[level][index / FAN].child(index % FAN);
                assert_eq!(above, below.union(), "level {level}, child {index}");
            }
        }
        assert!(self.levels.last().is_none_or(|root| root.len() == 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn finds_what_a_linear_look_finds(
            slots in prop::collection::vec((0_u32..6, 0_u32..6, 0_u16..4, any::<bool>()), 1..700),
            changes in prop::collection::vec((any::<prop::sample::Index>(), 0_u32..6), 0..50),
            need in (0_u32..6, 0_u32..6, 0_u16..4),
            start in 0_usize..700,
        ) {
            let mut tree = Tree::default();
            let mut plain = Vec::new();
            for (cpu, memory, word, present) in slots {
                tree.push();
                let summary = if present {
                    Summary::new([cpu, memory, 0, 0], [word, 0, 0, 0])
                } else {
                    Summary::ABSENT
                };
                tree.set(plain.len(), summary);
                plain.push((cpu, memory, word, present));
            }
            for (at, cpu) in changes {
                let slot = at.index(plain.len());
                let (_, memory, word, _) = plain[slot];
                plain[slot] = (cpu, memory, word, true);
                tree.set(slot, Summary::new([cpu, memory, 0, 0], [word, 0, 0, 0]));
            }
            tree.sanity_check();
            let expected: Vec<usize> = plain
                .iter()
                .enumerate()
                .skip(start)
                .filter(|(_, (cpu, memory, word, present))| {
                    *present && *cpu >= need.0 && *memory >= need.1 && word & need.2 == need.2
                })
                .map(|(slot, _)| slot)
                .collect();
            let need = Summary::new([need.0, need.1, 0, 0], [need.2, 0, 0, 0]);
            let mut visited = Vec::new();
            tree.search(need, start, |slot| { visited.push(slot); false });
            prop_assert_eq!(&visited, &expected);
            prop_assert_eq!(tree.search(need, start, |_| true), expected.first().copied());
        }
    }
}
