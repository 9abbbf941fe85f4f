//! Each limit of each payload: what is at the limit passes, what is beyond it is refused by name.

use crate::samples::{ID, INSTANCE, OWNER, body, capacity, demand, facts, load, owned, report};
use crate::samples::{connected, usage};
use bincode::{Decode, Encode};
use pronto_payloads::codec::{Payload, check_name, decode, encode};
use pronto_payloads::control::{Ack, Activate, Failure, FromNode, ToNode};
use pronto_payloads::demand::{Capacity, Constraint, Demand, Resource, Runtime};
use pronto_payloads::hello::{LauncherHello, Mode, OwnerSummary};
use pronto_payloads::ids::{
    Attempt, BootId, ControllerEpoch, Generation, NodeUuid, Seq, SessionEpoch, Term, Version,
};
use pronto_payloads::instance::{End, EndCause, InstanceReport, InstanceUsage, Inventory, Phase};
use pronto_payloads::limits;
use pronto_payloads::node::{
    Label, Lease, NodeDisconnected, NodeState, NodeStats, Nodes, Stats, StatsBatch, Status,
};
use pronto_payloads::place::{
    AttemptId, CountedReason, Explain, Explanation, GpuShare, Placed, Reason, Refusal,
    StartFailure, StartPrefix, StartStamp,
};
use pronto_payloads::start::{
    DockerTask, EnvVar, ExecTask, Mount, Port, QemuTask, StartBody, Task,
};
use pronto_payloads::stream::{StreamEnd, StreamFailure, StreamOpen, StreamRequest};
use pronto_protocol::Operand;

/// Encodes, decodes, and says the refusal's words, or nothing.
fn judged<T: Encode + Decode<()> + Payload>(value: &T) -> Option<String> {
    decode::<T>(&encode(value))
        .err()
        .map(|error| error.to_string())
}

/// A value is changed in two ways: one that is just accepted, and one that is refused, for this.
#[track_caller]
fn limit<T: Encode + Decode<()> + Payload + Clone>(
    base: &T,
    what: &str,
    fits: impl FnOnce(&mut T),
    exceeds: impl FnOnce(&mut T),
) {
    let mut value = base.clone();
    fits(&mut value);
    assert_eq!(judged(&value), None, "{what} at its limit");
    let mut value = base.clone();
    exceeds(&mut value);
    let words = judged(&value).unwrap_or_else(|| panic!("{what} beyond its limit was accepted"));
    assert!(
        words.starts_with(&format!("{what} is not accepted: ")),
        "{words}"
    );
}

fn long(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("node-{index:04}")).collect()
}

fn resources(count: usize) -> Vec<Resource> {
    names(count)
        .into_iter()
        .map(|name| Resource { name, count: 1 })
        .collect()
}

fn labels(count: usize) -> Vec<Label> {
    let value = || "a".to_owned();
    let label = |key| Label {
        key,
        value: value(),
    };
    names(count).into_iter().map(label).collect()
}

fn prefix() -> StartPrefix {
    StartPrefix {
        id: ID,
        controller_epoch: ControllerEpoch(2),
        body_schema: 1,
        runtime: Runtime::Exec,
        demand: demand(),
        constraints: Vec::new(),
        prefer: None,
        avoid: Vec::new(),
    }
}

#[test]
fn names_are_letters_digits_and_four_marks() {
    for fine in ["a", "A.b_c-d/9", &long(63)] {
        check_name("node", fine).unwrap();
    }
    for wrong in ["", "a b", "grün", "a\n", "a:b", &long(64)] {
        let words = check_name("node", wrong).unwrap_err().to_string();
        assert_eq!(
            words,
            "node is not accepted: 1 to 63 letters, digits, '.', '_', '-' or '/'"
        );
    }
}

