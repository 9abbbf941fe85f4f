//! The whole launcher, its shell included, against a scheduler that the test plays.

use crate::certs::Ca;
use crate::node::{body, exec, exited};
use crate::scheduler::{FakeScheduler, Peer, attempt, config};
use pronto_payloads::codec;
use pronto_payloads::control::PullInventory;
use pronto_payloads::ids::Seq;
use pronto_payloads::instance::{Inventory, Phase};
use pronto_payloads::node::Stats;
use pronto_payloads::start::{SimTask, StartBody, Task};
use pronto_payloads::stream::{Channel, LogsRequest, StreamEnd, StreamFailure, StreamRequest};
use pronto_protocol::{Operand, Purpose, VersionRange};
use sha2::Digest;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A launcher in this process, which a test may end as a crash would.
struct Launcher {
    task: JoinHandle<anyhow::Result<()>>,
    shutdown: CancellationToken,
}

impl Launcher {
    fn spawn(config: pronto_launcher::LauncherConfig) -> Self {
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(pronto_launcher::run(config, shutdown.clone()));
        Self { task, shutdown }
    }

    /// Gone between two instructions, without a word to anybody.
    async fn crash(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    async fn leave(self, data_dir: &std::path::Path) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        pronto_launcher::end_workloads(data_dir, 0).await.unwrap();
    }
}

struct Cluster {
    ca: Ca,
    scheduler: FakeScheduler,
    directory: tempfile::TempDir,
}

