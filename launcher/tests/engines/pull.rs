//! Images that come from a registry: one that the test plays, with a real image.

use crate::docker::{Engine, container, launcher};
use crate::node::{Node, demand, exited, fixture, until};
use pronto_launcher::runtime::Runtime;
use pronto_launcher::supervisor::StopCause;
use pronto_payloads::instance::EndCause;
use pronto_payloads::start::{DockerTask, Task};
use pronto_payloads::stream::Channel;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// A layer comes in parts of this size, and slowly, while the test wants to see it come.
const PART_BYTES: usize = 16 * 1024;
const PART_INTERVAL: Duration = Duration::from_millis(40);

/// A registry with one image, whose layer comes slowly until it is let go.
struct Registry {
    address: String,
    let_go: Arc<AtomicBool>,
}

fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hash}")
}

/// A tree with a shell and nothing else, as a tar archive.
fn layer() -> Vec<u8> {
    let busybox = fixture("engine.sh", &["busybox"]);
    let tree = tempfile::tempdir().expect("a directory");
    let bin = tree.path().join("bin");
    std::fs::create_dir(&bin).expect("a directory");
    std::fs::copy(busybox.trim(), bin.join("busybox")).expect("busybox");
    std::os::unix::fs::symlink("busybox", bin.join("sh")).expect("a link");
    let archive = Command::new("tar")
        .args(["-c", "--owner=0", "--group=0", "-C"])
        .arg(tree.path())
        .arg("bin")
        .output();
    archive.expect("tar").stdout
}

impl Registry {
    fn start() -> Self {
        let layer = layer();
        let config = format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{\"Cmd\":[\"/bin/sh\"]}},\
             \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{}\"]}}}}",
            digest(&layer)
        );
        let part = |kind: &str, bytes: &[u8]| {
            let (size, digest) = (bytes.len(), digest(bytes));
            format!("{{\"mediaType\":\"{kind}\",\"size\":{size},\"digest\":\"{digest}\"}}")
        };
        let manifest = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST}\",\"config\":{},\"layers\":[{}]}}",
            part(
                "application/vnd.docker.container.image.v1+json",
                config.as_bytes()
            ),
            part("application/vnd.docker.image.rootfs.diff.tar", &layer),
        );
        let manifest = manifest.into_bytes();
        let mut content: HashMap<String, (Vec<u8>, &'static str)> = HashMap::new();
        for name in ["latest".to_owned(), digest(&manifest)] {
            content.insert(
                format!("/v2/tool/manifests/{name}"),
                (manifest.clone(), MANIFEST),
            );
        }
        for bytes in [config.into_bytes(), layer] {
            let path = format!("/v2/tool/blobs/{}", digest(&bytes));
            content.insert(path, (bytes, "application/octet-stream"));
        }
        content.insert("/v2/".to_owned(), (b"{}".to_vec(), "application/json"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let let_go = Arc::new(AtomicBool::new(false));
        let (content, gate) = (Arc::new(content), let_go.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (content, gate) = (content.clone(), gate.clone());
                std::thread::spawn(move || answer(stream, &content, &gate));
            }
        });
        Self { address, let_go }
    }

    fn image(&self) -> String {
        format!("{}/tool:latest", self.address)
    }
}

/// Answers one request. A client that goes away ends it.
fn answer(
    stream: TcpStream,
    content: &HashMap<String, (Vec<u8>, &str)>,
    let_go: &AtomicBool,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    // The engine tries TLS first, which is no text.
    stream.read_line(&mut request).ok()?;
    let mut header = String::from("x");
    while !header.trim().is_empty() {
        header.clear();
        stream.read_line(&mut header).ok()?;
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let mut stream = stream.into_inner();
    let Some((bytes, kind)) = content.get(path) else {
        return write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        )
        .ok();
    };
    let (length, digest) = (bytes.len(), digest(bytes));
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Docker-Content-Digest: {digest}\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\
         Connection: close\r\n\r\n"
    )
    .ok()?;
    if method == "HEAD" {
        return Some(());
    }
    for part in bytes.chunks(PART_BYTES) {
        stream.write_all(part).ok()?;
        if !let_go.load(Ordering::Relaxed) {
            std::thread::sleep(PART_INTERVAL);
        }
    }
    Some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_pulled_with_its_progress_told() {
    let (engine, node) = (Engine::start(&[]), Node::new());
    let registry = Registry::start();
    let mut launcher = launcher(&engine, &node).await;
    let run = || {
        let task = DockerTask {
            image: registry.image(),
            ..container(&["/bin/sh", "-c", "echo pulled; exit 6"])
        };
        node.job(Task::Docker(task), demand(32), |_| ())
    };
    // One that is stopped in the middle leaves nothing, and the engine goes on.
    let (given_up, pulled) = (run(), run());
    let told = |job: &Arc<pronto_launcher::supervisor::Job>, words: &str| {
        node.output(job, Channel::Stderr).contains(words)
    };
    let first = format!("pronto: pulling {}\n", registry.image());
    launcher.runtime.prepare(&given_up);
    until(|| told(&given_up, &first), "the pull").await;
    launcher.runtime.stop(given_up.id, StopCause::Asked, 0);
    let ended = launcher.ended(given_up.id).await;
    assert_eq!((ended.started, ended.end.cause), (false, EndCause::Stopped));

    launcher.runtime.prepare(&pulled);
    let progress = format!("pronto: pulling {}: ", registry.image());
    until(|| told(&pulled, &progress), "progress").await;
    assert!(told(&pulled, " MiB\n"));
    registry.let_go.store(true, Ordering::Relaxed);
    launcher
        .event("Prepared", |event| {
            matches!(event, pronto_launcher::supervisor::Event::Prepared(id) if *id == pulled.id)
                .then_some(())
        })
        .await;
    launcher.runtime.start(&pulled, None);
    assert_eq!(launcher.ended(pulled.id).await.end.cause, exited(6));
    assert_eq!(node.output(&pulled, Channel::Stdout), "pulled\n");
    assert_eq!(engine.containers().await, Vec::<String>::new());
}
