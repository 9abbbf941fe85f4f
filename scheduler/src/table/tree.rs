//! A 16-ary tree that skips what can't fit.
//!
//! Each slot has a [`Summary`]. An inner node keeps the maximum of each rank and the union of each
//! word over its children, so a query that an inner node can't satisfy rules out all slots below it.
//! The converse does not hold: the maxima may come from different slots, and a rank is a rounded
//! number, so every slot that the tree proposes is checked exactly by the caller.
//!
//! Slots that are recently used have inner nodes of their own, beside those of the settled slots,
//! so that a change of a slot is one of either. A tree that does not tell them apart has one kind.
//!
//! The children of one block stand lane by lane ([`super::block`]), and 100,000 slots are five blocks
//! high.
//!
//! Invariants: an absent slot is all zero and satisfies no query, since every need's first rank is
//! at least one; each inner summary is exactly the union of those of its sixteen children that it is of.

use super::block::{Block, FAN, FAN_BITS, Need, below, mask_of, missing};
use super::summary::{FIRST_LANDMARK_LANE, LANES, RANKS, Ranks, Summary, quarter};
use wide::{i16x8, i16x16};

/// Levels above the leaves: 16^8 slots are more than a 32-bit slot number can count.
const MAX_LEVELS: usize = 8;

/// The slots' blocks. The first two ranks stand apart: where the maxima lie, one block after the
/// other is read, and these two, a cache line, mostly decide.
#[derive(Clone, Debug, Default)]
struct Leaves {
    first: Vec<Lines<FIRST>>,
    rest: Vec<Lines<{ LANES - FIRST }>>,
}

/// CPU and memory.
const FIRST: usize = 2;

/// Leaves' blocks that a search has read in vain when it begins to look at the first ranks of sixteen
/// at once, as they stand in memory: for most of them that is all.
const MANY: usize = 8;
/// So many are read in the time of one that is read by itself.
const READ_AT_ONCE: usize = 4;

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

    /// Of the sixteen leaves' blocks under one, those of which a slot has the first two ranks, as
    /// bits.
    #[inline]
    fn promising(&self, block: usize, need: &Need) -> u32 {
        let leaves = &self.first[block * FAN..self.len().min((block + 1) * FAN)];
        let mut promising = 0;
        for (at, lines) in leaves.iter().enumerate() {
            if need.is_reached(&lines.0) {
                promising |= 1 << at;
            }
        }
        promising
    }

    /// The slots that may satisfy the need, as bits.
    #[inline]
    fn satisfying(&self, leaf: usize, need: &Need) -> u32 {
        let lacks = below(&need.ranks()[..FIRST], &self.first[leaf].0);
        let candidates = lacks.simd_eq(i16x16::ZERO).to_bitmask();
        if candidates == 0 {
            return 0;
        }
        let (ranks, words) = self.rest[leaf].0.split_at(RANKS - FIRST);
        let lacks = below(&need.ranks()[FIRST..], ranks) | missing(need.words(), words);
        candidates & lacks.simd_eq(i16x16::ZERO).to_bitmask()
    }
}

/// The levels above the leaves.
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

    /// What this has of a slot of a leaves' block has changed. `union` computes the block's anew; it
    /// is called only if it can't be told from the change, which is one update in five.
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
    /// Both. Only a tree that does not tell them apart is searched for these.
    All,
    /// Those that are not recently used.
    Settled,
    Recent,
}

impl View {
    /// The slots of a block that are looked at, of which some are settled.
    #[inline]
    fn of(self, settled: u16) -> u16 {
        match self {
            Self::All => u16::MAX,
            Self::Settled => settled,
            Self::Recent => !settled,
        }
    }
}

/// The tree over slots `0..len`.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    leaves: Leaves,
    /// By leaves' block, a bit for each settled slot.
    settled: Vec<u16>,
    /// Over all slots or, in a tree that tells them apart, the settled ones.
    inner: Inner,
    recent: Option<Inner>,
    len: usize,
}

