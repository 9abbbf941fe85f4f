//! `pronto bench submit`: a user's request until its workload runs, and until its end is seen.
//!
//! A local cluster as `pronto dev` makes it, with its durable commits. First one instance at a
//! time, each followed to its end on the client's own clock, with the steps of its timeline; then
//! many, so many under way at once. The reference is this machine's own floor in the same run,
//! before and after: the same process by `posix_spawn`, the same container by the engine's API, the
//! same guest by the emulator's bare command; one at a time, and as many at once.

mod cpu;
mod floor;
mod plan;
mod timings;

use super::figures::{as_f64, compared, micros, plain};
use super::{Report, parameters};
use crate::client::{Client, path};
use crate::commands::{block_on, unless_interrupted};
use crate::dev::layout::Layout;
use crate::dev::{self, process::Process};
use crate::exit::{Exit, Failure};
use crate::run::streams::Sink;
use crate::run::{follow_output, progress_after, submit};
use anyhow::Context;
use floor::{Bare, Floor};
pub(super) use plan::SubmitArgs;
use plan::{Plan, RuntimeChoice};
use pronto_controller::api::types as api;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use timings::Timings;
use tokio::task::JoinSet;

/// Requests that are under way at once in the second part; together they hold `--parallel`.
const SUBMITTERS: u32 = 4;
/// How long one look at a submission waits for its end.
const LOOK: Duration = Duration::from_secs(1);
/// How often the nodes are looked at until they offer the runtime.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// A submission that has not ended by then never will, nor is a runtime offered that was not.
const LIMIT: Duration = Duration::from_secs(120);

/// One instance at a time.
struct Single {
    running: Timings,
    less_commit: Timings,
    end: Timings,
    commit: Timings,
    /// The sum of [`OWN_STEPS`].
    own: Timings,
    /// From the step before, in the order of the steps.
    steps: BTreeMap<api::Step, Timings>,
}

/// Many at once.
struct Many {
    per_second: f64,
    /// CPU time of each process, by its name.
    cpu: Vec<(String, Duration)>,
}

/// Measures and reports.
pub(super) fn run(args: &SubmitArgs) -> Result<Report, Failure> {
    let plan = Plan::new(args)?;
    let directory = std::env::temp_dir().join(format!("pronto-bench-{}", std::process::id()));
    let layout = Layout::new(&directory)?;
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("can't make {}", directory.display()))?;
    let measured = measured(&plan, &layout);
    std::fs::remove_dir_all(&directory)
        .with_context(|| format!("can't remove {}", directory.display()))?;
    measured
}

fn measured(plan: &Plan, layout: &Layout) -> Result<Report, Failure> {
    let bare = Bare::find(plan, layout.directory())?;
    let before = floor(&bare, plan)?;
    let measured = measure(plan, layout);
    let stopped = dev::stop(layout);
    let (single, many) = measured?;
    stopped?;
    let after = floor(&bare, plan)?;
    Ok(report(plan, single.as_ref(), &many, [&before, &after]))
}

/// Set when the floor is not wanted any more.
struct Unwanted(Arc<AtomicBool>);

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Measures the floor; at a signal what is under way is brought to its end, and nothing is left.
fn floor(bare: &Bare, plan: &Plan) -> Result<Floor, Failure> {
    let (bare, plan) = (bare.clone(), plan.clone());
    block_on(unless_interrupted(async {
        let unwanted = Unwanted(Arc::default());
        let flag = unwanted.0.clone();
        let work = tokio::task::spawn_blocking(move || bare.floor(&plan, &flag));
        work.await.context("the floor ended badly")?
    }))
}

fn measure(plan: &Plan, layout: &Layout) -> Result<(Option<Single>, Many), Failure> {
    let mut supervisor = dev::spawn(layout, plan.launchers, Process::own())?;
    block_on(unless_interrupted(async {
        dev::ready(layout, plan.launchers, Some(&mut supervisor)).await?;
        offered(plan, layout).await?;
        let mut single = None;
        if plan.runtime == RuntimeChoice::Sim {
            many_at_once(plan, layout, plan.parallel).await?;
        } else {
            // Warms every process of the cluster.
            one_at_a_time(plan, layout, plan.warming).await?;
            single = Some(one_at_a_time(plan, layout, plan.single).await?);
        }
        if plan.runtime == RuntimeChoice::Exec {
            many_at_once(plan, layout, plan.parallel).await?;
        }
        let many = many_at_once(plan, layout, plan.count).await?;
        Ok((single, many))
    }))
}

