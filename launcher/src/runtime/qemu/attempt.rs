//! One attempt's guest: a task that takes orders and the emulator's news, and tells events.
//!
//! ```text
//! files made ──▶ (Prepared) ──Start──▶ emulator runs ──▶ (Started) ──▶ gone ──▶ (Ended) ──▶ files
//!     └── Failed ◀──┴── Stop                └── Failed       ▲ adopted        removed (Emptied)
//! ```
//!
//! The emulator is a process of the shim, which owns its limits, its log, its exit code and its
//! deadlines also while the launcher is dead. Beside it, the monitor's socket tells why the machine
//! went off and presses its power button. The gentle end is that button, pressed again while the
//! guest may still be booting; then the monitor's `quit`; then the shim's signals.

use super::console::Console;
use super::machine::{MONITOR, Machine};
use super::qmp::{Event as QmpEvent, Qmp, QmpError};
use super::verdict::{self, Evidence, Shutdown};
use super::{Shared, disk, ports};
use crate::logs::LogReader;
use crate::moment::Moment;
use crate::runtime::Runtime;
use crate::supervisor::{Event, Found, Job, StopCause};
use pronto_payloads::instance::{End, Usage};
use pronto_payloads::start::{ExecTask, QemuTask, Task};
use pronto_payloads::stream::Channel;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The emulator makes its socket within milliseconds of its start.
const CONNECT_INTERVAL: Duration = Duration::from_millis(25);
/// A kernel that has not set up its button yet does not remember that it was pressed.
const BUTTON_INTERVAL: Duration = Duration::from_secs(2);
/// What the emulator has between the signals of the shim: it writes nothing that matters.
const SIGNAL_GRACE_MS: u64 = 500;
/// The shim's own timeout comes this long after the supervisor's, which presses the button first.
const TIMEOUT_MARGIN_MS: u64 = 2000;
/// Of what the emulator says on its standard error, this much is kept for the end's message.
const WORDS_BYTES: usize = 800;
/// A monitor that works answers at once; a wedged one must not eat up the grace.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(500);

/// What reaches an attempt's task: orders of the executor's thread, news of its process.
#[derive(Debug)]
pub(super) enum Note {
    Start { fence_at: Option<Moment> },
    Stop { cause: StopCause, grace_ms: u64 },
    Process(Event),
}

pub(super) struct Attempt {
    pub(super) shared: Arc<Shared>,
    pub(super) job: Arc<Job>,
    pub(super) notes: UnboundedReceiver<Note>,
}

/// The end of the emulator's process.
struct Ended {
    at: Moment,
    process: End,
    usage: Usage,
    stopped: Option<StopCause>,
    shutdown: Option<Shutdown>,
}

/// How far a gentle end has come.
struct Stopping {
    cause: StopCause,
    give_up_at: Instant,
    press_at: Instant,
    given_up: bool,
}

/// The process that stands for a guest towards the shim.
pub(super) fn process_job(job: &Job, command: Vec<String>, overhead_mib: u32) -> Job {
    let mut process = job.clone();
    process.body.task = Task::Exec(ExecTask {
        command,
        ..ExecTask::default()
    });
    process.body.env = Vec::new();
    process.body.stdin = false;
    process.demand.memory_mib = job.demand.memory_mib.saturating_add(overhead_mib);
    let margin_ms = job.body.stop_grace_ms.saturating_add(TIMEOUT_MARGIN_MS);
    process.body.timeout_ms = job.body.timeout_ms.map(|ms| ms.saturating_add(margin_ms));
    process.body.stop_grace_ms = SIGNAL_GRACE_MS;
    process
}

impl Attempt {
    fn tell(&self, event: Event) {
        self.shared.events.tell(event);
    }

    /// Where the emulator runs and finds its files.
    fn directory(&self) -> PathBuf {
        self.shared.data_dir.work(&self.job.id)
    }

    async fn note(&mut self) -> Note {
        match self.notes.recv().await {
            Some(note) => note,
            // The launcher ends; the next one adopts.
            None => std::future::pending().await,
        }
    }

    /// A new attempt, until it is empty.
    pub(super) async fn fresh(mut self) {
        match self.until_started().await {
            Ok(at) => {
                self.tell(Event::Started {
                    id: self.job.id,
                    at,
                });
                self.until_empty().await;
            }
            Err(end) => {
                disk::remove(&self.directory());
                self.tell(Event::Failed {
                    id: self.job.id,
                    end,
                });
            }
        }
        self.shared.forget(self.job.id);
    }

