//! Who gets what: one table of what the core does with each operand, and the forwarding of
//! everything that is not its own business.
//!
//! Downwards a command begins with the node's name, which is taken off; upwards the name is put in
//! front, from the sender's certificate. Commands that are answered get a correlation id of the
//! scheduler's own towards the launcher, so that two controllers can't meet in one id. What is
//! scoped by an owner goes to that owner's controller alone, and comes from it alone.

use super::backoff;
use super::limits::COMMANDS_PER_NODE;
use super::node::state_of;
use super::outlet::{Nanos, Outgoing, Outlet, Queued, SessionId};
use super::{Broker, Peer};
use crate::table::NodeIndex;
use bytes::Bytes;
use pronto_payloads::codec;
use pronto_payloads::control::{Failure, FromNode, ToNode};
use pronto_payloads::ids::OwnerId;
use pronto_payloads::limits::FROM_NODE_BYTES;
use pronto_protocol::{Flags, Frame, Operand, Refusal, RefusalCode};
use tracing::{debug, warn};

/// What the core does with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Place,
    Explain,
    ListNodes,
    Activate,
    Grant,
    /// Forwards to the node that the payload begins with.
    ToNode(Forward),
    Status,
    Stats,
    /// Forwards to the controller of the owner that the payload begins with.
    ToOwner,
    /// Forwards to the controller that asked.
    ToAsker {
        with_node: bool,
    },
    Stream,
    /// Nothing follows from it; it is logged.
    Note,
}

/// How a command is forwarded to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Forward {
    /// The payload begins with an owner, which must be the sender's.
    owned: bool,
    /// The launcher will answer it.
    answered: bool,
    /// Says that it could not be forwarded.
    failure: Operand,
}

const fn forward(owned: bool, answered: bool, failure: Operand) -> Action {
    Action::ToNode(Forward {
        owned,
        answered,
        failure,
    })
}

/// What controllers send on control sessions.
const FROM_CONTROLLERS: &[(Operand, Action)] = &[
    (Operand::Start, Action::Place),
    (Operand::Stop, forward(true, true, Operand::StopFailure)),
    (Operand::Delete, forward(true, true, Operand::DeleteFailure)),
    (Operand::SetMode, forward(false, true, Operand::Unsupported)),
    (
        Operand::Inventory,
        forward(true, true, Operand::Unsupported),
    ),
    (Operand::Ack, forward(true, false, Operand::Unsupported)),
    (Operand::Explain, Action::Explain),
    (Operand::Nodes, Action::ListNodes),
    (Operand::Activate, Action::Activate),
    (Operand::Grant, Action::Grant),
];

/// What launchers send on control sessions.
const FROM_LAUNCHERS: &[(Operand, Action)] = &[
    (Operand::Ready, Action::Status),
    (Operand::Full, Action::Status),
    (Operand::Maintenance, Action::Status),
    (Operand::Offline, Action::Status),
    (Operand::Stats, Action::Stats),
    (Operand::InstanceChanged, Action::ToOwner),
    (Operand::InventoryPage, Action::ToOwner),
    (Operand::Done, Action::ToAsker { with_node: true }),
    (Operand::StopFailure, Action::ToAsker { with_node: true }),
    (Operand::DeleteFailure, Action::ToAsker { with_node: true }),
    (Operand::Unsupported, Action::ToAsker { with_node: false }),
    (Operand::InvalidFrame, Action::ToAsker { with_node: false }),
    (Operand::Unauthorized, Action::ToAsker { with_node: false }),
    (Operand::Busy, Action::ToAsker { with_node: false }),
];

/// What both send on bulk sessions.
const BULK: &[(Operand, Action)] = &[
    (Operand::StreamOpen, Action::Stream),
    (Operand::StreamCredit, Action::Stream),
    (Operand::StreamCancel, Action::Stream),
    (Operand::StreamData, Action::Stream),
    (Operand::StreamEnd, Action::Stream),
];

/// The rows of a table by operand, since it is asked for each frame.
const fn by_operand(rows: &[(Operand, Action)]) -> [Action; Operand::ALL.len()] {
    let mut actions = [Action::Note; Operand::ALL.len()];
    let mut row = 0;
    while row < rows.len() {
        actions[rows[row].0 as usize] = rows[row].1;
        row += 1;
    }
    actions
}

