//! Bulk streams to nodes: output, exec, files; one session for all of them, made on demand.
//!
//! The session is to the scheduler that the control session is with. Credits are granted as the
//! final reader takes bytes, so that what waits here is bounded by the credit of each stream. A
//! session on which nothing was open for [`WARM`] is closed; one that breaks ends its streams as
//! unreachable.

use crate::shares::{Full, Place, Shares};
use crate::shell::dialer::Session;
use bytes::{Buf, Bytes};
use pronto_payloads::codec;
use pronto_payloads::control::ToNode;
use pronto_payloads::hello::BulkHello;
use pronto_payloads::ids::{InstanceId, OwnerId};
use pronto_payloads::stream::{
    CHUNK_BYTES, CREDIT_BYTES, Channel, StreamCredit, StreamEnd, StreamFailure, StreamOpen,
    StreamRequest,
};
use pronto_protocol::transport::{Credentials, Link, LinkReceiver, LinkSender, connect};
use pronto_protocol::{Frame, Hello, Operand, Payload, Purpose, Role, SessionConfig};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A session without streams is kept this long.
const WARM: Duration = Duration::from_secs(600);
/// Streams at once: the scheduler's own limit for a controller.
const MAX_STREAMS: usize = 1024;
/// Of one tenant's users.
const STREAMS_OF_A_TENANT: usize = 256;
/// Credit is granted back in pieces, not for each byte.
const GRANT_BYTES: u32 = CREDIT_BYTES / 4;
/// Room for all streams' input at once.
const QUEUE_LIMIT_BYTES: usize = 64 << 20;

/// What comes on a stream.
#[derive(Debug)]
pub(crate) enum Incoming {
    Data(Channel, Bytes),
    /// So many more bytes may be sent.
    Credit(u32),
    End(StreamEnd),
}

/// Opens streams.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    owner: OwnerId,
    session: Session,
    credentials: Arc<Credentials>,
    /// How long a node may say nothing while a file is copied.
    file_silence: Duration,
    connecting: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    places: Shares,
}

#[derive(Debug, Default)]
struct State {
    link: Option<LinkSender>,
    /// Which link; streams of an older one are gone.
    generation: u64,
    next: u64,
    open: HashMap<u64, mpsc::UnboundedSender<Incoming>>,
    idle_since: Option<Instant>,
}

/// One open stream. Dropping it cancels what is left of it.
#[derive(Debug)]
pub(crate) struct Stream {
    inner: Arc<Inner>,
    id: u64,
    link: LinkSender,
    incoming: mpsc::UnboundedReceiver<Incoming>,
    /// Taken by the reader and not granted back yet.
    taken_bytes: u32,
    credit_bytes: u32,
    ended: bool,
    /// How long nothing may come while something is waited for.
    silence: Option<Duration>,
    _place: Place,
}

