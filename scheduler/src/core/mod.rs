//! The broker itself: a state machine over plain data, without a socket, a clock or a random source.
//!
//! [`Broker::step`] takes everything that can happen, one [`Event`] at a time, and hands what is to
//! be sent to an [`Outlet`]. The shell feeds it from real sessions, tests and the cluster's
//! simulation from recorded ones.
//!
//! ```text
//!   controllers                         Broker                                launchers
//!   START ───────────▶ placing ──▶ table ──▶ accounting ──▶ stamp ─────────▶ START
//!   PLACED, START_FAILURE ◀──┘                                 ┌──────────── READY, FULL, …
//!   STOP, DELETE, … ─▶ routing ───────────────────────────────│───────────▶ STOP, DELETE, …
//!   DONE, reports ◀─── routing ◀──────────────────────────────│──────────── DONE, reports
//!   STATS ◀─────────── stats ◀────────────────────────────────┤
//!   GRANT ───────────▶ leases ◀────────────────────────────────┴───────────▶ LEASE
//!   ACTIVATE ────────▶ activation (term, warm-up)
//! ```
//!
//! Invariants, checked by [`Broker::sanity_check`]: the table and the records agree on what is
//! available; every session has one record and every record one session; every START that was read
//! has been answered when `step` returns, unless its own session has ended.

mod accounting;
mod activation;
mod backoff;
mod capacity;
mod controller;
mod counters;
mod leases;
pub mod limits;
mod node;
mod nodes;
mod outlet;
mod placing;
mod routing;
mod sessions;
mod stats;
mod status;
mod streams;

pub use counters::{Counters, SEARCH_BUCKETS};
pub use outlet::{Effect, Effects, Nanos, Outgoing, Outlet, Queued, SessionId};

use crate::table::{NodeIndex, NodeTable, TableConfig};
use activation::Activation;
use bytes::Bytes;
use controller::Controller;
use node::Node;
use pronto_payloads::ids::{ControllerEpoch, Generation, OwnerId, Seq, SessionEpoch, Term};
use pronto_payloads::node::Lease;
use pronto_payloads::place::StartStamp;
use pronto_protocol::{Frame, Purpose, Quiet, Role};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use streams::Streams;

/// What the core is told once.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// How nodes are chosen.
    pub table: TableConfig,
    /// How long a lease lasts from the sending of the status that asked for it.
    pub lease_ms: u64,
    /// How often launchers send statistics, and how often each node's are passed on.
    pub stats_interval_ms: u64,
    /// STARTs that a controller may have unanswered, as WELCOME tells it.
    pub start_window: u32,
    /// After the first ACTIVATE, how long placements wait for the expected nodes at most.
    pub warm_up_ms: u64,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            table: TableConfig::default(),
            lease_ms: 10_000,
            stats_interval_ms: 1_000,
            start_window: 1024,
            warm_up_ms: 5_000,
        }
    }
}

/// A session whose HELLO is here and whose WELCOME is not.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub session: SessionId,
    /// By its certificate.
    pub role: Role,
    /// By its certificate.
    pub name: String,
    pub purpose: Purpose,
    pub session_epoch: SessionEpoch,
    /// HELLO's body, undecoded.
    pub body: Bytes,
}

/// Everything that can wake the scheduler.
#[derive(Debug)]
pub enum Event {
    /// A peer has said HELLO. Answered by WELCOME or a refusal.
    Connected(Box<Arrival>),
    /// A frame of an open session that the permission table allows.
    Frame { session: SessionId, frame: Frame },
    /// A session that said [`Queued::Brimming`] or [`Queued::Full`] has room again.
    Drained { session: SessionId },
    /// A session has ended, for this reason in words.
    Closed { session: SessionId, reason: String },
    /// Some time has passed; to come every 50 ms or so.
    Tick,
    /// All that was there to read has been read: what is said once a turn is said now.
    TurnEnded,
}

/// What a session is to the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Launcher(NodeIndex),
    LauncherBulk(NodeIndex),
    Controller(usize),
    ControllerBulk(usize),
}

/// The scheduler.
#[derive(Debug)]
pub struct Broker {
    config: BrokerConfig,
    /// Random at each start: the same number means the same memory.
    incarnation: u64,
    table: NodeTable,
    nodes: FxHashMap<NodeIndex, Node>,
    peers: FxHashMap<SessionId, Peer>,
    /// By slot; a slot is taken again after its controller has gone.
    controllers: Vec<Option<Controller>>,
    /// The highest epoch that a controller of each owner has had, oldest owner first.
    epochs: VecDeque<(OwnerId, ControllerEpoch)>,
    activation: Activation,
    generation: Generation,
    streams: Streams,
    stats: stats::Rounds,
    backed_off: Vec<NodeIndex>,
    /// Nodes of which a status has come.
    reported: usize,
    counters: Counters,
    /// Lines about sessions that are refused, about what launchers say that is, about their states,
    /// and about back-offs.
    quiet_sessions: Quiet,
    quiet_statuses: Quiet,
    quiet_states: Quiet,
    quiet_back_offs: Quiet,
    scratch: Scratch,
}

