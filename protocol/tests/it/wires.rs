//! Wires over loopback: batches, splits at any byte, a peer that never reads, time-outs.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Duration;

use pronto_protocol::transport::{
    Credentials, Flush, HandshakeLimiter, Wire, WireError, accept, connect, listen, read_frames,
};
use pronto_protocol::{
    Flags, Frame, Hello, Operand, Purpose, Role, SendError, SessionConfig, SessionError, Timeouts,
    Welcome,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::certs::Ca;

pub(crate) const LAUNCHER: &str = "spiffe://lab/launcher/n1";
pub(crate) const SCHEDULER: &str = "spiffe://lab/scheduler/s1";
pub(crate) const CONTROLLER: &str = "spiffe://lab/controller/c1";

pub(crate) fn loopback() -> TcpListener {
    listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()
}

pub(crate) fn control_hello() -> Hello {
    Hello::new(Purpose::Control, 42, &b"about me"[..])
}

/// Accepts one connection and welcomes it.
pub(crate) async fn welcome_one(
    listener: &TcpListener,
    credentials: &Credentials,
    config: SessionConfig,
) -> Result<Wire, WireError> {
    let (stream, _) = listener.accept().await.unwrap();
    let mut wire = accept(stream, credentials, config).await?;
    let hello = wire.read_hello(config.timeouts.handshake).await?;
    assert_eq!(hello.session_epoch, 42);
    wire.welcome(Welcome::new(1, 2, true, &b"about us"[..]))
        .unwrap();
    wire.flush().await?;
    Ok(wire)
}

/// A launcher's and a scheduler's end of one session.
pub(crate) async fn connected(ca: &Ca, config: SessionConfig) -> (Wire, Wire) {
    let listener = loopback();
    let address = listener.local_addr().unwrap().to_string();
    let (launcher, scheduler) = (ca.credentials(LAUNCHER), ca.credentials(SCHEDULER));
    let hello = control_hello();
    let (client, server) = tokio::join!(
        connect(&address, &launcher, Role::Scheduler, &hello, config),
        welcome_one(&listener, &scheduler, config),
    );
    (client.unwrap(), server.unwrap())
}

#[tokio::test]
async fn a_launcher_and_a_scheduler_exchange_frames() {
    let ca = Ca::new();
    let (mut launcher, mut scheduler) = connected(&ca, SessionConfig::default()).await;
    assert_eq!(launcher.peer().to_string(), SCHEDULER);
    assert_eq!(scheduler.peer().to_string(), LAUNCHER);
    let welcome = launcher.session_mut().take_welcome().unwrap();
    assert_eq!(
        (welcome.incarnation, welcome.term, &welcome.body[..]),
        (1, 2, &b"about us"[..])
    );

    let body = vec![7; 5000];
    let start = |n| Frame::request(Operand::Start, n, body.clone());
    for n in 0..100 {
        // In one piece or two, it is the same frame.
        let (prefix, rest) = body.split_at(30);
        scheduler
            .queue_pieces(Operand::Start, Flags::WANT_REPLY, n, &[prefix, rest])
            .unwrap();
    }
    let mut frames = Vec::new();
    let reading = async {
        while frames.len() < 100 {
            launcher.read_frames(&mut frames).await.unwrap();
        }
    };
    let (flushed, ()) = tokio::join!(scheduler.flush(), reading);
    flushed.unwrap();
    assert_eq!(frames, (0..100).map(start).collect::<Vec<_>>());

    launcher
        .queue(&Frame::new(Operand::Ready, vec![1]))
        .unwrap();
    assert_eq!(launcher.try_flush().unwrap(), Flush::Done);
    let mut frames = Vec::new();
    scheduler.read_frames(&mut frames).await.unwrap();
    assert_eq!(frames, [Frame::new(Operand::Ready, vec![1])]);

    let hearing = async {
        loop {
            if let Err(error) = scheduler.read_frames(&mut frames).await {
                drop(scheduler);
                return error;
            }
        }
    };
    let ((), ended) = tokio::join!(launcher.finish(), hearing);
    assert!(
        matches!(ended, WireError::Closed { clean: true }),
        "{ended}"
    );
}

#[tokio::test]
async fn frames_that_come_with_welcome_are_not_lost() {
    let ca = Ca::new();
    let listener = loopback();
    let address = listener.local_addr().unwrap().to_string();
    let (launcher, scheduler) = (ca.credentials(LAUNCHER), ca.credentials(SCHEDULER));
    let config = SessionConfig::default();
    let mode = Frame::new(Operand::SetMode, vec![1]);
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut wire = accept(stream, &scheduler, config).await.unwrap();
        wire.read_hello(config.timeouts.handshake).await.unwrap();
        wire.welcome(Welcome::new(1, 2, true, &b""[..])).unwrap();
        wire.queue(&mode).unwrap();
        wire.flush().await.unwrap();
        wire
    };
    let hello = control_hello();
    let (client, _server) = tokio::join!(
        connect(&address, &launcher, Role::Scheduler, &hello, config),
        serving
    );
    let mut frames = Vec::new();
    client.unwrap().read_frames(&mut frames).await.unwrap();
    assert_eq!(frames, [mode]);
}

