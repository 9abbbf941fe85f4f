//! `pronto bench dispatch`: STARTs through a real scheduler, beside a bare TLS relay.
//!
//! Open loop is pipelined with a window of unanswered STARTs; closed loop has one outstanding and
//! gives the latency. Scheduler and relay are measured in turn, several times, by the same clients.

use super::figures::{Samples, as_f64, compared, latency, micros};
use super::fleet::{Controller, Fleet};
use super::relay::RelayShape;
use super::rig::{Rig, Target};
use super::{Report, parameters};
use anyhow::{Result, bail};
use serde_json::json;
use std::time::{Duration, Instant};

/// The windows among which the best is looked for, beside the one that was asked for.
const WINDOWS: [u64; 3] = [1024, 8192, 32_768];
/// STARTs measured one at a time.
const CLOSED_LOOP_STARTS: u64 = 5_000;
/// What the reference must reach for its ratio to mean anything: frames per second to 8 clients.
const RELAY_MINIMUM_PER_SECOND: f64 = 300_000.0;
const RELAY_CHECK_LAUNCHERS: u32 = 8;
/// Without an answer for so long a run counts as failed.
const SILENCE: Duration = Duration::from_secs(30);

/// Flags of `bench dispatch`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DispatchArgs {
    /// Launchers that are connected
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) launchers: u32,
    /// STARTs in each open-loop run
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(crate) starts: u64,
    /// Unanswered STARTs that the controller allows itself
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) window: u64,
    /// Runs of each measurement; the median is reported
    #[arg(long, default_value_t = 3, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000))]
    pub(crate) runs: usize,
}

/// What one server process did.
#[derive(Default)]
struct Measured {
    per_second: Samples,
    cpu_us: Samples,
    best_per_second: Samples,
    best_cpu_us: Samples,
    best_window: u64,
    latency: Option<hdrhistogram::Histogram<u64>>,
    rss_per_launcher: u64,
}

/// Measures and reports.
pub(crate) async fn run(args: &DispatchArgs) -> Result<Report> {
    let rig = Rig::new()?;
    let mut ours = Measured::default();
    let mut relay = Measured::default();
    let mut start_bytes = 0;
    // In turn, so that a machine that drifts drifts for both.
    for _ in 0..args.runs.max(1) {
        start_bytes = measure(&rig, args, None, &mut ours).await?;
        measure(&rig, args, Some(RelayShape::of(start_bytes)), &mut relay).await?;
    }
    let check = relay_check(&rig, start_bytes).await?;
    let mut report = Report::new(parameters([
        ("bench", json!("dispatch")),
        ("launchers", json!(args.launchers)),
        ("starts", json!(args.starts)),
        ("window", json!(args.window)),
        ("best_window", json!(ours.best_window)),
        ("reference_best_window", json!(relay.best_window)),
        ("runs", json!(args.runs)),
        ("start_payload_bytes", json!(start_bytes)),
        ("relay_check_frames_per_second", json!(check.round())),
        ("relay_check_minimum", json!(RELAY_MINIMUM_PER_SECOND)),
    ]));
    report.rows.push(compared(
        "starts_per_second",
        "1/s",
        ours.best_per_second.median(),
        relay.best_per_second.median(),
    ));
    report.rows.push(compared(
        &format!("starts_per_second/window={}", args.window),
        "1/s",
        ours.per_second.median(),
        relay.per_second.median(),
    ));
    report.rows.push(compared(
        "scheduler_cpu_us_per_start",
        "µs",
        ours.best_cpu_us.median(),
        relay.best_cpu_us.median(),
    ));
    report.rows.push(compared(
        &format!("scheduler_cpu_us_per_start/window={}", args.window),
        "µs",
        ours.cpu_us.median(),
        relay.cpu_us.median(),
    ));
    if let (Some(mine), Some(theirs)) = (&ours.latency, &relay.latency) {
        report.rows.push(latency("latency_us", mine, theirs));
        for (name, quantile) in [("latency_us/p99", 0.99), ("latency_us/p99.9", 0.999)] {
            report.rows.push(compared(
                name,
                "µs",
                micros(mine.value_at_quantile(quantile)),
                micros(theirs.value_at_quantile(quantile)),
            ));
        }
    }
    report.rows.push(compared(
        "rss_bytes_per_launcher",
        "B",
        as_f64(ours.rss_per_launcher),
        as_f64(relay.rss_per_launcher),
    ));
    Ok(report)
}

