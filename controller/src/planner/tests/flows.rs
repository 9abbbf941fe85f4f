//! What users do, end to end through the planner.

use super::*;
use crate::api::types::{
    CreateTenant, CreateWorkload, ErrorCode, Instance, QuotaLimits, RestartMode, RestartPolicy,
    UpdateQuota,
};
use crate::store::AfterStop;

fn shown(h: &mut Harness, id: Uuid) -> Instance {
    match h.ask(admin(), Call::Show(id.into())).unwrap() {
        Reply::Shown { instance, .. } => *instance,
        other => panic!("{other:?}"),
    }
}

fn run_to_end(h: &mut Harness, a: &NodeConnected, cause: EndCause) -> AttemptId {
    let id = h.start().0.id;
    h.placed(id, a);
    h.running(&a.node, id);
    h.ended(&a.node, id, cause);
    h.expect_ack(id);
    id
}

#[test]
fn a_repeated_request_returns_the_first_answer_and_starts_nothing() {
    let (mut h, [_]) = Harness::beside(["a"]);
    let call = h.submit_call(sim(), 3);
    let first = h.submit_as(admin(), call.clone()).unwrap();
    let again = h.submit_as(admin(), call.clone()).unwrap();
    assert!(again.repeated);
    assert_eq!(first.instances, again.instances);
    assert_eq!(h.starts().len(), 3);
    let other = SubmitCall {
        digest: 2,
        ..call.clone()
    };
    let refused = h.submit_as(admin(), other).unwrap_err();
    assert_eq!(refused.body.code, ErrorCode::Conflict);
    // The answer is the same after a crash.
    let mut h = h.crash();
    let again = h.submit_as(admin(), call).unwrap();
    assert!(again.repeated);
    assert_eq!(first.instances, again.instances);
}

#[test]
fn a_repetition_while_the_first_is_being_committed_waits_for_it() {
    let mut h = Harness::new();
    h.auto_commit = false;
    let call = h.submit_call(sim(), 1);
    let one = h.ask_later(admin(), Call::Submit(Box::new(call.clone())));
    let two = h.ask_later(admin(), Call::Submit(Box::new(call)));
    assert!(h.reply(one).is_none() && h.reply(two).is_none());
    h.commit();
    let Some(Ok(Reply::Submitted(one))) = h.reply(one) else {
        panic!()
    };
    let Some(Ok(Reply::Submitted(two))) = h.reply(two) else {
        panic!()
    };
    assert_eq!(one.instances, two.instances);
    assert_eq!((one.repeated, two.repeated), (false, true));
}

#[test]
fn a_full_disk_refuses_a_submission_whole_and_nothing_else() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let living = h.submit(sim(), 1).instances[0];
    let start = h.start_on(&a);
    h.store.full = true;
    let call = h.submit_call(sim(), 5);
    let refused = h.submit_as(admin(), call.clone()).unwrap_err();
    assert_eq!(refused.body.code, ErrorCode::StorageFull);
    h.ended("a", start, EndCause::Exited { code: 0 });
    h.expect_ack(start);
    assert_eq!(h.state_of(living), InstanceState::Succeeded);
    h.store.full = false;
    assert_eq!(h.submit_as(admin(), call).unwrap().instances.len(), 5);
    assert_eq!(h.starts().len(), 5);
}

