//! The store on real files: what was answered for is there after a crash, and the crash points in
//! between; a full disk; damage; backup and restore; retention.

use pronto_controller::api::types::{
    EndReason, InstanceState, QuotaLimits, Severity, SimSpec, Spec, TaskSpec,
};
use pronto_controller::numbers::IdScheme;
use pronto_controller::store::read::{EndedFilter, EventFilter};
use pronto_controller::store::sqlite::OpenOptions;
use pronto_controller::store::{
    AfterStop, AmendRow, Batch, EndRow, EventRow, NodeRow, Past, Reader, Snapshot, SpecRow,
    SqliteStore, StopIntent, Store, StoreError, SubmissionRow, TenantRow, Times, WorkloadRow,
    Write, backup, check, restore_backup,
};
use pronto_payloads::hello::Mode;
use pronto_payloads::ids::{BootId, NodeUuid, OwnerId};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use uuid::Uuid;

const OPTIONS: OpenOptions = OpenOptions {
    owner: OwnerId([3; 16]),
    id_key: u64::MAX - 5,
    now_unix_ms: 1_790_000_000_000,
    request_window_ms: 3_600_000,
};

fn open(dir: &Path) -> (SqliteStore, Snapshot) {
    SqliteStore::open(dir, &OPTIONS).unwrap()
}

fn spec() -> Arc<Spec> {
    Arc::new(Spec::new(TaskSpec::Sim(SimSpec::default())))
}

fn spec_row(id: u32) -> Write {
    Write::Spec(SpecRow {
        id,
        tenant: "default".into(),
        workload: Some("w".into()),
        spec: spec(),
    })
}

fn submission(first_seq: u64, count: u32, unix_ms: u64) -> SubmissionRow {
    SubmissionRow {
        first_seq,
        count,
        request: Uuid::from_u128(u128::from(first_seq)),
        digest: u64::MAX - first_seq,
        tenant: "default".into(),
        spec: 1,
        name: (first_seq == 1).then(|| "web".into()),
        unix_ms,
        nonce: (1 << 42) - 1,
        admitted_ns: 5,
    }
}

fn end(seq: u64, state: InstanceState, unix_ms: u64) -> EndRow {
    EndRow {
        seq,
        state,
        attempt: 2,
        highest_attempt: 5,
        restarts: 1,
        reschedules: 0,
        node: Some("n1".into()),
        cause: EndReason::OutOfMemory,
        code: Some(-1),
        signal: None,
        message: "words".to_owned(),
        ended_unix_ms: unix_ms,
        times: Times {
            started_ns: Some(77),
            ..Times::default()
        },
        usage: None,
        deleted: false,
        amended: true,
    }
}

fn event(number: u64, unix_ms: u64) -> Write {
    Write::Event(EventRow {
        number,
        unix_ms,
        kind: "submitted",
        severity: Severity::Warning,
        actor: "admin/root".to_owned(),
        source: "127.0.0.1:1".to_owned(),
        tenant: Some("default".into()),
        instance: None,
        node: None,
        message: "hello".to_owned(),
    })
}

fn batch(number: u64, writes: Vec<Write>) -> Batch {
    Batch { number, writes }
}

