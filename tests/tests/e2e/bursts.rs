//! Many files at once: each gets its input ahead of its start and its result after its end, however
//! the sessions that carry them overtake each other, and whatever room there is.

use crate::cluster::Cluster;

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