#[test]
fn a_quota_refusal_names_everything_and_an_update_helps() {
    let mut h = Harness::new();
    let create = CreateTenant {
        name: "lab".to_owned(),
        runtimes: None,
        privileged: None,
        submit_rate_per_s: None,
        quota: UpdateQuota {
            instances: Some(Some(3)),
            ..UpdateQuota::default()
        },
    };
    h.ask(admin(), Call::CreateTenant(create)).unwrap();
    let call = h.submit_call(sim(), 2);
    h.submit_as(user("lab"), call).unwrap();
    let call = h.submit_call(sim(), 2);
    let refused = h.submit_as(user("lab"), call).unwrap_err();
    assert_eq!(
        refused.body.message,
        "quota instances of tenant lab exceeded: limit 3, used 2, asked 2"
    );
    assert_eq!(refused.body.details.unwrap()["limit"], 3);
    let update = UpdateQuota {
        instances: Some(Some(4)),
        ..UpdateQuota::default()
    };
    let denied = h.ask(user("lab"), Call::UpdateQuota("lab".to_owned(), update));
    assert_eq!(denied.unwrap_err().body.code, ErrorCode::Forbidden);
    h.ask(admin(), Call::UpdateQuota("lab".to_owned(), update))
        .unwrap();
    let call = h.submit_call(sim(), 2);
    h.submit_as(user("lab"), call).unwrap();
    // All of it is there after a crash.
    let mut h = h.crash();
    let Ok(Reply::Tenant(tenant)) = h.ask(user("lab"), Call::Tenant("lab".to_owned())) else {
        panic!();
    };
    assert_eq!(tenant.quota.limits.instances, Some(4));
    assert_eq!(tenant.quota.used.instances, 4);
}

#[test]
fn the_default_tenant_has_the_configured_quota() {
    let settings = Settings {
        default_quota: QuotaLimits {
            instances: Some(7),
            ..QuotaLimits::default()
        },
        ..Settings::default()
    };
    let mut h = Harness::with(settings);
    let Ok(Reply::Tenant(tenant)) = h.ask(admin(), Call::Tenant("default".to_owned())) else {
        panic!();
    };
    assert_eq!(tenant.quota.limits.instances, Some(7));
    let call = h.submit_call(sim(), 8);
    assert!(h.submit_as(admin(), call).is_err());
}

#[test]
fn a_user_sees_nothing_of_another_tenant() {
    let mut h = Harness::new();
    for name in ["one", "two"] {
        let create = CreateTenant {
            name: name.to_owned(),
            runtimes: None,
            privileged: None,
            submit_rate_per_s: None,
            quota: UpdateQuota::default(),
        };
        h.ask(admin(), Call::CreateTenant(create)).unwrap();
    }
    let mut call = h.submit_call(sim(), 1);
    call.name = Some("mine".to_owned());
    let request = call.request;
    let id = h.submit_as(user("one"), call).unwrap().instances[0];
    let not_living = |reply: Result<Reply, Refused>| matches!(reply, Ok(Reply::NotLiving));
    assert!(not_living(h.ask(user("two"), Call::Show(id.into()))));
    assert!(not_living(h.ask(user("two"), Call::Locate(id.into()))));
    assert!(not_living(h.ask(user("two"), Call::Submission(request))));
    let stop = Call::Stop {
        id: id.into(),
        grace_ms: None,
        then: AfterStop::Delete,
    };
    assert!(matches!(h.ask(user("two"), stop), Ok(Reply::Ended { .. })));
    let call = Call::Resolve {
        text: "mine".to_owned(),
        tenant: None,
    };
    let Ok(Reply::Resolved(found)) = h.ask(user("two"), call.clone()) else {
        panic!()
    };
    assert!(found.living.is_empty());
    let Ok(Reply::Resolved(found)) = h.ask(user("one"), call) else {
        panic!()
    };
    assert_eq!(found.living, [id.into()]);
    let mut call = h.submit_call(sim(), 1);
    call.tenant = Some("one".to_owned());
    let refused = h.submit_as(user("two"), call).unwrap_err();
    assert_eq!(refused.body.message, "no tenant one");
    let Ok(Reply::Listed(found)) = h.ask(
        user("two"),
        Call::List(LiveFilter {
            limit: 10,
            ..LiveFilter::default()
        }),
    ) else {
        panic!()
    };
    assert!(found.is_empty());
}

