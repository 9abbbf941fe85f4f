//! Peers that do not keep up: a controller is refused, then cut; nobody else notices.

use crate::harness::*;
use pronto_payloads::ids::OwnerId;
use pronto_payloads::place::Refusal;
use pronto_protocol::Operand;
use pronto_scheduler::core::{Event, Queued};

#[test]
fn a_controller_that_does_not_read_its_answers_is_told_busy_and_goes_on_when_it_does() {
    let (mut world, controller) = World::active();
    world.node("n1", capacity(1000));
    world.set_state(controller.session, Queued::Brimming);
    world.placed(&controller, &start(attempt(1), cpu(1)));
    assert_eq!(
        world
            .refused(&controller, &start(attempt(2), cpu(1)))
            .refusal,
        Refusal::Busy
    );
    world.pass_ms(1_000);
    assert_eq!(
        world.next(controller.session),
        None,
        "statistics are held back meanwhile"
    );
    world.set_state(controller.session, Queued::Room);
    world.event(Event::Drained {
        session: controller.session,
    });
    world.end_turn();
    world.expect(controller.session, Operand::Capacity);
    world.placed(&controller, &start(attempt(2), cpu(1)));
    world.pass_ms(1_100);
    world.expect(controller.session, Operand::Stats);
    world.skip_all(Operand::Stats);
}

#[test]
fn a_controller_that_cannot_keep_up_is_cut_and_resynchronises() {
    let (mut world, controller) = World::active();
    let other = world.controller(OwnerId([8; 16]), 1);
    world.set_state(controller.session, Queued::Full);
    let node = world.silent_node("n1", 1, &launcher_hello(capacity(1000)));
    let (operand, refusal) = world.expect_refusal(controller.session);
    assert_eq!(operand, Operand::Busy);
    assert!(refusal.text.contains("connect again"), "{}", refusal.text);
    world.expect(other.session, Operand::NodeConnected);
    world.close(controller.session);
    let again = world.controller(OWNER, 1);
    world.ready(&node, 0, capacity(1000));
    world.placed(&again, &start(attempt(1), cpu(1)));
    assert_eq!(world.broker.counters().controllers_cut, 1);
}

#[test]
fn a_launcher_whose_session_broke_under_a_start_is_passed_over() {
    let (mut world, controller) = World::active();
    let broken = world.node("n1", capacity(1000));
    world.node("n2", capacity(1000));
    world.set_state(broken.session, Queued::Gone);
    let (placed, _) = world.placed(&controller, &start(attempt(1), cpu(1000)));
    assert_eq!(placed.node, "n2");
    world.close(broken.session);
    world.expect(controller.session, Operand::NodeDisconnected);
}

#[test]
fn a_stopped_agent_stalls_nobody_and_loses_nothing() {
    let (mut world, controller) = World::active();
    let stopped = world.node("n1", capacity(1000));
    let lively = world.node("n2", capacity(1000));
    // Its queue has reached its mark with the first START, and its bound before the next.
    world.set_state(stopped.session, Queued::Brimming);
    world.placed(&controller, &start(attempt(1), cpu(10)));
    world.set_state(stopped.session, Queued::Full);
    for instance in 2..50 {
        let (placed, _) = world.placed(&controller, &start(attempt(instance), cpu(10)));
        assert_eq!(placed.node, "n2");
    }
    // A bound that is met without warning undoes the placement, and the START goes elsewhere.
    world.set_state(lively.session, Queued::Full);
    let refused = world.refused(&controller, &start(attempt(50), cpu(10)));
    assert_eq!(refused.refusal, Refusal::CloudFull);
    world.set_state(lively.session, Queued::Room);
    world.event(Event::Drained {
        session: lively.session,
    });
    world.end_turn();
    world.expect(controller.session, Operand::Capacity);
    let (placed, stamp) = world.placed(&controller, &start(attempt(50), cpu(10)));
    assert_eq!(
        (placed.node.as_str(), stamp.seq.0),
        ("n2", 49),
        "no number was spent on it"
    );
}
