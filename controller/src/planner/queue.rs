//! Who goes first: pending instances by priority, then fair between tenants, then by age.
//!
//! Instances with the same demand, constraints and runtime form a class: what does not fit for one
//! does not fit for the others. A class that was refused is blocked until the scheduler's capacity
//! generation rises above that of the refusal; then it has one probe outstanding, and its window
//! doubles with each success. So a hundred thousand waiting instances and one freed slot cost one
//! START. At most [`MAX_PROBES`] classes probe at once, best first, and a refused probe lets the
//! next class have its turn, so that many distinct demands are no flood either.
//!
//! A class that has waited long for room raises a barrier: younger instances of no higher priority
//! wait behind it, unless their constraints could not meet on one node. See [`Barrier`].
//!
//! Entries are numbers of instances; those that were cancelled meanwhile are passed over by the
//! caller when they come up (the queue is never searched).

use pronto_payloads::demand::{Constraint, Demand, Runtime};
use pronto_payloads::ids::Generation;
use pronto_payloads::place::Refusal;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A class that has not been refused lately may have so many unanswered at first: a cluster that has
/// just filled up refuses so many in vain.
const FIRST_WINDOW: u32 = 256;
/// Windows stop growing here; the session's own window is smaller.
const MAX_WINDOW: u32 = 1 << 20;
/// Classes that may probe for room at once.
pub const MAX_PROBES: u32 = 64;

/// What makes two instances alike to the scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClassKey {
    pub demand: Demand,
    pub constraints: Vec<Constraint>,
    pub runtime: Runtime,
}

/// A class's last refusal.
#[derive(Clone, Debug)]
pub(crate) struct LastRefusal {
    pub(crate) refusal: Refusal,
    pub(crate) generation: Generation,
}

#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) key: Arc<ClassKey>,
    pub(crate) refused: Option<LastRefusal>,
    /// Where it stands among the blocked; absent: not blocked.
    blocked: Option<(Reverse<i16>, u64)>,
    probing: bool,
    window: u32,
    outstanding: u32,
    /// (priority, tenant) pairs that have entries of it.
    homes: BTreeSet<(Reverse<i16>, u32)>,
    /// Living instances.
    users: u32,
}

impl Class {
    const fn ready(&self) -> bool {
        self.blocked.is_none() && self.outstanding < self.window
    }
}

#[derive(Debug, Default)]
struct Line {
    entries: VecDeque<u64>,
    /// Its entry in the tenant's ready set.
    key: Option<u64>,
}

#[derive(Debug, Default)]
struct TenantLines {
    lines: FxHashMap<u32, Line>,
    /// Lines whose class may send, by the age of their first entry.
    ready: BTreeSet<(u64, u32)>,
    in_rotation: bool,
}

#[derive(Debug, Default)]
struct Level {
    tenants: FxHashMap<u32, TenantLines>,
    /// Tenants with something ready, in the order of their turns.
    rotation: VecDeque<u32>,
}

/// What younger instances wait behind.
#[derive(Clone, Debug)]
pub(crate) struct Barrier {
    pub(crate) priority: i16,
    pub(crate) seq: u64,
    pub(crate) class: u32,
    pub(crate) until_ns: i64,
}

/// All pending instances that wait for room or their turn.
#[derive(Debug, Default)]
pub struct Queue {
    levels: BTreeMap<Reverse<i16>, Level>,
    classes: Vec<Option<Class>>,
    free: Vec<u32>,
    interned: FxHashMap<Arc<ClassKey>, u32>,
    blocked: BTreeSet<(Reverse<i16>, u64, u32)>,
    /// Blocked classes up to here had their turn in this generation.
    cursor: Option<(Reverse<i16>, u64, u32)>,
    probing: u32,
    generation: Generation,
    waiting: usize,
    pub(crate) barrier: Option<Barrier>,
}

impl Queue {
    /// The class of these demands; one more living instance refers to it.
    pub(crate) fn class(&mut self, key: &Arc<ClassKey>, users: u32) -> u32 {
        if let Some(&class) = self.interned.get(key) {
            self.class_mut(class).users += users;
            return class;
        }
        let new = Class {
            key: Arc::clone(key),
            refused: None,
            blocked: None,
            probing: false,
            window: FIRST_WINDOW,
            outstanding: 0,
            homes: BTreeSet::new(),
            users,
        };
        let class = if let Some(class) = self.free.pop() {
            self.classes[class as usize] = Some(new);
            class
        } else {
            self.classes.push(Some(new));
            u32::try_from(self.classes.len() - 1).expect("fewer classes than instances")
        };
        self.interned.insert(Arc::clone(key), class);
        class
    }