#[test]
fn names_are_unique_among_the_living() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let named = |h: &Harness, name: &str, count| SubmitCall {
        name: Some(name.to_owned()),
        ..h.submit_call(sim(), count)
    };
    let call = named(&h, "web", 1);
    let id = h.submit_as(admin(), call).unwrap().instances[0];
    let call = named(&h, "web", 1);
    assert_eq!(
        h.submit_as(admin(), call).unwrap_err().body.code,
        ErrorCode::Conflict
    );
    run_to_end(&mut h, &a, EndCause::Exited { code: 0 });
    assert_eq!(h.state_of(id), InstanceState::Succeeded);
    let call = named(&h, "web", 3);
    let ids = h.submit_as(admin(), call).unwrap().instances;
    assert_eq!(h.starts().len(), 3);
    assert_eq!(shown(&mut h, ids[2]).name.as_deref(), Some("web-3"));
}

#[test]
fn a_short_id_finds_its_instance() {
    let mut h = Harness::new();
    let ids = h.submit(sim(), 50).instances;
    for id in ids {
        let text = id.simple().to_string();
        let call = Call::Resolve {
            text: text[24..].to_owned(),
            tenant: None,
        };
        let Ok(Reply::Resolved(found)) = h.ask(admin(), call) else {
            panic!()
        };
        assert_eq!(found.living, [id.into()]);
    }
}

#[test]
fn failures_are_restarted_with_back_off_and_a_limit() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let mut spec = sim();
    spec.restart = RestartPolicy {
        mode: RestartMode::OnFailure,
        limit: Some(2),
        backoff_ms: 1000,
        backoff_max_ms: 60_000,
    };
    let id = h.submit(spec, 1).instances[0];
    run_to_end(&mut h, &a, EndCause::Exited { code: 1 });
    assert_eq!(h.state_of(id), InstanceState::Pending);
    h.pass(900);
    assert!(h.sent.is_empty());
    h.pass(200);
    run_to_end(&mut h, &a, EndCause::Signaled { signal: 9 });
    h.pass(1_900);
    assert!(h.sent.is_empty(), "the back-off doubles");
    h.pass(200);
    run_to_end(&mut h, &a, EndCause::Exited { code: 1 });
    assert_eq!(h.state_of(id), InstanceState::Failed);
    let end = h.store.ends.values().next().unwrap();
    assert_eq!((end.attempt, end.restarts), (3, 2));
}

#[test]
fn a_command_that_can_not_run_is_not_restarted() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let mut spec = sim();
    spec.restart.mode = RestartMode::Always;
    let id = h.submit(spec, 1).instances[0];
    run_to_end(&mut h, &a, EndCause::CannotExecute { code: 127 });
    assert_eq!(h.state_of(id), InstanceState::Failed);
    assert_eq!(h.store.ends.values().next().unwrap().code, Some(127));
}

#[test]
fn a_node_that_rejects_is_avoided_and_spends_a_reschedule() {
    let (mut h, [a, b]) = Harness::beside(["a", "b"]);
    let mut spec = sim();
    spec.reschedule.limit = 1;
    let id = h.submit(spec, 1).instances[0];
    run_to_end(&mut h, &a, EndCause::Rejected);
    h.pass(200);
    let start = h.start().0;
    assert_eq!(start.avoid, ["a"]);
    h.placed(start.id, &b);
    h.ended("b", start.id, EndCause::NodeFailed);
    h.expect_ack(start.id);
    assert_eq!(h.state_of(id), InstanceState::NodeLost);
}

#[test]
fn a_pending_instance_expires_and_a_placed_one_does_not() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let mut spec = sim();
    spec.pending_timeout_ms = Some(5_000);
    let ids = h.submit(spec, 2).instances;
    let starts = h.starts();
    h.placed(starts[0].0.id, &a);
    h.refuse(&starts[1], Refusal::CloudFull, 1);
    h.pass(4_900);
    assert_eq!(h.state_of(ids[1]), InstanceState::Pending);
    h.pass(200);
    assert_eq!(h.state_of(ids[1]), InstanceState::Expired);
    assert_eq!(h.state_of(ids[0]), InstanceState::Starting);
}

