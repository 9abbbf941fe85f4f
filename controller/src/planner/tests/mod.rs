//! The planner beside a store in memory, with the scheduler's and the nodes' part played by hand.
//!
//! [`Harness`] records every frame; a test that leaves a command unexamined fails. Invariants are
//! checked after each step.

mod flows;
mod random;
mod rules;

use super::*;
use crate::api::types::{
    DemandSpec, InstanceState, SimSpec, Spec, SpecOverrides, SubmitResponse, TaskSpec,
};
use crate::store::{Batch, MemoryStore, Store};
use pronto_payloads::SCHEMA;
use pronto_payloads::codec::{self, encode, encode_into};
use pronto_payloads::control::{Ack, Delete, FromNode, SetMode, Stop, ToNode};
use pronto_payloads::demand::{Capacity, Runtime};
use pronto_payloads::hello::{Mode, SchedulerWelcome};
use pronto_payloads::ids::{
    BootId, ControllerEpoch, Generation, InstanceId, NodeUuid, OwnerId, Seq, SessionEpoch, Term,
    Version,
};
use pronto_payloads::instance::{
    End, EndCause, InstanceReport, Inventory, Phase as NodePhase, Usage, digest_item,
};
use pronto_payloads::node::{
    NodeConnected, NodeDisconnected, NodeFacts, NodeState, Nodes as NodePage,
};
use pronto_payloads::place::{
    AttemptId, CapacityGrown, Placed, Refusal, StartFailure, StartPrefix,
};
use pronto_protocol::frame::Frame;
use pronto_protocol::header::Flags;
use pronto_protocol::operand::Operand;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use uuid::Uuid;

const MS: i64 = 1_000_000;

/// A command that the planner has sent.
#[derive(Clone, Debug)]
pub(crate) enum Sent {
    Start {
        prefix: StartPrefix,
        correlation: u64,
    },
    Stop {
        node: String,
        stop: Stop,
        correlation: u64,
    },
    Delete,
    Ack {
        node: String,
        ack: Ack,
    },
    Inventory {
        node: String,
        correlation: u64,
    },
    SetMode {
        node: String,
        mode: Mode,
        correlation: u64,
    },
    Activate {
        correlation: u64,
    },
    Nodes {
        correlation: u64,
    },
}

pub(crate) struct Harness {
    pub(crate) state: State,
    pub(crate) store: MemoryStore,
    pub(crate) settings: Settings,
    now: Now,
    /// Commit by itself after each step.
    pub(crate) auto_commit: bool,
    /// Nothing comes from the scheduler.
    pub(crate) deaf: bool,
    pub(crate) batches: VecDeque<Batch>,
    pub(crate) sent: VecDeque<Sent>,
    replies: BTreeMap<u64, Result<Reply, Refused>>,
    next_token: u64,
    pub(crate) warnings: Vec<String>,
    pub(crate) changes: Vec<Change>,
    pub(crate) dropped_sessions: usize,
    pub(crate) window: u32,
    seqs: BTreeMap<String, u64>,
}

impl Drop for Harness {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.sent.is_empty(), "unexamined: {:?}", self.sent);
        }
    }
}

pub(crate) fn admin() -> Actor {
    Actor {
        kind: ActorKind::Admin,
        name: "root".to_owned(),
        source: "test".to_owned(),
    }
}

pub(crate) fn user(tenant: &str) -> Actor {
    Actor {
        kind: ActorKind::User(tenant.into()),
        name: "someone".to_owned(),
        source: "test".to_owned(),
    }
}

pub(crate) fn sim() -> Spec {
    Spec::new(TaskSpec::Sim(SimSpec::default()))
}

impl Harness {
    pub(crate) fn new() -> Self {
        Self::with(Settings::default())
    }

    /// With a scheduler to which these nodes are connected.
    pub(crate) fn beside<const N: usize>(names: [&str; N]) -> (Self, [NodeConnected; N]) {
        let nodes = names.map(node);
        let mut new = Self::new();
        new.connect(&nodes);
        (new, nodes)
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let store = MemoryStore::new(OwnerId([7; 16]), 99);
        Self::on(store, settings, 0)
    }

