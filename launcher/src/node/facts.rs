//! Capacity, labels and identity of the machine, found or configured.

use super::Gpus;
use crate::config::LauncherConfig;
use anyhow::{Context, bail};
use pronto_payloads::codec::Payload;
use pronto_payloads::demand::{Capacity, GPU_MILLIS, Runtime};
use pronto_payloads::ids::BootId;
use pronto_payloads::limits;
use pronto_payloads::node::{Label, NodeFacts};
use std::collections::BTreeMap;
use std::fs;

/// Kept back for the host where nothing is configured: this part of what is found.
const RESERVE_PART: u64 = 20;

/// The kernel's boot id.
///
/// # Errors
/// If the kernel does not tell.
pub fn boot_id() -> anyhow::Result<BootId> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("no boot id")?;
    text.trim().parse().context("the boot id is not a UUID")
}

/// All that HELLO says of the node, but for what runtimes find out later.
///
/// # Errors
/// If the configuration is not acceptable, or the machine does not tell what it has.
pub fn facts(
    config: &LauncherConfig,
    gpus: &Gpus,
    runtimes: Vec<Runtime>,
    isolation: &str,
    acceleration: &str,
) -> anyhow::Result<NodeFacts> {
    let system = rustix::system::uname();
    let kernel = system.release().to_string_lossy().into_owned();
    let hostname = system.nodename().to_string_lossy().into_owned();
    let mut labels: BTreeMap<String, String> = BTreeMap::new();
    let mut label = |key: &str, value: &str| labels.insert(key.to_owned(), value.to_owned());
    label("arch", std::env::consts::ARCH);
    label("kernel", &kernel);
    label("hostname", &hostname);
    label("cores", &cores()?.to_string());
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if let Some(model) = cpu_model(&cpuinfo) {
        label("cpu.model", &model);
    }
    if let Some(model) = config.capacity.gpu_model.as_ref().or(gpus.models.first()) {
        label("gpu.model", model);
    }
    let source = gpu_source(config, gpus);
    if !source.is_empty() {
        label("gpu.source", source);
    }
    for own in config.labels()? {
        labels.insert(own.key, own.value);
    }
    let labels: Vec<Label> = labels
        .into_iter()
        .map(|(key, value)| Label { key, value })
        .filter(|label| label.check().is_ok())
        .collect();
    if labels.len() > limits::LABELS {
        bail!(
            "{} labels; accepted: at most {} with those that are found",
            labels.len(),
            limits::LABELS
        );
    }
    let facts = NodeFacts {
        hostname,
        address: config.address.clone(),
        allocatable: allocatable(config, gpus.models.len())?,
        labels,
        runtimes,
        schema_min: pronto_payloads::SCHEMA_MIN,
        schema_max: pronto_payloads::SCHEMA,
        isolation: isolation.to_owned(),
        acceleration: acceleration.to_owned(),
    };
    facts.check().context("the node's facts")?;
    Ok(facts)
}

/// Who says how many GPUs there are. A configured inventory stands in for devices that nobody has
/// seen, or leaves some out.
fn gpu_source(config: &LauncherConfig, gpus: &Gpus) -> &'static str {
    match config.capacity.gpus.map(usize::from) {
        None => gpus.source,
        Some(0) => "",
        Some(count) if count == gpus.models.len() => gpus.source,
        Some(_) => "configured",
    }
}

