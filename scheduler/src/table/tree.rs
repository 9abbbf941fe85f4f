//! A 16-ary tree that skips what can't fit.
//!
//! Each slot has a [`Summary`]. An inner node keeps the maximum of each rank and the union of each
//! word over its children, so a query that an inner node can't satisfy rules out all slots below it.
//! The converse does not hold: the maxima may come from different slots, and a rank is a rounded
//! number, so every slot that the tree proposes is checked exactly by the caller.
//!
//! There are two views of the same leaves: all slots, and the settled ones alone. They differ in
//! their inner nodes.
//!
//! The children of one block stand lane by lane in vector registers: a block is compared in some
//! fifty instructions without a branch, and 100,000 slots are five blocks high.
//!
//! Invariants: an absent slot is all zero and satisfies no query, since every need's first rank is
//! at least one; each inner summary is exactly the union of its sixteen children in its view.

use super::summary::{FIRST_LANDMARK_LANE, LANES, RANKS, Ranks, Summary, quarter};
use wide::{i16x8, i16x16};

/// Children of a block: what two SSE registers of 16-bit lanes hold.
const FAN: usize = 16;
const FAN_BITS: usize = 4;
/// Levels above the leaves: 16^8 slots are more than a 32-bit slot number can count.
const MAX_LEVELS: usize = 8;

/// Sixteen children, lane by lane. A cache line holds two lanes.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Block([i16x16; LANES]);

impl Block {
    const EMPTY: Self = Self([i16x16::ZERO; LANES]);

    /// The children that may satisfy the need, as bits.
    #[inline]
    fn satisfying(&self, need: &Need) -> u32 {
        let (ranks, words) = self.0.split_at(RANKS);
        let lacks = below(&need.0[..RANKS], ranks) | missing(&need.0[RANKS..], words);
        lacks.simd_eq(i16x16::ZERO).to_bitmask()
    }

    fn child(&self, child: usize) -> Summary {
        let lane = |lane: usize| self.0[lane].as_array()[child].cast_unsigned();
        Summary(bytemuck::cast([
            quarter(std::array::from_fn(lane)),
            quarter(std::array::from_fn(|word| lane(RANKS + word))),
        ]))
    }

    fn set_child(&mut self, child: usize, summary: Summary) {
        for (lane, value) in self.0.iter_mut().zip(summary.0.to_array()) {
            lane.as_mut_array()[child] = value;
        }
    }

    fn union(&self) -> Summary {
        self.union_of(i16x16::splat(-1))
    }

    /// The union of those children whose lane of the mask is all ones.
    #[inline]
    fn union_of(&self, mask: i16x16) -> Summary {
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
        i16x8::transpose(folded)
            .into_iter()
            .map(Summary)
            .reduce(Summary::union)
            .unwrap_or(Summary::ABSENT)
    }

    /// Sets a bit of a word for the children of the mask, and clears it for the others.
    #[inline]
    fn set_bit(&mut self, lane: usize, bit: i16x16, mask: i16x16) {
        self.0[lane] = (self.0[lane] & !bit) | (mask & bit);
    }
}

/// What a query needs, each lane in all places of a register: a search compares it with several
/// blocks.
struct Need([i16x16; LANES]);

impl Need {
    #[inline]
    fn new(summary: Summary) -> Self {
        Self(summary.0.to_array().map(i16x16::splat))
    }
}

/// Ones in the lanes of which a rank is below the need.
#[inline]
fn below(need: &[i16x16], ranks: &[i16x16]) -> i16x16 {
    let mut lacks = i16x16::ZERO;
    for (&need, &has) in need.iter().zip(ranks) {
        lacks |= need.simd_gt(has);
    }
    lacks
}

/// Not zero in the lanes of which a word lacks a bit of the need.
#[inline]
fn missing(need: &[i16x16], words: &[i16x16]) -> i16x16 {
    let mut lacks = i16x16::ZERO;
    for (&need, &has) in need.iter().zip(words) {
        lacks |= need & !has;
    }
    lacks
}

/// The slots' blocks. The first two ranks stand apart: where the maxima lie, one block after the
/// other is read, and these two, a cache line, mostly decide.
#[derive(Clone, Debug, Default)]
struct Leaves {
    first: Vec<Lines<FIRST>>,
    rest: Vec<Lines<{ LANES - FIRST }>>,
}

/// CPU and memory.
const FIRST: usize = 2;

#[derive(Clone, Debug)]
#[repr(align(64))]
struct Lines<const N: usize>([i16x16; N]);

impl Leaves {
    fn len(&self) -> usize {
        self.first.len()
    }

    fn push(&mut self) {
        self.first.push(Lines([i16x16::ZERO; FIRST]));
        self.rest.push(Lines([i16x16::ZERO; LANES - FIRST]));
    }

