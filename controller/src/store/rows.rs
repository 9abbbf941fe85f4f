//! The rows of the store and the writes that change them.

use crate::api::types::{
    EndReason, EventRecord, InstanceState, QuotaLimits, RuntimeName, Severity, Spec, UsageView,
};
use jiff::Timestamp;
use pronto_payloads::hello::Mode;
use pronto_payloads::ids::{BootId, InstanceId, NodeUuid, OwnerId};
use std::sync::Arc;
use uuid::Uuid;

/// What a store is, and its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub owner: OwnerId,
    /// Of [`crate::numbers::IdScheme`].
    pub id_key: u64,
    /// Raised at each start.
    pub epoch: u64,
    /// The highest term given to a scheduler.
    pub term: u64,
    /// The number that the next instance gets.
    pub next_seq: u64,
    pub next_event: u64,
    /// It was restored from a backup and must raise its epoch above all that launchers report.
    pub restored: bool,
    /// Instances numbered below this were in a backup that was restored ...
    pub leap_seq: u64,
    /// ... and their next attempt has this number at least.
    pub leap_attempt: u32,
}

/// Terms and epochs that count from a restore begin here, out of reach of what a launcher that lies can make
/// them: schedulers believe few launchers no more than 2^32.
const RESTORED: u64 = 1 << 33;
/// The beginning of 2026: eighths of a second from then on fit into an attempt's number until 2043.
const ATTEMPTS_SINCE_UNIX_S: u64 = 1_767_225_600;

impl Meta {
    /// What a backup becomes when it is restored. It does not know the epochs, terms and attempts
    /// that were used after it was made, so all of them go on from the wall clock: seconds above
    /// [`RESTORED`] for what rises with each start or failover, and eighths of a second for attempts,
    /// of which an instance that fails at once, wherever it is put, takes some a second.
    pub(super) fn leap(&mut self, unix_ms: u64) {
        let seconds = unix_ms / 1000;
        self.restored = true;
        self.epoch = self.epoch.max(RESTORED + seconds);
        self.term = self.term.max(RESTORED + seconds);
        self.leap_seq = self.next_seq;
        let eighths = seconds.saturating_sub(ATTEMPTS_SINCE_UNIX_S) * 8;
        self.leap_attempt = u32::try_from(eighths).unwrap_or(u32::MAX / 2);
    }

    /// Whether this attempt of an instance was numbered before the store was put back from a backup.
    pub(crate) const fn numbered_before_restore(&self, seq: u64, attempt: u32) -> bool {
        seq < self.leap_seq && attempt < self.leap_attempt
    }

    /// The number of the attempt after another one of an instance.
    #[must_use]
    pub(crate) fn next_attempt(&self, seq: u64, attempt: u32) -> u32 {
        let next = attempt + 1;
        if seq < self.leap_seq {
            next.max(self.leap_attempt)
        } else {
            next
        }
    }
}

/// What is run; submissions share it.
#[derive(Clone, Debug, PartialEq)]
pub struct SpecRow {
    pub id: u32,
    pub tenant: Arc<str>,
    pub workload: Option<Arc<str>>,
    pub spec: Arc<Spec>,
}

/// An admission of one or many instances: numbers `first_seq` to `first_seq + count - 1`, each with
/// attempt 1.
#[derive(Clone, Debug, PartialEq)]
pub struct SubmissionRow {
    pub first_seq: u64,
    pub count: u32,
    pub request: Uuid,
    /// Of the request's content, to tell a repetition from a reuse of its id.
    pub digest: u64,
    pub tenant: Arc<str>,
    pub spec: u32,
    pub name: Option<Arc<str>>,
    pub unix_ms: u64,
    pub nonce: u64,
    /// Of its instances, when the request was read to when it was admitted.
    pub admitted_ns: u64,
}

impl SubmissionRow {
    /// The name of one of its instances.
    #[must_use]
    pub fn instance_name(&self, seq: u64) -> Option<String> {
        let name = self.name.as_ref()?;
        Some(if self.count == 1 {
            name.to_string()
        } else {
            format!("{name}-{}", seq - self.first_seq + 1)
        })
    }
}

/// Where an instance departs from what its submission says, while it lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AmendRow {
    pub seq: u64,
    /// Committed before it is sent.
    pub attempt: u32,
    /// No number up to this one is given out again; below `attempt` it says nothing, above it where
    /// an earlier attempt was taken back.
    pub highest_attempt: u32,
    /// The last one that certainly came to a node, where its spec makes that matter; else 0.
    pub settled_attempt: u32,
    pub restarts: u16,
    pub reschedules: u16,
    pub stop: Option<StopIntent>,
}

/// A user's wish that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopIntent {
    pub grace_ms: Option<u64>,
    pub then: AfterStop,
}

/// What follows a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterStop {
    /// Nothing: it stays as `stopped`.
    Keep,
    /// It is forgotten, with its files.
    Delete,
    /// A new attempt, preferring its node.
    Restart,
    /// A new attempt elsewhere: its node is drained.
    Move,
}

