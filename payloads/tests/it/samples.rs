//! Values of every payload type, from which the golden vectors are made.
//!
//! Each variant of each enum stands in at least one of them; a test counts.

use pronto_payloads::codec::encode;
use pronto_payloads::control::{
    Ack, Activate, Delete, Failure, FromNode, Grant, PullInventory, SetMode, Stop, ToNode,
};
use pronto_payloads::demand::{Capacity, Constraint, Demand, Resource, Runtime};
use pronto_payloads::hello::{
    BulkHello, ControllerHello, LauncherHello, Mode, OwnerSummary, SchedulerWelcome,
};
use pronto_payloads::ids::{
    Attempt, BootId, ControllerEpoch, Generation, InstanceId, NodeUuid, OwnerId, Seq, SessionEpoch,
    Term, Version,
};
use pronto_payloads::instance::{
    End, EndCause, InstanceReport, InstanceUsage, Inventory, Phase, Usage,
};
use pronto_payloads::node::{
    Label, Lease, NodeConnected, NodeDisconnected, NodeFacts, NodeLoad, NodeState, NodeStats,
    Nodes, Stats, StatsBatch, Status,
};
use pronto_payloads::place::{
    AttemptId, CapacityGrown, CountedReason, Explain, Explanation, GpuShare, Placed, Reason,
    Refusal, StartFailure, StartPrefix, StartStamp,
};
use pronto_payloads::start::{
    DockerTask, EnvVar, ExecTask, Mount, OnDisconnect, Port, QemuTask, SimTask, StartBody, Task,
};
use pronto_payloads::stream::{
    LogsRequest, StreamCredit, StreamEnd, StreamFailure, StreamOpen, StreamRequest,
};

/// One golden value.
pub(crate) struct Sample {
    /// Its type's name in [`crate::registry`].
    pub(crate) name: &'static str,
    /// What is special about it.
    pub(crate) label: String,
    pub(crate) bytes: Vec<u8>,
    /// Its `Debug` form.
    pub(crate) text: String,
}

pub(crate) const OWNER: OwnerId = OwnerId(counted(0xa0));
pub(crate) const INSTANCE: InstanceId = InstanceId(counted(0x10));
pub(crate) const ID: AttemptId = AttemptId {
    owner: OWNER,
    instance: INSTANCE,
    attempt: Attempt(1),
};

const fn counted(first: u8) -> [u8; 16] {
    let mut bytes = [first; 16];
    let mut index = 1;
    while index < 16 {
        bytes[index] = bytes[index - 1] + 1;
        index += 1;
    }
    bytes
}

pub(crate) fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

pub(crate) fn resources() -> Vec<Resource> {
    vec![
        Resource {
            name: "fpga".into(),
            count: 2,
        },
        Resource {
            name: "licence".into(),
            count: 7,
        },
    ]
}

pub(crate) fn demand() -> Demand {
    Demand {
        cpu_millis: 1500,
        memory_mib: 2048,
        disk_mib: 10_240,
        gpus: 2,
        gpu_millis: 0,
        resources: resources(),
    }
}

pub(crate) fn constraints() -> Vec<Constraint> {
    vec![
        Constraint::Node("node-3".into()),
        Constraint::Label {
            key: "zone".into(),
            value: "a".into(),
        },
    ]
}

pub(crate) fn capacity() -> Capacity {
    Capacity {
        cpu_millis: 64_000,
        memory_mib: 262_144,
        disk_mib: 1_048_576,
        gpu_millis: vec![1000, 500, 0],
        resources: resources(),
    }
}

pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        hostname: "host.example".into(),
        address: "192.0.2.7".into(),
        allocatable: capacity(),
        labels: vec![
            Label {
                key: "arch".into(),
                value: "x86_64".into(),
            },
            Label {
                key: "cpu.model".into(),
                value: "Größe 1, 2.5 GHz".into(),
            },
        ],
        runtimes: Runtime::ALL.to_vec(),
        schema_min: 1,
        schema_max: 1,
        isolation: "cgroup2".into(),
        acceleration: "tcg".into(),
    }
}

pub(crate) fn usage() -> Usage {
    Usage {
        cpu_ms: 12_345,
        memory_mib: 60,
        memory_peak_mib: 64,
        read_bytes: 4096,
        written_bytes: 1 << 40,
        pids: 3,
    }
}