#[test]
fn demands_and_capacities() {
    let small = Demand::default();
    limit(&small, "gpus", |d| d.gpus = 32, |d| d.gpus = 33);
    limit(
        &small,
        "gpus",
        |d| d.gpus = 1,
        |d| (d.gpus, d.gpu_millis) = (1, 1),
    );
    limit(
        &small,
        "gpu_millis",
        |d| d.gpu_millis = 999,
        |d| d.gpu_millis = 1000,
    );
    limit(
        &small,
        "resources",
        |d| d.resources = resources(16),
        |d| d.resources = resources(17),
    );
    limit(
        &demand(),
        "resource count",
        |d| d.resources[1].count = u32::MAX,
        |d| d.resources[1].count = 0,
    );
    limit(
        &demand(),
        "resource name",
        |_| (),
        |d| d.resources[0].name = long(64),
    );
    limit(&demand(), "resources", |_| (), |d| d.resources.reverse());
    limit(
        &demand(),
        "resources",
        |_| (),
        |d| d.resources[1] = d.resources[0].clone(),
    );

    let none = Capacity::default();
    limit(
        &none,
        "GPU devices",
        |c| c.gpu_millis = vec![1000; 32],
        |c| c.gpu_millis = vec![0; 33],
    );
    limit(
        &capacity(),
        "gpu_millis",
        |c| c.gpu_millis[0] = 0,
        |c| c.gpu_millis[0] = 1001,
    );
    limit(
        &none,
        "resources",
        |c| c.resources = resources(16),
        |c| c.resources = resources(17),
    );
    limit(
        &capacity(),
        "resources",
        |c| c.resources[0].count = 0,
        |c| c.resources.reverse(),
    );
    limit(
        &capacity(),
        "resource name",
        |_| (),
        |c| c.resources[0].name.clear(),
    );

    let node = Constraint::Node("n".into());
    limit(
        &node,
        "node",
        |_| (),
        |c| *c = Constraint::Node(String::new()),
    );
    let label = |key: &str, value: &str| Constraint::Label {
        key: key.into(),
        value: value.into(),
    };
    limit(
        &node,
        "label key",
        |c| *c = label("k", ""),
        |c| *c = label("", "v"),
    );
    limit(
        &node,
        "label value",
        |c| *c = label("k", &long(255)),
        |c| *c = label("k", &long(256)),
    );
    limit(
        &node,
        "label value",
        |c| *c = label("k", "größer"),
        |c| *c = label("k", "\u{7}"),
    );
}

#[test]
fn starts() {
    limit(
        &ID,
        "attempt",
        |id| id.attempt = Attempt(u32::MAX),
        |id| id.attempt = Attempt(0),
    );
    limit(&prefix(), "attempt", |_| (), |p| p.id.attempt = Attempt(0));
    limit(&prefix(), "gpus", |_| (), |p| p.demand.gpus = 33);
    let zone = || Constraint::Label {
        key: "zone".into(),
        value: "a".into(),
    };
    limit(
        &prefix(),
        "constraints",
        |p| p.constraints = vec![zone(); 64],
        |p| p.constraints = vec![zone(); 65],
    );
    limit(
        &prefix(),
        "node",
        |_| (),
        |p| p.constraints = vec![Constraint::Node("?".into())],
    );
    limit(
        &prefix(),
        "preferred node",
        |p| p.prefer = Some(long(63)),
        |p| p.prefer = Some(long(64)),
    );
    limit(
        &prefix(),
        "avoided nodes",
        |p| p.avoid = names(8),
        |p| p.avoid = names(9),
    );
    limit(
        &prefix(),
        "avoided node",
        |_| (),
        |p| p.avoid = owned(&["ok", ""]),
    );

    let stamp = StartStamp {
        session_epoch: SessionEpoch(1),
        seq: Seq(1),
        term: Term(1),
        gpus: Vec::new(),
    };
    let share = |millis| GpuShare { device: 0, millis };
    limit(
        &stamp,
        "GPU shares",
        |s| s.gpus = vec![share(1); 32],
        |s| s.gpus = vec![share(1); 33],
    );
    limit(
        &stamp,
        "GPU share",
        |s| s.gpus = vec![share(1000)],
        |s| s.gpus = vec![share(1001)],
    );
    limit(&stamp, "GPU share", |_| (), |s| s.gpus = vec![share(0)]);

    let explain = Explain {
        body_schema: 1,
        runtime: Runtime::Exec,
        demand: demand(),
        constraints: Vec::new(),
    };
    limit(&explain, "gpus", |_| (), |e| e.demand.gpus = 33);
    limit(
        &explain,
        "constraints",
        |e| e.constraints = vec![zone(); 64],
        |e| e.constraints = vec![zone(); 65],
    );
}

