//! The simulation watched: a seed replays exactly, and what once failed stays mended.

use super::faults::Fault;
use super::net::{Host, MS, Time};
use super::tally::{EXPECTED, Tally};
use super::{Outcome, SimConfig, run, users};

/// The moments of half a second that a fault is tried at, a fraction of a millisecond apart.
const MOMENTS: u64 = 60;

/// When the fault strikes.
fn moment(number: u64) -> Time {
    200 * MS + number * MS * 7 / 10
}

/// Half a second of users without any fault.
fn calm(seed: u64) -> SimConfig {
    SimConfig {
        busy: 500 * MS,
        fault_every: 0,
        user_every: 10 * MS,
        script: Vec::new(),
        ..SimConfig::new(seed)
    }
}

/// Runs it, and again with a trace where it fails.
fn checked(config: SimConfig, what: &str) -> Outcome {
    let outcome = run(&SimConfig {
        trace_lines: 0,
        ..config.clone()
    });
    if let Some(failure) = &outcome.failure {
        let trace = run(&SimConfig {
            trace_lines: usize::MAX,
            ..config
        })
        .trace;
        panic!("{what}\n{trace}\n{what}: {failure}");
    }
    outcome
}

/// One fault at each of many moments: whatever a START, its answer, a report or a commit is doing,
/// the fault meets it there.
fn at_any_moment(config: &SimConfig, fault: impl Fn() -> Fault) {
    for number in 0..MOMENTS {
        let config = SimConfig {
            script: vec![(moment(number), fault())],
            ..config.clone()
        };
        let outcome = checked(config, &format!("moment {number}"));
        assert!(outcome.attempts > 20 && outcome.faults == 1);
    }
}

/// Rule 1: a START was forwarded, and the scheduler dies before its PLACED.
#[test]
fn the_scheduler_dies_at_any_moment_of_a_placement() {
    at_any_moment(&calm(1), || Fault::Kill {
        host: Host::Scheduler(0),
        back_after: 100 * MS,
    });
}

/// Rules 1, 3 and 10: STARTs without an answer, exits while the controller is down, commits that
/// were not durable.
#[test]
fn the_controller_dies_at_any_moment_of_an_instance() {
    at_any_moment(&calm(2), || Fault::Kill {
        host: Host::Controller(0),
        back_after: 1500 * MS,
    });
}

/// Rules 2 and 3: what a launcher had accepted is found again, and what it had not is missing.
#[test]
fn a_launcher_dies_at_any_step_of_an_attempt() {
    for after_effects in 0..4 {
        at_any_moment(&calm(3), || Fault::KillInStep {
            node: 0,
            after_effects,
            back_after: 300 * MS,
        });
    }
}

/// Rule 4: STARTs lie unread in a launcher under SIGSTOP, for longer than its lease.
#[test]
fn a_launcher_is_stopped_with_starts_unread() {
    at_any_moment(&calm(4), || Fault::Freeze {
        host: Host::Node(0),
        time: 6000 * MS,
    });
}

/// Rules 4 and 7: the scheduler wakes up with grants, STARTs and reports of long ago.
#[test]
fn the_scheduler_is_stopped_with_everything_unread() {
    at_any_moment(&calm(6), || Fault::Freeze {
        host: Host::Scheduler(0),
        time: 6000 * MS,
    });
}

/// Rule 10: the controller's disk stands still, and nothing is acknowledged meanwhile.
#[test]
fn a_commit_stalls_on_the_controllers_disk() {
    at_any_moment(&calm(7), || Fault::DiskStall {
        controller: 0,
        time: 3000 * MS,
    });
}

/// Rule 6: a store is put back that knows nothing of the last milliseconds. What it does not know
/// is left alone, and no attempt that it gives out was given out before.
#[test]
fn a_store_is_restored_from_an_old_backup() {
    let mut quarantined = 0;
    for number in 0..MOMENTS {
        let restore = Fault::Restore {
            controller: 0,
            back_after: 300 * MS,
        };
        let config = SimConfig {
            script: vec![
                (150 * MS, Fault::Backup { controller: 0 }),
                (moment(number), restore),
            ],
            ..calm(8)
        };
        let outcome = checked(config, &format!("moment {number}"));
        quarantined += outcome.quarantined;
    }
    assert!(quarantined as u64 > MOMENTS, "{quarantined}");
}

/// Rule 6, with all that breaks besides: schedulers that start anew know no epoch and no term.
#[test]
fn a_store_is_restored_while_everything_else_breaks() {
    for seed in 1..=40 {
        let config = SimConfig {
            script: Fault::restores(),
            ..SimConfig::new(seed)
        };
        checked(config, &format!("seed {seed}"));
    }
}

/// Rule 6: two controllers, each with its own store, share a scheduler and its nodes; each knows its
/// own work alone.
#[test]
fn two_controllers_share_a_scheduler() {
    let config = SimConfig {
        schedulers: 1,
        controllers: 2,
        ..calm(6)
    };
    for controller in [0, 1] {
        at_any_moment(&config, || Fault::Kill {
            host: Host::Controller(controller),
            back_after: 1500 * MS,
        });
    }
    assert_eq!(checked(config, "no fault").quarantined, 0);
}

