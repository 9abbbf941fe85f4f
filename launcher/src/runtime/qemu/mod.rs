//! Virtual machines, one a workload, under QEMU.
//!
//! A guest is a process of a shim with a monitor beside it. `attempt` leads one from its files to
//! their removal; `machine` makes the command line, `seed` and `disk` the files, `ports` looks for
//! free ones; `qmp` speaks to the monitor; `console` and `verdict` say how a guest ended; `probe`
//! finds out what can be run here; `bare` is what benches compare with. `machine`, `seed`,
//! `console` and `verdict` are pure.
//!
//! The shim is one of its own, in a directory and control groups of its own: it is what survives
//! the launcher, ends overdue guests when the launcher is dead, and keeps logs and exit codes.
//!
//! Invariants: a guest's disk is an overlay that only its attempt writes; the image under it is
//! never written; after `Emptied` or `Failed` there is no overlay, seed or socket of it.

mod attempt;
mod bare;
mod console;
mod disk;
mod machine;
mod ports;
pub mod probe;
mod qmp;
mod seed;
mod verdict;

pub use bare::BareGuest;

use super::exec::{ExecRuntime, ExecSettings};
use super::{BoxFuture, Events, FileRoot, Readiness, Runtime};
use crate::data_dir::DataDir;
use crate::moment::Moment;
use crate::shim::sys::User;
use crate::supervisor::{Event, Job, StopCause};
use attempt::{Attempt, Note, process_job};
use probe::Emulator;
use pronto_payloads::demand::Runtime as Kind;
use pronto_payloads::ids::OwnerId;
use pronto_payloads::instance::{End, InstanceUsage};
use pronto_payloads::place::AttemptId;
use rustc_hash::FxHashMap;
use std::fmt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// What the qemu runtime is made with.
#[derive(Clone, Debug)]
pub struct QemuSettings {
    /// What [`probe::probe`] found. Absent: guests of an earlier process are adopted, and no new
    /// ones are prepared.
    pub emulator: Option<Emulator>,
    /// `qemu-img`, by path or to be looked for in `PATH`.
    pub image_tool: PathBuf,
    /// As for processes, with control groups of its own: the shim clears those that it is given.
    pub process: ExecSettings,
}

/// Where the shim of virtual machines has its socket, in a launcher's data directory.
#[must_use]
pub fn shim_dir(data_dir: &DataDir) -> DataDir {
    DataDir::new(data_dir.path().join("qemu"))
}

/// What all tasks share.
struct Shared {
    emulator: Option<Emulator>,
    image_tool: PathBuf,
    data_dir: DataDir,
    user: Option<User>,
    /// What a guest's process may use beside the guest's memory.
    overhead_mib: u32,
    exec: ExecRuntime,
    events: Events,
    entries: Mutex<FxHashMap<AttemptId, mpsc::UnboundedSender<Note>>>,
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, FxHashMap<AttemptId, mpsc::UnboundedSender<Note>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, id: AttemptId) {
        self.entries().remove(&id);
    }

    fn note(&self, id: AttemptId, note: Note) -> bool {
        self.entries()
            .get(&id)
            .is_some_and(|notes| notes.send(note).is_ok())
    }
}

/// The qemu runtime.
pub struct QemuRuntime {
    shared: Arc<Shared>,
    handle: Handle,
}

impl fmt::Debug for QemuRuntime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attempts = self.shared.entries().len();
        formatter
            .debug_struct("QemuRuntime")
            .field("attempts", &attempts)
            .finish_non_exhaustive()
    }
}

