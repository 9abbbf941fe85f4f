//! One session as a state machine: bytes in, frames out; no socket, no clock.
//!
//! ```text
//!            client                                   server
//!   ┌──────────────────────┐                 ┌──────────────────────┐
//!   │ AwaitWelcome         │── HELLO ───────▶│ AwaitHello           │
//!   │ (HELLO is queued)    │                 └──────────┬───────────┘
//!   └───┬──────────────────┘                      HELLO │ versions, purpose, role agree
//!       │                                    ┌──────────▼───────────┐
//!       │                                    │ Deciding (our caller)│
//!       │                                    └───┬──────────┬───────┘
//!       │◀─ WELCOME ─────────────────────────────┘          │ refuse
//!   ┌───▼───┐                                ┌───────┐      │
//!   │ Open  │◀── frames that the table ─────▶│ Open  │      │
//!   └───┬───┘       permits, both ways       └───┬───┘      │
//!       │ ERROR+LAST sent or got, time-out, EOF  │          │
//!   ┌───▼────────────────────────────────────────▼──────────▼───┐
//!   │ Closed: what waits is still written, nothing more is read │
//!   └───────────────────────────────────────────────────────────┘
//! ```
//!
//! The session negotiates the version, enforces the permission table in both directions, every
//! limit of the codec and the time-outs, answers PING itself, and bounds what waits to be written.
//! What payloads mean, and whether a HELLO is welcome beyond its role and version, is for others.
//! Invariants: nothing but HELLO passes before WELCOME; after an error nothing passes at all; no
//! input makes it hold more than one frame's limit plus the bound of its queue, where the frame is
//! one that the peer may send here and now.

mod config;
mod error;

use std::time::Instant;

use bytes::Bytes;

use crate::codec::Decoder;
use crate::frame::Frame;
use crate::header::Flags;
use crate::hello::{Hello, Refusal, Welcome};
use crate::identity::Role;
use crate::operand::{Operand, OperandSet};
use crate::outbox::Outbox;
pub use crate::outbox::SendError;
use crate::permissions::{Purpose, sendable};
use config::Clocks;
pub use config::{SessionConfig, Timeouts};
pub use error::SessionError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    AwaitWelcome,
    AwaitHello,
    Deciding,
    Open,
    Closed,
}

/// ERRORs that end a session when they carry LAST, and a handshake in any case.
const ENDING: OperandSet = OperandSet::of(&[
    Operand::InvalidFrame,
    Operand::Unauthorized,
    Operand::Busy,
    Operand::Unsupported,
]);

/// Frames of the handshake, which have no place in an open session.
const HANDSHAKE: OperandSet = OperandSet::of(&[Operand::Hello, Operand::Welcome]);

/// Frames that an open session does not simply pass on.
const SPECIAL: OperandSet = OperandSet::of(&[Operand::Ping, Operand::Pong]).union(ENDING);

/// One end of a session.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    local: Role,
    peer: Role,
    purpose: Purpose,
    version: u8,
    session_epoch: u64,
    may_send: OperandSet,
    may_receive: OperandSet,
    decoder: Decoder,
    outbox: Outbox,
    config: SessionConfig,
    /// HELLO or WELCOME, until the caller takes it.
    greeting: Option<Box<Greeting>>,
    clocks: Clocks,
    /// Whether the session queued something of its own that nobody else will flush.
    answered: bool,
}

#[derive(Debug)]
enum Greeting {
    Hello(Hello),
    Welcome(Welcome),
}

impl Session {
    /// The end that connected; its HELLO is queued at once.
    pub fn client(
        local: Role,
        peer: Role,
        hello: &Hello,
        config: SessionConfig,
        now: Instant,
    ) -> Result<Self, SendError> {
        let mut session = Self::new(Phase::AwaitWelcome, local, peer, config, now);
        session.purpose = hello.purpose;
        session.session_epoch = hello.session_epoch;
        session.config.versions = hello.versions;
        if !sendable(local, peer, hello.purpose).contains(Operand::Hello) {
            return Err(session.not_permitted(Operand::Hello));
        }
        session
            .outbox
            .push_unbounded(&Frame::new(Operand::Hello, hello.encode()))?;
        session.may_receive = ENDING.union(OperandSet::of(&[Operand::Welcome]));
        Ok(session)
    }

    /// The end that listened, for a peer of this role by its certificate.
    #[must_use]
    pub fn server(local: Role, peer: Role, config: SessionConfig, now: Instant) -> Self {
        let mut session = Self::new(Phase::AwaitHello, local, peer, config, now);
        session.may_receive = OperandSet::of(&[Operand::Hello]);
        session
    }

