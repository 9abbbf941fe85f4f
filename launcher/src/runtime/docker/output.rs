//! Copies a container's output into the attempt's own log.
//!
//! From its start on the output comes over a live connection, which slows the container down when
//! the copy can't follow, so that nothing is lost unmarked. The engine keeps a copy of its own. Once
//! the connection is broken (the launcher restarted, the engine was away), the rest is read from
//! that copy: behind as many bytes of each stream as have been copied, which is exact while the
//! engine still has the beginning; from the last copied time on when much has been written, which
//! is exact to the millisecond.

use super::engine::{Engine, is_away};
use super::session::Output;
use crate::logs::{self, CHUNK_BYTES, LogReader, LogWriter};
use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt;
use pronto_payloads::stream::Channel;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Up to so much output the engine certainly still has the first byte: its own format takes up to
/// 80 times the space, of [`super::spec::ENGINE_LOG_BYTES`] twice.
const COUNTED_BYTES: u64 = 1024 * 1024;
/// Output that one container may write a second, after a burst, as for processes.
const BYTES_PER_S: u64 = 32 << 20;
/// What it may write at once.
const BURST_BYTES: u64 = 8 << 20;

/// What is known of a container's end, told to its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It runs, as far as anybody knows.
    Running,
    /// The engine was away: a connection to it that ended has told nothing.
    Interrupted,
    /// It has ended, under the eyes of an engine that was never away.
    Ended,
}

/// How much of each stream is in the log, and up to when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    stdout_bytes: u64,
    pub(super) stderr_bytes: u64,
    unix_ms: u64,
}

impl Position {
    const fn bytes_of(&mut self, channel: Channel) -> &mut u64 {
        match channel {
            Channel::Stderr => &mut self.stderr_bytes,
            _ => &mut self.stdout_bytes,
        }
    }

    const fn is_counted(&self) -> bool {
        self.stdout_bytes + self.stderr_bytes <= COUNTED_BYTES
    }

    /// Where the log in a directory ends. `own_bytes` of its standard error are not the
    /// container's.
    pub(super) fn of(directory: &Path, own_bytes: u64) -> std::io::Result<Self> {
        let mut reader = LogReader::open(directory)?;
        let (mut at, mut bytes) = (Self::default(), Vec::new());
        while let Some(chunk) = reader.next_chunk(&mut bytes)? {
            at.unix_ms = at.unix_ms.max(chunk.unix_ms);
            *at.bytes_of(chunk.channel) += bytes.len() as u64 + chunk.dropped_bytes;
        }
        at.stderr_bytes = at.stderr_bytes.saturating_sub(own_bytes);
        Ok(at)
    }
}

/// What of the engine's copy is to be passed over.
#[derive(Debug)]
enum Skip {
    Bytes(Position),
    Until { unix_ms: u64 },
}

impl Skip {
    const fn to(at: Position) -> Self {
        if at.is_counted() {
            Self::Bytes(at)
        } else {
            Self::Until {
                unix_ms: at.unix_ms,
            }
        }
    }

    /// The new part of a message.
    fn rest<'a>(&mut self, channel: Channel, unix_ms: u64, bytes: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Bytes(left) => {
                let left = left.bytes_of(channel);
                let skipped = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                *left -= skipped as u64;
                &bytes[skipped..]
            }
            Self::Until { unix_ms: until } if unix_ms <= *until => &[],
            Self::Until { .. } => bytes,
        }
    }
}

/// The time in front of a message of the engine's copy, and its bytes.
fn split(message: &[u8]) -> (Option<u64>, &[u8]) {
    let space = message.iter().take(48).position(|&byte| byte == b' ');
    let parsed = space.and_then(|at| {
        let time: jiff::Timestamp = std::str::from_utf8(&message[..at]).ok()?.parse().ok()?;
        Some((
            u64::try_from(time.as_millisecond()).ok()?,
            &message[at + 1..],
        ))
    });
    parsed.map_or((None, message), |(ms, rest)| (Some(ms), rest))
}

fn parts(message: LogOutput) -> (Channel, bytes::Bytes) {
    match message {
        LogOutput::StdErr { message } => (Channel::Stderr, message),
        LogOutput::StdOut { message }
        | LogOutput::StdIn { message }
        | LogOutput::Console { message } => (Channel::Stdout, message),
    }
}

/// The log, and how fast it may grow.
struct Sink {
    writer: LogWriter,
    at: Position,
    allowance_bytes: u64,
    allowed_at: Instant,
    complained: bool,
}

impl Sink {
    async fn write(&mut self, channel: Channel, unix_ms: u64, bytes: &[u8]) {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            self.pace(chunk.len() as u64).await;
            if let Err(error) = self.writer.append(channel, unix_ms, chunk)
                && !std::mem::replace(&mut self.complained, true)
            {
                // A full disk: what comes from here on is lost, the workload runs on.
                tracing::warn!(%error, "a container's log can't be written");
            }
        }
        *self.at.bytes_of(channel) += bytes.len() as u64;
        self.at.unix_ms = self.at.unix_ms.max(unix_ms);
    }

    /// Waits until so much may be written.
    async fn pace(&mut self, bytes: u64) {
        let elapsed_ms = u64::try_from(self.allowed_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let earned = (BYTES_PER_S / 1000).saturating_mul(elapsed_ms);
        if earned > 0 {
            self.allowance_bytes = self.allowance_bytes.saturating_add(earned).min(BURST_BYTES);
            self.allowed_at = Instant::now();
        }
        if self.allowance_bytes < bytes {
            let missing_ms = (bytes - self.allowance_bytes) / (BYTES_PER_S / 1000) + 1;
            let until = Instant::now() + Duration::from_millis(missing_ms);
            sleep_until(until).await;
            self.allowance_bytes = bytes;
            self.allowed_at = until;
        }
        self.allowance_bytes -= bytes;
    }
}

