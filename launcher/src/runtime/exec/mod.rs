//! Processes, each in a session and control group of its own, owned by the shim.
//!
//! This side translates: a job into a [`Spawn`] request, the shim's messages into events. It keeps
//! nothing that it could not learn again from the shim and the attempts' directories.
//!
//! A shim that vanishes takes its workloads along (the kernel kills their main processes, and the
//! next shim clears its control groups); they end as failures of the node.

mod environment;
mod feed;
mod link;

pub use environment::{NodeVariables, own_user, user, variables};

use super::{BoxFuture, Events, ExecSession, FileRoot, Readiness, Refused, Runtime};
use crate::cgroup::{self, Hierarchy, Limits};
use crate::data_dir::{DataDir, key};
use crate::moment::Moment;
use crate::shim::join::Join;
use crate::shim::message::{
    EXIT_FILE, Exit, FORMAT, FromShim, Key, STDIN_PIPE, ShimSettings, Spawn, ToShim,
};
use crate::shim::sys::User;
use crate::supervisor::{Event, Found, Job, StopCause};
use anyhow::Context;
use feed::Feed;
use link::{Greeted, Outbox, ShimPlace};
use pronto_payloads::demand::Runtime as Kind;
use pronto_payloads::ids::OwnerId;
use pronto_payloads::instance::{End, EndCause, InstanceUsage, Usage};
use pronto_payloads::place::AttemptId;
use pronto_payloads::start::{ExecTask, Task};
use pronto_payloads::stream::StreamFailure;
use rustc_hash::FxHashMap;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWrite;

/// Tasks of a workload that does not say: a fork bomb ends here.
pub const PIDS_LIMIT: u32 = 4096;
/// A shim without work and launcher ends itself after this long.
const IDLE_EXIT: Duration = Duration::from_secs(60);
/// Workloads younger than this are not measured: they are over before anybody reads it.
const MEASURE_AGE: Duration = Duration::from_millis(500);
/// Between two attempts to start a shim that does not start.
const SHIM_RETRY: Duration = Duration::from_secs(1);

/// What the exec runtime needs to know.
#[derive(Clone, Debug)]
pub struct ExecSettings {
    /// Where attempts' directories are.
    pub data_dir: DataDir,
    /// Program and arguments that run [`crate::shim::main`].
    pub shim_command: Vec<String>,
    /// What enforces limits; absent: rlimits.
    pub hierarchy: Option<Hierarchy>,
    /// Whom workloads run as that name nobody; absent: this process's own user.
    pub user: Option<User>,
    /// Each instance has a user of its own instead.
    pub own_users: bool,
    /// What the node tells of itself.
    pub node: NodeVariables,
    /// Total size of an attempt's log, unless its START says otherwise.
    pub log_cap_bytes: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct ExecRuntime {
    inner: Arc<Inner>,
    /// Taken by `adopt`.
    greeted: Mutex<Option<Greeted>>,
    /// Reads what the shim says; ends with this runtime.
    driver: Mutex<Option<tokio::task::AbortHandle>>,
    tokio: tokio::runtime::Handle,
}

impl Drop for ExecRuntime {
    fn drop(&mut self) {
        let driver = self
            .driver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(driver) = driver {
            driver.abort();
        }
    }
}

#[derive(Debug)]
struct Inner {
    settings: ExecSettings,
    place: ShimPlace,
    events: Events,
    outbox: Outbox,
    attempts: Mutex<FxHashMap<Key, Attempt>>,
}

/// An attempt that is prepared or more.
#[derive(Clone, Debug)]
struct Attempt {
    job: Arc<Job>,
    workdir: PathBuf,
    user: Option<User>,
    /// The shim was asked to start it.
    asked: bool,
    /// The shim has said that it has ended.
    ended: bool,
    running: Option<Running>,
}

#[derive(Clone, Debug)]
struct Running {
    pid: i32,
    since: Moment,
    group: Option<String>,
    group_cpu_us: u64,
}

impl ExecRuntime {
    /// Connects to the shim of the data directory, or starts one.
    ///
    /// # Errors
    /// If there is none and none can be started.
    pub async fn open(settings: ExecSettings, events: Events) -> anyhow::Result<Self> {
        let shim_dir = settings.data_dir.clone();
        Self::open_in(shim_dir, settings, events).await
    }

