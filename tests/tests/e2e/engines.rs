//! Every runtime at once on a real cluster: a private Docker engine, Debian's kernel under
//! emulation, processes. They come from `tests/fixtures`; where they can't be had, the test fails.

use crate::cluster::{Cluster, wait_until};
use std::collections::HashMap;
use std::io::Read as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Runs a fixture's script. Fails with all that it said.
fn fixture(script: &str, arguments: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(script);
    let fixtures = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("fixtures");
    let output = Command::new(&path)
        .args(arguments)
        .env("PRONTO_FIXTURES", fixtures)
        .output()
        .expect("the fixture is there");
    assert!(
        output.status.success(),
        "{script} {arguments:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("a script writes text")
}

/// A private engine; ended, with all that it made, when it is dropped.
struct Engine(PathBuf);

impl Engine {
    fn start(name: &str) -> Self {
        let name = format!("pronto-{name}{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let engine = Self(directory);
        fixture("engine.sh", &["start", &engine.path()]);
        fixture("engine.sh", &["image", &engine.path(), "busybox:latest"]);
        engine
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }

    fn host(&self) -> String {
        format!("unix://{}/docker.sock", self.path())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let path = self.path();
        let stop = || drop(fixture("engine.sh", &["stop", &path]));
        if let Err(panic) = std::panic::catch_unwind(stop)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// A cluster of one node that offers every runtime, and what guests are made of.
struct Every {
    cluster: Cluster,
    guest: HashMap<String, String>,
    /// Where the emulator is found.
    path: String,
    // After the cluster, whose containers it has.
    engine: Engine,
}

impl Every {
    fn start(name: &str) -> Self {
        let engine = Engine::start(name);
        let guest: HashMap<String, String> = fixture("guest.sh", &[])
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, path)| (name.to_owned(), path.to_owned()))
            .collect();
        let places: Vec<&Path> = ["qemu", "qemu_img"]
            .iter()
            .filter_map(|name| Path::new(&guest[*name]).parent())
            .collect();
        let own = std::env::var("PATH").unwrap_or_default();
        let path = places
            .iter()
            .map(|place| place.display().to_string())
            .chain([own])
            .collect::<Vec<_>>()
            .join(":");
        let cluster =
            Cluster::start_with(name, 1, &[("DOCKER_HOST", &engine.host()), ("PATH", &path)]);
        let every = Self {
            cluster,
            guest,
            path,
            engine,
        };
        wait_until("every runtime is offered", || every.offers_all());
        every
    }

    fn offers_all(&self) -> bool {
        let node = self.cluster.json(&["show", "node", "node-1"]);
        let offered = node["runtimes"].to_string();
        ["exec", "docker", "qemu"]
            .iter()
            .all(|name| offered.contains(name))
    }

    /// Submits a guest that runs this script and ends with its code.
    fn guest(&self, script: &str, flags: &[&str]) -> String {
        let user_data = self.cluster.scratch("user-data");
        std::fs::write(&user_data, format!("#!/bin/sh\n{script}\n")).expect("a file");
        let user_data = user_data.display().to_string();
        let mut words = vec!["run", "--detach", "--runtime", "qemu", "--memory", "160M"];
        words.extend(["--kernel", &self.guest["kernel"]]);
        words.extend(["--initrd", &self.guest["initrd"]]);
        words.extend(["--append", "quiet panic=-1", "--user-data", &user_data]);
        words.extend(flags);
        self.submitted(&words)
    }

    fn submitted(&self, words: &[&str]) -> String {
        self.cluster.must(words).trim().to_owned()
    }

    fn instance(&self, id: &str) -> serde_json::Value {
        self.cluster.json(&["show", "instance", id])["instance"].clone()
    }

    fn says(&self, id: &str, words: &str) {
        wait_until(words, || {
            let output = self.cluster.run(&["logs", id]);
            String::from_utf8_lossy(&output.stdout).contains(words)
                || String::from_utf8_lossy(&output.stderr).contains(words)
        });
    }

    fn ends_with(&self, id: &str, code: i32) {
        wait_until("its end", || !self.instance(id)["end"].is_null());
        let instance = self.instance(id);
        assert_eq!(instance["end"]["code"], code, "{instance}");
        assert_eq!(instance["attempt"], 1, "{instance}");
    }

    /// The lines of a log that the workload counted.
    fn counted(&self, id: &str) -> Vec<String> {
        let log = self.cluster.must(&["logs", "--stdout", id]);
        let lines = log.lines().map(str::trim_end);
        lines
            .filter(|line| line.starts_with("line "))
            .map(str::to_owned)
            .collect()
    }
}

/// What `bench submit` says in the environment of this cluster, and its exit code.
fn bench(every: &Every, variables: &[(&str, &str)], flags: &[&str]) -> std::process::Output {
    let small = ["--count", "2", "--parallel", "2", "--single", "1"];
    let words = [
        &["bench", "submit", "-o", "json", "--runtime"],
        flags,
        &small,
    ]
    .concat();
    let host = every.engine.host();
    let mut command = every.cluster.command(words);
    command.env("DOCKER_HOST", host).env("PATH", &every.path);
    command.envs(variables.iter().copied());
    command.output().expect("pronto starts")
}

/// Its figures by name: value and reference.
fn figures(output: &std::process::Output) -> HashMap<String, (f64, Option<f64>)> {
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rows = report["rows"].as_array().expect("rows");
    let row = |row: &serde_json::Value| {
        let name = row["name"].as_str().expect("a name").to_owned();
        let value = row["value"].as_f64().expect("a value");
        (name, (value, row["reference"].as_f64()))
    };
    rows.iter().map(row).collect()
}

/// Waits for the server in a guest, and takes its word.
fn fetch(port: u16) {
    wait_until("an answer of the guest", || {
        let mut answer = String::new();
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
            return false;
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a time");
        // The forward accepts before anybody listens in the guest.
        let _ = stream.read_to_string(&mut answer);
        answer.contains("served")
    });
}

#[test]
fn a_killed_launcher_adopts_one_instance_of_each_runtime() {
    let every = Every::start("each");
    let cluster = &every.cluster;
    let begin = "for i in 1 2 3; do echo line $i; done";
    let rest = "for i in 4 5 6; do echo line $i; done";
    let until = "until [ -e go ]; do sleep 0.1; done";
    let process = format!("{begin}; {until}; {rest}; exit 5");
    let process = every.submitted(&["run", "--detach", "--", "sh", "-c", &process]);
    let container = format!("{begin}; cd /tmp; {until}; {rest}; exit 6");
    let container = every.submitted(&[
        "run", "--detach", "--image", "busybox", "--", "sh", "-c", &container,
    ]);
    let guest = format!("{begin}; nc -l -p 80 -e echo served; {rest}; exit 7");
    let guest = every.guest(&guest, &["--publish", "80"]);
    let all = [&process, &container, &guest];
    for id in all {
        every.says(id, "line 3");
    }
    let told = cluster.run(&["logs", "--stderr", &guest]);
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    let port: u16 = told
        .lines()
        .find_map(|line| {
            line.split_once("port 80/tcp is the node's port ")?
                .1
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or_else(|| panic!("no port in {told}"));
    for id in all {
        assert_eq!(every.instance(id)["state"], "running");
    }

    let old = cluster.kill("launcher");
    wait_until("a new launcher", || {
        cluster.daemons("launcher").iter().any(|&pid| pid != old)
    });
    wait_until("its node is ready and has all three", || {
        let node = cluster.json(&["show", "node", "node-1"]);
        node["state"] == "ready" && node["instances"] == 3 && every.offers_all()
    });
    for id in all {
        assert_eq!(every.instance(id)["state"], "running", "{id}");
    }

    // Each is told to go on through what it offers: a file, a command inside, a port.
    let go = cluster.scratch("go");
    std::fs::write(&go, "").expect("a file");
    cluster.must(&["cp", &go.display().to_string(), &format!("{process}:go")]);
    cluster.must(&["exec", &container, "--", "touch", "/tmp/go"]);
    fetch(port);
    for (id, code) in all.into_iter().zip([5, 6, 7]) {
        every.ends_with(id, code);
        let lines: Vec<String> = (1..=6).map(|number| format!("line {number}")).collect();
        assert_eq!(every.counted(id), lines, "each line once: {id}");
    }
}

#[test]
fn each_runtime_runs_from_the_command_line() {
    let every = Every::start("one");
    let cluster = &every.cluster;
    let words = ["run", "--runtime", "docker", "--image", "busybox", "--"];
    let output = cluster.run(
        &[
            &words[..],
            &["sh", "-c", "echo in; cat /etc/passwd | head -1; exit 4"],
        ]
        .concat(),
    );
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("in\nroot:x:0:0"));

    let guest = every.guest("echo hello from the guest; exit 3", &[]);
    every.ends_with(&guest, 3);
    assert!(
        cluster
            .must(&["logs", &guest])
            .contains("hello from the guest")
    );

    let hog = "x=$(head -c 1000000000 /dev/zero | tr '\\0' x); echo ${#x}";
    let bash = ["bash", "-c", hog];
    for image in [&[][..], &["--image", "busybox"]] {
        let shell = if image.is_empty() { "bash" } else { "sh" };
        let command = [shell, bash[1], bash[2]];
        let words = [&["run", "--memory", "64M"][..], image, &["--"], &command].concat();
        let output = cluster.run(&words);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{output:?}");
        assert!(
            told.contains("out of memory: limit 64 MiB, peak 64 MiB"),
            "{told}"
        );
    }
    let listed = cluster.must(&["list", "instances"]);
    assert!(
        listed.contains("failed (out of memory: limit 64 MiB, peak 64 MiB)"),
        "{listed}"
    );
    // What a directory of the node may be mounted into is the tenant's policy.
    cluster.must(&["create", "tenant", "plain"]);
    let refused = cluster.run(&[
        "run",
        "--tenant",
        "plain",
        "--image",
        "busybox",
        "--mount",
        "/etc:/host:ro",
        "--",
        "true",
    ]);
    assert!(!refused.status.success(), "{refused:?}");
}

#[test]
fn bench_submit_measures_containers_beside_bare_ones_and_says_what_is_missing() {
    let every = Every::start("bench");
    // (Guests boot too slowly to be measured in a test.)
    let rows = figures(&bench(&every, &[], &["docker"]));
    let (end_ms, floor_ms) = rows["submit_to_end_ms"];
    assert!(
        end_ms > 0.0 && floor_ms.is_some_and(|floor| floor > 0.0),
        "{rows:?}"
    );
    let (own_ms, _) = rows["own_segments_ms"];
    assert!(own_ms > 0.0 && own_ms < end_ms, "{rows:?}");
    let (_, floor_per_second) = rows["tasks_per_second"];
    assert!(
        floor_per_second.is_some_and(|floor| floor > 0.0),
        "{rows:?}"
    );
    let fails = |variables: &[(&str, &str)], flags: &[&str], words: &str| {
        let output = bench(&every, variables, flags);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(words), "{told}");
    };
    let nowhere = ("DOCKER_HOST", "unix:///nowhere/docker.sock");
    fails(
        &[nowhere],
        &["docker"],
        "no Docker engine answers at unix:///nowhere/docker.sock",
    );
    fails(
        &[],
        &["docker", "--image", "no-such-image"],
        "has no image no-such-image",
    );
    fails(&[], &["qemu"], "--kernel");
    fails(&[], &["qemu", "--kernel", "/no/kernel"], "/no/kernel");
    let qemu = ["qemu", "--kernel", &every.guest["kernel"]];
    fails(
        &[("PATH", "/nowhere")],
        &qemu,
        "no guest runs here: there is no qemu-system-",
    );
}
