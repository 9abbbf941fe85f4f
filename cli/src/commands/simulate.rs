//! `pronto simulate`: the front end of the scheduler's replay of cluster traces.

use crate::exit::{Exit, Failure, OK, Outcome};
use crate::output::{OutputArgs, fields, print_value, say, write};
use anyhow::Context;
use clap::Args;
use pronto_scheduler::replay::{
    BurstSpread, Chooser, Order, Policy, SimulateConfig, SimulateReport, Trace, burst_spread,
    plot_svg, simulate, synthetic_openb,
};
use pronto_scheduler::table::{Fit, Spread};
use serde::Serialize;
use std::path::PathBuf;

/// A burst as it comes when a queue of scripts is submitted to a cluster that stands idle.
const BURST_STARTS: usize = 1_000;
const BURST_NODES: usize = 100;

/// What is reported: the replay, and how a burst spreads in each mode with the fit that was asked
/// for.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    report: SimulateReport,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bursts: Vec<BurstSpread>,
}

/// Seeds of one run: each replays the whole trace.
const MAX_SEEDS: u64 = 10_000;

/// `pronto simulate`.
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// Nodes, CSV: openb's, or name,cpu_millis,memory_mib,disk_mib,gpus,labels
    #[arg(long, value_name = "FILE", requires = "pods")]
    nodes: Option<PathBuf>,
    /// What arrives, CSV: openb's pods, or
    /// arrival_s,duration_s,cpu_millis,memory_mib,disk_mib,gpus,gpu_millis,constraints
    #[arg(long, value_name = "FILE", requires = "nodes")]
    pods: Option<PathBuf>,
    /// Without files: the seed of a generated trace with openb's published mix
    #[arg(
        long,
        value_name = "SEED",
        default_value_t = 42,
        conflicts_with = "nodes"
    )]
    synthetic: u64,
    /// first, or few: the least fragmented of the first --choices
    #[arg(long, default_value = "first", conflicts_with = "policy")]
    fit: FitName,
    /// How many nodes `few` compares
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=16))]
    choices: u8,
    /// How the most recently used node is avoided
    #[arg(long, default_value = "settle", conflicts_with = "policy")]
    spread: SpreadName,
    /// For comparison: a policy that looks at every node
    #[arg(long)]
    policy: Option<PolicyName>,
    /// The order in which the nodes connect
    #[arg(long, default_value = "pronto")]
    order: OrderName,
    /// Nodes report after so many placements: 1 is a calm cluster, more a burst
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    ready_every: u32,
    /// One seed of the arrivals
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Seeds of the arrivals; figures are their means
    #[arg(long, value_name = "FROM-TO", default_value = "42-51", value_parser = seeds)]
    seeds: Seeds,
    /// Draw allocation against arrived demand
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Seeds, both ends included.
#[derive(Clone, Copy, Debug)]
struct Seeds {
    first: u64,
    last: u64,
}

fn seeds(text: &str) -> Result<Seeds, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last && last - first < MAX_SEEDS => {
            Ok(Seeds { first, last })
        }
        _ => Err("accepted: a seed, or a range such as 42-51".to_owned()),
    }
}

/// A policy to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PolicyName {
    /// The node with the least free.
    BestFit,
    /// The node with the most free.
    WorstFit,
    /// Any that fits.
    Random,
    /// The one that is left least fragmented (Weng et al., USENIX ATC 2023).
    Fgd,
}

/// An order of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum OrderName {
    /// As the nodes of a cluster come up.
    Pronto,
    /// As in the file.
    List,
    /// Shuffled by each seed.
    Shuffle,
}

/// Runs it.
pub(crate) fn run(args: &SimulateArgs) -> Outcome {
    let trace = match (&args.nodes, &args.pods) {
        (Some(nodes), Some(pods)) => {
            Trace::read(nodes, pods).map_err(|error| Failure::caused(Exit::Usage, error.into()))?
        }
        _ => synthetic_openb(args.synthetic),
    };
    let chooser = match args.policy {
        None => Chooser::Table {
            fit: args.fit.fit(args.choices),
            spread: args.spread.spread(),
        },
        Some(PolicyName::BestFit) => Chooser::Policy(Policy::BestFit),
        Some(PolicyName::WorstFit) => Chooser::Policy(Policy::WorstFit),
        Some(PolicyName::Random) => Chooser::Policy(Policy::Random),
        Some(PolicyName::Fgd) => Chooser::Policy(Policy::Fgd),
    };
    let order = match args.order {
        OrderName::Pronto => Order::Pronto,
        OrderName::List => Order::List,
        OrderName::Shuffle => Order::Shuffle,
    };
    let seeds = match args.seed {
        Some(seed) => vec![seed],
        None => (args.seeds.first..=args.seeds.last).collect(),
    };
    let ready_every = usize::try_from(args.ready_every).map_err(anyhow::Error::from)?;
    let report = simulate(&SimulateConfig {
        trace,
        chooser,
        order,
        ready_every,
        seeds,
    });
    if let Some(path) = &args.plot {
        std::fs::write(path, plot_svg(&report))
            .with_context(|| format!("can't write {}", path.display()))?;
    }
    let bursts = match args.policy {
        None => [Spread::Settle, Spread::Skip, Spread::Rotate]
            .map(|spread| {
                burst_spread(
                    BURST_NODES,
                    BURST_STARTS,
                    spread,
                    args.fit.fit(args.choices),
                )
            })
            .into(),
        Some(_) => Vec::new(),
    };
    let shown = Shown { report, bursts };
    if args.output.format.is_machine() {
        print_value(&shown, args.output.format)?;
    } else {
        print(args, &shown.report);
        print_bursts(&shown.bursts);
    }
    Ok(OK)
}

