//! A cluster of recorded sessions around the real core: what the core says is put into the mailbox
//! of each session, and a test that leaves a message unexamined fails.

use pronto_payloads::codec;
use pronto_payloads::control::{Activate, FromNode, Grant, ToNode};
use pronto_payloads::demand::{Capacity, Demand, Runtime};
use pronto_payloads::hello::{BulkHello, ControllerHello, LauncherHello, Mode, SchedulerWelcome};
use pronto_payloads::ids::{
    Attempt, BootId, ControllerEpoch, InstanceId, NodeUuid, OwnerId, Seq, SessionEpoch, Term,
};
use pronto_payloads::node::{Label, Lease, NodeFacts, Status};
use pronto_payloads::place::{AttemptId, Placed, StartFailure, StartPrefix, StartStamp};
use pronto_protocol::{Flags, Frame, Operand, Purpose, Refusal, Role, Welcome};
use pronto_scheduler::core::{
    Arrival, Broker, BrokerConfig, Effect, Effects, Event, Nanos, Queued, SessionId,
};
use std::collections::{BTreeMap, VecDeque};

/// The payload of a frame, whose type the context says.
macro_rules! decode {
    ($frame:expr) => {
        pronto_payloads::codec::decode(&$frame.payload.to_bytes()).unwrap()
    };
}

/// The core with everything that it has said.
pub(crate) struct World {
    pub(crate) broker: Broker,
    pub(crate) now: Nanos,
    out: Effects,
    mail: BTreeMap<SessionId, VecDeque<Effect>>,
    next_session: u64,
}

/// A launcher's end of its session.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) session: SessionId,
    pub(crate) epoch: SessionEpoch,
}

/// A controller's end of its session.
#[derive(Clone, Debug)]
pub(crate) struct Controller {
    pub(crate) session: SessionId,
}

pub(crate) const OWNER: OwnerId = OwnerId([7; 16]);

pub(crate) fn capacity(cpu_millis: u32) -> Capacity {
    Capacity {
        cpu_millis,
        memory_mib: 1 << 20,
        disk_mib: 1 << 20,
        ..Capacity::default()
    }
}

pub(crate) fn cpu(cpu_millis: u32) -> Demand {
    Demand {
        cpu_millis,
        ..Demand::default()
    }
}

pub(crate) fn facts(allocatable: Capacity) -> NodeFacts {
    NodeFacts {
        hostname: "host".into(),
        address: String::new(),
        allocatable,
        labels: vec![Label {
            key: "zone".into(),
            value: "a".into(),
        }],
        runtimes: vec![Runtime::Exec, Runtime::Sim],
        schema_min: 1,
        schema_max: 1,
        isolation: "cgroup2".into(),
        acceleration: String::new(),
    }
}

pub(crate) fn launcher_hello(allocatable: Capacity) -> LauncherHello {
    LauncherHello {
        node_uuid: NodeUuid([1; 16]),
        boot_id: BootId([2; 16]),
        term: Term(0),
        mode: Mode::Ready,
        facts: facts(allocatable),
        owners: Vec::new(),
    }
}

pub(crate) fn attempt(instance: u64) -> AttemptId {
    attempt_of(OWNER, instance)
}

pub(crate) fn attempt_of(owner: OwnerId, instance: u64) -> AttemptId {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&instance.to_be_bytes());
    AttemptId {
        owner,
        instance: InstanceId(id),
        attempt: Attempt(1),
    }
}

/// A START as the core sees it; the body is opaque to it.
pub(crate) fn start(id: AttemptId, demand: Demand) -> StartPrefix {
    StartPrefix {
        id,
        controller_epoch: ControllerEpoch(1),
        body_schema: 1,
        runtime: Runtime::Exec,
        demand,
        constraints: Vec::new(),
        prefer: None,
        avoid: Vec::new(),
    }
}

pub(crate) const BODY: &[u8] = b"opaque body";

pub(crate) fn start_bytes(start: &StartPrefix) -> Vec<u8> {
    [&codec::encode(start)[..], BODY].concat()
}

impl World {
    /// A scheduler that nobody has activated.
    pub(crate) fn standby(config: BrokerConfig) -> Self {
        Self {
            broker: Broker::new(config, 0xabcd),
            now: Nanos::from_ms(1),
            out: Effects::default(),
            mail: BTreeMap::new(),
            next_session: 1,
        }
    }

    /// An active scheduler with one controller.
    pub(crate) fn active() -> (Self, Controller) {
        let mut world = Self::standby(BrokerConfig::default());
        let controller = world.controller(OWNER, 1);
        world.activate(&controller, 1, 0);
        (world, controller)
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.out.now = self.now;
        self.broker.step(self.now, event, &mut self.out);
        self.broker.sanity_check();
        for effect in self.out.take() {
            self.mail
                .entry(effect.session())
                .or_default()
                .push_back(effect);
        }
    }