    async fn until_started(&mut self) -> Result<Moment, End> {
        let job = self.job.clone();
        let Task::Qemu(task) = &job.body.task else {
            return Err(disk::rejected("not a virtual machine".to_owned()));
        };
        let process = Arc::new(self.prepare(task).await?);
        self.tell(Event::Prepared(job.id));
        loop {
            match self.note().await {
                Note::Start { fence_at } => self.shared.exec.start(&process, fence_at),
                Note::Stop { cause, .. } => {
                    // Not started, it fails at once; started, it ends soon, and its end is told.
                    self.shared.exec.stop(job.id, cause, 0);
                }
                Note::Process(Event::Started { at, .. }) => return Ok(at),
                Note::Process(Event::Failed { end, .. }) => return Err(end),
                Note::Process(_) => {}
            }
        }
    }

    async fn prepare(&self, task: &QemuTask) -> Result<Job, End> {
        let no_emulator = || disk::rejected("this node has no working emulator".to_owned());
        let emulator = self.shared.emulator.as_ref().ok_or_else(no_emulator)?;
        disk::check(task)?;
        let ports = ports::resolve(&task.ports)?;
        let seed = disk::wants_seed(task);
        let name = format!("{}-{}", self.job.id.instance, self.job.id.attempt);
        let machine = Machine {
            name: &name,
            emulator,
            task,
            demand: &self.job.demand,
            ports: &ports,
            seed,
        };
        let mut command = machine.command();
        if let Some(line) = ports::chosen(&task.ports, &ports) {
            // Through the process's own pipe, so that the log has one writer.
            let tell = ["/bin/sh", "-c", "echo \"$0\" >&2; exec \"$@\"", &line];
            command.splice(0..0, tell.map(str::to_owned));
        }
        let process = process_job(&self.job, command, self.shared.overhead_mib);
        self.make_files(task).await?;
        // Gives the directory to the user that the emulator will run as.
        self.shared.exec.prepare(&Arc::new(process.clone()));
        Ok(process)
    }

    async fn make_files(&self, task: &QemuTask) -> Result<(), End> {
        let shared = &self.shared;
        let user = shared.user.as_ref();
        disk::make(&shared.image_tool, &self.directory(), user, &self.job, task).await
    }

    /// A running guest, until nothing of it is left.
    async fn until_empty(&mut self) {
        let id = self.job.id;
        match self.until_ended().await {
            Outcome::Ended(ended) => {
                let (at, usage) = (ended.at, ended.usage);
                let end = self.verdict(ended).await;
                self.tell(Event::Ended { id, at, end, usage });
                // A shim that vanishes now takes the remains along.
                while !matches!(
                    self.note().await,
                    Note::Process(Event::Emptied(_) | Event::Failed { .. })
                ) {}
                disk::remove(&self.directory());
                self.tell(Event::Emptied(id));
            }
            Outcome::Lost(end) => {
                disk::remove(&self.directory());
                self.tell(Event::Failed { id, end });
            }
        }
    }

