//! What the runtimes add to a bare process, the bare engine and the bare emulator.
//!
//! ```sh
//! export PRONTO_FIXTURES=$PWD/target/fixtures
//! tests/fixtures/engine.sh start /tmp/engine && tests/fixtures/engine.sh image /tmp/engine busybox
//! tests/fixtures/guest.sh | sed 's/^/export GUEST_/' >/tmp/guest && . /tmp/guest
//! cargo run --release -p pronto-launcher --example engine_floor -- \
//!     /tmp/engine/docker.sock target/release/pronto-launcher-shim
//! tests/fixtures/engine.sh stop /tmp/engine
//! ```
//!
//! Bare and through the runtime alternate, so that both meet the same noise; medians are printed.

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use pronto_launcher::cgroup::Hierarchy;
use pronto_launcher::data_dir::DataDir;
use pronto_launcher::moment::Moment;
use pronto_launcher::runtime::docker::{DockerRuntime, DockerSettings};
use pronto_launcher::runtime::exec::{ExecRuntime, ExecSettings, NodeVariables, end_shim};
use pronto_launcher::runtime::qemu::probe::Emulator;
use pronto_launcher::runtime::qemu::{QemuRuntime, QemuSettings};
use pronto_launcher::runtime::{Events, Offers, Readiness, Runtime};
use pronto_launcher::supervisor::record::JOB_FORMAT;
use pronto_launcher::supervisor::{Event, Job};
use pronto_payloads::demand::Demand;
use pronto_payloads::ids::{Attempt, BootId, ControllerEpoch, InstanceId, NodeUuid, OwnerId};
use pronto_payloads::place::AttemptId;
use pronto_payloads::start::{DockerTask, ExecTask, OnDisconnect, QemuTask, StartBody, Task};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;

const PROCESSES: usize = 200;
const CONTAINERS: usize = 15;
const GUESTS: usize = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, shim] = &arguments[..] else {
        anyhow::bail!("usage: engine_floor DOCKER-SOCKET SHIM-PROGRAM");
    };
    let directory = tempfile::tempdir()?;
    let data_dir = DataDir::new(directory.path().to_owned());
    std::fs::create_dir_all(data_dir.instances())?;
    processes(shim, &data_dir).await?;
    containers(socket, &data_dir).await?;
    guests(shim, &data_dir).await
}

fn settings(shim: &str, data_dir: &DataDir, group: &str) -> ExecSettings {
    ExecSettings {
        data_dir: data_dir.clone(),
        shim_command: vec![shim.to_owned()],
        hierarchy: Hierarchy::detect(group).ok(),
        user: None,
        own_users: false,
        node: NodeVariables::default(),
        log_cap_bytes: 1 << 20,
    }
}

async fn processes(shim: &str, data_dir: &DataDir) -> anyhow::Result<()> {
    let (events, mut inbox) = Events::channel();
    let settings = settings(shim, data_dir, "pronto-process-floor");
    let runtime = ExecRuntime::open(settings, events).await?;
    runtime.adopt(Vec::new());
    let mut bare = Times::default();
    let mut ours = Times::default();
    for number in 0..PROCESSES {
        let began = Instant::now();
        let mut child = std::process::Command::new("/bin/true")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let started = began.elapsed();
        child.wait()?;
        bare.add([Duration::ZERO, started, began.elapsed()]);
        let task = ExecTask {
            command: vec!["/bin/true".into()],
            ..ExecTask::default()
        };
        let number = 1000 + number;
        ours.add(attempt(&runtime, &mut inbox, data_dir, Task::Exec(task), number).await?);
    }
    println!("process, bare:          {}", bare.words());
    println!("process, runtime:       {}", ours.words());
    drop(runtime);
    end_shim(data_dir, 0).await
}

