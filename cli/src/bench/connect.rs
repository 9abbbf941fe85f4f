//! `pronto bench connect`: a whole cluster connecting, and coming back after its scheduler died.

use super::figures::{as_f64, plain};
use super::fleet::{Controller, Fleet};
use super::rig::Rig;
use super::{Report, parameters};
use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::time::{Duration, Instant};

/// Flags of `bench connect`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ConnectArgs {
    /// Launchers that connect; each takes a file descriptor here and one in the scheduler
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) launchers: u32,
}

/// Measures and reports.
pub(crate) async fn run(args: &ConnectArgs) -> Result<Report> {
    let rig = Rig::new()?;
    let mut target = rig.scheduler()?;
    // Certificates are made and read before the clock starts.
    for node in 0..args.launchers {
        rig.launcher_credentials(node)?;
    }
    let before = target.rss_bytes()?;
    let controller = Controller::connect(&rig, &target).await?;
    controller.activate(args.launchers).await?;
    let mut fleet = Fleet::prepare(&rig, args.launchers)?;
    let (cpu, own_cpu) = (target.cpu()?, own_cpu());
    let began = Instant::now();
    fleet.launch_at(&target);
    controller.await_placeable(args.launchers).await?;
    let connect = began.elapsed();
    let cpu = target.cpu()?.saturating_sub(cpu);
    let own_cpu = self::own_cpu().saturating_sub(own_cpu);
    let rss = target.rss_bytes()?.saturating_sub(before) / u64::from(args.launchers.max(1));
    let began = Instant::now();
    target.kill()?;
    let again = rig.scheduler_again(&target)?;
    let controller = Controller::connect(&rig, &again).await?;
    controller.activate(args.launchers).await?;
    controller.await_placeable(args.launchers).await?;
    let recover = began.elapsed();
    let mut report = Report::new(parameters([
        ("bench", json!("connect")),
        ("launchers", json!(args.launchers)),
    ]));
    report
        .rows
        .push(plain("connect_ms", "ms", connect.as_secs_f64() * 1e3));
    report
        .rows
        .push(plain("recover_ms", "ms", recover.as_secs_f64() * 1e3));
    // What does not depend on who else uses the machine: two cores need at least half of the sum.
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / f64::from(args.launchers.max(1));
    for (name, cpu) in [
        ("scheduler_cpu_us_per_launcher", cpu),
        ("clients_cpu_us_per_launcher", own_cpu),
    ] {
        report.rows.push(plain(name, "µs", each(cpu)));
    }
    report
        .rows
        .push(plain("rss_bytes_per_launcher", "B", as_f64(rss)));
    Ok(report)
}

/// CPU time of this process so far.
fn own_cpu() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(spent).unwrap_or_default()
}
