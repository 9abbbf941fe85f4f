//! What breaks, when it does.

use super::faults::Lie;
use super::*;

impl World {
    pub(super) fn fault(&mut self) {
        if !self.is_busy() {
            return;
        }
        let every = self.config.fault_every;
        let delay = self.rng.between(1, 2 * every);
        self.after(delay, Happening::Fault);
        let fault = faults::draw(
            &mut self.rng,
            Cast {
                schedulers: self.config.schedulers,
                controllers: self.config.controllers,
                nodes: self.config.nodes,
            },
        );
        self.faults += 1;
        self.say(format_args!("fault: {fault:?}"));
        self.break_things(fault);
    }

    pub(super) fn break_things(&mut self, fault: Fault) {
        match fault {
            Fault::Kill {
                host: Host::Scheduler(scheduler),
                back_after,
            } => {
                let host = Host::Scheduler(scheduler);
                self.frozen.remove(&host);
                for (conn, side) in self.net.of_host(host) {
                    self.close(conn, side);
                }
                let slot = &mut self.schedulers[scheduler as usize];
                if slot.process.take().is_some() {
                    self.tally.count("scheduler killed");
                }
                slot.life += 1;
                self.after(back_after, Happening::SchedulerStart { scheduler });
            }
            Fault::Kill {
                host: Host::Controller(controller),
                back_after,
            } => self.kill_controller(controller, back_after),
            Fault::Kill {
                host: Host::Node(node),
                back_after,
            } => {
                if self.nodes[node as usize].supervisor.is_some() {
                    self.tally.count("launcher killed");
                }
                self.kill_node(node);
                self.after(back_after, Happening::NodeStart { node });
            }
            Fault::KillInStep {
                node,
                after_effects,
                back_after,
            } => {
                self.killing.insert(node, (after_effects, back_after));
            }
            Fault::Freeze { host, time } => {
                let until = self.now + time;
                let lives = match host {
                    Host::Node(node) => {
                        let node = &mut self.nodes[node as usize];
                        let lives = node.supervisor.is_some();
                        if lives {
                            node.frozen_until = until;
                        }
                        lives
                    }
                    Host::Scheduler(index) => self.schedulers[index as usize].process.is_some(),
                    Host::Controller(index) => self.controllers[index as usize].planner.is_some(),
                };
                if lives {
                    self.tally.count("process stopped");
                    if !matches!(host, Host::Node(_)) {
                        self.frozen.insert(host, until);
                    }
                    self.after(time, Happening::Thaw { host });
                }
            }
            Fault::PowerCycle {
                node,
                back_after,
                fenced,
            } => {
                self.kill_node(node);
                self.tally.count("power lost");
                self.nodes[node as usize].power_cycle(self.now, &mut self.oracle);
                if fenced {
                    self.tally.count("node fenced");
                    let name = self.nodes[node as usize].name.clone();
                    let call = Call::DeleteNode {
                        node: name,
                        fenced: true,
                    };
                    for controller in 0..self.config.controllers {
                        self.call(controller, call.clone(), Waiting::Other);
                    }
                }
                self.after(back_after, Happening::NodeStart { node });
            }
            Fault::Cut => {
                let conns = self.net.all();
                if !conns.is_empty() {
                    let conn = *self.rng.choose(&conns);
                    self.tally.count("connection cut");
                    for (at, side) in self.net.cut(self.now, conn, &mut self.rng) {
                        self.at(at, Happening::Look { conn, side });
                    }
                }
            }
            Fault::Block { from, to, time } => {
                self.tally.count("one way blocked");
                self.net.block(from, to);
                self.after(time, Happening::Unblock { from, to });
            }
            Fault::Isolate { host, time } => {
                self.tally.count("host cut off");
                self.isolate(host, time);
            }
            Fault::DiskStall { controller, time } => {
                self.tally.count("disk stalled");
                self.controllers[controller as usize].stalled_until = self.now + time;
            }
            Fault::Backup { controller } => {
                self.controllers[controller as usize].back_up();
                self.oracle.back_up(controller);
            }
            Fault::Restore {
                controller,
                back_after,
            } => {
                self.kill_controller(controller, back_after);
                let plant = self.config.plant;
                let host = &mut self.controllers[controller as usize];
                if host.restore(self.now, plant) {
                    self.tally.count("store restored");
                }
                self.oracle
                    .restore(controller, |id| host.end_of(id).is_some());
            }
            Fault::Delay { longest } => {
                self.tally.count("frames delayed");
                self.net.max_delay = longest;
            }
            Fault::Slow { host, by, time } => {
                self.tally.count("peer slow");
                self.net.slow_down(host, by, self.now + time);
            }
            Fault::Lie { node, time, about } => self.lie(node, self.now + time, about),
            Fault::Stutter { node, time } => {
                self.tally.count("frames said twice");
                self.nodes[node as usize].stutters_until = self.now + time;
            }
            Fault::BlackHole { node, time } => {
                self.tally.count("node fails everything");
                self.nodes[node as usize].swallows_until = self.now + time;
            }
            Fault::WallClock { controller, to } => {
                self.tally.count("wall clock set");
                self.controllers[controller as usize].unix_ms_at_zero = to;
            }
            Fault::Expire { host, time } => {
                self.expired.insert(host, self.now + time);
                let sessions = self.net.of_host(host);
                if !sessions.is_empty() {
                    self.tally.count("certificate expired");
                }
                for (conn, side) in sessions {
                    // Its peer, not the host itself, looks at certificates.
                    self.session_failed(
                        conn,
                        side.other(),
                        "its certificate is not valid any more",
                    );
                }
            }
        }
    }