    #[inline]
    fn block(&self, leaf: usize) -> Block {
        let [a, b] = self.first[leaf].0;
        let [c, d, e, f, g, h] = self.rest[leaf].0;
        Block([a, b, c, d, e, f, g, h])
    }

    #[inline]
    fn child(&self, leaf: usize, child: usize) -> Summary {
        let [a, b] = &self.first[leaf].0;
        let [c, d, e, f, g, h] = &self.rest[leaf].0;
        let lane = |lane: &i16x16| lane.as_array()[child].cast_unsigned();
        Summary(bytemuck::cast([
            quarter([a, b, c, d].map(lane)),
            quarter([e, f, g, h].map(lane)),
        ]))
    }

    #[inline]
    fn set_child(&mut self, leaf: usize, child: usize, summary: Summary) {
        let first = self.first[leaf].0.iter_mut();
        let lanes = first.chain(&mut self.rest[leaf].0);
        for (lane, value) in lanes.zip(summary.0.to_array()) {
            lane.as_mut_array()[child] = value;
        }
    }

    /// The slots that may satisfy the need, as bits.
    #[inline]
    fn satisfying(&self, leaf: usize, need: &Need) -> u32 {
        let Need(need) = need;
        let lacks = below(&need[..FIRST], &self.first[leaf].0);
        let candidates = lacks.simd_eq(i16x16::ZERO).to_bitmask();
        if candidates == 0 {
            return 0;
        }
        let (ranks, words) = self.rest[leaf].0.split_at(RANKS - FIRST);
        let lacks = below(&need[FIRST..RANKS], ranks) | missing(&need[RANKS..], words);
        candidates & lacks.simd_eq(i16x16::ZERO).to_bitmask()
    }
}

/// One lane of all ones for each bit.
#[inline]
fn mask_of(bits: u16) -> i16x16 {
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

/// The levels above the leaves, in one view.
#[derive(Clone, Debug, Default)]
struct Inner {
    /// From those over the leaves' blocks to the one root. The block with number `b` has as its
    /// children the blocks `16 b` to `16 b + 15` below.
    levels: Vec<Vec<Block>>,
}

impl Inner {
    /// Makes room for so many leaves' blocks, one more than before.
    fn grow(&mut self, leaves: usize) {
        let mut needed = leaves;
        let mut level = 0;
        loop {
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
            level += 1;
            if needed == 1 && level == self.levels.len() {
                return;
            }
        }
    }

    /// A slot of a leaves' block has changed in this view. `union` computes the block's anew; it is
    /// called only if it can't be told from the change, which is one update in five.
    #[inline]
    fn change(&mut self, leaf: usize, old: Summary, new: Summary, union: impl Fn() -> Summary) {
        let mut index = leaf;
        let (mut old, mut new) = (old, new);
        for level in 0..self.levels.len() {
            let (block, child) = (index / FAN, index % FAN);
            let before = self.levels[level][block].child(child);
            let after = if !before.may_lose(old, new) {
                before.union(new)
            } else if let Some(below) = level.checked_sub(1) {
                self.levels[below][index].union()
            } else {
                union()
            };
            if before == after {
                return;
            }
            self.levels[level][block].set_child(child, after);
            (old, new) = (before, after);
            index = block;
        }
    }

    /// One bit of a word has changed for many leaves' blocks: `leaves` has a one for each that has
    /// it now, sixteen blocks a number.
    fn set_bit(&mut self, lane: usize, bit: i16x16, leaves: Vec<u16>) {
        let mut below = leaves;
        for level in &mut self.levels {
            let mut above = vec![0_u16; level.len().div_ceil(FAN)];
            for ((index, block), bits) in level.iter_mut().enumerate().zip(below) {
                block.set_bit(lane, bit, mask_of(bits));
                above[index / FAN] |= u16::from(bits != 0) << (index % FAN);
            }
            below = above;
        }
    }
}

/// Which slots are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    All,
    /// Those that are not recently used.
    Settled,
}

/// The tree over slots `0..len`.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    leaves: Leaves,
    /// By leaves' block, a bit for each settled slot.
    settled: Vec<u16>,
    all: Inner,
    /// Kept only if somebody asks for this view.
    calm: Option<Inner>,
    len: usize,
}

