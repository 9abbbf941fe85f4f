//! From what a user writes (the API's [`Spec`]) to what the wire carries, with its checks.
//!
//! The payloads' own checks are applied here, at admission: what is admitted can be sent. What the
//! API has and the wire has not (restart policy, labels, priority) stays with the planner.

use crate::api::types::{
    ConstraintSpec, DemandSpec, EndReason, EndRecord, OnDisconnectSpec, PortSpec, QuotaUse,
    RestartMode, RuntimeName, Spec, SpecOverrides, TaskSpec, UsageView,
};
use pronto_payloads::codec::{self, Invalid, Payload, check_name};
use pronto_payloads::demand::{Constraint, Demand, Resource, Runtime};
use pronto_payloads::instance::{End, EndCause, Usage};
use pronto_payloads::limits;
use pronto_payloads::node::Label;
use pronto_payloads::start::{
    DockerTask, EnvVar, ExecTask, Mount, OnDisconnect, Port, QemuTask, SimTask, StartBody, Task,
};

/// The hard limit of an instance's memory may not be smaller: a process needs some.
const MEMORY_MIN_MIB: u32 = 4;
/// Priorities beyond it would only be a race of zeroes.
const PRIORITY_LIMIT: i16 = 1000;
/// A START's body: what its frame takes, less the prefix with all its constraints.
const BODY_LIMIT_BYTES: usize = limits::START_BYTES - 64 * 1024;
/// Input files that a START may wait for.
const AWAIT_INPUTS_LIMIT: u32 = 1024;

impl RuntimeName {
    /// As users write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.wire().name()
    }

    /// The wire's type.
    #[must_use]
    pub const fn wire(self) -> Runtime {
        match self {
            Self::Exec => Runtime::Exec,
            Self::Docker => Runtime::Docker,
            Self::Qemu => Runtime::Qemu,
            Self::Sim => Runtime::Sim,
        }
    }

    /// From the wire's type.
    #[must_use]
    pub const fn from_wire(runtime: Runtime) -> Self {
        match runtime {
            Runtime::Exec => Self::Exec,
            Runtime::Docker => Self::Docker,
            Runtime::Qemu => Self::Qemu,
            Runtime::Sim => Self::Sim,
        }
    }
}

impl TaskSpec {
    /// Which runtime it is for.
    #[must_use]
    pub const fn runtime(&self) -> RuntimeName {
        match self {
            Self::Exec(_) => RuntimeName::Exec,
            Self::Docker(_) => RuntimeName::Docker,
            Self::Qemu(_) => RuntimeName::Qemu,
            Self::Sim(_) => RuntimeName::Sim,
        }
    }

    fn wire(&self) -> Task {
        match self {
            Self::Exec(exec) => Task::Exec(ExecTask {
                command: exec.command.clone(),
                workdir: exec.workdir.clone(),
                user: exec.user.clone(),
                pids_limit: exec.pids_limit,
                umask: exec.umask,
                private_tmp: exec.private_tmp,
                require_hard_limits: exec.require_hard_limits,
            }),
            Self::Docker(docker) => Task::Docker(DockerTask {
                image: docker.image.clone(),
                command: docker.command.clone(),
                workdir: docker.workdir.clone(),
                user: docker.user.clone(),
                pids_limit: docker.pids_limit,
                mounts: docker
                    .mounts
                    .iter()
                    .map(|mount| Mount {
                        source: mount.source.clone(),
                        target: mount.target.clone(),
                        read_only: mount.read_only,
                    })
                    .collect(),
                ports: ports(&docker.ports),
            }),
            Self::Qemu(qemu) => Task::Qemu(QemuTask {
                image: qemu.image.clone(),
                kernel: qemu.kernel.clone(),
                initrd: qemu.initrd.clone(),
                append: qemu.append.clone(),
                user_data: qemu.user_data.clone(),
                meta_data: qemu.meta_data.clone(),
                ports: ports(&qemu.ports),
            }),
            Self::Sim(sim) => Task::Sim(SimTask {
                run_ms: sim.run_ms,
                exit_code: sim.exit_code,
            }),
        }
    }

