//! The frame thread: one thread owns the core, every session and the clock between them.
//!
//! Each session has a task that waits for its socket. What it reads goes through the core frame by
//! frame, at once; what the core sends is queued on the wires. A turn ends when every socket that
//! was readable has been read: then the core says what it says once a turn, and each session that
//! has something to say is flushed once. Nobody is woken for a frame.
//!
//! Invariants: the core is never entered twice at once; a session's end is reported to the core
//! once, and before its slot is free; nobody is called silent because this thread was stopped.

use super::breaches::Breaches;
use super::pace::{Pace, STREAM_DELAY};
use super::registry::Registry;
use super::sessions::{Sessions, nanos_since};
use super::snapshot::{Published, Snapshot};
use crate::config::SchedulerConfig;
use crate::core::{Arrival, Broker, Event, Outlet, SessionId};
use pronto_payloads::ids::SessionEpoch;
use pronto_protocol::transport::{Credentials, DetachedWire, Wire, WireError, wall_clock};
use pronto_protocol::{Frame, Hello, Operand, Refusal, RefusalCode};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, Sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

/// How often the core's own timers and a part of the sessions' are looked at.
const TICK: Duration = Duration::from_millis(50);
/// Ticks in which every session's time-outs are looked at once: one second.
const TICKS_PER_ROUND: u64 = 20;
/// A gap between two ticks above which this process was itself stopped or starved.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// Reads of one session before the others get their turn: half a megabyte.
const READS_PER_POLL: usize = 4;
/// How long sessions may take to hear that the daemon ends.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);
/// Certificates verified anew in one tick after a reload: 0.2 ms each.
const VERIFIED_PER_TICK: usize = 16;

/// A connection that is through TLS and has said HELLO.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) wire: DetachedWire,
    pub(crate) hello: Hello,
    /// Its place among the connections that there may be.
    pub(crate) place: OwnedSemaphorePermit,
}

/// What the frame thread shares with the rest of the process.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) published: Published,
    pub(crate) registry: Registry,
    pub(crate) breaches: Arc<Breaches>,
}

struct Hub {
    inner: RefCell<Inner>,
    /// Frames of the read that is being worked off, in memory that all sessions share.
    frames: RefCell<Vec<Frame>>,
    turn_wanted: Cell<bool>,
    turn_task: RefCell<Option<Waker>>,
    tasks: TaskTracker,
    /// A panic has gone through the core: nothing that it knows can be relied on.
    broken: CancellationToken,
    shared: Shared,
}

/// Cancels if it is dropped by a panic, which tokio would otherwise keep to the task that it hit.
struct Fuse<'a>(&'a CancellationToken);

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cancel();
        }
    }
}

struct Inner {
    broker: Broker,
    sessions: Sessions,
    began: Instant,
    ticked_at: Instant,
    ticks: u64,
    pace: Pace,
    /// Sessions whose certificates are yet to be verified anew.
    to_verify: Vec<SessionId>,
    verified_reloads: u64,
}

/// Why a session's task ends.
enum End {
    /// The core, or the shutdown, has refused it.
    Refused,
    Broken(WireError),
}

/// Runs the frame thread until `shutdown`.
pub(crate) fn run(
    config: &SchedulerConfig,
    incarnation: u64,
    shared: Shared,
    incoming: mpsc::Receiver<Greeted>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let began = Instant::now();
    let hub = Rc::new(Hub {
        inner: RefCell::new(Inner {
            broker: Broker::new(config.broker(), incarnation),
            sessions: Sessions::new(config.queues, began),
            began,
            ticked_at: began,
            ticks: 0,
            pace: Pace::new(began),
            to_verify: Vec::new(),
            verified_reloads: 0,
        }),
        frames: RefCell::default(),
        turn_wanted: Cell::new(false),
        turn_task: RefCell::default(),
        tasks: TaskTracker::new(),
        broken: CancellationToken::new(),
        shared,
    });
    LocalSet::new().block_on(&runtime, hub.serve(incoming, shutdown))
}

