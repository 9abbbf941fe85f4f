//! What a launcher reports about its instances: INSTANCE_CHANGED, INVENTORY, their usage.
//!
//! A report is level-triggered: it carries the whole state of one attempt and a version; the
//! highest version wins, so a lost or repeated report does no harm.

use crate::codec::{Invalid, Payload, check_each, check_text};
use crate::ids::{BootId, OwnerId, Seq, SessionEpoch, Version};
use crate::limits;
use crate::place::AttemptId;
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Where an attempt stands at its launcher.
///
/// ```text
/// Received ──▶ Preparing ──▶ Running ──▶ Ended
///     └────────────┴─────────────────────▲
/// ```
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Received,
    Preparing,
    Running,
    Ended,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "cause")]
pub enum EndCause {
    Exited {
        code: i32,
    },
    Signaled {
        signal: i32,
    },
    OutOfMemory {
        limit_mib: u32,
        peak_mib: u32,
    },
    TimedOut,
    /// A STOP or DELETE ended it, or overtook its START.
    Stopped,
    /// `stop-after`: its lease ran out.
    LeaseExpired,
    /// Never ran: the command does not exist (127) or can't be executed (126). The user's fault.
    CannotExecute {
        code: i32,
    },
    /// Never ran: this node would not or could not. The node's fault; another may do better.
    Rejected,
    /// The node failed it: its shim or its engine vanished, the machine rebooted.
    NodeFailed,
}

/// The end of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct End {
    #[serde(flatten)]
    pub cause: EndCause,
    /// In words, for the tenant; may be empty.
    pub message: String,
}

/// What an instance has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time, user and system.
    pub cpu_ms: u64,
    pub memory_mib: u32,
    pub memory_peak_mib: u32,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub pids: u32,
}

/// The whole state of one attempt at its launcher: an EVENT INSTANCE_CHANGED, and one entry of an
/// inventory.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct InstanceReport {
    pub id: AttemptId,
    pub version: Version,
    pub phase: Phase,
    /// Present exactly if `phase` is [`Phase::Ended`].
    pub end: Option<End>,
    /// From the START's arrival at the launcher to this report.
    pub age_ns: u64,
    /// From the START's arrival until it ran; absent before.
    pub started_after_ns: Option<u64>,
    /// From the START's arrival until its end was seen; absent before.
    pub ended_after_ns: Option<u64>,
    pub usage: Usage,
}

impl Payload for InstanceReport {
    fn check(&self) -> Result<(), Invalid> {
        self.id.check()?;
        if self.end.is_some() != (self.phase == Phase::Ended) {
            return Err(Invalid::new("end", "present exactly in the phase Ended"));
        }
        self.end.as_ref().map_or(Ok(()), |end| {
            check_text("end message", &end.message, limits::TEXT_BYTES)
        })
    }
}

/// EVENT INVENTORY: one page of all that a launcher keeps for one owner, running or ended and not
/// yet acknowledged. The pages of one answer are taken in one piece; the last has the frame flag
/// LAST.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Inventory {
    pub owner: OwnerId,
    pub boot_id: BootId,
    /// An attempt is missing only if its PLACED is older than this pair.
    pub session_epoch: SessionEpoch,
    pub applied_seq: Seq,
    /// From 0.
    pub page: u32,
    pub entries: Vec<InstanceReport>,
}

impl Payload for Inventory {
    fn check(&self) -> Result<(), Invalid> {
        check_each("inventory entries", &self.entries, limits::PAGE)
    }
}

/// One instance in an EVENT STATS.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct InstanceUsage {
    pub id: AttemptId,
    pub usage: Usage,
}

impl Payload for InstanceUsage {
    fn check(&self) -> Result<(), Invalid> {
        self.id.check()
    }
}

/// The order-independent digest of what a launcher keeps for an owner: the wrapping sum of
/// [`digest_item`] over its attempts. HELLO carries it, so that a controller pulls an inventory
/// only where it disagrees.
#[must_use]
pub fn digest_item(id: &AttemptId, phase: Phase) -> u64 {
    // FNV-1a, 64 bits: published, tiny, and enough against accidents.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let attempt = id.attempt.0.to_le_bytes();
    let phase = [phase as u8];
    let bytes = id.instance.0.iter().chain(&attempt).chain(&phase);
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}
