//! The network and the scheduler at its middle: who hears what, and what that makes it say.

use super::*;

impl World {
    /// Hands queued frames to the network and plans when they are looked at.
    pub(super) fn transmit(&mut self, conn: ConnId) {
        for (at, side) in self.net.transmit(self.now, conn, &mut self.rng) {
            self.at(at, Happening::Look { conn, side });
        }
    }

    pub(super) fn close(&mut self, conn: ConnId, side: Side) {
        let delay = self.rng.between(1, 2 * MS);
        if let Some(at) = self.net.close(self.now, conn, side, delay) {
            self.at(
                at,
                Happening::Look {
                    conn,
                    side: side.other(),
                },
            );
        }
    }

    /// An end looks at what has reached it.
    pub(super) fn look(&mut self, conn: ConnId, side: Side) {
        let Some(host) = self.net.host(conn, side) else {
            return;
        };
        if self.is_frozen(host) {
            return;
        }
        let mut arrivals = Vec::new();
        self.net.receive(self.now, conn, side, &mut arrivals);
        // The kernel has room again: more of what the peer queued can follow.
        self.transmit(conn);
        if !arrivals.is_empty() {
            match host {
                Host::Scheduler => self.scheduler_hears(conn, arrivals),
                Host::Controller => self.controller_hears(conn, arrivals),
                Host::Node(node) => self.node_hears(node, conn, arrivals),
            }
        }
        if self.net.has_more(self.now, conn, side) {
            self.after(1, Happening::Look { conn, side });
        }
    }

    /// Once a second or so: keep-alive and time-outs of every session.
    pub(super) fn beat(&mut self) {
        for conn in self.net.all() {
            for side in [Side::Client, Side::Server] {
                if self
                    .net
                    .host(conn, side)
                    .is_some_and(|host| self.is_frozen(host))
                {
                    continue;
                }
                if let Err(error) = self.net.tick(self.now, conn, side) {
                    self.session_failed(conn, side, &error.to_string());
                }
            }
            self.transmit(conn);
        }
        self.note_who_is_away();
        if self.rng.per_mille(300) {
            for node in &mut self.nodes {
                node.sync();
            }
        }
        self.after(500 * MS, Happening::Beat);
    }

    /// A node that nobody has reached for so long that it may be taken for lost has an excuse for
    /// what is placed elsewhere meanwhile.
    fn note_who_is_away(&mut self) {
        // The controller waits for 4 s; beats are coarse.
        const EXCUSED_AFTER_BEATS: u32 = 6;
        for index in 0..self.config.nodes {
            let host = Host::Node(index);
            let node = &self.nodes[index as usize];
            let reached = node.welcomed
                && !self.is_frozen(host)
                && !self.net.is_blocked(host, Host::Scheduler)
                && !self.net.is_blocked(Host::Scheduler, host)
                && node
                    .conn
                    .is_some_and(|conn| self.net.is_open(conn, Side::Server));
            let node = &mut self.nodes[index as usize];
            node.away_beats = if reached { 0 } else { node.away_beats + 1 };
            if node.away_beats >= EXCUSED_AFTER_BEATS {
                self.oracle.excuse(index, self.now);
            }
        }
    }

    pub(super) fn session_failed(&mut self, conn: ConnId, side: Side, reason: &str) {
        let Some(host) = self.net.host(conn, side) else {
            return;
        };
        self.say(format_args!("{host:?} gives {conn:?} up: {reason}"));
        self.close(conn, side);
        let arrivals = vec![Arrival::Closed(reason.to_owned())];
        match host {
            Host::Scheduler => self.scheduler_hears(conn, arrivals),
            Host::Controller => self.controller_hears(conn, arrivals),
            Host::Node(node) => self.node_hears(node, conn, arrivals),
        }
    }

    pub(super) fn scheduler_start(&mut self) {
        if self.scheduler.is_some() {
            return;
        }
        self.scheduler_life += 1;
        let incarnation = self.rng.next();
        self.scheduler = Some(SchedulerHost::new(broker_config(), incarnation));
        self.say(format_args!("scheduler starts"));
        let life = self.scheduler_life;
        self.after(TICK, Happening::SchedulerTick { life });
    }

    pub(super) fn scheduler_step(&mut self, event: BrokerEvent) {
        let mut touched = Touched::default();
        if let Some(scheduler) = self.scheduler.as_mut() {
            scheduler.step(self.now, &mut self.net, event, &mut touched);
        }
        self.scheduler_touched(touched);
    }

    pub(super) fn scheduler_hears(&mut self, conn: ConnId, arrivals: Vec<Arrival>) {
        let peer = match self.net.host(conn, Side::Client) {
            Some(Host::Node(node)) => (Role::Launcher, format!("node-{node}")),
            _ => (Role::Controller, "controller".to_owned()),
        };
        for arrival in &arrivals {
            if let Arrival::Frame(frame) = arrival {
                let said = describe::frame(peer.0, Role::Scheduler, frame);
                self.say(format_args!("scheduler <- {} {said}", peer.1));
            }
        }
        let mut touched = Touched::default();
        if let Some(scheduler) = self.scheduler.as_mut() {
            let peer = (peer.0, peer.1.as_str());
            let plant = self.config.plant;
            scheduler.arrived(
                self.now,
                &mut self.net,
                conn,
                peer,
                arrivals,
                plant,
                &mut touched,
            );
            scheduler.broker.sanity_check();
        }
        self.scheduler_touched(touched);
    }

    pub(super) fn scheduler_touched(&mut self, mut touched: Touched) {
        loop {
            for conn in std::mem::take(&mut touched.sent) {
                self.transmit(conn);
            }
            for conn in std::mem::take(&mut touched.refused) {
                self.close(conn, Side::Server);
                if let Some(scheduler) = self.scheduler.as_mut() {
                    scheduler.closed(self.now, &mut self.net, conn, "refused", &mut touched);
                }
            }
            if let Some(scheduler) = self.scheduler.as_mut() {
                scheduler.drained(self.now, &mut self.net, &mut touched);
            }
            if touched.sent.is_empty() && touched.refused.is_empty() {
                return;
            }
        }
    }
}
