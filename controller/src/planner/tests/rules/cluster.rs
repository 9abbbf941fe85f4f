//! Rules 7 to 9: one active scheduler, no false mass loss, and a name is one node.

use super::super::*;
use crate::api::types::ReschedulePolicy;

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
    let third = h.start_after(1_000);
    assert_eq!(third.0.id.attempt.0, 3);
    h.refuse(&third, Refusal::NoNodes, 1);
}

#[test]
fn rule_08_a_refusal_while_warming_spends_no_retry() {
    let (mut h, [a]) = Harness::beside(["a"]);
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
    let start = h.start_on(&a);
    h.ended("b", start, EndCause::Exited { code: 0 });
    assert_eq!(h.state_of(id), InstanceState::Starting);
    assert!(h.warnings.iter().any(|text| text.contains("not believed")));
}

/// Seed 12 of the simulation: a node that had run an instance reported a later attempt of it, and was
/// given it.
#[test]
fn rule_09_an_attempt_that_was_never_given_out_is_nobodys() {
    let mut h = Harness::new();
    let (a, b) = (node("a"), node("b"));
    h.connect(&[a.clone(), b]);
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start_on(&a);
    h.running("a", start);
    for attempt in [2, u32::MAX] {
        let later = AttemptId {
            attempt: pronto_payloads::ids::Attempt(attempt),
            ..start
        };
        h.running("b", later);
        h.ended("b", later, EndCause::Exited { code: 0 });
    }
    assert_eq!(h.state_of(id), InstanceState::Running);
    assert!(h.sent.is_empty(), "neither acknowledged nor stopped");
    h.ended("a", start, EndCause::Exited { code: 0 });
    h.expect_ack(start);
    assert_eq!(h.state_of(id), InstanceState::Succeeded);
    // Seed 21898: nor is it stopped there once the instance has ended, since it may be restarted.
    let second = AttemptId {
        attempt: pronto_payloads::ids::Attempt(2),
        ..start
    };
    h.running("b", second);
    assert!(h.sent.is_empty(), "neither acknowledged nor stopped");
}

#[test]
fn rule_09_a_node_that_makes_instances_up_fills_nothing() {
    let (mut h, [_a]) = Harness::beside(["a"]);
    let owner = h.store.meta.owner;
    let limit = crate::planner::nodes::MAX_QUARANTINED;
    for number in 0..limit as u64 + 10 {
        let mut instance = InstanceId([7; 16]);
        instance.0[8..].copy_from_slice(&number.to_le_bytes());
        let attempt = pronto_payloads::ids::Attempt(1);
        let id = AttemptId {
            owner,
            instance,
            attempt,
        };
        h.running("a", id);
    }
    let alarms = h.store.events.iter().filter(|e| e.kind == "quarantined");
    assert_eq!(alarms.count(), limit);
    assert!(h.sent.is_empty());
}

#[test]
fn rule_09_maintenance_is_asserted_again_when_a_node_connects() {
    let (mut h, [a]) = Harness::beside(["a"]);
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
    let (mut h, [a]) = Harness::beside(["a"]);
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
    let (mut h, [a]) = Harness::beside(["a"]);
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
