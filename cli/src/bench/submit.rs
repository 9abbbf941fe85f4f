//! `pronto bench submit`: a user's request until its process runs, and until its end is seen.
//!
//! A local cluster as `pronto dev` makes it, with its durable commits. First one instance at a
//! time, each followed to its end on the client's own clock, with the steps of its timeline; then
//! many, so many under way at once. The reference is this machine's own floor in the same run:
//! `posix_spawn` of the same program in a loop, as many at once.

use super::figures::{as_f64, compared, micros, plain};
use super::{Report, Row, nanoseconds, parameters, unless_interrupted};
use crate::client::Client;
use crate::dev::layout::Layout;
use crate::dev::{self, process::Process, supervisor};
use crate::exit::{Exit, Failure};
use crate::run::streams::Sink;
use crate::run::{follow_output, progress_after, submit};
use anyhow::Context;
use hdrhistogram::Histogram;
use pronto_controller::api::types as api;
use serde_json::json;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use uuid::Uuid;

/// What every exec workload runs.
const PROGRAM: &str = "/bin/true";
/// Requests that are under way at once in the second part; together they hold `--parallel`.
const SUBMITTERS: u32 = 4;
/// How long one look at a submission waits for its end.
const LOOK: Duration = Duration::from_secs(1);
/// A submission that has not ended by then never will.
const LIMIT: Duration = Duration::from_secs(120);
/// Share of this machine's cores that all instances under way ask for, in thousandths of one.
const CPU_MILLIS: u32 = 1_000;
/// The least that an instance may ask for.
const MEMORY_MIB: u32 = 4;
/// Threads of the floor: more than this only wait for each other.
const FLOOR_THREADS: u32 = 64;
/// The floor is measured with no more processes than tell it.
const FLOOR_PROCESSES: u32 = 4_000;

/// Linux counts CPU time to user space in hundredths of a second on every architecture that we run
/// on (USER_HZ, proc(5)).
const TICKS_PER_SECOND: u32 = 100;

/// Instances before the first that is timed.
const WARMING: u32 = 10;

/// Flags of `bench submit`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SubmitArgs {
    /// Instances of the part with many at once
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Instances under way at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    parallel: u32,
    /// Processes that are followed one at a time; none with --runtime sim, which has no output to
    /// follow
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    single: u32,
    /// exec runs /bin/true; sim runs nothing
    #[arg(long, default_value = "exec")]
    runtime: RuntimeChoice,
    /// Compute nodes; they share this machine between them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=8))]
    launchers: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum RuntimeChoice {
    Exec,
    Sim,
}

/// One instance at a time.
struct Single {
    running: Timings,
    less_commit: Timings,
    end: Timings,
    commit: Timings,
    /// From the step before, in the order of the steps.
    steps: BTreeMap<api::Step, Timings>,
}

/// Many at once.
struct Many {
    per_second: f64,
    /// CPU time of each process, by its name.
    cpu: Vec<(String, Duration)>,
}

/// The floor of this machine.
struct Floor {
    single: Timings,
    per_second: f64,
}

/// Nanoseconds of one thing.
struct Timings(Histogram<u64>);

impl Timings {
    fn new() -> Self {
        Self(nanoseconds())
    }

