//! The nodes: their launchers start, dial, hear, step and die.

use super::*;
use pronto_payloads::codec::take;
use pronto_payloads::place::StartStamp;

impl World {
    pub(super) fn node_start(&mut self, node: u32) {
        let host = &mut self.nodes[node as usize];
        if host.supervisor.is_some() {
            return;
        }
        let wishes = host.start(self.now, &mut self.oracle, &mut self.rng, self.config.plant);
        self.say(format_args!("node-{node} starts its launcher"));
        self.grant_node(node, wishes);
        self.node_redials(node);
        self.node_step(node, LauncherEvent::Tick);
    }

    /// Waits as the dialer says, and dials whom it says.
    fn node_redials(&mut self, node: u32) {
        let jitter = self.jitter();
        let host = &mut self.nodes[node as usize];
        let (wait, address) = host.dialer.next_attempt(jitter);
        host.target = address.parse().expect("an index");
        let life = host.life;
        let wait = MS + wires::time_of(wait);
        self.after(wait, Happening::NodeDial { node, life });
    }

    pub(super) fn node_dial(&mut self, node: u32, life: u64) {
        let host = &mut self.nodes[node as usize];
        if host.life != life || host.supervisor.is_none() || host.conn.is_some() {
            return;
        }
        if host.frozen_until > self.now {
            let at = host.frozen_until;
            self.at(at, Happening::NodeDial { node, life });
            return;
        }
        let target = host.target;
        let there = Host::Scheduler(target);
        if self.schedulers[target as usize].process.is_none()
            || self.is_expired(there)
            || self.is_expired(Host::Node(node))
        {
            self.node_redials(node);
            return;
        }
        let (epoch, mut body) = self.nodes[node as usize].hello();
        if self.now < self.nodes[node as usize].pretends_until {
            self.tally.count("false HELLO said");
            let another = self.rng.choose(&self.nodes);
            let it = (
                another.name.as_str(),
                another.uuid,
                another.equipment.labels.as_slice(),
            );
            body = sabotage::pretend(&body, it, &mut self.rng);
        }
        let hello = Hello::new(Purpose::Control, epoch, body);
        let from = (Host::Node(node), Role::Launcher);
        let to = (there, Role::Scheduler);
        let conn = self.net.open(self.now, from, to, &hello, session_config());
        self.nodes[node as usize].conn = Some(conn);
        self.nodes[node as usize].welcomed = false;
        self.say(format_args!(
            "node-{node} dials scheduler-{target}, session {epoch}"
        ));
        self.transmit(conn);
    }

    pub(super) fn node_hears(&mut self, node: u32, conn: ConnId, arrivals: Vec<Arrival>) {
        if self.nodes[node as usize].conn != Some(conn) {
            return;
        }
        let epoch = self.nodes[node as usize].session_epoch();
        for arrival in arrivals {
            if self.nodes[node as usize].conn != Some(conn) {
                return;
            }
            match arrival {
                Arrival::Welcome(welcome) => {
                    let body = match decode::<SchedulerWelcome>(&welcome.body) {
                        Ok(body) => body,
                        Err(error) => {
                            let text = format!("WELCOME can't be decoded: {error}, {welcome:?}");
                            return self.oracle.violate(text);
                        }
                    };
                    self.nodes[node as usize].welcomed = true;
                    self.nodes[node as usize].dialer.succeeded();
                    self.node_step(
                        node,
                        LauncherEvent::SessionUp {
                            epoch,
                            term: Term(welcome.term),
                            active: welcome.active,
                            welcome: body,
                        },
                    );
                }
                Arrival::Frame(mut frame) => {
                    if self.config.plant == Some(Plant::ProlongsLeases) {
                        sabotage::prolong(&mut frame);
                    }
                    if self.config.plant == Some(Plant::GivesFirstGpu) {
                        sabotage::give_first_gpu(&mut frame);
                    }
                    if self.is_traced() {
                        let said = describe::frame(Role::Scheduler, Role::Launcher, &frame);
                        self.say(format_args!("node-{node} <- {said}"));
                    }
                    self.watch_start(node, &frame);
                    self.node_step(node, LauncherEvent::Frame { epoch, frame });
                }
                Arrival::Closed(reason) => self.node_cut_off(node, &reason),
                Arrival::Hello(_) => unreachable!("a client gets no HELLO"),
            }
        }
    }

    /// What the scheduler promised, held against what its launcher has to give.
    fn watch_start(&mut self, node: u32, frame: &pronto_protocol::Frame) {
        let Some(supervisor) = &self.nodes[node as usize].supervisor else {
            return;
        };
        if frame.operand != Operand::Start {
            return;
        }
        let mut bytes = frame.payload.to_bytes();
        let stamp = take::<StartStamp>(&mut bytes);
        let prefix = take::<StartPrefix>(&mut bytes);
        if let (Ok(stamp), Ok(prefix)) = (stamp, prefix) {
            let free = supervisor.free();
            let (name, epoch, seq) = (
                &self.nodes[node as usize].name,
                stamp.session_epoch,
                stamp.seq,
            );
            if let Err(text) = self.answers.arrived(name, epoch.0, seq.0, prefix.id) {
                self.oracle.violate(text);
            }
            self.oracle.arrives(node, &prefix, &stamp, &free, self.now);
            self.count_needs(node, &prefix);
        }
    }

