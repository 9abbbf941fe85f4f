//! START: decode the prefix, find a fit, stamp, forward, answer. The straight path.
//!
//! Every START is answered once and in order: by PLACED after it was queued for its launcher, or by
//! START_FAILURE, and then it was queued for none. The one exception is a session that ends
//! meanwhile; its STARTs are unanswered, and its controller knows.

use super::outlet::{Nanos, Outgoing, Outlet, Queued};
use super::{Broker, routing};
use crate::table::{Placement, Query};
use bytes::Bytes;
use pronto_payloads::codec;
use pronto_payloads::ids::{Attempt, InstanceId, OwnerId, Seq, SessionEpoch};
use pronto_payloads::limits::{START_BYTES, TEXT_BYTES};
use pronto_payloads::place::{
    AttemptId, Explain, Explanation, Placed, Refusal, StartFailure, StartPrefix,
};
use pronto_protocol::Operand;

/// What stands for the id of a START that is too malformed to have one.
const NO_ID: AttemptId = AttemptId {
    owner: OwnerId([0; 16]),
    instance: InstanceId([0; 16]),
    attempt: Attempt(0),
};

/// Where a START went.
struct Forwarded {
    session_epoch: SessionEpoch,
    seq: Seq,
}

impl Broker {
    pub(super) fn on_start<O: Outlet>(
        &mut self,
        now: Nanos,
        slot: usize,
        correlation: u64,
        payload: &Bytes,
        out: &mut O,
    ) {
        self.counters.starts += 1;
        let start = match decode(payload) {
            Ok(start) => start,
            Err((id, text)) => {
                return self.fail(slot, correlation, id, Refusal::Malformed, text, out);
            }
        };
        if let Err((refusal, text)) = self.admit(slot, &start) {
            return self.fail(slot, correlation, start.id, refusal, text, out);
        }
        let query = Query::from(&start);
        let began = self.counters.samples_this_start().then(|| out.clock());
        loop {
            let Some(placement) = self.table.place(&query) else {
                let refusal = self.table.classify_refusal(&query);
                return self.fail(slot, correlation, start.id, refusal, String::new(), out);
            };
            if let Some(began) = began {
                self.counters.note_search(out.clock().since(began));
            }
            if let Some(forwarded) = self.forward_start(now, &start, &placement, payload, out) {
                let clock = out.clock();
                self.counters.placed += 1;
                return self.say_placed(
                    slot,
                    correlation,
                    &placement,
                    Placed {
                        id: start.id,
                        node: String::new(),
                        session_epoch: forwarded.session_epoch,
                        seq: forwarded.seq,
                        placing_ns: clock.since(now),
                    },
                    out,
                );
            }
            // That node is no candidate any more; each further round takes away another.
        }
    }

    /// Whether this controller's START may be placed at all.
    fn admit(&mut self, slot: usize, start: &StartPrefix) -> Result<(), (Refusal, String)> {
        let Some(controller) = &mut self.controllers[slot] else {
            return Err((Refusal::StaleEpoch, String::new()));
        };
        if start.id.owner != controller.owner {
            let text = format!(
                "owner is not accepted: {} is this session's",
                controller.owner
            );
            return Err((Refusal::Malformed, text));
        }
        if start.controller_epoch < controller.epoch {
            let text = format!(
                "epoch {} is superseded by {}",
                start.controller_epoch, controller.epoch
            );
            return Err((Refusal::StaleEpoch, text));
        }
        if let Some(obstacle) = self.activation.obstacle() {
            return Err((obstacle, String::new()));
        }
        if controller.brimming {
            return Err((
                Refusal::Busy,
                "answers to earlier STARTs wait to be read".into(),
            ));
        }
        if start.controller_epoch > controller.epoch {
            controller.epoch = start.controller_epoch;
            let owner = controller.owner;
            self.note_epoch(owner, start.controller_epoch);
        }
        Ok(())
    }

