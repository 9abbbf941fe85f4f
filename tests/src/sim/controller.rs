//! A simulated controller process: the planner's core, a disk that takes its time, and users.
//!
//! Batches are durable some milliseconds after they were handed over, many together, as a group
//! commit makes them; a crash loses those that were not. What a restarted controller reads is
//! exactly what was durable.

use super::net::{ConnId, MS, Time};
use super::plant::Plant;
use super::rng::Rng;
use pronto_controller::numbers::IdScheme;
use pronto_controller::planner::{Effect, Event, Now, ReopenCall, Settings, State};
use pronto_controller::store::{Batch, EndRow, MemoryStore, Store as _, Write};
use pronto_payloads::hello::ControllerHello;
use pronto_payloads::ids::{ControllerEpoch, InstanceId, OwnerId};
use pronto_payloads::place::AttemptId;
use pronto_protocol::transport::Dialer;
use std::collections::{BTreeMap, VecDeque};

/// The wall clock at the simulation's beginning, for people.
const UNIX_MS: u64 = 1_800_000_000_000;

/// One process, and the disk that outlives it.
#[derive(Debug)]
pub struct Controller {
    settings: Settings,
    /// Whom it asks next, in its process's own order.
    pub dialer: Dialer,
    fresh_dialer: Dialer,
    /// The scheduler that it is at, or dials.
    pub target: u32,
    /// The last copy of its store that was made.
    backup: Option<MemoryStore>,

    /// None while it is dead.
    pub planner: Option<State>,
    pub life: u64,
    /// What is durable.
    pub store: MemoryStore,
    /// Handed over and not durable.
    unsynced: VecDeque<Batch>,
    /// The number of the last batch of the commit that is under way.
    committing: Option<u64>,
    pub conn: Option<ConnId>,
    pub welcomed: bool,
    /// The disk takes no more before this.
    pub stalled_until: Time,
    pub ticks_at: Time,
    /// What its wall clock shows at the simulation's beginning.
    pub unix_ms_at_zero: u64,
}

/// What the controller wants of the world.
#[derive(Debug, Default)]
pub struct Wishes {
    pub send: Vec<pronto_protocol::Frame>,
    pub replies: Vec<Effect>,
    pub drop_session: Option<String>,
    /// A commit of all up to this batch is done then.
    pub commit_done: Option<(Time, u64)>,
}

impl Controller {
    /// An empty disk; the process is not started.
    #[must_use]
    pub fn new(index: u32, settings: Settings, dialer: Dialer) -> Self {
        let number = u8::try_from(index).expect("a handful");
        Self {
            settings,
            fresh_dialer: dialer.clone(),
            dialer,
            target: 0,
            backup: None,
            planner: None,
            life: 0,
            store: MemoryStore::new(OwnerId([9 + number; 16]), 7 + u64::from(number)),
            unsynced: VecDeque::new(),
            committing: None,
            conn: None,
            welcomed: false,
            stalled_until: 0,
            ticks_at: Time::MAX,
            unix_ms_at_zero: UNIX_MS,
        }
    }

    /// The time as the planner counts it.
    fn now(&self, now: Time) -> Now {
        Now {
            mono_ns: i64::try_from(now).expect("a simulation is short"),
            unix_ms: self.unix_ms_at_zero + now / MS,
        }
    }

    /// The number of an instance's newest attempt on disk; none if it is not there or has ended.
    #[must_use]
    pub fn durable_attempt(&self, id: InstanceId) -> Option<u32> {
        let (first, (row, _)) = self.store.submissions.last_key_value()?;
        let newest = first + u64::from(row.count) - 1;
        let seq = IdScheme::new(self.store.meta.id_key).seq(id, newest);
        let (first, (row, _)) = self.store.submissions.range(..=seq).next_back()?;
        if seq >= first + u64::from(row.count) || self.store.ends.contains_key(&seq) {
            return None;
        }
        Some(self.store.amends.get(&seq).map_or(1, |row| row.attempt))
    }

