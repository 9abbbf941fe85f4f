//! Two sessions stepped against each other, without sockets and under a clock of the test's own.

use std::time::{Duration, Instant};

use pronto_protocol::{
    Flags, Frame, Hello, Operand, Purpose, RefusalCode, Role, SendError, Session, SessionConfig,
    SessionError, Timeouts, VersionRange, Welcome,
};
use proptest::collection::vec;
use proptest::prelude::*;

pub(crate) fn config() -> SessionConfig {
    SessionConfig {
        queue_limit_bytes: 64 * 1024,
        ..SessionConfig::default()
    }
}

fn hello() -> Hello {
    Hello::new(Purpose::Control, 42, &b"about me"[..])
}

/// Moves everything that waits at one end to the other.
fn carry(from: &mut Session, to: &mut Session) -> Result<Vec<Frame>, SessionError> {
    let mut frames = Vec::new();
    let bytes = from.outgoing().to_vec();
    from.outgoing_written(bytes.len());
    to.receive(&bytes, &mut frames).map(|()| frames)
}

fn pair(now: Instant) -> (Session, Session) {
    let client = Session::client(Role::Launcher, Role::Scheduler, &hello(), config(), now);
    (
        client.unwrap(),
        Session::server(Role::Scheduler, Role::Launcher, config(), now),
    )
}

fn open_pair(now: Instant) -> (Session, Session) {
    let (mut client, mut server) = pair(now);
    assert_eq!(carry(&mut client, &mut server), Ok(vec![]));
    server.take_hello().unwrap();
    server
        .welcome(Welcome::new(7, 8, true, &b"about us"[..]))
        .unwrap();
    assert_eq!(carry(&mut server, &mut client), Ok(vec![]));
    (client, server)
}

fn ready(correlation: u64) -> Frame {
    Frame::answer(Operand::Ready, correlation, vec![1; 40])
}

#[test]
fn hello_and_welcome_open_both_ends() {
    let (mut client, mut server) = pair(Instant::now());
    assert!(matches!(
        client.queue(&ready(1)),
        Err(SendError::NotOpen { .. })
    ));
    carry(&mut client, &mut server).unwrap();
    assert_eq!(server.take_hello(), Some(hello()));
    assert_eq!(server.take_hello(), None);
    server
        .welcome(Welcome::new(7, 8, true, &b"about us"[..]))
        .unwrap();
    server
        .queue(&Frame::new(Operand::SetMode, vec![2]))
        .unwrap();
    // What is queued right behind WELCOME arrives with it.
    let frames = carry(&mut server, &mut client).unwrap();
    assert_eq!(frames, [Frame::new(Operand::SetMode, vec![2])]);
    let welcome = client.take_welcome().unwrap();
    assert_eq!(
        (welcome.version, welcome.session_epoch, welcome.incarnation),
        (1, 42, 7)
    );
    assert!(client.is_open() && server.is_open());
    client.queue(&ready(1)).unwrap();
    assert_eq!(carry(&mut client, &mut server).unwrap(), [ready(1)]);
}

#[test]
fn nothing_but_hello_comes_first_and_nothing_before_welcome() {
    let (_, mut server) = pair(Instant::now());
    let mut bytes = Vec::new();
    pronto_protocol::codec::encode(&ready(1), &mut bytes).unwrap();
    let error = server.receive(&bytes, &mut Vec::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "STATUS READY came while COMMAND HELLO was expected"
    );

    let (mut client, mut server) = pair(Instant::now());
    let mut eager = client.outgoing().to_vec();
    eager.extend_from_slice(&bytes);
    let error = server.receive(&eager, &mut Vec::new()).unwrap_err();
    assert!(
        matches!(
            error,
            SessionError::OutOfPlace {
                operand: Operand::Ready,
                ..
            }
        ),
        "{error}"
    );
    // The other end learns the reason.
    let error = carry(&mut server, &mut client).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("INVALID_FRAME: STATUS READY came"),
        "{error}"
    );
}

