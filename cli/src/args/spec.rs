//! What is to run, as flags: shared by `run`, `create instance` and `explain`.
//!
//! A flag that was not given leaves the workload's own value (`--workload`) or the default as it
//! is, so nothing here has a default of its own.

use super::ClientArgs;
use crate::short_forms;
use crate::units::{self, Gpus};
use clap::Args;
use pronto_controller::api::types as api;
use pronto_payloads::demand::Resource;
use std::path::PathBuf;

/// What a node must have and be.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Demand")]
pub(crate) struct DemandArgs {
    /// Cores: 2, 0.5 or 500m [default: 0.1]
    #[arg(long, value_name = "CORES", allow_negative_numbers = true, value_parser = units::cpu_millis)]
    pub(crate) cpus: Option<u32>,
    /// Memory, a hard limit: 64M, 1.5G [default: 64M]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = units::memory_mib)]
    pub(crate) memory: Option<u32>,
    /// Disk: 1G
    #[arg(long, value_name = "SIZE", value_parser = units::size_mib)]
    pub(crate) disk: Option<u32>,
    /// Whole GPUs, or a share of one such as 0.5
    #[arg(long, value_name = "N", value_parser = units::gpus)]
    pub(crate) gpus: Option<Gpus>,
    /// A countable resource; may be repeated
    #[arg(long = "resource", id = "resources", value_name = "NAME=COUNT", value_parser = units::resource)]
    pub(crate) resources: Vec<Resource>,
    /// A label that the node must have; may be repeated
    #[arg(long = "constraint", id = "constraints", value_name = "KEY=VALUE", value_parser = units::pair)]
    pub(crate) constraints: Vec<(String, String)>,
    /// Only on this node
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// exec, docker, qemu or sim [default: exec, or docker with --image]
    #[arg(long, value_name = "RUNTIME", value_parser = runtime)]
    pub(crate) runtime: Option<api::RuntimeName>,
}

/// What to run, and under which terms.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Workload")]
pub(crate) struct SpecArgs {
    /// Program and arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
    /// A name, unique among the tenant's living instances
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Start from this workload; other flags change it for this time
    #[arg(long, value_name = "NAME")]
    pub(crate) workload: Option<String>,
    /// Start from this workload file, without creating the workload
    #[arg(long, value_name = "FILE", conflicts_with = "workload")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) demand: DemandArgs,
    #[command(flatten)]
    pub(crate) task: TaskArgs,
    #[command(flatten)]
    pub(crate) terms: TermsArgs,
}

/// How a runtime runs it.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Runtime")]
pub(crate) struct TaskArgs {
    /// A container's or a virtual machine's image
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// An environment variable; KEY alone passes your own on; may be repeated
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Working directory on the node; a fresh one by default
    #[arg(long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,
    /// User on the node or in the container
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Processes at most
    #[arg(long, value_name = "N")]
    pub(crate) pids_limit: Option<u32>,
    /// exec: a /tmp of its own
    #[arg(long)]
    pub(crate) private_tmp: bool,
    /// exec: refuse nodes that can't enforce limits
    #[arg(long)]
    pub(crate) require_hard_limits: bool,
    /// A port of the workload at a port of the node (0: any); may be repeated
    #[arg(long = "publish", value_name = "[HOST:]GUEST[/udp]", value_parser = short_forms::port)]
    pub(crate) ports: Vec<api::PortSpec>,
    /// docker: a directory of the node in the container; needs --privileged; may be repeated
    #[arg(long = "mount", value_name = "SOURCE:TARGET[:ro]", value_parser = short_forms::mount)]
    pub(crate) mounts: Vec<api::MountSpec>,
    /// qemu: a kernel on the node
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel: Option<String>,
    /// qemu: its initial ramdisk
    #[arg(long, value_name = "PATH")]
    pub(crate) initrd: Option<String>,
    /// qemu: its command line
    #[arg(long, value_name = "TEXT")]
    pub(crate) append: Option<String>,
    /// qemu: a file here with cloud-init user-data
    #[arg(long, value_name = "FILE")]
    pub(crate) user_data: Option<PathBuf>,
    /// qemu: a file here with cloud-init meta-data
    #[arg(long, value_name = "FILE")]
    pub(crate) meta_data: Option<PathBuf>,
    /// sim: ends after so long
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub(crate) run_for: Option<u64>,
    /// sim: with this exit code
    #[arg(long, value_name = "CODE", value_parser = clap::value_parser!(i32).range(0..=255))]
    pub(crate) exit_code: Option<i32>,
}