fn print(args: &SimulateArgs, report: &SimulateReport) {
    let trace = match &args.nodes {
        Some(nodes) => nodes.display().to_string(),
        None => format!(
            "generated with openb's published mix, seed {}",
            args.synthetic
        ),
    };
    let chooser = match args.policy {
        Some(policy) => format!("policy {policy:?}"),
        None => format!(
            "fit {}, spread {}",
            args.fit.words(args.choices),
            args.spread.word()
        ),
    };
    write(format_args!(
        "{}",
        fields([
            ("trace", trace),
            ("nodes", report.nodes.to_string()),
            ("arrivals to draw from", report.tasks.to_string()),
            ("chosen by", chooser),
            ("seeds", report.seeds.len().to_string()),
            (
                "placements per second",
                format!("{:.0}", report.placements_per_second)
            ),
        ])
    ));
    say!("");
    if let Some(waiting) = &report.waiting {
        write(format_args!(
            "{}",
            fields([
                ("placed", format!("{:.1}", waiting.placed)),
                ("of them waited", format!("{:.1}", waiting.waited)),
                ("never fit", format!("{:.1}", waiting.refused)),
                (
                    "wait",
                    format!(
                        "mean {:.1} s, p50 {:.1} s, p90 {:.1} s, p99 {:.1} s, max {:.1} s",
                        waiting.mean_s, waiting.p50_s, waiting.p90_s, waiting.p99_s, waiting.max_s
                    ),
                ),
                ("makespan", format!("{:.1} s", waiting.makespan_s)),
            ])
        ));
    } else {
        let row = |name: &str, at_100: f64, at_130: f64| {
            vec![
                name.to_owned(),
                format!("{at_100:.2}"),
                format!("{at_130:.2}"),
            ]
        };
        let rows = [
            row(
                "GPUs allocated, %",
                report.gpu_alloc_percent_at_100,
                report.gpu_alloc_percent_at_130,
            ),
            row(
                "CPUs allocated, %",
                report.cpu_alloc_percent_at_100,
                report.cpu_alloc_percent_at_130,
            ),
            row(
                "memory allocated, %",
                report.memory_alloc_percent_at_100,
                report.memory_alloc_percent_at_130,
            ),
            row(
                "GPUs fragmented, %",
                report.gpu_fragmented_percent_at_100,
                report.gpu_fragmented_percent_at_130,
            ),
            row("refused", report.failed_at_100, report.failed_at_130),
        ];
        let header = ["WHEN HAS ARRIVED", "100 %", "130 %"]
            .map(str::to_owned)
            .to_vec();
        write(format_args!(
            "{}",
            crate::output::layout(header, rows.into_iter(), false)
        ));
    }
    if !report.refusals.is_empty() {
        say!("\nrefusals by reason");
        for (reason, count) in &report.refusals {
            say!("  {count:>10.1}  {reason}");
        }
    }
}

fn print_bursts(bursts: &[BurstSpread]) {
    if bursts.is_empty() {
        return;
    }
    say!("\na burst of {BURST_STARTS} STARTs over {BURST_NODES} idle nodes");
    for burst in bursts {
        say!(
            "  {:8} {} to {} on a node, {} nodes used",
            format!("{:?}", burst.spread).to_lowercase(),
            burst.least_on_a_node,
            burst.most_on_a_node,
            burst.nodes_used
        );
    }
}

/// Which of the nodes that fit is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FitName {
    /// The first.
    First,
    /// The least fragmented of the first few.
    Few,
}

impl FitName {
    /// As the table knows it.
    pub(crate) const fn fit(self, choices: u8) -> Fit {
        match self {
            Self::First => Fit::First,
            Self::Few => Fit::Few { choices },
        }
    }

    /// As it stands in reports.
    pub(crate) fn words(self, choices: u8) -> String {
        match self {
            Self::First => "first".to_owned(),
            Self::Few => format!("few of {choices}"),
        }
    }
}

/// How the most recently used node is avoided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SpreadName {
    /// Until a report has counted its last START.
    Settle,
    /// The very last node only.
    Skip,
    /// Each search begins after the last node used.
    Rotate,
}

impl SpreadName {
    /// As the table knows it.
    pub(crate) const fn spread(self) -> Spread {
        match self {
            Self::Settle => Spread::Settle,
            Self::Skip => Spread::Skip,
            Self::Rotate => Spread::Rotate,
        }
    }

    /// As it stands in reports.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Settle => "settle",
            Self::Skip => "skip",
            Self::Rotate => "rotate",
        }
    }
}
