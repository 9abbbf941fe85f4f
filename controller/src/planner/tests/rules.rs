//! The ten rules that make it exact, as far as they are the controller's, each by its number.

use super::*;
use crate::api::types::{OnDisconnectSpec, ReschedulePolicy, RestartMode, RestartPolicy};
use crate::store::AfterStop;

#[test]
fn rule_01_an_attempt_is_committed_before_it_is_sent() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    h.auto_commit = false;
    let mut spec = sim();
    spec.restart.mode = RestartMode::Always;
    let call = h.submit_call(spec, 1);
    let token = h.ask_later(admin(), Call::Submit(Box::new(call)));
    assert!(h.sent.is_empty(), "nothing leaves before the commit");
    assert!(h.reply(token).is_none(), "nor is the user told");
    h.commit();
    assert!(h.reply(token).unwrap().is_ok());
    let first = h.start().0.id;
    assert_eq!(first.attempt.0, 1);
    h.placed(first, &a);
    h.ended("a", first, EndCause::Exited { code: 0 });
    h.pass(5_000);
    assert!(h.sent.is_empty(), "the raised attempt waits for its commit");
    h.commit();
    assert_eq!(h.store.amends.values().next().unwrap().attempt, 2);
    h.expect_ack(first);
    h.pass(5_000);
    let second = h.start().0.id;
    assert_eq!(second.attempt.0, 2);
    h.placed(second, &a);
}

#[test]
fn rule_01_what_was_refused_is_sent_again_and_what_was_not_answered_is_not() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    h.auto_commit = false;
    h.submit_durably(sim());
    for generation in 1..4 {
        let start = h.start();
        assert_eq!(start.0.id.attempt.0, 1, "it certainly did not run");
        h.refuse(&start, Refusal::CloudFull, generation);
        h.capacity(generation + 1);
    }
    assert!(h.batches.is_empty(), "a refusal costs no write");
    h.auto_commit = true;
    h.start();
    h.disconnect_scheduler();
    h.connect(std::slice::from_ref(&a));
    let ask = h.expect_inventory(&a);
    h.inventory(&a, 0, &[], ask);
    let next = h.start().0.id;
    assert_eq!(next.attempt.0, 2, "it may have run");
    h.placed(next, &a);
}

#[test]
fn rule_01_an_unanswered_attempt_waits_for_every_known_node() {
    let mut h = Harness::new();
    let (a, b) = (node("a"), node("b"));
    h.connect(&[a.clone(), b.clone()]);
    let id = h.submit(sim(), 1).instances[0];
    let first = h.start();
    h.disconnect_scheduler();
    h.connect(&[a.clone(), b.clone()]);
    let (ask_a, ask_b) = (h.expect_inventory(&a), h.expect_inventory(&b));
    h.inventory(&a, 0, &[], ask_a);
    assert!(h.sent.is_empty(), "b was not heard yet");
    assert_eq!(h.state_of(id), InstanceState::Placing);
    h.inventory(&b, 0, &[], ask_b);
    let second = h.start();
    assert_eq!(second.0.id.attempt, first.0.id.attempt.next());
    h.placed(second.0.id, &a);
}

#[test]
fn rule_01_an_unanswered_attempt_that_is_somewhere_is_adopted() {
    let mut h = Harness::new();
    let (a, b) = (node("a"), node("b"));
    h.connect(&[a.clone(), b.clone()]);
    let id = h.submit(sim(), 1).instances[0];
    let first = h.start().0.id;
    h.disconnect_scheduler();
    h.connect(&[a.clone(), b.clone()]);
    let (ask_a, ask_b) = (h.expect_inventory(&a), h.expect_inventory(&b));
    h.inventory(&a, 0, &[], ask_a);
    h.inventory(&b, 1, &[report(first, NodePhase::Running, None, 1)], ask_b);
    assert_eq!(h.state_of(id), InstanceState::Running);
    h.ended("b", first, EndCause::Exited { code: 0 });
    h.expect_ack(first);
    assert_eq!(h.state_of(id), InstanceState::Succeeded);
}

