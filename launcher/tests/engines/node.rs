//! A node with one runtime, seen from where the supervisor sits: it gives orders, and sees events.

use pronto_launcher::cgroup::Hierarchy;
use pronto_launcher::data_dir::DataDir;
use pronto_launcher::logs::LogReader;
use pronto_launcher::moment::Moment;
use pronto_launcher::runtime::exec::{ExecSettings, NodeVariables};
use pronto_launcher::runtime::{Events, Offers, Runtime};
use pronto_launcher::supervisor::record::JOB_FORMAT;
use pronto_launcher::supervisor::{Event, Job};
use pronto_payloads::demand::{Demand, Runtime as Kind};
use pronto_payloads::ids::{Attempt, BootId, ControllerEpoch, InstanceId, NodeUuid, OwnerId};
use pronto_payloads::instance::{End, EndCause, Usage};
use pronto_payloads::place::AttemptId;
use pronto_payloads::start::{StartBody, Task};
use pronto_payloads::stream::Channel;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;

/// Nothing that these tests wait for takes so long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a fixture's script. Fails with all that it said.
pub(crate) fn fixture(script: &str, arguments: &[&str]) -> String {
    fixture_in(None, script, arguments)
}

/// The same in a network namespace.
pub(crate) fn fixture_in(namespace: Option<&str>, script: &str, arguments: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(script);
    let mut command = match namespace {
        Some(namespace) => {
            // `ip netns exec` would hide the control groups.
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={namespace}")).arg(&path);
            command
        }
        None => Command::new(&path),
    };
    let output = command
        .args(arguments)
        .env("PRONTO_FIXTURES", fixtures_dir())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(
        output.status.success(),
        "{script} {arguments:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("a script writes text")
}

/// Beside the build's own output, where it survives a test run.
fn fixtures_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("fixtures")
}

/// A fixture's script that cleans up. A second panic would end the whole program, and with it what
/// cleans up after the other tests.
pub(crate) fn clean_up(script: &str, arguments: &[&str]) {
    let work = std::panic::AssertUnwindSafe(|| fixture(script, arguments));
    if let Err(panic) = std::panic::catch_unwind(work)
        && !std::thread::panicking()
    {
        std::panic::resume_unwind(panic);
    }
}

/// A data directory and the events of the runtime over it. It outlives a launcher's process.
pub(crate) struct Node {
    directory: TempDir,
    pub(crate) data_dir: DataDir,
    pub(crate) uuid: NodeUuid,
}

