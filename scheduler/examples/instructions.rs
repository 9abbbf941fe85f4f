//! What `tests/gate/instructions.py` counts instructions of, under callgrind: one operation a run,
//! named by the first argument. The functions of [`measured`] are counted, the rest is preparation.
//!
//! Frames take the real way: bytes through a session's decoder and permission table, the broker,
//! and into the queues of the sessions that they go to. Only sockets and TLS are left out.

use pronto_payloads::codec::encode;
use pronto_payloads::control::Activate;
use pronto_payloads::demand::{Capacity, Demand, GPU_MILLIS, Runtime};
use pronto_payloads::hello::{ControllerHello, LauncherHello, Mode};
use pronto_payloads::ids::{
    Attempt, BootId, ControllerEpoch, InstanceId, NodeUuid, OwnerId, Seq, SessionEpoch, Term,
};
use pronto_payloads::node::{NodeFacts, Status};
use pronto_payloads::place::{AttemptId, StartPrefix};
use pronto_payloads::{SCHEMA, SCHEMA_MIN};
use pronto_protocol::{
    Frame, Hello, Operand, Purpose, Refusal, Role, Session, SessionConfig, Welcome, codec,
};
use pronto_scheduler::core::{
    Arrival, Broker, BrokerConfig, Event, Nanos, Outgoing, Outlet, Queued, SessionId,
};
use pronto_scheduler::replay::Rng;
use pronto_scheduler::table::{NodeIndex, NodeSpec, NodeTable, Query, TableConfig};
use std::time::Instant;

/// Operations of one run.
const OPERATIONS: usize = 512;
/// Nodes of the table: four levels of its tree.
const NODES: u32 = 10_000;
/// Launchers of the broker.
const LAUNCHERS: u32 = 64;
const OWNER: OwnerId = OwnerId([7; 16]);
/// Of a START's payload behind its prefix, which is passed on as it is.
const BODY_BYTES: usize = 120;

mod measured {
    use super::{
        Broker, Capacity, Demand, Event, Frame, NodeIndex, NodeTable, SessionId, Wires, query,
    };

    #[inline(never)]
    pub(super) fn search(table: &mut NodeTable, demands: &[Demand]) -> usize {
        let found = demands.iter().map(|demand| table.search(&query(demand)));
        found.flatten().count()
    }

    #[inline(never)]
    pub(super) fn update(table: &mut NodeTable, changes: &[(NodeIndex, Capacity)]) -> usize {
        let grown = |(index, free): &(NodeIndex, Capacity)| table.set_available(*index, free);
        changes.iter().map(grown).filter(|grown| *grown).count()
    }

    /// Bytes of one session, to whatever follows from them.
    #[inline(never)]
    pub(super) fn receive(
        broker: &mut Broker,
        wires: &mut Wires,
        session: SessionId,
        bytes: &[u8],
        frames: &mut Vec<Frame>,
    ) {
        wires.receive(session, bytes, frames);
        for frame in frames.drain(..) {
            broker.step(wires.now(), Event::Frame { session, frame }, wires);
        }
    }
}

/// The sessions of a broker without their sockets.
struct Wires {
    sessions: Vec<Session>,
}

fn at(session: SessionId) -> usize {
    usize::try_from(session.0).expect("numbered from zero")
}

impl Wires {
    fn now(&self) -> Nanos {
        Nanos(1)
    }

    fn receive(&mut self, session: SessionId, bytes: &[u8], frames: &mut Vec<Frame>) {
        let received = self.sessions[at(session)].receive(bytes, frames);
        received.expect("permitted frames");
    }

    /// As a flush does it.
    fn take(&mut self, session: SessionId) -> usize {
        let session = &mut self.sessions[at(session)];
        let queued = session.queued_bytes();
        session.outgoing_written(queued);
        queued
    }
}

impl Outlet for Wires {
    fn send(&mut self, session: SessionId, message: Outgoing<'_>) -> Queued {
        let wire = &mut self.sessions[at(session)];
        let Outgoing {
            operand,
            flags,
            correlation,
            pieces,
        } = message;
        match wire.queue_pieces(operand, flags, correlation, &pieces) {
            Ok(()) => Queued::Room,
            Err(error) => panic!("{operand}: {error}"),
        }
    }

    fn welcome(&mut self, session: SessionId, welcome: Welcome) {
        let welcomed = self.sessions[at(session)].welcome(welcome);
        welcomed.expect("a session that waits for it");
    }

    fn refuse(&mut self, _: SessionId, operand: Operand, refusal: Refusal) {
        panic!("{operand}: {refusal:?}");
    }

