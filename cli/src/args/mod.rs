//! The command tree: verb noun, shortcuts, and the daemons.
//!
//! Everything here parses and nothing runs. A noun is taken in the singular and the plural. Flags
//! of the connection and of the output are accepted after every client command; daemons,
//! certificates and local tools have flags of their own alone.

pub(crate) mod nouns;
pub(crate) mod spec;

use crate::bench::BenchCommand;
use crate::cert::command::CertCommand;
use crate::commands::simulate::SimulateArgs;
use crate::daemon::{ControllerArgs, LauncherArgs, SchedulerArgs};
use crate::demo::DemoArgs;
use crate::dev::DevArgs;
use crate::output::OutputArgs;
use crate::settings::ConnectionArgs;
use crate::units;
use clap::{Args, Parser, Subcommand};
use nouns::{CreateNoun, DeleteNoun, ListNoun, RestartNoun, ShowNoun, StopNoun, UpdateNoun};
use spec::{DemandArgs, RunArgs};
use std::path::PathBuf;

const AFTER_HELP: &str = "\
Start with `pronto dev`, a whole cluster on this machine, or `pronto demo`.
Daemons: pronto scheduler, pronto controller, pronto launcher, each with --config FILE.
`pronto help exit-codes` lists what every command ends with.";

/// Places workloads on a cluster in microseconds.
#[derive(Debug, Parser)]
#[command(
    name = "pronto",
    bin_name = "pronto",
    version,
    about,
    propagate_version = false,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    after_help = AFTER_HELP,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of everything that talks to a controller.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ClientArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
}

/// What `pronto` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command on the cluster: its output, its exit code
    Run(Box<RunArgs>),
    /// List instances, workloads, nodes, tenants, quotas or events
    List {
        #[command(subcommand)]
        noun: ListNoun,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one thing with everything about it
    Show {
        #[command(subcommand)]
        noun: ShowNoun,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Create instances, a workload or a tenant
    Create {
        #[command(subcommand)]
        noun: CreateNoun,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Change a quota, a tenant or a workload
    Update {
        #[command(subcommand)]
        noun: UpdateNoun,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Delete instances, workloads, nodes or tenants
    Delete {
        #[command(subcommand)]
        noun: DeleteNoun,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Stop instances
    Stop {
        #[command(subcommand)]
        noun: StopNoun,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Restart instances: a new attempt each
    Restart {
        #[command(subcommand)]
        noun: RestartNoun,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Print what an instance has written
    Logs(LogsArgs),
    /// Run a command inside a running instance
    Exec(ExecArgs),
    /// Copy a file from or to an instance's directory: ID:PATH on one side
    Cp(CpArgs),
    /// Say why a demand would or would not fit, or why an instance waits
    Explain(ExplainArgs),
    /// Put a node into maintenance and move its work away
    Drain(DrainArgs),
    /// Let a node take work again
    Restore(RestoreArgs),
    /// Make and renew the cluster's certificates
    Cert {
        #[command(subcommand)]
        command: CertCommand,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Start a whole cluster on this machine
    Dev(DevArgs),
    /// See it work: real jobs, killed daemons, a cluster trace; under a minute
    Demo(DemoArgs),
    /// Measure this machine: each figure beside a reference
    Bench {
        #[command(subcommand)]
        command: BenchCommand,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Replay a cluster trace through the placement code, without processes
    Simulate(Box<SimulateArgs>),
    /// Print a shell's completion script
    Completion { shell: clap_complete::Shell },
    /// Print the manual page, or write one for each command to a directory
    Man {
        /// One page for each command, into this directory
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Explain a command, or the exit codes: pronto help exit-codes
    Help {
        /// A command such as `list instances`, or exit-codes
        topic: Vec<String>,
    },
    /// The scheduler daemon
    #[command(hide = true)]
    Scheduler(SchedulerArgs),
    /// The controller daemon
    #[command(hide = true)]
    Controller(ControllerArgs),
    /// The launcher daemon
    #[command(hide = true)]
    Launcher(LauncherArgs),
}

/// `pronto logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The instance: its id, the end of it, or its name
    #[arg(value_name = "INSTANCE", value_parser = units::reference)]
    pub(crate) instance: String,
    /// Go on until the instance has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only what was written in this last time, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub(crate) since: Option<u64>,
    /// Only the last so many bytes, such as 64K
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    pub(crate) tail: Option<u64>,
    /// What this attempt wrote, counted from 1 [default: the last]
    #[arg(long, value_name = "N", conflicts_with = "follow", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) attempt: Option<u32>,
    /// Standard error alone
    #[arg(long, conflicts_with = "stdout")]
    pub(crate) stderr: bool,
    /// Standard output alone
    #[arg(long)]
    pub(crate) stdout: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `pronto exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The instance: its id, the end of it, or its name
    #[arg(value_name = "INSTANCE", value_parser = units::reference)]
    pub(crate) instance: String,
    /// Send standard input to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Program and arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `pronto cp`.
#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// A file here, or INSTANCE:PATH; `-` is standard input
    pub(crate) source: String,
    /// A file or directory here, or INSTANCE:PATH; `-` is standard output
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `pronto explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// An instance that waits; without it the demand of the flags
    #[arg(value_name = "INSTANCE", value_parser = units::reference, conflicts_with_all = ["cpus", "memory", "disk", "gpus", "resources", "constraints", "node", "runtime"])]
    pub(crate) instance: Option<String>,
    #[command(flatten)]
    pub(crate) demand: DemandArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `pronto drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The node
    #[arg(value_name = "NODE", value_parser = units::reference)]
    pub(crate) name: String,
    /// What may not be restarted goes on for so long; then it is stopped, and begins anew elsewhere
    /// unless its --reschedule is 0
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = units::duration_ms)]
    pub(crate) deadline: u64,
    /// Return only when the node is empty
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `pronto restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The node
    #[arg(value_name = "NODE", value_parser = units::reference)]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nouns_are_taken_in_singular_and_plural() {
        for line in [
            "list instances",
            "list instance",
            "list node",
            "list events",
            "show instance x",
            "show instances x",
            "stop instance x y",
            "delete workloads a",
            "update quota t cpus=4",
            "restart instances x",
        ] {
            let words = std::iter::once("pronto").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn a_command_keeps_its_own_flags() {
        let words = ["pronto", "run", "--cpus", "1", "ls", "--all", "-o", "x"];
        let Command::Run(run) = Cli::try_parse_from(words).unwrap().command else {
            panic!("parsed as something else")
        };
        assert_eq!(run.spec.command, ["ls", "--all", "-o", "x"]);
        let typo = Cli::try_parse_from(["pronto", "run", "--cpu", "1", "ls"]).unwrap_err();
        assert!(typo.to_string().contains("--cpus"), "{typo}");
    }

    /// A variable of a script that is not set must not name the list of all, or something else.
    #[test]
    fn an_empty_name_is_refused() {
        for line in [
            "show instance",
            "show workload",
            "show node",
            "show tenant",
            "show quota",
            "stop instance x",
            "restart instance",
            "delete instance",
            "delete workload",
            "delete node",
            "delete tenant",
            "create tenant",
            "update tenant",
            "update quota",
            "logs",
            "exec",
            "explain",
            "drain",
            "restore",
        ] {
            let words = ["pronto"].into_iter().chain(line.split(' ')).chain([""]);
            let refused = Cli::try_parse_from(words).unwrap_err();
            assert_eq!(refused.exit_code(), 2, "{line}");
            let said = refused.to_string();
            assert!(said.contains("it is empty"), "{line}: {said}");
        }
    }
}
