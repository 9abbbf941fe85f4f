//! A scheduler with one node, over real TLS: it places everything, and the node does at once what
//! a `sim` task says.

use crate::certs::Ca;
use pronto_payloads::SCHEMA;
use pronto_payloads::codec::{self, encode, encode_into};
use pronto_payloads::control::{Ack, FromNode, PullInventory, Stop, ToNode};
use pronto_payloads::demand::{Capacity, Runtime};
use pronto_payloads::hello::SchedulerWelcome;
use pronto_payloads::ids::{
    Attempt, BootId, ControllerEpoch, Generation, NodeUuid, Seq, SessionEpoch, Version,
};
use pronto_payloads::instance::{End, EndCause, InstanceReport, Inventory, Phase, Usage};
use pronto_payloads::node::{NodeConnected, NodeFacts, NodeState, Nodes};
use pronto_payloads::place::{AttemptId, CountedReason, Explanation, Placed, Reason, StartPrefix};
use pronto_payloads::start::{StartBody, Task};
use pronto_payloads::stream::{CREDIT_BYTES, StreamCredit, StreamEnd, StreamOpen, StreamRequest};
use pronto_protocol::transport::{Credentials, Link, LinkReceiver, LinkSender, accept, listen};
use pronto_protocol::{Flags, Frame, Operand, Purpose, SessionConfig, Welcome};
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const NODE: &str = "n1";

pub(crate) struct Fake {
    pub(crate) address: String,
    pub(crate) world: Arc<Mutex<World>>,
}

/// What the node keeps, over all sessions.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) kept: BTreeMap<AttemptId, InstanceReport>,
    pub(crate) starts: Vec<(StartPrefix, StartBody)>,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) stdin: Vec<u8>,
    pub(crate) cancelled_commands: u32,
    seq: u64,
}

impl Fake {
    pub(crate) async fn start(ca: &Ca) -> Self {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let world = Arc::new(Mutex::new(World::default()));
        let credentials = ca.credentials("spiffe://lab/scheduler/s1");
        tokio::spawn(serve(listener, credentials, Arc::clone(&world)));
        Self { address, world }
    }
}

async fn serve(listener: TcpListener, credentials: Arc<Credentials>, world: Arc<Mutex<World>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(session(
            stream,
            Arc::clone(&credentials),
            Arc::clone(&world),
        ));
    }
}

async fn session(stream: TcpStream, credentials: Arc<Credentials>, world: Arc<Mutex<World>>) {
    let config = SessionConfig::default();
    let Ok(mut wire) = accept(stream, &credentials, config).await else {
        return;
    };
    let Ok(hello) = wire.read_hello(config.timeouts.handshake).await else {
        return;
    };
    let body = encode(&SchedulerWelcome {
        stats_interval_ms: 1000,
        lease_ms: 10_000,
        start_window: 64,
        owner_epoch: ControllerEpoch(0),
        nodes: 1,
    });
    wire.welcome(Welcome::new(1, 0, false, body)).unwrap();
    let (link, frames) = Link::spawn(wire, credentials);
    match hello.purpose {
        Purpose::Control => control(link, frames, world).await,
        Purpose::Bulk => bulk(link, frames, world).await,
    }
}

fn from_node(payload: impl bincode_free::Encoded) -> Vec<u8> {
    let mut bytes = Vec::new();
    let from = FromNode {
        node: NODE.to_owned(),
    };
    encode_into(&from, &mut bytes);
    payload.append_to(&mut bytes);
    bytes
}

/// The payloads that go up from a node here, so that this crate needs no trait of the encoding.
mod bincode_free {
    use super::{InstanceReport, Inventory, encode_into};

    pub(super) trait Encoded {
        fn append_to(&self, bytes: &mut Vec<u8>);
    }

    impl Encoded for &InstanceReport {
        fn append_to(&self, bytes: &mut Vec<u8>) {
            encode_into(*self, bytes);
        }
    }

    impl Encoded for &Inventory {
        fn append_to(&self, bytes: &mut Vec<u8>) {
            encode_into(*self, bytes);
        }
    }
}

fn report(id: AttemptId, phase: Phase, cause: Option<EndCause>) -> InstanceReport {
    InstanceReport {
        id,
        version: Version(if cause.is_some() { 2 } else { 1 }),
        phase,
        end: cause.map(|cause| End {
            cause,
            message: String::new(),
        }),
        age_ns: 2000,
        started_after_ns: Some(500),
        ended_after_ns: (phase == Phase::Ended).then_some(1500),
        usage: Usage::default(),
    }
}

async fn control(link: LinkSender, mut frames: LinkReceiver, world: Arc<Mutex<World>>) {
    while let Ok(batch) = frames.recv_batch().await {
        for frame in batch {
            let mut world = world.lock().unwrap();
            for answer in answer(&mut world, frame) {
                let _gone = link.send(&answer);
            }
        }
    }
}

