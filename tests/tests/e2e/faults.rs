//! Daemons killed while they work, and a disk that is full: nothing acknowledged is lost, no attempt
//! runs twice, and what runs can be stopped.

use crate::cluster::{Cluster, wait_until};
use crate::evidence::Evidence;
use crate::rig::{Plan, Rig, launcher};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Duplicates of work that was thought dead show up late; how long to look for them.
const AFTERMATH: Duration = Duration::from_secs(30);

/// SIGKILL to scheduler, controller and one launcher while a thousand instances run.
#[test]
fn killing_every_kind_of_daemon_loses_nothing() {
    let cluster = Cluster::start("kills", 3);
    let evidence = Evidence::new(cluster.scratch("evidence"));
    let script = evidence.command("sleep 0.05");
    let started = cluster.must(&[
        "create", "instance", "--count", "1000", "--cpus", "0.05", "--memory", "16M", "--detach",
        "-o", "json", "--", "sh", "-c", &script,
    ]);
    let submission: serde_json::Value = serde_json::from_str(&started).expect("JSON");
    let acknowledged = submission["instances"].as_array().expect("a list").clone();
    assert_eq!(acknowledged.len(), 1000);
    for (kind, after) in [("scheduler", 50), ("controller", 200), ("launcher", 400)] {
        wait_until(&format!("{after} instances have run"), || {
            evidence.attempts().len() >= after
        });
        let unfinished = 1000 - evidence.attempts().len();
        assert!(unfinished > 0, "all was over before {kind} was killed");
        let old = cluster.kill(kind);
        wait_until(&format!("a new {kind}"), || {
            cluster.daemons(kind).iter().any(|&pid| pid != old)
        });
    }
    let ended = || {
        let output = cluster.run(&["list", "instances", "--limit", "2000", "-o", "json"]);
        let Ok(list) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
            return Vec::new();
        };
        list["instances"].as_array().cloned().unwrap_or_default()
    };
    wait_until("every instance has succeeded", || {
        let list = ended();
        list.len() == 1000 && list.iter().all(|instance| instance["state"] == "succeeded")
    });
    let last = evidence.attempts();
    std::thread::sleep(AFTERMATH);
    assert_eq!(evidence.attempts(), last, "something ran after the end");
    evidence.assert_no_attempt_ran_twice();
    assert_eq!(last.len(), 1000);
}

/// A workload runs on while its launcher is dead, and is adopted with its exit code and its log.
#[test]
fn a_restarted_launcher_adopts_what_runs() {
    let cluster = Cluster::start("adopt", 1);
    let go = cluster.scratch("go");
    let script = format!(
        "echo before; while [ ! -e {} ]; do sleep 0.05; done; echo after; exit 5",
        go.display()
    );
    let id = cluster.must(&["run", "--detach", "--", "sh", "-c", &script]);
    let id = id.trim();
    let state = || cluster.json(&["show", "instance", id])["instance"]["state"].clone();
    wait_until("it runs", || state() == "running");
    let attempt = cluster.json(&["show", "instance", id])["instance"]["attempt"].clone();
    let old = cluster.kill("launcher");
    std::fs::write(&go, "").expect("a file");
    wait_until("a new launcher", || {
        cluster.daemons("launcher").iter().any(|&pid| pid != old)
    });
    wait_until("its end", || state() == "failed");
    let shown = cluster.json(&["show", "instance", id]);
    assert_eq!(shown["instance"]["end"]["code"], 5, "{shown}");
    assert_eq!(
        shown["instance"]["attempt"], attempt,
        "it was not adopted but run again"
    );
    assert_eq!(cluster.must(&["logs", id]), "before\nafter\n");
}

