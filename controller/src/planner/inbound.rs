//! Frames from the scheduler, decoded: which handler takes what. What can't be decoded is said and
//! passed over.

use super::dispatch::Topic;
use super::event::Effect;
use super::state::State;
use crate::api::types::Severity;
use pronto_payloads::codec;
use pronto_payloads::control::{Failure, FromNode};
use pronto_payloads::instance::{InstanceReport, Inventory};
use pronto_payloads::node::{NodeConnected, NodeDisconnected, Nodes as NodePage, StatsBatch};
use pronto_payloads::place::{CapacityGrown, Explanation, Placed, StartFailure};
use pronto_protocol::frame::Frame;
use pronto_protocol::hello::Refusal;
use pronto_protocol::operand::Operand;

impl State {
    /// Every frame that a scheduler sends. What can't be decoded is said and passed over.
    pub(crate) fn on_frame(&mut self, frame: Frame) {
        self.link.heard_ns = self.now.mono_ns;
        if let Err(error) = self.take_frame(frame) {
            self.warn(format!("a frame of the scheduler is not accepted: {error}"));
        }
    }

    fn take_frame(&mut self, frame: Frame) -> Result<(), codec::DecodeError> {
        let (correlation, last) = (frame.correlation, frame.is_last());
        let mut bytes = frame.payload.into_bytes();
        match frame.operand {
            Operand::Placed => {
                let placed: Placed = codec::decode(&bytes)?;
                self.on_placed(&placed);
            }
            Operand::StartFailure => {
                let failure: StartFailure = codec::decode(&bytes)?;
                self.on_start_failure(correlation, failure);
            }
            Operand::InstanceChanged => {
                let from: FromNode = codec::take(&mut bytes)?;
                let report: InstanceReport = codec::decode(&bytes)?;
                let node = self.node_named(&from.node);
                self.on_report(node, report);
            }
            Operand::InventoryPage => {
                let from: FromNode = codec::take(&mut bytes)?;
                let page: Inventory = codec::decode(&bytes)?;
                self.on_inventory(&from.node, page, last);
            }
            Operand::NodeConnected => {
                let said: NodeConnected = codec::decode(&bytes)?;
                self.on_node_connected(said);
            }
            Operand::NodeDisconnected => {
                let said: NodeDisconnected = codec::decode(&bytes)?;
                self.on_node_disconnected(&said);
            }
            Operand::NodeList => {
                let page: NodePage = codec::decode(&bytes)?;
                self.on_node_page(page, last);
            }
            Operand::Stats => {
                let batch: StatsBatch = codec::decode(&bytes)?;
                self.on_stats(batch);
            }
            Operand::Capacity => {
                let grown: CapacityGrown = codec::decode(&bytes)?;
                self.link.generation = self.link.generation.max(grown.generation);
                self.queue.capacity(grown.generation);
            }
            Operand::Explanation => {
                let explanation: Explanation = codec::decode(&bytes)?;
                self.on_explanation(correlation, explanation);
            }
            Operand::Done => self.on_done(correlation, &mut bytes)?,
            Operand::StopFailure
            | Operand::DeleteFailure
            | Operand::Unsupported
            | Operand::Busy
            | Operand::Unauthorized => self.on_failure(correlation, frame.operand, bytes)?,
            _ => {}
        }
        Ok(())
    }

    fn on_done(
        &mut self,
        correlation: u64,
        bytes: &mut bytes::Bytes,
    ) -> Result<(), codec::DecodeError> {
        match Topic::of(correlation) {
            Some(Topic::Activate) => {
                self.link.active = true;
                self.send_grant();
                self.send(Frame::request(
                    Operand::Nodes,
                    Topic::Nodes.correlation(),
                    (),
                ));
            }
            Some(Topic::Restore(node)) => self.restored(node),
            Some(Topic::Stop(seq)) if !bytes.is_empty() => {
                let from: FromNode = codec::take(bytes)?;
                if let Some(node) = self.nodes.find(&from.node) {
                    let stale = self
                        .nodes
                        .stale_with(node, |id| self.ids.seq(id, self.meta.next_seq) == seq);
                    for id in stale {
                        self.nodes.forget_stale(node, id);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn on_failure(
        &mut self,
        correlation: u64,
        operand: Operand,
        mut bytes: bytes::Bytes,
    ) -> Result<(), codec::DecodeError> {
        // STOP_FAILURE and DELETE_FAILURE name the node in front; the others are the protocol's.
        let text = if matches!(operand, Operand::StopFailure | Operand::DeleteFailure) {
            codec::take::<FromNode>(&mut bytes)?;
            codec::decode::<Failure>(&bytes)?.text
        } else {
            Refusal::decode(&bytes).map_or_else(|error| error.to_string(), |found| found.text)
        };
        match Topic::of(correlation) {
            Some(Topic::Activate) => {
                self.record(
                    "activation_refused",
                    Severity::Alarm,
                    format!(
                        "the scheduler at {} will not be activated: {text}",
                        self.link.address
                    ),
                );
                self.out.push(Effect::DropSession { reason: text });
            }
            Some(Topic::Inventory(node)) => {
                if let Ok(index) = u32::try_from(node) {
                    self.end_pull(index);
                }
            }
            Some(Topic::Explain(number)) => self.explain_failed(number, &text),
            _ => {}
        }
        Ok(())
    }
}
