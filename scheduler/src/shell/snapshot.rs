//! What the frame thread publishes once a second, and how the ops port tells it.
//!
//! The hot path increments plain integers of its own; a scrape reads a copy of them that is at most
//! a second old, and never waits for the frame thread.

use super::breaches::Breaches;
use super::registry::Registry;
use super::sessions::Sessions;
use crate::core::{Broker, Counters, SEARCH_BUCKETS};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry as Metrics;
use pronto_protocol::transport::OpsReply;
use pronto_protocol::{Operand, Purpose, Role};
use std::fmt::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A frame thread that has published nothing for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// The state of one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    at: Instant,
    uptime: Duration,
    counters: Counters,
    sessions: usize,
    queued_bytes: usize,
    nodes: usize,
    candidates: usize,
    controllers: usize,
    placing: bool,
    term: u64,
    generation: u64,
    connections_refused: u64,
    sessions_broken: u64,
}

impl Snapshot {
    pub(crate) fn of(
        broker: &Broker,
        sessions: &Sessions,
        breaches: &Breaches,
        uptime: Duration,
    ) -> Self {
        let (connections_refused, sessions_broken) = breaches.counts();
        Self {
            connections_refused,
            sessions_broken,
            at: Instant::now(),
            uptime,
            counters: broker.counters().clone(),
            sessions: sessions.len(),
            queued_bytes: sessions.queued_bytes(),
            nodes: broker.node_count(),
            candidates: broker.candidate_count(),
            controllers: broker.controller_count(),
            placing: broker.is_placing(),
            term: broker.term().0,
            generation: broker.generation().0,
        }
    }
}

/// The last snapshot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Published(Arc<Mutex<Option<Snapshot>>>);

impl Published {
    pub(crate) fn publish(&self, snapshot: Snapshot) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(snapshot);
    }

    fn latest(&self) -> Option<Snapshot> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Answers a path of the ops port.
    pub(crate) fn answer(&self, path: &str, registry: &Registry) -> Option<OpsReply> {
        let latest = self.latest();
        let lively = latest
            .as_ref()
            .filter(|snapshot| snapshot.at.elapsed() < STUCK_AFTER);
        match path {
            "/metrics" => Some(metrics(latest?, registry)),
            "/healthz" => Some(match lively {
                Some(_) => OpsReply::text(200, "ok\n"),
                None => OpsReply::text(503, "the frame thread has said nothing for 5 s\n"),
            }),
            "/readyz" => Some(match lively {
                Some(snapshot) if snapshot.placing => OpsReply::text(200, "placing\n"),
                Some(snapshot) if snapshot.term > 0 => OpsReply::text(200, "warming up\n"),
                Some(_) => OpsReply::text(200, "standby\n"),
                None => OpsReply::text(503, "not serving\n"),
            }),
            "/sessions" => Some(OpsReply::text(200, registry.table())),
            _ => None,
        }
    }
}

fn metrics(snapshot: Snapshot, registry: &Registry) -> OpsReply {
    let mut metrics = Metrics::with_prefix("pronto_scheduler");
    let roles = [Role::Launcher, Role::Controller];
    let counted = roles.into_iter().flat_map(|role| {
        [Purpose::Control, Purpose::Bulk]
            .map(|purpose| (role, purpose, registry.count(role, purpose)))
    });
    let by_role = counted.collect();
    metrics.register_collector(Box::new(Scrape { snapshot, by_role }));
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &metrics) {
        Ok(()) => OpsReply::metrics(text),
        Err(Error) => OpsReply::text(500, "metrics can't be encoded\n"),
    }
}

