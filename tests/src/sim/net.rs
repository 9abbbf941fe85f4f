//! The simulated network: connections as byte streams between two protocol sessions.
//!
//! Each direction delivers its bytes in order, in pieces of any size, after a delay, and holds no
//! more than a socket's buffers would. A direction may be blocked, in which case bytes wait as they
//! do for a retransmission; a connection may be cut between any two bytes. Frames, limits,
//! permissions and keep-alive are the real sessions' own.

use super::rng::Rng;
use pronto_protocol::{
    Frame, Hello, Role, SendError, Session, SessionConfig, SessionError, Welcome,
};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Simulated time: nanoseconds from the beginning.
pub type Time = u64;
/// A millisecond of simulated time.
pub const MS: Time = 1_000_000;

/// How much fits where.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// What the kernel holds of one direction: send and receive buffer.
    pub in_flight_bytes: usize,
    /// A session queue this full makes its owner hold back.
    pub brimming_bytes: usize,
    /// A session queue this full takes nothing more.
    pub queue_bytes: usize,
}

impl Room {
    /// What a loopback socket and the daemons' own limits give.
    pub const AMPLE: Self = Self {
        in_flight_bytes: 64 * 1024,
        brimming_bytes: 512 * 1024,
        queue_bytes: 4 * 1024 * 1024,
    };
    /// So little that a slow peer's queue fills up at once.
    pub const TIGHT: Self = Self {
        in_flight_bytes: 600,
        brimming_bytes: 1500,
        queue_bytes: 6000,
    };
}

/// A machine of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    Scheduler(u32),
    Controller(u32),
    Node(u32),
}

/// A connection, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Who connected.
    Client,
    /// Who listened.
    Server,
}

impl Side {
    const fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Server => 1,
        }
    }

    /// The other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

#[derive(Debug)]
struct End {
    host: Host,
    session: Option<Session>,
}

/// Bytes from one end to the other.
#[derive(Debug, Default)]
struct Pipe {
    pieces: VecDeque<(Time, Vec<u8>)>,
    bytes: usize,
    /// No piece arrives before an earlier one.
    last_at: Time,
    /// When the sender's close arrives, behind the last byte.
    closes_at: Option<Time>,
}

#[derive(Debug)]
struct Conn {
    ends: [End; 2],
    pipes: [Pipe; 2],
}

/// What an end of a connection meets.
#[derive(Debug)]
pub enum Arrival {
    /// HELLO has come: the server must answer it.
    Hello(Hello),
    /// WELCOME has come: the session is open.
    Welcome(Welcome),
    Frame(Frame),
    /// The connection has ended for this end.
    Closed(String),
}

/// All connections.
#[derive(Debug)]
pub struct Net {
    base: Instant,
    conns: BTreeMap<ConnId, Conn>,
    next: u64,
    /// Directions that are blocked.
    blocked: BTreeMap<(Host, Host), u32>,
    /// Longest ordinary delay.
    pub max_delay: Time,
    /// Hosts that read late, by so much, until then.
    slow: BTreeMap<Host, (Time, Time)>,
    room: Room,
}

impl Net {
    /// No connections. `base` is any instant; only differences from it are used.
    #[must_use]
    pub const fn new(base: Instant, room: Room) -> Self {
        Self {
            base,
            conns: BTreeMap::new(),
            next: 1,
            blocked: BTreeMap::new(),
            max_delay: 2 * MS,
            slow: BTreeMap::new(),
            room,
        }
    }

    fn instant(&self, now: Time) -> Instant {
        self.base + Duration::from_nanos(now)
    }

    /// Connects; the client's HELLO is on its way.
    ///
    /// # Panics
    /// If HELLO is larger than its frame may be, which no core may make it.
    pub fn open(
        &mut self,
        now: Time,
        from: (Host, Role),
        to: (Host, Role),
        hello: &Hello,
        config: SessionConfig,
    ) -> ConnId {
        let id = ConnId(self.next);
        self.next += 1;
        let at = self.instant(now);
        let config = |host: Host| SessionConfig {
            // A controller that can't keep up is cut; here only nodes are to be so narrow.
            queue_limit_bytes: match host {
                Host::Node(_) => self.room.queue_bytes,
                Host::Scheduler(_) | Host::Controller(_) => Room::AMPLE.queue_bytes,
            },
            ..config
        };
        let client =
            Session::client(from.1, to.1, hello, config(to.0), at).expect("HELLO fits its frame");
        let server = Session::server(to.1, from.1, config(from.0), at);
        let ends = [
            End {
                host: from.0,
                session: Some(client),
            },
            End {
                host: to.0,
                session: Some(server),
            },
        ];
        self.conns.insert(
            id,
            Conn {
                ends,
                pipes: [Pipe::default(), Pipe::default()],
            },
        );
        id
    }

