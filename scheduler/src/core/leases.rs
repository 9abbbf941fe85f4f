//! Leases for launchers, and the grants of controllers that they rest on (rule 4).
//!
//! Every status that asks for it is answered by LEASE, and the launcher counts it from when it sent
//! that status. A lease lists the owners whose own GRANT is fresh: only their `stop-after` work is
//! renewed.
//!
//! A grant must not last longer than its controller means, even if its frame lay in a socket while
//! this process was stopped. So a GRANT counts from when the one before it was answered, which is
//! before its controller can have sent it; and of GRANTs that come in one burst, as out of such a
//! backlog, only the first counts at all.

use super::limits::{GRANT_MAX_MS, GRANT_SPACING_MS};
use super::outlet::{Nanos, Outgoing, Outlet};
use super::{Broker, SessionId};
use crate::table::NodeIndex;
use bytes::Bytes;
use pronto_payloads::codec;
use pronto_payloads::control::Grant;
use pronto_payloads::limits::OWNERS;
use pronto_protocol::Operand;

/// How long one controller's grant holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GrantState {
    /// When the next one was asked for: at WELCOME, and with each answer.
    asked_at: Nanos,
    last: Option<Nanos>,
    until: Nanos,
}

impl GrantState {
    pub(crate) const fn new(welcomed_at: Nanos) -> Self {
        Self {
            asked_at: welcomed_at,
            last: None,
            until: Nanos(0),
        }
    }

    fn renew(&mut self, now: Nanos, grant_ms: u64) {
        let spacing_ns = GRANT_SPACING_MS * 1_000_000;
        if self.last.is_none_or(|last| now.since(last) >= spacing_ns) {
            let until = self.asked_at.plus_ms(grant_ms.min(GRANT_MAX_MS));
            self.until = self.until.max(until);
        }
        self.asked_at = now;
        self.last = Some(now);
    }

    pub(crate) fn is_fresh(&self, now: Nanos) -> bool {
        now < self.until
    }
}

impl Broker {
    pub(super) fn on_grant<O: Outlet>(
        &mut self,
        now: Nanos,
        slot: usize,
        correlation: u64,
        payload: &Bytes,
        out: &mut O,
    ) {
        match codec::decode::<Grant>(payload) {
            Ok(grant) => {
                if let Some(controller) = &mut self.controllers[slot] {
                    controller.grant.renew(now, grant.grant_ms);
                }
                self.tell(
                    slot,
                    Outgoing::new(Operand::Done, correlation, [&[], &[]]),
                    out,
                );
            }
            Err(error) => self.answer_malformed(slot, correlation, &error, out),
        }
    }

    /// Answers a status that asked for a lease. A scheduler that was never activated grants none,
    /// says so with term 0, and answers again once it may.
    pub(super) fn answer_with_lease<O: Outlet>(
        &mut self,
        now: Nanos,
        index: NodeIndex,
        correlation: u64,
        out: &mut O,
    ) {
        let activated = self.activation.is_activated();
        if let Some(node) = self.nodes.get_mut(&index) {
            node.asked_in_vain = (!activated).then_some(correlation);
            let session = node.session;
            self.send_lease(now, session, correlation, out);
        }
    }

    /// At the first activation every node that has asked in vain gets its lease: a START that came
    /// before the node asks again would be refused for want of one.
    pub(super) fn answer_those_who_asked<O: Outlet>(&mut self, now: Nanos, out: &mut O) {
        let all: Vec<NodeIndex> = self.table.iter().collect();
        for index in all {
            let asked = self
                .nodes
                .get_mut(&index)
                .and_then(|node| Some((node.session, node.asked_in_vain.take()?)));
            if let Some((session, correlation)) = asked {
                self.send_lease(now, session, correlation, out);
            }
        }
    }

    fn send_lease<O: Outlet>(
        &mut self,
        now: Nanos,
        session: SessionId,
        correlation: u64,
        out: &mut O,
    ) {
        let activated = self.activation.is_activated();
        let Self {
            scratch,
            controllers,
            activation,
            config,
            ..
        } = self;
        let lease = &mut scratch.lease;
        lease.term = activation.term();
        lease.lease_ms = if activated { config.lease_ms } else { 0 };
        lease.owners.clear();
        if activated {
            let fresh = controllers
                .iter()
                .flatten()
                .filter(|peer| peer.grant.is_fresh(now));
            lease
                .owners
                .extend(fresh.map(|peer| peer.owner).take(OWNERS));
        }
        scratch.bytes.clear();
        codec::encode_into(lease, &mut scratch.bytes);
        // A launcher that does not read loses its lease, as it should.
        let _not_needed = out.send(
            session,
            Outgoing::new(Operand::Lease, correlation, [&scratch.bytes, &[]]),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_counts_from_when_it_was_asked_for() {
        let mut grant = GrantState::new(Nanos::from_ms(1_000));
        grant.renew(Nanos::from_ms(4_000), 10_000);
        assert!(grant.is_fresh(Nanos::from_ms(10_999)));
        assert!(!grant.is_fresh(Nanos::from_ms(11_000)));
        grant.renew(Nanos::from_ms(5_000), 10_000);
        assert!(grant.is_fresh(Nanos::from_ms(13_999)));
    }

    #[test]
    fn a_backlog_of_grants_extends_nothing() {
        let mut grant = GrantState::new(Nanos::from_ms(0));
        grant.renew(Nanos::from_ms(1_000), 10_000);
        // Stopped for a minute; sixty grants lie in the socket.
        for _ in 0..60 {
            grant.renew(Nanos::from_ms(61_000), 10_000);
        }
        assert!(!grant.is_fresh(Nanos::from_ms(61_000)));
        // The first that was sent after our answer counts again, from that answer.
        grant.renew(Nanos::from_ms(62_000), 10_000);
        assert!(grant.is_fresh(Nanos::from_ms(70_999)));
    }
}
