//! Sessions come and go: who is welcome, who replaces whom, and what is left behind.
//!
//! A name is one node (rule 9): a second connection under a live name is welcome only from the same
//! data directory and with a higher session epoch, and then it ends the older one wholly before it
//! begins. One session lives for each owner; a newer epoch, or a newer connection of the same
//! epoch, replaces it. A bulk session belongs to the control session of the same certificate and
//! goes with it.

use super::controller::Controller;
use super::leases::GrantState;
use super::limits::{
    BELIEVED_OF_FEW, BELIEVED_OF_MOST, CONTROLLERS, LAUNCHERS_OF_ONE_WORD, REMEMBERED_OWNERS,
};
use super::node::Node;
use super::outlet::{Nanos, Outlet, SessionId};
use super::streams::Uncredited;
use super::{Arrival, Broker, Peer};
use crate::table::{NodeIndex, NodeSpec};
use pronto_payloads::codec;
use pronto_payloads::hello::{BulkHello, ControllerHello, LauncherHello, SchedulerWelcome};
use pronto_payloads::ids::{ControllerEpoch, OwnerId, Term};
use pronto_payloads::node::{NodeDisconnected, NodeState};
use pronto_protocol::{Operand, Purpose, Refusal, RefusalCode, Role, Welcome};
use tracing::{info, warn};

/// A refusal that ends a session before it has begun.
type Unwelcome = (Operand, Refusal);

fn unwelcome(operand: Operand, code: RefusalCode, text: impl Into<String>) -> Unwelcome {
    (operand, Refusal::new(code, text))
}

fn malformed(error: &codec::DecodeError) -> Unwelcome {
    let text = format!("HELLO's body: {error}");
    unwelcome(Operand::InvalidFrame, RefusalCode::MalformedPayload, text)
}

impl Broker {
    pub(super) fn on_connected<O: Outlet>(&mut self, now: Nanos, arrival: Arrival, out: &mut O) {
        let (session, role, name) = (arrival.session, arrival.role, arrival.name.clone());
        let outcome = match (arrival.role, arrival.purpose) {
            (Role::Launcher, Purpose::Control) => self.launcher_arrives(now, arrival, out),
            (Role::Controller, Purpose::Control) => self.controller_arrives(now, arrival, out),
            (Role::Launcher, Purpose::Bulk) => self.launcher_bulk_arrives(&arrival, out),
            (Role::Controller, Purpose::Bulk) => self.controller_bulk_arrives(&arrival, out),
            (Role::Scheduler | Role::User | Role::Admin, _) => {
                let text =
                    format!("a {role} has nothing to say here; accepted: launcher, controller");
                Err(unwelcome(
                    Operand::Unauthorized,
                    RefusalCode::NotPermitted,
                    text,
                ))
            }
        };
        if let Err((operand, refusal)) = outcome {
            self.counters.sessions_refused += 1;
            if let Some(left_out) = self.quiet_sessions.line(now.0) {
                warn!(%role, name, reason = refusal.text, left_out, "session refused");
            }
            out.refuse(session, operand, refusal);
        }
    }

    fn launcher_arrives<O: Outlet>(
        &mut self,
        now: Nanos,
        arrival: Arrival,
        out: &mut O,
    ) -> Result<(), Unwelcome> {
        let hello: LauncherHello =
            codec::decode(&arrival.body).map_err(|error| malformed(&error))?;
        let Arrival {
            session,
            name,
            session_epoch,
            ..
        } = arrival;
        if let Some(older) = self
            .table
            .find(&name)
            .and_then(|index| self.nodes.get(&index))
        {
            if older.node_uuid != hello.node_uuid {
                let text = format!(
                    "node {name} is connected from data directory {}, this is {}: \
                     a name is one node, so stop the other or issue a certificate of another name",
                    older.node_uuid, hello.node_uuid
                );
                return Err(unwelcome(
                    Operand::Unauthorized,
                    RefusalCode::NameTaken,
                    text,
                ));
            }
            if session_epoch <= older.session_epoch {
                let text = format!(
                    "session epoch {session_epoch} is not accepted: above {}, the live session's",
                    older.session_epoch
                );
                return Err(unwelcome(
                    Operand::Unauthorized,
                    RefusalCode::OutOfPlace,
                    text,
                ));
            }
            let refusal = Refusal::new(RefusalCode::Other, "a newer session replaces this one");
            self.end_session(older.session, Operand::Busy, refusal, out);
        }
        let obeys = hello.term;
        let index = self.table.insert(NodeSpec::new(&name, &hello.facts));
        info!(
            node = name,
            session_epoch = session_epoch.0,
            "launcher connected"
        );
        self.peers.insert(session, Peer::Launcher(index));
        self.nodes
            .insert(index, Node::new(session, name, session_epoch, hello, now));
        self.review_obstacles(now, index);
        self.welcome(session, None, out);
        self.announce_node(index, out);
        if obeys > self.activation.term() {
            self.let_controllers_raise_the_term(obeys, out);
        }
        Ok(())
    }