#[test]
fn answers_to_starts() {
    let placed = Placed {
        id: ID,
        node: "node-1".into(),
        session_epoch: SessionEpoch(1),
        seq: Seq(1),
        placing_ns: 1,
    };
    limit(&placed, "attempt", |_| (), |p| p.id.attempt = Attempt(0));
    limit(
        &placed,
        "node",
        |p| p.node = long(63),
        |p| p.node = long(64),
    );
    let failure = StartFailure {
        id: ID,
        refusal: Refusal::Malformed,
        generation: Generation(0),
        text: String::new(),
    };
    let unknown = AttemptId {
        attempt: Attempt(0),
        ..ID
    };
    limit(
        &failure,
        "text",
        |f| f.text = long(1024),
        |f| f.text = long(1025),
    );
    limit(
        &failure,
        "text",
        |f| f.id = unknown,
        |f| f.text = long(1025),
    );

    let counted = |reason| CountedReason { reason, nodes: 1 };
    let explanation = Explanation {
        nodes: 1,
        fits: 0,
        node: None,
        reasons: Vec::new(),
        generation: Generation(0),
    };
    let set = |reason| move |e: &mut Explanation| e.reasons = vec![counted(reason)];
    limit(
        &explanation,
        "reasons",
        |e| e.reasons = vec![counted(Reason::Schema); 64],
        |e| e.reasons = vec![counted(Reason::Schema); 65],
    );
    limit(
        &explanation,
        "node",
        |e| e.node = Some("n".into()),
        |e| e.node = Some(String::new()),
    );
    let runtime = |name: &str| Reason::Runtime { name: name.into() };
    limit(
        &explanation,
        "runtime",
        set(runtime("sim")),
        set(runtime("")),
    );
    let label = |key: &str, value: String| Reason::Label {
        key: key.into(),
        value,
    };
    limit(
        &explanation,
        "label key",
        set(label("k", long(255))),
        set(label("", long(1))),
    );
    limit(
        &explanation,
        "label value",
        |_| (),
        set(label("k", long(256))),
    );
    for reason in [
        |dimension| Reason::TooSmall { dimension },
        |dimension| Reason::Lacks { dimension },
    ] {
        limit(
            &explanation,
            "dimension",
            set(reason(long(255))),
            set(reason(long(256))),
        );
    }
}

#[test]
fn bodies() {
    let base = body(Task::Exec(ExecTask {
        command: owned(&["true"]),
        ..ExecTask::default()
    }));
    limit(
        &base,
        "tenant",
        |b| b.tenant = long(63),
        |b| b.tenant.clear(),
    );
    limit(&base, "name", |b| b.name.clear(), |b| b.name = "a b".into());
    limit(
        &base,
        "workload",
        |b| b.workload.clear(),
        |b| b.workload = long(64),
    );
    let var = |name: &str, value: String| EnvVar {
        name: name.into(),
        value,
    };
    limit(
        &base,
        "environment",
        |b| b.env = vec![var("A", String::new()); 256],
        |b| b.env = vec![var("A", String::new()); 257],
    );
    for wrong in ["", "A=B", "A\0", &long(256)] {
        limit(
            &base,
            "environment name",
            |b| b.env = vec![var(&long(255), String::new())],
            |b| b.env = vec![var(wrong, String::new())],
        );
    }
    limit(
        &base,
        "environment value",
        |b| b.env = vec![var("A", long(65_536))],
        |b| b.env = vec![var("A", long(65_537))],
    );
    limit(
        &base,
        "environment value",
        |_| (),
        |b| b.env = vec![var("A", "\0".into())],
    );
    limit(
        &base,
        "command",
        |_| (),
        |b| b.task = Task::Exec(ExecTask::default()),
    );
}

