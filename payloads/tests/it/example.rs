//! `examples/careful_launcher.py`, a launcher written from PROTOCOL.md alone, against a scheduler's end of
//! a real session: what it says, and what it makes of what it is told.

use crate::samples::{OWNER, body};
use pronto_payloads::codec::{decode, encode, encode_into};
use pronto_payloads::control::{Ack, Delete, PullInventory, SetMode, Stop};
use pronto_payloads::demand::{Demand, Runtime};
use pronto_payloads::hello::{LauncherHello, Mode, SchedulerWelcome};
use pronto_payloads::ids::{
    Attempt, ControllerEpoch, InstanceId, Seq, SessionEpoch, Term, Version,
};
use pronto_payloads::instance::{End, EndCause, InstanceReport, Inventory, Phase};
use pronto_payloads::node::{Lease, Status};
use pronto_payloads::place::{AttemptId, StartPrefix, StartStamp};
use pronto_payloads::start::{DockerTask, ExecTask, OnDisconnect, StartBody, Task};
use pronto_protocol::transport::{Credentials, TlsFiles, Wire, accept, listen};
use pronto_protocol::{Frame, Operand, Purpose, SessionConfig, Welcome};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use std::collections::VecDeque;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What an answer may take on a busy machine before the test calls it missing.
const PATIENCE: Duration = Duration::from_secs(20);

const TERM: Term = Term(3);
const FREE_MEMORY_MIB: u32 = 1024;

/// Files that go away with the test, and a child that ends with it.
struct Fixture {
    folder: PathBuf,
    child: Option<Child>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ended_already = child.kill();
            let _reaped = child.wait();
        }
        let _gone_already = std::fs::remove_dir_all(&self.folder);
    }
}