#[test]
fn rule_01_fencing_a_silent_node_releases_what_may_be_there() {
    let mut h = Harness::new();
    let (a, b) = (node("a"), node("b"));
    h.connect(&[a.clone(), b.clone()]);
    h.submit(sim(), 1);
    let first = h.start().0.id;
    h.disconnect_scheduler();
    h.connect(std::slice::from_ref(&a));
    let ask_a = h.expect_inventory(&a);
    h.inventory(&a, 0, &[], ask_a);
    assert!(h.sent.is_empty());
    let refused = h.ask(
        admin(),
        Call::DeleteNode {
            node: "b".to_owned(),
            fenced: false,
        },
    );
    assert!(refused.is_err(), "without --fenced it is not sworn");
    h.ask(
        admin(),
        Call::DeleteNode {
            node: "b".to_owned(),
            fenced: true,
        },
    )
    .unwrap();
    let second = h.start().0.id;
    assert_eq!(second.attempt, first.attempt.next());
    h.placed(second, &a);
}

#[test]
fn rule_02_missing_only_if_placed_is_older_than_the_inventory() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let ids = h.submit(sim(), 2).instances;
    let starts = h.starts();
    h.placed(starts[0].0.id, &a);
    // Its session is new, its digest differs: it is asked.
    let a = again(&a, &[]);
    h.node_up(&a);
    let ask = h.expect_inventory(&a);
    // The second START is in flight while the inventory is taken.
    h.placed(starts[1].0.id, &a);
    h.inventory(&a, 0, &[], ask);
    let (retry, _) = loop_start(&mut h, 100);
    assert_eq!(retry.id.instance, starts[0].0.id.instance, "older: missing");
    assert_eq!(retry.id.attempt.0, 2);
    assert_eq!(
        h.state_of(ids[1]),
        InstanceState::Starting,
        "newer: not missing"
    );
    h.placed(retry.id, &a);
}

/// Seed 134 of the simulation: an instance stayed `starting` for ever, since its node still kept an
/// older attempt of it.
#[test]
fn rule_02_an_older_attempt_in_an_inventory_says_nothing_of_the_current_one() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    h.submit(sim(), 1);
    let first = h.start().0.id;
    h.placed(first, &a);
    h.ended("a", first, EndCause::Rejected);
    // Its acknowledgement does not reach the node.
    h.expect_ack(first);
    let (second, _) = loop_start(&mut h, 1000);
    h.placed(second.id, &a);
    // Nor does the second START, and the node comes back with a new session.
    let a = again(&a, &[(first, NodePhase::Ended)]);
    h.node_up(&a);
    let ask = h.expect_inventory(&a);
    let kept = report(first, NodePhase::Ended, Some(EndCause::Rejected), 3);
    h.inventory(&a, 0, &[kept], ask);
    h.expect_ack(first);
    let (third, _) = loop_start(&mut h, 1000);
    assert_eq!(third.id.attempt, second.id.attempt.next());
    h.placed(third.id, &a);
}

/// Lets back-off pass; the one START that follows.
fn loop_start(h: &mut Harness, ms: i64) -> (StartPrefix, u64) {
    h.pass(ms);
    h.start()
}

#[test]
fn rule_02_a_reconnected_scheduler_is_no_flood() {
    let mut h = Harness::new();
    let nodes: Vec<_> = (0..100).map(|n| node(&format!("n{n}"))).collect();
    h.connect(&nodes);
    h.submit(sim(), 1);
    h.start();
    h.disconnect_scheduler();
    h.connect(&nodes);
    assert_eq!(h.sent.len(), 32, "so many inventories at once");
    for _ in 0..100 {
        let Some(Sent::Inventory { node, correlation }) = h.sent.pop_front() else {
            panic!("an inventory for each node");
        };
        let asked = nodes
            .iter()
            .find(|known| known.node == node)
            .unwrap()
            .clone();
        h.inventory(&asked, 0, &[], correlation);
    }
    let start = h.start();
    h.placed(start.0.id, &nodes[0]);
}

#[test]
fn rule_02_a_node_that_agrees_is_not_asked() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    h.submit(sim(), 1);
    let id = h.start().0.id;
    h.placed(id, &a);
    h.running("a", id);
    h.disconnect_scheduler();
    h.connect(&[again(&a, &[(id, NodePhase::Running)])]);
    assert!(h.sent.is_empty());
    // One that keeps more than is believed is asked.
    let more = again(&again(&a, &[]), &[]);
    h.node_up(&more);
    let ask = h.expect_inventory(&more);
    h.inventory(&more, 1, &[report(id, NodePhase::Running, None, 1)], ask);
}

