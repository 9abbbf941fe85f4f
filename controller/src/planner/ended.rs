//! What was done to instances that have ended.
//!
//! They are in the store alone, so whoever restarts or deletes one says what he read there. Somebody
//! else may have restarted it since: then an attempt's number would be given out twice, or one that
//! lives would be deleted.

use super::State;
use super::event::Refused;
use crate::api::types::ErrorCode;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// So many are remembered; what was read before the first of them is not acted upon.
const REMEMBERED: usize = 65_536;

/// The last change of each, by its number.
#[derive(Debug, Default)]
pub(crate) struct EndedChanges {
    /// How many there have been.
    count: u64,
    last: FxHashMap<u64, u64>,
    /// The instances of the last ones, in order.
    recent: VecDeque<u64>,
}

impl EndedChanges {
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    fn is_unchanged(&self, seq: u64, as_of: u64) -> bool {
        let forgotten = self.count - self.recent.len() as u64;
        as_of >= forgotten && self.last.get(&seq).is_none_or(|change| *change <= as_of)
    }

    fn note(&mut self, seq: u64) {
        self.count += 1;
        self.last.insert(seq, self.count);
        self.recent.push_back(seq);
        if self.recent.len() > REMEMBERED
            && let Some(oldest) = self.recent.pop_front()
            && self.last[&oldest] == self.count - REMEMBERED as u64
        {
            self.last.remove(&oldest);
        }
    }
}

impl State {
    /// Something is done to an ended instance that was read in the store after `as_of` changes.
    pub(crate) fn change_ended(&mut self, seq: u64, as_of: u64) -> Result<(), Refused> {
        if self.by_seq.contains_key(&seq) || !self.ended_changes.is_unchanged(seq, as_of) {
            return Err(Refused::new(
                ErrorCode::Conflict,
                "it was restarted or deleted meanwhile; try again",
            ));
        }
        self.ended_changes.note(seq);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_a_change_is_stale_also_when_that_is_forgotten() {
        let mut changes = EndedChanges::default();
        changes.note(7);
        assert!(!changes.is_unchanged(7, 0) && changes.is_unchanged(8, 0));
        assert!(changes.is_unchanged(7, changes.count()));
        changes.note(7);
        (0..REMEMBERED as u64 - 2).for_each(|seq| changes.note(seq + 10));
        assert!(!changes.is_unchanged(7, 1) && changes.is_unchanged(7, 2));
        changes.note(9);
        changes.note(9);
        assert!(!changes.is_unchanged(8, 0) && changes.is_unchanged(7, 2));
        assert_eq!(changes.last.len(), changes.recent.len() - 1);
    }
}