    /// The same with a shim whose socket lies in a directory of its own: two runtimes over one
    /// data directory must not share a shim, since each answers for all that its own has.
    ///
    /// # Errors
    /// If there is none and none can be started.
    pub async fn open_in(
        shim_dir: DataDir,
        settings: ExecSettings,
        events: Events,
    ) -> anyhow::Result<Self> {
        let place = ShimPlace {
            data_dir: shim_dir,
            command: settings.shim_command.clone(),
            settings: ShimSettings {
                format: FORMAT,
                hierarchy: settings.hierarchy.clone(),
                idle_exit_ms: u64::try_from(IDLE_EXIT.as_millis()).unwrap_or(u64::MAX),
            },
        };
        let greeted = place.open().await.context("the exec runtime has no shim")?;
        tracing::info!(pid = greeted.pid, "connected to the shim");
        let inner = Inner {
            settings,
            place,
            events,
            outbox: Outbox::default(),
            attempts: Mutex::default(),
        };
        inner.outbox.attach(Some(greeted.reader.socket.clone()));
        Ok(Self {
            inner: Arc::new(inner),
            greeted: Mutex::new(Some(greeted)),
            driver: Mutex::default(),
            tokio: tokio::runtime::Handle::current(),
        })
    }

    fn running(&self, id: AttemptId) -> Result<(Attempt, Running), Refused> {
        let attempt = self
            .inner
            .lock()
            .get(&key(&id))
            .filter(|attempt| !attempt.ended)
            .cloned();
        attempt
            .and_then(|attempt| Some((attempt.clone(), attempt.running?)))
            .ok_or_else(|| Refused::new(StreamFailure::NotFound, "the instance does not run"))
    }
}

/// Ends the shim of a data directory with all its workloads, if there is one.
///
/// # Errors
/// If it is there and can't be told.
pub async fn end_shim(data_dir: &DataDir, grace_ms: u64) -> anyhow::Result<()> {
    let settings = ShimSettings {
        format: FORMAT,
        hierarchy: None,
        idle_exit_ms: 0,
    };
    let place = ShimPlace {
        data_dir: data_dir.clone(),
        command: Vec::new(),
        settings,
    };
    // With an empty command nothing is started where nothing is.
    let Ok(mut greeted) = place.open().await else {
        return Ok(());
    };
    let outbox = Outbox::default();
    outbox.attach(Some(greeted.reader.socket.clone()));
    outbox.send(&ToShim::Shutdown { grace_ms });
    let mut said = Vec::new();
    while greeted.reader.read(&mut said).await? {
        said.clear();
    }
    Ok(())
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, FxHashMap<Key, Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exec_task(job: &Job) -> ExecTask {
        match &job.body.task {
            Task::Exec(task) => task.clone(),
            _ => ExecTask::default(),
        }
    }

    /// Whom and where a job runs as.
    fn identity(&self, job: &Job) -> Result<(Option<User>, PathBuf), End> {
        let task = Self::exec_task(job);
        let refused = |message: String| End {
            cause: EndCause::CannotExecute { code: 126 },
            message,
        };
        let user = match &task.user {
            None if self.settings.own_users => Some(own_user(&job.id.instance)),
            None => self.settings.user.clone(),
            Some(name) => {
                let user = user(name).map_err(refused)?;
                if user.uid == 0 && !job.body.privileged {
                    return Err(refused(format!("user {name} needs a privileged tenant")));
                }
                let own = rustix::process::geteuid();
                if !own.is_root() && own.as_raw() != user.uid {
                    return Err(refused(format!(
                        "user {name} needs a launcher that is root"
                    )));
                }
                own.is_root().then_some(user)
            }
        };
        let workdir = match task.workdir {
            Some(path) => PathBuf::from(path),
            None => self.settings.data_dir.work(&job.id),
        };
        Ok((user, workdir))
    }

    fn prepare(&self, job: &Arc<Job>) -> Result<(), End> {
        let task = Self::exec_task(job);
        if task.require_hard_limits && self.settings.hierarchy.is_none() {
            let message = "this node has no control groups to enforce limits with".into();
            return Err(End {
                cause: EndCause::Rejected,
                message,
            });
        }
        let (user, workdir) = self.identity(job)?;
        if task.workdir.is_none() {
            make_workdir(&workdir, user.as_ref()).map_err(|error| End {
                cause: EndCause::Rejected,
                message: format!("its working directory can't be made: {error}"),
            })?;
        }
        let attempt = Attempt {
            job: job.clone(),
            workdir,
            user,
            asked: false,
            ended: false,
            running: None,
        };
        self.lock().insert(key(&job.id), attempt);
        Ok(())
    }

    fn spawn_request(&self, attempt: &Attempt, fence_at: Option<Moment>) -> Spawn {
        let job = &attempt.job;
        let task = Self::exec_task(job);
        let demand = &job.demand;
        let mut environment = variables(job, &self.settings.node, &attempt.workdir);
        environment.shrink_to_fit();
        Spawn {
            key: key(&job.id),
            directory: self.settings.data_dir.attempt(&job.id),
            command: task.command,
            environment,
            workdir: attempt.workdir.clone(),
            user: attempt.user.clone(),
            umask: task.umask.unwrap_or(0o022),
            private_tmp: task.private_tmp,
            new_privileges: job.body.privileged,
            limits: Limits {
                memory_bytes: u64::from(demand.memory_mib) << 20,
                cpu_millis: demand.cpu_millis,
                hard_cpu: job.body.hard_cpu,
                pids: task.pids_limit.unwrap_or(PIDS_LIMIT),
            },
            stdin: job.body.stdin,
            log_cap_bytes: job
                .body
                .log_cap_bytes
                .unwrap_or(self.settings.log_cap_bytes),
            timeout_ms: job.body.timeout_ms,
            grace_ms: job.body.stop_grace_ms,
            owner: job.id.owner,
            stop_after_ms: job.stop_after_ms(),
            fence_at,
        }
    }

    /// Turns what the shim says into events.
    fn hear(&self, message: FromShim) {
        let mut attempts = self.lock();
        match message {
            FromShim::Started {
                key,
                at,
                pid,
                group,
                group_cpu_us,
            } => {
                if let Some(attempt) = attempts.get_mut(&key) {
                    attempt.running = Some(Running {
                        pid,
                        since: at,
                        group,
                        group_cpu_us,
                    });
                    self.events.tell(Event::Started {
                        id: attempt.job.id,
                        at,
                    });
                }
            }
            FromShim::Failed { key, end } => {
                if let Some(attempt) = attempts.remove(&key) {
                    self.events.tell(Event::Failed {
                        id: attempt.job.id,
                        end,
                    });
                }
            }
            FromShim::Ended {
                key,
                at,
                end,
                usage,
            } => {
                if let Some(attempt) = attempts.get_mut(&key) {
                    attempt.ended = true;
                    self.events.tell(Event::Ended {
                        id: attempt.job.id,
                        at,
                        end,
                        usage,
                    });
                }
            }
            FromShim::Emptied { key } => {
                if let Some(attempt) = attempts.remove(&key) {
                    self.events.tell(Event::Emptied(attempt.job.id));
                }
            }
            FromShim::Welcome { .. } | FromShim::Alive { .. } | FromShim::Listed => {}
        }
    }

    /// What became of a job, as the shim's list and the exit file tell.
    fn find(&self, job: &Arc<Job>, alive: &HashMap<Key, FromShim>, shim_since: Moment) -> Found {
        let key = key(&job.id);
        if let Some(FromShim::Alive {
            pid,
            started_at,
            fence_at,
            group,
            group_cpu_us,
            ..
        }) = alive.get(&key)
        {
            let (user, workdir) = self.identity(job).unwrap_or((None, PathBuf::from("/")));
            let running = Running {
                pid: *pid,
                since: *started_at,
                group: group.clone(),
                group_cpu_us: *group_cpu_us,
            };
            let attempt = Attempt {
                job: job.clone(),
                workdir,
                user,
                asked: true,
                ended: false,
                running: Some(running),
            };
            self.lock().insert(key, attempt);
            return Found::Running {
                started_at: *started_at,
                fence_at: *fence_at,
            };
        }
        match read_exit(&self.settings.data_dir.attempt(&job.id), &key) {
            Ok(Some(exit)) => Found::Ended {
                started_at: exit.started_at,
                ended_at: exit.ended_at,
                end: exit.end,
                usage: exit.usage,
            },
            // A shim that was there when the job came, and has neither it nor its exit, never
            // heard of it.
            Ok(None) if shim_since <= job.received_at => Found::NeverStarted,
            Ok(None) => Found::Lost("its shim has vanished, and its exit code with it".into()),
            Err(error) => Found::Lost(format!("its exit file can't be read: {error}")),
        }
    }

    async fn drive(self: Arc<Self>, mut greeted: Greeted) {
        loop {
            let mut said = std::mem::take(&mut greeted.said);
            loop {
                said.drain(..).for_each(|message| self.hear(message));
                tokio::select! {
                    read = greeted.reader.read(&mut said) => match read {
                        Ok(true) => {}
                        Ok(false) | Err(_) => break,
                    },
                    () = self.outbox.left.notified() => {
                        while !self.outbox.flush() {
                            if greeted.reader.socket.writable().await.is_err() {
                                break;
                            }
                        }
                    }
                }
            }
            tracing::error!("the shim has vanished; its workloads are lost");
            self.outbox.attach(None);
            greeted = self.reopen().await;
            self.lose();
            self.outbox.attach(Some(greeted.reader.socket.clone()));
        }
    }

    async fn reopen(&self) -> Greeted {
        loop {
            match self.place.open().await {
                Ok(greeted) => return greeted,
                Err(error) => tracing::error!("no shim can be started: {error:#}"),
            }
            tokio::time::sleep(SHIM_RETRY).await;
        }
    }

    /// Everything that the vanished shim was asked to run has failed. The new one has cleared the
    /// control groups before it answered.
    fn lose(&self) {
        let message = "its shim has vanished";
        let lost: Vec<Attempt> = {
            let mut attempts = self.lock();
            let keys: Vec<Key> = attempts
                .iter()
                .filter(|(_, attempt)| attempt.asked)
                .map(|(key, _)| key.clone())
                .collect();
            keys.iter().filter_map(|key| attempts.remove(key)).collect()
        };
        for attempt in lost {
            let end = End {
                cause: EndCause::NodeFailed,
                message: message.into(),
            };
            self.events.tell(Event::Failed {
                id: attempt.job.id,
                end,
            });
        }
    }

    fn usages(&self) -> Vec<InstanceUsage> {
        let now = Moment::now();
        let running: Vec<(AttemptId, Running)> = self
            .lock()
            .values()
            .filter(|attempt| !attempt.ended)
            .filter_map(|attempt| Some((attempt.job.id, attempt.running.clone()?)))
            .filter(|(_, running)| now.since(running.since) >= MEASURE_AGE)
            .collect();
        running
            .into_iter()
            .map(|(id, running)| InstanceUsage {
                id,
                usage: self.usage(&running),
            })
            .collect()
    }

    fn usage(&self, running: &Running) -> Usage {
        // Up: what runs uses some memory, and the end's usage is rounded so too.
        let mib = |bytes: u64| u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        let (read_bytes, written_bytes) = process_io(running.pid);
        match (&self.settings.hierarchy, &running.group) {
            (Some(hierarchy), Some(group)) => {
                let counters = cgroup::counters(hierarchy, group);
                let (read_bytes, written_bytes) =
                    counters.io_bytes.unwrap_or((read_bytes, written_bytes));
                Usage {
                    cpu_ms: counters.cpu_us.saturating_sub(running.group_cpu_us) / 1000,
                    memory_mib: mib(counters.memory_bytes),
                    memory_peak_mib: mib(counters.memory_peak_bytes),
                    read_bytes,
                    written_bytes,
                    pids: u32::try_from(counters.pids).unwrap_or(u32::MAX),
                }
            }
            _ => process_usage(running.pid, read_bytes, written_bytes),
        }
    }
}

impl Runtime for ExecRuntime {
    fn kind(&self) -> Kind {
        Kind::Exec
    }