pub(crate) fn load() -> NodeLoad {
    NodeLoad {
        load1_hundredths: 175,
        cpu_used_millis: 1800,
        cpu_total_millis: 64_000,
        memory_used_mib: 9000,
        memory_total_mib: 262_144,
        disk_used_mib: 70_000,
        disk_total_mib: 1_048_576,
        uptime_s: 864_000,
        instances: 12,
    }
}

pub(crate) fn report(phase: Phase, end: Option<End>) -> InstanceReport {
    InstanceReport {
        id: ID,
        version: Version(4),
        phase,
        started_after_ns: (phase >= Phase::Running).then_some(1_500_000),
        ended_after_ns: end.as_ref().map(|_| 2_000_000_000),
        end,
        age_ns: 2_000_100_000,
        usage: usage(),
    }
}

pub(crate) fn body(task: Task) -> StartBody {
    StartBody {
        tenant: "default".into(),
        name: "job-1".into(),
        workload: "training".into(),
        task,
        env: vec![EnvVar {
            name: "LANG".into(),
            value: "C.UTF-8".into(),
        }],
        timeout_ms: Some(60_000),
        stop_grace_ms: 10_000,
        on_disconnect: OnDisconnect::StopAfter { ms: 30_000 },
        privileged: true,
        log_cap_bytes: Some(1 << 20),
        hard_cpu: true,
        await_inputs: 2,
        stdin: true,
        keep_outputs_ms: 3_600_000,
    }
}

fn ports() -> Vec<Port> {
    vec![
        Port {
            host: 0,
            guest: 80,
            udp: false,
        },
        Port {
            host: 5353,
            guest: 53,
            udp: true,
        },
    ]
}