#[test]
fn rule_03_an_end_is_committed_then_acknowledged() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start().0.id;
    h.placed(start, &a);
    h.auto_commit = false;
    h.ended("a", start, EndCause::Exited { code: 3 });
    assert!(h.sent.is_empty(), "no ACK before the commit");
    h.ended("a", start, EndCause::Exited { code: 3 });
    h.commit();
    h.expect_ack(start);
    assert_eq!(h.state_of(id), InstanceState::Failed);
    // Repeated, since the ACK was lost: acknowledged again from the store.
    h.ended("a", start, EndCause::Exited { code: 3 });
    h.expect_ack(start);
    assert_eq!(h.store.ends.len(), 1);
}

#[test]
fn rule_03_an_exit_while_the_controller_was_down_is_found() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start().0.id;
    h.placed(start, &a);
    let mut h = h.crash();
    h.connect(&[again(&a, &[(start, NodePhase::Ended)])]);
    let a = again(&a, &[]);
    let ask = h.expect_inventory(&a);
    let ended = report(
        start,
        NodePhase::Ended,
        Some(EndCause::Exited { code: 0 }),
        2,
    );
    h.inventory(&a, 1, &[ended], ask);
    h.expect_ack(start);
    assert_eq!(h.state_of(id), InstanceState::Succeeded);
}

#[test]
fn rule_03_an_older_report_does_not_overwrite_a_newer_one() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start().0.id;
    h.placed(start, &a);
    h.report("a", &report(start, NodePhase::Running, None, 5));
    h.report(
        "a",
        &report(start, NodePhase::Ended, Some(EndCause::Stopped), 4),
    );
    assert_eq!(h.state_of(id), InstanceState::Running);
}

#[test]
fn rule_04_keep_is_rescheduled_after_lost_after_and_ended_on_return() {
    let mut h = Harness::new();
    let (a, b) = (node("a"), node("b"));
    h.connect(&[a.clone(), b.clone()]);
    let id = h.submit(sim(), 1).instances[0];
    let first = h.start().0.id;
    h.placed(first, &a);
    h.running("a", first);
    h.node_down(&a);
    h.pass(59_000);
    assert!(h.sent.is_empty(), "not lost yet");
    h.pass(1_500);
    let second = h.start().0;
    assert_eq!(second.id.attempt.0, 2);
    assert_eq!(second.avoid, ["a"]);
    h.placed(second.id, &b);
    h.running("b", second.id);
    // The old one is found running when its node is back, and ended.
    let back = again(&a, &[(first, NodePhase::Running)]);
    h.node_up(&back);
    let ask = h.expect_inventory(&back);
    h.inventory(&back, 0, &[report(first, NodePhase::Running, None, 1)], ask);
    h.expect_stop("a", first);
    h.pass(2_000);
    let correlation = h.expect_stop("a", first);
    let from = FromNode {
        node: "a".to_owned(),
    };
    h.frame(Operand::Done, correlation, encode(&from).to_vec());
    h.pass(5_000);
    assert!(h.sent.is_empty(), "repeated until it was confirmed");
    h.ended("a", first, EndCause::Stopped);
    h.expect_ack(first);
    assert_eq!(h.state_of(id), InstanceState::Running);
}

/// Two nodes, and an instance that was given up with node a, which is lost: its first attempt and the
/// START of its second.
fn given_up_with_a(h: &mut Harness) -> (NodeConnected, Uuid, AttemptId, (StartPrefix, u64)) {
    let (a, b) = (node("a"), node("b"));
    h.connect(&[a.clone(), b]);
    let id = h.submit(sim(), 1).instances[0];
    let first = h.start().0.id;
    h.placed(first, &a);
    h.running("a", first);
    h.node_down(&a);
    h.pass(60_500);
    let second = h.start();
    (a, id, first, second)
}

/// The node is back, and says this of the attempt that it had.
fn back_with(h: &mut Harness, a: &NodeConnected, report: &InstanceReport) {
    let back = again(a, &[(report.id, report.phase)]);
    h.node_up(&back);
    let ask = h.expect_inventory(&back);
    h.inventory(&back, 0, std::slice::from_ref(report), ask);
}

