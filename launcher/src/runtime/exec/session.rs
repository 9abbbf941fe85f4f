//! A command inside a running attempt, behind a process that keeps it: [`crate::shim::join`].

use crate::runtime::{ExecSession, Refused};
use crate::shim::join::{Join, PIECE_BYTES, push_piece};
use crate::shim::message::LINE_BYTES;
use anyhow::Context as _;
use pronto_payloads::stream::StreamFailure;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::process::Command;

/// Starts it. Its keeper ends it when what this returns is dropped, or this process dies.
pub(super) async fn join(shim_command: &[String], join: &Join) -> anyhow::Result<ExecSession> {
    let [program, arguments @ ..] = shim_command else {
        anyhow::bail!("shim_command is empty")
    };
    let what = serde_json::to_vec(join)?;
    anyhow::ensure!(what.len() <= LINE_BYTES, "the command is too long");
    let mut child = Command::new(program)
        .args(arguments)
        .arg("join")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("can't start a process")?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        anyhow::bail!("a process without its pipes");
    };
    let leash = stdin.into_owned_fd()?;
    // Also after the input is complete, somebody holds it as long as the exit code is wanted.
    let held = leash.try_clone()?;
    let mut input = Input {
        leash: pipe::Sender::from_owned_fd(leash)?,
        waiting: Vec::new(),
        complete: false,
    };
    push_piece(&what, &mut input.waiting);
    input.flush().await.context("can't tell a process")?;
    let exit = async move {
        let status = child
            .wait()
            .await
            .map_err(|error| Refused::new(StreamFailure::Failed, error.to_string()))?;
        drop(held);
        Ok(status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    };
    Ok(ExecSession {
        stdin: Some(Box::new(input)),
        stdout: Box::new(stdout),
        stderr: Box::new(stderr),
        exit: Box::pin(exit),
    })
}

/// A command's standard input, cut into the pieces that its keeper reads. Only a shutdown makes it
/// complete.
struct Input {
    leash: pipe::Sender,
    /// A piece that has not gone yet, or not all of it.
    waiting: Vec<u8>,
    complete: bool,
}

impl Input {
    fn poll_waiting(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let leash = Pin::new(&mut self.leash);
            let written = ready!(leash.poll_write(context, &self.waiting))?;
            self.waiting.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Input {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_waiting(context))?;
        let length = bytes.len().min(PIECE_BYTES);
        if length > 0 {
            push_piece(&bytes[..length], &mut self.waiting);
        }
        // The rest goes before the next piece, or with a flush.
        match self.poll_waiting(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(length)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_waiting(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.complete, true) {
            push_piece(&[], &mut self.waiting);
        }
        self.poll_waiting(context)
    }
}
