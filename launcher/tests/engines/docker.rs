//! Containers on an engine that stays up.

use crate::full_disk::SmallDisk;
use crate::node::{Launcher, Node, clean_up, demand, exited, fixture, fixture_in, process, until};
use pronto_launcher::runtime::docker::{DockerRuntime, DockerSettings, end_containers};
use pronto_launcher::runtime::{ExecSession, Runtime};
use pronto_launcher::supervisor::{Job, StopCause};
use pronto_payloads::demand::Runtime as Kind;
use pronto_payloads::instance::EndCause;
use pronto_payloads::start::{DockerTask, EnvVar, Mount, Task};
use pronto_payloads::stream::Channel;
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A private engine; ended, with all that it made, when it is dropped.
pub(crate) struct Engine {
    directory: TempDir,
    options: Vec<String>,
    /// Of its own, or the machine's.
    namespace: Option<String>,
}

impl Engine {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::make(None, options)
    }

    /// Starts it in a network namespace.
    pub(crate) fn start_in(namespace: &str, options: &[&str]) -> Self {
        Self::make(Some(namespace.to_owned()), options)
    }

    /// Starts it with all that it keeps on a small file system in memory.
    pub(crate) fn on_a_small_disk(options: &str) -> (Self, SmallDisk) {
        let engine = Self::unstarted(None, &[]);
        let data = std::path::Path::new(&engine.path()).join("data");
        std::fs::create_dir_all(&data).expect("a directory");
        let disk = SmallDisk::over(&data, options);
        engine.up_with_image();
        (engine, disk)
    }

    fn make(namespace: Option<String>, options: &[&str]) -> Self {
        let engine = Self::unstarted(namespace, options);
        engine.up_with_image();
        engine
    }

    fn unstarted(namespace: Option<String>, options: &[&str]) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("pronto-e")
            .tempdir()
            .expect("a directory");
        Self {
            directory,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            namespace,
        }
    }

    fn up_with_image(&self) {
        self.up();
        fixture("engine.sh", &["image", &self.path(), "busybox:latest"]);
    }

    /// Starts it, again if it was ended.
    pub(crate) fn up(&self) {
        let path = self.path();
        let mut arguments = vec!["start", &path];
        arguments.extend(self.options.iter().map(String::as_str));
        fixture_in(self.namespace.as_deref(), "engine.sh", &arguments);
    }

    pub(crate) fn kill(&self) {
        fixture("engine.sh", &["kill", &self.path()]);
    }

    fn path(&self) -> String {
        self.directory
            .path()
            .join("e")
            .to_string_lossy()
            .into_owned()
    }

    fn socket(&self) -> String {
        format!("unix://{}/docker.sock", self.path())
    }

    /// Names of the containers that the engine knows.
    pub(crate) async fn containers(&self) -> Vec<String> {
        let client =
            bollard::Docker::connect_with_unix(&self.socket(), 60, bollard::API_DEFAULT_VERSION);
        let client = client
            .expect("a socket")
            .negotiate_version()
            .await
            .expect("an engine");
        let all = bollard::query_parameters::ListContainersOptionsBuilder::new()
            .all(true)
            .build();
        let list = client.list_containers(Some(all)).await.expect("a list");
        list.into_iter()
            .filter_map(|one| one.names?.first().cloned())
            .collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        clean_up("engine.sh", &["stop", &self.path()]);
    }
}

pub(crate) async fn launcher(engine: &Engine, node: &Node) -> Launcher<DockerRuntime> {
    let settings = DockerSettings {
        host: Some(engine.socket()),
        data_dir: node.data_dir.clone(),
        node_uuid: node.uuid,
        node: node.variables(),
        gpu_requests: false,
        log_cap_bytes: 16 << 20,
    };
    let mut launcher =
        Launcher::start(async |offers, events| DockerRuntime::new(settings, offers, events)).await;
    launcher.offered(Kind::Docker, true).await;
    launcher
}

