//! Tombstones: which attempts were stopped, heard of or not, so that a START that a STOP overtook
//! can't run (rule 5); and which were over before they started, so that no restart takes them up.
//!
//! Bounded in number and age: a START can be overtaken only while it is under way in the session
//! that its stamp names, so an hour is far beyond need; and when there are too many the oldest go
//! first, which is the order in which they become useless.

use crate::moment::Moment;
use pronto_payloads::ids::{Attempt, InstanceId, OwnerId};
use pronto_payloads::instance::End;
use pronto_payloads::place::AttemptId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What is kept at most: 8 MiB of memory.
pub const TOMBSTONES: usize = 65_536;
/// How long one is kept: longer than any START can be under way.
pub const TOMBSTONE_AGE: Duration = Duration::from_secs(3600);

/// One tombstone, as it is kept on disk too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Whose instance.
    pub owner: OwnerId,
    /// Which instance.
    pub instance: InstanceId,
    /// This attempt and all before it must not run.
    pub attempt: Attempt,
    /// When it was made, on CLOCK_BOOTTIME.
    pub at: Moment,
    /// How this attempt ended that never started. It may have been told, and must not be told
    /// otherwise after a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// What is known of an instance's attempts.
#[derive(Clone, Debug)]
struct Buried {
    attempt: Attempt,
    at: Moment,
    end: Option<End>,
}

/// All tombstones of a node.
#[derive(Clone, Debug, Default)]
pub struct Tombstones {
    by_instance: BTreeMap<(OwnerId, InstanceId), Buried>,
    by_age: BTreeSet<(Moment, OwnerId, InstanceId)>,
}

impl Tombstones {
    /// What a store gives back, in the order in which it was written.
    ///
    /// One of an earlier boot may seem to lie ahead. It must still forbid: what ran then is gone, but a
    /// START that its STOP overtook may not have had a stamp yet, and come in a session of this boot.
    /// Nor may it stay for ever, and push out newer ones. So none is younger than what was written
    /// behind it, nor than now: it is among the first to go, and not before its time.
    #[must_use]
    pub fn restored(tombstones: Vec<Tombstone>, now: Moment) -> Self {
        let mut all = tombstones;
        let mut latest = now;
        for tombstone in all.iter_mut().rev() {
            tombstone.at = tombstone.at.min(latest);
            latest = tombstone.at;
        }
        let mut restored = Self::default();
        for tombstone in all {
            restored.insert(tombstone);
        }
        restored
    }

    /// Adds one; the highest attempt wins. Says whether it forbids more than before.
    pub fn insert(&mut self, tombstone: Tombstone) -> bool {
        let key = (tombstone.owner, tombstone.instance);
        let earlier = self.by_instance.remove(&key);
        if let Some(earlier) = &earlier {
            self.by_age.remove(&(earlier.at, key.0, key.1));
        }
        let before = earlier.as_ref().map(|earlier| earlier.attempt);
        let kept = earlier.filter(|earlier| earlier.attempt >= tombstone.attempt);
        let (attempt, end) = match kept {
            Some(kept) if kept.attempt == tombstone.attempt => {
                (kept.attempt, kept.end.or(tombstone.end))
            }
            Some(kept) => (kept.attempt, kept.end),
            None => (tombstone.attempt, tombstone.end),
        };
        let at = tombstone.at;
        self.by_instance.insert(key, Buried { attempt, at, end });
        self.by_age.insert((at, key.0, key.1));
        if self.by_instance.len() > TOMBSTONES {
            self.pop_oldest();
        }
        before.is_none_or(|before| attempt > before)
    }

    /// Whether this attempt was stopped before it came, or is over.
    #[must_use]
    pub fn forbids(&self, owner: OwnerId, instance: InstanceId, attempt: Attempt) -> bool {
        self.by_instance
            .get(&(owner, instance))
            .is_some_and(|buried| attempt <= buried.attempt)
    }

    /// How an attempt ended that never started.
    #[must_use]
    pub fn end_of(&self, id: &AttemptId) -> Option<&End> {
        let buried = self.by_instance.get(&(id.owner, id.instance))?;
        buried.end.as_ref().filter(|_| buried.attempt == id.attempt)
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
            let buried = self.by_instance.get(&(owner, instance))?;
            Some(Tombstone {
                owner,
                instance,
                attempt: buried.attempt,
                at,
                end: buried.end.clone(),
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
    use pronto_payloads::instance::EndCause;

    fn stone(instance: u32, attempt: u32, at_s: u64) -> Tombstone {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&instance.to_le_bytes());
        Tombstone {
            owner: OwnerId::default(),
            instance: InstanceId(id),
            attempt: Attempt(attempt),
            at: Moment(at_s * 1_000_000_000),
            end: None,
        }
    }

    #[test]
    fn an_end_stands_until_a_later_attempt_is_buried() {
        let end = End {
            cause: EndCause::Rejected,
            message: "no disk".into(),
        };
        let over = Tombstone {
            end: Some(end.clone()),
            ..stone(1, 2, 1)
        };
        let id = |attempt| AttemptId {
            owner: over.owner,
            instance: over.instance,
            attempt: Attempt(attempt),
        };
        let mut stones = Tombstones::default();
        stones.insert(over.clone());
        assert_eq!(
            (stones.end_of(&id(2)), stones.end_of(&id(1))),
            (Some(&end), None)
        );
        stones.insert(stone(1, 2, 2));
        let kept: Vec<Tombstone> = stones.iter().collect();
        assert_eq!(kept[0].end, Some(end), "a STOP behind it changes nothing");
        stones.insert(stone(1, 3, 3));
        assert_eq!(stones.end_of(&id(2)), None);
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
    fn those_of_an_earlier_boot_make_room_and_go_in_their_time() {
        let count = u32::try_from(TOMBSTONES).unwrap();
        let earlier = (0..count).map(|instance| stone(instance, 1, 1_000_000));
        let second = |s: u64| Moment(s * 1_000_000_000);
        let mut stones = Tombstones::restored(earlier.collect(), second(10));
        let fresh = stone(count, 1, 11);
        stones.insert(fresh.clone());
        // Another process of this boot, an hour later: what is newest is so still.
        let mut stones = Tombstones::restored(stones.iter().collect(), second(3600));
        let newer = stone(count + 1, 1, 3600);
        stones.insert(newer.clone());
        let old = stone(count - 1, 1, 0);
        let forbids = |stones: &Tombstones, one: &Tombstone| {
            stones.forbids(one.owner, one.instance, one.attempt)
        };
        assert_eq!(stones.len(), TOMBSTONES);
        assert!([&old, &fresh, &newer].map(|one| forbids(&stones, one)) == [true; 3]);
        stones.age(second(10).after(TOMBSTONE_AGE));
        assert!(forbids(&stones, &old), "not before its time");
        stones.age(second(11).after(TOMBSTONE_AGE));
        assert_eq!(stones.len(), 2);
        assert!(forbids(&stones, &fresh) && forbids(&stones, &newer));
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
