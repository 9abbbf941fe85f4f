//! The attempts of this runtime: what each was asked to be, and what the shim says of it.

use super::environment::{own_user, user, variables};
use super::link::{Greeted, Outbox, ShimPlace};
use super::{Events, ExecSettings, workdir};
use crate::cgroup::Limits;
use crate::data_dir::key;
use crate::moment::Moment;
use crate::shim::message::{EXIT_FILE, Exit, FromShim, Key, Spawn};
use crate::shim::sys::User;
use crate::supervisor::{Event, Found, Job};
use pronto_payloads::instance::{End, EndCause};
use pronto_payloads::start::{ExecTask, Task};
use rustc_hash::FxHashMap;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Tasks of a workload that does not say: a fork bomb ends here.
pub const PIDS_LIMIT: u32 = 4096;
/// Between two attempts to start a shim that does not start.
const SHIM_RETRY: Duration = Duration::from_secs(1);

/// All of them, and the way to their shim.
#[derive(Debug)]
pub(super) struct Attempts {
    pub(super) settings: ExecSettings,
    pub(super) place: ShimPlace,
    pub(super) events: Events,
    pub(super) outbox: Outbox,
    pub(super) known: Mutex<FxHashMap<Key, Attempt>>,
}

/// An attempt that is prepared or more.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) job: Arc<Job>,
    pub(super) workdir: PathBuf,
    pub(super) user: Option<User>,
    /// The shim was asked to start it.
    pub(super) asked: bool,
    /// The shim has said that it has ended.
    pub(super) ended: bool,
    pub(super) running: Option<Running>,
}

#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) pid: i32,
    pub(super) since: Moment,
    pub(super) group: Option<String>,
    pub(super) group_cpu_us: u64,
}

/// What a job runs, which is a process.
pub(super) fn exec_task(job: &Job) -> ExecTask {
    match &job.body.task {
        Task::Exec(task) => task.clone(),
        _ => ExecTask::default(),
    }
}

impl Attempts {
    pub(super) fn lock(&self) -> MutexGuard<'_, FxHashMap<Key, Attempt>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom and where a job runs as.
    pub(super) fn identity(&self, job: &Job) -> Result<(Option<User>, PathBuf), End> {
        let task = exec_task(job);
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

    pub(super) fn prepare(&self, job: &Arc<Job>) -> Result<(), End> {
        let task = exec_task(job);
        if task.require_hard_limits && self.settings.hierarchy.is_none() {
            let message = "this node has no control groups to enforce limits with".into();
            return Err(End {
                cause: EndCause::Rejected,
                message,
            });
        }
        let (user, workdir) = self.identity(job)?;
        if task.workdir.is_none() {
            workdir::make(&workdir, user.as_ref()).map_err(|error| End {
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

    pub(super) fn spawn_request(&self, attempt: &Attempt, fence_at: Option<Moment>) -> Spawn {
        let job = &attempt.job;
        let task = exec_task(job);
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
            FromShim::Welcome { .. }
            | FromShim::Alive { .. }
            | FromShim::Unwritten(_)
            | FromShim::Listed => {}
        }
    }

    /// What became of a job, as the shim's list and the exit file tell; the shim itself where it could
    /// not write one.
    pub(super) fn find(
        &self,
        job: &Arc<Job>,
        alive: &HashMap<Key, FromShim>,
        unwritten: Option<Exit>,
        shim_since: Moment,
    ) -> Found {
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
        let written = || read_exit(&self.settings.data_dir.attempt(&job.id), &key);
        match unwritten.map_or_else(written, |exit| Ok(Some(exit))) {
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

    pub(super) async fn drive(self: Arc<Self>, mut greeted: Greeted) {
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
