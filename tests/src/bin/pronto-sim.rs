//! `pronto-sim`: runs the whole-cluster simulation for many seeds.

use pronto_tests::sim::{Plant, SimConfig, run};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const USAGE: &str =
    "usage: pronto-sim [--seeds N] [--first SEED] [--plant NAME|list] [--lines N] [--grep TEXT]

  --seeds N      how many seeds to run (default 1000)
  --first SEED   the first of them (default 1)
  --plant NAME   plant a bug: succeeds if some seed fails; `list` names the bugs
  --lines N      lines at the end of a failure's trace that are printed (default 400)
  --grep TEXT    of the whole trace print only the lines that contain TEXT

A failure prints its seed, what was violated, and the end of its trace; the same seed replays it.";

struct Args {
    seeds: u64,
    first: u64,
    plant: Option<Plant>,
    lines: usize,
    grep: Option<String>,
}

fn parse() -> Result<Option<Args>, String> {
    let mut args = Args {
        seeds: 1000,
        first: 1,
        plant: None,
        lines: 400,
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
                args.lines = usize::try_from(number(value()?)?).unwrap_or(usize::MAX);
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
                let plant = Plant::from_name(&name).ok_or(format!(
                    "no bug is called '{name}'; --plant list names them"
                ))?;
                args.plant = Some(plant);
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
        Ok(Some(args)) => simulate(&args),
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
    steps: u64,
    failed: Vec<(u64, String, String)>,
}

fn simulate(args: &Args) -> ExitCode {
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
                        plant: args.plant,
                        trace_lines: if args.grep.is_some() {
                            usize::MAX
                        } else {
                            args.lines
                        },
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
                            totals.steps += outcome.steps;
                            if let Some(failure) = outcome.failure {
                                totals.failed.push((seed, failure, outcome.trace));
                            }
                        }
                        Err(_) => totals.failed.push((
                            seed,
                            "a core panicked; its message is above".to_owned(),
                            String::new(),
                        )),
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
    let totals = totals.into_inner().expect("all threads have ended");
    println!(
        "{} seeds in {:.1} s: {} instances acknowledged, {} attempts run, {} faults, {} steps",
        totals.seeds,
        began.elapsed().as_secs_f64(),
        totals.acknowledged,
        totals.attempts,
        totals.faults,
        totals.steps
    );
    match (totals.failed.first(), args.plant) {
        (None, None) => {
            println!("lost 0, ran twice 0");
            ExitCode::SUCCESS
        }
        (Some((seed, failure, _)), Some(plant)) => {
            println!(
                "the planted bug {} was caught by seed {seed}: {failure}",
                plant.name()
            );
            ExitCode::SUCCESS
        }
        (None, Some(plant)) => {
            println!("the planted bug {} was not caught", plant.name());
            ExitCode::FAILURE
        }
        (Some((seed, failure, trace)), None) => {
            let wanted = args.grep.as_deref().unwrap_or_default();
            for line in trace.lines().filter(|line| line.contains(wanted)) {
                println!("{line}");
            }
            println!("seed {seed} failed: {failure}");
            println!("replay it: pronto-sim --first {seed} --seeds 1");
            ExitCode::FAILURE
        }
    }
}
