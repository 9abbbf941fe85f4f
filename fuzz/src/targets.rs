//! What each fuzzer does with one input. A violated expectation panics.
//!
//! The same functions run in the payloads crate's tests over the golden vectors and mutations of
//! them, so that they are exercised where no fuzzer is installed.

use crate::registry::ENTRIES;
use pronto_payloads::codec::decode;
use pronto_payloads::hello::{BulkHello, ControllerHello, LauncherHello};
use pronto_protocol::{
    Decoder, Frame, HEADER_BYTES, Hello, MAX_PAYLOAD_BYTES, Operand, Purpose, Refusal, Role,
    Session, SessionConfig, Welcome, codec,
};
use std::time::Instant;

/// A fuzzer's name and what it runs.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All fuzzers.
pub(crate) const TARGETS: [Target; 3] = [
    ("frame_codec", frame_codec),
    ("payloads", payloads),
    ("hello_session", hello_session),
];

/// The first byte says in what pieces the rest arrives.
fn pieces(data: &[u8]) -> (usize, &[u8]) {
    match data.split_first() {
        Some((first, rest)) => (usize::from(*first) % 61 + 1, rest),
        None => (1, data),
    }
}

/// Frames are the same however their bytes are cut, and encode to what they were.
pub(crate) fn frame_codec(data: &[u8]) {
    let (piece, stream) = pieces(data);
    let mut whole = Vec::new();
    let in_one = Decoder::new().feed(stream, &mut whole);
    let mut cut = Vec::new();
    let mut decoder = Decoder::new();
    let mut in_pieces = Ok(());
    for bytes in stream.chunks(piece) {
        in_pieces = decoder.feed(bytes, &mut cut);
        let held = decoder.buffered_bytes();
        assert!(
            held <= (2 * stream.len()).max(256),
            "{held} bytes held of {}",
            stream.len()
        );
        assert!(held <= HEADER_BYTES + MAX_PAYLOAD_BYTES);
        if in_pieces.is_err() {
            break;
        }
    }
    assert_eq!(whole, cut);
    assert_eq!(in_one, in_pieces);
    let mut again = Vec::new();
    for frame in &whole {
        codec::encode(frame, &mut again).expect("it was within its limit when it came");
    }
    assert!(stream.starts_with(&again));
}

/// The first byte chooses a type. What decodes is within its limits and encodes to what it was.
pub(crate) fn payloads(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    let entry = &ENTRIES[usize::from(*choice) % ENTRIES.len()];
    if let Ok(decoded) = (entry.decode)(bytes) {
        assert_eq!(decoded.bytes, bytes, "{}", entry.name);
    }
}

/// Both ends of a session against a hostile peer: nothing passes before the handshake, nothing
/// passes that the role may not send, nothing grows without bound.
pub(crate) fn hello_session(data: &[u8]) {
    let (piece, stream) = pieces(data);
    let now = Instant::now();
    let config = SessionConfig::default();
    for peer in [Role::Launcher, Role::Controller, Role::User] {
        let mut session = Session::server(Role::Scheduler, peer, config, now);
        let mut welcomed = false;
        attack(&mut session, stream, piece, config, |session, frames| {
            if let Some(hello) = session.take_hello() {
                read_body(&hello, peer);
                welcomed = session
                    .welcome(Welcome::new(1, 1, true, Vec::new()))
                    .is_ok();
            }
            assert!(welcomed || frames.is_empty(), "{frames:?} before WELCOME");
        });
    }
    let hello = Hello::new(Purpose::Control, 5, Vec::new());
    let mut session = Session::client(Role::Launcher, Role::Scheduler, &hello, config, now)
        .expect("a launcher may say HELLO");
    let mut welcomed = false;
    attack(&mut session, stream, piece, config, |session, frames| {
        welcomed |= session.take_welcome().is_some();
        assert!(welcomed || frames.is_empty(), "{frames:?} before WELCOME");
    });
}

fn attack(
    session: &mut Session,
    stream: &[u8],
    piece: usize,
    config: SessionConfig,
    mut look: impl FnMut(&mut Session, &[Frame]),
) {
    for bytes in stream.chunks(piece) {
        let mut frames = Vec::new();
        let result = session.receive(bytes, &mut frames);
        look(session, &frames);
        assert!(result.is_ok() || session.is_closed());
        let unbounded = HEADER_BYTES + Operand::Welcome.max_payload_bytes();
        assert!(session.queued_bytes() <= config.queue_limit_bytes + unbounded);
    }
}

fn read_body(hello: &Hello, peer: Role) {
    // Whether it can be read is the peer's affair; that reading it does no harm is ours.
    match (hello.purpose, peer) {
        (Purpose::Bulk, _) => drop(decode::<BulkHello>(&hello.body)),
        (Purpose::Control, Role::Launcher) => drop(decode::<LauncherHello>(&hello.body)),
        (Purpose::Control, _) => drop(decode::<ControllerHello>(&hello.body)),
    }
    let refused = Refusal::decode(&hello.body).map(|refusal| refusal.to_string());
    assert!(refused.is_err() || hello.body.len() >= 4);
}