    /// Launchers obey a higher term than the one that this scheduler was activated with, as after the start
    /// of a controller whose store is new, or was restored, before they were here: nothing would ever be
    /// placed. Its controllers learn it from their next WELCOME.
    fn let_controllers_raise_the_term<O: Outlet>(&mut self, obeys: Term, out: &mut O) {
        let may_be_unaware = self
            .live_controllers()
            .any(|(_, it)| it.told_term < obeys.0);
        if !self.activation.is_activated() || !may_be_unaware {
            return;
        }
        let obeyed = self.believed(self.few(), |node| Some(node.term.0));
        if obeyed <= self.activation.term().0 {
            return;
        }
        // Who knows is about to raise it.
        let unaware = self
            .live_controllers()
            .filter(|(_, it)| it.told_term < obeyed);
        let sessions: Vec<_> = unaware.map(|(_, it)| it.session).collect();
        for session in sessions {
            let text = "launchers obey a higher term: connect again to raise it";
            let refusal = Refusal::new(RefusalCode::OutOfPlace, text);
            self.end_session(session, Operand::Busy, refusal, out);
        }
    }

    fn controller_arrives<O: Outlet>(
        &mut self,
        now: Nanos,
        arrival: Arrival,
        out: &mut O,
    ) -> Result<(), Unwelcome> {
        let hello: ControllerHello =
            codec::decode(&arrival.body).map_err(|error| malformed(&error))?;
        let ControllerHello { owner, epoch } = hello;
        let Arrival { session, name, .. } = arrival;
        let highest = self.epochs.iter().find(|(known, _)| *known == owner);
        if let Some((_, highest)) = highest.filter(|(_, highest)| epoch < *highest) {
            let text = format!("epoch {epoch} of owner {owner} is superseded by {highest}");
            return Err(unwelcome(
                Operand::Unauthorized,
                RefusalCode::OutOfPlace,
                text,
            ));
        }
        let older = self
            .live_controllers()
            .find(|(_, peer)| peer.owner == owner);
        if let Some((_, peer)) = older.filter(|(_, peer)| peer.name != name || epoch < peer.epoch) {
            let text = format!(
                "owner {owner} has a controller, {} with epoch {}",
                peer.name, peer.epoch
            );
            return Err(unwelcome(
                Operand::Unauthorized,
                RefusalCode::OutOfPlace,
                text,
            ));
        }
        if let Some(older) = older.map(|(_, peer)| peer.session) {
            let refusal = Refusal::new(RefusalCode::Other, "a newer session replaces this one");
            self.end_session(older, Operand::Busy, refusal, out);
        }
        if self.controller_count() >= CONTROLLERS {
            let text = format!("{CONTROLLERS} controllers are connected, which is the most");
            return Err(unwelcome(Operand::Busy, RefusalCode::LimitReached, text));
        }
        self.note_epoch(owner, epoch);
        info!(controller = name, %owner, epoch = epoch.0, "controller connected");
        let controller = Controller {
            session,
            name,
            owner,
            epoch,
            told_term: self.term_to_tell(),
            brimming: false,
            refused_at: None,
            grant: GrantState::new(now),
            listing: None,
            bulk: None,
            streams: 0,
            uncredited: Uncredited::default(),
        };
        let vacant = self.controllers.iter().position(Option::is_none);
        let slot = vacant.unwrap_or_else(|| {
            self.controllers.push(None);
            self.controllers.len() - 1
        });
        self.controllers[slot] = Some(controller);
        self.peers.insert(session, Peer::Controller(slot));
        self.pass_everything_on();
        self.welcome(session, Some(owner), out);
        Ok(())
    }

