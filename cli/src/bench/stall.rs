//! `pronto bench stall`: the largest delay of any reply while many different demands wait for room.
//!
//! A real scheduler and a real controller over simulated nodes that are full: ten distinct demands,
//! each in several priorities, all waiting for room in which something ends at every moment. Three
//! kinds of replies are timed meanwhile: to a question that needs no disk, to a submission less its
//! own commit, and the scheduler's to each START.

use super::figures::{micros, plain};
use super::rig::{Rig, Target};
use super::{Report, Row, nanoseconds, parameters};
use crate::client::{Client, path};
use crate::commands::unless_interrupted;
use crate::exit::{Exit, Failure};
use crate::run::submit;
use crate::settings::{ConnectionArgs, Settings};
use anyhow::Context;
use hdrhistogram::Histogram;
use pronto_controller::api::types as api;
use serde_json::json;
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::{LocalSet, spawn_local};
use uuid::Uuid;

/// Distinct demands, of 100, 200 … thousandths of a core.
const DEMANDS: u32 = 10;
const DEMAND_STEP_CPU_MILLIS: u32 = 100;
/// What a simulated node has: room for a handful of them.
const NODE_CPU_MILLIS: u32 = 4_000;
const NODE_MEMORY_MIB: u32 = 16_384;
/// Each demand and priority runs so long, so that ends are spread evenly.
const RUN_MS: u64 = 50;
/// Between two questions, and between two submissions that are timed.
const READ_INTERVAL: Duration = Duration::from_millis(1);
const SUBMIT_INTERVAL: Duration = Duration::from_millis(20);
/// Between two looks at how many have ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// The whole has ended by then, or something stands still.
const LIMIT: Duration = Duration::from_secs(300);
/// Connections that ask for timelines at the end.
const READERS: usize = 4;

/// Flags of `bench stall`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StallArgs {
    /// Simulated nodes
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=2_000))]
    nodes: u32,
    /// Priorities in which each of the ten demands comes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(i16).range(1..=100))]
    priorities: i16,
    /// Instances of each demand and priority
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
}

/// Nanoseconds of one kind of reply.
#[derive(Clone)]
struct Delays(Histogram<u64>);

impl Delays {
    fn new() -> Self {
        Self(nanoseconds())
    }

    fn note(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    fn row(&self, name: &str) -> Row {
        let ms = |ns| micros(ns) / 1e3;
        Row {
            p50: Some(ms(self.0.value_at_quantile(0.5))),
            p99: Some(ms(self.0.value_at_quantile(0.99))),
            max: Some(ms(self.0.max())),
            ..plain(name, "ms", ms(self.0.max()))
        }
    }
}

/// What was timed.
struct Measured {
    reads: Delays,
    submissions: Delays,
    decisions: Delays,
    took: Duration,
}

/// Measures and reports.
pub(super) fn run(args: &StallArgs) -> Result<Report, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let measured = LocalSet::new().block_on(&runtime, unless_interrupted(measure(args)))?;
    let mut report = Report::new(parameters([
        ("bench", json!("stall")),
        ("nodes", json!(args.nodes)),
        ("demands", json!(DEMANDS)),
        ("priorities", json!(args.priorities)),
        ("count", json!(args.count)),
        ("replies_timed", json!(measured.replies())),
    ]));
    let rows = [
        ("stall_ms/read", &measured.reads),
        ("stall_ms/submit-less-commit", &measured.submissions),
        ("stall_ms/decision", &measured.decisions),
    ];
    let rows = rows.map(|(name, delays)| delays.row(name));
    let largest = rows.iter().map(|row| row.value).fold(0.0, f64::max);
    report.rows.push(plain("stall_ms", "ms", largest));
    report.rows.extend(rows);
    let instances = f64::from(args.instances());
    let per_second = instances / measured.took.as_secs_f64();
    report
        .rows
        .push(plain("tasks_per_second", "1/s", per_second));
    Ok(report)
}

impl StallArgs {
    fn instances(&self) -> u32 {
        DEMANDS * u32::from(self.priorities.unsigned_abs()) * self.count
    }
}

impl Measured {
    fn replies(&self) -> u64 {
        self.reads.0.len() + self.submissions.0.len() + self.decisions.0.len()
    }
}

/// The processes of the cluster; they end when this is dropped, launchers first.
struct Cluster {
    client: Client,
    _launchers: Target,
    _controller: Target,
    _scheduler: Target,
}

