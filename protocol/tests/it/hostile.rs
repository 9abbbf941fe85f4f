//! Bytes that nobody honest sends: nothing panics, nothing grows beyond its limit.

use std::time::Instant;

use pronto_protocol::{
    Decoder, Frame, HEADER_BYTES, Hello, MAX_PAYLOAD_BYTES, Operand, Refusal, Role, Session,
    Welcome, codec,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::sessions::config;

/// Pieces that look like frames more often than noise does.
fn almost_frames() -> impl Strategy<Value = Vec<u8>> {
    let header = (
        0u8..3,
        0u8..7,
        0u8..20,
        0u8..5,
        0u32..2_000_000,
        any::<u64>(),
    )
        .prop_map(|(version, kind, operand, flags, len, correlation)| {
            let mut bytes = vec![version, kind, operand, flags];
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&correlation.to_le_bytes());
            bytes
        });
    let piece = prop_oneof![header, vec(any::<u8>(), 0..400), Just(vec![0; 70_000])];
    vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_decoder_never_panics_and_never_holds_more_than_a_frame(
        bytes in almost_frames(),
        chunk in 1usize..5000,
    ) {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        let mut fed = 0;
        for piece in bytes.chunks(chunk) {
            let outcome = decoder.feed(piece, &mut frames);
            fed += piece.len();
            prop_assert!(decoder.buffered_bytes() <= MAX_PAYLOAD_BYTES + HEADER_BYTES);
            // A header alone gets no memory for the payload that it promises.
            prop_assert!(decoder.buffered_bytes() <= 2 * fed + 512);
            if outcome.is_err() {
                prop_assert_eq!(decoder.buffered_bytes(), 0);
                prop_assert_eq!(decoder.feed(&[1], &mut frames), outcome);
                break;
            }
        }
        for frame in &frames {
            prop_assert!(frame.payload.len_bytes() <= frame.operand.max_payload_bytes());
        }
    }

    #[test]
    fn a_session_never_panics(bytes in almost_frames(), chunk in 1usize..5000, role in 0usize..5) {
        let mut server = Session::server(Role::Scheduler, Role::ALL[role], config(), Instant::now());
        let mut frames = Vec::new();
        for piece in bytes.chunks(chunk) {
            if server.receive(piece, &mut frames).is_err() {
                prop_assert!(server.is_closed());
            }
            prop_assert!(server.queued_bytes() <= config().queue_limit_bytes + 4096);
        }
        prop_assert!(frames.is_empty(), "nothing passes without a HELLO");
    }

    #[test]
    fn greetings_never_panic(bytes in vec(any::<u8>(), 0..100)) {
        let bytes = bytes::Bytes::from(bytes);
        if let Ok(hello) = Hello::decode(&bytes) {
            prop_assert_eq!(hello.encode(), bytes.clone());
        }
        if let Ok(welcome) = Welcome::decode(&bytes) {
            prop_assert_eq!(welcome.encode(), bytes.clone());
        }
        let _any_outcome = Refusal::decode(&bytes);
    }
}

#[test]
fn frames_of_a_piece_share_one_block_and_larger_ones_have_their_own() {
    let mut bytes = Vec::new();
    let small = Frame::new(Operand::Ready, vec![1; 100]);
    let large = Frame::new(Operand::Start, vec![2; 100_000]);
    for frame in [&small, &small, &large, &small] {
        codec::encode(frame, &mut bytes).unwrap();
    }
    let mut frames = Vec::new();
    let mut decoder = Decoder::new();
    for record in bytes.chunks(16 * 1024) {
        decoder.feed(record, &mut frames).unwrap();
    }
    assert_eq!(frames, [small.clone(), small.clone(), large, small]);
    assert!(decoder.is_between_frames());
    assert_eq!(decoder.buffered_bytes(), 0);
}

#[test]
fn the_tokio_codec_agrees() {
    use bytes::BytesMut;
    use pronto_protocol::FrameCodec;
    use tokio_util::codec::{Decoder as _, Encoder as _};
    let frames = [
        Frame::new(Operand::Ready, vec![1; 9]),
        Frame::request(Operand::Ping, 1, Vec::new()),
    ];
    let mut encoder = FrameCodec::default();
    let mut bytes = BytesMut::new();
    for frame in &frames {
        encoder.encode(frame.clone(), &mut bytes).unwrap();
    }
    let mut decoder = FrameCodec::default();
    let mut tail = bytes.split_off(20);
    assert_eq!(decoder.decode(&mut bytes).unwrap(), None);
    assert_eq!(
        decoder.decode(&mut tail).unwrap().as_ref(),
        Some(&frames[0])
    );
    assert_eq!(
        decoder.decode(&mut tail).unwrap().as_ref(),
        Some(&frames[1])
    );
    assert_eq!(decoder.decode(&mut tail).unwrap(), None);
    let mut broken = BytesMut::from(&[9u8; 16][..]);
    let error = decoder.decode(&mut broken).unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown frame header version 9; accepted: 1"
    );
    let mut cut = BytesMut::from(&[1u8; 3][..]);
    let error = FrameCodec::default().decode_eof(&mut cut).unwrap_err();
    assert_eq!(error.to_string(), "stream ended inside a frame");
}
