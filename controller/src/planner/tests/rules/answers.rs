//! Rules 1 to 3: every START is answered once, what is missing, and reports that are level-triggered.

use super::super::*;
use crate::api::types::RestartMode;

#[test]
fn rule_01_an_attempt_is_committed_before_it_is_sent() {
    let (mut h, [a]) = Harness::beside(["a"]);
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
    let (mut h, [a]) = Harness::beside(["a"]);
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
    let (mut h, [a, b]) = Harness::beside(["a", "b"]);
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
    let (mut h, [a, b]) = Harness::beside(["a", "b"]);
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
    let (mut h, [a, _]) = Harness::beside(["a", "b"]);
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
    let (mut h, [a]) = Harness::beside(["a"]);
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
    let (retry, _) = h.start_after(100);
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
    let (mut h, [a]) = Harness::beside(["a"]);
    h.submit(sim(), 1);
    let first = h.start_on(&a);
    h.ended("a", first, EndCause::Rejected);
    // Its acknowledgement does not reach the node.
    h.expect_ack(first);
    let (second, _) = h.start_after(1000);
    h.placed(second.id, &a);
    // Nor does the second START, and the node comes back with a new session.
    let a = again(&a, &[(first, NodePhase::Ended)]);
    h.node_up(&a);
    let ask = h.expect_inventory(&a);
    let kept = report(first, NodePhase::Ended, Some(EndCause::Rejected), 3);
    h.inventory(&a, 0, &[kept], ask);
    h.expect_ack(first);
    let (third, _) = h.start_after(1000);
    assert_eq!(third.id.attempt, second.id.attempt.next());
    h.placed(third.id, &a);
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
    let (mut h, [a]) = Harness::beside(["a"]);
    h.submit(sim(), 1);
    let id = h.start_on(&a);
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
    let (mut h, [a]) = Harness::beside(["a"]);
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start_on(&a);
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
    let (mut h, [a]) = Harness::beside(["a"]);
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start_on(&a);
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
    let (mut h, [a]) = Harness::beside(["a"]);
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start_on(&a);
    h.report("a", &report(start, NodePhase::Running, None, 5));
    h.report(
        "a",
        &report(start, NodePhase::Ended, Some(EndCause::Stopped), 4),
    );
    assert_eq!(h.state_of(id), InstanceState::Running);
}