    /// A controller that starts on what a store holds.
    fn on(mut store: MemoryStore, settings: Settings, mono_ns: i64) -> Self {
        let now = Now {
            mono_ns,
            unix_ms: 1_790_000_000_000 + (mono_ns / MS).unsigned_abs(),
        };
        let state = State::new(settings.clone(), store.open(), now);
        Self {
            state,
            store,
            settings,
            now,
            auto_commit: true,
            deaf: false,
            batches: VecDeque::new(),
            sent: VecDeque::new(),
            replies: BTreeMap::new(),
            next_token: 1,
            warnings: Vec::new(),
            changes: Vec::new(),
            dropped_sessions: 0,
            window: 1000,
            seqs: BTreeMap::new(),
        }
    }

    /// kill -9, and a new start on what was committed.
    pub(crate) fn crash(mut self) -> Self {
        self.sent.clear();
        let store = self.store.clone();
        let seqs = self.seqs.clone();
        let mut next = Self::on(store, self.settings.clone(), self.now.mono_ns);
        next.seqs = seqs;
        next
    }

    /// As [`Self::crash`], on another store.
    pub(crate) fn crash_onto(mut self, store: MemoryStore) -> Self {
        self.sent.clear();
        Self::on(store, self.settings.clone(), self.now.mono_ns)
    }

