//! `pronto bench`: what this machine does, each figure beside a reference of the same run.
//!
//! Every subcommand fills one [`Report`]; this module prints it, as a table for people or as the
//! documented JSON. How something is measured stands in the subcommand's own module.

mod connect;
mod dispatch;
mod figures;
mod fleet;
mod hostile;
mod overload;
mod place;
mod relay;
mod rig;
mod stall;
mod stats;
mod submit;

use crate::commands::unless_interrupted;
use crate::exit::{Failure, OK, Outcome};
use crate::output::{Format, layout, print_value, say, write};
use clap::Subcommand;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// What can be measured
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Search and update of the node table, beside a linear first fit and a vectorised scan
    Place(place::PlaceArgs),
    /// STARTs per second and their latency through a real scheduler, beside a bare TLS relay
    Dispatch(dispatch::DispatchArgs),
    /// READY frames that a real scheduler takes in
    Stats(stats::StatsArgs),
    /// Launchers connecting, and coming back after their scheduler was killed
    Connect(connect::ConnectArgs),
    /// Honest placements while others misbehave, beside an equal load of others that don't
    Hostile(hostile::HostileArgs),
    /// A controller with a deep queue and many users at once
    Overload(overload::OverloadArgs),
    /// From a user's request to a running process and to its end, through the whole cluster
    Submit(submit::SubmitArgs),
    /// The largest delay of any reply while many different demands wait for room
    Stall(stall::StallArgs),
    /// The reference of `dispatch`, as a process of its own
    #[command(hide = true)]
    Relay(relay::RelayArgs),
}

/// Runs it.
pub(crate) fn run(command: &BenchCommand, format: Format) -> Outcome {
    let report = match command {
        BenchCommand::Place(args) => place::run(args)?,
        BenchCommand::Dispatch(args) => on_one_thread(dispatch::run(args))?,
        BenchCommand::Stats(args) => on_one_thread(stats::run(args))?,
        BenchCommand::Connect(args) => on_one_thread(connect::run(args))?,
        BenchCommand::Overload(args) => on_one_thread(overload::run(args))?,
        BenchCommand::Hostile(args) => on_one_thread(hostile::run(args))?,
        BenchCommand::Submit(args) => submit::run(args)?,
        BenchCommand::Stall(args) => stall::run(args)?,
        BenchCommand::Relay(args) => {
            relay::run(args)?;
            return Ok(OK);
        }
    };
    report.print(format)?;
    Ok(OK)
}

/// All clients of a bench share one thread, which leaves a core to the server that is measured.
fn on_one_thread(bench: impl Future<Output = anyhow::Result<Report>>) -> Result<Report, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let bench = async { bench.await.map_err(Failure::from) };
    tokio::task::LocalSet::new().block_on(&runtime, unless_interrupted(bench))
}

/// Times from a nanosecond to a minute: what is longer counts as a minute.
fn nanoseconds() -> hdrhistogram::Histogram<u64> {
    hdrhistogram::Histogram::new_with_bounds(1, 60_000_000_000, 3)
        .expect("the bounds are constants that it accepts")
}

/// Parameters of a report, by name.
fn parameters<const N: usize>(facts: [(&str, Value); N]) -> Map<String, Value> {
    facts
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// What a benchmark found: the documented JSON of `-o json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Map<String, Value>,
    pub(crate) parameters: Map<String, Value>,
    pub(crate) rows: Vec<Row>,
}

/// One figure. What does not apply is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max: Option<f64>,
    /// What the reference did in the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<f64>,
    /// `value / reference`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ratio: Option<f64>,
}

impl Report {
    /// A report with this machine's description and no figures yet.
    pub(crate) fn new(parameters: Map<String, Value>) -> Self {
        Self {
            machine: machine(),
            parameters,
            rows: Vec::new(),
        }
    }

    /// Prints it.
    pub(crate) fn print(&self, format: Format) -> Result<(), Failure> {
        if format.is_machine() {
            return print_value(self, format);
        }
        say!("machine     {}", pairs(&self.machine));
        say!("parameters  {}\n", pairs(&self.parameters));
        let header = [
            "NAME",
            "VALUE",
            "UNIT",
            "P50",
            "P99",
            "MAX",
            "REFERENCE",
            "RATIO",
        ];
        let rows = self.rows.iter().map(|row| {
            let optional = |value: Option<f64>| value.map(figure).unwrap_or_default();
            vec![
                row.name.clone(),
                figure(row.value),
                row.unit.clone(),
                optional(row.p50),
                optional(row.p99),
                optional(row.max),
                optional(row.reference),
                optional(row.ratio),
            ]
        });
        write(format_args!(
            "{}",
            layout(header.map(str::to_owned).to_vec(), rows, false)
        ));
        Ok(())
    }
}

/// The machine that a figure was measured on.
fn machine() -> Map<String, Value> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .map(|rest| rest.trim_start_matches([':', '\t', ' ']).trim().to_owned())
    };
    let cpu = field(&read("/proc/cpuinfo"), "model name").unwrap_or_default();
    let memory = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib / 1024);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let build = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    let facts = json!({
        "cpu": cpu,
        "cores": cores,
        "memory_mib": memory,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "pronto": env!("CARGO_PKG_VERSION"),
        "build": build,
    });
    match facts {
        Value::Object(facts) => facts,
        _ => Map::new(),
    }
}

fn pairs(facts: &Map<String, Value>) -> String {
    let words: Vec<String> = facts
        .iter()
        .map(|(key, value)| match value {
            Value::String(text) => format!("{key}={text}"),
            other => format!("{key}={other}"),
        })
        .collect();
    words.join("  ")
}

/// Three significant figures, without an exponent where people read it.
fn figure(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size if size > 0.0 => 3,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_keys_are_left_out_of_the_json() {
        let mut report = Report::new(Map::new());
        report.rows.push(Row {
            name: "search/all-fit".into(),
            unit: "ns".into(),
            value: 40.0,
            ..Row::default()
        });
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json["rows"][0],
            json!({"name": "search/all-fit", "unit": "ns", "value": 40.0})
        );
        assert!(json["machine"]["cores"].as_u64().unwrap() > 0);
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!(
            [figure(0.0), figure(0.1234), figure(12.34), figure(1234.5)],
            ["0", "0.123", "12.3", "1234"]
        );
    }
}
