//! Rules 6 and 10: what a store owns and may have forgotten, and what is written down when.

use super::super::*;
use crate::api::types::{RestartMode, RestartPolicy};

#[test]
fn rule_06_an_unknown_instance_of_ones_own_is_quarantined_and_never_stopped() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let old = h.store.clone();
    h.submit(sim(), 1);
    let start = h.start_on(&a);
    // The store is rolled back to before the submission.
    let mut h = h.crash_onto(old);
    let a = again(&a, &[(start, NodePhase::Running)]);
    h.connect(std::slice::from_ref(&a));
    let ask = h.expect_inventory(&a);
    h.inventory(&a, 1, &[report(start, NodePhase::Running, None, 1)], ask);
    h.pass(10_000);
    assert!(h.sent.is_empty(), "neither stopped nor acknowledged");
    let alarms: Vec<_> = h
        .store
        .events
        .iter()
        .filter(|e| e.kind == "quarantined")
        .collect();
    assert_eq!(alarms.len(), 1);
    // A new instance may get the same number; it is not taken for the unknown one.
    h.submit(sim(), 1);
    let new = h.start().0.id;
    assert_ne!(new.instance, start.instance);
    h.placed(new, &a);
    h.ended("a", start, EndCause::Exited { code: 0 });
    assert!(h.sent.is_empty());
    // Nor does it pass for it in an inventory: the new one has not reached its node.
    let a = again(&a, &[(start, NodePhase::Ended)]);
    h.node_up(&a);
    let ask = h.expect_inventory(&a);
    let old = report(
        start,
        NodePhase::Ended,
        Some(EndCause::Exited { code: 0 }),
        2,
    );
    h.inventory(&a, 0, &[old], ask);
    h.pass(2_000);
    let next = h.start().0.id;
    assert_eq!((next.instance, next.attempt.0), (new.instance, 2));
}

#[test]
fn rule_06_a_restored_store_adopts_newer_attempts_and_raises_its_epoch() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let mut spec = sim();
    spec.restart.mode = RestartMode::Always;
    h.submit(spec, 1);
    let mut old = h.store.clone();
    let first = h.start_on(&a);
    h.ended("a", first, EndCause::Exited { code: 0 });
    h.expect_ack(first);
    h.pass(5_000);
    let second = h.start_on(&a);
    old.meta.restored = true;
    let mut h = h.crash_onto(old);
    h.session_up_with(SchedulerWelcome {
        stats_interval_ms: 1000,
        lease_ms: 10_000,
        start_window: 1,
        owner_epoch: ControllerEpoch(40),
        nodes: 1,
    });
    assert_eq!((h.state.epoch(), h.store.meta.epoch), (41, 41));
    assert_eq!(h.dropped_sessions, 1, "HELLO is said again with it");
    h.disconnect_scheduler();
    h.session_up_with(SchedulerWelcome {
        stats_interval_ms: 1000,
        lease_ms: 10_000,
        start_window: 1,
        owner_epoch: ControllerEpoch(41),
        nodes: 1,
    });
    h.activate(std::slice::from_ref(&a));
    let ask = h.expect_inventory(&a);
    h.inventory(&a, 1, &[report(second, NodePhase::Running, None, 1)], ask);
    assert_eq!(h.store.amends.values().next().unwrap().attempt, 2);
    assert!(h.sent.is_empty());
}

/// A backup does not know which numbers were used after it was made.
#[test]
fn rule_06_a_restored_store_repeats_no_epoch_no_term_and_no_attempt() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let mut spec = sim();
    spec.restart = RestartPolicy {
        mode: RestartMode::OnFailure,
        limit: None,
        backoff_ms: 100,
        backoff_max_ms: 100,
    };
    h.submit(spec, 1);
    let backup = h.store.clone();
    let first = h.start_on(&a);
    h.ended("a", first, EndCause::Exited { code: 1 });
    h.expect_ack(first);
    h.pass(1_000);
    let second = h.start().0.id;
    assert_eq!(second.attempt.0, 2);
    let used = h.store.meta;

    let seconds = 1_900_000_000;
    let mut h = h.crash_onto(backup.restored(seconds * 1000));
    assert!(h.state.epoch() > used.epoch);
    h.connect(std::slice::from_ref(&a));
    assert!(h.store.meta.term > used.term);
    let ask = h.expect_inventory(&a);
    h.inventory(&a, 5, &[], ask);
    h.pass(59_000);
    assert!(
        h.sent.is_empty(),
        "a node that the backup does not know may have it"
    );
    h.pass(1_500);
    let third = h.start().0.id;
    assert_eq!(third.instance, first.instance);
    assert_eq!(u64::from(third.attempt.0), (seconds - 1_767_225_600) * 8);
    h.placed(third, &a);
    // From there it counts as ever.
    h.ended("a", third, EndCause::Exited { code: 1 });
    h.expect_ack(third);
    h.pass(1_000);
    let fourth = h.start().0.id;
    assert_eq!(fourth.attempt.0, third.attempt.0 + 1);
    h.placed(fourth, &a);
}

