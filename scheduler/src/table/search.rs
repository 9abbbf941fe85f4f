//! Searching the table: which node takes a demand, and why none does.
//!
//! The order of candidates is the spread's; what the tree proposes is checked exactly here.

use super::block::Need;
use super::gpu::GpuShares;
use super::node::{self, resources_hold};
use super::query::{Compiled, Quantities, Target};
use super::tree::{Effort, Tree, View};
use super::{Fit, MAX_CHOICES, NodeTable, Placement, Query, Spread, Waste};
use pronto_payloads::demand::Demand;
use pronto_payloads::place::Refusal;
use std::cell::Cell;
use std::ops::Range;

/// Candidates of one search: one by [`Fit::First`].
#[derive(Default)]
struct Candidates {
    slots: [u32; MAX_CHOICES as usize],
    count: usize,
}

impl Candidates {
    fn push(&mut self, slot: u32) {
        self.slots[self.count] = slot;
        self.count += 1;
    }

    fn as_slice(&self) -> &[u32] {
        &self.slots[..self.count]
    }
}

/// Additions to the waste that differ by less than a hundredth of a device count as equal: the
/// shapes' counts are no more exact than that, and the earlier node keeps work together.
const SAME_WASTE_MILLIS: f32 = 10.0;

impl NodeTable {
    /// Finds a fit for the query, if there is one now, and takes nothing. It learns from searches
    /// that were long for nothing (see [`super::landmarks`]), which changes no answer.
    #[must_use]
    pub fn search(&mut self, query: &Query<'_>) -> Option<Placement> {
        // Lent, so that its list is not allocated for each search.
        let mut effort = std::mem::take(&mut self.effort);
        let found = self.find_candidates(query, &mut effort);
        self.open.repair(&effort);
        self.landmarks.learn(effort.blocks, &mut self.open, || {
            Quantities::of_demand(query.demand).ranks()
        });
        effort.clear();
        self.effort = effort;
        let slot = match found.as_slice() {
            [] => return None,
            [only] => *only,
            several => {
                self.remember_waste(several);
                let wastes = &self.wastes;
                let before = |slot: u32| wastes[slot as usize].millis;
                self.least_fragmenting(several, query.demand, before)?
            }
        };
        self.placement(slot, query.demand.gpu_shape())
    }

    /// Computes what these nodes waste, where it is not known.
    fn remember_waste(&mut self, slots: &[u32]) {
        let version = self.shapes.version();
        for &slot in slots {
            if self.wastes[slot as usize].version != version {
                let millis = self.waste(slot);
                self.wastes[slot as usize] = Waste { version, millis };
            }
        }
    }

    /// As [`Self::search`], but learns and remembers nothing.
    pub(super) fn look(&self, query: &Query<'_>) -> Option<u32> {
        let found = self.find_candidates(query, &mut Effort::default());
        self.least_fragmenting(found.as_slice(), query.demand, |slot| self.waste(slot))
    }

    /// Finds a fit, takes the demand off it and marks it as recently used. [`Fit::Few`] counts the
    /// demand's shape, whether it fits or not.
    pub fn place(&mut self, query: &Query<'_>) -> Option<Placement> {
        if self.config.fit != Fit::First {
            self.shapes.note(query.demand);
        }
        let placement = self.search(query)?;
        self.commit(&placement, query.demand);
        Some(placement)
    }

    /// The nodes to choose from. Adds the blocks that are read in vain to `effort`.
    #[inline(always)]
    fn find_candidates(&self, query: &Query<'_>, effort: &mut Effort) -> Candidates {
        let mut compiled = self.compile(query);
        let found = self.choose(&compiled, query.prefer, effort);
        if found.count == 0 && !compiled.avoided().is_empty() {
            return self.find_avoided_candidates(&mut compiled, query.prefer, effort);
        }
        found
    }

    /// Those that were to be avoided, if there can be no other: to wait for one would be to wait for
    /// ever, or as long as its maintenance.
    #[cold]
    #[inline(never)]
    fn find_avoided_candidates(
        &self,
        compiled: &mut Compiled<'_>,
        prefer: Option<&str>,
        effort: &mut Effort,
    ) -> Candidates {
        if self.may_fit_elsewhere(compiled) {
            return Candidates::default();
        }
        compiled.avoid_none();
        self.choose(compiled, prefer, effort)
    }

    #[inline(always)]
    pub(super) fn compile<'a>(&'a self, query: &Query<'a>) -> Compiled<'a> {
        Compiled::new(query, &self.labels, &self.landmarks, |name| {
            self.by_name.get(name).copied()
        })
    }