    fn kill_controller(&mut self, controller: u32, back_after: Time) {
        if let Some(conn) = self.controllers[controller as usize].conn {
            self.close(conn, Side::Client);
            self.answers.closed(conn);
        }
        self.frozen.remove(&Host::Controller(controller));
        let host = &mut self.controllers[controller as usize];
        if host.planner.is_some() {
            self.tally.count("controller killed");
        }
        if host.has_unsynced() {
            self.tally.count("commit lost at a crash");
        }
        host.kill();
        self.waiting.retain(|_, (asked, _)| *asked != controller);
        self.after(back_after, Happening::ControllerStart { controller });
    }

    fn lie(&mut self, node: u32, until: Time, about: Lie) {
        // What it promised may be called in as long as the session lives in which it did.
        const CALLED_IN: Time = 30_000 * MS;
        let host = &mut self.nodes[node as usize];
        match about {
            Lie::Capacity => {
                self.tally.count("capacity lied about");
                host.lies_until = until;
                self.oracle.lying_until.insert(node, until + CALLED_IN);
            }
            Lie::Itself => {
                host.pretends_until = until;
                self.oracle.lying_until.insert(node, until + CALLED_IN);
                self.come_back(node);
                self.at(until, Happening::ComeBack { node });
            }
            // It tells the truth of itself: nothing is excused.
            Lie::Others => host.slanders_until = until,
        }
    }

    /// A launcher hangs up and dials again.
    pub(super) fn come_back(&mut self, node: u32) {
        let host = &self.nodes[node as usize];
        if host.frozen_until > self.now {
            let at = host.frozen_until;
            self.at(at, Happening::ComeBack { node });
        } else if let Some(conn) = host.conn {
            self.close(conn, Side::Client);
            self.node_cut_off(node, "it comes back");
        }
    }

    fn isolate(&mut self, host: Host, time: Time) {
        let others = (0..self.config.schedulers)
            .map(Host::Scheduler)
            .chain((0..self.config.controllers).map(Host::Controller))
            .chain((0..self.config.nodes).map(Host::Node));
        for other in others.filter(|other| *other != host) {
            for (from, to) in [(host, other), (other, host)] {
                self.net.block(from, to);
                self.after(time, Happening::Unblock { from, to });
            }
        }
    }

    /// SIGCONT: what has arrived meanwhile is read before time is seen to have passed.
    pub(super) fn thaw(&mut self, host: Host) {
        if self.is_frozen(host) {
            return;
        }
        self.say(format_args!("{host:?} goes on"));
        self.frozen.remove(&host);
        if let Host::Node(node) = host {
            self.node_step(node, LauncherEvent::Tick);
        }
        for (conn, side) in self.net.of_host(host) {
            self.look(conn, side);
        }
        if let Host::Controller(controller) = host
            && !self.is_busy()
        {
            // It heard nobody who asked while it was stopped.
            self.restore_nodes_of(controller);
        }
    }
}
