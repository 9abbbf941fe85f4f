//! The rules of the design that the scheduler keeps, each by a test that tries to break it.

use crate::harness::*;
use pronto_payloads::codec;
use pronto_payloads::demand::Constraint;
use pronto_payloads::hello::{ControllerHello, OwnerSummary};
use pronto_payloads::ids::{
    BootId, ControllerEpoch, Generation, NodeUuid, OwnerId, SessionEpoch, Term,
};
use pronto_payloads::instance::{End, EndCause, InstanceReport, Phase, Usage};
use pronto_payloads::node::{
    Lease, NodeConnected, NodeDisconnected, NodeLoad, NodeState, Nodes, Stats, StatsBatch,
};
use pronto_payloads::place::{CapacityGrown, Explain, Explanation, Reason, Refusal, StartFailure};
use pronto_payloads::{control, demand::Runtime, ids};
use pronto_protocol::{Frame, Operand, Purpose, RefusalCode, Role};
use pronto_scheduler::core::BrokerConfig;

#[test]
fn rule_01_every_start_is_answered_once() {
    let (mut world, controller) = World::active();
    let none = world.refused(&controller, &start(attempt(0), cpu(1)));
    assert_eq!(none.refusal, Refusal::NoNodes);
    world.node("n1", capacity(1000));
    world.end_turn();
    world.skip_all(Operand::Capacity);

    let (placed, stamp) = world.placed(&controller, &start(attempt(1), cpu(600)));
    assert_eq!(
        (placed.node.as_str(), placed.seq.0, stamp.term),
        ("n1", 1, Term(1))
    );
    let full = world.refused(&controller, &start(attempt(2), cpu(600)));
    assert_eq!((full.refusal, full.id), (Refusal::CloudFull, attempt(2)));
    let never = world.refused(&controller, &start(attempt(3), cpu(1001)));
    assert_eq!(never.refusal, Refusal::NeverFits);
    let elsewhere = Constraint::Label {
        key: "zone".into(),
        value: "b".into(),
    };
    let never = StartPrefixWith(start(attempt(4), cpu(1))).constraint(elsewhere);
    assert_eq!(
        world.refused(&controller, &never).refusal,
        Refusal::NeverFits
    );
    world.skip_all(Operand::Stats);
}

/// A START with more to it.
struct StartPrefixWith(pronto_payloads::place::StartPrefix);

impl StartPrefixWith {
    fn constraint(mut self, constraint: Constraint) -> pronto_payloads::place::StartPrefix {
        self.0.constraints.push(constraint);
        self.0
    }
}

#[test]
fn rule_01_answers_keep_the_order_of_the_starts() {
    let (mut world, controller) = World::active();
    world.node("n1", capacity(1000));
    world.node("n2", capacity(1000));
    for correlation in 0..30 {
        let wanted = start(
            attempt(correlation),
            cpu(if correlation % 3 == 0 { 5000 } else { 100 }),
        );
        world.start(&controller, correlation, &wanted);
    }
    for correlation in 0..30 {
        let operand = if correlation % 3 == 0 {
            Operand::StartFailure
        } else {
            Operand::Placed
        };
        assert_eq!(
            world.expect(controller.session, operand).correlation,
            correlation
        );
    }
    world.skip_all(Operand::Start);
}

#[test]
fn a_malformed_start_is_answered_with_what_is_wrong() {
    let (mut world, controller) = World::active();
    let mut send = |payload: Vec<u8>| -> StartFailure {
        world.send(
            controller.session,
            Frame::request(Operand::Start, 9, payload),
        );
        let frame = world.expect(controller.session, Operand::StartFailure);
        assert_eq!(frame.correlation, 9);
        decode!(frame)
    };
    let empty = send(Vec::new());
    assert_eq!((empty.refusal, empty.id.attempt.0), (Refusal::Malformed, 0));
    let whole = start_bytes(&start(attempt(3), cpu(1)));
    let cut = send(whole[..60].to_vec());
    assert_eq!((cut.refusal, cut.id), (Refusal::Malformed, attempt(3)));
    let mut both = start(attempt(3), cpu(1));
    (both.demand.gpus, both.demand.gpu_millis) = (1, 500);
    let both = send(start_bytes(&both));
    assert_eq!(both.refusal, Refusal::Malformed);
    assert!(
        both.text.contains("either whole devices or a share"),
        "{}",
        both.text
    );
    let foreign = send(start_bytes(&start(attempt_of(OwnerId([9; 16]), 1), cpu(1))));
    assert_eq!(foreign.refusal, Refusal::Malformed);
    let mut long = whole;
    long.resize(256 * 1024, 0);
    assert!(send(long).text.contains("at most"));
}

