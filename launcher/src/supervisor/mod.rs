//! The supervisor: which attempts this node has, what it promised them, what it says about them.
//!
//! A pure state machine: [`Supervisor::step`] takes the present moment and one [`Event`], changes
//! state, and appends [`Effect`]s. No clock, no I/O, no randomness but a seed. It leaves to others:
//! running things (`runtime`), keeping them on disk (`store`), sockets (`shell`), and bulk streams
//! (`streams`), which never pass through here.
//!
//! One file a concern: `start` admits, `lifecycle` follows what runs, `commands` answers,
//! `session` speaks to the scheduler; `ledger`, `tombstones` and `record` hold the state.
//!
//! Invariants, asserted by [`Supervisor::sanity_check`]:
//! - free + Σ debits of the attempts that are not empty = allocatable, in every dimension;
//! - an attempt is debited exactly from its acceptance until it is empty;
//! - nothing is started without a lease, nor twice;
//! - an end is kept, and repeated, until its owner has acknowledged it.

pub mod event;
pub mod ledger;
pub mod memory;
pub mod record;
pub mod tombstones;

mod commands;
mod lifecycle;
mod session;
mod start;
#[cfg(test)]
mod tests;

pub use event::{Durable, Effect, Event, Found, NodeRecord, Restored};
pub use record::{Job, StopCause};

use crate::moment::Moment;
use ledger::Ledger;
use pronto_payloads::demand::Runtime;
use pronto_payloads::hello::{LauncherHello, Mode, OwnerSummary};
use pronto_payloads::ids::{BootId, ControllerEpoch, NodeUuid, OwnerId, SessionEpoch};
use pronto_payloads::instance::{InstanceReport, digest_item};
use pronto_payloads::limits;
use pronto_payloads::node::NodeFacts;
use pronto_payloads::place::AttemptId;
use record::Record;
use session::Session;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tombstones::Tombstones;

/// A change shows in a STATUS within this time; changes in between share one.
pub const STATUS_COALESCE: Duration = Duration::from_millis(5);
/// A status with WANT_REPLY goes out at least this often, to renew the lease.
pub const LEASE_INTERVAL: Duration = Duration::from_secs(1);
/// Without a lease it is asked for this often: an activation must not cost a second.
pub const LEASE_RETRY: Duration = Duration::from_millis(200);
/// An end that nobody acknowledged is reported again this often.
pub const END_REPEAT: Duration = Duration::from_secs(5);
/// An attempt that is still Received or Preparing after this says so; before, PLACED says enough.
pub const RECEIVED_REPORT: Duration = Duration::from_secs(1);
/// An attempt whose input files stop coming for so long is ended: whoever was to bring them is gone.
pub const INPUTS_LIMIT: Duration = Duration::from_secs(600);
/// On a node with more to do, a start is told this much later, so that a short task's end can
/// overtake and replace it.
pub const RUNNING_REPORT: Duration = Duration::from_millis(5);
/// Reports repeated in one step at most, so that a long list never delays a lease.
const REPEATS_A_STEP: usize = 256;

/// What a supervisor needs to know before anything happens.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Capacity, labels, runtimes: what HELLO says.
    pub facts: NodeFacts,
    /// The data directory's identity.
    pub node_uuid: NodeUuid,
    /// The machine's present boot.
    pub boot_id: BootId,
    /// Ended attempts that wait for an acknowledgement; from here on the node reports FULL.
    pub unacknowledged_limit: usize,
    /// Runtimes whose work ends by itself when its lease runs out, also when this process is dead:
    /// others take no `stop-after`.
    pub fencing: Vec<Runtime>,
    /// For the jitter of periodic things only.
    pub seed: u64,
}

/// Ended attempts that may wait for an acknowledgement: 8 MiB of memory, an hour of short tasks.
pub const UNACKNOWLEDGED: usize = 16_384;

/// No report is longer: the words of its end are most of it.
pub const REPORT_BYTES: usize = 2 * limits::TEXT_BYTES;

