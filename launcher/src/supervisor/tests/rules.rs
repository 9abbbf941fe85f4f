//! One scenario a rule of the design.

use super::*;
use pronto_payloads::control::{Ack, Delete, PullInventory, SetMode, Stop};
use pronto_payloads::instance::Inventory;

fn stop(id: AttemptId) -> bytes::Bytes {
    codec::encode(&Stop {
        owner: id.owner,
        instance: id.instance,
        attempt: id.attempt,
        grace_ms: Some(50),
    })
}

fn ack(report: &InstanceReport) -> bytes::Bytes {
    codec::encode(&Ack {
        id: report.id,
        version: report.version,
    })
}

#[test]
fn a_start_is_debited_run_reported_and_credited_when_empty() {
    let mut node = Node::ready();
    let id = attempt(1, 1);
    node.start(id);
    let (_, status) = node.next_status();
    assert_eq!((status.applied_seq, status.free.cpu_millis), (Seq(1), 3000));
    node.run(id);
    assert_eq!(node.report().phase, Phase::Running);

    node.now = node.now.after_ms(20);
    node.step(Event::Ended {
        id,
        at: node.now,
        end: exited(3),
        usage: Usage::default(),
    });
    assert!(node.reports().is_empty(), "it is not empty yet");
    assert_eq!(node.core.free().cpu_millis, 3000);
    node.step(Event::Emptied(id));
    let report = node.report();
    assert_eq!(
        (report.phase, report.end.clone()),
        (Phase::Ended, Some(exited(3)))
    );
    assert_eq!(node.next_status().1.free.cpu_millis, 4000);
    node.frame(Operand::Ack, 0, ack(&report));
    assert!(node.took(|effect| matches!(effect, Effect::Keep(Durable::Acknowledged(_)))));
    assert_eq!(node.core.counts(), (0, 0));
    node.skim();
}

#[test]
fn on_a_busy_node_a_short_task_tells_its_end_alone() {
    let mut node = Node::ready();
    node.start(attempt(1, 1));
    node.start(attempt(2, 1));
    node.run(attempt(1, 1));
    node.run(attempt(2, 1));
    node.end(attempt(1, 1), exited(0));
    let report = node.report();
    assert_eq!(report.phase, Phase::Ended);
    assert!(report.started_after_ns.is_some());
    node.wait_ms(5);
    assert_eq!(node.report().phase, Phase::Running, "the other one runs on");
    node.skim();
}

#[test]
fn applied_seq_counts_rejected_starts() {
    let mut node = Node::ready();
    node.start_with(
        attempt(1, 1),
        &Demand {
            cpu_millis: 9000,
            ..Demand::default()
        },
        &body(),
    );
    let report = node.report();
    let end = report.end.unwrap();
    assert_eq!(end.cause, EndCause::Rejected);
    assert!(
        end.message
            .contains("asked for 9000 CPU millis, 4000 are free"),
        "{}",
        end.message
    );
    let (_, status) = node.next_status();
    assert_eq!((status.applied_seq, status.free.cpu_millis), (Seq(1), 4000));
    node.skim();
}

#[test]
fn a_body_that_can_not_be_read_is_answered_and_the_session_goes_on() {
    let mut node = Node::ready();
    let id = attempt(1, 1);
    node.seq += 1;
    let mut payload = Vec::new();
    codec::encode_into(
        &StartStamp {
            session_epoch: SessionEpoch(1),
            seq: Seq(1),
            term: Term(1),
            gpus: vec![],
        },
        &mut payload,
    );
    let prefix = StartPrefix {
        id,
        controller_epoch: ControllerEpoch(1),
        body_schema: 1,
        runtime: Runtime::Exec,
        demand: Demand::default(),
        constraints: Vec::new(),
        prefer: None,
        avoid: Vec::new(),
    };
    codec::encode_into(&prefix, &mut payload);
    payload.extend_from_slice(b"garbage");
    node.frame(Operand::Start, 0, payload);
    assert_eq!(node.report().end.unwrap().cause, EndCause::Rejected);
    node.start(attempt(2, 1));
    node.run(attempt(2, 1));
    assert_eq!(node.report().phase, Phase::Running);
    node.skim();
}