    fn note(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    fn row(&self, name: &str, reference: Option<f64>) -> Row {
        let ms = |ns| micros(ns) / 1e3;
        let p50 = ms(self.0.value_at_quantile(0.5));
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

    fn p50_ms(&self) -> f64 {
        micros(self.0.value_at_quantile(0.5)) / 1e3
    }
}

/// Measures and reports.
pub(super) fn run(args: &SubmitArgs) -> Result<Report, Failure> {
    let directory = std::env::temp_dir().join(format!("pronto-bench-{}", std::process::id()));
    let layout = Layout::new(&directory)?;
    let before = floor(args)?;
    let measured = measure(args, &layout);
    let cleaned = dev::stop(&layout);
    let removed = std::fs::remove_dir_all(&directory)
        .with_context(|| format!("can't remove {}", directory.display()));
    let (single, many) = measured?;
    cleaned?;
    removed?;
    let after = floor(args)?;
    Ok(report(args, single.as_ref(), &many, [&before, &after]))
}

fn measure(args: &SubmitArgs, layout: &Layout) -> Result<(Option<Single>, Many), Failure> {
    let mut supervisor = dev::spawn(layout, args.launchers, Process::own())?;
    crate::commands::block_on(unless_interrupted(async {
        dev::ready(layout, args.launchers, Some(&mut supervisor)).await?;
        let mut single = None;
        if args.runtime == RuntimeChoice::Exec {
            // Warms every process of the cluster.
            one_at_a_time(args, layout, WARMING).await?;
            single = Some(one_at_a_time(args, layout, args.single).await?);
        }
        many_at_once(args, layout, args.parallel).await?;
        let many = many_at_once(args, layout, args.count).await?;
        Ok((single, many))
    }))
}

fn request(args: &SubmitArgs, count: u32) -> api::SubmitRequest {
    let task = match args.runtime {
        RuntimeChoice::Exec => api::TaskSpec::Exec(api::ExecSpec {
            command: vec![PROGRAM.to_owned()],
            ..api::ExecSpec::default()
        }),
        RuntimeChoice::Sim => api::TaskSpec::Sim(api::SimSpec::default()),
    };
    let mut spec = api::Spec::new(task);
    spec.demand.cpu_millis = (CPU_MILLIS / args.parallel).max(1);
    spec.demand.memory_mib = MEMORY_MIB;
    api::SubmitRequest {
        count,
        ..api::SubmitRequest::ad_hoc(Uuid::now_v7(), spec)
    }
}

async fn one_at_a_time(args: &SubmitArgs, layout: &Layout, count: u32) -> Result<Single, Failure> {
    let mut client = dev::admin(layout)?;
    let mut single = Single {
        running: Timings::new(),
        less_commit: Timings::new(),
        end: Timings::new(),
        commit: Timings::new(),
        steps: BTreeMap::new(),
    };
    for _ in 0..count {
        let request = request(args, 1);
        let began = Instant::now();
        let admitted = submit(&mut client, &request).await?;
        let id = crate::run::first(&admitted)?;
        let sink = Sink::new(Box::new(std::io::sink()), Box::new(std::io::sink()));
        let end = follow_output(&mut client, id, sink).await?;
        let wall = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        succeeded(end.instance.state, 1)?;
        let at = |step| {
            let found = end.timeline.iter().find(|known| known.step == step);
            found.map(|known| known.offset_ns)
        };
        let started = at(api::Step::Started).context("a timeline without a start")?;
        let last = end.timeline.last().map_or(0, |step| step.offset_ns);
        // What the controller's clock does not cover is the way of the request and of the last
        // answer: all of it counts as the request's, so nothing is left out.
        let running = wall.saturating_sub(last.saturating_sub(started));
        single.running.note(running);
        single
            .less_commit
            .note(running.saturating_sub(admitted.commit_ns));
        single.end.note(wall);
        single.commit.note(admitted.commit_ns);
        for step in &end.timeline {
            let timings = single.steps.entry(step.step);
            timings.or_insert_with(Timings::new).note(step.delta_ns);
        }
    }
    Ok(single)
}

async fn many_at_once(args: &SubmitArgs, layout: &Layout, count: u32) -> Result<Many, Failure> {
    let submitters = SUBMITTERS.min(args.parallel);
    let batch = args.parallel / submitters;
    let left = std::sync::Arc::new(AtomicU32::new(count));
    let before = cpu(layout)?;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..submitters {
        let mut client = dev::admin(layout)?;
        let (left, args) = (left.clone(), args.clone());
        tasks.spawn(async move {
            loop {
                let take = |left: u32| (left > 0).then(|| left - left.min(batch));
                let Ok(had) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) else {
                    return Ok::<_, Failure>(());
                };
                let request = request(&args, had.min(batch));
                let admitted = submit(&mut client, &request).await?;
                ended(&mut client, &admitted).await?;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.context("a submitter ended badly")??;
    }
    let took = began.elapsed();
    let after = cpu(layout)?;
    let spent = after.into_iter().map(|(name, after)| {
        let before = before.get(&name).copied().unwrap_or_default();
        (name, after.saturating_sub(before))
    });
    Ok(Many {
        per_second: f64::from(count) / took.as_secs_f64(),
        cpu: spent.collect(),
    })
}

/// Waits until all of a submission has ended, and well.
async fn ended(client: &mut Client, admitted: &api::SubmitResponse) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        let progress = progress_after(client, admitted.submission, LOOK).await?;
        if progress.ended >= progress.count {
            let name = api::InstanceState::Succeeded.name();
            let well = progress.states.get(name).copied().unwrap_or(0);
            return if well == progress.count {
                Ok(())
            } else {
                Err(failed(format!(
                    "a submission ended as {:?}",
                    progress.states
                )))
            };
        }
        if began.elapsed() > LIMIT {
            let states = progress.states;
            return Err(failed(format!(
                "after {LIMIT:?} a submission is {states:?}"
            )));
        }
    }
}

fn succeeded(state: api::InstanceState, count: u32) -> Result<(), Failure> {
    if state == api::InstanceState::Succeeded {
        return Ok(());
    }
    Err(failed(format!(
        "{count} instance ended as {}",
        state.name()
    )))
}

fn failed(what: String) -> Failure {
    Failure::new(Exit::Failed, what)
}

/// CPU time so far of each process of the cluster, and of this one.
fn cpu(layout: &Layout) -> Result<BTreeMap<String, Duration>, Failure> {
    let record = supervisor::read_record(layout).context("the cluster keeps no record")?;
    let mut spent = BTreeMap::new();
    for child in record.children {
        spent.insert(child.name, cpu_of(child.process.pid)?);
    }
    for launcher in layout.launchers() {
        let text = std::fs::read_to_string(launcher.shim_pid()).unwrap_or_default();
        if let Some(pid) = text
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok())
        {
            *spent.entry("shims".to_owned()).or_default() += cpu_of(pid)?;
        }
    }
    let own = i32::try_from(std::process::id()).context("a pid beyond 2^31")?;
    spent.insert("client".to_owned(), cpu_of(own)?);
    Ok(spent)
}

/// User and system time of a process, its ended threads included: proc(5), fields 14 and 15.
fn cpu_of(pid: i32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} of the cluster is gone"))?;
    // The name in the second field may hold anything; the third follows its last bracket.
    let (_, fields) = stat.rsplit_once(") ").context("no process status")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |field: usize| {
        fields
            .get(field - 3)
            .and_then(|text| text.parse::<u64>().ok())
    };
    let ticks = ticks(14).zip(ticks(15)).context("no CPU times")?;
    Ok(Duration::from_secs(ticks.0 + ticks.1) / TICKS_PER_SECOND)
}

