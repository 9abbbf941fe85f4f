//! Connections that have not said anything yet, oldest first. Where there is no room for a newcomer,
//! the oldest of them goes: a client says its first word at once, so whoever has been silent for
//! longest is the least likely to be one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The list is cleared of those who have spoken when it has grown so much since the last time.
const SLACK: usize = 1024;
/// So many are cut in one beat. Who is cut may be back at once: to accept and to cut as fast as that
/// goes would take the processors from those who place.
const CUTS: u32 = 2;
const BEAT: Duration = Duration::from_millis(1);

/// Held by the connection: while it is silent it may be told to go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Silence {
    is_over: Arc<AtomicBool>,
    go: CancellationToken,
}

impl Silence {
    /// It has spoken, or is gone: it is nobody's to cut any more.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// Waits until the connection is told to go.
    pub(crate) async fn cut(&self) {
        self.go.cancelled().await;
    }

    fn lasts(&self) -> bool {
        !self.is_over.load(Ordering::Acquire)
    }
}

/// All that were silent when they were last looked at.
#[derive(Debug, Default)]
pub(crate) struct Silent {
    oldest_first: VecDeque<Silence>,
    cleared_to: usize,
    /// The end of the present beat, and what was cut in it.
    beat: Option<Instant>,
    cuts: u32,
}

impl Silent {
    /// A connection that has just been accepted.
    pub(crate) fn add(&mut self) -> Silence {
        if self.oldest_first.len() >= self.cleared_to + SLACK {
            self.oldest_first.retain(Silence::lasts);
            self.cleared_to = self.oldest_first.len();
        }
        let silence = Silence::default();
        self.oldest_first.push_back(silence.clone());
        silence
    }

    /// Tells the one that has been silent for longest to go, if there is one, when its turn comes.
    pub(crate) async fn cut_oldest(&mut self) {
        self.turn().await;
        while let Some(silence) = self.oldest_first.pop_front() {
            if silence.lasts() {
                silence.go.cancel();
                return;
            }
        }
    }

    async fn turn(&mut self) {
        let now = Instant::now();
        let over = match self.beat {
            Some(end) if now < end && self.cuts == CUTS => {
                tokio::time::sleep_until(end).await;
                Some(end)
            }
            Some(end) if now < end => None,
            _ => Some(now),
        };
        if let Some(from) = over {
            (self.beat, self.cuts) = (Some(from + BEAT), 0);
        }
        self.cuts += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_that_has_said_nothing_goes_first() {
        let mut silent = Silent::default();
        let [spoke, first, second] = [silent.add(), silent.add(), silent.add()];
        spoke.end();
        silent.cut_oldest().await;
        assert!(!spoke.go.is_cancelled() && first.go.is_cancelled());
        assert!(!second.go.is_cancelled());
        silent.cut_oldest().await;
        assert!(second.go.is_cancelled());
        silent.cut_oldest().await;
    }

    #[tokio::test]
    async fn those_who_come_back_at_once_are_cut_at_a_steady_pace() {
        let mut silent = Silent::default();
        let began = Instant::now();
        for _ in 0..100 {
            silent.add();
            silent.cut_oldest().await;
        }
        let took = began.elapsed();
        assert!(took >= BEAT * (100 / CUTS - 1), "{took:?}");
    }

    #[test]
    fn those_who_have_spoken_are_forgotten() {
        let mut silent = Silent::default();
        for _ in 0..100_000 {
            silent.add().end();
        }
        assert!(silent.oldest_first.len() <= SLACK);
    }
}
