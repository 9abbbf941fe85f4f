//! The sessions of the frame thread: their wires, and the outlet through which the core writes.
//!
//! A frame is queued on its wire at once and flushed at the end of the turn with everything else
//! for that peer. A queue that passes its mark is flushed on the spot, and only if the socket does
//! not take it the core hears that the peer does not keep up. Invariants: a [`SessionId`] is never
//! used twice; a wire is borrowed only inside one call of this module, or while it is polled.

use crate::config::QueuesConfig;
use crate::core::{Nanos, Outgoing, Outlet, Queued, SessionId};
use pronto_protocol::transport::{Flush, Wire};
use pronto_protocol::{HEADER_BYTES, Operand, Purpose, Quiet, Refusal, Role, SendError, Welcome};
use std::cell::RefCell;
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

/// One session.
#[derive(Debug)]
struct Conn {
    wire: Rc<RefCell<Wire>>,
    generation: u32,
    mark_bytes: usize,
    limit_bytes: usize,
    /// Has something to flush, and stands in one of the lists of those.
    dirty: bool,
    /// A launcher's control session, which may be flushed a little later than others.
    is_launcher: bool,
    /// The core was told that it does not keep up.
    brimming: bool,
    /// The core has refused it: its task is to finish it.
    closing: bool,
    /// The task that polls it.
    waker: Option<Waker>,
}

/// All sessions of the thread.
#[derive(Debug)]
pub(crate) struct Sessions {
    slots: Vec<Option<Conn>>,
    vacant: Vec<u32>,
    next_generation: u32,
    /// Launchers with something to flush, and everybody else.
    dirty_launchers: Vec<SessionId>,
    dirty_others: Vec<SessionId>,
    /// Sessions whose write failed: their end is to be reported.
    failed: Vec<(SessionId, String)>,
    queues: QueuesConfig,
    began: Instant,
    open: usize,
    quiet_sends: Quiet,
}

/// What bounds a session's queue: (mark, limit).
fn bounds(queues: &QueuesConfig, role: Role, purpose: Purpose) -> (usize, usize) {
    match (purpose, role) {
        // A stream's data can't go elsewhere, so there is no mark.
        (Purpose::Bulk, _) => (queues.bulk_limit_bytes, queues.bulk_limit_bytes),
        (Purpose::Control, Role::Launcher) => {
            (queues.launcher_mark_bytes, queues.launcher_limit_bytes)
        }
        (Purpose::Control, _) => (queues.controller_mark_bytes, queues.controller_limit_bytes),
    }
}

fn slot_of(session: SessionId) -> usize {
    // The lower half of an id is its slot.
    u32::try_from(session.0 & u64::from(u32::MAX)).unwrap_or(u32::MAX) as usize
}

impl Sessions {
    pub(crate) fn new(queues: QueuesConfig, began: Instant) -> Self {
        Self {
            slots: Vec::new(),
            vacant: Vec::new(),
            next_generation: 1,
            dirty_launchers: Vec::new(),
            dirty_others: Vec::new(),
            failed: Vec::new(),
            queues,
            began,
            open: 0,
            quiet_sends: Quiet::default(),
        }
    }

    /// Sessions there are.
    pub(crate) const fn len(&self) -> usize {
        self.open
    }

