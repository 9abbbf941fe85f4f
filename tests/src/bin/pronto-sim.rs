//! `pronto-sim`: runs the whole-cluster simulation for many seeds.

use pronto_tests::sim::{Plant, SimConfig, Tally, run};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const USAGE: &str =
    "usage: pronto-sim [--seeds N] [--first SEED] [--plant NAME|list|all] [--lines N] [--grep TEXT]

  --seeds N      how many seeds to run (default 1000)
  --first SEED   the first of them (default 1)
  --plant NAME   plant a bug: succeeds if some seed fails; `list` names the bugs, `all` plants each
                 in turn and succeeds if each was caught
  --lines N      lines at the end of a failure's trace that are printed (default 400; of a planted
                 bug's none, unless it is said)
  --grep TEXT    of the whole trace print only the lines that contain TEXT

A failure prints its seed, what was violated, and the end of its trace; the same seed replays it.";

/// Lines of a failure's trace, unless somebody wishes another number.
const DEFAULT_LINES: usize = 400;

struct Args {
    seeds: u64,
    first: u64,
    /// Each is planted alone; none: as it is.
    plants: Vec<Plant>,
    lines: Option<usize>,
    grep: Option<String>,
}

fn parse() -> Result<Option<Args>, String> {
    let mut args = Args {
        seeds: 1000,
        first: 1,
        plants: Vec::new(),
        lines: None,
        grep: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .ok_or(format!("{word} needs a value\n\n{USAGE}"))
        };
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|_| format!("'{text}' is not a whole number"))
        };
        match word.as_str() {
            "--seeds" => args.seeds = number(value()?)?,
            "--first" => args.first = number(value()?)?,
            "--lines" => {
                let lines = number(value()?)?;
                args.lines = Some(usize::try_from(lines).unwrap_or(usize::MAX));
            }
            "--grep" => args.grep = Some(value()?),
            "--plant" => {
                let name = value()?;
                if name == "list" {
                    for plant in Plant::ALL {
                        println!("{}", plant.name());
                    }
                    return Ok(None);
                }
                if name == "all" {
                    args.plants = Plant::ALL.to_vec();
                    continue;
                }
                let plant = Plant::from_name(&name).ok_or(format!(
                    "no bug is called '{name}'; --plant list names them"
                ))?;
                args.plants = vec![plant];
            }
            "-h" | "--help" => {
                println!("{USAGE}");
                return Ok(None);
            }
            other => return Err(format!("'{other}' is not known\n\n{USAGE}")),
        }
    }
    Ok(Some(args))
}

fn main() -> ExitCode {
    match parse() {
        Ok(Some(args)) if args.plants.is_empty() => report(&args, &simulate(&args, None)),
        Ok(Some(args)) => hunt(&args),
        Ok(None) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("pronto-sim: {text}");
            ExitCode::from(2)
        }
    }
}

#[derive(Default)]
struct Totals {
    seeds: u64,
    acknowledged: usize,
    attempts: usize,
    faults: usize,
    tally: Tally,
    steps: u64,
    seconds: f64,
    /// Seed, and what was violated; the lowest seed first.
    failed: Vec<(u64, String)>,
}

/// Runs seeds until one fails.
fn simulate(args: &Args, plant: Option<Plant>) -> Totals {
    let began = Instant::now();
    let next = AtomicU64::new(args.first);
    let totals = Mutex::new(Totals::default());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.first + args.seeds {
                        return;
                    }
                    let config = SimConfig {
                        plant,
                        trace_lines: 0,
                        ..SimConfig::new(seed)
                    };
                    let outcome = std::panic::catch_unwind(|| run(&config));
                    let mut totals = totals.lock().expect("no thread panics with it");
                    totals.seeds += 1;
                    match outcome {
                        Ok(outcome) => {
                            totals.acknowledged += outcome.acknowledged;
                            totals.attempts += outcome.attempts;
                            totals.faults += outcome.faults;
                            totals.tally.add(&outcome.tally);
                            totals.steps += outcome.steps;
                            if let Some(failure) = outcome.failure {
                                totals.failed.push((seed, failure));
                            }
                        }
                        Err(_) => {
                            let failure = "a core panicked; its message is above";
                            totals.failed.push((seed, failure.to_owned()));
                        }
                    }
                    if !totals.failed.is_empty() {
                        // One is enough to look at.
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
    let mut totals = totals.into_inner().expect("all threads have ended");
    totals.seconds = began.elapsed().as_secs_f64();
    totals.failed.sort_by_key(|(seed, _)| *seed);
    totals
}

/// Prints the end of a seed's trace, from a run of its own: a run makes none unless it is asked to.
/// Nothing where a core panics.
fn print_trace(args: &Args, plant: Option<Plant>, seed: u64) {
    let trace_lines = if args.grep.is_some() {
        usize::MAX
    } else {
        args.lines.unwrap_or(DEFAULT_LINES)
    };
    let config = SimConfig {
        plant,
        trace_lines,
        ..SimConfig::new(seed)
    };
    let trace = std::panic::catch_unwind(|| run(&config).trace).unwrap_or_default();
    let wanted = args.grep.as_deref().unwrap_or_default();
    for line in trace.lines().filter(|line| line.contains(wanted)) {
        println!("{line}");
    }
}

/// The seeds as they are: none may fail.
fn report(args: &Args, totals: &Totals) -> ExitCode {
    println!(
        "{} seeds in {:.1} s: {} instances acknowledged, {} attempts run, {} faults, {} steps",
        totals.seeds,
        totals.seconds,
        totals.acknowledged,
        totals.attempts,
        totals.faults,
        totals.steps
    );
    println!("of which: {}", totals.tally);
    let Some((seed, failure)) = totals.failed.first() else {
        println!("lost 0, ran twice 0");
        return ExitCode::SUCCESS;
    };
    print_trace(args, None, *seed);
    println!("seed {seed} failed: {failure}");
    println!("replay it: pronto-sim --first {seed} --seeds 1");
    ExitCode::FAILURE
}

/// Planted bugs: each must make some seed fail.
fn hunt(args: &Args) -> ExitCode {
    // A planted bug may show as a broken invariant of a core, which panics; one line is enough.
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = 0;
    for plant in &args.plants {
        let totals = simulate(args, Some(*plant));
        match totals.failed.first() {
            Some((seed, failure)) => {
                if args.lines.is_some() || args.grep.is_some() {
                    print_trace(args, Some(*plant), *seed);
                }
                println!(
                    "{:28} caught after {} seeds, by seed {seed}: {failure}",
                    plant.name(),
                    seed - args.first + 1
                );
            }
            None => {
                missed += 1;
                println!("{:28} not caught in {} seeds", plant.name(), totals.seeds);
            }
        }
    }
    if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
