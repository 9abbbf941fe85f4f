//! What breaks, when it does.

use super::*;

impl World {
    pub(super) fn fault(&mut self) {
        if !self.is_busy() {
            return;
        }
        let every = self.config.fault_every;
        let delay = self.rng.between(1, 2 * every);
        self.after(delay, Happening::Fault);
        let fault = faults::draw(&mut self.rng, self.config.nodes);
        self.faults += 1;
        self.say(format_args!("fault: {fault:?}"));
        self.break_things(fault);
    }

    pub(super) fn break_things(&mut self, fault: Fault) {
        match fault {
            Fault::Kill {
                host: Host::Scheduler,
                back_after,
            } => {
                self.frozen.remove(&Host::Scheduler);
                for (conn, side) in self.net.of_host(Host::Scheduler) {
                    self.close(conn, side);
                }
                self.scheduler = None;
                self.scheduler_life += 1;
                self.after(back_after, Happening::SchedulerStart);
            }
            Fault::Kill {
                host: Host::Controller,
                back_after,
            } => {
                if let Some(conn) = self.controller.conn {
                    self.close(conn, Side::Client);
                }
                self.frozen.remove(&Host::Controller);
                self.controller.kill();
                self.waiting.clear();
                self.after(back_after, Happening::ControllerStart);
            }
            Fault::Kill {
                host: Host::Node(node),
                back_after,
            } => {
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
                    Host::Scheduler => self.scheduler.is_some(),
                    Host::Controller => self.controller.planner.is_some(),
                };
                if lives {
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
                self.nodes[node as usize].power_cycle(self.now, &mut self.oracle);
                if fenced {
                    let name = self.nodes[node as usize].name.clone();
                    let call = Call::DeleteNode {
                        node: name,
                        fenced: true,
                    };
                    self.call(call, Waiting::Other);
                }
                self.after(back_after, Happening::NodeStart { node });
            }
            Fault::Cut => {
                let conns = self.net.all();
                if !conns.is_empty() {
                    let conn = *self.rng.choose(&conns);
                    for (at, side) in self.net.cut(self.now, conn, &mut self.rng) {
                        self.at(at, Happening::Look { conn, side });
                    }
                }
            }
            Fault::Block { from, to, time } => {
                self.net.block(from, to);
                self.after(time, Happening::Unblock { from, to });
            }
            Fault::DiskStall { time } => self.controller.stalled_until = self.now + time,
            Fault::Delay { longest } => self.net.max_delay = longest,
            Fault::Slow { host, by, time } => self.net.slow_down(host, by, self.now + time),
            Fault::Lie { node, time } => {
                let until = self.now + time;
                self.nodes[node as usize].lies_until = until;
                // What it promised may be called in as long as the session lives in which it did.
                const CALLED_IN: Time = 30_000 * MS;
                self.oracle.lying_until.insert(node, until + CALLED_IN);
            }
            Fault::Stutter { node, time } => {
                self.nodes[node as usize].stutters_until = self.now + time;
            }
            Fault::WallClock { to } => self.controller.unix_ms_at_zero = to,
            Fault::Expire { host, time } => {
                self.expired.insert(host, self.now + time);
                for (conn, side) in self.net.of_host(host) {
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
        if host == Host::Controller && !self.is_busy() {
            // It heard nobody who asked while it was stopped.
            self.restore_nodes();
        }
    }
}