    fn fences(&self) -> bool {
        true
    }

    fn prepare(&self, job: &Arc<Job>) -> Readiness {
        match self.inner.prepare(job) {
            Ok(()) => Readiness::Now,
            Err(end) => {
                self.inner.events.tell(Event::Failed { id: job.id, end });
                Readiness::Later
            }
        }
    }

    fn start(&self, job: &Arc<Job>, fence_at: Option<Moment>) {
        let request = {
            let mut attempts = self.inner.lock();
            let Some(attempt) = attempts.get_mut(&key(&job.id)) else {
                return;
            };
            attempt.asked = true;
            self.inner.spawn_request(attempt, fence_at)
        };
        self.inner.outbox.send(&ToShim::Spawn(Box::new(request)));
    }

    fn stop(&self, id: AttemptId, cause: StopCause, grace_ms: u64) {
        let key = key(&id);
        let mut attempts = self.inner.lock();
        match attempts.get(&key) {
            Some(attempt) if attempt.asked => {
                drop(attempts);
                self.inner.outbox.send(&ToShim::Stop {
                    key,
                    cause,
                    grace_ms,
                });
            }
            Some(_) => {
                attempts.remove(&key);
                let message = "stopped before it started".into();
                let end = End {
                    cause: cause.end_cause(),
                    message,
                };
                self.inner.events.tell(Event::Failed { id, end });
            }
            // Its end is on its way to whoever asks.
            None => {}
        }
    }