/// See the module's documentation.
#[derive(Debug)]
pub struct Supervisor {
    facts: NodeFacts,
    node_uuid: NodeUuid,
    boot_id: BootId,
    unacknowledged_limit: usize,
    fencing: Vec<Runtime>,
    seed: u64,
    node: NodeRecord,
    ledger: Ledger,
    records: BTreeMap<AttemptId, Record>,
    /// How many records have ended.
    ended: usize,
    tombstones: Tombstones,
    /// Runtimes offered now: some of `facts.runtimes`.
    offered: Vec<Runtime>,
    pressure: Option<String>,
    session: Option<Session>,
    /// Sessions left in a row because no controller stood behind their scheduler.
    orphaned: u32,
    /// The epoch of the last HELLO.
    session_epoch: SessionEpoch,
    /// Until when work may be started; it outlives the session that renewed it.
    lease_until: Moment,
    /// Until when each owner's `stop-after` work is covered.
    owner_leases: BTreeMap<OwnerId, Moment>,
    /// When records want attention: reports and deadlines.
    alarms: BTreeSet<(Moment, AttemptId)>,
    /// Accepted, but to be prepared or started only under a lease: what a restart found unstarted,
    /// or what took longer to prepare than the lease lasted.
    waiting: BTreeSet<AttemptId>,
    /// The last step's moment, to see gaps.
    stepped_at: Option<Moment>,
    tombstones_aged_at: Moment,
}

impl Supervisor {
    /// A supervisor over what a store gave back. Attempts of an earlier boot are ended at once;
    /// the others count as running until [`Event::Adopted`] says what became of them.
    #[must_use]
    pub fn new(settings: Settings, restored: Restored, now: Moment) -> Self {
        let mut supervisor = Self {
            ledger: Ledger::new(settings.facts.allocatable.clone()),
            offered: settings.facts.runtimes.clone(),
            facts: settings.facts,
            node_uuid: settings.node_uuid,
            boot_id: settings.boot_id,
            unacknowledged_limit: settings.unacknowledged_limit,
            fencing: settings.fencing,
            seed: settings.seed,
            node: restored.node,
            records: BTreeMap::new(),
            ended: 0,
            tombstones: Tombstones::restored(restored.tombstones, now),
            pressure: None,
            session: None,
            orphaned: 0,
            session_epoch: SessionEpoch::default(),
            lease_until: Moment::default(),
            owner_leases: BTreeMap::new(),
            alarms: BTreeSet::new(),
            waiting: BTreeSet::new(),
            stepped_at: None,
            tombstones_aged_at: now,
        };
        for job in restored.jobs {
            supervisor.restore(job, now);
        }
        supervisor
    }

    /// Handles one event. Effects are to be executed in their order.
    pub fn step(&mut self, now: Moment, event: Event, effects: &mut Vec<Effect>) {
        self.notice_gap(now, effects);
        match event {
            Event::SessionUp {
                epoch,
                term,
                active,
                welcome,
            } => {
                self.session_up(now, epoch, term, active, &welcome, effects);
            }
            Event::SessionDown { epoch } => self.session_down(epoch),
            Event::Frame { epoch, frame } => self.frame(now, epoch, &frame, effects),
            Event::Prepared(id) => self.prepared(now, id, effects),
            Event::InputArrived { id, path } => self.input_arrived(now, id, path, effects),
            Event::Started { id, at } => self.started(now, id, at, effects),
            Event::Ended { id, at, end, usage } => self.ended(id, at, end, usage),
            Event::Emptied(id) => self.emptied(now, id, effects),
            Event::Failed { id, end } => self.failed(now, id, end, effects),
            Event::Adopted { id, found } => self.adopted(now, id, found, effects),
            Event::OfferChanged(offered) => self.offer_changed(now, offered),
            Event::PressureChanged(pressure) => self.pressure_changed(now, pressure),
            Event::Measured { load, usages } => self.measured(load, usages, effects),
            Event::Leaving => self.leaving(effects),
            Event::Tick => {}
        }
        self.tick(now, effects);
    }