    pub(crate) fn end_turn(&mut self) {
        self.event(Event::TurnEnded);
    }

    /// Lets time pass, in ticks as the shell does.
    pub(crate) fn pass_ms(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        while self.now < end {
            self.now = self.now.plus_ms(50).min(end);
            self.event(Event::Tick);
            self.end_turn();
        }
    }

    pub(crate) fn send(&mut self, session: SessionId, frame: Frame) {
        self.event(Event::Frame { session, frame });
    }

    pub(crate) fn close(&mut self, session: SessionId) {
        self.event(Event::Closed {
            session,
            reason: "cable cut".into(),
        });
    }

    pub(crate) fn set_state(&mut self, session: SessionId, state: Queued) {
        self.out.set_state(session, state);
    }

    /// Connects a peer and leaves the answer in its mailbox.
    pub(crate) fn connect(
        &mut self,
        (role, name): (Role, &str),
        purpose: Purpose,
        epoch: u64,
        body: impl Into<bytes::Bytes>,
    ) -> SessionId {
        let session = SessionId(self.next_session);
        self.next_session += 1;
        self.event(Event::Connected(Box::new(Arrival {
            session,
            role,
            name: name.into(),
            purpose,
            session_epoch: SessionEpoch(epoch),
            body: body.into(),
        })));
        session
    }

    /// A launcher that is welcome; NODE_CONNECTED stays with the controllers.
    pub(crate) fn silent_node(&mut self, name: &str, epoch: u64, hello: &LauncherHello) -> Node {
        let body = codec::encode(hello);
        let session = self.connect((Role::Launcher, name), Purpose::Control, epoch, body);
        self.expect_welcome(session);
        Node {
            session,
            epoch: SessionEpoch(epoch),
        }
    }

    /// A launcher that has reported so much CPU free; what controllers hear of it is examined.
    pub(crate) fn node(&mut self, name: &str, free: Capacity) -> Node {
        let node = self.silent_node(name, 1, &launcher_hello(free.clone()));
        self.skip_all(Operand::NodeConnected);
        self.ready(&node, 0, free);
        node
    }

    pub(crate) fn controller(&mut self, owner: OwnerId, epoch: u64) -> Controller {
        let epoch = ControllerEpoch(epoch);
        let body = codec::encode(&ControllerHello { owner, epoch });
        let session = self.connect((Role::Controller, "c"), Purpose::Control, epoch.0, body);
        self.expect_welcome(session);
        Controller { session }
    }

    pub(crate) fn bulk(&mut self, role: Role, name: &str, owner: Option<OwnerId>) -> SessionId {
        let body = codec::encode(&BulkHello { owner });
        let session = self.connect((role, name), Purpose::Bulk, 0, body);
        self.expect_welcome(session);
        session
    }

    pub(crate) fn activate(&mut self, controller: &Controller, term: u64, expected_nodes: u32) {
        let activate = codec::encode(&Activate {
            term: Term(term),
            expected_nodes,
        });
        self.send(
            controller.session,
            Frame::request(Operand::Activate, 77, activate),
        );
        let done = self.expect(controller.session, Operand::Done);
        assert_eq!(done.correlation, 77);
    }

    pub(crate) fn grant(&mut self, controller: &Controller, grant_ms: u64) {
        let grant = codec::encode(&Grant { grant_ms });
        self.send(
            controller.session,
            Frame::request(Operand::Grant, 78, grant),
        );
        self.expect(controller.session, Operand::Done);
    }

    pub(crate) fn status(&mut self, node: &Node, operand: Operand, applied: u64, free: Capacity) {
        let frame = Frame::new(operand, status_bytes(node, applied, free));
        self.send(node.session, frame);
    }

    pub(crate) fn ready(&mut self, node: &Node, applied: u64, free: Capacity) {
        self.status(node, Operand::Ready, applied, free);
    }

    /// A READY that asks for a lease, and the lease.
    pub(crate) fn lease(&mut self, node: &Node, applied: u64, free: Capacity) -> Lease {
        let status = status_bytes(node, applied, free);
        self.send(node.session, Frame::request(Operand::Ready, 5, status));
        let lease = self.expect(node.session, Operand::Lease);
        assert_eq!(lease.correlation, 5);
        decode!(lease)
    }

    pub(crate) fn start(&mut self, controller: &Controller, correlation: u64, start: &StartPrefix) {
        let frame = Frame::request(Operand::Start, correlation, start_bytes(start));
        self.send(controller.session, frame);
    }

