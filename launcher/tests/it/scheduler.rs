//! A scheduler's end of a launcher's sessions, played by the test: it says what the test says.

use crate::certs::Ca;
use pronto_launcher::LauncherConfig;
use pronto_payloads::codec;
use pronto_payloads::control::Ack;
use pronto_payloads::demand::Demand;
use pronto_payloads::hello::{LauncherHello, SchedulerWelcome};
use pronto_payloads::ids::{
    Attempt, ControllerEpoch, InstanceId, OwnerId, Seq, SessionEpoch, Term,
};
use pronto_payloads::instance::{InstanceReport, Phase};
use pronto_payloads::node::{Lease, Status};
use pronto_payloads::place::{AttemptId, StartPrefix, StartStamp};
use pronto_payloads::start::StartBody;
use pronto_payloads::stream::{
    CREDIT_BYTES, Channel, StreamCredit, StreamEnd, StreamOpen, StreamRequest,
};
use pronto_protocol::transport::{Credentials, Link, LinkReceiver, LinkSender, WireError, accept};
use pronto_protocol::{
    Frame, Hello, Operand, Payload, Purpose, SessionConfig, VersionRange, Welcome,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct FakeScheduler {
    listener: TcpListener,
    credentials: Arc<Credentials>,
}

/// One session with a launcher.
pub(crate) struct Peer {
    pub(crate) hello: Hello,
    sender: LinkSender,
    receiver: LinkReceiver,
    unseen: VecDeque<Frame>,
    seq: u64,
}

impl FakeScheduler {
    pub(crate) async fn new(ca: &Ca) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            listener,
            credentials: ca.credentials("scheduler", "s1"),
        }
    }

    pub(crate) fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// The next session that says HELLO with this purpose.
    pub(crate) async fn session(&self, purpose: Purpose) -> Peer {
        self.session_of(VersionRange::SUPPORTED, purpose).await
    }

    /// The next connection, to a scheduler of these versions that finds none in common.
    pub(crate) async fn refuses(&self, versions: VersionRange) -> WireError {
        let refusing = async {
            let (stream, _) = self.listener.accept().await.unwrap();
            let config = SessionConfig {
                versions,
                ..SessionConfig::default()
            };
            // HELLO may have come with the end of the handshake.
            let mut wire = match accept(stream, &self.credentials, config).await {
                Ok(wire) => wire,
                Err(error) => return error,
            };
            let error = wire.read_hello(LIMIT).await.unwrap_err();
            wire.finish().await;
            error
        };
        tokio::time::timeout(LIMIT, refusing)
            .await
            .expect("a launcher connects")
    }

    /// A session with a scheduler of these versions.
    pub(crate) async fn session_of(&self, versions: VersionRange, purpose: Purpose) -> Peer {
        let session = async {
            let (stream, _) = self.listener.accept().await.unwrap();
            let config = SessionConfig {
                versions,
                ..SessionConfig::default()
            };
            let mut wire = accept(stream, &self.credentials, config).await.unwrap();
            let hello = wire.read_hello(LIMIT).await.unwrap();
            assert_eq!(hello.purpose, purpose);
            let body = codec::encode(&SchedulerWelcome {
                stats_interval_ms: 100,
                lease_ms: 10_000,
                start_window: 64,
                owner_epoch: ControllerEpoch(0),
                nodes: 1,
            });
            wire.welcome(Welcome::new(1, 1, true, body)).unwrap();
            let (sender, receiver) = Link::spawn(wire, self.credentials.clone());
            Peer {
                hello,
                sender,
                receiver,
                unseen: VecDeque::new(),
                seq: 0,
            }
        };
        tokio::time::timeout(LIMIT, session)
            .await
            .expect("a launcher connects")
    }

    /// A control session with a lease.
    pub(crate) async fn leased(&self) -> Peer {
        let mut peer = self.session(Purpose::Control).await;
        peer.wait(|frame| frame.operand == Operand::Lease || frame.wants_reply())
            .await;
        peer
    }
}

impl Peer {
    pub(crate) fn launcher(&self) -> LauncherHello {
        codec::decode(&self.hello.body).unwrap()
    }

    pub(crate) fn send(&self, operand: Operand, correlation: u64, payload: impl Into<Payload>) {
        self.sender
            .send(&Frame::request(operand, correlation, payload))
            .unwrap();
    }

    /// The next frame that matches. Statuses that ask for a lease get one on the way.
    pub(crate) async fn wait(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        if let Some(index) = self.unseen.iter().position(&wanted) {
            return self.unseen.remove(index).unwrap();
        }
        loop {
            let frames = tokio::time::timeout(LIMIT, self.receiver.recv_batch())
                .await
                .unwrap_or_else(|_| panic!("nothing more came after {:?}", self.unseen))
                .unwrap();
            for frame in frames {
                if frame.wants_reply() {
                    let lease = Lease {
                        term: Term(1),
                        lease_ms: 10_000,
                        owners: vec![owner()],
                    };
                    self.send(Operand::Lease, frame.correlation, codec::encode(&lease));
                }
                self.unseen.push_back(frame);
            }
            if let Some(index) = self.unseen.iter().position(&wanted) {
                return self.unseen.remove(index).unwrap();
            }
        }
    }

