//! What bounds a session: time limits, bytes, versions. And the times that its limits run from.

use std::time::{Duration, Instant};

use crate::hello::VersionRange;

/// How long a session waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From the accepted connection to the end of its TLS handshake, and from there to HELLO; for
    /// the connecting end, from the first packet to WELCOME.
    pub handshake: Duration,
    /// Silence after which a PING asks whether the peer is there.
    pub keepalive: Duration,
    /// Silence after which the peer is taken for dead.
    pub idle: Duration,
    /// Time without any progress in writing what waits after which the peer is cut.
    pub stall: Duration,
}

impl Timeouts {
    /// Three PINGs fit into the idle time, so that one lost wake-up cuts nobody.
    pub const DEFAULT: Self = Self {
        handshake: Duration::from_secs(5),
        keepalive: Duration::from_secs(10),
        idle: Duration::from_secs(30),
        stall: Duration::from_secs(30),
    };
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What bounds a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionConfig {
    /// Time limits.
    pub timeouts: Timeouts,
    /// The most bytes that wait to be written, frame headers included.
    pub queue_limit_bytes: usize,
    /// Versions that this end speaks; a build has one range, tests may have others.
    pub versions: VersionRange,
}

impl SessionConfig {
    /// Room for two of the largest frames and for thousands of STARTs.
    pub const DEFAULT_QUEUE_LIMIT_BYTES: usize = 4 * 1024 * 1024;
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::DEFAULT,
            queue_limit_bytes: Self::DEFAULT_QUEUE_LIMIT_BYTES,
            versions: VersionRange::SUPPORTED,
        }
    }
}

/// What the time-outs run from. Hearing sets a flag alone, so that reading needs no clock; the
/// next tick turns it into a time, which makes each limit late by at most one tick.
#[derive(Debug)]
pub(super) struct Clocks {
    pub(super) began: Instant,
    pub(super) heard_at: Instant,
    pub(super) heard: bool,
    pub(super) pinged_at: Option<Instant>,
    pub(super) progress_at: Instant,
    pub(super) taken_total: u64,
}

impl Clocks {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            heard_at: now,
            heard: false,
            pinged_at: None,
            progress_at: now,
            taken_total: 0,
        }
    }
}
