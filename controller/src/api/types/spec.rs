//! What is to run: the part that workloads and submissions share.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A runtime.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeName {
    Exec,
    Docker,
    Qemu,
    Sim,
}

/// What one instance runs and under which terms.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub task: TaskSpec,
    #[serde(default)]
    pub demand: DemandSpec,
    /// All of them must hold of the node.
    #[serde(default)]
    pub constraints: Vec<ConstraintSpec>,
    /// Values are shown as `***` unless their owner asks for them.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Tags for people and filters; they do not influence placement.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub restart: RestartPolicy,
    #[serde(default)]
    pub reschedule: ReschedulePolicy,
    #[serde(default)]
    pub on_disconnect: OnDisconnectSpec,
    /// Higher goes first. -1000 to 1000.
    #[serde(default)]
    pub priority: i16,
    /// Ended as `expired` if it has not been placed after so long.
    #[serde(default)]
    pub pending_timeout_ms: Option<u64>,
    /// Ended as timed out after so much running time.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Between SIGTERM and SIGKILL.
    #[serde(default = "default_grace_ms")]
    pub stop_grace_ms: u64,
    /// Root, host users, devices; the tenant's policy must allow it.
    #[serde(default)]
    pub privileged: bool,
    /// CPU as a hard quota instead of a weight.
    #[serde(default)]
    pub hard_cpu: bool,
    #[serde(default)]
    pub log_cap_bytes: Option<u64>,
    /// Wait for so many input files (`PUT …/files?input=true`) before starting.
    #[serde(default)]
    pub await_inputs: u32,
    /// Standard input will come through `POST …/stdin`.
    #[serde(default)]
    pub stdin: bool,
    /// Keep the working directory so long after the end.
    #[serde(default)]
    pub keep_outputs_ms: u64,
}

/// The default of [`Spec::stop_grace_ms`].
pub const DEFAULT_STOP_GRACE_MS: u64 = 10_000;

const fn default_grace_ms() -> u64 {
    DEFAULT_STOP_GRACE_MS
}

impl Spec {
    /// A task with every other field at its default.
    #[must_use]
    pub fn new(task: TaskSpec) -> Self {
        Self {
            task,
            demand: DemandSpec::default(),
            constraints: Vec::new(),
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            restart: RestartPolicy::default(),
            reschedule: ReschedulePolicy::default(),
            on_disconnect: OnDisconnectSpec::default(),
            priority: 0,
            pending_timeout_ms: None,
            timeout_ms: None,
            stop_grace_ms: DEFAULT_STOP_GRACE_MS,
            privileged: false,
            hard_cpu: false,
            log_cap_bytes: None,
            await_inputs: 0,
            stdin: false,
            keep_outputs_ms: 0,
        }
    }
}

/// A runtime with what it needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(tag = "runtime", rename_all = "lowercase")]
pub enum TaskSpec {
    Exec(ExecSpec),
    Docker(DockerSpec),
    Qemu(QemuSpec),
    Sim(SimSpec),
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Absent: a fresh directory that is removed with the instance.
    #[serde(default)]
    pub workdir: Option<String>,
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub pids_limit: Option<u32>,
    #[serde(default)]
    pub umask: Option<u32>,
    #[serde(default)]
    pub private_tmp: bool,
    /// Refuse to run where no cgroup can enforce the limits.
    #[serde(default)]
    pub require_hard_limits: bool,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DockerSpec {
    pub image: String,
    /// Empty: the image's own.
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub workdir: Option<String>,
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub pids_limit: Option<u32>,
    /// Needs `privileged`.
    #[serde(default)]
    pub mounts: Vec<MountSpec>,
    #[serde(default)]
    pub ports: Vec<PortSpec>,
}

/// A directory or file of the node inside a container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    pub source: String,
    pub target: String,
    #[serde(default)]
    pub read_only: bool,
}

/// A port of the workload, reachable at a port of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// 0: any free one.
    #[serde(default)]
    pub host: u16,
    pub guest: u16,
    #[serde(default)]
    pub udp: bool,
}

