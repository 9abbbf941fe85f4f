//! `pronto bench place`: the front end of the scheduler's own benchmark of its node table.

use super::{Report, Row};
use crate::commands::simulate::{FitName, SpreadName};
use crate::exit::Failure;
use clap::Args;
use pronto_scheduler::bench_place::{BenchPlaceConfig, bench_place};
use serde_json::{Map, json};

/// Above this the table and its references would not fit a workstation's memory.
const MAX_NODES: u64 = 10_000_000;

/// Flags of `bench place`.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    /// Nodes in the table
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=MAX_NODES))]
    nodes: u64,
    /// Share of nodes without room in the row search/fill
    #[arg(long, default_value_t = 0.95, value_parser = share)]
    fill: f64,
    /// Dimensions of a demand: cpu, memory, disk, GPUs
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=4))]
    dims: u8,
    /// Seed of nodes and demands
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// first, or few: the least fragmented of the first --choices
    #[arg(long, default_value = "first")]
    fit: FitName,
    /// How many nodes `few` compares
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=16))]
    choices: u8,
    /// How the most recently used node is avoided
    #[arg(long, default_value = "settle")]
    spread: SpreadName,
    /// Time for each row
    #[arg(long, default_value = "500ms", value_name = "DURATION", value_parser = crate::units::duration_ms)]
    budget: u64,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "accepted: a share from 0 to 1".to_owned())
}

/// Measures.
pub(super) fn run(args: &PlaceArgs) -> Result<Report, Failure> {
    let parameters = json!({
        "nodes": args.nodes,
        "fill": args.fill,
        "dims": args.dims,
        "seed": args.seed,
        "fit": args.fit.words(args.choices),
        "spread": args.spread.word(),
        "budget_ms": args.budget,
    });
    let config = BenchPlaceConfig {
        nodes: usize::try_from(args.nodes).map_err(anyhow::Error::from)?,
        fill: args.fill,
        dims: usize::from(args.dims),
        seed: args.seed,
        fit: args.fit.fit(args.choices),
        spread: args.spread.spread(),
        budget_ms: args.budget,
    };
    let mut report = Report::new(parameters.as_object().cloned().unwrap_or_else(Map::new));
    report.rows = bench_place(&config)
        .into_iter()
        .map(|row| Row {
            name: row.name,
            unit: row.unit,
            value: row.value,
            p50: row.p50,
            p99: row.p99,
            max: row.max,
            reference: row.reference,
            ratio: row.ratio,
        })
        .collect();
    Ok(report)
}
