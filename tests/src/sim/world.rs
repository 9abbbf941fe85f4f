//! The world: one queue of happenings, all hosts, and the rules by which a run is judged.
//!
//! Of several schedulers one is active: the one that the controllers' own dialer and planner pick.
//! Launchers go from one to the other by the rule of their own core ([`Dialer`] and
//! `Supervisor::is_orphaned`).

use super::answers::Answers;
use super::controller::{self, Controller};
use super::describe;
use super::equipment::Equipment;
use super::faults::{self, Cast, Fault};
use super::launcher::{self, Later, Node};
use super::net::{Arrival, ConnId, Host, MS, Net, Room, Side, Time};
use super::oracle::{Acknowledged, Ending, Oracle};
use super::plant::Plant;
use super::rng::Rng;
use super::sabotage;
use super::scheduler::{SchedulerHost, TICK, Touched};
use super::tally::Tally;
use super::users::{self, Rebuff};
use pronto_controller::api::types::{EndReason, InstanceState, Spec};
use pronto_controller::planner::{
    Call, Effect as Answer, Event as PlannerEvent, Reply, SessionUp as PlannerSessionUp,
    Settings as PlannerSettings, SubmitCall, Token,
};
use pronto_launcher::supervisor::Event as LauncherEvent;
use pronto_payloads::codec::{decode, decode_prefix};
use pronto_payloads::hello::SchedulerWelcome;
use pronto_payloads::ids::{InstanceId, Term};
use pronto_payloads::place::StartPrefix;
use pronto_protocol::transport::{Backoff, Dialer};
use pronto_protocol::{Hello, Operand, Purpose, Role, SessionConfig, Timeouts};
use pronto_scheduler::core::{BrokerConfig, Event as BrokerEvent};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod breaking;
mod control;
mod judging;
mod nodes;
mod wires;

/// How a run is set up.
#[derive(Clone, Debug)]
pub struct SimConfig {
    pub seed: u64,
    pub nodes: u32,
    /// One is active, the others stand by.
    pub schedulers: u32,
    /// Each with its own store.
    pub controllers: u32,
    /// Every second launcher asks the schedulers in the other order.
    pub split: bool,
    /// Nodes have GPUs, labels and countable resources, which users ask for.
    pub equipped: bool,
    /// Faults and users act for so long.
    pub busy: Time,
    /// After that everything must have settled within this.
    pub settle: Time,
    /// Mean time between two faults; none at all where it is zero.
    pub fault_every: Time,
    /// Mean time between two acts of users; none at all where it is zero.
    pub user_every: Time,
    /// What users submit when, besides.
    pub submissions: Vec<(Time, SubmitCall)>,
    /// What breaks when, besides.
    pub script: Vec<(Time, Fault)>,
    pub plant: Option<Plant>,
    /// How much fits into queues and sockets.
    pub room: Room,
    /// Keep the last so many lines of the trace. None: make none, and no digest of it, which takes a
    /// good part of a run; whoever wants to see a failure runs its seed again.
    pub trace_lines: usize,
}