#[test]
fn rule_02_the_seq_of_a_start_is_its_place_in_the_launchers_session() {
    let (mut world, controller) = World::active();
    let node = world.node("n1", capacity(1000));
    for seq in 1..=3 {
        let (_, stamp) = world.placed(&controller, &start(attempt(seq), cpu(1)));
        assert_eq!((stamp.seq.0, stamp.session_epoch), (seq, SessionEpoch(1)));
    }
    // A new session begins at 1 again, under a higher epoch.
    world.close(node.session);
    world.skip_all(Operand::NodeDisconnected);
    let node = world.silent_node("n1", 2, &launcher_hello(capacity(1000)));
    world.skip_all(Operand::NodeConnected);
    world.ready(&node, 0, capacity(1000));
    let (_, stamp) = world.placed(&controller, &start(attempt(4), cpu(1)));
    assert_eq!((stamp.seq.0, stamp.session_epoch), (1, SessionEpoch(2)));
}

#[test]
fn rule_02_the_digest_of_an_owner_reaches_that_owner_alone() {
    let mut world = World::standby(BrokerConfig::default());
    let other_owner = OwnerId([8; 16]);
    let mine = world.controller(OWNER, 1);
    let other = world.controller(other_owner, 1);
    let mut hello = launcher_hello(capacity(1000));
    let summary = |owner, attempts, digest| OwnerSummary {
        owner,
        attempts,
        digest,
        epoch: ControllerEpoch(5),
    };
    hello.owners = vec![summary(OWNER, 3, 33), summary(other_owner, 4, 44)];
    world.silent_node("n1", 1, &hello);
    for (controller, attempts, digest) in [(&mine, 3, 33), (&other, 4, 44)] {
        let connected: NodeConnected =
            decode!(world.expect(controller.session, Operand::NodeConnected));
        assert_eq!((connected.attempts, connected.digest), (attempts, digest));
        assert_eq!(connected.state, NodeState::Ready);
    }
    // And a controller that connects later learns it from the list, and its own epoch in WELCOME.
    world.close(mine.session);
    let body = codec::encode(&pronto_payloads::hello::ControllerHello {
        owner: OWNER,
        epoch: ControllerEpoch(1),
    });
    let again = world.connect((Role::Controller, "c"), Purpose::Control, 1, body);
    let (welcome, body) = world.expect_welcome(again);
    assert_eq!((body.owner_epoch, body.nodes), (ControllerEpoch(5), 1));
    assert_eq!(
        (welcome.incarnation, welcome.term, welcome.active),
        (0xabcd, 0, false)
    );
    world.send(again, Frame::request(Operand::Nodes, 6, Vec::new()));
    world.end_turn();
    let page = world.expect(again, Operand::NodeList);
    assert!(last(&page) && page.correlation == 6);
    let nodes: Nodes = decode!(page);
    assert_eq!((nodes.nodes.len(), nodes.nodes[0].digest), (1, 33));
}

#[test]
fn rule_03_reports_go_to_their_owner_with_the_nodes_name_in_front() {
    let (mut world, controller) = World::active();
    let other = world.controller(OwnerId([8; 16]), 1);
    let node = world.node("n1", capacity(1000));
    let report = codec::encode(&report(attempt(1), EndCause::Exited { code: 3 }));
    world.send(
        node.session,
        Frame::new(Operand::InstanceChanged, report.clone()),
    );
    let frame = world.expect(controller.session, Operand::InstanceChanged);
    assert_eq!(from_node(&frame), ("n1".into(), report.clone()));
    // Nobody of that owner is there: dropped, since the launcher repeats it until acknowledged.
    world.close(controller.session);
    world.send(node.session, Frame::new(Operand::InstanceChanged, report));
    assert_eq!(world.broker.counters().undeliverable, 1);
    assert_eq!(world.next(other.session), None);
}