#[test]
fn everything_comes_back_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let now = OPTIONS.now_unix_ms;
    let (mut store, fresh) = open(dir.path());
    assert_eq!((fresh.meta.epoch, fresh.meta.next_seq), (1, 1));
    let tenant = TenantRow {
        name: "lab".into(),
        runtimes: Vec::new(),
        privileged: true,
        submit_rate_per_s: Some(9),
        limits: QuotaLimits {
            instances: Some(4),
            ..QuotaLimits::default()
        },
        created_unix_ms: 1,
    };
    let workload = WorkloadRow {
        tenant: "lab".into(),
        name: "w".into(),
        spec: spec(),
        revision: 3,
        created_unix_ms: 1,
        updated_unix_ms: 2,
    };
    let node = NodeRow {
        name: "n1".into(),
        uuid: NodeUuid([9; 16]),
        boot_id: BootId([8; 16]),
        wish: Some(Mode::Maintenance),
        drain_until_unix_ms: Some(5),
        lost: true,
    };
    let amend = AmendRow {
        seq: 3,
        attempt: 4,
        highest_attempt: 6,
        settled_attempt: 3,
        restarts: 1,
        reschedules: 2,
        stop: Some(StopIntent {
            grace_ms: Some(7),
            then: AfterStop::Move,
        }),
    };
    let first = [
        batch(
            1,
            vec![spec_row(1), Write::Submission(submission(1, 3, now))],
        ),
        batch(
            2,
            vec![
                Write::Tenant(tenant.clone()),
                Write::Workload(workload.clone()),
                Write::Node(node.clone()),
                Write::Amend(amend),
                Write::Amend(AmendRow { seq: 2, ..amend }),
                Write::End(end(2, InstanceState::Failed, now)),
                event(1, now),
                Write::Term(6),
            ],
        ),
    ];
    store.commit(&first).unwrap();
    drop(store);
    let (mut store, found) = open(dir.path());
    assert_eq!(found.meta.owner, OPTIONS.owner);
    assert_eq!(found.meta.id_key, OPTIONS.id_key);
    assert_eq!((found.meta.epoch, found.meta.term), (2, 6));
    assert_eq!((found.meta.next_seq, found.meta.next_event), (4, 2));
    assert_eq!(found.tenants, [tenant]);
    assert_eq!(found.workloads, [workload]);
    assert_eq!(found.nodes, [node]);
    assert_eq!(found.amends, [amend], "an end removes its amendments");
    assert_eq!(found.submissions[0].row, submission(1, 3, now));
    assert_eq!(found.submissions[0].ended, [(2, InstanceState::Failed)]);
    let reader = Reader::open(dir.path(), OPTIONS.id_key).unwrap();
    let read = reader.ended_one(2).unwrap().unwrap();
    let written = EndRow {
        amended: false,
        ..end(2, InstanceState::Failed, now)
    };
    assert_eq!(read.end, written);
    assert_eq!(reader.ended_by_id(read.id).unwrap().unwrap().end.seq, 2);
    assert_eq!(
        store.lookup(read.id).unwrap(),
        Past::Ended { highest_attempt: 5 }
    );
    assert_eq!(
        reader
            .events(&EventFilter {
                limit: 9,
                ..EventFilter::default()
            })
            .unwrap()
            .len(),
        1
    );
    let named = reader.named("web-2", Some("default")).unwrap();
    assert_eq!(named.len(), 1);
    // Forgotten, it is a tombstone: unknown to users, known to reconciliation.
    store.commit(&[batch(3, vec![Write::Forget(2)])]).unwrap();
    assert!(reader.ended_by_id(read.id).unwrap().is_none());
    assert_eq!(
        store.lookup(read.id).unwrap(),
        Past::Ended { highest_attempt: 5 }
    );
}

#[test]
fn nobody_else_on_the_host_can_read_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("data/controller");
    let _open = SqliteStore::open(&own, &OPTIONS).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&own.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_store_has_one_controller() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, _) = open(dir.path());
    let second = SqliteStore::open(dir.path(), &OPTIONS).unwrap_err();
    assert!(matches!(second, StoreError::Locked { .. }), "{second}");
}

/// What a crash leaves: the files at that moment, copied without asking the process.
fn crashed(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["controller.db", "controller.db-wal"] {
        let from = dir.join(name);
        if from.exists() {
            std::fs::copy(from, copy.path().join(name)).unwrap();
        }
    }
    copy
}

