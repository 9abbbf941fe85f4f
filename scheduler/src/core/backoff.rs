//! Black holes: a node that fails everything at once is always free, and would swallow the queue.
//!
//! The core reads just enough of each passing INSTANCE_CHANGED to tell an end that was the node's
//! own fault from one that was not. Several such ends in a row, without one that went well between
//! them, take the node out of placement for a while that doubles; a node that has run something to
//! its end is trusted again.

use super::limits::{BACK_OFF_FIRST_MS, BACK_OFF_MAX_MS, FAULTS_BEFORE_BACK_OFF, FRESH_END_NS};
use super::outlet::Nanos;
use pronto_payloads::codec;
use pronto_payloads::instance::{InstanceReport, Phase};

/// How a node has done lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    in_a_row: u32,
    until: Option<Nanos>,
}

/// What an INSTANCE_CHANGED says about its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not an end, or one that says nothing: stopped, or told again.
    Nothing,
    /// The workload ran to an end of its own.
    RanToItsEnd,
    /// The node would not or could not run it.
    NodeFault,
}

/// Where the phase stands in an encoded [`InstanceReport`]: behind attempt id and version.
const PHASE_AT: usize = 16 + 16 + 4 + 8;
/// Where the tag of the end's cause stands, if there is an end: behind the phase and the option's
/// tag.
const CAUSE_AT: usize = PHASE_AT + 4 + 1;

/// Reads as little of a report as says it: two numbers, unless the node has a fault to it.
pub(crate) fn judge(report: &[u8], faults: Faults) -> Verdict {
    let number = |at: usize| -> Option<u32> {
        let bytes = report.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    if number(PHASE_AT) != Some(Phase::Ended as u32) {
        return Verdict::Nothing;
    }
    let verdict = match number(CAUSE_AT) {
        Some(0..=3) => Verdict::RanToItsEnd,
        Some(7 | 8) => Verdict::NodeFault,
        _ => Verdict::Nothing,
    };
    let matters = verdict == Verdict::NodeFault || faults.in_a_row > 0;
    if matters && !is_fresh(report) {
        Verdict::Nothing
    } else {
        verdict
    }
}

/// Ended reports are repeated until they are acknowledged; a repetition is no further fault.
fn is_fresh(report: &[u8]) -> bool {
    codec::decode::<InstanceReport>(report).is_ok_and(|report| {
        let ended = report.ended_after_ns.unwrap_or(report.age_ns);
        report.age_ns.saturating_sub(ended) < FRESH_END_NS
    })
}

impl Faults {
    /// Counts an end; true if the node is to be left alone from now on.
    pub(crate) fn note(&mut self, verdict: Verdict, now: Nanos) -> bool {
        match verdict {
            Verdict::Nothing => false,
            Verdict::RanToItsEnd => {
                *self = Self::default();
                false
            }
            Verdict::NodeFault => {
                self.in_a_row = self.in_a_row.saturating_add(1);
                let Some(doublings) = self.in_a_row.checked_sub(FAULTS_BEFORE_BACK_OFF) else {
                    return false;
                };
                // Ends of STARTs that were under way when it began do not prolong it.
                if self.is_backed_off(now) {
                    self.in_a_row -= 1;
                    return false;
                }
                let factor = 1_u64.checked_shl(doublings).unwrap_or(u64::MAX);
                let pause_ms = BACK_OFF_FIRST_MS
                    .saturating_mul(factor)
                    .min(BACK_OFF_MAX_MS);
                self.until = Some(now.plus_ms(pause_ms));
                true
            }
        }
    }

    /// Whether the node is left alone now.
    pub(crate) fn is_backed_off(&self, now: Nanos) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// When that ends, if it is so.
    pub(crate) const fn until(&self) -> Option<Nanos> {
        self.until
    }

    /// How many faults there were since the last success.
    pub(crate) const fn in_a_row(&self) -> u32 {
        self.in_a_row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pronto_payloads::ids::{Attempt, InstanceId, OwnerId, Version};
    use pronto_payloads::instance::{End, EndCause, Usage};
    use pronto_payloads::place::AttemptId;

    fn report(cause: Option<EndCause>, told_after_ns: u64) -> Vec<u8> {
        let ended = cause.is_some();
        let report = InstanceReport {
            id: AttemptId {
                owner: OwnerId([1; 16]),
                instance: InstanceId([2; 16]),
                attempt: Attempt(1),
            },
            version: Version(3),
            phase: if ended { Phase::Ended } else { Phase::Running },
            end: cause.map(|cause| End {
                cause,
                message: "in words".into(),
            }),
            age_ns: 5_000 + told_after_ns,
            started_after_ns: None,
            ended_after_ns: ended.then_some(5_000),
            usage: Usage::default(),
        };
        codec::encode(&report).to_vec()
    }

    /// What `judge` reads from the encoded numbers, said by name.
    fn verdict_of(cause: &EndCause) -> Verdict {
        match cause {
            EndCause::Exited { .. }
            | EndCause::Signaled { .. }
            | EndCause::OutOfMemory { .. }
            | EndCause::TimedOut => Verdict::RanToItsEnd,
            EndCause::Rejected | EndCause::NodeFailed => Verdict::NodeFault,
            EndCause::Stopped | EndCause::LeaseExpired | EndCause::CannotExecute { .. } => {
                Verdict::Nothing
            }
        }
    }

    fn causes() -> Vec<EndCause> {
        vec![
            EndCause::Exited { code: 0 },
            EndCause::Signaled { signal: 9 },
            EndCause::OutOfMemory {
                limit_mib: 1,
                peak_mib: 1,
            },
            EndCause::TimedOut,
            EndCause::Stopped,
            EndCause::LeaseExpired,
            EndCause::CannotExecute { code: 127 },
            EndCause::Rejected,
            EndCause::NodeFailed,
        ]
    }

    #[test]
    fn the_published_offsets_lead_to_the_cause() {
        for cause in causes() {
            let verdict = verdict_of(&cause);
            assert_eq!(
                judge(&report(Some(cause.clone()), 0), Faults::default()),
                verdict,
                "{cause:?}"
            );
        }
        assert_eq!(judge(&report(None, 0), Faults::default()), Verdict::Nothing);
        assert_eq!(judge(b"short", Faults::default()), Verdict::Nothing);
    }

    #[test]
    fn a_repeated_report_is_no_further_fault() {
        let old = report(Some(EndCause::Rejected), FRESH_END_NS);
        assert_eq!(judge(&old, Faults::default()), Verdict::Nothing);
    }

    #[test]
    fn the_pause_doubles_up_to_its_limit_and_ends_with_a_success() {
        let mut faults = Faults::default();
        let mut now = Nanos::default();
        let mut pauses_ms = Vec::new();
        for _ in 0..15 {
            if faults.note(Verdict::NodeFault, now) {
                let until = faults.until().unwrap();
                pauses_ms.push(until.since(now) / 1_000_000);
                // What was under way when the pause began changes nothing.
                assert!(!faults.note(Verdict::NodeFault, now));
                now = until;
                assert!(!faults.is_backed_off(now));
            }
        }
        assert_eq!(pauses_ms[..4], [1_000, 2_000, 4_000, 8_000]);
        assert_eq!(pauses_ms.last(), Some(&BACK_OFF_MAX_MS));
        faults.note(Verdict::RanToItsEnd, now);
        assert_eq!(faults, Faults::default());
    }
}
