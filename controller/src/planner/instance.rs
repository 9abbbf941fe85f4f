//! One living instance, in little memory.
//!
//! # The state machine that users see
//!
//! ```text
//!             ┌───────────── a new attempt: restart, reschedule, move ────────────┐
//!             ▼                                                                   │
//! submit ─▶ pending ──START──▶ placing ──PLACED──▶ starting ──report──▶ running ──┤
//!             │  ▲                 │                   │                          │
//!             │  └─START_FAILURE───┘                   └─────────────┬────────────┘
//!             │                                                      ▼
//!             ├─▶ expired    (pending timeout)        succeeded, failed, stopped, node_lost
//!             └─▶ cancelled  (stopped before it ever ran)
//! ```
//!
//! # The phases behind it
//! `pending` is [`Phase::Committing`] (its attempt is not durable yet), [`Phase::Queued`] or
//! [`Phase::Waiting`] (for a back-off or a fence). `placing` is [`Phase::Placing`], or
//! [`Phase::Uncertain`]: its START was sent, or may have been, and the session broke before the
//! answer; it may be anywhere, and waits for every known node to be asked (`reconcile`).
//! [`Phase::Ending`] is an end that is not durable yet; the user still sees the state before.

use super::returns::GivenUp;
use super::rollback::Held;
use crate::api::types::{EndReason, InstanceState, UsageView};
use crate::store::{AfterStop, StopIntent, Times};
use std::sync::Arc;

/// No node.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// Where an instance stands, in the planner's own terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    Committing,
    Queued,
    Waiting,
    Placing,
    Uncertain,
    Starting,
    Running,
    Ending,
}

impl Phase {
    /// As users see it; `Ending` is told by the state before it.
    pub(crate) const fn state(self) -> InstanceState {
        match self {
            Self::Committing | Self::Queued | Self::Waiting => InstanceState::Pending,
            Self::Placing | Self::Uncertain => InstanceState::Placing,
            Self::Starting => InstanceState::Starting,
            Self::Running | Self::Ending => InstanceState::Running,
        }
    }
}

/// A living instance. What its submission has in common stands there.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) seq: u64,
    pub(crate) submission: u32,
    pub(crate) class: u32,
    /// Where its current attempt is.
    pub(crate) node: u32,
    pub(crate) attempt: u32,
    pub(crate) restarts: u16,
    pub(crate) reschedules: u16,
    pub(crate) phase: Phase,
    /// The state that is counted for it.
    pub(crate) state: InstanceState,
    /// It was on a node once: a pending timeout does not apply any more.
    pub(crate) was_placed: bool,
    /// Its amendments are not those that its submission implies.
    pub(crate) amended: bool,
    /// PLACED's pair: where inventories know it from.
    pub(crate) session_epoch: u64,
    pub(crate) start_seq: u64,
    /// Of the last report about the current attempt.
    pub(crate) version: u64,
    /// Since when it waits; its age in the queue.
    pub(crate) waiting_since_ns: i64,
    pub(crate) more: Option<Box<More>>,
}

/// What only some instances have, or only once they were sent.
#[derive(Debug, Default)]
pub(crate) struct More {
    pub(crate) dispatched_ns: Option<i64>,
    pub(crate) placed_ns: Option<i64>,
    pub(crate) received_ns: Option<i64>,
    pub(crate) started_ns: Option<i64>,
    pub(crate) ended_ns: Option<i64>,
    pub(crate) reported_ns: Option<i64>,
    pub(crate) stop: Option<StopIntent>,
    /// The wish is on disk: it may be carried out.
    pub(crate) stop_durable: bool,
    /// For [`Phase::Ending`].
    pub(crate) ending: Option<InstanceState>,
    /// When STOP was sent last.
    pub(crate) stop_sent_ns: Option<i64>,
    /// It was restarted without having come to a node: its pending timeout runs from here.
    pub(crate) waits_anew_ns: Option<i64>,
    /// For [`Phase::Waiting`].
    pub(crate) not_before_ns: i64,
    /// Nodes that the next attempt passes over, latest last.
    pub(crate) avoid: Vec<Arc<str>>,
    /// Since when there is no room but on those.
    pub(crate) avoiding_since_ns: Option<i64>,
    pub(crate) prefer: Option<Arc<str>>,
    /// The attempt before, and its node.
    pub(crate) previous: Option<(u32, Arc<str>)>,
    pub(crate) usage: Option<UsageView>,
    /// Why the last attempt did not do, for people.
    pub(crate) trouble: Option<(EndReason, String)>,
    /// The break of session at which it became uncertain.
    pub(crate) uncertain_since_break: u64,
    pub(crate) uncertain_since_ns: i64,
    /// No number up to this one is given out again.
    pub(crate) highest_attempt: u32,
    /// [`crate::store::AmendRow::settled_attempt`].
    pub(crate) settled_attempt: u32,
    /// Its node was lost, and it has no successor that runs.
    pub(crate) given_up: Option<Box<GivenUp>>,
    /// While it is uncertain in a store that was put back from a backup.
    pub(crate) held: Option<Box<Held>>,
}

impl Instance {
    pub(crate) fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    /// The highest number that an attempt of it was ever given.
    pub(crate) fn highest_attempt(&self) -> u32 {
        let more = self.more.as_ref();
        more.map_or(0, |more| more.highest_attempt)
            .max(self.attempt)
    }

    pub(crate) fn settled_attempt(&self) -> u32 {
        let more = self.more.as_ref();
        more.map_or(0, |more| more.settled_attempt)
    }

    pub(crate) fn stop(&self) -> Option<StopIntent> {
        self.more.as_ref().and_then(|more| more.stop)
    }

    /// What a user's wish makes of an end by STOP.
    pub(crate) fn after_stop(&self) -> Option<AfterStop> {
        self.stop().map(|stop| stop.then)
    }

    /// Forgets where the current attempt was, for the next one.
    pub(crate) fn leave_node(&mut self) {
        self.node = NOWHERE;
        self.session_epoch = 0;
        self.start_seq = 0;
        self.version = 0;
        if let Some(more) = &mut self.more {
            more.dispatched_ns = None;
            more.placed_ns = None;
            more.received_ns = None;
            more.started_ns = None;
            more.ended_ns = None;
            more.reported_ns = None;
            more.stop_sent_ns = None;
            more.usage = None;
        }
    }

    /// Steps since a submission at `origin_ns`.
    pub(crate) fn times(&self, origin_ns: i64, admitted_ns: u64, committed_ns: u64) -> Times {
        let since =
            |at: Option<i64>| at.map(|at| at.saturating_sub(origin_ns).max(0).unsigned_abs());
        let more = self.more.as_deref();
        let step = |of: fn(&More) -> Option<i64>| since(more.and_then(of));
        Times {
            admitted_ns: Some(admitted_ns),
            committed_ns: (committed_ns > 0).then_some(committed_ns),
            dispatched_ns: step(|more| more.dispatched_ns),
            placed_ns: step(|more| more.placed_ns),
            received_ns: step(|more| more.received_ns),
            started_ns: step(|more| more.started_ns),
            ended_ns: step(|more| more.ended_ns),
            reported_ns: step(|more| more.reported_ns),
        }
    }
}
