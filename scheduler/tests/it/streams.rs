//! Bulk streams through the relay.

use crate::harness::*;
use pronto_payloads::codec;
use pronto_payloads::ids::OwnerId;
use pronto_payloads::stream::{
    CREDIT_BYTES, LogsRequest, StreamCredit, StreamEnd, StreamFailure, StreamOpen, StreamRequest,
};
use pronto_protocol::{Frame, Operand, RefusalCode, Role};
use pronto_scheduler::core::SessionId;
use pronto_scheduler::core::limits::UNCREDITED_PER_S;

fn open(owner: OwnerId) -> bytes::Bytes {
    codec::encode(&StreamOpen {
        owner,
        instance: attempt(1).instance,
        request: StreamRequest::Logs(LogsRequest::default()),
        credit_bytes: CREDIT_BYTES,
    })
}

fn failed(frame: &Frame) -> StreamFailure {
    match decode!(frame) {
        StreamEnd::Failed { kind, .. } => kind,
        complete @ StreamEnd::Complete { .. } => panic!("{complete:?}"),
    }
}

/// A world with a node, both bulk sessions and one open stream: its number at the launcher.
fn streaming() -> (World, SessionId, SessionId, u64) {
    let (mut world, _) = World::active();
    world.node("n1", capacity(1000));
    let up = world.bulk(Role::Controller, "c", Some(OWNER));
    let down = world.bulk(Role::Launcher, "n1", None);
    world.send(
        up,
        Frame::request(Operand::StreamOpen, 5, to_node("n1", open(OWNER))),
    );
    let opened = world.expect(down, Operand::StreamOpen);
    assert_eq!(opened.payload.to_bytes(), open(OWNER));
    (world, up, down, opened.correlation)
}

fn data(number: u64, len: usize) -> Frame {
    Frame::answer(Operand::StreamData, number, vec![1; len + 1])
}

fn complete() -> bytes::Bytes {
    codec::encode(&StreamEnd::Complete {
        code: Some(0),
        sha256: Vec::new(),
    })
}

#[test]
fn data_goes_both_ways_under_each_ends_number_until_both_have_ended() {
    let (mut world, up, down, number) = streaming();
    world.send(down, data(number, 100));
    assert_eq!(world.expect(up, Operand::StreamData), data(5, 100));
    let credit = codec::encode(&StreamCredit { bytes: 1000 });
    world.send(down, Frame::answer(Operand::StreamCredit, number, credit));
    assert_eq!(world.expect(up, Operand::StreamCredit).correlation, 5);
    world.send(up, data(5, 1000));
    assert_eq!(world.expect(down, Operand::StreamData), data(number, 1000));
    world.send(up, Frame::answer(Operand::StreamEnd, 5, complete()));
    world.expect(down, Operand::StreamEnd);
    world.send(down, data(number, 7));
    world.expect(up, Operand::StreamData);
    world.send(down, Frame::answer(Operand::StreamEnd, number, complete()));
    world.expect(up, Operand::StreamEnd);
    // It is gone: nothing more of it is relayed.
    world.send(down, data(number, 7));
    world.send(up, data(5, 7));
}

#[test]
fn more_than_the_credit_ends_the_stream() {
    let (mut world, up, down, number) = streaming();
    let whole = CREDIT_BYTES as usize / 8;
    for _ in 0..8 {
        world.send(down, data(number, whole));
        world.expect(up, Operand::StreamData);
    }
    world.send(down, data(number, 1));
    assert_eq!(
        failed(&world.expect(up, Operand::StreamEnd)),
        StreamFailure::Failed
    );
    world.expect(down, Operand::StreamCancel);
    // Downwards nothing was granted at all.
    world.send(
        up,
        Frame::request(Operand::StreamOpen, 6, to_node("n1", open(OWNER))),
    );
    world.expect(down, Operand::StreamOpen);
    world.send(up, data(6, 1));
    world.expect(up, Operand::StreamEnd);
    world.expect(down, Operand::StreamCancel);
}

#[test]
fn an_open_waits_for_the_launchers_bulk_session() {
    let (mut world, _) = World::active();
    let node = world.node("n1", capacity(1000));
    let up = world.bulk(Role::Controller, "c", Some(OWNER));
    for id in [1, 2] {
        world.send(
            up,
            Frame::request(Operand::StreamOpen, id, to_node("n1", open(OWNER))),
        );
    }
    world.expect(node.session, Operand::OpenBulk);
    let down = world.bulk(Role::Launcher, "n1", None);
    world.expect(down, Operand::StreamOpen);
    world.expect(down, Operand::StreamOpen);
    world.close(down);
    for _ in 0..2 {
        assert_eq!(
            failed(&world.expect(up, Operand::StreamEnd)),
            StreamFailure::Unreachable
        );
    }
    // And not for ever.
    world.send(
        up,
        Frame::request(Operand::StreamOpen, 3, to_node("n1", open(OWNER))),
    );
    world.expect(node.session, Operand::OpenBulk);
    world.pass_ms(5_050);
    world.skip_all(Operand::Stats);
    assert_eq!(
        failed(&world.expect(up, Operand::StreamEnd)),
        StreamFailure::Unreachable
    );
}