#[test]
fn rule_04_what_comes_back_before_its_successor_is_placed_is_taken_back() {
    let mut h = Harness::new();
    let (a, id, first, second) = given_up_with_a(&mut h);
    h.refuse(&second, Refusal::CloudFull, 5);
    back_with(&mut h, &a, &report(first, NodePhase::Running, None, 1));
    assert_eq!(h.state_of(id), InstanceState::Running);
    h.capacity(6);
    h.pass(10_000);
    assert!(h.sent.is_empty(), "neither a STOP nor a START");
    let stored = h.store.amends.values().next().copied().unwrap();
    assert_eq!((stored.attempt, stored.highest_attempt), (1, 2));
    assert_eq!(stored.reschedules, 0, "it went nowhere");
    // Numbers that were given out are not given out again, not even by the next process.
    h.ended("a", first, EndCause::NodeFailed);
    h.expect_ack(first);
    h.pass(2_000);
    assert_eq!(h.start().0.id.attempt.0, 3);
}

#[test]
fn rule_04_what_ended_behind_a_cut_does_not_run_again() {
    let mut h = Harness::new();
    let (a, id, first, second) = given_up_with_a(&mut h);
    h.refuse(&second, Refusal::CloudFull, 5);
    let end = report(
        first,
        NodePhase::Ended,
        Some(EndCause::Exited { code: 0 }),
        2,
    );
    back_with(&mut h, &a, &end);
    h.expect_ack(first);
    assert_eq!(h.state_of(id), InstanceState::Succeeded);
}

#[test]
fn rule_04_what_comes_back_while_its_successor_is_placed_waits_for_the_answer() {
    let mut h = Harness::new();
    let (a, id, first, second) = given_up_with_a(&mut h);
    back_with(&mut h, &a, &report(first, NodePhase::Running, None, 1));
    assert!(h.sent.is_empty(), "nothing is decided");
    h.refuse(&second, Refusal::CloudFull, 5);
    assert_eq!(h.state_of(id), InstanceState::Running);

    let mut h = Harness::new();
    let (a, _, first, second) = given_up_with_a(&mut h);
    back_with(&mut h, &a, &report(first, NodePhase::Running, None, 1));
    h.placed(second.0.id, &node("b"));
    h.expect_stop("a", first);

    let mut h = Harness::new();
    let (a, id, first, second) = given_up_with_a(&mut h);
    back_with(&mut h, &a, &report(first, NodePhase::Running, None, 1));
    h.stop(id);
    h.refuse(&second, Refusal::CloudFull, 5);
    h.expect_stop("a", first);
}

#[test]
fn rule_04_what_was_stopped_before_it_could_come_back_is_stopped() {
    let mut h = Harness::new();
    let (a, id, first, second) = given_up_with_a(&mut h);
    h.refuse(&second, Refusal::CloudFull, 5);
    h.stop(id);
    assert_eq!(h.state_of(id), InstanceState::Stopped);
    back_with(&mut h, &a, &report(first, NodePhase::Running, None, 1));
    h.expect_stop("a", first);
}

#[test]
fn rule_04_no_node_is_lost_while_the_scheduler_is_not_heard() {
    let mut h = Harness::new();
    let (a, b) = (node("a"), node("b"));
    h.connect(&[a.clone(), b.clone()]);
    h.submit(sim(), 1);
    let first = h.start().0.id;
    h.placed(first, &a);
    h.running("a", first);
    h.node_down(&a);
    h.pass(59_000);
    h.deaf = true;
    h.pass(6_000);
    assert!(h.sent.is_empty(), "it may be back for long");
    h.deaf = false;
    h.pass(1_000);
    let second = h.start().0;
    assert_eq!(second.id.attempt.0, 2);
    h.placed(second.id, &b);
}

#[test]
fn rule_04_stop_after_waits_for_lease_end_and_grace() {
    let mut h = Harness::new();
    let (a, b) = (node("a"), node("b"));
    h.connect(&[a.clone(), b.clone()]);
    let mut spec = sim();
    spec.on_disconnect = OnDisconnectSpec::StopAfterMs(60_000);
    h.submit(spec, 1);
    let first = h.start().0.id;
    h.placed(first, &a);
    h.running("a", first);
    h.node_down(&a);
    // lease 10 s + grant 10 s + T 60 s + grace 10 s + margin 2 s
    h.pass(91_500);
    assert!(h.sent.is_empty(), "it may still run there");
    let second = loop_start(&mut h, 1_500).0.id;
    assert_eq!(second.attempt.0, 2);
    h.placed(second, &b);
}

