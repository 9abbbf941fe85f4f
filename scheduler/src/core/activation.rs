//! Being the active scheduler: the term, and the warm-up after a start (rules 7 and 8).
//!
//! ```text
//!  Standby ──ACTIVATE──▶ Warming ──90 % of the expected nodes, or 5 s──▶ Active
//!                          └ at once if they are there, as on a standby that takes over
//! ```
//!
//! A term never falls. What a launcher says of terms makes no difference to the scheduler's own:
//! a launcher that has seen a higher one is merely not placed on, since it would refuse. Controllers
//! are told of it in their WELCOME, and activate above it.

use super::limits::WARM_NODES_PERCENT;
use super::outlet::{Nanos, Outgoing, Outlet};
use super::{Broker, routing};
use bytes::Bytes;
use pronto_payloads::codec;
use pronto_payloads::control::Activate;
use pronto_payloads::ids::Term;
use pronto_payloads::place::Refusal;
use pronto_protocol::{Operand, RefusalCode};
use tracing::info;

/// Whether this scheduler places, and under which term.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Activation {
    term: Term,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    #[default]
    Standby,
    Warming {
        until: Nanos,
        expected_nodes: u32,
    },
    Active,
}

impl Activation {
    pub(crate) const fn term(self) -> Term {
        self.term
    }

    pub(crate) const fn is_active(self) -> bool {
        matches!(self.phase, Phase::Active)
    }

    /// Whether a controller has activated it, be it still warming up.
    pub(crate) const fn is_activated(self) -> bool {
        !matches!(self.phase, Phase::Standby)
    }

    /// Why it does not place, if it does not.
    pub(crate) const fn obstacle(self) -> Option<Refusal> {
        match self.phase {
            Phase::Standby => Some(Refusal::NotActive),
            Phase::Warming { .. } => Some(Refusal::Warming),
            Phase::Active => None,
        }
    }
}

impl Broker {
    pub(super) fn on_activate<O: Outlet>(
        &mut self,
        now: Nanos,
        slot: usize,
        correlation: u64,
        payload: &Bytes,
        out: &mut O,
    ) {
        let activate: Activate = match codec::decode(payload) {
            Ok(activate) => activate,
            Err(error) => {
                return self.answer_malformed(slot, correlation, &error, out);
            }
        };
        let term = self.activation.term;
        if activate.term < term {
            let text = format!("term {} is below {term}, the active one", activate.term);
            let refusal = routing::refusal(RefusalCode::NotPermitted, text);
            let pieces: [&[u8]; 2] = [&refusal, &[]];
            self.tell(
                slot,
                Outgoing::new(Operand::Unauthorized, correlation, pieces),
                out,
            );
            return;
        }
        self.activation.term = activate.term;
        if activate.term > term {
            info!(term = activate.term.0, "activated");
            self.review_terms(now);
        }
        let expected_nodes = activate.expected_nodes;
        self.activation.phase = match self.activation.phase {
            Phase::Standby => {
                let until = now.plus_ms(self.config.warm_up_ms);
                Phase::Warming {
                    until,
                    expected_nodes,
                }
            }
            Phase::Warming { until, .. } => Phase::Warming {
                until,
                expected_nodes,
            },
            Phase::Active => Phase::Active,
        };
        self.answer_those_who_asked(now, out);
        self.end_warm_up_if_due(now);
        self.tell(
            slot,
            Outgoing::new(Operand::Done, correlation, [&[], &[]]),
            out,
        );
    }

    /// Begins to place once enough nodes are there, or the time is over.
    pub(super) fn end_warm_up_if_due(&mut self, now: Nanos) {
        let Phase::Warming {
            until,
            expected_nodes,
        } = self.activation.phase
        else {
            return;
        };
        let there = self.reported as u64 * 100;
        if there >= u64::from(expected_nodes) * WARM_NODES_PERCENT || now >= until {
            let nodes = self.reported;
            info!(nodes, expected_nodes, "warm-up is over, placing");
            self.activation.phase = Phase::Active;
            self.capacity_has_grown();
        }
    }
}