    /// One living instance less refers to the class.
    pub(crate) fn leave_class(&mut self, class: u32) {
        let entry = self.class_mut(class);
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        // Stale entries of cancelled instances may be left in its lines: they go with it.
        let homes = std::mem::take(&mut entry.homes);
        let probing = std::mem::take(&mut entry.probing);
        let blocked = entry.blocked.take();
        let key = Arc::clone(&entry.key);
        for (priority, tenant) in homes {
            self.remove_line(priority, tenant, class);
        }
        if let Some((priority, seq)) = blocked {
            self.blocked.remove(&(priority, seq, class));
        }
        self.probing -= u32::from(probing);
        self.interned.remove(&key);
        self.classes[class as usize] = None;
        self.free.push(class);
        if self.barrier.as_ref().is_some_and(|b| b.class == class) {
            self.barrier = None;
        }
    }

    fn remove_line(&mut self, priority: Reverse<i16>, tenant: u32, class: u32) {
        let Some(level) = self.levels.get_mut(&priority) else {
            return;
        };
        let Some(lines) = level.tenants.get_mut(&tenant) else {
            return;
        };
        if let Some(line) = lines.lines.remove(&class) {
            self.waiting -= line.entries.len();
            if let Some(key) = line.key {
                lines.ready.remove(&(key, class));
            }
        }
        self.tidy(priority, tenant);
    }

    /// Drops empty lines' homes, so that an idle tenant costs nothing.
    fn tidy(&mut self, priority: Reverse<i16>, tenant: u32) {
        let Some(level) = self.levels.get_mut(&priority) else {
            return;
        };
        if level
            .tenants
            .get(&tenant)
            .is_some_and(|lines| lines.lines.is_empty())
        {
            level.tenants.remove(&tenant);
            level.rotation.retain(|&other| other != tenant);
        }
        if level.tenants.is_empty() {
            self.levels.remove(&priority);
        }
    }

    pub(crate) fn class_mut(&mut self, class: u32) -> &mut Class {
        self.classes[class as usize]
            .as_mut()
            .expect("a class lives as long as its instances")
    }

    pub(crate) fn class_ref(&self, class: u32) -> &Class {
        self.classes[class as usize]
            .as_ref()
            .expect("a class lives as long as its instances")
    }

    /// Entries, cancelled ones included.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Classes with living instances.
    #[must_use]
    pub fn class_count(&self) -> usize {
        self.interned.len()
    }

    /// Adds an entry: at the end, or in front of its line if it has been there before.
    pub(crate) fn push(&mut self, priority: i16, tenant: u32, class: u32, seq: u64, again: bool) {
        let priority = Reverse(priority);
        let line = self
            .levels
            .entry(priority)
            .or_default()
            .tenants
            .entry(tenant)
            .or_default()
            .lines
            .entry(class)
            .or_default();
        if again {
            // Answers come in order, so the last refused is pushed first only if sorted here.
            let at = line.entries.partition_point(|&other| other < seq);
            if line.entries.get(at) == Some(&seq) {
                // It left without being sent, and is back.
                return;
            }
            line.entries.insert(at, seq);
        } else {
            line.entries.push_back(seq);
        }
        self.waiting += 1;
        self.class_mut(class).homes.insert((priority, tenant));
        self.refresh(priority, tenant, class);
    }

    /// Brings a line's place in the ready set up to date.
    fn refresh(&mut self, priority: Reverse<i16>, tenant: u32, class: u32) {
        let ready = self.class_ref(class).ready();
        let Some(level) = self.levels.get_mut(&priority) else {
            return;
        };
        let Some(lines) = level.tenants.get_mut(&tenant) else {
            return;
        };
        let Some(line) = lines.lines.get_mut(&class) else {
            return;
        };
        let key = if ready {
            line.entries.front().copied()
        } else {
            None
        };
        if line.key != key {
            if let Some(old) = line.key {
                lines.ready.remove(&(old, class));
            }
            if let Some(new) = key {
                lines.ready.insert((new, class));
            }
            line.key = key;
        }
        if line.entries.is_empty() {
            lines.lines.remove(&class);
            let entry = self.class_mut(class);
            entry.homes.remove(&(priority, tenant));
            // A probe that will never be sent, since its instances were cancelled, gives its turn.
            let idle = entry.probing && entry.homes.is_empty() && entry.outstanding == 0;
            if idle {
                entry.probing = false;
                self.probing -= 1;
            }
            self.tidy(priority, tenant);
            return;
        }
        if !lines.ready.is_empty() && !lines.in_rotation {
            lines.in_rotation = true;
            level.rotation.push_back(tenant);
        }
    }

