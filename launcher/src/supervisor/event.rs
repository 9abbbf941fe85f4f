//! All that can wake a launcher, and all that it can do about it.

use super::record::{Job, StopCause};
use super::tombstones::Tombstone;
use crate::moment::Moment;
use pronto_payloads::demand::Runtime;
use pronto_payloads::hello::{Mode, SchedulerWelcome};
use pronto_payloads::ids::{ControllerEpoch, InstanceId, OwnerId, SessionEpoch, Term};
use pronto_payloads::instance::{End, InstanceUsage, Usage};
use pronto_payloads::node::NodeLoad;
use pronto_payloads::place::AttemptId;
use pronto_protocol::Frame;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What the supervisor is told. Nothing else wakes it.
#[derive(Clone, Debug)]
pub enum Event {
    /// WELCOME came on the session whose HELLO carried this epoch.
    SessionUp {
        /// The epoch of the HELLO.
        epoch: SessionEpoch,
        /// The scheduler's term; zero before its first activation.
        term: Term,
        /// Whether it may place.
        active: bool,
        /// What else it said.
        welcome: SchedulerWelcome,
    },
    /// The session is gone; nothing more will come from it.
    SessionDown {
        /// Its epoch: a late word of an older session is ignored.
        epoch: SessionEpoch,
    },
    /// A frame of the control session.
    Frame {
        /// Its session's epoch.
        epoch: SessionEpoch,
        /// The frame.
        frame: Frame,
    },
    /// The runtime has made the attempt ready to start.
    Prepared(AttemptId),
    /// One of the input files that the attempt waits for is whole.
    InputArrived {
        /// Which attempt.
        id: AttemptId,
        /// Which file: one that comes again is not another.
        path: String,
    },
    /// It runs.
    Started {
        /// Which.
        id: AttemptId,
        /// Since when.
        at: Moment,
    },
    /// Its main process, container or guest has ended; remains may still be there.
    Ended {
        /// Which.
        id: AttemptId,
        /// When.
        at: Moment,
        /// How.
        end: End,
        /// What it used.
        usage: Usage,
    },
    /// Nothing of it is left: its resources are free.
    Emptied(AttemptId),
    /// It could not be prepared or started; nothing of it is there.
    Failed {
        /// Which.
        id: AttemptId,
        /// Why.
        end: End,
    },
    /// What was found of an attempt that an earlier launcher process was given.
    Adopted {
        /// Which.
        id: AttemptId,
        /// What was found.
        found: Found,
    },
    /// The runtimes that are offered now.
    OfferChanged(Vec<Runtime>),
    /// Why real memory or disk is too low to take more work; absent: it is not.
    PressureChanged(Option<String>),
    /// What [`Effect::Measure`] asked for.
    Measured {
        /// The node's load.
        load: NodeLoad,
        /// Usage of running instances.
        usages: Vec<InstanceUsage>,
    },
    /// This process is about to end in order: the node goes offline, what runs goes on.
    Leaving,
    /// Time has passed; due at [`super::Supervisor::next_wakeup`] at the latest.
    Tick,
}

/// What a restarted launcher finds of an attempt on its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It runs.
    Running {
        /// Since when.
        started_at: Moment,
        /// When its shim will end it for its lease's sake.
        fence_at: Option<Moment>,
    },
    /// It ended, and nothing of it is left.
    Ended {
        /// When it began to run, if it ever did.
        started_at: Option<Moment>,
        /// When it ended.
        ended_at: Moment,
        /// How.
        end: End,
        /// What it used.
        usage: Usage,
    },
    /// It certainly never started, and may be started now.
    NeverStarted,
    /// It is gone, and how it ended is not known.
    Lost(String),
}

/// What the supervisor wants done, in this order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Send on the control session.
    Send(Frame),
    /// End the control session, for this reason, and dial again.
    CloseSession(String),
    /// Open a bulk session to the scheduler of the control session.
    OpenBulk,
    /// Write down, or forget; survives a crash of this process.
    Keep(Durable),
    /// Have the job's runtime make it ready; answered by Prepared or Failed.
    Prepare {
        /// What.
        job: Arc<Job>,
        /// It waits for nothing: if it is ready at once it is started at once, and Started is
        /// the answer.
        start_at_once: bool,
        /// As in [`Effect::Start`].
        fence_at: Option<Moment>,
    },
    /// Start what was prepared; answered by Started and later Ended and Emptied, or by Failed.
    Start {
        /// What.
        job: Arc<Job>,
        /// When `stop-after` ends it, unless a later [`Effect::Fence`] moves that.
        fence_at: Option<Moment>,
    },
    /// End it, first gently; answered by Ended and Emptied, or Failed. May be repeated.
    Stop {
        /// What.
        id: AttemptId,
        /// Whose it is.
        runtime: Runtime,
        /// Why.
        cause: StopCause,
        /// Between the gentle way and the hard one.
        grace_ms: u64,
    },
    /// The lease of this owner's work now lasts until then: move its `stop-after` deadlines.
    Fence {
        /// Whose work.
        owner: OwnerId,
        /// Until when the lease lasts.
        lease_until: Moment,
    },
    /// Measure the node and its running instances; answered by Measured.
    Measure,
}

/// What must outlive the process.
#[derive(Clone, Debug)]
pub enum Durable {
    /// An attempt was accepted. Written before its Prepare is executed.
    Accepted(Arc<Job>),
    /// An attempt is empty: its working directory goes, unless its outputs are to be kept.
    Emptied(Arc<Job>),
    /// The attempt's end is committed by its owner: the record goes, logs and outputs age.
    Acknowledged(Arc<Job>),
    /// All files of this attempt go.
    Deleted(AttemptId),
    /// All files of the instance's acknowledged attempts go.
    Forgotten {
        /// Whose instance.
        owner: OwnerId,
        /// Which instance.
        instance: InstanceId,
    },
    /// A tombstone. Written before the frame that acknowledges it is sent.
    Tombstone(Tombstone),
    /// An attempt that is over, and must not run should its START or this process come again. Written
    /// before its end is told; a disk that is full stops neither.
    Over(Tombstone),
    /// Mode, term and epochs have changed.
    State(NodeRecord),
}

/// The part of the node's durable state that changes while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// READY or MAINTENANCE.
    pub mode: Mode,
    /// The highest term seen.
    pub term: Term,
    /// The highest epoch seen of each owner.
    pub owners: Vec<(OwnerId, ControllerEpoch)>,
}

impl Default for NodeRecord {
    fn default() -> Self {
        Self {
            mode: Mode::Ready,
            term: Term::default(),
            owners: Vec::new(),
        }
    }
}

/// What a store gives back at start.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Mode, term, epochs.
    pub node: NodeRecord,
    /// Every accepted attempt whose end is not acknowledged.
    pub jobs: Vec<Arc<Job>>,
    /// Tombstones, oldest first.
    pub tombstones: Vec<Tombstone>,
}