impl Node {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("pronto-")
            .tempdir()
            .expect("a directory");
        // A workload's user passes through it.
        open_to_all(directory.path());
        let data_dir = DataDir::new(directory.path().join("data"));
        std::fs::create_dir_all(data_dir.instances()).expect("a directory");
        Self {
            directory,
            data_dir,
            uuid: uuid::Uuid::new_v4().into(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A job whose START has been received and written down.
    pub(crate) fn job(
        &self,
        task: Task,
        demand: Demand,
        change: impl FnOnce(&mut StartBody),
    ) -> Arc<Job> {
        let mut body = StartBody {
            name: "one".into(),
            stop_grace_ms: 1000,
            ..StartBody::new("tests", task)
        };
        change(&mut body);
        let id = AttemptId {
            owner: OwnerId([7; 16]),
            instance: InstanceId::from(uuid::Uuid::now_v7()),
            attempt: Attempt(1),
        };
        let job = Job {
            format: JOB_FORMAT,
            id,
            controller_epoch: ControllerEpoch(1),
            demand,
            gpus: Vec::new(),
            received_at: Moment::now(),
            boot_id: BootId::default(),
            body,
        };
        std::fs::create_dir(self.data_dir.attempt(&id)).expect("a directory");
        Arc::new(job)
    }

    /// What a job has written to a channel.
    pub(crate) fn output(&self, job: &Job, channel: Channel) -> String {
        let mut reader = LogReader::open(&self.data_dir.attempt(&job.id)).expect("a log");
        let (mut output, mut bytes) = (Vec::new(), Vec::new());
        while let Some(chunk) = reader.next_chunk(&mut bytes).expect("a log") {
            assert_eq!(chunk.dropped_bytes, 0, "nothing was dropped");
            if chunk.channel == channel {
                output.extend_from_slice(&bytes);
            }
        }
        String::from_utf8(output).expect("text")
    }

    /// Until a job has written this to its standard output.
    pub(crate) async fn says(&self, job: &Job, words: &str) {
        until(|| self.output(job, Channel::Stdout).contains(words), words).await;
    }

    pub(crate) fn processes(&self) -> ExecSettings {
        ExecSettings {
            data_dir: self.data_dir.clone(),
            shim_command: vec![env!("CARGO_BIN_EXE_pronto-launcher-shim").into()],
            // Its shim removes it when it ends.
            hierarchy: Some(
                Hierarchy::detect(&format!("pronto-engines-{}", self.uuid.short()))
                    .expect("control groups"),
            ),
            user: None,
            own_users: false,
            node: self.variables(),
            log_cap_bytes: 16 << 20,
        }
    }

    pub(crate) fn variables(&self) -> NodeVariables {
        NodeVariables {
            name: "here".into(),
            address: String::new(),
            has_gpus: false,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A failed test must not leave its guests behind.
        let shim = pronto_launcher::runtime::qemu::shim_dir(&self.data_dir)
            .path()
            .join("shim.pid");
        let pid = std::fs::read_to_string(shim)
            .ok()
            .and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
            && std::thread::panicking()
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("permissions");
}

/// Runs what a launcher's process does, and ends with it: its tasks stop in the middle of whatever
/// they do, as in a crash.
pub(crate) fn process<T>(work: impl Future<Output = T>) -> T {
    let tokio = tokio::runtime::Runtime::new().expect("threads");
    let outcome = tokio.block_on(work);
    tokio.shutdown_timeout(PATIENCE);
    outcome
}

/// Looks until something is so.
pub(crate) async fn until(mut is_so: impl FnMut() -> bool, what: &str) {
    let looking = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

/// One launcher process's view of a runtime.
pub(crate) struct Launcher<R> {
    pub(crate) runtime: R,
    events: UnboundedReceiver<Event>,
    /// Read and not asked for yet.
    seen: Vec<Event>,
    pub(crate) offers: Offers,
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) end: End,
    pub(crate) usage: Usage,
    pub(crate) started: bool,
}

impl<R: Runtime> Launcher<R> {
    /// Makes a runtime as the launcher does.
    pub(crate) async fn start<F>(make: impl FnOnce(Offers, Events) -> F) -> Self
    where
        F: Future<Output = R>,
    {
        let (sender, events) = Events::channel();
        let offers = Offers::new(Vec::new(), sender.clone());
        let runtime = make(offers.clone(), sender).await;
        Self {
            runtime,
            events,
            seen: Vec::new(),
            offers,
        }
    }

    /// The next event that `pick` wants; others wait.
    pub(crate) async fn event<T>(&mut self, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        loop {
            if let Some(at) = self.seen.iter().position(|event| pick(event).is_some()) {
                return pick(&self.seen.remove(at)).expect("it was wanted a moment ago");
            }
            let next = tokio::time::timeout(PATIENCE, self.events.recv()).await;
            let next = next.unwrap_or_else(|_| panic!("no {what}; seen: {:#?}", self.seen));
            self.seen.push(next.expect("the runtime lives"));
        }
    }

    /// Whether an event of this attempt has come.
    pub(crate) fn has_ended(&mut self, id: AttemptId) -> bool {
        while let Ok(event) = self.events.try_recv() {
            self.seen.push(event);
        }
        self.seen.iter().any(|event| {
            matches!(event, Event::Ended { id: of, .. } | Event::Failed { id: of, .. } if *of == id)
        })
    }

    pub(crate) async fn offered(&mut self, kind: Kind, offered: bool) {
        let offers = self.offers.clone();
        until(|| offers.now().contains(&kind) == offered, "the offer").await;
    }

    pub(crate) async fn prepare(&mut self, job: &Arc<Job>) {
        self.runtime.prepare(job);
        let id = job.id;
        self.event("Prepared", |event| match event {
            Event::Prepared(of) if *of == id => Some(()),
            Event::Failed { id: of, end } if *of == id => panic!("not prepared: {end:?}"),
            _ => None,
        })
        .await;
    }

    /// Prepares and starts, until it runs.
    pub(crate) async fn run(&mut self, job: &Arc<Job>) -> Moment {
        self.prepare(job).await;
        self.runtime.start(job, None);
        self.started(job.id).await
    }

    pub(crate) async fn started(&mut self, id: AttemptId) -> Moment {
        self.event("Started", |event| match event {
            Event::Started { id: of, at } if *of == id => Some(*at),
            Event::Failed { id: of, end } if *of == id => panic!("not started: {end:?}"),
            _ => None,
        })
        .await
    }

    /// Its end, with everything that must come with it and after it.
    pub(crate) async fn ended(&mut self, id: AttemptId) -> Ended {
        let ended = self
            .event("Ended or Failed", |event| match event {
                Event::Ended {
                    id: of, end, usage, ..
                } if *of == id => Some(Ended {
                    end: end.clone(),
                    usage: *usage,
                    started: true,
                }),
                Event::Failed { id: of, end } if *of == id => Some(Ended {
                    end: end.clone(),
                    usage: Usage::default(),
                    started: false,
                }),
                _ => None,
            })
            .await;
        if ended.started {
            self.event("Emptied", |event| {
                matches!(event, Event::Emptied(of) if *of == id).then_some(())
            })
            .await;
        }
        ended
    }

    /// Prepares, starts and waits, whatever comes of it.
    pub(crate) async fn run_to_end(&mut self, job: &Arc<Job>) -> Ended {
        self.runtime.prepare(job);
        let id = job.id;
        let prepared = self
            .event("Prepared or Failed", |event| match event {
                Event::Prepared(of) if *of == id => Some(None),
                Event::Failed { id: of, end } if *of == id => Some(Some(end.clone())),
                _ => None,
            })
            .await;
        if let Some(end) = prepared {
            return Ended {
                end,
                usage: Usage::default(),
                started: false,
            };
        }
        self.runtime.start(job, None);
        self.ended(id).await
    }
}

pub(crate) fn demand(memory_mib: u32) -> Demand {
    Demand {
        cpu_millis: 500,
        memory_mib,
        ..Demand::default()
    }
}

pub(crate) fn exited(code: i32) -> EndCause {
    EndCause::Exited { code }
}