/// The copy of one container's output.
pub(super) struct Copy {
    pub(super) engine: Engine,
    pub(super) container: String,
    pub(super) directory: PathBuf,
    pub(super) cap_bytes: u64,
    /// Bytes of the log's standard error that the launcher itself has written.
    pub(super) own_bytes: u64,
    pub(super) fate: watch::Receiver<Fate>,
}

impl Copy {
    /// Copies until the container has ended and all of its output is in the log. `live`: its output
    /// from its start on, where this process started it.
    pub(super) async fn run(mut self, live: Option<Output>) {
        let mut writer = LogWriter::new(self.directory.clone(), self.cap_bytes);
        let at = writer.resume().and_then(|()| match live {
            Some(_) => Ok(Position::default()),
            None => Position::of(&self.directory, self.own_bytes),
        });
        let at = at.unwrap_or_else(|error| {
            tracing::warn!(container = %self.container, %error, "its log can't be continued");
            Position::default()
        });
        let mut sink = Sink {
            writer,
            at,
            allowance_bytes: BURST_BYTES,
            allowed_at: Instant::now(),
            complained: false,
        };
        if let Some(live) = live {
            self.follow(live, &mut sink).await;
            let fate = self.fate.wait_for(|fate| *fate != Fate::Running).await;
            if fate.is_ok_and(|fate| *fate == Fate::Ended) {
                return;
            }
        }
        loop {
            match self.catch_up(&mut sink).await {
                Ok(()) => return,
                Err(error) if is_away(&error) => self.engine.suspect().await,
                Err(error) => {
                    // Removed under our hands; the attempt's own task finds out and says so.
                    tracing::debug!(container = %self.container, %error, "no more output");
                    return;
                }
            }
        }
    }

    async fn follow(&self, mut live: Output, sink: &mut Sink) {
        while let Some(message) = live.next().await {
            match message {
                Ok(message) => {
                    let (channel, bytes) = parts(message);
                    sink.write(channel, logs::unix_ms(), &bytes).await;
                }
                Err(error) => {
                    tracing::debug!(container = %self.container, %error, "its output broke off");
                    return;
                }
            }
        }
    }

    /// Reads the engine's own copy, from where the log ends to the container's end.
    async fn catch_up(&self, sink: &mut Sink) -> Result<(), bollard::errors::Error> {
        let client = self.engine.up().await;
        let mut skip = Skip::to(sink.at);
        let since = match skip {
            Skip::Bytes(_) => 0,
            Skip::Until { unix_ms } => i32::try_from(unix_ms / 1000).unwrap_or(i32::MAX),
        };
        let options = LogsOptionsBuilder::new()
            .follow(true)
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .since(since)
            .build();
        let mut messages = client.logs(&self.container, Some(options));
        while let Some(message) = messages.next().await {
            let (channel, message) = parts(message?);
            let (time, bytes) = split(&message);
            let unix_ms = time.unwrap_or(sink.at.unix_ms);
            let rest = skip.rest(channel, unix_ms, bytes);
            sink.write(channel, unix_ms, rest).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_goes_on_behind_what_each_stream_has() {
        let messages = [
            (Channel::Stdout, "one\n"),
            (Channel::Stderr, "oh\n"),
            (Channel::Stdout, "two\n"),
        ];
        for (stdout_bytes, stderr_bytes, left) in [
            (0, 0, "one\noh\ntwo\n"),
            (4, 0, "oh\ntwo\n"),
            (6, 3, "o\n"),
            (8, 3, ""),
        ] {
            let mut skip = Skip::to(Position {
                stdout_bytes,
                stderr_bytes,
                unix_ms: 99,
            });
            let rest: Vec<u8> = messages
                .iter()
                .flat_map(|(channel, text)| skip.rest(*channel, 1, text.as_bytes()).to_vec())
                .collect();
            assert_eq!(String::from_utf8(rest).unwrap(), left);
        }
    }

    #[test]
    fn a_long_log_goes_on_by_time() {
        let mut skip = Skip::to(Position {
            stdout_bytes: COUNTED_BYTES + 1,
            stderr_bytes: 0,
            unix_ms: 5,
        });
        let kept = [4, 5, 6].map(|ms| skip.rest(Channel::Stdout, ms, b"x").len());
        assert_eq!(kept, [0, 0, 1]);
    }

    #[test]
    fn the_position_survives_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(
            Position::of(directory.path(), 0).unwrap(),
            Position::default()
        );
        let mut writer = LogWriter::new(directory.path().to_owned(), 1 << 20);
        writer
            .append(Channel::Stderr, 3, b"pronto: pulling\n")
            .unwrap();
        writer.append(Channel::Stdout, 5, b"ab").unwrap();
        writer.append(Channel::Stderr, 7, b"cde").unwrap();
        assert_eq!(
            Position::of(directory.path(), 16).unwrap(),
            Position {
                stdout_bytes: 2,
                stderr_bytes: 3,
                unix_ms: 7
            }
        );
    }

    #[test]
    fn times_are_told_from_bytes() {
        assert_eq!(
            split(b"2026-01-01T00:00:00.002999999Z a b"),
            (Some(1_767_225_600_002), &b"a b"[..])
        );
        assert_eq!(split(b"no time"), (None, &b"no time"[..]));
    }
}