#[test]
fn a_stop_cancels_what_waits_and_catches_what_is_under_way() {
    let mut h = Harness::new();
    let a = node("a");
    let ids = h.submit(sim(), 1).instances;
    h.stop(ids[0]);
    assert_eq!(h.state_of(ids[0]), InstanceState::Cancelled);
    h.connect(std::slice::from_ref(&a));
    let ids = h.submit(sim(), 2).instances;
    let starts = h.starts();
    h.stop(ids[0]);
    h.stop(ids[1]);
    assert!(h.sent.is_empty(), "nobody knows yet where they are");
    h.placed(starts[0].0.id, &a);
    h.expect_stop("a", starts[0].0.id);
    h.ended("a", starts[0].0.id, EndCause::Stopped);
    h.expect_ack(starts[0].0.id);
    h.refuse(&starts[1], Refusal::CloudFull, 1);
    assert_eq!(h.state_of(ids[0]), InstanceState::Stopped);
    assert_eq!(h.state_of(ids[1]), InstanceState::Cancelled);
}

#[test]
fn a_user_restarts_what_runs_and_prefers_its_node() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let id = h.submit(sim(), 1).instances[0];
    let first = h.start_on(&a);
    h.running("a", first);
    let call = Call::Stop {
        id: id.into(),
        grace_ms: None,
        then: AfterStop::Restart,
    };
    h.ask(admin(), call).unwrap();
    h.expect_stop("a", first);
    h.ended("a", first, EndCause::Stopped);
    h.expect_ack(first);
    let second = h.start().0;
    assert_eq!(second.prefer.as_deref(), Some("a"));
    h.placed(second.id, &a);
    assert_eq!(shown(&mut h, id).restarts, 1);
}

/// The machine is drained, and restarted at once.
#[test]
fn what_a_drain_moves_is_not_ended_by_its_node() {
    for cause in [EndCause::NodeFailed, EndCause::Exited { code: 1 }] {
        let (mut h, [a, b]) = Harness::beside(["a", "b"]);
        let mut movable = sim();
        movable.restart.mode = RestartMode::OnFailure;
        let id = h.submit(movable, 1).instances[0];
        let first = h.start_on(&a);
        h.running("a", first);
        let drain = DrainCall {
            node: "a".to_owned(),
            deadline_ms: 30_000,
        };
        h.ask(admin(), Call::Drain(drain)).unwrap();
        assert!(matches!(h.sent.pop_front(), Some(Sent::SetMode { .. })));
        h.expect_stop("a", first);
        h.ended("a", first, cause);
        h.expect_ack(first);
        let next = h.start_after(2_000).0.id;
        h.placed(next, &b);
        h.running("b", next);
        h.pass(10_000);
        assert!(h.sent.is_empty(), "nobody wants it to stop there");
        assert_eq!(h.state_of(id), InstanceState::Running);
    }
}

#[test]
fn a_drain_moves_what_may_move_and_waits_for_the_rest() {
    let (mut h, [a, b]) = Harness::beside(["a", "b"]);
    let mut movable = sim();
    movable.restart.mode = RestartMode::OnFailure;
    let moves = h.submit(movable, 1).instances[0];
    let first = h.start_on(&a);
    h.running("a", first);
    let stays = h.submit(sim(), 1).instances[0];
    let second = h.start_on(&a);
    h.running("a", second);
    let drain = DrainCall {
        node: "a".to_owned(),
        deadline_ms: 30_000,
    };
    h.ask(admin(), Call::Drain(drain)).unwrap();
    assert!(matches!(h.sent.pop_front(), Some(Sent::SetMode { .. })));
    h.expect_stop("a", first);
    h.ended("a", first, EndCause::Stopped);
    h.expect_ack(first);
    let moved = h.start().0;
    assert_eq!(moved.avoid, ["a"]);
    h.placed(moved.id, &b);
    h.running("b", moved.id);
    assert_eq!(h.state_of(moves), InstanceState::Running);
    h.node_up(&NodeConnected {
        state: NodeState::Maintenance,
        ..again(&a, &[(second, NodePhase::Running)])
    });
    h.pass(29_000);
    assert_eq!(h.state_of(stays), InstanceState::Running);
    h.pass(1_500);
    h.expect_stop("a", second);
    h.ended("a", second, EndCause::Stopped);
    h.expect_ack(second);
    let moved = h.start().0;
    h.placed(moved.id, &b);
    assert_eq!(shown(&mut h, stays).reschedules, 0, "a move is no retry");
}

