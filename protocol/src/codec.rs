//! Bytes to frames and back, incrementally and without I/O.
//!
//! The decoder takes bytes in whatever pieces they come. Whole frames in a piece share one copy of
//! it; only the beginning of an unfinished frame is held back, and it grows with what has really
//! arrived, never with what a header promises. A decoder that is between frames holds no memory.
//! The first error is final: what follows a broken frame can't be told from its middle.

use bytes::{Bytes, BytesMut};
use tokio_util::codec;

use crate::frame::{Frame, Payload};
use crate::header::{Flags, FrameError, HEADER_BYTES, Header};
use crate::operand::Operand;

/// The least that is reserved for an unfinished frame, so that tiny pieces don't reallocate each.
const PARTIAL_MIN_BYTES: usize = 256;

/// Incremental decoder.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Header and payload of a frame that has begun and not ended.
    partial: Vec<u8>,
    /// The header of `partial`, once 16 bytes of it are there.
    header: Option<Header>,
    failed: Option<FrameError>,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream and appends the frames that they complete.
    ///
    /// On an error, the frames that came before it have been appended.
    pub fn feed(&mut self, bytes: &[u8], frames: &mut Vec<Frame>) -> Result<(), FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.feed_healthy(bytes, frames).inspect_err(|error| {
            self.failed = Some(error.clone());
            self.partial = Vec::new();
        })
    }

    /// Bytes held back for an unfinished frame.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// Whether the stream stands between two frames.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.partial.is_empty()
    }

    /// What the unfinished frame is going to be, once its header is there.
    #[must_use]
    pub fn unfinished(&self) -> Option<Operand> {
        self.header.map(|header| header.operand)
    }

    fn feed_healthy(&mut self, bytes: &[u8], frames: &mut Vec<Frame>) -> Result<(), FrameError> {
        let rest = self.finish_partial(bytes, frames)?;
        if rest.is_empty() {
            return Ok(());
        }
        // One copy and one reference count for all frames of this piece, made when the first
        // payload asks for it.
        let mut block: Option<Bytes> = None;
        let mut at = 0;
        while let Some(bytes) = rest[at..].first_chunk::<HEADER_BYTES>() {
            let header = Header::parse(bytes)?;
            let begin = at + HEADER_BYTES;
            let end = begin + header.payload_len_bytes as usize;
            if end > rest.len() {
                break;
            }
            let payload = if begin == end {
                Payload::EMPTY
            } else {
                block
                    .get_or_insert_with(|| Bytes::copy_from_slice(rest))
                    .slice(begin..end)
                    .into()
            };
            frames.push(frame_of(header, payload));
            at = end;
        }
        let unfinished = &rest[at..];
        if !unfinished.is_empty() {
            let nothing_left = self.finish_partial_with(unfinished, frames)?;
            debug_assert!(
                nothing_left.is_empty(),
                "the loop has taken every whole frame"
            );
        }
        Ok(())
    }

    fn finish_partial<'a>(
        &mut self,
        bytes: &'a [u8],
        frames: &mut Vec<Frame>,
    ) -> Result<&'a [u8], FrameError> {
        if self.partial.is_empty() {
            return Ok(bytes);
        }
        self.finish_partial_with(bytes, frames)
    }

    /// Adds to the unfinished frame what belongs to it, and returns what does not.
    fn finish_partial_with<'a>(
        &mut self,
        mut bytes: &'a [u8],
        frames: &mut Vec<Frame>,
    ) -> Result<&'a [u8], FrameError> {
        loop {
            let target = match self.header {
                None => HEADER_BYTES,
                Some(header) => HEADER_BYTES + header.payload_len_bytes as usize,
            };
            let (now, later) = bytes.split_at(bytes.len().min(target - self.partial.len()));
            self.grow_partial(now.len(), target);
            self.partial.extend_from_slice(now);
            bytes = later;
            if self.partial.len() < target {
                return Ok(bytes);
            }
            match (self.header, self.partial.first_chunk::<HEADER_BYTES>()) {
                (None, Some(first)) => self.header = Some(Header::parse(first)?),
                (Some(header), _) => {
                    self.header = None;
                    let block = Bytes::from(std::mem::take(&mut self.partial));
                    frames.push(frame_of(header, block.slice(HEADER_BYTES..).into()));
                    return Ok(bytes);
                }
                (None, None) => return Ok(bytes),
            }
        }
    }

    /// Doubles the room as bytes arrive, up to exactly what the frame needs.
    fn grow_partial(&mut self, more: usize, target: usize) {
        let needed = self.partial.len() + more;
        if needed > self.partial.capacity() {
            let room = (2 * needed).max(PARTIAL_MIN_BYTES);
            let room = if target > HEADER_BYTES {
                room.min(target)
            } else {
                room
            };
            self.partial
                .reserve_exact(room.max(needed) - self.partial.len());
        }
    }
}

fn frame_of(header: Header, payload: Payload) -> Frame {
    let payload = if header.payload_len_bytes == 0 {
        Payload::EMPTY
    } else {
        payload
    };
    Frame {
        operand: header.operand,
        flags: header.flags,
        correlation: header.correlation,
        payload,
    }
}

/// Appends a frame. Nothing is appended if the payload is too long for its operand.
pub fn encode(frame: &Frame, out: &mut Vec<u8>) -> Result<(), FrameError> {
    encode_pieces(
        frame.operand,
        frame.flags,
        frame.correlation,
        &frame.payload.pieces(),
        out,
    )
}

/// Appends a frame whose payload is these pieces in their order, copying each once.
pub fn encode_pieces(
    operand: Operand,
    flags: Flags,
    correlation: u64,
    pieces: &[&[u8]],
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let len = pieces.iter().map(|piece| piece.len()).sum();
    let header = Header::new(operand, flags, correlation, len)?;
    out.reserve(HEADER_BYTES + len);
    out.extend_from_slice(&header.to_bytes());
    for piece in pieces {
        out.extend_from_slice(piece);
    }
    Ok(())
}

/// The bytes that a frame takes on the wire.
#[must_use]
pub fn encoded_len_bytes(frame: &Frame) -> usize {
    HEADER_BYTES + frame.payload.len_bytes()
}

/// The same codec for `tokio_util::codec::Framed`.
#[derive(Debug, Default)]
pub struct FrameCodec {
    decoder: Decoder,
    ready: Vec<Frame>,
}

impl codec::Decoder for FrameCodec {
    type Item = Frame;
    type Error = CodecError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        if !src.is_empty() {
            let mut frames = Vec::new();
            let result = self.decoder.feed(src, &mut frames);
            src.clear();
            frames.reverse();
            frames.append(&mut self.ready);
            self.ready = frames;
            if self.ready.is_empty() {
                result?;
            }
        }
        match (self.ready.pop(), &self.decoder.failed) {
            (None, Some(error)) => Err(error.clone().into()),
            (frame, _) => Ok(frame),
        }
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        match self.decode(src)? {
            None if !self.decoder.is_between_frames() => Err(CodecError::Truncated),
            frame => Ok(frame),
        }
    }
}

impl codec::Encoder<Frame> for FrameCodec {
    type Error = CodecError;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), CodecError> {
        let len = frame.payload.len_bytes();
        let header = Header::new(frame.operand, frame.flags, frame.correlation, len)?;
        out.reserve(HEADER_BYTES + len);
        header.write(out);
        for piece in frame.payload.pieces() {
            out.extend_from_slice(piece);
        }
        Ok(())
    }
}

/// What goes wrong in a `Framed` stream.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes are not frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended inside a frame.
    #[error("stream ended inside a frame")]
    Truncated,
    /// The stream itself failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