impl Tree {
    pub(super) fn new(tells_apart: bool) -> Self {
        Self {
            leaves: Leaves::default(),
            settled: Vec::new(),
            inner: Inner::default(),
            recent: tells_apart.then(Inner::default),
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
            self.inner.grow(self.leaves.len());
            if let Some(recent) = &mut self.recent {
                recent.grow(self.leaves.len());
            }
        }
    }

    pub(super) fn has(&self, slot: usize, view: View) -> bool {
        let leaf = slot / FAN;
        view.of(self.settled[leaf]) >> (slot % FAN) & 1 == 1
            && self.leaves.first[leaf].0[0].as_array()[slot % FAN] > 0
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
        self.leaves.set_child(leaf, child, summary);
        let leaves = &self.leaves;
        let Some(recent) = &mut self.recent else {
            let union = || leaves.block(leaf).union();
            return self.inner.change(leaf, before, summary, union);
        };
        for (inner, view) in [(&mut self.inner, View::Settled), (recent, View::Recent)] {
            let seen = |bits: u16, summary| {
                if view.of(bits) >> child & 1 == 1 {
                    summary
                } else {
                    Summary::ABSENT
                }
            };
            let (old, new) = (seen(bits_before, before), seen(bits, summary));
            if old != new {
                let union = || leaves.block(leaf).union_of(mask_of(view.of(bits)));
                inner.change(leaf, old, new, union);
            }
        }
    }

    /// A landmark has moved: decides anew which slots reach it.
    pub(super) fn set_landmark(&mut self, landmark: usize, ranks: Ranks) {
        let lane = FIRST_LANDMARK_LANE + landmark / 16;
        let bit = i16x16::splat((1_u16 << (landmark % 16)).cast_signed());
        let numbers = self.leaves.len().div_ceil(FAN);
        let mut settled_reach = vec![0_u16; numbers];
        let mut recent_reach = vec![0_u16; numbers];
        let ranks = ranks.map(i16x8::splat);
        let leaves = self.leaves.first.iter().zip(&mut self.leaves.rest);
        for ((leaf, (first, rest)), &settled) in leaves.enumerate().zip(&self.settled) {
            let lacks = below(&ranks[..FIRST], &first.0) | below(&ranks[FIRST..], &rest.0);
            let word = &mut rest.0[lane - FIRST];
            *word = (*word & !bit) | (bit & !lacks);
            let reach = !lacks.to_bitmask();
            for (reached, view) in [
                (&mut settled_reach, View::Settled),
                (&mut recent_reach, View::Recent),
            ] {
                let any = reach & u32::from(view.of(settled)) != 0;
                reached[leaf / FAN] |= u16::from(any) << (leaf % FAN);
            }
        }
        if let Some(recent) = &mut self.recent {
            recent.set_bit(lane, bit, recent_reach);
        } else {
            for (settled, recent) in settled_reach.iter_mut().zip(recent_reach) {
                *settled |= recent;
            }
        }
        self.inner.set_bit(lane, bit, settled_reach);
    }

    /// Leaves' blocks: what a search reads at worst.
    pub(super) fn blocks(&self) -> usize {
        self.leaves.len()
    }

    /// Visits, in order, the slots of the view from `start` on that may satisfy the need, until one
    /// is accepted; returns that one. Adds the leaves' blocks that were read to `effort`,
    /// and for those that are read sixteen at once the time that they take.
    #[inline(always)]
    pub(super) fn search(
        &self,
        view: View,
        need: &Need,
        start: usize,
        effort: &mut usize,
        mut accept: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        if start >= self.len {
            return None;
        }
        // Most searches end where they begin: look there before starting at the root.
        let leaf = start / FAN;
        let near = self.proposed(view, leaf, need) & (u32::MAX << (start % FAN));
        if let Some(slot) = first_accepted(leaf, near, &mut accept) {
            return Some(slot);
        }
        self.search_from_root(view, need, leaf + 1, effort, &mut accept)
    }

    /// The slots of a leaves' block that may satisfy the need.
    #[inline]
    fn proposed(&self, view: View, leaf: usize, need: &Need) -> u32 {
        self.leaves.satisfying(leaf, need) & u32::from(view.of(self.settled[leaf]))
    }

