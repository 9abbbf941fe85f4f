//! What users and the world do to containers.

use crate::docker::{Engine, container, launcher, shell};
use crate::node::{Node, demand, exited};
use pronto_launcher::runtime::Runtime;
use pronto_payloads::demand::Runtime as Kind;
use pronto_payloads::instance::EndCause;
use pronto_payloads::start::{DockerTask, Port, Task};
use pronto_payloads::stream::Channel;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Command;

/// A registry that has no image at all. It answers until the test ends.
fn empty_registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut request = String::new();
            if stream.read_line(&mut request).is_err() {
                // The engine tries TLS first.
                continue;
            }
            let mut header = String::from("x");
            while !header.trim().is_empty() {
                header.clear();
                stream.read_line(&mut header).unwrap();
            }
            let (status, body) = if request.contains("/v2/ ") {
                ("200 OK", "{}".to_owned())
            } else {
                let error = r#"{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}"#;
                ("404 Not Found", format!("{{\"errors\": [{error}]}}"))
            };
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
                 Docker-Distribution-Api-Version: registry/2.0\r\nConnection: close\r\n\r\n{body}"
            );
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_are_told_in_words_and_leave_nothing() {
    let (engine, node) = (Engine::start(&[]), Node::new());
    let mut launcher = launcher(&engine, &node).await;
    let registry = empty_registry();
    let of_image = |image: String| {
        let task = DockerTask {
            image,
            ..container(&["true"])
        };
        node.job(Task::Docker(task), demand(32), |_| ())
    };
    let run = |command: &[&str]| node.job(Task::Docker(container(command)), demand(32), |_| ());
    let nobody = DockerTask {
        user: Some("nobody-here".into()),
        ..container(&["true"])
    };
    let nobody = node.job(Task::Docker(nobody), demand(32), |_| ());
    let cannot = |code| EndCause::CannotExecute { code };
    let cases = [
        (
            of_image(format!("{registry}/nothing:1")),
            cannot(127),
            "nothing:1",
        ),
        (
            of_image("127.0.0.1:1/gone".into()),
            EndCause::Rejected,
            "127.0.0.1:1/gone",
        ),
        (of_image("Not An Image".into()), cannot(127), "Not An Image"),
        (run(&["no-such-command"]), cannot(127), "no-such-command"),
        (run(&["/etc/passwd"]), cannot(126), "permission denied"),
        (nobody, cannot(126), "nobody-here"),
    ];
    for (job, cause, words) in cases {
        let ended = launcher.run_to_end(&job).await;
        assert!(!ended.started, "{words}: {ended:?}");
        assert_eq!(ended.end.cause, cause, "{words}: {ended:?}");
        assert!(ended.end.message.contains(words), "{words}: {ended:?}");
    }
    assert_eq!(engine.containers().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greed_ends_in_its_own_container() {
    let (engine, node) = (Engine::start(&[]), Node::new());
    let mut launcher = launcher(&engine, &node).await;
    let hungry = node.job(
        // tail keeps its last line, and there is but one.
        Task::Docker(container(&["sh", "-c", "exec tail -c 300000000 /dev/zero"])),
        demand(32),
        |_| (),
    );
    let ended = launcher.run_to_end(&hungry).await;
    assert_eq!(
        ended.end.cause,
        EndCause::OutOfMemory {
            limit_mib: 32,
            peak_mib: 32
        }
    );

    let bomb = "bomb() { bomb | bomb & }; bomb; sleep 0.5; echo survived";
    let bomb = DockerTask {
        pids_limit: Some(20),
        ..container(&["sh", "-c", bomb])
    };
    let bomb = node.job(Task::Docker(bomb), demand(32), |_| ());
    launcher.run(&bomb).await;
    let ended = launcher.ended(bomb.id).await;
    assert!(
        node.output(&bomb, Channel::Stderr).contains("can't fork"),
        "{ended:?}"
    );

    let flood = shell(&node, "yes 0123456789 | head -c 8000000; exit 2");
    let ended = launcher.run_to_end(&flood).await;
    assert_eq!(ended.end.cause, exited(2));
    assert_eq!(
        node.output(&flood, Channel::Stdout).len(),
        8_000_000,
        "all of it, in order"
    );
    assert_eq!(engine.containers().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_goes_away_and_comes_back_ends_nothing() {
    let (engine, node) = (Engine::start(&["--live-restore"]), Node::new());
    let mut launcher = launcher(&engine, &node).await;
    let until_told = "echo before; until [ -e /tmp/go ]; do echo tick; sleep 0.1; done; exit 8";
    let job = shell(&node, until_told);
    launcher.run(&job).await;
    node.says(&job, "before").await;

    engine.kill();
    launcher.offered(Kind::Docker, false).await;
    let late = shell(&node, "echo late");
    launcher.runtime.prepare(&late);
    assert!(launcher.runtime.usages().await.is_empty());
    assert!(
        !launcher.has_ended(job.id),
        "an absent engine says nothing about containers"
    );

    engine.up();
    launcher.offered(Kind::Docker, true).await;
    let touch = ["touch", "/tmp/go"].map(str::to_owned).to_vec();
    let session = launcher
        .runtime
        .exec(job.id, touch)
        .await
        .expect("it runs on");
    assert_eq!(session.exit.await, Ok(0));
    assert_eq!(launcher.ended(job.id).await.end.cause, exited(8));
    let output = node.output(&job, Channel::Stdout);
    assert_eq!(
        output.matches("before").count(),
        1,
        "the copy went on where it was: {output}"
    );

    // What arrived meanwhile goes on as well.
    launcher
        .event("Prepared", |event| {
            matches!(event, pronto_launcher::supervisor::Event::Prepared(id) if *id == late.id)
                .then_some(())
        })
        .await;
    launcher.runtime.start(&late, None);
    assert_eq!(launcher.ended(late.id).await.end.cause, exited(0));
    assert_eq!(engine.containers().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_takes_its_containers_along_tells_so_when_it_is_back() {
    let (engine, node) = (Engine::start(&[]), Node::new());
    let mut launcher = launcher(&engine, &node).await;
    let job = shell(&node, "echo before; sleep 1000");
    launcher.run(&job).await;
    node.says(&job, "before").await;
    engine.kill();
    launcher.offered(Kind::Docker, false).await;
    assert!(!launcher.has_ended(job.id));
    engine.up();
    let ended = launcher.ended(job.id).await;
    assert_eq!(
        ended.end.cause,
        exited(137),
        "as the engine says: {ended:?}"
    );
    assert_eq!(engine.containers().await, Vec::<String>::new());
}

/// A network namespace, so that an engine's bridge meets nobody else's.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let name = format!("pronto-{}", std::process::id());
        let this = Self(name);
        this.ip(&["netns", "add", &this.0]);
        this.ip(&["-n", &this.0, "link", "set", "lo", "up"]);
        this
    }

    fn ip(&self, words: &[&str]) {
        assert!(
            Command::new("ip")
                .args(words)
                .status()
                .expect("ip")
                .success(),
            "{words:?}"
        );
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Not through `ip`, which panics: this may run while a test fails.
        let deleted = Command::new("ip")
            .args(["netns", "delete", &self.0])
            .status();
        if !deleted.is_ok_and(|status| status.success()) && !std::thread::panicking() {
            panic!("the network namespace {} is left", self.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_published_once() {
    let namespace = Namespace::new();
    let (engine, node) = (
        Engine::start_in(&namespace.path(), &["--bip=10.99.0.1/24"]),
        Node::new(),
    );
    let mut launcher = launcher(&engine, &node).await;
    let serve = "echo served > /tmp/index.html; httpd -f -p 80 -h /tmp";
    let with_port = |host| {
        let ports = vec![Port {
            host,
            guest: 80,
            udp: false,
        }];
        let task = DockerTask {
            ports,
            ..container(&["sh", "-c", serve])
        };
        node.job(Task::Docker(task), demand(32), |_| ())
    };
    let (named, any, taken) = (with_port(8080), with_port(0), with_port(8080));
    launcher.run(&named).await;
    launcher.run(&any).await;
    let get = |port: &str| {
        let fetch = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
        );
        let net = format!("--net={}", namespace.path());
        let output = Command::new("nsenter")
            .args([&net, "bash", "-c", &fetch])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    crate::node::until(
        || get("8080").contains("served"),
        "an answer at the named port",
    )
    .await;
    // It is told when the engine has been asked for it, which is after the start.
    let words = "port 80/tcp is the node's port";
    let tells = || node.output(&any, Channel::Stderr).contains(words);
    crate::node::until(tells, words).await;
    let told = node.output(&any, Channel::Stderr);
    let chosen = told
        .trim()
        .rsplit(' ')
        .next()
        .unwrap_or_default()
        .to_owned();
    crate::node::until(
        || get(&chosen).contains("served"),
        "an answer at the chosen port",
    )
    .await;

    let ended = launcher.run_to_end(&taken).await;
    assert_eq!(ended.end.cause, EndCause::Rejected, "{ended:?}");
    assert!(
        ended
            .end
            .message
            .starts_with("a port that it publishes is taken"),
        "{ended:?}"
    );
    for job in [&named, &any] {
        launcher
            .runtime
            .stop(job.id, pronto_launcher::supervisor::StopCause::Asked, 0);
        launcher.ended(job.id).await;
    }
    assert_eq!(engine.containers().await, Vec::<String>::new());
}