async fn cluster(rig: &Rig, args: &StallArgs) -> Result<Cluster, Failure> {
    let scheduler = rig.scheduler()?;
    let controller = rig.controller(&scheduler)?;
    let mut launchers =
        rig.simulated_launchers(&scheduler, args.nodes, (NODE_CPU_MILLIS, NODE_MEMORY_MIB))?;
    let connection = ConnectionArgs {
        client_config: Some(rig.client_config(&controller)?),
        ..ConnectionArgs::default()
    };
    let mut client = Client::new(Settings::resolve(&connection)?)?.patient();
    let began = Instant::now();
    loop {
        let list: api::NodeList = client.get(&path(&["nodes"])).await?;
        let ready = |node: &&api::Node| matches!(node.state, api::NodeStateName::Ready);
        let ready = list.nodes.iter().filter(ready).count();
        if ready >= args.nodes as usize {
            break;
        }
        rig.must_live(&mut launchers)?;
        if began.elapsed() > LIMIT {
            let what = format!("{ready} of {} nodes are ready", args.nodes);
            return Err(Failure::new(Exit::TimedOut, what));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(Cluster {
        client,
        _launchers: launchers,
        _controller: controller,
        _scheduler: scheduler,
    })
}

fn request(demand: u32, priority: i16, count: u32) -> api::SubmitRequest {
    let mut spec = api::Spec::new(api::TaskSpec::Sim(api::SimSpec {
        run_ms: RUN_MS,
        exit_code: 0,
    }));
    spec.demand.cpu_millis = (demand % DEMANDS + 1) * DEMAND_STEP_CPU_MILLIS;
    spec.priority = priority;
    api::SubmitRequest {
        count,
        ..api::SubmitRequest::ad_hoc(Uuid::now_v7(), spec)
    }
}

async fn measure(args: &StallArgs) -> Result<Measured, Failure> {
    let rig = Rig::new()?;
    let mut cluster = cluster(&rig, args).await?;
    let client = &mut cluster.client;
    let began = Instant::now();
    let mut admitted = Vec::new();
    for priority in 0..args.priorities {
        for demand in 0..DEMANDS {
            admitted.push(submit(client, &request(demand, priority, args.count)).await?);
        }
    }
    let over = Rc::new(Cell::new(false));
    let reads = spawn_local(time_reads(client.another(), over.clone()));
    let submissions = spawn_local(time_submissions(
        client.another(),
        args.priorities,
        over.clone(),
    ));
    for submission in &admitted {
        let to = path(&["submissions", &submission.submission.to_string()]);
        loop {
            let progress: api::Submission = client.get(&to).await?;
            if progress.ended >= progress.count {
                break;
            }
            if began.elapsed() > LIMIT {
                let what = format!("a submission stands at {:?}", progress.states);
                return Err(Failure::new(Exit::TimedOut, what));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
    let took = began.elapsed();
    over.set(true);
    let reads = reads.await.context("the reader ended badly")??;
    let (submissions, singles) = submissions.await.context("the submitter ended badly")??;
    let instances = admitted
        .iter()
        .flat_map(|admitted| admitted.instances.iter().copied())
        .chain(singles)
        .collect();
    let decisions = decisions(client, instances).await?;
    Ok(Measured {
        reads,
        submissions,
        decisions,
        took,
    })
}

/// A question to the controller's own state, again and again.
async fn time_reads(mut client: Client, over: Rc<Cell<bool>>) -> Result<Delays, Failure> {
    let mut delays = Delays::new();
    while !over.get() {
        let began = Instant::now();
        let _status: api::Status = client.get(&path(&["status"])).await?;
        delays.note(nanos(began.elapsed()));
        tokio::time::sleep(READ_INTERVAL).await;
    }
    Ok(delays)
}

/// Single instances, each of another demand and priority; and who they were.
async fn time_submissions(
    mut client: Client,
    priorities: i16,
    over: Rc<Cell<bool>>,
) -> Result<(Delays, Vec<Uuid>), Failure> {
    let mut delays = Delays::new();
    let mut instances = Vec::new();
    for (demand, priority) in (0..).zip((0..priorities).cycle()) {
        if over.get() {
            break;
        }
        let request = request(demand, priority, 1);
        let began = Instant::now();
        let admitted = submit(&mut client, &request).await?;
        delays.note(nanos(began.elapsed()).saturating_sub(admitted.commit_ns));
        instances.extend(admitted.instances);
        tokio::time::sleep(SUBMIT_INTERVAL).await;
    }
    Ok((delays, instances))
}

/// From each START's sending to the scheduler's answer, by the timelines of those that were placed.
async fn decisions(client: &Client, instances: Vec<Uuid>) -> Result<Delays, Failure> {
    let instances = Rc::new(instances);
    let readers: Vec<_> = (0..READERS)
        .map(|reader| {
            let (mut client, instances) = (client.another(), instances.clone());
            spawn_local(async move {
                let mut delays = Delays::new();
                for id in instances.iter().skip(reader).step_by(READERS) {
                    let to = path(&["instances", &id.to_string()]);
                    let detail: api::InstanceDetail = client.get(&to).await?;
                    let placed = |step: &&api::TimelineStep| step.step == api::Step::Placed;
                    if let Some(step) = detail.timeline.iter().find(placed) {
                        delays.note(step.delta_ns);
                    }
                }
                Ok::<_, Failure>(delays)
            })
        })
        .collect();
    let mut all = Delays::new();
    for reader in readers {
        let delays = reader.await.context("a reader ended badly")??;
        all.0.add(&delays.0).map_err(anyhow::Error::from)?;
    }
    Ok(all)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
