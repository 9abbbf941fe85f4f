//! What waits for the disk: writes that gather until the next batch leaves, and what follows once
//! they are durable.

use super::event::Effect;
use crate::store::{Batch, Write};
use pronto_payloads::ids::Version;
use pronto_payloads::place::AttemptId;
use std::collections::VecDeque;

/// What happens once a batch is durable.
#[derive(Debug)]
pub(crate) enum After {
    /// It may leave now.
    Effect(Effect),
    /// An admission: index of the submission.
    Admitted(u32),
    /// A raised attempt may be queued, unless something has happened to its instance since.
    Raised {
        seq: u64,
        attempt: u32,
        not_before_ns: i64,
        ack: Option<ToAck>,
    },
    /// The end of an instance.
    Ended { seq: u64, ack: Option<ToAck> },
    /// A stop that was promised may be carried out.
    Stop { seq: u64 },
    /// A term may be used.
    Activate,
}

/// A report to acknowledge to its node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ToAck {
    pub(crate) node: u32,
    pub(crate) id: AttemptId,
    pub(crate) version: Version,
}

/// The next batch, and what depends on those under way.
#[derive(Debug)]
pub(crate) struct Journal {
    next: u64,
    acknowledged: u64,
    writes: Vec<Write>,
    after: VecDeque<(u64, After)>,
}

impl Journal {
    pub(crate) const fn new() -> Self {
        Self {
            next: 1,
            acknowledged: 0,
            writes: Vec::new(),
            after: VecDeque::new(),
        }
    }

    pub(crate) fn write(&mut self, write: Write) {
        self.writes.push(write);
    }

    /// Holds something back until all that was written so far is durable.
    pub(crate) fn then(&mut self, after: After) {
        self.after.push_back((self.gathering(), after));
    }

    /// The batch that the writes so far belong to: the next one, or the last if none are waiting.
    fn gathering(&self) -> u64 {
        if self.writes.is_empty() {
            self.next - 1
        } else {
            self.next
        }
    }

    /// Whether something that was held back needs no batch that is still to come.
    pub(crate) fn take_batch(&mut self) -> Option<Batch> {
        if self.writes.is_empty() {
            return None;
        }
        let number = self.next;
        self.next += 1;
        Some(Batch {
            number,
            writes: std::mem::take(&mut self.writes),
        })
    }

    /// All batches up to this one are durable.
    pub(crate) fn acknowledge(&mut self, number: u64) {
        assert!(
            number < self.next,
            "the store answers only for what it was given"
        );
        self.acknowledged = self.acknowledged.max(number);
    }

    /// The next thing whose batch is durable.
    pub(crate) fn pop_ready(&mut self) -> Option<After> {
        let (number, _) = self.after.front()?;
        if *number > self.acknowledged {
            return None;
        }
        self.after.pop_front().map(|(_, after)| after)
    }
}
