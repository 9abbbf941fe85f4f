//! The daemon over real TLS on loopback, with launchers and controllers that speak by hand.

use crate::certs::Ca;
use crate::harness::*;
use pronto_payloads::codec;
use pronto_payloads::control::Activate;
use pronto_payloads::demand::{Capacity, Constraint};
use pronto_payloads::hello::{ControllerHello, SchedulerWelcome};
use pronto_payloads::ids::{ControllerEpoch, Term};
use pronto_payloads::node::{Lease, NodeConnected};
use pronto_payloads::place::{Placed, StartPrefix, StartStamp};
use pronto_protocol::transport::{Credentials, Wire, WireError, connect};
use pronto_protocol::{
    Frame, Hello, Operand, Purpose, RefusalCode, Role, SessionConfig, SessionError, VersionRange,
};
use pronto_scheduler::core::SessionId;
use pronto_scheduler::{Scheduler, SchedulerConfig};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A daemon that runs, and what its clients need.
pub(crate) struct Daemon {
    pub(crate) ca: Ca,
    pub(crate) address: SocketAddr,
    ops: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

/// A client's end of a session, with the frames that it has not looked at.
pub(crate) struct Peer {
    wire: Wire,
    frames: VecDeque<Frame>,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    /// One whose configuration is changed before it starts.
    pub(crate) fn with(change: impl FnOnce(&mut SchedulerConfig)) -> Self {
        let ca = Ca::new();
        let mut config = SchedulerConfig::new(ca.issue("scheduler/s1"));
        config.tls.crl = Some(ca.revoke(&[]));
        config.reload_interval_ms = 100;
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.ops_listen = Some(config.listen);
        config.queues.launcher_mark_bytes = 4096;
        change(&mut config);
        let scheduler = Scheduler::bind(config).unwrap();
        let (address, ops) = (
            scheduler.address().unwrap(),
            scheduler.ops_address().unwrap(),
        );
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(scheduler.serve(shutdown.clone()));
        Self {
            ca,
            address,
            ops,
            shutdown,
            serving,
        }
    }

    pub(crate) async fn try_connect(&self, who: &str, hello: &Hello) -> Result<Peer, WireError> {
        let credentials: Arc<Credentials> = self.ca.credentials(who);
        let config = SessionConfig::default();
        let address = self.address.to_string();
        let wire = connect(&address, &credentials, Role::Scheduler, hello, config).await?;
        Ok(Peer {
            wire,
            frames: VecDeque::new(),
        })
    }

    /// A launcher that has reported so much as free.
    pub(crate) async fn launcher(&self, name: &str, free: Capacity) -> Peer {
        let body = codec::encode(&launcher_hello(free.clone()));
        let hello = Hello::new(Purpose::Control, 1, body);
        let mut peer = self
            .try_connect(&format!("launcher/{name}"), &hello)
            .await
            .unwrap();
        peer.send(Frame::request(Operand::Ready, 1, status(0, free)))
            .await;
        peer.expect(Operand::Lease).await;
        peer
    }

    pub(crate) async fn controller(&self) -> Peer {
        let hello = ControllerHello {
            owner: OWNER,
            epoch: ControllerEpoch(1),
        };
        let hello = Hello::new(Purpose::Control, 1, codec::encode(&hello));
        let mut peer = self.try_connect("controller/c", &hello).await.unwrap();
        let welcome = peer.wire.session_mut().take_welcome().unwrap();
        assert!(
            codec::decode::<SchedulerWelcome>(&welcome.body)
                .unwrap()
                .start_window
                > 0
        );
        let activate = codec::encode(&Activate {
            term: Term(3),
            expected_nodes: 0,
        });
        peer.send(Frame::request(Operand::Activate, 1, activate))
            .await;
        peer.expect(Operand::Done).await;
        peer
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        let credentials = self.ca.credentials("admin/root");
        let config = credentials.client_config_with_alpn(Role::Scheduler, &["http/1.1"]);
        let stream = TcpStream::connect(self.ops).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        let mut stream = connector
            .connect("scheduler".try_into().unwrap(), stream)
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap().unwrap();
    }
}

pub(crate) fn status(applied: u64, free: Capacity) -> bytes::Bytes {
    let node = Node {
        session: SessionId(0),
        epoch: pronto_payloads::ids::SessionEpoch(1),
    };
    status_bytes(&node, applied, free)
}

impl Peer {
    pub(crate) async fn send(&mut self, frame: Frame) {
        self.wire.queue(&frame).unwrap();
        self.wire.flush().await.unwrap();
    }