fn path_limits(what: &str, task: impl Fn(String) -> Task) {
    let base = task("/p".into());
    limit(
        &base,
        what,
        |t| *t = task(long(4096)),
        |t| *t = task(long(4097)),
    );
    limit(&base, what, |_| (), |t| *t = task(String::new()));
    limit(&base, what, |_| (), |t| *t = task("/a\0b".into()));
}

#[test]
fn tasks() {
    let exec = |change: fn(&mut ExecTask)| {
        let mut task = ExecTask {
            command: owned(&["true"]),
            ..ExecTask::default()
        };
        change(&mut task);
        Task::Exec(task)
    };
    let base = exec(|_| ());
    limit(
        &base,
        "command",
        |_| (),
        |t| *t = exec(|e| e.command.clear()),
    );
    limit(
        &base,
        "command",
        |_| (),
        |t| *t = exec(|e| e.command = owned(&["", "x"])),
    );
    limit(
        &base,
        "arguments",
        |t| *t = exec(|e| e.command = vec!["a".into(); 1024]),
        |t| *t = exec(|e| e.command = vec!["a".into(); 1025]),
    );
    limit(
        &base,
        "argument",
        |t| *t = exec(|e| e.command.push(long(65_536))),
        |t| *t = exec(|e| e.command.push(long(65_537))),
    );
    limit(
        &base,
        "argument",
        |_| (),
        |t| *t = exec(|e| e.command.push("\0".into())),
    );
    limit(
        &base,
        "user",
        |t| *t = exec(|e| e.user = Some(long(255))),
        |t| *t = exec(|e| e.user = Some(long(256))),
    );
    path_limits("workdir", |path| {
        Task::Exec(ExecTask {
            command: owned(&["true"]),
            workdir: Some(path),
            ..ExecTask::default()
        })
    });

    let docker = || DockerTask {
        image: "busybox".into(),
        ..DockerTask::default()
    };
    let base = Task::Docker(docker());
    let image = |image: String| Task::Docker(DockerTask { image, ..docker() });
    limit(
        &base,
        "image",
        |t| *t = image(long(255)),
        |t| *t = image(long(256)),
    );
    limit(&base, "image", |_| (), |t| *t = image(String::new()));
    let command = |command| {
        Task::Docker(DockerTask {
            command,
            ..docker()
        })
    };
    limit(
        &base,
        "arguments",
        |t| *t = command(vec!["a".into(); 1024]),
        |t| *t = command(vec!["a".into(); 1025]),
    );
    let user = |user| {
        Task::Docker(DockerTask {
            user: Some(user),
            ..docker()
        })
    };
    limit(
        &base,
        "user",
        |t| *t = user(long(255)),
        |t| *t = user("a\tb".into()),
    );
    path_limits("workdir", |path| {
        Task::Docker(DockerTask {
            workdir: Some(path),
            ..docker()
        })
    });
    let mount = |source: String, target: String| Mount {
        source,
        target,
        read_only: false,
    };
    let mounts = |mounts| Task::Docker(DockerTask { mounts, ..docker() });
    limit(
        &base,
        "mounts",
        |t| *t = mounts(vec![mount("/a".into(), "/b".into()); 32]),
        |t| *t = mounts(vec![mount("/a".into(), "/b".into()); 33]),
    );
    path_limits("mount source", |path| {
        mounts(vec![mount(path, "/b".into())])
    });
    path_limits("mount target", |path| {
        mounts(vec![mount("/a".into(), path)])
    });
    let port = Port {
        host: 0,
        guest: 80,
        udp: false,
    };
    let ports = |count| {
        Task::Docker(DockerTask {
            ports: vec![port; count],
            ..docker()
        })
    };
    limit(&base, "ports", |t| *t = ports(32), |t| *t = ports(33));

    let qemu = || QemuTask {
        kernel: Some("/vmlinuz".into()),
        ..QemuTask::default()
    };
    let base = Task::Qemu(qemu());
    limit(
        &base,
        "virtual machine",
        |_| (),
        |t| *t = Task::Qemu(QemuTask::default()),
    );
    path_limits("image", |path| {
        Task::Qemu(QemuTask {
            image: Some(path),
            ..qemu()
        })
    });
    path_limits("kernel", |path| {
        Task::Qemu(QemuTask {
            kernel: Some(path),
            ..qemu()
        })
    });
    path_limits("initrd", |path| {
        Task::Qemu(QemuTask {
            initrd: Some(path),
            ..qemu()
        })
    });
    let append = |append| Task::Qemu(QemuTask { append, ..qemu() });
    limit(
        &base,
        "append",
        |t| *t = append(long(65_536)),
        |t| *t = append(long(65_537)),
    );
    let user_data = |data| {
        Task::Qemu(QemuTask {
            user_data: Some(data),
            ..qemu()
        })
    };
    let meta_data = |data| {
        Task::Qemu(QemuTask {
            meta_data: Some(data),
            ..qemu()
        })
    };
    let what = "cloud-init data";
    limit(
        &base,
        what,
        |t| *t = user_data(long(65_536)),
        |t| *t = user_data(long(65_537)),
    );
    limit(
        &base,
        what,
        |t| *t = meta_data(long(65_536)),
        |t| *t = meta_data(long(65_537)),
    );
    let ports = |count| {
        Task::Qemu(QemuTask {
            ports: vec![port; count],
            ..qemu()
        })
    };
    limit(&base, "ports", |t| *t = ports(32), |t| *t = ports(33));
}

