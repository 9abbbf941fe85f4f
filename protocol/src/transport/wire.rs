//! One connection: a socket, its TLS and its session, as cheap as they get.
//!
//! A [`Wire`] is polled by one task and may be used by any other code of its thread between polls
//! (`Rc<RefCell<Wire>>`): queueing and flushing are synchronous and wake nobody. One read system
//! call decodes all frames that arrived; a flush packs all that waits into full TLS records and
//! writes several of them with one system call. What the socket does not take is kept, and the
//! polling task finishes it. Plaintext and ciphertext pass through two buffers of the thread, so a
//! connection on which nothing is under way holds none.
//!
//! Invariants: what was queued is written in its order and once; bytes held are bounded by the
//! session's queue limit plus one batch of records outward, and by one record plus one frame inward.

mod detached;
mod error;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::frame::Frame;
use crate::header::Flags;
use crate::hello::{Hello, Refusal, RefusalCode, Welcome};
use crate::identity::Identity;
use crate::operand::Operand;
use crate::session::{SendError, Session, SessionError};
use crate::transport::credentials::{Credentials, not_after};
use crate::transport::tls::{MAX_RECORD_PLAINTEXT_BYTES, Tls, encrypted_bound};
pub use detached::DetachedWire;
pub use error::{WireError, alert_in_words};

/// What one read asks for: some hundred STARTs, and no more than a socket buffer gives at once.
const READ_BYTES: usize = 128 * 1024;

/// What may wait for its rest: a record with its header (RFC 8446, 5.2), and in front of it the
/// records of a handshake message, which rustls bounds at 64 KiB.
const MAX_KEPT_BYTES: usize = 96 * 1024;

/// Plaintext that one write system call carries: eight full records.
const WRITE_PLAIN_BYTES: usize = 8 * MAX_RECORD_PLAINTEXT_BYTES;

/// How long [`Wire::finish`] tries to hand over what waits, and to hear the peer out.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// What [`Wire::finish`] reads and throws away before it stops being polite.
const FINISH_DRAIN_BYTES: usize = 256 * 1024;

/// Whether a flush has written everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Nothing waits.
    Done,
    /// The socket takes no more now; the polling task goes on when it does.
    Pending,
}

/// Buffers that all connections of a thread share; a poll uses them and leaves them.
struct Scratch {
    input: Box<[u8]>,
    output: Box<[u8]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        input: vec![0; MAX_KEPT_BYTES + READ_BYTES].into_boxed_slice(),
        output: vec![0; encrypted_bound(WRITE_PLAIN_BYTES)].into_boxed_slice(),
    });
}

/// A connected peer.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    tls: Tls,
    session: Session,
    peer: Box<Identity>,
    peer_address: SocketAddr,
    peer_not_after: UnixTime,
    /// The beginning of a record whose rest has not arrived.
    record_in: Vec<u8>,
    /// Records that the socket has not taken.
    records_out: Vec<u8>,
    records_out_taken: usize,
    /// The task that polls, to be woken when a flush by other code got stuck.
    waker: Option<Waker>,
    stuck: bool,
    peer_closed: bool,
    /// Frames that arrived with the peer's WELCOME, for the first read.
    early: Vec<Frame>,
}

impl Wire {
    pub(crate) fn new(
        stream: TcpStream,
        tls: Tls,
        session: Session,
        peer: Identity,
        peer_address: SocketAddr,
        unsent: Vec<u8>,
        unread: Vec<u8>,
    ) -> Self {
        let peer_not_after = tls
            .state()
            .peer_certificates()
            .and_then(|chain| not_after(chain.first()?))
            // A certificate whose end can't be read has none left.
            .unwrap_or(UnixTime::since_unix_epoch(Duration::ZERO));
        Self {
            stream,
            tls,
            session,
            peer: Box::new(peer),
            peer_address,
            peer_not_after,
            record_in: unread,
            records_out: unsent,
            records_out_taken: 0,
            waker: None,
            stuck: false,
            peer_closed: false,
            early: Vec::new(),
        }
    }

