//! Many files at once: each gets its input ahead of its start and its result after its end, however
//! the sessions that carry them overtake each other, and whatever room there is.

use crate::cluster::{Cluster, signal, wait_until};
use std::time::Duration;

const FILES: usize = 150;
const ROUNDS: usize = 2;

#[test]
fn every_file_of_a_burst_is_served() {
    let cluster = Cluster::start("bursts", 3);
    let inputs = cluster.scratch("inputs");
    std::fs::create_dir_all(&inputs).expect("a directory");
    let names: Vec<String> = (0..FILES).map(|n| format!("{n}.t")).collect();
    for name in &names {
        std::fs::write(inputs.join(name), name).expect("a file");
    }
    for round in 0..ROUNDS {
        serve(&cluster, &inputs, &names, &format!("round-{round}"));
    }
    cluster.must(&["update", "quota", "default", "instances=7"]);
    serve(&cluster, &inputs, &names[..30], "little-room");
}

fn serve(cluster: &Cluster, inputs: &std::path::Path, names: &[String], round: &str) {
    let results = cluster.scratch(round);
    let place = results.display().to_string();
    let mut words = vec!["run", "--each"];
    words.extend(names.iter().map(String::as_str));
    words.extend(["--output", "{stem}.out", "--output-dir", &place]);
    words.extend(["--", "sh", "-c", "tr t T < {} > {stem}.out"]);
    let output = cluster
        .command(&words)
        .current_dir(inputs)
        .output()
        .expect("pronto starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for name in names {
        let result = results.join(name.replace(".t", ".out"));
        let made = std::fs::read_to_string(&result).expect("a result");
        assert_eq!(made, name.replace('t', "T"));
    }
}

/// However long an attempt takes to start, it gets each input once: brought again, a file would undo
/// what the attempt did to it.
#[test]
fn an_attempt_that_is_slow_to_start_gets_its_input_once() {
    let cluster = Cluster::start("slow-start", 1);
    // It starts the processes of its launcher, and answers for each.
    let shim = std::fs::read_to_string(cluster.data_dir().join("data/launcher-1/shim.pid"));
    let shim = shim.expect("a shim");
    let shim: i32 = shim
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok())
        .expect("a pid");
    let input = cluster.scratch("input.txt");
    std::fs::write(&input, "once").expect("a file");
    signal(shim, "STOP");
    let mut run = cluster
        .command(["run", "--input", &input.display().to_string()])
        .args(["--", "grep", "-q", "once", "input.txt"])
        .spawn()
        .expect("pronto starts");
    let written = || {
        let events = cluster.json(&["list", "events", "--kind", "file_written"]);
        events["events"].as_array().expect("a list").len()
    };
    wait_until("its input", || written() > 0);
    std::thread::sleep(Duration::from_secs(2));
    signal(shim, "CONT");
    assert!(run.wait().expect("a child").success());
    assert_eq!(written(), 1);
}