    /// Takes in a session that has said HELLO.
    pub(crate) fn insert(&mut self, wire: Wire) -> (SessionId, Rc<RefCell<Wire>>) {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("file descriptors end long before 2^32")
        });
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1).max(1);
        let (role, purpose) = (wire.session().peer_role(), wire.session().purpose());
        let (mark_bytes, limit_bytes) = bounds(&self.queues, role, purpose);
        let wire = Rc::new(RefCell::new(wire));
        self.slots[slot as usize] = Some(Conn {
            wire: Rc::clone(&wire),
            generation,
            mark_bytes,
            limit_bytes,
            dirty: false,
            is_launcher: (role, purpose) == (Role::Launcher, Purpose::Control),
            brimming: false,
            closing: false,
            waker: None,
        });
        self.open += 1;
        (
            SessionId(u64::from(generation) << 32 | u64::from(slot)),
            wire,
        )
    }

    /// Lets go of a session's wire.
    pub(crate) fn remove(&mut self, session: SessionId) {
        let slot = slot_of(session);
        if self.conn(session).is_some() {
            self.slots[slot] = None;
            self.open -= 1;
            self.vacant.extend(u32::try_from(slot));
        }
    }

    fn conn(&mut self, session: SessionId) -> Option<&mut Conn> {
        let generation = (session.0 >> 32) as u32;
        let conn = self.slots.get_mut(slot_of(session))?.as_mut()?;
        (conn.generation == generation).then_some(conn)
    }

    /// Whether the core has refused it. Remembers whom to wake when it does.
    pub(crate) fn is_closing(&mut self, session: SessionId, waker: &Waker) -> bool {
        let Some(conn) = self.conn(session) else {
            return true;
        };
        if !conn
            .waker
            .as_ref()
            .is_some_and(|known| known.will_wake(waker))
        {
            conn.waker = Some(waker.clone());
        }
        conn.closing
    }

    /// Whether the core waits for this session to drain, and it has. To be asked after the session
    /// was flushed.
    pub(crate) fn has_drained(&mut self, session: SessionId) -> bool {
        let Some(conn) = self.conn(session).filter(|conn| conn.brimming) else {
            return false;
        };
        // Half of the mark, so that a peer at its mark does not go in and out with each frame.
        let queued_bytes = conn.wire.borrow().queued_bytes();
        let drained = queued_bytes <= conn.mark_bytes / 2;
        conn.brimming = !drained;
        drained
    }

    /// Whether a socket has failed, and its session's end is to be reported.
    pub(crate) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Whether anybody but launchers has something to flush.
    pub(crate) fn has_dirty_others(&self) -> bool {
        !self.dirty_others.is_empty()
    }

    /// Whether launchers have something to flush.
    pub(crate) fn has_dirty_launchers(&self) -> bool {
        !self.dirty_launchers.is_empty()
    }

    /// Flushes every launcher that has something to be told; adds those that have drained by it.
    pub(crate) fn flush_launchers(&mut self, drained: &mut Vec<SessionId>) {
        let mut dirty = std::mem::take(&mut self.dirty_launchers);
        self.flush(&mut dirty, drained);
        self.dirty_launchers = dirty;
    }

    /// Flushes everybody else.
    pub(crate) fn flush_others(&mut self, drained: &mut Vec<SessionId>) {
        let mut dirty = std::mem::take(&mut self.dirty_others);
        self.flush(&mut dirty, drained);
        self.dirty_others = dirty;
    }

    fn flush(&mut self, dirty: &mut Vec<SessionId>, drained: &mut Vec<SessionId>) {
        for session in dirty.drain(..) {
            let Some(conn) = self.conn(session) else {
                continue;
            };
            conn.dirty = false;
            let flushed = conn.wire.borrow_mut().try_flush();
            if let Err(error) = flushed {
                self.failed.push((session, error.to_string()));
            } else if self.has_drained(session) {
                drained.push(session);
            }
        }
    }

    /// Sessions whose socket has failed while it was written to.
    pub(crate) fn take_failed(&mut self) -> Vec<(SessionId, String)> {
        std::mem::take(&mut self.failed)
    }

    /// Has a session's task finish it.
    pub(crate) fn close(&mut self, session: SessionId) {
        if let Some(conn) = self.conn(session) {
            conn.closing = true;
            if let Some(waker) = conn.waker.take() {
                waker.wake();
            }
        }
    }

    /// Every session with its wire, in no order that means anything.
    pub(crate) fn wires(&self) -> impl Iterator<Item = (SessionId, &Rc<RefCell<Wire>>)> {
        let slots = (0_u64..).zip(&self.slots);
        slots.filter_map(|(slot, conn)| {
            let conn = conn.as_ref().filter(|conn| !conn.closing)?;
            Some((
                SessionId(u64::from(conn.generation) << 32 | slot),
                &conn.wire,
            ))
        })
    }

    /// Bytes that wait on all sessions together.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.wires()
            .map(|(_, wire)| wire.borrow().queued_bytes())
            .sum()
    }

    pub(crate) fn now(&self) -> Nanos {
        nanos_since(self.began)
    }
}

pub(crate) fn nanos_since(began: Instant) -> Nanos {
    Nanos(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

impl Outlet for Sessions {
    fn send(&mut self, session: SessionId, message: Outgoing<'_>) -> Queued {
        let generation = (session.0 >> 32) as u32;
        let conn = self
            .slots
            .get_mut(slot_of(session))
            .and_then(Option::as_mut);
        let Some(conn) = conn.filter(|conn| conn.generation == generation && !conn.closing) else {
            return Queued::Gone;
        };
        let mut wire = conn.wire.borrow_mut();
        let [first, second] = message.pieces;
        let len_bytes = HEADER_BYTES + first.len() + second.len();
        let mut queued_bytes = wire.queued_bytes() + len_bytes;
        if queued_bytes > conn.limit_bytes {
            conn.brimming = true;
            return Queued::Full;
        }
        let (operand, flags) = (message.operand, message.flags);
        match wire.queue_pieces(operand, flags, message.correlation, &message.pieces) {
            Ok(()) => {}
            Err(SendError::Full { .. }) => {
                conn.brimming = true;
                return Queued::Full;
            }
            Err(SendError::Closed | SendError::NotOpen { .. }) => return Queued::Gone,
            Err(error @ (SendError::NotPermitted { .. } | SendError::Frame(_))) => {
                // Ours to get right: what is sent is in the permission table and within limits.
                if let Some(left_out) = self.quiet_sends.line(nanos_since(self.began).0) {
                    tracing::error!(%error, %operand, left_out, "can't send");
                }
                return Queued::Gone;
            }
        }
        if !conn.dirty {
            conn.dirty = true;
            if conn.is_launcher {
                self.dirty_launchers.push(session);
            } else {
                self.dirty_others.push(session);
            }
        }
        if queued_bytes > conn.mark_bytes {
            match wire.try_flush() {
                Ok(Flush::Done | Flush::Pending) => queued_bytes = wire.queued_bytes(),
                Err(error) => {
                    self.failed.push((session, error.to_string()));
                    return Queued::Gone;
                }
            }
        }
        if queued_bytes > conn.mark_bytes {
            conn.brimming = true;
            return Queued::Brimming;
        }
        Queued::Room
    }

    fn welcome(&mut self, session: SessionId, welcome: Welcome) {
        let Some(conn) = self.conn(session) else {
            return;
        };
        let welcomed = conn.wire.borrow_mut().welcome(welcome);
        if let Err(error) = welcomed {
            tracing::debug!(%error, "session ended before its WELCOME");
        } else if !conn.dirty {
            conn.dirty = true;
            self.dirty_others.push(session);
        }
    }

    fn refuse(&mut self, session: SessionId, operand: Operand, refusal: Refusal) {
        if let Some(conn) = self.conn(session) {
            let error = conn.wire.borrow_mut().refuse(operand, refusal);
            tracing::debug!(%error, "session ended");
            self.close(session);
        }
    }

    fn clock(&self) -> Nanos {
        self.now()
    }
}