#[test]
fn rule_04_an_unanswered_stop_after_waits_for_a_silent_node() {
    let mut h = Harness::new();
    let (a, b) = (node("a"), node("b"));
    h.connect(&[a.clone(), b.clone()]);
    let mut spec = sim();
    spec.on_disconnect = OnDisconnectSpec::StopAfterMs(100_000);
    h.submit(spec, 1);
    h.start();
    h.disconnect_scheduler();
    h.connect(std::slice::from_ref(&b));
    let ask = h.expect_inventory(&b);
    h.inventory(&b, 0, &[], ask);
    h.pass(131_000);
    assert!(
        h.sent.is_empty(),
        "lost, but it may run there until its lease is over"
    );
    let (second, _) = loop_start(&mut h, 3_000);
    assert_eq!(second.id.attempt.0, 2);
    h.placed(second.id, &b);
}

#[test]
fn rule_04_a_controller_that_was_away_itself_takes_no_node_for_silent_at_once() {
    let mut h = Harness::new();
    let (a, b) = (node("a"), node("b"));
    h.connect(&[a.clone(), b.clone()]);
    let mut spec = sim();
    spec.on_disconnect = OnDisconnectSpec::StopAfterMs(1_000);
    let id = h.submit(spec, 1).instances[0];
    let first = h.start().0.id;
    h.placed(first, &a);
    let mut h = h.crash();
    h.pass(300_000);
    h.connect(std::slice::from_ref(&b));
    let ask = h.expect_inventory(&b);
    h.inventory(&b, 0, &[], ask);
    h.pass(3_000);
    assert!(h.sent.is_empty(), "the other node is still on its way");
    let succeeded = Some(EndCause::Exited { code: 0 });
    let ended = report(first, NodePhase::Ended, succeeded, 3);
    let back = again(&a, &[(first, NodePhase::Ended)]);
    h.node_up(&back);
    let ask = h.expect_inventory(&back);
    h.inventory(&back, 0, &[ended], ask);
    h.expect_ack(first);
    assert_eq!(h.state_of(id), InstanceState::Succeeded);
}

#[test]
fn rule_05_a_stop_is_repeated_until_the_end_is_reported() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start().0.id;
    h.placed(start, &a);
    h.running("a", start);
    h.auto_commit = false;
    let call = Call::Stop {
        id: id.into(),
        grace_ms: Some(5),
        then: AfterStop::Keep,
    };
    let token = h.ask_later(admin(), call);
    assert!(h.sent.is_empty(), "the wish is written down first");
    h.commit();
    assert!(h.reply(token).unwrap().is_ok());
    h.auto_commit = true;
    h.expect_stop("a", start);
    h.pass(2_250);
    h.expect_stop("a", start);
    h.ended("a", start, EndCause::Stopped);
    h.expect_ack(start);
    h.pass(5_000);
    assert_eq!(h.state_of(id), InstanceState::Stopped);
}

#[test]
fn rule_05_a_stop_outlives_the_controller() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start().0.id;
    h.placed(start, &a);
    h.stop(id);
    h.expect_stop("a", start);
    let mut h = h.crash();
    h.connect(std::slice::from_ref(&a));
    let ask = h.expect_inventory(&a);
    h.inventory(&a, 1, &[report(start, NodePhase::Running, None, 1)], ask);
    h.expect_stop("a", start);
    h.ended("a", start, EndCause::Stopped);
    h.expect_ack(start);
    assert_eq!(h.state_of(id), InstanceState::Stopped);
}

#[test]
fn rule_05_a_stop_of_an_unanswered_attempt_goes_to_each_node() {
    let mut h = Harness::new();
    let (a, b) = (node("a"), node("b"));
    h.connect(&[a.clone(), b.clone()]);
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start().0.id;
    h.disconnect_scheduler();
    h.connect(&[a.clone(), b.clone()]);
    let (ask_a, ask_b) = (h.expect_inventory(&a), h.expect_inventory(&b));
    h.stop(id);
    h.expect_stop("a", start);
    h.expect_stop("b", start);
    h.inventory(&a, 0, &[], ask_a);
    h.inventory(&b, 0, &[], ask_b);
    assert_eq!(h.state_of(id), InstanceState::Cancelled);
}

