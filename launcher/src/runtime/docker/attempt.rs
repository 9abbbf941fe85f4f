//! One attempt's container, from image to removal: a task that takes orders and tells events.
//!
//! ```text
//! ready ──▶ (Prepared) ──Start──▶ started ──▶ (Started) ──▶ ended ──▶ copied ──▶ removed
//!   └── Failed ◀──┴── Stop           └── Failed     ▲ adopted
//! ```
//!
//! The container's name is the attempt's, so a request that is repeated after the engine's absence
//! makes no second one, and a mark in the attempt's directory is written before the first request
//! to start. Whoever finds neither mark nor container knows that nothing ever ran; whoever finds a
//! mark and no container knows that it is gone. An end is on disk before its container is removed.

use super::adopt::Exit;
use super::engine::{Engine, has_status, is_away};
use super::output::{Copy, Fate, Position};
use super::session::Output;
use super::spec::{self, Surroundings};
use super::{Shared, View, image, session, verdict};
use crate::data_dir::key;
use crate::logs::{self, LogWriter};
use crate::moment::Moment;
use crate::supervisor::{Event, Job, StopCause};
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, ContainerState};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use pronto_payloads::instance::{End, EndCause};
use pronto_payloads::start::{DockerTask, Task};
use pronto_payloads::stream::Channel;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// What has not been started waits so long for an absent engine; then another node may have it.
const ENGINE_PATIENCE: Duration = Duration::from_secs(30);
/// After its container's end, output is normally complete at once.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries to kill a container.
const REKILL_INTERVAL: Duration = Duration::from_secs(1);
/// Between looks at a container whose removal is under way.
const REMOVAL_INTERVAL: Duration = Duration::from_millis(50);
/// Written before the first request to start.
const STARTED_MARK: &str = "docker-started";

/// What the executor's thread asks of an attempt. At most one Start, and few Stops.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Start,
    Stop { cause: StopCause, grace_ms: u64 },
}

/// Why and until when a container is being ended.
#[derive(Clone, Copy, Debug)]
struct Stopping {
    cause: StopCause,
    kill_at: Instant,
}

pub(super) struct Attempt {
    pub(super) shared: Arc<Shared>,
    pub(super) view: Arc<View>,
    pub(super) job: Arc<Job>,
    pub(super) orders: UnboundedReceiver<Order>,
    /// The engine was asked to make the container: one may be there, whatever was answered.
    pub(super) asked: bool,
    /// The container's output, between its start and its copy. The lock is never contended: it
    /// makes a stream shareable that its maker did not.
    pub(super) live: Mutex<Option<Output>>,
}

/// Why a container did not come to be, or to run.
type Failure = End;

fn stopped(cause: StopCause) -> End {
    End {
        cause: cause.end_cause(),
        message: String::new(),
    }
}

impl Attempt {
    pub(super) fn name(&self) -> String {
        spec::name(self.job.id)
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.shared.directory(self.job.id)
    }

    pub(super) fn tell(&self, event: Event) {
        self.shared.events.tell(event);
    }

    /// A new attempt, until it is empty.
    pub(super) async fn fresh(mut self) {
        match self.until_started().await {
            Ok(started_at) => {
                self.view.set_running(true);
                self.tell(Event::Started {
                    id: self.job.id,
                    at: started_at,
                });
                self.tell_ports().await;
                let exit = self.watch(started_at).await;
                self.conclude(exit).await;
            }
            Err(end) => {
                // An engine that is away would delay the answer for as long as it is.
                if self.asked {
                    self.remove().await;
                }
                self.tell(Event::Failed {
                    id: self.job.id,
                    end,
                });
            }
        }
        self.shared.forget(self.job.id);
    }

    async fn until_started(&mut self) -> Result<Moment, Failure> {
        let shared = self.shared.clone();
        let up = timeout(ENGINE_PATIENCE, shared.engine.up());
        self.or_stopped(up)
            .await?
            .map_err(|_| verdict::rejected("the node's Docker engine does not answer"))?;
        let job = self.job.clone();
        let Task::Docker(task) = &job.body.task else {
            return Err(verdict::rejected("not a container"));
        };
        let mut log = LogWriter::new(self.directory(), self.shared.log_cap(&job));
        if let Err(error) = log.resume() {
            tracing::warn!(%error, "an attempt's log can't be continued");
        }
        self.or_stopped(image::ensure(&shared.engine, &task.image, &mut log))
            .await??;
        drop(log);
        shared.leave_trace().map_err(|error| {
            verdict::rejected(format!("the data directory can't be written: {error}"))
        })?;
        self.asked = true;
        self.create(task).await?;
        self.tell(Event::Prepared(job.id));
        match self.orders.recv().await {
            Some(Order::Start) => self.start().await,
            Some(Order::Stop { cause, .. }) => Err(stopped(cause)),
            // The launcher ends; the next one finds what there is.
            None => std::future::pending().await,
        }
    }

