//! Bodies that are written while they are read: server-sent events and framed streams. The reader
//! slows the writer by not taking the next piece.

use super::types::{CHANNEL_END, FRAME_HEADER_BYTES};
use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Pieces that may wait for the connection: each is up to a chunk of a stream.
const PIECES: usize = 4;

struct Piped(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Piped {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// The writing end of a body.
#[derive(Clone, Debug)]
pub(crate) struct Pipe(mpsc::Sender<Bytes>);

/// The reader has gone away.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HungUp;

/// A body and the end that writes it.
pub(crate) fn pipe() -> (Pipe, Body) {
    let (sender, receiver) = mpsc::channel(PIECES);
    (Pipe(sender), Body::new(Piped(receiver).boxed_unsync()))
}

impl Pipe {
    async fn raw(&self, piece: Bytes) -> Result<(), HungUp> {
        self.0.send(piece).await.map_err(|_| HungUp)
    }

    /// Resolves when the reader has gone away.
    pub(crate) async fn hung_up(&self) {
        self.0.closed().await;
    }

    /// One frame of a framed stream.
    pub(crate) async fn frame(&self, channel: u8, bytes: &[u8]) -> Result<(), HungUp> {
        let mut piece = BytesMut::with_capacity(FRAME_HEADER_BYTES + bytes.len());
        piece.put_u8(channel);
        piece.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        piece.put_slice(bytes);
        self.raw(piece.freeze()).await
    }

    /// The last frame of a framed stream.
    pub(crate) async fn end<T: Serialize>(&self, document: &T) -> Result<(), HungUp> {
        let json = serde_json::to_vec(document).map_err(|_| HungUp)?;
        self.frame(CHANNEL_END, &json).await
    }

    /// One server-sent event.
    pub(crate) async fn event<T: Serialize>(&self, name: &str, data: &T) -> Result<(), HungUp> {
        let json = serde_json::to_string(data).map_err(|_| HungUp)?;
        let text = format!("event: {name}\ndata: {json}\n\n");
        self.raw(Bytes::from(text)).await
    }

    /// A sign of life among server-sent events.
    pub(crate) async fn comment(&self) -> Result<(), HungUp> {
        self.raw(Bytes::from_static(b":\n\n")).await
    }
}