    fn refresh_class(&mut self, class: u32) {
        // A class has few homes: one for each pair of tenant and priority that uses it.
        let homes: Vec<_> = self.class_ref(class).homes.iter().copied().collect();
        for (priority, tenant) in homes {
            self.refresh(priority, tenant, class);
        }
    }

    /// Takes the next entry that may be sent, and counts it as outstanding in its class.
    pub(crate) fn pick(&mut self) -> Option<(u64, u32)> {
        let (priority, tenant, seq, class) = self.best()?;
        let level = self.levels.get_mut(&priority)?;
        let lines = level.tenants.get_mut(&tenant)?;
        lines.lines.get_mut(&class)?.entries.pop_front();
        self.waiting -= 1;
        let entry = self.class_mut(class);
        entry.outstanding += 1;
        let still_ready = entry.ready();
        if still_ready {
            self.refresh(priority, tenant, class);
        } else {
            self.refresh_class(class);
        }
        Some((seq, class))
    }

    fn best(&mut self) -> Option<(Reverse<i16>, u32, u64, u32)> {
        for (&priority, level) in &mut self.levels {
            for _ in 0..level.rotation.len() {
                let tenant = level.rotation.pop_front()?;
                let Some(lines) = level.tenants.get_mut(&tenant) else {
                    continue;
                };
                if lines.ready.is_empty() {
                    lines.in_rotation = false;
                    continue;
                }
                level.rotation.push_back(tenant);
                let barrier = self.barrier.as_ref().filter(|b| priority.0 <= b.priority);
                let free = lines.ready.iter().copied().find(|&(seq, class)| {
                    barrier.is_none_or(|barrier| {
                        seq < barrier.seq
                            || class == barrier.class
                            || disjoint(&self.classes, class, barrier.class)
                    })
                });
                if let Some((seq, class)) = free {
                    return Some((priority, tenant, seq, class));
                }
            }
        }
        None
    }

    /// An entry that was picked turned out to be nothing to send.
    pub(crate) fn void(&mut self, class: u32) {
        // The class may be gone with its last instance.
        if let Some(Some(entry)) = self.classes.get_mut(class as usize)
            && entry.outstanding > 0
        {
            entry.outstanding -= 1;
            // A probe whose instance is gone gives its turn.
            let idle = entry.probing && entry.homes.is_empty() && entry.outstanding == 0;
            entry.probing &= !idle;
            self.refresh_class(class);
            if idle {
                self.probing -= 1;
                self.wake();
            }
        }
    }

    /// A START of the class was placed.
    pub(crate) fn placed(&mut self, class: u32, seq: u64) {
        let entry = self.class_mut(class);
        entry.outstanding = entry.outstanding.saturating_sub(1);
        entry.window = entry.window.saturating_mul(2).min(MAX_WINDOW);
        entry.refused = None;
        let was_probing = std::mem::take(&mut entry.probing);
        let was_blocked = entry.blocked.take();
        if let Some((priority, head)) = was_blocked {
            self.blocked.remove(&(priority, head, class));
        }
        self.refresh_class(class);
        if was_probing {
            self.probing -= 1;
            self.wake();
        }
        if self
            .barrier
            .as_ref()
            .is_some_and(|barrier| barrier.class == class && barrier.seq <= seq)
        {
            self.barrier = None;
        }
    }

    /// An instance does not wait any more, although it was not sent; its entry is passed over.
    pub(crate) fn left(&mut self, class: u32, seq: u64) {
        let barrier = self.barrier.as_ref();
        if barrier.is_some_and(|barrier| barrier.class == class && barrier.seq == seq) {
            self.barrier = None;
        }
    }

