//! What is run, how often and how many at once: the flags, with a default for each runtime.

use crate::exit::Failure;
use pronto_controller::api::types as api;
use pronto_payloads::start::QemuTask;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What every exec workload runs.
pub(super) const PROGRAM: &str = "/bin/true";
/// The same in a container.
const PROGRAM_IN_IMAGE: &str = "true";
/// What a guest finds in its cloud-init seed and runs at the end of its boot.
const SCRIPT_IN_GUEST: &str = "#!/bin/sh\npoweroff -f\n";
/// The guest's console is its log: quiet, so that speaking does not dominate the boot. A guest
/// that panics ends instead of hanging.
const GUEST_APPEND: &str = "quiet panic=-1";
/// Share of this machine's cores that all instances under way ask for, in thousandths of one.
const CPU_MILLIS: u32 = 1_000;

/// Flags of `bench submit`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SubmitArgs {
    /// Instances of the part with many at once [default: 2000; docker 20, qemu 4]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: Option<u32>,
    /// Instances under way at once [default: 64; docker 4, qemu 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    parallel: Option<u32>,
    /// Instances that are followed one at a time [default: 50; docker 15, qemu 5]; none with
    /// --runtime sim, which has no output to follow
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    single: Option<u32>,
    /// exec runs /bin/true; docker runs `true` in a container; qemu boots a guest that powers
    /// itself off; sim runs nothing
    #[arg(long, default_value = "exec")]
    runtime: RuntimeChoice,
    /// With docker: an image that the engine has
    #[arg(long, default_value = "busybox")]
    image: String,
    /// With qemu: the guest's kernel
    #[arg(long, value_name = "FILE", required_if_eq("runtime", "qemu"))]
    kernel: Option<PathBuf>,
    /// With qemu: its initrd, which must run a script that it finds as user-data in a cloud-init
    /// seed
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Compute nodes; they share this machine between them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=8))]
    launchers: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum RuntimeChoice {
    Exec,
    Docker,
    Qemu,
    Sim,
}

/// The flags with their defaults filled in.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) runtime: RuntimeChoice,
    pub(super) count: u32,
    pub(super) parallel: u32,
    pub(super) single: u32,
    /// Instances before the first that is timed.
    pub(super) warming: u32,
    pub(super) launchers: u16,
    pub(super) cpu_millis: u32,
    pub(super) memory_mib: u32,
    pub(super) image: String,
    kernel: Option<String>,
    initrd: Option<String>,
}

/// How often, at once, one at a time, before that; and the least memory that does.
const fn defaults(runtime: RuntimeChoice) -> [u32; 5] {
    match runtime {
        RuntimeChoice::Exec | RuntimeChoice::Sim => [2_000, 64, 50, 10, 4],
        RuntimeChoice::Docker => [20, 4, 15, 2, 16],
        RuntimeChoice::Qemu => [4, 2, 5, 1, 160],
    }
}

impl RuntimeChoice {
    pub(super) const fn name(self) -> api::RuntimeName {
        match self {
            Self::Exec => api::RuntimeName::Exec,
            Self::Docker => api::RuntimeName::Docker,
            Self::Qemu => api::RuntimeName::Qemu,
            Self::Sim => api::RuntimeName::Sim,
        }
    }
}

impl Plan {
    pub(super) fn new(args: &SubmitArgs) -> Result<Self, Failure> {
        let [count, parallel, single, warming, memory_mib] = defaults(args.runtime);
        let parallel = args.parallel.unwrap_or(parallel);
        let absolute = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
        Ok(Self {
            runtime: args.runtime,
            count: args.count.unwrap_or(count),
            parallel,
            single: args.single.unwrap_or(single),
            warming,
            launchers: args.launchers,
            cpu_millis: (CPU_MILLIS / parallel).max(1),
            memory_mib,
            image: args.image.clone(),
            kernel: absolute(&args.kernel)?,
            initrd: absolute(&args.initrd)?,
        })
    }

    /// So many instances.
    pub(super) fn request(&self, count: u32) -> api::SubmitRequest {
        let task = match self.runtime {
            RuntimeChoice::Exec => api::TaskSpec::Exec(api::ExecSpec {
                command: vec![PROGRAM.to_owned()],
                ..api::ExecSpec::default()
            }),
            RuntimeChoice::Docker => api::TaskSpec::Docker(api::DockerSpec {
                image: self.image.clone(),
                command: vec![PROGRAM_IN_IMAGE.to_owned()],
                ..api::DockerSpec::default()
            }),
            RuntimeChoice::Qemu => {
                let task = qemu_task(self);
                api::TaskSpec::Qemu(api::QemuSpec {
                    kernel: task.kernel,
                    initrd: task.initrd,
                    append: task.append,
                    user_data: task.user_data,
                    ..api::QemuSpec::default()
                })
            }
            RuntimeChoice::Sim => api::TaskSpec::Sim(api::SimSpec::default()),
        };
        let mut spec = api::Spec::new(task);
        spec.demand.cpu_millis = self.cpu_millis;
        spec.demand.memory_mib = self.memory_mib;
        api::SubmitRequest {
            count,
            ..api::SubmitRequest::ad_hoc(Uuid::now_v7(), spec)
        }
    }
}

/// The guest, for Pronto and bare alike.
pub(super) fn qemu_task(plan: &Plan) -> QemuTask {
    QemuTask {
        kernel: plan.kernel.clone(),
        initrd: plan.initrd.clone(),
        append: GUEST_APPEND.to_owned(),
        user_data: Some(SCRIPT_IN_GUEST.to_owned()),
        ..QemuTask::default()
    }
}

/// A file of this machine as the launcher will open it.
fn absolute(path: &Path) -> Result<String, Failure> {
    let found = std::fs::canonicalize(path)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    found
        .into_os_string()
        .into_string()
        .map_err(|path| Failure::usage(format!("{}: not text", path.display())))
}
