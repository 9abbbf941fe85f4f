//! What people do each day, on a cluster without faults.

use crate::cluster::{Cluster, wait_until};
use crate::evidence::Evidence;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Output, Stdio};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One cluster, many commands: starting one for each would take longer than the tests.
#[test]
fn the_daily_commands_work() {
    let cluster = Cluster::start("daily", 3);
    run_passes_streams_and_exit_code(&cluster);
    run_tells_what_it_could_not_execute(&cluster);
    run_passes_standard_input(&cluster);
    an_open_standard_input_holds_nothing_up(&cluster);
    a_workload_finds_its_environment(&cluster);
    stop_ends_the_whole_process_group(&cluster);
    the_output_of_each_attempt_is_passed_on_once(&cluster);
    logs_are_kept_after_the_end(&cluster);
    logs_can_be_cut_by_stream_and_size_and_time(&cluster);
    commands_and_files_reach_a_running_instance(&cluster);
    inputs_go_along_and_outputs_come_back(&cluster);
    each_of_the_examples_files_is_counted(&cluster);
    the_timeline_explains_a_start(&cluster);
    explain_counts_reasons(&cluster);
    a_quota_refusal_names_its_numbers(&cluster);
    constraints_choose_the_node(&cluster);
    a_workload_file_is_created_and_run(&cluster);
    a_drained_node_takes_nothing_until_restored(&cluster);
    a_waiting_instance_can_be_cancelled_or_expires(&cluster);
    unknown_things_are_told_apart(&cluster);
}

fn run_passes_streams_and_exit_code(cluster: &Cluster) {
    let output = cluster.run(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "out\n");
    assert_eq!(text(&output.stderr), "err\n");
}

