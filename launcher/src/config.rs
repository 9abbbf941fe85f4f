//! The launcher's configuration: one TOML file, every key with its unit and default.

use pronto_payloads::demand::{Resource, Runtime};
use pronto_payloads::node::Label;
use pronto_protocol::transport::{TlsFiles, is_address};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A launcher's configuration. Unknown keys are errors.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LauncherConfig {
    /// Schedulers to connect to, `host:port`, tried in turn. At least one.
    pub schedulers: Vec<String>,
    /// Where records, logs and working directories are. Made if it is not there.
    pub data_dir: PathBuf,
    /// Certificate, key and CA. The node's name is the certificate's.
    pub tls: TlsFiles,
    /// Where `/metrics`, `/healthz` and `/readyz` are served over mutual TLS; absent: nowhere.
    #[serde(default)]
    pub ops_listen: Option<SocketAddr>,
    /// Where published ports of this node are reached, for people and for `PRONTO_NODE_ADDRESS`.
    #[serde(default)]
    pub address: String,
    /// Labels beside those that are found, which they replace.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Capacity that is configured instead of found.
    #[serde(default)]
    pub capacity: CapacityConfig,
    /// What is kept back for the host; taken off what is found, not off what is configured.
    #[serde(default)]
    pub reserve: ReserveConfig,
    /// The share of the machine that this launcher may promise, as `"1/3"`: for several launchers
    /// on one machine. Applies to what is found. Default: all of it.
    #[serde(default)]
    pub share: Option<String>,
    /// Runtimes to offer, where they work. Default: all.
    #[serde(default = "default_runtimes")]
    pub runtimes: Vec<Runtime>,
    /// One user for all workloads that name none, when the launcher is root. Default: each instance
    /// has a user id of its own, so that none can look into another.
    #[serde(default)]
    pub workload_user: Option<String>,
    /// Run them as the launcher's own user instead: for development on one's own machine.
    #[serde(default)]
    pub run_as_invoker: bool,
    /// Total size of an instance's kept log, unless its START says otherwise. Default: 16 MiB.
    #[serde(default = "default_log_cap_bytes")]
    pub log_cap_bytes: u64,
    /// Logs and directories of acknowledged instances are kept so long, in ms. Default: 1 h.
    #[serde(default = "default_retention_ms")]
    pub retention_ms: u64,
    /// Below so much free memory the node reports FULL, in MiB. Default: 64.
    #[serde(default = "default_low_memory_mib")]
    pub low_memory_mib: u32,
    /// Below so much free disk the node reports FULL, in MiB. Default: 256.
    #[serde(default = "default_low_disk_mib")]
    pub low_disk_mib: u32,
    /// Ended instances that may wait to be acknowledged; from there on FULL. Default: 16,384.
    #[serde(default = "default_unacknowledged_limit")]
    pub unacknowledged_limit: usize,
    /// Program and arguments that start the shim. Default: this program, `launcher-shim`.
    #[serde(default)]
    pub shim_command: Vec<String>,
    /// Never use control groups, even where there are some: limits are rlimits then.
    #[serde(default)]
    pub no_cgroups: bool,
    /// NVIDIA's management library, by path or as the dynamic linker finds it; where it is absent,
    /// the driver's files tell of GPUs. Default: `libnvidia-ml.so.1`.
    #[serde(default = "default_nvml_library")]
    pub nvml_library: PathBuf,
    /// Containers.
    #[serde(default)]
    pub docker: DockerConfig,
    /// Virtual machines.
    #[serde(default)]
    pub qemu: QemuConfig,
    /// For `--simulate N`: a directory with `<node>.crt` and `<node>.key` of each simulated node,
    /// as `pronto cert issue` writes them. The nodes are the first N of it in the order of names.
    #[serde(default)]
    pub simulate_certs_dir: Option<PathBuf>,
}

/// Capacity that replaces what is found. Absent keys are found.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapacityConfig {
    /// Thousandths of a core.
    pub cpu_millis: Option<u32>,
    /// MiB.
    pub memory_mib: Option<u32>,
    /// MiB.
    pub disk_mib: Option<u32>,
    /// Number of GPUs, where there are none to be found, or fewer should be used.
    pub gpus: Option<u16>,
    /// Their model, for the label `gpu.model`.
    pub gpu_model: Option<String>,
    /// Named countable resources.
    pub resources: BTreeMap<String, u32>,
}

/// What is kept back for the host. Absent keys: a twentieth of what is found.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReserveConfig {
    /// Thousandths of a core.
    pub cpu_millis: Option<u32>,
    /// MiB.
    pub memory_mib: Option<u32>,
    /// MiB.
    pub disk_mib: Option<u32>,
}

/// The engine for containers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DockerConfig {
    /// `unix:///path`, a path, or `tcp://host:port`. Default: `DOCKER_HOST`, else the usual socket.
    pub host: Option<String>,
    /// Ask the engine for GPU devices; needs its NVIDIA runtime. Default: false.
    pub gpu_requests: bool,
}