fn ended(message: String) -> InstanceReport {
    report(
        Phase::Ended,
        Some(End {
            cause: EndCause::Rejected,
            message,
        }),
    )
}

#[test]
fn reports() {
    let running = report(Phase::Running, None);
    let end = || {
        Some(End {
            cause: EndCause::TimedOut,
            message: String::new(),
        })
    };
    limit(&running, "end", |_| (), |r| r.end = end());
    limit(
        &running,
        "end",
        |r| (r.phase, r.end) = (Phase::Ended, end()),
        |r| r.phase = Phase::Ended,
    );
    limit(&running, "attempt", |_| (), |r| r.id.attempt = Attempt(0));
    limit(
        &running,
        "end message",
        |r| *r = ended(long(1024)),
        |r| *r = ended(long(1025)),
    );

    let inventory = Inventory {
        owner: OWNER,
        boot_id: BootId::default(),
        session_epoch: SessionEpoch(1),
        applied_seq: Seq(1),
        page: 0,
        entries: Vec::new(),
    };
    limit(
        &inventory,
        "inventory entries",
        |i| i.entries = vec![ended(long(1024)); limits::PAGE],
        |i| i.entries = vec![running.clone(); limits::PAGE + 1],
    );
    limit(
        &inventory,
        "end message",
        |_| (),
        |i| i.entries = vec![ended(long(1025))],
    );
    let largest = Inventory {
        entries: vec![ended(long(1024)); limits::PAGE],
        ..inventory
    };
    let from = encode(&FromNode { node: long(63) });
    assert!(encode(&largest).len() + from.len() <= Operand::InventoryPage.max_payload_bytes());

    let used = InstanceUsage {
        id: ID,
        usage: usage(),
    };
    limit(&used, "attempt", |_| (), |u| u.id.attempt = Attempt(0));
    let stats = Stats {
        load: load(),
        usages: Vec::new(),
    };
    limit(
        &stats,
        "usages",
        |s| s.usages = vec![used.clone(); limits::PAGE],
        |s| s.usages = vec![used.clone(); limits::PAGE + 1],
    );
}