fn report(id: pronto_payloads::place::AttemptId, cause: EndCause) -> InstanceReport {
    InstanceReport {
        id,
        version: ids::Version(2),
        phase: Phase::Ended,
        end: Some(End {
            cause,
            message: String::new(),
        }),
        age_ns: 1_000,
        started_after_ns: Some(10),
        ended_after_ns: Some(1_000),
        usage: Usage::default(),
    }
}

#[test]
fn rule_04_a_lease_answers_each_status_that_asks_and_names_the_owners_with_a_fresh_grant() {
    let mut world = World::standby(BrokerConfig::default());
    let node = world.silent_node("n1", 1, &launcher_hello(capacity(1000)));
    let none = Lease {
        term: Term(0),
        lease_ms: 0,
        owners: Vec::new(),
    };
    assert_eq!(
        world.lease(&node, 0, capacity(1000)),
        none,
        "nobody has activated it"
    );
    let controller = world.controller(OWNER, 1);
    world.activate(&controller, 4, 1);
    world.expect(node.session, Operand::Lease);
    let lease = Lease {
        term: Term(4),
        lease_ms: 10_000,
        owners: Vec::new(),
    };
    assert_eq!(world.lease(&node, 0, capacity(1000)), lease);
    world.grant(&controller, 3_000);
    let granted = Lease {
        owners: vec![OWNER],
        ..lease.clone()
    };
    assert_eq!(world.lease(&node, 0, capacity(1000)), granted);
    world.pass_ms(3_000);
    world.skip_all(Operand::Stats);
    assert_eq!(
        world.lease(&node, 0, capacity(1000)),
        lease,
        "the grant is over"
    );
    // The next counts from when the last one was answered, three seconds ago: it is over, too.
    world.grant(&controller, 3_000);
    assert_eq!(world.lease(&node, 0, capacity(1000)), lease);
    world.pass_ms(1_000);
    world.grant(&controller, 3_000);
    assert_eq!(world.lease(&node, 0, capacity(1000)), granted);
    world.skip_all(Operand::Stats);
}

#[test]
fn rule_04_at_its_activation_a_scheduler_leases_to_those_who_asked_in_vain() {
    let mut world = World::standby(BrokerConfig::default());
    let node = world.silent_node("n1", 1, &launcher_hello(capacity(1000)));
    assert_eq!(world.lease(&node, 0, capacity(1000)).term, Term(0));
    let controller = world.controller(OWNER, 1);
    world.activate(&controller, 4, 1);
    // Before any START, and in answer to the status that was sent before.
    let again = world.expect(node.session, Operand::Lease);
    assert_eq!(again.correlation, 5);
    let lease: Lease = decode!(again);
    assert_eq!((lease.term, lease.lease_ms), (Term(4), 10_000));
    world.placed(&controller, &start(attempt(1), cpu(1)));
    // Once is enough.
    world.activate(&controller, 4, 1);
}

#[test]
fn rule_05_a_stop_reaches_its_node_with_the_owner_checked() {
    let (mut world, controller) = World::active();
    let node = world.node("n1", capacity(1000));
    let stop = |owner| {
        codec::encode(&control::Stop {
            owner,
            instance: attempt(1).instance,
            attempt: ids::Attempt(1),
            grace_ms: None,
        })
    };
    let send = |world: &mut World, payload| {
        world.send(
            controller.session,
            Frame::request(Operand::Stop, 40, payload),
        );
    };
    send(&mut world, to_node("n1", stop(OWNER)));
    let forwarded = world.expect(node.session, Operand::Stop);
    assert_eq!(forwarded.payload.to_bytes(), stop(OWNER));
    // The launcher's answer finds the one who asked, under the number that it asked with.
    let done = Frame::answer(Operand::Done, forwarded.correlation, Vec::new());
    world.send(node.session, done.clone());
    let answer = world.expect(controller.session, Operand::Done);
    assert_eq!(
        (answer.correlation, from_node(&answer).0.as_str()),
        (40, "n1")
    );
    world.send(node.session, done);
    assert_eq!(world.next(controller.session), None, "it is answered once");

    send(&mut world, to_node("n1", stop(OwnerId([9; 16]))));
    assert_eq!(
        world
            .expect(controller.session, Operand::Unauthorized)
            .correlation,
        40
    );
    send(&mut world, b"nonsense".to_vec());
    assert_eq!(
        world
            .expect(controller.session, Operand::InvalidFrame)
            .correlation,
        40
    );
}