    /// Work that nothing but time is lost with when a Stop breaks it off.
    async fn or_stopped<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            order = self.orders.recv() => match order {
                Some(Order::Stop { cause, .. }) => Err(stopped(cause)),
                Some(Order::Start) => Err(verdict::rejected("started before it was prepared")),
                None => std::future::pending().await,
            },
            result = work => Ok(result),
        }
    }

    async fn create(&self, task: &DockerTask) -> Result<(), Failure> {
        let (job, shared, name) = (&self.job, &self.shared, self.name());
        let environment = shared.environment(job);
        let files = shared.files(job).map(|root| root.path);
        if let Some(path) = &files {
            make_files(path).map_err(|error| {
                verdict::rejected(format!("its working directory can't be made: {error}"))
            })?;
        }
        let around = Surroundings {
            node: shared.settings.node_uuid,
            environment: &environment,
            files: files.as_deref(),
            gpu_requests: shared.settings.gpu_requests,
        };
        let body = spec::container(job, task, around);
        loop {
            let options = CreateContainerOptionsBuilder::new().name(&name).build();
            let made = shared
                .engine
                .call(|client| {
                    let (options, body) = (options.clone(), body.clone());
                    async move { client.create_container(Some(options), body).await }
                })
                .await;
            match made {
                Ok(made) => {
                    for warning in made.warnings {
                        tracing::info!(container = %name, %warning, "the Docker engine warns");
                    }
                    return Ok(());
                }
                // Of an earlier request whose answer was lost, and never started: an attempt that
                // was is adopted and not prepared.
                Err(error) if has_status(&error, 409) => self.remove().await,
                Err(error) => return Err(verdict::not_created(&error)),
            }
        }
    }

    async fn start(&mut self) -> Result<Moment, Failure> {
        let name = self.name();
        self.mark().map_err(|error| {
            verdict::rejected(format!("the attempt's directory can't be written: {error}"))
        })?;
        let attached = session::attach(&self.shared.engine, &name, self.job.body.stdin, &self.view);
        let attached = attached.await;
        self.live = attached
            .inspect_err(|error| tracing::warn!(container = %name, %error, "not attached"))
            .ok()
            .into();
        loop {
            let client = self.shared.engine.up().await;
            match client.start_container(&name, None).await {
                Ok(()) => break,
                Err(error) if is_away(&error) => {
                    self.shared.engine.suspect().await;
                    // What was attached to is gone with it.
                    self.live = Mutex::default();
                    // The answer was lost, and perhaps the request. To repeat it is safe only as
                    // long as the container never ran.
                    match self.inspect().await {
                        Ok(found) if found.state.as_ref().is_some_and(verdict::was_started) => {
                            return Ok(self.started_at(&found));
                        }
                        Ok(_) => {}
                        Err(error) => return Err(verdict::not_started(&error, None)),
                    }
                }
                Err(error) => {
                    let state = self.inspect().await.ok().and_then(|found| found.state);
                    return Err(verdict::not_started(&error, state.as_ref()));
                }
            }
        }
        Ok(Moment::now())
    }

    /// Writes down that it is about to run, and how much of its log is not its own.
    fn mark(&self) -> io::Result<()> {
        let own_bytes = Position::of(&self.directory(), 0)?.stderr_bytes;
        fs::write(self.directory().join(STARTED_MARK), own_bytes.to_string())
    }

    /// What [`Attempt::mark`] wrote, if it did.
    pub(super) fn marked(&self) -> Option<u64> {
        let text = fs::read_to_string(self.directory().join(STARTED_MARK)).ok()?;
        Some(text.parse().unwrap_or(0))
    }

    pub(super) async fn inspect(&self) -> Result<ContainerInspectResponse, Error> {
        let name = self.name();
        let name = &name;
        let inspect = |client: Docker| async move { client.inspect_container(name, None).await };
        self.shared.engine.call(inspect).await
    }

    pub(super) fn started_at(&self, found: &ContainerInspectResponse) -> Moment {
        moment(
            found
                .state
                .as_ref()
                .and_then(|state| state.started_at.as_deref()),
        )
    }

    /// Tells in the log which ports the engine chose where the workload left that to it.
    async fn tell_ports(&self) {
        let Task::Docker(task) = &self.job.body.task else {
            return;
        };
        if task.ports.iter().all(|port| port.host != 0) {
            return;
        }
        let Ok(found) = self.inspect().await else {
            return;
        };
        let ports = found
            .network_settings
            .and_then(|network| network.ports)
            .unwrap_or_default();
        let mut log = LogWriter::new(self.directory(), self.shared.log_cap(&self.job));
        let mut written = log.resume();
        for (guest, bindings) in ports {
            let bound = bindings
                .unwrap_or_default()
                .into_iter()
                .find_map(|one| one.host_port);
            if let Some(host) = bound {
                let line = format!("pronto: port {guest} is the node's port {host}\n");
                let append = |()| log.append(Channel::Stderr, logs::unix_ms(), line.as_bytes());
                written = written.and_then(append);
            }
        }
        if let Err(error) = written.and_then(|()| self.mark()) {
            tracing::warn!(%error, "an attempt's log can't be written");
        }
    }

    /// Begins to copy the container's output.
    pub(super) fn copy(&mut self, fate: watch::Receiver<Fate>) -> JoinHandle<()> {
        let copy = Copy {
            engine: self.shared.engine.clone(),
            container: self.name(),
            directory: self.directory(),
            cap_bytes: self.shared.log_cap(&self.job),
            own_bytes: self.marked().unwrap_or(0),
            fate,
        };
        tokio::spawn(copy.run(super::lock(&self.live).take()))
    }

    /// A running container, until it has ended and its end is on disk.
    pub(super) async fn watch(&mut self, started_at: Moment) -> Exit {
        let (fate, told) = watch::channel(Fate::Running);
        let output = self.copy(told);
        let ended = self.until_ended(&fate).await;
        self.view.set_running(false);
        self.settle(started_at, ended, output).await
    }

    /// Waits for the end, and brings it about when a Stop comes.
    async fn until_ended(&mut self, fate: &watch::Sender<Fate>) -> Ended {
        let (shared, name) = (self.shared.clone(), self.name());
        let mut end = pin!(end_of(&shared.engine, &name, fate));
        let mut stopping: Option<Stopping> = None;
        let mut orders_open = true;
        let state = loop {
            let kill_at = stopping.map(|one| one.kill_at);
            tokio::select! {
                state = &mut end => break state,
                order = self.orders.recv(), if orders_open => match order {
                    Some(Order::Stop { cause, grace_ms }) => {
                        let now = Instant::now();
                        let kill_at = now + Duration::from_millis(grace_ms);
                        let first = stopping.is_none();
                        let one = stopping.get_or_insert(Stopping { cause, kill_at });
                        one.kill_at = one.kill_at.min(kill_at);
                        if first && one.kill_at > now {
                            let signal = self.stop_signal().await;
                            self.signal(&signal).await;
                        }
                    }
                    Some(Order::Start) => {}
                    None => orders_open = false,
                },
                () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                    self.signal("SIGKILL").await;
                    // The engine may have refused it, or be away just now.
                    if let Some(one) = &mut stopping {
                        one.kill_at = Instant::now() + REKILL_INTERVAL;
                    }
                }
            }
        };
        Ended {
            at: Moment::now(),
            state,
            cause: stopping.map(|one| one.cause),
        }
    }

    /// The image's own signal for a gentle end.
    async fn stop_signal(&self) -> String {
        let found = self.inspect().await.ok();
        let signal = found.and_then(|found| found.config?.stop_signal);
        signal
            .filter(|signal| !signal.is_empty())
            .unwrap_or_else(|| "SIGTERM".to_owned())
    }

    async fn signal(&self, signal: &str) {
        let name = &self.name();
        let sent = self
            .shared
            .engine
            .call(|client: Docker| async move {
                let options = KillContainerOptionsBuilder::new().signal(signal).build();
                client.kill_container(name, Some(options)).await
            })
            .await;
        if let Err(error) = sent {
            // It has ended meanwhile; the wait says so.
            tracing::debug!(container = %name, %error, "no signal");
        }
    }

    /// Completes the log and writes the end down.
    pub(super) async fn settle(
        &self,
        started_at: Moment,
        ended: Ended,
        output: JoinHandle<()>,
    ) -> Exit {
        let abort = output.abort_handle();
        if timeout(OUTPUT_PATIENCE, output).await.is_err() {
            tracing::warn!(container = %self.name(), "the engine does not end its output");
            abort.abort();
        }
        let usage = self.view.usage();
        let mut end = match &ended.state {
            Some(state) => verdict::of_state(state, &self.job.demand, &usage),
            None => End {
                cause: EndCause::NodeFailed,
                message: "its container was removed by someone else".to_owned(),
            },
        };
        if let Some(cause) = ended.cause {
            end.cause = cause.end_cause();
        }
        let exit = Exit::new(key(&self.job.id), started_at, ended.at, end, usage);
        if let Err(error) = exit.write(&self.directory()) {
            // Told all the same: only a crash before the acknowledgement would lose it.
            tracing::warn!(container = %self.name(), %error, "its end can't be written down");
        }
        exit
    }

    pub(super) async fn conclude(&self, exit: Exit) {
        let Exit {
            ended_at: at,
            end,
            usage,
            ..
        } = exit;
        self.tell(Event::Ended {
            id: self.job.id,
            at,
            end,
            usage,
        });
        self.remove().await;
        self.tell(Event::Emptied(self.job.id));
    }

    /// Removes the container, running or not, with its anonymous volumes; returns when it is gone.
    pub(super) async fn remove(&self) {
        remove(&self.shared.engine, &self.name(), true).await;
    }
}

