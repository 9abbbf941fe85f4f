//! Nanoseconds of one thing, many times.

use crate::bench::figures::{compared, micros, plain};
use crate::bench::{Row, nanoseconds};
use hdrhistogram::Histogram;
use std::time::Duration;

pub(super) struct Timings(Histogram<u64>);

impl Timings {
    pub(super) fn new() -> Self {
        Self(nanoseconds())
    }

    pub(super) fn note(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    pub(super) fn note_duration(&mut self, duration: Duration) {
        self.note(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn row(&self, name: &str, reference: Option<f64>) -> Row {
        let ms = |ns| micros(ns) / 1e3;
        let p50 = self.p50_ms();
        let row = match reference {
            Some(reference) => compared(name, "ms", p50, reference),
            None => plain(name, "ms", p50),
        };
        Row {
            p50: Some(p50),
            p99: Some(ms(self.0.value_at_quantile(0.99))),
            max: Some(ms(self.0.max())),
            ..row
        }
    }

    pub(super) fn p50_ms(&self) -> f64 {
        micros(self.0.value_at_quantile(0.5)) / 1e3
    }
}