#[test]
fn rule_02_an_inventory_is_one_piece_with_its_applied_seq() {
    let mut node = Node::ready();
    for instance in 0..200 {
        node.start_with(attempt(instance, 1), &Demand::default(), &body());
    }
    node.unseen
        .retain(|effect| !matches!(effect, Effect::Prepare { .. }));
    let owner = attempt(0, 1).owner;
    node.frame(
        Operand::Inventory,
        9,
        codec::encode(&PullInventory { owner }),
    );
    let pages = node.take_frames(Operand::InventoryPage);
    assert_eq!(pages.len(), 1);
    assert!(pages[0].is_last());
    assert_eq!(pages[0].correlation, 9);
    let page: Inventory = codec::decode(&pages[0].payload.to_bytes()).unwrap();
    assert_eq!(
        (page.applied_seq, page.session_epoch),
        (Seq(200), SessionEpoch(1))
    );
    assert_eq!(page.entries.len(), 200);
    let digest = page.entries.iter().fold(0_u64, |sum, entry| {
        let phase = if entry.phase == Phase::Preparing {
            Phase::Received
        } else {
            entry.phase
        };
        sum.wrapping_add(pronto_payloads::instance::digest_item(&entry.id, phase))
    });
    let hello = node.core.hello(SessionEpoch(2));
    assert_eq!(
        (hello.owners[0].attempts, hello.owners[0].digest),
        (200, digest)
    );
}

#[test]
fn rule_03_an_end_is_repeated_until_it_is_acknowledged() {
    let mut node = Node::ready();
    let id = attempt(1, 1);
    node.start(id);
    node.run(id);
    node.end(id, exited(0));
    let reports = node.reports();
    let last = reports.last().unwrap().clone();
    assert_eq!(last.phase, Phase::Ended);
    node.wait_ms(5000);
    assert_eq!(node.report().version, last.version);
    node.connect();
    assert_eq!(
        node.report().phase,
        Phase::Ended,
        "each new session hears it again"
    );
    // An acknowledgement of the running state does not forget the end.
    let early = InstanceReport {
        version: pronto_payloads::ids::Version(3),
        ..last.clone()
    };
    node.frame(Operand::Ack, 0, ack(&early));
    assert_eq!(node.core.counts(), (1, 1));
    node.frame(Operand::Ack, 0, ack(&last));
    assert_eq!(node.core.counts(), (0, 0));
    node.wait_ms(20_000);
    assert!(node.reports().is_empty());
}

/// Every way on which an end comes in, with words that no report may hold.
#[test]
fn rule_03_an_end_in_too_many_words_is_cut_and_acknowledged() {
    let mut node = Node::ready();
    let wordy = || End {
        // The limit is within a character.
        message: format!("x{}", "é".repeat(600)),
        ..exited(127)
    };
    node.start(attempt(1, 1));
    node.run(attempt(1, 1));
    node.start(attempt(2, 1));
    assert!(node.took(|effect| matches!(effect, Effect::Prepare { .. })));
    node.start(attempt(3, 1));
    assert!(node.took(|effect| matches!(effect, Effect::Prepare { .. })));
    node.reports();
    node.end(attempt(1, 1), wordy());
    node.step(Event::Failed {
        id: attempt(2, 1),
        end: wordy(),
    });
    let cut = |report: &InstanceReport| {
        let message = &report.end.as_ref().unwrap().message;
        assert_eq!(*message, wordy().message[..1023]);
    };
    // A report that may not be sent is one that `reports` can't decode.
    node.reports().iter().for_each(cut);
    // What a disk has kept of a release that did not cut.
    node.restart();
    let found = Found::Ended {
        started_at: None,
        ended_at: node.now,
        end: wordy(),
        usage: Usage::default(),
    };
    for instance in [1, 2, 3] {
        let (id, found) = (attempt(instance, 1), found.clone());
        node.step(Event::Adopted { id, found });
    }
    node.connect();
    node.lease(&[]);
    let pull = codec::encode(&PullInventory {
        owner: attempt(1, 1).owner,
    });
    node.frame(Operand::Inventory, 7, pull);
    let page = node.take_frames(Operand::InventoryPage).remove(0);
    let page: Inventory = codec::decode(&page.payload.to_bytes()).unwrap();
    assert_eq!(page.entries.len(), 3);
    let longest = page.entries.iter().map(|entry| codec::encode(entry).len());
    assert!(longest.max().unwrap() <= REPORT_BYTES);
    page.entries.iter().for_each(cut);
    for report in node.reports() {
        node.frame(Operand::Ack, 0, ack(&report));
    }
    assert_eq!(node.core.counts(), (0, 0));
    node.skim();
}

