//! The feeder's end of a workload's standard input.
//!
//! The shim holds an end of the same pipe, and lets go of it only when it is told that the input is
//! complete. So a feeder that is cut off, or dies with its process, gives the workload no end to
//! read: it would take a part of its input for the whole.

use super::attempts::Attempts;
use crate::shim::message::{Key, ToShim};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;

/// Writes to the pipe; a shutdown, and nothing else, says that the input is complete.
pub(super) struct Feed {
    /// Absent after the shutdown.
    pub(super) pipe: Option<pipe::Sender>,
    pub(super) attempts: Arc<Attempts>,
    pub(super) key: Key,
}

impl Feed {
    fn pipe(&mut self) -> io::Result<Pin<&mut pipe::Sender>> {
        let pipe = self.pipe.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Pin::new(pipe))
    }
}

impl AsyncWrite for Feed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.pipe()?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pipe.take().is_some() {
            let key = self.key.clone();
            self.attempts.outbox.send(&ToShim::CloseStdin { key });
        }
        Poll::Ready(Ok(()))
    }
}