    /// Starts the process on what is durable.
    pub fn start(&mut self, now: Time) {
        self.life += 1;
        self.dialer = self.fresh_dialer.clone();
        let snapshot = self.store.open();
        self.planner = Some(State::new(self.settings.clone(), snapshot, self.now(now)));
    }

    /// The end of an instance as it is on disk; none if it has not ended, or is unknown.
    #[must_use]
    pub fn end_of(&self, id: InstanceId) -> Option<&EndRow> {
        let newest = self.store.meta.next_seq.saturating_sub(1);
        let newest = self
            .store
            .submissions
            .last_key_value()
            .map_or(newest, |(first, (row, _))| first + u64::from(row.count) - 1);
        self.store
            .ends
            .get(&IdScheme::new(self.store.meta.id_key).seq(id, newest))
    }

    /// An instance that has ended, as its store gives it for a new attempt.
    #[must_use]
    pub fn past(&self, id: InstanceId, as_of: u64) -> Option<ReopenCall> {
        let end = self.end_of(id).filter(|end| !end.deleted)?;
        let (&first, (row, _)) = self.store.submissions.range(..=end.seq).next_back()?;
        let ids = IdScheme::new(self.store.meta.id_key);
        if ids.id(row.unix_ms, row.nonce, end.seq) != id {
            return None;
        }
        let mut ended = BTreeMap::new();
        for (_, other) in self.store.ends.range(first..first + u64::from(row.count)) {
            *ended.entry(other.state).or_default() += 1;
        }
        Some(ReopenCall {
            id,
            seq: end.seq,
            submission: row.clone(),
            spec: self.store.specs.get(&row.spec)?.clone(),
            end: end.clone(),
            ended: ended.into_iter().collect(),
            as_of,
        })
    }