    /// When a [`Event::Tick`] is due at the latest.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Moment> {
        let alarm = self.alarms.first().map(|(at, _)| *at);
        let session = self.session.as_ref().map(Session::next_wakeup);
        [alarm, session].into_iter().flatten().min()
    }

    /// The HELLO of a new session. The caller has raised the epoch and put it on disk before.
    ///
    /// An old session ends here at the latest: none of its frames is heard after this.
    #[must_use]
    pub fn hello(&mut self, epoch: SessionEpoch) -> LauncherHello {
        debug_assert!(epoch > self.session_epoch, "epochs rise");
        self.session = None;
        self.session_epoch = epoch;
        LauncherHello {
            node_uuid: self.node_uuid,
            boot_id: self.boot_id,
            term: self.node.term,
            mode: self.node.mode,
            facts: self.facts.clone(),
            owners: self.owner_summaries(),
        }
    }

    /// Whether the attempt exists here and has not ended, with what it runs.
    #[must_use]
    pub fn live_job(&self, id: &AttemptId) -> Option<&std::sync::Arc<Job>> {
        self.records
            .get(id)
            .filter(|record| !record.is_ended())
            .map(|record| &record.job)
    }

    /// Every attempt that is kept, as it would be reported now.
    pub fn reports(&self, now: Moment) -> impl Iterator<Item = InstanceReport> + '_ {
        self.records.values().map(move |record| record.report(now))
    }

    /// What is not promised now.
    #[must_use]
    pub fn free(&self) -> pronto_payloads::demand::Capacity {
        self.ledger.free()
    }

    /// READY or MAINTENANCE.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.node.mode
    }

    /// Until when work may be started.
    #[must_use]
    pub const fn lease_until(&self) -> Moment {
        self.lease_until
    }

    /// Whether a session is up.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// How many attempts are kept, and how many of them have ended.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.records.len(), self.ended)
    }

    /// Checks every invariant over the whole state. For tests and simulations.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn sanity_check(&self) {
        let debits = self.records.values().filter(|record| record.debited);
        self.ledger
            .sanity_check(debits.map(|record| (&record.job.demand, record.job.gpus.as_slice())));
        for (id, record) in &self.records {
            assert_eq!(*id, record.job.id, "a record is found by its id");
            assert_eq!(
                record.debited,
                !record.is_ended(),
                "debited until empty: {id:?}"
            );
            assert_eq!(
                record.is_ended(),
                record.ended_at.is_some() && record.end.is_some() && !record.debited
            );
            for at in [record.report_at, record.deadline_at].into_iter().flatten() {
                assert!(
                    self.alarms.contains(&(at, *id)),
                    "an alarm is set for {id:?}"
                );
            }
            assert!(
                !record.is_ended() || record.report_at.is_some() || self.session.is_none(),
                "an end is repeated until acknowledged: {id:?}"
            );
        }
        assert_eq!(
            self.ended,
            self.records
                .values()
                .filter(|record| record.is_ended())
                .count()
        );
        for id in &self.waiting {
            let stage = self.records.get(id).map(|record| record.stage);
            assert!(
                matches!(
                    stage,
                    Some(record::Stage::Waiting | record::Stage::Inputs(0))
                ),
                "what waits for a lease has not been started: {id:?}"
            );
        }
    }

    fn owner_summaries(&self) -> Vec<OwnerSummary> {
        let mut summaries: BTreeMap<OwnerId, OwnerSummary> = self
            .node
            .owners
            .iter()
            .map(|&(owner, epoch)| {
                (
                    owner,
                    OwnerSummary {
                        owner,
                        attempts: 0,
                        digest: 0,
                        epoch,
                    },
                )
            })
            .collect();
        for (id, record) in &self.records {
            let epoch = ControllerEpoch::default();
            let summary = summaries.entry(id.owner).or_insert(OwnerSummary {
                owner: id.owner,
                attempts: 0,
                digest: 0,
                epoch,
            });
            summary.attempts += 1;
            summary.digest = summary
                .digest
                .wrapping_add(digest_item(id, record.digest_phase()));
        }
        summaries.into_values().collect()
    }

    /// Everything whose time has come.
    fn tick(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let mut budget = REPEATS_A_STEP;
        while let Some(&(at, id)) = self.alarms.first() {
            if at > now || budget == 0 {
                break;
            }
            budget -= 1;
            self.alarms.pop_first();
            self.alarm(now, at, id, effects);
        }
        self.age_tombstones(now);
        self.session_tick(now, effects);
    }

    fn age_tombstones(&mut self, now: Moment) {
        if now.since(self.tombstones_aged_at) > tombstones::TOMBSTONE_AGE / 60 {
            self.tombstones_aged_at = now;
            self.tombstones.age(now);
        }
    }

    fn keep_state(&self, effects: &mut Vec<Effect>) {
        effects.push(Effect::Keep(Durable::State(self.node.clone())));
    }
}