/// Who follows a log sees it go on, each line once, while its launcher is killed and comes back.
#[test]
fn a_followed_log_goes_on_behind_its_launchers_end() {
    let cluster = Cluster::start("follow", 1);
    let (go, end) = (cluster.scratch("go"), cluster.scratch("end"));
    let wait =
        |file: &std::path::Path| format!("while [ ! -e {} ]; do sleep 0.05; done", file.display());
    let script = format!("echo before; {}; echo after; {}", wait(&go), wait(&end));
    let id = cluster.must(&["run", "--detach", "--", "sh", "-c", &script]);
    let log = cluster.scratch("followed");
    let mut follower = cluster
        .command(["logs", "-f", id.trim()])
        .stdout(std::fs::File::create(&log).expect("a file"))
        .spawn()
        .expect("pronto starts");
    let read = || std::fs::read_to_string(&log).expect("a file");
    wait_until("the first line", || read() == "before\n");
    cluster.kill("launcher");
    std::fs::write(&go, "").expect("a file");
    wait_until("the second line", || read() == "before\nafter\n");
    std::fs::write(&end, "").expect("a file");
    assert!(follower.wait().expect("a child").success());
    assert_eq!(read(), "before\nafter\n");
}

/// An exit while the controller is dead is found when it is back.
#[test]
fn an_end_while_the_controller_is_down_is_found() {
    let cluster = Cluster::start("down", 1);
    let done = cluster.scratch("done");
    let script = format!("sleep 0.5; touch {}; exit 3", done.display());
    let id = cluster.must(&["run", "--detach", "--", "sh", "-c", &script]);
    wait_until("it runs", || {
        cluster.json(&["show", "instance", id.trim()])["instance"]["state"] == "running"
    });
    let pid = cluster.daemons("controller")[0];
    crate::cluster::signal(pid, "STOP");
    wait_until("it has ended", || done.exists());
    crate::cluster::signal(pid, "KILL");
    wait_until("a new controller has learned it", || {
        let output = cluster.run(&["show", "instance", id.trim(), "-o", "json"]);
        serde_json::from_slice::<serde_json::Value>(&output.stdout)
            .is_ok_and(|shown| shown["instance"]["end"]["code"] == 3)
    });
}

/// A small file system in memory, until it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(options: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pronto-e2e-disk-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]);
        let mounted = mount.arg(&path).status().expect("mount is there");
        assert!(mounted.success(), "this test needs root");
        Self(path)
    }

    fn is_full(&self) -> bool {
        let disk = rustix::fs::statvfs(&self.0).expect("it is mounted");
        disk.f_bavail * disk.f_bsize < 64 * 1024
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} may still be mounted", self.0.display());
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A workload fills its node's disk. It can be stopped all the same, also by a launcher that was
/// started meanwhile; then the node takes work again.
#[test]
fn what_fills_the_disk_can_be_stopped() {
    // A node with less than 256 MiB takes no work. It is dropped behind the cluster that uses it.
    let disk = SmallDisk::new("size=400m");
    let plan = Plan {
        schedulers: 1,
        launchers: 1,
        ..Plan::default()
    };
    let mut rig = Rig::new("full-disk", plan);
    std::fs::create_dir_all(rig.path("data")).expect("a directory");
    std::os::unix::fs::symlink(&disk.0, rig.path("data/node-1")).expect("a link");
    rig.start_all();
    rig.await_ready(1);
    let fill = |rig: &Rig| {
        // What is on this disk is its memory.
        let script = "cat /dev/zero > filler; exec sleep 1000";
        let created = rig.must(&[
            "run", "--detach", "--memory", "1G", "--", "sh", "-c", script,
        ]);
        wait_until("the disk is full", || disk.is_full());
        created.trim().to_owned()
    };
    let stop = |rig: &Rig, instance: &str| {
        rig.must(&["stop", "instance", instance, "--grace", "0s"]);
        wait_until("it is stopped", || {
            rig.field(instance, "state") == "stopped"
        });
        wait_until("there is room", || !disk.is_full());
    };
    let first = fill(&rig);
    stop(&rig, &first);
    let second = fill(&rig);
    rig.kill(&launcher(1));
    rig.start(&launcher(1));
    stop(&rig, &second);
    rig.await_ready(1);
    rig.must(&["run", "--", "true"]);
}