    #[inline]
    fn placement(&self, slot: u32, gpu_shape: (u16, u16)) -> Option<Placement> {
        let gpus = if gpu_shape.0 == 0 {
            GpuShares::NONE
        } else {
            self.slots[slot as usize].devices.choose(gpu_shape)?
        };
        Some(Placement {
            node: self.index_of(slot),
            gpus,
        })
    }

    /// The first node that fits or, for [`Fit::Few`], the first few.
    #[inline(always)]
    fn choose(
        &self,
        query: &Compiled<'_>,
        prefer: Option<&str>,
        effort: &mut Effort,
    ) -> Candidates {
        let mut found = Candidates::default();
        if let Some(name) = prefer
            && let Some(&slot) = self.by_name.get(name)
            && self.takes(slot, query)
        {
            found.push(slot);
            return found;
        }
        let limit = match self.config.fit {
            Fit::First => 1,
            Fit::Few { choices } => usize::from(choices.clamp(1, MAX_CHOICES)),
        };
        self.candidates(query, effort, |slot| {
            found.push(slot);
            found.count == limit
        });
        found
    }

    /// Of the candidates, the one to whose waste the placement adds least, the first if it adds
    /// about the same to several. `before` says what a node wastes now.
    fn least_fragmenting(
        &self,
        candidates: &[u32],
        demand: &Demand,
        mut before: impl FnMut(u32) -> f32,
    ) -> Option<u32> {
        let (&first, others) = candidates.split_first()?;
        if others.is_empty() {
            return Some(first);
        }
        let mut added = |slot| self.waste_with(slot, demand) - before(slot);
        let mut best = (first, added(first));
        for &slot in others {
            let added = added(slot);
            if added < best.1 - SAME_WASTE_MILLIS {
                best = (slot, added);
            }
        }
        Some(best.0)
    }

    /// What a node would waste with this demand on it.
    fn waste_with(&self, slot: u32, demand: &Demand) -> f32 {
        let slot = &self.slots[slot as usize];
        let mut free = slot.free;
        free.cpu_millis = free.cpu_millis.saturating_sub(demand.cpu_millis);
        free.memory_mib = free.memory_mib.saturating_sub(demand.memory_mib);
        match slot.devices.choose(demand.gpu_shape()) {
            Some(gpus) if !gpus.is_empty() => {
                let mut devices = slot.devices.clone();
                devices.subtract(&gpus);
                free.gpu_rank = devices.rank().into();
                self.shapes.waste(&free, devices.as_slice())
            }
            _ => self.shapes.waste(&free, slot.devices.as_slice()),
        }
    }

    fn waste(&self, slot: u32) -> f32 {
        let slot = &self.slots[slot as usize];
        self.shapes.waste(&slot.free, slot.devices.as_slice())
    }

    /// Hands out the nodes that fit, in the order that the spread asks for, until enough are taken.
    #[inline(always)]
    fn candidates(
        &self,
        query: &Compiled<'_>,
        effort: &mut Effort,
        mut take: impl FnMut(u32) -> bool,
    ) {
        let last = self.last_used.unwrap_or(u32::MAX);
        let after_last = last.wrapping_add(1);
        let end = u32::MAX;
        let any = Cell::new(false);
        let mut take = |slot| {
            any.set(true);
            take(slot)
        };
        // Most searches for a settled node end here: this one pass is inlined.
        if self.config.spread == Spread::Settle
            && (self.pass(View::Settled, query, 0..end, effort, &mut take)
                || any.get()
                || self.recent == 0)
        {
            return;
        }
        // Each pass ends the search if it has handed out enough.
        let mut pass = |view, range: Range<u32>, effort: &mut Effort| {
            self.further_pass(view, query, range, effort, &mut take)
        };
        match self.config.spread {
            Spread::Settle => {
                if !pass(View::Recent, after_last..end, effort) {
                    pass(View::Recent, 0..after_last, effort);
                }
            }
            Spread::Skip => {
                if pass(View::All, 0..last, effort) || pass(View::All, after_last..end, effort) {
                    return;
                }
                if !any.get() {
                    pass(View::All, last..after_last, effort);
                }
            }
            Spread::Rotate => {
                if !pass(View::All, after_last..end, effort) {
                    pass(View::All, 0..after_last, effort);
                }
            }
        }
    }