    #[inline(never)]
    fn search_from_root(
        &self,
        view: View,
        need: &Need,
        start: usize,
        effort: &mut usize,
        accept: &mut impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let inner = match (view, &self.recent) {
            (View::Recent, Some(recent)) => recent,
            _ => &self.inner,
        };
        let top = inner.levels.len().checked_sub(1)?;
        let mut pending = [0_u32; MAX_LEVELS];
        let mut level = top;
        let mut block = 0;
        loop {
            let mut found = inner.levels[level][block].satisfying(need);
            // On the path to `start`, children before it are passed over.
            let before = (start >> (FAN_BITS * level)).saturating_sub(block * FAN);
            found &= u32::MAX << before.min(FAN);
            if level == 0 {
                let slot = self.search_leaves(view, need, (block, found), effort, accept);
                if slot.is_some() {
                    return slot;
                }
                found = 0;
            }
            while found == 0 {
                if level == top {
                    return None;
                }
                level += 1;
                block /= FAN;
                found = pending[level];
            }
            pending[level] = found & (found - 1);
            block = block * FAN + found.trailing_zeros() as usize;
            level -= 1;
        }
    }

    /// Visits the leaves' blocks under a block that are promised to have something.
    #[inline]
    fn search_leaves(
        &self,
        view: View,
        need: &Need,
        (block, mut promised): (usize, u32),
        effort: &mut usize,
        accept: &mut impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        if *effort > MANY {
            let promising = self.leaves.promising(block, need);
            *effort += (promised & !promising).count_ones() as usize / READ_AT_ONCE;
            promised &= promising;
        }
        while promised != 0 {
            let leaf = block * FAN + promised.trailing_zeros() as usize;
            *effort += 1;
            let slots = self.proposed(view, leaf, need);
            if let Some(slot) = first_accepted(leaf, slots, accept) {
                return Some(slot);
            }
            promised &= promised - 1;
        }
        None
    }

    /// Panics if an inner node is not the union of its children.
    #[cfg(test)]
    pub(super) fn sanity_check(&self) {
        let unions = |view: View| {
            let settled = self.settled.iter().enumerate();
            let union = settled.map(move |(leaf, &settled)| {
                let mask = mask_of(view.of(settled));
                self.leaves.block(leaf).union_of(mask)
            });
            union.collect()
        };
        if let Some(recent) = &self.recent {
            sanity_check_inner(&self.inner, unions(View::Settled));
            sanity_check_inner(recent, unions(View::Recent));
        } else {
            sanity_check_inner(&self.inner, unions(View::All));
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
            tells_apart in any::<bool>(),
        ) {
            let reach = ranks([landmark.0, landmark.1, 0, 0]);
            // As the owner does it: a landmark's bit for whatever is not below it.
            let summary = |cpu: u32, memory: u32, word: u16| {
                let reached = |ranks: Ranks| ranks.iter().zip(&reach).all(|(has, need)| has >= need);
                let reached = |ranks| u32::from(reached(ranks)) << (16 + 3);
                Summary::new([cpu, memory, 0, 0], word.into(), reached)
            };
            let mut tree = Tree::new(tells_apart);
            let mut plain = Vec::new();
            for (cpu, memory, word, present, settled) in slots {
                tree.push();
                let without = Summary::new([cpu, memory, 0, 0], word.into(), |_| 0);
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
            let views: &[View] = if tells_apart { &[View::Settled, View::Recent] } else { &[View::All] };
            for &view in views {
                let expected: Vec<usize> = plain
                    .iter()
                    .enumerate()
                    .skip(start)
                    .filter(|(_, (cpu, memory, word, present, settled))| {
                        *present && *cpu >= need.0 && *memory >= need.1
                            && word & need.2 == need.2
                            && (view == View::All || *settled == (view == View::Settled))
                    })
                    .map(|(slot, _)| slot)
                    .collect();
                let need = &Need::new(summary(need.0, need.1, need.2));
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