static OF_CONTROLLER: [Action; Operand::ALL.len()] = by_operand(FROM_CONTROLLERS);
static OF_LAUNCHER: [Action; Operand::ALL.len()] = by_operand(FROM_LAUNCHERS);
static OF_BULK: [Action; Operand::ALL.len()] = by_operand(BULK);

/// A command under way to a launcher.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    /// The controller's session that asked.
    asker: SessionId,
    correlation: u64,
    operand: Operand,
    failure: Operand,
}

/// The payload of INVALID_FRAME, UNAUTHORIZED, BUSY and UNSUPPORTED.
pub(crate) fn refusal(code: RefusalCode, text: impl Into<String>) -> Bytes {
    Refusal::new(code, text).encode()
}

/// What a launcher says is refused if its name would not fit in front of it.
fn check_room_for_name(operand: Operand, payload: &[u8]) -> Result<(), String> {
    let limit_bytes = operand.max_payload_bytes() - FROM_NODE_BYTES;
    if payload.len() <= limit_bytes {
        return Ok(());
    }
    let found = payload.len();
    Err(format!(
        "{found} bytes are not accepted: at most {limit_bytes}"
    ))
}

/// The owner that a payload begins with.
fn owner_of(payload: &[u8]) -> Option<OwnerId> {
    payload.first_chunk().copied().map(OwnerId)
}

impl Broker {
    pub(super) fn on_frame<O: Outlet>(
        &mut self,
        now: Nanos,
        session: SessionId,
        frame: Frame,
        out: &mut O,
    ) {
        let Frame {
            operand,
            flags,
            correlation,
            payload,
        } = frame;
        let payload = payload.into_bytes();
        self.counters.frames[operand as usize] += 1;
        // A session that has ended may have frames left in the batch that was read last.
        let Some(&peer) = self.peers.get(&session) else {
            return;
        };
        match peer {
            Peer::Launcher(index) => {
                self.hear(now, index, operand == Operand::Stats);
                match OF_LAUNCHER[operand as usize] {
                    Action::Status => {
                        let wants_reply = flags.contains(Flags::WANT_REPLY);
                        self.on_status(
                            now,
                            index,
                            (operand, wants_reply, correlation),
                            &payload,
                            out,
                        );
                    }
                    Action::Stats => self.on_stats(index, &payload),
                    Action::ToOwner => {
                        self.forward_to_owner(
                            now,
                            index,
                            (operand, flags, correlation),
                            &payload,
                            out,
                        );
                    }
                    Action::ToAsker { with_node } => {
                        self.forward_to_asker(
                            index,
                            (operand, correlation),
                            with_node,
                            &payload,
                            out,
                        );
                    }
                    _ => debug!(%operand, "nothing follows from it"),
                }
            }
            Peer::Controller(slot) => match OF_CONTROLLER[operand as usize] {
                Action::Place => self.on_start(now, slot, correlation, &payload, out),
                Action::Explain => self.on_explain(slot, correlation, &payload, out),
                Action::ListNodes => self.on_nodes(slot, correlation),
                Action::Activate => self.on_activate(now, slot, correlation, &payload, out),
                Action::Grant => self.on_grant(now, slot, correlation, &payload, out),
                Action::ToNode(forward) => {
                    self.forward_to_node(slot, (operand, correlation), forward, payload, out);
                }
                _ => debug!(%operand, "nothing follows from it"),
            },
            Peer::LauncherBulk(_) | Peer::ControllerBulk(_) => {
                if OF_BULK[operand as usize] == Action::Stream {
                    self.on_stream(now, (session, peer), (operand, correlation), payload, out);
                }
            }
        }
    }

    /// Sends to a controller. One that can't keep up is cut: it reconnects and is resynchronised.
    pub(super) fn tell<O: Outlet>(&mut self, slot: usize, message: Outgoing<'_>, out: &mut O) {
        let Some(controller) = &mut self.controllers[slot] else {
            return;
        };
        match out.send(controller.session, message) {
            Queued::Room | Queued::Gone => {}
            Queued::Brimming => controller.brimming = true,
            Queued::Full => {
                let (session, name) = (controller.session, controller.name.clone());
                warn!(
                    controller = name,
                    "controller does not keep up with its events, it is cut"
                );
                self.counters.controllers_cut += 1;
                let text = "events were not read fast enough; connect again to be resynchronised";
                let refusal = Refusal::new(RefusalCode::LimitReached, text);
                self.end_session(session, Operand::Busy, refusal, out);
            }
        }
    }

