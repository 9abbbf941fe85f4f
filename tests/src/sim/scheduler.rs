//! The simulated scheduler process: the broker's core over simulated sessions.

use super::net::{Arrival, ConnId, Net, Side, Time};
use super::plant::Plant;
use super::sabotage;
use pronto_payloads::ids::SessionEpoch;
use pronto_protocol::{Operand, Refusal, Role, Welcome};
use pronto_scheduler::core::{
    Arrival as Greeting, Broker, BrokerConfig, Event, Nanos, Outgoing, Outlet, Queued, SessionId,
};
use std::collections::{BTreeMap, BTreeSet};

/// How often the core hears that time has passed.
pub const TICK: Time = 50 * super::net::MS;

/// One process.
#[derive(Debug)]
pub struct SchedulerHost {
    pub broker: Broker,
    plant: Option<Plant>,
    /// Sessions that were told to hold back.
    brimming: BTreeSet<ConnId>,
    known: BTreeSet<ConnId>,
    /// STARTs queued for each session.
    starts: BTreeMap<ConnId, u64>,
}

/// What a step has touched.
#[derive(Debug, Default)]
pub struct Touched {
    /// Connections that have something to transmit.
    pub sent: BTreeSet<ConnId>,
    /// Connections to be closed once it is transmitted.
    pub refused: Vec<ConnId>,
    /// How many frames filled their queue so far that their sender holds back.
    pub brimming: u64,
    /// How many frames found their queue full.
    pub full: u64,
}

struct SimOutlet<'a> {
    net: &'a mut Net,
    now: Time,
    brimming: &'a mut BTreeSet<ConnId>,
    touched: &'a mut Touched,
    starts: &'a mut BTreeMap<ConnId, u64>,
    plant: Option<Plant>,
}

impl Outlet for SimOutlet<'_> {
    fn send(&mut self, session: SessionId, message: Outgoing<'_>) -> Queued {
        let conn = ConnId(session.0);
        let frame = message.to_frame();
        if self.plant == Some(Plant::AnswersTwice)
            && message.operand == Operand::Placed
            && frame.correlation.is_multiple_of(16)
        {
            let _first = self.net.queue(conn, Side::Server, &frame);
        }
        match self.net.queue(conn, Side::Server, &frame) {
            Ok(()) => {
                self.touched.sent.insert(conn);
                if message.operand == Operand::Start {
                    *self.starts.entry(conn).or_default() += 1;
                }
                if self.net.is_brimming(conn, Side::Server) {
                    self.touched.brimming += 1;
                    self.brimming.insert(conn);
                    Queued::Brimming
                } else {
                    Queued::Room
                }
            }
            Err(pronto_protocol::SendError::Full { .. }) => {
                self.touched.full += 1;
                self.brimming.insert(conn);
                Queued::Full
            }
            Err(pronto_protocol::SendError::Closed) => Queued::Gone,
            Err(other) => panic!("the scheduler sends what it may not: {other}"),
        }
    }

    fn welcome(&mut self, session: SessionId, welcome: Welcome) {
        let conn = ConnId(session.0);
        if let Some(open) = self.net.session(conn, Side::Server) {
            open.welcome(welcome)
                .expect("a session that said HELLO can be welcomed");
            self.touched.sent.insert(conn);
        }
    }

    fn refuse(&mut self, session: SessionId, operand: Operand, refusal: Refusal) {
        let conn = ConnId(session.0);
        if let Some(open) = self.net.session(conn, Side::Server) {
            let _why = open.refuse(operand, refusal);
            self.touched.sent.insert(conn);
            self.touched.refused.push(conn);
        }
    }

    fn clock(&self) -> Nanos {
        Nanos(self.now)
    }
}

impl SchedulerHost {
    /// A process that has just started.
    #[must_use]
    pub fn new(config: BrokerConfig, incarnation: u64, plant: Option<Plant>) -> Self {
        Self {
            plant,
            broker: Broker::new(config, incarnation),
            brimming: BTreeSet::new(),
            known: BTreeSet::new(),
            starts: BTreeMap::new(),
        }
    }

    /// Handles what has arrived on a connection, whose peer has this role and name.
    #[expect(
        clippy::too_many_arguments,
        reason = "the world in which a process lives"
    )]
    pub fn arrived(
        &mut self,
        now: Time,
        net: &mut Net,
        conn: ConnId,
        peer: (Role, &str),
        arrivals: Vec<Arrival>,
        plant: Option<Plant>,
        touched: &mut Touched,
    ) {
        let session = SessionId(conn.0);
        for arrival in arrivals {
            let event = match arrival {
                Arrival::Hello(hello) => {
                    self.known.insert(conn);
                    Event::Connected(Box::new(Greeting {
                        session,
                        role: peer.0,
                        name: peer.1.to_owned(),
                        purpose: hello.purpose,
                        session_epoch: SessionEpoch(hello.session_epoch),
                        body: hello.body,
                    }))
                }
                Arrival::Frame(mut frame) => {
                    if plant == Some(Plant::SkipsAppliedSeq) {
                        let sent = self.starts.get(&conn).copied().unwrap_or(0);
                        sabotage::apply_up_to(&mut frame, sent);
                    }
                    Event::Frame { session, frame }
                }
                Arrival::Closed(reason) => {
                    if !self.known.remove(&conn) {
                        continue;
                    }
                    Event::Closed { session, reason }
                }
                Arrival::Welcome(_) => unreachable!("a server gets no WELCOME"),
            };
            self.step(now, net, event, touched);
        }
        self.step(now, net, Event::TurnEnded, touched);
        while self.broker.wants_turn() {
            self.step(now, net, Event::TurnEnded, touched);
        }
    }

    /// Handles one event of its own.
    pub fn step(&mut self, now: Time, net: &mut Net, event: Event, touched: &mut Touched) {
        let mut outlet = SimOutlet {
            net,
            now,
            brimming: &mut self.brimming,
            touched,
            starts: &mut self.starts,
            plant: self.plant,
        };
        self.broker.step(Nanos(now), event, &mut outlet);
    }

    /// Says so where a session that was full has room again.
    pub fn drained(&mut self, now: Time, net: &mut Net, touched: &mut Touched) {
        let relieved: Vec<_> = self
            .brimming
            .iter()
            .copied()
            .filter(|conn| !net.is_brimming(*conn, Side::Server))
            .collect();
        for conn in relieved {
            self.brimming.remove(&conn);
            if net.is_open(conn, Side::Server) {
                self.step(
                    now,
                    net,
                    Event::Drained {
                        session: SessionId(conn.0),
                    },
                    touched,
                );
            }
        }
    }

    /// A session was closed at this end.
    pub fn closed(
        &mut self,
        now: Time,
        net: &mut Net,
        conn: ConnId,
        reason: &str,
        touched: &mut Touched,
    ) {
        if self.known.remove(&conn) {
            let event = Event::Closed {
                session: SessionId(conn.0),
                reason: reason.to_owned(),
            };
            self.step(now, net, event, touched);
        }
    }
}
