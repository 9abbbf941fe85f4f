//! What is forwarded, what is answered for nodes that are not there, and what statistics become.

use crate::harness::*;
use pronto_payloads::codec;
use pronto_payloads::control::{Ack, Delete, Failure, PullInventory, SetMode, Stop};
use pronto_payloads::hello::Mode;
use pronto_payloads::ids::{Attempt, BootId, OwnerId, Seq, SessionEpoch, Version};
use pronto_payloads::instance::{InstanceUsage, Inventory, Usage};
use pronto_payloads::limits::{FROM_NODE_BYTES, NAME_BYTES};
use pronto_payloads::node::{NodeLoad, NodeState, Nodes, Stats, StatsBatch};
use pronto_protocol::{Flags, Frame, Operand, Refusal};

fn commands() -> Vec<(Operand, bytes::Bytes, Operand)> {
    let id = attempt(1);
    vec![
        (
            Operand::Stop,
            codec::encode(&Stop {
                owner: OWNER,
                instance: id.instance,
                attempt: Attempt(2),
                grace_ms: Some(1),
            }),
            Operand::StopFailure,
        ),
        (
            Operand::Delete,
            codec::encode(&Delete {
                owner: OWNER,
                instance: id.instance,
            }),
            Operand::DeleteFailure,
        ),
        (
            Operand::SetMode,
            codec::encode(&SetMode {
                mode: Mode::Maintenance,
            }),
            Operand::Unsupported,
        ),
        (
            Operand::Ack,
            codec::encode(&Ack {
                id,
                version: Version(1),
            }),
            Operand::Unsupported,
        ),
    ]
}

#[test]
fn a_command_for_an_unknown_node_is_answered() {
    let (mut world, controller) = World::active();
    for (operand, command, failure) in commands() {
        let frame = Frame::request(operand, 30, to_node("ghost", command));
        world.send(controller.session, frame);
        let answer = world.expect(controller.session, failure);
        assert_eq!(answer.correlation, 30);
        let text = if failure == Operand::Unsupported {
            Refusal::decode(&answer.payload.to_bytes()).unwrap().text
        } else {
            let (node, rest) = from_node(&answer);
            assert_eq!(node, "ghost");
            codec::decode::<Failure>(&rest).unwrap().text
        };
        assert_eq!(text, "node ghost is not connected");
    }
}

#[test]
fn commands_are_forwarded_without_the_name_and_answered_when_the_node_goes() {
    let (mut world, controller) = World::active();
    let node = world.node("n1", capacity(1000));
    for (operand, command, _) in commands() {
        let frame = Frame::request(operand, 31, to_node("n1", command.clone()));
        world.send(controller.session, frame);
        assert_eq!(
            world.expect(node.session, operand).payload.to_bytes(),
            command
        );
    }
    world.close(node.session);
    for failure in [
        Operand::StopFailure,
        Operand::DeleteFailure,
        Operand::Unsupported,
    ] {
        assert_eq!(world.expect(controller.session, failure).correlation, 31);
    }
    world.expect(controller.session, Operand::NodeDisconnected);
}

#[test]
fn what_a_launcher_may_say_can_be_forwarded_with_its_name() {
    let (mut world, controller) = World::active();
    let name = "n".repeat(NAME_BYTES);
    let node = world.node(&name, capacity(1000));
    let room = |operand: Operand| operand.max_payload_bytes() - FROM_NODE_BYTES;
    let report = |bytes: usize| {
        let mut report = vec![0; bytes];
        report[..16].copy_from_slice(&OWNER.0);
        Frame::new(Operand::InstanceChanged, report)
    };
    world.send(node.session, report(room(Operand::InstanceChanged)));
    let up = world.expect(controller.session, Operand::InstanceChanged);
    assert_eq!(up.payload.len_bytes(), up.operand.max_payload_bytes());
    world.send(node.session, report(room(Operand::InstanceChanged) + 1));
    let told = world.expect(node.session, Operand::InvalidFrame);
    assert!(!last(&told));

    let (operand, stop, failure) = commands().swap_remove(0);
    let stop = to_node(&name, stop);
    for more in [0, 1] {
        let frame = Frame::request(operand, 30, stop.clone());
        world.send(controller.session, frame);
        let number = world.expect(node.session, operand).correlation;
        let answer = vec![0; room(failure) + more];
        world.send(node.session, Frame::answer(failure, number, answer));
        let told = world.expect(controller.session, failure);
        assert_eq!(told.correlation, 30);
        assert!(told.payload.len_bytes() <= failure.max_payload_bytes());
    }
}

