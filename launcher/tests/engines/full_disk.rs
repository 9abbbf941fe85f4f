//! A disk that is full while something is made ready: told in words, blamed on the node, nothing
//! left behind, and the node goes on once there is room.

use crate::docker::{Engine, launcher, shell};
use crate::node::{Launcher, Node, demand, exited, process};
use crate::qemu::{Guest, end};
use pronto_launcher::logs::{LogReader, LogWriter};
use pronto_launcher::runtime::Runtime;
use pronto_launcher::runtime::exec::{ExecRuntime, end_shim};
use pronto_payloads::instance::EndCause;
use pronto_payloads::start::{ExecTask, Task};
use pronto_payloads::stream::Channel;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system in memory over a directory, until it is dropped.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn over(path: &Path, options: &str) -> Self {
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(path);
        assert!(mount.status().expect("mount").success(), "needs root");
        Self(path.to_owned())
    }

    /// Fills it to the last byte. Removing the file makes room again.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).expect("room for a name");
        let full = loop {
            if let Err(error) = file.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // An engine that had it has taken it along.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if !mounts.contains(&format!(" {} ", self.0.display())) {
            return;
        }
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) && !std::thread::panicking() {
            panic!("{} is still mounted", self.0.display());
        }
    }
}

fn shouts(node: &Node, script: &str) -> std::sync::Arc<pronto_launcher::supervisor::Job> {
    let task = ExecTask {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..ExecTask::default()
    };
    node.job(Task::Exec(task), demand(32), |_| ())
}

#[test]
fn a_process_on_a_full_disk_is_rejected_or_loses_its_output_in_words() {
    let node = Node::new();
    let settings = node.processes();
    process(async {
        let mut launcher = Launcher::start(async |_, events| {
            ExecRuntime::open(settings, events).await.expect("a shim")
        })
        .await;
        launcher.runtime.adopt(Vec::new());
        // The root and the attempt's directory: there is no third.
        let disk = SmallDisk::over(&node.data_dir.instances(), "size=64k,nr_inodes=2");
        let job = shouts(&node, "true");
        let ended = prepare_and_start(&mut launcher, &job).await;
        assert_eq!(ended.end.cause, EndCause::Rejected, "{ended:?}");
        assert!(
            ended
                .end
                .message
                .contains("working directory can't be made"),
            "{ended:?}"
        );
        drop(disk);

        let disk = SmallDisk::over(&node.data_dir.instances(), "size=64k");
        let job = shouts(&node, "echo lost; exit 3");
        let filler = disk.fill();
        let ended = prepare_and_start(&mut launcher, &job).await;
        assert_eq!(ended.end.cause, exited(3), "it ran all the same: {ended:?}");
        assert!(
            ended.end.message.contains("its output can't be kept"),
            "{ended:?}"
        );
        std::fs::remove_file(filler).expect("it is there");
        let job = shouts(&node, "echo kept; exit 4");
        let ended = prepare_and_start(&mut launcher, &job).await;
        assert_eq!((ended.end.cause, &*ended.end.message), (exited(4), ""));
    });
    process(async { end_shim(&node.data_dir, 0).await.expect("the shim ends") });
}

/// As [`Launcher::run_to_end`], for a runtime that is ready at once and says nothing then.
async fn prepare_and_start(
    launcher: &mut Launcher<ExecRuntime>,
    job: &std::sync::Arc<pronto_launcher::supervisor::Job>,
) -> crate::node::Ended {
    if launcher.runtime.prepare(job) == pronto_launcher::runtime::Readiness::Now {
        launcher.runtime.start(job, None);
    }
    launcher.ended(job.id).await
}

/// As one that goes on while its disk is full by turns: a container's.
#[test]
fn a_log_can_be_read_behind_what_found_no_room() {
    let place = tempfile::tempdir().expect("a directory");
    let disk = SmallDisk::over(place.path(), "size=256k");
    let mut log = LogWriter::new(place.path().to_owned(), 1 << 20);
    let write = |log: &mut LogWriter, text: &str| log.append(Channel::Stdout, 0, text.as_bytes());
    let filler = disk.fill();
    write(&mut log, "before the first").expect_err("no room for a header");
    std::fs::remove_file(filler).expect("it is there");
    write(&mut log, "one ").expect("room");
    let filler = disk.fill();
    write(&mut log, &"half ".repeat(10_000)).expect_err("no room for all of it");
    std::fs::remove_file(filler).expect("it is there");
    write(&mut log, "two").expect("room");
    let mut reader = LogReader::open(place.path()).expect("a log");
    let (mut output, mut bytes) = (Vec::new(), Vec::new());
    while reader.next_chunk(&mut bytes).expect("a log").is_some() {
        output.extend_from_slice(&bytes);
    }
    assert_eq!(output, b"one two");
}

#[test]
fn a_guest_on_a_full_disk_is_rejected() {
    let (guest, node) = (Guest::with(&[]), Node::new());
    process(async {
        let mut launcher = guest.launcher(&node).await;
        launcher.runtime.adopt(Vec::new());
        // Less than a seed.
        let _disk = SmallDisk::over(&node.data_dir.instances(), "size=128k");
        let job = node.job(Task::Qemu(guest.task("true")), demand(160), |_| ());
        let ended = launcher.run_to_end(&job).await;
        assert_eq!(ended.end.cause, EndCause::Rejected, "{ended:?}");
        assert!(
            ended.end.message.contains("seed can't be made")
                && ended.end.message.contains("No space left"),
            "{ended:?}"
        );
        let left = std::fs::read_dir(node.data_dir.work(&job.id)).expect("its directory");
        assert_eq!(left.count(), 0, "neither seed nor overlay");
    });
    end(&node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_on_a_full_disk_is_rejected() {
    let (engine, disk) = Engine::on_a_small_disk("size=64m");
    let node = Node::new();
    let mut launcher = launcher(&engine, &node).await;
    let filler = disk.fill();
    let job = shell(&node, "true");
    let ended = launcher.run_to_end(&job).await;
    assert_eq!(ended.end.cause, EndCause::Rejected, "{ended:?}");
    assert!(
        ended.end.message.to_lowercase().contains("no space left"),
        "{ended:?}"
    );
    assert_eq!(engine.containers().await, Vec::<String>::new());
    std::fs::remove_file(filler).expect("it is there");
    let job = shell(&node, "exit 5");
    assert_eq!(launcher.run_to_end(&job).await.end.cause, exited(5));
}
