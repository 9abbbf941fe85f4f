//! What peers do that they must not: counted always, logged some times a second.

use super::sessions::nanos_since;
use pronto_protocol::Quiet;
use pronto_protocol::transport::WireError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use tracing::warn;

/// Since the start; shared by the frame thread and the tasks that shake hands.
#[derive(Debug)]
pub(crate) struct Breaches {
    began: Instant,
    connections: AtomicU64,
    sessions: AtomicU64,
    quiet_connections: Mutex<Quiet>,
    quiet_sessions: Mutex<Quiet>,
}

impl Default for Breaches {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            connections: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            quiet_connections: Mutex::default(),
            quiet_sessions: Mutex::default(),
        }
    }
}

impl Breaches {
    /// A connection that did not come as far as HELLO.
    pub(crate) fn note_connection(&self, peer: &str, error: &WireError) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = self.line(&self.quiet_connections) {
            warn!(peer, %error, left_out, "connection refused");
        }
    }

    /// A session whose peer has broken the protocol.
    pub(crate) fn note_session(&self, peer: &str, error: &WireError) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = self.line(&self.quiet_sessions) {
            warn!(peer, %error, left_out, "session broken by its peer");
        }
    }

    /// Connections refused and sessions broken so far.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.connections), count(&self.sessions))
    }

    fn line(&self, quiet: &Mutex<Quiet>) -> Option<u64> {
        let mut quiet = quiet.lock().unwrap_or_else(PoisonError::into_inner);
        quiet.line(nanos_since(self.began).0)
    }
}