#[test]
fn rule_03_a_new_session_hears_every_end_some_at_a_time() {
    let mut node = Node::ready();
    let big = Demand {
        cpu_millis: 9000,
        ..Demand::default()
    };
    for number in 0..1000_u32 {
        let instance = u8::try_from(number % 250).unwrap();
        node.start_with(attempt(instance, 1 + number / 250), &big, &body());
    }
    node.reports();
    node.connect();
    let mut told = node.reports();
    assert_eq!(told.len(), 256, "and the rest in its turn");
    node.wait_ms(1000);
    told.extend(node.reports());
    let ids: BTreeSet<AttemptId> = told.iter().map(|report| report.id).collect();
    assert_eq!((told.len(), ids.len()), (1000, 1000));
}

#[test]
fn rule_03_too_many_unacknowledged_ends_make_the_node_full() {
    let mut node = Node::ready();
    for instance in 0..100 {
        let big = Demand {
            cpu_millis: 9000,
            ..Demand::default()
        };
        node.start_with(attempt(instance, 1), &big, &body());
    }
    let (operand, status) = node.next_status();
    assert_eq!(operand, Operand::Full);
    assert_eq!(status.reason, "100 ended instances wait to be acknowledged");
}

#[test]
fn rule_04_nothing_starts_without_a_lease() {
    let mut node = Node::disconnected();
    node.connect();
    node.start(attempt(1, 1));
    let end = node.report().end.unwrap();
    assert_eq!(end.message, "the node has no lease from the scheduler");
    node.wait_ms(200);
    node.lease(&[]);
    node.start(attempt(1, 2));
    node.run(attempt(1, 2));
    assert_eq!(node.report().phase, Phase::Running);
    // The lease runs from the sending of the status, and nobody renews it.
    node.wait_ms(LEASE_MS);
    node.start(attempt(2, 1));
    let refused = node
        .reports()
        .into_iter()
        .find(|report| report.id == attempt(2, 1))
        .unwrap();
    assert_eq!(refused.end.unwrap().cause, EndCause::Rejected);
}

#[test]
fn rule_04_a_lease_that_follows_an_empty_one_counts_from_the_same_status() {
    let mut node = Node::disconnected();
    node.connect();
    let asked_at = node.now;
    node.term = 0;
    node.lease(&[]);
    node.now = node.now.after_ms(150);
    // Activated meanwhile: the same status is answered again, before the first START.
    node.term = 1;
    node.lease(&[]);
    assert_eq!(node.core.lease_until(), asked_at.after_ms(LEASE_MS));
    let id = attempt(1, 1);
    node.start(id);
    assert!(node.took(|effect| matches!(effect, Effect::Prepare { job, .. } if job.id == id)));
    node.skim();
}

#[test]
fn rule_04_after_a_pause_the_session_and_its_unread_starts_are_thrown_away() {
    let mut node = Node::ready();
    node.now = node.now.after_ms(LEASE_MS + 1);
    node.start(attempt(1, 1));
    assert!(
        node.took(|effect| matches!(effect, Effect::CloseSession(why) if why.contains("paused")))
    );
    assert!(
        node.reports().is_empty(),
        "an unread START is as if it had never come"
    );
    assert_eq!(node.core.counts(), (0, 0));
    node.connect();
    node.skim();
}