/// What a store that was put back takes for the current attempt may have failed long ago, and its
/// successor, which the store does not know, may run on a node that is asked last.
#[test]
fn rule_06_a_restored_store_asks_every_node_for_the_newest_attempt() {
    let (mut h, [a, b]) = Harness::beside(["a", "b"]);
    let mut spec = sim();
    spec.restart.mode = RestartMode::OnFailure;
    let id = h.submit(spec, 1).instances[0];
    let backup = h.store.clone();
    let first = h.start_on(&a);
    h.ended("a", first, EndCause::Exited { code: 1 });
    h.expect_ack(first);
    h.pass(2_000);
    let second = h.start_on(&b);

    let mut h = h.crash_onto(backup.restored(1_900_000_000_000));
    // The acknowledgement was lost on its way.
    let old = report(
        first,
        NodePhase::Ended,
        Some(EndCause::Exited { code: 1 }),
        2,
    );
    let new = report(second, NodePhase::Running, None, 1);
    let (a, b) = (
        again(&a, &[(first, NodePhase::Ended)]),
        again(&b, &[(second, NodePhase::Running)]),
    );
    h.connect(&[a.clone(), b.clone()]);
    let (ask_a, ask_b) = (h.expect_inventory(&a), h.expect_inventory(&b));
    h.inventory(&a, 0, &[old], ask_a);
    h.pass(5_000);
    assert!(h.sent.is_empty(), "nothing is started beside it");
    h.inventory(&b, 0, std::slice::from_ref(&new), ask_b);
    h.expect_ack(first);
    h.pass(60_000);
    assert_eq!(h.state_of(id), InstanceState::Running);
    // It may have gone since.
    let ask = h.expect_inventory(&b);
    h.inventory(&b, 0, &[new], ask);
    assert_eq!(h.store.amends.values().next().unwrap().attempt, 2);
}

#[test]
fn rule_06_a_superseded_controller_starts_nothing() {
    let (mut h, [a]) = Harness::beside(["a"]);
    h.submit(sim(), 2);
    let starts = h.starts();
    h.refuse(&starts[0], Refusal::StaleEpoch, 0);
    h.placed(starts[1].0.id, &a);
    h.submit(sim(), 1);
    h.pass(10_000);
    assert!(h.sent.is_empty());
    assert!(
        h.store
            .events
            .iter()
            .any(|event| event.kind == "superseded")
    );
}

#[test]
fn rule_10_two_durable_writes_on_the_straight_path() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let before = h.store.commits;
    h.submit(sim(), 1);
    let start = h.start_on(&a);
    h.running("a", start);
    h.ended("a", start, EndCause::Exited { code: 0 });
    h.expect_ack(start);
    assert_eq!(h.store.commits - before, 2);
}

#[test]
fn rule_10_quota_is_charged_from_admission_to_the_committed_end() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let used = |h: &mut Harness| match h.ask(admin(), Call::Tenant("default".to_owned())) {
        Ok(Reply::Tenant(tenant)) => tenant.quota.used.instances,
        other => panic!("{other:?}"),
    };
    h.submit(sim(), 1);
    let start = h.start_on(&a);
    assert_eq!(used(&mut h), 1);
    h.auto_commit = false;
    h.ended("a", start, EndCause::Exited { code: 0 });
    assert_eq!(used(&mut h), 1, "its end is not durable yet");
    h.commit();
    assert_eq!(used(&mut h), 0);
    h.expect_ack(start);
}
