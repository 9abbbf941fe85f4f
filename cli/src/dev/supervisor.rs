//! Keeps the children of a local cluster alive, and ends them in order.
//!
//! A child that dies is started again after a back-off that doubles while it keeps dying; each time
//! is said. The children stand in a record on disk (pid and start time), so that `--stop` finds
//! them even if this process is gone.

use super::layout::{Layout, Role, replace};
use super::process::{OWN_PROGRAM, Process};
use super::{admin, print_export, ready, stop};
use crate::client::{Client, path, query};
use crate::exit::{Exit, Failure, OK, Outcome};
use crate::output::{tell, terminal};
use crate::units;
use anyhow::Context;
use hyper::Method;
use pronto_controller::api::types as api;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Before a child that died is started again: at first, and at most.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MOST: Duration = Duration::from_secs(10);
/// Deaths of one child before the cluster was ever ready: more would only repeat them. A port that
/// an earlier cluster has just left is free again before that.
const DEATHS_AT_START: u32 = 4;
/// A child that lived this long starts over with the first back-off.
const STABLE: Duration = Duration::from_secs(10);
/// Ends of children that wait to be looked at: more than there are children.
const ENDS: usize = 128;
/// Workloads have this long to end before their shims are ended.
pub(super) const WORKLOADS_LIMIT: Duration = Duration::from_secs(15);
/// Between SIGTERM and SIGKILL for a workload when the cluster ends.
pub(super) const WORKLOAD_GRACE_MS: u64 = 2_000;
/// A daemon has this long from SIGTERM.
const DAEMON_GRACE: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// An owner that was killed is missed within this time.
const OWNER_LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// The API's own largest page.
const PAGE: u32 = 1000;

/// What stands on disk while a cluster runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) supervisor: Process,
    pub(crate) launchers: u16,
    pub(crate) children: Vec<ChildRecord>,
}

/// One child.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChildRecord {
    /// `scheduler`, `controller`, `launcher-1` …
    pub(crate) name: String,
    pub(crate) process: Process,
}

/// The record of a cluster, if there is one that can be read.
pub(crate) fn read_record(layout: &Layout) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(layout.record()).ok()?).ok()
}

/// The supervisor of a cluster that runs now.
pub(crate) fn running(layout: &Layout) -> Option<Process> {
    read_record(layout)
        .map(|record| record.supervisor)
        .filter(|process| process.is_alive())
}

pub(super) fn remove_record(layout: &Layout) {
    // Whether it was there or not, it is gone.
    let _ = std::fs::remove_file(layout.record());
}

/// What a supervisor is to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) launchers: u16,
    /// People watch it: it says what to export, and a closed terminal ends it.
    pub(super) foreground: bool,
    /// It ends with this process.
    pub(super) until_gone: Option<Process>,
}

/// Runs a cluster until it is told to end.
pub(super) fn run(layout: &Layout, plan: Plan) -> Outcome {
    layout.make_directories()?;
    let _lock = lock(layout)?;
    if !plan.foreground {
        // The terminal that started us may close; failing means that we lead a session already.
        let _ = rustix::process::setsid();
    }
    end_orphans(layout);
    let children = layout.prepare(plan.launchers)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?
        .block_on(supervise(layout, plan, children))
}

/// Two supervisors of one directory would fight over ports and databases.
fn lock(layout: &Layout) -> Result<File, Failure> {
    let path = layout.lock();
    let file = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => {
            let what = format!("a cluster runs in {}", layout.directory().display());
            Err(Failure::new(Exit::Conflict, what).hint(format!(
                "pronto dev --stop --data-dir {}",
                layout.directory().display()
            )))
        }
    }
}

/// A supervisor that was killed has left its children: their ports and files are wanted again.
/// Workloads stay; their launchers adopt them.
fn end_orphans(layout: &Layout) {
    let Some(record) = read_record(layout) else {
        return;
    };
    let orphans: Vec<Process> = record
        .children
        .iter()
        .map(|child| child.process)
        .filter(|child| child.is_alive())
        .collect();
    if !orphans.is_empty() {
        say(&format!(
            "ending {} daemons that an earlier supervisor has left",
            orphans.len()
        ));
        stop::end_all(&orphans, DAEMON_GRACE);
    }
}

/// A line to whoever reads stderr, terminal or log.
fn say(text: &str) {
    tell!("pronto dev: {text}");
}

