//! Bulk streams: opened towards a node's bulk session, renumbered, relayed both ways, bounded.
//!
//! ```text
//!  STREAM_OPEN ──▶ Held ──launcher's bulk session──▶ Open ──END of both, CANCEL, a session's end──▶ gone
//!                   └ 5 s, or the node goes: STREAM_END Failed(Unreachable)
//! ```
//!
//! A controller names its streams by ids of its own; towards launchers they have the scheduler's
//! numbers. What may be under way in each direction is what its final reader has granted, so what
//! the relay holds is bounded by that; a sender that exceeds it loses the stream. What needs no credit
//! is bounded by the second; a sender that exceeds that loses its session.

use super::limits::{
    HELD_OPEN_MS, HELD_OPENS_PER_NODE, OPEN_BULK_AGAIN_MS, STREAMS_PER_CONTROLLER,
    STREAMS_PER_NODE, UNCREDITED_PER_S,
};
use super::outlet::{Nanos, Outgoing, Outlet, Queued, SessionId};
use super::{Broker, Peer, routing};
use crate::table::NodeIndex;
use bytes::Bytes;
use pronto_payloads::codec;
use pronto_payloads::control::ToNode;
use pronto_payloads::stream::{CREDIT_BYTES, StreamCredit, StreamEnd, StreamFailure, StreamOpen};
use pronto_protocol::{Operand, Refusal, RefusalCode};
use rustc_hash::FxHashMap;
use tracing::warn;

/// All streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// By the scheduler's number.
    all: FxHashMap<u64, Stream>,
    /// The scheduler's number by the controller's bulk session and id.
    numbers: FxHashMap<(SessionId, u64), u64>,
    last_number: u64,
    /// Held ones, oldest first.
    held: Vec<u64>,
}

#[derive(Debug)]
struct Stream {
    node: NodeIndex,
    slot: usize,
    controller: SessionId,
    /// The controller's id.
    id: u64,
    state: State,
    /// What may still be sent towards the controller, and towards the launcher.
    up: Direction,
    down: Direction,
}

#[derive(Debug)]
enum State {
    Held {
        open: Bytes,
        /// An input that is empty ends before anybody has granted anything.
        end: Option<Bytes>,
        until: Nanos,
    },
    Open {
        launcher: SessionId,
    },
}

#[derive(Clone, Copy, Debug, Default)]
struct Direction {
    credit_bytes: u32,
    ended: bool,
}

/// What a bulk session has sent in this second without spending credit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Uncredited {
    second: u64,
    frames: u32,
}

