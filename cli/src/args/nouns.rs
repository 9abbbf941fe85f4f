//! The nouns of each verb, with their flags.

use super::spec::{CreateInstanceArgs, TenantPolicyArgs};
use crate::units;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `pronto list`.
#[derive(Debug, Subcommand)]
pub(crate) enum ListNoun {
    /// Instances, newest first
    #[command(alias = "instance")]
    Instances(ListInstancesArgs),
    /// Workloads: named templates
    #[command(alias = "workload")]
    Workloads,
    /// Compute nodes, with what is free of what each has: free/total
    #[command(alias = "node")]
    Nodes,
    /// Tenants and their policy
    #[command(alias = "tenant")]
    Tenants,
    /// Quotas, with what is used of each limit: used/limit
    #[command(alias = "quota")]
    Quotas,
    /// What has happened, newest last; times are UTC
    #[command(alias = "event")]
    Events(ListEventsArgs),
}

/// `pronto list instances`.
#[derive(Debug, Default, Args)]
pub(crate) struct ListInstancesArgs {
    /// States, comma-separated; `live` and `ended` name groups
    #[arg(long, value_name = "STATES")]
    pub(crate) state: Option<String>,
    /// On this node
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// Of this workload
    #[arg(long, value_name = "NAME")]
    pub(crate) workload: Option<String>,
    /// With this name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// With this tag; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = units::pair)]
    pub(crate) labels: Vec<(String, String)>,
    /// Of this submission
    #[arg(long, value_name = "ID", value_parser = units::submission)]
    pub(crate) submission: Option<uuid::Uuid>,
    /// At most so many [default: 100]
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u32>,
    /// All of them, page by page
    #[arg(long, conflicts_with = "limit")]
    pub(crate) all: bool,
    /// Print every change as it happens, one line each
    #[arg(long)]
    pub(crate) watch: bool,
}

/// `pronto list events`.
#[derive(Debug, Default, Args)]
pub(crate) struct ListEventsArgs {
    /// About this instance (its whole id)
    #[arg(long, value_name = "ID")]
    pub(crate) instance: Option<uuid::Uuid>,
    /// About this node
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// Of this kind, or of these with a * at the end
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: u32,
    /// Print what happens from now on, one line each
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// `pronto show`.
#[derive(Debug, Subcommand)]
pub(crate) enum ShowNoun {
    /// An instance: its state, its timeline, its events
    #[command(alias = "instances")]
    Instance {
        /// Its id, the end of it, or its name
        #[arg(value_name = "INSTANCE", value_parser = units::reference)]
        id: String,
        /// Show the values of environment variables
        #[arg(long)]
        reveal_env: bool,
    },
    /// A workload
    #[command(alias = "workloads")]
    Workload {
        #[arg(value_name = "NAME", value_parser = units::reference)]
        id: String,
        /// Show the values of environment variables
        #[arg(long)]
        reveal_env: bool,
    },
    /// A node: capacity, labels, load
    #[command(alias = "nodes")]
    Node {
        #[arg(value_name = "NODE", value_parser = units::reference)]
        id: String,
    },
    /// A tenant and its policy
    #[command(alias = "tenants")]
    Tenant {
        #[arg(value_name = "TENANT", value_parser = units::reference)]
        id: String,
    },
    /// A tenant's quota
    #[command(alias = "quotas")]
    Quota {
        #[arg(value_name = "TENANT", default_value = "default", value_parser = units::reference)]
        id: String,
    },
    /// The controller, its store and its scheduler
    Cluster,
}

/// `pronto create`.
#[derive(Debug, Subcommand)]
pub(crate) enum CreateNoun {
    /// One instance, or many alike
    #[command(alias = "instances")]
    Instance(Box<CreateInstanceArgs>),
    /// A workload from a YAML file
    #[command(alias = "workloads")]
    Workload {
        /// The file; `-` is standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// A tenant
    #[command(alias = "tenants")]
    Tenant {
        #[arg(value_name = "TENANT", value_parser = units::reference)]
        id: String,
        #[command(flatten)]
        policy: TenantPolicyArgs,
        /// A limit of its quota; may be repeated
        #[arg(long = "quota", value_name = "KEY=VALUE", value_parser = units::pair)]
        quota: Vec<(String, String)>,
    },
}

/// `pronto update`.
#[derive(Debug, Subcommand)]
pub(crate) enum UpdateNoun {
    /// A tenant's quota: instances=100 cpus=8 memory=16G disk=1T gpus=2; `none` takes a limit away
    #[command(alias = "quotas")]
    Quota {
        #[arg(value_name = "TENANT", value_parser = units::reference)]
        id: String,
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = units::pair)]
        limits: Vec<(String, String)>,
    },
    /// A tenant's policy
    #[command(alias = "tenants")]
    Tenant {
        #[arg(value_name = "TENANT", value_parser = units::reference)]
        id: String,
        #[command(flatten)]
        policy: TenantPolicyArgs,
    },
    /// A workload, from a YAML file
    #[command(alias = "workloads")]
    Workload {
        /// The file; `-` is standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// The cluster: go on with what an alarm has suspended
    Cluster {
        /// Reschedule again what was on nodes that vanished together
        #[arg(long, required = true)]
        resume_rescheduling: bool,
    },
}

/// `pronto delete`.
#[derive(Debug, Subcommand)]
pub(crate) enum DeleteNoun {
    /// Instances: stopped if they live, then forgotten with logs and files
    #[command(alias = "instances")]
    Instance {
        #[arg(value_name = "INSTANCE", required = true, value_parser = units::reference)]
        ids: Vec<String>,
    },
    /// Workloads; instances made from them stay
    #[command(alias = "workloads")]
    Workload {
        #[arg(value_name = "NAME", required = true, value_parser = units::reference)]
        ids: Vec<String>,
    },
    /// Nodes that will not come back
    #[command(alias = "nodes")]
    Node {
        #[arg(value_name = "NODE", required = true, value_parser = units::reference)]
        ids: Vec<String>,
        /// You swear that nothing runs there any more: its work is lost and rescheduled at once
        #[arg(long)]
        fenced: bool,
    },
    /// Tenants without living instances
    #[command(alias = "tenants")]
    Tenant {
        #[arg(value_name = "TENANT", required = true, value_parser = units::reference)]
        ids: Vec<String>,
    },
}

/// `pronto stop`.
#[derive(Debug, Subcommand)]
pub(crate) enum StopNoun {
    /// Instances: SIGTERM, a grace period, SIGKILL
    #[command(alias = "instances")]
    Instance {
        #[arg(value_name = "INSTANCE", required_unless_present = "submission", value_parser = units::reference)]
        ids: Vec<String>,
        /// All that live of this submission
        #[arg(long, value_name = "ID", conflicts_with = "ids", value_parser = units::submission)]
        submission: Option<uuid::Uuid>,
        /// Between SIGTERM and SIGKILL; 0s kills at once
        #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
        grace: Option<u64>,
        /// Return only when they have ended
        #[arg(long)]
        wait: bool,
    },
}

/// `pronto restart`.
#[derive(Debug, Subcommand)]
pub(crate) enum RestartNoun {
    /// Instances that run or have ended
    #[command(alias = "instances")]
    Instance {
        #[arg(value_name = "INSTANCE", required = true, value_parser = units::reference)]
        ids: Vec<String>,
        /// Between SIGTERM and SIGKILL; 0s kills at once
        #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
        grace: Option<u64>,
    },
}
