//! Every operand there is, in one table: its kind, its code, its name and its payload limit.
//!
//! An operand here is the pair (kind, operand byte) of the header, flattened into one enum, so
//! that a `match` over it is complete. What the payloads mean is left to the payloads crate;
//! who may send what stands in [`crate::permissions`].

use crate::header::{FrameError, Kind};

const KIB: usize = 1024;

/// No frame of any operand carries more: what a peer can make us hold for one frame.
pub const MAX_PAYLOAD_BYTES: usize = 1024 * KIB;

macro_rules! operands {
    ($($kind:ident $code:literal $variant:ident $name:literal $limit:expr, $reason:literal;)+) => {
        /// Kind and operand of a frame.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Operand {
            $(
                #[doc = concat!(stringify!($kind), " ", $name, ". Payload limit: ", $reason, ".")]
                $variant,
            )+
        }

        impl Operand {
            /// All operands, by kind and then by code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The kind of the frame.
            #[must_use]
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)+ }
            }

            /// The operand byte, unique within its kind.
            #[must_use]
            pub const fn code(self) -> u8 {
                match self { $(Self::$variant => $code,)+ }
            }

            /// The name in the specification, unique within its kind.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The most bytes of payload that a frame of this operand may carry.
            #[must_use]
            pub const fn max_payload_bytes(self) -> usize {
                const { $(assert!($limit <= MAX_PAYLOAD_BYTES);)+ }
                match self { $(Self::$variant => $limit,)+ }
            }

            /// Why the limit is what it is.
            #[must_use]
            pub const fn limit_reason(self) -> &'static str {
                match self { $(Self::$variant => $reason,)+ }
            }

            /// The operand of the two bytes of a header.
            pub const fn from_codes(kind: u8, code: u8) -> Result<Self, FrameError> {
                let Some(kind) = Kind::from_code(kind) else {
                    return Err(FrameError::UnknownKind { found: kind });
                };
                match (kind, code) {
                    $((Kind::$kind, $code) => Ok(Self::$variant),)+
                    _ => Err(FrameError::UnknownOperand { kind, found: code }),
                }
            }
        }
    };
}

operands! {
    Command 1 Hello "HELLO" 64 * KIB, "node labels and one digest per owner";
    Command 2 Start "START" 256 * KIB, "a user's command, environment and cloud-init data";
    Command 3 Stop "STOP" 4 * KIB, "ids and a grace period";
    Command 4 Delete "DELETE" 4 * KIB, "ids";
    Command 5 SetMode "SET_MODE" 4 * KIB, "a mode and its reason in words";
    Command 6 Explain "EXPLAIN" 64 * KIB, "a demand and its constraints";
    Command 7 Inventory "INVENTORY" 4 * KIB, "an owner and a page cursor";
    Command 8 Ack "ACK" 64 * KIB, "about a thousand ended attempts";
    Command 9 Activate "ACTIVATE" 4 * KIB, "a term";
    Command 10 Grant "GRANT" 4 * KIB, "a term and a duration";
    Command 11 OpenBulk "OPEN_BULK" 4 * KIB, "one token";
    Command 12 StreamOpen "STREAM_OPEN" 64 * KIB, "a command line and environment for exec";
    Command 13 StreamCredit "STREAM_CREDIT" 64, "a stream id and a number";
    Command 14 StreamCancel "STREAM_CANCEL" 4 * KIB, "a stream id and a reason in words";
    Command 15 Nodes "NODES" 4 * KIB, "a filter and a page cursor";
    Command 16 Ping "PING" 64, "something to echo";
    Status 1 Ready "READY" 16 * KIB, "capacity by dimension, device and named resource";
    Status 2 Full "FULL" 16 * KIB, "as READY, and a reason in words";
    Status 3 Maintenance "MAINTENANCE" 16 * KIB, "as READY, and a reason in words";
    Status 4 Offline "OFFLINE" 16 * KIB, "as READY, and a reason in words";
    Event 1 NodeConnected "NODE_CONNECTED" 64 * KIB, "what the node's HELLO said";
    Event 2 NodeDisconnected "NODE_DISCONNECTED" 4 * KIB, "a node and a reason in words";
    Event 3 Stats "STATS" 1024 * KIB, "a batch over many nodes, or all instances of one";
    Event 4 Placed "PLACED" 4 * KIB, "node, session epoch, sequence number, devices";
    Event 5 InstanceChanged "INSTANCE_CHANGED" 64 * KIB, "one attempt's whole state";
    Event 6 InventoryPage "INVENTORY" 1024 * KIB, "one page; more follow until LAST";
    Event 7 Capacity "CAPACITY" 64 * KIB, "the cloud's totals by dimension and resource";
    Event 8 StreamData "STREAM_DATA" 64 * KIB, "a quarter of the credit window";
    Event 9 StreamEnd "STREAM_END" 4 * KIB, "an exit code or a reason in words";
    Error 1 StartFailure "START_FAILURE" 4 * KIB, "ids and a reason in words";
    Error 2 StopFailure "STOP_FAILURE" 4 * KIB, "ids and a reason in words";
    Error 3 DeleteFailure "DELETE_FAILURE" 4 * KIB, "ids and a reason in words";
    Error 4 InvalidFrame "INVALID_FRAME" 4 * KIB, "a code and a reason in words";
    Error 5 Unauthorized "UNAUTHORIZED" 4 * KIB, "a code and a reason in words";
    Error 6 Busy "BUSY" 4 * KIB, "a code and a reason in words";
    Error 7 Unsupported "UNSUPPORTED" 4 * KIB, "a code and a reason in words";
    Reply 1 Welcome "WELCOME" 64 * KIB, "what the peer must know, with room to grow";
    Reply 2 Done "DONE" 64 * KIB, "the result of a command";
    Reply 3 Explanation "EXPLAIN" 256 * KIB, "counted reasons and the nodes they were met on";
    Reply 4 Lease "LEASE" 4 * KIB, "a term and a duration";
    Reply 5 NodeList "NODES" 1024 * KIB, "one page; more follow until LAST";
    Reply 6 Pong "PONG" 64, "what the PING carried";
}