#[test]
fn rule_06_an_unknown_instance_of_ones_own_is_quarantined_and_never_stopped() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let old = h.store.clone();
    h.submit(sim(), 1);
    let start = h.start().0.id;
    h.placed(start, &a);
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
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let mut spec = sim();
    spec.restart.mode = RestartMode::Always;
    h.submit(spec, 1);
    let mut old = h.store.clone();
    let first = h.start().0.id;
    h.placed(first, &a);
    h.ended("a", first, EndCause::Exited { code: 0 });
    h.expect_ack(first);
    h.pass(5_000);
    let second = h.start().0.id;
    h.placed(second, &a);
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
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let mut spec = sim();
    spec.restart = RestartPolicy {
        mode: RestartMode::OnFailure,
        limit: None,
        backoff_ms: 100,
        backoff_max_ms: 100,
    };
    h.submit(spec, 1);
    let backup = h.store.clone();
    let first = h.start().0.id;
    h.placed(first, &a);
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
    let mut h = Harness::new();
    let (a, b) = (node("a"), node("b"));
    h.connect(&[a.clone(), b.clone()]);
    let mut spec = sim();
    spec.restart.mode = RestartMode::OnFailure;
    let id = h.submit(spec, 1).instances[0];
    let backup = h.store.clone();
    let first = h.start().0.id;
    h.placed(first, &a);
    h.ended("a", first, EndCause::Exited { code: 1 });
    h.expect_ack(first);
    h.pass(2_000);
    let second = h.start().0.id;
    h.placed(second, &b);

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
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
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
fn rule_07_the_term_is_committed_before_it_is_used_and_rises() {
    let mut h = Harness::new();
    h.auto_commit = false;
    h.session_up();
    assert!(h.sent.is_empty());
    h.commit();
    assert_eq!(h.store.meta.term, 1);
    h.auto_commit = true;
    h.activate(&[]);
    h.disconnect_scheduler();
    h.connect(&[]);
    assert_eq!(h.store.meta.term, 2);
    let mut h = h.crash();
    assert_eq!(h.store.meta.epoch, 2, "the epoch rises at each start");
    h.connect(&[]);
    assert_eq!(h.store.meta.term, 3);
}

/// Two schedulers of one term would both be obeyed: one that was left for another gets a term above
/// that of the other.
#[test]
fn rule_07_a_scheduler_that_was_left_and_is_found_again_gets_a_new_term() {
    let mut h = Harness::new();
    h.connect(&[]);
    h.disconnect_scheduler();
    // The other, a standby.
    h.connect(&[]);
    assert_eq!(h.store.meta.term, 2);
    h.disconnect_scheduler();
    // The first again, which nobody has told that it was left.
    h.session_up_in(Some(1), h.welcome());
    h.activate(&[]);
    assert_eq!(h.store.meta.term, 3);
    h.disconnect_scheduler();
    // The same once more: its term is the highest, and it keeps it.
    h.session_up_in(Some(3), h.welcome());
    h.activate(&[]);
    assert_eq!(h.store.meta.term, 3);
}

#[test]
fn rule_08_nothing_is_rescheduled_when_many_nodes_vanish_together() {
    let mut h = Harness::new();
    let nodes: Vec<_> = (0..10).map(|n| node(&format!("n{n}"))).collect();
    h.connect(&nodes);
    h.submit(sim(), 10);
    let starts = h.starts();
    for (start, node) in starts.iter().zip(&nodes) {
        h.placed(start.0.id, node);
    }
    for node in &nodes[..4] {
        h.node_down(node);
    }
    h.pass(120_000);
    assert!(h.sent.is_empty(), "suspended");
    assert!(
        h.store
            .events
            .iter()
            .any(|e| e.kind == "rescheduling_suspended")
    );
    // Most of them come back; the one that does not is lost.
    for node in &nodes[..3] {
        let id = starts
            .iter()
            .zip(&nodes)
            .find(|(_, n)| n.node == node.node)
            .unwrap()
            .0
            .0
            .id;
        let back = again(node, &[(id, NodePhase::Received)]);
        h.node_up(&back);
        let ask = h.expect_inventory(&back);
        let kept = report(id, NodePhase::Received, None, 1);
        h.inventory(&back, 1, &[kept], ask);
    }
    h.pass(61_000);
    let retry = h.starts();
    assert_eq!(retry.len(), 1);
    assert_eq!(retry[0].0.id.instance, starts[3].0.id.instance);
}

