//! Containers, through the API of a Docker engine.
//!
//! One task an attempt (`attempt`) does everything that concerns its container and keeps the order
//! of what it was told; `adopt` finds out what became of an earlier process's. `engine` knows
//! whether there is an engine; `spec` and `verdict` translate between jobs and the engine's words
//! and are pure; `image` pulls, `output` copies logs, `session` runs commands inside; `end` finds
//! all containers without a runtime; `bare` is what benches compare with. The engine is the only
//! book: every container carries its attempt's name and labels, and is found by them.
//!
//! Invariants: a container of ours belongs to exactly one attempt; nothing is said to have ended
//! because the engine is away; after `Emptied` or `Failed` the engine knows no container of it.
//!
//! It does not fence: a container is the engine's child, and nobody ends it while the launcher is
//! dead.

mod adopt;
mod attempt;
mod bare;
mod end;
mod engine;
mod image;
mod output;
mod session;
mod spec;
mod verdict;

pub use bare::BareContainer;
pub use end::end_containers;

use super::exec::{NodeVariables, variables};
use super::{BoxFuture, Events, ExecSession, FileRoot, Offers, Readiness, Refused, Runtime};
use crate::data_dir::DataDir;
use crate::moment::Moment;
use crate::supervisor::{Event, Job, StopCause};
use attempt::{Attempt, Order};
use bollard::query_parameters::{ListContainersOptionsBuilder, StatsOptionsBuilder};
use engine::Engine;
use futures_util::StreamExt;
use pronto_payloads::demand::Runtime as Kind;
use pronto_payloads::ids::NodeUuid;
use pronto_payloads::instance::{End, InstanceUsage, Usage};
use pronto_payloads::place::AttemptId;
use pronto_payloads::stream::StreamFailure;
use rustc_hash::FxHashMap;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

/// Measurements asked of the engine at once: each costs it a read of a dozen files.
const STATS_AT_ONCE: usize = 16;
/// A measurement that takes longer is left out this time, so that the others are not late.
const STATS_TIMEOUT: Duration = Duration::from_millis(800);

/// What the docker runtime is made with.
#[derive(Clone, Debug)]
pub struct DockerSettings {
    /// The engine: `unix:///path`, a path, or `tcp://host:port`. Absent: `DOCKER_HOST`, else the
    /// usual socket.
    pub host: Option<String>,
    /// Where attempts' directories are.
    pub data_dir: DataDir,
    /// The data directory's identity, in each container's labels.
    pub node_uuid: NodeUuid,
    /// What the node tells of itself.
    pub node: NodeVariables,
    /// Ask the engine for GPU devices; needs its NVIDIA runtime.
    pub gpu_requests: bool,
    /// Total size of an attempt's log, unless its START says otherwise.
    pub log_cap_bytes: u64,
}

/// What is known of one attempt outside of its task.
#[derive(Default)]
struct View {
    running: AtomicBool,
    usage: Mutex<Usage>,
    stdin: Mutex<Option<Box<dyn AsyncWrite + Send + Unpin>>>,
}

impl View {
    fn set_running(&self, running: bool) {
        self.running.store(running, Ordering::Release);
    }

    fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    fn usage(&self) -> Usage {
        *lock(&self.usage)
    }

    fn set_stdin(&self, stdin: Box<dyn AsyncWrite + Send + Unpin>) {
        *lock(&self.stdin) = Some(stdin);
    }
}

/// An attempt that has a task.
#[derive(Clone)]
struct Entry {
    orders: mpsc::UnboundedSender<Order>,
    view: Arc<View>,
}

/// What all tasks share.
struct Shared {
    settings: DockerSettings,
    engine: Engine,
    events: Events,
    entries: Mutex<FxHashMap<AttemptId, Entry>>,
    /// `docker.json` is written.
    traced: AtomicBool,
    /// `adopt` was called: what is not in the entries is nobody's.
    adopted: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn directory(&self, id: AttemptId) -> PathBuf {
        self.settings.data_dir.attempt(&id)
    }

    /// Pronto's variables and the workload's. The defaults for processes of the node stay out: an
    /// image brings its own.
    fn environment(&self, job: &Job) -> Vec<String> {
        let brought = |name: &str| job.body.env.iter().any(|variable| variable.name == name);
        let mut variables = variables(job, &self.settings.node, Path::new(spec::FILES));
        variables.retain(|variable| {
            let name = variable.split('=').next().unwrap_or_default();
            brought(name) || !["PATH", "HOME", "LANG"].contains(&name)
        });
        variables
    }

