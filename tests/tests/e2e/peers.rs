//! Others who speak to the daemons: a launcher in another language, and those who don't belong.

use crate::cluster::{Cluster, wait_until};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Ends a process that a test has started.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn scheduler_address(cluster: &Cluster) -> String {
    let config =
        std::fs::read_to_string(cluster.data_dir().join("scheduler.toml")).expect("a file");
    let line = config
        .lines()
        .find(|line| line.starts_with("listen"))
        .expect("a listen address");
    line.split('"').nth(1).expect("a quoted address").to_owned()
}

fn issue(cluster: &Cluster, role: &str, name: &str) -> std::path::PathBuf {
    let directory = cluster.scratch("extra-certs");
    std::fs::create_dir_all(&directory).expect("a directory");
    let ca = cluster.data_dir().join("pki");
    let mut command =
        cluster.command(["cert", "issue", "--role", role, "--name", name, "--ca-dir"]);
    let output = command
        .arg(&ca)
        .arg("--dir")
        .arg(&directory)
        .output()
        .expect("pronto starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    directory
}

/// A launcher in Python, written from PROTOCOL.md alone, runs a workload.
#[test]
fn a_launcher_in_another_language_takes_part() {
    let cluster = Cluster::start("python", 1);
    let directory = issue(&cluster, "launcher", "snake");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/launcher.py");
    let log = std::fs::File::create(cluster.scratch("python.log")).expect("a log");
    let _python = Guard(
        Command::new("python3")
            .arg(example)
            .args(["--address", &scheduler_address(&cluster)])
            .arg("--cert")
            .arg(directory.join("snake.crt"))
            .arg("--key")
            .arg(directory.join("snake.key"))
            .arg("--ca")
            .arg(cluster.data_dir().join("pki/ca.crt"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("python3 starts"),
    );
    wait_until("the node is ready", || {
        let output = cluster.run(&["show", "node", "snake", "-o", "json"]);
        serde_json::from_slice::<serde_json::Value>(&output.stdout)
            .is_ok_and(|node| node["state"] == "ready")
    });
    let id = cluster.must(&[
        "run", "--detach", "--node", "snake", "--", "sh", "-c", "exit 4",
    ]);
    wait_until("its end", || {
        cluster.json(&["show", "instance", id.trim()])["instance"]["end"]["code"] == 4
    });
}

/// A certificate of the wrong role is refused at HELLO, and both sides say so.
#[test]
fn a_wrong_role_is_refused_on_both_sides() {
    let cluster = Cluster::start("roles", 1);
    let directory = issue(&cluster, "admin", "intruder");
    let data = cluster.scratch("intruder");
    std::fs::create_dir_all(&data).expect("a directory");
    let config = cluster.scratch("intruder.toml");
    std::fs::write(
        &config,
        format!(
            "schedulers = [\"{}\"]\ndata_dir = \"{}\"\n[tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n",
            scheduler_address(&cluster),
            data.display(),
            cluster.data_dir().join("pki/ca.crt").display(),
            directory.join("intruder.crt").display(),
            directory.join("intruder.key").display(),
        ),
    )
    .expect("a config");
    let log = cluster.scratch("intruder.log");
    let file = std::fs::File::create(&log).expect("a log");
    let _child = Guard(
        cluster
            .command(["launcher", "--config"])
            .arg(&config)
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("pronto starts"),
    );
    wait_until("the launcher says that it may not", || {
        std::fs::read_to_string(&log).is_ok_and(|said| said.contains("may not be sent by a admin"))
    });
    let scheduler = cluster.data_dir().join("log/scheduler.log");
    wait_until("the scheduler says that it refused somebody", || {
        std::fs::read_to_string(&scheduler).is_ok_and(|said| said.contains("connection refused"))
    });
}

/// Nothing listens without mutual TLS: a plain connection gets no answer but an alert or an end.
#[test]
fn a_plain_connection_gets_nothing() {
    let cluster = Cluster::start("plain", 1);
    let mut socket = std::net::TcpStream::connect(scheduler_address(&cluster)).expect("it listens");
    socket
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .expect("written");
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    assert!(
        answer.len() < 64 && !answer.starts_with(b"HTTP"),
        "{answer:?}"
    );
    assert_eq!(cluster.run(&["run", "--", "true"]).status.code(), Some(0));
}