fn run_tells_what_it_could_not_execute(cluster: &Cluster) {
    let output = cluster.run(&["run", "--", "no-such-program-here"]);
    assert_eq!(output.status.code(), Some(127));
    assert!(
        text(&output.stderr).contains("no-such-program-here"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(
        cluster.run(&["run", "--", "/etc/hostname"]).status.code(),
        Some(126)
    );
    let killed = cluster.run(&["run", "--", "sh", "-c", "kill -KILL $$"]);
    assert_eq!(killed.status.code(), Some(128 + 9));
}

fn run_passes_standard_input(cluster: &Cluster) {
    let output = with_input(cluster, &["run", "-i", "--", "sort"], b"pear\napple\n");
    assert_eq!(text(&output.stdout), "apple\npear\n");
}

/// Runs a command with this as its whole standard input.
fn with_input(cluster: &Cluster, words: &[&str], input: &[u8]) -> Output {
    let mut child = cluster
        .command(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("pronto starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input).expect("it reads");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

/// As from a terminal at which nobody types: the end does not wait for a key.
fn an_open_standard_input_holds_nothing_up(cluster: &Cluster) {
    let mut child = cluster
        .command(["run", "-i", "--", "true"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("pronto starts");
    let _open = child.stdin.take();
    wait_until("it ends", || child.try_wait().expect("a child").is_some());
}

fn a_workload_finds_its_environment(cluster: &Cluster) {
    let printed = cluster.must(&["run", "--env", "GREETING=hello world", "--", "env"]);
    for name in [
        "PRONTO_INSTANCE=",
        "PRONTO_ATTEMPT=1",
        "PRONTO_TENANT=default",
        "PRONTO_NODE=",
        "PRONTO_NODE_ADDRESS=",
    ] {
        assert!(
            printed.lines().any(|line| line.starts_with(name)),
            "no {name} in:\n{printed}"
        );
    }
    assert!(printed.contains("GREETING=hello world\n"));
    assert!(
        !printed.contains("PRONTO_CONFIG="),
        "the daemon's environment leaked:\n{printed}"
    );
}

fn stop_ends_the_whole_process_group(cluster: &Cluster) {
    let marker = cluster.scratch("child.pid");
    let script = format!("sleep 1000 & echo $! > {}; wait", marker.display());
    let id = cluster.must(&["run", "--detach", "--", "sh", "-c", &script]);
    let id = id.trim();
    wait_until("the workload's child", || {
        std::fs::read_to_string(&marker).is_ok_and(|text| text.ends_with('\n'))
    });
    let child = std::fs::read_to_string(&marker).expect("just seen");
    cluster.must(&["stop", "instance", id]);
    wait_until("the stop", || {
        cluster.json(&["show", "instance", id])["instance"]["state"] == "stopped"
    });
    assert!(
        !std::path::Path::new(&format!("/proc/{}", child.trim())).exists(),
        "a child survived"
    );
}

/// Whatever the moment at which each begins and ends, and wherever it runs.
fn the_output_of_each_attempt_is_passed_on_once(cluster: &Cluster) {
    let words = "run --restart on-failure:2 -- sh -c";
    let words: Vec<&str> = words.split(' ').collect();
    let script = "echo $PRONTO_ATTEMPT; exit 4";
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| cluster.run(&[words.as_slice(), &[script]].concat())))
            .collect();
        for run in runs {
            let output = run.join().unwrap();
            assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
            assert_eq!(text(&output.stdout), "1\n2\n3\n");
        }
    });
}

fn logs_are_kept_after_the_end(cluster: &Cluster) {
    let id = cluster.must(&[
        "run",
        "--detach",
        "--",
        "sh",
        "-c",
        "echo one; echo two >&2",
    ]);
    let id = id.trim();
    let output = cluster.run(&["logs", "-f", id]);
    assert_eq!(text(&output.stdout), "one\n", "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "two\n");
    assert_eq!(cluster.must(&["logs", id]), "one\n");
}

fn logs_can_be_cut_by_stream_and_size_and_time(cluster: &Cluster) {
    let script = "echo out; echo err >&2; until [ -e go ]; do sleep 0.05; done; echo late";
    let id = cluster.must(&["run", "--detach", "--", "sh", "-c", script]);
    let id = id.trim();
    wait_until("both lines", || {
        let output = cluster.run(&["logs", id]);
        text(&output.stdout) == "out\n" && text(&output.stderr) == "err\n"
    });
    let output = cluster.run(&["logs", "--stderr", id]);
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        (String::new(), "err\n".into())
    );
    assert_eq!(
        cluster.must(&["logs", "--stdout", "--tail", "3", id]),
        "ut\n"
    );
    let go = cluster.scratch("go");
    std::fs::write(&go, "").expect("a file");
    // What came before is older than what came behind the file by as long as this took.
    let before = std::time::Instant::now();
    wait_until("a second has passed", || {
        before.elapsed().as_millis() > 1500
    });
    cluster.must(&["cp", &go.display().to_string(), &format!("{id}:go")]);
    let whole = cluster.must(&["logs", "-f", id]);
    assert_eq!(whole, "out\nlate\n");
    // Asked again if the asking itself took longer than lies between the two.
    wait_until("the recent line alone", || {
        let since = format!("{}ms", before.elapsed().as_millis());
        let recent = cluster.must(&["logs", "--since", &since, "--stdout", id]);
        assert!(!recent.contains("out"), "in the last {since}: {recent}");
        recent == "late\n"
    });
}

fn commands_and_files_reach_a_running_instance(cluster: &Cluster) {
    let words = "run --detach --env SECRET=hush -- sleep 1000";
    let id = cluster.must(&words.split(' ').collect::<Vec<_>>());
    let id = id.trim();
    wait_until("it runs", || {
        cluster.json(&["show", "instance", id])["instance"]["state"] == "running"
    });
    // Everybody on the node can read a command line.
    let keeper = "cat /proc/$PPID/cmdline; echo ${#SECRET}";
    let seen = text(&cluster.run(&["exec", id, "--", "sh", "-c", keeper]).stdout);
    assert!(seen.ends_with("4\n") && !seen.contains("hush"), "{seen}");
    let given = cluster.scratch("given");
    let content: Vec<u8> = (0..=250_u8).cycle().take(2_000_000).collect();
    std::fs::write(&given, &content).expect("a file");
    let given = given.display().to_string();
    cluster.must(&["cp", &given, &format!("{id}:in/given")]);
    let script = "wc -c < in/given; echo oops >&2; echo inside > made; exit 9";
    let output = cluster.run(&["exec", id, "--", "sh", "-c", script]);
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    assert_eq!(
        (text(&output.stdout).trim(), &*text(&output.stderr)),
        ("2000000", "oops\n")
    );
    let sorted = with_input(cluster, &["exec", "-i", id, "--", "sort"], b"pear\napple\n");
    assert_eq!(text(&sorted.stdout), "apple\npear\n");
    let counted = with_input(cluster, &["exec", "-i", id, "--", "wc", "-c"], &content);
    assert_eq!(text(&counted.stdout).trim(), "2000000");
    let back = cluster.scratch("back");
    cluster.must(&["cp", &format!("{id}:in/given"), &back.display().to_string()]);
    assert!(std::fs::read(&back).expect("it came") == content);
    cluster.must(&["cp", &format!("{id}:made"), &back.display().to_string()]);
    assert_eq!(std::fs::read(&back).expect("it came"), b"inside\n");
    for outside in ["/etc/passwd", "../exit.json"] {
        let refused = cluster.run(&["cp", &format!("{id}:{outside}"), "-"]);
        assert!(!refused.status.success(), "{outside}: {refused:?}");
        assert_eq!(text(&refused.stdout), "");
    }
    cluster.must(&["stop", "instance", id]);
}

fn inputs_go_along_and_outputs_come_back(cluster: &Cluster) {
    let (input, results) = (cluster.scratch("words.txt"), cluster.scratch("results"));
    std::fs::write(&input, "pear\napple\n").expect("a file");
    let output = cluster.must(&[
        "run",
        "--input",
        &input.display().to_string(),
        "--output",
        "*.sorted",
        "--output-dir",
        &results.display().to_string(),
        "--",
        "sh",
        "-c",
        "sort words.txt > a.sorted; wc -l < a.sorted",
    ]);
    assert_eq!(output.trim(), "2");
    let sorted = std::fs::read_to_string(results.join("a.sorted")).expect("it came back");
    assert_eq!(sorted, "apple\npear\n");
}

/// The line that examples/job.sh gives.
fn each_of_the_examples_files_is_counted(cluster: &Cluster) {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let results = cluster.scratch("counted");
    let mut inputs: Vec<_> = std::fs::read_dir(examples.join("inputs"))
        .expect("example files")
        .map(|entry| {
            format!(
                "inputs/{}",
                text(entry.expect("a name").file_name().as_encoded_bytes())
            )
        })
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 3, "{inputs:?}");
    let mut words = vec!["run", "--each"];
    words.extend(inputs.iter().map(String::as_str));
    let place = results.display().to_string();
    words.extend([
        "--output",
        "{stem}.out",
        "--output-dir",
        &place,
        "--",
        "./job.sh",
        "{}",
    ]);
    let output = cluster
        .command(&words)
        .current_dir(&examples)
        .output()
        .expect("pronto starts");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout).lines().count(), inputs.len());
    for input in inputs {
        let content = std::fs::read_to_string(examples.join(&input)).expect("an example");
        let stem = input.trim_start_matches("inputs/").trim_end_matches(".txt");
        let counted =
            std::fs::read_to_string(results.join(format!("{stem}.out"))).expect("a result");
        let counted: Vec<usize> = counted
            .split_whitespace()
            .map(|number| number.parse().expect("a number"))
            .collect();
        assert_eq!(
            counted,
            [content.lines().count(), content.split_whitespace().count()]
        );
    }
}

