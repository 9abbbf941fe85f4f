//! A cluster trace as START frames against a real scheduler with simulated launchers.
//!
//! The scheduler is the real binary in a process of its own; the launchers and the controller are
//! clients in this process, one TLS session each, that speak the protocol as PROTOCOL.md has it. A
//! launcher here keeps a ledger and reports from it, and runs nothing. What arrives is shuffled,
//! then drawn again, until all GPUs of the cluster have been asked for once, as in the paper on
//! FGD; nothing departs and nothing is tried twice.
//!
//! Each START is followed to its launcher: one that was answered PLACED and did not arrive there
//! exactly once is lost, and a launcher whose ledger goes below zero is a broken promise.

mod controller;
mod launcher;
mod rig;

use crate::exit::{Exit, Failure};
use crate::output::terminal;
use crate::units;
use anyhow::{Context, anyhow};
use controller::{Controller, Sent};
use hdrhistogram::Histogram;
use launcher::Launcher;
use pronto_payloads::demand::Capacity;
use pronto_payloads::ids::{InstanceId, OwnerId};
use pronto_protocol::transport::Credentials;
use pronto_protocol::{Role, SessionConfig, Timeouts};
use pronto_scheduler::replay::{Rng, Trace};
use rig::{Rig, Server};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};
use tokio::task::LocalSet;

/// Handshakes under way at once: both ends of each are on this machine.
const DIALING: usize = 64;
/// A whole cluster connects at once, so a handshake may have to wait for its turn.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// What was placed has this long to reach its launcher before it counts as lost.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(5);
const OWNER: OwnerId = OwnerId([0xd; 16]);
const GPU: u64 = 1000;

/// What the replay found.
#[derive(Debug, Serialize)]
pub(super) struct TraceReport {
    source: String,
    nodes: usize,
    gpus: usize,
    starts: u64,
    placed: u64,
    refused: BTreeMap<String, u64>,
    /// Without an answer, or placed and not received exactly once.
    lost: u64,
    /// Launchers that were promised more than they have.
    broken_promises: u64,
    connect_ms: u64,
    starts_per_second: f64,
    dispatch_p50_us: f64,
    dispatch_p99_us: f64,
    gpu_allocation_percent: f64,
    cpu_allocation_percent: f64,
    memory_allocation_percent: f64,
}

impl TraceReport {
    pub(super) fn is_sound(&self) -> bool {
        self.lost == 0 && self.broken_promises == 0 && self.placed > 0
    }
}

impl fmt::Display for TraceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connect = units::show_duration(Duration::from_millis(self.connect_ms));
        let refused: Vec<String> = self
            .refused
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        let refused = if refused.is_empty() {
            "none".to_owned()
        } else {
            refused.join(", ")
        };
        writeln!(f, "trace: {}", self.source)?;
        writeln!(
            f,
            "  {} simulated launchers with {} GPUs, connected in {connect}",
            self.nodes, self.gpus
        )?;
        writeln!(
            f,
            "  {} STARTs: {} placements, {refused} refused, {} lost, {} broken promises",
            self.starts, self.placed, self.lost, self.broken_promises
        )?;
        writeln!(
            f,
            "  dispatch latency p50 {:.0} µs, p99 {:.0} µs from START sent to START received, one \
             at a time ({:.0}/s)",
            self.dispatch_p50_us, self.dispatch_p99_us, self.starts_per_second
        )?;
        writeln!(
            f,
            "  allocated when all GPUs were asked for once: {:.1} % of GPUs, {:.1} % of CPUs, \
             {:.1} % of memory",
            self.gpu_allocation_percent,
            self.cpu_allocation_percent,
            self.memory_allocation_percent
        )
    }
}

/// Replays a trace.
pub(super) async fn run(
    directory: &Path,
    trace: Trace,
    source: String,
    seed: u64,
) -> Result<TraceReport, Failure> {
    let directory = directory.join("trace");
    terminal::note(&format!(
        "replaying a trace on {} simulated launchers",
        trace.nodes.len()
    ));
    let rig = Rig::new(&directory)?;
    let server = Server::start(&rig)?;
    let report = LocalSet::new()
        .run_until(replay(&rig, &server, trace, source, seed))
        .await?;
    Ok(report)
}

/// What all launchers note together.
#[derive(Default)]
struct Notes {
    /// When each START reached a launcher; twice is a fault.
    received: RefCell<HashMap<InstanceId, (Instant, u32)>>,
    connected: Cell<usize>,
    broken_promises: Cell<u64>,
    /// A launcher has received STARTs and reported them.
    reported: Notify,
}

impl Notes {
    /// Waits until this START has reached its launcher and been reported, so that the next one
    /// meets a calm cluster, as in the simulations. What never arrives is counted in the end.
    async fn reported(&self, instance: InstanceId) {
        let arrival = async {
            loop {
                let reported = self.reported.notified();
                if self.received.borrow().contains_key(&instance) {
                    return;
                }
                reported.await;
            }
        };
        let _ = tokio::time::timeout(ARRIVAL_LIMIT, arrival).await;
    }
}

