//! Prints what `bench place` measures: `cargo run --release -p pronto-scheduler --example place --
//! [nodes] [dims]`.

use pronto_scheduler::bench_place::{BenchPlaceConfig, bench_place};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |otherwise: usize| {
        arguments
            .next()
            .map_or(otherwise, |text| text.parse().expect("a whole number"))
    };
    let config = BenchPlaceConfig {
        nodes: number(100_000),
        dims: number(4),
        ..BenchPlaceConfig::default()
    };
    println!("{config:?}");
    println!(
        "{:34}{:>11}{:>11}{:>12}{:>12}{:>9}",
        "row", "p50 ns", "p99 ns", "max ns", "reference", "ratio"
    );
    for row in bench_place(&config) {
        let cell = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.1}"));
        println!(
            "{:34}{:>11}{:>11}{:>12}{:>12}{:>9}",
            row.name,
            cell(row.p50),
            cell(row.p99),
            cell(row.max),
            cell(row.reference),
            row.ratio
                .map_or(String::new(), |ratio| format!("{ratio:.4}"))
        );
    }
}