#[test]
fn rule_06_an_owner_has_one_controller_and_its_epoch_never_falls() {
    let (mut world, first) = World::active();
    world.node("n1", capacity(1000));
    let second = world.controller(OWNER, 2);
    let (operand, refusal) = world.expect_refusal(first.session);
    assert_eq!(operand, Operand::Busy);
    assert!(refusal.text.contains("newer session"), "{}", refusal.text);
    // The older one's frames that were read in the same batch have nobody to answer to.
    world.start(&first, 1, &start(attempt(1), cpu(1)));
    assert_eq!(world.next(first.session), None);
    // A START of the older epoch does not run, although its session is the right one.
    let stale = world.refused(&second, &start(attempt(1), cpu(1)));
    assert_eq!(stale.refusal, Refusal::StaleEpoch);

    let body = codec::encode(&pronto_payloads::hello::ControllerHello {
        owner: OWNER,
        epoch: ControllerEpoch(1),
    });
    let older = world.connect((Role::Controller, "c"), Purpose::Control, 9, body);
    let (operand, refusal) = world.expect_refusal(older);
    assert_eq!(
        (operand, refusal.code),
        (Operand::Unauthorized, RefusalCode::OutOfPlace)
    );
    assert!(refusal.text.contains("superseded by 2"), "{}", refusal.text);
}

/// Whoever knows an owner's id, as every launcher that ran its work does, is not its controller.
#[test]
fn rule_06_an_owner_is_not_taken_over_by_another_certificate() {
    let (mut world, controller) = World::active();
    world.node("n1", capacity(1000));
    let body = codec::encode(&pronto_payloads::hello::ControllerHello {
        owner: OWNER,
        epoch: ControllerEpoch(99),
    });
    let thief = world.connect((Role::Controller, "thief"), Purpose::Control, 99, body);
    let (_, refusal) = world.expect_refusal(thief);
    assert!(
        refusal.text.contains("has a controller"),
        "{}",
        refusal.text
    );
    world.placed(&controller, &start(attempt(1), cpu(1)));
}

/// A controller that hears of a higher epoch of its own starts nothing more.
#[test]
fn rule_06_one_launcher_of_many_is_not_believed_what_epoch_it_has_seen() {
    let mut world = World::standby(BrokerConfig::default());
    let hello = |epoch| {
        let mut hello = launcher_hello(capacity(1000));
        hello.owners = vec![OwnerSummary {
            owner: OWNER,
            attempts: 0,
            digest: 0,
            epoch: ControllerEpoch(epoch),
        }];
        hello
    };
    for (name, epoch) in [("n1", 5), ("n2", u64::MAX), ("n3", 4)] {
        world.silent_node(name, 1, &hello(epoch));
    }
    let body = codec::encode(&pronto_payloads::hello::ControllerHello {
        owner: OWNER,
        epoch: ControllerEpoch(5),
    });
    let session = world.connect((Role::Controller, "c"), Purpose::Control, 5, body);
    let (_, body) = world.expect_welcome(session);
    assert_eq!(body.owner_epoch, ControllerEpoch(5));
}

/// What a controller is told where these launchers are connected, each of which has seen such a term and
/// such an epoch of its owner.
fn told_of(seen: &[u64]) -> (u64, u64) {
    let mut world = World::standby(BrokerConfig::default());
    for (number, seen) in seen.iter().enumerate() {
        let mut hello = launcher_hello(capacity(1000));
        hello.term = pronto_payloads::ids::Term(*seen);
        hello.owners = vec![OwnerSummary {
            owner: OWNER,
            attempts: 0,
            digest: 0,
            epoch: ControllerEpoch(*seen),
        }];
        world.silent_node(&format!("n{number}"), 1, &hello);
    }
    let body = codec::encode(&pronto_payloads::hello::ControllerHello {
        owner: OWNER,
        epoch: ControllerEpoch(5),
    });
    let session = world.connect((Role::Controller, "c"), Purpose::Control, 5, body);
    let (welcome, body) = world.expect_welcome(session);
    (welcome.term, body.owner_epoch.0)
}