#[test]
fn a_deleted_instance_is_stopped_then_forgotten_with_its_files() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let id = h.submit(sim(), 1).instances[0];
    let start = h.start_on(&a);
    let call = Call::Stop {
        id: id.into(),
        grace_ms: None,
        then: AfterStop::Delete,
    };
    h.ask(admin(), call).unwrap();
    h.expect_stop("a", start);
    h.ended("a", start, EndCause::Stopped);
    h.expect_ack(start);
    assert!(matches!(h.sent.pop_front(), Some(Sent::Delete)));
    assert!(h.store.ends.values().all(|end| end.deleted));
}

#[test]
fn an_aged_large_demand_holds_smaller_ones_back_for_a_while() {
    let (mut h, [a]) = Harness::beside(["a"]);
    h.submit(with_cpu(64_000), 1);
    let large = h.start();
    h.refuse(&large, Refusal::CloudFull, 1);
    h.submit(with_cpu(10), 1);
    let small = h.start();
    h.placed(small.0.id, &a);
    h.pass(61_000);
    h.submit(with_cpu(10), 1);
    assert!(h.sent.is_empty(), "younger and no higher: it waits");
    let mut urgent = with_cpu(10);
    urgent.priority = 5;
    h.submit(urgent, 1);
    let start = h.start();
    h.placed(start.0.id, &a);
    h.capacity(2);
    let large = h.start();
    h.placed(large.0.id, &a);
    let small = h.start();
    h.placed(small.0.id, &a);
}

#[test]
fn a_workload_is_a_template_with_overrides() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let mut spec = sim();
    spec.env.insert("A".to_owned(), "1".to_owned());
    let workload = CreateWorkload {
        name: "nightly".to_owned(),
        tenant: None,
        spec,
    };
    let put = |replace| Call::PutWorkload {
        workload: Box::new(workload.clone()),
        replace,
    };
    h.ask(admin(), put(false)).unwrap();
    assert!(h.ask(admin(), put(false)).is_err());
    h.ask(admin(), put(true)).unwrap();
    let mut call = h.submit_call(sim(), 1);
    call.spec = None;
    call.workload = Some("nightly".to_owned());
    call.overrides.env.insert("B".to_owned(), "2".to_owned());
    let id = h.submit_as(admin(), call).unwrap().instances[0];
    let start = h.start();
    h.placed(start.0.id, &a);
    let Ok(Reply::Shown { instance, spec, .. }) = h.ask(admin(), Call::Show(id.into())) else {
        panic!()
    };
    assert_eq!(instance.workload.as_deref(), Some("nightly"));
    assert_eq!(spec.env.len(), 2);
}