#[test]
fn what_was_answered_for_survives_a_crash_at_any_byte_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let now = OPTIONS.now_unix_ms;
    let (mut store, _) = open(dir.path());
    store
        .commit(&[batch(
            1,
            vec![spec_row(1), Write::Submission(submission(1, 1, now))],
        )])
        .unwrap();
    let before = crashed(dir.path());
    let committed_bytes = std::fs::metadata(before.path().join("controller.db-wal"))
        .unwrap()
        .len();
    let second = vec![Write::Submission(submission(2, 5, now)), event(1, now)];
    store.commit(&[batch(2, second)]).unwrap();
    let whole = std::fs::read(dir.path().join("controller.db-wal")).unwrap();
    let mut outcomes = [0, 0];
    let committed = usize::try_from(committed_bytes).unwrap();
    for cut in (committed..=whole.len()).step_by(997).chain([whole.len()]) {
        let copy = crashed(dir.path());
        std::fs::write(copy.path().join("controller.db-wal"), &whole[..cut]).unwrap();
        let (_, found) = SqliteStore::open(copy.path(), &OPTIONS).unwrap();
        let there = found.submissions.len();
        assert!(there >= 1, "the first was answered for");
        // The second is there whole, with its event, or not at all.
        assert_eq!(found.meta.next_event == 2, there == 2, "cut at {cut}");
        outcomes[usize::from(there == 2)] += 1;
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}

#[test]
fn damage_is_refused_with_instructions() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let mut writes = vec![spec_row(1)];
    writes.extend((1..2000).map(|n| Write::Submission(submission(n, 1, 0))));
    store.commit(&[batch(1, writes)]).unwrap();
    drop(store);
    check(dir.path()).unwrap();
    let path = dir.path().join("controller.db");
    let whole = std::fs::read(&path).unwrap();
    // The header, the first pages with the schema, the middle, the end.
    let places = [0, 16, 100, 4096, whole.len() / 2, whole.len() - 5000];
    for place in places {
        let mut bytes = whole.clone();
        let end = (place + 9000).min(bytes.len());
        bytes[place..end].fill(0x5a);
        std::fs::write(&path, bytes).unwrap();
        let opened = SqliteStore::open(dir.path(), &OPTIONS).map(drop);
        for error in [opened.unwrap_err(), check(dir.path()).unwrap_err()] {
            let error = error.to_string();
            assert!(
                error.contains("damaged") && error.contains("--restore-backup"),
                "at {place}: {error}"
            );
        }
    }
    std::fs::write(&path, &whole[..whole.len() / 3]).unwrap();
    let cut_short = SqliteStore::open(dir.path(), &OPTIONS).unwrap_err();
    assert!(matches!(cut_short, StoreError::Damaged(_)), "{cut_short}");
}

#[test]
fn a_backup_is_made_while_it_runs_and_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("backup.db");
    let now = OPTIONS.now_unix_ms;
    let (mut store, _) = open(dir.path());
    store
        .commit(&[batch(
            1,
            vec![spec_row(1), Write::Submission(submission(1, 1, now))],
        )])
        .unwrap();
    backup(dir.path(), &file).unwrap();
    assert!(backup(dir.path(), &file).is_err(), "not overwritten");
    store
        .commit(&[batch(2, vec![Write::Submission(submission(2, 1, now))])])
        .unwrap();
    let held = restore_backup(dir.path(), &file).unwrap_err();
    assert!(matches!(held, StoreError::Locked { .. }));
    drop(store);
    assert_eq!(
        std::fs::read_dir(file.parent().unwrap()).unwrap().count(),
        1,
        "one file"
    );
    let aside = restore_backup(dir.path(), &file).unwrap().unwrap();
    assert!(aside.exists());
    let (_store, found) = open(dir.path());
    assert_eq!(found.submissions.len(), 1);
    assert!(
        found.meta.restored,
        "its epoch must rise above what launchers report"
    );
    let seconds = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(found.meta.epoch > seconds - 1000 && found.meta.term > seconds - 1000);
    assert_eq!(found.meta.leap_seq, 2, "instance 1 is in it");
    assert!(found.meta.leap_attempt > 1);
    assert!(dir.path().join("controller.db.replaced-1").exists());
    let nonsense = files.path().join("nonsense");
    std::fs::write(&nonsense, "not a database").unwrap();
    assert!(restore_backup(dir.path(), &nonsense).is_err());
}

/// More than one step of the copy long, and written to all the while.
#[test]
fn a_backup_of_a_busy_store_ends_and_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup.db");
    let (mut store, _) = open(dir.path());
    let now = OPTIONS.now_unix_ms;
    let long = |number| match event(number, now) {
        Write::Event(row) => Write::Event(EventRow {
            message: "x".repeat(4000),
            ..row
        }),
        other => other,
    };
    store
        .commit(&[batch(1, (1..=5000).map(long).collect())])
        .unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 2.. {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let writes = vec![event(5000 + number, now)];
                store.commit(&[batch(number, writes)]).unwrap();
            }
        });
        let copied = backup(dir.path(), &file);
        done.store(true, Ordering::Relaxed);
        copied.unwrap();
    });
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds what is in environments");
}