    /// Sees to it that containers can be found from the data directory alone.
    fn leave_trace(&self) -> std::io::Result<()> {
        if !self.traced.swap(true, Ordering::Relaxed) {
            let settings = &self.settings;
            end::leave_trace(&settings.data_dir, self.engine.host(), settings.node_uuid)?;
        }
        Ok(())
    }

    fn log_cap(&self, job: &Job) -> u64 {
        job.body
            .log_cap_bytes
            .unwrap_or(self.settings.log_cap_bytes)
    }

    /// Files are mounted only where the engine sees the same file system.
    fn files(&self, job: &Job) -> Option<FileRoot> {
        let path = self.settings.data_dir.work(&job.id);
        (self.engine.is_local() && spec::uses_files(job)).then_some(FileRoot { path, owner: None })
    }

    fn entry(&self, id: AttemptId) -> Option<Entry> {
        lock(&self.entries).get(&id).cloned()
    }

    fn forget(&self, id: AttemptId) {
        lock(&self.entries).remove(&id);
    }

    /// Measures what runs, and remembers it for the end.
    async fn measure(&self, id: AttemptId, view: Arc<View>) -> Option<InstanceUsage> {
        let client = self.engine.now()?;
        let options = StatsOptionsBuilder::new()
            .stream(false)
            .one_shot(true)
            .build();
        let name = spec::name(id);
        let mut stats = client.stats(&name, Some(options));
        let measured = timeout(STATS_TIMEOUT, stats.next()).await.ok()??.ok()?;
        let usage = verdict::usage_of(&measured, &view.usage());
        *lock(&view.usage) = usage;
        Some(InstanceUsage { id, usage })
    }

    /// Removes containers of this node that no attempt is known for: made by a request whose
    /// answer nobody waited for. Looks each time the engine comes.
    async fn sweep(self: Arc<Self>) {
        self.adopted.notified().await;
        self.engine.up().await;
        loop {
            let label = format!("{}={}", spec::LABEL_NODE, self.settings.node_uuid);
            let filters = HashMap::from([("label".to_owned(), vec![label])]);
            let list = self
                .engine
                .call(|client| {
                    let options = ListContainersOptionsBuilder::new()
                        .all(true)
                        .filters(&filters)
                        .build();
                    async move { client.list_containers(Some(options)).await }
                })
                .await;
            let known: Vec<String> = lock(&self.entries)
                .keys()
                .map(|id| spec::name(*id))
                .collect();
            let named = list.unwrap_or_default().into_iter().filter_map(|found| {
                found
                    .names?
                    .first()
                    .map(|name| name.trim_start_matches('/').to_owned())
            });
            for name in named.filter(|name| !known.contains(name)) {
                tracing::warn!(container = %name, "nobody's container is removed");
                attempt::remove(&self.engine, &name, true).await;
            }
            self.engine.returned().await;
        }
    }
}

/// The docker runtime.
pub struct DockerRuntime {
    shared: Arc<Shared>,
    handle: Handle,
}

impl fmt::Debug for DockerRuntime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attempts = lock(&self.shared.entries).len();
        formatter
            .debug_struct("DockerRuntime")
            .field("attempts", &attempts)
            .finish_non_exhaustive()
    }
}

impl DockerRuntime {
    /// Begins to look for the engine on the current tokio runtime, and offers `docker` while there
    /// is one.
    #[must_use]
    pub fn new(settings: DockerSettings, offers: Offers, events: Events) -> Self {
        let shared = Arc::new(Shared {
            engine: Engine::new(&settings, offers),
            events,
            entries: Mutex::default(),
            traced: AtomicBool::new(false),
            adopted: Notify::new(),
            settings,
        });
        let handle = Handle::current();
        handle.spawn(shared.clone().sweep());
        Self { shared, handle }
    }

    /// Makes the books for an attempt and its task's parts.
    fn attempt(&self, job: &Arc<Job>) -> Attempt {
        let (sender, orders) = mpsc::unbounded_channel();
        let view = Arc::new(View::default());
        let entry = Entry {
            orders: sender,
            view: view.clone(),
        };
        lock(&self.shared.entries).insert(job.id, entry);
        Attempt {
            shared: self.shared.clone(),
            view,
            job: job.clone(),
            orders,
            asked: false,
            live: Mutex::default(),
        }
    }

    fn order(&self, id: AttemptId, order: Order) -> bool {
        self.shared
            .entry(id)
            .is_some_and(|entry| entry.orders.send(order).is_ok())
    }

    fn running(&self, id: AttemptId) -> Result<Entry, Refused> {
        self.shared
            .entry(id)
            .filter(|entry| entry.view.is_running())
            .ok_or_else(|| Refused::new(StreamFailure::NotFound, "its container does not run"))
    }
}