    /// Whether the tenant's policy must allow privileged work for it.
    fn needs_privilege(&self) -> Option<&'static str> {
        match self {
            Self::Exec(exec) if exec.user.is_some() => Some("user"),
            Self::Docker(docker) if !docker.mounts.is_empty() => Some("mounts"),
            Self::Exec(_) | Self::Docker(_) | Self::Qemu(_) | Self::Sim(_) => None,
        }
    }
}

fn ports(ports: &[PortSpec]) -> Vec<Port> {
    ports
        .iter()
        .map(|port| Port {
            host: port.host,
            guest: port.guest,
            udp: port.udp,
        })
        .collect()
}

/// A demand as the wire has it.
#[must_use]
pub fn demand(spec: &DemandSpec) -> Demand {
    Demand {
        cpu_millis: spec.cpu_millis,
        memory_mib: spec.memory_mib,
        disk_mib: spec.disk_mib,
        gpus: spec.gpus,
        gpu_millis: spec.gpu_millis,
        resources: spec
            .resources
            .iter()
            .map(|(name, count)| Resource {
                name: name.clone(),
                count: *count,
            })
            .collect(),
    }
}

/// Constraints as the wire has them, in one order, so that equal demands are one class.
#[must_use]
pub fn constraints(specs: &[ConstraintSpec]) -> Vec<Constraint> {
    let mut constraints: Vec<Constraint> = specs
        .iter()
        .map(|spec| match spec {
            ConstraintSpec::Node(node) => Constraint::Node(node.clone()),
            ConstraintSpec::Label(label) => Constraint::Label {
                key: label.key.clone(),
                value: label.value.clone(),
            },
        })
        .collect();
    constraints.sort_unstable();
    constraints.dedup();
    constraints
}

/// What one instance counts in its tenant's quota.
#[must_use]
pub fn quota_use(demand: &Demand) -> QuotaUse {
    QuotaUse {
        instances: 1,
        cpu_millis: u64::from(demand.cpu_millis),
        memory_mib: u64::from(demand.memory_mib),
        disk_mib: u64::from(demand.disk_mib),
        gpu_millis: u64::from(demand.gpu_total_millis()),
    }
}