#[test]
fn rule_08_one_of_three_is_no_mass_loss_and_an_administrator_may_resume() {
    let mut h = Harness::new();
    let nodes: Vec<_> = (0..3).map(|n| node(&format!("n{n}"))).collect();
    h.connect(&nodes);
    h.submit(sim(), 1);
    let start = h.start().0.id;
    h.placed(start, &nodes[0]);
    h.node_down(&nodes[0]);
    h.pass(61_000);
    let second = h.start().0.id;
    h.placed(second, &nodes[1]);
    h.node_down(&nodes[1]);
    h.node_down(&nodes[2]);
    let far = node("far");
    h.node_up(&far);
    h.node_down(&far);
    h.pass(70_000);
    assert!(h.sent.is_empty(), "three together");
    h.ask(admin(), Call::ResumeRescheduling).unwrap();
    let third = loop_start(&mut h, 1_000).0.id;
    assert_eq!(third.attempt.0, 3);
    h.refuse(&(prefix_of(third), topic(third)), Refusal::NoNodes, 1);
}

fn prefix_of(id: AttemptId) -> StartPrefix {
    StartPrefix {
        id,
        controller_epoch: ControllerEpoch(1),
        body_schema: SCHEMA,
        runtime: Runtime::Sim,
        demand: Default::default(),
        constraints: Vec::new(),
        prefer: None,
        avoid: Vec::new(),
    }
}

fn topic(_: AttemptId) -> u64 {
    super::super::dispatch::Topic::Start(1).correlation()
}

#[test]
fn rule_08_a_refusal_while_warming_spends_no_retry() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let mut spec = sim();
    spec.reschedule = ReschedulePolicy {
        limit: 0,
        ..ReschedulePolicy::default()
    };
    let id = h.submit(spec, 1).instances[0];
    for generation in 1..5 {
        let start = h.start();
        h.refuse(&start, Refusal::Warming, generation);
        assert_eq!(h.state_of(id), InstanceState::Pending);
        h.capacity(generation + 1);
    }
    let start = h.start();
    h.placed(start.0.id, &a);
}

#[test]
fn rule_09_a_node_is_believed_only_about_what_was_placed_there() {
    let mut h = Harness::new();
    let (a, b) = (node("a"), node("b"));
    h.connect(&[a.clone(), b]);
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start().0.id;
    h.placed(start, &a);
    h.ended("b", start, EndCause::Exited { code: 0 });
    assert_eq!(h.state_of(id), InstanceState::Starting);
    assert!(h.warnings.iter().any(|text| text.contains("not believed")));
}

#[test]
fn rule_09_maintenance_is_asserted_again_when_a_node_connects() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let drain = DrainCall {
        node: "a".to_owned(),
        deadline_ms: 0,
    };
    h.ask(admin(), Call::Drain(drain)).unwrap();
    h.expect_mode("a", Mode::Maintenance);
    let mut h = h.crash();
    h.connect(&[again(&a, &[])]);
    h.expect_mode("a", Mode::Maintenance);
    let maintained = NodeConnected {
        state: NodeState::Maintenance,
        ..again(&again(&a, &[]), &[])
    };
    h.node_up(&maintained);
    assert!(h.sent.is_empty());
}

#[test]
fn rule_09_a_mode_that_nobody_here_wished_is_left_alone() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    // Another controller has drained it.
    let maintained = NodeConnected {
        state: NodeState::Maintenance,
        ..again(&a, &[])
    };
    h.node_up(&maintained);
    h.pass(10_000);
    assert!(h.sent.is_empty());
    // Here it is restored: said until it is answered, over a crash as well, and not again.
    h.ask(admin(), Call::Restore("a".to_owned())).unwrap();
    h.expect_mode("a", Mode::Ready);
    let mut h = h.crash();
    h.connect(std::slice::from_ref(&maintained));
    let told = h.expect_mode("a", Mode::Ready);
    h.frame(Operand::Done, told, Vec::new());
    h.node_up(&again(&maintained, &[]));
    assert!(h.sent.is_empty());
    let mut h = h.crash();
    h.connect(std::slice::from_ref(&maintained));
    assert!(h.sent.is_empty());
}

