//! A frame in memory: operand, flags, correlation and a payload of `Bytes`.
//!
//! A payload that is to be sent may consist of two pieces, so that a forwarded START's body is
//! never copied to get a few bytes in front of it. A payload that was received is one piece, a
//! slice of the block that its read was copied into; that block is at most one TLS record
//! (16 KiB) long, or exactly the frame if the frame is longer. Who keeps a payload beyond
//! handling it calls [`Payload::detach`], or the rest of the block stays in memory with it.

use bytes::{Bytes, BytesMut};

use crate::header::Flags;
use crate::operand::Operand;

/// One message of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub operand: Operand,
    /// WANT_REPLY, LAST.
    pub flags: Flags,
    /// Ties an answer to its question; chosen by the asker, zero where nothing is asked.
    pub correlation: u64,
    /// What it carries, opaque here.
    pub payload: Payload,
}

impl Frame {
    /// A frame without flags and correlation.
    #[must_use]
    pub fn new(operand: Operand, payload: impl Into<Payload>) -> Self {
        Self {
            operand,
            flags: Flags::NONE,
            correlation: 0,
            payload: payload.into(),
        }
    }

    /// A command that asks for an answer with this correlation.
    #[must_use]
    pub fn request(operand: Operand, correlation: u64, payload: impl Into<Payload>) -> Self {
        Self {
            operand,
            flags: Flags::WANT_REPLY,
            correlation,
            payload: payload.into(),
        }
    }

    /// An answer to the frame with this correlation.
    #[must_use]
    pub fn answer(operand: Operand, correlation: u64, payload: impl Into<Payload>) -> Self {
        Self {
            operand,
            flags: Flags::NONE,
            correlation,
            payload: payload.into(),
        }
    }

    /// The same frame with these flags added.
    #[must_use]
    pub fn with_flags(mut self, flags: Flags) -> Self {
        self.flags = self.flags | flags;
        self
    }

    /// Whether the sender wants an answer.
    #[must_use]
    pub fn wants_reply(&self) -> bool {
        self.flags.contains(Flags::WANT_REPLY)
    }

    /// Whether this is the last page or the last frame of its direction.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.flags.contains(Flags::LAST)
    }
}

/// The bytes that a frame carries.
#[derive(Debug, Clone, Default)]
pub struct Payload {
    prefix: Bytes,
    body: Bytes,
}

impl Payload {
    /// Nothing.
    pub const EMPTY: Self = Self {
        prefix: Bytes::new(),
        body: Bytes::new(),
    };

    /// Some bytes in front of others that are forwarded untouched.
    #[must_use]
    pub fn with_prefix(prefix: impl Into<Bytes>, body: impl Into<Bytes>) -> Self {
        Self {
            prefix: prefix.into(),
            body: body.into(),
        }
    }

    /// Length of both pieces.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.prefix.len() + self.body.len()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len_bytes() == 0
    }

    /// The two pieces in their order; the first is empty in whatever was received.
    #[must_use]
    pub fn pieces(&self) -> [&[u8]; 2] {
        [&self.prefix, &self.body]
    }

    /// The payload as one piece; copies only if it was built of two.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        if self.prefix.is_empty() {
            return self.body;
        }
        if self.body.is_empty() {
            return self.prefix;
        }
        let mut joined = BytesMut::with_capacity(self.len_bytes());
        joined.extend_from_slice(&self.prefix);
        joined.extend_from_slice(&self.body);
        joined.freeze()
    }

    /// The payload as one piece, sharing memory with this one unless it was built of two.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.clone().into_bytes()
    }

    /// The same bytes in memory of their own, for whoever keeps them.
    #[must_use]
    pub fn detach(&self) -> Bytes {
        let mut own = BytesMut::with_capacity(self.len_bytes());
        own.extend_from_slice(&self.prefix);
        own.extend_from_slice(&self.body);
        own.freeze()
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.len_bytes() == other.len_bytes()
            && self
                .pieces()
                .into_iter()
                .flatten()
                .eq(other.pieces().into_iter().flatten())
    }
}

impl Eq for Payload {}

impl From<Bytes> for Payload {
    fn from(body: Bytes) -> Self {
        Self {
            prefix: Bytes::new(),
            body,
        }
    }
}

impl From<BytesMut> for Payload {
    fn from(body: BytesMut) -> Self {
        body.freeze().into()
    }
}

impl From<Vec<u8>> for Payload {
    fn from(body: Vec<u8>) -> Self {
        Bytes::from(body).into()
    }
}

impl From<&'static [u8]> for Payload {
    fn from(body: &'static [u8]) -> Self {
        Bytes::from_static(body).into()
    }
}

impl From<()> for Payload {
    fn from((): ()) -> Self {
        Self::EMPTY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_equal_however_they_are_cut() {
        let cut = Payload::with_prefix(&b"ab"[..], &b"cd"[..]);
        let whole = Payload::from(&b"abcd"[..]);
        assert_eq!(cut, whole);
        assert_eq!(cut.into_bytes(), whole.detach());
        assert_ne!(whole, Payload::from(&b"abce"[..]));
    }
}