    fn fence(&self, owner: OwnerId, lease_until: Moment) {
        self.inner
            .outbox
            .send(&ToShim::Fence { owner, lease_until });
    }

    fn adopt(&self, jobs: Vec<Arc<Job>>) {
        let greeted = self
            .greeted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(mut greeted) = greeted else { return };
        let mut alive = HashMap::new();
        greeted.said.retain(|message| match message {
            FromShim::Alive { key, .. } => {
                alive.insert(key.clone(), message.clone());
                false
            }
            _ => true,
        });
        for job in &jobs {
            let found = self.inner.find(job, &alive, greeted.started_at);
            alive.remove(&key(&job.id));
            self.inner.events.tell(Event::Adopted { id: job.id, found });
        }
        for orphan in alive.into_keys() {
            // Its record is gone, so nobody answers for it.
            tracing::error!(orphan, "ending a workload without a record");
            let cause = StopCause::Asked;
            self.inner.outbox.send(&ToShim::Stop {
                key: orphan,
                cause,
                grace_ms: 0,
            });
        }
        let driver = self.tokio.spawn(self.inner.clone().drive(greeted));
        let mut place = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Some(driver.abort_handle());
    }

    fn usages(&self) -> BoxFuture<'_, Vec<InstanceUsage>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            // Hundreds of small files: not on the thread that renews leases.
            tokio::task::spawn_blocking(move || inner.usages())
                .await
                .unwrap_or_default()
        })
    }

    fn exec(
        &self,
        id: AttemptId,
        command: Vec<String>,
    ) -> BoxFuture<'_, Result<ExecSession, Refused>> {
        Box::pin(async move {
            let (attempt, running) = self.running(id)?;
            let settings = &self.inner.settings;
            let join = Join {
                format: FORMAT,
                hierarchy: settings.hierarchy.clone().zip(running.group),
                user: attempt.user,
                environment: variables(&attempt.job, &settings.node, &attempt.workdir),
                workdir: attempt.workdir,
                command,
            };
            join_command(&settings.shim_command, &join)
                .map_err(|error| Refused::new(StreamFailure::Failed, format!("{error:#}")))
        })
    }

    fn stdin(
        &self,
        id: AttemptId,
    ) -> BoxFuture<'_, Result<Box<dyn AsyncWrite + Send + Unpin>, Refused>> {
        Box::pin(async move {
            let (attempt, _) = self.running(id)?;
            if !attempt.job.body.stdin {
                let text = "the instance was not started with a standard input";
                return Err(Refused::new(StreamFailure::Unsupported, text));
            }
            let path = self.inner.settings.data_dir.attempt(&id).join(STDIN_PIPE);
            let pipe = tokio::net::unix::pipe::OpenOptions::new()
                .open_sender(&path)
                .map_err(|error| Refused::new(StreamFailure::Failed, error.to_string()))?;
            let feed = Feed {
                pipe: Some(pipe),
                inner: self.inner.clone(),
                key: key(&id),
            };
            Ok(Box::new(feed) as Box<dyn AsyncWrite + Send + Unpin>)
        })
    }

    fn files(&self, job: &Job) -> Option<FileRoot> {
        let (user, path) = self.inner.identity(job).ok()?;
        // We may be root where the workload is not: a directory of its choice could be one that it
        // may not read.
        let own = Inner::exec_task(job).workdir.is_none();
        if !own && user.is_some() && !job.body.privileged {
            return None;
        }
        Some(FileRoot {
            path,
            owner: user.map(|user| (user.uid, user.gid)),
        })
    }
}