/// Counts the lines that are written while it is the default.
#[derive(Clone, Default)]
struct Lines(std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event()
    }
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_launcher_that_changes_its_state_all_the_time_fills_no_log() {
    let (mut world, _controller) = World::active();
    let node = world.node("n1", capacity(1000));
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), || {
        for operand in [Operand::Full, Operand::Ready].repeat(100) {
            world.status(&node, operand, 0, capacity(1000));
        }
    });
    let written = lines.0.load(std::sync::atomic::Ordering::Relaxed);
    assert!((1..=10).contains(&written), "{written} lines");
    world.end_turn();
    world.skip_all(Operand::Stats);
    world.skip_all(Operand::Capacity);
}

#[test]
fn two_controllers_with_one_number_get_each_its_answer() {
    let (mut world, first) = World::active();
    let second = world.controller(OwnerId([8; 16]), 1);
    let node = world.node("n1", capacity(1000));
    let mode = || to_node("n1", codec::encode(&SetMode { mode: Mode::Ready }));
    let mut numbers = Vec::new();
    for controller in [&first, &second] {
        world.send(
            controller.session,
            Frame::request(Operand::SetMode, 1, mode()),
        );
        numbers.push(world.expect(node.session, Operand::SetMode).correlation);
    }
    assert_ne!(numbers[0], numbers[1]);
    for (number, controller) in numbers.into_iter().zip([&first, &second]).rev() {
        world.send(
            node.session,
            Frame::answer(Operand::Done, number, Vec::new()),
        );
        assert_eq!(
            world.expect(controller.session, Operand::Done).correlation,
            1
        );
    }
}

#[test]
fn statistics_coalesce_per_node_and_usages_reach_their_owner_alone() {
    let (mut world, controller) = World::active();
    let other_owner = OwnerId([8; 16]);
    let other = world.controller(other_owner, 1);
    let nodes = [
        world.node("n1", capacity(1000)),
        world.node("n2", capacity(2000)),
    ];
    world.pass_ms(1_100);
    world.skip_all(Operand::Stats);
    let usage = |owner| InstanceUsage {
        id: attempt_of(owner, 1),
        usage: Usage::default(),
    };
    for instances in 1..=20 {
        let stats = codec::encode(&Stats {
            load: NodeLoad {
                instances,
                ..NodeLoad::default()
            },
            usages: vec![usage(OWNER), usage(other_owner)],
        });
        world.send(nodes[0].session, Frame::new(Operand::Stats, stats));
        world.ready(&nodes[0], 0, capacity(1000 - instances));
    }
    world.pass_ms(1_100);
    for (controller, owner) in [(&controller, OWNER), (&other, other_owner)] {
        let batch: StatsBatch = decode!(world.expect(controller.session, Operand::Stats));
        assert_eq!(batch.generation, world.broker.generation());
        assert_eq!(batch.nodes.len(), 1, "n2 has nothing to tell");
        let node = &batch.nodes[0];
        assert_eq!((node.node.as_str(), node.state), ("n1", NodeState::Ready));
        assert_eq!((node.load.instances, node.available.cpu_millis), (20, 980));
        assert_eq!(node.usages, [usage(owner)]);
    }
    // A change of state does not wait for its turn.
    world.status(&nodes[1], Operand::Full, 0, capacity(2000));
    world.pass_ms(50);
    let batch: StatsBatch = decode!(world.expect(controller.session, Operand::Stats));
    assert_eq!(batch.nodes[0].state, NodeState::Full);
    world.skip_all(Operand::Stats);
}

