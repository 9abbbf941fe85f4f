//! A [`Wire`] for daemons whose work is spread over tasks and threads: a sender that any of them
//! may use, a receiver that gets batches, and one task between them and the socket.
//!
//! Senders encode into one shared buffer and wake the task only when that buffer was empty; the
//! task swaps it for an empty one and writes it at once. Towards the receiver a few batches may
//! wait; when it is slower than that, nothing more is read and the peer's own bound takes hold,
//! while writing goes on: no reader ever waits for its own writer, and no writer for its reader.
//! Invariants: `send` never blocks; frames leave in the order of their `send`s; bytes held outward
//! stay below the session's queue limit; when the link ends, both halves learn the same reason.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::PollSender;

use crate::codec;
use crate::frame::Frame;
use crate::header::HEADER_BYTES;
use crate::identity::Role;
use crate::operand::OperandSet;
use crate::permissions::Purpose;
use crate::session::{SendError, SessionError};
use crate::transport::connect::wall_clock;
use crate::transport::credentials::Credentials;
use crate::transport::wire::{Wire, WireError};

/// Batches that may wait for the receiver. Each is one read of up to 128 KiB.
const INBOUND_BATCHES: usize = 8;

/// How often time-outs are looked at: the finest of them is ten seconds, and one process may
/// stand for ten thousand launchers.
const TICK_INTERVAL: Duration = Duration::from_millis(2500);

/// Why a link has ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkClosed {
    /// [`LinkSender::close`] was called, or the receiver was dropped.
    #[error("closed by this side")]
    ByUs,
    /// The connection ended or was ended.
    #[error("{0}")]
    Failed(Arc<WireError>),
}

#[derive(Debug)]
struct Outward {
    encoded: Vec<u8>,
    /// Bytes in the wire, as the task last saw them.
    in_wire_bytes: usize,
    /// The task, while it sleeps and the buffer is empty.
    waker: Option<Waker>,
    closing: bool,
    ended: Option<LinkClosed>,
}