/// A store that was put back goes on above what few are believed, and most of them are believed there:
/// seed 1253 of the simulation, where one had lied, nobody was, and nothing was placed any more.
#[test]
fn rules_06_and_07_no_launcher_brings_terms_and_epochs_to_their_end() {
    let bound = 1 << 32;
    assert_eq!(told_of(&[u64::MAX]), (0, 0));
    assert_eq!(told_of(&[bound]), (bound, bound));
    assert_eq!(told_of(&[u64::MAX, bound + 9, 7]), (bound + 9, bound + 9));
    assert_eq!(told_of(&[u64::MAX, bound + 9, 7, 6]), (7, 7));
    assert_eq!(told_of(&[u64::MAX, u64::MAX, 7]), (7, 7));
    let most = [u64::MAX, bound + 9, bound + 9, 7, 6];
    assert_eq!(told_of(&most), (bound + 9, bound + 9));
}

#[test]
fn rule_07_only_the_highest_term_activates_and_a_node_that_saw_a_higher_one_is_left_alone() {
    let (mut world, controller) = World::active();
    world.activate(&controller, 5, 0);
    let lower = codec::encode(&control::Activate {
        term: Term(4),
        expected_nodes: 0,
    });
    world.send(
        controller.session,
        Frame::request(Operand::Activate, 3, lower),
    );
    let frame = world.expect(controller.session, Operand::Unauthorized);
    assert!(
        !last(&frame),
        "it is an answer and does not end the session"
    );
    assert_eq!(frame.correlation, 3);

    for name in ["n2", "n3"] {
        world.silent_node(name, 1, &launcher_hello(capacity(1000)));
    }
    let mut hello = launcher_hello(capacity(1000));
    hello.term = Term(6);
    let node = world.silent_node("n1", 1, &hello);
    world.skip_all(Operand::NodeConnected);
    world.ready(&node, 0, capacity(1000));
    assert_eq!(
        world
            .refused(&controller, &start(attempt(1), cpu(1)))
            .refusal,
        Refusal::CloudFull
    );
    // A controller that comes is told of it, unless it can't be true.
    let mut liar = launcher_hello(capacity(1000));
    liar.term = Term(u64::MAX);
    liar.node_uuid = pronto_payloads::ids::NodeUuid([9; 16]);
    let liar = world.silent_node("liar", 1, &liar);
    world.skip_all(Operand::NodeConnected);
    // With it two say that 5 is not the highest: who is here is to come again.
    world.expect_refusal(controller.session);
    let body = codec::encode(&ControllerHello {
        owner: OwnerId([66; 16]),
        epoch: ControllerEpoch(1),
    });
    let other = world.connect((Role::Controller, "d"), Purpose::Control, 1, body);
    let (welcome, _) = world.expect_welcome(other);
    assert_eq!(
        (welcome.term, welcome.active),
        (6, false),
        "6 is not its own"
    );
    world.close(other);
    world.close(liar.session);
    let controller = world.controller(OWNER, 1);
    world.refused(&controller, &start(attempt(1), cpu(1)));
    world.activate(&controller, 6, 0);
    world.end_turn();
    let grown: CapacityGrown = decode!(world.expect(controller.session, Operand::Capacity));
    assert_eq!(grown.generation, world.broker.generation());
    let (_, stamp) = world.placed(&controller, &start(attempt(1), cpu(1)));
    assert_eq!(stamp.term, Term(6));
}

/// Seed 40513 of the simulation: a launcher that lied had the term raised past what one is believed, and a
/// store that was restored was never told of it.
#[test]
fn rule_07_controllers_learn_a_term_that_launchers_obey_and_this_scheduler_is_below() {
    const LIED: u64 = 1 << 32;
    let (mut world, controller) = World::active();
    for name in ["n1", "n2", "n3"] {
        let mut hello = launcher_hello(capacity(1000));
        hello.term = Term(if name == "n1" { 0 } else { LIED + 1 });
        world.silent_node(name, 1, &hello);
    }
    world.skip_all(Operand::NodeConnected);
    let (operand, refusal) = world.expect_refusal(controller.session);
    assert_eq!(operand, Operand::Busy);
    assert!(refusal.text.contains("higher term"), "{refusal:?}");
    let body = codec::encode(&ControllerHello {
        owner: OWNER,
        epoch: ControllerEpoch(1),
    });
    let session = world.connect((Role::Controller, "c"), Purpose::Control, 2, body);
    let (welcome, _) = world.expect_welcome(session);
    assert_eq!((welcome.term, welcome.active), (LIED + 1, false));
}