#[test]
fn rule_04_what_waited_past_its_fence_does_not_start_under_a_later_lease() {
    // The process is back before the fence, or behind it.
    for (away_ms, waits_ms) in [(100, 60_000), (60_000, 100)] {
        let mut node = Node::ready();
        let id = attempt(1, 1);
        let body = StartBody {
            on_disconnect: OnDisconnect::StopAfter { ms: 1_000 },
            ..body()
        };
        node.start_with(id, &Demand::default(), &body);
        assert!(node.took(|effect| matches!(effect, Effect::Prepare { .. })));
        node.restart();
        node.now = node.now.after_ms(away_ms);
        node.connect();
        node.step(Event::Adopted {
            id,
            found: Found::NeverStarted,
        });
        node.wait_ms(waits_ms);
        node.lease(&[id.owner]);
        assert!(!node.took(|effect| matches!(effect, Effect::Prepare { .. })));
        assert_eq!(node.report().end.unwrap().cause, EndCause::LeaseExpired);
        node.skim();
    }
}

#[test]
fn rule_04_stop_after_ends_work_when_its_owners_lease_runs_out() {
    let mut node = Node::ready();
    let id = attempt(1, 1);
    let body = StartBody {
        on_disconnect: OnDisconnect::StopAfter { ms: 500 },
        ..body()
    };
    node.start_with(id, &Demand::default(), &body);
    node.run(id);
    node.wait_ms(5000);
    node.lease(&[id.owner]);
    assert!(
        node.took(|effect| matches!(effect, Effect::Fence { owner, .. } if *owner == id.owner))
    );
    let renewed = node.core.lease_until();
    assert!(!node.took(|effect| matches!(effect, Effect::Stop { .. })));
    // From here the node is leased, but its owner has no fresh grant: the fence stays.
    node.wait_ms(1000);
    node.lease(&[]);
    while node.now < renewed.after_ms(499) {
        node.wait_ms(1);
    }
    assert!(!node.took(|effect| matches!(effect, Effect::Stop { .. })));
    node.wait_ms(2);
    assert!(node.took(|effect| matches!(
        effect,
        Effect::Stop {
            cause: StopCause::LeaseExpired,
            ..
        }
    )));
    node.reports();
    node.end(
        id,
        End {
            cause: EndCause::Signaled { signal: 15 },
            message: String::new(),
        },
    );
    assert_eq!(node.report().end.unwrap().cause, EndCause::LeaseExpired);
}

#[test]
fn rule_05_a_stop_that_overtook_its_start_forbids_it() {
    let mut node = Node::ready();
    let id = attempt(1, 2);
    node.frame(Operand::Stop, 5, stop(id));
    assert_eq!(node.take_frames(Operand::Done)[0].correlation, 5);
    node.start(attempt(1, 1));
    node.start(id);
    let causes: Vec<_> = node
        .reports()
        .into_iter()
        .map(|r| r.end.unwrap().cause)
        .collect();
    assert_eq!(causes, [EndCause::Stopped, EndCause::Stopped]);
    node.start(attempt(1, 3));
    node.run(attempt(1, 3));
    assert_eq!(
        node.report().phase,
        Phase::Running,
        "a later attempt may run"
    );
    node.skim();
}

#[test]
fn rule_05_a_tombstone_survives_a_restart() {
    let mut node = Node::ready();
    node.frame(Operand::Stop, 5, stop(attempt(1, 2)));
    node.take_frames(Operand::Done);
    node.restart();
    node.connect();
    node.lease(&[]);
    node.start(attempt(1, 2));
    assert_eq!(node.report().end.unwrap().cause, EndCause::Stopped);
}