    /// Counts what was asked for, and given.
    fn count_needs(&mut self, node: u32, prefix: &StartPrefix) {
        let asked = &prefix.demand;
        let is_preferred = prefix.prefer.as_ref() == Some(&self.nodes[node as usize].name);
        for (what, happened) in [
            ("whole GPUs given", asked.gpus > 0),
            ("share of a GPU given", asked.gpu_millis > 0),
            ("named resource given", !asked.resources.is_empty()),
            ("constraint met", !prefix.constraints.is_empty()),
            ("preferred node given", is_preferred),
        ] {
            self.tally.count_many(what, u64::from(happened));
        }
    }

    pub(super) fn node_cut_off(&mut self, node: u32, reason: &str) {
        let host = &mut self.nodes[node as usize];
        host.conn = None;
        host.welcomed = false;
        let epoch = host.session_epoch();
        self.say(format_args!("node-{node} is cut off: {reason}"));
        self.node_step(node, LauncherEvent::SessionDown { epoch });
        self.node_redials(node);
    }

    /// As the launcher's shell does after each turn: leaves a scheduler behind which no controller
    /// stands.
    fn seek_a_better_scheduler(&mut self, node: u32) {
        let host = &mut self.nodes[node as usize];
        let moment = host.moment(self.now);
        let orphaned = host
            .supervisor
            .as_ref()
            .is_some_and(|supervisor| supervisor.is_orphaned(moment));
        if !orphaned || host.conn.is_none() || !host.dialer.pass_over() {
            return;
        }
        if let Some(supervisor) = host.supervisor.as_mut() {
            supervisor.leave_orphaned();
        }
        if let Some(conn) = host.conn {
            self.close(conn, Side::Client);
            self.node_cut_off(node, "no controller stands behind this scheduler");
        }
    }

    pub(super) fn node_step(&mut self, node: u32, event: LauncherEvent) {
        let host = &mut self.nodes[node as usize];
        if host.supervisor.is_none() || host.frozen_until > self.now {
            return;
        }
        let killing = self.killing.get(&node).copied();
        let survives = killing.map_or(usize::MAX, |(effects, _)| effects);
        let mut wishes = launcher::Wishes::default();
        let plant = self.config.plant;
        let lives = host.step(
            self.now,
            event,
            &mut self.oracle,
            &mut self.rng,
            plant,
            survives,
            &mut wishes,
        );
        self.grant_node(node, wishes);
        if !lives && let Some((_, back_after)) = self.killing.remove(&node) {
            self.say(format_args!("node-{node} dies in the middle of a step"));
            self.tally.count("launcher killed within a step");
            self.kill_node(node);
            self.after(back_after, Happening::NodeStart { node });
            return;
        }
        self.seek_a_better_scheduler(node);
        let host = &mut self.nodes[node as usize];
        let Some(supervisor) = host.supervisor.as_ref() else {
            return;
        };
        if let Some(at) = supervisor.next_wakeup() {
            let at = host.time(at).max(self.now + 1);
            if at < host.wakes_at {
                host.wakes_at = at;
                let life = host.life;
                self.at(at, Happening::NodeWake { node, life, at });
            }
        }
    }

    pub(super) fn grant_node(&mut self, node: u32, wishes: launcher::Wishes) {
        self.tally
            .count_many("work of others reported", wishes.made_up);
        let life = self.nodes[node as usize].life;
        for (delay, later) in wishes.later {
            self.after(delay, Happening::NodeLater { node, life, later });
        }
        let Some(conn) = self.nodes[node as usize].conn else {
            return;
        };
        for frame in &wishes.send {
            if let Err(error) = self.net.queue(conn, Side::Client, frame) {
                match error {
                    pronto_protocol::SendError::Closed => {}
                    pronto_protocol::SendError::Full { .. } => {
                        self.close(conn, Side::Client);
                        self.node_cut_off(node, "its own queue is full");
                        return;
                    }
                    other => {
                        self.oracle
                            .violate(format!("node-{node} sends what it may not: {other}"));
                        return;
                    }
                }
            }
        }
        self.transmit(conn);
        if let Some(reason) = wishes.close {
            self.close(conn, Side::Client);
            self.node_cut_off(node, &reason);
        }
    }

    pub(super) fn node_later(&mut self, node: u32, life: u64, later: Later) {
        match later {
            Later::Tell(event) => {
                let host = &self.nodes[node as usize];
                if host.life != life || host.supervisor.is_none() {
                    return;
                }
                if host.frozen_until > self.now {
                    let at = host.frozen_until;
                    self.at(
                        at,
                        Happening::NodeLater {
                            node,
                            life,
                            later: Later::Tell(event),
                        },
                    );
                    return;
                }
                self.node_step(node, event);
            }
            Later::Due(id) => {
                let plant = self.config.plant;
                let host = &mut self.nodes[node as usize];
                let (events, next) = host.due(self.now, id, &mut self.oracle, plant);
                let life = host.life;
                if let Some(at) = next {
                    self.at(
                        at,
                        Happening::NodeLater {
                            node,
                            life,
                            later: Later::Due(id),
                        },
                    );
                }
                for event in events {
                    // A frozen or dead launcher hears of it when it is back.
                    self.node_later(node, life, Later::Tell(event));
                }
            }
        }
    }

    pub(super) fn kill_node(&mut self, node: u32) {
        if let Some(conn) = self.nodes[node as usize].conn {
            self.close(conn, Side::Client);
        }
        self.nodes[node as usize].kill(&mut self.oracle);
    }
}
