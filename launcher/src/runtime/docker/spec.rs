//! The container that a workload asks for: pure, from a job to the engine's own structures.

use crate::supervisor::Job;
use bollard::models::{
    ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountType,
    PortBinding, PortMap,
};
use pronto_payloads::ids::NodeUuid;
use pronto_payloads::place::AttemptId;
use pronto_payloads::start::{DockerTask, Port};
use std::collections::HashMap;
use std::path::Path;

/// Labels of every container of ours: which attempt it is, and whose.
pub(super) const LABEL_INSTANCE: &str = "pronto.instance";
pub(super) const LABEL_ATTEMPT: &str = "pronto.attempt";
pub(super) const LABEL_OWNER: &str = "pronto.owner";
/// The data directory's identity: several launchers may share an engine.
pub(super) const LABEL_NODE: &str = "pronto.node";
/// Where the attempt's directory appears in its container, if it has one.
pub(super) const FILES: &str = "/pronto";

/// What the engine itself demands at least.
const MEMORY_MIN_MIB: u32 = 6;
/// Processes of a container that names no number: far above any service, far below the kernel's
/// table, so that a fork bomb stays in its container.
const PIDS_DEFAULT: u32 = 4096;
/// The engine's weight of a whole core, and its least.
const CORE_WEIGHT: u64 = 1024;
const WEIGHT_MIN: u64 = 2;
/// What the engine keeps of a container's output in one file, for a launcher that was away.
pub(super) const ENGINE_LOG_BYTES: u64 = 64 * 1024 * 1024;
const ENGINE_LOG_FILES: u32 = 2;

/// What the container is made from, beside its job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) node: NodeUuid,
    /// `NAME=value`, the workload's own included.
    pub(super) environment: &'a [String],
    /// The attempt's directory of files, if its workload uses one.
    pub(super) files: Option<&'a Path>,
    /// The engine can hand out GPUs; otherwise the environment alone names them.
    pub(super) gpu_requests: bool,
}

/// A container's name: one for each attempt, so that none is made twice.
pub(super) fn name(id: AttemptId) -> String {
    format!("pronto-{}-{}", id.instance, id.attempt)
}

/// Whether the workload brings files in or wants them out: only then is its directory mounted and
/// its working directory, since others rely on their image's own.
pub(super) const fn uses_files(job: &Job) -> bool {
    job.body.await_inputs > 0 || job.body.keep_outputs_ms > 0
}

pub(super) fn labels(id: AttemptId, node: NodeUuid) -> HashMap<String, String> {
    [
        (LABEL_INSTANCE, id.instance.to_string()),
        (LABEL_ATTEMPT, id.attempt.to_string()),
        (LABEL_OWNER, id.owner.to_string()),
        (LABEL_NODE, node.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// The whole of it.
pub(super) fn container(
    job: &Job,
    task: &DockerTask,
    around: Surroundings<'_>,
) -> ContainerCreateBody {
    let workdir = task
        .workdir
        .clone()
        .or_else(|| around.files.map(|_| FILES.to_owned()));
    ContainerCreateBody {
        image: Some(task.image.clone()),
        cmd: (!task.command.is_empty()).then(|| task.command.clone()),
        env: Some(around.environment.to_vec()),
        working_dir: workdir,
        user: task.user.clone(),
        labels: Some(labels(job.id, around.node)),
        open_stdin: Some(job.body.stdin),
        stdin_once: Some(job.body.stdin),
        attach_stdin: Some(job.body.stdin),
        exposed_ports: Some(task.ports.iter().map(port_key).collect()),
        host_config: Some(host_config(job, task, around)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(job: &Job, task: &DockerTask, around: Surroundings<'_>) -> HostConfig {
    let cpu = u64::from(job.demand.cpu_millis);
    let weight = (cpu * CORE_WEIGHT / 1000).max(WEIGHT_MIN);
    HostConfig {
        cpu_shares: Some(i64::try_from(weight).unwrap_or(i64::MAX)),
        nano_cpus: (job.body.hard_cpu && cpu > 0)
            .then(|| i64::try_from(cpu * 1_000_000).unwrap_or(i64::MAX)),
        pids_limit: Some(i64::from(task.pids_limit.unwrap_or(PIDS_DEFAULT))),
        mounts: Some(mounts(task, around.files)),
        port_bindings: Some(task.ports.iter().map(binding).collect::<PortMap>()),
        security_opt: (!job.body.privileged).then(|| vec!["no-new-privileges".to_owned()]),
        device_requests: gpu_requests(job, around.gpu_requests),
        ..limits(job.demand.memory_mib)
    }
}

/// What every container has.
pub(super) fn limits(memory_mib: u32) -> HostConfig {
    let memory = i64::from(memory_mib.max(MEMORY_MIN_MIB)) * 1024 * 1024;
    let log = [
        ("max-size", ENGINE_LOG_BYTES.to_string()),
        ("max-file", ENGINE_LOG_FILES.to_string()),
    ];
    HostConfig {
        memory: Some(memory),
        // Equal to the memory: no swap, since the demand speaks of memory.
        memory_swap: Some(memory),
        pids_limit: Some(i64::from(PIDS_DEFAULT)),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(log.map(|(key, value)| (key.to_owned(), value)).into()),
        }),
        ..HostConfig::default()
    }
}

fn mounts(task: &DockerTask, files: Option<&Path>) -> Vec<Mount> {
    let bind = |source: &str, target: &str, read_only| Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Mount::default()
    };
    let own = files.map(|path| bind(&path.to_string_lossy(), FILES, false));
    let asked = task.mounts.iter();
    own.into_iter()
        .chain(asked.map(|mount| bind(&mount.source, &mount.target, mount.read_only)))
        .collect()
}

fn port_key(port: &Port) -> String {
    format!("{}/{}", port.guest, if port.udp { "udp" } else { "tcp" })
}

fn binding(port: &Port) -> (String, Option<Vec<PortBinding>>) {
    // An empty number means any free one.
    let host = if port.host == 0 {
        String::new()
    } else {
        port.host.to_string()
    };
    (
        port_key(port),
        Some(vec![PortBinding {
            host_ip: None,
            host_port: Some(host),
        }]),
    )
}

fn gpu_requests(job: &Job, possible: bool) -> Option<Vec<DeviceRequest>> {
    let devices: Vec<String> = job
        .gpus
        .iter()
        .map(|share| share.device.to_string())
        .collect();
    (possible && !devices.is_empty()).then(|| {
        vec![DeviceRequest {
            device_ids: Some(devices),
            capabilities: Some(vec![vec!["gpu".to_owned()]]),
            ..DeviceRequest::default()
        }]
    })
}