impl Runtime for DockerRuntime {
    fn kind(&self) -> Kind {
        Kind::Docker
    }

    fn prepare(&self, job: &Arc<Job>) -> Readiness {
        self.handle.spawn(self.attempt(job).fresh());
        Readiness::Later
    }

    fn start(&self, job: &Arc<Job>, _fence_at: Option<Moment>) {
        self.order(job.id, Order::Start);
    }

    fn stop(&self, id: AttemptId, cause: StopCause, grace_ms: u64) {
        if !self.order(id, Order::Stop { cause, grace_ms }) {
            let end = End {
                cause: cause.end_cause(),
                message: String::new(),
            };
            self.shared.events.tell(Event::Failed { id, end });
        }
    }

    fn adopt(&self, jobs: Vec<Arc<Job>>) {
        let attempts: Vec<Attempt> = jobs.iter().map(|job| self.attempt(job)).collect();
        for attempt in attempts {
            self.handle.spawn(attempt.adopted());
        }
        self.shared.adopted.notify_one();
    }

    fn usages(&self) -> BoxFuture<'_, Vec<InstanceUsage>> {
        let running: Vec<(AttemptId, Arc<View>)> = lock(&self.shared.entries)
            .iter()
            .filter(|(_, entry)| entry.view.is_running())
            .map(|(id, entry)| (*id, entry.view.clone()))
            .collect();
        let measures = running
            .into_iter()
            .map(|(id, view)| self.shared.measure(id, view));
        Box::pin(
            futures_util::stream::iter(measures)
                .buffer_unordered(STATS_AT_ONCE)
                .filter_map(std::future::ready)
                .collect(),
        )
    }

    fn exec(
        &self,
        id: AttemptId,
        command: Vec<String>,
    ) -> BoxFuture<'_, Result<ExecSession, Refused>> {
        Box::pin(async move {
            self.running(id)?;
            let away = || Refused::new(StreamFailure::Failed, "the Docker engine does not answer");
            let client = self.shared.engine.now().ok_or_else(away)?;
            session::exec(
                client,
                &spec::name(id),
                command,
                self.shared.engine.is_local(),
            )
            .await
        })
    }

    fn stdin(
        &self,
        id: AttemptId,
    ) -> BoxFuture<'_, Result<Box<dyn AsyncWrite + Send + Unpin>, Refused>> {
        Box::pin(async move {
            let entry = self.running(id)?;
            lock(&entry.view.stdin).take().ok_or_else(|| {
                Refused::new(
                    StreamFailure::Unsupported,
                    "its standard input was not asked for, or is taken",
                )
            })
        })
    }

    fn files(&self, job: &Job) -> Option<FileRoot> {
        self.shared.files(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::record::JOB_FORMAT;
    use pronto_payloads::demand::Demand;
    use pronto_payloads::ids::{Attempt as Number, BootId, ControllerEpoch, InstanceId, OwnerId};
    use pronto_payloads::instance::EndCause;
    use pronto_payloads::start::{DockerTask, StartBody, Task};

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_never_comes_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let settings = DockerSettings {
            host: Some(
                directory
                    .path()
                    .join("no.sock")
                    .to_string_lossy()
                    .into_owned(),
            ),
            data_dir: DataDir::new(directory.path().to_owned()),
            node_uuid: NodeUuid::default(),
            node: NodeVariables::default(),
            gpu_requests: false,
            log_cap_bytes: 1 << 20,
        };
        let (events, mut inbox) = Events::channel();
        let offers = Offers::new(Vec::new(), events.clone());
        let runtime = DockerRuntime::new(settings, offers.clone(), events);
        let job = Arc::new(Job {
            format: JOB_FORMAT,
            id: AttemptId {
                owner: OwnerId::default(),
                instance: InstanceId::default(),
                attempt: Number(1),
            },
            controller_epoch: ControllerEpoch(1),
            demand: Demand::default(),
            gpus: Vec::new(),
            received_at: Moment(0),
            boot_id: BootId::default(),
            body: StartBody::new("t", Task::Docker(DockerTask::default())),
        });
        assert_eq!(runtime.prepare(&job), Readiness::Later);
        let Some(Event::Failed { end, .. }) = inbox.recv().await else {
            panic!("it fails")
        };
        assert_eq!(
            end.cause,
            EndCause::Rejected,
            "another node may have an engine"
        );
        assert_eq!(offers.now(), Vec::new());
        // One that is adopted waits, whatever time it takes.
        runtime.adopt(vec![job]);
        let waited = timeout(Duration::from_secs(86_400), inbox.recv()).await;
        assert!(waited.is_err(), "{waited:?}");
    }
}