impl QemuRuntime {
    /// Connects to the shim of virtual machines, or starts one.
    ///
    /// # Errors
    ///
    /// If there is none and none can be started.
    pub async fn open(settings: QemuSettings, events: Events) -> anyhow::Result<Self> {
        let QemuSettings {
            emulator,
            image_tool,
            mut process,
        } = settings;
        let data_dir = process.data_dir.clone();
        let shim_dir = shim_dir(&data_dir);
        std::fs::create_dir_all(shim_dir.path())?;
        // The one to whom disks are given, and whom hardware acceleration is open to.
        process.own_users = false;
        if emulator.as_ref().is_some_and(|emulator| emulator.kvm)
            && let Some(user) = &mut process.user
        {
            user.groups.extend(accelerator_group());
        }
        let user = process.user.clone();
        let overhead_mib = match process.hierarchy {
            Some(_) => machine::OVERHEAD_MIB,
            None => machine::OVERHEAD_MAPPED_MIB,
        };
        let (inner, mut news) = Events::channel();
        let exec = ExecRuntime::open_in(shim_dir, process, inner).await?;
        let entries = Mutex::default();
        let image_tool = probe::find(&image_tool).unwrap_or(image_tool);
        let shared = Arc::new(Shared {
            emulator,
            image_tool,
            data_dir,
            user,
            overhead_mib,
            exec,
            events,
            entries,
        });
        let handle = Handle::current();
        let deal = Arc::downgrade(&shared);
        handle.spawn(async move {
            while let Some(event) = news.recv().await {
                let (Some(shared), Some(id)) = (deal.upgrade(), subject(&event)) else {
                    continue;
                };
                shared.note(id, Note::Process(event));
            }
        });
        Ok(Self { shared, handle })
    }

    fn attempt(&self, job: &Arc<Job>) -> Attempt {
        let (sender, notes) = mpsc::unbounded_channel();
        self.shared.entries().insert(job.id, sender);
        Attempt {
            shared: self.shared.clone(),
            job: job.clone(),
            notes,
        }
    }
}

/// The attempt that a process's news is about.
fn subject(event: &Event) -> Option<AttemptId> {
    match event {
        Event::Started { id, .. }
        | Event::Ended { id, .. }
        | Event::Failed { id, .. }
        | Event::Adopted { id, .. }
        | Event::Emptied(id) => Some(*id),
        _ => None,
    }
}

/// The group that may use hardware acceleration, where there is one besides root's.
fn accelerator_group() -> Option<u32> {
    let device = std::fs::metadata("/dev/kvm").ok()?;
    let for_group = device.permissions().mode() & 0o060 == 0o060;
    (for_group && device.gid() != 0).then(|| device.gid())
}

impl Runtime for QemuRuntime {
    fn kind(&self) -> Kind {
        Kind::Qemu
    }

    fn fences(&self) -> bool {
        self.shared.exec.fences()
    }

    fn prepare(&self, job: &Arc<Job>) -> Readiness {
        self.handle.spawn(self.attempt(job).fresh());
        Readiness::Later
    }

    fn start(&self, job: &Arc<Job>, fence_at: Option<Moment>) {
        self.shared.note(job.id, Note::Start { fence_at });
    }

    fn stop(&self, id: AttemptId, cause: StopCause, grace_ms: u64) {
        if !self.shared.note(id, Note::Stop { cause, grace_ms }) {
            let end = End {
                cause: cause.end_cause(),
                message: String::new(),
            };
            self.shared.events.tell(Event::Failed { id, end });
        }
    }

    fn fence(&self, owner: OwnerId, lease_until: Moment) {
        self.shared.exec.fence(owner, lease_until);
    }

    fn adopt(&self, jobs: Vec<Arc<Job>>) {
        for job in &jobs {
            self.handle.spawn(self.attempt(job).adopted());
        }
        let processes = jobs
            .iter()
            .map(|job| Arc::new(process_job(job, Vec::new(), self.shared.overhead_mib)));
        self.shared.exec.adopt(processes.collect());
    }

    fn usages(&self) -> BoxFuture<'_, Vec<InstanceUsage>> {
        self.shared.exec.usages()
    }

    fn files(&self, _job: &Job) -> Option<FileRoot> {
        None
    }
}
