//! Virtual machines: Debian's kernel with a busybox initramfs, emulated.

use crate::node::{Launcher, Node, demand, exited, fixture, process, until};
use pronto_launcher::moment::Moment;
use pronto_launcher::runtime::Runtime;
use pronto_launcher::runtime::exec::end_shim;
use pronto_launcher::runtime::qemu::probe::{Emulator, probe};
use pronto_launcher::runtime::qemu::{QemuRuntime, QemuSettings, shim_dir};
use pronto_launcher::supervisor::{Event, Found, Job, StopCause};
use pronto_payloads::instance::EndCause;
use pronto_payloads::place::AttemptId;
use pronto_payloads::start::{Port, QemuTask, Task};
use pronto_payloads::stream::Channel;
use std::collections::HashMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Memory of a test guest: what the kernel, the initramfs and a shell need.
const GUEST_MIB: u32 = 160;

/// What the fixture made: kernel, initrd, qemu, `qemu_img`.
pub(crate) struct Guest(HashMap<String, String>);

impl Guest {
    fn new() -> Self {
        Self::with(&[])
    }

    /// A guest with files of this machine, each as `FILE:PATH`.
    pub(crate) fn with(files: &[&str]) -> Self {
        let arguments: Vec<&str> = files.iter().flat_map(|file| ["--with", file]).collect();
        let made = fixture("guest.sh", &arguments);
        Self(
            made.lines()
                .filter_map(|line| line.split_once('='))
                .map(|(name, path)| (name.to_owned(), path.to_owned()))
                .collect(),
        )
    }

    fn path(&self, name: &str) -> String {
        self.0[name].clone()
    }

    /// A guest that runs this script and ends with its code.
    pub(crate) fn task(&self, script: &str) -> QemuTask {
        QemuTask {
            kernel: Some(self.path("kernel")),
            initrd: Some(self.path("initrd")),
            append: "quiet panic=-1".into(),
            user_data: Some(format!("#!/bin/sh\n{script}\n")),
            ..QemuTask::default()
        }
    }

    fn job(&self, node: &Node, script: &str) -> Arc<Job> {
        node.job(Task::Qemu(self.task(script)), demand(GUEST_MIB), |_| ())
    }

    /// Emulated, without asking what else works here: one test does.
    pub(crate) async fn launcher(&self, node: &Node) -> Launcher<QemuRuntime> {
        let program = PathBuf::from(self.path("qemu"));
        let settings = QemuSettings {
            emulator: Some(Emulator {
                program,
                kvm: false,
                sandbox: true,
            }),
            image_tool: self.path("qemu_img").into(),
            process: node.processes(),
        };
        Launcher::start(async |_, events| {
            QemuRuntime::open(settings, events).await.expect("a shim")
        })
        .await
    }
}

/// Ends the shim, which would wait a minute for another launcher.
pub(crate) fn end(node: &Node) {
    let shim = shim_dir(&node.data_dir);
    process(async { end_shim(&shim, 0).await.expect("the shim ends") });
}

/// What is left of an attempt but its log and its end.
fn remains(node: &Node, id: AttemptId) -> Vec<String> {
    let names = |path: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(path).into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    names(&node.data_dir.work(&id))
}

