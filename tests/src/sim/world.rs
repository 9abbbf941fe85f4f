//! The world: one queue of happenings, all hosts, and the rules by which a run is judged.

use super::controller::{self, Controller};
use super::describe;
use super::faults::{self, Fault};
use super::launcher::{self, Later, Node};
use super::net::{Arrival, ConnId, Host, MS, Net, Side, Time};
use super::oracle::{Acknowledged, Ending, Oracle};
use super::plant::Plant;
use super::rng::Rng;
use super::scheduler::{SchedulerHost, TICK, Touched};
use super::users;
use pronto_controller::api::types::InstanceState;
use pronto_controller::planner::{
    Call, Effect as Answer, Event as PlannerEvent, Reply, SessionUp as PlannerSessionUp,
    Settings as PlannerSettings, Token,
};
use pronto_launcher::supervisor::Event as LauncherEvent;
use pronto_payloads::codec::decode;
use pronto_payloads::demand::Capacity;
use pronto_payloads::hello::SchedulerWelcome;
use pronto_payloads::ids::{InstanceId, OwnerId, Term};
use pronto_protocol::{Hello, Purpose, Role, SessionConfig, Timeouts};
use pronto_scheduler::core::{BrokerConfig, Event as BrokerEvent};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// How a run is set up.
#[derive(Clone, Debug)]
pub struct SimConfig {
    pub seed: u64,
    pub nodes: u32,
    /// Faults and users act for so long.
    pub busy: Time,
    /// After that everything must have settled within this.
    pub settle: Time,
    /// Mean time between two faults; none at all where it is zero.
    pub fault_every: Time,
    /// Mean time between two acts of users.
    pub user_every: Time,
    pub plant: Option<Plant>,
    /// Keep the last so many lines of the trace.
    pub trace_lines: usize,
}

impl SimConfig {
    /// What `./test` runs for a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: 2 + u32::try_from(seed % 5).expect("small"),
            busy: 20_000 * MS,
            settle: 180_000 * MS,
            fault_every: 700 * MS,
            user_every: 150 * MS,
            plant: None,
            trace_lines: 400,
        }
    }
}

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    /// Why it failed.
    pub failure: Option<String>,
    /// The end of the trace.
    pub trace: String,
    /// A digest of the whole trace: equal runs have equal digests.
    pub digest: u64,
    pub acknowledged: usize,
    pub attempts: usize,
    pub faults: usize,
    pub steps: u64,
    /// When all had settled.
    pub settled_at: Time,
}

/// Runs one simulation to its end.
#[must_use]
pub fn run(config: &SimConfig) -> Outcome {
    World::new(config.clone()).run()
}

#[derive(Clone, Debug)]
enum Happening {
    Look { conn: ConnId, side: Side },
    SchedulerTick { life: u64 },
    Beat,
    NodeStart { node: u32 },
    NodeDial { node: u32, life: u64 },
    NodeWake { node: u32, life: u64, at: Time },
    NodeLater { node: u32, life: u64, later: Later },
    Thaw { node: u32 },
    SchedulerStart,
    ControllerStart,
    ControllerDial { life: u64 },
    ControllerTick { life: u64, at: Time },
    DiskDone { life: u64, last: u64 },
    User,
    Fault,
    Unblock { from: Host, to: Host },
}

/// What a user waits for.
#[derive(Clone, Debug)]
enum Waiting {
    Submit { tenant: String },
    Stop { id: InstanceId, delete: bool },
    Other,
}

/// Everything.
pub struct World {
    config: SimConfig,
    now: Time,
    rng: Rng,
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    order: u64,
    net: Net,
    scheduler: Option<SchedulerHost>,
    scheduler_life: u64,
    nodes: Vec<Node>,
    controller: Controller,
    oracle: Oracle,
    waiting: BTreeMap<Token, Waiting>,
    next_token: u64,
    killing: BTreeMap<u32, (usize, Time)>,
    faults: usize,
    steps: u64,
    trace: VecDeque<String>,
    digest: u64,
}

impl std::fmt::Debug for World {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("World")
            .field("seed", &self.config.seed)
            .finish_non_exhaustive()
    }
}

/// Steps after which a run counts as stuck in a moment: a hundred times what a run takes.
const MAX_STEPS: u64 = 5_000_000;

fn session_config() -> SessionConfig {
    SessionConfig {
        timeouts: Timeouts {
            handshake: Duration::from_secs(5),
            keepalive: Duration::from_secs(1),
            idle: Duration::from_secs(3),
            stall: Duration::from_secs(3),
        },
        ..SessionConfig::default()
    }
}

