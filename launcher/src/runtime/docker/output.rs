//! Copies a container's output from the engine into the attempt's own log.
//!
//! The engine stamps each message with a time in nanoseconds and gives messages back in order, so
//! a copy that was broken off (launcher restarted, engine away) goes on where it ended: from the
//! last copied time on, without the bytes that the log already has of it. What is copied carries
//! the engine's time, so that this also holds across restarts. The copy ends when the engine says
//! that nothing more will come.

use super::engine::{Engine, is_away};
use crate::logs::{CHUNK_BYTES, LogReader, LogWriter};
use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt;
use pronto_payloads::stream::Channel;
use std::path::{Path, PathBuf};

/// Where a copy stands: all of earlier milliseconds is in the log, and so many bytes of this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    unix_ms: u64,
    bytes: u64,
}

/// What to do with one message.
#[derive(Debug, PartialEq, Eq)]
struct Piece<'a> {
    unix_ms: u64,
    bytes: &'a [u8],
}

/// Skips what an earlier copy has written already, and keeps the position.
#[derive(Debug, Default)]
struct Resume {
    at: Position,
    /// The engine still repeats what the log has.
    repeating: bool,
    /// Bytes of `at.unix_ms` that are still to be skipped.
    skip: u64,
}

impl Resume {
    const fn new(at: Position) -> Self {
        Self {
            at,
            repeating: at.unix_ms > 0,
            skip: at.bytes,
        }
    }

    /// A message as the engine gives it: its time, a space, its bytes.
    fn message<'a>(&mut self, message: &'a [u8]) -> Option<Piece<'a>> {
        let (time, mut bytes) = split(message);
        let mut unix_ms = time.unwrap_or(self.at.unix_ms);
        if unix_ms < self.at.unix_ms {
            if self.repeating {
                return None;
            }
            // The clock was set back: order is what counts.
            unix_ms = self.at.unix_ms;
        }
        if unix_ms > self.at.unix_ms {
            *self = Self {
                at: Position { unix_ms, bytes: 0 },
                ..Self::default()
            };
        }
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        bytes = &bytes[usize::try_from(skipped).unwrap_or(bytes.len())..];
        if bytes.is_empty() {
            return None;
        }
        self.repeating = false;
        self.at.bytes += bytes.len() as u64;
        Some(Piece { unix_ms, bytes })
    }
}

/// The time in front of a message, and its bytes.
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

/// Where the log in a directory ends.
fn position(directory: &Path) -> std::io::Result<Position> {
    let mut reader = LogReader::open(directory)?;
    let (mut at, mut bytes) = (Position::default(), Vec::new());
    while let Some(chunk) = reader.next_chunk(&mut bytes)? {
        if chunk.unix_ms != at.unix_ms {
            at = Position {
                unix_ms: chunk.unix_ms,
                bytes: 0,
            };
        }
        at.bytes += bytes.len() as u64;
    }
    Ok(at)
}

/// The copy of one container's output.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) engine: Engine,
    pub(super) container: String,
    pub(super) directory: PathBuf,
    pub(super) cap_bytes: u64,
}

impl Copy {
    /// Copies until the container has ended and all of its output is in the log.
    pub(super) async fn run(self) {
        let mut writer = LogWriter::new(self.directory.clone(), self.cap_bytes);
        let started = writer.resume().and_then(|()| position(&self.directory));
        let mut resume = match started {
            Ok(at) => Resume::new(at),
            Err(error) => {
                tracing::warn!(container = %self.container, %error, "its log can't be continued");
                Resume::default()
            }
        };
        let mut complained = false;
        loop {
            match self.copy(&mut writer, &mut resume, &mut complained).await {
                Ok(()) => return,
                Err(error) if is_away(&error) => {
                    self.engine.suspect().await;
                    resume = Resume::new(resume.at);
                }
                Err(error) => {
                    // Removed under our hands; the attempt's own task finds out and says so.
                    tracing::debug!(container = %self.container, %error, "no more output");
                    return;
                }
            }
        }
    }

    async fn copy(
        &self,
        writer: &mut LogWriter,
        resume: &mut Resume,
        complained: &mut bool,
    ) -> Result<(), bollard::errors::Error> {
        let client = self.engine.up().await;
        let since = i32::try_from(resume.at.unix_ms / 1000).unwrap_or(i32::MAX);
        let options = LogsOptionsBuilder::new()
            .follow(true)
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .since(since)
            .build();
        let mut messages = client.logs(&self.container, Some(options));
        while let Some(message) = messages.next().await {
            let (channel, message) = match message? {
                LogOutput::StdErr { message } => (Channel::Stderr, message),
                LogOutput::StdOut { message }
                | LogOutput::StdIn { message }
                | LogOutput::Console { message } => (Channel::Stdout, message),
            };
            let Some(piece) = resume.message(&message) else {
                continue;
            };
            for chunk in piece.bytes.chunks(CHUNK_BYTES) {
                if let Err(error) = writer.append(channel, piece.unix_ms, chunk)
                    && !std::mem::replace(complained, true)
                {
                    // A full disk: what is read on is lost, the workload runs on.
                    tracing::warn!(container = %self.container, %error, "its log can't be written");
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(resume: &mut Resume, messages: &[&str]) -> String {
        messages
            .iter()
            .filter_map(|message| resume.message(message.as_bytes()))
            .map(|piece| String::from_utf8(piece.bytes.to_vec()).unwrap())
            .collect()
    }

    const MESSAGES: [&str; 4] = [
        "2026-01-01T00:00:00.001000001Z one\n",
        "2026-01-01T00:00:00.002000000Z two\n",
        "2026-01-01T00:00:00.002999999Z three\n",
        "2026-01-01T00:00:00.003000000Z four\n",
    ];

    #[test]
    fn a_copy_goes_on_where_it_was_broken_off() {
        let whole = "one\ntwo\nthree\nfour\n";
        let mut resume = Resume::default();
        assert_eq!(feed(&mut resume, &MESSAGES), whole);
        for broken_at in 0..=MESSAGES.len() {
            let mut first = Resume::default();
            let before = feed(&mut first, &MESSAGES[..broken_at]);
            // The engine repeats the whole second.
            let mut second = Resume::new(first.at);
            let after = feed(&mut second, &MESSAGES);
            assert_eq!(before + &after, whole, "broken at {broken_at}");
        }
    }

    #[test]
    fn the_position_survives_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(position(directory.path()).unwrap(), Position::default());
        let mut writer = LogWriter::new(directory.path().to_owned(), 1 << 20);
        for (ms, text) in [(5, "ab"), (7, "cde"), (7, "f")] {
            writer.append(Channel::Stdout, ms, text.as_bytes()).unwrap();
        }
        assert_eq!(
            position(directory.path()).unwrap(),
            Position {
                unix_ms: 7,
                bytes: 4
            }
        );
    }

    #[test]
    fn a_message_without_a_time_is_kept_whole() {
        assert_eq!(
            feed(&mut Resume::default(), &["no time here", "x"]),
            "no time herex"
        );
    }
}
