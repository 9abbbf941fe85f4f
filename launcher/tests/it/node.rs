//! A node without a scheduler: the exec runtime over a data directory of its own, and a way to
//! start it again.

use pronto_launcher::cgroup::Hierarchy;
use pronto_launcher::data_dir::DataDir;
use pronto_launcher::logs::LogReader;
use pronto_launcher::moment::Moment;
use pronto_launcher::runtime::exec::{ExecRuntime, ExecSettings, NodeVariables};
use pronto_launcher::runtime::{Events, Readiness, Runtime};
use pronto_launcher::store::AttemptStore;
use pronto_launcher::supervisor::record::JOB_FORMAT;
use pronto_launcher::supervisor::{Event, Found, Job};
use pronto_payloads::demand::Demand;
use pronto_payloads::ids::{Attempt, BootId, ControllerEpoch, InstanceId, OwnerId};
use pronto_payloads::instance::{End, EndCause, Usage};
use pronto_payloads::place::AttemptId;
use pronto_payloads::start::{ExecTask, StartBody, Task};
use pronto_payloads::stream::Channel;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;

/// No wait of a test is longer; none is for a time, each is for something to happen.
const LIMIT: Duration = Duration::from_secs(60);

/// How an attempt went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) started: bool,
    pub(crate) end: End,
    pub(crate) usage: Usage,
}

pub(crate) struct Node {
    pub(crate) directory: tempfile::TempDir,
    runtime: Option<ExecRuntime>,
    pub(crate) settings: ExecSettings,
    store: AttemptStore,
    inbox: UnboundedReceiver<Event>,
    unseen: VecDeque<Event>,
    next: u8,
}

pub(crate) fn exec(script: &str) -> ExecTask {
    ExecTask {
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        ..ExecTask::default()
    }
}

pub(crate) fn body(task: ExecTask) -> StartBody {
    StartBody {
        name: "job".into(),
        stop_grace_ms: 5000,
        ..StartBody::new("physics", Task::Exec(task))
    }
}

pub(crate) fn demand() -> Demand {
    Demand {
        cpu_millis: 100,
        memory_mib: 64,
        ..Demand::default()
    }
}