fn unreachable(text: impl Into<String>) -> StreamEnd {
    StreamEnd::Failed {
        kind: StreamFailure::Unreachable,
        text: text.into(),
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Streams {
    pub(crate) fn new(
        owner: OwnerId,
        session: Session,
        credentials: Arc<Credentials>,
        file_silence: Duration,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                owner,
                session,
                credentials,
                file_silence,
                connecting: tokio::sync::Mutex::new(()),
                state: Mutex::new(State::default()),
                places: Shares::new(MAX_STREAMS, STREAMS_OF_A_TENANT),
            }),
        }
    }

    /// Opens a stream to an instance on a node, for a user of a tenant's or an administrator.
    pub(crate) async fn open(
        &self,
        tenant: Option<&Arc<str>>,
        node: &str,
        instance: InstanceId,
        request: StreamRequest,
    ) -> Result<Stream, StreamEnd> {
        let place = self.inner.places.take(tenant).map_err(|full| {
            let text = match full {
                Full::Most(most) => format!("{most} streams are open, the most"),
                Full::Share(share) => format!("{share} streams of your tenant are open, the most"),
            };
            StreamEnd::Failed {
                kind: StreamFailure::Busy,
                text,
            }
        })?;
        let link = self.link().await?;
        let (sender, incoming) = mpsc::unbounded_channel();
        let id = {
            let mut state = self.inner.state();
            state.next += 1;
            let id = state.next;
            state.open.insert(id, sender);
            state.idle_since = None;
            id
        };
        // Commands and logs may have nothing to say for days.
        let is_of_files = matches!(
            request,
            StreamRequest::CopyOut { .. }
                | StreamRequest::CopyIn { .. }
                | StreamRequest::List { .. }
        );
        let silence = is_of_files.then_some(self.inner.file_silence);
        let mut payload = Vec::new();
        let to = ToNode {
            node: node.to_owned(),
        };
        codec::encode_into(&to, &mut payload);
        let open = StreamOpen {
            owner: self.inner.owner,
            instance,
            request,
            credit_bytes: CREDIT_BYTES,
        };
        codec::encode_into(&open, &mut payload);
        let stream = Stream {
            inner: Arc::clone(&self.inner),
            id,
            link,
            incoming,
            taken_bytes: 0,
            credit_bytes: 0,
            ended: false,
            silence,
            _place: place,
        };
        stream.send(Frame::request(Operand::StreamOpen, id, payload))?;
        Ok(stream)
    }

    /// The open session, or a new one.
    async fn link(&self) -> Result<LinkSender, StreamEnd> {
        let _one_at_a_time = self.inner.connecting.lock().await;
        if let Some(link) = self.inner.state().link.clone()
            && !link.is_closed()
        {
            return Ok(link);
        }
        let address = self
            .inner
            .session
            .scheduler()
            .ok_or_else(|| unreachable("no scheduler is connected"))?;
        let body = codec::encode(&BulkHello {
            owner: Some(self.inner.owner),
        });
        let hello = Hello::new(Purpose::Bulk, self.inner.session.epoch(), body);
        let config = SessionConfig {
            queue_limit_bytes: QUEUE_LIMIT_BYTES,
            ..SessionConfig::default()
        };
        let credentials = &self.inner.credentials;
        let wire = connect(&address, credentials, Role::Scheduler, &hello, config)
            .await
            .map_err(|error| unreachable(format!("the scheduler's bulk session: {error}")))?;
        let (link, frames) = Link::spawn(wire, Arc::clone(credentials));
        let generation = {
            let mut state = self.inner.state();
            state.link = Some(link.clone());
            state.generation += 1;
            state.generation
        };
        tokio::spawn(receive(
            Arc::clone(&self.inner),
            link.clone(),
            frames,
            generation,
        ));
        Ok(link)
    }
}

/// Distributes what comes on one session to its streams.
async fn receive(inner: Arc<Inner>, link: LinkSender, mut frames: LinkReceiver, generation: u64) {
    const LOOK: Duration = Duration::from_secs(30);
    loop {
        match tokio::time::timeout(LOOK, frames.recv_batch()).await {
            Ok(Ok(batch)) => {
                let state = inner.state();
                for frame in batch {
                    distribute(&state, frame);
                }
            }
            Ok(Err(closed)) => {
                let mut state = inner.state();
                if state.generation == generation {
                    state.link = None;
                    for (_, stream) in state.open.drain() {
                        let _gone = stream.send(Incoming::End(unreachable(closed.to_string())));
                    }
                }
                return;
            }
            Err(_) => {
                let idle = inner.state().idle_since;
                if idle.is_some_and(|since| since.elapsed() >= WARM) {
                    link.close();
                }
            }
        }
    }
}

fn distribute(state: &State, frame: Frame) {
    let Some(stream) = state.open.get(&frame.correlation) else {
        return;
    };
    let mut bytes = frame.payload.into_bytes();
    let incoming = match frame.operand {
        Operand::StreamData => {
            let channel = bytes.first().copied().and_then(Channel::from_code);
            let Some(channel) = channel else { return };
            bytes.advance(1);
            Incoming::Data(channel, bytes)
        }
        Operand::StreamCredit => match codec::decode::<StreamCredit>(&bytes) {
            Ok(credit) => Incoming::Credit(credit.bytes),
            Err(_) => return,
        },
        Operand::StreamEnd => match codec::decode::<StreamEnd>(&bytes) {
            Ok(end) => Incoming::End(end),
            Err(error) => Incoming::End(unreachable(error.to_string())),
        },
        Operand::StreamCancel => Incoming::End(unreachable("the node cancelled the stream")),
        _ => return,
    };
    let _gone = stream.send(incoming);
}