#[test]
fn rule_07_a_scheduler_that_was_never_activated_refuses() {
    let mut world = World::standby(BrokerConfig::default());
    let controller = world.controller(OWNER, 1);
    world.node("n1", capacity(1000));
    let failure = world.refused(&controller, &start(attempt(1), cpu(1)));
    assert_eq!(failure.refusal, Refusal::NotActive);
}

#[test]
fn rule_08_placements_wait_for_nine_tenths_of_the_nodes_or_five_seconds() {
    let mut world = World::standby(BrokerConfig::default());
    let controller = world.controller(OWNER, 1);
    world.activate(&controller, 1, 10);
    for number in 0..8 {
        world.node(&format!("n{number}"), capacity(1000));
    }
    let warming = world.refused(&controller, &start(attempt(1), cpu(1)));
    assert_eq!(warming.refusal, Refusal::Warming);
    // Connected is not enough: what is free must be known.
    let node = world.silent_node("n8", 1, &launcher_hello(capacity(1000)));
    world.skip_all(Operand::NodeConnected);
    assert_eq!(
        world
            .refused(&controller, &start(attempt(1), cpu(1)))
            .refusal,
        Refusal::Warming
    );
    world.end_turn();
    world.skip_all(Operand::Capacity);
    world.refused(&controller, &start(attempt(1), cpu(1)));
    world.ready(&node, 0, capacity(1000));
    world.end_turn();
    let grown: CapacityGrown = decode!(world.expect(controller.session, Operand::Capacity));
    assert!(grown.generation > warming.generation);
    world.placed(&controller, &start(attempt(1), cpu(1)));

    let mut world = World::standby(BrokerConfig::default());
    let controller = world.controller(OWNER, 1);
    let node = world.node("n0", capacity(1000));
    world.activate(&controller, 1, 10);
    world.pass_ms(2_500);
    world.ready(&node, 0, capacity(1000));
    world.pass_ms(2_400);
    world.skip_all(Operand::Stats);
    assert_eq!(
        world
            .refused(&controller, &start(attempt(1), cpu(1)))
            .refusal,
        Refusal::Warming
    );
    world.pass_ms(100);
    world.skip_all(Operand::Stats);
    world.expect(controller.session, Operand::Capacity);
    world.placed(&controller, &start(attempt(1), cpu(1)));
    // A later activation, as by a controller that was restarted, warms nothing up again.
    world.activate(&controller, 2, 10);
    world.placed(&controller, &start(attempt(2), cpu(1)));
}

#[test]
fn rule_09_a_name_is_one_node() {
    let (mut world, controller) = World::active();
    let first = world.node("n1", capacity(1000));
    let connect = |world: &mut World, epoch, hello: &pronto_payloads::hello::LauncherHello| {
        world.connect(
            (Role::Launcher, "n1"),
            Purpose::Control,
            epoch,
            codec::encode(hello),
        )
    };
    let mut other = launcher_hello(capacity(1000));
    other.node_uuid = NodeUuid([3; 16]);
    other.boot_id = BootId([4; 16]);
    let impostor = connect(&mut world, 9, &other);
    let (operand, refusal) = world.expect_refusal(impostor);
    assert_eq!(
        (operand, refusal.code),
        (Operand::Unauthorized, RefusalCode::NameTaken)
    );
    // The same node, and an older session of it.
    let stale = connect(&mut world, 1, &launcher_hello(capacity(1000)));
    assert_eq!(world.expect_refusal(stale).1.code, RefusalCode::OutOfPlace);
    world.placed(&controller, &start(attempt(1), cpu(1)));
    // The same node with a newer one: the older ends wholly before the newer begins.
    let newer = connect(&mut world, 2, &launcher_hello(capacity(1000)));
    world.expect_refusal(first.session);
    world.expect_welcome(newer);
    let gone: NodeDisconnected =
        decode!(world.expect(controller.session, Operand::NodeDisconnected));
    assert_eq!((gone.session_epoch, gone.orderly), (SessionEpoch(1), false));
    let back: NodeConnected = decode!(world.expect(controller.session, Operand::NodeConnected));
    assert_eq!(back.session_epoch, SessionEpoch(2));
    // What the older session still said is not heard.
    world.ready(&first, 1, capacity(5));
    assert_eq!(
        world
            .refused(&controller, &start(attempt(2), cpu(1)))
            .refusal,
        Refusal::CloudFull
    );
}

