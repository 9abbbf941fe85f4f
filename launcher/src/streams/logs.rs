//! An instance's log, from a point in time or from its last bytes, and on until its end.

use super::channel::Upward;
use super::{Context, Known};
use crate::logs::{LogReader, unix_ms};
use crate::runtime::Refused;
use pronto_payloads::stream::{Channel, LogsRequest, StreamEnd, StreamFailure};
use rustix::fs::inotify;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Output that is read in one go.
const BATCH_BYTES: usize = 256 * 1024;

/// Which chunks are wanted.
#[derive(Clone, Copy, Debug)]
struct Filter {
    stdout: bool,
    stderr: bool,
    since_unix_ms: u64,
}

impl Filter {
    fn wants(&self, channel: Channel, unix_ms: u64) -> bool {
        let channel = match channel {
            Channel::Stdout => self.stdout,
            Channel::Stderr => self.stderr,
            Channel::Stdin | Channel::File => false,
        };
        channel && unix_ms >= self.since_unix_ms
    }
}

pub(super) async fn serve(
    context: &Context,
    known: &Known,
    request: &LogsRequest,
    upward: &Upward,
) -> Result<StreamEnd, Refused> {
    let directory = context.data_dir.attempt(&known.job.id);
    let filter = Filter {
        stdout: request.stdout,
        stderr: request.stderr,
        since_unix_ms: request
            .since_ms
            .map_or(0, |ms| unix_ms().saturating_sub(ms)),
    };
    let changes = request
        .follow
        .then(|| Changes::of(&directory))
        .transpose()
        .map_err(refused)?;
    let mut skip_bytes = match request.tail_bytes {
        Some(tail_bytes) => {
            blocking(directory.clone(), move |path| {
                skip(path, filter, tail_bytes)
            })
            .await?
        }
        None => 0,
    };
    let mut reader = blocking(directory, LogReader::open).await?;
    loop {
        // Asked before the last look, so that nothing that came before the end is missed.
        let ended = known.ended.is_cancelled();
        loop {
            let (batch, back) = read_batch(reader, filter).await?;
            reader = back;
            if batch.is_empty() {
                break;
            }
            for (channel, bytes) in batch {
                let skipped = usize::try_from(skip_bytes)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                skip_bytes -= skipped as u64;
                if upward.data(channel, &bytes[skipped..]).await.is_err() {
                    return Ok(complete());
                }
            }
        }
        match &changes {
            Some(changes) if !ended => {
                tokio::select! {
                    changed = changes.next() => changed.map_err(refused)?,
                    () = known.ended.cancelled() => {}
                }
            }
            _ => return Ok(complete()),
        }
    }
}

const fn complete() -> StreamEnd {
    StreamEnd::Complete {
        code: None,
        sha256: Vec::new(),
    }
}

fn refused(error: io::Error) -> Refused {
    Refused::new(
        StreamFailure::Failed,
        format!("the log can't be read: {error}"),
    )
}

async fn blocking<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, Refused> {
    match tokio::task::spawn_blocking(move || work(&path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(Refused::new(
            StreamFailure::NotFound,
            "the instance's log is gone",
        )),
        Ok(outcome) => outcome.map_err(refused),
        Err(error) => Err(refused(error.into())),
    }
}

type Batch = Vec<(Channel, Vec<u8>)>;

async fn read_batch(mut reader: LogReader, filter: Filter) -> Result<(Batch, LogReader), Refused> {
    let read = tokio::task::spawn_blocking(move || {
        let (mut batch, mut total) = (Batch::new(), 0);
        while total < BATCH_BYTES {
            let mut bytes = Vec::new();
            let Some(chunk) = reader.next_chunk(&mut bytes)? else {
                break;
            };
            if chunk.dropped_bytes > 0 {
                let mark = format!(
                    "[pronto: {} bytes of older output were dropped]\n",
                    chunk.dropped_bytes
                );
                batch.push((Channel::Stderr, mark.into_bytes()));
            }
            if filter.wants(chunk.channel, chunk.unix_ms) {
                total += bytes.len();
                batch.push((chunk.channel, bytes));
            }
        }
        Ok((batch, reader))
    });
    match read.await {
        Ok(outcome) => outcome.map_err(refused),
        Err(error) => Err(refused(error.into())),
    }
}

/// How much of what is wanted lies before its last bytes.
fn skip(directory: &Path, filter: Filter, tail_bytes: u64) -> io::Result<u64> {
    let mut reader = LogReader::open(directory)?;
    let (mut bytes, mut total) = (Vec::new(), 0_u64);
    while let Some(chunk) = reader.next_chunk(&mut bytes)? {
        if filter.wants(chunk.channel, chunk.unix_ms) {
            total += bytes.len() as u64;
        }
    }
    Ok(total.saturating_sub(tail_bytes))
}

/// The kernel's word that something in a directory was written.
struct Changes {
    /// There until it is dropped.
    watched: Option<AsyncFd<OwnedFd>>,
}

impl Drop for Changes {
    fn drop(&mut self) {
        // Closing waits some milliseconds for a grace period of the kernel; no stream's end need.
        if let Some(watched) = self.watched.take() {
            let fd = watched.into_inner();
            tokio::task::spawn_blocking(move || drop(fd));
        }
    }
}

impl Changes {
    fn of(directory: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let what = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
        inotify::add_watch(&fd, directory, what)?;
        #[expect(
            deprecated,
            reason = "an OwnedFd keeps what its unsafe successor asks for"
        )]
        let watched = AsyncFd::with_interest(fd, Interest::READABLE)?;
        Ok(Self {
            watched: Some(watched),
        })
    }

    async fn next(&self) -> io::Result<()> {
        let Some(watched) = &self.watched else {
            return Ok(());
        };
        let mut ready = watched.readable().await?;
        let mut buffer = [0; 4096];
        // What changed is of no interest, only that something did.
        while rustix::io::read(watched.get_ref(), &mut buffer).is_ok_and(|length| length > 0) {}
        ready.clear_ready();
        Ok(())
    }
}
