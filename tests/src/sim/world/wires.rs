//! The network and the schedulers at its middle: who hears what, and what that makes them say.

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
                Host::Scheduler(index) => self.scheduler_hears(index, conn, arrivals),
                Host::Controller(index) => self.controller_hears(index, conn, arrivals),
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

    /// A node that a controller has not reached for so long that it may take it for lost has an
    /// excuse for what is placed elsewhere meanwhile.
    fn note_who_is_away(&mut self) {
        // Controllers wait for 4 s; beats are coarse.
        const EXCUSED_AFTER_BEATS: u32 = 6;
        for node in 0..self.config.nodes {
            let at = self.scheduler_of(node);
            for index in 0..self.config.controllers {
                let controller = &self.controllers[index as usize];
                // Who stands at no scheduler takes nobody for lost.
                let reached = at.is_some_and(|at| !controller.welcomed || controller.target == at);
                let owner = controller.store.meta.owner;
                let away = self.oracle.away_beats.entry((owner, node)).or_default();
                *away = if reached { 0 } else { *away + 1 };
                let gone = *away >= EXCUSED_AFTER_BEATS;
                self.oracle.excuse(owner, node, self.now, gone);
            }
        }
    }

    /// The scheduler that reaches a node.
    fn scheduler_of(&self, index: u32) -> Option<u32> {
        let host = Host::Node(index);
        let node = &self.nodes[index as usize];
        let at = Host::Scheduler(node.target);
        let reached = node.welcomed
            && !self.is_frozen(host)
            && !self.net.is_blocked(host, at)
            && !self.net.is_blocked(at, host)
            && node
                .conn
                .is_some_and(|conn| self.net.is_open(conn, Side::Server));
        reached.then_some(node.target)
    }

    /// A number from 0 to 1.
    pub(super) fn jitter(&mut self) -> f64 {
        let drawn = u32::try_from(self.rng.below(1 << 20)).expect("below a u32");
        f64::from(drawn) / f64::from(1 << 20)
    }

    pub(super) fn session_failed(&mut self, conn: ConnId, side: Side, reason: &str) {
        let Some(host) = self.net.host(conn, side) else {
            return;
        };
        self.say(format_args!("{host:?} gives {conn:?} up: {reason}"));
        self.close(conn, side);
        let arrivals = vec![Arrival::Closed(reason.to_owned())];
        match host {
            Host::Scheduler(index) => self.scheduler_hears(index, conn, arrivals),
            Host::Controller(index) => self.controller_hears(index, conn, arrivals),
            Host::Node(node) => self.node_hears(node, conn, arrivals),
        }
    }

    pub(super) fn scheduler_start(&mut self, scheduler: u32) {
        let incarnation = self.rng.next();
        let plant = self.config.plant;
        let slot = &mut self.schedulers[scheduler as usize];
        if slot.process.is_some() {
            return;
        }
        slot.life += 1;
        slot.process = Some(SchedulerHost::new(broker_config(), incarnation, plant));
        let life = slot.life;
        self.say(format_args!("scheduler-{scheduler} starts"));
        self.after(TICK, Happening::SchedulerTick { scheduler, life });
    }

    pub(super) fn scheduler_tick(&mut self, scheduler: u32, life: u64) {
        if self.schedulers[scheduler as usize].life != life {
            return;
        }
        if !self.is_frozen(Host::Scheduler(scheduler)) {
            self.scheduler_step(scheduler, BrokerEvent::Tick);
            self.scheduler_step(scheduler, BrokerEvent::TurnEnded);
        }
        if let Some(process) = &self.schedulers[scheduler as usize].process {
            process.broker.sanity_check();
            self.after(TICK, Happening::SchedulerTick { scheduler, life });
        }
    }

    fn scheduler_step(&mut self, scheduler: u32, event: BrokerEvent) {
        let mut touched = Touched::default();
        if let Some(process) = self.schedulers[scheduler as usize].process.as_mut() {
            process.step(self.now, &mut self.net, event, &mut touched);
        }
        self.scheduler_touched(scheduler, touched);
    }

    pub(super) fn scheduler_hears(&mut self, scheduler: u32, conn: ConnId, arrivals: Vec<Arrival>) {
        let peer = match self.net.host(conn, Side::Client) {
            Some(Host::Node(node)) => (Role::Launcher, format!("node-{node}")),
            Some(Host::Controller(index)) => (Role::Controller, format!("controller-{index}")),
            // Both ends have hung up; what had come before is still heard.
            _ => (Role::Controller, "nobody".to_owned()),
        };
        for arrival in &arrivals {
            if let Arrival::Frame(frame) = arrival
                && self.is_traced()
            {
                let said = describe::frame(peer.0, Role::Scheduler, frame);
                self.say(format_args!("scheduler-{scheduler} <- {} {said}", peer.1));
            }
        }
        let mut touched = Touched::default();
        if let Some(process) = self.schedulers[scheduler as usize].process.as_mut() {
            let peer = (peer.0, peer.1.as_str());
            let plant = self.config.plant;
            process.arrived(
                self.now,
                &mut self.net,
                conn,
                peer,
                arrivals,
                plant,
                &mut touched,
            );
            process.broker.sanity_check();
        }
        self.scheduler_touched(scheduler, touched);
    }

    fn scheduler_touched(&mut self, scheduler: u32, mut touched: Touched) {
        loop {
            for conn in std::mem::take(&mut touched.sent) {
                self.transmit(conn);
            }
            let refused = std::mem::take(&mut touched.refused);
            for conn in &refused {
                self.close(*conn, Side::Server);
            }
            if let Some(process) = self.schedulers[scheduler as usize].process.as_mut() {
                for conn in refused {
                    process.closed(self.now, &mut self.net, conn, "refused", &mut touched);
                }
                process.drained(self.now, &mut self.net, &mut touched);
            }
            self.tally.count_many("queue brimming", touched.brimming);
            self.tally.count_many("queue full", touched.full);
            (touched.brimming, touched.full) = (0, 0);
            if touched.sent.is_empty() && touched.refused.is_empty() {
                return;
            }
        }
    }
}

/// A wait in simulated time.
pub(super) fn time_of(wait: Duration) -> Time {
    Time::try_from(wait.as_nanos()).expect("a simulation is short")
}