#[test]
fn rule_09_maintenance_takes_a_node_out_and_its_end_brings_it_back() {
    let (mut world, controller) = World::active();
    let node = world.node("n1", capacity(1000));
    world.status(&node, Operand::Maintenance, 0, capacity(1000));
    let refused = world.refused(&controller, &start(attempt(1), cpu(1)));
    assert_eq!(refused.refusal, Refusal::CloudFull);
    let explain = codec::encode(&Explain {
        body_schema: 1,
        runtime: Runtime::Exec,
        demand: cpu(1),
        constraints: Vec::new(),
    });
    world.send(
        controller.session,
        Frame::request(Operand::Explain, 8, explain),
    );
    let explanation: Explanation = decode!(world.expect(controller.session, Operand::Explanation));
    assert_eq!((explanation.nodes, explanation.fits), (1, 0));
    assert_eq!(explanation.reasons[0].reason, Reason::Maintenance);
    world.ready(&node, 0, capacity(1000));
    world.end_turn();
    let grown: CapacityGrown = decode!(world.expect(controller.session, Operand::Capacity));
    assert!(grown.generation > refused.generation);
    world.placed(&controller, &start(attempt(1), cpu(1)));
    // OFFLINE, and then it goes: that was orderly.
    world.status(&node, Operand::Offline, 1, capacity(999));
    world.refused(&controller, &start(attempt(2), cpu(1)));
    world.close(node.session);
    let gone: NodeDisconnected =
        decode!(world.expect(controller.session, Operand::NodeDisconnected));
    assert!(gone.orderly);
}

#[test]
fn a_node_that_takes_no_work_is_not_worth_waiting_for() {
    let (mut world, controller) = World::active();
    world.node("n1", capacity(1000));
    let other = world.node("n2", capacity(1000));
    let mut retry = start(attempt(1), cpu(1000));
    retry.avoid = vec!["n1".into()];
    // The other could hold it, and takes it.
    let (placed, _) = world.placed(&controller, &retry);
    assert_eq!(placed.node, "n2");
    world.ready(&other, 1, capacity(0));
    retry.id = attempt(2);
    let refused = world.refused(&controller, &retry);
    assert_eq!(refused.refusal, Refusal::CloudFull, "worth waiting for");
    // In maintenance nobody knows for how long.
    world.status(&other, Operand::Maintenance, 1, capacity(0));
    let (placed, _) = world.placed(&controller, &retry);
    assert_eq!(placed.node, "n1");
}

#[test]
fn capacity_is_announced_once_a_turn_to_those_that_were_refused() {
    let (mut world, controller) = World::active();
    let idle = world.controller(OwnerId([8; 16]), 1);
    let node = world.node("n1", capacity(100));
    world.end_turn();
    world.refused(&controller, &start(attempt(1), cpu(200)));
    let refused = world.refused(&controller, &start(attempt(2), cpu(200)));
    world.end_turn();
    for free in [90, 110, 120] {
        world.ready(&node, 0, capacity(free));
    }
    world.end_turn();
    let grown: CapacityGrown = decode!(world.expect(controller.session, Operand::Capacity));
    assert!(grown.generation > refused.generation);
    world.ready(&node, 0, capacity(130));
    world.end_turn();
    assert_eq!(
        world.next(controller.session),
        None,
        "not refused since the last one"
    );
    assert_eq!(world.next(idle.session), None);
    assert!(world.broker.generation() > Generation(0));
}

