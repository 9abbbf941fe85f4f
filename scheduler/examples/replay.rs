//! Replays a trace in all ways: `cargo run --release -p pronto-scheduler --example replay -- NODES
//! PODS [pronto|list|shuffle]`, or the generated trace if no files are named.

use pronto_scheduler::replay::{
    Chooser, Order, Policy, SimulateConfig, Trace, simulate, synthetic_openb,
};
use pronto_scheduler::table::{Fit, Spread};
use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let trace = match arguments.as_slice() {
        [nodes, pods, ..] => Trace::read(Path::new(nodes), Path::new(pods)).expect("a trace"),
        _ => synthetic_openb(42),
    };
    let order = match arguments.get(2).map(String::as_str) {
        Some("pronto") => Order::Pronto,
        Some("list") => Order::List,
        _ => Order::Shuffle,
    };
    let with_policies = arguments.get(3).is_some();
    let table = |fit, spread| Chooser::Table { fit, spread };
    let mut choosers = vec![
        table(Fit::First, Spread::Settle),
        table(Fit::First, Spread::Skip),
        table(Fit::First, Spread::Rotate),
    ];
    for choices in [2, 4, 6, 8, 12, 16] {
        choosers.push(table(Fit::Few { choices }, Spread::Settle));
    }
    if with_policies {
        let policies = [
            Policy::BestFit,
            Policy::WorstFit,
            Policy::Random,
            Policy::Fgd,
        ];
        choosers.extend(policies.map(Chooser::Policy));
    }
    for chooser in choosers {
        let report = simulate(&SimulateConfig {
            chooser,
            order,
            ..SimulateConfig::new(trace.clone())
        });
        println!(
            "{:58} gpu {:.2} {:.2} cpu {:.2} memory {:.2} frag {:.2} failed {:.1} {:.1} {:>9.0}/s",
            format!("{chooser:?}"),
            report.gpu_alloc_percent_at_100,
            report.gpu_alloc_percent_at_130,
            report.cpu_alloc_percent_at_100,
            report.memory_alloc_percent_at_100,
            report.gpu_fragmented_percent_at_100,
            report.failed_at_100,
            report.failed_at_130,
            report.placements_per_second,
        );
    }
}