async fn replay(
    rig: &Rig,
    server: &Server,
    mut trace: Trace,
    source: String,
    seed: u64,
) -> Result<TraceReport, Failure> {
    let notes = Rc::new(Notes::default());
    // The nodes of a cluster come up in no order that has to do with their kind; a trace's list is
    // sorted by it, and a first fit follows the order of connecting.
    Rng::new(!seed).shuffle(&mut trace.nodes);
    let mut credentials = Vec::with_capacity(trace.nodes.len());
    for number in 0..trace.nodes.len() {
        let files = rig.files(Role::Launcher, &node_name(number))?;
        credentials.push(Credentials::load(&files).context("a simulated node's certificate")?);
    }
    let begun = Instant::now();
    let dialing = Rc::new(Semaphore::new(DIALING));
    let mut launchers = Vec::with_capacity(trace.nodes.len());
    for ((number, node), credentials) in trace.nodes.iter().enumerate().zip(credentials) {
        let launcher = Launcher::new(number, node, notes.clone());
        let (address, dialing) = (server.address.clone(), dialing.clone());
        launchers.push(tokio::task::spawn_local(async move {
            let permit = dialing.acquire().await;
            launcher.live(&address, &credentials, permit.ok()).await
        }));
    }
    while notes.connected.get() < trace.nodes.len() {
        if let Some(ended) = launchers.iter().position(|task| task.is_finished()) {
            let outcome = launchers.swap_remove(ended).await;
            let error = outcome
                .map_err(anyhow::Error::from)
                .and_then(|outcome| outcome)
                .err();
            let error = error.unwrap_or_else(|| anyhow!("it ended"));
            return Err(error
                .context("a simulated launcher could not connect")
                .into());
        }
        if begun.elapsed() > PATIENCE {
            let what = format!(
                "{} of {} launchers connected",
                notes.connected.get(),
                trace.nodes.len()
            );
            return Err(Failure::new(Exit::TimedOut, what));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    let connect_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let files = rig.files(Role::Controller, "controller")?;
    let mut controller =
        Controller::connect(server, &files, trace.nodes.len(), notes.clone()).await?;
    let sent = controller.send_all(&trace, seed).await?;
    let report = settle(&trace, &notes, &sent, source, connect_ms).await?;
    for launcher in launchers {
        launcher.abort();
    }
    Ok(report)
}

/// Waits until what was placed has arrived, and counts.
async fn settle(
    trace: &Trace,
    notes: &Notes,
    sent: &Sent,
    source: String,
    connect_ms: u64,
) -> Result<TraceReport, Failure> {
    let begun = Instant::now();
    while notes.received.borrow().len() < sent.placed.len() && begun.elapsed() < ARRIVAL_LIMIT {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    let received = notes.received.borrow();
    let mut latency = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)
        .context("the bounds are constants")?;
    let mut lost = sent.unanswered;
    let (mut gpu, mut cpu, mut memory) = (0, 0, 0);
    for (instance, (at, task)) in &sent.placed {
        let demand = &trace.tasks[*task].demand;
        gpu += u64::from(demand.gpu_total_millis());
        cpu += u64::from(demand.cpu_millis);
        memory += u64::from(demand.memory_mib);
        match received.get(instance) {
            Some((arrived, 1)) => {
                let nanos = arrived.saturating_duration_since(*at).as_nanos();
                latency.saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
            }
            _ => lost += 1,
        }
    }
    // One that arrived without having been placed was promised to nobody: lost just as well.
    lost += received
        .keys()
        .filter(|instance| !sent.placed.contains_key(*instance))
        .count() as u64;
    let total = |of: fn(&Capacity) -> u64| -> u64 {
        trace.nodes.iter().map(|node| of(&node.capacity)).sum()
    };
    let gpus = total(gpu_millis);
    Ok(TraceReport {
        source,
        nodes: trace.nodes.len(),
        gpus: usize::try_from(gpus / GPU).unwrap_or(usize::MAX),
        starts: sent.count,
        placed: sent.placed.len() as u64,
        refused: sent.refused.clone(),
        lost,
        broken_promises: notes.broken_promises.get(),
        connect_ms,
        starts_per_second: sent.count as f64 / sent.took.as_secs_f64(),
        dispatch_p50_us: latency.value_at_quantile(0.5) as f64 / 1000.0,
        dispatch_p99_us: latency.value_at_quantile(0.99) as f64 / 1000.0,
        gpu_allocation_percent: percent(gpu, gpus),
        cpu_allocation_percent: percent(cpu, total(|capacity| capacity.cpu_millis.into())),
        memory_allocation_percent: percent(memory, total(|capacity| capacity.memory_mib.into())),
    })
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        100.0 * part as f64 / whole as f64
    }
}

fn node_name(number: usize) -> String {
    format!("sim-{number:05}")
}

fn gpu_millis(capacity: &Capacity) -> u64 {
    capacity
        .gpu_millis
        .iter()
        .map(|&millis| u64::from(millis))
        .sum()
}

fn session_config() -> SessionConfig {
    SessionConfig {
        timeouts: Timeouts {
            handshake: PATIENCE,
            ..Timeouts::DEFAULT
        },
        ..SessionConfig::default()
    }
}