#[test]
fn a_node_that_fails_everything_is_left_alone_for_a_while_that_doubles() {
    let (mut world, controller) = World::active();
    let node = world.node("hole", capacity(1000));
    let fail = |world: &mut World| {
        for instance in 0..3 {
            let report = codec::encode(&report(attempt(instance), EndCause::Rejected));
            world.send(node.session, Frame::new(Operand::InstanceChanged, report));
        }
        world.skip_all(Operand::InstanceChanged);
    };
    fail(&mut world);
    assert_eq!(
        world
            .refused(&controller, &start(attempt(9), cpu(1)))
            .refusal,
        Refusal::CloudFull
    );
    world.pass_ms(1_000);
    world.skip_all(Operand::Stats);
    world.expect(controller.session, Operand::Capacity);
    world.placed(&controller, &start(attempt(9), cpu(1)));
    fail(&mut world);
    world.pass_ms(1_950);
    world.skip_all(Operand::Stats);
    world.refused(&controller, &start(attempt(10), cpu(1)));
    world.pass_ms(50);
    world.skip_all(Operand::Stats);
    world.expect(controller.session, Operand::Capacity);
    // A workload that ran to its end clears it.
    let fine = codec::encode(&report(attempt(9), EndCause::Exited { code: 1 }));
    world.send(node.session, Frame::new(Operand::InstanceChanged, fine));
    world.skip_all(Operand::InstanceChanged);
    world.placed(&controller, &start(attempt(11), cpu(1)));
    assert_eq!(world.broker.counters().back_offs, 2);
}

#[test]
fn a_node_that_misses_three_statistics_is_given_nothing_until_it_is_heard() {
    let (mut world, controller) = World::active();
    let node = world.node("n1", capacity(1000));
    let stats = codec::encode(&Stats {
        load: NodeLoad::default(),
        usages: Vec::new(),
    });
    world.send(node.session, Frame::new(Operand::Stats, stats));
    world.pass_ms(3_000);
    world.skip_all(Operand::Capacity);
    world.skip_all(Operand::Stats);
    world.skip_all(Operand::Capacity);
    world.placed(&controller, &start(attempt(1), cpu(100)));
    world.pass_ms(1_100);
    let told: StatsBatch = decode!(world.expect(controller.session, Operand::Stats));
    assert_eq!(told.nodes[0].state, NodeState::Full);
    assert!(told.nodes[0].reason.contains("silent"), "{told:?}");
    world.skip_all(Operand::Stats);
    world.refused(&controller, &start(attempt(2), cpu(100)));
    world.ready(&node, 1, capacity(900));
    world.pass_ms(50);
    world.skip_all(Operand::Capacity);
    world.skip_all(Operand::Stats);
    world.skip_all(Operand::Capacity);
    world.placed(&controller, &start(attempt(3), cpu(100)));
}

/// A launcher that hangs as soon as it has said what is free is noticed as well.
#[test]
fn a_node_that_is_not_heard_after_its_welcome_is_given_nothing() {
    let (mut world, controller) = World::active();
    let node = world.node("n1", capacity(1000));
    world.pass_ms(3_000);
    for operand in [Operand::Capacity, Operand::Stats, Operand::Capacity] {
        world.skip_all(operand);
    }
    world.placed(&controller, &start(attempt(1), cpu(100)));
    world.pass_ms(1_100);
    let told: StatsBatch = decode!(world.expect(controller.session, Operand::Stats));
    assert!(told.nodes[0].reason.contains("silent"), "{told:?}");
    world.skip_all(Operand::Stats);
    world.refused(&controller, &start(attempt(2), cpu(100)));
    // It sends no statistics; its statuses are enough.
    for _ in 0..10 {
        world.ready(&node, 1, capacity(900));
        world.pass_ms(1_000);
    }
    for operand in [
        Operand::Capacity,
        Operand::Stats,
        Operand::Capacity,
        Operand::Stats,
    ] {
        world.skip_all(operand);
    }
    world.placed(&controller, &start(attempt(3), cpu(100)));
}

#[test]
fn silence_that_was_this_process_own_pause_is_held_against_nobody() {
    let (mut world, controller) = World::active();
    let node = world.node("n1", capacity(1000));
    let stats = codec::encode(&Stats {
        load: NodeLoad::default(),
        usages: Vec::new(),
    });
    world.send(node.session, Frame::new(Operand::Stats, stats));
    world.pass_ms(1_000);
    world.now = world.now.plus_ms(60_000);
    world.pass_ms(2_000);
    for operand in [Operand::Capacity, Operand::Stats, Operand::Capacity] {
        world.skip_all(operand);
    }
    world.placed(&controller, &start(attempt(1), cpu(100)));
}
