//! What the planner and its store take for workloads that run nothing, without sockets and TLS:
//! admission in batches, START, PLACED, end, ACK, with the real database. And the memory of
//! pending instances. `cargo bench -p pronto-controller`.

use bytes::Bytes;
use pronto_controller::api::types::{SimSpec, Spec, SpecOverrides, TaskSpec};
use pronto_controller::planner::{
    Actor, ActorKind, Call, Effect, Event, Now, SessionUp, Settings, State, SubmitCall, Token,
};
use pronto_controller::store::sqlite::OpenOptions;
use pronto_controller::store::{Batch, SqliteStore, Store};
use pronto_payloads::codec::{self, encode, encode_into};
use pronto_payloads::control::FromNode;
use pronto_payloads::hello::SchedulerWelcome;
use pronto_payloads::ids::{ControllerEpoch, OwnerId, Seq, SessionEpoch, Term, Version};
use pronto_payloads::instance::{End, EndCause, InstanceReport, Phase, Usage};
use pronto_payloads::node::Nodes;
use pronto_payloads::place::{Placed, StartPrefix};
use pronto_protocol::{Flags, Frame, Operand};
use std::time::Instant;
use uuid::Uuid;

const TASKS: u32 = 200_000;
const BATCH: u32 = 1_000;
/// Pending before memory is measured: with their rows SQLite's page cache, which is bounded, is full.
const PENDING_BEFORE: u32 = 150_000;
/// And those that are measured.
const PENDING: u32 = 200_000;

struct Bench {
    state: State,
    store: SqliteStore,
    began: Instant,
    effects: Vec<Effect>,
    incoming: Vec<Event>,
    batches: Vec<Batch>,
    done: u32,
    commits: u32,
    store_ns: u128,
    token: u64,
}

impl Bench {
    fn new(dir: &std::path::Path) -> Self {
        let options = OpenOptions {
            owner: OwnerId([1; 16]),
            id_key: 7,
            now_unix_ms: 1_790_000_000_000,
            request_window_ms: 1000,
        };
        let (store, snapshot) = SqliteStore::open(dir, &options).expect("a new store");
        let settings = Settings {
            default_quota: Default::default(),
            request_window_ms: 1,
            ..Settings::default()
        };
        let now = Now {
            mono_ns: 0,
            unix_ms: 1_790_000_000_000,
        };
        Self {
            state: State::new(settings, snapshot, now),
            store,
            began: Instant::now(),
            effects: Vec::new(),
            incoming: Vec::new(),
            batches: Vec::new(),
            done: 0,
            commits: 0,
            store_ns: 0,
            token: 0,
        }
    }

    fn turn(&mut self) {
        let mono_ns = i64::try_from(self.began.elapsed().as_nanos()).expect("a short run");
        let now = Now {
            mono_ns,
            unix_ms: 1_790_000_000_000 + mono_ns.unsigned_abs() / 1_000_000,
        };
        let events = std::mem::take(&mut self.incoming);
        self.state.step_batch(now, events, &mut self.effects);
        let effects = std::mem::take(&mut self.effects);
        for effect in effects {
            match effect {
                Effect::Commit(batch) => self.batches.push(batch),
                Effect::Send(frame) => self.answer(frame),
                Effect::Reply { reply, .. } => {
                    reply.expect("admitted");
                }
                _ => {}
            }
        }
        if let Some(last) = self.batches.last() {
            let number = last.number;
            let began = Instant::now();
            let committed = self.store.commit(&self.batches).expect("a disk");
            self.store_ns += began.elapsed().as_nanos();
            self.commits += 1;
            self.batches.clear();
            self.incoming.push(Event::CommitDone {
                number,
                admissions_refused: committed.admissions_refused,
                took_ns: 0,
            });
        }
    }