/// A spec that only ended instances have is not read at a start, and its number is not free.
#[test]
fn a_specs_number_is_given_out_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let old = OPTIONS.now_unix_ms - 2 * OPTIONS.request_window_ms;
    let ended = SubmissionRow {
        spec: 2,
        ..submission(2, 1, old)
    };
    let writes = vec![
        spec_row(1),
        spec_row(2),
        Write::Submission(submission(1, 1, old)),
        Write::Submission(ended),
        Write::End(end(2, InstanceState::Succeeded, old)),
        Write::SubmissionDone(2),
    ];
    store.commit(&[batch(1, writes)]).unwrap();
    drop(store);
    let (mut store, found) = open(dir.path());
    let known: Vec<u32> = found.specs.iter().map(|spec| spec.id).collect();
    assert_eq!((known, found.next_spec), (vec![1], 3));
    assert!(store.commit(&[batch(2, vec![spec_row(2)])]).is_err());
}

#[test]
fn retention_removes_what_has_ended_long_ago_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let mut writes = vec![spec_row(1)];
    for seq in 1..=4 {
        writes.push(Write::Submission(submission(seq, 1, 1000)));
        writes.push(event(seq, 1000));
    }
    // 1: ended long ago. 2: ended lately. 3: alive. 4: the newest, ended long ago.
    for (seq, at) in [(1, 2000), (2, 9000), (4, 2000)] {
        writes.push(Write::End(end(seq, InstanceState::Succeeded, at)));
        writes.push(Write::SubmissionDone(seq));
    }
    store.commit(&[batch(1, writes)]).unwrap();
    while store.purge(5000, 5000).unwrap() {}
    let reader = Reader::open(dir.path(), OPTIONS.id_key).unwrap();
    let left: Vec<u64> = reader
        .ended(&EndedFilter {
            limit: 10,
            ..EndedFilter::default()
        })
        .unwrap()
        .found
        .iter()
        .map(|ended| ended.end.seq)
        .collect();
    assert_eq!(left, [4, 2]);
    // What a node that was away for longer still has.
    let scheme = IdScheme::new(OPTIONS.id_key);
    let row = submission(1, 1, 1000);
    let mut lookup = |ms, nonce, seq| store.lookup(scheme.id(ms, nonce, seq)).unwrap();
    assert_eq!(lookup(1000, row.nonce, 1), Past::Purged);
    let alive = submission(3, 1, 1000);
    assert_eq!(lookup(1000, alive.nonce, 3), Past::Unknown);
    assert_eq!(lookup(1001, 7, 1), Past::Unknown, "another store's");
    drop(store);
    let (_, found) = open(dir.path());
    assert_eq!((found.meta.next_seq, found.meta.next_event), (5, 5));
    assert_eq!(found.submissions.len(), 1, "the living one");
}

#[test]
fn a_full_disk_leaves_admissions_out_and_writes_the_ends() {
    let dir = tempfile::tempdir().unwrap();
    let now = OPTIONS.now_unix_ms;
    let (mut store, _) = open(dir.path());
    store
        .commit(&[batch(
            1,
            vec![spec_row(1), Write::Submission(submission(1, 1, now))],
        )])
        .unwrap();
    store.limit_pages(4).unwrap();
    let mut writes = vec![Write::End(end(1, InstanceState::Succeeded, now))];
    writes.extend((2..5000).map(|n| Write::Submission(submission(n, 1, now))));
    let committed = store.commit(&[batch(2, writes)]).unwrap();
    assert!(committed.admissions_refused);
    let reader = Reader::open(dir.path(), OPTIONS.id_key).unwrap();
    assert!(reader.ended_one(1).unwrap().is_some());
    assert!(
        reader
            .submission(Uuid::from_u128(2), None)
            .unwrap()
            .is_none()
    );
}