/// Policies of one instance.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Policy")]
pub(crate) struct TermsArgs {
    /// A tag for people and filters; may be repeated
    #[arg(short, long = "label", id = "labels", value_name = "KEY=VALUE", value_parser = units::pair)]
    pub(crate) labels: Vec<(String, String)>,
    /// End it after so much running time
    #[arg(long, value_name = "DURATION", value_parser = units::some_duration_ms)]
    pub(crate) timeout: Option<u64>,
    /// Give up if it has not been placed after so long
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub(crate) pending_timeout: Option<u64>,
    /// Higher goes first: -1000 to 1000
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i16).range(-1000..=1000))]
    pub(crate) priority: Option<i16>,
    /// When its node is cut off: keep, or stop-after:DURATION for work that must never run twice at a time
    #[arg(long, value_name = "POLICY", value_parser = short_forms::on_disconnect)]
    pub(crate) on_disconnect: Option<api::OnDisconnectSpec>,
    /// When it ends: never, on-failure[:LIMIT] or always[:LIMIT]
    #[allow(
        rustdoc::broken_intra_doc_links,
        reason = "a help text, whose brackets are the usual ones of an option"
    )]
    #[arg(long, value_name = "POLICY", value_parser = short_forms::restart)]
    pub(crate) restart: Option<api::RestartPolicy>,
    /// New attempts when its node fails it; 0: never
    #[arg(long, value_name = "N")]
    pub(crate) reschedule: Option<u32>,
    /// Between SIGTERM and SIGKILL [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub(crate) stop_grace: Option<u64>,
    /// The log that is kept, at most; from 64K
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    pub(crate) log_cap: Option<u64>,
    /// CPU as a hard quota instead of a weight
    #[arg(long)]
    pub(crate) hard_cpu: bool,
    /// Root, host users and devices; the tenant's policy must allow it
    #[arg(long)]
    pub(crate) privileged: bool,
}

/// `pronto run`.
#[derive(Debug, Default, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    /// Print the id and return as soon as it is admitted
    #[arg(short, long, help_heading = "Run")]
    pub(crate) detach: bool,
    /// Send standard input to it
    #[arg(short, long, help_heading = "Run", conflicts_with = "detach")]
    pub(crate) interactive: bool,
    /// Files to bring to its working directory before it starts
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Run")]
    pub(crate) input: Vec<PathBuf>,
    /// Patterns of files to bring back from it after its end; {stem}, {name} with --each
    #[arg(long, value_name = "PATTERN", num_args = 1.., help_heading = "Run", conflicts_with = "detach")]
    pub(crate) output: Vec<String>,
    /// Where to put them
    #[arg(long, value_name = "DIR", default_value = ".", help_heading = "Run")]
    pub(crate) output_dir: PathBuf,
    /// Run once for each file, which is brought along: {} is its name, {stem} the name without extension
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Run", conflicts_with_all = ["detach", "interactive"])]
    pub(crate) each: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `pronto create instance`.
#[derive(Debug, Default, Args)]
pub(crate) struct CreateInstanceArgs {
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    /// So many alike
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(api::MAX_COUNT)))]
    pub(crate) count: u32,
    /// Print the ids and return as soon as they are admitted
    #[arg(short, long)]
    pub(crate) detach: bool,
}

/// A tenant's policy.
#[derive(Debug, Default, Args)]
pub(crate) struct TenantPolicyArgs {
    /// Runtimes that it may use: exec,docker,qemu,sim
    #[arg(long, value_name = "RUNTIMES", value_delimiter = ',', value_parser = runtime)]
    pub(crate) runtimes: Option<Vec<api::RuntimeName>>,
    /// Whether it may ask for root, host users and devices
    #[arg(long, value_name = "BOOL")]
    pub(crate) privileged: Option<bool>,
    /// Instances a second, sustained; `none`: no limit
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) submit_rate: Option<Rate>,
}

/// A rate, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate(pub(crate) Option<u32>);

fn rate(text: &str) -> Result<Rate, String> {
    if text == "none" {
        return Ok(Rate(None));
    }
    let accepted = || "accepted: a whole number from 1, or none".to_owned();
    let rate = text.parse().ok().filter(|&rate| rate > 0);
    rate.map(|rate| Rate(Some(rate))).ok_or_else(accepted)
}

fn runtime(text: &str) -> Result<api::RuntimeName, String> {
    match text {
        "exec" => Ok(api::RuntimeName::Exec),
        "docker" => Ok(api::RuntimeName::Docker),
        "qemu" => Ok(api::RuntimeName::Qemu),
        "sim" => Ok(api::RuntimeName::Sim),
        _ => Err("accepted: exec, docker, qemu, sim".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_may_be_none() {
        assert_eq!(rate("none"), Ok(Rate(None)));
        assert_eq!(rate("5"), Ok(Rate(Some(5))));
        assert!(rate("0").is_err());
    }
}
