//! The audit trail: listed, or followed.

use super::App;
use super::body::{HungUp, Pipe, pipe};
use super::reply::{Caller, Query, invalid, ok, streamed};
use super::types::{ErrorBody, EventList, EventRecord, ListEvents};
use crate::planner::{Actor, Refused};
use crate::store::read::EventFilter;
use axum::extract::State;
use axum::response::Response;
use pronto_payloads::ids::InstanceId;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Silence after which a follower gets a sign of life.
const ALIVE: Duration = Duration::from_secs(15);

/// Lists events, newest first; or follows them.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(ListEvents),
    responses((status = 200, body = EventList, description = "With follow=true: server-sent \
    events `event`, data `EventRecord`"), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Query(query): Query<ListEvents>,
) -> Result<Response, Refused> {
    let own = actor.scope().map(ToString::to_string);
    if let (Some(own), Some(named)) = (&own, &query.tenant)
        && own != named
    {
        return Err(Refused::not_found("tenant", named));
    }
    let tenant = own.or_else(|| query.tenant.clone());
    let limit = query.limit.map_or(PAGE, |limit| limit as usize);
    if limit == 0 || limit > MAX_PAGE {
        return Err(invalid(format!("limit is not accepted: 1 to {MAX_PAGE}")));
    }
    if query.follow.unwrap_or(false) {
        let events = app.hub.follow_events();
        let (pipe, body) = pipe();
        tokio::spawn(async move {
            // Ends when the client hangs up.
            let _hung_up = follow(events, tenant, &query, &actor, &pipe).await;
        });
        return Ok(streamed("text/event-stream", body));
    }
    let filter = EventFilter {
        tenant,
        instance: query.instance.map(InstanceId::from),
        node: query.node,
        kind: query.kind,
        before: query.after,
        limit,
    };
    let _place = app.place_for_list(&actor)?;
    let mut events = app.read(move |reader| reader.events(&filter)).await?;
    let next = (events.len() == limit)
        .then(|| events.last().map(|event| event.number))
        .flatten();
    for event in &mut events {
        hide(&actor, event);
    }
    Ok(ok(&EventList { events, next }))
}

/// What a user need not know of an event: the addresses of others.
pub(super) fn hide(actor: &Actor, event: &mut EventRecord) {
    if actor.scope().is_some() && event.actor.starts_with("admin/") {
        event.source.clear();
    }
}

async fn follow(
    mut events: Receiver<EventRecord>,
    tenant: Option<String>,
    query: &ListEvents,
    actor: &Actor,
    pipe: &Pipe,
) -> Result<(), HungUp> {
    pipe.comment().await?;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = pipe.hung_up() => return Err(HungUp),
            () = tokio::time::sleep(ALIVE) => {
                pipe.comment().await?;
                continue;
            }
        };
        let mut event = match event {
            Ok(event) => event,
            Err(RecvError::Lagged(missed)) => return pipe.event("lagged", &missed).await,
            Err(RecvError::Closed) => return Ok(()),
        };
        let kind = query.kind.as_deref().is_none_or(|kind| {
            kind.strip_suffix('*')
                .map_or(event.kind == kind, |prefix| event.kind.starts_with(prefix))
        });
        let same =
            |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        if kind
            && same(&tenant, &event.tenant)
            && same(&query.node, &event.node)
            && query.instance.is_none_or(|id| event.instance == Some(id))
        {
            hide(actor, &mut event);
            pipe.event("event", &event).await?;
        }
    }
}