/// All measurements on one fresh server process; the length of a START's payload.
async fn measure(
    rig: &Rig,
    args: &DispatchArgs,
    relay: Option<RelayShape>,
    into: &mut Measured,
) -> Result<usize> {
    let is_relay = relay.is_some();
    let target = match relay {
        Some(shape) => rig.relay(&shape)?,
        None => rig.scheduler()?,
    };
    let before = target.rss_bytes()?;
    let fleet = Fleet::launch(rig, &target, args.launchers)?;
    fleet.connected().await?;
    into.rss_per_launcher = target.rss_bytes()?.saturating_sub(before) / u64::from(args.launchers);
    let controller = Controller::connect(rig, &target).await?;
    if !is_relay {
        controller.activate(args.launchers).await?;
        controller.await_placeable(args.launchers).await?;
    }
    // Warms caches, allocators and branch predictors of both ends.
    open_loop(&controller, &fleet, &target, args.starts / 10 + 1, 1024).await?;
    closed_loop(&controller, &fleet, CLOSED_LOOP_STARTS, &mut into.latency).await?;
    let (rate, cpu) = open_loop(&controller, &fleet, &target, args.starts, args.window).await?;
    into.per_second.push(rate);
    into.cpu_us.push(cpu);
    let mut best = (rate, cpu, args.window);
    for window in WINDOWS {
        let (rate, cpu) = open_loop(&controller, &fleet, &target, args.starts, window).await?;
        if rate > best.0 {
            best = (rate, cpu, window);
        }
    }
    into.best_per_second.push(best.0);
    into.best_cpu_us.push(best.1);
    into.best_window = best.2;
    if controller.placed.get() != controller.sent() {
        bail!(
            "{} of {} STARTs were placed",
            controller.placed.get(),
            controller.sent()
        );
    }
    Ok(controller.start_payload_bytes())
}

/// STARTs per second until the last has reached its launcher, and the server's CPU µs for each.
async fn open_loop(
    controller: &Controller,
    fleet: &Fleet,
    target: &Target,
    starts: u64,
    window: u64,
) -> Result<(f64, f64)> {
    let goal = controller.sent() + starts;
    let cpu = target.cpu()?;
    let began = Instant::now();
    let mut ticked = began;
    while controller.answered.get() < goal {
        while controller.sent() < goal && controller.sent() - controller.answered.get() < window {
            controller.queue_start()?;
        }
        controller.flush()?;
        if tokio::time::timeout(SILENCE, controller.read_answers())
            .await
            .is_err()
        {
            bail!(
                "{} of {goal} STARTs answered, then silence",
                controller.answered.get()
            );
        }
        if ticked.elapsed() > Duration::from_secs(1) {
            ticked = Instant::now();
            controller.tick()?;
        }
    }
    if tokio::time::timeout(SILENCE, fleet.counters.reach(goal))
        .await
        .is_err()
    {
        bail!(
            "{} of {goal} STARTs reached a launcher",
            fleet.counters.received.get()
        );
    }
    let took = began.elapsed();
    let spent = target.cpu()?.saturating_sub(cpu);
    let count = as_f64(starts);
    Ok((
        count / took.as_secs_f64(),
        spent.as_secs_f64() * 1e6 / count,
    ))
}

/// One START at a time: from its sending until a launcher has it.
async fn closed_loop(
    controller: &Controller,
    fleet: &Fleet,
    starts: u64,
    latency: &mut Option<hdrhistogram::Histogram<u64>>,
) -> Result<()> {
    let latency = match latency {
        Some(latency) => latency,
        None => latency.insert(hdrhistogram::Histogram::new(3)?),
    };
    fleet.counters.timed.set(true);
    for _ in 0..starts {
        let goal = controller.sent() + 1;
        let began = Instant::now();
        controller.queue_start()?;
        controller.flush()?;
        let arrival = async {
            fleet.counters.reach(goal).await;
            while controller.answered.get() < goal {
                controller.read_answers().await?;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(SILENCE, arrival).await {
            Ok(outcome) => outcome?,
            Err(_) => bail!("START {goal} was not answered"),
        }
        let arrived = fleet.counters.last_received.get().unwrap_or(began);
        let nanos = u64::try_from((arrived - began).as_nanos()).unwrap_or(u64::MAX);
        latency.record(nanos.max(1))?;
    }
    fleet.counters.timed.set(false);
    Ok(())
}

/// How fast the relay itself is with few clients: a slow reference would flatter us.
async fn relay_check(rig: &Rig, start_bytes: usize) -> Result<f64> {
    let target = rig.relay(&RelayShape::of(start_bytes))?;
    let fleet = Fleet::launch(rig, &target, RELAY_CHECK_LAUNCHERS)?;
    fleet.connected().await?;
    let controller = Controller::connect(rig, &target).await?;
    let mut best = 0.0_f64;
    for _ in 0..5 {
        let (rate, _) = open_loop(&controller, &fleet, &target, 200_000, 8192).await?;
        best = best.max(rate);
    }
    Ok(best)
}