    /// Whether an end is still open.
    #[must_use]
    pub fn is_open(&self, id: ConnId, side: Side) -> bool {
        self.conns
            .get(&id)
            .is_some_and(|conn| conn.ends[side.index()].session.is_some())
    }

    /// Queues a frame.
    ///
    /// # Errors
    /// If the session's queue is full, or it has ended.
    pub fn queue(&mut self, id: ConnId, side: Side, frame: &Frame) -> Result<(), SendError> {
        self.session(id, side)
            .map_or(Err(SendError::Closed), |session| session.queue(frame))
    }

    /// Whether an end's queue is so full that its owner should hold back.
    #[must_use]
    pub fn is_brimming(&self, id: ConnId, side: Side) -> bool {
        self.conns.get(&id).is_some_and(|conn| {
            let session = conn.ends[side.index()].session.as_ref();
            session.is_some_and(|session| session.queued_bytes() > self.room.brimming_bytes)
        })
    }

    /// An end's session, while it is open.
    pub fn session(&mut self, id: ConnId, side: Side) -> Option<&mut Session> {
        self.conns.get_mut(&id)?.ends[side.index()].session.as_mut()
    }

    /// Hands what waits in both queues to the network, as far as it takes it. Returns when which
    /// end has something to look at.
    pub fn transmit(&mut self, now: Time, id: ConnId, rng: &mut Rng) -> Vec<(Time, Side)> {
        let max_delay = self.max_delay;
        let in_flight_bytes = self.room.in_flight_bytes;
        let Some(conn) = self.conns.get_mut(&id) else {
            return Vec::new();
        };
        let mut due = Vec::new();
        for side in [Side::Client, Side::Server] {
            let reader = conn.ends[side.other().index()].host;
            let Some(session) = conn.ends[side.index()].session.as_mut() else {
                continue;
            };
            let pipe = &mut conn.pipes[side.index()];
            if pipe.closes_at.is_some() {
                // Cut, which this end does not know yet: behind the gap nothing arrives.
                continue;
            }
            let late = self
                .slow
                .get(&reader)
                .map_or(0, |(by, until)| if now < *until { *by } else { 0 });
            while session.queued_bytes() > 0 && pipe.bytes < in_flight_bytes {
                let waiting = session.outgoing();
                // Mostly whole flushes; now and then a split anywhere, down to one byte.
                let limit = match rng.below(16) {
                    0 => rng.between(1, 40),
                    _ => 16 * 1024,
                };
                let limit = usize::try_from(limit).expect("small");
                let piece = waiting[..waiting.len().min(limit)].to_vec();
                session.outgoing_written(piece.len());
                let at = (now + late + rng.between(10_000, max_delay)).max(pipe.last_at);
                pipe.last_at = at;
                pipe.bytes += piece.len();
                pipe.pieces.push_back((at, piece));
                due.push((at, side.other()));
            }
        }
        due
    }

