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
use super::inner::Inner;
use super::summary::{FIRST_LANDMARK_LANE, LANES, RANKS, Ranks, Summary};
use wide::{i16x8, i16x16};

/// Levels above the leaves: 16^8 slots are more than a 32-bit slot number can count.
const MAX_LEVELS: usize = 8;

/// The slots' blocks. The first two ranks stand apart: where the maxima lie, one block after the
/// other is read, and these two, a cache line, mostly decide.
#[derive(Clone, Debug, Default)]
struct Leaves {
    first: Vec<Lines<FIRST>>,
    rest: Vec<Lines<{ LANES - FIRST }>>,
    /// The same once more, slot by slot: an update reads one cache line where the lanes are on four.
    summaries: Vec<Summary>,
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
        self.summaries.extend([Summary::ABSENT; FAN]);
    }

    #[inline]
    fn block(&self, leaf: usize) -> Block {
        let [a, b] = self.first[leaf].0;
        let [c, d, e, f, g, h] = self.rest[leaf].0;
        Block([a, b, c, d, e, f, g, h])
    }

    /// Returns what was there before.
    #[inline]
    fn set(&mut self, slot: usize, summary: Summary) -> Summary {
        let before = std::mem::replace(&mut self.summaries[slot], summary);
        let (leaf, child) = (slot / FAN, slot % FAN);
        let values = summary.0.to_array();
        let (ranks, words) = self.rest[leaf].0.split_at_mut(RANKS - FIRST);
        let first = self.first[leaf].0.iter_mut();
        for (lane, value) in first.chain(ranks).zip(&values[..RANKS]) {
            lane.as_mut_array()[child] = *value;
        }
        // What a node is seldom changes.
        if before.words() != summary.words() {
            for (lane, value) in words.iter_mut().zip(&values[RANKS..]) {
                lane.as_mut_array()[child] = *value;
            }
        }
        before
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

/// What a search has read in vain.
#[derive(Clone, Debug, Default)]
pub(super) struct Effort {
    /// Leaves' blocks; of those that are read sixteen at once a part, for the time that they take.
    pub(super) blocks: usize,
    /// Leaves' blocks for which too much was promised.
    outdated: Vec<(View, u32)>,
}

impl Effort {
    #[inline]
    pub(super) fn clear(&mut self) {
        self.blocks = 0;
        self.outdated.clear();
    }

    #[inline]
    fn note_outdated(&mut self, view: View, block: usize, mut leaves: u32) {
        while leaves != 0 {
            let leaf = block * FAN + leaves.trailing_zeros() as usize;
            self.outdated
                .extend(u32::try_from(leaf).map(|leaf| (view, leaf)));
            leaves &= leaves - 1;
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
            && self.leaves.summaries[slot] != Summary::ABSENT
    }

    #[cfg(test)]
    pub(super) fn summary(&self, slot: usize) -> Summary {
        self.leaves.summaries[slot]
    }

    #[inline]
    pub(super) fn set(&mut self, slot: usize, summary: Summary, settled: bool) {
        let leaf = slot / FAN;
        let child = slot % FAN;
        let bits_before = self.settled[leaf];
        let bits = bits_before & !(1 << child) | u16::from(settled) << child;
        self.settled[leaf] = bits;
        let before = self.leaves.set(slot, summary);
        let Some(recent) = &mut self.recent else {
            return self.inner.change(leaf, before, summary);
        };
        let (inner, other) = if settled {
            (&mut self.inner, recent)
        } else {
            (recent, &mut self.inner)
        };
        if bits == bits_before {
            inner.change(leaf, before, summary);
        } else {
            other.lose(leaf);
            inner.change(leaf, Summary::ABSENT, summary);
        }
    }

    /// As [`Self::set`], for a tree of which nobody tells what was searched in vain.
    pub(super) fn set_at_once(&mut self, slot: usize, summary: Summary) {
        self.set(slot, summary, true);
        self.make_true(View::All, slot / FAN);
    }

    /// Makes true what a search has found to be outdated.
    #[inline]
    pub(super) fn repair(&mut self, effort: &Effort) {
        for &(view, leaf) in &effort.outdated {
            self.make_true(view, leaf as usize);
        }
    }

    fn make_true(&mut self, view: View, leaf: usize) {
        let slots = mask_of(view.of(self.settled[leaf]));
        let has = self.leaves.block(leaf).union_of(slots);
        match (view, &mut self.recent) {
            (View::Recent, Some(recent)) => recent.keep(leaf, has),
            _ => self.inner.keep(leaf, has),
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
            let slots = &mut self.leaves.summaries[leaf * FAN..(leaf + 1) * FAN];
            for (summary, word) in slots.iter_mut().zip(word.as_array()) {
                summary.0.as_mut_array()[lane] = *word;
            }
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
    /// is accepted; returns that one. Adds what was read to `effort`.
    #[inline(always)]
    pub(super) fn search(
        &self,
        view: View,
        need: &Need,
        start: usize,
        effort: &mut Effort,
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
        effort: &mut Effort,
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
                let slot = self.search_leaves((view, inner), need, (block, found), effort, accept);
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
        (view, inner): (View, &Inner),
        need: &Need,
        (block, mut promised): (usize, u32),
        effort: &mut Effort,
        accept: &mut impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let outdated = inner.outdated(block);
        if effort.blocks > MANY {
            let promising = self.leaves.promising(block, need);
            let in_vain = promised & !promising;
            effort.blocks += in_vain.count_ones() as usize / READ_AT_ONCE;
            effort.note_outdated(view, block, in_vain & outdated);
            promised &= promising;
        }
        while promised != 0 {
            let this = promised & promised.wrapping_neg();
            let leaf = block * FAN + promised.trailing_zeros() as usize;
            effort.blocks += 1;
            let slots = self.proposed(view, leaf, need);
            if slots == 0 {
                effort.note_outdated(view, block, this & outdated);
            } else if let Some(slot) = first_accepted(leaf, slots, accept) {
                return Some(slot);
            }
            promised &= !this;
        }
        None
    }

    /// Panics if the inner levels disagree with the leaves.
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
            self.inner.sanity_check(unions(View::Settled));
            recent.sanity_check(unions(View::Recent));
        } else {
            self.inner.sanity_check(unions(View::All));
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
                let mut effort = Effort::default();
                let mut visited = Vec::new();
                tree.search(view, need, start, &mut effort, |slot| { visited.push(slot); false });
                prop_assert_eq!(&visited, &expected);
                prop_assert!(effort.blocks <= tree.blocks());
                let found = tree.search(view, need, start, &mut effort, |_| true);
                prop_assert_eq!(found, expected.first().copied());
                tree.repair(&effort);
                tree.sanity_check();
                let found = tree.search(view, need, start, &mut Effort::default(), |_| true);
                prop_assert_eq!(found, expected.first().copied());
            }
        }
    }
}