fn broker_config() -> BrokerConfig {
    BrokerConfig {
        lease_ms: 3000,
        warm_up_ms: 2000,
        ..BrokerConfig::default()
    }
}

fn planner_settings() -> PlannerSettings {
    PlannerSettings {
        lost_after_ms: 4000,
        grant_ms: 3000,
        fence_margin_ms: 500,
        stop_repeat_ms: 500,
        ..PlannerSettings::default()
    }
}

impl World {
    /// A world at its beginning: everything starts within the first milliseconds.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        let mut rng = Rng::new(config.seed);
        let mut oracle = Oracle::default();
        oracle
            .quotas
            .insert(users::SMALL_TENANT.to_owned(), users::SMALL_QUOTA);
        let nodes = (0..config.nodes)
            .map(|index| {
                let capacity = Capacity {
                    cpu_millis: u32::try_from(rng.between(2, 6) * 1000).expect("small"),
                    memory_mib: u32::try_from(rng.between(2, 6) * 1024).expect("small"),
                    disk_mib: 100_000,
                    ..Capacity::default()
                };
                oracle.add_node(index, capacity.clone());
                Node::new(index, capacity)
            })
            .collect();
        let mut world = Self {
            now: 0,
            rng,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            order: 0,
            net: Net::new(Instant::now()),
            scheduler: None,
            scheduler_life: 0,
            nodes,
            controller: Controller::new(planner_settings(), OwnerId([9; 16])),
            oracle,
            waiting: BTreeMap::new(),
            next_token: 1,
            killing: BTreeMap::new(),
            faults: 0,
            steps: 0,
            trace: VecDeque::new(),
            digest: 0xcbf2_9ce4_8422_2325,
            config,
        };
        world.after(MS, Happening::SchedulerStart);
        world.after(2 * MS, Happening::ControllerStart);
        for node in 0..world.config.nodes {
            world.after(MS, Happening::NodeStart { node });
        }
        world.after(50 * MS, Happening::User);
        world.after(100 * MS, Happening::Beat);
        if world.config.fault_every > 0 {
            world.after(500 * MS, Happening::Fault);
        }
        world
    }

    fn after(&mut self, delay: Time, happening: Happening) {
        self.at(self.now.saturating_add(delay), happening);
    }

    fn at(&mut self, at: Time, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse((at.max(self.now), self.order)));
        self.happenings.insert(self.order, happening);
    }

    fn say(&mut self, arguments: std::fmt::Arguments<'_>) {
        let mut line = String::new();
        let _infallible = write!(
            line,
            "{:>8}.{:03} ms  {arguments}",
            self.now / MS,
            self.now % MS / 1000
        );
        for byte in line.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.trace.len() == self.config.trace_lines {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    fn is_busy(&self) -> bool {
        self.now < self.config.busy
    }

    /// Runs to the end.
    #[must_use]
    pub fn run(mut self) -> Outcome {
        let deadline = self.config.busy + self.config.settle;
        let mut healed = false;
        let mut settled_at = 0;
        while let Some(Reverse((at, order))) = self.queue.pop() {
            self.now = at;
            let happening = self.happenings.remove(&order).expect("each is queued once");
            if !healed && !self.is_busy() {
                healed = true;
                self.heal();
            }
            self.steps += 1;
            let last = happening.clone();
            self.happen(happening);
            if self.oracle.violation.is_some() {
                break;
            }
            if healed && self.has_settled() {
                settled_at = self.now;
                break;
            }
            if self.steps > MAX_STEPS {
                self.oracle
                    .violate(format!("livelock: {MAX_STEPS} steps, the last {last:?}"));
                break;
            }
            if self.now > deadline {
                let text = self.unsettled();
                self.oracle.violate(text);
                break;
            }
        }
        if self.oracle.violation.is_none() {
            self.judge();
        }
        let trace = self.trace.iter().fold(String::new(), |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        });
        Outcome {
            seed: self.config.seed,
            failure: self.oracle.violation.clone(),
            trace,
            digest: self.digest,
            acknowledged: self.oracle.acknowledged.len(),
            attempts: self.oracle.begun(),
            faults: self.faults,
            steps: self.steps,
            settled_at,
        }
    }

    /// Ends what faults have done, apart from what heals by itself.
    fn heal(&mut self) {
        self.say(format_args!("faults and users stop"));
        self.net.max_delay = 2 * MS;
        self.killing.clear();
        self.restore_nodes();
    }

    /// An administrator ends all drains, in person and again where the controller was down.
    fn restore_nodes(&mut self) {
        for node in 0..self.config.nodes {
            let name = self.nodes[node as usize].name.clone();
            self.call(Call::Restore(name), Waiting::Other);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Look { conn, side } => self.look(conn, side),
            Happening::SchedulerTick { life } if life == self.scheduler_life => {
                self.scheduler_step(BrokerEvent::Tick);
                self.scheduler_step(BrokerEvent::TurnEnded);
                if let Some(scheduler) = &self.scheduler {
                    scheduler.broker.sanity_check();
                    self.after(TICK, Happening::SchedulerTick { life });
                }
            }
            Happening::Beat => self.beat(),
            Happening::NodeStart { node } => self.node_start(node),
            Happening::NodeDial { node, life } => self.node_dial(node, life),
            Happening::NodeWake { node, life, at } => {
                let host = &self.nodes[node as usize];
                if host.life == life && host.wakes_at == at {
                    self.nodes[node as usize].wakes_at = Time::MAX;
                    self.node_step(node, LauncherEvent::Tick);
                }
            }
            Happening::NodeLater { node, life, later } => self.node_later(node, life, later),
            Happening::Thaw { node } => {
                if self.nodes[node as usize].frozen_until <= self.now {
                    self.say(format_args!("node-{node} goes on"));
                    self.node_step(node, LauncherEvent::Tick);
                    if let Some(conn) = self.nodes[node as usize].conn {
                        self.look(conn, Side::Client);
                    }
                }
            }
            Happening::SchedulerStart => self.scheduler_start(),
            Happening::ControllerStart => {
                if self.controller.planner.is_none() {
                    self.controller.start(self.now);
                    let life = self.controller.life;
                    self.say(format_args!("controller starts"));
                    self.after(MS, Happening::ControllerDial { life });
                    self.controller_step(vec![PlannerEvent::Tick]);
                    self.call(users::create_small_tenant(), Waiting::Other);
                    if !self.is_busy() {
                        self.restore_nodes();
                    }
                }
            }
            Happening::ControllerDial { life } => self.controller_dial(life),
            Happening::ControllerTick { life, at } => {
                if self.controller.life == life && self.controller.ticks_at == at {
                    self.controller.ticks_at = Time::MAX;
                    self.controller_step(vec![PlannerEvent::Tick]);
                }
            }
            Happening::DiskDone { life, last } if life == self.controller.life => {
                let mut wishes = controller::Wishes::default();
                let plant = self.config.plant;
                self.controller
                    .committed(self.now, last, &mut self.rng, plant, &mut wishes);
                self.grant_controller(wishes);
            }
            Happening::User => self.user(),
            Happening::Fault => self.fault(),
            Happening::Unblock { from, to } => {
                self.net.unblock(from, to);
                self.say(format_args!("{from:?} reaches {to:?} again"));
                for (conn, side) in self.net.of_host(to) {
                    self.after(0, Happening::Look { conn, side });
                }
            }
            Happening::SchedulerTick { .. } | Happening::DiskDone { .. } => {}
        }
    }

    // ---- network

    /// Hands queued frames to the network and plans when they are looked at.
    fn transmit(&mut self, conn: ConnId) {
        for (at, side) in self.net.transmit(self.now, conn, &mut self.rng) {
            self.at(at, Happening::Look { conn, side });
        }
    }

    fn close(&mut self, conn: ConnId, side: Side) {
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
    fn look(&mut self, conn: ConnId, side: Side) {
        let Some(host) = self.net.host(conn, side) else {
            return;
        };
        if let Host::Node(node) = host
            && self.nodes[node as usize].frozen_until > self.now
        {
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
    fn beat(&mut self) {
        for conn in self.net.all() {
            for side in [Side::Client, Side::Server] {
                if let Some(Host::Node(node)) = self.net.host(conn, side)
                    && self.nodes[node as usize].frozen_until > self.now
                {
                    continue;
                }
                if let Err(error) = self.net.tick(self.now, conn, side) {
                    self.session_failed(conn, side, &error.to_string());
                }
            }
            self.transmit(conn);
        }
        if self.rng.per_mille(300) {
            for node in &mut self.nodes {
                node.sync();
            }
        }
        self.after(500 * MS, Happening::Beat);
    }

    fn session_failed(&mut self, conn: ConnId, side: Side, reason: &str) {
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

    // ---- scheduler

    fn scheduler_start(&mut self) {
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

    fn scheduler_step(&mut self, event: BrokerEvent) {
        let mut touched = Touched::default();
        if let Some(scheduler) = self.scheduler.as_mut() {
            scheduler.step(self.now, &mut self.net, event, &mut touched);
        }
        self.scheduler_touched(touched);
    }

    fn scheduler_hears(&mut self, conn: ConnId, arrivals: Vec<Arrival>) {
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
            scheduler.arrived(self.now, &mut self.net, conn, peer, arrivals, &mut touched);
            scheduler.broker.sanity_check();
        }
        self.scheduler_touched(touched);
    }

    fn scheduler_touched(&mut self, mut touched: Touched) {
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

    // ---- nodes

    fn node_start(&mut self, node: u32) {
        let host = &mut self.nodes[node as usize];
        if host.supervisor.is_some() {
            return;
        }
        let wishes = host.start(self.now, &mut self.oracle, &mut self.rng, self.config.plant);
        let life = host.life;
        self.say(format_args!("node-{node} starts its launcher"));
        self.grant_node(node, wishes);
        self.after(MS, Happening::NodeDial { node, life });
        self.node_step(node, LauncherEvent::Tick);
    }

    fn node_dial(&mut self, node: u32, life: u64) {
        let host = &mut self.nodes[node as usize];
        if host.life != life || host.supervisor.is_none() || host.conn.is_some() {
            return;
        }
        if host.frozen_until > self.now || self.scheduler.is_none() {
            let delay = self.rng.between(50, 400) * MS;
            self.after(delay, Happening::NodeDial { node, life });
            return;
        }
        let (epoch, body) = host.hello();
        let hello = Hello::new(Purpose::Control, epoch, body);
        let from = (Host::Node(node), Role::Launcher);
        let to = (Host::Scheduler, Role::Scheduler);
        let conn = self.net.open(self.now, from, to, &hello, session_config());
        self.nodes[node as usize].conn = Some(conn);
        self.nodes[node as usize].welcomed = false;
        self.say(format_args!("node-{node} dials, session {epoch}"));
        self.transmit(conn);
    }

    fn node_hears(&mut self, node: u32, conn: ConnId, arrivals: Vec<Arrival>) {
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
                    let Ok(body) = decode::<SchedulerWelcome>(&welcome.body) else {
                        self.oracle.violate("WELCOME can't be decoded".to_owned());
                        return;
                    };
                    self.nodes[node as usize].welcomed = true;
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
                Arrival::Frame(frame) => {
                    let said = describe::frame(Role::Scheduler, Role::Launcher, &frame);
                    self.say(format_args!("node-{node} <- {said}"));
                    self.node_step(node, LauncherEvent::Frame { epoch, frame });
                }
                Arrival::Closed(reason) => self.node_cut_off(node, &reason),
                Arrival::Hello(_) => unreachable!("a client gets no HELLO"),
            }
        }
    }

    fn node_cut_off(&mut self, node: u32, reason: &str) {
        let host = &mut self.nodes[node as usize];
        host.conn = None;
        host.welcomed = false;
        let (epoch, life) = (host.session_epoch(), host.life);
        self.say(format_args!("node-{node} is cut off: {reason}"));
        self.node_step(node, LauncherEvent::SessionDown { epoch });
        let delay = self.rng.between(20, 400) * MS;
        self.after(delay, Happening::NodeDial { node, life });
    }

    fn node_step(&mut self, node: u32, event: LauncherEvent) {
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
            self.kill_node(node);
            self.after(back_after, Happening::NodeStart { node });
            return;
        }
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

    fn grant_node(&mut self, node: u32, wishes: launcher::Wishes) {
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

    fn node_later(&mut self, node: u32, life: u64, later: Later) {
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

    fn kill_node(&mut self, node: u32) {
        if let Some(conn) = self.nodes[node as usize].conn {
            self.close(conn, Side::Client);
        }
        self.nodes[node as usize].kill(&mut self.oracle);
    }

    // ---- controller

    fn controller_dial(&mut self, life: u64) {
        if self.controller.life != life
            || self.controller.planner.is_none()
            || self.controller.conn.is_some()
        {
            return;
        }
        if self.scheduler.is_none() {
            let delay = self.rng.between(20, 200) * MS;
            self.after(delay, Happening::ControllerDial { life });
            return;
        }
        let (epoch, body) = self.controller.hello();
        let hello = Hello::new(Purpose::Control, epoch, body);
        let from = (Host::Controller, Role::Controller);
        let to = (Host::Scheduler, Role::Scheduler);
        let conn = self.net.open(self.now, from, to, &hello, session_config());
        self.controller.conn = Some(conn);
        self.say(format_args!("controller dials, epoch {epoch}"));
        self.transmit(conn);
    }

    fn controller_hears(&mut self, conn: ConnId, arrivals: Vec<Arrival>) {
        if self.controller.conn != Some(conn) {
            return;
        }
        let mut events = Vec::new();
        let mut cut_off = None;
        for arrival in arrivals {
            match arrival {
                Arrival::Welcome(welcome) => {
                    let Ok(body) = decode::<SchedulerWelcome>(&welcome.body) else {
                        self.oracle.violate("WELCOME can't be decoded".to_owned());
                        return;
                    };
                    self.controller.welcomed = true;
                    events.push(PlannerEvent::SessionUp(PlannerSessionUp {
                        address: "scheduler".to_owned(),
                        term: Term(welcome.term),
                        active: welcome.active,
                        welcome: body,
                    }));
                }
                Arrival::Frame(frame) => {
                    let said = describe::frame(Role::Scheduler, Role::Controller, &frame);
                    self.say(format_args!("controller <- {said}"));
                    events.push(PlannerEvent::Frame(frame));
                }
                Arrival::Closed(reason) => cut_off = Some(reason),
                Arrival::Hello(_) => unreachable!("a client gets no HELLO"),
            }
        }
        self.controller_step(events);
        if let Some(reason) = cut_off {
            self.controller_cut_off(&reason);
        }
    }

    fn controller_cut_off(&mut self, reason: &str) {
        if self.controller.conn.take().is_none() {
            return;
        }
        self.say(format_args!("controller is cut off: {reason}"));
        if std::mem::take(&mut self.controller.welcomed) {
            self.controller_step(vec![PlannerEvent::SessionDown {
                reason: reason.to_owned(),
            }]);
        }
        let life = self.controller.life;
        let delay = self.rng.between(10, 300) * MS;
        self.after(delay, Happening::ControllerDial { life });
    }

    fn controller_step(&mut self, events: Vec<PlannerEvent>) {
        let mut wishes = controller::Wishes::default();
        let plant = self.config.plant;
        self.controller
            .step(self.now, events, &mut self.rng, plant, &mut wishes);
        self.grant_controller(wishes);
        let Some(planner) = self.controller.planner.as_ref() else {
            return;
        };
        let at = u64::try_from(planner.next_tick_ns())
            .unwrap_or(0)
            .max(self.now + 1);
        if at < self.controller.ticks_at {
            self.controller.ticks_at = at;
            let life = self.controller.life;
            self.at(at, Happening::ControllerTick { life, at });
        }
    }

    fn grant_controller(&mut self, wishes: controller::Wishes) {
        if let Some((delay, last)) = wishes.commit_done {
            let life = self.controller.life;
            self.after(delay, Happening::DiskDone { life, last });
        }
        for answer in wishes.replies {
            self.answered(answer);
        }
        let Some(conn) = self.controller.conn else {
            return;
        };
        for frame in &wishes.send {
            match self.net.queue(conn, Side::Client, frame) {
                Ok(()) | Err(pronto_protocol::SendError::Closed) => {}
                Err(pronto_protocol::SendError::Full { .. }) => {
                    self.close(conn, Side::Client);
                    self.controller_cut_off("its own queue is full");
                    return;
                }
                Err(other) => {
                    self.oracle
                        .violate(format!("the controller sends what it may not: {other}"));
                    return;
                }
            }
        }
        self.transmit(conn);
        if let Some(reason) = wishes.drop_session {
            self.close(conn, Side::Client);
            self.controller_cut_off(&reason);
        }
    }

    // ---- users

    fn call(&mut self, call: Call, waiting: Waiting) {
        if self.controller.planner.is_none() {
            return;
        }
        let token = Token(self.next_token);
        self.next_token += 1;
        self.waiting.insert(token, waiting);
        let event = PlannerEvent::Request {
            token,
            actor: users::admin(),
            call: Box::new(call),
        };
        self.controller_step(vec![event]);
    }

    fn answered(&mut self, answer: Answer) {
        let (token, reply) = match answer {
            Answer::Reply { token, reply } => (token, reply),
            Answer::Changed(change) => {
                self.say(format_args!(
                    "instance {} is {}",
                    change.id.short(),
                    change.state.name()
                ));
                return;
            }
            _ => return,
        };
        let waiting = self.waiting.remove(&token);
        match (waiting, reply) {
            (Some(Waiting::Submit { tenant }), Ok(Reply::Submitted(submitted))) => {
                self.say(format_args!(
                    "user has {} instances of {tenant}",
                    submitted.instances.len()
                ));
                for id in submitted.instances {
                    let promise = Acknowledged {
                        tenant: tenant.clone(),
                        stop: false,
                        deleted: false,
                    };
                    self.oracle.acknowledged.insert(id.into(), promise);
                }
            }
            (Some(Waiting::Stop { id, delete }), Ok(_)) => {
                if let Some(promise) = self.oracle.acknowledged.get_mut(&id) {
                    promise.stop = true;
                    promise.deleted |= delete;
                }
            }
            _ => {}
        }
    }

    fn user(&mut self) {
        if !self.is_busy() {
            return;
        }
        let every = self.config.user_every;
        let delay = self.rng.between(1, 2 * every);
        self.after(delay, Happening::User);
        match self.rng.below(100) {
            0..70 => {
                let now_ns = i64::try_from(self.now).expect("a simulation is short");
                let submit = users::submit(&mut self.rng, now_ns);
                let tenant = submit.tenant.clone().unwrap_or_default();
                self.say(format_args!("user submits {} for {tenant}", submit.count));
                self.call(Call::Submit(Box::new(submit)), Waiting::Submit { tenant });
            }
            70..90 => {
                let known: Vec<_> = self.oracle.acknowledged.keys().copied().collect();
                if let Some((id, call)) = users::stop(&mut self.rng, &known) {
                    let delete = matches!(
                        call,
                        Call::Stop {
                            then: pronto_controller::store::AfterStop::Delete,
                            ..
                        }
                    );
                    self.say(format_args!("user stops {}", id.short()));
                    self.call(call, Waiting::Stop { id, delete });
                }
            }
            90..95 => {
                let index = self.rng.below(self.nodes.len() as u64);
                let name = format!("node-{index}");
                self.say(format_args!("admin drains {name}"));
                let call = users::drain(&mut self.rng, name);
                self.call(call, Waiting::Other);
            }
            _ => {
                let index = self.rng.below(self.nodes.len() as u64);
                let name = format!("node-{index}");
                self.say(format_args!("admin restores {name}"));
                self.call(Call::Restore(name), Waiting::Other);
            }
        }
    }

    // ---- faults

    fn fault(&mut self) {
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

    fn break_things(&mut self, fault: Fault) {
        match fault {
            Fault::Kill {
                host: Host::Scheduler,
                back_after,
            } => {
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
            Fault::Freeze { node, time } => {
                if self.nodes[node as usize].supervisor.is_some() {
                    self.nodes[node as usize].frozen_until = self.now + time;
                    self.after(time, Happening::Thaw { node });
                }
            }
            Fault::PowerCycle { node, back_after } => {
                self.kill_node(node);
                self.nodes[node as usize].power_cycle(self.now, &mut self.oracle);
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
        }
    }

    // ---- judgement

    /// Whether nothing is under way any more.
    fn has_settled(&self) -> bool {
        self.steps.is_multiple_of(64)
            && self.oracle.running.is_empty()
            && self.controller.planner.is_some()
            && self.controller.unfinished() == 0
    }

    fn unsettled(&self) -> String {
        let running: Vec<_> = self.oracle.running.keys().collect();
        format!(
            "convergence: {} ms after the last fault {} instances have no end, nodes run {running:?}",
            self.config.settle / MS,
            self.controller.unfinished()
        )
    }

    /// Invariant 3: what was acknowledged is in an end state, and that state is what happened.
    fn judge(&mut self) {
        let acknowledged = std::mem::take(&mut self.oracle.acknowledged);
        for id in acknowledged.keys() {
            let Some(end) = self.controller.end_of(*id) else {
                self.oracle
                    .violate(format!("invariant 3: {id} was acknowledged and is lost"));
                break;
            };
            if end.state == InstanceState::Succeeded {
                let really = self.oracle.attempts_of(*id).iter().any(|attempt| {
                    attempt.attempt.0 == end.attempt
                        && self.oracle.endings.get(attempt) == Some(&Ending::Exited(0))
                });
                if !really {
                    let attempts = self.oracle.attempts_of(*id);
                    self.oracle.violate(format!(
                        "{id} is said to have succeeded as attempt {}, which did not: {attempts:?}",
                        end.attempt
                    ));
                    break;
                }
            }
        }
        self.oracle.acknowledged = acknowledged;
    }
}
