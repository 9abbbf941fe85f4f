//! The bytes that wait to be written on one session, bounded.
//!
//! Frames are encoded when they are queued: that one copy lets go of the read buffers that their
//! payloads share, makes the bound exact in bytes, and leaves records to be cut from contiguous
//! memory. A queue that has drained keeps no more than [`KEPT_BYTES`].

use crate::codec;
use crate::frame::Frame;
use crate::header::{Flags, FrameError, HEADER_BYTES};
use crate::operand::Operand;

/// What a drained queue keeps: room for a START or two, little for 10,000 idle sessions.
const KEPT_BYTES: usize = 1024;

/// Why nothing was queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The queue has no room until the peer has read more.
    #[error("outbound queue is full: {queued_bytes} of {limit_bytes} bytes wait")]
    Full {
        /// What waits.
        queued_bytes: usize,
        /// What may wait.
        limit_bytes: usize,
    },
    /// The session has ended, or is ending.
    #[error("session is closed")]
    Closed,
    /// HELLO and WELCOME have not been exchanged yet.
    #[error("session is not open yet: {operand} before WELCOME")]
    NotOpen {
        /// What was to be sent.
        operand: Operand,
    },
    /// Our own role may not send this to the peer.
    #[error("{operand} may not be sent by a {from} to a {to} on a {purpose} session")]
    NotPermitted {
        /// What was to be sent.
        operand: Operand,
        /// Our role.
        from: crate::identity::Role,
        /// The peer's.
        to: crate::identity::Role,
        /// The session's.
        purpose: crate::permissions::Purpose,
    },
    /// The payload is too long for its operand.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Encoded frames in the order of queueing.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// How many of `bytes` have been taken.
    taken: usize,
    limit_bytes: usize,
    /// Ever taken, to see progress.
    taken_total: u64,
}

impl Outbox {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            ..Self::default()
        }
    }

    /// Queues a frame if all of it fits; `beside` counts bytes that wait elsewhere.
    pub(crate) fn push(
        &mut self,
        operand: Operand,
        flags: Flags,
        correlation: u64,
        pieces: &[&[u8]],
        beside: usize,
    ) -> Result<(), SendError> {
        let len = HEADER_BYTES + pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let queued_bytes = self.len_bytes() + beside;
        if queued_bytes + len > self.limit_bytes {
            return Err(SendError::Full {
                queued_bytes,
                limit_bytes: self.limit_bytes,
            });
        }
        self.make_room();
        codec::encode_pieces(operand, flags, correlation, pieces, &mut self.bytes)?;
        Ok(())
    }

    /// Queues a frame whatever waits: for the few that the session itself must say at its
    /// beginning and its end.
    pub(crate) fn push_unbounded(&mut self, frame: &Frame) -> Result<(), FrameError> {
        codec::encode(frame, &mut self.bytes)
    }

    /// Adds frames that were encoded elsewhere within the same bound. Takes the memory if nothing
    /// waits here.
    pub(crate) fn adopt(&mut self, encoded: &mut Vec<u8>) {
        if self.len_bytes() == 0 {
            std::mem::swap(&mut self.bytes, encoded);
            self.taken = 0;
            encoded.clear();
        } else {
            self.make_room();
            self.bytes.append(encoded);
        }
    }

    pub(crate) fn waiting(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.bytes.len() - self.taken
    }

    pub(crate) fn taken_total(&self) -> u64 {
        self.taken_total
    }

    /// Memory held, for the tests of bounds.
    #[cfg(test)]
    pub(crate) fn capacity_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    pub(crate) fn take(&mut self, len: usize) {
        debug_assert!(len <= self.len_bytes(), "only what waits can be taken");
        self.taken += len;
        self.taken_total += len as u64;
        if self.taken == self.bytes.len() {
            self.taken = 0;
            if self.bytes.capacity() > KEPT_BYTES {
                self.bytes = Vec::new();
            } else {
                self.bytes.clear();
            }
        }
    }

    /// Moves what waits to the front once what has gone is the larger part, so that a queue
    /// that is never quite empty does not grow.
    fn make_room(&mut self) {
        if self.taken > self.bytes.len() / 2 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_is_never_empty_stays_small() {
        let mut outbox = Outbox::new(4096);
        let push = |outbox: &mut Outbox| {
            outbox
                .push(Operand::Start, Flags::NONE, 0, &[&[0; 84]], 0)
                .unwrap();
        };
        push(&mut outbox);
        for _ in 0..10_000 {
            push(&mut outbox);
            outbox.take(100);
        }
        assert!(
            outbox.capacity_bytes() <= 4096,
            "{}",
            outbox.capacity_bytes()
        );
        assert_eq!(outbox.len_bytes(), 100);
        outbox.take(100);
        assert!(outbox.capacity_bytes() <= KEPT_BYTES);
    }

    #[test]
    fn the_bound_counts_headers_and_what_waits_beside() {
        let mut outbox = Outbox::new(200);
        let mut push = |beside| {
            outbox.push(
                Operand::Start,
                Flags::NONE,
                0,
                &[&[1; 40], &[2; 44]],
                beside,
            )
        };
        push(0).unwrap();
        assert!(matches!(
            push(1),
            Err(SendError::Full {
                queued_bytes: 101,
                limit_bytes: 200
            })
        ));
        push(0).unwrap();
        assert!(matches!(
            push(0),
            Err(SendError::Full {
                queued_bytes: 200,
                ..
            })
        ));
    }
}
