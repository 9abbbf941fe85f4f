//! Peers with a valid certificate that do what they must not, over real TLS: each is refused,
//! limited or cut, counted, and the honest ones beside it are served as before.
//!
//! Bytes are written below the session's own checks, which would not send them.

use crate::end_to_end::{Daemon, on_node, status};
use crate::harness::*;
use pronto_payloads::codec;
use pronto_payloads::hello::ControllerHello;
use pronto_payloads::ids::{ControllerEpoch, SessionEpoch};
use pronto_payloads::node::{NodeLoad, Stats, Status};
use pronto_payloads::place::{Placed, Refusal, StartFailure};
use pronto_protocol::{Frame, HEADER_BYTES, Hello, Operand, Purpose, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connection through TLS, on which anything may be written.
struct Raw(TlsStream<TcpStream>);

impl Raw {
    async fn connect(daemon: &Daemon, who: &str) -> Self {
        let config = daemon.ca.credentials(who).client_config(Role::Scheduler);
        let stream = TcpStream::connect(daemon.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        let name = "scheduler".try_into().unwrap();
        Self(connector.connect(name, stream).await.unwrap())
    }

    /// A connection that has said HELLO.
    async fn greeted(daemon: &Daemon, who: &str, body: bytes::Bytes) -> Self {
        let mut raw = Self::connect(daemon, who).await;
        raw.write(&hello(body)).await;
        raw
    }

    async fn launcher(daemon: &Daemon, name: &str) -> Self {
        let body = codec::encode(&launcher_hello(capacity(1000)));
        let mut raw = Self::greeted(daemon, &format!("launcher/{name}"), body).await;
        raw.welcomed().await;
        raw
    }

    /// Reads WELCOME: nothing may be said before it.
    async fn welcomed(&mut self) {
        let mut header = [0; HEADER_BYTES];
        self.0.read_exact(&mut header).await.unwrap();
        let length = u32::from_le_bytes(header[4..8].try_into().unwrap());
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.unwrap();
    }

    async fn controller(daemon: &Daemon, epoch: u64) -> Self {
        let body = codec::encode(&ControllerHello {
            owner: OWNER,
            epoch: ControllerEpoch(epoch),
        });
        Self::greeted(daemon, "controller/c", body).await
    }

    async fn write(&mut self, bytes: &[u8]) {
        // A peer that is cut in the middle of it is what is wanted at times.
        let _cut = self.0.write_all(bytes).await;
        let _cut = self.0.flush().await;
    }

    /// Waits until the daemon has ended the connection.
    async fn end_of_it(mut self) {
        let mut heard = Vec::new();
        let _reset = self.0.read_to_end(&mut heard).await;
    }
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    pronto_protocol::codec::encode(frame, &mut bytes).unwrap();
    bytes
}

fn hello(body: bytes::Bytes) -> Vec<u8> {
    let hello = Hello::new(Purpose::Control, 1, body);
    bytes_of(&Frame::new(Operand::Hello, hello.encode()))
}

/// A header that promises so many bytes of payload.
fn header(operand: Operand, promised_bytes: u32) -> Vec<u8> {
    let mut bytes = bytes_of(&Frame::new(operand, bytes::Bytes::new()));
    bytes[4..8].copy_from_slice(&promised_bytes.to_le_bytes());
    assert_eq!(bytes.len(), HEADER_BYTES);
    bytes
}

/// The metric of this name.
async fn metric(daemon: &Daemon, name: &str) -> u64 {
    let text = daemon.get("/metrics").await;
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("pronto_scheduler_{name} ")));
    line.map_or(0, |line| {
        let value = line.rsplit(' ').next().unwrap();
        value.parse().unwrap()
    })
}