    fn clock(&self) -> Nanos {
        self.now()
    }
}

fn main() {
    let operation = std::env::args().nth(1).unwrap_or_default();
    match operation.as_str() {
        "search" => search(),
        "update" => update(),
        "start" => start(),
        "ready" => ready(),
        _ => panic!("search, update, start or ready; not {operation:?}"),
    }
    println!("operations {OPERATIONS}");
}

fn query(demand: &Demand) -> Query<'_> {
    Query {
        demand,
        constraints: &[],
        runtime: Runtime::Exec,
        schema: SCHEMA,
        prefer: None,
        avoid: &[],
    }
}

fn free(cpu_millis: u32, rng: &mut Rng) -> Capacity {
    Capacity {
        cpu_millis,
        memory_mib: rng.range(32_768, 262_144),
        disk_mib: rng.range(65_536, 1_000_000),
        gpu_millis: vec![GPU_MILLIS; 8],
        resources: Vec::new(),
    }
}

/// A table of which one node in five hundred has room.
fn table(rng: &mut Rng) -> (NodeTable, Vec<NodeIndex>) {
    let mut table = NodeTable::new(TableConfig::default());
    let indices = (0..NODES).map(|number| {
        let room = if number % 500 == 499 { 64_000 } else { 900 };
        let free = free(rng.range(room / 2, room), rng);
        let index = table.insert(NodeSpec {
            name: format!("node-{number}"),
            allocatable: free.clone(),
            labels: Vec::new(),
            runtimes: vec![Runtime::Exec],
            schema_min: SCHEMA_MIN,
            schema_max: SCHEMA,
        });
        table.set_available(index, &free);
        index
    });
    let indices = indices.collect();
    (table, indices)
}

fn search() {
    let rng = &mut Rng::new(42);
    let (mut table, _) = table(rng);
    let demands = (0..OPERATIONS).map(|_| Demand {
        cpu_millis: rng.range(1_000, 31_000),
        memory_mib: rng.range(2_048, 32_768),
        gpu_millis: 500,
        ..Demand::default()
    });
    let demands: Vec<Demand> = demands.collect();
    assert_eq!(measured::search(&mut table, &demands), OPERATIONS);
}

fn update() {
    let rng = &mut Rng::new(42);
    let (mut table, indices) = table(rng);
    let changes = (0..OPERATIONS).map(|_| {
        let index = indices[rng.below(indices.len())];
        let room = rng.range(1_000, 64_000);
        (index, free(room, rng))
    });
    let changes: Vec<(NodeIndex, Capacity)> = changes.collect();
    assert!(measured::update(&mut table, &changes) > 0);
}

fn capacity() -> Capacity {
    Capacity {
        cpu_millis: 1_000_000_000,
        memory_mib: 1_000_000_000,
        disk_mib: 1_000_000_000,
        ..Capacity::default()
    }
}

fn status(applied: u64) -> Status {
    Status {
        session_epoch: SessionEpoch(1),
        applied_seq: Seq(applied),
        free: capacity(),
        runtimes: vec![Runtime::Exec],
        reason: String::new(),
    }
}

fn launcher_hello(number: u32) -> LauncherHello {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_le_bytes());
    LauncherHello {
        node_uuid: NodeUuid(id),
        boot_id: BootId(id),
        term: Term(0),
        mode: Mode::Ready,
        facts: NodeFacts {
            hostname: format!("node-{number}"),
            address: "127.0.0.1".to_owned(),
            allocatable: capacity(),
            labels: Vec::new(),
            runtimes: vec![Runtime::Exec],
            schema_min: SCHEMA_MIN,
            schema_max: SCHEMA,
            isolation: "none".to_owned(),
            acceleration: String::new(),
        },
        owners: Vec::new(),
    }
}

/// An activated broker with its launchers; the controller's session comes first.
fn cluster() -> (Broker, Wires) {
    let mut broker = Broker::new(BrokerConfig::default(), 1);
    let mut wires = Wires {
        sessions: Vec::new(),
    };
    let controller = ControllerHello {
        owner: OWNER,
        epoch: ControllerEpoch(1),
    };
    let body = encode(&controller).into();
    connect(&mut broker, &mut wires, (Role::Controller, "c"), body);
    let activate = Activate {
        term: Term(1),
        expected_nodes: LAUNCHERS,
    };
    let activate = Frame::request(Operand::Activate, 1, encode(&activate));
    deliver(&mut broker, &mut wires, 0, &[activate]);
    for number in 0..LAUNCHERS {
        let name = format!("node-{number}");
        let body = encode(&launcher_hello(number)).into();
        let session = connect(&mut broker, &mut wires, (Role::Launcher, &name), body);
        let ready = Frame::new(Operand::Ready, encode(&status(0)));
        deliver(&mut broker, &mut wires, session.0, &[ready]);
    }
    assert!(broker.is_placing(), "all expected nodes are there");
    for session in 0..wires.sessions.len() {
        wires.take(SessionId(session as u64));
    }
    (broker, wires)
}

