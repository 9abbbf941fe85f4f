//! Commands that are refused, interrupted or asked for what is not there: what they say, what they
//! exit with, and that they leave nothing behind.

use crate::cluster::{Cluster, signal, wait_until};
use std::process::Output;

/// Code and words of a command that did not succeed.
fn refusal(output: &Output) -> (Option<i32>, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// The controller says so and closes, long before it could have read such a file.
#[test]
fn a_refusal_is_told_while_a_large_file_is_sent() {
    let cluster = Cluster::start("refusal", 1);
    let large = cluster.scratch("large");
    let file = std::fs::File::create(&large).expect("a file");
    file.set_len(256 << 20).expect("a sparse file");
    for _ in 0..5 {
        let refused = cluster.run(&["cp", &large.display().to_string(), "nobody:large"]);
        let (code, said) = refusal(&refused);
        assert_eq!(code, Some(121), "{said}");
        assert!(said.contains("no instance nobody"), "{said}");
    }
}

/// Who reads the record must not take what was tried for what was done.
#[test]
fn the_record_says_what_was_refused() {
    let cluster = Cluster::start("record", 1);
    let id = cluster.must(&["run", "--detach", "--", "sleep", "1000"]);
    let into = cluster.scratch("shadow").display().to_string();
    for (from, to) in [
        (format!("{}:/etc/shadow", id.trim()), into.clone()),
        (into.clone(), format!("{}:../../esc", id.trim())),
    ] {
        if to != into {
            std::fs::write(&into, "x").expect("a file");
        }
        let (code, said) = refusal(&cluster.run(&["cp", &from, &to]));
        assert!(matches!(code, Some(2 | 121)), "{said}");
    }
    let events = cluster.json(&["list", "events", "--kind", "refused"]);
    let said: Vec<&str> = events["events"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|event| event["message"].as_str())
        .collect();
    let begins = |what: &str| said.iter().any(|said| said.starts_with(what));
    assert!(begins("file_read /etc/shadow: "), "{said:?}");
    assert!(begins("file_written ../../esc: "), "{said:?}");
}

/// As a shell would see it of `cat`, but without half a file.
#[test]
fn an_interrupted_copy_leaves_nothing_behind() {
    let cluster = Cluster::start("interrupted", 1);
    let script = "truncate -s 1T endless; sleep 1000";
    let id = cluster.must(&["run", "--detach", "--", "sh", "-c", script]);
    let source = format!("{}:endless", id.trim());
    wait_until("the file is there", || {
        let words = ["exec", id.trim(), "--", "test", "-s", "endless"];
        cluster.run(&words).status.success()
    });
    let into = cluster.scratch("into");
    std::fs::create_dir(&into).expect("a directory");
    let files = || std::fs::read_dir(&into).expect("a directory").count();
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let mut copy = cluster
            .command(["cp", &source, &into.display().to_string()])
            .spawn()
            .expect("pronto starts");
        wait_until("it has begun", || files() > 0);
        signal(i32::try_from(copy.id()).expect("a pid"), name);
        assert_eq!(copy.wait().expect("a child").code(), Some(code));
        assert_eq!(files(), 0, "after SIG{name}");
    }
}

/// What a job takes hours for must not be lost to a directory's name.
#[test]
fn results_that_can_not_be_put_anywhere_are_refused_before_the_run() {
    let cluster = Cluster::start("results", 1);
    let file = cluster.scratch("file").display().to_string();
    std::fs::write(&file, "").expect("a file");
    let flags = ["--output", "*", "--output-dir", &file, "--", "true"];
    for first in [&["run"][..], &["run", "--each", &file]] {
        let (code, said) = refusal(&cluster.run(&[first, &flags].concat()));
        assert_eq!(code, Some(2), "{said}");
        assert!(
            said.contains(&file) && said.contains("not a directory"),
            "{said}"
        );
    }
    let list = cluster.json(&["list", "instances"]);
    assert_eq!(list["instances"], serde_json::json!([]));
}