/// One child and what is known of it.
struct Kept {
    role: Role,
    process: Option<Process>,
    started_at: Instant,
    backoff: Duration,
    deaths: u32,
}

/// What a child's watcher reports.
struct Ended {
    index: usize,
    status: std::io::Result<ExitStatus>,
}

struct Supervisor<'a> {
    layout: &'a Layout,
    launchers: u16,
    children: Vec<Kept>,
    ends: mpsc::Sender<Ended>,
}

async fn supervise(layout: &Layout, plan: Plan, roles: Vec<Role>) -> Outcome {
    let Plan {
        launchers,
        foreground,
        until_gone,
    } = plan;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (ends, mut ended) = mpsc::channel(ENDS);
    let children = roles
        .into_iter()
        .map(|role| Kept {
            role,
            process: None,
            started_at: Instant::now(),
            backoff: BACKOFF_FIRST,
            deaths: 0,
        })
        .collect();
    let mut supervisor = Supervisor {
        layout,
        launchers,
        children,
        ends,
    };
    let begun = Instant::now();
    for index in 0..supervisor.children.len() {
        if let Err(failure) = supervisor.start(index) {
            supervisor.end().await;
            return Err(failure);
        }
    }
    let (due, mut dues) = mpsc::channel(ENDS);
    let mut owner_look = tokio::time::interval(OWNER_LOOK_INTERVAL);
    let mut readiness = Some(Box::pin(ready(layout, launchers, None)));
    let outcome = loop {
        tokio::select! {
            _ = interrupt.recv() => break Ok(OK),
            _ = terminate.recv() => break Ok(OK),
            _ = hangup.recv(), if foreground => break Ok(OK),
            _ = owner_look.tick(), if until_gone.is_some() => {
                if until_gone.is_some_and(|owner| !owner.is_alive()) {
                    break Ok(OK);
                }
            }
            Some(end) = ended.recv() => {
                let wait = supervisor.ended(&end);
                if readiness.is_some() && supervisor.children[end.index].deaths >= DEATHS_AT_START {
                    break Err(supervisor.cannot_start(end.index));
                }
                start_later(due.clone(), end.index, wait);
            }
            Some(index) = dues.recv() => {
                if let Err(failure) = supervisor.start(index) {
                    // A full disk or process table passes; the others must not go with it.
                    say(&failure.to_string());
                    start_later(due.clone(), index, BACKOFF_MOST);
                }
            }
            outcome = async {
                match &mut readiness {
                    Some(readiness) => readiness.await,
                    None => std::future::pending().await,
                }
            } => {
                readiness = None;
                match outcome {
                    Ok(()) => {
                        say(&format!(
                            "ready after {}: scheduler, controller, {launchers} launchers; data in {}",
                            units::show_duration(begun.elapsed()),
                            layout.directory().display()
                        ));
                        if foreground {
                            print_export(layout);
                            terminal::note("Ctrl-C ends it, with its workloads");
                        }
                    }
                    Err(failure) => break Err(failure),
                }
            }
        }
    };
    supervisor.end().await;
    outcome
}

/// Sends a child's index when it is due to be started again.
fn start_later(due: mpsc::Sender<usize>, index: usize, wait: Duration) {
    tokio::spawn(async move {
        tokio::time::sleep(wait).await;
        // The receiver goes only when the cluster ends.
        let _ = due.send(index).await;
    });
}

