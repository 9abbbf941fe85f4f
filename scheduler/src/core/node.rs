//! What the core knows of one connected launcher.
//!
//! ```text
//!  HELLO ──▶ Silent ──READY/FULL/MAINTENANCE──▶ Reporting ──OFFLINE──▶ Leaving
//!              │          (candidate if READY)        │                   │
//!              └──────────────────────────────── session ends ◀───────────┘
//! ```
//!
//! One that is not heard for three intervals of its statistics, or three seconds where it sends none,
//! is silent: it is not placed on and is shown as FULL, with that reason, until it is heard again or
//! its session times out.
//!
//! A record lives as long as its control session; nothing of it outlives that.

use super::accounting::Account;
use super::backoff::Faults;
use super::limits::MISSED_STATS;
use super::outlet::{Nanos, SessionId};
use super::routing::Pending;
use super::streams::Uncredited;
use bytes::Bytes;
use pronto_payloads::hello::{LauncherHello, Mode, OwnerSummary};
use pronto_payloads::ids::{BootId, NodeUuid, OwnerId, SessionEpoch, Term};
use pronto_payloads::node::{NodeConnected, NodeFacts, NodeLoad, NodeState};
use pronto_protocol::Operand;
use rustc_hash::FxHashMap;

/// One connected launcher.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) session: SessionId,
    /// The name in its certificate.
    pub(crate) name: String,
    pub(crate) node_uuid: NodeUuid,
    pub(crate) boot_id: BootId,
    pub(crate) session_epoch: SessionEpoch,
    /// The highest term that it had seen when it connected: it obeys none below.
    pub(crate) term: Term,
    /// The runtimes in it are those offered now.
    pub(crate) facts: NodeFacts,
    pub(crate) owners: Vec<OwnerSummary>,
    pub(crate) state: NodeState,
    /// Why FULL, for people.
    pub(crate) reason: String,
    /// A status has come: what is free is known.
    pub(crate) reported: bool,
    /// When a frame last came from it.
    pub(crate) heard_at: Nanos,
    /// It has sent statistics, so that it is to be heard as often as they are wanted.
    pub(crate) sends_stats: bool,
    /// It was to be heard and was not; it is not placed on until it is.
    pub(crate) silent: bool,
    /// The session's queue is above its mark and has not drained.
    pub(crate) brimming: bool,
    /// The last status that asked for a lease before there was one to give.
    pub(crate) asked_in_vain: Option<u64>,
    pub(crate) account: Account,
    pub(crate) faults: Faults,
    pub(crate) commands: FxHashMap<u64, Pending>,
    pub(crate) last_command: u64,
    pub(crate) stats: StatsOfNode,
    pub(crate) bulk: BulkOfNode,
}

/// Statistics not yet passed on: the later replaces the earlier.
#[derive(Debug, Default)]
pub(crate) struct StatsOfNode {
    pub(crate) load: NodeLoad,
    /// The last EVENT STATS, undecoded, until it has been passed on.
    pub(crate) latest: Option<Bytes>,
    pub(crate) dirty: bool,
    /// Waits in the list of nodes that are passed on at the next tick.
    pub(crate) urgent: bool,
}

/// The node's side of bulk streams.
#[derive(Debug, Default)]
pub(crate) struct BulkOfNode {
    pub(crate) session: Option<SessionId>,
    /// STREAM_OPENs that wait for it, oldest first: their streams' numbers.
    pub(crate) held: Vec<u64>,
    /// When it was asked to open one last.
    pub(crate) asked_at: Option<Nanos>,
    pub(crate) streams: usize,
    pub(crate) uncredited: Uncredited,
}

impl Node {
    pub(crate) fn new(
        session: SessionId,
        name: String,
        session_epoch: SessionEpoch,
        hello: LauncherHello,
        now: Nanos,
    ) -> Self {
        Self {
            session,
            name,
            node_uuid: hello.node_uuid,
            boot_id: hello.boot_id,
            session_epoch,
            term: hello.term,
            facts: hello.facts,
            owners: hello.owners,
            state: match hello.mode {
                Mode::Ready => NodeState::Ready,
                Mode::Maintenance => NodeState::Maintenance,
            },
            reason: String::new(),
            reported: false,
            heard_at: now,
            sends_stats: false,
            silent: false,
            brimming: false,
            asked_in_vain: None,
            account: Account::default(),
            faults: Faults::default(),
            commands: FxHashMap::default(),
            last_command: 0,
            stats: StatsOfNode::default(),
            bulk: BulkOfNode::default(),
        }
    }

    /// Whether it counts as FULL.
    pub(crate) fn shown_full(&self) -> bool {
        self.silent || self.state == NodeState::Full
    }

    /// The state that others are told, with its reason.
    pub(crate) fn shown(&self) -> (NodeState, String) {
        if self.silent {
            return (
                NodeState::Full,
                format!("silent: {MISSED_STATS} statistics of this node are missing"),
            );
        }
        (self.state, self.reason.clone())
    }

    /// What a controller is told of it: the digest is its own owner's alone.
    pub(crate) fn connected(&self, owner: OwnerId) -> NodeConnected {
        let summary = self.owners.iter().find(|summary| summary.owner == owner);
        NodeConnected {
            node: self.name.clone(),
            node_uuid: self.node_uuid,
            boot_id: self.boot_id,
            session_epoch: self.session_epoch,
            state: self.shown().0,
            attempts: summary.map_or(0, |summary| summary.attempts),
            digest: summary.map_or(0, |summary| summary.digest),
            facts: self.facts.clone(),
        }
    }
}

/// The state that a STATUS operand says.
pub(crate) const fn state_of(operand: Operand) -> Option<NodeState> {
    match operand {
        Operand::Ready => Some(NodeState::Ready),
        Operand::Full => Some(NodeState::Full),
        Operand::Maintenance => Some(NodeState::Maintenance),
        Operand::Offline => Some(NodeState::Offline),
        _ => None,
    }
}