fn allocatable(config: &LauncherConfig, gpus_found: usize) -> anyhow::Result<Capacity> {
    let (above, below) = config.share()?;
    let found = |total: u64, reserve: Option<u32>| {
        let reserve = reserve.map_or(total / RESERVE_PART, u64::from);
        let rest = total.saturating_sub(reserve) * above / below;
        u32::try_from(rest).unwrap_or(u32::MAX)
    };
    let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let memory_mib = super::load::kib_of(&meminfo, "MemTotal").context("no MemTotal")? / 1024;
    let disk = rustix::fs::statvfs(&config.data_dir)
        .with_context(|| format!("can't look at {}", config.data_dir.display()))?;
    let disk_mib = (disk.f_bavail * disk.f_frsize) >> 20;
    let gpus = config.capacity.gpus.map_or(gpus_found, usize::from);
    if gpus > limits::GPUS {
        bail!("{gpus} GPUs; accepted: at most {}", limits::GPUS);
    }
    let capacity = &config.capacity;
    let reserve = &config.reserve;
    Ok(Capacity {
        cpu_millis: capacity
            .cpu_millis
            .unwrap_or_else(|| found(cores().unwrap_or(1) * 1000, reserve.cpu_millis)),
        memory_mib: capacity
            .memory_mib
            .unwrap_or_else(|| found(memory_mib, reserve.memory_mib)),
        disk_mib: capacity
            .disk_mib
            .unwrap_or_else(|| found(disk_mib, reserve.disk_mib)),
        gpu_millis: vec![GPU_MILLIS; gpus],
        resources: config.resources(),
    })
}

fn cores() -> anyhow::Result<u64> {
    Ok(std::thread::available_parallelism()
        .context("number of cores")?
        .get() as u64)
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    let model = line.split_once(':')?.1.trim();
    (!model.is_empty()).then(|| model.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let directory = tempfile::tempdir().unwrap();
        let config: LauncherConfig = toml::from_str(&format!(
            "schedulers = [\"a:1\"]\ndata_dir = {:?}\nshare = \"1/2\"\n\
             labels = {{ zone = \"z1\", arch = \"mine\" }}\n\
             [capacity]\ngpus = 2\ngpu_model = \"G1\"\nresources = {{ licence = 3 }}\n\
             [reserve]\ncpu_millis = 0\n\
             [tls]\nca = \"ca\"\ncert = \"c\"\nkey = \"k\"\n",
            directory.path()
        ))
        .unwrap();
        let facts = facts(
            &config,
            &Gpus::default(),
            vec![Runtime::Exec],
            "cgroup1",
            "",
        )
        .unwrap();
        let label = |key: &str| {
            facts
                .labels
                .iter()
                .find(|label| label.key == key)
                .unwrap()
                .value
                .clone()
        };
        assert_eq!(
            u64::from(facts.allocatable.cpu_millis),
            cores().unwrap() * 500
        );
        assert!(facts.allocatable.memory_mib > 0 && facts.allocatable.disk_mib > 0);
        assert_eq!(facts.allocatable.gpu_millis, [1000, 1000]);
        assert_eq!((label("zone"), label("arch")), ("z1".into(), "mine".into()));
        assert_eq!(
            (label("gpu.model"), label("gpu.source")),
            ("G1".into(), "configured".into())
        );
        assert!(!label("kernel").is_empty());
        assert!(boot_id().is_ok());
    }

    #[test]
    fn found_gpus_count_unless_others_are_configured() {
        let config = |capacity: &str| -> LauncherConfig {
            toml::from_str(&format!(
                "schedulers = [\"a:1\"]\ndata_dir = \"/\"\n[capacity]\n{capacity}\n\
                 [tls]\nca = \"ca\"\ncert = \"c\"\nkey = \"k\"\n"
            ))
            .unwrap()
        };
        let found = Gpus {
            source: "nvml",
            models: vec!["A100".to_owned(), "A100".to_owned()],
        };
        let told = |capacity: &str| {
            let config = config(capacity);
            let facts = facts(&config, &found, vec![Runtime::Exec], "", "").unwrap();
            let label = |key: &str| {
                let label = facts.labels.iter().find(|label| label.key == key)?;
                Some(label.value.clone())
            };
            let count = facts.allocatable.gpu_millis.len();
            (count, label("gpu.source"), label("gpu.model"))
        };
        let words = |text: &str| Some(text.to_owned());
        assert_eq!(told(""), (2, words("nvml"), words("A100")));
        assert_eq!(told("gpus = 2"), (2, words("nvml"), words("A100")));
        assert_eq!(told("gpus = 1"), (1, words("configured"), words("A100")));
        assert_eq!(told("gpus = 0").0, 0);
        assert_eq!(told("gpus = 0").1, None);
    }
}