    /// A START that is placed: its PLACED, and the launcher's stamp.
    pub(crate) fn placed(
        &mut self,
        controller: &Controller,
        start: &StartPrefix,
    ) -> (Placed, StartStamp) {
        self.start(controller, 1, start);
        let placed: Placed = decode!(self.expect(controller.session, Operand::Placed));
        let node = self.session_of(&placed.node);
        let stamp = self.expect_start(node, start);
        assert_eq!(placed.id, start.id);
        assert_eq!(
            (placed.session_epoch, placed.seq),
            (stamp.session_epoch, stamp.seq)
        );
        (placed, stamp)
    }

    /// A START that is refused: why.
    pub(crate) fn refused(&mut self, controller: &Controller, start: &StartPrefix) -> StartFailure {
        self.start(controller, 2, start);
        let frame = self.expect(controller.session, Operand::StartFailure);
        assert_eq!(frame.correlation, 2);
        decode!(frame)
    }

    /// The START that a launcher got: the stamp; behind it, the bytes that were sent.
    pub(crate) fn expect_start(&mut self, node: SessionId, start: &StartPrefix) -> StartStamp {
        let mut payload = self.expect(node, Operand::Start).payload.into_bytes();
        let stamp: StartStamp = codec::take(&mut payload).unwrap();
        assert_eq!(payload, start_bytes(start), "forwarded untouched");
        stamp
    }

    /// The session of a node, by its name: tests give each session a name once.
    pub(crate) fn session_of(&self, name: &str) -> SessionId {
        let waiting = self.mail.iter().filter(|(_, mail)| !mail.is_empty());
        let starts = waiting.filter(|(_, mail)| {
            mail.iter().any(
                |effect| matches!(effect, Effect::Send { frame, .. } if frame.operand == Operand::Start),
            )
        });
        let sessions: Vec<SessionId> = starts.map(|(session, _)| *session).collect();
        assert_eq!(sessions.len(), 1, "one launcher got a START, for {name}");
        sessions[0]
    }

    /// The next effect on this session.
    pub(crate) fn next(&mut self, session: SessionId) -> Option<Effect> {
        self.mail.get_mut(&session)?.pop_front()
    }

    /// The next frame on this session, which is of this operand.
    pub(crate) fn expect(&mut self, session: SessionId, operand: Operand) -> Frame {
        match self.next(session) {
            Some(Effect::Send { frame, .. }) if frame.operand == operand => frame,
            other => panic!("{operand} was expected on {session:?}, and this came: {other:?}"),
        }
    }

    pub(crate) fn expect_welcome(&mut self, session: SessionId) -> (Welcome, SchedulerWelcome) {
        match self.next(session) {
            Some(Effect::Welcome { welcome, .. }) => {
                let body = codec::decode(&welcome.body).unwrap();
                (welcome, body)
            }
            other => panic!("WELCOME was expected, and this came: {other:?}"),
        }
    }

    pub(crate) fn expect_refusal(&mut self, session: SessionId) -> (Operand, Refusal) {
        match self.next(session) {
            Some(Effect::Refuse {
                operand, refusal, ..
            }) => (operand, refusal),
            other => panic!("a refusal was expected, and this came: {other:?}"),
        }
    }

    /// Takes every waiting frame of this operand off every mailbox.
    pub(crate) fn skip_all(&mut self, operand: Operand) {
        for mail in self.mail.values_mut() {
            mail.retain(
                |effect| !matches!(effect, Effect::Send { frame, .. } if frame.operand == operand),
            );
        }
    }

    /// Nothing waits to be examined.
    pub(crate) fn expect_silence(&self) {
        let waiting: Vec<&Effect> = self.mail.values().flatten().collect();
        assert!(waiting.is_empty(), "unexamined: {waiting:#?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.expect_silence();
        }
    }
}

pub(crate) fn status_bytes(node: &Node, applied: u64, free: Capacity) -> bytes::Bytes {
    codec::encode(&Status {
        session_epoch: node.epoch,
        applied_seq: Seq(applied),
        free,
        runtimes: vec![Runtime::Exec, Runtime::Sim],
        reason: String::new(),
    })
}

/// A command for a node: its name, and the command.
pub(crate) fn to_node(node: &str, command: bytes::Bytes) -> Vec<u8> {
    [codec::encode(&ToNode { node: node.into() }), command].concat()
}

/// Takes the node's name off what came up.
pub(crate) fn from_node(frame: &Frame) -> (String, bytes::Bytes) {
    let mut payload = frame.payload.to_bytes();
    let from: FromNode = codec::take(&mut payload).unwrap();
    (from.node, payload)
}

pub(crate) fn last(frame: &Frame) -> bool {
    frame.flags.contains(Flags::LAST)
}
