//! The 16 bytes in front of every frame: their layout, the five kinds and the flags.
//!
//! ```text
//! offset  0        1     2        3      4..8              8..16
//!         version  kind  operand  flags  payload_len u32   correlation u64      (little-endian)
//! ```
//!
//! The version byte names this layout and nothing else; what the operands of a session mean is
//! negotiated by HELLO and WELCOME. Parsing is strict: what is unknown is an error that says what
//! would have been accepted, and no header that parses announces more than its operand's limit.

use bytes::BufMut;

use crate::operand::Operand;

/// Bytes in front of every payload.
pub const HEADER_BYTES: usize = 16;

/// The only header layout there is.
pub const HEADER_VERSION: u8 = 1;

/// What sort of thing a frame is; the operand says which one of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Asks the receiver to do something.
    Command = 1,
    /// Says how a node is.
    Status = 2,
    /// Says what has happened.
    Event = 3,
    /// Says what could not be done, and why.
    Error = 4,
    /// Answers a command of the same correlation.
    Reply = 5,
}

impl Kind {
    /// All kinds in the order of their codes.
    pub const ALL: [Self; 5] = [
        Self::Command,
        Self::Status,
        Self::Event,
        Self::Error,
        Self::Reply,
    ];

    /// The byte on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The kind that a byte on the wire stands for.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Command),
            2 => Some(Self::Status),
            3 => Some(Self::Event),
            4 => Some(Self::Error),
            5 => Some(Self::Reply),
            _ => None,
        }
    }

    /// The name in the specification.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Command => "COMMAND",
            Self::Status => "STATUS",
            Self::Event => "EVENT",
            Self::Error => "ERROR",
            Self::Reply => "REPLY",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The flag byte of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u8);

impl Flags {
    /// No flag set.
    pub const NONE: Self = Self(0);
    /// The sender wants a REPLY (or an ERROR) with this frame's correlation.
    pub const WANT_REPLY: Self = Self(1);
    /// The last page of an answer, the last frame of a direction of a stream; on an ERROR of the
    /// session itself: the session ends with this frame.
    pub const LAST: Self = Self(2);
    /// Every bit that has a meaning.
    pub const KNOWN: Self = Self(3);

    /// The flags of a byte on the wire, unless it has a bit that means nothing.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits & !Self::KNOWN.0 == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `other`'s flags are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

/// Why bytes are not a frame, or a frame can't become bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first byte is not a header version that we know.
    #[error("unknown frame header version {found}; accepted: {HEADER_VERSION}")]
    UnknownVersion {
        /// The byte that came.
        found: u8,
    },
    /// The second byte is not a kind.
    #[error("unknown frame kind {found}; accepted: 1 COMMAND, 2 STATUS, 3 EVENT, 4 ERROR, 5 REPLY")]
    UnknownKind {
        /// The byte that came.
        found: u8,
    },
    /// The kind has no such operand.
    #[error("unknown operand {found} of kind {kind}; accepted: 1 to {}", Operand::highest_code(*.kind))]
    UnknownOperand {
        /// The kind, which is known.
        kind: Kind,
        /// The byte that came.
        found: u8,
    },
    /// A flag bit that means nothing is set.
    #[error("unknown flags {found:#04x} on {operand}; accepted: 0x01 WANT_REPLY, 0x02 LAST")]
    UnknownFlags {
        /// The operand of the frame.
        operand: Operand,
        /// The byte that came.
        found: u8,
    },
    /// The payload is longer than its operand may have.
    #[error("payload of {len_bytes} bytes on {operand}; accepted: at most {limit_bytes}")]
    PayloadTooLong {
        /// The operand of the frame.
        operand: Operand,
        /// The length that was announced or asked for.
        len_bytes: usize,
        /// What is accepted.
        limit_bytes: usize,
    },
}

/// A header that has been found valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Kind and operand.
    pub operand: Operand,
    /// The flags, all of them known.
    pub flags: Flags,
    /// Bytes of payload behind the header, within the operand's limit.
    pub payload_len_bytes: u32,
    /// Ties an answer to its question; chosen by the asker.
    pub correlation: u64,
}

impl Header {
    /// Checks and reads a header.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [
            version,
            kind,
            operand,
            flags,
            l0,
            l1,
            l2,
            l3,
            c0,
            c1,
            c2,
            c3,
            c4,
            c5,
            c6,
            c7,
        ] = *bytes;
        if version != HEADER_VERSION {
            return Err(FrameError::UnknownVersion { found: version });
        }
        let operand = Operand::from_codes(kind, operand)?;
        let flags = Flags::from_bits(flags).ok_or(FrameError::UnknownFlags {
            operand,
            found: flags,
        })?;
        let payload_len_bytes = u32::from_le_bytes([l0, l1, l2, l3]);
        let limit_bytes = operand.max_payload_bytes();
        if payload_len_bytes as usize > limit_bytes {
            let len_bytes = payload_len_bytes as usize;
            return Err(FrameError::PayloadTooLong {
                operand,
                len_bytes,
                limit_bytes,
            });
        }
        let correlation = u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
        Ok(Self {
            operand,
            flags,
            payload_len_bytes,
            correlation,
        })
    }

    /// A header for a payload of this length, unless the operand may not have so much.
    pub fn new(
        operand: Operand,
        flags: Flags,
        correlation: u64,
        payload_len_bytes: usize,
    ) -> Result<Self, FrameError> {
        let limit_bytes = operand.max_payload_bytes();
        match u32::try_from(payload_len_bytes) {
            Ok(len) if payload_len_bytes <= limit_bytes => Ok(Self {
                operand,
                flags,
                payload_len_bytes: len,
                correlation,
            }),
            _ => {
                let len_bytes = payload_len_bytes;
                Err(FrameError::PayloadTooLong {
                    operand,
                    len_bytes,
                    limit_bytes,
                })
            }
        }
    }

    /// The 16 bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = HEADER_VERSION;
        bytes[1] = self.operand.kind().code();
        bytes[2] = self.operand.code();
        bytes[3] = self.flags.bits();
        bytes[4..8].copy_from_slice(&self.payload_len_bytes.to_le_bytes());
        bytes[8..].copy_from_slice(&self.correlation.to_le_bytes());
        bytes
    }

    /// Appends the 16 bytes.
    pub fn write(self, out: &mut impl BufMut) {
        out.put_slice(&self.to_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let header = Header::new(
            Operand::Start,
            Flags::WANT_REPLY,
            0x0102_0304_0506_0708,
            300,
        )
        .unwrap();
        let bytes = header.to_bytes();
        assert_eq!(bytes, [1, 1, 2, 1, 0x2c, 1, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(Header::parse(&bytes), Ok(header));
    }

    #[test]
    fn each_unknown_byte_is_named_with_what_is_accepted() {
        let good = Header::new(Operand::Ping, Flags::NONE, 0, 0)
            .unwrap()
            .to_bytes();
        let message = |index: usize, byte: u8| {
            let mut bytes = good;
            bytes[index] = byte;
            Header::parse(&bytes).unwrap_err().to_string()
        };
        assert_eq!(message(0, 9), "unknown frame header version 9; accepted: 1");
        assert!(message(1, 0).contains("unknown frame kind 0; accepted: 1 COMMAND"));
        assert_eq!(
            message(2, 77),
            "unknown operand 77 of kind COMMAND; accepted: 1 to 16"
        );
        assert!(message(3, 4).contains("unknown flags 0x04 on COMMAND PING"));
        assert_eq!(
            message(6, 1),
            "payload of 65536 bytes on COMMAND PING; accepted: at most 64"
        );
    }
}
