//! Commands inside a container, and its standard input.

use super::View;
use super::engine::{Engine, has_status, words};
use crate::runtime::{ExecSession, Refused};
use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::query_parameters::AttachContainerOptionsBuilder;
use futures_util::{Stream, StreamExt};
use pronto_payloads::stream::StreamFailure;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

/// What one stream of a command may have under way; a slow reader stops the command behind it.
const PIPE_BYTES: usize = 64 * 1024;

/// A command is under way within this, or it never will be.
const START_PATIENCE: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_millis(20);

/// What a container or a command inside writes, live.
pub(super) type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, Error>> + Send>>;

/// Attaches to a container that is about to start: to all of its output, and to its input if it
/// has one, which would end at once otherwise.
pub(super) async fn attach(
    engine: &Engine,
    container: &str,
    stdin: bool,
    view: &View,
) -> Result<Output, Error> {
    let attached = engine
        .call(|client| async move {
            let options = AttachContainerOptionsBuilder::new()
                .stdin(stdin)
                .stdout(true)
                .stderr(true)
                .stream(true)
                .build();
            client.attach_container(container, Some(options)).await
        })
        .await?;
    if stdin {
        view.set_stdin(Box::new(attached.input));
    }
    Ok(attached.output)
}

fn refused(error: &Error) -> Refused {
    let kind = if has_status(error, 404) || has_status(error, 409) {
        StreamFailure::NotFound
    } else {
        StreamFailure::Failed
    };
    Refused::new(kind, words(error))
}

/// Runs a command inside a container, as its user.
pub(super) async fn exec(
    client: Docker,
    container: &str,
    command: Vec<String>,
    local: bool,
) -> Result<ExecSession, Refused> {
    let options = CreateExecOptions {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(command),
        ..CreateExecOptions::default()
    };
    let made = client
        .create_exec(container, options)
        .await
        .map_err(|error| refused(&error))?;
    let started = client
        .start_exec(&made.id, None)
        .await
        .map_err(|error| refused(&error))?;
    let StartExecResults::Attached { output, input } = started else {
        return Err(Refused::new(
            StreamFailure::Failed,
            "the engine did not attach",
        ));
    };
    let (release, released) = oneshot::channel();
    if local {
        tokio::spawn(leash(client.clone(), made.id.clone(), released));
    }
    let (stdout, stdout_end) = tokio::io::duplex(PIPE_BYTES);
    let (stderr, stderr_end) = tokio::io::duplex(PIPE_BYTES);
    let (unfinished, kept) = oneshot::channel();
    let pump = tokio::spawn(async move {
        let pumped = pump(output, stdout, stderr).await;
        // An input that broke off is held open until here.
        drop(kept);
        pumped
    });
    let input = Input {
        stdin: Some(input),
        unfinished: Some(unfinished),
    };
    let exit = async move {
        let pumped = pump.await.unwrap_or(Ok(()));
        let code = exit_code(&client, &made.id).await;
        // Nobody listens where the engine is far away.
        let _ = release.send(());
        match (pumped, code) {
            (_, Ok(Some(code))) => Ok(code),
            (Err(error), _) | (_, Err(error)) => Err(refused(&error)),
            (Ok(()), Ok(None)) => Err(Refused::new(
                StreamFailure::Failed,
                "the engine does not tell its exit code",
            )),
        }
    };
    Ok(ExecSession {
        stdin: Some(Box::new(input)),
        stdout: Box::new(stdout_end) as Box<dyn AsyncRead + Send + Unpin>,
        stderr: Box::new(stderr_end),
        exit: Box::pin(exit),
    })
}

type Stdin = Pin<Box<dyn AsyncWrite + Send>>;

/// The input of a command. Dropped before it is complete, it is kept open until the command has
/// ended: it would take a part of its input for the whole. (The engine closes it all the same when
/// this process dies.)
struct Input {
    /// Absent once it is complete.
    stdin: Option<Stdin>,
    unfinished: Option<oneshot::Sender<Stdin>>,
}

impl Input {
    fn stdin(&mut self) -> io::Result<&mut Stdin> {
        self.stdin
            .as_mut()
            .ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl AsyncWrite for Input {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stdin()?.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stdin()?.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stdin) = &mut self.stdin else {
            return Poll::Ready(Ok(()));
        };
        let closed = ready!(stdin.as_mut().poll_shutdown(context));
        self.stdin = None;
        Poll::Ready(closed)
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if let (Some(stdin), Some(unfinished)) = (self.stdin.take(), self.unfinished.take()) {
            // Refused when the command has ended.
            let _ = unfinished.send(stdin);
        }
    }
}

/// A command's exit code, which the engine may learn some time after its output has ended.
async fn exit_code(client: &Docker, exec: &str) -> Result<Option<i32>, Error> {
    let until = Instant::now() + START_PATIENCE;
    loop {
        let found = client.inspect_exec(exec).await?;
        if let Some(code) = found.exit_code {
            return Ok(Some(i32::try_from(code).unwrap_or(i32::MAX)));
        }
        if Instant::now() > until {
            return Ok(None);
        }
        sleep(START_INTERVAL).await;
    }
}

/// Deals a command's output out to its two streams. A reader that has gone is no obstacle for the
/// other.
async fn pump(
    mut output: Output,
    mut stdout: DuplexStream,
    mut stderr: DuplexStream,
) -> Result<(), Error> {
    while let Some(message) = output.next().await {
        let (stream, message) = match message? {
            LogOutput::StdErr { message } => (&mut stderr, message),
            LogOutput::StdOut { message }
            | LogOutput::StdIn { message }
            | LogOutput::Console { message } => (&mut stdout, message),
        };
        let _ = stream.write_all(&message).await;
    }
    Ok(())
}

/// Ends the command when nobody waits for it any more, which is when `released` is dropped. The
/// engine has no request for that, so the process is held by a descriptor, which can't come to mean
/// another process. It leads a session of its own, as the engine starts it, and that goes with it.
async fn leash(client: Docker, exec: String, released: oneshot::Receiver<()>) {
    let Some((pid, process)) = process_of(&client, &exec).await else {
        return;
    };
    if released.await.is_ok() {
        return;
    }
    // It may have ended, or be another user's; then there is nothing to do.
    if pidfd_send_signal(&process, Signal::STOP).is_ok() {
        // It is still there, so its number means its own group.
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = pidfd_send_signal(&process, Signal::KILL);
    }
}

/// The process of a command, which the engine knows some time after it has answered.
async fn process_of(client: &Docker, exec: &str) -> Option<(Pid, OwnedFd)> {
    let until = Instant::now() + START_PATIENCE;
    while Instant::now() < until {
        let found = client.inspect_exec(exec).await.ok()?;
        let pid = found
            .pid
            .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
            return Some((pid, process));
        }
        if found.exit_code.is_some() {
            return None;
        }
        sleep(START_INTERVAL).await;
    }
    None
}