impl Supervisor<'_> {
    fn start(&mut self, index: usize) -> Result<(), Failure> {
        let kept = &mut self.children[index];
        let name = kept.role.name();
        let log = self.layout.log(&name);
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("can't write {}", log.display()))?;
        let mut command = std::process::Command::new(OWN_PROGRAM);
        command
            .arg0("pronto")
            .args(kept.role.arguments(self.layout))
            .current_dir(self.layout.directory())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // Ctrl-C in a terminal is for the supervisor, who ends them in order.
            .process_group(0);
        let mut child = tokio::process::Command::from(command)
            .spawn()
            .with_context(|| format!("can't start {name}"))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        kept.process = pid.and_then(Process::of);
        kept.started_at = Instant::now();
        let ends = self.ends.clone();
        tokio::spawn(async move {
            let status = child.wait().await;
            // The receiver goes only when the cluster ends.
            let _ = ends.send(Ended { index, status }).await;
        });
        self.write_record()
    }

    /// Notes a child's end; says how long to wait before it is started again.
    fn ended(&mut self, end: &Ended) -> Duration {
        let kept = &mut self.children[end.index];
        let name = kept.role.name();
        let pid = kept.process.take().map_or(0, |process| process.pid);
        if kept.started_at.elapsed() >= STABLE {
            kept.backoff = BACKOFF_FIRST;
        }
        let wait = kept.backoff;
        kept.backoff = (kept.backoff * 2).min(BACKOFF_MOST);
        kept.deaths += 1;
        let how = match &end.status {
            Ok(status) => ending(*status),
            Err(error) => format!("was lost: {error}"),
        };
        let again = units::show_duration(wait);
        say(&format!(
            "{name} (pid {pid}) {how}; starting it again in {again}"
        ));
        if end
            .status
            .as_ref()
            .is_ok_and(|status| status.code().is_some_and(|code| code != 0))
        {
            let log = self.layout.log(&name);
            say(&format!(
                "{}: {}",
                log.display(),
                super::process::last_lines(&log, 1)
            ));
        }
        wait
    }

    fn cannot_start(&self, index: usize) -> Failure {
        let name = self.children[index].role.name();
        let log = self.layout.log(&name);
        let last = super::process::last_lines(&log, 1);
        Failure::new(Exit::Failed, format!("{name} does not start: {last}"))
            .hint(format!("{} has it all", log.display()))
    }

    fn write_record(&self) -> Result<(), Failure> {
        let supervisor = Process::own().context("can't read /proc/self/stat")?;
        let children = self
            .children
            .iter()
            .filter_map(|kept| {
                Some(ChildRecord {
                    name: kept.role.name(),
                    process: kept.process?,
                })
            })
            .collect();
        let record = Record {
            supervisor,
            launchers: self.launchers,
            children,
        };
        let bytes = serde_json::to_vec_pretty(&record).map_err(anyhow::Error::from)?;
        replace(&self.layout.record(), &bytes)
    }

    /// Workloads first, while there is somebody to stop them; then the daemons, each after those
    /// that talk to it.
    async fn end(self) {
        say("ending the cluster with its workloads");
        if let Err(failure) = stop_workloads(self.layout).await {
            say(&format!(
                "workloads are ended with their shims, since they could not be stopped: {failure}"
            ));
        }
        for name in ["launcher", "controller", "scheduler"] {
            let group: Vec<Process> = self
                .children
                .iter()
                .filter(|kept| kept.role.name().starts_with(name))
                .filter_map(|kept| kept.process)
                .collect();
            // Their watchers must reap them meanwhile, so this thread may not be held.
            let ending = tokio::task::spawn_blocking(move || stop::end_all(&group, DAEMON_GRACE));
            let _ = ending.await;
        }
        stop::end_leftovers(self.layout).await;
        remove_record(self.layout);
        say("ended");
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Stops every living instance and waits until none is left.
async fn stop_workloads(layout: &Layout) -> Result<(), Failure> {
    let mut client = admin(layout)?;
    let deadline = Instant::now() + WORKLOADS_LIMIT;
    let mut asked = std::collections::HashSet::new();
    loop {
        let live = living(&mut client).await?;
        if live.is_empty() {
            return Ok(());
        }
        for id in live {
            if asked.insert(id) {
                let request = api::StopRequest {
                    grace_ms: Some(WORKLOAD_GRACE_MS),
                };
                let to = path(&["instances", &id.to_string(), "stop"]);
                match client
                    .send::<api::Instance>(Method::POST, &to, &request)
                    .await
                {
                    Ok(_) => {}
                    // It ended by itself meanwhile.
                    Err(failure) if matches!(failure.exit, Exit::Conflict | Exit::NotFound) => {}
                    Err(failure) => return Err(failure),
                }
            }
            if Instant::now() > deadline {
                return Err(Failure::new(
                    Exit::TimedOut,
                    format!("some live after {WORKLOADS_LIMIT:?}"),
                ));
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn living(client: &mut Client) -> Result<Vec<uuid::Uuid>, Failure> {
    let asked = api::ListInstances {
        state: Some("live".to_owned()),
        limit: Some(PAGE),
        ..api::ListInstances::default()
    };
    let list: api::InstanceList = client.get(&query(path(&["instances"]), &asked)?).await?;
    Ok(list
        .instances
        .into_iter()
        .map(|instance| instance.id)
        .collect())
}
