//! What users do over HTTPS, with a scheduler and a node behind it.

use crate::certs::Ca;
use crate::client::{Client, Running};
use crate::fake::{Fake, NODE};
use http_body_util::BodyExt;
use pronto_controller::api::types::{
    ErrorBody, ErrorCode, EventList, ExplainResponse, Instance, InstanceDetail, InstanceList,
    InstanceState, NodeList, QuotaRefusal, Status, Step, Submission, SubmitResponse, Workload,
};
use serde_json::{Value, json};
use uuid::Uuid;

pub(crate) struct Cluster {
    pub(crate) ca: Ca,
    pub(crate) fake: Fake,
    pub(crate) controller: Running,
    pub(crate) dir: tempfile::TempDir,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let ca = Ca::new();
        let fake = Fake::start(&ca).await;
        let dir = tempfile::tempdir().unwrap();
        let controller = Running::start(&ca, dir.path(), &fake.address);
        Self {
            ca,
            fake,
            controller,
            dir,
        }
    }

    pub(crate) async fn admin(&self) -> Client {
        self.controller.client(self.ca.admin()).await
    }
}

pub(crate) fn sim(run_ms: u64, exit_code: i32) -> Value {
    json!({"task": {"runtime": "sim", "run_ms": run_ms, "exit_code": exit_code}})
}

pub(crate) async fn submit(client: &mut Client, spec: Value, count: u32) -> SubmitResponse {
    let body = json!({"request_id": Uuid::new_v4(), "spec": spec, "count": count});
    client.post("/v1/instances", &body).await.expect(201)
}

