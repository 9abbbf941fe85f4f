//! Connections that have not said anything yet, oldest first. Where there is no room for a newcomer,
//! the oldest of them goes: a client says its first word at once, so whoever has been silent for
//! longest is the least likely to be one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_util::sync::CancellationToken;

/// The list is cleared of those who have spoken when it has grown so much since the last time.
const SLACK: usize = 1024;

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

    /// Tells the one that has been silent for longest to go, if there is one.
    pub(crate) fn cut_oldest(&mut self) {
        while let Some(silence) = self.oldest_first.pop_front() {
            if silence.lasts() {
                silence.go.cancel();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_has_said_nothing_goes_first() {
        let mut silent = Silent::default();
        let [spoke, first, second] = [silent.add(), silent.add(), silent.add()];
        spoke.end();
        silent.cut_oldest();
        assert!(!spoke.go.is_cancelled() && first.go.is_cancelled());
        assert!(!second.go.is_cancelled());
        silent.cut_oldest();
        assert!(second.go.is_cancelled());
        silent.cut_oldest();
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