    #[inline(never)]
    fn further_pass(
        &self,
        view: View,
        query: &Compiled<'_>,
        range: Range<u32>,
        effort: &mut Effort,
        take: &mut impl FnMut(u32) -> bool,
    ) -> bool {
        self.pass(view, query, range, effort, take)
    }

    /// Hands out the nodes of a range that fit. Returns whether enough are taken.
    #[inline(always)]
    fn pass(
        &self,
        view: View,
        query: &Compiled<'_>,
        range: Range<u32>,
        effort: &mut Effort,
        take: &mut impl FnMut(u32) -> bool,
    ) -> bool {
        if range.is_empty() {
            return false;
        }
        let mut enough = false;
        let mut accept = |slot: u32| {
            if slot >= range.end {
                return true;
            }
            enough = self.fits(slot, query) && take(slot);
            enough
        };
        let few = match query.target {
            Target::Nowhere => return false,
            Target::Slots(slots) => slots,
            Target::One(ref slot) => std::slice::from_ref(slot),
            Target::Tree => {
                let start = range.start as usize;
                search(&self.open, view, &query.need, start, effort, accept);
                return enough;
            }
        };
        for &slot in few {
            if slot >= range.start && self.open.has(slot as usize, view) && accept(slot) {
                break;
            }
        }
        enough
    }

    /// Whether a node that takes work fits exactly.
    #[inline]
    fn fits(&self, slot: u32, query: &Compiled<'_>) -> bool {
        let hot = &self.slots[slot as usize];
        hot.free.hold(&query.quantities)
            && hot.serves(query)
            && (query.is_plain() || self.fits_in_full(slot, query))
    }

    #[inline(never)]
    fn fits_in_full(&self, slot: u32, query: &Compiled<'_>) -> bool {
        self.nodes[slot as usize].as_ref().is_some_and(|node| {
            !query.avoided().contains(&slot)
                && node.has_labels(query.labels())
                && resources_hold(&node.resources, query.resources)
        })
    }

    /// As [`Self::fits`], for a slot that no tree has proposed.
    fn takes(&self, slot: u32, query: &Compiled<'_>) -> bool {
        let in_target = match query.target {
            Target::Nowhere => false,
            Target::One(only) => only == slot,
            Target::Slots(_) | Target::Tree => true,
        };
        in_target && self.slots[slot as usize].takes_work() && self.fits(slot, query)
    }

    /// Why nothing fits, at about the cost of a search.
    #[must_use]
    pub fn classify_refusal(&self, query: &Query<'_>) -> Refusal {
        if self.is_empty() {
            return Refusal::NoNodes;
        }
        let mut compiled = self.compile(query);
        compiled.avoid_none();
        if self.could_ever_fit(&compiled) {
            Refusal::CloudFull
        } else {
            Refusal::NeverFits
        }
    }

    /// Whether some node could hold the demand if nothing ran.
    fn could_ever_fit(&self, query: &Compiled<'_>) -> bool {
        self.could_hold(query, |_| true)
    }

    /// Whether some node that takes work and is not avoided could hold the demand if nothing ran.
    fn may_fit_elsewhere(&self, query: &Compiled<'_>) -> bool {
        self.could_hold(query, |slot| {
            !query.avoided().contains(&slot) && self.slots[slot as usize].takes_work()
        })
    }

    fn could_hold(&self, query: &Compiled<'_>, counts: impl Fn(u32) -> bool) -> bool {
        let holds = |slot: u32| {
            let node = self.nodes[slot as usize].as_ref();
            counts(slot)
                && self.slots[slot as usize].serves(query)
                && node.is_some_and(|node| {
                    node::quantities(&node.allocatable).hold(&query.quantities)
                        && node.has_labels(query.labels())
                        && resources_hold(&node.allocatable.resources, query.resources)
                })
        };
        match query.target {
            Target::Nowhere => false,
            Target::One(only) => holds(only),
            Target::Slots(slots) => slots.iter().any(|&slot| holds(slot)),
            Target::Tree => {
                let need = query.need.without_landmarks();
                let effort = &mut Effort::default();
                search(&self.allocatable, View::All, &need, 0, effort, holds).is_some()
            }
        }
    }
}

#[inline(always)]
fn search(
    tree: &Tree,
    view: View,
    need: &Need,
    start: usize,
    effort: &mut Effort,
    mut accept: impl FnMut(u32) -> bool,
) -> Option<usize> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "slots are handed out as u32"
    )]
    let accept = |slot: usize| accept(slot as u32);
    tree.search(view, need, start, effort, accept)
}
