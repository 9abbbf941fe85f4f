//! What `/metrics` says.

use crate::planner::State;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use pronto_protocol::Frame;
use std::time::Duration;

type Labels = [(&'static str, &'static str); 1];

/// The counters of one daemon.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    instances: Family<Labels, Gauge>,
    waiting: Gauge,
    classes: Gauge,
    frames: Family<Labels, Counter>,
    commits: Counter,
    batches: Counter,
    commit_seconds: Histogram,
    requests: Family<[(&'static str, String); 2], Counter>,
    refused_connections: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("pronto_controller");
        let instances = Family::<Labels, Gauge>::default();
        registry.register("instances", "Living instances by state", instances.clone());
        let waiting = Gauge::default();
        registry.register("queue_entries", "Entries of the queue", waiting.clone());
        let classes = Gauge::default();
        registry.register(
            "demand_classes",
            "Distinct demands that live",
            classes.clone(),
        );
        let frames = Family::<Labels, Counter>::default();
        registry.register(
            "frames_sent",
            "Frames to the scheduler by operand",
            frames.clone(),
        );
        let commits = Counter::default();
        registry.register("commits", "Transactions of the store", commits.clone());
        let batches = Counter::default();
        registry.register("batches", "Batches of writes in them", batches.clone());
        // From a tenth of a millisecond to three seconds.
        let commit_seconds = Histogram::new(exponential_buckets(0.0001, 2.0, 15));
        registry.register_with_unit(
            "commit_duration",
            "How long a transaction took, its fsync included",
            Unit::Seconds,
            commit_seconds.clone(),
        );
        let requests = Family::<[(&'static str, String); 2], Counter>::default();
        registry.register("requests", "Requests by route and status", requests.clone());
        let refused_connections = Counter::default();
        registry.register(
            "refused_connections",
            "Connections that failed their handshake or were too many",
            refused_connections.clone(),
        );
        Self {
            registry,
            instances,
            waiting,
            classes,
            frames,
            commits,
            batches,
            commit_seconds,
            requests,
            refused_connections,
        }
    }
}

impl Metrics {
    pub(crate) fn note_instances(&self, state: &State) {
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (name, count) in state.instances_by_state() {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.instances
                .get_or_create(&[("state", name.name())])
                .set(count);
        }
        let (waiting, classes) = state.queue_sizes();
        self.waiting.set(signed(waiting));
        self.classes.set(signed(classes));
    }

    pub(crate) fn note_sent(&self, frames: &[Frame]) {
        for frame in frames {
            self.frames
                .get_or_create(&[("operand", frame.operand.name())])
                .inc();
        }
    }

    pub(crate) fn note_commit(&self, took: Duration, batches: usize) {
        self.commits.inc();
        self.batches.inc_by(batches as u64);
        self.commit_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn note_request(&self, route: &str, status: u16) {
        self.requests
            .get_or_create(&[("route", route.to_owned()), ("status", status.to_string())])
            .inc();
    }

    pub(crate) fn note_refused_connection(&self) {
        self.refused_connections.inc();
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _never = encode(&mut text, &self.registry);
        text
    }
}