    /// Gives an end all that has reached it. Empty while its direction is blocked.
    pub fn receive(&mut self, now: Time, id: ConnId, side: Side, out: &mut Vec<Arrival>) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let from = conn.ends[side.other().index()].host;
        if self
            .blocked
            .contains_key(&(from, conn.ends[side.index()].host))
        {
            return;
        }
        let pipe = &mut conn.pipes[side.other().index()];
        let Some(session) = conn.ends[side.index()].session.as_mut() else {
            return;
        };
        let mut frames = Vec::new();
        let mut broken: Option<SessionError> = None;
        while pipe.pieces.front().is_some_and(|(at, _)| *at <= now) && broken.is_none() {
            let (_, piece) = pipe.pieces.pop_front().expect("just seen");
            pipe.bytes -= piece.len();
            broken = session.receive(&piece, &mut frames).err();
            if let Some(hello) = session.take_hello() {
                out.push(Arrival::Hello(hello));
                // The rest waits until HELLO is answered, as it does in a real shell.
                break;
            }
            if let Some(welcome) = session.take_welcome() {
                out.push(Arrival::Welcome(welcome));
            }
        }
        out.extend(frames.into_iter().map(Arrival::Frame));
        let finished = pipe.pieces.is_empty() && pipe.closes_at.is_some_and(|at| at <= now);
        if broken.is_some() || finished {
            let reason = broken.map_or_else(|| "peer closed".to_owned(), |error| error.to_string());
            out.push(Arrival::Closed(reason));
            self.close(now, id, side, 0);
        }
    }

    /// Whether more has already reached an end than the last [`Self::receive`] gave it.
    #[must_use]
    pub fn has_more(&self, now: Time, id: ConnId, side: Side) -> bool {
        self.conns.get(&id).is_some_and(|conn| {
            let pipe = &conn.pipes[side.other().index()];
            let way = (
                conn.ends[side.other().index()].host,
                conn.ends[side.index()].host,
            );
            conn.ends[side.index()].session.is_some()
                && !self.blocked.contains_key(&way)
                && pipe.pieces.front().is_some_and(|(at, _)| *at <= now)
        })
    }

    /// Closes an end: the process has closed it, or died. The peer learns it after `delay`, behind
    /// what is under way; returns when. What waited in the end's own queue is lost.
    pub fn close(&mut self, now: Time, id: ConnId, side: Side, delay: Time) -> Option<Time> {
        let conn = self.conns.get_mut(&id)?;
        conn.ends[side.index()].session = None;
        if conn.ends[side.other().index()].session.is_none() {
            self.conns.remove(&id);
            return None;
        }
        let pipe = &mut conn.pipes[side.index()];
        let at = (now + delay).max(pipe.last_at);
        pipe.closes_at.get_or_insert(at);
        Some(at)
    }

    /// Cuts a connection between any two bytes: of what is under way each direction still delivers
    /// a random beginning. Returns when the ends learn it.
    pub fn cut(&mut self, now: Time, id: ConnId, rng: &mut Rng) -> Vec<(Time, Side)> {
        let Some(conn) = self.conns.get_mut(&id) else {
            return Vec::new();
        };
        let mut due = Vec::new();
        for side in [Side::Client, Side::Server] {
            let pipe = &mut conn.pipes[side.index()];
            let mut keep = usize::try_from(rng.below(pipe.bytes as u64 + 1)).expect("a usize");
            pipe.pieces.retain_mut(|(_, piece)| {
                piece.truncate(keep);
                keep -= piece.len();
                !piece.is_empty()
            });
            pipe.bytes = pipe.pieces.iter().map(|(_, piece)| piece.len()).sum();
            let at = now.max(pipe.pieces.back().map_or(0, |(at, _)| *at));
            pipe.closes_at = Some(at);
            due.push((at, side.other()));
        }
        due
    }

    /// The connections that have an open end at a host.
    #[must_use]
    pub fn of_host(&self, host: Host) -> Vec<(ConnId, Side)> {
        let mut found = Vec::new();
        for (id, conn) in &self.conns {
            for side in [Side::Client, Side::Server] {
                let end = &conn.ends[side.index()];
                if end.host == host && end.session.is_some() {
                    found.push((*id, side));
                }
            }
        }
        found
    }

    /// The host at an end.
    #[must_use]
    pub fn host(&self, id: ConnId, side: Side) -> Option<Host> {
        self.conns.get(&id).map(|conn| conn.ends[side.index()].host)
    }

    /// Any open connection, for a fault to choose.
    #[must_use]
    pub fn all(&self) -> Vec<ConnId> {
        self.conns.keys().copied().collect()
    }

    /// Makes a host read late until some time.
    pub fn slow_down(&mut self, host: Host, by: Time, until: Time) {
        self.slow.insert(host, (by, until));
    }

    /// Blocks one direction between two hosts.
    pub fn block(&mut self, from: Host, to: Host) {
        *self.blocked.entry((from, to)).or_default() += 1;
    }

    /// Ends one block of a direction.
    pub fn unblock(&mut self, from: Host, to: Host) {
        if let Some(count) = self.blocked.get_mut(&(from, to)) {
            *count -= 1;
            if *count == 0 {
                self.blocked.remove(&(from, to));
            }
        }
    }

    /// Whether a direction is blocked.
    #[must_use]
    pub fn is_blocked(&self, from: Host, to: Host) -> bool {
        self.blocked.contains_key(&(from, to))
    }

    /// Keep-alive and time-outs of one end.
    ///
    /// # Errors
    /// If the session has timed out; the caller closes it.
    pub fn tick(&mut self, now: Time, id: ConnId, side: Side) -> Result<(), SessionError> {
        let at = self.instant(now);
        self.session(id, side)
            .map_or(Ok(()), |session| session.tick(at))
    }
}