/// The header of a frame with all the payload that its operand may have, and the first byte of that.
fn beginning_of(operand: Operand) -> Vec<u8> {
    let mut bytes = Vec::new();
    let whole = Frame::new(operand, vec![1; operand.max_payload_bytes()]);
    pronto_protocol::codec::encode(&whole, &mut bytes).unwrap();
    bytes.truncate(pronto_protocol::HEADER_BYTES + 1);
    bytes
}

#[test]
fn what_has_no_place_is_refused_by_its_header_alone() {
    let out_of_place = |session: &mut Session, operand: Operand| {
        let error = session.receive(&beginning_of(operand), &mut Vec::new());
        let SessionError::OutOfPlace { operand: found, .. } = error.unwrap_err() else {
            panic!("{operand} is out of place");
        };
        assert_eq!(found, operand);
        assert!(session.is_closed());
    };
    let (mut client, mut server) = pair(Instant::now());
    out_of_place(&mut server, Operand::Stats);
    out_of_place(&mut client, Operand::NodeList);

    let (mut client, mut server) = pair(Instant::now());
    carry(&mut client, &mut server).unwrap();
    out_of_place(&mut server, Operand::Stats);

    // HELLO itself is waited for, and is all that can be.
    let (_, mut server) = pair(Instant::now());
    let hello = beginning_of(Operand::Hello);
    server.receive(&hello, &mut Vec::new()).unwrap();

    let (_, mut server) = open_pair(Instant::now());
    let stats = beginning_of(Operand::Stats);
    server.receive(&stats, &mut Vec::new()).unwrap();
    let (_, mut server) = open_pair(Instant::now());
    let start = beginning_of(Operand::Start);
    let error = server.receive(&start, &mut Vec::new()).unwrap_err();
    assert!(
        matches!(error, SessionError::NotPermitted { .. }),
        "{error}"
    );
}

#[test]
fn each_role_is_held_to_its_table_on_both_ends() {
    let (mut client, mut server) = open_pair(Instant::now());
    let start = Frame::new(Operand::Start, vec![1]);
    assert!(matches!(
        client.queue(&start),
        Err(SendError::NotPermitted { .. })
    ));

    // A launcher that sends one nevertheless is refused, and what it sent before is kept.
    let mut bytes = Vec::new();
    pronto_protocol::codec::encode(&ready(1), &mut bytes).unwrap();
    pronto_protocol::codec::encode(&start, &mut bytes).unwrap();
    pronto_protocol::codec::encode(&ready(2), &mut bytes).unwrap();
    let mut frames = Vec::new();
    let error = server.receive(&bytes, &mut frames).unwrap_err();
    assert_eq!(
        error.to_string(),
        "COMMAND START may not be sent by a launcher to a scheduler on a control session"
    );
    assert_eq!(frames, [ready(1)]);
    match carry(&mut server, &mut client).unwrap_err() {
        SessionError::Refused {
            operand: Operand::Unauthorized,
            refusal,
        } => {
            assert_eq!(refusal.code, RefusalCode::NotPermitted);
        }
        other => panic!("{other}"),
    }
    assert!(server.is_closed() && client.is_closed());
    assert_eq!(server.queue(&ready(1)), Err(SendError::Closed));
    // Nothing passes any more.
    assert_eq!(server.receive(&bytes, &mut frames), Ok(()));
    assert_eq!(frames.len(), 1);
}

#[test]
fn a_second_hello_is_out_of_place() {
    let (_, mut server) = open_pair(Instant::now());
    let mut bytes = Vec::new();
    let again = Frame::new(Operand::Hello, hello().encode());
    pronto_protocol::codec::encode(&again, &mut bytes).unwrap();
    let error = server.receive(&bytes, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, SessionError::OutOfPlace { .. }), "{error}");
}

