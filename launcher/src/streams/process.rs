//! A command inside an instance, and an instance's own standard input.

use super::channel::{Inbound, Reader, Upward};
use super::{Context, Known};
use crate::runtime::{ExecSession, Refused, Runtime};
use pronto_payloads::stream::{Channel, StreamEnd, StreamFailure};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// One read of a pipe.
const READ_BYTES: usize = 32 * 1024;
/// After an instance's end, what its commands wrote last and how they ended may still be under way
/// for so long.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The runtime of an attempt that runs; waits for its start if that is still to come.
async fn running<'a>(context: &'a Context, known: &Known) -> Result<&'a Arc<dyn Runtime>, Refused> {
    tokio::select! {
        biased;
        () = known.ended.cancelled() => {
            return Err(Refused::new(StreamFailure::NotFound, "the instance has ended"));
        }
        () = known.started.cancelled() => {}
    }
    let kind = known.job.runtime();
    context
        .runtimes
        .of(kind)
        .ok_or_else(|| Refused::unsupported(kind, "be found on this node"))
}

pub(super) async fn exec(
    context: &Context,
    known: &Known,
    command: Vec<String>,
    upward: &Upward,
    reader: Reader,
) -> Result<StreamEnd, Refused> {
    let session = running(context, known)
        .await?
        .exec(known.job.id, command)
        .await?;
    tokio::select! {
        end = to_its_end(session, upward, reader) => end,
        // Dropping its session ends it, wherever it runs.
        () = outlived(known) => {
            let text = "the instance has ended, and the command with it";
            Err(Refused::new(StreamFailure::NotFound, text))
        }
    }
}

/// Until a command has no business here any more.
async fn outlived(known: &Known) {
    known.ended.cancelled().await;
    tokio::time::sleep(LAST_WORDS).await;
}

async fn to_its_end(
    session: ExecSession,
    upward: &Upward,
    reader: Reader,
) -> Result<StreamEnd, Refused> {
    let output = async {
        tokio::join!(
            pump(session.stdout, Channel::Stdout, upward),
            pump(session.stderr, Channel::Stderr, upward)
        )
    };
    let input = async {
        match session.stdin {
            Some(stdin) => match feed(stdin, reader).await {
                // A command that reads no more does not mind what is not read; its end, not its
                // input's, ends the stream.
                Ok(()) | Err(Unfed::ReadsNoMore(_)) => std::future::pending().await,
                // Dropping its session ends it.
                Err(unfed @ Unfed::CutOff(_)) => unfed.refused("command"),
            },
            None => std::future::pending().await,
        }
    };
    let mut exit = session.exit;
    let ended = async { (&mut exit).await };
    tokio::pin!(output, input, ended);
    let code = tokio::select! {
        biased;
        code = &mut ended => {
            // What it wrote before its end is still in the pipes.
            tokio::select! {
                _ = &mut output => {}
                refused = &mut input => return Err(refused),
            }
            code?
        }
        _ = &mut output => tokio::select! {
            code = &mut ended => code?,
            refused = &mut input => return Err(refused),
        },
        refused = &mut input => return Err(refused),
    };
    Ok(StreamEnd::Complete {
        code: Some(code),
        sha256: Vec::new(),
    })
}

pub(super) async fn stdin(
    context: &Context,
    known: &Known,
    reader: Reader,
) -> Result<StreamEnd, Refused> {
    let writer = running(context, known).await?.stdin(known.job.id).await?;
    tokio::select! {
        fed = feed(writer, reader) => fed.map_err(|unfed| unfed.refused("instance"))?,
        () = known.ended.cancelled() => {}
    }
    Ok(StreamEnd::Complete {
        code: None,
        sha256: Vec::new(),
    })
}

/// Reads until the end, sending what comes.
async fn pump(mut from: Box<dyn AsyncRead + Send + Unpin>, channel: Channel, upward: &Upward) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(length) = from.read(&mut buffer).await {
        if length == 0 || upward.data(channel, &buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Why not all of an input was fed.
enum Unfed {
    ReadsNoMore(io::Error),
    /// It ended before it was complete; why, where that was told.
    CutOff(String),
}

impl Unfed {
    fn refused(self, whose: &str) -> Refused {
        let text = match self {
            Self::ReadsNoMore(error) => format!("the {whose} reads no more: {error}"),
            Self::CutOff(why) => format!("the input of the {whose} was cut off: {why}"),
        };
        Refused::new(StreamFailure::Failed, text)
    }
}

/// Writes what comes until its end, then closes. What is cut off is not closed: a part of an input
/// must not pass for the whole.
async fn feed(mut to: Box<dyn AsyncWrite + Send + Unpin>, mut reader: Reader) -> Result<(), Unfed> {
    loop {
        match reader.next().await {
            Some(Inbound::Data(bytes)) => {
                let written = async {
                    to.write_all(&bytes).await?;
                    to.flush().await
                };
                written.await.map_err(Unfed::ReadsNoMore)?;
            }
            Some(Inbound::End(StreamEnd::Complete { .. })) => {
                return to.shutdown().await.map_err(Unfed::ReadsNoMore);
            }
            Some(Inbound::End(StreamEnd::Failed { text, .. })) => return Err(Unfed::CutOff(text)),
            None => return Err(Unfed::CutOff("the session has ended".to_owned())),
        }
    }
}
