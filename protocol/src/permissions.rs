//! Who may send what to whom: one table, consulted for each frame in both directions.
//!
//! A row is (sender, receiver, purpose of the session, operands). What no row allows is refused
//! with UNAUTHORIZED and ends the session. Users and admins appear in no row: they talk HTTPS to
//! the controller and have nothing to say on a frame port.

use Operand as O;
use Purpose::{Bulk, Control};
use Role::{Controller, Launcher, Scheduler};

use crate::identity::Role;
use crate::operand::{Operand, OperandSet};

/// What a session is for. Streams never share a session with STARTs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// Commands, statuses and events.
    Control = 0,
    /// Streams of logs, exec and cp.
    Bulk = 1,
}

impl Purpose {
    /// The purpose of the byte in HELLO.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Control),
            1 => Some(Bulk),
            _ => None,
        }
    }

    /// The byte in HELLO.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The name in the specification.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Control => "control",
            Bulk => "bulk",
        }
    }
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What either end of any session may say.
const ALWAYS: &[Operand] = &[
    O::Ping,
    O::Pong,
    O::InvalidFrame,
    O::Unauthorized,
    O::Busy,
    O::Unsupported,
];

/// What either end of a bulk session may say: each direction may carry data.
const STREAMS: &[Operand] = &[
    O::StreamOpen,
    O::StreamCredit,
    O::StreamCancel,
    O::StreamData,
    O::StreamEnd,
];

/// The table. Each row's set is joined with [`ALWAYS`].
const ROWS: &[(Role, Role, Purpose, &[&[Operand]])] = &[
    (
        Launcher,
        Scheduler,
        Control,
        &[&[
            O::Hello,
            O::Ready,
            O::Full,
            O::Maintenance,
            O::Offline,
            O::Stats,
            O::InstanceChanged,
            O::InventoryPage,
            O::StopFailure,
            O::DeleteFailure,
            O::Done,
        ]],
    ),
    (
        Scheduler,
        Launcher,
        Control,
        &[&[
            O::Welcome,
            O::Start,
            O::Stop,
            O::Delete,
            O::SetMode,
            O::Inventory,
            O::Ack,
            O::Lease,
            O::OpenBulk,
        ]],
    ),
    (
        Controller,
        Scheduler,
        Control,
        &[&[
            O::Hello,
            O::Start,
            O::Stop,
            O::Delete,
            O::SetMode,
            O::Explain,
            O::Inventory,
            O::Ack,
            O::Activate,
            O::Grant,
            O::Nodes,
        ]],
    ),
    (
        Scheduler,
        Controller,
        Control,
        &[&[
            O::Welcome,
            O::NodeConnected,
            O::NodeDisconnected,
            O::Stats,
            O::Placed,
            O::InstanceChanged,
            O::InventoryPage,
            O::Capacity,
            O::StartFailure,
            O::StopFailure,
            O::DeleteFailure,
            O::Done,
            O::Explanation,
            O::NodeList,
        ]],
    ),
    (Launcher, Scheduler, Bulk, &[&[O::Hello], STREAMS]),
    (Scheduler, Launcher, Bulk, &[&[O::Welcome], STREAMS]),
    (Controller, Scheduler, Bulk, &[&[O::Hello], STREAMS]),
    (Scheduler, Controller, Bulk, &[&[O::Welcome], STREAMS]),
];

/// Everything that one role may send to another on a session of this purpose.
#[must_use]
pub fn sendable(from: Role, to: Role, purpose: Purpose) -> OperandSet {
    ROWS.iter()
        .filter(|row| (row.0, row.1, row.2) == (from, to, purpose))
        .flat_map(|row| row.3.iter().copied().chain([ALWAYS]))
        .fold(OperandSet::EMPTY, |set, operands| {
            set.union(OperandSet::of(operands))
        })
}

/// Whether one role may send this operand to another on a session of this purpose.
#[must_use]
pub fn may_send(from: Role, to: Role, purpose: Purpose, operand: Operand) -> bool {
    sendable(from, to, purpose).contains(operand)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The same permissions written down a second time, by operand instead of by pair.
    /// L, S, C: from launcher, scheduler, controller; the letter after it is the receiver.
    const BY_OPERAND: &str = "
        COMMAND HELLO: LS CS | LS CS
        COMMAND START: SL CS |
        COMMAND STOP: SL CS |
        COMMAND DELETE: SL CS |
        COMMAND SET_MODE: SL CS |
        COMMAND EXPLAIN: CS |
        COMMAND INVENTORY: SL CS |
        COMMAND ACK: SL CS |
        COMMAND ACTIVATE: CS |
        COMMAND GRANT: CS |
        COMMAND OPEN_BULK: SL |
        COMMAND STREAM_OPEN: | LS SL CS SC
        COMMAND STREAM_CREDIT: | LS SL CS SC
        COMMAND STREAM_CANCEL: | LS SL CS SC
        COMMAND NODES: CS |
        COMMAND PING: LS SL CS SC | LS SL CS SC
        STATUS READY: LS |
        STATUS FULL: LS |
        STATUS MAINTENANCE: LS |
        STATUS OFFLINE: LS |
        EVENT NODE_CONNECTED: SC |
        EVENT NODE_DISCONNECTED: SC |
        EVENT STATS: LS SC |
        EVENT PLACED: SC |
        EVENT INSTANCE_CHANGED: LS SC |
        EVENT INVENTORY: LS SC |
        EVENT CAPACITY: SC |
        EVENT STREAM_DATA: | LS SL CS SC
        EVENT STREAM_END: | LS SL CS SC
        ERROR START_FAILURE: SC |
        ERROR STOP_FAILURE: LS SC |
        ERROR DELETE_FAILURE: LS SC |
        ERROR INVALID_FRAME: LS SL CS SC | LS SL CS SC
        ERROR UNAUTHORIZED: LS SL CS SC | LS SL CS SC
        ERROR BUSY: LS SL CS SC | LS SL CS SC
        ERROR UNSUPPORTED: LS SL CS SC | LS SL CS SC
        REPLY WELCOME: SL SC | SL SC
        REPLY DONE: LS SC |
        REPLY EXPLAIN: SC |
        REPLY LEASE: SL |
        REPLY NODES: SC |
        REPLY PONG: LS SL CS SC | LS SL CS SC
    ";

    #[test]
    fn the_table_agrees_with_the_independent_list() {
        let letter = |role: Role| role.name()[..1].to_uppercase();
        let mut expected = BTreeSet::new();
        for line in BY_OPERAND
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
        {
            let (operand, pairs) = line.split_once(':').unwrap();
            for (purpose, pairs) in ["control", "bulk"].into_iter().zip(pairs.split('|')) {
                for pair in pairs.split_whitespace() {
                    expected.insert(format!("{operand} {purpose} {pair}"));
                }
            }
        }
        let mut actual = BTreeSet::new();
        for from in Role::ALL {
            for to in Role::ALL {
                for purpose in [Control, Bulk] {
                    for &operand in Operand::ALL {
                        if may_send(from, to, purpose, operand) {
                            let pair = letter(from) + &letter(to);
                            actual.insert(format!("{operand} {purpose} {pair}"));
                        }
                    }
                }
            }
        }
        assert_eq!(actual, expected);
    }

    #[test]
    fn users_and_admins_may_say_nothing_and_hear_nothing() {
        for person in [Role::User, Role::Admin] {
            for other in Role::ALL {
                for purpose in [Control, Bulk] {
                    assert!(sendable(person, other, purpose).is_empty());
                    assert!(sendable(other, person, purpose).is_empty());
                }
            }
        }
    }
}
