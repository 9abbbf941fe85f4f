//! Bulk streams: logs, commands inside an instance, its standard input, files in and out.
//!
//! They have a session of their own, dialled when the scheduler asks (OPEN_BULK), and one task a
//! stream, so they never delay the control session. A stream sends no more than its reader has
//! granted, and grants no more than it can hold; files are read and written off the async threads.

mod channel;
mod files;
mod logs;
mod process;
mod registry;

pub(crate) use registry::{Known, Registry};

use crate::data_dir::DataDir;
use crate::runtime::{Events, Refused, Runtimes};
use crate::shell::{Order, Orders};
use crate::supervisor::Event;
use bytes::{Buf, Bytes};
use channel::{Downward, Inbound, Upward};
use pronto_payloads::codec;
use pronto_payloads::hello::BulkHello;
use pronto_payloads::ids::SessionEpoch;
use pronto_payloads::stream::{
    CREDIT_BYTES, Channel, StreamCredit, StreamEnd, StreamFailure, StreamOpen, StreamRequest,
};
use pronto_protocol::transport::{Credentials, Link, LinkReceiver, LinkSender, connect};
use pronto_protocol::{Frame, Hello, Operand, Purpose, Role, SessionConfig};
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

/// Streams at once: each may have a quarter of a MiB under way in either direction.
const STREAMS: usize = 64;
/// What may wait to be written: every stream's whole credit, and the frames around it.
const QUEUE_BYTES: usize = STREAMS * (CREDIT_BYTES as usize + 32 * 1024);
/// How long what comes ahead of a START waits for it.
const START_LIMIT: Duration = Duration::from_secs(2);
/// A session without streams is kept warm for so long.
const IDLE: Duration = Duration::from_secs(600);

/// What every stream needs.
#[derive(Debug)]
struct Context {
    registry: Arc<Registry>,
    runtimes: Runtimes,
    data_dir: DataDir,
    orders: Orders,
    events: Events,
}

impl Context {
    /// The attempt that is meant. What an attempt needs before it can run is often here before its
    /// START, which comes on another session; it waits.
    async fn find(&self, open: &StreamOpen) -> Result<Known, Refused> {
        let (StreamRequest::Stdin | StreamRequest::CopyIn { input: true, .. }) = &open.request
        else {
            return self.present(open).await;
        };
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let arrival = self.registry.arrivals.notified();
            tokio::pin!(arrival);
            arrival.as_mut().enable();
            match self.present(open).await {
                Ok(known) if !known.ended.is_cancelled() => return Ok(known),
                outcome => {
                    if timeout_at(deadline, arrival).await.is_err() {
                        return outcome;
                    }
                }
            }
        }
    }

    /// The attempt that is here, once everything that was ordered before is done, so that its
    /// directory is there.
    async fn present(&self, open: &StreamOpen) -> Result<Known, Refused> {
        let wanted = match &open.request {
            StreamRequest::Logs(request) => request.attempt,
            _ => None,
        };
        let here = self.registry.find(open.owner, open.instance);
        let here = here.filter(|here| wanted.is_none_or(|wanted| here.job.id.attempt == wanted));
        let (answer, kept) = oneshot::channel();
        let order = Order::FindKept(open.owner, open.instance, wanted, answer);
        let kept = match self.orders.send(vec![order]) {
            Ok(()) => kept.await.ok().flatten(),
            Err(_) => None,
        };
        if let Some(known) = here {
            return Ok(known);
        }
        let registry = Registry::default();
        if let Some(job) = kept {
            registry.insert(&job, false);
        }
        registry.find(open.owner, open.instance).ok_or_else(|| {
            Refused::new(
                StreamFailure::NotFound,
                "this node has nothing of the instance",
            )
        })
    }
}

/// The launcher's bulk session, when there is one. Dropping it ends all streams.
#[derive(Debug)]
pub(crate) struct Streams {
    context: Arc<Context>,
    session: Option<JoinHandle<()>>,
}

impl Drop for Streams {
    fn drop(&mut self) {
        if let Some(session) = &self.session {
            session.abort();
        }
    }
}

impl Streams {
    pub(crate) fn new(
        registry: Arc<Registry>,
        runtimes: Runtimes,
        data_dir: DataDir,
        orders: Orders,
        events: Events,
    ) -> Self {
        let context = Context {
            registry,
            runtimes,
            data_dir,
            orders,
            events,
        };
        Self {
            context: Arc::new(context),
            session: None,
        }
    }

    /// Dials a bulk session to the scheduler of the control session; an older one ends.
    pub(crate) fn open_bulk(
        &mut self,
        address: &str,
        credentials: &Arc<Credentials>,
        epoch: SessionEpoch,
    ) {
        if let Some(session) = self.session.take() {
            session.abort();
        }
        let (address, credentials) = (address.to_owned(), credentials.clone());
        let context = self.context.clone();
        self.session = Some(tokio::spawn(async move {
            let hello = Hello::new(
                Purpose::Bulk,
                epoch.0,
                codec::encode(&BulkHello { owner: None }),
            );
            let config = SessionConfig {
                queue_limit_bytes: QUEUE_BYTES,
                ..SessionConfig::default()
            };
            match connect(&address, &credentials, Role::Scheduler, &hello, config).await {
                Ok(wire) => {
                    let (sender, receiver) = Link::spawn(wire, credentials);
                    BulkSession::new(context, sender).run(receiver).await;
                }
                Err(error) => tracing::warn!(address, %error, "can't open a bulk session"),
            }
        }));
    }
}

/// One stream as the session knows it.
struct Open {
    inbound: Downward,
    credit: Arc<tokio::sync::Semaphore>,
    task: AbortHandle,
}