#[test]
fn rule_05_a_tombstone_outlives_a_boot_by_its_usual_time() {
    let mut node = Node::ready();
    node.frame(Operand::Stop, 5, stop(attempt(1, 2)));
    node.take_frames(Operand::Done);
    node.skim();
    // The clock begins anew with each boot.
    node.now = Moment(5 * MS);
    node.restart();
    node.connect();
    node.lease(&[]);
    node.start(attempt(1, 2));
    assert_eq!(node.report().end.unwrap().cause, EndCause::Stopped);
    let (owner, instance) = (attempt(1, 2).owner, attempt(1, 2).instance);
    node.wait_ms(3_700_000);
    assert!(!node.core.tombstones.forbids(owner, instance, Attempt(2)));
}

#[test]
fn rule_05_what_had_ended_before_its_stop_came_was_not_stopped() {
    let mut node = Node::ready();
    let id = attempt(1, 1);
    node.start(id);
    node.run(id);
    node.reports();
    let ended_at = node.now;
    node.now = node.now.after_ms(3);
    node.frame(Operand::Stop, 0, stop(id));
    node.take_frames(Operand::Done);
    assert!(node.took(|effect| matches!(effect, Effect::Stop { .. })));
    // The shim's word of it, which was behind the STOP.
    node.step(Event::Ended {
        id,
        at: ended_at,
        end: exited(0),
        usage: Usage::default(),
    });
    node.step(Event::Emptied(id));
    assert_eq!(node.report().end, Some(exited(0)));
    node.skim();
}

#[test]
fn rule_05_a_running_attempt_is_stopped_and_says_so() {
    let mut node = Node::ready();
    let id = attempt(1, 1);
    node.start(id);
    node.run(id);
    node.reports();
    node.frame(Operand::Stop, 0, stop(id));
    node.take_frames(Operand::Done);
    assert!(node.took(|effect| matches!(
        effect,
        Effect::Stop {
            grace_ms: 50,
            cause: StopCause::Asked,
            ..
        }
    )));
    node.end(id, exited(0));
    let end = node.report().end.unwrap();
    assert_eq!(end.cause, EndCause::Stopped);
    assert_eq!(end.message, "exited with 0 when told to stop");
    node.skim();
}

#[test]
fn rule_06_an_older_epoch_of_the_controller_is_refused() {
    let mut node = Node::ready();
    let stamp = |seq| StartStamp {
        session_epoch: SessionEpoch(1),
        seq: Seq(seq),
        term: Term(1),
        gpus: Vec::new(),
    };
    node.start_stamped(attempt(1, 1), &Demand::default(), &body(), &stamp(1), 5);
    node.run(attempt(1, 1));
    node.reports();
    node.start_stamped(attempt(2, 1), &Demand::default(), &body(), &stamp(2), 4);
    let end = node.report().end.unwrap();
    assert_eq!(end.message, "controller's epoch 4 was superseded by 5");
    node.restart();
    assert_eq!(
        node.core.hello(SessionEpoch(2)).owners[0].epoch,
        ControllerEpoch(5)
    );
}

#[test]
fn rule_07_a_lower_term_starts_nothing_and_leases_nothing() {
    let mut node = Node::ready();
    node.term = 3;
    node.wait_ms(1000);
    node.lease(&[]);
    node.term = 2;
    node.start(attempt(1, 1));
    assert!(
        node.report()
            .end
            .unwrap()
            .message
            .contains("term 2 was superseded by 3")
    );
    let before = node.core.lease_until();
    node.wait_ms(1000);
    node.lease(&[]);
    assert_eq!(node.core.lease_until(), before);
}

#[test]
fn a_start_of_another_session_or_out_of_order_never_runs() {
    let mut node = Node::ready();
    let stamp = StartStamp {
        session_epoch: SessionEpoch(99),
        seq: Seq(1),
        term: Term(1),
        gpus: Vec::new(),
    };
    node.start_stamped(attempt(1, 1), &Demand::default(), &body(), &stamp, 1);
    assert_eq!(node.report().end.unwrap().cause, EndCause::Rejected);
    let gap = StartStamp {
        session_epoch: SessionEpoch(1),
        seq: Seq(3),
        ..stamp
    };
    node.start_stamped(attempt(2, 1), &Demand::default(), &body(), &gap, 1);
    assert!(
        node.took(|effect| matches!(effect, Effect::CloseSession(why) if why.contains("seq 3")))
    );
    node.skim();
}