fn answer(world: &mut World, frame: Frame) -> Vec<Frame> {
    let correlation = frame.correlation;
    let operand = frame.operand;
    let mut bytes = frame.payload.into_bytes();
    match operand {
        Operand::Activate => vec![Frame::answer(Operand::Done, correlation, ())],
        Operand::Nodes => {
            let page = encode(&Nodes {
                nodes: vec![node()],
            });
            vec![Frame::answer(Operand::NodeList, correlation, page).with_flags(Flags::LAST)]
        }
        Operand::Start => {
            let prefix: StartPrefix = codec::take(&mut bytes).unwrap();
            let body: StartBody = codec::decode(&bytes).unwrap();
            start(world, prefix, body)
        }
        Operand::Explain => {
            let explanation = encode(&Explanation {
                nodes: 1,
                fits: 0,
                node: Some(NODE.to_owned()),
                reasons: vec![CountedReason {
                    reason: Reason::Lacks {
                        dimension: "memory".to_owned(),
                    },
                    nodes: 1,
                }],
                generation: Generation(1),
            });
            vec![Frame::answer(
                Operand::Explanation,
                correlation,
                explanation,
            )]
        }
        Operand::Stop | Operand::Delete | Operand::SetMode | Operand::Inventory | Operand::Ack => {
            let to: ToNode = codec::take(&mut bytes).unwrap();
            assert_eq!(to.node, NODE);
            match operand {
                Operand::Stop => {
                    let stop: Stop = codec::decode(&bytes).unwrap();
                    let mut answers = vec![Frame::answer(
                        Operand::Done,
                        correlation,
                        encode(&FromNode { node: to.node }),
                    )];
                    for kept in world.kept.values_mut() {
                        if kept.id.instance == stop.instance && kept.phase != Phase::Ended {
                            *kept = report(kept.id, Phase::Ended, Some(EndCause::Stopped));
                            let up = from_node(&*kept);
                            answers.push(Frame::new(Operand::InstanceChanged, up));
                        }
                    }
                    answers
                }
                Operand::Inventory => {
                    let pull: PullInventory = codec::decode(&bytes).unwrap();
                    let page = Inventory {
                        owner: pull.owner,
                        boot_id: BootId([2; 16]),
                        session_epoch: SessionEpoch(1),
                        applied_seq: Seq(world.seq),
                        page: 0,
                        entries: world.kept.values().cloned().collect(),
                    };
                    let frame =
                        Frame::answer(Operand::InventoryPage, correlation, from_node(&page));
                    vec![frame.with_flags(Flags::LAST)]
                }
                Operand::Ack => {
                    let ack: Ack = codec::decode(&bytes).unwrap();
                    world.kept.remove(&ack.id);
                    Vec::new()
                }
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    }
}

fn start(world: &mut World, prefix: StartPrefix, body: StartBody) -> Vec<Frame> {
    world.seq += 1;
    let placed = encode(&Placed {
        id: prefix.id,
        node: NODE.to_owned(),
        session_epoch: SessionEpoch(1),
        seq: Seq(world.seq),
        placing_ns: 300,
    });
    let state = match &body.task {
        Task::Sim(sim) if sim.run_ms == 0 => report(
            prefix.id,
            Phase::Ended,
            Some(EndCause::Exited {
                code: sim.exit_code,
            }),
        ),
        _ => report(prefix.id, Phase::Running, None),
    };
    assert!(prefix.id.attempt >= Attempt(1));
    world.starts.push((prefix.clone(), body));
    world.kept.insert(prefix.id, state.clone());
    vec![
        Frame::new(Operand::Placed, placed),
        Frame::new(Operand::InstanceChanged, from_node(&state)),
    ]
}

pub(crate) fn node() -> NodeConnected {
    NodeConnected {
        node: NODE.to_owned(),
        node_uuid: NodeUuid([1; 16]),
        boot_id: BootId([2; 16]),
        session_epoch: SessionEpoch(1),
        state: NodeState::Ready,
        attempts: 0,
        digest: 0,
        facts: NodeFacts {
            hostname: "host-1".to_owned(),
            address: "10.0.0.1".to_owned(),
            allocatable: Capacity {
                cpu_millis: 4000,
                ..Capacity::default()
            },
            labels: Vec::new(),
            runtimes: vec![Runtime::Sim, Runtime::Exec],
            schema_min: SCHEMA,
            schema_max: SCHEMA,
            isolation: "cgroup1".to_owned(),
            acceleration: String::new(),
        },
    }
}

/// More than the credit of a stream, so that it must be granted.
pub(crate) const LONG: usize = 3 * CREDIT_BYTES as usize;

enum Open {
    /// Sends so many bytes, as credit allows.
    Logs {
        left: usize,
        credit: usize,
    },
    File {
        path: String,
        bytes: Vec<u8>,
    },
    Stdin,
    /// A command that writes what it reads.
    Echo,
}

/// A path about which the node says nothing.
pub(crate) const SILENT: &str = "silent";

async fn bulk(link: LinkSender, mut frames: LinkReceiver, world: Arc<Mutex<World>>) {
    let mut open: BTreeMap<u64, Open> = BTreeMap::new();
    while let Ok(batch) = frames.recv_batch().await {
        for frame in batch {
            let id = frame.correlation;
            let operand = frame.operand;
            let mut bytes = frame.payload.into_bytes();
            let send = |operand, payload: Vec<u8>| {
                let _gone = link.send(&Frame::answer(operand, id, payload));
            };
            let data = |channel: u8, bytes: &[u8]| {
                let mut payload = vec![channel];
                payload.extend_from_slice(bytes);
                send(Operand::StreamData, payload);
            };
            let end = |code: Option<i32>, sha256: Vec<u8>| {
                let end = StreamEnd::Complete { code, sha256 };
                send(Operand::StreamEnd, encode(&end).to_vec());
            };
            match operand {
                Operand::StreamOpen => {
                    let _: ToNode = codec::take(&mut bytes).unwrap();
                    let request: StreamOpen = codec::decode(&bytes).unwrap();
                    match request.request {
                        StreamRequest::Logs(_) => {
                            data(1, b"out\n");
                            data(2, b"err\n");
                            let credit = request.credit_bytes as usize - 8;
                            open.insert(id, Open::Logs { left: LONG, credit });
                        }
                        // It answers what it reads, and ends with its input.
                        StreamRequest::Exec { command } if command == ["echo", "-"] => {
                            open.insert(id, Open::Echo);
                            let grant = StreamCredit { bytes: 1000 };
                            send(Operand::StreamCredit, encode(&grant).to_vec());
                        }
                        StreamRequest::Exec { command } => {
                            data(1, command.join(" ").as_bytes());
                            end(Some(3), Vec::new());
                        }
                        StreamRequest::CopyOut { path } if path == SILENT => {}
                        StreamRequest::CopyIn { path, .. } if path == SILENT => {}
                        StreamRequest::CopyOut { path } => {
                            let found = world.lock().unwrap().files.get(&path).cloned();
                            match found {
                                Some(bytes) => {
                                    data(3, &bytes);
                                    end(None, sha2::Sha256::digest(&bytes).to_vec());
                                }
                                None => {
                                    let failed = StreamEnd::Failed {
                                        kind: pronto_payloads::stream::StreamFailure::NotFound,
                                        text: format!("no file {path}"),
                                    };
                                    send(Operand::StreamEnd, encode(&failed).to_vec());
                                }
                            }
                        }
                        StreamRequest::CopyIn { path, .. } => {
                            let bytes = Vec::new();
                            open.insert(id, Open::File { path, bytes });
                            let grant = StreamCredit {
                                bytes: CREDIT_BYTES,
                            };
                            send(Operand::StreamCredit, encode(&grant).to_vec());
                        }
                        StreamRequest::Stdin => {
                            open.insert(id, Open::Stdin);
                            let grant = StreamCredit { bytes: 1000 };
                            send(Operand::StreamCredit, encode(&grant).to_vec());
                        }
                        StreamRequest::List { pattern } => {
                            data(1, format!("a\nb\n{pattern}\n").as_bytes());
                            end(None, Vec::new());
                        }
                    }
                }
                Operand::StreamCredit => {
                    let more: StreamCredit = codec::decode(&bytes).unwrap();
                    if let Some(Open::Logs { credit, .. }) = open.get_mut(&id) {
                        *credit += more.bytes as usize;
                    }
                }
                Operand::StreamData => {
                    let part = &bytes[1..];
                    match open.get_mut(&id) {
                        Some(Open::File { bytes, .. }) => bytes.extend_from_slice(part),
                        Some(Open::Stdin) => world.lock().unwrap().stdin.extend_from_slice(part),
                        Some(Open::Echo) => data(1, part),
                        _ => {}
                    }
                    let grant = StreamCredit {
                        bytes: u32::try_from(part.len()).unwrap(),
                    };
                    send(Operand::StreamCredit, encode(&grant).to_vec());
                }
                Operand::StreamEnd => match open.remove(&id) {
                    Some(Open::File { path, bytes }) => {
                        end(None, sha2::Sha256::digest(&bytes).to_vec());
                        world.lock().unwrap().files.insert(path, bytes);
                    }
                    Some(Open::Stdin) => end(None, Vec::new()),
                    Some(Open::Echo) => end(Some(5), Vec::new()),
                    Some(logs) => {
                        open.insert(id, logs);
                    }
                    None => {}
                },
                Operand::StreamCancel => {
                    if let Some(Open::Echo) = open.remove(&id) {
                        world.lock().unwrap().cancelled_commands += 1;
                    }
                }
                _ => {}
            }
            if let Some(Open::Logs { left, credit }) = open.get_mut(&id) {
                while *left > 0 && *credit > 0 {
                    let part = 16_384.min(*left).min(*credit);
                    data(1, &vec![b'x'; part]);
                    *left -= part;
                    *credit -= part;
                }
                if *left == 0 {
                    end(None, Vec::new());
                    open.remove(&id);
                }
            }
        }
    }
}
