//! Nodes, explanations, status, and what operators read.

use super::reply::{Caller, Json, Path, Query, json, nothing, ok, streamed};
use super::types::{
    DeleteNodeQuery, DrainRequest, ErrorBody, ExplainRequest, ExplainResponse, Node, NodeList,
    RuntimeName, Status,
};
use super::{App, internal};
use crate::planner::{Actor, ActorKind, Call, DrainCall, Refused, Reply};
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;
use std::sync::Arc;

async fn node(app: &App, actor: &Actor, call: Call) -> Result<Node, Refused> {
    match app.ask(actor, call).await? {
        Reply::Node(node) => Ok(*node),
        _ => Err(internal()),
    }
}

/// Lists nodes by name.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes",
    responses((status = 200, body = NodeList), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
) -> Result<Response, Refused> {
    let _place = app.place_for_list(&actor)?;
    match app.ask(&actor, Call::Nodes).await? {
        Reply::Nodes(nodes) => Ok(ok(&NodeList { nodes })),
        _ => Err(internal()),
    }
}

/// Shows a node.
#[utoipa::path(get, path = "/v1/nodes/{node}", tag = "nodes", params(("node" = String, Path)),
    responses((status = 200, body = Node), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    Ok(ok(&node(&app, &actor, Call::Node(name)).await?))
}

/// Puts a node into maintenance and moves its work away.
#[utoipa::path(post, path = "/v1/nodes/{node}/drain", tag = "nodes",
    params(("node" = String, Path)), request_body = DrainRequest,
    responses((status = 202, body = Node), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn drain(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(name): Path<String>,
    Json(request): Json<DrainRequest>,
) -> Result<Response, Refused> {
    let call = Call::Drain(DrainCall {
        node: name,
        deadline_ms: request.deadline_ms,
    });
    let drained = node(&app, &actor, call).await?;
    Ok(json(StatusCode::ACCEPTED, &drained))
}

/// Takes a node out of maintenance.
#[utoipa::path(post, path = "/v1/nodes/{node}/restore", tag = "nodes",
    params(("node" = String, Path)),
    responses((status = 200, body = Node), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn restore(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    Ok(ok(&node(&app, &actor, Call::Restore(name)).await?))
}

/// Forgets a node that is not connected.
#[utoipa::path(delete, path = "/v1/nodes/{node}", tag = "nodes",
    params(("node" = String, Path), DeleteNodeQuery),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn remove(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(name): Path<String>,
    Query(query): Query<DeleteNodeQuery>,
) -> Result<Response, Refused> {
    let call = Call::DeleteNode {
        node: name,
        fenced: query.fenced.unwrap_or(false),
    };
    app.ask(&actor, call).await?;
    Ok(nothing())
}

/// Says whether a demand would fit, and if not, why not.
#[utoipa::path(post, path = "/v1/explain", tag = "nodes", request_body = ExplainRequest,
    responses((status = 200, body = ExplainResponse), (status = "4XX", body = ErrorBody),
    (status = 503, body = ErrorBody)))]
pub(crate) async fn explain(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Json(request): Json<ExplainRequest>,
) -> Result<Response, Refused> {
    let mut call_demand = request.demand.unwrap_or_default();
    let mut constraints = request.constraints;
    let mut runtime = request.runtime.unwrap_or(RuntimeName::Exec);
    let mut living = None;
    let tenant = request.tenant.as_deref();
    if let Some(text) = &request.instance {
        match app.find(&actor, text, tenant).await? {
            super::Target::Living(id) => living = Some(id),
            super::Target::Ended(ended) => {
                let spec = &ended.spec.spec;
                call_demand = spec.demand.clone();
                constraints.clone_from(&spec.constraints);
                runtime = spec.task.runtime();
            }
        }
    }
    let call = Call::Explain {
        runtime,
        demand: call_demand,
        constraints,
        tenant: request.tenant,
        instance: living,
    };
    match app.ask(&actor, call).await? {
        Reply::Explained(response) => Ok(ok::<ExplainResponse>(&response)),
        Reply::NotLiving => Err(Refused::not_found(
            "instance",
            request.instance.as_deref().unwrap_or_default(),
        )),
        _ => Err(internal()),
    }
}

async fn status_of(app: &App, actor: &Actor) -> Result<Status, Refused> {
    match app.ask(actor, Call::Status).await? {
        Reply::Status(status) => Ok(*status),
        _ => Err(internal()),
    }
}

/// The controller and what it is connected to.
#[utoipa::path(get, path = "/v1/status", tag = "cluster",
    responses((status = 200, body = Status), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn status(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
) -> Result<Response, Refused> {
    Ok(ok(&status_of(&app, &actor).await?))
}

/// Ends a suspension of rescheduling: what is away is lost.
#[utoipa::path(post, path = "/v1/alarms/resume", tag = "cluster",
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn resume(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
) -> Result<Response, Refused> {
    app.ask(&actor, Call::ResumeRescheduling).await?;
    Ok(nothing())
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "cluster",
    responses((status = 200, content_type = "application/json")))]
pub(crate) async fn openapi() -> Response {
    ok(&super::openapi::document())
}

fn text(status: StatusCode, content_type: &'static str, text: impl Into<Body>) -> Response {
    let mut response = streamed(content_type, text.into());
    *response.status_mut() = status;
    response
}

/// Metrics in the OpenMetrics text format.
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, content_type = "text/plain")))]
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    text(StatusCode::OK, kind, app.metrics.text())
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// Whether the controller is alive.
#[utoipa::path(get, path = "/healthz", tag = "operations",
    responses((status = 200, content_type = "text/plain")))]
pub(crate) async fn healthz(State(app): State<Arc<App>>) -> Response {
    match status_of(&app, &prober()).await {
        Ok(_) => text(StatusCode::OK, PLAIN, "ok\n"),
        Err(refused) => text(
            StatusCode::SERVICE_UNAVAILABLE,
            PLAIN,
            refused.body.message + "\n",
        ),
    }
}

/// Whether submissions are accepted and can be placed.
#[utoipa::path(get, path = "/readyz", tag = "operations",
    responses((status = 200, content_type = "text/plain"),
    (status = 503, content_type = "text/plain")))]
pub(crate) async fn readyz(State(app): State<Arc<App>>) -> Response {
    let words = match status_of(&app, &prober()).await {
        Ok(status) if status.store.full => "the disk is full\n",
        Ok(status) if !status.scheduler.active => "no scheduler is connected and active\n",
        Ok(_) => return text(StatusCode::OK, PLAIN, "ready\n"),
        Err(_) => "the controller is ending\n",
    };
    text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, words)
}

/// Whoever probes learns nothing but yes or no.
fn prober() -> Actor {
    Actor {
        kind: ActorKind::Admin,
        name: "probe".to_owned(),
        source: String::new(),
    }
}