fn the_timeline_explains_a_start(cluster: &Cluster) {
    let id = cluster.must(&["run", "--detach", "--name", "timed", "--", "true"]);
    wait_until("the end", || {
        cluster.json(&["show", "instance", id.trim()])["instance"]["state"] == "succeeded"
    });
    let shown = cluster.json(&["show", "instance", "timed"]);
    let steps: Vec<_> = shown["timeline"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|step| step["step"].clone())
        .collect();
    for step in [
        "submitted",
        "admitted",
        "committed",
        "dispatched",
        "placed",
        "received",
        "started",
        "ended",
    ] {
        assert!(
            steps.iter().any(|seen| seen == step),
            "no {step} in {steps:?}"
        );
    }
    let offsets: Vec<_> = shown["timeline"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|step| step["offset_ns"].as_u64().expect("a number"))
        .collect();
    assert!(offsets.is_sorted(), "time went backwards: {offsets:?}");
}

fn explain_counts_reasons(cluster: &Cluster) {
    let told = cluster.run(&["explain", "--gpus", "8", "-o", "json"]);
    assert_eq!(
        told.status.code(),
        Some(1),
        "a demand that fits nowhere is a no"
    );
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).expect("JSON");
    assert_eq!(told["fits"], 0, "{told}");
    let told = cluster.json(&["explain", "--cpus", "0.1"]);
    assert_eq!(told["fits"], 3, "{told}");
    assert!(text(&cluster.run(&["explain", "--gpus", "8"]).stdout).contains("gpu"));
}

