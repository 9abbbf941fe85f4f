//! A connection whose peer may answer before it has read all that is sent to it.
//!
//! A controller that refuses a long body answers and closes. Writing then fails while the answer
//! stands in our receive buffer, and hyper gives a connection up at the first failed write. So what
//! is written after that goes nowhere, and reading tells how it ended: with the answer, an alert or
//! the end of the stream.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The connection.
pub(super) struct Early<S> {
    stream: S,
    /// The peer takes nothing more.
    deaf: bool,
}

impl<S: AsyncWrite + Unpin> Early<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            deaf: false,
        }
    }

    /// What `write` does; once it has failed, what it would do if the peer took everything.
    fn unless_deaf<T>(
        &mut self,
        taken: T,
        write: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if !self.deaf {
            match ready!(write(Pin::new(&mut self.stream))) {
                Ok(done) => return Poll::Ready(Ok(done)),
                Err(_) => self.deaf = true,
            }
        }
        Poll::Ready(Ok(taken))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Early<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Early<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unless_deaf(bytes.len(), |stream| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        self.unless_deaf(length, |stream| stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unless_deaf((), |stream| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unless_deaf((), |stream| stream.poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper::Request;
    use hyper_util::rt::TokioIo;
    use std::task::Waker;

    /// A peer that answers and closes at the first that is written to it.
    struct Closed {
        answer: &'static [u8],
        asked: bool,
        reader: Option<Waker>,
    }

    impl AsyncRead for Closed {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if !self.asked {
                self.reader = Some(context.waker().clone());
                return Poll::Pending;
            }
            Pin::new(&mut self.answer).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Closed {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.asked = true;
            self.reader.take().into_iter().for_each(Waker::wake);
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn asked(answer: &'static [u8]) -> hyper::Result<(u16, Bytes)> {
        let peer = Closed {
            answer,
            asked: false,
            reader: None,
        };
        let stream = TokioIo::new(Early::new(peer));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(connection);
        let body = Full::new(Bytes::from(vec![0; 1 << 20]));
        let response = sender.send_request(Request::new(body)).await?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    #[tokio::test]
    async fn an_answer_is_read_although_nothing_can_be_written_any_more() {
        let refusal = b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\ngone";
        assert_eq!(asked(refusal).await.unwrap(), (404, "gone".into()));
        assert!(asked(b"").await.is_err());
    }
}