#[derive(Debug)]
struct Scrape {
    snapshot: Snapshot,
    by_role: Vec<(Role, Purpose, usize)>,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Snapshot { counters, .. } = &self.snapshot;
        let counts: [(&str, &str, u64); 10] = [
            ("starts", "STARTs read", counters.starts),
            ("placements", "STARTs placed", counters.placed),
            (
                "sessions_refused",
                "Sessions refused",
                counters.sessions_refused,
            ),
            (
                "connections_refused",
                "Connections that did not come as far as HELLO",
                self.snapshot.connections_refused,
            ),
            (
                "sessions_broken",
                "Sessions ended because the peer broke the protocol",
                self.snapshot.sessions_broken,
            ),
            (
                "controllers_cut",
                "Controllers cut as too slow",
                counters.controllers_cut,
            ),
            (
                "bad_statuses",
                "Statuses that were not accepted",
                counters.bad_statuses,
            ),
            (
                "undeliverable",
                "Frames for absent controllers",
                counters.undeliverable,
            ),
            ("back_offs", "Nodes put into back-off", counters.back_offs),
            (
                "capacity_generation",
                "Times that capacity has grown",
                self.snapshot.generation,
            ),
        ];
        for (name, help, count) in counts {
            let counter = ConstCounter::new(count);
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            counter.encode(metric)?;
        }
        let help = "STARTs refused, by reason";
        let mut refusals =
            encoder.encode_descriptor("refusals", help, None, MetricType::Counter)?;
        for (refusal, count) in counters.refusals() {
            let labels = [("reason", format!("{refusal:?}"))];
            ConstCounter::new(count).encode(refusals.encode_family(&labels)?)?;
        }
        let help = "Frames taken in, by kind and operand";
        let mut frames = encoder.encode_descriptor("frames", help, None, MetricType::Counter)?;
        for (operand, count) in Operand::ALL.iter().zip(counters.frames) {
            if count > 0 {
                let labels = [("kind", operand.kind().name()), ("operand", operand.name())];
                ConstCounter::new(count).encode(frames.encode_family(&labels)?)?;
            }
        }
        self.encode_gauges(&mut encoder)?;
        let help = "Search time of one START in 32, in seconds";
        let search =
            encoder.encode_descriptor("search_seconds", help, None, MetricType::Histogram)?;
        SearchTimes(counters).encode(search)
    }
}

impl Scrape {
    fn encode_gauges(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let Snapshot {
            sessions,
            queued_bytes,
            nodes,
            candidates,
            controllers,
            placing,
            ..
        } = self.snapshot;
        let uptime_s = self.snapshot.uptime.as_secs();
        let gauges: [(&str, &str, u64); 8] = [
            ("open_sessions", "Sessions of all kinds", sessions as u64),
            (
                "queued_bytes",
                "Bytes that wait to be written",
                queued_bytes as u64,
            ),
            ("nodes", "Connected launchers", nodes as u64),
            (
                "candidate_nodes",
                "Launchers that placement may choose",
                candidates as u64,
            ),
            ("controllers", "Connected controllers", controllers as u64),
            ("placing", "1 while placements are made", u64::from(placing)),
            ("term", "Term of the last activation", self.snapshot.term),
            ("uptime_seconds", "Since the start", uptime_s),
        ];
        for (name, help, value) in gauges {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        let help = "Sessions by role and purpose";
        let mut sessions = encoder.encode_descriptor("sessions", help, None, MetricType::Gauge)?;
        for (role, purpose, count) in &self.by_role {
            let labels = [("role", role.name()), ("purpose", purpose.name())];
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(sessions.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// The sampled search times as a histogram.
struct SearchTimes<'a>(&'a Counters);

impl EncodeMetric for SearchTimes<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        let seconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64();
        let buckets: Vec<(f64, u64)> = (0..SEARCH_BUCKETS)
            .map(|bucket| {
                let bound = Counters::search_bound_ns(bucket).map_or(f64::INFINITY, seconds);
                (bound, self.0.search[bucket])
            })
            .collect();
        let count = self.0.search.iter().sum();
        let sum = seconds(self.0.search_sum_ns);
        encoder
            .encode_histogram::<prometheus_client::encoding::NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