impl SimConfig {
    /// What `./test` runs for a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Every third cluster has a scheduler only; of those, every second has two controllers.
        let alone = seed.is_multiple_of(3);
        // Every fifth gets an old store back.
        let script = if seed % 5 == 3 {
            Fault::restores()
        } else {
            Vec::new()
        };
        Self {
            seed,
            nodes: 2 + u32::try_from(seed % 5).expect("small"),
            schedulers: if alone { 1 } else { 2 },
            controllers: if seed.is_multiple_of(6) { 2 } else { 1 },
            split: seed.is_multiple_of(7),
            equipped: seed % 8 > 4,
            busy: 20_000 * MS,
            settle: 300_000 * MS,
            fault_every: 700 * MS,
            // Most clusters are full; in every fourth there is room, and successors start at once.
            user_every: if seed % 4 == 2 { 600 * MS } else { 150 * MS },
            submissions: Vec::new(),
            script,
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
    /// STARTs that controllers sent.
    pub starts: usize,
    /// STARTs that nodes refused, by node.
    pub refused: BTreeMap<u32, usize>,
    /// Instances by the state in which they ended.
    pub ends: BTreeMap<&'static str, usize>,
    /// Attempts that stores did not know, and left alone.
    pub quarantined: usize,
    pub faults: usize,
    /// What happened how often.
    pub tally: Tally,
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
    Look {
        conn: ConnId,
        side: Side,
    },
    SchedulerTick {
        scheduler: u32,
        life: u64,
    },
    Beat,
    NodeStart {
        node: u32,
    },
    NodeDial {
        node: u32,
        life: u64,
    },
    NodeWake {
        node: u32,
        life: u64,
        at: Time,
    },
    NodeLater {
        node: u32,
        life: u64,
        later: Later,
    },
    Thaw {
        host: Host,
    },
    /// A node leaves its scheduler and comes back, with another HELLO.
    ComeBack {
        node: u32,
    },
    SchedulerStart {
        scheduler: u32,
    },
    ControllerStart {
        controller: u32,
    },
    ControllerDial {
        controller: u32,
        life: u64,
    },
    ControllerTick {
        controller: u32,
        life: u64,
        at: Time,
    },
    DiskDone {
        controller: u32,
        life: u64,
        last: u64,
    },
    User,
    Restore {
        controller: u32,
        node: u32,
    },
    Submit(Box<SubmitCall>),
    /// What a user wants of something that has ended, with what was read of it.
    Wish {
        controller: u32,
        tenant: Arc<str>,
        call: Box<Call>,
    },
    Fault,
    Scripted(Fault),
    Unblock {
        from: Host,
        to: Host,
    },
}

/// A scheduler's process, or its absence.
#[derive(Debug, Default)]
struct SchedulerSlot {
    process: Option<SchedulerHost>,
    /// Raised at each start and each death.
    life: u64,
}

/// What a user waits for.
#[derive(Clone, Debug)]
enum Waiting {
    Submit {
        tenant: String,
        spec: Arc<Spec>,
    },
    Stop {
        id: InstanceId,
        delete: bool,
    },
    Restart {
        id: InstanceId,
    },
    Restore {
        node: u32,
    },
    /// Somebody of this tenant tries what he may not.
    Rebuff {
        tenant: &'static str,
        rebuff: Rebuff,
    },
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
    schedulers: Vec<SchedulerSlot>,
    nodes: Vec<Node>,
    controllers: Vec<Controller>,
    oracle: Oracle,
    answers: Answers,
    /// With the controller that was asked.
    waiting: BTreeMap<Token, (u32, Waiting)>,
    next_token: u64,
    killing: BTreeMap<u32, (usize, Time)>,
    /// Schedulers and controllers under SIGSTOP, until when.
    frozen: BTreeMap<Host, Time>,
    /// Hosts without a valid certificate, until when.
    expired: BTreeMap<Host, Time>,
    faults: usize,
    tally: Tally,
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

/// What the controller's shell waits at most between two rounds over its schedulers.
const CONTROLLERS_LONGEST_WAIT: Duration = Duration::from_secs(2);

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

/// The rule by which a daemon goes from scheduler to scheduler.
fn dialer(order: impl Iterator<Item = u32>, longest: Duration) -> Dialer {
    let addresses = order.map(|scheduler| scheduler.to_string()).collect();
    Dialer::new(addresses, Backoff::new(Backoff::FIRST, longest)).expect("there is a scheduler")
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
        let mut shop = Rng::new(!config.seed);
        let nodes = (0..config.nodes)
            .map(|index| {
                let mut equipment = Equipment::plain(index, &mut rng);
                if config.equipped {
                    equipment.equip(&mut shop);
                }
                oracle.add_node(index, equipment.clone());
                let mut order: Vec<u32> = (0..config.schedulers).collect();
                if config.split && index % 2 == 1 {
                    order.reverse();
                }
                Node::new(
                    index,
                    equipment,
                    dialer(order.into_iter(), Backoff::LONGEST),
                )
            })
            .collect();
        let controllers = (0..config.controllers)
            .map(|index| {
                let dialer = dialer(0..config.schedulers, CONTROLLERS_LONGEST_WAIT);
                Controller::new(index, planner_settings(), dialer)
            })
            .collect();
        let mut world = Self {
            now: 0,
            rng,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            order: 0,
            net: Net::new(Instant::now(), config.room),
            schedulers: (0..config.schedulers)
                .map(|_| SchedulerSlot::default())
                .collect(),
            nodes,
            controllers,
            oracle,
            answers: Answers::default(),
            waiting: BTreeMap::new(),
            next_token: 1,
            killing: BTreeMap::new(),
            frozen: BTreeMap::new(),
            expired: BTreeMap::new(),
            faults: 0,
            tally: Tally::default(),
            steps: 0,
            trace: VecDeque::new(),
            digest: 0xcbf2_9ce4_8422_2325,
            config,
        };
        for scheduler in 0..world.config.schedulers {
            world.after(MS, Happening::SchedulerStart { scheduler });
        }
        for controller in 0..world.config.controllers {
            world.after(2 * MS, Happening::ControllerStart { controller });
        }
        for node in 0..world.config.nodes {
            world.after(MS, Happening::NodeStart { node });
        }
        if world.config.user_every > 0 {
            world.after(50 * MS, Happening::User);
        }
        for (at, submit) in world.config.submissions.clone() {
            world.at(at, Happening::Submit(Box::new(submit)));
        }
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

    const fn is_traced(&self) -> bool {
        self.config.trace_lines > 0
    }

    fn say(&mut self, arguments: std::fmt::Arguments<'_>) {
        if !self.is_traced() {
            return;
        }
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
        let events_of = |kind| {
            let counts = self.controllers.iter().map(|it| it.events_of(kind));
            counts.sum::<usize>()
        };
        self.tally
            .count_many("attempt taken back", events_of("taken_back") as u64);
        Outcome {
            seed: self.config.seed,
            failure: self.oracle.violation.clone(),
            trace,
            digest: self.digest,
            acknowledged: self.oracle.acknowledged.len(),
            attempts: self.oracle.begun(),
            starts: self.oracle.starts,
            refused: self.oracle.refused_by.clone(),
            ends: self.ends(),
            quarantined: events_of("quarantined"),
            faults: self.faults,
            tally: self.tally,
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
        for controller in 0..self.config.controllers {
            self.restore_nodes_of(controller);
        }
    }

    fn restore_nodes_of(&mut self, controller: u32) {
        for node in 0..self.config.nodes {
            self.restore_node(controller, node);
        }
    }

    fn restore_node(&mut self, controller: u32, node: u32) {
        let name = self.nodes[node as usize].name.clone();
        self.call(controller, Call::Restore(name), Waiting::Restore { node });
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Look { conn, side } => self.look(conn, side),
            Happening::SchedulerTick { scheduler, life } => self.scheduler_tick(scheduler, life),
            Happening::Beat => self.beat(),
            Happening::Restore { controller, node } => self.restore_node(controller, node),
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
            Happening::ComeBack { node } => self.come_back(node),
            Happening::SchedulerStart { scheduler } => self.scheduler_start(scheduler),
            Happening::ControllerStart { controller } => self.controller_start(controller),
            Happening::ControllerDial { controller, life } => {
                self.controller_dial(controller, life);
            }
            Happening::ControllerTick {
                controller,
                life,
                at,
            } => self.controller_tick(controller, life, at),
            Happening::DiskDone {
                controller,
                life,
                last,
            } => self.disk_done(controller, life, last),
            Happening::User => self.user(),
            Happening::Submit(submit) => self.submit(0, *submit),
            Happening::Wish {
                controller,
                tenant,
                call,
            } => self.wish(controller, &tenant, *call),
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
        }
    }
}