#[test]
fn an_ended_instance_can_be_opened_again() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let response = h.submit(sim(), 2);
    let starts = h.starts();
    for start in &starts {
        h.placed(start.0.id, &a);
        h.ended("a", start.0.id, EndCause::Exited { code: 1 });
        h.expect_ack(start.0.id);
    }
    let (submission, done) = h.store.submissions.values().next().unwrap().clone();
    assert!(done);
    let id = response.instances[1].into();
    let wish = |then| Call::Stop {
        id,
        grace_ms: None,
        then,
    };
    let Ok(Reply::Ended { as_of }) = h.ask(admin(), wish(AfterStop::Restart)) else {
        panic!()
    };
    let reopen = ReopenCall {
        id,
        seq: 2,
        spec: h.store.specs[&submission.spec].clone(),
        submission,
        end: h.store.ends[&2].clone(),
        ended: vec![(InstanceState::Failed, 2)],
        as_of,
    };
    h.ask(admin(), Call::Reopen(Box::new(reopen.clone())))
        .unwrap();
    let start = h.start().0;
    assert_eq!(start.id.attempt.0, 2);
    assert_eq!(start.prefer.as_deref(), Some("a"));
    assert!(!h.store.submissions.values().next().unwrap().1);
    h.placed(start.id, &a);
    h.ended("a", start.id, EndCause::Exited { code: 0 });
    h.expect_ack(start.id);
    let Ok(Reply::Submission(progress)) = h.ask(admin(), Call::Submission(response.submission))
    else {
        panic!()
    };
    assert_eq!(
        (progress.states["failed"], progress.states["succeeded"]),
        (1, 1)
    );
    // Who read it before that, and asks only now, would give its attempt's number out again, or delete
    // what has been restarted.
    let forget = Call::Forget {
        id,
        tenant: Arc::clone(&reopen.submission.tenant),
        seq: 2,
        node: None,
        as_of,
    };
    for call in [Call::Reopen(Box::new(reopen)), forget] {
        let refused = h.ask(admin(), call).unwrap_err();
        assert_eq!(refused.body.code, ErrorCode::Conflict);
    }
    assert!(h.starts().is_empty());
    let Ok(Reply::Ended { as_of }) = h.ask(admin(), wish(AfterStop::Delete)) else {
        panic!()
    };
    let forget = Call::Forget {
        id,
        tenant: Arc::from("default"),
        seq: 2,
        node: None,
        as_of,
    };
    h.ask(admin(), forget).unwrap();
}

#[test]
fn what_waited_in_vain_and_is_restarted_waits_as_long_again() {
    let (mut h, [a]) = Harness::beside(["a"]);
    let mut spec = sim();
    spec.pending_timeout_ms = Some(5_000);
    let wait = |h: &mut Harness| {
        let start = h.start();
        h.refuse(&start, Refusal::CloudFull, 5);
        h.pass(4_500);
        assert!(h.sent.is_empty());
    };
    let id = h.submit(spec, 1).instances[0];
    wait(&mut h);
    h.pass(1_000);
    assert_eq!(h.state_of(id), InstanceState::Expired);
    let (submission, _) = h.store.submissions.values().next().unwrap().clone();
    let reopen = ReopenCall {
        id: id.into(),
        seq: 1,
        spec: h.store.specs[&submission.spec].clone(),
        submission,
        end: h.store.ends[&1].clone(),
        ended: vec![(InstanceState::Expired, 1)],
        as_of: 0,
    };
    h.ask(admin(), Call::Reopen(Box::new(reopen))).unwrap();
    wait(&mut h);
    assert_eq!(h.state_of(id), InstanceState::Pending);
    let mut restarted = h.crash();
    restarted.connect(std::slice::from_ref(&a));
    let ask = restarted.expect_inventory(&a);
    restarted.inventory(&a, 0, &[], ask);
    wait(&mut restarted);
    assert_eq!(restarted.state_of(id), InstanceState::Pending);
    restarted.pass(1_000);
    assert_eq!(restarted.state_of(id), InstanceState::Expired);
}

#[test]
fn the_submission_rate_is_limited_with_a_time_to_come_back() {
    let mut h = Harness::new();
    let create = CreateTenant {
        name: "slow".to_owned(),
        runtimes: None,
        privileged: None,
        submit_rate_per_s: Some(Some(10)),
        quota: UpdateQuota::default(),
    };
    h.ask(admin(), Call::CreateTenant(create)).unwrap();
    let call = h.submit_call(sim(), 100);
    h.submit_as(user("slow"), call).unwrap();
    let call = h.submit_call(sim(), 10);
    let refused = h.submit_as(user("slow"), call.clone()).unwrap_err();
    assert_eq!(refused.body.code, ErrorCode::RateLimited);
    assert_eq!(refused.retry_after_ms, Some(1000));
    h.pass(1_000);
    h.submit_as(user("slow"), call).unwrap();
}