#[test]
fn roles_without_a_place_on_frame_ports_are_unauthorized_at_hello() {
    for role in [Role::User, Role::Admin, Role::Scheduler] {
        let now = Instant::now();
        let outcome = Session::client(role, Role::Scheduler, &hello(), config(), now);
        assert!(matches!(outcome, Err(SendError::NotPermitted { .. })));
        let mut server = Session::server(Role::Scheduler, role, config(), now);
        let mut bytes = Vec::new();
        let first = Frame::new(Operand::Hello, hello().encode());
        pronto_protocol::codec::encode(&first, &mut bytes).unwrap();
        let error = server.receive(&bytes, &mut Vec::new()).unwrap_err();
        assert!(
            matches!(error, SessionError::NotPermitted { .. }),
            "{error}"
        );
        assert!(!server.outgoing().is_empty(), "the peer is told");
    }
}

#[test]
fn versions_are_negotiated_or_refused_by_name() {
    let speak = |client: (u8, u8), server: (u8, u8)| {
        let now = Instant::now();
        let range = |(min, max)| VersionRange { min, max };
        let hello = Hello {
            versions: range(client),
            ..hello()
        };
        let config = SessionConfig {
            versions: range(server),
            ..config()
        };
        let mut client =
            Session::client(Role::Controller, Role::Scheduler, &hello, config, now).unwrap();
        let mut server = Session::server(Role::Scheduler, Role::Controller, config, now);
        match carry(&mut client, &mut server) {
            Ok(_) => {
                server.welcome(Welcome::new(0, 0, true, &b""[..])).unwrap();
                carry(&mut server, &mut client).unwrap();
                assert_eq!(client.version(), server.version());
                Ok(client.version())
            }
            Err(error) => {
                let told = carry(&mut server, &mut client).unwrap_err();
                assert!(matches!(
                    told,
                    SessionError::Refused {
                        operand: Operand::Unsupported,
                        ..
                    }
                ));
                Err(error.to_string())
            }
        }
    };
    assert_eq!(speak((1, 2), (1, 1)), Ok(1));
    assert_eq!(speak((1, 3), (2, 4)), Ok(3));
    assert_eq!(
        speak((2, 3), (1, 1)),
        Err("no common protocol version: peer speaks 2 to 3, accepted: 1 to 1".into())
    );
}

#[test]
fn silence_is_asked_about_and_then_cut() {
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let (mut client, mut server) = open_pair(begin);
    server.tick(at(1)).unwrap();
    assert_eq!(server.queued_bytes(), 0);
    server.tick(at(11)).unwrap();
    assert_eq!(server.queued_bytes(), 16, "a PING waits");
    // The client answers by itself, and neither caller sees any of it.
    assert_eq!(carry(&mut server, &mut client), Ok(vec![]));
    assert!(client.take_answered());
    assert_eq!(carry(&mut client, &mut server), Ok(vec![]));
    server.tick(at(12)).unwrap();
    server.tick(at(41)).unwrap();
    let error = server.tick(at(42)).unwrap_err();
    assert_eq!(
        error,
        SessionError::Idle {
            limit: Duration::from_secs(30)
        }
    );
    let told = carry(&mut server, &mut client).unwrap_err();
    assert!(told.to_string().contains("BUSY: nothing heard"), "{told}");
}

#[test]
fn a_stalled_daemon_calls_nobody_silent() {
    let begin = Instant::now();
    let (_, mut server) = open_pair(begin);
    let late = begin + Duration::from_secs(100);
    server.restart_timers(late);
    server.tick(late + Duration::from_secs(9)).unwrap();
    assert!(server.is_open());
}

#[test]
fn a_peer_that_says_nothing_at_first_is_cut() {
    let begin = Instant::now();
    let (mut client, mut server) = pair(begin);
    let late = begin + Timeouts::DEFAULT.handshake;
    let error = server.tick(late).unwrap_err();
    assert_eq!(error.to_string(), "no COMMAND HELLO within 5s");
    assert_eq!(
        client.tick(late).unwrap_err().to_string(),
        "no REPLY WELCOME within 5s"
    );
}

