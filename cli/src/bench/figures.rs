//! Rows from measurements: plain, beside a reference, medians and percentiles.

use super::Row;
use hdrhistogram::Histogram;

/// A figure on its own.
pub(super) fn plain(name: &str, unit: &str, value: f64) -> Row {
    Row {
        name: name.to_owned(),
        unit: unit.to_owned(),
        value,
        ..Row::default()
    }
}

/// A figure beside its reference.
pub(super) fn compared(name: &str, unit: &str, value: f64, reference: f64) -> Row {
    Row {
        reference: Some(reference),
        ratio: (reference > 0.0).then(|| value / reference),
        ..plain(name, unit, value)
    }
}

/// Percentiles of nanoseconds, in microseconds; the ratio is of the medians.
pub(super) fn latency(name: &str, ours: &Histogram<u64>, reference: &Histogram<u64>) -> Row {
    let at = |quantile| micros(ours.value_at_quantile(quantile));
    Row {
        p50: Some(at(0.5)),
        p99: Some(at(0.99)),
        max: Some(micros(ours.max())),
        ..compared(
            name,
            "µs",
            at(0.5),
            micros(reference.value_at_quantile(0.5)),
        )
    }
}

/// Nanoseconds as microseconds.
pub(super) fn micros(nanos: u64) -> f64 {
    as_f64(nanos) / 1000.0
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts and nanoseconds of a bench stay far below 2^52"
)]
pub(super) fn as_f64(value: u64) -> f64 {
    value as f64
}

/// Repeated measurements of one figure.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle one; not a number where there is none.
    pub(super) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}