    fn launcher_bulk_arrives<O: Outlet>(
        &mut self,
        arrival: &Arrival,
        out: &mut O,
    ) -> Result<(), Unwelcome> {
        codec::decode::<BulkHello>(&arrival.body).map_err(|error| malformed(&error))?;
        let Some(index) = self.table.find(&arrival.name) else {
            let text = format!("node {} has no control session", arrival.name);
            return Err(unwelcome(
                Operand::Unauthorized,
                RefusalCode::OutOfPlace,
                text,
            ));
        };
        let older = self.nodes.get(&index).and_then(|node| node.bulk.session);
        if let Some(older) = older {
            let refusal =
                Refusal::new(RefusalCode::Other, "a newer bulk session replaces this one");
            self.end_session(older, Operand::Busy, refusal, out);
        }
        if let Some(node) = self.nodes.get_mut(&index) {
            node.bulk.session = Some(arrival.session);
            node.bulk.asked_at = None;
        }
        self.peers
            .insert(arrival.session, Peer::LauncherBulk(index));
        self.welcome(arrival.session, None, out);
        self.open_held_streams(index, out);
        Ok(())
    }

    fn controller_bulk_arrives<O: Outlet>(
        &mut self,
        arrival: &Arrival,
        out: &mut O,
    ) -> Result<(), Unwelcome> {
        let hello: BulkHello = codec::decode(&arrival.body).map_err(|error| malformed(&error))?;
        let found = self
            .live_controllers()
            .find(|(_, peer)| Some(peer.owner) == hello.owner && peer.name == arrival.name);
        let Some((slot, older)) = found.map(|(slot, peer)| (slot, peer.bulk)) else {
            let text = "no control session of this certificate and owner";
            return Err(unwelcome(
                Operand::Unauthorized,
                RefusalCode::OutOfPlace,
                text,
            ));
        };
        if let Some(older) = older {
            let refusal =
                Refusal::new(RefusalCode::Other, "a newer bulk session replaces this one");
            self.end_session(older, Operand::Busy, refusal, out);
        }
        if let Some(controller) = &mut self.controllers[slot] {
            controller.bulk = Some(arrival.session);
        }
        self.peers
            .insert(arrival.session, Peer::ControllerBulk(slot));
        self.welcome(arrival.session, hello.owner, out);
        Ok(())
    }

    fn welcome<O: Outlet>(&self, session: SessionId, owner: Option<OwnerId>, out: &mut O) {
        let body = codec::encode(&SchedulerWelcome {
            stats_interval_ms: self.config.stats_interval_ms,
            lease_ms: self.config.lease_ms,
            start_window: self.config.start_window,
            owner_epoch: owner.map_or_else(Default::default, |owner| self.reported_epoch(owner)),
            nodes: u32::try_from(self.nodes.len()).unwrap_or(u32::MAX),
        });
        // A controller whose store is new, or was restored, has to raise its term above what launchers
        // obey, or none of them would take its work.
        let own = self.activation.term().0;
        let term = owner.map_or(own, |_| self.term_to_tell());
        // Who is told of a term that was another scheduler's must not take it for this one's.
        let active = self.activation.is_activated() && (term == own || owner.is_none());
        out.welcome(session, Welcome::new(self.incarnation, term, active, body));
    }

    /// The term that a controller's WELCOME tells.
    fn term_to_tell(&self) -> u64 {
        let own = self.activation.term().0;
        own.max(self.believed(1, |node| Some(node.term.0)))
    }

    /// The highest epoch of an owner that launchers have seen.
    fn reported_epoch(&self, owner: OwnerId) -> ControllerEpoch {
        ControllerEpoch(self.believed(self.few(), |node| {
            let mine = node.owners.iter().find(|summary| summary.owner == owner)?;
            Some(mine.epoch.0)
        }))
    }

    /// So many launchers must say so, or one that lies could end sessions, or stop a controller for good.
    fn few(&self) -> usize {
        if self.nodes.len() >= LAUNCHERS_OF_ONE_WORD {
            2
        } else {
            1
        }
    }

    /// The highest number that enough launchers have seen: a few of them up to [`BELIEVED_OF_FEW`], and most
    /// of them above it.
    fn believed(&self, few: usize, seen: impl Fn(&Node) -> Option<u64>) -> u64 {
        let mut seen: Vec<u64> = self.nodes.values().filter_map(seen).collect();
        seen.sort_unstable_by(|a, b| b.cmp(a));
        let most = (self.nodes.len() / 2 + 1).max(2);
        let up_to = |bound, of: usize| {
            seen.iter()
                .skip(of - 1)
                .copied()
                .find(|seen| *seen <= bound)
        };
        let of_most = up_to(BELIEVED_OF_MOST, most);
        of_most.max(up_to(BELIEVED_OF_FEW, few)).unwrap_or(0)
    }