#[test]
fn a_repeated_start_is_answered_and_debited_once() {
    let mut node = Node::ready();
    let id = attempt(1, 1);
    node.start(id);
    node.run(id);
    node.reports();
    node.start(id);
    assert_eq!(node.report().phase, Phase::Running);
    assert_eq!(node.core.free().cpu_millis, 3000);
    node.start(attempt(1, 2));
    assert!(
        node.report()
            .end
            .unwrap()
            .message
            .contains("attempt 1 of the instance is still")
    );
    node.skim();
}

#[test]
fn rule_09_maintenance_outlives_the_process() {
    let mut node = Node::ready();
    let mode = SetMode {
        mode: Mode::Maintenance,
    };
    node.frame(Operand::SetMode, 4, codec::encode(&mode));
    assert_eq!(node.take_frames(Operand::Done)[0].correlation, 4);
    assert_eq!(node.next_status().0, Operand::Maintenance);
    node.restart();
    assert_eq!(node.core.mode(), Mode::Maintenance);
    node.connect();
    node.lease(&[]);
    node.start(attempt(1, 1));
    assert_eq!(
        node.report().end.unwrap().message,
        "the node is in maintenance"
    );
}

#[test]
fn a_restart_adopts_what_runs_and_reports_what_ended() {
    let mut node = Node::ready();
    for instance in 1..=4 {
        node.start(attempt(instance, 1));
    }
    for instance in 1..=3 {
        node.run(attempt(instance, 1));
    }
    assert!(node.took(|effect| matches!(effect, Effect::Prepare { .. })));
    node.wait_ms(6);
    node.reports();
    let began = node.now;
    node.restart();
    assert_eq!(
        node.core.free().cpu_millis,
        0,
        "all four are in the books before HELLO"
    );
    node.now = node.now.after_ms(100);
    node.connect();
    let found = |instance, found| Event::Adopted {
        id: attempt(instance, 1),
        found,
    };
    node.step(found(
        1,
        Found::Running {
            started_at: began,
            fence_at: None,
        },
    ));
    node.step(found(
        2,
        Found::Ended {
            started_at: Some(began),
            ended_at: began.after_ms(10),
            end: exited(7),
            usage: Usage::default(),
        },
    ));
    node.step(found(3, Found::Lost("the shim has vanished".into())));
    node.step(found(4, Found::NeverStarted));
    node.wait_ms(6);
    let mut reports = node.reports();
    reports.sort_by_key(|report| report.id);
    let phases: Vec<_> = reports.iter().map(|report| report.phase).collect();
    assert_eq!(phases, [Phase::Running, Phase::Ended, Phase::Ended]);
    assert_eq!(reports[1].end, Some(exited(7)));
    assert_eq!(reports[2].end.as_ref().unwrap().cause, EndCause::NodeFailed);
    assert_eq!(node.core.free().cpu_millis, 2000);
    // What never started waits for the lease, and starts then.
    assert!(!node.took(|effect| matches!(effect, Effect::Prepare { .. })));
    node.lease(&[]);
    node.run(attempt(4, 1));
}

#[test]
fn what_was_rejected_is_not_taken_up_by_the_next_process() {
    let mut node = Node::ready();
    let id = attempt(1, 1);
    node.start(id);
    assert!(node.took(|effect| matches!(effect, Effect::Prepare { .. })));
    node.step(Event::Failed { id, end: no_disk() });
    assert_eq!(node.report().end, Some(no_disk()), "its owner knows");
    node.restart();
    node.step(Event::Adopted {
        id,
        found: Found::NeverStarted,
    });
    node.connect();
    node.lease(&[]);
    assert!(!node.took(|effect| matches!(effect, Effect::Prepare { .. })));
    assert_eq!(node.report().end, Some(no_disk()), "and hears the same");
}

