//! Rules 4 and 5: leases fence, and STOP names every attempt up to one.

use super::super::*;
use crate::api::types::OnDisconnectSpec;
use crate::store::AfterStop;

#[test]
fn rule_04_keep_is_rescheduled_after_lost_after_and_ended_on_return() {
    let (mut h, [a, b]) = Harness::beside(["a", "b"]);
    let id = h.submit(sim(), 1).instances[0];
    let first = h.start_on(&a);
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
    let first = h.start_on(&a);
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
    let (mut h, [a, b]) = Harness::beside(["a", "b"]);
    h.submit(sim(), 1);
    let first = h.start_on(&a);
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
    let (mut h, [a, b]) = Harness::beside(["a", "b"]);
    let mut spec = sim();
    spec.on_disconnect = OnDisconnectSpec::StopAfterMs(60_000);
    h.submit(spec, 1);
    let first = h.start_on(&a);
    h.running("a", first);
    h.node_down(&a);
    // lease 10 s + grant 10 s + T 60 s + grace 10 s + margin 2 s
    h.pass(91_500);
    assert!(h.sent.is_empty(), "it may still run there");
    let second = h.start_after(1_500).0.id;
    assert_eq!(second.attempt.0, 2);
    h.placed(second, &b);
}

#[test]
fn rule_04_an_unanswered_stop_after_waits_for_a_silent_node() {
    let (mut h, [_, b]) = Harness::beside(["a", "b"]);
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
    let (second, _) = h.start_after(3_000);
    assert_eq!(second.id.attempt.0, 2);
    h.placed(second.id, &b);
}

#[test]
fn rule_04_a_controller_that_was_away_itself_takes_no_node_for_silent_at_once() {
    let (mut h, [a, b]) = Harness::beside(["a", "b"]);
    let mut spec = sim();
    spec.on_disconnect = OnDisconnectSpec::StopAfterMs(1_000);
    let id = h.submit(spec, 1).instances[0];
    let first = h.start_on(&a);
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
    let (mut h, [a]) = Harness::beside(["a"]);
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start_on(&a);
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
    let (mut h, [a]) = Harness::beside(["a"]);
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start_on(&a);
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
    let (mut h, [a, b]) = Harness::beside(["a", "b"]);
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start().0.id;
    h.disconnect_scheduler();
    h.connect(&[a.clone(), b.clone()]);
    let (ask_a, ask_b) = (h.expect_inventory(&a), h.expect_inventory(&b));
    h.stop(id);
    h.expect_stop("a", start);
    h.expect_stop("b", start);
    h.inventory(&a, 0, &[], ask_a);
    // It is not there: only the other one hears of it again.
    h.pass(3000);
    h.expect_stop("b", start);
    h.inventory(&b, 0, &[], ask_b);
    assert_eq!(h.state_of(id), InstanceState::Cancelled);
}

/// Its process ends and its node is lost at once: what the next process knows is on disk.
#[test]
fn what_came_to_a_node_before_a_restart_does_not_run_again_where_it_may_not() {
    let mut once = sim();
    once.reschedule.limit = 0;
    let mut impatient = sim();
    impatient.pending_timeout_ms = Some(10_000);
    for (spec, runs_again) in [(once, false), (impatient, true)] {
        let (mut h, [a, b]) = Harness::beside(["a", "b"]);
        let id = h.submit(spec, 1).instances[0];
        let first = h.start_on(&a);
        h.running("a", first);
        h.commit();
        let mut h = h.crash();
        h.connect(std::slice::from_ref(&b));
        let ask = h.expect_inventory(&b);
        h.inventory(&b, 0, &[], ask);
        h.pass(61_000);
        if runs_again {
            // Nor has it waited for its first placement for too long.
            assert_eq!(h.start().0.id.attempt.0, 2);
        } else {
            assert_eq!(h.state_of(id), InstanceState::NodeLost);
        }
    }
}