#[test]
fn a_pending_instance_takes_few_bytes() {
    assert!(size_of::<super::super::instance::Instance>() <= 128);
    assert_eq!(shared("x").len(), 1);
}

/// Its last node is the only one with room. Others like it go there meanwhile, and in the end it does.
#[test]
fn a_retry_that_avoids_its_last_node_holds_nobody_up() {
    let (mut h, [a, _]) = Harness::beside(["a", "b"]);
    h.submit(sim(), 1);
    let first = h.start_on(&a);
    h.ended("a", first, EndCause::Rejected);
    h.expect_ack(first);
    let retry = h.start_after(2_000);
    assert_eq!(retry.0.avoid, ["a"]);
    h.refuse(&retry, Refusal::CloudFull, 1);
    h.submit(sim(), 1);
    let other = h.start_on(&a);
    assert_ne!(other.instance, first.instance);
    for _ in 0..30 {
        let again = h.start_after(1_000);
        assert_eq!((again.0.id, again.0.avoid.len()), (retry.0.id, 1));
        h.refuse(&again, Refusal::CloudFull, 1);
    }
    let last = h.start();
    assert!(last.0.avoid.is_empty(), "anywhere now");
    h.placed(last.0.id, &a);
}

#[test]
fn a_hundred_thousand_pending_and_one_freed_slot_cost_one_start() {
    let (mut h, [a]) = Harness::beside(["a"]);
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

/// One of about 190 KiB, unlike all others.
fn large(number: usize) -> Spec {
    let mut spec = sim();
    let text = format!("{number:0>60000}");
    spec.env = ["A", "B", "C"]
        .map(|name| (name.to_owned(), text.clone()))
        .into();
    spec
}

#[test]
fn what_a_tenant_can_make_the_controller_keep_is_bounded_in_bytes() {
    let mut h = Harness::with(Settings {
        max_workload_bytes: 2 << 20,
        max_spec_bytes: 4 << 20,
        ..Settings::default()
    });
    let put = |h: &mut Harness, number: usize| {
        let workload = Box::new(CreateWorkload {
            name: format!("w{number}"),
            tenant: None,
            spec: large(number),
        });
        let replace = false;
        h.ask(admin(), Call::PutWorkload { workload, replace })
    };
    let refused = (0..20).find_map(|number| put(&mut h, number).err());
    let text = refused.expect("a bound").body.message;
    assert_eq!(text, "the workloads of a tenant have 2 MiB at most");
    let delete = |name: &str| Call::DeleteWorkload {
        tenant: None,
        name: name.to_owned(),
    };
    h.ask(admin(), delete("w0")).unwrap();
    put(&mut h, 2000).unwrap();

    let mut ids = Vec::new();
    let refused = (0..20).find_map(|number| {
        let call = h.submit_call(large(number), 1);
        match h.submit_as(admin(), call) {
            Ok(response) => {
                ids.push(response.instances[0]);
                None
            }
            Err(refused) => Some(refused),
        }
    });
    assert_eq!(refused.expect("a bound").body.code, ErrorCode::Busy);
    // More of what is there already.
    h.submit(large(0), 1);
    // Those that have ended are remembered for their request ids for a while.
    ids.iter().for_each(|id| h.stop(*id));
    h.pass(i64::try_from(h.settings.request_window_ms).unwrap() + 1000);
    h.submit(large(5000), 1);
}

#[test]
fn timers_of_what_has_ended_do_not_pile_up() {
    let mut h = Harness::new();
    let mut spec = sim();
    spec.pending_timeout_ms = Some(3_600_000);
    for _ in 0..3000 {
        let id = h.submit(spec.clone(), 1).instances[0];
        h.stop(id);
    }
    assert!(h.state.timers.len() < 1500, "{}", h.state.timers.len());
}