    /// The live controller of an owner.
    fn controller_of(&self, owner: OwnerId) -> Option<usize> {
        self.live_controllers()
            .find(|(_, peer)| peer.owner == owner)
            .map(|(slot, _)| slot)
    }

    /// A command for a node.
    fn forward_to_node<O: Outlet>(
        &mut self,
        slot: usize,
        (operand, correlation): (Operand, u64),
        forward: Forward,
        mut payload: Bytes,
        out: &mut O,
    ) {
        let Some(controller) = &self.controllers[slot] else {
            return;
        };
        let (asker, owner) = (controller.session, controller.owner);
        let to: ToNode = match codec::take(&mut payload) {
            Ok(to) => to,
            Err(error) => return self.answer_malformed(slot, correlation, &error, out),
        };
        if forward.owned && owner_of(&payload) != Some(owner) {
            let text = format!("owner is not accepted: {owner} is this session's");
            let refusal = refusal(RefusalCode::NotPermitted, text);
            let message = Outgoing::new(Operand::Unauthorized, correlation, [&refusal, &[]]);
            return self.tell(slot, message, out);
        }
        let pending = Pending {
            asker,
            correlation,
            operand,
            failure: forward.failure,
        };
        let index = self.table.find(&to.node);
        let Some((index, node)) = index.and_then(|at| Some((at, self.nodes.get_mut(&at)?))) else {
            let text = format!("node {} is not connected", to.node);
            return self.answer_failure(pending, &to.node, text, out);
        };
        if forward.answered && node.commands.len() >= COMMANDS_PER_NODE {
            let text = format!(
                "node {} has {COMMANDS_PER_NODE} commands to answer",
                to.node
            );
            return self.answer_failure(pending, &to.node, text, out);
        }
        let towards = if forward.answered {
            node.last_command + 1
        } else {
            0
        };
        let message = Outgoing::new(operand, towards, [&payload, &[]]);
        // Commands pass although the queue is above its mark: they can't go elsewhere.
        match out.send(node.session, message) {
            Queued::Room => {}
            Queued::Brimming => node.brimming = true,
            Queued::Full | Queued::Gone => {
                let text = format!("node {} does not read what is sent to it", to.node);
                return self.answer_failure(pending, &to.node, text, out);
            }
        }
        if forward.answered {
            node.last_command = towards;
            node.commands.insert(towards, pending);
        }
        if node.brimming {
            self.note_brimming(index);
        }
    }

    /// Tells a controller that its command has not reached the node, or may not have.
    pub(super) fn answer_failure<O: Outlet>(
        &mut self,
        pending: Pending,
        node: &str,
        text: String,
        out: &mut O,
    ) {
        let Some(&Peer::Controller(slot)) = self.peers.get(&pending.asker) else {
            return;
        };
        let from = codec::encode(&FromNode {
            node: node.to_owned(),
        });
        let named = matches!(
            pending.failure,
            Operand::StopFailure | Operand::DeleteFailure
        );
        let (from, text): (&[u8], Bytes) = if named {
            (&from, codec::encode(&Failure { text }))
        } else {
            (&[], refusal(RefusalCode::Other, text))
        };
        let message = Outgoing::new(pending.failure, pending.correlation, [from, &text]);
        self.tell(slot, message, out);
    }

    /// A launcher's answer to a command.
    fn forward_to_asker<O: Outlet>(
        &mut self,
        index: NodeIndex,
        (operand, correlation): (Operand, u64),
        with_node: bool,
        payload: &Bytes,
        out: &mut O,
    ) {
        let Some(node) = self.nodes.get_mut(&index) else {
            return;
        };
        let Some(pending) = node.commands.remove(&correlation) else {
            debug!(node = node.name, %operand, correlation, "answers no command that waits");
            return;
        };
        let Some(&Peer::Controller(slot)) = self.peers.get(&pending.asker) else {
            // The controller has gone; it asks again on its next session.
            self.counters.undeliverable += 1;
            return;
        };
        let from = if with_node {
            if let Err(text) = check_room_for_name(operand, payload) {
                let text = format!("{operand} of node {}: {text}", node.name);
                let node = node.name.clone();
                return self.answer_failure(pending, &node, text, out);
            }
            self.sender_name(index)
        } else {
            Bytes::new()
        };
        self.tell(
            slot,
            Outgoing::new(operand, pending.correlation, [&from, payload]),
            out,
        );
    }

