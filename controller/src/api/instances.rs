//! Instances: submit, list, watch, show, stop, restart, delete.

use super::body::{HungUp, Pipe, pipe};
use super::reply::{Caller, Json, Path, Query, invalid, json, ok, streamed};
use super::types::{
    ErrorBody, ErrorCode, Instance, InstanceDetail, InstanceList, InstanceState, ListInstances,
    OneQuery, RestartRequest, StopRequest, Submission, SubmissionQuery, SubmitRequest,
    SubmitResponse,
};
use super::{App, Target, internal};
use crate::numbers::NONCE_BITS;
use crate::planner::views::{ended_view, submission_view, timeline};
use crate::planner::{Actor, Call, Change, LiveFilter, Refused, ReopenCall, Reply, SubmitCall};
use crate::shell::random;
use crate::spec::redacted;
use crate::store::AfterStop;
use crate::store::read::{Ended, EndedFilter, EventFilter};
use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;
use pronto_payloads::ids::InstanceId;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;

/// Instances of a page.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Events shown with an instance.
const SHOWN_EVENTS: usize = 50;
/// Silence after which a watcher gets a sign of life.
const ALIVE: Duration = Duration::from_secs(15);
/// The longest wait for a submission's end: below what proxies and clients have patience for.
const SUBMISSION_WAIT_MS: u64 = 30_000;

/// FNV-1a over a request's content: tells a repetition from a reuse of its id.
fn digest(request: &SubmitRequest) -> Result<u64, Refused> {
    let bytes = serde_json::to_vec(request).map_err(invalid)?;
    Ok(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }))
}

/// Submits one instance, or several alike.
#[utoipa::path(post, path = "/v1/instances", tag = "instances", request_body = SubmitRequest,
    responses((status = 201, body = SubmitResponse), (status = 200, body = SubmitResponse,
    description = "Seen before"), (status = "4XX", body = ErrorBody),
    (status = 507, body = ErrorBody, description = "The disk is full")))]
pub(crate) async fn submit(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Json(request): Json<SubmitRequest>,
) -> Result<Response, Refused> {
    let received_ns = app.clock.mono_ns();
    let digest = digest(&request)?;
    let call = SubmitCall {
        tenant: request.tenant,
        request: request.request_id.unwrap_or_else(Uuid::now_v7),
        digest,
        name: request.name,
        count: request.count,
        workload: request.workload,
        spec: request.spec,
        overrides: request.overrides,
        received_ns,
        nonce: random() & ((1 << NONCE_BITS) - 1),
    };
    match app.ask(&actor, Call::Submit(Box::new(call))).await? {
        Reply::Submitted(response) => {
            let status = if response.repeated {
                StatusCode::OK
            } else {
                StatusCode::CREATED
            };
            Ok(json(status, &response))
        }
        _ => Err(internal()),
    }
}

/// A list's filters, understood.
struct Filters {
    live: bool,
    ended: bool,
    states: Vec<InstanceState>,
    labels: Vec<(String, String)>,
    limit: usize,
    query: ListInstances,
}

impl Filters {
    fn of(query: ListInstances) -> Result<Self, Refused> {
        let mut states = Vec::new();
        for name in query.state.as_deref().unwrap_or_default().split(',') {
            match name.trim() {
                "" => {}
                "live" => states.extend(InstanceState::ALL.iter().filter(|s| !s.is_end())),
                "ended" => states.extend(InstanceState::ALL.iter().filter(|s| s.is_end())),
                name => {
                    let known = InstanceState::ALL.iter().find(|state| state.name() == name);
                    states.push(*known.ok_or_else(|| {
                        let all: Vec<&str> = InstanceState::ALL
                            .iter()
                            .map(|state| state.name())
                            .collect();
                        invalid(format!(
                            "state '{name}' is not accepted: live, ended, {}",
                            all.join(", ")
                        ))
                    })?);
                }
            }
        }
        let mut labels = Vec::new();
        for label in query.label.as_deref().unwrap_or_default().split(',') {
            if label.is_empty() {
                continue;
            }
            let (key, value) = label
                .split_once('=')
                .ok_or_else(|| invalid(format!("label '{label}' is not accepted: KEY=VALUE")))?;
            labels.push((key.to_owned(), value.to_owned()));
        }
        let limit = query.limit.map_or(PAGE, |limit| limit as usize);
        if limit == 0 || limit > MAX_PAGE {
            return Err(invalid(format!("limit is not accepted: 1 to {MAX_PAGE}")));
        }
        Ok(Self {
            live: states.is_empty() || states.iter().any(|state| !state.is_end()),
            ended: states.is_empty() || states.iter().any(|state| state.is_end()),
            states,
            labels,
            limit,
            query,
        })
    }