#[test]
fn nodes() {
    let label = Label {
        key: "k".into(),
        value: String::new(),
    };
    limit(&label, "label key", |l| l.key = long(63), |l| l.key.clear());
    limit(
        &label,
        "label value",
        |l| l.value = long(255),
        |l| l.value = "a\nb".into(),
    );
    let base = facts();
    limit(
        &base,
        "hostname",
        |f| f.hostname = long(255),
        |f| f.hostname = long(256),
    );
    limit(
        &base,
        "address",
        |f| f.address.clear(),
        |f| f.address = long(256),
    );
    limit(
        &base,
        "GPU devices",
        |_| (),
        |f| f.allocatable.gpu_millis = vec![0; 33],
    );
    limit(
        &base,
        "labels",
        |f| f.labels = labels(limits::LABELS),
        |f| f.labels = labels(limits::LABELS + 1),
    );
    limit(&base, "labels", |_| (), |f| f.labels.reverse());
    limit(
        &base,
        "labels",
        |_| (),
        |f| f.labels[1].key = f.labels[0].key.clone(),
    );
    limit(
        &base,
        "runtimes",
        |f| f.runtimes.clear(),
        |f| f.runtimes = vec![Runtime::Sim; 5],
    );
    limit(
        &base,
        "schema_min",
        |f| f.schema_max = 2,
        |f| f.schema_min = 2,
    );
    limit(
        &base,
        "isolation",
        |f| f.isolation = long(255),
        |f| f.isolation = long(256),
    );
    limit(
        &base,
        "acceleration",
        |f| f.acceleration = long(255),
        |f| f.acceleration = long(256),
    );

    let summary = OwnerSummary {
        owner: OWNER,
        attempts: 0,
        digest: 0,
        epoch: ControllerEpoch(0),
    };
    let hello = LauncherHello {
        node_uuid: NodeUuid::default(),
        boot_id: BootId::default(),
        term: Term(0),
        mode: Mode::Ready,
        facts: facts(),
        owners: Vec::new(),
    };
    limit(&hello, "hostname", |_| (), |h| h.facts.hostname = long(256));
    limit(
        &hello,
        "owners",
        |h| h.owners = vec![summary; 16],
        |h| h.owners = vec![summary; 17],
    );

    let status = Status {
        session_epoch: SessionEpoch(1),
        applied_seq: Seq(0),
        free: capacity(),
        runtimes: Vec::new(),
        reason: String::new(),
    };
    limit(
        &status,
        "gpu_millis",
        |_| (),
        |s| s.free.gpu_millis[2] = 1001,
    );
    limit(
        &status,
        "runtimes",
        |_| (),
        |s| s.runtimes = vec![Runtime::Exec; 5],
    );
    limit(
        &status,
        "reason",
        |s| s.reason = long(1024),
        |s| s.reason = long(1025),
    );
    let lease = Lease {
        term: Term(1),
        lease_ms: 1,
        owners: Vec::new(),
    };
    limit(
        &lease,
        "owners",
        |l| l.owners = vec![OWNER; 16],
        |l| l.owners = vec![OWNER; 17],
    );

    let stats = NodeStats {
        node: "node-1".into(),
        state: NodeState::Ready,
        available: capacity(),
        runtimes: Vec::new(),
        reason: String::new(),
        load: load(),
        usages: Vec::new(),
    };
    limit(&stats, "node", |_| (), |s| s.node.clear());
    limit(
        &stats,
        "gpu_millis",
        |_| (),
        |s| s.available.gpu_millis[2] = 1001,
    );
    limit(
        &stats,
        "runtimes",
        |_| (),
        |s| s.runtimes = vec![Runtime::Exec; 5],
    );
    limit(
        &stats,
        "reason",
        |s| s.reason = long(1024),
        |s| s.reason = long(1025),
    );
    let used = InstanceUsage {
        id: ID,
        usage: usage(),
    };
    limit(
        &stats,
        "usages",
        |s| s.usages = vec![used.clone(); limits::PAGE],
        |s| s.usages = vec![used.clone(); limits::PAGE + 1],
    );
    let batch = StatsBatch {
        generation: Generation(1),
        nodes: Vec::new(),
    };
    limit(
        &batch,
        "nodes",
        |b| b.nodes = vec![stats.clone(); limits::NODE_PAGE],
        |b| b.nodes = vec![stats.clone(); limits::NODE_PAGE + 1],
    );
    let node = connected(NodeState::Ready);
    limit(&node, "node", |_| (), |n| n.node = long(64));
    limit(&node, "address", |_| (), |n| n.facts.address = long(256));
    let page = Nodes { nodes: Vec::new() };
    limit(
        &page,
        "nodes",
        |p| p.nodes = vec![node.clone(); limits::NODE_PAGE],
        |p| p.nodes = vec![node.clone(); limits::NODE_PAGE + 1],
    );
    let gone = NodeDisconnected {
        node: "node-1".into(),
        session_epoch: SessionEpoch(1),
        orderly: false,
        reason: String::new(),
    };
    limit(&gone, "node", |_| (), |n| n.node.clear());
    limit(
        &gone,
        "reason",
        |n| n.reason = long(1024),
        |n| n.reason = long(1025),
    );
}