/// The end of a container as the engine tells it.
pub(super) struct Ended {
    pub(super) at: Moment,
    /// Absent: it was removed under our hands.
    pub(super) state: Option<ContainerState>,
    /// We ended it, for this reason.
    pub(super) cause: Option<StopCause>,
}

/// Open to whatever user the image has; the attempt's own directory above it is not.
fn make_files(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))
}

pub(super) fn is_over(state: &ContainerState) -> bool {
    use bollard::models::ContainerStateStatusEnum as Status;
    matches!(
        state.status,
        Some(Status::EXITED | Status::DEAD | Status::REMOVING)
    )
}

pub(super) fn moment(text: Option<&str>) -> Moment {
    let unix_ns = i128::from(logs::unix_ms()) * 1_000_000;
    verdict::moment_of(text, Moment::now(), unix_ns)
}

/// Waits until a container has ended, over any absence of its engine. None: there is none.
async fn end_of(engine: &Engine, name: &str, fate: &watch::Sender<Fate>) -> Option<ContainerState> {
    loop {
        let client = engine.up().await;
        let options = WaitContainerOptionsBuilder::new()
            .condition("not-running")
            .build();
        let waited = client.wait_container(name, Some(options)).next().await;
        let answered = match &waited {
            Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => true,
            Some(Err(error)) => !is_away(error),
            None => false,
        };
        if !answered {
            fate.send_replace(Fate::Interrupted);
        }
        // Whatever was answered, the engine's own view of the container decides.
        match client.inspect_container(name, None).await {
            Ok(found) => {
                let state = found.state.unwrap_or_default();
                if is_over(&state) {
                    fate.send_if_modified(|fate| {
                        let unbroken = *fate == Fate::Running;
                        if unbroken {
                            *fate = Fate::Ended;
                        }
                        unbroken
                    });
                    return Some(state);
                }
            }
            Err(error) if has_status(&error, 404) => return None,
            Err(_) => {}
        }
        fate.send_replace(Fate::Interrupted);
        tracing::debug!(container = %name, ?waited, "a wait was broken off");
        engine.suspect().await;
    }
}

/// Removes a container and returns when it is gone, or, without force, when it runs.
pub(super) async fn remove(engine: &Engine, name: &str, force: bool) {
    loop {
        let removed = engine
            .call(|client: Docker| async move {
                let options = RemoveContainerOptionsBuilder::new()
                    .force(force)
                    .v(true)
                    .build();
                client.remove_container(name, Some(options)).await
            })
            .await;
        match removed {
            Ok(()) => return,
            Err(error) if has_status(&error, 404) => return,
            // Running, without force; or its removal is under way.
            Err(error) if has_status(&error, 409) && !force => return,
            Err(error) if has_status(&error, 409) => {}
            Err(error) => {
                tracing::warn!(container = %name, %error, "can't be removed; tried again");
                engine.suspect().await;
            }
        }
        sleep(REMOVAL_INTERVAL).await;
    }
}