    fn new(phase: Phase, local: Role, peer: Role, config: SessionConfig, now: Instant) -> Self {
        Self {
            phase,
            local,
            peer,
            purpose: Purpose::Control,
            version: 0,
            session_epoch: 0,
            may_send: OperandSet::EMPTY,
            may_receive: OperandSet::EMPTY,
            decoder: Decoder::new(),
            outbox: Outbox::new(config.queue_limit_bytes),
            config,
            greeting: None,
            clocks: Clocks::new(now),
            answered: false,
        }
    }

    /// Our role.
    #[must_use]
    pub const fn local_role(&self) -> Role {
        self.local
    }

    /// The peer's role.
    #[must_use]
    pub const fn peer_role(&self) -> Role {
        self.peer
    }

    /// What the session is for; on the listening end, once HELLO is here.
    #[must_use]
    pub const fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The connecting end's name for this session, once HELLO is here.
    #[must_use]
    pub const fn session_epoch(&self) -> u64 {
        self.session_epoch
    }

    /// The agreed version; zero before.
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.version
    }

    /// Whether frames may pass.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether nothing more will be received, and nothing more queued.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// The HELLO that the peer sent, once.
    pub fn take_hello(&mut self) -> Option<Hello> {
        match self.greeting.take().map(|greeting| *greeting) {
            Some(Greeting::Hello(hello)) => Some(hello),
            other => {
                self.greeting = other.map(Box::new);
                None
            }
        }
    }

    /// The WELCOME that the peer sent, once.
    pub fn take_welcome(&mut self) -> Option<Welcome> {
        match self.greeting.take().map(|greeting| *greeting) {
            Some(Greeting::Welcome(welcome)) => Some(welcome),
            other => {
                self.greeting = other.map(Box::new);
                None
            }
        }
    }

    /// Opens the session for the peer whose HELLO was taken. Version and session epoch are filled
    /// in here.
    pub fn welcome(&mut self, welcome: Welcome) -> Result<(), SendError> {
        if self.phase != Phase::Deciding {
            return Err(SendError::Closed);
        }
        let welcome = Welcome {
            version: self.version,
            session_epoch: self.session_epoch,
            ..welcome
        };
        self.outbox
            .push_unbounded(&Frame::new(Operand::Welcome, welcome.encode()))?;
        self.open();
        Ok(())
    }

    /// Ends the session with an ERROR that says why; it is queued, whatever else waits.
    pub fn refuse(&mut self, operand: Operand, refusal: Refusal) -> SessionError {
        self.end_with(operand, &refusal);
        SessionError::RefusedPeer { operand, refusal }
    }

    /// Ends the session without a word; what waits may still be written.
    pub fn close(&mut self) {
        self.phase = Phase::Closed;
        self.may_send = OperandSet::EMPTY;
        self.may_receive = OperandSet::EMPTY;
    }

    /// Takes the bytes that came and appends the frames that they complete. HELLO, WELCOME, PING
    /// and keep-alive PONGs are dealt with here and not appended.
    ///
    /// On an error the frames before it have been appended, the peer is told if it can be, and the
    /// session is closed.
    pub fn receive(&mut self, bytes: &[u8], frames: &mut Vec<Frame>) -> Result<(), SessionError> {
        if self.phase == Phase::Closed || bytes.is_empty() {
            return Ok(());
        }
        self.clocks.heard = true;
        let first_new = frames.len();
        let fed = self.decoder.feed(bytes, frames);
        let judged = self.judge(frames, first_new);
        judged
            .and(fed.map_err(SessionError::from))
            .and_then(|()| self.judge_unfinished())
            .inspect_err(|error| self.fail(error))
    }

    /// Refuses by its header what would be refused once it is whole, so that nobody makes us hold
    /// the payload of it.
    fn judge_unfinished(&self) -> Result<(), SessionError> {
        match self.decoder.unfinished() {
            Some(operand) if !self.may_receive.contains(operand) => Err(self.misplaced(operand)),
            _ => Ok(()),
        }
    }

    /// Keeps of the new frames those that the caller is to see.
    fn judge(&mut self, frames: &mut Vec<Frame>, first_new: usize) -> Result<(), SessionError> {
        let ordinary = self.may_receive.without(SPECIAL);
        let plain = |frame: &Frame| ordinary.contains(frame.operand);
        if self.phase == Phase::Open && frames[first_new..].iter().all(plain) {
            return Ok(());
        }
        let news: Vec<Frame> = frames.drain(first_new..).collect();
        for frame in news {
            if let Some(frame) = self.judge_one(frame)? {
                frames.push(frame);
            }
        }
        Ok(())
    }

    fn judge_one(&mut self, frame: Frame) -> Result<Option<Frame>, SessionError> {
        let operand = frame.operand;
        if !self.may_receive.contains(operand) {
            return Err(self.misplaced(operand));
        }
        match self.phase {
            Phase::AwaitHello => self.on_hello(&frame.payload.into_bytes()).map(|()| None),
            Phase::AwaitWelcome if operand == Operand::Welcome => {
                self.on_welcome(&frame.payload.into_bytes()).map(|()| None)
            }
            Phase::AwaitWelcome => Err(refused(&frame)?),
            _ if ENDING.contains(operand) && frame.is_last() => Err(refused(&frame)?),
            _ if operand == Operand::Ping => {
                let pieces = frame.payload.pieces();
                // A peer that asks without reading the answers gets none: that is bounded too.
                let pong = (Operand::Pong, Flags::NONE, frame.correlation);
                self.answered |= self.outbox.push(pong.0, pong.1, pong.2, &pieces, 0).is_ok();
                Ok(None)
            }
            _ if operand == Operand::Pong && frame.correlation == 0 => Ok(None),
            _ => Ok(Some(frame)),
        }
    }

    fn on_hello(&mut self, payload: &Bytes) -> Result<(), SessionError> {
        let hello = Hello::decode(payload)?;
        self.purpose = hello.purpose;
        self.session_epoch = hello.session_epoch;
        if !sendable(self.peer, self.local, hello.purpose).contains(Operand::Hello) {
            return Err(self.may_not(Operand::Hello));
        }
        let ours = self.config.versions;
        self.version = ours
            .newest_common(hello.versions)
            .ok_or(SessionError::NoCommonVersion {
                peer: hello.versions,
                ours,
            })?;
        // Its body may be kept for long, and must not keep the rest of its read with it.
        let body = Bytes::copy_from_slice(&hello.body);
        self.greeting = Some(Box::new(Greeting::Hello(Hello { body, ..hello })));
        self.phase = Phase::Deciding;
        self.may_receive = OperandSet::EMPTY;
        Ok(())
    }

    fn on_welcome(&mut self, payload: &Bytes) -> Result<(), SessionError> {
        let welcome = Welcome::decode(payload)?;
        let ours = self.config.versions;
        if !(ours.min..=ours.max).contains(&welcome.version) {
            return Err(SessionError::WrongWelcome {
                field: "version",
                found: welcome.version.into(),
                accepted: ours.to_string(),
            });
        }
        if welcome.session_epoch != self.session_epoch {
            return Err(SessionError::WrongWelcome {
                field: "session_epoch",
                found: welcome.session_epoch,
                accepted: self.session_epoch.to_string(),
            });
        }
        self.version = welcome.version;
        let body = Bytes::copy_from_slice(&welcome.body);
        self.greeting = Some(Box::new(Greeting::Welcome(Welcome { body, ..welcome })));
        self.open();
        Ok(())
    }

    fn open(&mut self) {
        self.phase = Phase::Open;
        self.may_send = sendable(self.local, self.peer, self.purpose).without(HANDSHAKE);
        self.may_receive = sendable(self.peer, self.local, self.purpose).without(HANDSHAKE);
    }

    fn misplaced(&self, operand: Operand) -> SessionError {
        let expected = match self.phase {
            Phase::AwaitHello => "COMMAND HELLO",
            Phase::AwaitWelcome => "REPLY WELCOME",
            Phase::Deciding => "nothing until REPLY WELCOME is sent",
            Phase::Open if HANDSHAKE.contains(operand) => "a frame of an open session",
            Phase::Open | Phase::Closed => return self.may_not(operand),
        };
        SessionError::OutOfPlace { operand, expected }
    }

    fn may_not(&self, operand: Operand) -> SessionError {
        let (from, to, purpose) = (self.peer, self.local, self.purpose);
        SessionError::NotPermitted {
            operand,
            from,
            to,
            purpose,
        }
    }

    fn not_permitted(&self, operand: Operand) -> SendError {
        let (from, to, purpose) = (self.local, self.peer, self.purpose);
        SendError::NotPermitted {
            operand,
            from,
            to,
            purpose,
        }
    }

    fn fail(&mut self, error: &SessionError) {
        match error.as_refusal() {
            Some((operand, code)) => self.end_with(operand, &Refusal::new(code, error.to_string())),
            None => self.close(),
        }
    }

    fn end_with(&mut self, operand: Operand, refusal: &Refusal) {
        if self.phase != Phase::Closed {
            let frame = Frame::new(operand, refusal.encode()).with_flags(Flags::LAST);
            // A refusal is cut to 1 KiB and its operands take 4.
            let queued = self.outbox.push_unbounded(&frame);
            debug_assert!(queued.is_ok(), "{operand} is one of the refusals");
            self.close();
        }
    }

    /// Queues a frame; nothing is written until the queue is drained.
    pub fn queue(&mut self, frame: &Frame) -> Result<(), SendError> {
        self.queue_pieces(
            frame.operand,
            frame.flags,
            frame.correlation,
            &frame.payload.pieces(),
        )
    }

    /// Queues a frame whose payload is these pieces in their order: each is copied once, so that
    /// a forwarded payload and the few bytes in front of it need no memory of their own.
    pub fn queue_pieces(
        &mut self,
        operand: Operand,
        flags: Flags,
        correlation: u64,
        pieces: &[&[u8]],
    ) -> Result<(), SendError> {
        if !self.may_send.contains(operand) {
            return Err(match self.phase {
                Phase::Open => self.not_permitted(operand),
                Phase::Closed => SendError::Closed,
                _ => SendError::NotOpen { operand },
            });
        }
        self.outbox.push(operand, flags, correlation, pieces, 0)
    }

    /// Adds frames that were encoded and checked elsewhere.
    pub(crate) fn adopt_encoded(&mut self, encoded: &mut Vec<u8>) {
        if self.phase == Phase::Open {
            self.outbox.adopt(encoded);
        } else {
            encoded.clear();
        }
    }

    /// The bound of what may wait to be written.
    #[must_use]
    pub const fn queue_limit_bytes(&self) -> usize {
        self.config.queue_limit_bytes
    }

    pub(crate) const fn may_send_set(&self) -> OperandSet {
        self.may_send
    }

    /// The bytes that wait to be written, in their order.
    #[must_use]
    pub fn outgoing(&self) -> &[u8] {
        self.outbox.waiting()
    }

    /// Says how many of [`Self::outgoing`] have been written.
    pub fn outgoing_written(&mut self, len: usize) {
        self.outbox.take(len);
    }

    /// How much waits to be written.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.outbox.len_bytes()
    }

    /// Whether the session has queued an answer of its own since the last call.
    pub fn take_answered(&mut self) -> bool {
        std::mem::take(&mut self.answered)
    }

    /// Bytes held for a frame that has begun and not ended.
    #[must_use]
    pub fn receive_buffer_bytes(&self) -> usize {
        self.decoder.buffered_bytes()
    }

    /// Whether the peer's bytes ended between two frames.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.decoder.is_between_frames()
    }

    /// Checks the time-outs; to be called about once a second, the limits are late by as much.
    pub fn tick(&mut self, now: Instant) -> Result<(), SessionError> {
        self.check_timeouts(now)
            .inspect_err(|error| self.fail(error))
    }

    fn check_timeouts(&mut self, now: Instant) -> Result<(), SessionError> {
        let Timeouts {
            handshake,
            keepalive,
            idle,
            stall,
        } = self.config.timeouts;
        let since = |then: Instant| now.saturating_duration_since(then);
        if std::mem::take(&mut self.clocks.heard) {
            self.clocks.heard_at = now;
            self.clocks.pinged_at = None;
        }
        let taken_total = self.outbox.taken_total();
        if self.outbox.len_bytes() == 0 || taken_total != self.clocks.taken_total {
            self.clocks.taken_total = taken_total;
            self.clocks.progress_at = now;
        }
        match self.phase {
            Phase::Closed => return Ok(()),
            Phase::AwaitHello | Phase::AwaitWelcome if since(self.clocks.began) >= handshake => {
                let hello = self.phase == Phase::AwaitHello;
                let expected = if hello {
                    "COMMAND HELLO"
                } else {
                    "REPLY WELCOME"
                };
                return Err(SessionError::HandshakeTimeout {
                    expected,
                    limit: handshake,
                });
            }
            _ => {}
        }
        if since(self.clocks.heard_at) >= idle {
            return Err(SessionError::Idle { limit: idle });
        }
        if since(self.clocks.progress_at) >= stall {
            let queued_bytes = self.outbox.len_bytes();
            return Err(SessionError::Stalled {
                limit: stall,
                queued_bytes,
            });
        }
        let asked = self.clocks.pinged_at.unwrap_or(self.clocks.heard_at);
        if self.phase == Phase::Open && since(asked) >= keepalive {
            self.clocks.pinged_at = Some(now);
            // A full queue is no reason to be silent for the peer, nor a reason to fail here.
            self.answered |= self
                .outbox
                .push(Operand::Ping, Flags::NONE, 0, &[], 0)
                .is_ok();
        }
        Ok(())
    }

    /// Begins all time-outs anew: a daemon that was itself stopped or stalled has no ground to
    /// call a peer silent.
    pub fn restart_timers(&mut self, now: Instant) {
        self.clocks = Clocks {
            taken_total: self.outbox.taken_total(),
            ..Clocks::new(now)
        };
    }
}

fn refused(frame: &Frame) -> Result<SessionError, SessionError> {
    let refusal = Refusal::decode(&frame.payload.to_bytes())?;
    Ok(SessionError::Refused {
        operand: frame.operand,
        refusal,
    })
}
