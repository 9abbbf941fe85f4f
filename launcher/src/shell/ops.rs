//! Metrics, health and readiness.

use crate::moment::Moment;
use crate::supervisor::Supervisor;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use pronto_payloads::instance::{EndCause, InstanceReport, Phase};
use pronto_protocol::transport::OpsReply;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A main loop that has not turned for so long is not healthy.
const STALL: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cause {
    cause: &'static str,
}

/// What the ops endpoint shows. Written by the main loop, read by requests.
#[derive(Debug)]
pub(crate) struct Ops {
    registry: Registry,
    starts: Counter,
    ends: Family<Cause, Counter>,
    sessions: Counter,
    instances: Gauge,
    unacknowledged: Gauge,
    free_cpu_millis: Gauge,
    free_memory_mib: Gauge,
    free_disk_mib: Gauge,
    leased: AtomicBool,
    connected: AtomicBool,
    turned_at: AtomicU64,
}

impl Default for Ops {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("pronto_launcher");
        let starts = Counter::default();
        registry.register("starts", "STARTs that were received", starts.clone());
        let ends = Family::<Cause, Counter>::default();
        registry.register("ends", "attempts that have ended, by cause", ends.clone());
        let sessions = Counter::default();
        registry.register("sessions", "sessions that came up", sessions.clone());
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let instances = gauge("instances", "attempts that have not ended");
        let unacknowledged = gauge("unacknowledged", "ended attempts that wait for their owner");
        let free_cpu_millis = gauge(
            "free_cpu_millis",
            "thousandths of cores that are not promised",
        );
        let free_memory_mib = gauge("free_memory_mib", "memory that is not promised");
        let free_disk_mib = gauge("free_disk_mib", "disk that is not promised");
        Self {
            registry,
            starts,
            ends,
            sessions,
            instances,
            unacknowledged,
            free_cpu_millis,
            free_memory_mib,
            free_disk_mib,
            leased: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            turned_at: AtomicU64::new(Moment::now().0),
        }
    }
}

impl Ops {
    pub(crate) fn count_start(&self) {
        self.starts.inc();
    }

    pub(crate) fn count_session(&self) {
        self.sessions.inc();
    }

    /// Counts an end when it is reported first.
    pub(crate) fn count_end(&self, report: &InstanceReport) {
        if report.phase != Phase::Ended {
            return;
        }
        let cause = match report.end.as_ref().map(|end| &end.cause) {
            Some(EndCause::Exited { code: 0 }) => "succeeded",
            Some(EndCause::Exited { .. }) => "exited",
            Some(EndCause::Signaled { .. }) => "signaled",
            Some(EndCause::OutOfMemory { .. }) => "out_of_memory",
            Some(EndCause::TimedOut) => "timed_out",
            Some(EndCause::Stopped) => "stopped",
            Some(EndCause::LeaseExpired) => "lease_expired",
            Some(EndCause::CannotExecute { .. }) => "cannot_execute",
            Some(EndCause::Rejected) => "rejected",
            Some(EndCause::NodeFailed) | None => "node_failed",
        };
        self.ends.get_or_create(&Cause { cause }).inc();
    }

    /// Notes how the main loop is.
    pub(crate) fn observe(&self, now: Moment, core: &Supervisor) {
        let (all, ended) = core.counts();
        let free = core.free();
        self.instances
            .set(i64::try_from(all - ended).unwrap_or(i64::MAX));
        self.unacknowledged
            .set(i64::try_from(ended).unwrap_or(i64::MAX));
        self.free_cpu_millis.set(free.cpu_millis.into());
        self.free_memory_mib.set(free.memory_mib.into());
        self.free_disk_mib.set(free.disk_mib.into());
        self.connected.store(core.is_connected(), Ordering::Relaxed);
        self.leased
            .store(now < core.lease_until(), Ordering::Relaxed);
        self.turned_at.store(now.0, Ordering::Relaxed);
    }

    /// Answers a path.
    pub(crate) fn answer(&self, path: &str) -> Option<OpsReply> {
        match path {
            "/metrics" => {
                let mut text = String::new();
                match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
                    Ok(()) => Some(OpsReply::metrics(text)),
                    Err(error) => Some(OpsReply::text(500, format!("{error}\n"))),
                }
            }
            "/healthz" => {
                let turned_at = Moment(self.turned_at.load(Ordering::Relaxed));
                let silent = Moment::now().since(turned_at);
                Some(if silent > STALL {
                    OpsReply::text(
                        503,
                        format!("the main loop stands since {} s\n", silent.as_secs()),
                    )
                } else {
                    OpsReply::text(200, "ok\n")
                })
            }
            "/readyz" => {
                let connected = self.connected.load(Ordering::Relaxed);
                let leased = self.leased.load(Ordering::Relaxed);
                Some(match (connected, leased) {
                    (true, true) => OpsReply::text(200, "ready\n"),
                    (false, _) => OpsReply::text(503, "not connected to a scheduler\n"),
                    (true, false) => OpsReply::text(503, "no lease from the scheduler\n"),
                })
            }
            _ => None,
        }
    }
}
