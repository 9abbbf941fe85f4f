//! The controller's store through the real binary: killed while it commits, damaged, copied while
//! it runs, put back.

use crate::chaos::Over;
use crate::cluster::{pronto, wait_until};
use crate::rig::{Plan, Rig, launcher, scheduler};
use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Instances of one submission.
const BATCH: usize = 7;
/// Times that the controller is killed.
const CRASHES: u64 = 25;

fn controller(rig: &Rig, arguments: &[&str]) -> Output {
    Command::new(pronto())
        .args(["controller", "--config", &rig.path("controller.toml")])
        .args(arguments)
        .output()
        .expect("pronto starts")
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn plan() -> Plan {
    Plan {
        schedulers: 1,
        launchers: 1,
        ..Plan::default()
    }
}

/// SIGKILL again and again while submissions are being committed: what was acknowledged is there,
/// what was not is absent or whole.
#[test]
fn a_crash_loop_loses_nothing_that_was_acknowledged() {
    let mut rig = Rig::new("crash-loop", plan());
    rig.start(&scheduler(1));
    rig.start("controller");
    rig.start_with(&launcher(1), &[]);
    rig.await_ready(1);
    let over = AtomicBool::new(false);
    let answers = AtomicUsize::new(0);
    let mut acknowledged = Vec::new();
    let mut unanswered = 0;
    std::thread::scope(|scope| {
        let client = rig.client();
        let clients: Vec<_> = (0..3)
            .map(|number| {
                let (client, over, answers) = (client.clone(), &over, &answers);
                scope.spawn(move || {
                    let (mut mine, mut unanswered) = (Vec::new(), 0);
                    let mut batch = number;
                    while !over.load(Ordering::Acquire) {
                        match client.submit_named(batch, BATCH) {
                            Some(ids) => {
                                mine.extend(ids);
                                answers.fetch_add(1, Ordering::Release);
                            }
                            None => unanswered += 1,
                        }
                        batch += 3;
                    }
                    (mine, unanswered)
                })
            })
            .collect();
        let _over = Over(&over);
        for round in 0..CRASHES {
            // Once it has answered again, anywhere in the commits that follow.
            let before = answers.load(Ordering::Acquire);
            wait_until("a submission is acknowledged", || {
                answers.load(Ordering::Acquire) > before
            });
            std::thread::sleep(Duration::from_millis(17 * (round * 7 % 13)));
            rig.kill("controller");
            rig.start("controller");
        }
        over.store(true, Ordering::Release);
        for client in clients {
            let (mine, none) = client.join().expect("a client");
            acknowledged.extend(mine);
            unanswered += none;
        }
    });
    let client = rig.client();
    let mut last = BTreeMap::new();
    wait_until("every instance has succeeded", || {
        let Some(list) = client.all_instances() else {
            return false;
        };
        last = list;
        last.values().all(|state| state == "succeeded")
    });
    let lost = acknowledged.iter().filter(|id| !last.contains_key(*id));
    let lost: Vec<_> = lost.collect();
    eprintln!(
        "{CRASHES} crashes; acknowledged {}, unanswered submissions {unanswered}, known {}; lost {}",
        acknowledged.len(),
        last.len(),
        lost.len()
    );
    assert!(lost.is_empty(), "{lost:?}");
    assert!(
        acknowledged.len() > BATCH,
        "the clients came through at times"
    );
    assert!(last.len() >= acknowledged.len());
    let mut batches = BTreeMap::<String, usize>::new();
    for (name, _) in client.named_instances().expect("it answers") {
        let batch = name.rsplit_once('-').expect("batch-N-I").0.to_owned();
        *batches.entry(batch).or_default() += 1;
    }
    for (batch, count) in batches {
        assert_eq!(count % BATCH, 0, "{batch} is there in part");
    }
    rig.kill("controller");
    let checked = controller(&rig, &["--check"]);
    assert!(checked.status.success(), "{}", said(&checked));
}

/// `--backup` beside a running controller, `--restore-backup` after its store was damaged, `--check`
/// in between; and a store of a newer build is refused.
#[test]
fn a_damaged_store_is_refused_and_a_backup_put_back() {
    let mut rig = Rig::new("backup", plan());
    rig.start_all();
    rig.await_ready(1);
    let before = rig
        .client()
        .submit_named(1, BATCH)
        .expect("it is submitted");
    let backup = rig.path("backup.db");
    let copied = controller(&rig, &["--backup", &backup]);
    assert!(copied.status.success(), "{}", said(&copied));
    let again = controller(&rig, &["--backup", &backup]);
    assert!(!again.status.success(), "a backup is not overwritten");
    let after = rig
        .client()
        .submit_named(2, BATCH)
        .expect("it is submitted");
    let running = controller(&rig, &["--restore-backup", &backup]);
    assert!(!running.status.success() && said(&running).contains("held by another controller"));
    rig.kill("controller");

    let database = rig.path("data/controller/controller.db");
    for beside in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{database}{beside}"));
    }
    let mut bytes = std::fs::read(&database).expect("the database");
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0x5a);
    bytes[100..3000].fill(0x5a);
    std::fs::write(&database, bytes).expect("written");
    for arguments in [&["--check"][..], &[]] {
        let refused = controller(&rig, arguments);
        assert!(!refused.status.success());
        let text = said(&refused);
        assert!(
            text.contains("damaged") && text.contains("--restore-backup FILE"),
            "{text}"
        );
    }
    let restored = controller(&rig, &["--restore-backup", &backup]);
    assert!(restored.status.success(), "{}", said(&restored));
    let checked = controller(&rig, &["--check"]);
    assert!(checked.status.success(), "{}", said(&checked));
    rig.start("controller");
    rig.await_ready(1);
    let client = rig.client();
    let known = client.all_instances().expect("it answers");
    assert!(before.iter().all(|id| known.contains_key(id)));
    assert!(
        after.iter().all(|id| !known.contains_key(id)),
        "they came after the backup"
    );
    let third = rig
        .client()
        .submit_named(3, BATCH)
        .expect("it is submitted");
    wait_until("what is submitted now runs", || {
        let known = client.all_instances().unwrap_or_default();
        third
            .iter()
            .all(|id| known.get(id).is_some_and(|state| state == "succeeded"))
    });
    rig.kill("controller");

    let newer = Command::new("python3")
        .args([
            "-c",
            "import sqlite3, sys\nsqlite3.connect(sys.argv[1]).execute('PRAGMA user_version = 99')",
        ])
        .arg(&database)
        .status()
        .expect("python3 runs");
    assert!(newer.success());
    for arguments in [&["--check"][..], &[]] {
        let refused = controller(&rig, arguments);
        let text = said(&refused);
        assert!(
            !refused.status.success() && text.contains("schema 99"),
            "{text}"
        );
        assert!(text.contains("use the newer build"), "{text}");
    }
}