impl Stream {
    fn send(&self, frame: Frame) -> Result<(), StreamEnd> {
        self.link
            .send(&frame)
            .map_err(|error| unreachable(error.to_string()))
    }

    /// The next thing that comes. After an end nothing does. Safe to drop while it waits.
    pub(crate) async fn next(&mut self) -> Incoming {
        let incoming = match self.silence {
            Some(silence) => tokio::time::timeout(silence, self.incoming.recv()).await,
            None => Ok(self.incoming.recv().await),
        };
        let incoming = match incoming {
            Ok(Some(incoming)) => incoming,
            Ok(None) => Incoming::End(unreachable("the stream has ended")),
            Err(_) => Incoming::End(unreachable(format!(
                "the node has said nothing for {:?}",
                self.silence.unwrap_or_default()
            ))),
        };
        match &incoming {
            Incoming::Credit(bytes) => {
                self.credit_bytes = self.credit_bytes.saturating_add(*bytes);
            }
            Incoming::End(_) => self.ended = true,
            Incoming::Data(..) => {}
        }
        incoming
    }

    /// The reader has taken so many bytes: as many more may come.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.taken_bytes = self
            .taken_bytes
            .saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.taken_bytes >= GRANT_BYTES {
            let body = codec::encode(&StreamCredit {
                bytes: std::mem::take(&mut self.taken_bytes),
            });
            // A broken session is noticed by the next read.
            let _broken = self.send(Frame::answer(Operand::StreamCredit, self.id, body));
        }
    }

    /// Sends bytes towards the node, as its credit allows; what comes meanwhile is data that
    /// nobody asked for, or the end.
    pub(crate) async fn write(
        &mut self,
        channel: Channel,
        mut bytes: Bytes,
    ) -> Result<(), StreamEnd> {
        while !bytes.is_empty() {
            while self.credit_bytes == 0 {
                if let Incoming::End(end) = self.next().await {
                    return Err(end);
                }
            }
            self.write_granted(channel, &mut bytes)?;
        }
        Ok(())
    }

    /// Sends as much of these bytes as its credit allows now; the rest stays in them.
    pub(crate) fn write_granted(
        &mut self,
        channel: Channel,
        bytes: &mut Bytes,
    ) -> Result<(), StreamEnd> {
        while !bytes.is_empty() && self.credit_bytes > 0 {
            let part = bytes.len().min(CHUNK_BYTES).min(self.credit_bytes as usize);
            let part = bytes.split_to(part);
            self.credit_bytes -= u32::try_from(part.len()).unwrap_or(self.credit_bytes);
            let payload = Payload::with_prefix(vec![channel as u8], part);
            self.send(Frame::answer(Operand::StreamData, self.id, payload))?;
        }
        Ok(())
    }

    /// Nothing more will be written.
    pub(crate) fn finish(&self) -> Result<(), StreamEnd> {
        let end = StreamEnd::Complete {
            code: None,
            sha256: Vec::new(),
        };
        self.send(Frame::answer(
            Operand::StreamEnd,
            self.id,
            codec::encode(&end),
        ))
    }

    /// Waits for the node's end of it.
    pub(crate) async fn end(&mut self) -> StreamEnd {
        loop {
            match self.next().await {
                Incoming::End(end) => return end,
                Incoming::Data(_, bytes) => self.took(bytes.len()),
                Incoming::Credit(_) => {}
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.open.remove(&self.id);
        if state.open.is_empty() {
            state.idle_since = Some(Instant::now());
        }
        drop(state);
        // The other end keeps its half open until ours ends, so a cancel also follows an end.
        let _broken = self.send(Frame::answer(Operand::StreamCancel, self.id, ()));
    }
}