async fn found(launcher: &mut Launcher<QemuRuntime>, id: AttemptId) -> Found {
    launcher
        .event("Adopted", |event| match event {
            Event::Adopted { id: of, found } if *of == id => Some(found.clone()),
            _ => None,
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_finds_what_really_boots() {
    let (guest, node) = (Guest::new(), Node::new());
    let program = PathBuf::from(guest.path("qemu"));
    let emulator = probe(&program, &node.path("scratch"))
        .await
        .expect("guests run here");
    assert_eq!(emulator.program, program);
    assert!(["kvm", "tcg"].contains(&emulator.acceleration()));
    let missing = probe(Path::new("no-such-emulator"), &node.path("scratch"))
        .await
        .unwrap_err();
    assert!(missing.contains("no-such-emulator"), "{missing}");
    let other = probe(Path::new("/bin/true"), &node.path("scratch"))
        .await
        .unwrap_err();
    assert!(!other.is_empty());
}

#[test]
fn a_guest_reads_its_seed_and_says_its_exit_code() {
    let (guest, node) = (Guest::new(), Node::new());
    process(async {
        let mut launcher = guest.launcher(&node).await;
        launcher.runtime.adopt(Vec::new());
        let mut task = guest.task("nproc; free -m; exit 7");
        task.meta_data = Some("instance-id: the-first\n".into());
        let job = node.job(Task::Qemu(task), demand(GUEST_MIB), |_| ());
        launcher.run(&job).await;
        node.says(&job, "guest ready").await;
        let usages = launcher.runtime.usages().await;
        assert!(
            usages
                .iter()
                .any(|one| one.id == job.id && one.usage.memory_mib > 0),
            "{usages:?}"
        );
        let ended = launcher.ended(job.id).await;
        assert_eq!(ended.end.cause, exited(7), "{ended:?}");
        let console = node.output(&job, Channel::Stdout);
        assert!(
            console.contains("cidata: meta-data") && console.contains("instance-id: the-first")
        );
        assert_eq!(remains(&node, job.id), Vec::<String>::new());

        // Powered off by itself, without a word.
        let quiet = guest.job(&node, "poweroff -f");
        assert_eq!(launcher.run_to_end(&quiet).await.end.cause, exited(0));
        let panics = guest.job(&node, "echo c > /proc/sysrq-trigger");
        let ended = launcher.run_to_end(&panics).await;
        assert_eq!(ended.end.cause, exited(1), "{ended:?}");
    });
    end(&node);
}

#[test]
fn mistakes_are_told_before_anything_runs() {
    let (guest, node) = (Guest::new(), Node::new());
    process(async {
        let mut launcher = guest.launcher(&node).await;
        launcher.runtime.adopt(Vec::new());
        let text = node.path("text");
        std::fs::write(&text, "not a kernel, by far\n").unwrap();
        let text = text.to_string_lossy().into_owned();
        let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let host = taken.local_addr().unwrap().port();
        let change = |change: &dyn Fn(&mut QemuTask)| {
            let mut task = guest.task("true");
            change(&mut task);
            node.job(Task::Qemu(task), demand(GUEST_MIB), |_| ())
        };
        let cannot = |code| EndCause::CannotExecute { code };
        let missing = change(&|task| task.kernel = Some("/no/such/kernel".into()));
        let relative = change(&|task| task.initrd = Some("initrd".into()));
        let no_kernel = change(&|task| task.kernel = Some(text.clone()));
        let no_image = change(&|task| task.image = Some("/no/such/image".into()));
        let port = change(&|task| {
            task.ports = vec![Port {
                host,
                guest: 80,
                udp: false,
            }]
        });
        let cases = [
            (missing, cannot(127), "/no/such/kernel"),
            (relative, cannot(126), "initrd"),
            (no_image, cannot(127), "/no/such/image"),
            (no_kernel, cannot(126), "kernel"),
            (port, EndCause::Rejected, &*format!("tcp port {host}")),
        ];
        for (job, cause, words) in cases {
            let ended = launcher.run_to_end(&job).await;
            assert_eq!(ended.end.cause, cause, "{words}: {ended:?}");
            assert!(ended.end.message.contains(words), "{words}: {ended:?}");
            assert_eq!(remains(&node, job.id), Vec::<String>::new());
        }
    });
    end(&node);
}

#[test]
fn the_power_button_comes_before_force() {
    let (guest, node) = (Guest::new(), Node::new());
    process(async {
        let mut launcher = guest.launcher(&node).await;
        launcher.runtime.adopt(Vec::new());
        let polite = guest.job(&node, "echo waiting; sleep 1000");
        let deaf = guest.job(&node, "killall acpid; echo waiting; sleep 1000");
        for job in [&polite, &deaf] {
            launcher.run(job).await;
        }
        for job in [&polite, &deaf] {
            node.says(job, "waiting").await;
        }
        launcher.runtime.stop(polite.id, StopCause::Asked, 100_000);
        let ended = launcher.ended(polite.id).await;
        assert_eq!(ended.end.cause, EndCause::Stopped, "{ended:?}");
        assert!(
            node.output(&polite, Channel::Stdout)
                .contains("power button")
        );
        launcher.runtime.stop(deaf.id, StopCause::TimedOut, 700);
        let ended = launcher.ended(deaf.id).await;
        assert_eq!(ended.end.cause, EndCause::TimedOut, "{ended:?}");
        for job in [&polite, &deaf] {
            assert_eq!(remains(&node, job.id), Vec::<String>::new());
        }
    });
    end(&node);
}

#[test]
fn a_restarted_launcher_adopts_over_shim_and_monitor() {
    let (guest, node) = (Guest::new(), Node::new());
    let runs = guest.job(&node, "echo here; until [ -e /go ]; do sleep 1; done");
    let ends = guest.job(&node, "echo here; exit 5");
    process(async {
        let mut launcher = guest.launcher(&node).await;
        launcher.runtime.adopt(Vec::new());
        launcher.run(&runs).await;
        launcher.run(&ends).await;
        node.says(&runs, "here").await;
    });
    process(async {
        // Nobody but its shim sees this end.
        let exit = node.data_dir.attempt(&ends.id).join("exit.json");
        until(|| exit.exists(), "an exit file").await;

        let mut second = guest.launcher(&node).await;
        second.runtime.adopt(vec![runs.clone(), ends.clone()]);
        assert!(matches!(
            found(&mut second, runs.id).await,
            Found::Running { .. }
        ));
        let Found::Ended { end: was, .. } = found(&mut second, ends.id).await else {
            panic!("it had ended");
        };
        assert_eq!(was.cause, exited(5), "the console was read: {was:?}");
        assert_eq!(remains(&node, ends.id), Vec::<String>::new());
        second.runtime.stop(runs.id, StopCause::Asked, 100_000);
        let ended = second.ended(runs.id).await;
        assert_eq!(ended.end.cause, EndCause::Stopped);
        let console = node.output(&runs, Channel::Stdout);
        assert!(
            console.contains("power button"),
            "its monitor was adopted as well: {console}"
        );
        assert_eq!(remains(&node, runs.id), Vec::<String>::new());
    });
    end(&node);
}

#[test]
fn a_guest_writes_an_overlay_and_serves_a_port() {
    let (guest, node) = (Guest::new(), Node::new());
    process(async {
        let mut launcher = guest.launcher(&node).await;
        launcher.runtime.adopt(Vec::new());
        // A comma is what separates an option's parts.
        let base = node.path("base,image.qcow2");
        let tool = guest.path("qemu_img");
        let made = Command::new(&tool)
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&base)
            .arg("8M")
            .status();
        assert!(made.expect("qemu-img").success());
        let before = std::fs::read(&base).unwrap();
        let script = "blockdev --getsize64 /dev/vda; echo marked | dd of=/dev/vda bs=512 conv=sync; sync; \
        head -c 6 /dev/vda; nc -l -p 80 -e echo served; sleep 1";
        let task = QemuTask {
            image: Some(base.to_string_lossy().into_owned()),
            ports: vec![Port {
                host: 0,
                guest: 80,
                udp: false,
            }],
            ..guest.task(script)
        };
        let mut demand = demand(GUEST_MIB);
        demand.disk_mib = 12;
        let job = node.job(Task::Qemu(task), demand, |_| ());
        launcher.run(&job).await;
        node.says(&job, "marked").await;
        assert!(remains(&node, job.id).contains(&"disk.qcow2".to_owned()));
        let told = node.output(&job, Channel::Stderr);
        let line = told
            .lines()
            .find(|line| line.contains("port 80/tcp is the node's port"));
        let port: u16 = line
            .and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .expect("a port");
        let mut answer = String::new();
        let fetch = async {
            // The forward is there from the beginning; the guest's listener comes a moment later.
            while !answer.contains("served") {
                use tokio::io::AsyncReadExt;
                if let Ok(mut stream) =
                    tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await
                {
                    let _ = stream.read_to_string(&mut answer).await;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), fetch)
            .await
            .expect("an answer");
        assert_eq!(launcher.ended(job.id).await.end.cause, exited(0));
        let console = node.output(&job, Channel::Stdout);
        assert!(
            console.contains(&(12 << 20).to_string()),
            "as large as it was promised: {console}"
        );
        assert!(
            std::fs::read(&base).unwrap() == before,
            "the image is as it was"
        );
        assert_eq!(remains(&node, job.id), Vec::<String>::new());
    });
    end(&node);
}

#[test]
fn overdue_guests_end_without_a_launcher() {
    let (guest, node) = (Guest::new(), Node::new());
    let job = node.job(
        Task::Qemu(guest.task("sleep 1000")),
        demand(GUEST_MIB),
        |body| {
            body.on_disconnect = pronto_payloads::start::OnDisconnect::StopAfter { ms: 0 };
        },
    );
    process(async {
        let mut launcher = guest.launcher(&node).await;
        launcher.runtime.adopt(Vec::new());
        assert!(launcher.runtime.fences());
        launcher.prepare(&job).await;
        launcher
            .runtime
            .start(&job, Some(Moment::now().after_ms(1500)));
        launcher.started(job.id).await;
    });
    process(async {
        let exit = node.data_dir.attempt(&job.id).join("exit.json");
        until(|| exit.exists(), "an exit file").await;
        let mut second = guest.launcher(&node).await;
        second.runtime.adopt(vec![job.clone()]);
        let Found::Ended { end: was, .. } = found(&mut second, job.id).await else {
            panic!("it had ended");
        };
        assert_eq!(was.cause, EndCause::LeaseExpired);
        assert_eq!(remains(&node, job.id), Vec::<String>::new());
    });
    end(&node);
}
