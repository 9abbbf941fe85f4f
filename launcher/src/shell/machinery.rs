//! What this node runs workloads with: control groups found, runtimes opened, accelerators probed.

use crate::cgroup::Hierarchy;
use crate::config::LauncherConfig;
use crate::data_dir::DataDir;
use crate::node::{Gpus, boot_id};
use crate::runtime::docker::{DockerRuntime, DockerSettings};
use crate::runtime::exec::{ExecRuntime, ExecSettings, NodeVariables, user};
use crate::runtime::qemu::probe::{Emulator, find, probe};
use crate::runtime::qemu::{QemuRuntime, QemuSettings};
use crate::runtime::sim::SimRuntime;
use crate::runtime::{Events, Kind, Offers, Runtimes};
use pronto_payloads::ids::{BootId, NodeUuid};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Whom emulators run as that nobody has configured another for.
const EMULATORS_USER: &str = "nobody";

/// See the module's documentation.
pub(super) struct Machinery {
    pub(super) runtimes: Runtimes,
    /// As in the node's facts.
    pub(super) isolation: &'static str,
    /// As in the node's facts.
    pub(super) acceleration: &'static str,
    /// What is offered at first.
    pub(super) offered: Vec<Kind>,
    pub(super) gpus: Gpus,
}

impl Machinery {
    pub(super) async fn open(
        config: &LauncherConfig,
        name: &str,
        node_uuid: NodeUuid,
        data_dir: &DataDir,
        events: &Events,
    ) -> anyhow::Result<Self> {
        let mut runtimes = Runtimes::default();
        let wanted = |kind| config.runtimes.contains(&kind);
        let group = format!("pronto-{}", node_uuid.short());
        let hierarchy = find_hierarchy(config, &group);
        let isolation = hierarchy.as_ref().map_or("rlimit", Hierarchy::name);
        let library = config.nvml_library.clone();
        let gpus = tokio::task::spawn_blocking(move || Gpus::find(&library)).await?;
        let node = NodeVariables {
            name: name.to_owned(),
            address: config.address.clone(),
            has_gpus: !gpus.models.is_empty()
                || config.capacity.gpus.is_some_and(|count| count > 0),
        };
        let is_root = rustix::process::geteuid().is_root();
        let drops = is_root && !config.run_as_invoker;
        let shared = config.workload_user.as_deref();
        // Emulators share one in any case: their guests are apart by more than a user.
        let user = drops
            .then(|| user(shared.unwrap_or(EMULATORS_USER)))
            .transpose()
            .map_err(|text| anyhow::anyhow!("workload_user: {text}"))?;
        let process = ExecSettings {
            data_dir: data_dir.clone(),
            shim_command: config.shim_command()?,
            hierarchy,
            user,
            own_users: drops && shared.is_none(),
            node: node.clone(),
            log_cap_bytes: config.log_cap_bytes,
        };
        let mut offered = Vec::new();
        let mut acceleration = "";
        if wanted(Kind::Exec) {
            offered.push(Kind::Exec);
            runtimes.add(Arc::new(
                ExecRuntime::open(process.clone(), events.clone()).await?,
            ));
        }
        if wanted(Kind::Sim) {
            offered.push(Kind::Sim);
            runtimes.add(Arc::new(SimRuntime::new(events.clone())));
        }
        if wanted(Kind::Qemu) {
            let emulator = find_emulator(config, data_dir).await;
            let kept = crate::runtime::qemu::shim_dir(data_dir).path().exists();
            if let Some(emulator) = &emulator {
                offered.push(Kind::Qemu);
                acceleration = emulator.acceleration();
            }
            // Without an emulator, only for guests of an earlier process.
            if emulator.is_some() || kept {
                let hierarchy = find_hierarchy(config, &format!("{group}-qemu"));
                let process = ExecSettings {
                    hierarchy,
                    ..process
                };
                let image_tool = config.qemu.image_tool.clone();
                let settings = QemuSettings {
                    emulator,
                    image_tool,
                    process,
                };
                runtimes.add(Arc::new(QemuRuntime::open(settings, events.clone()).await?));
            }
        }
        // The engine is offered by the runtime itself, as it comes and goes.
        let offers = Offers::new(offered.clone(), events.clone());
        if wanted(Kind::Docker) {
            let settings = DockerSettings {
                host: config.docker.host.clone(),
                data_dir: data_dir.clone(),
                node_uuid,
                node,
                gpu_requests: config.docker.gpu_requests,
                log_cap_bytes: config.log_cap_bytes,
            };
            runtimes.add(Arc::new(DockerRuntime::new(
                settings,
                offers,
                events.clone(),
            )));
        }
        Ok(Self {
            runtimes,
            isolation,
            acceleration,
            offered,
            gpus,
        })
    }
}

/// Which control groups enforce limits here. Without any, the launcher says so and goes on.
fn find_hierarchy(config: &LauncherConfig, name: &str) -> Option<Hierarchy> {
    if config.no_cgroups {
        return None;
    }
    match Hierarchy::detect(name) {
        Ok(hierarchy) => Some(hierarchy),
        Err(reason) => {
            tracing::warn!(
                reason,
                "no control groups: limits are only rlimits on this node"
            );
            None
        }
    }
}

/// What a probe found, for as long as the machine is up and the emulator the same.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Probed {
    boot_id: BootId,
    program: PathBuf,
    bytes: u64,
    kvm: bool,
    sandbox: bool,
}

/// An emulator that has booted a guest on this machine; a probe takes a second or more, so its
/// outcome is kept.
async fn find_emulator(config: &LauncherConfig, data_dir: &DataDir) -> Option<Emulator> {
    let program = find(&config.qemu.program)?;
    let bytes = program.metadata().ok()?.len();
    let boot_id = boot_id().ok()?;
    let kept_path = data_dir.path().join("probe.json");
    let kept = std::fs::read(&kept_path).ok();
    let kept = kept.and_then(|bytes| serde_json::from_slice::<Probed>(&bytes).ok());
    if let Some(kept) = kept
        && kept.boot_id == boot_id
        && kept.program == program
        && kept.bytes == bytes
    {
        return Some(Emulator {
            program,
            kvm: kept.kvm,
            sandbox: kept.sandbox,
        });
    }
    match probe(&program, data_dir.path()).await {
        Ok(emulator) => {
            let Emulator { kvm, sandbox, .. } = emulator;
            let probed = Probed {
                boot_id,
                program,
                bytes,
                kvm,
                sandbox,
            };
            if let Ok(text) = serde_json::to_vec(&probed) {
                // Not kept, it is probed again.
                let _ = std::fs::write(kept_path, text);
            }
            Some(emulator)
        }
        Err(reason) => {
            tracing::warn!(reason, "no virtual machines on this node");
            None
        }
    }
}
