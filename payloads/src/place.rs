//! What travels about placing: the prefix of a START, its answers, EXPLAIN.
//!
//! A START on the wire is [`StartPrefix`], then an opaque body ([`crate::start::StartBody`]). The
//! scheduler decodes the prefix alone, puts a [`StartStamp`] in front and forwards the payload's
//! bytes untouched, so a launcher reads stamp, prefix, body.

use crate::codec::{Invalid, Payload, check_each, check_len, check_name, check_text, check_value};
use crate::demand::{Constraint, Demand, GPU_MILLIS, Runtime};
use crate::ids::{
    Attempt, ControllerEpoch, Generation, InstanceId, OwnerId, Seq, SessionEpoch, Term,
};
use crate::limits;
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// One try to run one instance of one owner: what every message about work is addressed by.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
pub struct AttemptId {
    pub owner: OwnerId,
    pub instance: InstanceId,
    pub attempt: Attempt,
}

impl Payload for AttemptId {
    fn check(&self) -> Result<(), Invalid> {
        if self.attempt.0 == 0 {
            Err(Invalid::new("attempt", "a number from 1"))
        } else {
            Ok(())
        }
    }
}

/// What the scheduler needs to know to place a START.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StartPrefix {
    pub id: AttemptId,
    pub controller_epoch: ControllerEpoch,
    /// The schema of the body behind this prefix; a node must read it.
    pub body_schema: u16,
    pub runtime: Runtime,
    pub demand: Demand,
    pub constraints: Vec<Constraint>,
    /// Tried first if it fits: a restart prefers its node.
    pub prefer: Option<String>,
    /// Passed over: the last nodes on which this instance failed.
    pub avoid: Vec<String>,
}

impl Payload for StartPrefix {
    fn check(&self) -> Result<(), Invalid> {
        self.id.check()?;
        self.demand.check()?;
        check_each("constraints", &self.constraints, limits::LABELS)?;
        if let Some(node) = &self.prefer {
            check_name("preferred node", node)?;
        }
        check_len("avoided nodes", self.avoid.len(), limits::AVOIDED_NODES)?;
        self.avoid
            .iter()
            .try_for_each(|node| check_name("avoided node", node))
    }
}

/// Thousandths of one device, chosen by the scheduler and obeyed by the launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct GpuShare {
    pub device: u16,
    pub millis: u16,
}

/// What the scheduler puts in front of a START that it forwards.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StartStamp {
    /// The launcher's session that this START belongs to; one of another session is void.
    pub session_epoch: SessionEpoch,
    pub seq: Seq,
    pub term: Term,
    pub gpus: Vec<GpuShare>,
}

impl Payload for StartStamp {
    fn check(&self) -> Result<(), Invalid> {
        check_len("GPU shares", self.gpus.len(), limits::GPUS)?;
        if self
            .gpus
            .iter()
            .any(|share| share.millis == 0 || share.millis > GPU_MILLIS)
        {
            return Err(Invalid::new("GPU share", "1 to 1000 for each device"));
        }
        Ok(())
    }
}

/// EVENT PLACED, scheduler to controller: the START is on its way to a node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Placed {
    pub id: AttemptId,
    pub node: String,
    pub session_epoch: SessionEpoch,
    pub seq: Seq,
    /// From the START's arrival at the scheduler until it was queued for the node.
    pub placing_ns: u64,
}

impl Payload for Placed {
    fn check(&self) -> Result<(), Invalid> {
        self.id.check()?;
        check_name("node", &self.node)
    }
}

/// Why a START will certainly not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Nodes could hold it, but none has room now: wait for the capacity generation to rise.
    CloudFull,
    /// No node is connected.
    NoNodes,
    /// No connected node could hold it, even empty: too large, or a constraint that none meets.
    NeverFits,
    /// Nodes are still connecting after a start of the scheduler; spends no retry.
    Warming,
    /// This scheduler is not the active one; spends no retry.
    NotActive,
    /// The START came from an epoch of the controller that has been superseded.
    StaleEpoch,
    /// The payload could not be decoded or had a field outside of its limits.
    Malformed,
    /// The controller's window of unanswered STARTs is exceeded; spends no retry.
    Busy,
}

/// ERROR START_FAILURE, scheduler to controller.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StartFailure {
    /// All zero where the START was too malformed to tell; the correlation id still names it.
    pub id: AttemptId,
    pub refusal: Refusal,
    /// The scheduler's capacity generation when it refused.
    pub generation: Generation,
    pub text: String,
}

impl Payload for StartFailure {
    fn check(&self) -> Result<(), Invalid> {
        check_text("text", &self.text, limits::TEXT_BYTES)
    }
}

/// EVENT CAPACITY, scheduler to controller: room has grown since a refusal of yours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CapacityGrown {
    pub generation: Generation,
}

impl Payload for CapacityGrown {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// COMMAND EXPLAIN, controller to scheduler: would this fit, and if not, why not.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Explain {
    pub body_schema: u16,
    pub runtime: Runtime,
    pub demand: Demand,
    pub constraints: Vec<Constraint>,
}

impl Payload for Explain {
    fn check(&self) -> Result<(), Invalid> {
        self.demand.check()?;
        check_each("constraints", &self.constraints, limits::LABELS)
    }
}

/// Why nodes do not take a demand, each kind counted once a node: the first that applies, in the
/// order of declaration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Reason {
    Maintenance,
    /// The node reports FULL: its real memory or disk is low, or it must be acknowledged first.
    ReportsFull,
    /// The session's outbound queue has no room.
    QueueFull,
    /// Repeated failures of its own have put it in back-off.
    BackedOff,
    /// It does not read this payload schema.
    Schema,
    Runtime {
        name: String,
    },
    NotThisNode,
    Label {
        key: String,
        value: String,
    },
    /// Could never hold it, even empty.
    TooSmall {
        dimension: String,
    },
    /// Could hold it, but lacks this now.
    Lacks {
        dimension: String,
    },
}

/// A reason and how many nodes it holds for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct CountedReason {
    #[serde(flatten)]
    pub reason: Reason,
    pub nodes: u32,
}

impl Payload for CountedReason {
    fn check(&self) -> Result<(), Invalid> {
        match &self.reason {
            Reason::Maintenance
            | Reason::ReportsFull
            | Reason::QueueFull
            | Reason::BackedOff
            | Reason::Schema
            | Reason::NotThisNode => Ok(()),
            Reason::Runtime { name } => check_name("runtime", name),
            Reason::Label { key, value } => {
                check_name("label key", key)?;
                check_value("label value", value)
            }
            Reason::TooSmall { dimension } | Reason::Lacks { dimension } => {
                check_value("dimension", dimension)
            }
        }
    }
}

/// REPLY EXPLAIN.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Explanation {
    pub nodes: u32,
    /// Nodes that would take it now.
    pub fits: u32,
    /// The node that it would be placed on.
    pub node: Option<String>,
    /// For the nodes that would not, most frequent first.
    pub reasons: Vec<CountedReason>,
    pub generation: Generation,
}

impl Payload for Explanation {
    fn check(&self) -> Result<(), Invalid> {
        if let Some(node) = &self.node {
            check_name("node", node)?;
        }
        check_each("reasons", &self.reasons, limits::REASONS)
    }
}
