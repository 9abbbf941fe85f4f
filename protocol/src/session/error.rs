//! Why a session ends, and what the peer is told about it.

use std::time::Duration;

use crate::header::FrameError;
use crate::hello::{HelloError, Refusal, RefusalCode, VersionRange};
use crate::identity::Role;
use crate::operand::Operand;
use crate::permissions::Purpose;

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The bytes are not frames.
    #[error("peer sent an invalid frame: {0}")]
    Frame(#[from] FrameError),
    /// HELLO, WELCOME or a refusal can't be read.
    #[error("peer sent an invalid payload: {0}")]
    Hello(#[from] HelloError),
    /// The peer's role may not send this.
    #[error("{operand} may not be sent by a {from} to a {to} on a {purpose} session")]
    NotPermitted {
        /// What it sent.
        operand: Operand,
        /// Its role.
        from: Role,
        /// Ours.
        to: Role,
        /// The session's.
        purpose: Purpose,
    },
    /// The frame is known and comes at the wrong time.
    #[error("{operand} came while {expected} was expected")]
    OutOfPlace {
        /// What came.
        operand: Operand,
        /// What would have been right.
        expected: &'static str,
    },
    /// The ranges of versions do not overlap.
    #[error("no common protocol version: peer speaks {peer}, accepted: {ours}")]
    NoCommonVersion {
        /// The peer's.
        peer: VersionRange,
        /// Ours.
        ours: VersionRange,
    },
    /// WELCOME answers another HELLO than ours.
    #[error(
        "WELCOME is not the answer to this HELLO: its {field} is {found}; accepted: {accepted}"
    )]
    WrongWelcome {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What it may be.
        accepted: String,
    },
    /// The peer has refused us, and closes.
    #[error("peer refused with {}: {refusal}", .operand.name())]
    Refused {
        /// Which ERROR.
        operand: Operand,
        /// Its reason.
        refusal: Refusal,
    },
    /// We have refused the peer.
    #[error("refused the peer with {}: {refusal}", .operand.name())]
    RefusedPeer {
        /// Which ERROR.
        operand: Operand,
        /// The reason.
        refusal: Refusal,
    },
    /// No HELLO, or no WELCOME, in time.
    #[error("no {expected} within {limit:?}")]
    HandshakeTimeout {
        /// What was waited for.
        expected: &'static str,
        /// How long.
        limit: Duration,
    },
    /// Nothing was heard for too long.
    #[error("nothing heard from the peer for {limit:?}")]
    Idle {
        /// How long.
        limit: Duration,
    },
    /// Nothing of what waits could be written for too long.
    #[error("peer has read nothing for {limit:?} while {queued_bytes} bytes waited")]
    Stalled {
        /// How long.
        limit: Duration,
        /// What waited.
        queued_bytes: usize,
    },
}

impl SessionError {
    /// The ERROR that tells the peer, if there is a point in telling it.
    pub(super) fn as_refusal(&self) -> Option<(Operand, RefusalCode)> {
        match self {
            Self::Frame(_) => Some((Operand::InvalidFrame, RefusalCode::MalformedFrame)),
            Self::Hello(_) => Some((Operand::InvalidFrame, RefusalCode::MalformedPayload)),
            Self::OutOfPlace { .. } | Self::WrongWelcome { .. } => {
                Some((Operand::InvalidFrame, RefusalCode::OutOfPlace))
            }
            Self::NotPermitted { .. } => Some((Operand::Unauthorized, RefusalCode::NotPermitted)),
            Self::NoCommonVersion { .. } => {
                Some((Operand::Unsupported, RefusalCode::NoCommonVersion))
            }
            Self::HandshakeTimeout { .. } | Self::Idle { .. } | Self::Stalled { .. } => {
                Some((Operand::Busy, RefusalCode::TimedOut))
            }
            Self::Refused { .. } | Self::RefusedPeer { .. } => None,
        }
    }
}
