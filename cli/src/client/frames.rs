//! Framed streams: output, exec and files, each frame a channel and its bytes.

use super::Body;
use crate::exit::{Exit, Failure};
use anyhow::Context;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use pronto_controller::api::types::FRAME_HEADER_BYTES;
use serde::de::DeserializeOwned;

/// No frame is longer: the API cuts data into far smaller ones.
const MAX_FRAME_BYTES: usize = 4 << 20;

/// The frames of a response's body.
pub(crate) struct Frames {
    body: Incoming,
    decoder: FrameDecoder,
    /// Kept so that the connection stays open as long as its body is read.
    connection: Option<SendRequest<Body>>,
}

impl Frames {
    pub(super) fn new(body: Incoming, connection: Option<SendRequest<Body>>) -> Self {
        Self {
            body,
            decoder: FrameDecoder::default(),
            connection,
        }
    }

    /// The connection, once the last frame has been read: it can take another request.
    pub(super) async fn into_connection(mut self) -> Option<SendRequest<Body>> {
        match self.next().await {
            Ok(None) => self.connection,
            _ => None,
        }
    }

    /// The next frame; nothing after the last. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<(u8, Bytes)>, Failure> {
        loop {
            if let Some(frame) = self.decoder.next()? {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.decoder.push(&data);
                    }
                }
                Some(Err(error)) => return Err(cut(error)),
                None if self.decoder.is_empty() => return Ok(None),
                None => return Err(cut("it ended within a frame")),
            }
        }
    }
}

fn cut(error: impl std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Unreachable,
        format!("the stream was cut off: {error}"),
    )
}

/// The document of a stream's last frame.
pub(crate) fn end<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    Ok(serde_json::from_slice(bytes).context("the end of the stream is not understood")?)
}

/// One frame as it travels.
pub(super) fn encode(channel: u8, bytes: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEADER_BYTES + bytes.len());
    frame.put_u8(channel);
    frame.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    frame.put_slice(bytes);
    frame.freeze()
}

/// Bytes in, frames out.
#[derive(Default)]
struct FrameDecoder {
    buffer: BytesMut,
}

impl FrameDecoder {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    fn next(&mut self) -> Result<Option<(u8, Bytes)>, Failure> {
        let Some([channel, length @ ..]) = self.buffer.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let (channel, length) = (*channel, u32::from_le_bytes(*length) as usize);
        if length > MAX_FRAME_BYTES {
            return Err(cut(format!("a frame of {length} bytes")));
        }
        if self.buffer.len() < FRAME_HEADER_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(FRAME_HEADER_BYTES);
        Ok(Some((channel, self.buffer.split_to(length).freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let wire = b"\x01\x02\0\0\0hi\x02\0\0\0\0\x00\x02\0\0\0{}";
        let made = [encode(1, b"hi"), encode(2, b""), encode(0, b"{}")].concat();
        assert_eq!(made, wire);
        for cut in 0..wire.len() {
            let mut decoder = FrameDecoder::default();
            let mut frames = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                decoder.push(part);
                while let Some((channel, bytes)) = decoder.next().unwrap() {
                    frames.push((channel, bytes.to_vec()));
                }
            }
            let expected = [(1, b"hi".to_vec()), (2, Vec::new()), (0, b"{}".to_vec())];
            assert_eq!(frames, expected, "cut at {cut}");
            assert!(decoder.is_empty());
        }
    }

    #[test]
    fn an_absurd_length_is_an_error() {
        let mut decoder = FrameDecoder::default();
        decoder.push(b"\x01\xff\xff\xff\xff");
        assert!(decoder.next().is_err());
    }
}
