//! Tombstones: which attempts were stopped, heard of or not, so that a START that a STOP overtook
//! can't run (rule 5).
//!
//! Bounded in number and age: a START can be overtaken only while it is under way in the session
//! that its stamp names, so an hour is far beyond need; and when there are too many the oldest go
//! first, which is the order in which they become useless.

use crate::moment::Moment;
use pronto_payloads::ids::{Attempt, InstanceId, OwnerId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What is kept at most: 4 MiB of memory.
pub const TOMBSTONES: usize = 65_536;
/// How long one is kept: longer than any START can be under way.
pub const TOMBSTONE_AGE: Duration = Duration::from_secs(3600);

/// One tombstone, as it is kept on disk too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Whose instance.
    pub owner: OwnerId,
    /// Which instance.
    pub instance: InstanceId,
    /// This attempt and all before it must not run.
    pub attempt: Attempt,
    /// When it was made, on CLOCK_BOOTTIME.
    pub at: Moment,
}

/// All tombstones of a node.
#[derive(Clone, Debug, Default)]
pub struct Tombstones {
    by_instance: BTreeMap<(OwnerId, InstanceId), (Attempt, Moment)>,
    by_age: BTreeSet<(Moment, OwnerId, InstanceId)>,
}

impl Tombstones {
    /// Adds one; the highest attempt wins. Says whether it forbids more than before.
    pub fn insert(&mut self, tombstone: Tombstone) -> bool {
        let key = (tombstone.owner, tombstone.instance);
        let earlier = self.by_instance.get(&key).copied();
        let attempt = earlier.map_or(tombstone.attempt, |(attempt, _)| {
            attempt.max(tombstone.attempt)
        });
        if let Some((_, at)) = earlier {
            self.by_age.remove(&(at, key.0, key.1));
        }
        self.by_instance.insert(key, (attempt, tombstone.at));
        self.by_age.insert((tombstone.at, key.0, key.1));
        if self.by_instance.len() > TOMBSTONES {
            self.pop_oldest();
        }
        earlier.is_none_or(|(earlier, _)| attempt > earlier)
    }

    /// Whether this attempt was stopped before it came.
    #[must_use]
    pub fn forbids(&self, owner: OwnerId, instance: InstanceId, attempt: Attempt) -> bool {
        self.by_instance
            .get(&(owner, instance))
            .is_some_and(|(stopped, _)| attempt <= *stopped)
    }

    /// Drops those that are too old. Says how many went.
    pub fn age(&mut self, now: Moment) -> usize {
        let mut gone = 0;
        while self
            .by_age
            .first()
            .is_some_and(|(at, ..)| now.since(*at) > TOMBSTONE_AGE)
        {
            self.pop_oldest();
            gone += 1;
        }
        gone
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_instance.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_instance.is_empty()
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Tombstone> + '_ {
        self.by_age.iter().filter_map(|&(at, owner, instance)| {
            let (attempt, _) = self.by_instance.get(&(owner, instance))?;
            Some(Tombstone {
                owner,
                instance,
                attempt: *attempt,
                at,
            })
        })
    }

    fn pop_oldest(&mut self) {
        if let Some((_, owner, instance)) = self.by_age.pop_first() {
            self.by_instance.remove(&(owner, instance));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stone(instance: u32, attempt: u32, at_s: u64) -> Tombstone {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&instance.to_le_bytes());
        Tombstone {
            owner: OwnerId::default(),
            instance: InstanceId(id),
            attempt: Attempt(attempt),
            at: Moment(at_s * 1_000_000_000),
        }
    }

    #[test]
    fn the_highest_attempt_wins_and_forbids_all_before_it() {
        let mut stones = Tombstones::default();
        assert!(stones.insert(stone(1, 3, 1)));
        assert!(!stones.insert(stone(1, 2, 2)));
        let one = stone(1, 0, 0);
        assert!(stones.forbids(one.owner, one.instance, Attempt(3)));
        assert!(!stones.forbids(one.owner, one.instance, Attempt(4)));
    }

    #[test]
    fn they_are_bounded_and_age() {
        let mut stones = Tombstones::default();
        for instance in 0..=u32::try_from(TOMBSTONES).unwrap() {
            stones.insert(stone(instance, 1, u64::from(instance)));
        }
        assert_eq!(stones.len(), TOMBSTONES);
        let first = stone(0, 1, 0);
        assert!(
            !stones.forbids(first.owner, first.instance, first.attempt),
            "the oldest went"
        );
        let end = Moment(u64::MAX);
        assert_eq!(stones.age(end), TOMBSTONES);
        assert!(stones.is_empty());
        assert_eq!(stones.iter().count(), 0);
    }
}