fn issue(folder: &Path, ca: &CertifiedIssuer<'_, KeyPair>, role: &str, name: &str) -> TlsFiles {
    let mut params = CertificateParams::default();
    let uri = format!("spiffe://test/{role}/{name}");
    params
        .subject_alt_names
        .push(SanType::URI(uri.as_str().try_into().unwrap()));
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    let file = |suffix: &str| folder.join(format!("{name}.{suffix}"));
    std::fs::write(file("crt"), certificate.pem()).unwrap();
    std::fs::write(file("key"), key.serialize_pem()).unwrap();
    std::fs::set_permissions(file("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    TlsFiles {
        ca: folder.join("ca.crt"),
        cert: file("crt"),
        key: file("key"),
        crl: None,
    }
}

/// The scheduler's end.
struct Scheduler {
    wire: Wire,
    unread: VecDeque<Frame>,
    epoch: SessionEpoch,
    seq: Seq,
}

impl Scheduler {
    async fn send(&mut self, frame: Frame) {
        self.wire.queue(&frame).unwrap();
        self.wire.flush().await.unwrap();
    }

    /// The next frame of this operand that is accepted here. Others are passed over, but every
    /// status that asks is given its lease.
    async fn wait<T>(
        &mut self,
        operand: Operand,
        mut accepted: impl FnMut(&Frame) -> Option<T>,
    ) -> T {
        let waiting = async {
            loop {
                while let Some(frame) = self.unread.pop_front() {
                    if frame.operand == Operand::Ready && frame.wants_reply() {
                        let lease = Lease {
                            term: TERM,
                            lease_ms: 10_000,
                            owners: Vec::new(),
                        };
                        let answer =
                            Frame::answer(Operand::Lease, frame.correlation, encode(&lease));
                        self.send(answer).await;
                    }
                    if frame.operand == operand
                        && let Some(value) = accepted(&frame)
                    {
                        return value;
                    }
                }
                let mut frames = Vec::new();
                self.wire.read_frames(&mut frames).await.unwrap();
                self.unread.extend(frames);
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| panic!("no {operand} as expected within {PATIENCE:?}"))
    }

    async fn report(&mut self, id: AttemptId, phase: Phase) -> InstanceReport {
        self.wait(Operand::InstanceChanged, |frame| {
            let report: InstanceReport = decode(&frame.payload.to_bytes()).unwrap();
            (report.id == id && report.phase == phase).then_some(report)
        })
        .await
    }

    async fn end(&mut self, id: AttemptId) -> End {
        self.report(id, Phase::Ended)
            .await
            .end
            .expect("present in Ended")
    }

    async fn status(&mut self, accepted: impl Fn(&Status) -> bool) -> Status {
        self.wait(Operand::Ready, |frame| {
            let status: Status = decode(&frame.payload.to_bytes()).unwrap();
            accepted(&status).then_some(status)
        })
        .await
    }

    async fn start(&mut self, instance: u8, runtime: Runtime, body: &StartBody) -> AttemptId {
        self.seq = self.seq.next();
        let id = AttemptId {
            owner: OWNER,
            instance: InstanceId([instance; 16]),
            attempt: Attempt(1),
        };
        let stamp = StartStamp {
            session_epoch: self.epoch,
            seq: self.seq,
            term: TERM,
            gpus: Vec::new(),
        };
        let prefix = StartPrefix {
            id,
            controller_epoch: ControllerEpoch(1),
            body_schema: 1,
            runtime,
            demand: Demand {
                cpu_millis: 100,
                memory_mib: 64,
                ..Demand::default()
            },
            constraints: Vec::new(),
            prefer: Some("py-1".into()),
            avoid: vec!["other".into()],
        };
        let mut payload = encode(&stamp).to_vec();
        encode_into(&prefix, &mut payload);
        encode_into(body, &mut payload);
        self.send(Frame::new(Operand::Start, payload)).await;
        id
    }

    async fn inventory(&mut self) -> Inventory {
        let ask = Frame::request(
            Operand::Inventory,
            77,
            encode(&PullInventory { owner: OWNER }),
        );
        self.send(ask).await;
        self.wait(Operand::InventoryPage, |frame| {
            assert_eq!(frame.correlation, 77);
            assert!(frame.is_last());
            Some(decode(&frame.payload.to_bytes()).unwrap())
        })
        .await
    }

    async fn stop(&mut self, instance: InstanceId, correlation: u64) {
        let stop = Stop {
            owner: OWNER,
            instance,
            attempt: Attempt(1),
            grace_ms: Some(5000),
        };
        let frame = Frame::request(Operand::Stop, correlation, encode(&stop));
        self.command(frame).await;
    }

    /// Sends a command and waits until it is done.
    async fn command(&mut self, frame: Frame) {
        let correlation = frame.correlation;
        self.send(frame).await;
        self.wait(Operand::Done, |frame| {
            (frame.correlation == correlation).then_some(())
        })
        .await;
    }
}

fn plain(command: &[&str]) -> StartBody {
    let command = command
        .iter()
        .map(|argument| (*argument).to_owned())
        .collect();
    StartBody {
        timeout_ms: None,
        on_disconnect: OnDisconnect::Keep,
        ..body(Task::Exec(ExecTask {
            command,
            ..ExecTask::default()
        }))
    }
}

async fn joined() -> (Fixture, Scheduler) {
    let folder = std::env::temp_dir().join(format!("pronto-example-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut fixture = Fixture {
        folder: folder.clone(),
        child: None,
    };
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "test CA");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.join("ca.crt"), ca.pem()).unwrap();
    let ours = Credentials::load(&issue(&folder, &ca, "scheduler", "s-1")).unwrap();
    let theirs = issue(&folder, &ca, "launcher", "py-1");

    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let child = Command::new("python3")
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../examples/careful_launcher.py"
        ))
        .args(["--address", &address])
        .arg("--cert")
        .arg(&theirs.cert)
        .arg("--key")
        .arg(&theirs.key)
        .arg("--ca")
        .arg(&theirs.ca)
        .stdout(Stdio::null())
        .spawn()
        .expect("python3 is one of the tools that the tests need");
    fixture.child = Some(child);

    let (stream, _) = tokio::time::timeout(PATIENCE, listener.accept())
        .await
        .unwrap()
        .unwrap();
    let mut wire = accept(stream, &ours, SessionConfig::default())
        .await
        .unwrap();
    let hello = wire.read_hello(PATIENCE).await.unwrap();
    assert_eq!(hello.purpose, Purpose::Control);
    let said: LauncherHello = decode(&hello.body).unwrap();
    assert_eq!(said.facts.hostname, "py-1");
    assert_eq!(said.facts.allocatable.memory_mib, FREE_MEMORY_MIB);
    assert_eq!(said.facts.runtimes, [Runtime::Exec]);
    assert_eq!((said.mode, said.owners.len()), (Mode::Ready, 0));
    let welcome = encode(&SchedulerWelcome {
        stats_interval_ms: 1000,
        lease_ms: 10_000,
        start_window: 1,
        owner_epoch: ControllerEpoch(0),
        nodes: 1,
    });
    wire.welcome(Welcome::new(1, TERM.0, true, welcome))
        .unwrap();
    wire.flush().await.unwrap();
    let epoch = SessionEpoch(hello.session_epoch);
    (
        fixture,
        Scheduler {
            wire,
            unread: VecDeque::new(),
            epoch,
            seq: Seq(0),
        },
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_example_launcher_does_a_launchers_duties() {
    let (mut fixture, mut scheduler) = joined().await;
    let ready = scheduler.status(|_| true).await;
    assert_eq!(
        (ready.session_epoch, ready.applied_seq),
        (scheduler.epoch, Seq(0))
    );
    assert_eq!(ready.free.memory_mib, FREE_MEMORY_MIB);

    // It runs, says so, and its exit code comes back; the ledger is debited meanwhile.
    let script = "test $PRONTO_NODE = py-1 && test $PRONTO_ATTEMPT = 1 && exit 7";
    let exits = scheduler
        .start(1, Runtime::Exec, &plain(&["sh", "-c", script]))
        .await;
    let running = scheduler.report(exits, Phase::Running).await;
    assert!(running.started_after_ns.is_some());
    scheduler
        .status(|status| status.applied_seq == Seq(1))
        .await;
    let ended = scheduler.report(exits, Phase::Ended).await;
    assert_eq!(ended.end.unwrap().cause, EndCause::Exited { code: 7 });
    assert!(ended.version > running.version);
    assert!(ended.ended_after_ns >= ended.started_after_ns);

    // A STOP ends what runs, and forbids what has not come yet.
    let sleeps = scheduler
        .start(2, Runtime::Exec, &plain(&["sleep", "600"]))
        .await;
    scheduler.report(sleeps, Phase::Running).await;
    let debited = scheduler
        .status(|status| status.applied_seq == Seq(2))
        .await;
    assert_eq!(debited.free.memory_mib, FREE_MEMORY_MIB - 64);
    scheduler.stop(sleeps.instance, 5).await;
    assert_eq!(scheduler.end(sleeps).await.cause, EndCause::Stopped);
    scheduler.stop(InstanceId([3; 16]), 6).await;
    let overtaken = scheduler.start(3, Runtime::Exec, &plain(&["true"])).await;
    assert_eq!(scheduler.end(overtaken).await.cause, EndCause::Stopped);

    // What it can't do it says.
    let missing = scheduler
        .start(4, Runtime::Exec, &plain(&["/no/such/program"]))
        .await;
    let cause = scheduler.end(missing).await.cause;
    assert_eq!(cause, EndCause::CannotExecute { code: 127 });
    let image = DockerTask {
        image: "busybox".into(),
        ..DockerTask::default()
    };
    let docker = scheduler
        .start(5, Runtime::Docker, &body(Task::Docker(image)))
        .await;
    assert_eq!(scheduler.end(docker).await.cause, EndCause::Rejected);

    // All of them are kept, and said again, until they are acknowledged.
    let all = [exits, sleeps, overtaken, missing, docker];
    let kept = scheduler.inventory().await;
    assert_eq!(
        (kept.session_epoch, kept.applied_seq),
        (scheduler.epoch, Seq(5))
    );
    assert_eq!(
        kept.entries
            .iter()
            .map(|entry| entry.id)
            .collect::<Vec<_>>(),
        all
    );
    assert_eq!(
        scheduler.report(exits, Phase::Ended).await.version,
        ended.version
    );
    for id in all {
        let ack = Ack {
            id,
            version: Version(u64::MAX),
        };
        scheduler.send(Frame::new(Operand::Ack, encode(&ack))).await;
    }
    assert_eq!(scheduler.inventory().await.entries, []);
    let ready = scheduler.status(|_| true).await;
    assert_eq!(ready.free.memory_mib, FREE_MEMORY_MIB);

    // A deleted instance is stopped and forgotten; maintenance is said instead of READY.
    let deleted = scheduler
        .start(6, Runtime::Exec, &plain(&["sleep", "600"]))
        .await;
    scheduler.report(deleted, Phase::Running).await;
    for correlation in [7, 8] {
        let delete = Delete {
            owner: OWNER,
            instance: deleted.instance,
        };
        let frame = Frame::request(Operand::Delete, correlation, encode(&delete));
        scheduler.command(frame).await;
        if correlation == 7 {
            assert_eq!(scheduler.end(deleted).await.cause, EndCause::Stopped);
        }
    }
    assert_eq!(scheduler.inventory().await.entries, []);
    let mode = SetMode {
        mode: Mode::Maintenance,
    };
    let frame = Frame::request(Operand::SetMode, 10, encode(&mode));
    scheduler.command(frame).await;
    scheduler.wait(Operand::Maintenance, |_| Some(())).await;

    scheduler
        .send(Frame::request(Operand::Ping, 9, b"hi".to_vec()))
        .await;
    let pong = scheduler
        .wait(Operand::Pong, |frame| Some(frame.clone()))
        .await;
    assert_eq!(
        (pong.correlation, &pong.payload.to_bytes()[..]),
        (9, &b"hi"[..])
    );

    // It ends with its session.
    drop(scheduler);
    let child = fixture.child.as_mut().unwrap();
    let ended = tokio::task::block_in_place(|| child.wait().unwrap());
    assert!(!ended.success());
}