fn connect(
    broker: &mut Broker,
    wires: &mut Wires,
    (role, name): (Role, &str),
    body: Vec<u8>,
) -> SessionId {
    let now = Instant::now();
    let hello = Hello::new(Purpose::Control, 1, body);
    let config = SessionConfig::default();
    let client = Session::client(role, Role::Scheduler, &hello, config, now);
    let client = client.expect("a role that connects");
    let mut session = Session::server(Role::Scheduler, role, config, now);
    let greeted = session.receive(client.outgoing(), &mut Vec::new());
    greeted.expect("a HELLO");
    let hello = session.take_hello().expect("it has come");
    let id = SessionId(wires.sessions.len() as u64);
    wires.sessions.push(session);
    let arrival = Arrival {
        session: id,
        role,
        name: name.to_owned(),
        purpose: hello.purpose,
        session_epoch: SessionEpoch(hello.session_epoch),
        body: hello.body,
    };
    broker.step(wires.now(), Event::Connected(Box::new(arrival)), wires);
    id
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        codec::encode(frame, &mut bytes).expect("within limits");
    }
    bytes
}

fn deliver(broker: &mut Broker, wires: &mut Wires, session: u64, frames: &[Frame]) {
    let session = SessionId(session);
    let mut received = Vec::new();
    wires.receive(session, &encoded(frames), &mut received);
    for frame in received {
        broker.step(wires.now(), Event::Frame { session, frame }, wires);
    }
}

fn starts(first: usize) -> Vec<u8> {
    let start = |number: usize| {
        let mut instance = [0; 16];
        instance[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let prefix = StartPrefix {
            id: AttemptId {
                owner: OWNER,
                instance: InstanceId(instance),
                attempt: Attempt(1),
            },
            controller_epoch: ControllerEpoch(1),
            body_schema: SCHEMA,
            runtime: Runtime::Exec,
            demand: Demand {
                cpu_millis: 1,
                memory_mib: 1,
                ..Demand::default()
            },
            constraints: Vec::new(),
            prefer: None,
            avoid: Vec::new(),
        };
        let mut payload = encode(&prefix).to_vec();
        payload.extend([0; BODY_BYTES]);
        Frame::new(Operand::Start, payload)
    };
    let frames: Vec<Frame> = (first..first + OPERATIONS).map(start).collect();
    encoded(&frames)
}

/// From a START's bytes to its launcher's queue and PLACED's to the controller's.
fn start() {
    let (mut broker, mut wires) = cluster();
    let controller = SessionId(0);
    let mut frames = Vec::new();
    let bytes = starts(1);
    measured::receive(&mut broker, &mut wires, controller, &bytes, &mut frames);
    assert_eq!(broker.counters().placed, OPERATIONS as u64);
    let forwarded: usize = (1..=u64::from(LAUNCHERS))
        .map(|launcher| wires.take(SessionId(launcher)))
        .sum();
    assert!(forwarded > OPERATIONS * BODY_BYTES, "{forwarded}");
}

/// From a READY's bytes to the table: each counts one START more than the last.
fn ready() {
    let (mut broker, mut wires) = cluster();
    deliver_starts(&mut broker, &mut wires);
    let mut frames = Vec::new();
    let each = OPERATIONS / LAUNCHERS as usize;
    for launcher in 1..=u64::from(LAUNCHERS) {
        let ready = |applied: usize| Frame::new(Operand::Ready, encode(&status(applied as u64)));
        let bytes = encoded(&(1..=each).map(ready).collect::<Vec<_>>());
        let session = SessionId(launcher);
        measured::receive(&mut broker, &mut wires, session, &bytes, &mut frames);
    }
    assert_eq!(broker.counters().bad_statuses, 0);
}

/// Nothing of it is counted: the launchers have something to count afterwards.
fn deliver_starts(broker: &mut Broker, wires: &mut Wires) {
    let mut frames = Vec::new();
    let controller = SessionId(0);
    wires.receive(controller, &starts(1), &mut frames);
    for frame in frames {
        let session = controller;
        broker.step(wires.now(), Event::Frame { session, frame }, wires);
    }
}