impl Node {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("pronto-test-{}", uuid::Uuid::new_v4().simple());
        Self::with(
            directory,
            Some(Hierarchy::detect(&name).expect("control groups")),
        )
        .await
    }

    /// A node whose limits are rlimits.
    pub(crate) async fn without_groups() -> Self {
        Self::with(tempfile::tempdir().unwrap(), None).await
    }

    /// A node where each instance has a user of its own, as with a launcher that is root.
    pub(crate) async fn with_own_users() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // As a launcher's data directory is: others pass through it to what is theirs.
        let passable = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        let passable: std::fs::Permissions = passable;
        std::fs::set_permissions(directory.path(), passable.clone()).unwrap();
        let mut node = Self::with(directory, None).await;
        std::fs::set_permissions(node.settings.data_dir.instances(), passable).unwrap();
        node.settings.own_users = true;
        node.restart().await;
        node.runtime().adopt(Vec::new());
        node
    }

    async fn with(directory: tempfile::TempDir, hierarchy: Option<Hierarchy>) -> Self {
        let data_dir = DataDir::new(directory.path().to_owned());
        std::fs::create_dir_all(data_dir.instances()).unwrap();
        let settings = ExecSettings {
            data_dir,
            shim_command: vec![env!("CARGO_BIN_EXE_pronto-launcher-shim").into()],
            hierarchy,
            user: None,
            own_users: false,
            node: NodeVariables {
                name: "n1".into(),
                address: "10.0.0.1".into(),
                has_gpus: false,
            },
            log_cap_bytes: 1 << 20,
        };
        let (events, inbox) = Events::channel();
        let runtime = ExecRuntime::open(settings.clone(), events).await.unwrap();
        runtime.adopt(Vec::new());
        let store = AttemptStore::open(settings.data_dir.clone(), Duration::from_secs(60)).unwrap();
        Self {
            directory,
            runtime: Some(runtime),
            settings,
            store,
            inbox,
            unseen: VecDeque::new(),
            next: 0,
        }
    }

    /// What a crash of the launcher and its next start look like to the shim: the connection
    /// breaks in the middle of whatever was going on, and another comes.
    pub(crate) async fn restart(&mut self) {
        let (events, inbox) = Events::channel();
        self.runtime = None;
        let opened = ExecRuntime::open(self.settings.clone(), events).await;
        self.runtime = Some(opened.unwrap());
        self.inbox = inbox;
        self.unseen.clear();
    }

    pub(crate) fn runtime(&self) -> &ExecRuntime {
        self.runtime.as_ref().unwrap()
    }

    pub(crate) fn job(&mut self, body: StartBody, demand: Demand) -> Arc<Job> {
        self.next += 1;
        Arc::new(Job {
            format: JOB_FORMAT,
            id: AttemptId {
                owner: OwnerId([9; 16]),
                instance: InstanceId([self.next; 16]),
                attempt: Attempt(1),
            },
            controller_epoch: ControllerEpoch(1),
            demand,
            gpus: Vec::new(),
            received_at: Moment::now(),
            boot_id: BootId::default(),
            body,
        })
    }

    /// Accepts, prepares and starts; the caller waits for what follows.
    pub(crate) fn launch(&mut self, body: StartBody, demand: Demand) -> Arc<Job> {
        let job = self.job(body, demand);
        self.launch_job(&job, None);
        job
    }

    /// The same of a job that the caller made, and that must have ended by then.
    pub(crate) fn launch_job(&mut self, job: &Arc<Job>, fence_at: Option<Moment>) {
        self.store.accept(job).unwrap();
        if self.runtime().prepare(job) == Readiness::Now {
            self.runtime().start(job, fence_at);
        }
    }

    /// Runs a job that the caller made, until nothing is left of it.
    pub(crate) async fn run_job(&mut self, job: &Arc<Job>) -> Outcome {
        self.launch_job(job, None);
        self.outcome(job.id).await
    }

    /// Launches and waits for Started.
    pub(crate) async fn start(&mut self, body: StartBody, demand: Demand) -> Arc<Job> {
        let job = self.launch(body, demand);
        self.wait(|event| matches!(event, Event::Started { id, .. } if *id == job.id))
            .await;
        job
    }

    /// Launches and waits until nothing is left of it.
    pub(crate) async fn run(&mut self, body: StartBody) -> (Arc<Job>, Outcome) {
        let job = self.launch(body, demand());
        let outcome = self.outcome(job.id).await;
        (job, outcome)
    }

    pub(crate) async fn sh(&mut self, script: &str) -> (Arc<Job>, Outcome) {
        self.run(body(exec(script))).await
    }

    /// Waits until nothing is left of an attempt.
    pub(crate) async fn outcome(&mut self, id: AttemptId) -> Outcome {
        let (mut started, mut ended) = (false, None);
        loop {
            let event = self.wait(|event| subject(event) == Some(id)).await;
            match event {
                Event::Started { .. } => started = true,
                Event::Ended { end, usage, .. } => ended = Some((end, usage)),
                Event::Emptied(_) => {
                    let (end, usage) = ended.expect("Ended comes before Emptied");
                    return Outcome {
                        started,
                        end,
                        usage,
                    };
                }
                Event::Failed { end, .. } => {
                    return Outcome {
                        started,
                        end,
                        usage: Usage::default(),
                    };
                }
                _ => {}
            }
        }
    }

    /// Adopts these attempts and says what was found of each.
    pub(crate) async fn adopt(&mut self, jobs: &[Arc<Job>]) -> Vec<Found> {
        self.runtime().adopt(jobs.to_vec());
        let mut found = Vec::new();
        for job in jobs {
            let event = self
                .wait(|event| matches!(event, Event::Adopted { id, .. } if *id == job.id))
                .await;
            if let Event::Adopted { found: one, .. } = event {
                found.push(one);
            }
        }
        found
    }

    /// The next event that matches; others wait for their turn.
    pub(crate) async fn wait(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        if let Some(index) = self.unseen.iter().position(&wanted) {
            return self.unseen.remove(index).unwrap();
        }
        loop {
            let event = tokio::time::timeout(LIMIT, self.inbox.recv())
                .await
                .unwrap_or_else(|_| panic!("nothing more came after {:?}", self.unseen))
                .expect("the runtime is there");
            if wanted(&event) {
                return event;
            }
            self.unseen.push_back(event);
        }
    }

    pub(crate) fn log(&self, id: &AttemptId) -> Log {
        let mut log = Log::default();
        let mut reader = LogReader::open(&self.settings.data_dir.attempt(id)).unwrap();
        let mut bytes = Vec::new();
        while let Some(chunk) = reader.next_chunk(&mut bytes).unwrap() {
            log.dropped_bytes += chunk.dropped_bytes;
            match chunk.channel {
                Channel::Stdout => log.stdout.extend_from_slice(&bytes),
                _ => log.stderr.extend_from_slice(&bytes),
            }
        }
        log
    }

    /// Ends shim and workloads, and shows that the node is clean: no process, no control group.
    pub(crate) async fn finish(mut self) {
        self.runtime = None;
        pronto_launcher::end_workloads(self.directory.path(), 0)
            .await
            .unwrap();
        if let Some(Hierarchy::V1 { memory, pids, .. }) = &self.settings.hierarchy {
            assert!(
                !memory.exists() && !pids.exists(),
                "control groups are left behind"
            );
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) dropped_bytes: u64,
}

impl Log {
    pub(crate) fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

fn subject(event: &Event) -> Option<AttemptId> {
    match event {
        Event::Started { id, .. }
        | Event::Ended { id, .. }
        | Event::Failed { id, .. }
        | Event::Adopted { id, .. }
        | Event::Emptied(id)
        | Event::Prepared(id) => Some(*id),
        _ => None,
    }
}

pub(crate) fn exited(code: i32) -> EndCause {
    EndCause::Exited { code }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // A failed test must not leave its processes behind.
        let shim = std::fs::read_to_string(self.directory.path().join("shim.pid"));
        let shim = shim.ok().and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = shim.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}