    fn matches(&self, instance: &Instance) -> bool {
        let query = &self.query;
        let same = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        (self.states.is_empty() || self.states.contains(&instance.state))
            && same(&query.tenant, Some(&instance.tenant))
            && same(&query.node, instance.node.as_deref())
            && same(&query.workload, instance.workload.as_deref())
            && same(&query.name, instance.name.as_deref())
            && query.submission.is_none_or(|id| id == instance.submission)
            && self
                .labels
                .iter()
                .all(|(key, value)| instance.labels.get(key) == Some(value))
    }
}

/// Lists instances, newest first; or watches them.
#[utoipa::path(get, path = "/v1/instances", tag = "instances", params(ListInstances),
    responses((status = 200, body = InstanceList, description = "With watch=true: server-sent \
    events `instance`, data `Instance`"), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Query(query): Query<ListInstances>,
) -> Result<Response, Refused> {
    let watch = query.watch.unwrap_or(false);
    let filters = Filters::of(query)?;
    let place = app.place_for_list(&actor)?;
    if !watch {
        return Ok(ok(&page(&app, &actor, &filters).await?));
    }
    let changes = app.hub.watch_all();
    let first = page(&app, &actor, &filters).await?;
    drop(place);
    let (pipe, body) = pipe();
    tokio::spawn(async move {
        // Ends when the client hangs up.
        let _hung_up = watch_list(&app, &actor, &filters, first, changes, &pipe).await;
    });
    Ok(streamed("text/event-stream", body))
}

async fn page(app: &App, actor: &Actor, filters: &Filters) -> Result<InstanceList, Refused> {
    let query = &filters.query;
    let before = match &query.after {
        None => None,
        Some(after) => {
            let id: InstanceId = after
                .parse()
                .map_err(|_| invalid("after is not accepted: the `next` of the page before"))?;
            let newest = app.read(|reader| reader.newest()).await?;
            Some(app.ids.seq(id, newest))
        }
    };
    let mut found: Vec<(u64, Instance)> = Vec::new();
    if filters.live {
        let live = LiveFilter {
            tenant: query.tenant.clone(),
            states: filters.states.clone(),
            node: query.node.clone(),
            workload: query.workload.clone(),
            name: query.name.clone(),
            labels: filters.labels.clone(),
            submission: query.submission,
            before,
            limit: filters.limit,
        };
        match app.ask(actor, Call::List(live)).await? {
            Reply::Listed(listed) => found = listed,
            _ => return Err(internal()),
        }
    }
    let mut scanned_to = None;
    if filters.ended {
        let tenant = actor.scope().map(ToString::to_string);
        if let (Some(own), Some(named)) = (&tenant, &query.tenant)
            && own != named
        {
            return Err(Refused::not_found("tenant", named));
        }
        let ended = EndedFilter {
            tenant: tenant.or_else(|| query.tenant.clone()),
            states: filters.states.clone(),
            node: query.node.clone(),
            workload: query.workload.clone(),
            name: query.name.clone(),
            labels: filters.labels.clone(),
            submission: query.submission,
            before,
            limit: filters.limit,
        };
        let page = app.read(move |reader| reader.ended(&ended)).await?;
        scanned_to = page.scanned_to;
        found.extend(page.found.iter().map(|ended| (ended.end.seq, view(ended))));
    }
    // The ended one comes last of two equals and is the newer truth.
    found.sort_by(|(a, x), (b, y)| b.cmp(a).then(y.state.is_end().cmp(&x.state.is_end())));
    found.dedup_by_key(|(seq, _)| *seq);
    if let Some(floor) = scanned_to {
        found.retain(|(seq, _)| *seq >= floor);
    }
    let full = found.len() >= filters.limit;
    found.truncate(filters.limit);
    let next = match found.last() {
        Some((seq, _)) if full => Some(*seq),
        _ => scanned_to,
    };
    Ok(InstanceList {
        instances: found.into_iter().map(|(_, instance)| instance).collect(),
        // Only its number counts; the rest of this id is that of nobody.
        next: next.map(|seq| app.ids.id(0, 0, seq).to_string()),
    })
}