/// Rule 7: half of the launchers are at the standby when the active scheduler dies, or is cut off and
/// comes back.
#[test]
fn half_of_the_launchers_are_at_the_standby() {
    let config = SimConfig {
        nodes: 6,
        schedulers: 2,
        split: true,
        ..calm(8)
    };
    let active = Host::Scheduler(0);
    at_any_moment(&config, || Fault::Kill {
        host: active,
        back_after: 8000 * MS,
    });
    at_any_moment(&config, || Fault::Isolate {
        host: active,
        time: 8000 * MS,
    });
    let outcome = run(&SimConfig {
        trace_lines: usize::MAX,
        ..config
    });
    assert_eq!(outcome.failure, None, "{}", outcome.trace);
    // They find the active one by themselves.
    for node in [1, 3, 5] {
        let at_first = format!("node-{node} dials scheduler-1, session 1");
        let then = format!("node-{node} dials scheduler-0, session 2");
        assert!(outcome.trace.contains(&at_first) && outcome.trace.contains(&then));
    }
}

/// Nobody but those who are named acts.
fn scripted(nodes: u32) -> SimConfig {
    SimConfig {
        nodes,
        schedulers: 1,
        fault_every: 0,
        user_every: 0,
        ..SimConfig::new(1)
    }
}

fn ended(outcome: &Outcome, state: &str) -> usize {
    outcome.ends.get(state).copied().unwrap_or_default()
}

/// So many instances wait for room on a node that two others fill; the small one of them runs for so
/// long. As many wait as the tenant's quota leaves.
const PENDING: u32 = 99_998;

fn with_many_pending(first_runs_ms: u64) -> Outcome {
    const SLOT_MILLIS: u32 = 90;
    let mut waiting = users::equal(3, PENDING, SLOT_MILLIS, 10_000);
    if let Some(spec) = &mut waiting.spec {
        spec.pending_timeout_ms = Some(4_000);
    }
    let config = SimConfig {
        busy: 1_000 * MS,
        submissions: vec![
            (500 * MS, users::equal(1, 1, SLOT_MILLIS, first_runs_ms)),
            (500 * MS, users::equal(2, 1, 2_000 - SLOT_MILLIS, 10_000)),
            (1_000 * MS, waiting),
        ],
        ..scripted(1)
    };
    checked(config, "100,000 pending")
}

/// A freed slot costs a handful of STARTs, however many instances wait for it.
#[test]
fn a_hundred_thousand_are_pending_and_one_slot_is_freed() {
    let full = with_many_pending(10_000);
    assert_eq!(ended(&full, "expired"), PENDING as usize);
    let freed = with_many_pending(2_000);
    assert_eq!(ended(&freed, "expired"), PENDING as usize - 1);
    assert_eq!(ended(&freed, "succeeded"), 3);
    let cost = freed.starts - full.starts;
    assert!((1..=4).contains(&cost), "{cost} STARTs");
}

/// A node that fails everything at once is always free, and must not swallow the queue.
#[test]
fn a_black_hole_swallows_no_queue() {
    let config = SimConfig {
        busy: 20_000 * MS,
        script: vec![(
            100 * MS,
            Fault::BlackHole {
                node: 0,
                time: 60_000 * MS,
            },
        )],
        submissions: (1..=40)
            .map(|number| {
                (
                    500 * MS + u64::from(number) * 200 * MS,
                    users::equal(number, 5, 1000, 300),
                )
            })
            .collect(),
        ..scripted(3)
    };
    let outcome = checked(config, "a black hole");
    assert_eq!(ended(&outcome, "succeeded"), 200);
    let swallowed = outcome.refused.get(&0).copied().unwrap_or_default();
    assert!((1..=20).contains(&swallowed), "{swallowed}");
}

#[test]
fn a_seed_replays_byte_for_byte() {
    for seed in [1, 3, 4, 7] {
        let config = SimConfig {
            trace_lines: usize::MAX,
            ..SimConfig::new(seed)
        };
        let (first, second) = (run(&config), run(&config));
        assert!(first.trace.len() > 100_000, "there is something to compare");
        assert!(first.trace == second.trace, "seed {seed} has two traces");
        assert_eq!(
            (first.digest, first.steps, first.attempts, first.settled_at),
            (
                second.digest,
                second.steps,
                second.attempts,
                second.settled_at
            )
        );
        assert_eq!(first.failure, None);
    }
}

/// Each kind of fault strikes something, and users do all that they can, within few seeds.
#[test]
fn everything_that_is_to_be_tried_happens() {
    const SEEDS: u64 = 100;
    let mut tally = Tally::default();
    let mut missing = EXPECTED.to_vec();
    for seed in 1..=SEEDS {
        let outcome = checked(SimConfig::new(seed), &format!("seed {seed}"));
        tally.add(&outcome.tally);
        missing.retain(|what| !tally.0.contains_key(what));
        if missing.is_empty() {
            return;
        }
    }
    panic!("{missing:?} did not happen in {SEEDS} seeds: {tally}");
}

#[test]
fn another_seed_is_another_history() {
    let digest = |seed| run(&SimConfig::new(seed)).digest;
    assert_ne!(digest(1), digest(6));
}