    /// Queues the START for its launcher and reserves, or undoes the placement.
    fn forward_start<O: Outlet>(
        &mut self,
        now: Nanos,
        start: &StartPrefix,
        placement: &Placement,
        payload: &Bytes,
        out: &mut O,
    ) -> Option<Forwarded> {
        let index = placement.node;
        let node = self
            .nodes
            .get_mut(&index)
            .expect("the table has a node only with its record");
        let stamp = &mut self.scratch.stamp;
        stamp.session_epoch = node.session_epoch;
        stamp.seq = node.account.next_seq();
        stamp.term = self.activation.term();
        stamp.gpus.clear();
        stamp.gpus.extend(&placement.gpus);
        self.scratch.bytes.clear();
        codec::encode_into(stamp, &mut self.scratch.bytes);
        let forwarded = Forwarded {
            session_epoch: stamp.session_epoch,
            seq: stamp.seq,
        };
        let message = Outgoing::new(Operand::Start, 0, [&self.scratch.bytes, payload]);
        match out.send(node.session, message) {
            Queued::Room => {
                node.account.reserve(&start.demand, &placement.gpus);
                node.stats.dirty = true;
                Some(forwarded)
            }
            Queued::Brimming => {
                node.account.reserve(&start.demand, &placement.gpus);
                node.stats.dirty = true;
                node.brimming = true;
                self.review_obstacles(now, index);
                Some(forwarded)
            }
            Queued::Full | Queued::Gone => {
                self.table.set_available(index, node.account.available());
                if node.account.is_settled() {
                    self.table.settled(index);
                }
                node.brimming = true;
                self.review_obstacles(now, index);
                None
            }
        }
    }

    fn say_placed<O: Outlet>(
        &mut self,
        slot: usize,
        correlation: u64,
        placement: &Placement,
        mut placed: Placed,
        out: &mut O,
    ) {
        let mut bytes = std::mem::take(&mut self.scratch.bytes);
        bytes.clear();
        if let Some(node) = self.nodes.get_mut(&placement.node) {
            // Lent, since a copy of the name for each answer would be the path's one allocation.
            placed.node = std::mem::take(&mut node.name);
            codec::encode_into(&placed, &mut bytes);
            node.name = placed.node;
        }
        self.tell(
            slot,
            Outgoing::new(Operand::Placed, correlation, [&bytes, &[]]),
            out,
        );
        self.scratch.bytes = bytes;
    }

    fn fail<O: Outlet>(
        &mut self,
        slot: usize,
        correlation: u64,
        id: AttemptId,
        refusal: Refusal,
        mut text: String,
        out: &mut O,
    ) {
        self.counters.refused[refusal as usize] += 1;
        let generation = self.generation;
        if let Some(controller) = &mut self.controllers[slot]
            && !matches!(refusal, Refusal::Malformed | Refusal::StaleEpoch)
        {
            controller.refused_at.get_or_insert(generation);
        }
        text.truncate(text.floor_char_boundary(TEXT_BYTES));
        let failure = StartFailure {
            id,
            refusal,
            generation,
            text,
        };
        let mut bytes = std::mem::take(&mut self.scratch.bytes);
        bytes.clear();
        codec::encode_into(&failure, &mut bytes);
        self.tell(
            slot,
            Outgoing::new(Operand::StartFailure, correlation, [&bytes, &[]]),
            out,
        );
        self.scratch.bytes = bytes;
    }

    /// EXPLAIN: counted reasons, linear in the nodes, off the straight path.
    pub(super) fn on_explain<O: Outlet>(
        &mut self,
        slot: usize,
        correlation: u64,
        payload: &Bytes,
        out: &mut O,
    ) {
        let explain: Explain = match codec::decode(payload) {
            Ok(explain) => explain,
            Err(error) => return self.answer_malformed(slot, correlation, &error, out),
        };
        let explained = self.table.explain(&Query::from(&explain));
        let node = explained.node.and_then(|index| self.table.name(index));
        let explanation = codec::encode(&Explanation {
            nodes: explained.nodes,
            fits: explained.fits,
            node: node.map(|name| name.to_string()),
            reasons: explained.reasons,
            generation: self.generation,
        });
        self.tell(
            slot,
            Outgoing::new(Operand::Explanation, correlation, [&explanation, &[]]),
            out,
        );
    }
}

/// The prefix of a START that can also be forwarded, or as much of its id as can be told.
fn decode(payload: &[u8]) -> Result<StartPrefix, (AttemptId, String)> {
    let id = || codec::decode_prefix::<AttemptId>(payload).map_or(NO_ID, |(id, _)| id);
    if payload.len() > START_BYTES {
        let text = format!(
            "{} bytes are not accepted: at most {START_BYTES}",
            payload.len()
        );
        return Err((id(), text));
    }
    let (start, _) =
        codec::decode_prefix::<StartPrefix>(payload).map_err(|error| (id(), error.to_string()))?;
    Ok(start)
}

impl Broker {
    /// ERROR INVALID_FRAME in answer to a command whose payload can't be used.
    pub(super) fn answer_malformed<O: Outlet>(
        &mut self,
        slot: usize,
        correlation: u64,
        error: &dyn std::error::Error,
        out: &mut O,
    ) {
        let code = pronto_protocol::RefusalCode::MalformedPayload;
        let refusal = routing::refusal(code, error.to_string());
        self.tell(
            slot,
            Outgoing::new(Operand::InvalidFrame, correlation, [&refusal, &[]]),
            out,
        );
    }
}