    /// The next frame, or why there is none.
    pub(crate) async fn next(&mut self) -> Result<Frame, WireError> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Ok(frame);
            }
            let mut read = Vec::new();
            let outcome = self.wire.read_frames(&mut read).await;
            self.frames.extend(read);
            if self.frames.is_empty() {
                outcome?;
            }
        }
    }

    /// The next frame of this operand; statistics and the like may come before it.
    pub(crate) async fn expect(&mut self, operand: Operand) -> Frame {
        loop {
            let frame = self.next().await.unwrap();
            if frame.operand == operand {
                return frame;
            }
            let is_news = [
                Operand::Stats,
                Operand::Capacity,
                Operand::NodeConnected,
                Operand::NodeDisconnected,
            ];
            assert!(
                is_news.contains(&frame.operand),
                "{operand} expected, got {frame:?}"
            );
        }
    }
}

pub(crate) fn on_node(name: &str, number: u64, millis: u32) -> StartPrefix {
    StartPrefix {
        constraints: vec![Constraint::Node(name.into())],
        ..start(attempt(number), cpu(millis))
    }
}

#[tokio::test]
async fn a_start_is_placed_and_reported_over_real_tls() {
    let daemon = Daemon::start();
    let mut controller = daemon.controller().await;
    let mut launcher = daemon.launcher("n1", capacity(1000)).await;
    let connected: NodeConnected = decode!(controller.expect(Operand::NodeConnected).await);
    assert_eq!(
        (connected.node.as_str(), connected.facts.labels.len()),
        ("n1", 1)
    );

    let wanted = start(attempt(1), cpu(600));
    controller
        .send(Frame::request(Operand::Start, 41, start_bytes(&wanted)))
        .await;
    let mut payload = launcher.expect(Operand::Start).await.payload.into_bytes();
    let stamp: StartStamp = codec::take(&mut payload).unwrap();
    assert_eq!(
        (stamp.seq.0, stamp.term, &payload[..]),
        (1, Term(3), &start_bytes(&wanted)[..])
    );
    let placed = controller.expect(Operand::Placed).await;
    assert_eq!(placed.correlation, 41);
    let placed: Placed = decode!(placed);
    assert_eq!((placed.node.as_str(), placed.id), ("n1", attempt(1)));

    launcher
        .send(Frame::request(Operand::Ready, 7, status(1, capacity(400))))
        .await;
    let lease: Lease = decode!(launcher.expect(Operand::Lease).await);
    assert_eq!(lease.term, Term(3));
    controller
        .send(Frame::request(Operand::Start, 42, start_bytes(&wanted)))
        .await;
    assert_eq!(
        controller.expect(Operand::StartFailure).await.correlation,
        42
    );
    daemon.stop().await;
    // Both are told that it is the daemon that ends.
    for peer in [&mut controller, &mut launcher] {
        let error = loop {
            if let Err(error) = peer.next().await {
                break error;
            }
        };
        let WireError::Session(SessionError::Refused { refusal, .. }) = &error else {
            panic!("{error}");
        };
        assert_eq!(refusal.code, RefusalCode::ShuttingDown);
    }
}

