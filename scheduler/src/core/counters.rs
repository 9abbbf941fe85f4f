//! What the core counts: plain integers, read by the shell when somebody scrapes.

use pronto_payloads::place::Refusal;
use pronto_protocol::Operand;

/// Buckets of the search-time histogram: below 2^6, 2^7, … 2^20 ns, and the rest.
pub const SEARCH_BUCKETS: usize = 16;
/// The exponent of the first bucket's bound.
const FIRST_BOUND_LOG2: u32 = 6;
/// One search in so many is timed: two readings of the clock cost as much as a search.
const SAMPLE_EVERY: u64 = 32;

/// Since the start.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Frames taken in, by operand in the order of [`Operand::ALL`].
    pub frames: [u64; Operand::ALL.len()],
    pub starts: u64,
    pub placed: u64,
    /// By [`Refusal`], in the order of declaration.
    pub refused: [u64; REFUSALS.len()],
    /// Sessions refused or ended by the core.
    pub sessions_refused: u64,
    /// Controllers cut because they did not keep up.
    pub controllers_cut: u64,
    /// What launchers said that could not be true, decoded or forwarded.
    pub bad_statuses: u64,
    /// Frames to an owner of which no controller is connected.
    pub undeliverable: u64,
    /// Times that a node was put into back-off.
    pub back_offs: u64,
    /// Sampled search times, each bucket apart.
    pub search: [u64; SEARCH_BUCKETS],
    /// Their sum.
    pub search_sum_ns: u64,
}

/// All refusals, in the order of declaration.
pub(crate) const REFUSALS: [Refusal; 8] = [
    Refusal::CloudFull,
    Refusal::NoNodes,
    Refusal::NeverFits,
    Refusal::Warming,
    Refusal::NotActive,
    Refusal::StaleEpoch,
    Refusal::Malformed,
    Refusal::Busy,
];

impl Default for Counters {
    fn default() -> Self {
        Self {
            frames: [0; Operand::ALL.len()],
            starts: 0,
            placed: 0,
            refused: [0; REFUSALS.len()],
            sessions_refused: 0,
            controllers_cut: 0,
            bad_statuses: 0,
            undeliverable: 0,
            back_offs: 0,
            search: [0; SEARCH_BUCKETS],
            search_sum_ns: 0,
        }
    }
}

impl Counters {
    /// Refusals with their counts.
    pub fn refusals(&self) -> impl Iterator<Item = (Refusal, u64)> + '_ {
        REFUSALS.into_iter().zip(self.refused)
    }

    /// The upper bound of a search-time bucket in nanoseconds; none for the last.
    #[must_use]
    pub fn search_bound_ns(bucket: usize) -> Option<u64> {
        (bucket + 1 < SEARCH_BUCKETS).then(|| 1 << (FIRST_BOUND_LOG2 as usize + bucket))
    }

    /// Whether the next search is one of those that are timed.
    pub(crate) const fn samples_this_start(&self) -> bool {
        self.starts.is_multiple_of(SAMPLE_EVERY)
    }

    pub(crate) fn note_search(&mut self, took_ns: u64) {
        let log2 = u64::BITS - took_ns.leading_zeros();
        let bucket = log2.saturating_sub(FIRST_BOUND_LOG2) as usize;
        self.search[bucket.min(SEARCH_BUCKETS - 1)] += 1;
        self.search_sum_ns += took_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_time_lands_below_its_bound() {
        for took_ns in [0, 1, 63, 64, 100, 127, 128, 5_000, 1 << 19, 1 << 40] {
            let mut counters = Counters::default();
            counters.note_search(took_ns);
            let bucket = counters
                .search
                .iter()
                .position(|count| *count == 1)
                .unwrap();
            assert!(Counters::search_bound_ns(bucket).is_none_or(|bound| took_ns < bound));
            let below = bucket.checked_sub(1).and_then(Counters::search_bound_ns);
            assert!(below.is_none_or(|bound| took_ns >= bound), "{took_ns}");
        }
    }

    #[test]
    fn refusals_stand_in_the_order_of_their_codes() {
        for (code, refusal) in REFUSALS.into_iter().enumerate() {
            assert_eq!(refusal as usize, code);
        }
    }
}