fn join_command(shim_command: &[String], join: &Join) -> anyhow::Result<ExecSession> {
    let [program, arguments @ ..] = shim_command else {
        anyhow::bail!("shim_command is empty")
    };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .arg("join")
        .arg(serde_json::to_string(join)?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("can't start a process")?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        anyhow::bail!("a process without its pipes");
    };
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let session = SessionGuard(pid);
    let exit = async move {
        let status = child
            .wait()
            .await
            .map_err(|error| Refused::new(StreamFailure::Failed, error.to_string()))?;
        drop(session);
        use std::os::unix::process::ExitStatusExt;
        Ok(status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    };
    Ok(ExecSession {
        stdin: Some(Box::new(stdin)),
        stdout: Box::new(stdout),
        stderr: Box::new(stderr),
        exit: Box::pin(exit),
    })
}

/// Ends all of a command's session when nobody wants its exit code any more.
struct SessionGuard(Option<i32>);

impl Drop for SessionGuard {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(rustix::process::Pid::from_raw) {
            // It has ended by itself, most of the time.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

fn make_workdir(path: &Path, user: Option<&User>) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match user {
        Some(user) => std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}

/// The exit file of this attempt; what an earlier one left in a reused directory is none.
fn read_exit(directory: &Path, key: &str) -> io::Result<Option<Exit>> {
    match fs::read(directory.join(EXIT_FILE)) {
        Ok(bytes) => {
            let exit: Exit = serde_json::from_slice(&bytes)?;
            Ok((exit.key == key).then_some(exit))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes that a process has really read from and written to devices.
fn process_io(pid: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(": ")?.parse().ok())
            .unwrap_or(0)
    };
    (value("read_bytes"), value("write_bytes"))
}

/// Without a control group: the main process alone.
fn process_usage(pid: i32, read_bytes: u64, written_bytes: u64) -> Usage {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    let number = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mib = |key: &str| {
        let kib = status.lines().find_map(|line| {
            line.strip_prefix(key)?
                .split_whitespace()
                .nth(1)?
                .parse::<u64>()
                .ok()
        });
        u32::try_from(kib.unwrap_or(0).div_ceil(1024)).unwrap_or(u32::MAX)
    };
    // Ticks are hundredths of a second on every architecture that we build for.
    Usage {
        cpu_ms: (number(11) + number(12)) * 10,
        memory_mib: mib("VmRSS"),
        memory_peak_mib: mib("VmHWM"),
        read_bytes,
        written_bytes,
        pids: u32::try_from(number(17)).unwrap_or(0),
    }
}