fn view(ended: &Ended) -> Instance {
    ended_view(ended.id, &ended.submission, &ended.spec, &ended.end)
}

async fn watch_list(
    app: &App,
    actor: &Actor,
    filters: &Filters,
    first: InstanceList,
    mut changes: tokio::sync::broadcast::Receiver<Change>,
    pipe: &Pipe,
) -> Result<(), HungUp> {
    for instance in first.instances.iter().rev() {
        pipe.event("instance", instance).await?;
    }
    pipe.event("synchronised", &first.next).await?;
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            () = pipe.hung_up() => return Err(HungUp),
            () = tokio::time::sleep(ALIVE) => {
                pipe.comment().await?;
                continue;
            }
        };
        let change = match change {
            Ok(change) => change,
            Err(RecvError::Lagged(missed)) => {
                // It must list again: what it missed is not known.
                return pipe.event("lagged", &missed).await;
            }
            Err(RecvError::Closed) => return Ok(()),
        };
        let own = actor.scope().is_none_or(|own| *own == change.tenant);
        let asked = filters.query.tenant.as_deref();
        if !own || asked.is_some_and(|asked| *asked != *change.tenant) {
            continue;
        }
        if let Ok(instance) = current(app, actor, change.id).await
            && filters.matches(&instance)
        {
            pipe.event("instance", &instance).await?;
        }
    }
}

/// An instance as it is now, living or ended.
pub(crate) async fn current(app: &App, actor: &Actor, id: InstanceId) -> Result<Instance, Refused> {
    if let Reply::Shown { instance, .. } = app.ask(actor, Call::Show(id)).await? {
        return Ok(*instance);
    }
    let ended = app.read(move |reader| reader.ended_by_id(id)).await?;
    ended
        .filter(|ended| own(actor, ended))
        .map(|ended| view(&ended))
        .ok_or_else(|| Refused::not_found("instance", &id.to_string()))
}

pub(crate) fn own(actor: &Actor, ended: &Ended) -> bool {
    actor
        .scope()
        .is_none_or(|own| *own == ended.submission.tenant)
}

/// Whether the environment is to be shown; only a user of the very tenant may ask.
pub(crate) fn reveals(actor: &Actor, reveal: Option<&str>, tenant: &str) -> Result<bool, Refused> {
    match reveal {
        None => Ok(false),
        Some("env") if actor.scope().is_some_and(|own| **own == *tenant) => Ok(true),
        Some("env") => Err(Refused::new(
            ErrorCode::Forbidden,
            "environment values are shown to their own tenant's users only",
        )),
        Some(_) => Err(invalid("reveal is not accepted: env")),
    }
}

