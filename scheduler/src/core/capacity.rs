//! The capacity generation: how a controller whose START was refused learns that room has grown.
//!
//! It rises whenever something that was refused might fit now. A refusal carries its value, and so
//! does the CAPACITY that follows, so a wake-up can't overtake the refusal that it answers. One
//! CAPACITY a turn and controller, and only to those that were refused since their last one.

use super::Broker;
use super::outlet::{Outgoing, Outlet};
use pronto_payloads::codec;
use pronto_payloads::place::CapacityGrown;
use pronto_protocol::Operand;

impl Broker {
    pub(super) fn capacity_has_grown(&mut self) {
        self.generation = self.generation.next();
    }

    /// Tells the controllers that wait for room.
    pub(super) fn announce_capacity<O: Outlet>(&mut self, out: &mut O) {
        for slot in 0..self.controllers.len() {
            let Some(controller) = &mut self.controllers[slot] else {
                continue;
            };
            let waits = controller.refused_at.is_some_and(|at| at < self.generation);
            if waits && !controller.brimming {
                controller.refused_at = None;
                let grown = codec::encode(&CapacityGrown {
                    generation: self.generation,
                });
                self.tell(
                    slot,
                    Outgoing::new(Operand::Capacity, 0, [&grown, &[]]),
                    out,
                );
            }
        }
    }
}