#[derive(Debug)]
struct Shared {
    outward: Mutex<Outward>,
    may_send: OperandSet,
    roles: (Role, Role),
    purpose: Purpose,
    limit_bytes: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Outward> {
        // Nothing is left half-done under this lock, so a panic elsewhere spoils nothing here.
        self.outward.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sending half; clones share one queue.
#[derive(Debug, Clone)]
pub struct LinkSender(Arc<Shared>);

impl LinkSender {
    /// Queues a frame to be written soon. Never waits.
    pub fn send(&self, frame: &Frame) -> Result<(), SendError> {
        self.send_all(std::slice::from_ref(frame))
    }

    /// Queues frames under one lock and with one wake-up. Either all are queued or none.
    pub fn send_all(&self, frames: &[Frame]) -> Result<(), SendError> {
        let shared = &*self.0;
        for frame in frames {
            if !shared.may_send.contains(frame.operand) {
                let (from, to) = shared.roles;
                let (operand, purpose) = (frame.operand, shared.purpose);
                return Err(SendError::NotPermitted {
                    operand,
                    from,
                    to,
                    purpose,
                });
            }
        }
        let len: usize = frames.iter().map(codec::encoded_len_bytes).sum();
        let mut outward = shared.lock();
        if outward.ended.is_some() || outward.closing {
            return Err(SendError::Closed);
        }
        let queued_bytes = outward.encoded.len() + outward.in_wire_bytes;
        if queued_bytes + len > shared.limit_bytes {
            return Err(SendError::Full {
                queued_bytes,
                limit_bytes: shared.limit_bytes,
            });
        }
        let before = outward.encoded.len();
        outward.encoded.reserve(len);
        for frame in frames {
            if let Err(error) = codec::encode(frame, &mut outward.encoded) {
                outward.encoded.truncate(before);
                return Err(error.into());
            }
        }
        let waker = outward.waker.take();
        drop(outward);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Bytes that wait to be written, headers included.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        let outward = self.0.lock();
        outward.encoded.len() + outward.in_wire_bytes
    }

    /// Whether a frame with a payload of this length would find room now.
    #[must_use]
    pub fn has_room(&self, payload_bytes: usize) -> bool {
        self.queued_bytes() + HEADER_BYTES + payload_bytes <= self.0.limit_bytes
    }

    /// Whether nothing can be sent any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let outward = self.0.lock();
        outward.closing || outward.ended.is_some()
    }

    /// Writes what is queued, within a second, and closes.
    pub fn close(&self) {
        let mut outward = self.0.lock();
        outward.closing = true;
        let waker = outward.waker.take();
        drop(outward);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The receiving half. Dropping it closes the link.
#[derive(Debug)]
pub struct LinkReceiver {
    batches: mpsc::Receiver<Vec<Frame>>,
    shared: Arc<Shared>,
}

impl LinkReceiver {
    /// The frames of the next read, never none of them; the reason once the link has ended and
    /// all that came before is taken. Safe to drop while it waits.
    pub async fn recv_batch(&mut self) -> Result<Vec<Frame>, LinkClosed> {
        match self.batches.recv().await {
            Some(frames) => Ok(frames),
            None => Err(self.shared.lock().ended.clone().unwrap_or(LinkClosed::ByUs)),
        }
    }
}

/// What to start one with.
#[derive(Debug)]
pub struct Link;

impl Link {
    /// Gives an open wire to a task of its own and returns the two halves. The peer's certificate is
    /// judged again when it expires, and by each reload of these credentials.
    ///
    /// To be called within a tokio runtime.
    #[must_use]
    pub fn spawn(wire: Wire, credentials: Arc<Credentials>) -> (LinkSender, LinkReceiver) {
        let session = wire.session();
        let shared = Arc::new(Shared {
            outward: Mutex::new(Outward {
                encoded: Vec::new(),
                in_wire_bytes: wire.queued_bytes(),
                waker: None,
                closing: false,
                ended: None,
            }),
            may_send: session.may_send_set(),
            roles: (session.local_role(), session.peer_role()),
            purpose: session.purpose(),
            limit_bytes: session.queue_limit_bytes(),
        });
        let (batch_sender, batches) = mpsc::channel(INBOUND_BATCHES);
        let batch_sender = PollSender::new(batch_sender);
        tokio::spawn(drive(wire, credentials, shared.clone(), batch_sender));
        (LinkSender(shared.clone()), LinkReceiver { batches, shared })
    }
}

async fn drive(
    mut wire: Wire,
    credentials: Arc<Credentials>,
    shared: Arc<Shared>,
    mut batches: PollSender<Vec<Frame>>,
) {
    // Credentials that were read anew during the handshake may not have judged this peer.
    let mut judged_by = 0;
    let mut interval = tokio::time::interval(TICK_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut interval = pin!(interval);
    let ended = std::future::poll_fn(|cx| {
        while interval.poll_tick(cx).is_ready() {
            let kept = wire
                .tick(Instant::now())
                .and_then(|()| Ok(judge_peer(&mut wire, &credentials, &mut judged_by)?));
            if let Err(error) = kept {
                return Poll::Ready(LinkClosed::Failed(Arc::new(error)));
            }
        }
        poll_drive(cx, &mut wire, &shared, &mut batches)
    })
    .await;
    // Before the last batches are taken, so that whoever takes them finds the reason behind them.
    shared.lock().ended = Some(ended);
    batches.close();
    drop(batches);
    wire.finish().await;
}

/// Refuses a peer whose certificate has lost its validity since it was `judged_by` so many reloads.
fn judge_peer(
    wire: &mut Wire,
    credentials: &Credentials,
    judged_by: &mut u64,
) -> Result<(), SessionError> {
    let now = wall_clock();
    let reloads = credentials.reloads();
    if std::mem::replace(judged_by, reloads) == reloads {
        wire.refuse_expired(now)
    } else {
        wire.refuse_invalid(now, credentials)
    }
}

/// Works in both directions until neither can go on; ready when the link has ended.
fn poll_drive(
    cx: &mut Context<'_>,
    wire: &mut Wire,
    shared: &Shared,
    batches: &mut PollSender<Vec<Frame>>,
) -> Poll<LinkClosed> {
    let failed = |error: WireError| Poll::Ready(LinkClosed::Failed(Arc::new(error)));
    loop {
        let closing = match poll_outward(cx, wire, shared) {
            Ok(closing) => closing,
            Err(error) => return failed(error.into()),
        };
        if closing {
            return Poll::Ready(LinkClosed::ByUs);
        }
        match batches.poll_reserve(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(LinkClosed::ByUs),
            // Reading pauses; `poll_reserve` wakes us when the receiver has taken a batch.
            Poll::Pending => return Poll::Pending,
        }
        let mut frames = Vec::new();
        let read = wire.poll_read_frames(cx, &mut frames);
        if !frames.is_empty() && batches.send_item(frames).is_err() {
            return Poll::Ready(LinkClosed::ByUs);
        }
        match read {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return failed(error),
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// Moves what was sent into the wire and on to the socket. True if the link is to be closed.
fn poll_outward(cx: &mut Context<'_>, wire: &mut Wire, shared: &Shared) -> std::io::Result<bool> {
    loop {
        let mut outward = shared.lock();
        wire.session_mut().adopt_encoded(&mut outward.encoded);
        outward.in_wire_bytes = wire.queued_bytes();
        let closing = outward.closing;
        outward.waker = Some(cx.waker().clone());
        drop(outward);
        let flushed = wire.poll_flush(cx)?;
        let mut outward = shared.lock();
        outward.in_wire_bytes = wire.queued_bytes();
        // A sender may have been quicker than the lock above; its wake-up would come, but a look
        // costs less.
        if flushed.is_pending() || outward.encoded.is_empty() {
            return Ok(closing);
        }
        outward.waker = None;
    }
}