    /// How many instances on disk have no end.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        let admitted: u64 = self
            .store
            .submissions
            .values()
            .map(|(row, _)| u64::from(row.count))
            .sum();
        usize::try_from(admitted).expect("small") - self.store.ends.len()
    }

    /// Whether it lives, and every instance has its end.
    #[must_use]
    pub fn has_finished(&self) -> bool {
        self.planner.is_some() && self.unfinished() == 0
    }

    /// Whether no quota is charged and nothing is queued.
    #[must_use]
    pub fn holds_nothing(&self) -> bool {
        self.planner.as_ref().is_some_and(State::holds_nothing)
    }

    /// Whether an attempt may be anywhere as far as it knows, so that it has to believe any node that
    /// says to have it, also one that lies.
    #[must_use]
    pub fn believes_anybody(&self, id: AttemptId) -> bool {
        let planner = self.planner.as_ref();
        planner.is_some_and(|planner| planner.may_be_anywhere(id))
    }

    /// How many events of a kind it has recorded.
    #[must_use]
    pub fn events_of(&self, kind: &str) -> usize {
        let events = self.store.events.iter();
        events.filter(|event| event.kind == kind).count()
    }

    /// Makes a copy of what is durable.
    pub fn back_up(&mut self) {
        self.backup = Some(self.store.clone());
    }

    /// Replaces the dead process's store by the last copy that was made of it. Its operator sees to it
    /// that the clock is right. Whether there was one.
    pub fn restore(&mut self, now: Time, plant: Option<Plant>) -> bool {
        let Some(backup) = &self.backup else {
            return false;
        };
        self.store = if plant == Some(Plant::RepeatsNumbers) {
            backup.clone()
        } else {
            backup.restored(UNIX_MS + now / MS)
        };
        true
    }

    /// Whether something was handed to its disk and is not durable yet.
    #[must_use]
    pub fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// The process dies; what was not durable is lost.
    pub fn kill(&mut self) {
        self.planner = None;
        self.unsynced.clear();
        self.committing = None;
        self.conn = None;
        self.welcomed = false;
        self.ticks_at = Time::MAX;
    }

    /// HELLO's body and session epoch.
    #[must_use]
    pub fn hello(&self) -> (u64, bytes::Bytes) {
        let meta = self.store.meta;
        let hello = ControllerHello {
            owner: meta.owner,
            epoch: ControllerEpoch(meta.epoch),
        };
        (meta.epoch, pronto_payloads::codec::encode(&hello))
    }

    /// Handles events that are there at once.
    pub fn step(
        &mut self,
        now: Time,
        events: Vec<Event>,
        rng: &mut Rng,
        plant: Option<Plant>,
        wishes: &mut Wishes,
    ) {
        let now_there = self.now(now);
        let Some(planner) = self.planner.as_mut() else {
            return;
        };
        let mut effects = Vec::new();
        planner.step_batch(now_there, events, &mut effects);
        planner.check();
        self.carry_out(now, effects, rng, plant, wishes);
    }

    fn carry_out(
        &mut self,
        now: Time,
        effects: Vec<Effect>,
        rng: &mut Rng,
        plant: Option<Plant>,
        wishes: &mut Wishes,
    ) {
        // Answered once all batches of this step are on their way, as by a thread of its own.
        let mut looked_up = Vec::new();
        for effect in effects {
            match effect {
                Effect::Commit(batch) => {
                    self.unsynced.push_back(batch);
                    if self.committing.is_none() {
                        self.begin_commit(now, rng, plant, wishes);
                    }
                }
                Effect::Send(frame) => wishes.send.push(frame),
                Effect::DropSession { reason } => wishes.drop_session = Some(reason),
                Effect::Lookup { lookup, id } => {
                    let past = self.store.lookup(id).expect("memory does not fail");
                    looked_up.push(Event::LookedUp { lookup, past });
                }
                reply @ (Effect::Reply { .. } | Effect::Changed(_)) => wishes.replies.push(reply),
                Effect::Recorded(_) | Effect::Warn(_) => {}
            }
        }
        if !looked_up.is_empty() {
            self.step(now, looked_up, rng, plant, wishes);
        }
    }

    fn begin_commit(
        &mut self,
        now: Time,
        rng: &mut Rng,
        plant: Option<Plant>,
        wishes: &mut Wishes,
    ) {
        let Some(last) = self.unsynced.back().map(|batch| batch.number) else {
            return;
        };
        self.committing = Some(last);
        let takes = if plant == Some(Plant::AcknowledgesBeforeCommit) {
            1
        } else {
            rng.between(MS / 2, 12 * MS)
        };
        wishes.commit_done = Some((takes + self.stalled_until.saturating_sub(now), last));
    }

    /// The disk has finished.
    pub fn committed(
        &mut self,
        now: Time,
        last: u64,
        rng: &mut Rng,
        plant: Option<Plant>,
        wishes: &mut Wishes,
    ) {
        let mut batches = Vec::new();
        if plant == Some(Plant::AcknowledgesBeforeCommit) && rng.per_mille(100) {
            // Acknowledged, and still in a cache that a crash will empty.
            self.unsynced.retain(|batch| batch.number > last);
        }
        while self
            .unsynced
            .front()
            .is_some_and(|batch| batch.number <= last)
        {
            batches.extend(self.unsynced.pop_front());
        }
        if plant == Some(Plant::ReleasesQuotaTwice)
            && batches.iter().any(|batch| {
                let mut writes = batch.writes.iter();
                writes.any(|write| matches!(write, Write::End(_)))
            })
            && let Some(planner) = self.planner.as_mut()
        {
            planner.plant_early_release();
        }
        self.store.commit(&batches).expect("memory does not fail");
        self.committing = None;
        let event = Event::CommitDone {
            number: last,
            admissions_refused: false,
            took_ns: MS,
        };
        self.step(now, vec![event], rng, plant, wishes);
        if self.committing.is_none() {
            self.begin_commit(now, rng, plant, wishes);
        }
    }
}