fn a_quota_refusal_names_its_numbers(cluster: &Cluster) {
    cluster.must(&["create", "tenant", "small"]);
    cluster.must(&["update", "quota", "small", "instances=2"]);
    cluster.must(&["run", "--tenant", "small", "--detach", "--", "sleep", "60"]);
    cluster.must(&["run", "--tenant", "small", "--detach", "--", "sleep", "60"]);
    let refused = cluster.run(&["run", "--tenant", "small", "--", "true"]);
    let message = text(&refused.stderr);
    assert!(!refused.status.success());
    for part in ["instances", "limit", "2", "used", "1"] {
        assert!(message.contains(part), "no '{part}' in: {message}");
    }
    for instance in cluster.json(&["list", "instances", "--tenant", "small"])["instances"]
        .as_array()
        .expect("a list")
    {
        cluster.must(&["stop", "instance", instance["id"].as_str().expect("an id")]);
    }
}

fn constraints_choose_the_node(cluster: &Cluster) {
    let nodes = cluster.json(&["list", "nodes"]);
    let name = nodes["nodes"][2]["name"]
        .as_str()
        .expect("a name")
        .to_owned();
    let printed = cluster.must(&[
        "run",
        "--node",
        &name,
        "--",
        "sh",
        "-c",
        "echo $PRONTO_NODE",
    ]);
    assert_eq!(printed.trim(), name);
    let label = format!(
        "hostname={}",
        cluster.json(&["show", "node", &name])["labels"]["hostname"]
            .as_str()
            .expect("a label")
    );
    cluster.must(&["run", "--constraint", &label, "--", "true"]);
}

fn a_workload_file_is_created_and_run(cluster: &Cluster) {
    let file = cluster.scratch("greet.yaml");
    std::fs::write(
        &file,
        "name: greet\nruntime: exec\ncommand: [sh, -c, 'echo hello $WHO']\nenv:\n  WHO: pronto\n\
         resources:\n  cpus: 0.05\n  memory: 16M\n",
    )
    .expect("a file");
    let path = file.display().to_string();
    cluster.must(&["create", "workload", "-f", &path]);
    assert_eq!(
        cluster.must(&["run", "--workload", "greet"]),
        "hello pronto\n"
    );
    std::fs::write(
        &file,
        "name: greet\nruntime: exec\ncommand: [true]\nmemori: 3\n",
    )
    .expect("a file");
    let refused = cluster.run(&["create", "workload", "-f", &path]);
    let message = text(&refused.stderr);
    assert!(
        message.contains("memori") && message.contains('4'),
        "no key or line in: {message}"
    );
}

fn a_drained_node_takes_nothing_until_restored(cluster: &Cluster) {
    let nodes = cluster.json(&["list", "nodes"]);
    let name = nodes["nodes"][0]["name"]
        .as_str()
        .expect("a name")
        .to_owned();
    cluster.must(&["drain", &name]);
    let wait_state = |state: &str| {
        wait_until(state, || {
            cluster.json(&["show", "node", &name])["state"] == state
        });
    };
    wait_state("maintenance");
    let refused = cluster.run(&[
        "run",
        "--node",
        &name,
        "--pending-timeout",
        "1s",
        "--",
        "true",
    ]);
    assert!(!refused.status.success(), "a drained node took work");
    cluster.must(&["restore", &name]);
    wait_state("ready");
    cluster.must(&["run", "--node", &name, "--", "true"]);
}

fn a_waiting_instance_can_be_cancelled_or_expires(cluster: &Cluster) {
    let huge = ["--memory", "8T"];
    let id = cluster.must(&[&["run", "--detach"], &huge[..], &["--", "true"]].concat());
    let state = |id: &str| cluster.json(&["show", "instance", id])["instance"]["state"].clone();
    wait_until("it waits", || {
        state(id.trim()) == "pending" || state(id.trim()) == "placing"
    });
    cluster.must(&["stop", "instance", id.trim()]);
    wait_until("it is cancelled", || state(id.trim()) == "cancelled");
    let id = cluster.must(
        &[
            &["run", "--detach", "--pending-timeout", "1s"],
            &huge[..],
            &["--", "true"],
        ]
        .concat(),
    );
    wait_until("it expires", || state(id.trim()) == "expired");
}