/// Nodes list what matches by lines.
#[test]
fn a_line_break_in_a_name_costs_that_file_alone() {
    let cluster = Cluster::start("line-break", 1);
    let results = cluster.scratch("results");
    let place = results.display().to_string();
    let script = "echo 1 > a.out; echo 2 > z.out; d=$(printf 'b\n/'); mkdir \"$d\"; \
                  echo 3 > \"${d}n.out\"; echo 4 > \"${d%/}m.out\"";
    let words = [
        "run",
        "--output",
        "*.out",
        "*/*.out",
        "--output-dir",
        &place,
    ];
    let (code, said) = refusal(&cluster.run(&[&words[..], &["--", "sh", "-c", script]].concat()));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("was not fetched"), "{said}");
    for (name, content) in [("a.out", "1\n"), ("z.out", "2\n")] {
        let fetched = std::fs::read_to_string(results.join(name));
        assert_eq!(fetched.expect(&said), content);
    }
    let before = cluster.json(&["list", "instances"]);
    let words = [
        "run",
        "--output",
        "a\nb",
        "--output-dir",
        &place,
        "--",
        "true",
    ];
    let (code, said) = refusal(&cluster.run(&words));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(r#""a\nb""#), "{said}");
    assert_eq!(cluster.json(&["list", "instances"]), before);
}

/// Its daemons go on for a moment, and answer as if they were the new cluster.
#[test]
fn a_cluster_is_ready_when_its_own_supervisor_says_so() {
    let cluster = Cluster::start("supervisor", 1);
    let supervisor = || {
        let record = std::fs::read(cluster.data_dir().join("cluster.json")).expect("a record");
        let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
        record["supervisor"]["pid"].as_i64().expect("a pid")
    };
    let killed = supervisor();
    let controller = cluster.daemons("controller");
    signal(i32::try_from(killed).expect("a pid"), "KILL");
    wait_until("it is gone", || {
        let status = std::fs::read_to_string(format!("/proc/{killed}/stat"));
        status.is_err() || status.is_ok_and(|status| status.contains(") Z "))
    });
    cluster.up(1);
    assert_ne!(supervisor(), killed);
    assert_ne!(cluster.daemons("controller"), controller);
    cluster.must(&["run", "--", "true"]);
}

/// The log of one that failed is what tells why the next was needed.
#[test]
fn the_log_of_an_earlier_attempt_is_asked_for_by_its_number() {
    let cluster = Cluster::start("attempt", 2);
    let script = "[ $PRONTO_ATTEMPT = 2 ] || echo attempt $PRONTO_ATTEMPT; exit 4";
    let words = "run --name thrice --restart on-failure:2 -- sh -c";
    let words: Vec<&str> = words.split(' ').chain([script]).collect();
    assert_eq!(cluster.run(&words).status.code(), Some(4));
    let logs = |name: &str, attempt: &str| cluster.run(&["logs", name, "--attempt", attempt]);
    for attempt in ["1", "3"] {
        let output = logs("thrice", attempt);
        let wrote = String::from_utf8_lossy(&output.stdout);
        assert_eq!(wrote, format!("attempt {attempt}\n"), "{output:?}");
    }
    let (code, said) = refusal(&logs("thrice", "2"));
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("attempt 2 has no log"), "{said}");
    let (code, said) = refusal(&logs("thrice", "4"));
    assert_eq!(code, Some(121), "{said}");
    assert!(said.contains("no attempt 4: the last is 3"), "{said}");

    let living = "echo attempt $PRONTO_ATTEMPT; sleep 1000";
    let words = "run --detach --name living -- sh -c";
    let words: Vec<&str> = words.split(' ').chain([living]).collect();
    cluster.must(&words);
    let wrote = |name: &str| cluster.run(&["logs", name]).stdout;
    wait_until("its first line", || wrote("living") == b"attempt 1\n");
    cluster.must(&["restart", "instance", "living"]);
    wait_until("its next", || wrote("living") == b"attempt 2\n");
    assert_eq!(logs("living", "1").stdout, b"attempt 1\n");
    assert_eq!(logs("living", "2").stdout, b"attempt 2\n");
}