/// Shows an instance with its spec, its timeline and its latest events.
#[utoipa::path(get, path = "/v1/instances/{id}", tag = "instances",
    params(("id" = String, Path), OneQuery),
    responses((status = 200, body = InstanceDetail), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(text): Path<String>,
    Query(query): Query<OneQuery>,
) -> Result<Response, Refused> {
    let target = app.find(&actor, &text, query.tenant.as_deref()).await?;
    let id = target.id();
    let (instance, spec, steps) = match detail(&app, &actor, target).await? {
        Some(found) => found,
        None => return Err(Refused::not_found("instance", &text)),
    };
    let reveal = reveals(&actor, query.reveal.as_deref(), &instance.tenant)?;
    let filter = EventFilter {
        instance: Some(id),
        limit: SHOWN_EVENTS,
        ..EventFilter::default()
    };
    let mut events = app.read(move |reader| reader.events(&filter)).await?;
    events.reverse();
    for event in &mut events {
        super::events::hide(&actor, event);
    }
    let detail = InstanceDetail {
        instance,
        spec: if reveal {
            (*spec).clone()
        } else {
            redacted(&spec)
        },
        timeline: steps,
        events,
    };
    Ok(ok(&detail))
}

type Detail = (
    Instance,
    Arc<super::types::Spec>,
    Vec<super::types::TimelineStep>,
);

async fn detail(app: &App, actor: &Actor, target: Target) -> Result<Option<Detail>, Refused> {
    let id = target.id();
    if let Target::Living(_) = target
        && let Reply::Shown {
            instance,
            spec,
            timeline,
        } = app.ask(actor, Call::Show(id)).await?
    {
        return Ok(Some((*instance, spec, timeline)));
    }
    let ended = match target {
        Target::Ended(ended) => Some(*ended),
        Target::Living(_) => app.read(move |reader| reader.ended_by_id(id)).await?,
    };
    Ok(ended.filter(|ended| own(actor, ended)).map(|ended| {
        (
            view(&ended),
            Arc::clone(&ended.spec.spec),
            timeline(&ended.end.times),
        )
    }))
}

/// What a wish to stop something came to.
enum Stopped {
    /// It will be.
    Living(Box<Instance>),
    /// It is not alive: [`Reply::Ended`].
    Ended { as_of: u64 },
}

async fn stop_living(
    app: &App,
    actor: &Actor,
    id: InstanceId,
    grace_ms: Option<u64>,
    then: AfterStop,
) -> Result<Stopped, Refused> {
    match app.ask(actor, Call::Stop { id, grace_ms, then }).await? {
        Reply::Instance(instance) => Ok(Stopped::Living(instance)),
        Reply::Ended { as_of } => Ok(Stopped::Ended { as_of }),
        _ => Err(internal()),
    }
}