/// The body of a START.
#[must_use]
pub fn start_body(tenant: &str, workload: Option<&str>, name: &str, spec: &Spec) -> StartBody {
    StartBody {
        tenant: tenant.to_owned(),
        name: name.to_owned(),
        workload: workload.unwrap_or_default().to_owned(),
        task: spec.task.wire(),
        env: spec
            .env
            .iter()
            .map(|(name, value)| EnvVar {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
        timeout_ms: spec.timeout_ms,
        stop_grace_ms: spec.stop_grace_ms,
        on_disconnect: match spec.on_disconnect {
            OnDisconnectSpec::Keep => OnDisconnect::Keep,
            OnDisconnectSpec::StopAfterMs(ms) => OnDisconnect::StopAfter { ms },
        },
        privileged: spec.privileged,
        log_cap_bytes: spec.log_cap_bytes,
        hard_cpu: spec.hard_cpu,
        await_inputs: spec.await_inputs,
        stdin: spec.stdin,
        keep_outputs_ms: spec.keep_outputs_ms,
    }
}

/// Checks everything in a spec that does not depend on the tenant.
///
/// # Errors
/// The first field outside of its limits, with what it accepts.
pub fn check(spec: &Spec) -> Result<(), Invalid> {
    let demand = demand(&spec.demand);
    demand.check()?;
    if demand.memory_mib < MEMORY_MIN_MIB {
        return Err(Invalid::new("memory_mib", "at least 4"));
    }
    if spec.constraints.len() > limits::LABELS {
        return Err(Invalid::new("constraints", "at most 64"));
    }
    for constraint in constraints(&spec.constraints) {
        constraint.check()?;
    }
    if spec.labels.len() > limits::LABELS {
        return Err(Invalid::new("labels", "at most 64"));
    }
    for (key, value) in &spec.labels {
        let label = Label {
            key: key.clone(),
            value: value.clone(),
        };
        label.check()?;
    }
    if spec.priority.abs() > PRIORITY_LIMIT {
        return Err(Invalid::new("priority", "-1000 to 1000"));
    }
    if spec.await_inputs > AWAIT_INPUTS_LIMIT {
        return Err(Invalid::new("await_inputs", "at most 1024"));
    }
    if let TaskSpec::Sim(sim) = &spec.task
        && !(0..=255).contains(&sim.exit_code)
    {
        return Err(Invalid::new("exit_code", "0 to 255"));
    }
    if spec.stdin && spec.restart.mode != RestartMode::Never {
        return Err(Invalid::new(
            "restart",
            "never, together with standard input: it is given once",
        ));
    }
    if let (Some(what), false) = (spec.task.needs_privilege(), spec.privileged) {
        return Err(Invalid::new(what, "only together with privileged: true"));
    }
    let body = start_body(&"t".repeat(limits::NAME_BYTES), None, "", spec);
    body.check()?;
    // Names, prefix and the rest of it take what a START's limit leaves.
    let bytes = codec::encode(&body).len();
    if bytes > BODY_LIMIT_BYTES {
        return Err(Invalid::new(
            format!("spec of {bytes} bytes"),
            format!("{BODY_LIMIT_BYTES} bytes with its command, environment and cloud-init data"),
        ));
    }
    Ok(())
}

/// Checks a name that a user chose for an instance; room is left for a number behind it.
///
/// # Errors
/// What is accepted: all of it, whichever rule is broken.
pub fn check_instance_name(name: &str, count: u32) -> Result<(), Invalid> {
    let longest = name.len() + if count > 1 { 7 } else { 0 };
    let fine = check_name("name", name).is_ok()
        && longest <= limits::NAME_BYTES
        && !name.contains('/')
        && !crate::numbers_like(name);
    if fine {
        return Ok(());
    }
    Err(Invalid::new(
        "name",
        "1 to 63 ASCII letters, digits, '.', '_' and '-' (56 where the count is above 1), \
         not hex digits and dashes alone, which would read as an id",
    ))
}

/// A workload's spec with a submission's changes.
#[must_use]
pub fn overridden(spec: &Spec, changes: &SpecOverrides) -> Spec {
    let mut spec = spec.clone();
    if let Some(task) = &changes.task {
        spec.task = task.clone();
    }
    if let Some(demand) = &changes.demand {
        spec.demand = demand.clone();
    }
    spec.constraints.extend(changes.constraints.iter().cloned());
    let env = changes.env.iter().map(|(k, v)| (k.clone(), v.clone()));
    spec.env.extend(env);
    let labels = changes.labels.iter().map(|(k, v)| (k.clone(), v.clone()));
    spec.labels.extend(labels);
    if let Some(restart) = &changes.restart {
        spec.restart = restart.clone();
    }
    if let Some(reschedule) = &changes.reschedule {
        spec.reschedule = reschedule.clone();
    }
    spec.on_disconnect = changes.on_disconnect.unwrap_or(spec.on_disconnect);
    spec.priority = changes.priority.unwrap_or(spec.priority);
    spec.pending_timeout_ms = changes.pending_timeout_ms.or(spec.pending_timeout_ms);
    spec.timeout_ms = changes.timeout_ms.or(spec.timeout_ms);
    spec.stop_grace_ms = changes.stop_grace_ms.unwrap_or(spec.stop_grace_ms);
    spec.stdin = changes.stdin.unwrap_or(spec.stdin);
    spec.await_inputs = changes.await_inputs.unwrap_or(spec.await_inputs);
    spec.keep_outputs_ms = changes.keep_outputs_ms.unwrap_or(spec.keep_outputs_ms);
    spec
}

/// The same spec with the values of its environment hidden.
#[must_use]
pub fn redacted(spec: &Spec) -> Spec {
    let mut spec = spec.clone();
    for value in spec.env.values_mut() {
        "***".clone_into(value);
    }
    spec
}

/// A launcher's usage as the API shows it.
#[must_use]
pub const fn usage(usage: &Usage) -> UsageView {
    UsageView {
        cpu_ms: usage.cpu_ms,
        memory_mib: usage.memory_mib,
        memory_peak_mib: usage.memory_peak_mib,
        read_bytes: usage.read_bytes,
        written_bytes: usage.written_bytes,
        pids: usage.pids,
    }
}

/// A launcher's end as the API shows it.
#[must_use]
pub fn end_record(end: &End) -> EndRecord {
    let (cause, code, signal, words) = match &end.cause {
        EndCause::Exited { code } => (EndReason::Exited, Some(*code), None, String::new()),
        EndCause::Signaled { signal } => (
            EndReason::Signaled,
            None,
            Some(*signal),
            format!("ended by signal {signal}"),
        ),
        EndCause::OutOfMemory {
            limit_mib,
            peak_mib,
        } => (
            EndReason::OutOfMemory,
            None,
            None,
            format!("out of memory: limit {limit_mib} MiB, peak {peak_mib} MiB"),
        ),
        EndCause::TimedOut => (EndReason::TimedOut, None, None, "timed out".to_owned()),
        EndCause::Stopped => (EndReason::Stopped, None, None, "stopped".to_owned()),
        EndCause::LeaseExpired => (
            EndReason::LeaseExpired,
            None,
            None,
            "its node was cut off, and it asked to be ended then".to_owned(),
        ),
        EndCause::CannotExecute { code } => {
            (EndReason::CannotExecute, Some(*code), None, String::new())
        }
        EndCause::Rejected => (EndReason::Rejected, None, None, String::new()),
        EndCause::NodeFailed => (EndReason::NodeFailed, None, None, String::new()),
    };
    EndRecord {
        cause,
        code,
        signal,
        message: if end.message.is_empty() {
            words
        } else {
            end.message.clone()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{ExecSpec, MountSpec, SimSpec};

    fn exec(command: &[&str]) -> Spec {
        Spec::new(TaskSpec::Exec(ExecSpec {
            command: command.iter().map(|&s| s.to_owned()).collect(),
            ..ExecSpec::default()
        }))
    }

    #[test]
    fn a_spec_is_checked_before_it_is_admitted() {
        assert_eq!(check(&exec(&["true"])), Ok(()));
        assert!(check(&exec(&[])).is_err());
        let mut small = exec(&["true"]);
        small.demand.memory_mib = 3;
        assert_eq!(
            check(&small).unwrap_err().to_string(),
            "memory_mib is not accepted: at least 4"
        );
        let mut both = exec(&["true"]);
        both.demand.gpus = 1;
        both.demand.gpu_millis = 500;
        assert!(check(&both).is_err());
        let mut loud = exec(&["true"]);
        loud.priority = i16::MAX;
        assert!(check(&loud).is_err());
        let mounts = Spec::new(TaskSpec::Docker(crate::api::types::DockerSpec {
            image: "busybox".to_owned(),
            mounts: vec![MountSpec {
                source: "/".to_owned(),
                target: "/host".to_owned(),
                read_only: true,
            }],
            ..Default::default()
        }));
        assert!(check(&mounts).is_err());
    }

    #[test]
    fn unknown_fields_of_a_task_are_refused() {
        let good = r#"{"task":{"runtime":"sim","run_ms":5}}"#;
        let spec: Spec = serde_json::from_str(good).unwrap();
        assert_eq!(
            spec.task,
            TaskSpec::Sim(SimSpec {
                run_ms: 5,
                exit_code: 0
            })
        );
        let bad = r#"{"task":{"runtime":"sim","run_millis":5}}"#;
        let error = serde_json::from_str::<Spec>(bad).unwrap_err().to_string();
        assert!(error.contains("run_millis"), "{error}");
    }

    #[test]
    fn names_that_look_like_ids_are_refused() {
        assert!(check_instance_name("web", 1).is_ok());
        assert!(check_instance_name("deadbeef", 1).is_err());
        assert!(check_instance_name(&"w".repeat(60), 10).is_err());
    }
}