fn unknown_things_are_told_apart(cluster: &Cluster) {
    let unknown = cluster.run(&["show", "instance", "ffffffffffff"]);
    let usage = cluster.run(&["run", "--cpus", "many", "--", "true"]);
    let unreachable = cluster
        .command(["list", "nodes"])
        .env("PRONTO_CONTROLLERS", "https://127.0.0.1:1")
        .output()
        .expect("pronto starts");
    let codes: BTreeSet<_> = [&unknown, &usage, &unreachable]
        .iter()
        .map(|output| output.status.code())
        .collect();
    assert_eq!(codes.len(), 3, "{unknown:?} {usage:?} {unreachable:?}");
    assert!(!codes.contains(&Some(0)));
    assert!(text(&usage.stderr).contains("many"));
}

/// A thousand, none lost, none twice.
#[test]
fn a_thousand_instances_each_run_once() {
    let cluster = Cluster::start("thousand", 3);
    let evidence = Evidence::new(cluster.scratch("evidence"));
    let script = evidence.command("true");
    cluster.must(&[
        "create", "instance", "--count", "1000", "--cpus", "0.01", "--memory", "16M", "--", "sh",
        "-c", &script,
    ]);
    let attempts = evidence.attempts();
    assert_eq!(attempts.len(), 1000);
    // An attempt that its node refused before it ran leaves no line; one that ran leaves one.
    assert!(
        attempts.values().all(|attempts| attempts.len() == 1),
        "{attempts:?}"
    );
}

/// Instances and history are still there after the cluster was ended and started again.
#[test]
fn a_cluster_keeps_its_history() {
    let cluster = Cluster::start("history", 2);
    cluster.must(&["run", "--name", "remembered", "--", "true"]);
    assert!(cluster.down().success());
    for kind in ["scheduler", "controller", "launcher"] {
        assert!(
            cluster.daemons(kind).is_empty(),
            "a {kind} survived the stop"
        );
    }
    cluster.up(2);
    let shown = cluster.json(&["show", "instance", "remembered"]);
    assert_eq!(shown["instance"]["state"], "succeeded");
    cluster.must(&["run", "--", "true"]);
}

/// A list that is watched tells each change once it has told what there is.
#[test]
fn a_list_is_watched() {
    let cluster = Cluster::start("watch", 1);
    cluster.must(&["run", "--name", "before", "--", "true"]);
    let told = cluster.scratch("told");
    let mut watcher = cluster
        .command(["list", "instances", "--watch", "--columns", "name,state"])
        .stdout(std::fs::File::create(&told).expect("a file"))
        .spawn()
        .expect("pronto starts");
    let read = || std::fs::read_to_string(&told).expect("a file");
    wait_until("what there is", || read().contains("before"));
    cluster.must(&["run", "--name", "after", "--", "true"]);
    wait_until("the change", || {
        read()
            .lines()
            .any(|line| line.split_whitespace().eq(["after", "succeeded"]))
    });
    watcher.kill().expect("it watches still");
    watcher.wait().expect("a child");
}

/// Neither a launcher nor what it runs can load a kernel module, set the clock or turn the machine off,
/// also where it is root.
#[test]
fn a_launcher_gives_up_what_no_workload_needs() {
    /// CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_BOOT and CAP_SYS_TIME.
    const GIVEN_UP: u64 = 1 << 16 | 1 << 17 | 1 << 22 | 1 << 25;
    let cluster = Cluster::start("privileges", 1);
    let pid = cluster.daemons("launcher")[0];
    let launcher = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let workload = cluster.must(&["run", "--", "cat", "/proc/self/status"]);
    for status in [launcher, workload] {
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let line = status.lines().find_map(|line| line.strip_prefix(set));
            let hex = line.expect("each has it").trim_start_matches(':').trim();
            let has = u64::from_str_radix(hex, 16).expect("a number");
            // Who is not root can't change the bounding set, and has nothing that it bounds.
            if set != "CapBnd" || rustix::process::geteuid().is_root() {
                assert_eq!(has & GIVEN_UP, 0, "{set} of:\n{status}");
            }
        }
    }
}