/// Follows the output until the end, which says how the instance ended.
async fn end_of(client: &mut Client, id: Uuid) -> Instance {
    let path = format!("/v1/instances/{id}/output?follow=true&stderr=false");
    let response = client.get(&path).await;
    assert_eq!(response.status, 200);
    let frames = crate::client::frames(&response.body);
    let (channel, last) = frames.last().unwrap();
    assert_eq!(*channel, 0);
    let end: Value = serde_json::from_slice(last).unwrap();
    serde_json::from_value(end["instance"].clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_runs_and_tells_its_timeline() {
    let cluster = Cluster::start().await;
    let mut client = cluster.admin().await;
    let submitted = submit(&mut client, sim(0, 7), 1).await;
    let id = submitted.instances[0];
    assert!(submitted.commit_ns > 0);
    let ended = end_of(&mut client, id).await;
    assert_eq!(ended.state, InstanceState::Failed);
    assert_eq!(ended.end.unwrap().code, Some(7));
    assert_eq!(ended.node.as_deref(), Some(NODE));
    let detail: InstanceDetail = client.get(&format!("/v1/instances/{id}")).await.expect(200);
    let steps: Vec<Step> = detail.timeline.iter().map(|step| step.step).collect();
    assert_eq!(
        steps,
        [
            Step::Submitted,
            Step::Admitted,
            Step::Committed,
            Step::Dispatched,
            Step::Placed,
            Step::Received,
            Step::Started,
            Step::Ended,
            Step::EndReported
        ]
    );
    let offsets: Vec<u64> = detail.timeline.iter().map(|step| step.offset_ns).collect();
    assert!(offsets.is_sorted(), "{offsets:?}");
    assert_eq!(detail.events[0].kind, "submitted");
    assert_eq!(detail.events[0].actor, "admin/root");
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_has_progress_and_lists_page_through_it() {
    let cluster = Cluster::start().await;
    let mut client = cluster.admin().await;
    let submitted = submit(&mut client, sim(0, 0), 250).await;
    for id in &submitted.instances {
        assert_eq!(
            end_of(&mut client, *id).await.state,
            InstanceState::Succeeded
        );
    }
    let path = format!("/v1/submissions/{}", submitted.submission);
    let progress: Submission = client.get(&path).await.expect(200);
    assert_eq!((progress.ended, progress.states["succeeded"]), (250, 250));
    let waited = submit(&mut client, sim(60_000, 0), 1).await;
    let path = format!("/v1/submissions/{}?wait_ms=", waited.submission);
    let progress: Submission = client.get(&format!("{path}1")).await.expect(200);
    assert_eq!(progress.ended, 0, "its time is up before it has ended");
    let began = std::time::Instant::now();
    let mut beside = cluster.admin().await;
    let waiting =
        tokio::spawn(async move { beside.get(&format!("{path}30000")).await.expect(200) });
    let stop = format!("/v1/instances/{}/stop", waited.instances[0]);
    client.post(&stop, &json!({})).await.expect::<Value>(202);
    let progress: Submission = waiting.await.unwrap();
    assert_eq!(progress.ended, 1);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    let running = submit(&mut client, sim(60_000, 0), 30).await;
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/v1/instances?limit=37{after}");
        let page: InstanceList = client.get(&path).await.expect(200);
        seen.extend(page.instances.iter().map(|instance| instance.id));
        match page.next {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    let mut expected: Vec<Uuid> = submitted.instances.clone();
    expected.extend(&waited.instances);
    expected.extend(&running.instances);
    expected.reverse();
    assert_eq!(seen, expected, "newest first, each once");
    let path = "/v1/instances?state=ended&limit=1000";
    let ended: InstanceList = client.get(path).await.expect(200);
    assert_eq!(ended.instances.len(), 251);
    let path = "/v1/instances?state=live&limit=1000";
    let live: InstanceList = client.get(path).await.expect(200);
    assert_eq!(live.instances.len(), 30);
    let short = seen[3].simple().to_string()[24..].to_owned();
    let found: InstanceDetail = client
        .get(&format!("/v1/instances/{short}"))
        .await
        .expect(200);
    assert_eq!(found.instance.id, seen[3]);
    let refused: ErrorBody = client.get("/v1/instances?state=asleep").await.expect(400);
    assert!(refused.message.contains("asleep"));
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_restart_and_delete() {
    let cluster = Cluster::start().await;
    let mut client = cluster.admin().await;
    let body = json!({"name": "web", "spec": sim(60_000, 0)});
    let submitted: SubmitResponse = client.post("/v1/instances", &body).await.expect(201);
    let id = submitted.instances[0];
    // One that was not placed yet would be cancelled.
    let path = format!("/v1/instances/{id}/output?follow=true");
    let response = cluster.admin().await.stream("GET", &path, "", &[]).await;
    let first = response.into_body().frame().await.unwrap().unwrap();
    assert!(first.into_data().unwrap().ends_with(b"out\n"));
    let stopped: Instance = client
        .post("/v1/instances/web/stop", &json!({}))
        .await
        .expect(202);
    assert!(stopped.stopping || stopped.state.is_end());
    assert_eq!(end_of(&mut client, id).await.state, InstanceState::Stopped);
    let again: Instance = client
        .post("/v1/instances/web/restart", &json!({}))
        .await
        .expect(202);
    assert_eq!((again.id, again.attempt), (id, 2));
    let deleted: Instance = client
        .raw("DELETE", "/v1/instances/web", "")
        .await
        .expect(202);
    assert_eq!(deleted.id, id);
    let mut watcher = cluster.admin().await;
    let path = format!("/v1/instances/{id}/output?follow=true");
    // Its body ends when it is gone.
    watcher.get(&path).await;
    let missing: ErrorBody = client.get("/v1/instances/web").await.expect(404);
    assert_eq!(missing.code, ErrorCode::NotFound);
    let unknown: ErrorBody = client
        .post("/v1/instances/web/stop", &json!({"grace": 5}))
        .await
        .expect(400);
    assert!(unknown.message.contains("grace"), "{}", unknown.message);
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_is_there_after_a_restart() {
    let cluster = Cluster::start().await;
    let mut client = cluster.admin().await;
    let request = Uuid::new_v4();
    let body = json!({"request_id": request, "spec": sim(60_000, 0), "count": 5});
    let first: SubmitResponse = client.post("/v1/instances", &body).await.expect(201);
    let ended = submit(&mut client, sim(0, 0), 3).await;
    for id in &ended.instances {
        end_of(&mut client, *id).await;
    }
    let workload = json!({"name": "nightly", "spec": {"task": {"runtime": "exec", "command": ["true"]}, "env": {"TOKEN": "secret"}}});
    let _: Workload = client.post("/v1/workloads", &workload).await.expect(201);
    let Cluster {
        ca,
        fake,
        controller,
        dir,
    } = cluster;
    controller.stop().await;
    let controller = Running::start(&ca, dir.path(), &fake.address);
    let mut client = controller.client(ca.admin()).await;
    let again: SubmitResponse = client.post("/v1/instances", &body).await.expect(200);
    assert!(again.repeated);
    assert_eq!(first.instances, again.instances);
    for id in first.instances {
        // Found again on its node, and stopped there.
        let path = format!("/v1/instances/{id}/stop");
        let _: Instance = client.post(&path, &json!({})).await.expect(202);
        assert_eq!(end_of(&mut client, id).await.state, InstanceState::Stopped);
    }
    let list: InstanceList = client
        .get("/v1/instances?state=succeeded")
        .await
        .expect(200);
    assert_eq!(list.instances.len(), 3);
    let shown: Workload = client.get("/v1/workloads/nightly").await.expect(200);
    assert_eq!(shown.spec.env["TOKEN"], "***");
    let status: Status = client.get("/v1/status").await.expect(200);
    assert_eq!(status.epoch, 2);
    let starts = fake.world.lock().unwrap().starts.len();
    assert_eq!(starts, 8, "nothing was started twice");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_are_strangers_to_each_other() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin().await;
    for name in ["physics", "biology"] {
        let body = json!({"name": name, "quota": {"instances": 2}});
        let made = admin.post("/v1/tenants", &body).await;
        assert_eq!(made.status, 201);
    }
    let mut ada = cluster.controller.client(cluster.ca.user("physics")).await;
    let mut bob = cluster.controller.client(cluster.ca.user("biology")).await;
    let mut spec = sim(60_000, 0);
    spec["env"] = json!({"KEY": "secret"});
    let body = json!({"name": "mine", "spec": spec, "count": 1});
    let submitted: SubmitResponse = ada.post("/v1/instances", &body).await.expect(201);
    assert_eq!(submitted.tenant, "physics");
    let id = submitted.instances[0];
    for path in [
        format!("/v1/instances/{id}"),
        format!("/v1/instances/{id}/output"),
        "/v1/instances/mine".to_owned(),
        format!("/v1/submissions/{}", submitted.submission),
        "/v1/tenants/physics".to_owned(),
        "/v1/quotas/physics".to_owned(),
        "/v1/workloads?tenant=physics".to_owned(),
        "/v1/events?tenant=physics".to_owned(),
        "/v1/instances?tenant=physics".to_owned(),
    ] {
        let refused: ErrorBody = bob.get(&path).await.expect(404);
        assert_eq!(refused.code, ErrorCode::NotFound, "{path}");
    }
    let stop = format!("/v1/instances/{id}/stop");
    assert_eq!(bob.post(&stop, &json!({})).await.status, 404);
    let list: InstanceList = bob.get("/v1/instances").await.expect(200);
    assert!(list.instances.is_empty());
    let events: EventList = bob.get("/v1/events").await.expect(200);
    assert!(
        events
            .events
            .iter()
            .all(|event| event.tenant.as_deref() == Some("biology"))
    );
    // The owner may see its secrets, an administrator may not.
    let path = format!("/v1/instances/{id}");
    let shown: InstanceDetail = ada.get(&path).await.expect(200);
    assert_eq!(shown.spec.env["KEY"], "***");
    let path = format!("/v1/instances/{id}?reveal=env");
    let shown: InstanceDetail = ada.get(&path).await.expect(200);
    assert_eq!(shown.spec.env["KEY"], "secret");
    let _: ErrorBody = admin.get(&path).await.expect(403);
    // The quota names everything.
    let body = json!({"spec": sim(0, 0), "count": 2});
    let refused: ErrorBody = ada.post("/v1/instances", &body).await.expect(403);
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    let details: QuotaRefusal = serde_json::from_value(refused.details.unwrap()).unwrap();
    assert_eq!((details.limit, details.used, details.asked), (2, 1, 2));
    let raise = json!({"instances": null}).to_string();
    let raised = admin.raw("PATCH", "/v1/quotas/physics", raise).await;
    assert_eq!(raised.status, 200);
    let _: SubmitResponse = ada.post("/v1/instances", &body).await.expect(201);
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_named_and_ends_nothing() {
    let cluster = Cluster::start().await;
    let mut client = cluster.admin().await;
    for (body, named) in [
        ("{", "EOF"),
        (r#"{"specs": {}}"#, "specs"),
        ("{}", "spec or a workload"),
        (r#"{"spec": {"task": {"runtime": "wasm"}}}"#, "wasm"),
        (
            r#"{"spec": {"task": {"runtime": "exec", "command": []}}}"#,
            "command",
        ),
        (r#"{"spec": {"task": {"runtime": "sim", "x": 1}}}"#, "x"),
        (
            r#"{"count": 0, "spec": {"task": {"runtime": "sim"}}}"#,
            "count",
        ),
        (
            r#"{"name": "a b", "spec": {"task": {"runtime": "sim"}}}"#,
            "name",
        ),
        (
            r#"{"request_id": "7", "spec": {"task": {"runtime": "sim"}}}"#,
            "UUID",
        ),
    ] {
        let refused: ErrorBody = client.raw("POST", "/v1/instances", body).await.expect(400);
        assert!(refused.message.contains(named), "{}", refused.message);
    }
    let large = format!(r#"{{"name": "{}"}}"#, "x".repeat(2 << 20));
    let refused: ErrorBody = client.raw("POST", "/v1/instances", large).await.expect(413);
    assert_eq!(refused.code, ErrorCode::TooLarge);
    let mut client = cluster.admin().await;
    let refused: ErrorBody = client.get("/v1/instances?limits=5").await.expect(400);
    assert!(refused.message.contains("limits"));
    let refused: ErrorBody = client.get("/v1/instance").await.expect(404);
    assert!(refused.hint.is_some());
    assert_eq!(client.raw("PUT", "/v1/instances", "").await.status, 405);
    let huge = json!({"spec": {"task": {"runtime": "exec", "command": ["true"]}, "env": {"A": "x".repeat(60_000), "B": "x".repeat(60_000), "C": "x".repeat(60_000), "D": "x".repeat(60_000), "E": "x".repeat(60_000)}}});
    let refused: ErrorBody = client.post("/v1/instances", &huge).await.expect(400);
    assert!(refused.message.contains("bytes"), "{}", refused.message);
    submit(&mut client, sim(0, 0), 1).await;
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_limit_says_when_to_come_back() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin().await;
    let body = json!({"name": "slow", "submit_rate_per_s": 1});
    assert_eq!(admin.post("/v1/tenants", &body).await.status, 201);
    let mut user = cluster.controller.client(cluster.ca.user("slow")).await;
    submit(&mut user, sim(0, 0), 10).await;
    let body = json!({"spec": sim(0, 0), "count": 5});
    let refused = user.post("/v1/instances", &body).await;
    assert!(
        refused
            .retry_after
            .as_deref()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >= 4
    );
    let refused: ErrorBody = refused.expect(429);
    assert_eq!(refused.code, ErrorCode::RateLimited);
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_are_told_of_every_change() {
    let cluster = Cluster::start().await;
    let mut client = cluster.admin().await;
    let mut watcher = cluster.admin().await;
    let response = watcher
        .stream("GET", "/v1/instances?watch=true", "", &[])
        .await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let mut follower = cluster.admin().await;
    let events = follower
        .stream("GET", "/v1/events?follow=true", "", &[])
        .await;
    let mut events = events.into_body();
    let first = events.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&first[..], b":\n\n", "following");
    let id = submit(&mut client, sim(0, 0), 1).await.instances[0];
    let mut text = String::new();
    while !text.contains("succeeded") {
        let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
        text.push_str(std::str::from_utf8(&data).unwrap());
    }
    assert!(text.contains("event: instance") && text.contains(&id.to_string()));
    let mut lines = String::new();
    while !lines.contains("\"kind\":\"submitted\"") {
        let data = events.frame().await.unwrap().unwrap().into_data().unwrap();
        lines.push_str(std::str::from_utf8(&data).unwrap());
    }
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_status_explanations_and_metrics() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin().await;
    let id = submit(&mut admin, sim(0, 0), 1).await.instances[0];
    end_of(&mut admin, id).await;
    let nodes: NodeList = admin.get("/v1/nodes").await.expect(200);
    assert_eq!(nodes.nodes[0].name, NODE);
    assert_eq!(nodes.nodes[0].allocatable.cpu_millis, 4000);
    let body = json!({"demand": {"cpu_millis": 9_000}});
    let why: ExplainResponse = admin.post("/v1/explain", &body).await.expect(200);
    assert_eq!(why.reasons[0].text, "1 node short of memory now");
    assert_eq!(why.node.as_deref(), Some(NODE));
    let drained = admin
        .post("/v1/nodes/n1/drain", &json!({"deadline_ms": 0}))
        .await;
    assert_eq!(drained.status, 202);
    assert_eq!(
        admin.post("/v1/nodes/n9/drain", &json!({})).await.status,
        404
    );
    let restored = admin.post("/v1/nodes/n1/restore", &json!({})).await;
    assert_eq!(restored.status, 200);
    let refused: ErrorBody = admin.raw("DELETE", "/v1/nodes/n1", "").await.expect(409);
    assert!(refused.message.contains("connected"));
    let status: Status = admin.get("/v1/status").await.expect(200);
    assert!(status.scheduler.active && status.nodes_connected == 1);
    assert_eq!(admin.get("/readyz").await.status, 200);
    assert_eq!(admin.get("/healthz").await.status, 200);
    let metrics = admin.get("/metrics").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(text.contains("pronto_controller_commits_total"), "{text}");
    let document: Value = admin.get("/v1/openapi.json").await.expect(200);
    assert_eq!(document["info"]["title"], "Pronto");
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_controllers_do_not_share_a_data_directory() {
    let cluster = Cluster::start().await;
    cluster.admin().await.get("/healthz").await;
    let second = Running::start(&cluster.ca, cluster.dir.path(), &cluster.fake.address);
    let error = second.failure().await;
    assert!(error.contains("held by another controller"), "{error}");
    cluster.controller.stop().await;
}
