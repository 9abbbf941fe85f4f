//! The world: one queue of happenings, all hosts, and the rules by which a run is judged.

use super::controller::{self, Controller};
use super::describe;
use super::faults::{self, Fault};
use super::launcher::{self, Later, Node};
use super::net::{Arrival, ConnId, Host, MS, Net, Room, Side, Time};
use super::oracle::{Acknowledged, Ending, Oracle};
use super::plant::Plant;
use super::rng::Rng;
use super::sabotage;
use super::scheduler::{SchedulerHost, TICK, Touched};
use super::users;
use pronto_controller::api::types::{EndReason, InstanceState};
use pronto_controller::planner::{
    Call, Effect as Answer, Event as PlannerEvent, Reply, SessionUp as PlannerSessionUp,
    Settings as PlannerSettings, Token,
};
use pronto_launcher::supervisor::Event as LauncherEvent;
use pronto_payloads::codec::{decode, decode_prefix};
use pronto_payloads::demand::Capacity;
use pronto_payloads::hello::SchedulerWelcome;
use pronto_payloads::ids::{InstanceId, OwnerId, Term};
use pronto_payloads::place::StartPrefix;
use pronto_protocol::{Hello, Operand, Purpose, Role, SessionConfig, Timeouts};
use pronto_scheduler::core::{BrokerConfig, Event as BrokerEvent};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

mod breaking;
mod control;
mod nodes;
mod wires;

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
    /// What breaks when, besides.
    pub script: Vec<(Time, Fault)>,
    pub plant: Option<Plant>,
    /// How much fits into queues and sockets.
    pub room: Room,
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
            script: Vec::new(),
            plant: None,
            // Every fourth cluster has so little room that slow peers fill it.
            room: if seed % 4 == 3 {
                Room::TIGHT
            } else {
                Room::AMPLE
            },
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
    Thaw { host: Host },
    SchedulerStart,
    ControllerStart,
    ControllerDial { life: u64 },
    ControllerTick { life: u64, at: Time },
    DiskDone { life: u64, last: u64 },
    User,
    Fault,
    Scripted(Fault),
    Unblock { from: Host, to: Host },
}

/// What a user waits for.
#[derive(Clone, Debug)]
enum Waiting {
    Submit { tenant: String, expires: bool },
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
    /// Scheduler and controller under SIGSTOP, until when.
    frozen: BTreeMap<Host, Time>,
    /// Hosts without a valid certificate, until when.
    expired: BTreeMap<Host, Time>,
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
            net: Net::new(Instant::now(), config.room),
            scheduler: None,
            scheduler_life: 0,
            nodes,
            controller: Controller::new(planner_settings(), OwnerId([9; 16])),
            oracle,
            waiting: BTreeMap::new(),
            next_token: 1,
            killing: BTreeMap::new(),
            frozen: BTreeMap::new(),
            expired: BTreeMap::new(),
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
        for (at, fault) in world.config.script.clone() {
            world.at(at, Happening::Scripted(fault));
        }
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

    /// Whether a process is stopped by SIGSTOP.
    fn is_frozen(&self, host: Host) -> bool {
        match host {
            Host::Node(node) => self.nodes[node as usize].frozen_until > self.now,
            _ => self.frozen.get(&host).is_some_and(|at| *at > self.now),
        }
    }

    /// Whether a host has no valid certificate.
    fn is_expired(&self, host: Host) -> bool {
        self.expired.get(&host).is_some_and(|at| *at > self.now)
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
            Happening::SchedulerTick { life }
                if life == self.scheduler_life && self.is_frozen(Host::Scheduler) =>
            {
                self.after(TICK, Happening::SchedulerTick { life });
            }
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
            Happening::Thaw { host } => self.thaw(host),
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
                if self.is_frozen(Host::Controller) {
                    self.after(100 * MS, Happening::ControllerTick { life, at });
                } else if self.controller.life == life && self.controller.ticks_at == at {
                    self.controller.ticks_at = Time::MAX;
                    self.controller_step(vec![PlannerEvent::Tick]);
                }
            }
            Happening::DiskDone { life, last }
                if life == self.controller.life && self.is_frozen(Host::Controller) =>
            {
                self.after(100 * MS, Happening::DiskDone { life, last });
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
            Happening::Scripted(fault) => {
                self.faults += 1;
                self.say(format_args!("script: {fault:?}"));
                self.break_things(fault);
            }
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

    // ---- judgement

    /// Whether nothing is under way any more.
    fn has_settled(&self) -> bool {
        self.steps.is_multiple_of(64)
            && self.oracle.running.is_empty()
            && self.nodes.iter().all(Node::is_idle)
            && self.controller.planner.is_some()
            && self.controller.unfinished() == 0
    }

    fn unsettled(&self) -> String {
        let running: Vec<_> = self.oracle.running.keys().map(describe::attempt).collect();
        let busy: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| !node.is_idle())
            .map(|node| &node.name)
            .collect();
        format!(
            "convergence: {} ms after the last fault {} instances have no end, nodes run {running:?}, \
             not all is free on {busy:?}",
            self.config.settle / MS,
            self.controller.unfinished()
        )
    }

    /// Invariant 3: what was acknowledged is in an end state, and that state is what happened.
    fn judge(&mut self) {
        let acknowledged = std::mem::take(&mut self.oracle.acknowledged);
        for (id, promise) in &acknowledged {
            let Some(end) = self.controller.end_of(*id) else {
                self.oracle
                    .violate(format!("invariant 3: {id} was acknowledged and is lost"));
                break;
            };
            let unasked = !self.oracle.asked_to_stop.contains(id) && !self.oracle.drained;
            let stopped = matches!(end.state, InstanceState::Stopped | InstanceState::Cancelled);
            if stopped && unasked {
                self.oracle
                    .violate(format!("{id} was stopped, and nobody had asked for it"));
                break;
            }
            if end.state == InstanceState::Expired && !promise.expires {
                self.oracle.violate(format!(
                    "{id} has expired, which its user had not asked for"
                ));
                break;
            }
            if let (InstanceState::Failed, EndReason::Exited, Some(code)) =
                (end.state, end.cause, end.code)
            {
                let really =
                    self.oracle.attempts_of(*id).iter().any(|attempt| {
                        self.oracle.endings.get(attempt) == Some(&Ending::Exited(code))
                    });
                if !really && unasked {
                    self.oracle.violate(format!(
                        "{id} is said to have exited with {code}, and has not"
                    ));
                    break;
                }
            }
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