fn tasks() -> [(&'static str, Task); 6] {
    [
        (
            "exec",
            Task::Exec(ExecTask {
                command: owned(&["sh", "-c", "exit 7"]),
                workdir: Some("/srv/data".into()),
                user: Some("worker".into()),
                pids_limit: Some(100),
                umask: Some(0o022),
                private_tmp: true,
                require_hard_limits: true,
            }),
        ),
        (
            "exec, all else absent",
            Task::Exec(ExecTask {
                command: owned(&["true"]),
                ..ExecTask::default()
            }),
        ),
        (
            "docker",
            Task::Docker(DockerTask {
                image: "registry.example/app:1".into(),
                command: owned(&["serve"]),
                workdir: Some("/app".into()),
                user: Some("1000:1000".into()),
                pids_limit: Some(64),
                mounts: vec![Mount {
                    source: "/srv/data".into(),
                    target: "/data".into(),
                    read_only: true,
                }],
                ports: ports(),
            }),
        ),
        (
            "qemu from a disk",
            Task::Qemu(QemuTask {
                image: Some("/images/debian.qcow2".into()),
                user_data: Some("#cloud-config\n".into()),
                meta_data: Some("instance-id: i-1\n".into()),
                ports: ports(),
                ..QemuTask::default()
            }),
        ),
        (
            "qemu from a kernel",
            Task::Qemu(QemuTask {
                kernel: Some("/boot/vmlinuz".into()),
                initrd: Some("/boot/initrd".into()),
                append: "console=ttyS0".into(),
                ..QemuTask::default()
            }),
        ),
        (
            "sim",
            Task::Sim(SimTask {
                run_ms: 250,
                exit_code: -1,
            }),
        ),
    ]
}

fn causes() -> [(&'static str, EndCause); 9] {
    [
        ("exited", EndCause::Exited { code: 7 }),
        ("signaled", EndCause::Signaled { signal: 9 }),
        (
            "out of memory",
            EndCause::OutOfMemory {
                limit_mib: 64,
                peak_mib: 64,
            },
        ),
        ("timed out", EndCause::TimedOut),
        ("stopped", EndCause::Stopped),
        ("lease expired", EndCause::LeaseExpired),
        ("cannot execute", EndCause::CannotExecute { code: 127 }),
        ("rejected", EndCause::Rejected),
        ("node failed", EndCause::NodeFailed),
    ]
}

fn reasons() -> Vec<Reason> {
    vec![
        Reason::Maintenance,
        Reason::ReportsFull,
        Reason::QueueFull,
        Reason::BackedOff,
        Reason::Schema,
        Reason::Runtime {
            name: "docker".into(),
        },
        Reason::NotThisNode,
        Reason::Label {
            key: "zone".into(),
            value: "a".into(),
        },
        Reason::TooSmall {
            dimension: "gpus".into(),
        },
        Reason::Lacks {
            dimension: "memory".into(),
        },
    ]
}

pub(crate) fn connected(state: NodeState) -> NodeConnected {
    NodeConnected {
        node: "node-1".into(),
        node_uuid: NodeUuid(counted(0x40)),
        boot_id: BootId(counted(0x60)),
        session_epoch: SessionEpoch(5),
        state,
        attempts: 2,
        digest: 0x0123_4567_89ab_cdef,
        facts: facts(),
    }
}

macro_rules! sample {
    ($out:ident, $name:ident, $label:expr, $value:expr) => {{
        let value: $name = $value;
        $out.push(Sample {
            name: stringify!($name),
            label: $label.to_string(),
            bytes: encode(&value).to_vec(),
            text: format!("{value:?}"),
        });
    }};
}

/// All samples.
pub(crate) fn all() -> Vec<Sample> {
    let mut out = Vec::new();
    placing(&mut out);
    starting(&mut out);
    reporting(&mut out);
    nodes(&mut out);
    commands(&mut out);
    streams(&mut out);
    out
}

fn placing(out: &mut Vec<Sample>) {
    sample!(out, AttemptId, "", ID);
    sample!(out, Demand, "whole devices", demand());
    sample!(
        out,
        Demand,
        "a share",
        Demand {
            gpu_millis: 250,
            ..Demand::default()
        }
    );
    sample!(out, Capacity, "", capacity());
    for constraint in constraints() {
        sample!(out, Constraint, "", constraint);
    }
    sample!(
        out,
        StartPrefix,
        "everything",
        StartPrefix {
            id: ID,
            controller_epoch: ControllerEpoch(2),
            body_schema: 1,
            runtime: Runtime::Docker,
            demand: demand(),
            constraints: constraints(),
            prefer: Some("node-3".into()),
            avoid: owned(&["node-1", "node-2"]),
        }
    );
    for runtime in Runtime::ALL {
        sample!(
            out,
            StartPrefix,
            runtime.name(),
            StartPrefix {
                id: ID,
                controller_epoch: ControllerEpoch(2),
                body_schema: 1,
                runtime,
                demand: Demand::default(),
                constraints: Vec::new(),
                prefer: None,
                avoid: Vec::new(),
            }
        );
    }
    sample!(
        out,
        StartStamp,
        "",
        StartStamp {
            session_epoch: SessionEpoch(5),
            seq: Seq(1),
            term: Term(3),
            gpus: vec![
                GpuShare {
                    device: 0,
                    millis: 1000
                },
                GpuShare {
                    device: 3,
                    millis: 250
                }
            ],
        }
    );
    sample!(
        out,
        Placed,
        "",
        Placed {
            id: ID,
            node: "node-1".into(),
            session_epoch: SessionEpoch(5),
            seq: Seq(1),
            placing_ns: 1800,
        }
    );
    for refusal in [
        Refusal::CloudFull,
        Refusal::NoNodes,
        Refusal::NeverFits,
        Refusal::Warming,
        Refusal::NotActive,
        Refusal::StaleEpoch,
        Refusal::Malformed,
        Refusal::Busy,
    ] {
        sample!(
            out,
            StartFailure,
            format!("{refusal:?}"),
            StartFailure {
                id: ID,
                refusal,
                generation: Generation(77),
                text: "no room".into(),
            }
        );
    }
    sample!(
        out,
        CapacityGrown,
        "",
        CapacityGrown {
            generation: Generation(78)
        }
    );
    sample!(
        out,
        Explain,
        "",
        Explain {
            body_schema: 1,
            runtime: Runtime::Qemu,
            demand: demand(),
            constraints: constraints(),
        }
    );
    let counted: Vec<CountedReason> = reasons()
        .into_iter()
        .zip([40, 9, 8, 7, 6, 5, 4, 3, 2, 1])
        .map(|(reason, nodes)| CountedReason { reason, nodes })
        .collect();
    sample!(out, CountedReason, "", counted[9].clone());
    sample!(
        out,
        Explanation,
        "fits",
        Explanation {
            nodes: 100,
            fits: 15,
            node: Some("node-7".into()),
            reasons: counted,
            generation: Generation(77),
        }
    );
    sample!(
        out,
        Explanation,
        "no nodes",
        Explanation {
            nodes: 0,
            fits: 0,
            node: None,
            reasons: Vec::new(),
            generation: Generation(0),
        }
    );
}

fn starting(out: &mut Vec<Sample>) {
    sample!(
        out,
        EnvVar,
        "",
        EnvVar {
            name: "GREETING".into(),
            value: "ciao, tutti".into()
        }
    );
    for (label, task) in tasks() {
        sample!(out, Task, label, task.clone());
        sample!(out, StartBody, label, body(task));
    }
    sample!(
        out,
        StartBody,
        "as little as possible",
        StartBody::new("t", Task::Sim(SimTask::default()))
    );
}

fn reporting(out: &mut Vec<Sample>) {
    let mut reports = Vec::new();
    for phase in [Phase::Received, Phase::Preparing, Phase::Running] {
        reports.push((format!("{phase:?}"), report(phase, None)));
    }
    for (label, cause) in causes() {
        let end = End {
            cause,
            message: format!("{label}."),
        };
        reports.push((label.to_owned(), report(Phase::Ended, Some(end))));
    }
    sample!(
        out,
        Inventory,
        "",
        Inventory {
            owner: OWNER,
            boot_id: BootId(counted(0x60)),
            session_epoch: SessionEpoch(5),
            applied_seq: Seq(12),
            page: 1,
            entries: reports
                .iter()
                .take(4)
                .map(|(_, report)| report.clone())
                .collect(),
        }
    );
    for (label, report) in reports {
        sample!(out, InstanceReport, label, report);
    }
    sample!(
        out,
        InstanceUsage,
        "",
        InstanceUsage {
            id: ID,
            usage: usage()
        }
    );
}

fn nodes(out: &mut Vec<Sample>) {
    for label in facts().labels {
        sample!(out, Label, "", label);
    }
    sample!(out, NodeFacts, "", facts());
    let summary = OwnerSummary {
        owner: OWNER,
        attempts: 2,
        digest: 0xfedc_ba98_7654_3210,
        epoch: ControllerEpoch(9),
    };
    sample!(out, OwnerSummary, "", summary);
    for mode in [Mode::Ready, Mode::Maintenance] {
        sample!(
            out,
            LauncherHello,
            format!("{mode:?}"),
            LauncherHello {
                node_uuid: NodeUuid(counted(0x40)),
                boot_id: BootId(counted(0x60)),
                term: Term(3),
                mode,
                facts: facts(),
                owners: vec![summary],
            }
        );
    }
    sample!(
        out,
        ControllerHello,
        "",
        ControllerHello {
            owner: OWNER,
            epoch: ControllerEpoch(9),
        }
    );
    sample!(out, BulkHello, "launcher", BulkHello { owner: None });
    sample!(
        out,
        BulkHello,
        "controller",
        BulkHello { owner: Some(OWNER) }
    );
    sample!(
        out,
        SchedulerWelcome,
        "",
        SchedulerWelcome {
            stats_interval_ms: 1000,
            lease_ms: 10_000,
            start_window: 4096,
            owner_epoch: ControllerEpoch(9),
            nodes: 1213,
        }
    );
    sample!(
        out,
        Status,
        "",
        Status {
            session_epoch: SessionEpoch(5),
            applied_seq: Seq(12),
            free: capacity(),
            runtimes: vec![Runtime::Exec, Runtime::Sim],
            reason: "the disk is nearly full".into(),
        }
    );
    sample!(
        out,
        Lease,
        "",
        Lease {
            term: Term(3),
            lease_ms: 10_000,
            owners: vec![OWNER, OwnerId(counted(0x80))],
        }
    );
    let usages = vec![InstanceUsage {
        id: ID,
        usage: usage(),
    }];
    sample!(
        out,
        Stats,
        "",
        Stats {
            load: load(),
            usages: usages.clone()
        }
    );
    let states = [
        NodeState::Ready,
        NodeState::Full,
        NodeState::Maintenance,
        NodeState::Offline,
    ];
    let batch: Vec<NodeStats> = states
        .into_iter()
        .map(|state| NodeStats {
            node: "node-1".into(),
            state,
            available: Capacity::default(),
            runtimes: vec![Runtime::Docker],
            reason: String::new(),
            load: load(),
            usages: usages.clone(),
        })
        .collect();
    sample!(out, NodeStats, "", batch[1].clone());
    sample!(
        out,
        StatsBatch,
        "",
        StatsBatch {
            generation: Generation(77),
            nodes: batch
        }
    );
    sample!(out, NodeConnected, "", connected(NodeState::Maintenance));
    sample!(
        out,
        NodeDisconnected,
        "",
        NodeDisconnected {
            node: "node-1".into(),
            session_epoch: SessionEpoch(5),
            orderly: true,
            reason: "it is going to reboot".into(),
        }
    );
    sample!(
        out,
        Nodes,
        "",
        Nodes {
            nodes: vec![connected(NodeState::Ready), connected(NodeState::Full)],
        }
    );
}

fn commands(out: &mut Vec<Sample>) {
    sample!(
        out,
        ToNode,
        "",
        ToNode {
            node: "node-1".into()
        }
    );
    sample!(
        out,
        FromNode,
        "",
        FromNode {
            node: "node-1".into()
        }
    );
    for grace_ms in [None, Some(5000)] {
        sample!(
            out,
            Stop,
            "",
            Stop {
                owner: OWNER,
                instance: INSTANCE,
                attempt: Attempt(2),
                grace_ms,
            }
        );
    }
    sample!(
        out,
        Delete,
        "",
        Delete {
            owner: OWNER,
            instance: INSTANCE
        }
    );
    for mode in [Mode::Ready, Mode::Maintenance] {
        sample!(out, SetMode, "", SetMode { mode });
    }
    sample!(out, PullInventory, "", PullInventory { owner: OWNER });
    sample!(
        out,
        Ack,
        "",
        Ack {
            id: ID,
            version: Version(4)
        }
    );
    sample!(
        out,
        Activate,
        "",
        Activate {
            term: Term(3),
            expected_nodes: 1213
        }
    );
    sample!(out, Grant, "", Grant { grant_ms: 10_000 });
    sample!(
        out,
        Failure,
        "",
        Failure {
            text: "it still runs; stop it first".into()
        }
    );
}

fn streams(out: &mut Vec<Sample>) {
    let logs = LogsRequest {
        follow: true,
        stdout: true,
        stderr: false,
        since_ms: Some(60_000),
        tail_bytes: None,
        attempt: Some(Attempt(3)),
    };
    let requests = [
        StreamRequest::Logs(logs),
        StreamRequest::Logs(LogsRequest {
            tail_bytes: Some(4096),
            ..LogsRequest::default()
        }),
        StreamRequest::Exec {
            command: owned(&["ls", "-l"]),
        },
        StreamRequest::Stdin,
        StreamRequest::CopyOut {
            path: "out/result.csv".into(),
        },
        StreamRequest::CopyIn {
            path: "in/data.bin".into(),
            mode: 0o644,
            bytes: 123_456,
            input: true,
        },
        StreamRequest::List {
            pattern: "out/*.csv".into(),
        },
    ];
    for request in requests {
        sample!(
            out,
            StreamOpen,
            "",
            StreamOpen {
                owner: OWNER,
                instance: INSTANCE,
                request,
                credit_bytes: 262_144,
            }
        );
    }
    sample!(out, StreamCredit, "", StreamCredit { bytes: 65_536 });
    sample!(
        out,
        StreamEnd,
        "a command",
        StreamEnd::Complete {
            code: Some(3),
            sha256: Vec::new(),
        }
    );
    sample!(
        out,
        StreamEnd,
        "a file",
        StreamEnd::Complete {
            code: None,
            sha256: (0..32).collect(),
        }
    );
    for kind in [
        StreamFailure::NotFound,
        StreamFailure::Unreachable,
        StreamFailure::Busy,
        StreamFailure::Unsupported,
        StreamFailure::Failed,
    ] {
        sample!(
            out,
            StreamEnd,
            format!("{kind:?}"),
            StreamEnd::Failed {
                kind,
                text: "no such file".into(),
            }
        );
    }
}