/// A virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QemuSpec {
    #[serde(default)]
    pub image: Option<String>,
    #[serde(default)]
    pub kernel: Option<String>,
    #[serde(default)]
    pub initrd: Option<String>,
    #[serde(default)]
    pub append: String,
    #[serde(default)]
    pub user_data: Option<String>,
    #[serde(default)]
    pub meta_data: Option<String>,
    #[serde(default)]
    pub ports: Vec<PortSpec>,
}

/// Nothing, for a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SimSpec {
    #[serde(default)]
    pub run_ms: u64,
    #[serde(default)]
    pub exit_code: i32,
}

/// What one instance needs of its node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DemandSpec {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// A hard limit, at least 4.
    pub memory_mib: u32,
    pub disk_mib: u32,
    /// Whole devices; excludes `gpu_millis`.
    pub gpus: u16,
    /// A share of one device, below 1000; excludes `gpus`.
    pub gpu_millis: u16,
    /// Countable resources by name.
    pub resources: BTreeMap<String, u32>,
}

impl Default for DemandSpec {
    /// A tenth of a core and 64 MiB.
    fn default() -> Self {
        Self {
            cpu_millis: 100,
            memory_mib: 64,
            disk_mib: 0,
            gpus: 0,
            gpu_millis: 0,
            resources: BTreeMap::new(),
        }
    }
}

/// What a node must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConstraintSpec {
    /// This node, by name.
    Node(String),
    /// A label of the node has this value.
    Label(LabelSpec),
}

/// A label and its value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelSpec {
    pub key: String,
    pub value: String,
}

/// What happens when an attempt fails by the workload's own doing. Failures of the node are
/// retried elsewhere under [`ReschedulePolicy`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RestartPolicy {
    pub mode: RestartMode,
    /// Restarts at most; absent: no limit.
    pub limit: Option<u32>,
    /// Before the first restart; doubles with each. Less than 10 is taken as 10.
    pub backoff_ms: u64,
    /// Less than 1000 is taken as 1000.
    pub backoff_max_ms: u64,
}

/// When an ended attempt is followed by another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartMode {
    #[default]
    Never,
    OnFailure,
    Always,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            mode: RestartMode::Never,
            limit: Some(3),
            backoff_ms: 1000,
            backoff_max_ms: 60_000,
        }
    }
}

/// What happens when a node is lost, refuses or fails an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReschedulePolicy {
    /// New attempts at most; 0: never, the instance ends as `node_lost`.
    pub limit: u32,
    /// As for a restart.
    pub backoff_ms: u64,
    /// As for a restart.
    pub backoff_max_ms: u64,
}

impl Default for ReschedulePolicy {
    fn default() -> Self {
        Self {
            limit: 5,
            backoff_ms: 100,
            backoff_max_ms: 30_000,
        }
    }
}

/// What running work does when its node is cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnectSpec {
    /// It runs on; a second attempt may be placed elsewhere meanwhile.
    #[default]
    Keep,
    /// The node itself ends it so long after its lease; it never runs twice at once.
    StopAfterMs(u64),
}

/// Changes to a workload's [`Spec`] for one submission; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SpecOverrides {
    pub task: Option<TaskSpec>,
    pub demand: Option<DemandSpec>,
    /// Added to the workload's.
    pub constraints: Vec<ConstraintSpec>,
    /// Added to the workload's; the same name is replaced.
    pub env: BTreeMap<String, String>,
    /// Added to the workload's; the same key is replaced.
    pub labels: BTreeMap<String, String>,
    pub restart: Option<RestartPolicy>,
    pub reschedule: Option<ReschedulePolicy>,
    pub on_disconnect: Option<OnDisconnectSpec>,
    pub priority: Option<i16>,
    pub pending_timeout_ms: Option<u64>,
    pub timeout_ms: Option<u64>,
    pub stop_grace_ms: Option<u64>,
    pub stdin: Option<bool>,
    pub await_inputs: Option<u32>,
    pub keep_outputs_ms: Option<u64>,
}