struct BulkSession {
    context: Arc<Context>,
    sender: LinkSender,
    open: FxHashMap<u64, Open>,
    tasks: JoinSet<u64>,
}

impl BulkSession {
    fn new(context: Arc<Context>, sender: LinkSender) -> Self {
        Self {
            context,
            sender,
            open: FxHashMap::default(),
            tasks: JoinSet::new(),
        }
    }

    async fn run(mut self, mut receiver: LinkReceiver) {
        loop {
            tokio::select! {
                batch = receiver.recv_batch() => match batch {
                    Ok(frames) => frames.into_iter().for_each(|frame| self.frame(frame)),
                    Err(closed) => {
                        tracing::debug!(%closed, "the bulk session has ended");
                        return;
                    }
                },
                Some(ended) = self.tasks.join_next() => {
                    // An aborted one has been taken out already.
                    if let Ok(stream) = ended {
                        self.open.remove(&stream);
                    }
                }
                () = tokio::time::sleep(IDLE), if self.open.is_empty() => {
                    self.sender.close();
                    return;
                }
            }
        }
    }

    fn frame(&mut self, frame: Frame) {
        let stream = frame.correlation;
        let bytes = frame.payload.to_bytes();
        match frame.operand {
            Operand::StreamOpen => match codec::decode::<StreamOpen>(&bytes) {
                Ok(open) => self.open(stream, open),
                Err(error) => self.fail(stream, StreamFailure::Unsupported, &error.to_string()),
            },
            Operand::StreamData => self.data(stream, bytes),
            Operand::StreamEnd => {
                if let (Some(open), Ok(end)) =
                    (self.open.get(&stream), codec::decode::<StreamEnd>(&bytes))
                {
                    open.inbound.push(Inbound::End(end));
                }
            }
            Operand::StreamCredit => {
                if let (Some(open), Ok(credit)) = (
                    self.open.get(&stream),
                    codec::decode::<StreamCredit>(&bytes),
                ) {
                    let granted = (credit.bytes as usize).min(
                        (CREDIT_BYTES as usize).saturating_sub(open.credit.available_permits()),
                    );
                    open.credit.add_permits(granted);
                }
            }
            Operand::StreamCancel => {
                if let Some(open) = self.open.remove(&stream) {
                    open.task.abort();
                }
            }
            _ => {}
        }
    }

    fn data(&mut self, stream: u64, mut bytes: Bytes) {
        let Some(open) = self.open.get(&stream) else {
            return;
        };
        if bytes
            .first()
            .copied()
            .and_then(Channel::from_code)
            .is_none()
        {
            return;
        };
        bytes.advance(1);
        if !open.inbound.accept(bytes.len()) {
            if let Some(open) = self.open.remove(&stream) {
                open.task.abort();
            }
            return self.fail(
                stream,
                StreamFailure::Unsupported,
                "more data than was granted",
            );
        }
        // The block that a frame lies in would stay as long as the chunk does.
        open.inbound
            .push(Inbound::Data(Bytes::copy_from_slice(&bytes)));
    }

    fn open(&mut self, stream: u64, open: StreamOpen) {
        if self.open.len() >= STREAMS {
            let text = format!("this node serves {STREAMS} streams already");
            return self.fail(stream, StreamFailure::Busy, &text);
        }
        let credit = open.credit_bytes.min(CREDIT_BYTES) as usize;
        let credit = Arc::new(tokio::sync::Semaphore::new(credit));
        let upward = Upward::new(self.sender.clone(), stream, credit.clone());
        let (inbound, reader) = channel::downward(self.sender.clone(), stream);
        let context = self.context.clone();
        let task = self.tasks.spawn(async move {
            let end = serve(&context, &open, &upward, reader).await;
            upward.end(&end.unwrap_or_else(|refused| failed(refused.kind, &refused.text)));
            stream
        });
        self.open.insert(
            stream,
            Open {
                inbound,
                credit,
                task,
            },
        );
    }

    fn fail(&self, stream: u64, kind: StreamFailure, text: &str) {
        let frame = Frame::answer(
            Operand::StreamEnd,
            stream,
            codec::encode(&failed(kind, text)),
        );
        // A session that has ended has told the opener already.
        let _ = self.sender.send(&frame);
    }
}

fn failed(kind: StreamFailure, text: &str) -> StreamEnd {
    let end = text.floor_char_boundary(pronto_payloads::limits::TEXT_BYTES);
    StreamEnd::Failed {
        kind,
        text: text[..end].to_owned(),
    }
}

async fn serve(
    context: &Arc<Context>,
    open: &StreamOpen,
    upward: &Upward,
    reader: channel::Reader,
) -> Result<StreamEnd, Refused> {
    let known = context.find(open).await?;
    match &open.request {
        StreamRequest::Logs(request) => logs::serve(context, &known, request, upward).await,
        StreamRequest::Exec { command } => {
            process::exec(context, &known, command.clone(), upward, reader).await
        }
        StreamRequest::Stdin => process::stdin(context, &known, reader).await,
        StreamRequest::CopyOut { path } => files::copy_out(context, &known, path, upward).await,
        StreamRequest::CopyIn {
            path,
            mode,
            bytes,
            input,
        } => {
            let file = files::NewFile {
                path: path.clone(),
                mode: *mode,
                bytes: *bytes,
            };
            if *input {
                tokio::select! {
                    () = known.prepared.cancelled() => {}
                    () = known.ended.cancelled() => {}
                }
            }
            let end = files::copy_in(context, &known, file, reader).await?;
            if *input {
                context.events.tell(Event::InputArrived {
                    id: known.job.id,
                    path: path.clone(),
                });
            }
            Ok(end)
        }
        StreamRequest::List { pattern } => files::list(context, &known, pattern, upward).await,
    }
}