    /// Waits for the end, and brings it about when a Stop comes.
    async fn until_ended(&mut self) -> Outcome {
        let mut monitor = Monitor::new(self.directory());
        let mut shutdown = None;
        let mut stopping: Option<Stopping> = None;
        loop {
            let due = stopping.as_ref().and_then(Stopping::due);
            tokio::select! {
                note = self.notes.recv() => match note {
                    Some(Note::Process(Event::Ended { at, end, usage, .. })) => {
                        let shutdown = match shutdown {
                            Some(known) => Some(known),
                            None => monitor.last_words().await,
                        };
                        let stopped = stopping.map(|one| one.cause);
                        return Outcome::Ended(Ended { at, process: end, usage, stopped, shutdown });
                    }
                    Some(Note::Process(Event::Failed { end, .. })) => return Outcome::Lost(end),
                    Some(Note::Stop { cause, grace_ms }) => {
                        let now = Instant::now();
                        let give_up_at = now + Duration::from_millis(grace_ms);
                        let one = stopping.get_or_insert(Stopping {
                            cause,
                            give_up_at,
                            press_at: now,
                            given_up: false,
                        });
                        one.give_up_at = one.give_up_at.min(give_up_at);
                    }
                    Some(_) => {}
                    None => std::future::pending().await,
                },
                event = monitor.event() => {
                    if event.name == "SHUTDOWN" {
                        shutdown = Some(Shutdown::of(&event.data));
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if let Some(one) = &mut stopping {
                        self.press_on(one, &mut monitor).await;
                    }
                }
            }
        }
    }

    /// The next step of a gentle end.
    async fn press_on(&self, stopping: &mut Stopping, monitor: &mut Monitor) {
        let now = Instant::now();
        if now < stopping.give_up_at {
            monitor.command("system_powerdown").await;
            stopping.press_at = now + BUTTON_INTERVAL;
        } else {
            stopping.given_up = true;
            monitor.command("quit").await;
            self.shared
                .exec
                .stop(self.job.id, stopping.cause, SIGNAL_GRACE_MS);
        }
    }

    async fn verdict(&self, ended: Ended) -> End {
        let directory = self.shared.data_dir.attempt(&self.job.id);
        let read = tokio::task::spawn_blocking(move || read_log(&directory)).await;
        let (mut console, words) = read.unwrap_or_default();
        verdict::of(Evidence {
            process: ended.process,
            stopped: ended.stopped,
            shutdown: ended.shutdown,
            console: &mut console,
            words: &words,
        })
    }

    /// An attempt of an earlier launcher process, whose shim is asked by now.
    pub(super) async fn adopted(mut self) {
        let id = self.job.id;
        let found = loop {
            if let Note::Process(Event::Adopted { found, .. }) = self.note().await {
                break found;
            }
        };
        let running = matches!(found, Found::Running { .. });
        let found = match found {
            Found::Ended {
                started_at,
                ended_at,
                end,
                usage,
            } => {
                let ended = Ended {
                    at: ended_at,
                    process: end,
                    usage,
                    stopped: None,
                    shutdown: None,
                };
                Found::Ended {
                    started_at,
                    ended_at,
                    end: self.verdict(ended).await,
                    usage,
                }
            }
            other => other,
        };
        if running {
            self.tell(Event::Adopted { id, found });
            self.until_empty().await;
            self.shared.forget(id);
        } else {
            disk::remove(&self.directory());
            // Forgotten first: the answer may be a Prepare.
            self.shared.forget(id);
            self.tell(Event::Adopted { id, found });
        }
    }
}

enum Outcome {
    Ended(Ended),
    /// Its shim vanished, and everything with it.
    Lost(End),
}

impl Stopping {
    fn due(&self) -> Option<Instant> {
        (!self.given_up).then(|| self.press_at.min(self.give_up_at))
    }
}

/// The monitor of one guest, connected as soon and as often as it can be.
struct Monitor {
    directory: PathBuf,
    connection: Option<Qmp>,
}

impl Monitor {
    const fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            connection: None,
        }
    }

    async fn connect(&mut self) -> Result<&mut Qmp, QmpError> {
        if self.connection.is_none() {
            self.connection = Some(Qmp::connect(&self.directory, MONITOR).await?);
        }
        self.connection.as_mut().ok_or(QmpError::Closed)
    }

    /// The next event. Never returns without one, and may be cancelled.
    async fn event(&mut self) -> QmpEvent {
        loop {
            let event = match self.connect().await {
                Ok(connection) => connection.event().await,
                Err(error) => Err(error),
            };
            match event {
                Ok(event) => return event,
                // Not there yet, or gone already: its process tells which.
                Err(_) => self.connection = None,
            }
            sleep(CONNECT_INTERVAL).await;
        }
    }

    /// Sends a command that has no answer worth having.
    async fn command(&mut self, command: &str) {
        let sent = timeout(COMMAND_TIMEOUT, async {
            self.connect().await?.execute(command, Value::Null).await
        })
        .await;
        match sent {
            Ok(Ok(_)) => {}
            // `quit` may close the connection before it answers.
            Ok(Err(error)) => tracing::debug!(command, %error, "the monitor was not told"),
            Err(_) => tracing::debug!(command, "the monitor does not answer"),
        }
    }

    /// Why the machine went off, if the emulator said so before it ended.
    async fn last_words(&mut self) -> Option<Shutdown> {
        let connection = self.connection.as_mut()?;
        let reading = async {
            while let Ok(event) = connection.event().await {
                if event.name == "SHUTDOWN" {
                    return Some(Shutdown::of(&event.data));
                }
            }
            None
        };
        timeout(COMMAND_TIMEOUT, reading).await.ok().flatten()
    }
}

/// The console's verdict, and the emulator's own words.
fn read_log(directory: &Path) -> (Console, String) {
    let mut console = Console::default();
    let mut words = Vec::new();
    let mut bytes = Vec::new();
    let read = LogReader::open(directory).and_then(|mut log| {
        while let Some(chunk) = log.next_chunk(&mut bytes)? {
            match chunk.channel {
                Channel::Stderr => words.extend_from_slice(&bytes),
                _ => console.feed(&bytes),
            }
            let excess = words.len().saturating_sub(WORDS_BYTES);
            words.drain(..excess);
        }
        Ok(())
    });
    if let Err(error) = read {
        tracing::warn!(directory = %directory.display(), %error, "a console can't be read");
    }
    (console, String::from_utf8_lossy(&words).into_owned())
}
