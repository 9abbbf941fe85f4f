//! One attempt as the supervisor knows it: the job it was given, and how far it got.
//!
//! ```text
//!            debit               prepared, inputs, lease       started            empty
//! START ──▶ Received ──▶ Preparing ──────────────────▶ Running ──▶ (ending) ──▶ Ended ──ACK──▶ gone
//!               └─────────────┴── rejected, stopped, failed ─────────────────────▲
//! ```
//!
//! An end is reported only once the attempt is empty, when its debit is credited too: whoever
//! reads `Ended` may start the successor without meeting its leftovers.
//!
//! The version of a report is derived from the phase. Each phase has exactly one content apart
//! from its durations and usage, so a launcher that restarted reports the same versions again.

use crate::moment::Moment;
use pronto_payloads::demand::{Demand, Runtime};
use pronto_payloads::ids::{BootId, ControllerEpoch, Version};
use pronto_payloads::instance::{End, EndCause, InstanceReport, Phase, Usage};
use pronto_payloads::limits::TEXT_BYTES;
use pronto_payloads::place::{AttemptId, GpuShare};
use pronto_payloads::start::{OnDisconnect, StartBody};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The version of what [`Job`] looks like on disk.
pub const JOB_FORMAT: u32 = 1;

/// What a START asked for: all that must be on disk before anything of it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// [`JOB_FORMAT`]; another number was written by another release.
    pub format: u32,
    /// Which attempt.
    pub id: AttemptId,
    /// The epoch of its owner's controller.
    pub controller_epoch: ControllerEpoch,
    /// What it is promised.
    pub demand: Demand,
    /// The devices that the scheduler chose.
    pub gpus: Vec<GpuShare>,
    /// When its START arrived.
    pub received_at: Moment,
    /// The boot in which it arrived: another boot id proves that it is gone.
    pub boot_id: BootId,
    /// What to run.
    pub body: StartBody,
}

impl Job {
    /// Which runtime it is for.
    #[must_use]
    pub const fn runtime(&self) -> Runtime {
        self.body.task.runtime()
    }

    /// How long after its lease it must end, if it must.
    #[must_use]
    pub const fn stop_after_ms(&self) -> Option<u64> {
        match self.body.on_disconnect {
            OnDisconnect::Keep => None,
            OnDisconnect::StopAfter { ms } => Some(ms),
        }
    }
}

/// Why we are ending an attempt: it becomes the end's cause, whatever the workload answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// A STOP or DELETE.
    Asked,
    /// It ran longer than it may.
    TimedOut,
    /// `stop-after`: its lease ran out.
    LeaseExpired,
}

impl StopCause {
    /// The cause as a report names it.
    #[must_use]
    pub const fn end_cause(self) -> EndCause {
        match self {
            Self::Asked => EndCause::Stopped,
            Self::TimedOut => EndCause::TimedOut,
            Self::LeaseExpired => EndCause::LeaseExpired,
        }
    }
}

/// How far an attempt is on its way to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not handed to its runtime: waits for a lease.
    Waiting,
    /// The runtime makes it ready.
    Preparing,
    /// Ready; waits for this many input files.
    Inputs(u32),
    /// The runtime was told to start it, or runs it.
    Launched,
}

/// One attempt.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) job: Arc<Job>,
    pub(super) phase: Phase,
    pub(super) stage: Stage,
    pub(super) end: Option<End>,
    pub(super) usage: Usage,
    pub(super) started_at: Option<Moment>,
    pub(super) ended_at: Option<Moment>,
    pub(super) stopping: Option<StopCause>,
    /// When that was decided: an end before it has nothing to do with it.
    pub(super) stopping_since: Moment,
    /// Its demand is on the ledger.
    pub(super) debited: bool,
    /// It is on disk; rejected ones are not, since their absence says the same.
    pub(super) durable: bool,
    /// Its files are to go as soon as it is empty.
    pub(super) delete: bool,
    /// Input files that are here.
    pub(super) inputs: BTreeSet<String>,
    /// When the next report is due without anything happening.
    pub(super) report_at: Option<Moment>,
    /// When it must be ended: the earlier of its timeout and its lease.
    pub(super) deadline_at: Option<Moment>,
}

impl Record {
    pub(super) const fn new(job: Arc<Job>) -> Self {
        Self {
            job,
            phase: Phase::Received,
            stage: Stage::Waiting,
            end: None,
            usage: Usage {
                cpu_ms: 0,
                memory_mib: 0,
                memory_peak_mib: 0,
                read_bytes: 0,
                written_bytes: 0,
                pids: 0,
            },
            started_at: None,
            ended_at: None,
            stopping: None,
            stopping_since: Moment(0),
            debited: false,
            durable: false,
            delete: false,
            inputs: BTreeSet::new(),
            report_at: None,
            deadline_at: None,
        }
    }

    /// Takes down how it ended, unless that is known. Every end comes through here, also from a disk
    /// that an earlier release wrote, and is cut to what a report may hold: no controller could read a
    /// longer one, nor the page of an inventory that it is in, and so it would be told for ever.
    pub(super) fn ends(&mut self, mut end: End) {
        let bytes = end.message.floor_char_boundary(TEXT_BYTES);
        end.message.truncate(bytes);
        self.end.get_or_insert(end);
    }

    pub(super) fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    pub(super) const fn version(&self) -> Version {
        Version(self.phase as u64 + 1)
    }

    /// What the digest and an inventory that is compared with it count this as.
    pub(super) fn digest_phase(&self) -> Phase {
        if self.phase == Phase::Preparing {
            Phase::Received
        } else {
            self.phase
        }
    }

    pub(super) fn report(&self, now: Moment) -> InstanceReport {
        let after = |at: Moment| at.ns_since(self.job.received_at);
        InstanceReport {
            id: self.job.id,
            version: self.version(),
            phase: self.phase,
            end: if self.is_ended() {
                self.end.clone()
            } else {
                None
            },
            age_ns: after(now),
            started_after_ns: self.started_at.map(after),
            ended_after_ns: if self.is_ended() {
                self.ended_at.map(after)
            } else {
                None
            },
            usage: self.usage,
        }
    }
}