    /// Who the peer is, by its certificate.
    #[must_use]
    pub const fn peer(&self) -> &Identity {
        &self.peer
    }

    /// Where the peer is.
    #[must_use]
    pub const fn peer_address(&self) -> SocketAddr {
        self.peer_address
    }

    /// The peer's certificates, its own first.
    #[must_use]
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.tls.state().peer_certificates().unwrap_or_default()
    }

    /// Refuses a peer whose certificate has expired. Costs a comparison.
    pub fn refuse_expired(&mut self, now: UnixTime) -> Result<(), SessionError> {
        if now <= self.peer_not_after {
            return Ok(());
        }
        Err(self.refuse_certificate("your certificate has expired"))
    }

    /// Refuses a peer whose certificate would not be accepted any more: expiry, CA, revocation
    /// list. To be called after each reload of the credentials; costs 0.2 ms.
    pub fn refuse_invalid(
        &mut self,
        now: UnixTime,
        credentials: &Credentials,
    ) -> Result<(), SessionError> {
        let chain = self.peer_certificates();
        let verdict = match self.tls {
            Tls::Client(_) => credentials.verify_server(chain, now),
            Tls::Server(_) => credentials.verify_client(chain, now),
        };
        verdict
            .map(drop)
            .map_err(|error| self.refuse_certificate(error.to_string()))
    }

    fn refuse_certificate(&mut self, text: impl Into<String>) -> SessionError {
        let refusal = Refusal::new(RefusalCode::CertificateInvalid, text);
        self.refuse(Operand::Unauthorized, refusal)
    }

    /// The session, to look at.
    #[must_use]
    pub const fn session(&self) -> &Session {
        &self.session
    }

    /// The session, for [`Session::take_welcome`], [`Session::restart_timers`] and the like.
    pub const fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Everything that waits to be written: frames, and records that the socket has not taken.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.session.queued_bytes() + self.records_waiting()
    }

    fn records_waiting(&self) -> usize {
        self.records_out.len() - self.records_out_taken
    }

    /// Queues a frame. Nothing is written before a flush, nobody is woken.
    pub fn queue(&mut self, frame: &Frame) -> Result<(), SendError> {
        self.session.queue(frame)
    }

    /// Queues a frame whose payload is these pieces in their order; see
    /// [`Session::queue_pieces`].
    pub fn queue_pieces(
        &mut self,
        operand: Operand,
        flags: Flags,
        correlation: u64,
        pieces: &[&[u8]],
    ) -> Result<(), SendError> {
        self.session
            .queue_pieces(operand, flags, correlation, pieces)
    }

    /// Answers a HELLO: the session is open. To be flushed.
    pub fn welcome(&mut self, welcome: Welcome) -> Result<(), SendError> {
        self.session.welcome(welcome)
    }

    /// Refuses the peer with this ERROR and closes; [`Self::finish`] hands it over.
    pub fn refuse(&mut self, operand: Operand, refusal: Refusal) -> SessionError {
        self.session.refuse(operand, refusal)
    }

    /// Writes what waits, as far as the socket takes it. What is left when it takes no more is
    /// written by the task that polls [`Self::poll_read_frames`] or [`Self::poll_flush`].
    pub fn try_flush(&mut self) -> io::Result<Flush> {
        if !self.write_records()? {
            return self.note_stuck();
        }
        while self.session.queued_bytes() > 0 {
            if !self.write_batch()? {
                return self.note_stuck();
            }
        }
        Ok(Flush::Done)
    }

    /// Writes the records that an earlier flush left; false if some are still left.
    fn write_records(&mut self) -> io::Result<bool> {
        while self.records_waiting() > 0 {
            match self
                .stream
                .try_write(&self.records_out[self.records_out_taken..])
            {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.records_out_taken += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.records_out_taken > 0 {
            self.records_out = Vec::new();
            self.records_out_taken = 0;
        }
        Ok(true)
    }

    /// Encrypts up to eight records of what waits and writes them at once; false if the socket
    /// did not take all of them.
    fn write_batch(&mut self) -> io::Result<bool> {
        SCRATCH.with_borrow_mut(|scratch| {
            let plain = self.session.outgoing();
            let plain = &plain[..plain.len().min(WRITE_PLAIN_BYTES)];
            let encrypted = self
                .tls
                .encrypt(plain, &mut self.record_in, &mut scratch.output)
                .map_err(io::Error::other)?;
            let plain_len = plain.len();
            self.session.outgoing_written(plain_len);
            let mut records = &scratch.output[..encrypted];
            while !records.is_empty() {
                match self.stream.try_write(records) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => records = &records[written..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.records_out = records.to_vec();
                        self.records_out_taken = 0;
                        return Ok(false);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(true)
        })
    }

    /// Has the polling task woken when the socket takes more.
    fn note_stuck(&mut self) -> io::Result<Flush> {
        self.stuck = true;
        if let Some(waker) = &self.waker {
            let mut cx = Context::from_waker(waker);
            if self.stream.poll_write_ready(&mut cx)?.is_ready() {
                // It became writable between the two calls: the task shall look at once.
                waker.wake_by_ref();
            }
        }
        Ok(Flush::Pending)
    }

    /// Polls until everything that waits is written.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.try_flush()? {
                Flush::Done => {
                    self.stuck = false;
                    return Poll::Ready(Ok(()));
                }
                Flush::Pending => ready!(self.stream.poll_write_ready(cx))?,
            }
        }
    }

    /// Reads once and appends the frames that arrived whole.
    ///
    /// Ready also without frames: when a read completed none, and when a flush that had got stuck
    /// is done. On an error, frames that came before it have been appended; the connection is then
    /// to be dropped, or given to [`Self::finish`] so that the peer learns the reason.
    pub fn poll_read_frames(
        &mut self,
        cx: &mut Context<'_>,
        frames: &mut Vec<Frame>,
    ) -> Poll<Result<(), WireError>> {
        if !self
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            self.waker = Some(cx.waker().clone());
        }
        if !self.early.is_empty() {
            frames.append(&mut self.early);
            return Poll::Ready(Ok(()));
        }
        let mut unstuck = false;
        if self.stuck {
            unstuck = self.poll_flush(cx)?.is_ready();
        }
        match self.poll_read(cx, frames) {
            Poll::Pending if unstuck => Poll::Ready(Ok(())),
            other => other,
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        frames: &mut Vec<Frame>,
    ) -> Poll<Result<(), WireError>> {
        SCRATCH
            .with_borrow_mut(|scratch| {
                let kept = self.record_in.len();
                let mut room = ReadBuf::new(&mut scratch.input[kept..kept + READ_BYTES]);
                ready!(Pin::new(&mut self.stream).poll_read(cx, &mut room))?;
                let read = room.filled().len();
                if read == 0 {
                    let clean = self.peer_closed && self.session.is_between_frames();
                    return Poll::Ready(Err(WireError::Closed { clean }));
                }
                scratch.input[..kept].copy_from_slice(&self.record_in);
                Poll::Ready(self.take_in(&mut scratch.input[..kept + read], frames))
            })?
            .map(|()| {
                if self.session.take_answered() {
                    self.try_flush()?;
                }
                Ok(())
            })
    }

    /// Decrypts what came, feeds the session, and keeps the beginning of an unfinished record.
    fn take_in(&mut self, input: &mut [u8], frames: &mut Vec<Frame>) -> Result<(), WireError> {
        let mut outcome = Ok(());
        let session = &mut self.session;
        let pumped = self.tls.pump(input, &mut self.records_out, &mut |plain| {
            if outcome.is_ok() {
                outcome = session.receive(plain, frames);
            }
        });
        let pumped = match pumped {
            Ok(pumped) => pumped,
            Err(error) => {
                // The alert is on its way if the socket takes it at once; no more can be done.
                let _best_effort = self.write_records();
                return Err(error.into());
            }
        };
        self.peer_closed |= pumped.peer_closed;
        let rest = &input[pumped.consumed..];
        if rest.is_empty() {
            self.record_in = Vec::new();
        } else if rest.len() > MAX_KEPT_BYTES {
            return Err(WireError::Tls(rustls::Error::InvalidMessage(
                rustls::InvalidMessage::HandshakePayloadTooLarge,
            )));
        } else {
            self.record_in.clear();
            self.record_in.reserve_exact(rest.len());
            self.record_in.extend_from_slice(rest);
        }
        if self.records_waiting() > 0 && !self.write_records()? {
            self.note_stuck()?;
        }
        outcome.map_err(WireError::from)
    }

    /// Checks the time-outs and sends a PING where one is due; to be called about once a second.
    pub fn tick(&mut self, now: Instant) -> Result<(), WireError> {
        self.session.tick(now)?;
        if self.session.take_answered() {
            self.try_flush()?;
        }
        Ok(())
    }

    /// Reads frames, for a task that owns the wire alone.
    pub async fn read_frames(&mut self, frames: &mut Vec<Frame>) -> Result<(), WireError> {
        std::future::poll_fn(|cx| self.poll_read_frames(cx, frames)).await
    }

    /// Writes all that waits, for a task that owns the wire alone.
    pub async fn flush(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Waits for the answer to our HELLO. Frames that come with it are kept for the first read.
    pub(crate) async fn read_welcome(&mut self) -> Result<(), WireError> {
        let mut frames = Vec::new();
        while !self.session.is_open() {
            self.read_frames(&mut frames).await?;
        }
        self.early = frames;
        Ok(())
    }

    /// Waits for the peer's HELLO, within the rest of the handshake's time limit.
    pub async fn read_hello(&mut self, limit: Duration) -> Result<Hello, WireError> {
        let mut frames = Vec::new();
        let waiting = async {
            loop {
                if let Some(hello) = self.session.take_hello() {
                    return Ok(hello);
                }
                self.read_frames(&mut frames).await?;
            }
        };
        match tokio::time::timeout(limit, waiting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(SessionError::HandshakeTimeout {
                expected: "COMMAND HELLO",
                limit,
            }
            .into()),
        }
    }

    /// Closes: writes what waits, says goodbye in TLS, and hears the peer out for a moment, since
    /// a socket closed over unread bytes would take back what was written last. Takes two seconds
    /// at most.
    pub async fn finish(mut self) {
        self.session.close();
        let said = tokio::time::timeout(FINISH_LIMIT, async {
            self.flush().await?;
            let mut goodbye = [0; encrypted_bound(0)];
            let len = self
                .tls
                .close_notify(&mut self.record_in, &mut goodbye)
                .map_err(io::Error::other)?;
            self.records_out = goodbye[..len].to_vec();
            self.flush().await
        })
        .await;
        if matches!(said, Ok(Ok(()))) {
            hear_out(self.stream).await;
        }
    }
}

/// Ends our direction and reads the peer's to its end, within limits.
pub(crate) async fn hear_out(mut stream: TcpStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let drain = async {
        stream.shutdown().await?;
        let mut waste = [0; 4096];
        let mut drained = 0;
        while drained < FINISH_DRAIN_BYTES {
            match stream.read(&mut waste).await? {
                0 => break,
                read => drained += read,
            }
        }
        io::Result::Ok(())
    };
    // Nothing depends on the outcome: the connection is over either way.
    let _over = tokio::time::timeout(FINISH_LIMIT, drain).await;
}

/// Reads frames from a wire that other code of this thread uses as well; it is borrowed only
/// while it is polled.
pub async fn read_frames(wire: &RefCell<Wire>, frames: &mut Vec<Frame>) -> Result<(), WireError> {
    std::future::poll_fn(|cx| wire.borrow_mut().poll_read_frames(cx, frames)).await
}