#[test]
fn another_boot_proves_that_all_work_is_gone() {
    let mut node = Node::ready();
    node.start(attempt(1, 1));
    node.run(attempt(1, 1));
    node.reports();
    let settings = Settings {
        boot_id: BootId([8; 16]),
        ..settings()
    };
    let core = Supervisor::new(settings, node.store.restore(), Moment(5 * MS));
    core.sanity_check();
    assert_eq!(core.free().cpu_millis, 4000);
    let report = core.reports(Moment(5 * MS)).next().unwrap();
    assert_eq!(report.end.unwrap().cause, EndCause::NodeFailed);
}

#[test]
fn inputs_are_waited_for_and_a_timeout_ends_it() {
    let mut node = Node::ready();
    let id = attempt(1, 1);
    let body = StartBody {
        await_inputs: 2,
        timeout_ms: Some(300),
        ..body()
    };
    node.start_with(id, &Demand::default(), &body);
    assert!(node.took(|effect| matches!(effect, Effect::Prepare { .. })));
    let input = |path: &str| Event::InputArrived {
        id,
        path: path.to_owned(),
    };
    node.step(Event::Prepared(id));
    node.step(input("a"));
    node.step(input("a"));
    assert!(!node.took(|effect| matches!(effect, Effect::Start { .. })));
    node.wait_ms(1000);
    assert_eq!(
        node.report().phase,
        Phase::Preparing,
        "it says so after a second"
    );
    node.step(input("b"));
    assert!(node.took(|effect| matches!(effect, Effect::Start { .. })));
    node.step(Event::Started { id, at: node.now });
    node.reports();
    node.wait_ms(299);
    assert!(!node.took(|effect| matches!(effect, Effect::Stop { .. })));
    node.wait_ms(1);
    assert!(node.took(|effect| matches!(
        effect,
        Effect::Stop {
            cause: StopCause::TimedOut,
            ..
        }
    )));
    node.end(
        id,
        End {
            cause: EndCause::Signaled { signal: 15 },
            message: String::new(),
        },
    );
    assert_eq!(node.report().end.unwrap().cause, EndCause::TimedOut);
}

#[test]
fn inputs_that_stop_coming_end_it_with_a_word() {
    let mut node = Node::ready();
    let id = attempt(1, 1);
    let body = StartBody {
        await_inputs: 2,
        ..body()
    };
    node.start_with(id, &Demand::default(), &body);
    node.step(Event::Prepared(id));
    let input = |path: &str| Event::InputArrived {
        id,
        path: path.to_owned(),
    };
    let limit_ms = u64::try_from(INPUTS_LIMIT.as_millis()).unwrap();
    node.wait_ms(limit_ms - 1);
    node.step(input("a"));
    node.wait_ms(limit_ms - 1);
    assert!(!node.took(|effect| matches!(effect, Effect::Stop { .. })));
    node.wait_ms(1);
    assert!(node.took(|effect| matches!(effect, Effect::Stop { .. })));
    node.reports();
    node.end(
        id,
        End {
            cause: EndCause::Stopped,
            message: String::new(),
        },
    );
    let end = node.report().end.unwrap();
    assert_eq!(end.cause, EndCause::TimedOut);
    assert_eq!(
        end.message,
        "no input file came for 10 minutes, and 1 are missing"
    );
}

#[test]
fn delete_ends_what_runs_and_forbids_it_for_good() {
    let mut node = Node::ready();
    let id = attempt(1, 1);
    node.start(id);
    node.run(id);
    node.reports();
    let delete = Delete {
        owner: id.owner,
        instance: id.instance,
    };
    node.frame(Operand::Delete, 3, codec::encode(&delete));
    assert_eq!(node.take_frames(Operand::Done).len(), 1);
    assert!(node.took(|effect| matches!(effect, Effect::Stop { .. })));
    node.end(id, exited(0));
    assert_eq!(node.report().end.unwrap().cause, EndCause::Stopped);
    assert!(node.took(|effect| matches!(effect, Effect::Keep(Durable::Deleted(_)))));
    node.start(attempt(1, 9));
    assert_eq!(node.report().end.unwrap().cause, EndCause::Stopped);
}