/// Stops an instance; answered when the wish is on disk.
#[utoipa::path(post, path = "/v1/instances/{id}/stop", tag = "instances",
    params(("id" = String, Path), OneQuery), request_body = StopRequest,
    responses((status = 202, body = Instance), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn stop(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(text): Path<String>,
    Query(query): Query<OneQuery>,
    Json(request): Json<StopRequest>,
) -> Result<Response, Refused> {
    let id = app.find(&actor, &text, query.tenant.as_deref()).await?.id();
    let stopped = stop_living(&app, &actor, id, request.grace_ms, AfterStop::Keep).await?;
    match stopped {
        Stopped::Living(instance) => Ok(json(StatusCode::ACCEPTED, &*instance)),
        // What was wished is so.
        Stopped::Ended { .. } => Ok(json(
            StatusCode::ACCEPTED,
            &current(&app, &actor, id).await?,
        )),
    }
}

/// Gives an instance a new attempt, also after its end.
#[utoipa::path(post, path = "/v1/instances/{id}/restart", tag = "instances",
    params(("id" = String, Path), OneQuery), request_body = RestartRequest,
    responses((status = 202, body = Instance), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn restart(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(text): Path<String>,
    Query(query): Query<OneQuery>,
    Json(request): Json<RestartRequest>,
) -> Result<Response, Refused> {
    let id = app.find(&actor, &text, query.tenant.as_deref()).await?.id();
    let then = AfterStop::Restart;
    let as_of = match stop_living(&app, &actor, id, request.grace_ms, then).await? {
        Stopped::Living(instance) => return Ok(json(StatusCode::ACCEPTED, &*instance)),
        Stopped::Ended { as_of } => as_of,
    };
    let found = app
        .read(move |reader| {
            let Some(ended) = reader.ended_by_id(id)? else {
                return Ok(None);
            };
            let counts = reader.ended_counts(&ended.submission)?;
            Ok(Some((ended, counts)))
        })
        .await?;
    let (ended, counts) = found
        .filter(|(ended, _)| own(&actor, ended))
        .ok_or_else(|| Refused::not_found("instance", &text))?;
    let call = ReopenCall {
        id,
        seq: ended.end.seq,
        spec: (*ended.spec).clone(),
        submission: ended.submission,
        end: ended.end,
        ended: counts,
        as_of,
    };
    match app.ask(&actor, Call::Reopen(Box::new(call))).await? {
        Reply::Instance(instance) => Ok(json(StatusCode::ACCEPTED, &*instance)),
        _ => Err(internal()),
    }
}

/// Deletes an instance; one that lives is stopped first.
#[utoipa::path(delete, path = "/v1/instances/{id}", tag = "instances",
    params(("id" = String, Path), OneQuery),
    responses((status = 202, body = Instance), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn remove(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(text): Path<String>,
    Query(query): Query<OneQuery>,
) -> Result<Response, Refused> {
    let id = app.find(&actor, &text, query.tenant.as_deref()).await?.id();
    let as_of = match stop_living(&app, &actor, id, None, AfterStop::Delete).await? {
        Stopped::Living(instance) => return Ok(json(StatusCode::ACCEPTED, &*instance)),
        Stopped::Ended { as_of } => as_of,
    };
    let ended = app
        .read(move |reader| reader.ended_by_id(id))
        .await?
        .filter(|ended| own(&actor, ended))
        .ok_or_else(|| Refused::not_found("instance", &text))?;
    let shown = view(&ended);
    let call = Call::Forget {
        id,
        tenant: Arc::clone(&ended.submission.tenant),
        seq: ended.end.seq,
        node: ended.end.node.clone(),
        as_of,
    };
    app.ask(&actor, call).await?;
    Ok(json(StatusCode::ACCEPTED, &shown))
}

fn is_under_way(reply: &Reply) -> bool {
    matches!(reply, Reply::Submission(found) if found.ended < found.count)
}

/// The progress of a submission, by its request id.
#[utoipa::path(get, path = "/v1/submissions/{request_id}", tag = "instances",
    params(("request_id" = Uuid, Path), SubmissionQuery),
    responses((status = 200, body = Submission), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn submission(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(request): Path<Uuid>,
    Query(query): Query<SubmissionQuery>,
) -> Result<Response, Refused> {
    let wait_ms = query.wait_ms.unwrap_or(0).min(SUBMISSION_WAIT_MS);
    let mut living = app.ask(&actor, Call::Submission(request)).await?;
    if wait_ms > 0 && is_under_way(&living) {
        let mut ended = app.hub.follow_submission(request);
        ended.mark_unchanged();
        // It may have ended before anybody listened.
        living = app.ask(&actor, Call::Submission(request)).await?;
        if is_under_way(&living) {
            let limit = Duration::from_millis(wait_ms);
            let _ended_or_not = tokio::time::timeout(limit, ended.changed()).await;
            living = app.ask(&actor, Call::Submission(request)).await?;
        }
        drop(ended);
        app.hub.unfollow_submission(request);
    }
    if let Reply::Submission(found) = living {
        return Ok(ok(&found));
    }
    let scope = actor.scope().map(ToString::to_string);
    let found = app
        .read(move |reader| reader.submission(request, scope.as_deref()))
        .await?;
    let (row, counts) =
        found.ok_or_else(|| Refused::not_found("submission", &request.to_string()))?;
    let mut states = [0; InstanceState::ALL.len()];
    for (state, count) in counts {
        states[state as usize] = count;
    }
    Ok(ok(&submission_view(&row, &states, 0)))
}
