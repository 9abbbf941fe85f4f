//! Processes, each in a session and control group of its own, owned by the shim.
//!
//! This side translates: a job into a [`Spawn`](crate::shim::message::Spawn) request, the shim's
//! messages into events (`attempts`). It keeps nothing that it could not learn again from the shim
//! and the attempts' directories. `link` is the connection to the shim, `environment` what a
//! workload is told, `feed` its input, `session` a command inside, `usage` what it uses.
//!
//! A shim that vanishes takes its workloads along (the kernel kills their main processes, and the
//! next shim clears its control groups); they end as failures of the node.

mod attempts;
mod environment;
mod feed;
mod link;
mod session;
mod usage;
mod workdir;

pub use attempts::PIDS_LIMIT;
pub use environment::{NodeVariables, own_user, user, variables};

use super::{BoxFuture, Events, ExecSession, FileRoot, Readiness, Refused, Runtime};
use crate::cgroup::Hierarchy;
use crate::data_dir::{DataDir, key};
use crate::moment::Moment;
use crate::shim::join::Join;
use crate::shim::message::{FORMAT, FromShim, STDIN_PIPE, ShimSettings, ToShim};
use crate::shim::sys::User;
use crate::supervisor::{Event, Job, StopCause};
use anyhow::Context;
use attempts::{Attempt, Attempts, Running, exec_task};
use feed::Feed;
use link::{Greeted, Outbox, ShimPlace};
use pronto_payloads::demand::Runtime as Kind;
use pronto_payloads::ids::OwnerId;
use pronto_payloads::instance::{End, InstanceUsage};
use pronto_payloads::place::AttemptId;
use pronto_payloads::stream::StreamFailure;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWrite;

/// A shim without work and launcher ends itself after this long.
const IDLE_EXIT: Duration = Duration::from_secs(60);

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
    attempts: Arc<Attempts>,
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
        let attempts = Attempts {
            settings,
            place,
            events,
            outbox: Outbox::default(),
            known: Mutex::default(),
        };
        attempts.outbox.attach(Some(greeted.reader.socket.clone()));
        Ok(Self {
            attempts: Arc::new(attempts),
            greeted: Mutex::new(Some(greeted)),
            driver: Mutex::default(),
            tokio: tokio::runtime::Handle::current(),
        })
    }

    fn running(&self, id: AttemptId) -> Result<(Attempt, Running), Refused> {
        let attempt = self
            .attempts
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

impl Runtime for ExecRuntime {
    fn kind(&self) -> Kind {
        Kind::Exec
    }

    fn fences(&self) -> bool {
        true
    }

    fn prepare(&self, job: &Arc<Job>) -> Readiness {
        match self.attempts.prepare(job) {
            Ok(()) => Readiness::Now,
            Err(end) => {
                self.attempts.events.tell(Event::Failed { id: job.id, end });
                Readiness::Later
            }
        }
    }

    fn start(&self, job: &Arc<Job>, fence_at: Option<Moment>) {
        let request = {
            let mut attempts = self.attempts.lock();
            let Some(attempt) = attempts.get_mut(&key(&job.id)) else {
                return;
            };
            attempt.asked = true;
            self.attempts.spawn_request(attempt, fence_at)
        };
        self.attempts.outbox.send(&ToShim::Spawn(Box::new(request)));
    }

    fn stop(&self, id: AttemptId, cause: StopCause, grace_ms: u64) {
        let key = key(&id);
        let mut attempts = self.attempts.lock();
        match attempts.get(&key) {
            Some(attempt) if attempt.asked => {
                drop(attempts);
                self.attempts.outbox.send(&ToShim::Stop {
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
                self.attempts.events.tell(Event::Failed { id, end });
            }
            // Its end is on its way to whoever asks.
            None => {}
        }
    }

    fn fence(&self, owner: OwnerId, lease_until: Moment) {
        self.attempts
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
        let (mut alive, mut unwritten) = (HashMap::new(), HashMap::new());
        greeted.said.retain(|message| match message {
            FromShim::Alive { key, .. } => {
                alive.insert(key.clone(), message.clone());
                false
            }
            FromShim::Unwritten(exit) => {
                unwritten.insert(exit.key.clone(), exit.clone());
                false
            }
            _ => true,
        });
        for job in &jobs {
            let told = unwritten.remove(&key(&job.id));
            let found = self.attempts.find(job, &alive, told, greeted.started_at);
            alive.remove(&key(&job.id));
            self.attempts
                .events
                .tell(Event::Adopted { id: job.id, found });
        }
        for orphan in alive.into_keys() {
            // Its record is gone, so nobody answers for it.
            tracing::error!(orphan, "ending a workload without a record");
            let cause = StopCause::Asked;
            self.attempts.outbox.send(&ToShim::Stop {
                key: orphan,
                cause,
                grace_ms: 0,
            });
        }
        let driver = self.tokio.spawn(self.attempts.clone().drive(greeted));
        let mut place = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Some(driver.abort_handle());
    }

    fn usages(&self) -> BoxFuture<'_, Vec<InstanceUsage>> {
        let attempts = self.attempts.clone();
        Box::pin(async move {
            // Hundreds of small files: not on the thread that renews leases.
            tokio::task::spawn_blocking(move || attempts.usages())
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
            let settings = &self.attempts.settings;
            let join = Join {
                format: FORMAT,
                pid: running.pid,
                since: running.since,
                hierarchy: settings.hierarchy.clone().zip(running.group),
                user: attempt.user,
                environment: variables(&attempt.job, &settings.node, &attempt.workdir),
                workdir: attempt.workdir,
                command,
            };
            session::join(&settings.shim_command, &join)
                .await
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
            let path = self
                .attempts
                .settings
                .data_dir
                .attempt(&id)
                .join(STDIN_PIPE);
            let pipe = tokio::net::unix::pipe::OpenOptions::new()
                .open_sender(&path)
                .map_err(|error| Refused::new(StreamFailure::Failed, error.to_string()))?;
            let feed = Feed {
                pipe: Some(pipe),
                attempts: self.attempts.clone(),
                key: key(&id),
            };
            Ok(Box::new(feed) as Box<dyn AsyncWrite + Send + Unpin>)
        })
    }

    fn files(&self, job: &Job) -> Option<FileRoot> {
        let (user, path) = self.attempts.identity(job).ok()?;
        // We may be root where the workload is not: a directory of its choice could be one that it
        // may not read.
        let own = exec_task(job).workdir.is_none();
        if !own && user.is_some() && !job.body.privileged {
            return None;
        }
        Some(FileRoot {
            path,
            owner: user.map(|user| (user.uid, user.gid)),
        })
    }
}