async fn containers(socket: &str, data_dir: &DataDir) -> anyhow::Result<()> {
    let settings = DockerSettings {
        host: Some(socket.to_owned()),
        data_dir: data_dir.clone(),
        node_uuid: NodeUuid::default(),
        node: NodeVariables::default(),
        gpu_requests: false,
        log_cap_bytes: 1 << 20,
    };
    let (events, mut inbox) = Events::channel();
    let runtime = DockerRuntime::new(settings, Offers::new(Vec::new(), events.clone()), events);
    runtime.adopt(Vec::new());
    let client = Docker::connect_with_unix(socket, 60, bollard::API_DEFAULT_VERSION)?;
    let client = client.negotiate_version().await?;
    let mut bare = Times::default();
    let mut ours = Times::default();
    for number in 0..CONTAINERS {
        bare.add(bare_container(&client, number).await?);
        let task = DockerTask {
            image: "busybox".into(),
            command: vec!["true".into()],
            ..DockerTask::default()
        };
        ours.add(attempt(&runtime, &mut inbox, data_dir, Task::Docker(task), number).await?);
    }
    println!("container, bare engine: {}", bare.words());
    println!("container, runtime:     {}", ours.words());
    Ok(())
}

/// Create, start, end and removal with the bare client.
async fn bare_container(client: &Docker, number: usize) -> anyhow::Result<[Duration; 3]> {
    let name = format!("bare-{number}");
    let began = Instant::now();
    client.inspect_image("busybox").await?;
    let body = ContainerCreateBody {
        image: Some("busybox".into()),
        cmd: Some(vec!["true".into()]),
        host_config: Some(HostConfig {
            memory: Some(64 << 20),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let options = CreateContainerOptionsBuilder::new().name(&name).build();
    client.create_container(Some(options), body).await?;
    let created = began.elapsed();
    client.start_container(&name, None).await?;
    let started = began.elapsed() - created;
    let options = WaitContainerOptionsBuilder::new()
        .condition("not-running")
        .build();
    let _ = client.wait_container(&name, Some(options)).next().await;
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    client.remove_container(&name, Some(options)).await?;
    Ok([created, started, began.elapsed()])
}

async fn guests(shim: &str, data_dir: &DataDir) -> anyhow::Result<()> {
    let path = |name: &str| std::env::var(format!("GUEST_{name}"));
    let (kernel, initrd, qemu) = (path("kernel")?, path("initrd")?, path("qemu")?);
    let process = settings(shim, data_dir, "pronto-engine-floor");
    let emulator = Some(Emulator {
        program: qemu.clone().into(),
        kvm: false,
        sandbox: true,
    });
    let settings = QemuSettings {
        emulator,
        image_tool: path("qemu_img")?.into(),
        process,
    };
    let (events, mut inbox) = Events::channel();
    let runtime = QemuRuntime::open(settings, events).await?;
    runtime.adopt(Vec::new());
    let mut bare = Times::default();
    let mut ours = Times::default();
    for number in 0..GUESTS {
        let task = QemuTask {
            kernel: Some(kernel.clone()),
            initrd: Some(initrd.clone()),
            append: "quiet panic=-1 console=ttyS0 no_timer_check".into(),
            user_data: Some("#!/bin/sh\nexit 0\n".into()),
            ..QemuTask::default()
        };
        ours.add(
            attempt(
                &runtime,
                &mut inbox,
                data_dir,
                Task::Qemu(task.clone()),
                100 + number,
            )
            .await?,
        );
        // The same machine with the seed of a guest that is over, made again.
        bare.add(bare_guest(&qemu, &task, data_dir).await?);
    }
    println!("guest, bare emulator:   {}", bare.words());
    println!("guest, runtime:         {}", ours.words());
    pronto_launcher::end_workloads(data_dir.path(), 0).await?;
    Ok(())
}

async fn bare_guest(
    qemu: &str,
    task: &QemuTask,
    data_dir: &DataDir,
) -> anyhow::Result<[Duration; 3]> {
    let seed = data_dir.path().join("bare-seed.img");
    if !seed.exists() {
        let mut volume = std::io::Cursor::new(vec![0; 512 * 1024]);
        let options = fatfs::FormatVolumeOptions::new().volume_label(*b"cidata     ");
        fatfs::format_volume(&mut volume, options)?;
        {
            let volume = fatfs::FileSystem::new(&mut volume, fatfs::FsOptions::new())?;
            let mut file = volume.root_dir().create_file("user-data")?;
            std::io::Write::write_all(&mut file, b"#!/bin/sh\nexit 0\n")?;
        }
        std::fs::write(&seed, volume.into_inner())?;
    }
    let began = Instant::now();
    let status = tokio::process::Command::new(qemu)
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args([
            "-accel",
            "tcg,tb-size=64",
            "-cpu",
            "max,la57=off",
            "-m",
            "160",
            "-smp",
            "1",
        ])
        .args([
            "-chardev",
            "stdio,id=console,signal=off",
            "-serial",
            "chardev:console",
        ])
        .args(["-object", "rng-random,id=entropy,filename=/dev/urandom"])
        .args([
            "-device",
            "virtio-rng-pci,rng=entropy",
            "-netdev",
            "user,id=net",
        ])
        .args(["-device", "virtio-net-pci,netdev=net,romfile="])
        .arg("-drive")
        .arg(format!(
            "file={},if=none,id=seed,format=raw,readonly=on",
            seed.display()
        ))
        .args(["-device", "virtio-blk-pci,drive=seed"])
        .args(["-kernel", task.kernel.as_deref().unwrap_or_default()])
        .args(["-initrd", task.initrd.as_deref().unwrap_or_default()])
        .args(["-append", &task.append])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .await?;
    anyhow::ensure!(status.success(), "the bare guest failed");
    Ok([Duration::ZERO, Duration::ZERO, began.elapsed()])
}

/// Prepares, starts and waits for one attempt.
async fn attempt(
    runtime: &dyn Runtime,
    inbox: &mut UnboundedReceiver<Event>,
    data_dir: &DataDir,
    task: Task,
    number: usize,
) -> anyhow::Result<[Duration; 3]> {
    let job = Arc::new(job(task, number));
    std::fs::create_dir(data_dir.attempt(&job.id))?;
    let began = Instant::now();
    let mut times = [Duration::ZERO; 3];
    if runtime.prepare(&job) == Readiness::Now {
        times[0] = began.elapsed();
        runtime.start(&job, None);
    }
    while let Some(event) = inbox.recv().await {
        match event {
            Event::Prepared(_) => {
                times[0] = began.elapsed();
                runtime.start(&job, None);
            }
            Event::Started { .. } => times[1] = began.elapsed() - times[0],
            Event::Failed { end, .. } => anyhow::bail!("{end:?}"),
            Event::Emptied(_) => {
                times[2] = began.elapsed();
                return Ok(times);
            }
            _ => {}
        }
    }
    anyhow::bail!("the runtime has ended")
}

fn job(task: Task, number: usize) -> Job {
    let mut instance = [0; 16];
    instance[..8].copy_from_slice(&number.to_le_bytes());
    Job {
        format: JOB_FORMAT,
        id: AttemptId {
            owner: OwnerId::default(),
            instance: InstanceId(instance),
            attempt: Attempt(1),
        },
        controller_epoch: ControllerEpoch(1),
        demand: Demand {
            cpu_millis: 1000,
            memory_mib: 160,
            ..Demand::default()
        },
        gpus: Vec::new(),
        received_at: Moment::now(),
        boot_id: BootId::default(),
        body: StartBody {
            tenant: "bench".into(),
            name: String::new(),
            workload: String::new(),
            task,
            env: Vec::new(),
            timeout_ms: None,
            stop_grace_ms: 0,
            on_disconnect: OnDisconnect::Keep,
            privileged: false,
            log_cap_bytes: None,
            hard_cpu: false,
            await_inputs: 0,
            stdin: false,
            keep_outputs_ms: 0,
        },
    }
}

/// Durations until prepared, from there until started, and of the whole.
#[derive(Default)]
struct Times([Vec<Duration>; 3]);

impl Times {
    fn add(&mut self, times: [Duration; 3]) {
        for (all, one) in self.0.iter_mut().zip(times) {
            all.push(one);
        }
    }

    fn words(&mut self) -> String {
        let median = |times: &mut Vec<Duration>| {
            times.sort_unstable();
            format!("{:.1} ms", times[times.len() / 2].as_secs_f64() * 1e3)
        };
        let [prepared, started, whole] = &mut self.0;
        format!(
            "ready {}, start {}, from nothing to nothing left {}",
            median(prepared),
            median(started),
            median(whole)
        )
    }
}