    pub(crate) async fn next(&mut self, operand: Operand) -> Frame {
        self.wait(|frame| frame.operand == operand).await
    }

    /// Waits until the launcher says this of the attempt; acknowledges an end.
    pub(crate) async fn report(&mut self, id: AttemptId, phase: Phase) -> InstanceReport {
        loop {
            let frame = self.next(Operand::InstanceChanged).await;
            let report: InstanceReport = codec::decode(&frame.payload.to_bytes()).unwrap();
            if report.id == id && report.phase == phase {
                return report;
            }
        }
    }

    pub(crate) fn ack(&self, report: &InstanceReport) {
        let ack = Ack {
            id: report.id,
            version: report.version,
        };
        self.send(Operand::Ack, 0, codec::encode(&ack));
    }

    pub(crate) async fn status(&mut self, wanted: impl Fn(&Status) -> bool) -> Status {
        loop {
            let frame = self.next(Operand::Ready).await;
            let status: Status = codec::decode(&frame.payload.to_bytes()).unwrap();
            if wanted(&status) {
                return status;
            }
        }
    }

    pub(crate) fn start(&mut self, id: AttemptId, body: &StartBody) {
        self.seq += 1;
        let stamp = StartStamp {
            session_epoch: SessionEpoch(self.hello.session_epoch),
            seq: Seq(self.seq),
            term: Term(1),
            gpus: Vec::new(),
        };
        let prefix = StartPrefix {
            id,
            controller_epoch: ControllerEpoch(1),
            body_schema: 1,
            runtime: body.task.runtime(),
            demand: Demand {
                cpu_millis: 100,
                memory_mib: 64,
                ..Demand::default()
            },
            constraints: Vec::new(),
            prefer: None,
            avoid: Vec::new(),
        };
        let mut payload = Vec::new();
        codec::encode_into(&stamp, &mut payload);
        codec::encode_into(&prefix, &mut payload);
        codec::encode_into(body, &mut payload);
        self.send(Operand::Start, 0, payload);
    }

    // Streams, on a bulk session

    pub(crate) fn open(&self, stream: u64, id: AttemptId, request: StreamRequest) {
        let open = StreamOpen {
            owner: id.owner,
            instance: id.instance,
            request,
            credit_bytes: CREDIT_BYTES,
        };
        self.send(Operand::StreamOpen, stream, codec::encode(&open));
    }

    pub(crate) fn data(&self, stream: u64, channel: Channel, bytes: &[u8]) {
        let payload = Payload::with_prefix(vec![channel as u8], bytes.to_vec());
        self.sender
            .send(&Frame::answer(Operand::StreamData, stream, payload))
            .unwrap();
    }

    pub(crate) fn end(&self, stream: u64, sha256: Vec<u8>) {
        let end = StreamEnd::Complete { code: None, sha256 };
        self.sender
            .send(&Frame::answer(
                Operand::StreamEnd,
                stream,
                codec::encode(&end),
            ))
            .unwrap();
    }

    /// All that a stream sends, by channel, and how it ends. Grants as it reads.
    pub(crate) async fn drain(&mut self, stream: u64) -> ([Vec<u8>; 4], StreamEnd) {
        let mut output: [Vec<u8>; 4] = Default::default();
        loop {
            let data = [Operand::StreamData, Operand::StreamEnd];
            let frame = self
                .wait(|frame| frame.correlation == stream && data.contains(&frame.operand))
                .await;
            let bytes = frame.payload.to_bytes();
            if frame.operand == Operand::StreamEnd {
                return (output, codec::decode(&bytes).unwrap());
            }
            output[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
            let credit = StreamCredit {
                bytes: u32::try_from(bytes.len() - 1).unwrap(),
            };
            self.sender
                .send(&Frame::answer(
                    Operand::StreamCredit,
                    stream,
                    codec::encode(&credit),
                ))
                .unwrap();
        }
    }
}

pub(crate) fn owner() -> OwnerId {
    OwnerId([1; 16])
}

pub(crate) fn attempt(instance: u8) -> AttemptId {
    AttemptId {
        owner: owner(),
        instance: InstanceId([instance; 16]),
        attempt: Attempt(1),
    }
}

/// A launcher's configuration for a scheduler of this test.
pub(crate) fn config(
    scheduler: &FakeScheduler,
    ca: &Ca,
    data_dir: &std::path::Path,
) -> LauncherConfig {
    let tls = ca.issue("launcher", "n1");
    let text = format!(
        "schedulers = [{:?}]\ndata_dir = {data_dir:?}\nshim_command = [{:?}]\n\
         run_as_invoker = true\nruntimes = [\"exec\", \"sim\"]\n\
         [capacity]\ncpu_millis = 4000\nmemory_mib = 4096\ndisk_mib = 1000\n\
         [tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
        scheduler.address(),
        env!("CARGO_BIN_EXE_pronto-launcher-shim"),
        tls.ca,
        tls.cert,
        tls.key,
    );
    toml::from_str(&text).unwrap()
}