    fn answer(&mut self, frame: Frame) {
        let correlation = frame.correlation;
        match frame.operand {
            Operand::Activate => {
                let done = Frame::answer(Operand::Done, correlation, ());
                self.incoming.push(Event::Frame(done));
            }
            Operand::Nodes => {
                let page = encode(&Nodes { nodes: Vec::new() });
                let list = Frame::answer(Operand::NodeList, correlation, page);
                self.incoming
                    .push(Event::Frame(list.with_flags(Flags::LAST)));
            }
            Operand::Start => self.start(frame),
            Operand::Ack => self.done += 1,
            _ => {}
        }
    }

    fn start(&mut self, frame: Frame) {
        let mut bytes: Bytes = frame.payload.into_bytes();
        let prefix: StartPrefix = codec::take(&mut bytes).expect("a START");
        let placed = Placed {
            id: prefix.id,
            node: "n1".to_owned(),
            session_epoch: SessionEpoch(1),
            seq: Seq(1),
            placing_ns: 1,
        };
        let placed = Frame::new(Operand::Placed, encode(&placed));
        let report = InstanceReport {
            id: prefix.id,
            version: Version(1),
            phase: Phase::Ended,
            end: Some(End {
                cause: EndCause::Exited { code: 0 },
                message: String::new(),
            }),
            age_ns: 10,
            started_after_ns: Some(1),
            ended_after_ns: Some(2),
            usage: Usage::default(),
        };
        let mut payload = Vec::new();
        let from = FromNode {
            node: "n1".to_owned(),
        };
        encode_into(&from, &mut payload);
        encode_into(&report, &mut payload);
        let ended = Frame::new(Operand::InstanceChanged, payload);
        self.incoming
            .extend([Event::Frame(placed), Event::Frame(ended)]);
    }

    fn submit(&mut self, count: u32) {
        self.token += 1;
        let spec = Spec::new(TaskSpec::Sim(SimSpec::default()));
        self.incoming.push(Event::Request {
            token: Token(self.token),
            actor: Actor {
                kind: ActorKind::Admin,
                name: "bench".to_owned(),
                source: String::new(),
            },
            call: Box::new(Call::Submit(Box::new(SubmitCall {
                tenant: None,
                request: Uuid::from_u128(u128::from(self.token)),
                digest: 0,
                name: None,
                count,
                workload: None,
                spec: Some(spec),
                overrides: SpecOverrides::default(),
                received_ns: 0,
                nonce: self.token,
            }))),
        });
    }

    /// Admits so many that nobody starts.
    fn queue(&mut self, count: u32, per_request: u32) {
        for _ in 0..count / BATCH {
            for _ in 0..BATCH / per_request {
                self.submit(per_request);
            }
            self.turn();
            self.turn();
        }
    }

    fn connect(&mut self) {
        self.incoming.push(Event::SessionUp(SessionUp {
            address: String::new(),
            term: Term(0),
            active: false,
            welcome: SchedulerWelcome {
                stats_interval_ms: 1000,
                lease_ms: 10_000,
                start_window: 1024,
                owner_epoch: ControllerEpoch(0),
                nodes: 1,
            },
        }));
        for _ in 0..6 {
            self.turn();
        }
    }
}

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    pages * 4096
}

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut bench = Bench::new(dir.path());
    bench.connect();
    let began = Instant::now();
    let mut submitted = 0;
    while bench.done < TASKS {
        if submitted < TASKS && submitted - bench.done < 8 * BATCH {
            bench.submit(BATCH);
            submitted += BATCH;
        }
        bench.turn();
    }
    let took = began.elapsed();
    let share = bench.store_ns as f64 / took.as_nanos() as f64;
    println!(
        "tasks_per_second {:.0} ({TASKS} tasks, {} commits, store's share {:.0} %)",
        f64::from(TASKS) / took.as_secs_f64(),
        bench.commits,
        share * 100.0
    );

    for (name, per_request) in [("batches", BATCH), ("single", 1)] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut bench = Bench::new(dir.path());
        bench.queue(PENDING_BEFORE, per_request);
        let before = resident_bytes();
        bench.queue(PENDING, per_request);
        let bytes = resident_bytes().saturating_sub(before);
        println!(
            "bytes_per_pending_instance/{name} {}",
            bytes / u64::from(PENDING)
        );
    }
}