/// Waits until the metric has this value: it is published once a second.
async fn await_metric(daemon: &Daemon, name: &str, at_least: u64) {
    while metric(daemon, name).await < at_least {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn frames_of_another_role_end_the_session_and_are_counted() {
    let daemon = Daemon::start();
    let mut controller = daemon.controller().await;
    let mut honest = daemon.launcher("n1", capacity(1000)).await;
    let stolen = start_bytes(&on_node("n1", 9, 1));
    let mut raw = Raw::launcher(&daemon, "evil").await;
    raw.write(&bytes_of(&Frame::request(
        Operand::Start,
        1,
        stolen.clone(),
    )))
    .await;
    raw.end_of_it().await;
    let mut raw = Raw::launcher(&daemon, "evil").await;
    raw.write(&bytes_of(&Frame::request(Operand::Stop, 1, stolen)))
        .await;
    raw.end_of_it().await;
    // A controller's certificate of the same name as no live one, with a launcher's frames.
    let body = codec::encode(&ControllerHello {
        owner: pronto_payloads::ids::OwnerId([66; 16]),
        epoch: ControllerEpoch(1),
    });
    let mut raw = Raw::greeted(&daemon, "controller/evil", body).await;
    raw.welcomed().await;
    let ready = Frame::new(Operand::Ready, status(0, capacity(1 << 30)));
    raw.write(&bytes_of(&ready)).await;
    raw.end_of_it().await;
    await_metric(&daemon, "sessions_broken_total", 3).await;
    // Nothing of it was heard, and the honest launcher is placed on.
    controller
        .send(Frame::request(
            Operand::Start,
            1,
            start_bytes(&on_node("n1", 1, 10)),
        ))
        .await;
    let placed: Placed = decode!(controller.expect(Operand::Placed).await);
    assert_eq!((placed.node.as_str(), placed.seq.0), ("n1", 1));
    honest.expect(Operand::Start).await;
    daemon.stop().await;
}

#[tokio::test]
async fn lengths_without_measure_get_no_memory_and_end_the_session() {
    let daemon = Daemon::start();
    for promised in [u32::MAX, 1 << 30, (1 << 20) + 1] {
        let mut raw = Raw::launcher(&daemon, "evil").await;
        raw.write(&header(Operand::Ready, promised)).await;
        raw.end_of_it().await;
        // Before HELLO, too.
        let mut raw = Raw::connect(&daemon, "launcher/evil").await;
        raw.write(&header(Operand::Hello, promised)).await;
        raw.end_of_it().await;
    }
    await_metric(&daemon, "connections_refused_total", 3).await;
    await_metric(&daemon, "sessions_broken_total", 3).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_peer_that_writes_byte_by_byte_is_served_like_any_other() {
    let daemon = Daemon::start();
    let mut controller = daemon.controller().await;
    let mut raw = Raw::connect(&daemon, "launcher/slow").await;
    for byte in hello(codec::encode(&launcher_hello(capacity(1000)))) {
        raw.write(&[byte]).await;
    }
    raw.welcomed().await;
    let ready = Frame::new(Operand::Ready, status(0, capacity(1000)));
    for byte in bytes_of(&ready) {
        raw.write(&[byte]).await;
    }
    controller.expect(Operand::NodeConnected).await;
    loop {
        let start = start_bytes(&on_node("slow", 1, 10));
        controller
            .send(Frame::request(Operand::Start, 1, start))
            .await;
        let answer = loop {
            let frame = controller.next().await.unwrap();
            if [Operand::Placed, Operand::StartFailure].contains(&frame.operand) {
                break frame;
            }
        };
        // Its READY may be on its way still.
        if answer.operand == Operand::Placed {
            break;
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn handshakes_that_do_not_come_on_are_ended_and_keep_nobody_out() {
    let daemon = Daemon::with(|config| config.timeouts.handshake_ms = 300);
    let mut half_open = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(daemon.address).await.unwrap();
        // The first bytes of a TLS record, and then one now and again: a slow loris.
        let begun: &[u8] = &[22, 3, 1, 2, 0, 1];
        stream.write_all(&begun[..number % 6]).await.unwrap();
        half_open.push(stream);
    }
    // Through TLS, and then nothing: HELLO has a limit of its own.
    let mute = Raw::connect(&daemon, "launcher/mute").await;
    let _honest = daemon.launcher("n1", capacity(1000)).await;
    mute.end_of_it().await;
    for mut stream in half_open {
        let mut end = Vec::new();
        let _reset = stream.read_to_end(&mut end).await;
    }
    await_metric(&daemon, "connections_refused_total", 301).await;
    daemon.stop().await;
}

#[tokio::test]
async fn statuses_that_cannot_be_true_are_refused_and_leave_the_books_alone() {
    let daemon = Daemon::start();
    let mut controller = daemon.controller().await;
    let mut liar = daemon.launcher("liar", capacity(1000)).await;
    for number in 0..500_u64 {
        let forged = Status {
            // Of another session, or of STARTs that were never sent.
            session_epoch: SessionEpoch(1 + number % 2),
            applied_seq: pronto_payloads::ids::Seq(u64::MAX - number),
            free: capacity(u32::MAX),
            runtimes: Vec::new(),
            reason: String::new(),
        };
        let frame = Frame::request(Operand::Ready, number, codec::encode(&forged));
        liar.send(frame).await;
        let answer = liar.expect(Operand::InvalidFrame).await;
        assert_eq!(answer.correlation, number);
    }
    await_metric(&daemon, "bad_statuses_total", 500).await;
    // More than it had is not promised: one START fits, two don't.
    let fits = start_bytes(&on_node("liar", 1, 900));
    controller
        .send(Frame::request(Operand::Start, 1, fits))
        .await;
    controller.expect(Operand::Placed).await;
    let more = start_bytes(&on_node("liar", 2, 900));
    controller
        .send(Frame::request(Operand::Start, 2, more))
        .await;
    controller.expect(Operand::StartFailure).await;
    daemon.stop().await;
}

#[tokio::test]
async fn statistics_that_jump_move_no_placement() {
    let daemon = Daemon::start();
    let mut controller = daemon.controller().await;
    let mut jumpy = daemon.launcher("jumpy", capacity(1000)).await;
    for number in 0..200_u32 {
        let all = if number % 2 == 0 { u32::MAX } else { 0 };
        let load = NodeLoad {
            load1_hundredths: all,
            cpu_used_millis: all,
            cpu_total_millis: 0,
            memory_used_mib: all,
            memory_total_mib: 0,
            uptime_s: u64::from(all) << 32,
            instances: all,
            ..NodeLoad::default()
        };
        let stats = codec::encode(&Stats {
            load,
            usages: Vec::new(),
        });
        jumpy.send(Frame::new(Operand::Stats, stats)).await;
    }
    let junk = Frame::new(Operand::Stats, bytes::Bytes::from_static(&[255; 4000]));
    jumpy.send(junk).await;
    for number in 1..=10 {
        let start = start_bytes(&on_node("jumpy", number, 100));
        controller
            .send(Frame::request(Operand::Start, number, start))
            .await;
        controller.expect(Operand::Placed).await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_stale_controller_and_a_forged_name_are_refused() {
    let daemon = Daemon::start();
    let mut controller = daemon.controller().await;
    let _honest = daemon.launcher("n1", capacity(1000)).await;
    // START that names an epoch below the session's.
    let stale = pronto_payloads::place::StartPrefix {
        controller_epoch: ControllerEpoch(0),
        ..start(attempt(1), cpu(10))
    };
    controller
        .send(Frame::request(Operand::Start, 7, start_bytes(&stale)))
        .await;
    let failure: StartFailure = decode!(controller.expect(Operand::StartFailure).await);
    assert_eq!(failure.refusal, Refusal::StaleEpoch);
    // A whole controller of an epoch that is over: its HELLO is refused.
    Raw::controller(&daemon, 0).await.end_of_it().await;
    // Another machine under a live node's name.
    let mut other = launcher_hello(capacity(1000));
    other.node_uuid = pronto_payloads::ids::NodeUuid([77; 16]);
    let body = codec::encode(&other);
    Raw::greeted(&daemon, "launcher/n1", body)
        .await
        .end_of_it()
        .await;
    await_metric(&daemon, "sessions_refused_total", 2).await;
    controller
        .send(Frame::request(
            Operand::Start,
            8,
            start_bytes(&on_node("n1", 2, 10)),
        ))
        .await;
    controller.expect(Operand::Placed).await;
    daemon.stop().await;
}

/// Connections that say nothing hold every place: whoever comes takes the place of the oldest of them,
/// and nobody's who has spoken.
#[tokio::test]
async fn silent_connections_make_room_for_those_who_speak() {
    let daemon = Daemon::with(|config| {
        config.max_connections = 16;
        // Longer than the test, so that none of them is cut for its time.
        config.timeouts.handshake_ms = 600_000;
    });
    let mut honest = daemon.launcher("n1", capacity(1000)).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(daemon.address).await.unwrap());
    }
    let mut controller = daemon.controller().await;
    honest.expect(Operand::Lease).await;
    let mut second = daemon.launcher("n2", capacity(1000)).await;
    let starts = [(1, "n1"), (2, "n2")].map(|(number, node)| on_node(node, number, 1));
    for start in &starts {
        controller
            .send(Frame::request(Operand::Start, 1, start_bytes(start)))
            .await;
        controller.expect(Operand::Placed).await;
    }
    honest.expect(Operand::Start).await;
    second.expect(Operand::Start).await;
    // The oldest have been hung up on.
    for mut gone in silent.into_iter().take(25) {
        assert_eq!(gone.read(&mut [0]).await.unwrap_or(0), 0);
    }
    await_metric(&daemon, "connections_refused_total", 25).await;
    daemon.stop().await;
}