pub(crate) fn container(command: &[&str]) -> DockerTask {
    DockerTask {
        image: "busybox".into(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..DockerTask::default()
    }
}

pub(crate) fn shell(node: &Node, script: &str) -> Arc<Job> {
    node.job(
        Task::Docker(container(&["sh", "-c", script])),
        demand(64),
        |_| (),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_runs_with_what_it_was_promised() {
    let (engine, node) = (Engine::start(&[]), Node::new());
    let mut launcher = launcher(&engine, &node).await;
    launcher.runtime.adopt(Vec::new());
    let mounted = node.path("mounted");
    std::fs::create_dir(&mounted).unwrap();
    std::fs::write(mounted.join("file"), "from the node\n").unwrap();
    let script = "echo out; echo oops >&2; env | sort; pwd; id -u; cat /data/file; \
        touch /data/new || echo read-only; \
        cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; \
        exit 3";
    let task = DockerTask {
        workdir: Some("/tmp".into()),
        user: Some("nobody".into()),
        mounts: vec![Mount {
            source: mounted.to_string_lossy().into_owned(),
            target: "/data".into(),
            read_only: true,
        }],
        ..container(&["sh", "-c", script])
    };
    let job = node.job(Task::Docker(task), demand(48), |body| {
        body.env = vec![EnvVar {
            name: "COLOUR".into(),
            value: "green = blue".into(),
        }];
    });
    let ended = launcher.run_to_end(&job).await;
    assert_eq!(ended.end.cause, exited(3));
    assert_eq!(
        node.output(&job, Channel::Stderr).lines().next(),
        Some("oops")
    );
    let output = node.output(&job, Channel::Stdout);
    for line in [
        "out",
        "COLOUR=green = blue",
        &format!("PRONTO_INSTANCE={}", job.id.instance),
        "PRONTO_NODE=here",
        "PRONTO_TENANT=tests",
        "/tmp",
        "65534",
        "from the node",
        "read-only",
        &(48 << 20).to_string(),
    ] {
        assert!(
            output.lines().any(|found| found == line),
            "no {line:?} in {output}"
        );
    }
    assert_eq!(
        engine.containers().await,
        Vec::<String>::new(),
        "nothing is left"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_are_gentle_first_and_certain_at_last() {
    let (engine, node) = (Engine::start(&[]), Node::new());
    let mut launcher = launcher(&engine, &node).await;
    let polite = shell(
        &node,
        "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done",
    );
    let deaf = shell(
        &node,
        "trap '' TERM; echo ready; while :; do sleep 0.05; done",
    );
    for job in [&polite, &deaf] {
        launcher.run(job).await;
        node.says(job, "ready").await;
    }
    let asked = Instant::now();
    launcher.runtime.stop(polite.id, StopCause::Asked, 60_000);
    let ended = launcher.ended(polite.id).await;
    assert_eq!(ended.end.cause, EndCause::Stopped);
    assert!(
        asked.elapsed().as_secs() < 30,
        "it did not wait for its grace"
    );
    assert!(node.output(&polite, Channel::Stdout).contains("bye"));

    launcher.runtime.stop(deaf.id, StopCause::TimedOut, 60_000);
    launcher.runtime.stop(deaf.id, StopCause::Asked, 300);
    let ended = launcher.ended(deaf.id).await;
    assert_eq!(ended.end.cause, EndCause::TimedOut, "the first cause stays");

    // Before its start, and twice.
    let unborn = shell(&node, "echo never");
    launcher.prepare(&unborn).await;
    launcher.runtime.stop(unborn.id, StopCause::Asked, 0);
    let ended = launcher.ended(unborn.id).await;
    assert!(!ended.started);
    assert_eq!(ended.end.cause, EndCause::Stopped);
    assert_eq!(engine.containers().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_measured_and_commands_run_inside() {
    let (engine, node) = (Engine::start(&[]), Node::new());
    let mut launcher = launcher(&engine, &node).await;
    let job = shell(&node, "echo ready; while :; do sleep 0.05; done");
    launcher.run(&job).await;
    node.says(&job, "ready").await;

    let usages = launcher.runtime.usages().await;
    assert_eq!(usages.len(), 1);
    assert_eq!(usages[0].id, job.id);
    assert!(
        usages[0].usage.memory_mib > 0 && usages[0].usage.pids > 0,
        "{usages:?}"
    );

    let command = ["sh", "-c", "cat; echo complaint >&2; exit 9"]
        .map(str::to_owned)
        .to_vec();
    let session = launcher
        .runtime
        .exec(job.id, command)
        .await
        .expect("a session");
    let ExecSession {
        stdin,
        mut stdout,
        mut stderr,
        exit,
    } = session;
    let mut stdin = stdin.expect("an input");
    stdin.write_all(b"through and back").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    let (out_read, err_read, code) = tokio::join!(
        stdout.read_to_string(&mut out),
        stderr.read_to_string(&mut err),
        exit
    );
    out_read.unwrap();
    err_read.unwrap();
    assert_eq!(
        (out.as_str(), err.as_str(), code),
        ("through and back", "complaint\n", Ok(9))
    );

    // A command that nobody waits for ends.
    let command = ["sh", "-c", "echo $$ > /tmp/held; exec sleep 1000"]
        .map(str::to_owned)
        .to_vec();
    let session = launcher
        .runtime
        .exec(job.id, command)
        .await
        .expect("a session");
    let held = async |launcher: &Launcher<DockerRuntime>| {
        let command = ["sh", "-c", "kill -0 $(cat /tmp/held) 2>/dev/null"]
            .map(str::to_owned)
            .to_vec();
        let session = launcher
            .runtime
            .exec(job.id, command)
            .await
            .expect("a session");
        session.exit.await == Ok(0)
    };
    while !held(&launcher).await {}
    drop(session);
    while held(&launcher).await {}

    // Nor does one go on as if its input were complete that broke off.
    // (A shell's background job reads nothing, unless it is told what.)
    let script = "exec 3<&0; sort <&3 > /tmp/sorted & echo $! > /tmp/held; wait; echo > /tmp/end";
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let mut session = launcher
        .runtime
        .exec(job.id, command)
        .await
        .expect("a session");
    let mut stdin = session.stdin.take().expect("an input");
    stdin.write_all(b"part\n").await.unwrap();
    stdin.flush().await.unwrap();
    while !held(&launcher).await {}
    drop(stdin);
    drop(session);
    while held(&launcher).await {}
    let command = ["sh", "-c", "[ ! -s /tmp/sorted ] && [ ! -e /tmp/end ]"];
    let command = command.map(str::to_owned).to_vec();
    let session = launcher.runtime.exec(job.id, command).await;
    assert_eq!(session.expect("a session").exit.await, Ok(0));

    launcher.runtime.stop(job.id, StopCause::Asked, 0);
    let ended = launcher.ended(job.id).await;
    assert!(
        ended.usage.memory_peak_mib > 0,
        "measured before: {:?}",
        ended.usage
    );
    let gone = launcher.runtime.exec(job.id, vec!["true".to_owned()]).await;
    assert!(gone.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_and_input_reach_a_container() {
    let (engine, node) = (Engine::start(&[]), Node::new());
    let mut launcher = launcher(&engine, &node).await;
    let task = Task::Docker(container(&["sh", "-c", "cat given; tr a-z A-Z > made"]));
    let job = node.job(task, demand(32), |body| {
        body.stdin = true;
        body.keep_outputs_ms = 60_000;
    });
    launcher.prepare(&job).await;
    let files = launcher.runtime.files(&job).expect("it wants files");
    std::fs::write(files.path.join("given"), "a file\n").unwrap();
    launcher.runtime.start(&job, None);
    launcher.started(job.id).await;
    let mut stdin = launcher.runtime.stdin(job.id).await.expect("an input");
    stdin.write_all(b"shout").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    assert_eq!(launcher.ended(job.id).await.end.cause, exited(0));
    assert_eq!(node.output(&job, Channel::Stdout), "a file\n");
    assert_eq!(
        std::fs::read_to_string(files.path.join("made")).unwrap(),
        "SHOUT"
    );
    let plain = shell(&node, "true");
    assert_eq!(
        launcher.runtime.files(&plain),
        None,
        "others keep their image's directory"
    );
}

#[test]
fn a_restarted_launcher_adopts_by_name() {
    let (engine, node) = (Engine::start(&[]), Node::new());
    let count = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; sleep 0.05; done; exit 4";
    let (runs, ends, waits) = (
        shell(&node, count),
        shell(&node, "exit 6"),
        shell(&node, "true"),
    );
    let lost = shell(&node, "sleep 1000");
    process(async {
        let mut launcher = launcher(&engine, &node).await;
        launcher.run(&runs).await;
        launcher.run(&lost).await;
        launcher.prepare(&waits).await;
        launcher.run(&ends).await;
        node.says(&runs, "line 5\n").await;
    });
    process(async {
        let name = format!("pronto-{}-1", lost.id.instance);
        let client = bollard::Docker::connect_with_host(&engine.socket()).unwrap();
        let client = client.negotiate_version().await.unwrap();
        let force = bollard::query_parameters::RemoveContainerOptionsBuilder::new()
            .force(true)
            .build();
        client.remove_container(&name, Some(force)).await.unwrap();

        let mut second = launcher(&engine, &node).await;
        second
            .runtime
            .adopt([&runs, &ends, &waits, &lost].map(Arc::clone).to_vec());
        let found = async |launcher: &mut Launcher<DockerRuntime>, job: &Job| {
            let id = job.id;
            launcher
                .event("Adopted", |event| match event {
                    pronto_launcher::supervisor::Event::Adopted { id: of, found } if *of == id => {
                        Some(found.clone())
                    }
                    _ => None,
                })
                .await
        };
        use pronto_launcher::supervisor::Found;
        assert!(matches!(
            found(&mut second, &runs).await,
            Found::Running { .. }
        ));
        assert!(matches!(
            found(&mut second, &waits).await,
            Found::NeverStarted
        ));
        assert!(matches!(found(&mut second, &lost).await, Found::Lost(_)));
        let Found::Ended {
            end, started_at, ..
        } = found(&mut second, &ends).await
        else {
            panic!("it had ended");
        };
        assert_eq!(end.cause, exited(6));
        assert!(started_at.is_some());
        assert_eq!(second.ended(runs.id).await.end.cause, exited(4));
        let whole: String = (1..=40).map(|line| format!("line {line}\n")).collect();
        assert_eq!(
            node.output(&runs, Channel::Stdout),
            whole,
            "every line, and each once"
        );
        // What never started may be started now.
        assert_eq!(second.run_to_end(&waits).await.end.cause, exited(0));
        until(
            || !second.has_ended(lost.id),
            "an adopted attempt is told once",
        )
        .await;
        assert_eq!(engine.containers().await, Vec::<String>::new());
    });
}

#[test]
fn containers_are_found_and_ended_without_a_launcher() {
    let (engine, node) = (Engine::start(&[]), Node::new());
    process(async {
        end_containers(&node.data_dir, 0)
            .await
            .expect("nothing to do")
    });
    let jobs = [
        shell(&node, "sleep 1000"),
        shell(&node, "trap '' TERM; sleep 1000"),
    ];
    process(async {
        let mut launcher = launcher(&engine, &node).await;
        for job in &jobs {
            launcher.run(job).await;
        }
    });
    process(async {
        assert_eq!(engine.containers().await.len(), 2);
        end_containers(&node.data_dir, 0)
            .await
            .expect("the engine answers");
        assert_eq!(engine.containers().await, Vec::<String>::new());
    });
}