#[test]
fn statuses_are_coalesced_and_leases_renewed() {
    let mut node = Node::ready();
    for instance in 1..=3 {
        node.start(attempt(instance, 1));
    }
    node.unseen
        .retain(|effect| !matches!(effect, Effect::Prepare { .. }));
    assert!(node.statuses().is_empty());
    assert_eq!(node.next_status().1.applied_seq, Seq(3));
    let asked = |node: &Node| {
        node.unseen
            .iter()
            .filter(|effect| matches!(effect, Effect::Send(frame) if frame.wants_reply()))
            .count()
    };
    node.wait_ms(3000);
    assert_eq!(asked(&node), 3);
}

#[test]
fn pressure_makes_the_node_full_and_an_engine_may_go() {
    let mut node = Node::ready();
    node.step(Event::PressureChanged(Some("2 MiB of memory left".into())));
    let (operand, status) = node.next_status();
    assert_eq!(
        (operand, status.reason.as_str()),
        (Operand::Full, "2 MiB of memory left")
    );
    node.step(Event::PressureChanged(None));
    node.step(Event::OfferChanged(vec![Runtime::Sim]));
    let (operand, status) = node.next_status();
    assert_eq!(
        (operand, status.runtimes),
        (Operand::Ready, vec![Runtime::Sim])
    );
    node.start(attempt(1, 1));
    assert!(
        node.report()
            .end
            .unwrap()
            .message
            .contains("runtime exec is not offered")
    );
}

#[test]
fn a_malformed_command_is_answered_with_what_is_wrong() {
    let mut node = Node::ready();
    node.frame(Operand::Stop, 8, vec![1_u8, 2, 3]);
    let failures = node.take_frames(Operand::StopFailure);
    assert_eq!(failures[0].correlation, 8);
    node.frame(Operand::SetMode, 9, vec![9_u8; 4]);
    let refusals = node.take_frames(Operand::Unsupported);
    assert_eq!(refusals[0].correlation, 9);
    assert_eq!(refusals[0].flags, Flags::NONE, "the session goes on");
    node.skim();
}

#[test]
fn simulated_work_leaves_nothing_on_disk() {
    let mut node = Node::ready();
    let task = Task::Sim(SimTask {
        run_ms: 10,
        exit_code: 0,
    });
    node.start_with(
        attempt(1, 1),
        &Demand::default(),
        &StartBody { task, ..body() },
    );
    assert!(!node.took(|effect| matches!(effect, Effect::Keep(Durable::Accepted(_)))));
}

#[test]
fn rule_07_a_scheduler_behind_which_no_controller_stands_is_left() {
    let mut node = Node::ready();
    node.wait_ms(2_000);
    node.lease(&[attempt(1, 1).owner]);
    node.wait_ms(3_000);
    assert!(!node.core.is_orphaned(node.now));
    node.lease(&[]);
    node.wait_ms(100);
    assert!(node.core.is_orphaned(node.now), "its controllers are gone");
    node.core.leave_orphaned();
    assert!(!node.core.is_orphaned(node.now));
    // Nobody is found: it asks around less and less often.
    node.connect();
    node.wait_ms(5_900);
    assert!(!node.core.is_orphaned(node.now));
    node.wait_ms(200);
    assert!(node.core.is_orphaned(node.now));
    node.core.leave_orphaned();
    node.connect();
    node.wait_ms(100);
    node.lease(&[attempt(1, 1).owner]);
    node.wait_ms(3_100);
    assert!(
        node.core.is_orphaned(node.now),
        "and begins anew with whom it finds"
    );
}
