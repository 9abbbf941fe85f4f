//! The levels of the tree above the leaves: what each block of leaves is promised to have.
//!
//! A promise is never less than what is there, or a search would miss it. It may be more: when a slot
//! loses what no other of its block has, the promise stands and the block is noted as outdated. A
//! search that reads the block in vain names it, and then the promise is made true
//! ([`super::tree::Tree::repair`]). So an update never reads a block's other slots, and a node that is
//! used and settled again costs nothing in between.
//!
//! Invariants: the promise for a block of leaves is at least the union of its slots, and exactly that
//! if the block is not noted as outdated; each inner block above is exactly the union of its children.

use super::block::{Block, FAN, mask_of};
use super::summary::Summary;
use wide::i16x16;

/// The levels above the leaves.
#[derive(Clone, Debug, Default)]
pub(super) struct Inner {
    /// From those over the leaves' blocks to the one root. The block with number `b` has as its
    /// children the blocks `16 b` to `16 b + 15` below.
    pub(super) levels: Vec<Vec<Block>>,
    /// The children of the lowest level once more, one after the other: an update mostly reads one
    /// and changes none.
    promises: Vec<Summary>,
    /// By block of the lowest level, a bit for each leaves' block for which too much may be promised.
    outdated: Vec<u16>,
}

impl Inner {
    /// Makes room for so many leaves' blocks, one more than before.
    pub(super) fn grow(&mut self, leaves: usize) {
        self.outdated.resize(leaves.div_ceil(FAN), 0);
        self.promises.resize(leaves, Summary::ABSENT);
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

    /// What this has of a slot of a leaves' block has changed.
    #[inline]
    pub(super) fn change(&mut self, leaf: usize, old: Summary, new: Summary) {
        let promised = self.promises[leaf];
        let loses = promised.may_lose(old, new);
        self.outdated[leaf / FAN] |= u16::from(loses) << (leaf % FAN);
        let raised = promised.union(new);
        if raised != promised {
            self.raise(leaf, raised);
        }
    }

    /// A slot of a leaves' block is no longer one of those that this is over.
    #[inline]
    pub(super) fn lose(&mut self, leaf: usize) {
        self.outdated[leaf / FAN] |= 1 << (leaf % FAN);
    }

    #[inline(never)]
    fn raise(&mut self, leaf: usize, promise: Summary) {
        self.promises[leaf] = promise;
        let mut index = leaf;
        let mut promise = promise;
        for level in &mut self.levels {
            let (block, child) = (index / FAN, index % FAN);
            let before = level[block].child(child);
            promise = before.union(promise);
            if promise == before {
                return;
            }
            level[block].set_child(child, promise);
            index = block;
        }
    }

    /// Makes the promise for a leaves' block what it has.
    pub(super) fn keep(&mut self, leaf: usize, has: Summary) {
        self.outdated[leaf / FAN] &= !(1 << (leaf % FAN));
        self.promises[leaf] = has;
        let mut index = leaf;
        let mut has = has;
        for level in &mut self.levels {
            let (block, child) = (index / FAN, index % FAN);
            if level[block].child(child) == has {
                return;
            }
            level[block].set_child(child, has);
            has = level[block].union();
            index = block;
        }
    }

    /// Of the leaves' blocks under a block, those for which too much may be promised, as bits.
    #[inline]
    pub(super) fn outdated(&self, block: usize) -> u32 {
        self.outdated[block].into()
    }

    /// One bit of a word has changed for many leaves' blocks: `leaves` has a one for each that has
    /// it now, sixteen blocks a number.
    pub(super) fn set_bit(&mut self, lane: usize, bit: i16x16, leaves: Vec<u16>) {
        for (leaf, promise) in self.promises.iter_mut().enumerate() {
            let has = leaves[leaf / FAN] >> (leaf % FAN) & 1 == 1;
            let word = &mut promise.0.as_mut_array()[lane];
            let bit = bit.as_array()[0];
            *word = if has { *word | bit } else { *word & !bit };
        }
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

    /// Panics if a promise is less than what the leaves' blocks have, or more without need.
    #[cfg(test)]
    pub(super) fn sanity_check(&self, leaves: Vec<Summary>) {
        let mut below = leaves;
        for (leaf, promise) in self.promises.iter().enumerate() {
            assert_eq!(*promise, self.levels[0][leaf / FAN].child(leaf % FAN));
        }
        for (number, level) in self.levels.iter().enumerate() {
            let blocks = below.len().div_ceil(FAN);
            assert_eq!(level.len(), blocks, "blocks of level {number}");
            for (index, &summary) in below.iter().enumerate() {
                let promise = level[index / FAN].child(index % FAN);
                assert_eq!(
                    promise.union(summary),
                    promise,
                    "level {number}, child {index}"
                );
                let may_differ =
                    number == 0 && self.outdated(index / FAN) >> (index % FAN) & 1 == 1;
                assert!(
                    promise == summary || may_differ,
                    "level {number}, child {index}"
                );
            }
            below = level.iter().map(Block::union).collect();
        }
        assert!(below.len() <= 1, "one root");
    }
}