impl Uncredited {
    /// Whether one more may come now.
    fn admits(&mut self, now: Nanos) -> bool {
        let second = now.0 / 1_000_000_000;
        if second != self.second {
            *self = Self { second, frames: 0 };
        }
        self.frames += 1;
        self.frames <= UNCREDITED_PER_S
    }
}

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Broker {
    pub(super) fn on_stream<O: Outlet>(
        &mut self,
        now: Nanos,
        (session, peer): (SessionId, Peer),
        (operand, correlation): (Operand, u64),
        payload: Bytes,
        out: &mut O,
    ) {
        // The first byte of data is its channel, and spends nothing.
        let spends = operand == Operand::StreamData && payload.len() > 1;
        if !spends && !self.admits_uncredited(now, peer) {
            return self.end_flood(now, session, out);
        }
        match peer {
            Peer::ControllerBulk(slot) if operand == Operand::StreamOpen => {
                let opened = self.open_stream(now, (slot, session), correlation, payload, out);
                if let Err((kind, text)) = opened {
                    say_end(session, correlation, kind, text, out);
                }
            }
            Peer::ControllerBulk(_) => {
                if let Some(&number) = self.streams.numbers.get(&(session, correlation)) {
                    self.relay(number, Way::Down, operand, &payload, out);
                }
            }
            Peer::LauncherBulk(_) if operand == Operand::StreamOpen => {
                let text = "streams are opened by controllers";
                let refusal = routing::refusal(RefusalCode::NotPermitted, text);
                let message = Outgoing::new(Operand::Unauthorized, correlation, [&refusal, &[]]);
                let _not_needed = out.send(session, message);
            }
            Peer::LauncherBulk(_) => {
                let own = self.streams.all.get(&correlation).is_some_and(
                    |stream| matches!(stream.state, State::Open { launcher } if launcher == session),
                );
                if own {
                    self.relay(correlation, Way::Up, operand, &payload, out);
                }
            }
            Peer::Launcher(_) | Peer::Controller(_) => {}
        }
    }

    fn admits_uncredited(&mut self, now: Nanos, peer: Peer) -> bool {
        let uncredited = match peer {
            Peer::LauncherBulk(index) => {
                let node = self.nodes.get_mut(&index);
                node.map(|node| &mut node.bulk.uncredited)
            }
            Peer::ControllerBulk(slot) => {
                let controller = self.controllers[slot].as_mut();
                controller.map(|controller| &mut controller.uncredited)
            }
            Peer::Launcher(_) | Peer::Controller(_) => None,
        };
        uncredited.is_none_or(|uncredited| uncredited.admits(now))
    }

    fn end_flood<O: Outlet>(&mut self, now: Nanos, session: SessionId, out: &mut O) {
        self.counters.sessions_refused += 1;
        let text = format!("{UNCREDITED_PER_S} frames without credit in a second are the most");
        if let Some(left_out) = self.quiet_sessions.line(now.0) {
            warn!(
                session = session.0,
                reason = text,
                left_out,
                "session ended"
            );
        }
        let refusal = Refusal::new(RefusalCode::LimitReached, text);
        self.end_session(session, Operand::Busy, refusal, out);
    }

    fn open_stream<O: Outlet>(
        &mut self,
        now: Nanos,
        (slot, session): (usize, SessionId),
        id: u64,
        mut payload: Bytes,
        out: &mut O,
    ) -> Result<(), (StreamFailure, String)> {
        let malformed = |error: codec::DecodeError| (StreamFailure::Unsupported, error.to_string());
        let to: ToNode = codec::take(&mut payload).map_err(malformed)?;
        let open: StreamOpen = codec::decode(&payload).map_err(malformed)?;
        let busy = |text: String| (StreamFailure::Busy, text);
        let Some(controller) = &mut self.controllers[slot] else {
            return Ok(());
        };
        if open.owner != controller.owner {
            let text = format!(
                "owner is not accepted: {} is this session's",
                controller.owner
            );
            return Err((StreamFailure::Unsupported, text));
        }
        if self.streams.numbers.contains_key(&(session, id)) {
            return Err((
                StreamFailure::Unsupported,
                format!("stream {id} is open already"),
            ));
        }
        if controller.streams >= STREAMS_PER_CONTROLLER {
            return Err(busy(format!(
                "{STREAMS_PER_CONTROLLER} streams are open, the most"
            )));
        }
        let unreachable = || {
            (
                StreamFailure::Unreachable,
                format!("node {} is not connected", to.node),
            )
        };
        let index = self.table.find(&to.node).ok_or_else(unreachable)?;
        let node = self.nodes.get_mut(&index).ok_or_else(unreachable)?;
        if node.bulk.streams >= STREAMS_PER_NODE || node.bulk.held.len() >= HELD_OPENS_PER_NODE {
            return Err(busy(format!(
                "{STREAMS_PER_NODE} streams of {} are open",
                to.node
            )));
        }
        let number = self.streams.last_number + 1;
        let control = node.session;
        let launcher = node.bulk.session;
        node.bulk.streams += 1;
        controller.streams += 1;
        self.streams.last_number = number;
        self.streams.numbers.insert((session, id), number);
        let up = Direction {
            credit_bytes: open.credit_bytes.min(CREDIT_BYTES),
            ended: false,
        };
        let until = now.plus_ms(HELD_OPEN_MS);
        let state = State::Held {
            open: Bytes::copy_from_slice(&payload),
            end: None,
            until,
        };
        let down = Direction::default();
        let stream = Stream {
            node: index,
            slot,
            controller: session,
            id,
            state,
            up,
            down,
        };
        self.streams.all.insert(number, stream);
        if let Some(launcher) = launcher {
            self.open_towards(number, launcher, out);
            return Ok(());
        }
        let asked_at = node.bulk.asked_at;
        if asked_at.is_none_or(|at| at.plus_ms(OPEN_BULK_AGAIN_MS) <= now) {
            node.bulk.asked_at = Some(now);
            // A launcher that misses it is asked again by a later one; this one then times out.
            let _not_needed = out.send(control, Outgoing::new(Operand::OpenBulk, 0, [&[], &[]]));
        }
        node.bulk.held.push(number);
        self.streams.held.push(number);
        Ok(())
    }

    fn open_towards<O: Outlet>(&mut self, number: u64, launcher: SessionId, out: &mut O) {
        let Some(stream) = self.streams.all.get_mut(&number) else {
            return;
        };
        let opened = State::Open { launcher };
        let State::Held { open, end, .. } = std::mem::replace(&mut stream.state, opened) else {
            return;
        };
        stream.down.ended = end.is_some();
        let parts = [(Operand::StreamOpen, Some(open)), (Operand::StreamEnd, end)];
        for (operand, payload) in parts {
            let Some(payload) = payload else { continue };
            let message = Outgoing::new(operand, number, [&payload, &[]]);
            if matches!(out.send(launcher, message), Queued::Full | Queued::Gone) {
                let text = "the node does not read its bulk session";
                return self.break_stream(number, StreamFailure::Unreachable, text, out);
            }
        }
    }

    /// A launcher's bulk session is here: what waited for it goes on.
    pub(super) fn open_held_streams<O: Outlet>(&mut self, index: NodeIndex, out: &mut O) {
        let Some(node) = self.nodes.get_mut(&index) else {
            return;
        };
        let Some(launcher) = node.bulk.session else {
            return;
        };
        let held = std::mem::take(&mut node.bulk.held);
        self.streams.held.retain(|number| !held.contains(number));
        for number in held {
            self.open_towards(number, launcher, out);
        }
    }

    fn relay<O: Outlet>(
        &mut self,
        number: u64,
        way: Way,
        operand: Operand,
        payload: &Bytes,
        out: &mut O,
    ) {
        let Some(stream) = self.streams.all.get_mut(&number) else {
            return;
        };
        let launcher = match &mut stream.state {
            State::Open { launcher } => *launcher,
            // Nothing else can be said to a stream that waits: no byte is granted yet.
            State::Held { end, .. } => {
                match operand {
                    Operand::StreamEnd => *end = Some(payload.clone()),
                    Operand::StreamCancel => drop(self.remove_stream(number)),
                    _ => {}
                }
                return;
            }
        };
        let (forwards, backwards) = match way {
            Way::Up => (&mut stream.up, &mut stream.down),
            Way::Down => (&mut stream.down, &mut stream.up),
        };
        let kept = match operand {
            Operand::StreamData => {
                // The first byte says the channel; the credit counts what follows it.
                let bytes = u32::try_from(payload.len().saturating_sub(1)).unwrap_or(u32::MAX);
                let left = forwards
                    .credit_bytes
                    .checked_sub(bytes)
                    .filter(|_| !forwards.ended);
                left.map(|left| forwards.credit_bytes = left)
            }
            Operand::StreamCredit => codec::decode::<StreamCredit>(payload)
                .ok()
                .and_then(|more| {
                    let sum = backwards.credit_bytes.checked_add(more.bytes)?;
                    (sum <= CREDIT_BYTES).then(|| backwards.credit_bytes = sum)
                }),
            Operand::StreamEnd => {
                forwards.ended = true;
                Some(())
            }
            _ => Some(()),
        };
        if kept.is_none() {
            let text = "more was sent or granted than the stream's credit allows";
            return self.break_stream(number, StreamFailure::Failed, text, out);
        }
        let over = operand == Operand::StreamCancel || stream.up.ended && stream.down.ended;
        let (to, correlation) = match way {
            Way::Up => (stream.controller, stream.id),
            Way::Down => (launcher, number),
        };
        let queued = out.send(to, Outgoing::new(operand, correlation, [payload, &[]]));
        if over {
            self.remove_stream(number);
        } else if matches!(queued, Queued::Full | Queued::Gone) {
            let text = "the other end does not read its bulk session";
            self.break_stream(number, StreamFailure::Unreachable, text, out);
        }
    }

    fn remove_stream(&mut self, number: u64) -> Option<Stream> {
        let stream = self.streams.all.remove(&number)?;
        self.streams.numbers.remove(&(stream.controller, stream.id));
        if let Some(controller) = &mut self.controllers[stream.slot] {
            controller.streams -= 1;
        }
        let waits = matches!(stream.state, State::Held { .. });
        if waits {
            self.streams.held.retain(|held| *held != number);
        }
        if let Some(node) = self.nodes.get_mut(&stream.node) {
            node.bulk.streams -= 1;
            if waits {
                node.bulk.held.retain(|held| *held != number);
            }
        }
        Some(stream)
    }

    /// Ends a stream for both ends. A session that has ended meanwhile hears nothing.
    fn break_stream<O: Outlet>(
        &mut self,
        number: u64,
        kind: StreamFailure,
        text: &str,
        out: &mut O,
    ) {
        let Some(stream) = self.remove_stream(number) else {
            return;
        };
        if self.peers.contains_key(&stream.controller) {
            say_end(stream.controller, stream.id, kind, text.to_owned(), out);
        }
        if let State::Open { launcher } = stream.state
            && self.peers.contains_key(&launcher)
        {
            // A session without room for it has been without for a while and ends by itself.
            let _not_needed = out.send(
                launcher,
                Outgoing::new(Operand::StreamCancel, number, [&[], &[]]),
            );
        }
    }

    /// A bulk session has ended and is forgotten: so are its streams.
    pub(super) fn end_streams_of_session<O: Outlet>(&mut self, session: SessionId, out: &mut O) {
        let of_session = |stream: &Stream| {
            stream.controller == session
                || matches!(stream.state, State::Open { launcher } if launcher == session)
        };
        let text = "the connection to its node's launcher broke";
        self.break_streams(of_session, text, out);
    }

    pub(super) fn end_held_streams_of_node<O: Outlet>(&mut self, index: NodeIndex, out: &mut O) {
        self.break_streams(
            |stream| stream.node == index,
            "the node has disconnected",
            out,
        );
    }

    pub(super) fn expire_held_streams<O: Outlet>(&mut self, now: Nanos, out: &mut O) {
        if self.streams.held.is_empty() {
            return;
        }
        let late =
            |stream: &Stream| matches!(stream.state, State::Held { until, .. } if now >= until);
        self.break_streams(
            late,
            "the node has not brought up its bulk session in time",
            out,
        );
    }

    fn break_streams<O: Outlet>(
        &mut self,
        which: impl Fn(&Stream) -> bool,
        text: &str,
        out: &mut O,
    ) {
        let all = self.streams.all.iter();
        let mut ended: Vec<u64> = all
            .filter(|(_, stream)| which(stream))
            .map(|(number, _)| *number)
            .collect();
        ended.sort_unstable();
        for number in ended {
            self.break_stream(number, StreamFailure::Unreachable, text, out);
        }
    }

    pub(super) fn check_streams(&self) {
        assert_eq!(self.streams.all.len(), self.streams.numbers.len());
        for (index, node) in &self.nodes {
            let own = self
                .streams
                .all
                .values()
                .filter(|stream| stream.node == *index);
            assert_eq!(node.bulk.streams, own.count(), "{}", node.name);
        }
        for (slot, controller) in self.live_controllers() {
            let own = self
                .streams
                .all
                .values()
                .filter(|stream| stream.slot == slot);
            assert_eq!(controller.streams, own.count(), "{}", controller.name);
        }
        for (number, stream) in &self.streams.all {
            assert_eq!(
                self.streams.numbers.get(&(stream.controller, stream.id)),
                Some(number)
            );
            assert!(self.nodes.contains_key(&stream.node));
            let waits = matches!(stream.state, State::Held { .. });
            assert_eq!(self.streams.held.contains(number), waits);
            assert_eq!(self.nodes[&stream.node].bulk.held.contains(number), waits);
        }
    }
}

fn say_end<O: Outlet>(session: SessionId, id: u64, kind: StreamFailure, text: String, out: &mut O) {
    let end = codec::encode(&StreamEnd::Failed { kind, text });
    // A controller that does not read its streams has lost them.
    let _not_needed = out.send(session, Outgoing::new(Operand::StreamEnd, id, [&end, &[]]));
}