impl Hub {
    async fn serve(
        self: Rc<Self>,
        mut incoming: mpsc::Receiver<Greeted>,
        shutdown: CancellationToken,
    ) -> std::io::Result<()> {
        let turns = Rc::clone(&self);
        let mut delay = Box::pin(tokio::time::sleep(Duration::ZERO));
        tokio::task::spawn_local(poll_fn(move |cx| turns.poll_turns(cx, delay.as_mut())));
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.broken.cancelled() => {
                    return Err(std::io::Error::other("an invariant of the core was broken"));
                }
                greeted = incoming.recv() => match greeted {
                    Some(greeted) => self.take_in(greeted),
                    None => break,
                },
                _ = ticks.tick() => self.tick(),
            }
        }
        self.shut_down().await;
        Ok(())
    }

    /// Begins to serve a connection.
    fn take_in(self: &Rc<Self>, Greeted { wire, hello, place }: Greeted) {
        let wire = match wire.attach() {
            Ok(wire) => wire,
            Err(error) => {
                warn!(%error, "connection lost between its handshake and its frames");
                return;
            }
        };
        let arrival = {
            let inner = &mut *self.inner.borrow_mut();
            let peer = wire.peer();
            let (role, name) = (peer.role(), peer.name().to_owned());
            let (session, wire) = inner.sessions.insert(wire);
            // Credentials that were read anew during its handshake have not judged it.
            if self.shared.credentials.reloads() > 0 {
                inner.to_verify.push(session);
            }
            self.shared.registry.insert(session, &wire.borrow(), &hello);
            let served = Rc::clone(self).serve_session(session, wire, place);
            self.tasks.spawn_local(served);
            Arrival {
                session,
                role,
                name,
                purpose: hello.purpose,
                session_epoch: SessionEpoch(hello.session_epoch),
                body: hello.body,
            }
        };
        self.step(Event::Connected(Box::new(arrival)));
    }

    async fn serve_session(
        self: Rc<Self>,
        session: SessionId,
        wire: Rc<RefCell<Wire>>,
        place: OwnedSemaphorePermit,
    ) {
        let end = poll_fn(|cx| self.poll_session(cx, session, &wire)).await;
        let reason = match &end {
            End::Refused => String::from("ended by the scheduler"),
            End::Broken(error) => error.to_string(),
        };
        let is_lost = matches!(
            end,
            End::Broken(WireError::Io(_) | WireError::Closed { .. })
        );
        if let End::Broken(error) = &end
            && !is_lost
        {
            let peer = wire.borrow().peer().to_string();
            self.shared.breaches.note_session(&peer, error);
        }
        debug!(session = session.0, reason, "session ended");
        self.step(Event::Closed { session, reason });
        self.inner.borrow_mut().sessions.remove(session);
        self.shared.registry.remove(session);
        // Nobody else holds the wire now. A peer that is still there is told the reason.
        if let Ok(wire) = Rc::try_unwrap(wire)
            && !is_lost
        {
            wire.into_inner().finish().await;
        }
        drop(place);
    }

    /// Reads what is there, a bounded part of it, and takes it through the core.
    fn poll_session(
        &self,
        cx: &mut Context<'_>,
        session: SessionId,
        wire: &RefCell<Wire>,
    ) -> Poll<End> {
        let _fuse = Fuse(&self.broken);
        for _ in 0..READS_PER_POLL {
            if self
                .inner
                .borrow_mut()
                .sessions
                .is_closing(session, cx.waker())
            {
                return Poll::Ready(End::Refused);
            }
            let mut frames = self.frames.borrow_mut();
            let polled = wire.borrow_mut().poll_read_frames(cx, &mut frames);
            let Poll::Ready(outcome) = polled else {
                return Poll::Pending;
            };
            let inner = &mut *self.inner.borrow_mut();
            let now = inner.sessions.now();
            for frame in frames.drain(..) {
                inner
                    .broker
                    .step(now, Event::Frame { session, frame }, &mut inner.sessions);
            }
            if inner.sessions.has_drained(session) {
                inner
                    .broker
                    .step(now, Event::Drained { session }, &mut inner.sessions);
            }
            self.want_turn();
            if let Err(error) = outcome {
                return Poll::Ready(End::Broken(error));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn step(&self, event: Event) {
        let _fuse = Fuse(&self.broken);
        let inner = &mut *self.inner.borrow_mut();
        let now = inner.sessions.now();
        inner.broker.step(now, event, &mut inner.sessions);
        self.want_turn();
    }

    /// Has the turn ended once all that can run has run.
    fn want_turn(&self) {
        if !self.turn_wanted.replace(true)
            && let Some(waker) = self.turn_task.borrow().as_ref()
        {
            waker.wake_by_ref();
        }
    }

    /// The task that ends turns. `delay` is for launchers that are held back when nothing else
    /// happens any more.
    fn poll_turns(&self, cx: &mut Context<'_>, mut delay: Pin<&mut Sleep>) -> Poll<()> {
        let mut task = self.turn_task.borrow_mut();
        if !task
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            *task = Some(cx.waker().clone());
        }
        drop(task);
        let waited = self.inner.borrow().pace.is_holding_back();
        let is_over = waited && delay.as_mut().poll(cx).is_ready();
        if self.turn_wanted.replace(false) || is_over {
            if self.end_turn() {
                self.want_turn();
            }
            let waits = self.inner.borrow().pace.is_holding_back();
            if waits && (!waited || is_over) {
                delay
                    .as_mut()
                    .reset(tokio::time::Instant::now() + STREAM_DELAY);
                if delay.as_mut().poll(cx).is_ready() {
                    self.want_turn();
                }
            }
        }
        Poll::Pending
    }

    /// Ends a turn; says whether the next one has work already.
    fn end_turn(&self) -> bool {
        let _fuse = Fuse(&self.broken);
        let inner = &mut *self.inner.borrow_mut();
        let Inner {
            broker,
            sessions,
            pace,
            ..
        } = inner;
        let now = sessions.now();
        broker.step(now, Event::TurnEnded, sessions);
        let mut drained = Vec::new();
        // Controllers first: they work on their answers while launchers are written to.
        sessions.flush_others(&mut drained);
        if sessions.has_dirty_launchers()
            && !pace.holds_back(Instant::now(), broker.counters().starts)
        {
            sessions.flush_launchers(&mut drained);
        }
        for session in drained {
            broker.step(now, Event::Drained { session }, sessions);
        }
        for (session, reason) in sessions.take_failed() {
            broker.step(now, Event::Closed { session, reason }, sessions);
            sessions.close(session);
        }
        let is_held_back = pace.is_holding_back();
        broker.wants_turn()
            || sessions.has_failed()
            || sessions.has_dirty_others()
            || sessions.has_dirty_launchers() && !is_held_back
    }

    fn tick(&self) {
        {
            let inner = &mut *self.inner.borrow_mut();
            let now = Instant::now();
            let gap = now.saturating_duration_since(inner.ticked_at);
            inner.ticked_at = now;
            inner.ticks += 1;
            if gap > LONG_PAUSE {
                warn!(
                    ?gap,
                    "this process was stopped or starved; nobody is called silent for it"
                );
                for (_, wire) in inner.sessions.wires() {
                    wire.borrow_mut().session_mut().restart_timers(now);
                }
            }
            self.check_sessions(inner, now);
            self.verify_again(inner);
            if inner.ticks.is_multiple_of(TICKS_PER_ROUND) {
                let uptime = now.saturating_duration_since(inner.began);
                let snapshot = Snapshot::of(
                    &inner.broker,
                    &inner.sessions,
                    &self.shared.breaches,
                    uptime,
                );
                self.shared.published.publish(snapshot);
            }
        }
        self.step(Event::Tick);
    }

    /// Looks at the time-outs and certificates of a part of the sessions.
    fn check_sessions(&self, inner: &mut Inner, now: Instant) {
        let phase = inner.ticks % TICKS_PER_ROUND;
        let mut ended = Vec::new();
        let wall = wall_clock();
        for (session, wire) in inner.sessions.wires() {
            if session.0 % TICKS_PER_ROUND != phase {
                continue;
            }
            let mut wire = wire.borrow_mut();
            if let Err(error) = wire.refuse_expired(wall) {
                ended.push((session, error.to_string()));
            } else if let Err(error) = wire.tick(now) {
                ended.push((session, error.to_string()));
            }
        }
        self.end_sessions(inner, ended);
    }

    /// After a reload of the credentials, a revoked or no longer trusted peer is ended, a few
    /// verifications a tick.
    fn verify_again(&self, inner: &mut Inner) {
        let reloads = self.shared.credentials.reloads();
        if reloads != inner.verified_reloads {
            inner.verified_reloads = reloads;
            inner.to_verify = inner.sessions.wires().map(|(session, _)| session).collect();
        }
        if inner.to_verify.is_empty() {
            return;
        }
        let first = inner.to_verify.len().saturating_sub(VERIFIED_PER_TICK);
        let now: Vec<SessionId> = inner.to_verify.drain(first..).collect();
        let wall = wall_clock();
        let mut ended = Vec::new();
        for (session, wire) in inner
            .sessions
            .wires()
            .filter(|(session, _)| now.contains(session))
        {
            let credentials = &self.shared.credentials;
            if let Err(error) = wire.borrow_mut().refuse_invalid(wall, credentials) {
                ended.push((session, error.to_string()));
            }
        }
        self.end_sessions(inner, ended);
    }

    fn end_sessions(&self, inner: &mut Inner, ended: Vec<(SessionId, String)>) {
        let now = nanos_since(inner.began);
        for (session, reason) in ended {
            warn!(session = session.0, reason, "session ended");
            inner
                .broker
                .step(now, Event::Closed { session, reason }, &mut inner.sessions);
            inner.sessions.close(session);
            self.want_turn();
        }
    }

    /// Tells every peer, and waits until it has heard it, for a while.
    async fn shut_down(&self) {
        {
            let inner = &mut *self.inner.borrow_mut();
            let all: Vec<SessionId> = inner.sessions.wires().map(|(session, _)| session).collect();
            info!(sessions = all.len(), "shutting down");
            for session in all {
                let text = "the scheduler is shutting down";
                let refusal = Refusal::new(RefusalCode::ShuttingDown, text);
                inner.sessions.refuse(session, Operand::Busy, refusal);
            }
        }
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN_LIMIT, self.tasks.wait())
            .await
            .is_err()
        {
            warn!(sessions = self.tasks.len(), "sessions did not end in time");
        }
    }
}
