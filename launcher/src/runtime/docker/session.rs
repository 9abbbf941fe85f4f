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
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWriteExt, DuplexStream};

/// What one stream of a command may have under way; a slow reader stops the command behind it.
const PIPE_BYTES: usize = 64 * 1024;

type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, Error>> + Send>>;

/// Attaches to the standard input of a container that is about to start. Without it, the workload
/// would see an end of file at once.
pub(super) async fn attach_stdin(engine: &Engine, container: &str, view: &View) {
    let client = engine.up().await;
    let options = AttachContainerOptionsBuilder::new()
        .stdin(true)
        .stream(true)
        .build();
    match client.attach_container(container, Some(options)).await {
        Ok(attached) => view.set_stdin(Box::new(attached.input)),
        Err(error) => tracing::warn!(container, %error, "no standard input"),
    }
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
    let leash = if local {
        Leash::of(&client, &made.id).await
    } else {
        Leash(None)
    };
    let (stdout, stdout_end) = tokio::io::duplex(PIPE_BYTES);
    let (stderr, stderr_end) = tokio::io::duplex(PIPE_BYTES);
    let pump = tokio::spawn(pump(output, stdout, stderr));
    let exit = async move {
        let leash = leash;
        let pumped = pump.await.unwrap_or(Ok(()));
        let code = client
            .inspect_exec(&made.id)
            .await
            .map(|found| found.exit_code);
        leash.release();
        match (pumped, code) {
            (_, Ok(Some(code))) => Ok(i32::try_from(code).unwrap_or(i32::MAX)),
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

/// Ends the command when nobody waits for it any more: the engine has no request for that, so its
/// process is held by a descriptor, which can't come to mean another process.
struct Leash(Option<OwnedFd>);

impl Leash {
    async fn of(client: &Docker, exec: &str) -> Self {
        let pid = client
            .inspect_exec(exec)
            .await
            .ok()
            .and_then(|found| found.pid);
        let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        Self(pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()))
    }

    fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            // It may have ended, or be another user's; then there is nothing to do.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}