#[test]
fn rule_09_a_drain_that_comes_before_the_answer_to_a_restore_stands() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let drain = || {
        Call::Drain(DrainCall {
            node: "a".to_owned(),
            deadline_ms: 0,
        })
    };
    h.ask(admin(), drain()).unwrap();
    let drained = h.expect_mode("a", Mode::Maintenance);
    h.ask(admin(), Call::Restore("a".to_owned())).unwrap();
    let restored = h.expect_mode("a", Mode::Ready);
    // The node has not reported the drain yet: its answer to it fulfils nothing.
    h.frame(Operand::Done, drained, Vec::new());
    h.pass(3_000);
    h.node_up(&again(&a, &[]));
    h.expect_mode("a", Mode::Ready);
    h.ask(admin(), drain()).unwrap();
    h.expect_mode("a", Mode::Maintenance);
    h.frame(Operand::Done, restored, Vec::new());
    let mut h = h.crash();
    h.connect(std::slice::from_ref(&a));
    h.expect_mode("a", Mode::Maintenance);
}

#[test]
fn rule_10_two_durable_writes_on_the_straight_path() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let before = h.store.commits;
    h.submit(sim(), 1);
    let start = h.start().0.id;
    h.placed(start, &a);
    h.running("a", start);
    h.ended("a", start, EndCause::Exited { code: 0 });
    h.expect_ack(start);
    assert_eq!(h.store.commits - before, 2);
}

#[test]
fn rule_10_quota_is_charged_from_admission_to_the_committed_end() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    let used = |h: &mut Harness| match h.ask(admin(), Call::Tenant("default".to_owned())) {
        Ok(Reply::Tenant(tenant)) => tenant.quota.used.instances,
        other => panic!("{other:?}"),
    };
    h.submit(sim(), 1);
    let start = h.start().0.id;
    h.placed(start, &a);
    assert_eq!(used(&mut h), 1);
    h.auto_commit = false;
    h.ended("a", start, EndCause::Exited { code: 0 });
    assert_eq!(used(&mut h), 1, "its end is not durable yet");
    h.commit();
    assert_eq!(used(&mut h), 0);
    h.expect_ack(start);
}

#[test]
fn a_hundred_thousand_pending_and_one_freed_slot_cost_one_start() {
    let mut h = Harness::new();
    let a = node("a");
    h.connect(std::slice::from_ref(&a));
    h.submit(sim(), 100_000);
    // The cloud takes one and is full then.
    let mut sent = 0;
    let mut first = true;
    loop {
        let starts = h.starts();
        if starts.is_empty() {
            break;
        }
        sent += starts.len();
        for start in starts {
            if std::mem::take(&mut first) {
                h.step_unchecked(placed_frame(start.0.id, &a));
            } else {
                h.step_unchecked(refused_frame(&start, 1));
            }
        }
    }
    assert!(sent <= 1024, "{sent} STARTs until it was known");
    h.capacity(2);
    let oldest = h.start();
    h.refuse(&oldest, Refusal::CloudFull, 2);
    assert!(h.sent.is_empty());
    h.capacity(3);
    let probe = h.start();
    assert_eq!(probe.0.id, oldest.0.id, "the oldest that was refused");
    h.placed(probe.0.id, &a);
    assert_eq!(h.starts().len(), 2, "its window doubles");
}

fn placed_frame(id: AttemptId, node: &NodeConnected) -> Frame {
    let placed = Placed {
        id,
        node: node.node.clone(),
        session_epoch: node.session_epoch,
        seq: Seq(1),
        placing_ns: 1,
    };
    Frame::answer(Operand::Placed, 0, encode(&placed))
}

fn refused_frame(start: &(StartPrefix, u64), generation: u64) -> Frame {
    let failure = StartFailure {
        id: start.0.id,
        refusal: Refusal::CloudFull,
        generation: Generation(generation),
        text: String::new(),
    };
    Frame::answer(Operand::StartFailure, start.1, encode(&failure))
}

impl Harness {
    /// Without the check of invariants, which takes long with many instances.
    fn step_unchecked(&mut self, frame: Frame) {
        let mut effects = Vec::new();
        self.state.step(self.now, Event::Frame(frame), &mut effects);
        self.take(effects);
        while !self.batches.is_empty() {
            self.commit();
        }
    }
}
