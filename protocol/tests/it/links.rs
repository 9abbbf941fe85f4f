//! Links: many senders, batches, bounds, and one reason for the end on both halves.

use std::time::Duration;

use pronto_protocol::transport::{
    Credentials, Link, LinkClosed, LinkReceiver, LinkSender, Wire, connect,
};
use pronto_protocol::{Frame, Operand, Role, SendError, SessionConfig};

use crate::certs::{Ca, Order};
use crate::wires::{LAUNCHER, SCHEDULER, connected, control_hello, loopback, welcome_one};

fn spawn(ca: &Ca, wire: Wire) -> (LinkSender, LinkReceiver) {
    Link::spawn(wire, ca.credentials(LAUNCHER))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_senders_share_a_link_and_each_keeps_its_order() {
    const SENDERS: u64 = 8;
    const FRAMES: u64 = 500;
    let ca = Ca::new();
    let (launcher, scheduler) = connected(&ca, SessionConfig::default()).await;
    let (sender, _launcher_receiver) = spawn(&ca, launcher);
    let (scheduler_sender, mut receiver) = spawn(&ca, scheduler);
    for number in 0..SENDERS {
        let sender = sender.clone();
        tokio::spawn(async move {
            for n in 0..FRAMES {
                let frame = Frame::answer(Operand::Stats, number << 32 | n, vec![1; 200]);
                while let Err(error) = sender.send(&frame) {
                    assert!(matches!(error, SendError::Full { .. }), "{error}");
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    let mut next = vec![0; usize::try_from(SENDERS).unwrap()];
    let mut left = SENDERS * FRAMES;
    while left > 0 {
        for frame in receiver.recv_batch().await.unwrap() {
            let number = usize::try_from(frame.correlation >> 32).unwrap();
            assert_eq!(frame.correlation & 0xffff_ffff, next[number]);
            next[number] += 1;
            left -= 1;
        }
    }
    assert_eq!(scheduler_sender.queued_bytes(), 0);
}

#[tokio::test]
async fn what_is_sent_before_close_arrives_and_both_halves_learn_of_the_end() {
    let ca = Ca::new();
    let (launcher, scheduler) = connected(&ca, SessionConfig::default()).await;
    let (sender, mut own_receiver) = spawn(&ca, launcher);
    let (_other, mut receiver) = spawn(&ca, scheduler);
    let batch: Vec<Frame> = (0..100)
        .map(|n| Frame::answer(Operand::Stats, n, vec![2; 10_000]))
        .collect();
    sender.send_all(&batch).unwrap();
    sender.close();
    assert!(matches!(sender.send(&batch[0]), Err(SendError::Closed)));
    let mut arrived = Vec::new();
    let reason = loop {
        match receiver.recv_batch().await {
            Ok(frames) => arrived.extend(frames),
            Err(reason) => break reason,
        }
    };
    assert_eq!(arrived, batch);
    assert_eq!(reason.to_string(), "peer closed the connection");
    assert!(matches!(
        own_receiver.recv_batch().await,
        Err(LinkClosed::ByUs)
    ));
}

#[tokio::test]
async fn a_link_is_bounded_in_bytes_and_in_rights() {
    let ca = Ca::new();
    let config = SessionConfig {
        queue_limit_bytes: 100_000,
        ..SessionConfig::default()
    };
    let (launcher, scheduler) = connected(&ca, config).await;
    let (sender, _receiver) = spawn(&ca, launcher);
    let refused = sender
        .send(&Frame::new(Operand::Start, vec![1]))
        .unwrap_err();
    assert!(matches!(refused, SendError::NotPermitted { .. }));
    let frame = Frame::new(Operand::Stats, vec![0; 50_000]);
    let too_much = sender
        .send_all(&[frame.clone(), frame.clone()])
        .unwrap_err();
    assert!(matches!(
        too_much,
        SendError::Full {
            limit_bytes: 100_000,
            ..
        }
    ));
    assert_eq!(sender.queued_bytes(), 0, "all or nothing");
    assert!(sender.has_room(50_000));
    sender.send(&frame).unwrap();
    drop(scheduler);
}

#[tokio::test]
async fn a_slow_receiver_holds_the_peer_up_and_not_this_sides_writing() {
    let ca = Ca::new();
    let config = SessionConfig {
        queue_limit_bytes: 300_000,
        ..SessionConfig::default()
    };
    let (launcher, scheduler) = connected(&ca, config).await;
    let (sender, mut launcher_receiver) = spawn(&ca, launcher);
    let (scheduler_sender, mut receiver) = spawn(&ca, scheduler);
    // Nobody takes anything from `receiver` until the sender's bound is reached for good: the
    // batches that may wait, the socket buffers and the queue are all full.
    let mut sent = 0;
    let mut full_since = None::<tokio::time::Instant>;
    loop {
        match sender.send(&Frame::answer(Operand::Stats, sent, vec![3; 20_000])) {
            Ok(()) => {
                sent += 1;
                full_since = None;
            }
            Err(SendError::Full { .. }) => {
                let since = *full_since.get_or_insert_with(tokio::time::Instant::now);
                if since.elapsed() > Duration::from_millis(200) {
                    break;
                }
            }
            Err(error) => panic!("{error}"),
        }
        tokio::task::yield_now().await;
    }
    // The other direction still flows.
    let mode = Frame::new(Operand::SetMode, vec![9]);
    scheduler_sender.send(&mode).unwrap();
    assert_eq!(launcher_receiver.recv_batch().await.unwrap(), [mode]);
    // And nothing was lost.
    let mut expected = 0;
    while expected < sent {
        for frame in receiver.recv_batch().await.unwrap() {
            assert_eq!(frame.correlation, expected);
            expected += 1;
        }
    }
}

#[tokio::test]
async fn a_broken_peer_is_reported_with_its_reason() {
    let ca = Ca::new();
    let (launcher, scheduler) = connected(&ca, SessionConfig::default()).await;
    let (_sender, mut receiver) = spawn(&ca, launcher);
    drop(scheduler);
    let error = receiver.recv_batch().await.unwrap_err();
    assert!(matches!(error, LinkClosed::Failed(_)), "{error}");
    let again = receiver.recv_batch().await.unwrap_err();
    assert_eq!(error.to_string(), again.to_string());
}

#[tokio::test]
async fn a_scheduler_that_is_revoked_is_left() {
    let order = |uris, serial| Order {
        uris,
        serial,
        ..Order::default()
    };
    let ca = Ca::new();
    let mut files = ca.issue("launcher", &order(&[LAUNCHER], 1));
    files.crl = Some(ca.revoke(&[1000]));
    let launcher = Credentials::load(&files).unwrap();
    let scheduler = Credentials::load(&ca.issue("scheduler", &order(&[SCHEDULER], 66))).unwrap();
    let listener = loopback();
    let address = listener.local_addr().unwrap().to_string();
    let (config, hello) = (SessionConfig::default(), control_hello());
    let (client, server) = tokio::join!(
        connect(&address, &launcher, Role::Scheduler, &hello, config),
        welcome_one(&listener, &scheduler, config),
    );
    let (_sender, mut receiver) = Link::spawn(client.unwrap(), launcher.clone());
    let (_scheduler_sender, mut scheduler_receiver) = Link::spawn(server.unwrap(), scheduler);
    ca.revoke(&[66]);
    launcher.reload().unwrap();
    let left = receiver.recv_batch().await.unwrap_err().to_string();
    assert!(
        left.contains(&format!("{SCHEDULER} has been revoked")),
        "{left}"
    );
    // It is told why.
    let heard = scheduler_receiver.recv_batch().await.unwrap_err();
    assert!(heard.to_string().contains("has been revoked"), "{heard}");
}
