//! Landmarks: demands that tell nodes apart where the tree's maxima can't.
//!
//! The maxima of a group of nodes may come from different nodes: one has the memory, another the
//! CPUs, and none has both. A landmark is a point (four ranks); each node has a bit that says
//! whether it reaches the point in all dimensions at once, and inner nodes have the union of these
//! bits. A query that reaches a landmark itself needs a node that reaches it. A group of which no
//! node does is skipped, whatever its maxima are.
//!
//! Landmarks come from experience. A search that reads many blocks for nothing adds to a debt; once
//! the debt is many times what a new landmark costs (one pass over the table), the demand at hand
//! becomes one, in the place of the oldest. So passes cost little beside the searches that they
//! follow, and a cluster whose demands come in at most [`LANDMARKS`] shapes is searched without a detour.
//! The point is a little below the demand, so that similar demands profit as well.

use super::summary::{LANDMARK_WORDS, RANKS, Ranks};
use super::tree::Tree;
use wide::i16x16;

/// A word of bits is compared with one register a dimension, so more would cost each update more.
pub(super) const LANDMARKS: usize = 16 * LANDMARK_WORDS;
/// Blocks that a search may read without its demand being blamed: a few are bad luck.
const HARMLESS_BLOCKS: usize = 8;
/// The table must have been read in vain so often before a landmark takes a place that is free. A pass
/// costs as much as ten such searches.
const DEBT_PASSES: usize = 8;
/// And before it takes another's: where no landmark helps, since each demand is another, the passes
/// make searches a tenth dearer.
const DEBT_PASSES_TO_REPLACE: usize = 24;
/// Ranks have 1,024 steps an octave: 16 steps are 0.8 to 1.6 percent.
const ROUNDING: i16 = 16;

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) struct Landmarks {
    /// For each word, the ranks of its sixteen landmarks, dimension by dimension.
    points: [[i16x16; RANKS]; LANDMARK_WORDS],
    placed: usize,
    oldest: usize,
    debt_blocks: usize,
}

impl Default for Landmarks {
    fn default() -> Self {
        Self {
            // No rank is as high: nothing reaches a landmark that has not been placed.
            points: [[i16x16::splat(i16::MAX); RANKS]; LANDMARK_WORDS],
            placed: 0,
            oldest: 0,
            debt_blocks: 0,
        }
    }
}

impl Landmarks {
    /// The landmarks that a node or a demand reaches.
    #[inline]
    pub(super) fn reached(&self, ranks: Ranks) -> u32 {
        let mut reached = 0;
        for (word, points) in self
            .points
            .iter()
            .take(self.placed.div_ceil(16))
            .enumerate()
        {
            let mut below = i16x16::ZERO;
            for (&point, &rank) in points.iter().zip(&ranks) {
                below |= point.simd_gt(i16x16::splat(rank));
            }
            reached |= below.simd_eq(i16x16::ZERO).to_bitmask() << (16 * word);
        }
        reached
    }

    /// A search for this demand has read so many blocks. Places a landmark if that is due.
    #[inline]
    pub(super) fn learn(&mut self, blocks: usize, tree: &mut Tree, ranks: impl FnOnce() -> Ranks) {
        if blocks > HARMLESS_BLOCKS {
            self.debt_blocks += blocks;
            let passes = if self.placed < LANDMARKS {
                DEBT_PASSES
            } else {
                DEBT_PASSES_TO_REPLACE
            };
            if self.debt_blocks >= passes * tree.blocks() {
                self.place(ranks(), tree);
            }
        }
    }

    #[cold]
    fn place(&mut self, ranks: Ranks, tree: &mut Tree) {
        self.debt_blocks = 0;
        // Those below are of quantities zero, and the first of them tells a node from none.
        let point = ranks.map(|rank| {
            if rank < ROUNDING {
                rank
            } else {
                rank & !(ROUNDING - 1)
            }
        });
        let is_there = |landmark: usize| {
            let points = &self.points[landmark / 16];
            (0..RANKS).all(|rank| points[rank].as_array()[landmark % 16] == point[rank])
        };
        if (0..LANDMARKS).any(is_there) {
            // What made the search long is not the dimensions: a resource, a shared bit.
            return;
        }
        let landmark = self.oldest;
        self.placed = self.placed.max(landmark + 1);
        self.oldest = (landmark + 1) % LANDMARKS;
        for (lane, rank) in self.points[landmark / 16].iter_mut().zip(point) {
            lane.as_mut_array()[landmark % 16] = rank;
        }
        tree.set_landmark(landmark, point);
    }
}