/// The steps of an instance's last attempt, in nanoseconds since its submission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    pub admitted_ns: Option<u64>,
    pub committed_ns: Option<u64>,
    pub dispatched_ns: Option<u64>,
    pub placed_ns: Option<u64>,
    pub received_ns: Option<u64>,
    pub started_ns: Option<u64>,
    pub ended_ns: Option<u64>,
    pub reported_ns: Option<u64>,
}

/// The end of an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct EndRow {
    pub seq: u64,
    pub state: InstanceState,
    pub attempt: u32,
    /// As in [`AmendRow`].
    pub highest_attempt: u32,
    pub restarts: u16,
    pub reschedules: u16,
    pub node: Option<Arc<str>>,
    pub cause: EndReason,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub message: String,
    pub ended_unix_ms: u64,
    pub times: Times,
    pub usage: Option<UsageView>,
    /// A tombstone: users do not see it any more.
    pub deleted: bool,
    /// It had amendments, which its end removes.
    pub amended: bool,
}

/// A tenant, its policy and its quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRow {
    pub name: Arc<str>,
    pub runtimes: Vec<RuntimeName>,
    pub privileged: bool,
    pub submit_rate_per_s: Option<u32>,
    pub limits: QuotaLimits,
    pub created_unix_ms: u64,
}

/// A named template.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadRow {
    pub tenant: Arc<str>,
    pub name: Arc<str>,
    pub spec: Arc<Spec>,
    pub revision: u64,
    pub created_unix_ms: u64,
    pub updated_unix_ms: u64,
}

/// A node that work may have been placed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    pub name: Arc<str>,
    pub uuid: NodeUuid,
    pub boot_id: BootId,
    /// What an administrator wishes by way of this store. Maintenance is told the node as often as
    /// it is found in another mode, READY until it has answered once: the mode itself is the node's,
    /// and another controller may have a wish of its own.
    pub wish: Option<Mode>,
    /// A drain's deadline.
    pub drain_until_unix_ms: Option<u64>,
    /// It was away for longer than `lost_after`, and has not come back.
    pub lost: bool,
}

/// A line of the audit trail.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    pub number: u64,
    pub unix_ms: u64,
    pub kind: &'static str,
    pub severity: Severity,
    pub actor: String,
    pub source: String,
    pub tenant: Option<Arc<str>>,
    pub instance: Option<InstanceId>,
    pub node: Option<Arc<str>>,
    pub message: String,
}

impl EventRow {
    /// As the API shows it.
    #[must_use]
    pub fn record(&self) -> EventRecord {
        EventRecord {
            number: self.number,
            at: timestamp(self.unix_ms),
            kind: self.kind.to_owned(),
            severity: self.severity,
            actor: self.actor.clone(),
            source: self.source.clone(),
            tenant: self.tenant.as_deref().map(str::to_owned),
            instance: self.instance.map(InstanceId::uuid),
            node: self.node.as_deref().map(str::to_owned),
            message: self.message.clone(),
        }
    }
}

/// A wall-clock time in the API's type; what is beyond its range becomes its start.
#[must_use]
pub fn timestamp(unix_ms: u64) -> Timestamp {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// One change of the durable state.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// May be left out when the disk is full, together with the other admissions of its batch.
    Submission(SubmissionRow),
    Spec(SpecRow),
    Amend(AmendRow),
    /// Removes the amendments.
    End(EndRow),
    /// The submission with this first number has no living instance any more.
    SubmissionDone(u64),
    /// Makes a tombstone of an ended instance.
    Forget(u64),
    /// An ended instance lives again, with these amendments, in this submission.
    Reopen {
        amend: AmendRow,
        first_seq: u64,
    },
    Tenant(TenantRow),
    TenantDeleted(Arc<str>),
    Workload(WorkloadRow),
    WorkloadDeleted {
        tenant: Arc<str>,
        name: Arc<str>,
    },
    Node(NodeRow),
    NodeDeleted(Arc<str>),
    Event(EventRow),
    Term(u64),
    Epoch(u64),
}

/// What a planner starts from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub meta: Meta,
    /// The number that the next spec gets, above those too that only ended instances have.
    pub next_spec: u32,
    pub specs: Vec<SpecRow>,
    /// Those with living instances, and those young enough for their request ids to be
    /// remembered; by `first_seq`.
    pub submissions: Vec<StoredSubmission>,
    pub amends: Vec<AmendRow>,
    pub tenants: Vec<TenantRow>,
    pub workloads: Vec<WorkloadRow>,
    pub nodes: Vec<NodeRow>,
}

/// A submission and how far it is.
#[derive(Clone, Debug)]
pub struct StoredSubmission {
    pub row: SubmissionRow,
    /// The ended instances of it with their states, ascending.
    pub ended: Vec<(u64, InstanceState)>,
}