impl Cluster {
    async fn new() -> Self {
        let ca = Ca::new();
        let scheduler = FakeScheduler::new(&ca).await;
        Self {
            ca,
            scheduler,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    async fn launcher(&self) -> (Launcher, Peer) {
        let config = config(&self.scheduler, &self.ca, self.directory.path());
        let launcher = Launcher::spawn(config);
        (launcher, self.scheduler.leased().await)
    }

    async fn bulk(&self, control: &Peer) -> Peer {
        control.send(Operand::OpenBulk, 0, Vec::new());
        self.scheduler.session(Purpose::Bulk).await
    }
}

#[tokio::test]
async fn a_start_runs_a_process_and_its_end_is_reported() {
    let cluster = Cluster::new().await;
    let (launcher, mut peer) = cluster.launcher().await;
    let facts = peer.launcher().facts;
    assert_eq!(facts.allocatable.cpu_millis, 4000);
    assert!(facts.isolation.starts_with("cgroup"), "{facts:?}");
    peer.start(attempt(1), &body(exec("echo hello; exit 7")));
    let report = peer.report(attempt(1), Phase::Ended).await;
    assert_eq!(report.end.as_ref().unwrap().cause, exited(7));
    assert!(report.started_after_ns.unwrap() <= report.ended_after_ns.unwrap());
    let status =
        peer.status(|status| status.applied_seq == Seq(1) && status.free.cpu_millis == 4000);
    assert_eq!(status.await.reason, "");
    let stats = peer.next(Operand::Stats).await;
    let stats: Stats = codec::decode(&stats.payload.to_bytes()).unwrap();
    assert!(stats.load.memory_total_mib > 0);
    peer.ack(&report);
    launcher.leave(cluster.directory.path()).await;
}

/// The scheduler is upgraded first: while the next version still speaks ours, ours is spoken; one that
/// does not any more refuses in words, and the launcher goes on asking.
#[tokio::test]
async fn a_scheduler_of_the_next_version_is_understood_or_refuses() {
    let cluster = Cluster::new().await;
    let ours = VersionRange::SUPPORTED;
    let next = ours.max + 1;
    let newer = VersionRange {
        min: next,
        max: next,
    };
    let both = VersionRange {
        min: ours.min,
        max: next,
    };
    let config = config(&cluster.scheduler, &cluster.ca, cluster.directory.path());
    let launcher = Launcher::spawn(config);
    let refused = cluster.scheduler.refuses(newer).await.to_string();
    let words = format!("no common protocol version: peer speaks {ours}, accepted: {newer}");
    assert_eq!(refused, words);
    let mut peer = cluster.scheduler.session_of(both, Purpose::Control).await;
    assert_eq!(peer.hello.versions, ours);
    peer.wait(pronto_protocol::Frame::wants_reply).await;
    peer.start(attempt(1), &body(exec("exit 7")));
    let report = peer.report(attempt(1), Phase::Ended).await;
    assert_eq!(report.end.as_ref().unwrap().cause, exited(7));
    peer.ack(&report);
    launcher.leave(cluster.directory.path()).await;
}

#[tokio::test]
async fn a_crashed_launcher_comes_back_and_adopts() {
    let cluster = Cluster::new().await;
    let (launcher, mut peer) = cluster.launcher().await;
    let uuid = peer.launcher().node_uuid;
    let script = "while [ ! -e go ]; do sleep 0.02; done; echo late; exit 5";
    peer.start(attempt(1), &body(exec(script)));
    peer.start(attempt(2), &body(exec("exit 6")));
    peer.report(attempt(1), Phase::Running).await;
    let ended = peer.report(attempt(2), Phase::Ended).await;
    launcher.crash().await;

    let (launcher, mut peer) = cluster.launcher().await;
    let hello = peer.launcher();
    assert_eq!((hello.node_uuid, hello.owners[0].attempts), (uuid, 2));
    assert_eq!(peer.hello.session_epoch, 2);
    let again = peer.report(attempt(2), Phase::Ended).await;
    assert_eq!((again.version, &again.end), (ended.version, &ended.end));
    peer.ack(&again);
    let owner = attempt(1).owner;
    peer.send(
        Operand::Inventory,
        8,
        codec::encode(&PullInventory { owner }),
    );
    let page = peer.next(Operand::InventoryPage).await;
    let page: Inventory = codec::decode(&page.payload.to_bytes()).unwrap();
    assert_eq!(page.entries.len(), 1);
    assert_eq!(page.entries[0].phase, Phase::Running);
    // A command reaches what was adopted as it reaches what was started.
    let mut bulk = cluster.bulk(&peer).await;
    let command = vec!["touch".into(), "go".into()];
    bulk.open(1, attempt(1), StreamRequest::Exec { command });
    bulk.end(1, Vec::new());
    let (_, end) = bulk.drain(1).await;
    assert!(
        matches!(end, StreamEnd::Complete { code: Some(0), .. }),
        "{end:?}"
    );
    let report = peer.report(attempt(1), Phase::Ended).await;
    assert_eq!(report.end.unwrap().cause, exited(5));
    launcher.leave(cluster.directory.path()).await;
}

#[tokio::test]
async fn logs_are_followed_to_the_end_and_outlive_it() {
    let cluster = Cluster::new().await;
    let (launcher, mut peer) = cluster.launcher().await;
    let script = "echo one; echo oops >&2; while [ ! -e go ]; do sleep 0.02; done; echo two";
    peer.start(
        attempt(1),
        &StartBody {
            await_inputs: 0,
            ..body(exec(script))
        },
    );
    peer.report(attempt(1), Phase::Running).await;
    let mut bulk = cluster.bulk(&peer).await;
    let all = LogsRequest {
        follow: true,
        stdout: true,
        stderr: true,
        ..LogsRequest::default()
    };
    bulk.open(1, attempt(1), StreamRequest::Logs(all.clone()));
    let first = bulk.next(Operand::StreamData).await;
    assert_eq!(&first.payload.to_bytes()[..], b"\x01one\n");
    // The file that ends it comes over a stream of its own.
    let go = StreamRequest::CopyIn {
        path: "go".into(),
        mode: 0o600,
        bytes: 2,
        input: false,
    };
    bulk.open(2, attempt(1), go);
    bulk.wait(|frame| frame.operand == Operand::StreamCredit && frame.correlation == 2)
        .await;
    bulk.data(2, Channel::File, b"go");
    bulk.end(2, sha2::Sha256::digest(b"go").to_vec());
    let (output, end) = bulk.drain(1).await;
    assert_eq!(
        (&output[1][..], &output[2][..]),
        (&b"two\n"[..], &b"oops\n"[..])
    );
    assert_eq!(
        end,
        StreamEnd::Complete {
            code: None,
            sha256: Vec::new()
        }
    );
    let report = peer.report(attempt(1), Phase::Ended).await;
    peer.ack(&report);
    // Acknowledged and forgotten, but the log stays.
    bulk.open(
        3,
        attempt(1),
        StreamRequest::Logs(LogsRequest {
            stderr: false,
            tail_bytes: Some(6),
            ..all
        }),
    );
    let (output, _) = bulk.drain(3).await;
    assert_eq!(
        (&output[1][..], &output[2][..]),
        (&b"e\ntwo\n"[..], &b""[..])
    );
    bulk.open(
        4,
        attempt(9),
        StreamRequest::List {
            pattern: "*".into(),
        },
    );
    let (_, end) = bulk.drain(4).await;
    assert!(
        matches!(
            end,
            StreamEnd::Failed {
                kind: StreamFailure::NotFound,
                ..
            }
        ),
        "{end:?}"
    );
    launcher.leave(cluster.directory.path()).await;
}

#[tokio::test]
async fn a_flood_of_output_never_stalls_statistics() {
    let cluster = Cluster::new().await;
    let (launcher, mut peer) = cluster.launcher().await;
    peer.start(attempt(1), &body(exec("exec cat /dev/zero")));
    peer.report(attempt(1), Phase::Running).await;
    // What it may write at once is written, and the log has been turned over more than once.
    let key = pronto_launcher::data_dir::key(&attempt(1));
    let directory = cluster.directory.path().join("instances").join(key);
    while !directory.join("log.000006").exists() {
        tokio::task::yield_now().await;
    }
    assert!(!directory.join("log.000000").exists());
    for _ in 0..3 {
        let stats = peer.next(Operand::Stats).await;
        let stats: Stats = codec::decode(&stats.payload.to_bytes()).unwrap();
        assert!(stats.load.memory_total_mib > 0);
    }
    // Another workload starts and ends beside it.
    peer.start(attempt(2), &body(exec("exit 4")));
    let report = peer.report(attempt(2), Phase::Ended).await;
    assert_eq!(report.end.unwrap().cause, exited(4));
    launcher.leave(cluster.directory.path()).await;
}

#[tokio::test]
async fn inputs_are_awaited_and_outputs_kept() {
    let cluster = Cluster::new().await;
    let (launcher, mut peer) = cluster.launcher().await;
    let inputs = StartBody {
        await_inputs: 1,
        keep_outputs_ms: 60_000,
        ..body(exec("mkdir out; tr a-z A-Z < in/data.txt > out/result.txt"))
    };
    peer.start(attempt(1), &inputs);
    let mut bulk = cluster.bulk(&peer).await;
    let text: Vec<u8> = (0..200_000)
        .flat_map(|n: u32| format!("line {n}\n").into_bytes())
        .collect();
    let file = StreamRequest::CopyIn {
        path: "in/data.txt".into(),
        mode: 0o644,
        bytes: text.len() as u64,
        input: true,
    };
    bulk.open(1, attempt(1), file);
    let mut granted = 0;
    for chunk in text.chunks(32 * 1024) {
        while granted < chunk.len() {
            let credit = bulk.next(Operand::StreamCredit).await.payload.to_bytes();
            let credit: pronto_payloads::stream::StreamCredit = codec::decode(&credit).unwrap();
            granted += credit.bytes as usize;
        }
        granted -= chunk.len();
        bulk.data(1, Channel::File, chunk);
    }
    bulk.end(1, sha2::Sha256::digest(&text).to_vec());
    let (_, end) = bulk.drain(1).await;
    assert!(matches!(end, StreamEnd::Complete { .. }), "{end:?}");
    let report = peer.report(attempt(1), Phase::Ended).await;
    assert_eq!(report.end.as_ref().unwrap().cause, exited(0));
    peer.ack(&report);
    bulk.open(
        2,
        attempt(1),
        StreamRequest::List {
            pattern: "out/*".into(),
        },
    );
    let (output, _) = bulk.drain(2).await;
    assert_eq!(output[1], b"out/result.txt\n");
    bulk.open(
        3,
        attempt(1),
        StreamRequest::CopyOut {
            path: "out/result.txt".into(),
        },
    );
    let (output, end) = bulk.drain(3).await;
    let upper = text.to_ascii_uppercase();
    assert_eq!(output[3].len(), upper.len());
    assert_eq!(
        end,
        StreamEnd::Complete {
            code: None,
            sha256: sha2::Sha256::digest(&upper).to_vec()
        }
    );
    launcher.leave(cluster.directory.path()).await;
}

#[tokio::test]
async fn a_command_runs_inside_over_a_stream() {
    let cluster = Cluster::new().await;
    let (launcher, mut peer) = cluster.launcher().await;
    peer.start(
        attempt(1),
        &StartBody {
            stdin: true,
            ..body(exec("cat; exit 2"))
        },
    );
    let mut bulk = cluster.bulk(&peer).await;
    let command = vec!["sh".into(), "-c".into(), "cat; echo err >&2; exit 9".into()];
    bulk.open(1, attempt(1), StreamRequest::Exec { command });
    bulk.wait(|frame| frame.operand == Operand::StreamCredit)
        .await;
    bulk.data(1, Channel::Stdin, b"typed\n");
    bulk.end(1, Vec::new());
    let (output, end) = bulk.drain(1).await;
    assert_eq!(
        (&output[1][..], &output[2][..]),
        (&b"typed\n"[..], &b"err\n"[..])
    );
    assert_eq!(
        end,
        StreamEnd::Complete {
            code: Some(9),
            sha256: Vec::new()
        }
    );
    bulk.open(2, attempt(1), StreamRequest::Stdin);
    bulk.wait(|frame| frame.operand == Operand::StreamCredit && frame.correlation == 2)
        .await;
    bulk.data(2, Channel::Stdin, b"fed\n");
    bulk.end(2, Vec::new());
    let report = peer.report(attempt(1), Phase::Ended).await;
    assert_eq!(report.end.unwrap().cause, exited(2));
    launcher.leave(cluster.directory.path()).await;
}

#[tokio::test]
async fn one_process_stands_for_several_nodes() {
    let cluster = Cluster::new().await;
    let mut config = config(&cluster.scheduler, &cluster.ca, cluster.directory.path());
    let certificates = Ca::path(&cluster.ca).join("nodes");
    std::fs::create_dir(&certificates).unwrap();
    for name in ["node-00001", "node-00002", "node-00003"] {
        let files = cluster.ca.issue("launcher", name);
        std::fs::rename(files.cert, certificates.join(format!("{name}.crt"))).unwrap();
        std::fs::rename(files.key, certificates.join(format!("{name}.key"))).unwrap();
    }
    config.simulate_certs_dir = Some(certificates);
    let shutdown = CancellationToken::new();
    let error = pronto_launcher::run_simulated(config.clone(), 4, shutdown.clone())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("certificates for 3 nodes; wanted: 4"),
        "{error}"
    );
    let nodes = tokio::spawn(pronto_launcher::run_simulated(config, 3, shutdown.clone()));
    for _ in 0..3 {
        let mut peer = cluster.scheduler.leased().await;
        assert!(peer.launcher().facts.hostname.starts_with("node-0000"));
        let task = Task::Sim(SimTask {
            run_ms: 20,
            exit_code: 3,
        });
        peer.start(
            attempt(1),
            &StartBody {
                task,
                ..body(exec(""))
            },
        );
        let report = peer.report(attempt(1), Phase::Ended).await;
        assert_eq!(report.end.unwrap().cause, exited(3));
    }
    shutdown.cancel();
    nodes.await.unwrap().unwrap();
}