impl Tree {
    pub(super) fn new(keeps_settled: bool) -> Self {
        Self {
            leaves: Leaves::default(),
            settled: Vec::new(),
            all: Inner::default(),
            calm: keeps_settled.then(Inner::default),
            len: 0,
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds an absent slot at the tail.
    pub(super) fn push(&mut self) {
        self.len += 1;
        if self.leaves.len() * FAN < self.len {
            self.leaves.push();
            self.settled.push(u16::MAX);
            self.all.grow(self.leaves.len());
            if let Some(calm) = &mut self.calm {
                calm.grow(self.leaves.len());
            }
        }
    }

    pub(super) fn has(&self, slot: usize, view: View) -> bool {
        let leaf = slot / FAN;
        let in_view = view == View::All || self.settled[leaf] >> (slot % FAN) & 1 == 1;
        in_view && self.leaves.first[leaf].0[0].as_array()[slot % FAN] > 0
    }

    #[cfg(test)]
    pub(super) fn summary(&self, slot: usize) -> Summary {
        self.leaves.block(slot / FAN).child(slot % FAN)
    }

    #[inline]
    pub(super) fn set(&mut self, slot: usize, summary: Summary, settled: bool) {
        let leaf = slot / FAN;
        let child = slot % FAN;
        let before = self.leaves.child(leaf, child);
        let bits_before = self.settled[leaf];
        let bits = bits_before & !(1 << child) | u16::from(settled) << child;
        if before == summary && bits == bits_before {
            return;
        }
        self.settled[leaf] = bits;
        if before != summary {
            self.leaves.set_child(leaf, child, summary);
            let leaves = &self.leaves;
            self.all
                .change(leaf, before, summary, || leaves.block(leaf).union());
        }
        if let Some(calm) = &mut self.calm {
            let leaves = &self.leaves;
            let seen = |bits: u16, summary| {
                if bits >> child & 1 == 1 {
                    summary
                } else {
                    Summary::ABSENT
                }
            };
            calm.change(leaf, seen(bits_before, before), seen(bits, summary), || {
                leaves.block(leaf).union_of(mask_of(bits))
            });
        }
    }

    /// A landmark has moved: decides anew which slots reach it.
    pub(super) fn set_landmark(&mut self, landmark: usize, ranks: Ranks) {
        let lane = FIRST_LANDMARK_LANE + landmark / 16;
        let bit = i16x16::splat((1_u16 << (landmark % 16)).cast_signed());
        let numbers = self.leaves.len().div_ceil(FAN);
        let mut all = vec![0_u16; numbers];
        let mut calm = vec![0_u16; numbers];
        let ranks = ranks.map(i16x16::splat);
        let leaves = self.leaves.first.iter().zip(&mut self.leaves.rest);
        for ((leaf, (first, rest)), settled) in leaves.enumerate().zip(&self.settled) {
            let lacks = below(&ranks[..FIRST], &first.0) | below(&ranks[FIRST..], &rest.0);
            let word = &mut rest.0[lane - FIRST];
            *word = (*word & !bit) | (bit & !lacks);
            let reach = !lacks.to_bitmask() & 0xffff;
            all[leaf / FAN] |= u16::from(reach != 0) << (leaf % FAN);
            let reach = reach & u32::from(*settled);
            calm[leaf / FAN] |= u16::from(reach != 0) << (leaf % FAN);
        }
        self.all.set_bit(lane, bit, all);
        if let Some(inner) = &mut self.calm {
            inner.set_bit(lane, bit, calm);
        }
    }

    /// Leaves' blocks: what a search reads at worst.
    pub(super) fn blocks(&self) -> usize {
        self.leaves.len()
    }

    /// Visits, in order, the slots of the view from `start` on that may satisfy the need, until one
    /// is accepted; returns that one. Adds the leaves' blocks that were read to `effort`.
    #[inline]
    pub(super) fn search(
        &self,
        view: View,
        need: Summary,
        start: usize,
        effort: &mut usize,
        mut accept: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        if start >= self.len {
            return None;
        }
        let need = Need::new(need);
        // Most searches end where they begin: look there before starting at the root.
        let leaf = start / FAN;
        let near = self.proposed(view, leaf, &need) & (u32::MAX << (start % FAN));
        if let Some(slot) = first_accepted(leaf, near, &mut accept) {
            return Some(slot);
        }
        self.search_from_root(view, &need, leaf + 1, effort, &mut accept)
    }

    /// The slots of a leaves' block that may satisfy the need.
    #[inline]
    fn proposed(&self, view: View, leaf: usize, need: &Need) -> u32 {
        let bits = self.leaves.satisfying(leaf, need);
        match view {
            View::All => bits,
            View::Settled => bits & u32::from(self.settled[leaf]),
        }
    }

    fn search_from_root(
        &self,
        view: View,
        need: &Need,
        start: usize,
        effort: &mut usize,
        accept: &mut impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let inner = match (view, &self.calm) {
            (View::Settled, Some(calm)) => calm,
            _ => &self.all,
        };
        let top = inner.levels.len().checked_sub(1)?;
        let mut pending = [0_u32; MAX_LEVELS];
        let mut level = top;
        let mut block = 0;
        loop {
            let mut found = inner.levels[level][block].satisfying(need);
            // On the path to `start`, children before it are passed over.
            let boundary = start >> (FAN_BITS * level);
            if block == boundary / FAN {
                found &= u32::MAX << (boundary % FAN);
            } else if block < boundary / FAN {
                found = 0;
            }
            if level == 0 {
                while found != 0 {
                    let leaf = block * FAN + found.trailing_zeros() as usize;
                    *effort += 1;
                    let slots = self.proposed(view, leaf, need);
                    if let Some(slot) = first_accepted(leaf, slots, accept) {
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
        let blocks = || (0..self.leaves.len()).map(|leaf| self.leaves.block(leaf));
        sanity_check_inner(&self.all, blocks().map(|block| block.union()).collect());
        if let Some(calm) = &self.calm {
            let settled = blocks().zip(&self.settled);
            let unions = settled.map(|(block, &bits)| block.union_of(mask_of(bits)));
            sanity_check_inner(calm, unions.collect());
        }
    }
}

#[inline]
fn first_accepted(
    leaf: usize,
    mut slots: u32,
    accept: &mut impl FnMut(usize) -> bool,
) -> Option<usize> {
    while slots != 0 {
        let slot = leaf * FAN + slots.trailing_zeros() as usize;
        if accept(slot) {
            return Some(slot);
        }
        slots &= slots - 1;
    }
    None
}

#[cfg(test)]
fn sanity_check_inner(inner: &Inner, leaves: Vec<Summary>) {
    let mut below = leaves;
    for (number, level) in inner.levels.iter().enumerate() {
        assert_eq!(
            level.len(),
            below.len().div_ceil(FAN),
            "blocks of level {number}"
        );
        for (index, summary) in below.iter().enumerate() {
            let above = level[index / FAN].child(index % FAN);
            assert_eq!(above, *summary, "level {number}, child {index}");
        }
        below = level.iter().map(Block::union).collect();
    }
    assert!(below.len() <= 1, "one root");
}

#[cfg(test)]
mod tests {
    use super::super::summary::ranks;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_what_a_linear_look_finds(
            slots in prop::collection::vec((0_u32..6, 0_u32..6, 0_u16..4, any::<bool>(), any::<bool>()), 1..700),
            changes in prop::collection::vec((any::<prop::sample::Index>(), 0_u32..6, any::<bool>()), 0..50),
            need in (0_u32..6, 0_u32..6, 0_u16..4),
            landmark in (0_u32..6, 0_u32..6),
            start in 0_usize..700,
        ) {
            let reach = ranks([landmark.0, landmark.1, 0, 0]);
            // As the owner does it: a landmark's bit for whatever is not below it.
            let summary = |cpu: u32, memory: u32, word: u16| {
                let ranks = ranks([cpu, memory, 0, 0]);
                let reached = ranks.iter().zip(&reach).all(|(has, need)| has >= need);
                Summary::new(ranks, u32::from(word), u32::from(reached) << (16 + 3))
            };
            let mut tree = Tree::new(true);
            let mut plain = Vec::new();
            for (cpu, memory, word, present, settled) in slots {
                tree.push();
                let without = Summary::new(ranks([cpu, memory, 0, 0]), u32::from(word), 0);
                let summary = if present { without } else { Summary::ABSENT };
                tree.set(plain.len(), summary, settled);
                plain.push((cpu, memory, word, present, settled));
            }
            tree.set_landmark(16 + 3, reach);
            tree.sanity_check();
            for (at, cpu, settled) in changes {
                let slot = at.index(plain.len());
                let (_, memory, word, ..) = plain[slot];
                plain[slot] = (cpu, memory, word, true, settled);
                tree.set(slot, summary(cpu, memory, word), settled);
            }
            tree.sanity_check();
            for view in [View::All, View::Settled] {
                let expected: Vec<usize> = plain
                    .iter()
                    .enumerate()
                    .skip(start)
                    .filter(|(_, (cpu, memory, word, present, settled))| {
                        *present && *cpu >= need.0 && *memory >= need.1
                            && word & need.2 == need.2 && (*settled || view == View::All)
                    })
                    .map(|(slot, _)| slot)
                    .collect();
                let need = summary(need.0, need.1, need.2);
                let mut effort = 0;
                let mut visited = Vec::new();
                tree.search(view, need, start, &mut effort, |slot| { visited.push(slot); false });
                prop_assert_eq!(&visited, &expected);
                prop_assert!(effort <= tree.blocks());
                let found = tree.search(view, need, start, &mut effort, |_| true);
                prop_assert_eq!(found, expected.first().copied());
            }
        }
    }
}
