//! What surrounds a guest, with scripts in the places of the emulator and its tool.

use crate::node::demand;
use pronto_launcher::data_dir::DataDir;
use pronto_launcher::moment::Moment;
use pronto_launcher::runtime::exec::{ExecSettings, NodeVariables, end_shim, user};
use pronto_launcher::runtime::qemu::probe::Emulator;
use pronto_launcher::runtime::qemu::{QemuRuntime, QemuSettings, shim_dir};
use pronto_launcher::runtime::{Events, Runtime};
use pronto_launcher::supervisor::record::JOB_FORMAT;
use pronto_launcher::supervisor::{Event, Job};
use pronto_payloads::ids::{Attempt, BootId, ControllerEpoch, InstanceId, OwnerId};
use pronto_payloads::place::AttemptId;
use pronto_payloads::start::{QemuTask, StartBody, Task};
use std::fs::{self, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

fn script(path: PathBuf, text: &str) -> PathBuf {
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

fn guest(image: &Path) -> Arc<Job> {
    let task = QemuTask {
        image: Some(image.display().to_string()),
        ..QemuTask::default()
    };
    Arc::new(Job {
        format: JOB_FORMAT,
        id: AttemptId {
            owner: OwnerId([9; 16]),
            instance: InstanceId([1; 16]),
            attempt: Attempt(1),
        },
        controller_epoch: ControllerEpoch(1),
        demand: demand(),
        gpus: Vec::new(),
        received_at: Moment::now(),
        boot_id: BootId::default(),
        body: StartBody::new("physics", Task::Qemu(task)),
    })
}

#[tokio::test]
async fn an_emulator_owns_its_disk_where_processes_have_users_of_their_own() {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), Permissions::from_mode(0o711)).unwrap();
    let data_dir = DataDir::new(place.path().join("data"));
    fs::create_dir_all(data_dir.instances()).unwrap();
    let (made_by, seen) = (place.path().join("made"), place.path().join("seen"));
    fs::write(&seen, "").unwrap();
    fs::set_permissions(&seen, Permissions::from_mode(0o666)).unwrap();
    let tool = format!(
        "case $1 in info) echo '{{\"format\":\"raw\",\"virtual-size\":1}}';; \
         *) : > \"${{10}}\"; stat -c %u \"$(dirname \"${{10}}\")\" > {};; esac",
        made_by.display()
    );
    let emulator = format!(
        "exec > {}; id -u; stat -c %u . disk.qcow2 seed.img; echo >> disk.qcow2 && echo written",
        seen.display()
    );
    let settings = QemuSettings {
        emulator: Some(Emulator {
            program: script(place.path().join("emulator"), &emulator),
            kvm: false,
            sandbox: false,
        }),
        image_tool: script(place.path().join("tool"), &tool),
        process: ExecSettings {
            data_dir: data_dir.clone(),
            shim_command: vec![env!("CARGO_BIN_EXE_pronto-launcher-shim").into()],
            hierarchy: None,
            user: Some(user("nobody").unwrap()),
            own_users: true,
            node: NodeVariables::default(),
            log_cap_bytes: 1 << 20,
        },
    };
    let (events, mut inbox) = Events::channel();
    let runtime = QemuRuntime::open(settings, events).await.unwrap();
    runtime.adopt(Vec::new());
    let job = guest(&place.path().join("tool"));
    let passable = |path: &Path| fs::DirBuilder::new().mode(0o711).create(path);
    passable(&data_dir.attempt(&job.id)).unwrap();
    runtime.prepare(&job);
    let running = async {
        while let Some(event) = inbox.recv().await {
            match event {
                Event::Prepared(_) => runtime.start(&job, None),
                Event::Failed { end, .. } => return Err(end),
                Event::Emptied(_) => break,
                _ => {}
            }
        }
        Ok(())
    };
    let ran = tokio::time::timeout(Duration::from_secs(60), running).await;
    drop(runtime);
    end_shim(&shim_dir(&data_dir), 0).await.unwrap();
    ran.expect("it ends").expect("it starts");
    let nobody = user("nobody").unwrap().uid;
    let owned = format!("{nobody}\n").repeat(4) + "written\n";
    assert_eq!(fs::read_to_string(&seen).unwrap(), owned);
    let root = fs::read_to_string(&made_by).unwrap();
    assert_eq!(root, "0\n", "nobody else could lay a link in the way");
}