/// The emulator for virtual machines.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QemuConfig {
    /// The emulator, by path or to be looked for in `PATH`. Default: `qemu-system-` and this
    /// machine's architecture.
    pub program: PathBuf,
    /// The tool that makes overlays, likewise. Default: `qemu-img`.
    pub image_tool: PathBuf,
}

impl Default for QemuConfig {
    fn default() -> Self {
        Self {
            program: format!("qemu-system-{}", std::env::consts::ARCH).into(),
            image_tool: "qemu-img".into(),
        }
    }
}

fn default_runtimes() -> Vec<Runtime> {
    Runtime::ALL.to_vec()
}

const fn default_log_cap_bytes() -> u64 {
    16 << 20
}

const fn default_retention_ms() -> u64 {
    3_600_000
}

const fn default_low_memory_mib() -> u32 {
    64
}

const fn default_low_disk_mib() -> u32 {
    256
}

fn default_nvml_library() -> PathBuf {
    "libnvidia-ml.so.1".into()
}

const fn default_unacknowledged_limit() -> usize {
    crate::supervisor::UNACKNOWLEDGED
}

impl LauncherConfig {
    /// Checks what parsing alone does not.
    ///
    /// # Errors
    /// The first value that can't be used, with what is accepted.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.schedulers.is_empty() || !self.schedulers.iter().all(|text| is_address(text)) {
            let found = &self.schedulers;
            anyhow::bail!("schedulers = {found:?}; accepted: at least one \"HOST:PORT\"");
        }
        self.share()?;
        self.labels()?;
        if let Some(name) = &self.workload_user {
            crate::runtime::exec::user(name)
                .map_err(|text| anyhow::anyhow!("workload_user: {text}"))?;
        }
        Ok(())
    }

    /// The share as (numerator, denominator).
    ///
    /// # Errors
    /// Says what is accepted.
    pub fn share(&self) -> anyhow::Result<(u64, u64)> {
        let Some(text) = &self.share else {
            return Ok((1, 1));
        };
        let parts = text.split_once('/').and_then(|(above, below)| {
            Some((
                above.trim().parse::<u64>().ok()?,
                below.trim().parse::<u64>().ok()?,
            ))
        });
        match parts {
            Some((above, below)) if above > 0 && above <= below && below <= 1_000_000 => {
                Ok((above, below))
            }
            _ => anyhow::bail!(
                "share = {text:?}; accepted: a fraction from above 0 to 1, as \"1/3\""
            ),
        }
    }

    /// The configured labels, checked.
    ///
    /// # Errors
    /// Names the label that is not acceptable.
    pub fn labels(&self) -> anyhow::Result<Vec<Label>> {
        use pronto_payloads::codec::Payload;
        self.labels
            .iter()
            .map(|(key, value)| {
                let label = Label {
                    key: key.clone(),
                    value: value.clone(),
                };
                label
                    .check()
                    .map_err(|error| anyhow::anyhow!("labels.{key}: {error}"))?;
                Ok(label)
            })
            .collect()
    }

    /// The configured named resources, sorted by name.
    #[must_use]
    pub fn resources(&self) -> Vec<Resource> {
        self.capacity
            .resources
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| Resource {
                name: name.clone(),
                count: *count,
            })
            .collect()
    }

    /// Program and arguments that start the shim.
    ///
    /// # Errors
    /// If this program's own path can't be found.
    pub fn shim_command(&self) -> anyhow::Result<Vec<String>> {
        if !self.shim_command.is_empty() {
            return Ok(self.shim_command.clone());
        }
        let program = std::env::current_exe()?;
        Ok(vec![
            program.to_string_lossy().into_owned(),
            "launcher-shim".to_owned(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "schedulers = [\"127.0.0.1:7460\"]\ndata_dir = \"/d\"\n\
                           [tls]\nca = \"ca\"\ncert = \"c\"\nkey = \"k\"\n";

    #[test]
    fn the_minimum_is_enough_and_unknown_keys_are_errors() {
        let config: LauncherConfig = toml::from_str(MINIMAL).unwrap();
        assert_eq!(config.workload_user, None);
        assert_eq!(config.share().unwrap(), (1, 1));
        let error =
            toml::from_str::<LauncherConfig>(&format!("colour = 1\n{MINIMAL}")).unwrap_err();
        assert!(
            error.to_string().contains("unknown field `colour`"),
            "{error}"
        );
    }

    #[test]
    fn a_share_is_a_fraction() {
        let with = |share: &str| {
            let text = format!("share = \"{share}\"\n{MINIMAL}");
            toml::from_str::<LauncherConfig>(&text).unwrap().share()
        };
        assert_eq!(with("1/3").unwrap(), (1, 3));
        for bad in ["0/3", "4/3", "1/0", "a", "-1/2"] {
            let error = with(bad).unwrap_err().to_string();
            assert!(error.contains("accepted: a fraction"), "{error}");
        }
    }
}
