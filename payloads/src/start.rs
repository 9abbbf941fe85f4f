//! The body of a START: what the launcher runs, and how.
//!
//! Opaque to the scheduler. What the controller's policy must have allowed before it was sent
//! (privilege, users, mounts) stands here as facts; the launcher obeys and does not judge.

use crate::codec::{
    Invalid, Payload, check_c_string, check_each, check_len, check_name, check_name_or_empty,
    check_path, check_text, check_value,
};
use crate::demand::Runtime;
use crate::limits;
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Everything about one attempt that the scheduler need not know.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct StartBody {
    pub tenant: String,
    /// The instance's name, for people and `PRONTO_NAME`; may be empty.
    pub name: String,
    /// The workload's name; may be empty for an ad-hoc one.
    pub workload: String,
    pub task: Task,
    pub env: Vec<EnvVar>,
    /// Ended as timed out after this much running time.
    pub timeout_ms: Option<u64>,
    /// Between SIGTERM (or its like) and SIGKILL.
    pub stop_grace_ms: u64,
    pub on_disconnect: OnDisconnect,
    /// The owner's policy allows root, host users and device access.
    pub privileged: bool,
    /// Total size of the kept log; the launcher's default where absent.
    pub log_cap_bytes: Option<u64>,
    /// A hard CPU quota of the demand, instead of a weight.
    pub hard_cpu: bool,
    /// Do not start until this many input files have been copied in.
    pub await_inputs: u32,
    /// Standard input will come over a stream; otherwise it is empty.
    pub stdin: bool,
    /// Keep the working directory this long after the end, for results to be fetched.
    pub keep_outputs_ms: u64,
}

impl StartBody {
    /// A task of this tenant that asks for nothing else: no grace, nothing kept, kept running when
    /// the node is cut off.
    #[must_use]
    pub fn new(tenant: &str, task: Task) -> Self {
        Self {
            tenant: tenant.to_owned(),
            name: String::new(),
            workload: String::new(),
            task,
            env: Vec::new(),
            timeout_ms: None,
            stop_grace_ms: 0,
            on_disconnect: OnDisconnect::Keep,
            privileged: false,
            log_cap_bytes: None,
            hard_cpu: false,
            await_inputs: 0,
            stdin: false,
            keep_outputs_ms: 0,
        }
    }
}

/// What the node does when it is cut off from scheduler or controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnect {
    /// Runs on; a second attempt may be placed elsewhere meanwhile.
    Keep,
    /// The node itself ends the workload this long after its lease ran out.
    StopAfter { ms: u64 },
}

/// A runtime with what it needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    Exec(ExecTask),
    Docker(DockerTask),
    Qemu(QemuTask),
    Sim(SimTask),
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecTask {
    /// Program and arguments; the program is looked up in the workload's `PATH`.
    pub command: Vec<String>,
    /// Absent: a fresh directory that is removed with the instance.
    pub workdir: Option<String>,
    /// Absent: the launcher's configured workload user. Needs `privileged` to be root.
    pub user: Option<String>,
    pub pids_limit: Option<u32>,
    pub umask: Option<u32>,
    pub private_tmp: bool,
    /// Refuse to run where no cgroup can enforce the limits.
    pub require_hard_limits: bool,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(default)]
pub struct DockerTask {
    pub image: String,
    /// Empty: the image's own.
    pub command: Vec<String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    pub pids_limit: Option<u32>,
    pub mounts: Vec<Mount>,
    pub ports: Vec<Port>,
}

/// A directory or file of the node inside a container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Mount {
    pub source: String,
    pub target: String,
    pub read_only: bool,
}

/// A port of the workload, reachable at a port of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Port {
    /// 0: any free one.
    pub host: u16,
    pub guest: u16,
    pub udp: bool,
}

/// A virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(default)]
pub struct QemuTask {
    /// A qcow2 image on the node; an overlay is made for each attempt.
    pub image: Option<String>,
    pub kernel: Option<String>,
    pub initrd: Option<String>,
    pub append: String,
    pub user_data: Option<String>,
    pub meta_data: Option<String>,
    pub ports: Vec<Port>,
}

/// Nothing, for a time.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(default)]
pub struct SimTask {
    pub run_ms: u64,
    pub exit_code: i32,
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct EnvVar {
    pub name: String,
    pub value: String,
}

impl Task {
    /// Which runtime this is for.
    #[must_use]
    pub const fn runtime(&self) -> Runtime {
        match self {
            Self::Exec(_) => Runtime::Exec,
            Self::Docker(_) => Runtime::Docker,
            Self::Qemu(_) => Runtime::Qemu,
            Self::Sim(_) => Runtime::Sim,
        }
    }
}

fn check_command(command: &[String]) -> Result<(), Invalid> {
    check_len("arguments", command.len(), limits::ARGUMENTS)?;
    command
        .iter()
        .try_for_each(|argument| check_c_string("argument", argument))
}

fn check_optional(what: &'static str, value: Option<&String>) -> Result<(), Invalid> {
    value.map_or(Ok(()), |value| check_value(what, value))
}

impl Payload for EnvVar {
    fn check(&self) -> Result<(), Invalid> {
        let named = !self.name.is_empty()
            && self.name.len() <= limits::VALUE_BYTES
            && !self.name.contains(['=', '\0']);
        if !named {
            return Err(Invalid::new(
                "environment name",
                "1 to 255 bytes without '=' and NUL",
            ));
        }
        check_c_string("environment value", &self.value)
    }
}

impl Payload for Task {
    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Exec(task) => {
                if task.command.is_empty() || task.command[0].is_empty() {
                    return Err(Invalid::new("command", "a program and its arguments"));
                }
                check_command(&task.command)?;
                check_path("workdir", task.workdir.as_ref())?;
                check_optional("user", task.user.as_ref())
            }
            Self::Docker(task) => {
                if task.image.is_empty() {
                    return Err(Invalid::new("image", "an image reference"));
                }
                check_value("image", &task.image)?;
                check_command(&task.command)?;
                check_path("workdir", task.workdir.as_ref())?;
                check_optional("user", task.user.as_ref())?;
                check_len("mounts", task.mounts.len(), limits::MOUNTS)?;
                for mount in &task.mounts {
                    check_path("mount source", Some(&mount.source))?;
                    check_path("mount target", Some(&mount.target))?;
                }
                check_len("ports", task.ports.len(), limits::MOUNTS)
            }
            Self::Qemu(task) => {
                if task.image.is_none() && task.kernel.is_none() {
                    return Err(Invalid::new("virtual machine", "an image or a kernel"));
                }
                check_path("image", task.image.as_ref())?;
                check_path("kernel", task.kernel.as_ref())?;
                check_path("initrd", task.initrd.as_ref())?;
                check_c_string("append", &task.append)?;
                for data in [&task.user_data, &task.meta_data].into_iter().flatten() {
                    check_text("cloud-init data", data, limits::USER_DATA_BYTES)?;
                }
                check_len("ports", task.ports.len(), limits::MOUNTS)
            }
            Self::Sim(_) => Ok(()),
        }
    }
}

impl Payload for StartBody {
    fn check(&self) -> Result<(), Invalid> {
        check_name("tenant", &self.tenant)?;
        check_name_or_empty("name", &self.name)?;
        check_name_or_empty("workload", &self.workload)?;
        check_each("environment", &self.env, limits::ENVIRONMENT)?;
        self.task.check()
    }
}