#[test]
fn a_peer_that_never_reads_is_bounded_and_then_cut() {
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let (mut client, mut server) = open_pair(begin);
    let start = Frame::new(Operand::Start, vec![0; 984]);
    let queued = std::iter::repeat_with(|| server.queue(&start))
        .take_while(Result::is_ok)
        .count();
    assert_eq!(queued, 65, "64 KiB hold 65 frames of 1000 bytes");
    let full = server.queue(&start).unwrap_err();
    assert_eq!(
        full,
        SendError::Full {
            queued_bytes: 65_000,
            limit_bytes: 65_536
        }
    );
    // It goes on talking, so it is not silent; but it takes nothing.
    for second in 1..=30 {
        client.queue(&ready(second)).unwrap();
        carry(&mut client, &mut server).unwrap();
        server.tick(at(second)).unwrap();
    }
    let error = server.tick(at(31)).unwrap_err();
    assert!(
        matches!(
            error,
            SessionError::Stalled {
                queued_bytes: 65_000,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn pings_of_a_peer_that_does_not_read_stay_within_the_bound() {
    let (_, mut server) = open_pair(Instant::now());
    let mut bytes = Vec::new();
    let ping = Frame::request(Operand::Ping, 5, vec![9; 64]);
    for _ in 0..10_000 {
        pronto_protocol::codec::encode(&ping, &mut bytes).unwrap();
    }
    let mut frames = Vec::new();
    server.receive(&bytes, &mut frames).unwrap();
    assert!(frames.is_empty());
    assert!(server.queued_bytes() <= config().queue_limit_bytes);
}

#[test]
fn an_error_about_one_frame_does_not_end_the_session() {
    let (mut client, mut server) = open_pair(Instant::now());
    let about = pronto_protocol::Refusal::new(RefusalCode::MalformedPayload, "no such mode");
    let answer = Frame::answer(Operand::InvalidFrame, 3, about.encode());
    client.queue(&answer).unwrap();
    assert_eq!(
        carry(&mut client, &mut server).unwrap(),
        std::slice::from_ref(&answer)
    );
    assert!(server.is_open());
    client.queue(&answer.with_flags(Flags::LAST)).unwrap();
    assert!(matches!(
        carry(&mut client, &mut server),
        Err(SessionError::Refused { .. })
    ));
}

fn any_report() -> impl Strategy<Value = Frame> {
    let operand = prop_oneof![
        Just(Operand::Ready),
        Just(Operand::Stats),
        Just(Operand::InstanceChanged),
        Just(Operand::Done),
    ];
    (
        operand,
        any::<u64>(),
        any::<bool>(),
        vec(any::<u8>(), 0..5000),
    )
        .prop_map(|(operand, correlation, last, payload)| {
            let flags = if last { Flags::LAST } else { Flags::NONE };
            Frame::answer(operand, correlation, payload).with_flags(flags)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// However the bytes are cut on their way, the same frames arrive in the same order, PINGs in
    /// between are answered, and an end between frames holds no memory.
    #[test]
    fn frames_survive_any_split(
        frames in vec(any_report(), 1..12),
        cuts in vec(1usize..3000, 1..60),
        ping_after in 0usize..12,
    ) {
        let begin = Instant::now();
        let (mut client, mut server) = open_pair(begin);
        let mut sent = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            client.queue(frame).unwrap();
            sent.push(frame.clone());
            if index == ping_after {
                client.queue(&Frame::request(Operand::Ping, 77, vec![1, 2])).unwrap();
            }
        }
        let bytes = client.outgoing().to_vec();
        let mut rest = &bytes[..];
        let mut arrived = Vec::new();
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            server.receive(now, &mut arrived).unwrap();
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(arrived, sent);
        prop_assert_eq!(server.receive_buffer_bytes(), 0);
        if ping_after < frames.len() {
            let pong = Frame::answer(Operand::Pong, 77, vec![1, 2]);
            prop_assert_eq!(carry(&mut server, &mut client).unwrap(), vec![pong]);
        }
    }
}
