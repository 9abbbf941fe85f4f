//! The HTTP API: HTTPS with mutual TLS, JSON, server-sent events, framed streams.
//!
//! The client's certificate says who asks; [`routes`] is the one table of what exists and who may
//! use it. Handlers translate: a request into a call of the planner or a read of the store, an
//! answer into JSON. They hold no state and decide nothing. What lives is answered by the planner,
//! what has ended by the store; where both are asked, the planner is asked first, since an
//! instance leaves its memory only when its end is on disk.

mod body;
mod events;
mod exec;
mod files;
mod instances;
mod nodes;
pub mod openapi;
mod output;
mod reply;
pub mod routes;
pub(crate) mod server;
mod tenants;
pub mod types;

use crate::numbers::IdScheme;
use crate::planner::{Actor, Call, Refused, Reply, Resolved};
use crate::shares::{self, Full, Shares};
use crate::shell::Clock;
use crate::shell::engine::Planner;
use crate::shell::hub::Hub;
use crate::shell::metrics::Metrics;
use crate::store::read::Ended;
use crate::store::{Meta, Reader, StoreError};
use crate::streams::Streams;
use pronto_payloads::ids::InstanceId;
use std::sync::Arc;
use types::ErrorCode;

/// Lists that are made at once, and of these for one tenant.
const LISTS_AT_ONCE: usize = 32;
const LISTS_OF_A_TENANT: usize = 8;
/// Who finds no place comes again after this.
const LIST_RETRY_MS: u64 = 1_000;

/// What the handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) planner: Planner,
    pub(crate) reader: Arc<Reader>,
    pub(crate) streams: Streams,
    pub(crate) hub: Arc<Hub>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    pub(crate) ids: IdScheme,
    lists: Shares,
}

/// An instance that somebody named.
#[derive(Debug)]
pub(crate) enum Target {
    Living(InstanceId),
    Ended(Box<Ended>),
}

impl Target {
    pub(crate) fn id(&self) -> InstanceId {
        match self {
            Self::Living(id) => *id,
            Self::Ended(ended) => ended.id,
        }
    }
}

impl App {
    /// A place among the lists that are made at once. Each costs as much as a hundred submissions,
    /// so that those who ask for more must come again, and nobody else waits behind them.
    pub(crate) fn place_for_list(&self, actor: &Actor) -> Result<shares::Place, Refused> {
        self.lists.take(actor.scope()).map_err(|full| {
            let busy = match full {
                Full::Most(most) => format!("{most} lists are being made, the most at once"),
                Full::Share(share) => {
                    format!("{share} lists are being made for your tenant, the most at once")
                }
            };
            Refused::new(ErrorCode::Busy, busy).retry_after(LIST_RETRY_MS)
        })
    }

    pub(crate) fn new(
        planner: Planner,
        reader: Arc<Reader>,
        streams: Streams,
        hub: Arc<Hub>,
        metrics: Arc<Metrics>,
        clock: Clock,
        meta: Meta,
    ) -> Self {
        Self {
            planner,
            reader,
            streams,
            hub,
            metrics,
            clock,
            ids: IdScheme::new(meta.id_key),
            lists: Shares::new(LISTS_AT_ONCE, LISTS_OF_A_TENANT),
        }
    }

    pub(crate) async fn ask(&self, actor: &Actor, call: Call) -> Result<Reply, Refused> {
        self.planner.ask(actor.clone(), call).await
    }

    /// Reads from the store on a thread that may block.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refused> {
        let reader = Arc::clone(&self.reader);
        let result = tokio::task::spawn_blocking(move || work(&reader)).await;
        match result {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => {
                tracing::error!(%error, "the store can't be read");
                Err(internal())
            }
            Err(error) => {
                tracing::error!(%error, "a read of the store panicked");
                Err(internal())
            }
        }
    }

    /// Finds the instance that a path names: an id, a unique suffix of one, or a name.
    pub(crate) async fn find(
        &self,
        actor: &Actor,
        text: &str,
        tenant: Option<&str>,
    ) -> Result<Target, Refused> {
        let missing = || Refused::not_found("instance", text);
        if let Some(tenant) = tenant
            && actor.scope().is_some_and(|own| **own != *tenant)
        {
            return Err(missing());
        }
        let scope = actor.scope().map(ToString::to_string);
        let scope = scope.or_else(|| tenant.map(str::to_owned));
        if let Ok(id) = text.parse::<InstanceId>() {
            let reply = self.ask(actor, Call::Locate(id)).await?;
            if let Reply::Located(_) = reply {
                return Ok(Target::Living(id));
            }
            let ended = self.read(move |reader| reader.ended_by_id(id)).await?;
            return ended
                .filter(|ended| {
                    scope
                        .as_deref()
                        .is_none_or(|scope| *scope == *ended.submission.tenant)
                })
                .map(|ended| Target::Ended(Box::new(ended)))
                .ok_or_else(missing);
        }
        let call = Call::Resolve {
            text: text.to_owned(),
            tenant: scope.clone(),
        };
        let reply = self.ask(actor, call).await?;
        let Reply::Resolved(Resolved { living, past }) = reply else {
            return Err(internal());
        };
        let suffix = text.to_owned();
        let by_name = living.is_empty() && past.is_empty() && !crate::numbers_like(text);
        // Names of what has ended are no key of the store's.
        let _place = by_name.then(|| self.place_for_list(actor)).transpose()?;
        let ended = self
            .read(move |reader| {
                if by_name {
                    reader.named(&suffix, scope.as_deref())
                } else {
                    reader.matching(&past, &suffix, scope.as_deref())
                }
            })
            .await?;
        let mut found: Vec<Target> = living.into_iter().map(Target::Living).collect();
        found.extend(
            ended
                .into_iter()
                .map(|ended| Target::Ended(Box::new(ended))),
        );
        match (found.pop(), found.len()) {
            (None, _) => Err(missing()),
            (Some(only), 0) => Ok(only),
            (Some(_), others) => Err(Refused::new(
                ErrorCode::Conflict,
                format!("'{text}' names {} instances", others + 1),
            )
            .hint("give more digits of the id, or the tenant")),
        }
    }
}

pub(crate) fn internal() -> Refused {
    Refused::new(
        ErrorCode::Internal,
        "the controller failed; its log says more",
    )
}
