//! The one task that owns the planner: takes what has come, steps, carries the effects out.

use super::Clock;
use super::dialer::Session;
use super::hub::Hub;
use super::metrics::Metrics;
use super::writer::Writer;
use crate::api::types::ErrorCode;
use crate::planner::{Actor, Call, Effect, Event, Refused, Reply, SessionUp, State, Token};
use pronto_protocol::Frame;
use pronto_protocol::transport::LinkSender;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Messages that share one step: more would only delay the first of them.
const BATCH: usize = 1024;

pub(crate) type Answer = Result<Reply, Refused>;

/// What reaches the engine.
#[derive(Debug)]
pub(crate) enum Message {
    Ask {
        actor: Actor,
        call: Call,
        answer: oneshot::Sender<Answer>,
    },
    Up {
        up: SessionUp,
        link: LinkSender,
    },
    Frames(Vec<Frame>),
    Event(Event),
}

/// Asks the planner.
#[derive(Clone, Debug)]
pub(crate) struct Planner {
    inbox: mpsc::Sender<Message>,
}

impl Planner {
    pub(crate) const fn new(inbox: mpsc::Sender<Message>) -> Self {
        Self { inbox }
    }

    pub(crate) async fn ask(&self, actor: Actor, call: Call) -> Answer {
        let (answer, answered) = oneshot::channel();
        let message = Message::Ask {
            actor,
            call,
            answer,
        };
        let ending = || Refused::new(ErrorCode::Internal, "the controller is ending");
        self.inbox.send(message).await.map_err(|_| ending())?;
        answered.await.unwrap_or_else(|_| Err(ending()))
    }
}

/// The planner and everything that its effects need.
#[derive(Debug)]
pub(crate) struct Engine {
    state: State,
    clock: Clock,
    writer: Writer,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    session: Session,
    link: Option<LinkSender>,
    answers: HashMap<u64, oneshot::Sender<Answer>>,
    next_token: u64,
    frames: Vec<Frame>,
}

impl Engine {
    pub(crate) fn new(
        state: State,
        clock: Clock,
        writer: Writer,
        hub: Arc<Hub>,
        metrics: Arc<Metrics>,
        session: Session,
    ) -> Self {
        Self {
            state,
            clock,
            writer,
            hub,
            metrics,
            session,
            link: None,
            answers: HashMap::new(),
            next_token: 1,
            frames: Vec::new(),
        }
    }

    pub(crate) async fn run(
        mut self,
        mut messages: mpsc::Receiver<Message>,
        shutdown: CancellationToken,
    ) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut events = Vec::with_capacity(BATCH);
        let mut effects = Vec::new();
        loop {
            let tick = self.clock.instant(self.state.next_tick_ns());
            let received = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                received = messages.recv_many(&mut batch, BATCH) => received,
                () = tokio::time::sleep_until(tick.into()) => 0,
            };
            if received == 0 && messages.is_closed() {
                return;
            }
            for message in batch.drain(..) {
                self.take(message, &mut events);
            }
            let now = self.clock.now();
            if now.mono_ns >= self.state.next_tick_ns() {
                events.push(Event::Tick);
                self.metrics.note_instances(&self.state);
            }
            self.state.step_batch(now, events.drain(..), &mut effects);
            for effect in effects.drain(..) {
                self.carry_out(effect);
            }
            self.send_frames();
        }
    }

    fn take(&mut self, message: Message, events: &mut Vec<Event>) {
        match message {
            Message::Ask {
                actor,
                call,
                answer,
            } => {
                let token = self.next_token;
                self.next_token += 1;
                self.answers.insert(token, answer);
                events.push(Event::Request {
                    token: Token(token),
                    actor,
                    call: Box::new(call),
                });
            }
            Message::Up { up, link } => {
                info!(
                    scheduler = up.address,
                    term = up.term.0,
                    "connected to the scheduler"
                );
                self.link = Some(link);
                events.push(Event::SessionUp(up));
            }
            Message::Frames(frames) => events.extend(frames.into_iter().map(Event::Frame)),
            Message::Event(event) => {
                if matches!(event, Event::SessionDown { .. }) {
                    self.link = None;
                }
                events.push(event);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Commit(batch) => self.writer.commit(batch),
            Effect::Send(frame) => self.frames.push(frame),
            Effect::Reply { token, reply } => {
                if let Some(answer) = self.answers.remove(&token.0) {
                    // Who has hung up meanwhile needs no answer.
                    let _gone = answer.send(reply);
                }
            }
            Effect::Changed(change) => self.hub.publish(change),
            Effect::Recorded(row) => self.hub.publish_event(&row),
            Effect::Lookup { lookup, id } => self.writer.lookup(lookup, id),
            Effect::DropSession { reason } => {
                warn!(reason, "the session to the scheduler is given up");
                self.session.set_epoch(self.state.epoch());
                if let Some(link) = self.link.take() {
                    link.close();
                }
            }
            Effect::Warn(text) => warn!("{text}"),
        }
    }

    fn send_frames(&mut self) {
        if self.frames.is_empty() {
            return;
        }
        self.metrics.note_sent(&self.frames);
        if let Some(link) = &self.link
            && let Err(error) = link.send_all(&self.frames)
        {
            // What can't be sent is found out again after a new session's reconciliation.
            warn!(%error, "frames can't be sent, the session is given up");
            link.close();
            self.link = None;
        }
        self.frames.clear();
    }
}
