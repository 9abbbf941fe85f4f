//! The two directions of a stream, with their credits.

use bytes::Bytes;
use pronto_payloads::codec;
use pronto_payloads::stream::{CHUNK_BYTES, CREDIT_BYTES, Channel, StreamCredit, StreamEnd};
use pronto_protocol::transport::LinkSender;
use pronto_protocol::{Frame, Operand, Payload};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Semaphore, mpsc};

/// The session has ended; so has the stream, and nobody is left to tell.
#[derive(Debug)]
pub(super) struct Gone;

/// Data towards the opener.
#[derive(Clone, Debug)]
pub(super) struct Upward {
    sender: LinkSender,
    stream: u64,
    credit: Arc<Semaphore>,
}

impl Upward {
    pub(super) const fn new(sender: LinkSender, stream: u64, credit: Arc<Semaphore>) -> Self {
        Self {
            sender,
            stream,
            credit,
        }
    }

    /// Sends bytes as the reader grants them.
    pub(super) async fn data(&self, channel: Channel, mut bytes: &[u8]) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let wanted = bytes.len().min(CHUNK_BYTES);
            // One byte is waited for; more are taken if they are there.
            let first = self.credit.acquire().await.map_err(|_| Gone)?;
            first.forget();
            let mut length = 1 + (wanted - 1).min(self.credit.available_permits());
            let more = u32::try_from(length - 1).unwrap_or(0);
            match self.credit.try_acquire_many(more) {
                Ok(permits) => permits.forget(),
                // The other channel of this stream was quicker.
                Err(_) => length = 1,
            }
            let (now, later) = bytes.split_at(length);
            let prefix = match channel {
                Channel::Stdin => &[0_u8],
                Channel::Stdout => &[1],
                Channel::Stderr => &[2],
                Channel::File => &[3],
            };
            let payload =
                Payload::with_prefix(Bytes::from_static(prefix), Bytes::copy_from_slice(now));
            let frame = Frame::answer(Operand::StreamData, self.stream, payload);
            self.sender.send(&frame).map_err(|_| Gone)?;
            bytes = later;
        }
        Ok(())
    }

    /// Ends this direction.
    pub(super) fn end(&self, end: &StreamEnd) {
        let frame = Frame::answer(Operand::StreamEnd, self.stream, codec::encode(end));
        // A session that has ended has told the opener already.
        let _ = self.sender.send(&frame);
    }
}

/// What comes from the opener.
#[derive(Debug)]
pub(super) enum Inbound {
    Data(Bytes),
    End(StreamEnd),
}

/// The session's end of the direction towards us.
#[derive(Debug)]
pub(super) struct Downward {
    queue: mpsc::UnboundedSender<Inbound>,
    granted: Arc<AtomicUsize>,
}

impl Downward {
    /// Counts data; false if it was not granted. The grant bounds the queue.
    pub(super) fn accept(&self, bytes: usize) -> bool {
        self.granted
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |granted| {
                granted.checked_sub(bytes)
            })
            .is_ok()
    }

    pub(super) fn push(&self, inbound: Inbound) {
        // A stream that has ended reads no more.
        let _ = self.queue.send(inbound);
    }
}

/// The stream's end of the direction towards us.
#[derive(Debug)]
pub(super) struct Reader {
    queue: mpsc::UnboundedReceiver<Inbound>,
    granted: Arc<AtomicUsize>,
    sender: LinkSender,
    stream: u64,
    /// Consumed, and not granted again yet.
    consumed: usize,
    opened: bool,
}

pub(super) fn downward(sender: LinkSender, stream: u64) -> (Downward, Reader) {
    let (inward, queue) = mpsc::unbounded_channel();
    let granted = Arc::new(AtomicUsize::new(0));
    let reader = Reader {
        queue,
        granted: granted.clone(),
        sender,
        stream,
        consumed: 0,
        opened: false,
    };
    (
        Downward {
            queue: inward,
            granted,
        },
        reader,
    )
}

impl Reader {
    /// The next piece, granting as much as was consumed before; none once the session has ended.
    pub(super) async fn next(&mut self) -> Option<Inbound> {
        if !self.opened {
            self.opened = true;
            self.grant(CREDIT_BYTES as usize);
        } else if self.consumed >= CREDIT_BYTES as usize / 2 {
            let consumed = std::mem::take(&mut self.consumed);
            self.grant(consumed);
        }
        let inbound = self.queue.recv().await?;
        if let Inbound::Data(bytes) = &inbound {
            self.consumed += bytes.len();
        }
        Some(inbound)
    }

    fn grant(&self, bytes: usize) {
        self.granted.fetch_add(bytes, Ordering::Relaxed);
        let credit = StreamCredit {
            bytes: u32::try_from(bytes).unwrap_or(CREDIT_BYTES),
        };
        let frame = Frame::answer(Operand::StreamCredit, self.stream, codec::encode(&credit));
        // A session that has ended needs no credit.
        let _ = self.sender.send(&frame);
    }
}
