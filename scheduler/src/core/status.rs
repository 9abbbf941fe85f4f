//! READY, FULL, MAINTENANCE, OFFLINE: what is free on a node, taken in exactly.

use super::node::state_of;
use super::outlet::{Nanos, Outgoing, Outlet};
use super::{Broker, routing};
use crate::table::NodeIndex;
use bytes::Bytes;
use pronto_payloads::codec;
use pronto_payloads::node::Status;
use pronto_protocol::{Operand, RefusalCode};
use tracing::{info, warn};

impl Broker {
    /// Takes in a status, and answers it with a lease if it asks for one.
    pub(super) fn on_status<O: Outlet>(
        &mut self,
        now: Nanos,
        index: NodeIndex,
        frame: (Operand, bool, u64),
        payload: &Bytes,
        out: &mut O,
    ) {
        let (operand, wants_reply, correlation) = frame;
        if let Err(text) = self.take_in_status(now, index, operand, payload) {
            return self.not_accepted(now, index, (operand, correlation), text, out);
        }
        if wants_reply {
            self.answer_with_lease(now, index, correlation, out);
        }
    }

    /// Tells a launcher that what it said is not accepted.
    pub(super) fn not_accepted<O: Outlet>(
        &mut self,
        now: Nanos,
        index: NodeIndex,
        (operand, correlation): (Operand, u64),
        text: String,
        out: &mut O,
    ) {
        let Some(node) = self.nodes.get(&index) else {
            return;
        };
        self.counters.bad_statuses += 1;
        if let Some(left_out) = self.quiet_statuses.line(now.0) {
            warn!(node = node.name, %operand, error = text, left_out, "not accepted");
        }
        let refusal = routing::refusal(RefusalCode::MalformedPayload, text);
        let message = Outgoing::new(Operand::InvalidFrame, correlation, [&refusal, &[]]);
        // It is told once; a launcher that does not read learns it from its lease.
        let _not_needed = out.send(node.session, message);
    }

    fn take_in_status(
        &mut self,
        now: Nanos,
        index: NodeIndex,
        operand: Operand,
        payload: &Bytes,
    ) -> Result<(), String> {
        let status: Status = codec::decode(payload).map_err(|error| error.to_string())?;
        let Some(node) = self.nodes.get_mut(&index) else {
            return Ok(());
        };
        if status.session_epoch != node.session_epoch {
            return Err(format!(
                "session epoch {} is not accepted: {} is this session's",
                status.session_epoch, node.session_epoch
            ));
        }
        let change = node
            .account
            .report(status.applied_seq, status.free)
            .map_err(|impossible| impossible.to_string())?;
        let mut grown = change.grown;
        if change.changed || !node.reported {
            grown |= self.table.set_available(index, node.account.available());
            node.stats.dirty = true;
        }
        if change.settled {
            self.table.settled(index);
        }
        if node.facts.runtimes != status.runtimes {
            grown |= self.table.set_runtimes(index, &status.runtimes);
            node.facts.runtimes = status.runtimes;
            node.stats.dirty = true;
        }
        let state = state_of(operand).unwrap_or(node.state);
        let first = !node.reported;
        let turned = state != node.state;
        if turned || node.reason != status.reason {
            if let Some(left_out) = self.quiet_states.line(now.0) {
                let reason = &status.reason;
                info!(node = node.name, ?state, reason, left_out, "node");
            }
            node.state = state;
            node.reason = status.reason;
            node.stats.dirty = true;
        }
        if first {
            node.reported = true;
            self.reported += 1;
        }
        if grown {
            self.capacity_has_grown();
        }
        if turned || first {
            self.review_obstacles(now, index);
            self.pass_on_soon(index);
        }
        if first {
            self.end_warm_up_if_due(now);
        }
        Ok(())
    }
}