/// Its first dial may have failed, while requests keep coming.
#[test]
fn a_launcher_is_asked_for_its_bulk_session_again() {
    let (mut world, _) = World::active();
    let node = world.node("n1", capacity(1000));
    let up = world.bulk(Role::Controller, "c", Some(OWNER));
    for id in 1..=3 {
        let opened = to_node("n1", open(OWNER));
        world.send(up, Frame::request(Operand::StreamOpen, id, opened));
        world.expect(node.session, Operand::OpenBulk);
        world.pass_ms(1_000);
        world.skip_all(Operand::Stats);
    }
}

/// An empty file, or an empty standard input: its sender has nothing to wait for.
#[test]
fn the_end_of_an_empty_input_waits_with_its_open() {
    let (mut world, _) = World::active();
    let node = world.node("n1", capacity(1000));
    let up = world.bulk(Role::Controller, "c", Some(OWNER));
    let to = to_node("n1", open(OWNER));
    world.send(up, Frame::request(Operand::StreamOpen, 1, to));
    world.send(up, Frame::answer(Operand::StreamEnd, 1, complete()));
    world.expect(node.session, Operand::OpenBulk);
    let down = world.bulk(Role::Launcher, "n1", None);
    let number = world.expect(down, Operand::StreamOpen).correlation;
    let end = world.expect(down, Operand::StreamEnd);
    assert_eq!(end, Frame::answer(Operand::StreamEnd, number, complete()));
    world.send(down, Frame::answer(Operand::StreamEnd, number, complete()));
    assert_eq!(world.expect(up, Operand::StreamEnd).correlation, 1);
}

#[test]
fn what_cannot_be_opened_is_answered() {
    let (mut world, up, down, _) = streaming();
    let mut try_open = |id, payload: Vec<u8>| {
        world.send(up, Frame::request(Operand::StreamOpen, id, payload));
        failed(&world.expect(up, Operand::StreamEnd))
    };
    let unreachable = StreamFailure::Unreachable;
    assert_eq!(try_open(8, to_node("ghost", open(OWNER))), unreachable);
    let foreign = to_node("n1", open(OwnerId([9; 16])));
    assert_eq!(try_open(8, foreign), StreamFailure::Unsupported);
    assert_eq!(
        try_open(8, b"nonsense".to_vec()),
        StreamFailure::Unsupported
    );
    assert_eq!(
        try_open(5, to_node("n1", open(OWNER))),
        StreamFailure::Unsupported,
        "is open"
    );
    for id in 100..163 {
        world.send(
            up,
            Frame::request(Operand::StreamOpen, id, to_node("n1", open(OWNER))),
        );
        world.expect(down, Operand::StreamOpen);
    }
    world.send(
        up,
        Frame::request(Operand::StreamOpen, 200, to_node("n1", open(OWNER))),
    );
    assert_eq!(
        failed(&world.expect(up, Operand::StreamEnd)),
        StreamFailure::Busy
    );
}

#[test]
fn a_control_session_takes_its_bulk_session_with_it() {
    let (mut world, up, down, number) = streaming();
    world.send(
        up,
        Frame::request(Operand::StreamOpen, 6, to_node("n1", open(OWNER))),
    );
    let second = world.expect(down, Operand::StreamOpen).correlation;
    world.send(up, Frame::answer(Operand::StreamCancel, 6, Vec::new()));
    assert_eq!(
        world.expect(down, Operand::StreamCancel).correlation,
        second
    );
    // The controller's control session is the first of all.
    world.close(SessionId(1));
    world.expect_refusal(up);
    assert_eq!(
        world.expect(down, Operand::StreamCancel).correlation,
        number
    );
    // The launcher's is the second.
    world.close(SessionId(2));
    world.expect_refusal(down);
}

#[test]
fn a_flood_of_what_needs_no_credit_ends_its_session() {
    let nothing = || codec::encode(&StreamCredit { bytes: 0 });
    for operand in [Operand::StreamCredit, Operand::StreamData] {
        for upwards in [true, false] {
            let (mut world, up, down, number) = streaming();
            let (from, to, id) = if upwards {
                (down, up, number)
            } else {
                (up, down, 5)
            };
            let payload = match operand {
                Operand::StreamCredit => nothing(),
                _ => bytes::Bytes::from_static(&[1]),
            };
            let frame = Frame::answer(operand, id, payload);
            // The controller has said STREAM_OPEN in this second.
            world.pass_ms(1_000);
            world.skip_all(Operand::Stats);
            for _ in 0..UNCREDITED_PER_S {
                world.send(from, frame.clone());
                world.expect(to, operand);
            }
            world.send(from, frame);
            let (refused, refusal) = world.expect_refusal(from);
            assert_eq!(
                (refused, refusal.code),
                (Operand::Busy, RefusalCode::LimitReached)
            );
            let end = if upwards {
                Operand::StreamEnd
            } else {
                Operand::StreamCancel
            };
            world.expect(to, end);
        }
    }
}
