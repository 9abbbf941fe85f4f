//! `pronto bench stats`: READY frames that a real scheduler takes in.

use super::figures::{Samples, plain};
use super::fleet::{Controller, Fleet};
use super::rig::Rig;
use super::{Report, parameters};
use anyhow::{Result, bail};
use serde_json::json;
use std::time::{Duration, Instant};

/// READYs that each launcher sends in one round: they fit into its outbound queue.
const ROUND: u32 = 500;
const SILENCE: Duration = Duration::from_secs(60);

/// Flags of `bench stats`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StatsArgs {
    /// Launchers that are connected
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) launchers: u32,
    /// Rounds of 500 READYs a launcher; the median is reported
    #[arg(long, default_value_t = 7, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000))]
    pub(crate) rounds: usize,
}

/// Measures and reports.
pub(crate) async fn run(args: &StatsArgs) -> Result<Report> {
    let rig = Rig::new()?;
    let target = rig.scheduler()?;
    let fleet = Fleet::launch(&rig, &target, args.launchers)?;
    fleet.connected().await?;
    let controller = Controller::connect(&rig, &target).await?;
    controller.activate(args.launchers).await?;
    controller.await_placeable(args.launchers).await?;
    let mut per_second = Samples::default();
    let mut cpu_us = Samples::default();
    for round in 0..=args.rounds {
        let goal = fleet.counters.leases.get() + u64::from(args.launchers);
        let cpu = target.cpu()?;
        let began = Instant::now();
        fleet.flood_ready(ROUND);
        while fleet.counters.leases.get() < goal {
            if began.elapsed() > SILENCE {
                bail!(
                    "{} of {goal} rounds were answered",
                    fleet.counters.leases.get()
                );
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        let took = began.elapsed();
        let spent = target.cpu()?.saturating_sub(cpu);
        // The first round warms up.
        if round > 0 {
            let frames = f64::from(args.launchers) * f64::from(ROUND);
            per_second.push(frames / took.as_secs_f64());
            cpu_us.push(spent.as_secs_f64() * 1e6 / frames);
        }
    }
    let mut report = Report::new(parameters([
        ("bench", json!("stats")),
        ("launchers", json!(args.launchers)),
        ("rounds", json!(args.rounds)),
    ]));
    report
        .rows
        .push(plain("ready_frames_per_second", "1/s", per_second.median()));
    report
        .rows
        .push(plain("scheduler_cpu_us_per_ready", "µs", cpu_us.median()));
    Ok(report)
}