#[test]
fn a_long_node_list_comes_in_pages_a_turn_each() {
    let (mut world, controller) = World::active();
    for number in 0..600 {
        world.silent_node(&format!("n{number}"), 1, &launcher_hello(capacity(1000)));
    }
    world.skip_all(Operand::NodeConnected);
    world.send(
        controller.session,
        Frame::request(Operand::Nodes, 3, Vec::new()),
    );
    let mut names = Vec::new();
    let mut turns = 0;
    while world.broker.wants_turn() {
        world.end_turn();
        turns += 1;
        let page = world.expect(controller.session, Operand::NodeList);
        assert_eq!(last(&page), !world.broker.wants_turn());
        let page: Nodes = decode!(page);
        names.extend(page.nodes.into_iter().map(|node| node.node));
    }
    assert_eq!(turns, 3);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 600);
}

#[test]
fn a_status_that_cannot_be_true_is_answered_and_changes_nothing() {
    let (mut world, controller) = World::active();
    let node = world.node("n1", capacity(1000));
    let later = Node {
        epoch: SessionEpoch(2),
        ..node.clone()
    };
    let bad = [
        status_bytes(&node, 1, capacity(1000)),
        status_bytes(&later, 0, capacity(1000)),
        bytes::Bytes::from_static(b"nonsense"),
    ];
    for payload in bad {
        world.send(node.session, Frame::request(Operand::Ready, 4, payload));
        let answer = world.expect(node.session, Operand::InvalidFrame);
        assert!(!last(&answer) && answer.correlation == 4);
    }
    assert_eq!(world.broker.counters().bad_statuses, 3);
    world.placed(&controller, &start(attempt(1), cpu(1000)));
}

fn ask_for_inventory(world: &mut World, controller: &Controller, node: &Node) -> u64 {
    let pull = to_node("n1", codec::encode(&PullInventory { owner: OWNER }));
    world.send(
        controller.session,
        Frame::request(Operand::Inventory, 50, pull),
    );
    world.expect(node.session, Operand::Inventory).correlation
}

fn inventory_page(asked: u64, page: u32) -> Frame {
    let page = codec::encode(&Inventory {
        owner: OWNER,
        boot_id: BootId([2; 16]),
        session_epoch: SessionEpoch(1),
        applied_seq: Seq(0),
        page,
        entries: Vec::new(),
    });
    Frame::answer(Operand::InventoryPage, asked, page)
}

#[test]
fn an_inventory_is_asked_for_and_comes_in_pages() {
    let (mut world, controller) = World::active();
    let node = world.node("n1", capacity(1000));
    let asked = ask_for_inventory(&mut world, &controller, &node);
    let pages = [
        inventory_page(asked, 0),
        inventory_page(asked, 1).with_flags(Flags::LAST),
    ];
    for page in &pages {
        world.send(node.session, page.clone());
    }
    for page in pages {
        let frame = world.expect(controller.session, Operand::InventoryPage);
        assert_eq!((frame.correlation, last(&frame)), (50, last(&page)));
        assert_eq!(from_node(&frame).1, page.payload.into_bytes());
    }
}

/// Rule 2: it was taken before the successor asked, and STARTs may lie between.
#[test]
fn rule_02_an_inventory_answers_nobody_but_the_session_that_asked() {
    let (mut world, first) = World::active();
    let node = world.node("n1", capacity(1000));
    let early = ask_for_inventory(&mut world, &first, &node);
    world.close(first.session);
    let second = world.controller(OWNER, 2);
    let late = ask_for_inventory(&mut world, &second, &node);
    let whole = |asked| inventory_page(asked, 0).with_flags(Flags::LAST);
    world.send(node.session, whole(early));
    world.expect_silence();
    // Nor is what nobody asked for an answer.
    world.send(node.session, whole(early));
    world.expect_silence();
    world.send(node.session, whole(late));
    world.expect(second.session, Operand::InventoryPage);
}