const _: () = assert!(Operand::ALL.len() <= 64, "an OperandSet is one u64");

impl Operand {
    /// The highest code in use within a kind, for error texts.
    #[must_use]
    pub fn highest_code(kind: Kind) -> u8 {
        Self::ALL
            .iter()
            .filter(|o| o.kind() == kind)
            .map(|o| o.code())
            .max()
            .unwrap_or(0)
    }
}

impl std::fmt::Display for Operand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind().name(), self.name())
    }
}

/// A set of operands that is asked on every frame, so it is one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OperandSet(u64);

impl OperandSet {
    /// No operand.
    pub const EMPTY: Self = Self(0);

    /// These operands.
    #[must_use]
    pub const fn of(operands: &[Operand]) -> Self {
        let mut bits = 0;
        let mut index = 0;
        while index < operands.len() {
            bits |= 1 << operands[index] as u8;
            index += 1;
        }
        Self(bits)
    }

    /// Whether the operand is in the set.
    #[must_use]
    pub const fn contains(self, operand: Operand) -> bool {
        self.0 & (1 << operand as u8) != 0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without the other's operands.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The operands in the set.
    pub fn iter(self) -> impl Iterator<Item = Operand> {
        Operand::ALL
            .iter()
            .copied()
            .filter(move |operand| self.contains(*operand))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_dense_within_a_kind_and_lead_back() {
        for kind in Kind::ALL {
            let codes: Vec<u8> = Operand::ALL
                .iter()
                .filter(|o| o.kind() == kind)
                .map(|o| o.code())
                .collect();
            let dense: Vec<u8> = (1..=Operand::highest_code(kind)).collect();
            assert_eq!(codes, dense, "{kind}");
        }
        for operand in Operand::ALL {
            assert_eq!(
                Operand::from_codes(operand.kind().code(), operand.code()),
                Ok(*operand)
            );
        }
    }

    #[test]
    fn a_set_holds_what_it_was_made_of() {
        let set = OperandSet::of(&[Operand::Hello, Operand::Pong]);
        assert_eq!(
            set.iter().collect::<Vec<_>>(),
            [Operand::Hello, Operand::Pong]
        );
        assert!(
            set.without(OperandSet::of(&[Operand::Hello, Operand::Pong]))
                .is_empty()
        );
    }
}