/// Waits until every node offers the runtime: engines and emulators are tried after the start.
async fn offered(plan: &Plan, layout: &Layout) -> Result<(), Failure> {
    let wanted = plan.runtime.name();
    let mut client = dev::admin(layout)?;
    let began = Instant::now();
    loop {
        let list: api::NodeList = client.get(&path(&["nodes"])).await?;
        let offers = |node: &api::Node| node.runtimes.contains(&wanted);
        if list.nodes.iter().filter(|node| offers(node)).count() >= usize::from(plan.launchers) {
            return Ok(());
        }
        if began.elapsed() > LIMIT {
            return Err(failed(format!(
                "after {LIMIT:?} not every node offers the runtime {wanted:?}"
            )));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn one_at_a_time(plan: &Plan, layout: &Layout, count: u32) -> Result<Single, Failure> {
    let mut client = dev::admin(layout)?;
    let mut single = Single {
        running: Timings::new(),
        less_commit: Timings::new(),
        end: Timings::new(),
        commit: Timings::new(),
        own: Timings::new(),
        steps: BTreeMap::new(),
    };
    for _ in 0..count {
        let request = plan.request(1);
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
        let own = end
            .timeline
            .iter()
            .filter(|step| OWN_STEPS.contains(&step.step));
        single.own.note(own.map(|step| step.delta_ns).sum());
        for step in &end.timeline {
            let timings = single.steps.entry(step.step);
            timings.or_insert_with(Timings::new).note(step.delta_ns);
        }
    }
    Ok(single)
}

async fn many_at_once(plan: &Plan, layout: &Layout, count: u32) -> Result<Many, Failure> {
    let submitters = SUBMITTERS.min(plan.parallel);
    let batch = plan.parallel / submitters;
    let left = Arc::new(AtomicU32::new(count));
    let before = cpu::spent(layout)?;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..submitters {
        let mut client = dev::admin(layout)?;
        let (left, plan) = (left.clone(), plan.clone());
        tasks.spawn(async move {
            loop {
                let take = |left: u32| (left > 0).then(|| left - left.min(batch));
                let Ok(had) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) else {
                    return Ok::<_, Failure>(());
                };
                let request = plan.request(had.min(batch));
                let admitted = submit(&mut client, &request).await?;
                ended(&mut client, &admitted).await?;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.context("a submitter ended badly")??;
    }
    let took = began.elapsed();
    let after = cpu::spent(layout)?;
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

/// Until it was started, its commit left out, as far as it is Pronto's own work and not the
/// runtime's: what is between the node's receipt and the start.
const OWN_STEPS: [api::Step; 4] = [
    api::Step::Admitted,
    api::Step::Dispatched,
    api::Step::Placed,
    api::Step::Received,
];

fn report(plan: &Plan, single: Option<&Single>, many: &Many, floors: [&Floor; 2]) -> Report {
    let mut report = Report::new(parameters([
        ("bench", json!("submit")),
        ("runtime", json!(plan.runtime.name())),
        ("count", json!(plan.count)),
        ("parallel", json!(plan.parallel)),
        ("single", json!(plan.single)),
        ("launchers", json!(plan.launchers)),
    ]));
    // What runs nothing has no floor.
    let is_real = plan.runtime != RuntimeChoice::Sim;
    let beside = |of: fn(&Floor) -> f64| is_real.then(|| (of(floors[0]) + of(floors[1])) / 2.0);
    let rows = &mut report.rows;
    if let Some(single) = single {
        let start_ms = beside(|floor| floor.start.p50_ms());
        let end_ms = beside(|floor| floor.end.p50_ms());
        rows.push(single.running.row("submit_to_running_ms", start_ms));
        rows.push(single.commit.row("submit_to_running_ms/commit", None));
        let less = "submit_to_running_ms/less-commit";
        rows.push(single.less_commit.row(less, None));
        rows.push(single.end.row("submit_to_end_ms", end_ms));
        rows.push(single.own.row("own_segments_ms", None));
        for (step, timings) in &single.steps {
            let name = serde_json::to_value(step).unwrap_or_default();
            let name = name.as_str().unwrap_or_default();
            let reference = start_ms.filter(|_| *step == api::Step::Started);
            if *step != api::Step::Submitted {
                rows.push(timings.row(&format!("segment_ms/{name}"), reference));
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
            us / as_f64(u64::from(plan.count)),
        ));
    }
    report
}