    /// A START of the class was refused; its instance is pushed again by the caller.
    pub(crate) fn refused(&mut self, class: u32, seq: u64, priority: i16, last: LastRefusal) {
        let overtaken = last.generation < self.generation;
        let entry = self.class_mut(class);
        entry.outstanding = entry.outstanding.saturating_sub(1);
        entry.window = 1;
        entry.refused = Some(last);
        let was_probing = std::mem::take(&mut entry.probing);
        if entry.blocked.is_none() && !overtaken {
            entry.blocked = Some((Reverse(priority), seq));
            self.blocked.insert((Reverse(priority), seq, class));
        }
        self.refresh_class(class);
        if was_probing {
            self.probing -= 1;
            self.wake();
        }
    }

    /// The session is gone: nothing is outstanding, and whatever was refused may be asked anew.
    pub(crate) fn session_lost(&mut self) {
        self.generation = Generation(0);
        self.cursor = None;
        self.probing = 0;
        self.blocked.clear();
        for class in 0..u32::try_from(self.classes.len()).unwrap_or(u32::MAX) {
            if let Some(entry) = &mut self.classes[class as usize] {
                entry.outstanding = 0;
                entry.blocked = None;
                entry.probing = false;
                entry.window = FIRST_WINDOW;
                self.refresh_class(class);
            }
        }
    }

    /// Room has grown somewhere.
    pub(crate) fn capacity(&mut self, generation: Generation) {
        if generation > self.generation {
            self.generation = generation;
            self.cursor = None;
            self.wake();
        }
    }

    /// Unblocks the next classes in order while there are turns to give.
    fn wake(&mut self) {
        while self.probing < MAX_PROBES {
            let next = match self.cursor {
                None => self.blocked.first().copied(),
                Some(cursor) => self
                    .blocked
                    .range((
                        std::ops::Bound::Excluded(cursor),
                        std::ops::Bound::Unbounded,
                    ))
                    .next()
                    .copied(),
            };
            let Some(key) = next else { return };
            self.cursor = Some(key);
            let (_, _, class) = key;
            let generation = self.generation;
            let entry = self.class_mut(class);
            if entry
                .refused
                .as_ref()
                .is_some_and(|last| last.generation >= generation)
            {
                continue;
            }
            entry.blocked = None;
            entry.window = 1;
            entry.probing = !entry.homes.is_empty();
            self.probing += u32::from(self.class_ref(class).probing);
            self.blocked.remove(&key);
            self.refresh_class(class);
        }
    }

    /// Panics if the queue's books do not agree with each other.
    pub(crate) fn check(&self) {
        let mut waiting = 0;
        for (priority, level) in &self.levels {
            for (tenant, lines) in &level.tenants {
                assert_eq!(
                    lines.in_rotation,
                    level.rotation.contains(tenant),
                    "tenants in rotation"
                );
                assert!(
                    lines.ready.is_empty() || lines.in_rotation,
                    "ready ones have turns"
                );
                for (class, line) in &lines.lines {
                    waiting += line.entries.len();
                    let entry = self.class_ref(*class);
                    assert!(entry.homes.contains(&(*priority, *tenant)), "homes");
                    let ready = lines.ready.iter().any(|(_, ready)| ready == class);
                    assert_eq!(ready, entry.ready(), "a line is ready with its class");
                }
            }
        }
        assert_eq!(waiting, self.waiting, "entries");
        let probing = self.classes.iter().flatten().filter(|c| c.probing).count();
        assert_eq!(probing, self.probing as usize, "probes");
    }

    /// The oldest entry of a blocked class that waits for room, by priority and age: what a
    /// barrier may be raised for.
    pub(crate) fn oldest_blocked(&self) -> Option<(i16, u64, u32)> {
        self.blocked
            .iter()
            .find(|(_, _, class)| {
                self.class_ref(*class)
                    .refused
                    .as_ref()
                    .is_some_and(|last| last.refusal == Refusal::CloudFull)
            })
            .map(|&(priority, seq, class)| (priority.0, seq, class))
    }
}

/// Whether no node could satisfy the constraints of both: then one can't take the other's room.
fn disjoint(classes: &[Option<Class>], one: u32, other: u32) -> bool {
    let constraints = |class: u32| {
        classes[class as usize]
            .as_ref()
            .map_or(&[][..], |entry| &entry.key.constraints)
    };
    constraints(one).iter().any(|a| {
        constraints(other).iter().any(|b| match (a, b) {
            (Constraint::Node(a), Constraint::Node(b)) => a != b,
            (Constraint::Label { key: a, value: x }, Constraint::Label { key: b, value: y }) => {
                a == b && x != y
            }
            _ => false,
        })
    })
}

#[cfg(test)]
mod tests;