/// Memory that is used again, so that the straight path allocates nothing.
#[derive(Debug)]
struct Scratch {
    bytes: Vec<u8>,
    stamp: StartStamp,
    lease: Lease,
}

impl Broker {
    /// A scheduler that knows nobody and waits to be activated.
    #[must_use]
    pub fn new(config: BrokerConfig, incarnation: u64) -> Self {
        let lease = Lease {
            term: Term(0),
            lease_ms: 0,
            owners: Vec::new(),
        };
        let stamp = StartStamp {
            session_epoch: SessionEpoch(0),
            seq: Seq(0),
            term: Term(0),
            gpus: Vec::new(),
        };
        Self {
            table: NodeTable::new(config.table),
            config,
            incarnation,
            nodes: FxHashMap::default(),
            peers: FxHashMap::default(),
            controllers: Vec::new(),
            epochs: VecDeque::new(),
            activation: Activation::default(),
            generation: Generation(0),
            streams: Streams::default(),
            stats: stats::Rounds::default(),
            backed_off: Vec::new(),
            reported: 0,
            counters: Counters::default(),
            quiet_sessions: Quiet::default(),
            quiet_statuses: Quiet::default(),
            quiet_states: Quiet::default(),
            quiet_back_offs: Quiet::default(),
            scratch: Scratch {
                bytes: Vec::new(),
                stamp,
                lease,
            },
        }
    }

    /// Takes in one event. `now` never goes back; within a batch of frames it is the time at which
    /// they were read.
    pub fn step<O: Outlet>(&mut self, now: Nanos, event: Event, out: &mut O) {
        match event {
            Event::Frame { session, frame } => self.on_frame(now, session, frame, out),
            Event::TurnEnded => self.on_turn_ended(out),
            Event::Drained { session } => self.on_drained(session),
            Event::Connected(arrival) => self.on_connected(now, *arrival, out),
            Event::Closed { session, reason } => self.forget(session, &reason, out),
            Event::Tick => self.on_tick(now, out),
        }
    }

    fn on_tick<O: Outlet>(&mut self, now: Nanos, out: &mut O) {
        self.end_warm_up_if_due(now);
        self.end_back_offs(now);
        self.expire_held_streams(now, out);
        self.pass_on_stats(now, out);
    }

    fn on_turn_ended<O: Outlet>(&mut self, out: &mut O) {
        self.continue_node_lists(out);
        self.announce_capacity(out);
    }

    /// Whether another [`Event::TurnEnded`] has work to do, so that the shell does not sleep.
    #[must_use]
    pub fn wants_turn(&self) -> bool {
        self.live_controllers()
            .any(|(_, controller)| controller.has_pages_to_send())
    }

    /// Whether placements are made, for `/readyz` and metrics.
    #[must_use]
    pub fn is_placing(&self) -> bool {
        self.activation.is_active()
    }

    /// The term of the last activation; zero before the first.
    #[must_use]
    pub fn term(&self) -> Term {
        self.activation.term()
    }

    /// Rises whenever something that was refused might fit now.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Connected launchers.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Connected launchers that have reported and that placement may choose.
    #[must_use]
    pub fn candidate_count(&self) -> usize {
        let open = |index| {
            self.table
                .admission(index)
                .is_some_and(|flags| flags.is_open())
        };
        self.nodes
            .iter()
            .filter(|(index, node)| node.reported && open(**index))
            .count()
    }

    /// Connected controllers.
    #[must_use]
    pub fn controller_count(&self) -> usize {
        self.live_controllers().count()
    }

    /// What has been counted since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The node table, to look at.
    #[must_use]
    pub fn table(&self) -> &NodeTable {
        &self.table
    }

    /// Panics if an invariant of the module's text does not hold. Linear in everything: for tests
    /// and simulation.
    pub fn sanity_check(&self) {
        assert_eq!(self.table.len(), self.nodes.len(), "one record a node");
        assert_eq!(
            self.reported,
            self.nodes.values().filter(|node| node.reported).count()
        );
        for (index, node) in &self.nodes {
            assert_eq!(self.table.find(&node.name), Some(*index));
            assert_eq!(self.peers.get(&node.session), Some(&Peer::Launcher(*index)));
            if let Some(bulk) = node.bulk.session {
                assert_eq!(self.peers.get(&bulk), Some(&Peer::LauncherBulk(*index)));
            }
            assert!(node.commands.len() <= limits::COMMANDS_PER_NODE);
            node.account.sanity_check();
            if node.reported {
                let available = self.table.available(*index).expect("it is in the table");
                assert_eq!(&available, node.account.available(), "{}", node.name);
            }
        }
        for (slot, controller) in self.live_controllers() {
            assert_eq!(
                self.peers.get(&controller.session),
                Some(&Peer::Controller(slot))
            );
            if let Some(bulk) = controller.bulk {
                assert_eq!(self.peers.get(&bulk), Some(&Peer::ControllerBulk(slot)));
            }
        }
        let bulks = self
            .nodes
            .values()
            .filter(|node| node.bulk.session.is_some())
            .count()
            + self
                .live_controllers()
                .filter(|(_, peer)| peer.bulk.is_some())
                .count();
        assert_eq!(
            self.peers.len(),
            self.nodes.len() + self.controller_count() + bulks
        );
        self.check_streams();
    }
}