#[test]
fn commands() {
    let to = ToNode { node: "n".into() };
    limit(&to, "node", |t| t.node = long(63), |t| t.node = long(64));
    let from = FromNode { node: "n".into() };
    limit(&from, "node", |f| f.node = long(63), |f| f.node.clear());
    let ack = Ack {
        id: ID,
        version: Version(1),
    };
    limit(&ack, "attempt", |_| (), |a| a.id.attempt = Attempt(0));
    let activate = Activate {
        term: Term(1),
        expected_nodes: 0,
    };
    limit(
        &activate,
        "term",
        |a| a.term = Term(u64::MAX),
        |a| a.term = Term(0),
    );
    let failure = Failure {
        text: String::new(),
    };
    limit(
        &failure,
        "text",
        |f| f.text = long(1024),
        |f| f.text = long(1025),
    );
}

#[test]
fn streams() {
    let open = |request| StreamOpen {
        owner: OWNER,
        instance: INSTANCE,
        request,
        credit_bytes: 0,
    };
    let exec = |command| open(StreamRequest::Exec { command });
    let base = exec(owned(&["ls"]));
    limit(&base, "command", |_| (), |o| *o = exec(Vec::new()));
    limit(
        &base,
        "arguments",
        |o| *o = exec(vec!["a".into(); 1024]),
        |o| *o = exec(vec!["a".into(); 1025]),
    );
    limit(
        &base,
        "argument",
        |o| *o = exec(vec![long(65_536)]),
        |o| *o = exec(vec![long(65_537)]),
    );
    limit(&base, "argument", |_| (), |o| *o = exec(owned(&["a\0b"])));
    let requests: [fn(String) -> StreamRequest; 3] = [
        |path| StreamRequest::CopyOut { path },
        |path| StreamRequest::CopyIn {
            path,
            mode: 0,
            bytes: 0,
            input: false,
        },
        |pattern| StreamRequest::List { pattern },
    ];
    for request in requests {
        let with = |path| open(request(path));
        limit(
            &base,
            "path",
            |o| *o = with(long(4096)),
            |o| *o = with(long(4097)),
        );
        limit(&base, "path", |_| (), |o| *o = with(String::new()));
        limit(&base, "path", |_| (), |o| *o = with("a\0".into()));
    }
    let end = |bytes| StreamEnd::Complete {
        code: None,
        sha256: vec![0; bytes],
    };
    limit(&end(0), "sha256", |e| *e = end(32), |e| *e = end(31));
    let failed = |text| StreamEnd::Failed {
        kind: StreamFailure::Failed,
        text,
    };
    limit(
        &end(0),
        "text",
        |e| *e = failed(long(1024)),
        |e| *e = failed(long(1025)),
    );
}

/// Decoding a whole page of the largest entries stays below the decoder's own limit.
#[test]
fn the_fullest_body_decodes() {
    let argument = long(1000);
    let full = StartBody {
        env: vec![
            EnvVar {
                name: "A".into(),
                value: String::new()
            };
            limits::ENVIRONMENT
        ],
        ..body(Task::Exec(ExecTask {
            command: vec![argument; 240],
            ..ExecTask::default()
        }))
    };
    assert!(encode(&full).len() <= limits::START_BYTES);
    assert_eq!(judged(&full), None);
}
