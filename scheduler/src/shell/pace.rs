//! When launchers are flushed: in the turn that gave them something, or once a millisecond while
//! STARTs come in a stream.
//!
//! Each turn of a stream tells each of many launchers little, and a system call for each of them
//! costs more than all the rest. A batch that comes once, or one START at a time, is passed on at
//! once; answers to controllers always are.

use std::time::{Duration, Instant};

/// STARTs in one turn that make it a burst ...
const BURST_STARTS: u64 = 16;
/// ... and bursts that follow each other within this are a stream.
const STREAM_GAP: Duration = Duration::from_micros(250);
/// How long launchers may wait for their STARTs in a stream: it bounds what batching adds to the
/// latency, and is far below what a launcher needs to start anything.
pub(crate) const STREAM_DELAY: Duration = Duration::from_millis(1);

/// Whether STARTs come in a stream, and how long launchers have waited because of it.
#[derive(Debug)]
pub(crate) struct Pace {
    starts: u64,
    last_burst: Instant,
    is_stream: bool,
    waiting_since: Option<Instant>,
}

impl Pace {
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            starts: 0,
            last_burst: now,
            is_stream: false,
            waiting_since: None,
        }
    }

    /// Whether launchers have been told to wait.
    pub(crate) const fn is_holding_back(&self) -> bool {
        self.waiting_since.is_some()
    }

    /// At the end of a turn that leaves launchers something to be told: whether they wait a little
    /// longer. `starts` counts all STARTs so far.
    pub(crate) fn holds_back(&mut self, now: Instant, starts: u64) -> bool {
        let gap = now.saturating_duration_since(self.last_burst);
        if starts - std::mem::replace(&mut self.starts, starts) >= BURST_STARTS {
            self.is_stream = gap < STREAM_GAP;
            self.last_burst = now;
        } else if gap >= STREAM_GAP {
            self.is_stream = false;
        }
        let since = *self.waiting_since.get_or_insert(now);
        let holds = self.is_stream && now.saturating_duration_since(since) < STREAM_DELAY;
        if !holds {
            self.waiting_since = None;
        }
        holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_micros(100);

    #[test]
    fn single_starts_and_single_batches_do_not_wait() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for starts in 1..100 {
            now += TURN;
            assert!(!pace.holds_back(now, starts));
        }
        now += STREAM_GAP;
        assert!(!pace.holds_back(now, 10_000));
        assert!(!pace.is_holding_back());
    }

    #[test]
    fn in_a_stream_nobody_waits_longer_than_the_delay() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut starts = 0;
        let mut flushed_at = now;
        let mut flushes = 0;
        for _ in 0..1_000 {
            now += TURN;
            starts += BURST_STARTS;
            if !pace.holds_back(now, starts) {
                assert!(now - flushed_at <= STREAM_DELAY + 2 * TURN);
                flushed_at = now;
                flushes += 1;
            }
        }
        assert!((90..=110).contains(&flushes), "{flushes}");
        // It ends: the next turn that has anything to tell finds no stream.
        now += STREAM_GAP;
        assert!(!pace.holds_back(now, starts));
    }
}
