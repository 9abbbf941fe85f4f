//! Processes under version 2 of control groups, in a guest that has them whole: machines that test
//! this project may mount version 1, and most that run it version 2.
//!
//! One test in two places: on this machine it boots a guest with this very program inside, and in
//! the guest, told by a variable, it is the test.

use crate::node::{Launcher, Node, demand, exited, process};
use crate::qemu::{Guest, end};
use pronto_launcher::runtime::Runtime;
use pronto_launcher::runtime::exec::{ExecRuntime, ExecSettings, end_shim};
use pronto_launcher::supervisor::{Job, StopCause};
use pronto_payloads::instance::EndCause;
use pronto_payloads::start::{ExecTask, Task};
use pronto_payloads::stream::Channel;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Where the shim lies in the guest, which may have nothing where this machine's was built.
const SHIM: &str = "/shim";
/// Set in the guest.
const IN_GUEST: &str = "PRONTO_TEST_IN_GUEST";
/// Two programs with their symbols, unpacked from an archive that lies beside them for a while.
const GUEST_MIB: u32 = 1024;

#[test]
fn limits_hold_under_version_2() {
    if std::env::var_os(IN_GUEST).is_some() {
        in_guest();
    } else {
        on_machine();
    }
}

/// The program, the shim, and the libraries that they need, each as `FILE:PATH` in the guest.
fn files() -> Vec<String> {
    let program = std::env::current_exe().expect("a test has a path");
    let shim = env!("CARGO_BIN_EXE_pronto-launcher-shim");
    let listed = Command::new("ldd").arg(&program).output().expect("ldd");
    let listed = String::from_utf8(listed.stdout).expect("text");
    // `libc.so.6 => /lib/… (0x…)`, or the loader's own path first.
    let libraries = listed.lines().filter_map(|line| {
        let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
        path.starts_with('/')
            .then(|| path.split(' ').next().unwrap_or(path).to_owned())
    });
    libraries
        .map(|path| format!("{path}:{path}"))
        .chain([
            format!("{shim}:{SHIM}"),
            format!("{}:/test", program.display()),
        ])
        .collect()
}

fn on_machine() {
    let (node, files) = (Node::new(), files());
    let guest = Guest::with(&files.iter().map(String::as_str).collect::<Vec<_>>());
    let script = format!(
        "export {IN_GUEST}=1; exec /test --exact cgroup2::limits_hold_under_version_2 --nocapture"
    );
    let job = node.job(Task::Qemu(guest.task(&script)), demand(GUEST_MIB), |_| ());
    let ended = process(async {
        let mut launcher = guest.launcher(&node).await;
        launcher.runtime.adopt(Vec::new());
        launcher.run_to_end(&job).await
    });
    end(&node);
    let console = node.output(&job, Channel::Stdout);
    assert_eq!(ended.end.cause, exited(0), "{ended:?}\n{console}");
    assert!(console.contains("1 passed"), "{console}");
}

fn in_guest() {
    let unit = Path::new("/sys/fs/cgroup/unit");
    enter(unit);
    let node = Node::new();
    let settings = ExecSettings {
        shim_command: vec![SHIM.to_owned()],
        ..node.processes()
    };
    let hierarchy = settings.hierarchy.as_ref().expect("control groups");
    assert_eq!(hierarchy.name(), "cgroup2");
    assert_eq!(groups(unit).len(), 2, "one of groups, one of daemons");
    // As after a restart, and as another runtime of the same launcher does.
    assert_eq!(node.processes().hierarchy.as_ref(), Some(hierarchy));
    process(workloads(&node, &settings));
    process(async { end_shim(&node.data_dir, 0).await.expect("the shim ends") });
    assert!(groups(unit).is_empty(), "{:?}", groups(unit));
    let own = std::fs::read_to_string("/proc/self/cgroup").expect("a group");
    assert_eq!(own, "0::/unit\n", "it is back where it was started");
}

/// Moves this process into a group of its own, which may hand controllers down: as a service is
/// started.
fn enter(unit: &Path) {
    let root = unit.parent().expect("not the root");
    let control = root.join("cgroup.subtree_control");
    std::fs::write(control, "+memory +cpu +pids +io").expect("controllers");
    std::fs::create_dir(unit).expect("a group");
    std::fs::write(unit.join("cgroup.procs"), "0").expect("it moves");
}

/// The groups in this one.
fn groups(unit: &Path) -> Vec<std::ffi::OsString> {
    let entries = std::fs::read_dir(unit).expect("a group").flatten();
    let groups = entries.filter(|entry| entry.path().is_dir());
    groups.map(|entry| entry.file_name()).collect()
}

async fn workloads(node: &Node, settings: &ExecSettings) {
    let mut launcher = Launcher::start(async |_, events| {
        ExecRuntime::open(settings.clone(), events)
            .await
            .expect("a shim")
    })
    .await;
    launcher.runtime.adopt(Vec::new());

    let (_, hungry) = run(&mut launcher, node, "exec tail -c 200000000 /dev/zero").await;
    let EndCause::OutOfMemory {
        limit_mib: 32,
        peak_mib,
    } = hungry.end.cause
    else {
        panic!("{hungry:?}");
    };
    assert!((28..=32).contains(&peak_mib), "{peak_mib}");

    let (bomb, _) = run(
        &mut launcher,
        node,
        "bomb() { bomb | bomb & }; bomb; sleep 1",
    )
    .await;
    assert!(node.output(&bomb, Channel::Stderr).contains("can't fork"));

    let spin = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; exit 6";
    let (_, spun) = run(&mut launcher, node, spin).await;
    assert_eq!(spun.end.cause, exited(6));
    assert!(
        spun.usage.cpu_ms > 0 && spun.usage.memory_peak_mib > 0,
        "{:?}",
        spun.usage
    );

    // What left the session is in the group all the same.
    let escapes = job(
        node,
        "setsid sleep 1000 & echo $! > escaped; echo ready; sleep 1000",
    );
    launcher.runtime.prepare(&escapes);
    launcher.runtime.start(&escapes, None);
    launcher.started(escapes.id).await;
    node.says(&escapes, "ready").await;
    let escaped = node.data_dir.work(&escapes.id).join("escaped");
    let escaped = std::fs::read_to_string(escaped).expect("a process id");
    launcher.runtime.stop(escapes.id, StopCause::Asked, 0);
    assert_eq!(
        launcher.ended(escapes.id).await.end.cause,
        EndCause::Stopped
    );
    let alive = Path::new("/proc").join(escaped.trim()).join("exe").exists();
    assert!(!alive, "emptied means that nothing is left");
}

fn job(node: &Node, script: &str) -> Arc<Job> {
    let task = ExecTask {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        pids_limit: Some(20),
        require_hard_limits: true,
        ..ExecTask::default()
    };
    node.job(Task::Exec(task), demand(32), |_| ())
}

async fn run(
    launcher: &mut Launcher<ExecRuntime>,
    node: &Node,
    script: &str,
) -> (Arc<Job>, crate::node::Ended) {
    let job = job(node, script);
    launcher.runtime.prepare(&job);
    launcher.runtime.start(&job, None);
    let ended = launcher.ended(job.id).await;
    (job, ended)
}