    pub(crate) fn step(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.state.step(self.now, event, &mut effects);
        self.take(effects);
        while self.auto_commit && !self.batches.is_empty() {
            self.commit();
        }
        self.state.check();
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Commit(batch) => self.batches.push_back(batch),
                Effect::Send(frame) => self.record(frame),
                Effect::Reply { token, reply } => {
                    let before = self.replies.insert(token.0, reply);
                    assert!(before.is_none(), "one reply a request");
                }
                Effect::Changed(change) => self.changes.push(change),
                Effect::Recorded(_) => {}
                Effect::Lookup { lookup, id } => {
                    let past = self.store.lookup(id).unwrap();
                    let mut effects = Vec::new();
                    let event = Event::LookedUp { lookup, past };
                    self.state.step(self.now, event, &mut effects);
                    self.take(effects);
                }
                Effect::DropSession { .. } => self.dropped_sessions += 1,
                Effect::Warn(text) => self.warnings.push(text),
            }
        }
    }

    /// Makes everything that waits durable, and says so.
    pub(crate) fn commit(&mut self) {
        let batches: Vec<Batch> = self.batches.drain(..).collect();
        let Some(last) = batches.last() else { return };
        let number = last.number;
        let committed = self.store.commit(&batches).unwrap();
        let mut effects = Vec::new();
        let event = Event::CommitDone {
            number,
            admissions_refused: committed.admissions_refused,
            took_ns: 8_000_000,
        };
        self.state.step(self.now, event, &mut effects);
        self.take(effects);
    }

    fn record(&mut self, frame: Frame) {
        let correlation = frame.correlation;
        let mut bytes = frame.payload.into_bytes();
        let sent = match frame.operand {
            Operand::Start => Sent::Start {
                prefix: codec::take(&mut bytes).unwrap(),
                correlation,
            },
            Operand::Activate => Sent::Activate { correlation },
            Operand::Nodes => Sent::Nodes { correlation },
            Operand::Grant | Operand::Explain => return,
            operand => {
                let to: ToNode = codec::take(&mut bytes).unwrap();
                let node = to.node;
                match operand {
                    Operand::Stop => Sent::Stop {
                        node,
                        stop: codec::decode(&bytes).unwrap(),
                        correlation,
                    },
                    Operand::Delete => {
                        let _: Delete = codec::decode(&bytes).unwrap();
                        Sent::Delete
                    }
                    Operand::Ack => Sent::Ack {
                        node,
                        ack: codec::decode(&bytes).unwrap(),
                    },
                    Operand::Inventory => Sent::Inventory { node, correlation },
                    Operand::SetMode => Sent::SetMode {
                        node,
                        mode: codec::decode::<SetMode>(&bytes).unwrap().mode,
                        correlation,
                    },
                    other => panic!("unexpected {other}"),
                }
            }
        };
        self.sent.push_back(sent);
    }

    pub(crate) fn pass(&mut self, ms: i64) {
        // In small steps, as the shell's ticks come.
        let until = self.now.mono_ns + ms * MS;
        while self.now.mono_ns < until {
            let next = self.state.next_tick_ns().clamp(self.now.mono_ns + 1, until);
            self.now.unix_ms += ((next - self.now.mono_ns) / MS).unsigned_abs();
            self.now.mono_ns = next;
            self.step(Event::Tick);
            if self.state.link.up && !self.deaf {
                // The answer to a GRANT.
                self.frame(Operand::Done, 0, Vec::new());
            }
        }
    }

    // Requests.

    pub(crate) fn ask(&mut self, actor: Actor, call: Call) -> Result<Reply, Refused> {
        let token = self.ask_later(actor, call);
        self.reply(token).expect("an answer")
    }

    pub(crate) fn ask_later(&mut self, actor: Actor, call: Call) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.step(Event::Request {
            token: Token(token),
            actor,
            call: Box::new(call),
        });
        token
    }

    pub(crate) fn reply(&mut self, token: u64) -> Option<Result<Reply, Refused>> {
        self.replies.remove(&token)
    }

    pub(crate) fn submit_call(&self, spec: Spec, count: u32) -> SubmitCall {
        SubmitCall {
            tenant: None,
            request: Uuid::from_u128(u128::from(self.next_token) + 1000),
            digest: 1,
            name: None,
            count,
            workload: None,
            spec: Some(spec),
            overrides: SpecOverrides::default(),
            received_ns: self.now.mono_ns,
            nonce: 5,
        }
    }

    pub(crate) fn submit(&mut self, spec: Spec, count: u32) -> SubmitResponse {
        let call = self.submit_call(spec, count);
        self.submit_as(admin(), call).unwrap()
    }

    /// Submits one instance and makes it durable, where nothing commits by itself.
    pub(crate) fn submit_durably(&mut self, spec: Spec) {
        let call = self.submit_call(spec, 1);
        let token = self.ask_later(admin(), Call::Submit(Box::new(call)));
        self.commit();
        self.reply(token).expect("an answer").unwrap();
    }

    pub(crate) fn submit_as(
        &mut self,
        actor: Actor,
        call: SubmitCall,
    ) -> Result<SubmitResponse, Refused> {
        match self.ask(actor, Call::Submit(Box::new(call)))? {
            Reply::Submitted(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn state_of(&mut self, id: Uuid) -> InstanceState {
        let id = InstanceId::from(id);
        match self.ask(admin(), Call::Show(id)).unwrap() {
            Reply::Shown { instance, .. } => instance.state,
            Reply::NotLiving => {
                let scheme = crate::numbers::IdScheme::new(self.store.meta.id_key);
                self.store.ends[&scheme.seq(id, u64::from(u32::MAX))].state
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn stop(&mut self, id: Uuid) {
        let call = Call::Stop {
            id: InstanceId::from(id),
            grace_ms: None,
            then: crate::store::AfterStop::Keep,
        };
        self.ask(admin(), call).unwrap();
    }

    // The scheduler.

    pub(crate) fn frame(&mut self, operand: Operand, correlation: u64, payload: Vec<u8>) {
        self.step(Event::Frame(Frame::answer(operand, correlation, payload)));
    }

    pub(crate) fn last_frame(&mut self, operand: Operand, correlation: u64, payload: Vec<u8>) {
        let frame = Frame::answer(operand, correlation, payload).with_flags(Flags::LAST);
        self.step(Event::Frame(frame));
    }

    pub(crate) fn session_up(&mut self) {
        self.session_up_with(self.welcome());
    }

    pub(crate) fn welcome(&self) -> SchedulerWelcome {
        SchedulerWelcome {
            stats_interval_ms: 1000,
            lease_ms: 10_000,
            start_window: self.window,
            owner_epoch: ControllerEpoch(0),
            nodes: 0,
        }
    }

    pub(crate) fn session_up_with(&mut self, welcome: SchedulerWelcome) {
        self.session_up_in(None, welcome);
    }

    /// With a scheduler that is active in this term.
    pub(crate) fn session_up_in(&mut self, term: Option<u64>, welcome: SchedulerWelcome) {
        self.step(Event::SessionUp(SessionUp {
            address: "s:1".to_owned(),
            term: Term(term.unwrap_or(0)),
            active: term.is_some(),
            welcome,
        }));
    }

    /// A session that is activated, and has listed these nodes.
    pub(crate) fn connect(&mut self, nodes: &[NodeConnected]) {
        self.session_up();
        self.activate(nodes);
    }

    pub(crate) fn activate(&mut self, nodes: &[NodeConnected]) {
        let Some(Sent::Activate { correlation }) = self.sent.pop_front() else {
            panic!("ACTIVATE first");
        };
        self.frame(Operand::Done, correlation, Vec::new());
        let Some(Sent::Nodes { correlation }) = self.sent.pop_front() else {
            panic!("then NODES");
        };
        let page = NodePage {
            nodes: nodes.to_vec(),
        };
        self.last_frame(Operand::NodeList, correlation, encode(&page).to_vec());
    }

    pub(crate) fn disconnect_scheduler(&mut self) {
        self.step(Event::SessionDown {
            reason: "cut".to_owned(),
        });
    }

    pub(crate) fn node_up(&mut self, node: &NodeConnected) {
        self.frame(Operand::NodeConnected, 0, encode(node).to_vec());
    }

    pub(crate) fn node_down(&mut self, node: &NodeConnected) {
        let gone = NodeDisconnected {
            node: node.node.clone(),
            session_epoch: node.session_epoch,
            orderly: false,
            reason: "cut".to_owned(),
        };
        self.frame(Operand::NodeDisconnected, 0, encode(&gone).to_vec());
    }

    /// The STARTs that were sent, and nothing else.
    pub(crate) fn starts(&mut self) -> Vec<(StartPrefix, u64)> {
        self.sent
            .drain(..)
            .map(|sent| match sent {
                Sent::Start {
                    prefix,
                    correlation,
                } => (prefix, correlation),
                other => panic!("not a START: {other:?}"),
            })
            .collect()
    }

    pub(crate) fn start(&mut self) -> (StartPrefix, u64) {
        let mut starts = self.starts();
        assert_eq!(starts.len(), 1, "one START");
        starts.remove(0)
    }

    /// Lets back-off pass; the one START that follows.
    pub(crate) fn start_after(&mut self, ms: i64) -> (StartPrefix, u64) {
        self.pass(ms);
        self.start()
    }

    /// The one START that was sent, placed on this node.
    pub(crate) fn start_on(&mut self, node: &NodeConnected) -> AttemptId {
        let id = self.start().0.id;
        self.placed(id, node);
        id
    }

    pub(crate) fn placed(&mut self, id: AttemptId, node: &NodeConnected) {
        let seq = self.seqs.entry(node.node.clone()).or_default();
        *seq += 1;
        let placed = Placed {
            id,
            node: node.node.clone(),
            session_epoch: node.session_epoch,
            seq: Seq(*seq),
            placing_ns: 500,
        };
        self.frame(Operand::Placed, 0, encode(&placed).to_vec());
    }

    pub(crate) fn refuse(&mut self, start: &(StartPrefix, u64), refusal: Refusal, generation: u64) {
        let failure = StartFailure {
            id: start.0.id,
            refusal,
            generation: Generation(generation),
            text: "no".to_owned(),
        };
        self.frame(Operand::StartFailure, start.1, encode(&failure).to_vec());
    }

    pub(crate) fn capacity(&mut self, generation: u64) {
        let grown = CapacityGrown {
            generation: Generation(generation),
        };
        self.frame(Operand::Capacity, 0, encode(&grown).to_vec());
    }

    // Nodes.

    pub(crate) fn report(&mut self, node: &str, report: &InstanceReport) {
        let mut payload = Vec::new();
        let from = FromNode {
            node: node.to_owned(),
        };
        encode_into(&from, &mut payload);
        encode_into(report, &mut payload);
        self.frame(Operand::InstanceChanged, 0, payload);
    }

    pub(crate) fn running(&mut self, node: &str, id: AttemptId) {
        self.report(node, &report(id, NodePhase::Running, None, 1));
    }

    pub(crate) fn ended(&mut self, node: &str, id: AttemptId, cause: EndCause) {
        self.report(node, &report(id, NodePhase::Ended, Some(cause), 2));
    }

    /// Answers an INVENTORY.
    pub(crate) fn inventory(
        &mut self,
        node: &NodeConnected,
        applied: u64,
        entries: &[InstanceReport],
        correlation: u64,
    ) {
        let page = Inventory {
            owner: self.store.meta.owner,
            boot_id: node.boot_id,
            session_epoch: node.session_epoch,
            applied_seq: Seq(applied),
            page: 0,
            entries: entries.to_vec(),
        };
        let mut payload = Vec::new();
        let from = FromNode {
            node: node.node.clone(),
        };
        encode_into(&from, &mut payload);
        encode_into(&page, &mut payload);
        self.last_frame(Operand::InventoryPage, correlation, payload);
    }

    /// The next command, which must ask this node for its inventory.
    pub(crate) fn expect_inventory(&mut self, node: &NodeConnected) -> u64 {
        match self.sent.pop_front() {
            Some(Sent::Inventory {
                node: asked,
                correlation,
            }) if asked == node.node => correlation,
            other => panic!("no INVENTORY of {}: {other:?}", node.node),
        }
    }

    /// The next command, which must tell this node this mode.
    pub(crate) fn expect_mode(&mut self, node: &str, mode: Mode) -> u64 {
        match self.sent.pop_front() {
            Some(Sent::SetMode {
                node: told,
                mode: said,
                correlation,
            }) if told == node && said == mode => correlation,
            other => panic!("no SET_MODE of {node} to {mode:?}: {other:?}"),
        }
    }

    pub(crate) fn expect_ack(&mut self, id: AttemptId) {
        match self.sent.pop_front() {
            Some(Sent::Ack { ack, .. }) => assert_eq!(ack.id, id),
            other => panic!("no ACK: {other:?}"),
        }
    }

    pub(crate) fn expect_stop(&mut self, node: &str, id: AttemptId) -> u64 {
        match self.sent.pop_front() {
            Some(Sent::Stop {
                node: to,
                stop,
                correlation,
            }) => {
                assert_eq!(
                    (to.as_str(), stop.instance, stop.attempt),
                    (node, id.instance, id.attempt)
                );
                correlation
            }
            other => panic!("no STOP: {other:?}"),
        }
    }
}

pub(crate) fn report(
    id: AttemptId,
    phase: NodePhase,
    cause: Option<EndCause>,
    version: u64,
) -> InstanceReport {
    InstanceReport {
        id,
        version: Version(version),
        phase,
        end: cause.map(|cause| End {
            cause,
            message: String::new(),
        }),
        age_ns: 1000,
        started_after_ns: (phase >= NodePhase::Running).then_some(500),
        ended_after_ns: (phase == NodePhase::Ended).then_some(900),
        usage: Usage::default(),
    }
}

/// A node as the scheduler tells of it, keeping nothing.
pub(crate) fn node(name: &str) -> NodeConnected {
    NodeConnected {
        node: name.to_owned(),
        node_uuid: NodeUuid([1; 16]),
        boot_id: BootId([2; 16]),
        session_epoch: SessionEpoch(1),
        state: NodeState::Ready,
        attempts: 0,
        digest: 0,
        facts: NodeFacts {
            hostname: name.to_owned(),
            address: String::new(),
            allocatable: Capacity::default(),
            labels: Vec::new(),
            runtimes: vec![Runtime::Sim],
            schema_min: SCHEMA,
            schema_max: SCHEMA,
            isolation: String::new(),
            acceleration: String::new(),
        },
    }
}

/// The node in a new session, keeping these.
pub(crate) fn again(node: &NodeConnected, kept: &[(AttemptId, NodePhase)]) -> NodeConnected {
    NodeConnected {
        session_epoch: SessionEpoch(node.session_epoch.0 + 1),
        attempts: u32::try_from(kept.len()).unwrap(),
        digest: kept.iter().fold(0, |sum, (id, phase)| {
            sum.wrapping_add(digest_item(id, *phase))
        }),
        ..node.clone()
    }
}

pub(crate) fn with_cpu(cpu_millis: u32) -> Spec {
    let mut spec = sim();
    spec.demand = DemandSpec {
        cpu_millis,
        ..DemandSpec::default()
    };
    spec
}

pub(crate) fn shared(text: &str) -> Arc<str> {
    text.into()
}
