//! What the core does to the world, and what it learns back at once.
//!
//! The core hands every frame to an [`Outlet`] while it still holds the pieces, so that a forwarded
//! START is copied once, into its launcher's queue, and the core knows whether it was taken before
//! it answers PLACED. The shell's outlet queues on real sessions; [`Effects`] records, for tests
//! and simulation.

use pronto_protocol::{Flags, Frame, Operand, Payload, Refusal, Welcome};
use rustc_hash::FxHashMap;

/// Monotonic time in nanoseconds since whatever the caller likes; only differences mean anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    /// A time so many milliseconds after the beginning.
    #[must_use]
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms.saturating_mul(1_000_000))
    }

    /// So many milliseconds later.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Nanoseconds from `earlier` to here, none if it is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One connection, named by the shell and never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// A frame on its way out, still in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub operand: Operand,
    pub flags: Flags,
    pub correlation: u64,
    /// The payload, in its order.
    pub pieces: [&'a [u8]; 2],
}

impl<'a> Outgoing<'a> {
    /// A frame without flags.
    #[must_use]
    pub const fn new(operand: Operand, correlation: u64, pieces: [&'a [u8]; 2]) -> Self {
        Self {
            operand,
            flags: Flags::NONE,
            correlation,
            pieces,
        }
    }

    /// The same frame with these flags.
    #[must_use]
    pub const fn with_flags(self, flags: Flags) -> Self {
        Self { flags, ..self }
    }

    /// The frame as a value of its own.
    #[must_use]
    pub fn to_frame(self) -> Frame {
        Frame {
            operand: self.operand,
            flags: self.flags,
            correlation: self.correlation,
            payload: Payload::from(self.pieces.concat()),
        }
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Queued {
    /// Queued, and there is room for more.
    Room,
    /// Queued, but the peer does not keep up: nothing that can go elsewhere should follow before
    /// the session is reported as drained.
    Brimming,
    /// Not queued: the session's bound is reached.
    Full,
    /// Not queued: the session has ended, and its end will be reported.
    Gone,
}

/// Where the core's frames go.
pub trait Outlet {
    /// Queues a frame on a session.
    fn send(&mut self, session: SessionId, message: Outgoing<'_>) -> Queued;
    /// Opens a session whose HELLO was reported.
    fn welcome(&mut self, session: SessionId, welcome: Welcome);
    /// Ends a session with an ERROR that says why. The core has forgotten it already.
    fn refuse(&mut self, session: SessionId, operand: Operand, refusal: Refusal);
    /// The time now, within an event. It is measured with, and nothing is decided by it.
    fn clock(&self) -> Nanos;
}

/// Something that the core did, as a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Send {
        session: SessionId,
        frame: Frame,
    },
    Welcome {
        session: SessionId,
        welcome: Welcome,
    },
    Refuse {
        session: SessionId,
        operand: Operand,
        refusal: Refusal,
    },
}

impl Effect {
    /// The session that it is about.
    #[must_use]
    pub const fn session(&self) -> SessionId {
        match self {
            Self::Send { session, .. }
            | Self::Welcome { session, .. }
            | Self::Refuse { session, .. } => *session,
        }
    }
}

/// An outlet that records. Sessions may be given a state other than [`Queued::Room`], as a test
/// or a simulated network needs it.
#[derive(Debug, Default)]
pub struct Effects {
    /// What was done, in its order. Frames that were not queued are not in it.
    pub list: Vec<Effect>,
    /// What [`Outlet::clock`] says.
    pub now: Nanos,
    states: FxHashMap<SessionId, Queued>,
}

impl Effects {
    /// What further frames to this session meet.
    pub fn set_state(&mut self, session: SessionId, state: Queued) {
        self.states.insert(session, state);
    }

    /// Takes what was done so far.
    pub fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.list)
    }
}

impl Outlet for Effects {
    fn send(&mut self, session: SessionId, message: Outgoing<'_>) -> Queued {
        let state = self.states.get(&session).copied().unwrap_or(Queued::Room);
        if matches!(state, Queued::Room | Queued::Brimming) {
            self.list.push(Effect::Send {
                session,
                frame: message.to_frame(),
            });
        }
        state
    }

    fn welcome(&mut self, session: SessionId, welcome: Welcome) {
        self.list.push(Effect::Welcome { session, welcome });
    }

    fn refuse(&mut self, session: SessionId, operand: Operand, refusal: Refusal) {
        self.list.push(Effect::Refuse {
            session,
            operand,
            refusal,
        });
    }

    fn clock(&self) -> Nanos {
        self.now
    }
}