    /// INSTANCE_CHANGED and pages of INVENTORY.
    fn forward_to_owner<O: Outlet>(
        &mut self,
        now: Nanos,
        index: NodeIndex,
        (operand, flags, correlation): (Operand, Flags, u64),
        payload: &Bytes,
        out: &mut O,
    ) {
        let Some(node) = self.nodes.get_mut(&index) else {
            return;
        };
        if let Err(text) = check_room_for_name(operand, payload) {
            return self.not_accepted(now, index, (operand, correlation), text, out);
        }
        if operand == Operand::InstanceChanged {
            let verdict = backoff::judge(payload, node.faults);
            if node.faults.note(verdict, now) {
                self.back_off(now, index);
            }
        }
        let owner = owner_of(payload);
        let to = match operand {
            Operand::InventoryPage => self.asker_of_page(index, (flags, correlation)),
            _ => owner
                .and_then(|owner| self.controller_of(owner))
                .map(|slot| (slot, 0)),
        };
        let is_owner = |slot: usize| {
            let controller = self.controllers[slot].as_ref();
            controller.is_some_and(|controller| Some(controller.owner) == owner)
        };
        let Some((slot, asked)) = to.filter(|&(slot, _)| is_owner(slot)) else {
            // It is level-triggered: told again until that owner's controller has acknowledged it,
            // or is asked for again.
            self.counters.undeliverable += 1;
            return;
        };
        let from = self.sender_name(index);
        let message = Outgoing::new(operand, asked, [&from, payload]).with_flags(flags);
        self.tell(slot, message, out);
    }

    /// The controller whose INVENTORY a page answers, and how it asked. Its successor must not take
    /// the page for an answer to its own: it was taken before that was asked.
    fn asker_of_page(
        &mut self,
        index: NodeIndex,
        (flags, correlation): (Flags, u64),
    ) -> Option<(usize, u64)> {
        let node = self.nodes.get_mut(&index)?;
        let pending = node.commands.get(&correlation)?;
        if pending.operand != Operand::Inventory {
            return None;
        }
        let (asker, asked) = (pending.asker, pending.correlation);
        if flags.contains(Flags::LAST) {
            node.commands.remove(&correlation);
        }
        match self.peers.get(&asker) {
            Some(&Peer::Controller(slot)) => Some((slot, asked)),
            _ => None,
        }
    }

    /// What stands in front of everything that a node says to a controller.
    fn sender_name(&self, index: NodeIndex) -> Bytes {
        self.nodes
            .get(&index)
            .map(|node| {
                codec::encode(&FromNode {
                    node: node.name.clone(),
                })
            })
            .unwrap_or_default()
    }
}

/// Whether every operand that a status row names is one.
const _: () = assert!(state_of(Operand::Ready).is_some() && state_of(Operand::Offline).is_some());

#[cfg(test)]
mod tests {
    use super::*;
    use pronto_protocol::{Purpose, Role, may_send};

    /// Operands that either end may send and that mean nothing beyond their session.
    const SESSION_ONLY: [Operand; 4] =
        [Operand::Hello, Operand::Ping, Operand::Pong, Operand::Start];

    fn check(role: Role, purpose: Purpose, actions: &[Action; Operand::ALL.len()]) {
        for &operand in Operand::ALL {
            let allowed = may_send(role, Role::Scheduler, purpose, operand);
            let error = operand.kind() == pronto_protocol::Kind::Error;
            let handled = actions[operand as usize] != Action::Note;
            if handled {
                assert!(allowed, "{role} {operand} has a route and may not be sent");
            } else if allowed && !error {
                assert!(
                    SESSION_ONLY.contains(&operand),
                    "{role} {operand} has no route"
                );
            }
        }
    }

    #[test]
    fn everything_that_may_be_sent_has_a_route() {
        check(Role::Controller, Purpose::Control, &OF_CONTROLLER);
        check(Role::Launcher, Purpose::Control, &OF_LAUNCHER);
        check(Role::Controller, Purpose::Bulk, &OF_BULK);
        check(Role::Launcher, Purpose::Bulk, &OF_BULK);
    }
}