    /// Remembers the highest epoch of an owner, and not for ever of everybody.
    pub(super) fn note_epoch(&mut self, owner: OwnerId, epoch: ControllerEpoch) {
        if let Some((_, highest)) = self.epochs.iter_mut().find(|(known, _)| *known == owner) {
            *highest = epoch.max(*highest);
            return;
        }
        if self.epochs.len() >= REMEMBERED_OWNERS {
            self.epochs.pop_front();
        }
        self.epochs.push_back((owner, epoch));
    }

    /// Live controllers with their slots.
    pub(super) fn live_controllers(&self) -> impl Iterator<Item = (usize, &Controller)> {
        let slots = self.controllers.iter().enumerate();
        slots.filter_map(|(slot, controller)| Some((slot, controller.as_ref()?)))
    }

    /// Ends a session from this side.
    pub(super) fn end_session<O: Outlet>(
        &mut self,
        session: SessionId,
        operand: Operand,
        refusal: Refusal,
        out: &mut O,
    ) {
        let reason = refusal.text.clone();
        out.refuse(session, operand, refusal);
        self.forget(session, &reason, out);
    }

    /// Forgets a session that has ended, and all that rests on it.
    pub(super) fn forget<O: Outlet>(&mut self, session: SessionId, reason: &str, out: &mut O) {
        match self.peers.remove(&session) {
            None => {}
            Some(Peer::Launcher(index)) => self.forget_launcher(index, reason, out),
            Some(Peer::Controller(slot)) => self.forget_controller(slot, reason, out),
            Some(Peer::LauncherBulk(index)) => {
                if let Some(node) = self.nodes.get_mut(&index) {
                    node.bulk.session = None;
                }
                self.end_streams_of_session(session, out);
            }
            Some(Peer::ControllerBulk(slot)) => {
                if let Some(controller) = &mut self.controllers[slot] {
                    controller.bulk = None;
                }
                self.end_streams_of_session(session, out);
            }
        }
    }

    fn forget_launcher<O: Outlet>(&mut self, index: NodeIndex, reason: &str, out: &mut O) {
        let bulk = self
            .nodes
            .get_mut(&index)
            .and_then(|node| node.bulk.session.take());
        if let Some(bulk) = bulk {
            self.end_bulk(bulk, out);
        }
        self.end_held_streams_of_node(index, out);
        let Some(node) = self.nodes.remove(&index) else {
            return;
        };
        info!(node = node.name, reason, "launcher disconnected");
        self.table.remove(index);
        self.reported -= usize::from(node.reported);
        let gone = NodeDisconnected {
            orderly: node.state == NodeState::Offline,
            session_epoch: node.session_epoch,
            reason: shortened(reason),
            node: node.name,
        };
        let mut pending: Vec<_> = node.commands.into_iter().collect();
        pending.sort_unstable_by_key(|(towards, _)| *towards);
        for (_, pending) in pending {
            let text = format!("node {} has disconnected: {reason}", gone.node);
            self.answer_failure(pending, &gone.node, shortened(&text), out);
        }
        self.announce_departure(&gone, out);
    }

    fn forget_controller<O: Outlet>(&mut self, slot: usize, reason: &str, out: &mut O) {
        let Some(controller) = self.controllers[slot].take() else {
            return;
        };
        info!(
            controller = controller.name,
            reason, "controller disconnected"
        );
        if let Some(bulk) = controller.bulk {
            self.end_bulk(bulk, out);
        }
    }

    /// A control session has ended; its bulk session follows.
    fn end_bulk<O: Outlet>(&mut self, bulk: SessionId, out: &mut O) {
        let refusal = Refusal::new(RefusalCode::OutOfPlace, "its control session has ended");
        self.end_session(bulk, Operand::Unauthorized, refusal, out);
    }

    /// A session has room again.
    pub(super) fn on_drained(&mut self, session: SessionId) {
        match self.peers.get(&session) {
            Some(&Peer::Launcher(index)) => {
                if let Some(node) = self.nodes.get_mut(&index) {
                    node.brimming = false;
                }
                self.note_brimming(index);
            }
            Some(&Peer::Controller(slot)) => {
                if let Some(controller) = &mut self.controllers[slot] {
                    controller.brimming = false;
                }
                // What was refused as Busy may be sent again, and what was held back is told.
                self.capacity_has_grown();
                self.pass_everything_on();
            }
            Some(Peer::LauncherBulk(_) | Peer::ControllerBulk(_)) | None => {}
        }
    }
}

fn shortened(text: &str) -> String {
    let end = text.floor_char_boundary(pronto_payloads::limits::TEXT_BYTES);
    text[..end].to_owned()
}