/// Launchers and controllers of the next version come to a scheduler of ours: those that still speak
/// ours are welcome and speak it, the others are told why not.
#[tokio::test]
async fn peers_of_the_next_version_are_welcome_or_told_why_not() {
    let daemon = Daemon::start();
    let ours = VersionRange::SUPPORTED;
    let next = ours.max + 1;
    let owner = ControllerHello {
        owner: OWNER,
        epoch: ControllerEpoch(1),
    };
    let bodies = [
        (
            "launcher/n1",
            codec::encode(&launcher_hello(capacity(1000))),
        ),
        ("controller/c", codec::encode(&owner)),
    ];
    for (who, body) in bodies {
        let hello = |min, max| Hello {
            versions: VersionRange { min, max },
            ..Hello::new(Purpose::Control, 1, body.clone())
        };
        let mut peer = daemon
            .try_connect(who, &hello(ours.min, next))
            .await
            .unwrap();
        assert_eq!(peer.wire.session_mut().version(), ours.max, "{who}");
        let refused = daemon.try_connect(who, &hello(next, next)).await;
        let Err(WireError::Session(SessionError::Refused { operand, refusal })) = refused else {
            panic!("{who} is refused");
        };
        assert_eq!(operand, Operand::Unsupported);
        assert_eq!(refusal.code, RefusalCode::NoCommonVersion);
        let words = format!("peer speaks {next} to {next}, accepted: {ours}");
        assert!(refusal.text.contains(&words), "{}", refusal.text);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_stopped_launcher_stalls_nobody_over_real_sockets() {
    let daemon = Daemon::start();
    let mut controller = daemon.controller().await;
    // Never read from again.
    let _stopped = daemon.launcher("n1", capacity(1_000_000)).await;
    let mut lively = daemon.launcher("n2", capacity(1_000_000)).await;
    let body = vec![0; 100_000];
    let mut to_stopped = 0;
    loop {
        let wanted = [start_bytes(&on_node("n1", to_stopped + 1, 1)), body.clone()].concat();
        controller
            .send(Frame::request(Operand::Start, to_stopped, wanted))
            .await;
        let answer = loop {
            let frame = controller.next().await.unwrap();
            if [Operand::Placed, Operand::StartFailure].contains(&frame.operand) {
                break frame;
            }
        };
        assert_eq!(answer.correlation, to_stopped, "answered once and in order");
        if answer.operand == Operand::StartFailure {
            break;
        }
        to_stopped += 1;
        assert!(to_stopped < 1_000, "the kernel's buffers end long before");
    }
    // Its queue is full; what may go elsewhere does, without delay.
    for number in 0..1_000 {
        let wanted = start_bytes(&start(attempt(10_000 + number), cpu(1)));
        controller
            .send(Frame::request(Operand::Start, number, wanted))
            .await;
        let placed: Placed = decode!(controller.expect(Operand::Placed).await);
        assert_eq!(placed.node, "n2");
        lively.expect(Operand::Start).await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn who_is_not_welcome_hears_why() {
    let daemon = Daemon::start();
    let refusal = |outcome: Result<Peer, WireError>| match outcome {
        Err(WireError::Session(SessionError::Refused { operand, refusal })) => (operand, refusal),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("welcome"),
    };
    let bad_body = Hello::new(Purpose::Control, 1, &b"nonsense"[..]);
    let (operand, _) = refusal(daemon.try_connect("launcher/n1", &bad_body).await);
    assert_eq!(operand, Operand::InvalidFrame);
    let no_control = Hello::new(Purpose::Bulk, 1, &[0][..]);
    let (operand, refused) = refusal(daemon.try_connect("launcher/n1", &no_control).await);
    assert_eq!(operand, Operand::Unauthorized);
    assert!(
        refused.text.contains("no control session"),
        "{}",
        refused.text
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_revoked_launcher_is_ended_and_the_others_stay() {
    let daemon = Daemon::start();
    let mut revoked = daemon.launcher("n1", capacity(1000)).await;
    let mut other = daemon.launcher("n2", capacity(1000)).await;
    daemon.ca.revoke(&["launcher/n1"]);
    let error = loop {
        if let Err(error) = revoked.next().await {
            break error;
        }
    };
    let WireError::Session(SessionError::Refused { operand, refusal }) = &error else {
        panic!("{error}");
    };
    assert_eq!(
        (*operand, refusal.code),
        (Operand::Unauthorized, RefusalCode::CertificateInvalid)
    );
    let ready = status(0, capacity(1000));
    other.send(Frame::request(Operand::Ready, 2, ready)).await;
    other.expect(Operand::Lease).await;
    daemon.stop().await;
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let daemon = Daemon::start();
    let mut silent = Vec::new();
    for _ in 0..600 {
        silent.push(TcpStream::connect(daemon.address).await.unwrap());
    }
    // The daemon's limit for a handshake has not passed: this one is served beside them.
    let _launcher = daemon.launcher("n1", capacity(1000)).await;
    drop(silent);
    daemon.stop().await;
}

#[tokio::test]
async fn metrics_and_health_are_told() {
    let daemon = Daemon::start();
    let _launcher = daemon.launcher("n1", capacity(1000)).await;
    let _controller = daemon.controller().await;
    // Published once a second; each request makes a connection of its own.
    let metrics = loop {
        let answer = daemon.get("/metrics").await;
        if answer.contains("pronto_scheduler_term 3") {
            break answer;
        }
    };
    for line in [
        "pronto_scheduler_nodes 1",
        "pronto_scheduler_placing 1",
        "pronto_scheduler_starts_total 0",
        "pronto_scheduler_refusals_total{reason=\"CloudFull\"} 0",
        "pronto_scheduler_frames_total{kind=\"STATUS\",operand=\"READY\"} 1",
        "pronto_scheduler_sessions{role=\"launcher\",purpose=\"control\"} 1",
        "pronto_scheduler_search_seconds_bucket{le=\"+Inf\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} in:\n{metrics}");
    }
    assert!(daemon.get("/healthz").await.ends_with("ok\n"));
    assert!(daemon.get("/readyz").await.ends_with("placing\n"));
    let sessions = daemon.get("/sessions").await;
    assert!(
        sessions.contains("launcher n1 control 127.0.0.1:"),
        "{sessions}"
    );
    assert!(daemon.get("/nothing").await.starts_with("HTTP/1.1 404"));
    daemon.stop().await;
}
