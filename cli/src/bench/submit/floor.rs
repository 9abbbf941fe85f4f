//! What this machine does without Pronto: the same process, container or guest, bare.

use super::plan::{PROGRAM, Plan, RuntimeChoice, qemu_task};
use super::timings::Timings;
use crate::bench::figures::as_f64;
use crate::exit::{Exit, Failure};
use anyhow::Context;
use pronto_launcher::runtime::docker::BareContainer;
use pronto_launcher::runtime::qemu::{BareGuest, probe};
use pronto_payloads::demand::Demand;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// More at once than this only wait for each other.
const THREADS: u32 = 64;
/// It is measured with no more than tell it.
const MOST: u32 = 4_000;
/// The emulator that launchers look for unless they are told another.
const EMULATOR: &str = if cfg!(target_arch = "aarch64") {
    "qemu-system-aarch64"
} else {
    "qemu-system-x86_64"
};

/// What is run bare. Clones share it.
#[derive(Clone)]
pub(super) enum Bare {
    Nothing,
    Process,
    Container {
        container: Arc<BareContainer>,
        tokio: Arc<tokio::runtime::Runtime>,
    },
    /// One for each that may run at the same time.
    Guests(Arc<Vec<BareGuest>>),
}

/// How it did.
pub(super) struct Floor {
    /// Until it had been started.
    pub(super) start: Timings,
    /// Until its end.
    pub(super) end: Timings,
    pub(super) per_second: f64,
}

impl Bare {
    /// Finds engine and emulator. Guests have their files in `directory`.
    pub(super) fn find(plan: &Plan, directory: &Path) -> Result<Self, Failure> {
        match plan.runtime {
            RuntimeChoice::Sim => Ok(Self::Nothing),
            RuntimeChoice::Exec => Ok(Self::Process),
            RuntimeChoice::Docker => {
                let tokio = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()?;
                let command = vec!["true".to_owned()];
                let connected = BareContainer::connect(&plan.image, command, plan.memory_mib);
                let container = tokio.block_on(connected).map_err(|reason| {
                    failed(reason).hint("DOCKER_HOST names an engine; --image an image that it has")
                })?;
                let (container, tokio) = (Arc::new(container), Arc::new(tokio));
                Ok(Self::Container { container, tokio })
            }
            RuntimeChoice::Qemu => Self::guests(plan, directory),
        }
    }

    fn guests(plan: &Plan, directory: &Path) -> Result<Self, Failure> {
        let probe = async { Ok(probe::probe(Path::new(EMULATOR), directory).await) };
        let emulator = crate::commands::block_on(probe)?
            .map_err(|reason| failed(format!("no guest runs here: {reason}")))?;
        let demand = Demand {
            cpu_millis: plan.cpu_millis,
            memory_mib: plan.memory_mib,
            ..Demand::default()
        };
        let guest = |number: u32| -> Result<BareGuest, Failure> {
            let own = directory.join(format!("bare-{number}"));
            std::fs::create_dir_all(&own)?;
            Ok(BareGuest::new(&emulator, &qemu_task(plan), &demand, own)?)
        };
        let guests: Result<Vec<_>, _> = (0..plan.parallel.min(THREADS)).map(guest).collect();
        Ok(Self::Guests(Arc::new(guests?)))
    }

    /// Runs one to its end on thread `thread`: times until it was started and until its end.
    fn once(&self, thread: u32, number: u32) -> anyhow::Result<[Duration; 2]> {
        match self {
            Self::Nothing => Ok([Duration::ZERO; 2]),
            Self::Process => spawn_and_wait(),
            Self::Container { container, tokio } => {
                let name = format!("pronto-bench-{}-{number}", std::process::id());
                let run = tokio.block_on(container.run(&name));
                run.map_err(|reason| anyhow::anyhow!("the bare container: {reason}"))
            }
            Self::Guests(guests) => guests[thread as usize].run().context("the bare guest"),
        }
    }

    /// One at a time, and as many at once as instances would be; ends early once it is `unwanted`.
    pub(super) fn floor(&self, plan: &Plan, unwanted: &AtomicBool) -> Result<Floor, Failure> {
        let (mut start, mut end) = (Timings::new(), Timings::new());
        for number in 0..plan.single {
            let [started, ended] = self.once(0, number)?;
            start.note_duration(started);
            end.note_duration(ended);
            if unwanted.load(Ordering::Relaxed) {
                break;
            }
        }
        let count = plan.count.min(MOST);
        let next = AtomicU32::new(0);
        let began = Instant::now();
        let work = |thread: u32| -> anyhow::Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count || unwanted.load(Ordering::Relaxed) {
                    return Ok(());
                }
                self.once(thread, plan.single + number)?;
            }
        };
        std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = (0..plan.parallel.min(THREADS))
                .map(|thread| scope.spawn(move || work(thread)))
                .collect();
            for thread in threads {
                let ended = thread.join();
                ended.map_err(|_| failed("a thread of the floor ended badly".to_owned()))??;
            }
            Ok::<_, Failure>(())
        })?;
        Ok(Floor {
            start,
            end,
            per_second: as_f64(u64::from(count)) / began.elapsed().as_secs_f64(),
        })
    }
}

/// The standard library uses posix_spawn where nothing is asked for that it can't do.
fn spawn_and_wait() -> anyhow::Result<[Duration; 2]> {
    let began = Instant::now();
    let mut child = Command::new(PROGRAM)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("can't run {PROGRAM}"))?;
    let started = began.elapsed();
    let status = child.wait()?;
    anyhow::ensure!(status.success(), "{PROGRAM} ended with {status}");
    Ok([started, began.elapsed()])
}

fn failed(what: String) -> Failure {
    Failure::new(Exit::Failed, what)
}
