//! The simulation watched: a seed replays exactly, and what once failed stays mended.

use super::faults::Fault;
use super::net::{Host, MS};
use super::{SimConfig, run};

/// Half a second of users, and one fault at each of many moments of it, a fraction of a millisecond
/// apart: whatever a START, its answer, a report or a commit is doing, the fault meets it there.
fn at_any_moment(seed: u64, fault: impl Fn() -> Fault) {
    for moment in 0..60 {
        let outcome = run(&SimConfig {
            busy: 500 * MS,
            fault_every: 0,
            user_every: 10 * MS,
            script: vec![(200 * MS + moment * MS * 7 / 10, fault())],
            ..SimConfig::new(seed)
        });
        assert_eq!(outcome.failure, None, "moment {moment}\n{}", outcome.trace);
        assert!(outcome.attempts > 20 && outcome.faults == 1);
    }
}

/// Rule 1: a START was forwarded, and the scheduler dies before its PLACED.
#[test]
fn the_scheduler_dies_at_any_moment_of_a_placement() {
    at_any_moment(1, || Fault::Kill {
        host: Host::Scheduler,
        back_after: 100 * MS,
    });
}

/// Rules 1, 3 and 10: STARTs without an answer, exits while the controller is down, commits that
/// were not durable.
#[test]
fn the_controller_dies_at_any_moment_of_an_instance() {
    at_any_moment(2, || Fault::Kill {
        host: Host::Controller,
        back_after: 1500 * MS,
    });
}

/// Rules 2 and 3: what a launcher had accepted is found again, and what it had not is missing.
#[test]
fn a_launcher_dies_at_any_step_of_an_attempt() {
    for after_effects in 0..4 {
        at_any_moment(3, || Fault::KillInStep {
            node: 0,
            after_effects,
            back_after: 300 * MS,
        });
    }
}

/// Rule 4: STARTs lie unread in a launcher under SIGSTOP, for longer than its lease.
#[test]
fn a_launcher_is_stopped_with_starts_unread() {
    at_any_moment(4, || Fault::Freeze {
        host: Host::Node(0),
        time: 6000 * MS,
    });
}

/// Rules 4 and 7: the scheduler wakes up with grants, STARTs and reports of long ago.
#[test]
fn the_scheduler_is_stopped_with_everything_unread() {
    at_any_moment(6, || Fault::Freeze {
        host: Host::Scheduler,
        time: 6000 * MS,
    });
}

/// Rule 10: the controller's disk stands still, and nothing is acknowledged meanwhile.
#[test]
fn a_commit_stalls_on_the_controllers_disk() {
    at_any_moment(7, || Fault::DiskStall { time: 3000 * MS });
}

#[test]
fn a_seed_replays_byte_for_byte() {
    for seed in [1, 2, 3, 7] {
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

#[test]
fn another_seed_is_another_history() {
    let digest = |seed| run(&SimConfig::new(seed)).digest;
    assert_ne!(digest(1), digest(6));
}