/// Carries both directions, a few bytes at a time.
async fn carry_in_crumbs(from: TcpStream, to: TcpStream) {
    async fn one_way(
        mut from: tokio::net::tcp::OwnedReadHalf,
        mut to: tokio::net::tcp::OwnedWriteHalf,
    ) {
        let mut crumb = [0; 7];
        let mut size = 0;
        loop {
            size = size % 7 + 1;
            match from.read(&mut crumb[..size]).await {
                Ok(0) | Err(_) => return,
                Ok(read) => {
                    if to.write_all(&crumb[..read]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
    to.set_nodelay(true).unwrap();
    from.set_nodelay(true).unwrap();
    let (from_read, from_write) = from.into_split();
    let (to_read, to_write) = to.into_split();
    tokio::join!(one_way(from_read, to_write), one_way(to_read, from_write));
}

#[tokio::test]
async fn handshake_and_frames_survive_a_path_of_crumbs() {
    let ca = Ca::new();
    let (listener, proxy) = (loopback(), loopback());
    let target = listener.local_addr().unwrap();
    let address = proxy.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (from, _) = proxy.accept().await.unwrap();
        carry_in_crumbs(from, TcpStream::connect(target).await.unwrap()).await;
    });
    let (launcher, scheduler) = (ca.credentials(LAUNCHER), ca.credentials(SCHEDULER));
    let (config, hello) = (SessionConfig::default(), control_hello());
    let (client, server) = tokio::join!(
        connect(&address, &launcher, Role::Scheduler, &hello, config),
        welcome_one(&listener, &scheduler, config),
    );
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    let sent: Vec<Frame> = (0..20)
        .map(|n| {
            Frame::answer(
                Operand::Stats,
                n,
                vec![3; 100 * usize::try_from(n).unwrap()],
            )
        })
        .collect();
    for frame in &sent {
        client.queue(frame).unwrap();
    }
    let mut arrived = Vec::new();
    let reading = async {
        while arrived.len() < sent.len() {
            server.read_frames(&mut arrived).await.unwrap();
        }
    };
    let (flushed, ()) = tokio::join!(client.flush(), reading);
    flushed.unwrap();
    assert_eq!(arrived, sent);
    assert_eq!(server.session().receive_buffer_bytes(), 0);
}

#[tokio::test]
async fn a_peer_that_never_reads_is_bounded_and_loses_nothing() {
    const LIMIT: usize = 1024 * 1024;
    let ca = Ca::new();
    let config = SessionConfig {
        queue_limit_bytes: LIMIT,
        ..SessionConfig::default()
    };
    let (mut launcher, scheduler) = connected(&ca, config).await;
    let scheduler = RefCell::new(scheduler);
    // The scheduler's task waits for frames, and code beside it queues and flushes.
    let mut nothing = Vec::new();
    let mut polling = std::pin::pin!(read_frames(&scheduler, &mut nothing));
    let waiting = std::future::poll_fn(|cx| std::task::Poll::Ready(polling.as_mut().poll(cx)));
    assert!(waiting.await.is_pending());

    let mut sent = 0;
    loop {
        let frame = Frame::answer(Operand::Start, sent, vec![5; 10_000]);
        let mut wire = scheduler.borrow_mut();
        match wire.queue(&frame) {
            Ok(()) => sent += 1,
            Err(SendError::Full { .. }) => break,
            Err(error) => panic!("{error}"),
        }
        wire.try_flush().unwrap();
        assert!(
            wire.queued_bytes() <= LIMIT + 160 * 1024,
            "{}",
            wire.queued_bytes()
        );
    }
    assert!(sent > 100);

    // It reads at last: the waiting task alone writes the rest, and says when it has.
    let reading = async {
        let mut frames = Vec::new();
        while (frames.len() as u64) < sent {
            launcher.read_frames(&mut frames).await.unwrap();
        }
        frames
    };
    let (unstuck, frames) = tokio::join!(polling, reading);
    unstuck.unwrap();
    assert_eq!(scheduler.borrow().queued_bytes(), 0);
    assert!(frames.iter().map(|frame| frame.correlation).eq(0..sent));
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_cut_at_each_stage() {
    let ca = Ca::new();
    let credentials = ca.credentials(SCHEDULER);
    let timeouts = Timeouts {
        handshake: Duration::from_millis(50),
        ..Timeouts::DEFAULT
    };
    let config = SessionConfig {
        timeouts,
        ..SessionConfig::default()
    };
    let listener = loopback();
    let address = listener.local_addr().unwrap();

    let silent = TcpStream::connect(address).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let error = accept(stream, &credentials, config).await.unwrap_err();
    assert_eq!(error.to_string(), "TLS handshake not done within 50ms");
    drop(silent);

    // A connecting end does not wait for ever either.
    let launcher = ca.credentials(LAUNCHER);
    let hello = control_hello();
    let error = connect(
        &address.to_string(),
        &launcher,
        Role::Scheduler,
        &hello,
        config,
    )
    .await;
    assert!(matches!(error, Err(WireError::Timeout { .. })), "{error:?}");

    // TLS, and then no HELLO.
    let mute = crate::tls::RawClient::good(&ca, LAUNCHER);
    let connecting = mute.connect(address);
    let listening = async {
        let (stream, _) = listener.accept().await.unwrap();
        let (stale, _) = (stream, ());
        drop(stale);
        let (stream, _) = listener.accept().await.unwrap();
        let generous = SessionConfig::default();
        let mut wire = accept(stream, &credentials, generous).await.unwrap();
        wire.read_hello(Duration::from_millis(50)).await
    };
    let (_open, outcome) = tokio::join!(connecting, listening);
    let error = outcome.unwrap_err();
    assert!(
        matches!(
            error,
            WireError::Session(SessionError::HandshakeTimeout { .. })
        ),
        "{error}"
    );
}

#[tokio::test]
async fn addresses_that_lead_nowhere_are_named() {
    let ca = Ca::new();
    let launcher = ca.credentials(LAUNCHER);
    let hello = control_hello();
    let try_address = async |address: &str| {
        let config = SessionConfig::default();
        let outcome = connect(address, &launcher, Role::Scheduler, &hello, config).await;
        outcome.unwrap_err().to_string()
    };
    assert!(
        try_address("no port")
            .await
            .contains("can't resolve address 'no port'")
    );
    let closed = loopback().local_addr().unwrap().to_string();
    assert!(
        try_address(&closed)
            .await
            .contains(&format!("can't connect to {closed}"))
    );
}

#[tokio::test]
async fn handshakes_under_way_are_limited() {
    let limiter = HandshakeLimiter::new(2);
    let held = (limiter.acquire().await, limiter.acquire().await);
    assert!(limiter.try_acquire().is_none());
    drop(held);
    assert!(limiter.try_acquire().is_some());
}

#[tokio::test]
async fn keepalives_are_answered_without_the_daemons_knowing() {
    let ca = Ca::new();
    let (mut launcher, mut scheduler) = connected(&ca, SessionConfig::default()).await;
    let later = std::time::Instant::now() + Duration::from_secs(11);
    // Hearing the handshake counts at the first tick, asking comes with the second.
    scheduler.tick(later).unwrap();
    scheduler.tick(later + Duration::from_secs(11)).unwrap();
    let mut frames = Vec::new();
    launcher.read_frames(&mut frames).await.unwrap();
    scheduler.read_frames(&mut frames).await.unwrap();
    assert!(frames.is_empty());
    scheduler.tick(later + Duration::from_secs(12)).unwrap();
    scheduler.tick(later + Duration::from_secs(41)).unwrap();
    let error = scheduler.tick(later + Duration::from_secs(42)).unwrap_err();
    assert!(
        matches!(error, WireError::Session(SessionError::Idle { .. })),
        "{error}"
    );
    scheduler.finish().await;
    let error = loop {
        if let Err(error) = launcher.read_frames(&mut frames).await {
            break error;
        }
    };
    assert!(
        error
            .to_string()
            .contains("BUSY: nothing heard from the peer for 30s"),
        "{error}"
    );
}

#[tokio::test]
async fn a_wire_moves_to_another_runtime_with_all_that_is_under_way() {
    let ca = Ca::new();
    let (mut launcher, mut scheduler) = connected(&ca, SessionConfig::default()).await;
    let mode = |n| Frame::answer(Operand::SetMode, n, vec![1; 100]);
    scheduler.queue(&mode(1)).unwrap();
    let detached = scheduler.detach().unwrap();
    let elsewhere = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let mut scheduler = detached.attach().unwrap();
            scheduler.queue(&mode(2)).unwrap();
            scheduler.flush().await.unwrap();
            let mut frames = Vec::new();
            while frames.is_empty() {
                scheduler.read_frames(&mut frames).await.unwrap();
            }
            scheduler.finish().await;
            frames
        })
    });
    let mut frames = Vec::new();
    while frames.len() < 2 {
        launcher.read_frames(&mut frames).await.unwrap();
    }
    assert_eq!(frames, [mode(1), mode(2)]);
    let ready = Frame::new(Operand::Ready, vec![3]);
    launcher.queue(&ready).unwrap();
    launcher.flush().await.unwrap();
    while launcher.read_frames(&mut frames).await.is_ok() {}
    drop(launcher);
    assert_eq!(elsewhere.join().unwrap(), [ready]);
}