/// `posix_spawn` of the same program: one at a time, and as many at once as instances would be.
fn floor(args: &SubmitArgs) -> Result<Floor, Failure> {
    let mut single = Timings::new();
    for _ in 0..args.single {
        let began = Instant::now();
        spawn_and_wait()?;
        single.note(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    let count = args.count.min(FLOOR_PROCESSES);
    let left = AtomicU32::new(count);
    let take = |left: u32| left.checked_sub(1);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.parallel.min(FLOOR_THREADS))
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    while left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                        .is_ok()
                    {
                        spawn_and_wait()?;
                    }
                    Ok(())
                })
            })
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        for thread in ended {
            thread.map_err(|_| failed("a thread of the floor ended badly".to_owned()))??;
        }
        Ok::<_, Failure>(())
    })?;
    Ok(Floor {
        single,
        per_second: f64::from(count) / began.elapsed().as_secs_f64(),
    })
}

/// The standard library uses posix_spawn where nothing is asked for that it can't do.
fn spawn_and_wait() -> anyhow::Result<()> {
    let status = Command::new(PROGRAM)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("can't run {PROGRAM}"))?;
    anyhow::ensure!(status.success(), "{PROGRAM} ended with {status}");
    Ok(())
}

fn report(args: &SubmitArgs, single: Option<&Single>, many: &Many, floors: [&Floor; 2]) -> Report {
    let runtime = match args.runtime {
        RuntimeChoice::Exec => "exec",
        RuntimeChoice::Sim => "sim",
    };
    let mut report = Report::new(parameters([
        ("bench", json!("submit")),
        ("runtime", json!(runtime)),
        ("count", json!(args.count)),
        ("parallel", json!(args.parallel)),
        ("single", json!(args.single)),
        ("launchers", json!(args.launchers)),
    ]));
    // Only real processes have a floor.
    let is_real = args.runtime == RuntimeChoice::Exec;
    let beside = |of: fn(&Floor) -> f64| is_real.then(|| (of(floors[0]) + of(floors[1])) / 2.0);
    let spawn_ms = beside(|floor| floor.single.p50_ms());
    let rows = &mut report.rows;
    if let Some(single) = single {
        rows.push(single.running.row("submit_to_running_ms", spawn_ms));
        rows.push(single.commit.row("submit_to_running_ms/commit", None));
        let less = "submit_to_running_ms/less-commit";
        rows.push(single.less_commit.row(less, None));
        rows.push(single.end.row("submit_to_end_ms", spawn_ms));
        for (step, timings) in &single.steps {
            let name = serde_json::to_value(step).unwrap_or_default();
            let name = name.as_str().unwrap_or_default();
            if *step != api::Step::Submitted {
                rows.push(timings.row(&format!("segment_ms/{name}"), None));
            }
        }
    }
    let name = "tasks_per_second";
    rows.push(match beside(|floor| floor.per_second) {
        Some(floor) => compared(name, "1/s", many.per_second, floor),
        None => plain(name, "1/s", many.per_second),
    });
    for (process, cpu) in &many.cpu {
        let us = micros(u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX));
        rows.push(plain(
            &format!("cpu_us_per_task/{process}"),
            "µs",
            us / as_f64(u64::from(args.count)),
        ));
    }
    report
}
